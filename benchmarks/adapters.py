"""What adapters cost: the frozen base, peft's LoRA and VeRA, and MetaTT in 4D and 5D.

    step         a forward and a backward pass, eager, ratio to the frozen base
    compiled     the same under torch.compile
    memory       the peak memory of a step, each in a process of its own
    layers       the extra time of a step in models of 2 to 16 layers
    generation   tokens a second, merged, unmerged and LoRA

All contestants of a row live in one process and run in turn, in an order that rotates, so that the machine's
moods hit them alike. Reported are medians over the rounds and the fastest of them ("low"), by CPU time of the
process and by the wall clock (on a GPU by the wall clock, with synchronization); "extra" is the extra time
over the base relative to LoRA's. Each part that is run replaces that part of the results; the others stay.

    python benchmarks/adapters.py                       everything, one thread
    python benchmarks/adapters.py --parts step memory
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from adapter_models import ADAPTERS, TARGETS, VERA_RANK, VOCABULARY, adapted, make_base, num_trained, step
from adapter_table import render
from harness import Attempt, describe, fix_environment, moment, peak_of, race
from torch import Tensor, nn

Row = dict[str, Any]
PACKAGES = ["ttnet", "torch", "transformers", "peft"]
RANKS = (8, 64)
BATCH = (8, 128)
NEW_TOKENS = 32


def batch(model: nn.Module, device: torch.device, shape: tuple[int, int] = BATCH) -> Tensor:
    """Embedded random tokens."""
    tokens = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(0)).to(device)
    return model.get_input_embeddings()(tokens).detach()  # pyright: ignore[reportCallIssue]


def compare(models: dict[str, nn.Module], work: Callable[[nn.Module], Any], rounds: int, clock: str) -> Row:
    """Let models run in turn; seconds of each, ratio to the base, and extra time relative to LoRA's."""
    attempts = {name: Attempt(run=lambda model=model: work(model)) for name, model in models.items()}
    found = race(attempts, lambda _: 0.0, rounds=rounds, budget=600, limit=600)
    for name, record in found.items():
        record.pop("error", None)
        record["trained"] = num_trained(models[name])
    for key in ("median", "low"):
        times = {n: r[f"{clock}_seconds"][key] for n, r in found.items() if "skipped" not in r}
        for name in times if "base" in times else ():
            record, base = found[name], times["base"]
            record.setdefault("ratio", {})[key] = round(times[name] / base, 4)
            if name.startswith("metatt") and times.get("lora", base) != base:
                extra = (times[name] - base) / (times["lora"] - base)
                record.setdefault("extra", {})[key] = round(extra, 3)
    return found


def step_rows(device: torch.device, rounds: int, clock: str) -> list[Row]:
    """Eager steps of both models, all targets and ranks."""
    return [
        _step_row(kind, targets, rank, ("base", *ADAPTERS), device, rounds, clock)
        for kind in TARGETS
        for targets in TARGETS[kind]
        for rank in RANKS
    ]


def compiled_rows(device: torch.device, rounds: int, clock: str) -> list[Row]:
    """Compiled steps with all matrices adapted."""
    names = ("base", "lora", "metatt-4d")
    return [
        _step_row(kind, "all", rank, names, device, rounds, clock, compiled=True)
        for kind in TARGETS
        for rank in RANKS
    ]


def layer_rows(device: torch.device, rounds: int, clock: str) -> list[Row]:
    """Eager steps of decoders of several depths."""
    rows = []
    for layers in (2, 4, 8, 16):
        row = _step_row(
            "llama", "all", 8, ("base", "lora", "metatt-4d"), device, rounds, clock, layers=layers
        )
        seconds = {name: _median(record, clock) for name, record in row["contestants"].items()}
        for name in ("lora", "metatt-4d"):
            row["contestants"][name]["extra_per_layer"] = (seconds[name] - seconds["base"]) / layers
        rows.append(row)
    return rows


def memory_rows(device: torch.device, rounds: int, clock: str) -> list[Row]:  # noqa: ARG001
    """Memory of the adapter and peak of an eager step, over the base: medians of three processes."""
    rows = []
    for kind in TARGETS:
        base = _probe(kind, "all", 8, "base", device)
        for targets in TARGETS[kind]:
            for rank in RANKS:
                peaks = {name: _probe(kind, targets, rank, name, device) for name in ADAPTERS}
                extra = {name: peak - base for name, peak in peaks.items()}
                rows.append({"model": kind, "targets": targets, "rank": rank, "base": base, "extra": extra})
                print(
                    "memory",
                    kind,
                    targets,
                    rank,
                    {k: f"{v / 2**20:.1f} MiB" for k, v in extra.items()},
                    flush=True,
                )
    return rows


