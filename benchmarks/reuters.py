"""Reuters R8 with MiniLM: a MetaTT adapter swept to rank 8 against peft's LoRA of rank 8, both tuned alike.

First every learning rate of one grid is tried with each method on a seeded subset, judged by the dev split;
then each method runs on the full training split at its best rate, once for each seed. Every run is `ttnet
finetune`, so that the loop, the batches, the head and the metrics are the same. Runs that are there already
are not repeated.

    python benchmarks/reuters.py --work runs/reuters --results benchmarks/results/reuters_r8.json
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

GRID = (2e-3, 5e-3, 1e-2, 2e-2, 4e-2)
METHODS: dict[str, list[str]] = {
    "metatt-4d": ["--method", "tt", "--ranks", "0:12,1:8"],
    "lora": ["--method", "lora", "--rank", "8"],
}
COMMON = [
    "--task",
    "reuters-r8",
    "--model",
    "minilm",
    "--epochs",
    "3",
    "--batch-size",
    "32",
    "--max-length",
    "128",
]


def run(directory: Path, options: list[str]) -> dict[str, Any]:
    """One `ttnet finetune`; its result.json."""
    result = directory / "result.json"
    if not result.exists():
        command = [sys.executable, "-m", "ttnet.cli.main", "finetune", *COMMON, *options]
        print(" ".join(command[3:]), flush=True)
        subprocess.run([*command, "--output", str(directory), "--overwrite", "--quiet"], check=True)
    return json.loads(result.read_text())


def main() -> None:
    """Tune, run, write the JSON and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/reuters"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/reuters_r8.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--tune-only", action="store_true")
    parser.add_argument("--note", default="", help="kept in the record: what else a reader has to know")
    args = parser.parse_args()
    machine = ["--dtype", args.dtype, "--threads", args.threads]
    record: dict[str, Any] = {
        "grid": GRID,
        "common": COMMON + machine,
        "methods": METHODS,
        "tuning": {},
        "full": {},
    }
    record["note"] = args.note
    for method, options in METHODS.items():
        scores = {}
        for rate in GRID:
            outcome = run(args.work / f"tune-{method}-{rate:g}", [*machine, *options, "--lr", f"{rate:g}"])
            scores[f"{rate:g}"] = outcome["dev"]["accuracy"]
        record["tuning"][method] = scores
        print(method, scores, flush=True)
    for method, options in METHODS.items() if not args.tune_only else ():
        scores = record["tuning"][method]
        best = max(scores, key=lambda rate: scores[rate])
        outcomes = [
            run(
                args.work / f"full-{method}-{best}-{seed}",
                [*machine, *options, "--lr", best, "--full", "--seed", str(seed)],
            )
            for seed in args.seeds
        ]
        accuracies = [outcome["test_accuracy"] for outcome in outcomes]
        record["full"][method] = {
            "learning_rate": float(best),
            "test_accuracy": accuracies,
            "mean": statistics.mean(accuracies),
            "stdev": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            "adapter_parameters": outcomes[0]["adapter_parameters"],
            "head_parameters": outcomes[0]["head_parameters"],
            "seconds": [outcome["seconds"] for outcome in outcomes],
            "versions": outcomes[0]["versions"],
            "seeds": args.seeds,
        }
        print(method, record["full"][method], flush=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