def generation_rows(device: torch.device, rounds: int, clock: str) -> list[Row]:
    """Greedy tokens a second of the decoder, with a cache."""
    rows = []
    for prompts in (1, 8):
        base = make_base("llama", device, head=True)
        models = {name: copy.deepcopy(base) for name in ("base", "lora", "metatt-4d", "merged")}
        models["lora"] = adapted("lora", models["lora"], TARGETS["llama"]["all"], 8)
        for name in ("metatt-4d", "merged"):
            adapted("metatt-4d", models[name], TARGETS["llama"]["all"], 8)
        models["merged"].tt_adapter.merge()  # pyright: ignore[reportCallIssue]
        tokens = torch.randint(1, VOCABULARY, (prompts, 16), generator=torch.Generator().manual_seed(0)).to(
            device
        )

        def generate(model: nn.Module, tokens: Tensor = tokens) -> Tensor:
            options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
            with torch.no_grad():
                return model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)  # pyright: ignore[reportCallIssue]

        found = compare({name: model.eval() for name, model in models.items()}, generate, rounds, clock)
        for record in found.values():
            record["tokens_per_second"] = round(prompts * NEW_TOKENS / _median(record, clock), 1)
        rows.append({"model": "llama", "targets": "all", "rank": 8, "prompts": prompts, "contestants": found})
        print("generation", prompts, {name: r["tokens_per_second"] for name, r in found.items()}, flush=True)
    return rows


PARTS: dict[str, Callable[[torch.device, int, str], list[Row]]] = {
    "step": step_rows,
    "memory": memory_rows,
    "layers": layer_rows,
    "generation": generation_rows,
    "compiled": compiled_rows,
}


def _step_row(
    kind: str,
    targets: str,
    rank: int,
    names: tuple[str, ...],
    device: torch.device,
    rounds: int,
    clock: str,
    *,
    layers: int | None = None,
    compiled: bool = False,
) -> Row:
    base = make_base(kind, device, layers)
    inputs = batch(base, device)
    models = {name: adapted(name, copy.deepcopy(base), TARGETS[kind][targets], rank) for name in names}
    if compiled:
        torch.compiler.reset()
        for model in models.values():
            model.compile()
    found = compare(models, lambda model: step(model, inputs), rounds, clock)
    row = {"model": kind, "targets": targets, "rank": rank, "layers": base.config.num_hidden_layers}  # pyright: ignore[reportAttributeAccessIssue]
    shown = {name: record.get("ratio", record.get("skipped")) for name, record in found.items()}
    print(
        "compiled" if compiled else "step",
        *row.values(),
        shown,
        f"extra {found['metatt-4d'].get('extra')}",
        flush=True,
    )
    return {**row, "contestants": found}


def _median(record: Row, clock: str) -> float:
    return record[f"{clock}_seconds"]["median"]


def _probe(kind: str, targets: str, rank: int, name: str, device: torch.device) -> int:
    """Peak bytes of a step in fresh processes."""
    # Without these the allocator keeps what was freed, by rules of its own, and the peak depends on them.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--device", str(device), "--probe", kind, targets, str(rank), name]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(3)
    ]
    return int(statistics.median(int(run.stdout.split()[-1]) for run in runs))


def probe(kind: str, targets: str, rank: int, name: str, device: torch.device) -> int:
    """Bytes of the adapter, and those by which a step raises the memory at its peak, once warmed up."""
    base = make_base(kind, device)
    size_of_base = _bytes(base)
    model = adapted(name, base, TARGETS[kind][targets], rank)
    own = _bytes(model) - size_of_base
    inputs = batch(model, device)
    step(model, inputs)
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, inputs)
        return own + torch.cuda.max_memory_allocated() - before
    return own + peak_of(lambda: step(model, inputs))


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def main() -> None:
    """Run the parts, keep the JSON and its table up to date after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.json")
    parser.add_argument(
        "--probe", nargs=4, metavar=("MODEL", "TARGETS", "RANK", "NAME"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    fix_environment(args.threads)
    warnings.simplefilter("ignore", FutureWarning)  # what the libraries say to each other
    device = torch.device(args.device)
    for kind in set(TARGETS) - set(args.models):
        del TARGETS[kind]
    if args.probe:
        kind, targets, rank, name = args.probe
        print(probe(kind, targets, int(rank), name, device))
        return
    record: Row = json.loads(args.out.read_text()) if args.out.exists() else {}
    clock = "wall" if device.type == "cuda" else "cpu"
    for part in args.parts:
        conditions = {
            **moment(),
            **describe(PACKAGES),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": args.threads,
            "rounds": args.rounds,
            "clock": clock,
            "dtype": "float32",
            "seed": 0,
            "batch": list(BATCH),
            "vera_rank": VERA_RANK,
        }
        record.setdefault(device.type, {})[part] = {
            "conditions": conditions,
            "rows": PARTS[part](device, args.rounds, clock),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(render(record))


if __name__ == "__main__":
    main()
