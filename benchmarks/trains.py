"""Trains against the other libraries: times, errors and peak memory, row by row.

    python benchmarks/trains.py                              # all rows, one thread, float64 and float32
    python benchmarks/trains.py --threads 2                  # adds a run of its own to the same file
    python benchmarks/trains.py --rows dot full --dtype float64 --rounds 15
    python benchmarks/trains.py --table                      # writes the table anew from the file

The libraries come with `pip install -e '.[bench]'`; those that are missing are left out and named. Threads
that wait are told to sleep (OMP_WAIT_POLICY=PASSIVE, GOMP_SPINCOUNT=0): the command starts itself anew with
these settings. Figures from a busy machine are worthless: the load average is recorded with every row.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from harness import Attempt, Unavailable, describe, fix_environment, moment, peak_of, race, reason_of
from peers import PACKAGES, RIVALS
from train_rows import ROWS, Problem, Row
from train_table import render

RESULTS = Path(__file__).parent / "results" / "trains.json"
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def problem_of(row: Row, args: argparse.Namespace, dtype: str, *, tiny: bool) -> Problem:
    """The data of a row; the same for everyone who asks with the same seed."""
    make = row.make_tiny if tiny else row.make
    return make(DTYPES[dtype], torch.Generator().manual_seed(args.seed))


def enter(rivals: dict[str, Any], row: Row, problem: Problem, tiny: Problem) -> dict[str, Attempt | str]:
    """Attempts of all rivals by name, each warmed up on the tiny problem, or the reason why there is none."""
    entered: dict[str, Attempt | str] = {}
    for name, rival in rivals.items():
        if isinstance(rival, str):
            entered[name] = rival
            continue
        method = getattr(rival, row.method, None)
        if method is None:
            continue  # the library does not offer the operation
        try:
            warm_ups, attempts = method(tiny.data), method(problem.data)
        except Exception as error:
            entered[name] = reason_of(error)
            continue
        for variant, attempt in attempts.items():
            label = f"{name}, {variant}" if variant else name
            try:
                warm = warm_ups[variant]
                warm.read(warm.run())
                entered[label] = attempt
            except Exception as error:
                entered[label] = reason_of(error)
    return entered


def assemble(names: list[str]) -> dict[str, Any]:
    """The rivals, or for one that cannot be imported the reason."""
    rivals: dict[str, Any] = {}
    for name in names:
        try:
            rivals[name] = RIVALS[name]()
        except ModuleNotFoundError as error:
            rivals[name] = f"not installed: {error}"
        except Exception as error:
            rivals[name] = f"cannot be imported: {reason_of(error)}"
    return rivals


def run_row(name: str, rivals: dict[str, Any], args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Race of one row, and the peak memory of its rivals."""
    row, started = ROWS[name], moment()
    problem, tiny = problem_of(row, args, dtype, tiny=args.tiny), problem_of(row, args, dtype, tiny=True)
    entered = enter(rivals, row, problem, tiny)
    attempts = {label: attempt for label, attempt in entered.items() if isinstance(attempt, Attempt)}
    attempts |= {f"floor: {label}": Attempt(run=run) for label, run in problem.floors.items()}
    records = race(attempts, problem.error_of, rounds=args.rounds, budget=args.budget, limit=args.limit)
    results: dict[str, Any] = {}
    for label, attempt in entered.items():
        record = records[label] if isinstance(attempt, Attempt) else {"skipped": attempt}
        if "error" in record:
            record["accurate"] = record["error"] <= problem.allowed
        if row.has_memory and not args.no_memory and "skipped" not in record:
            record["peak_bytes"] = memory_of(name, label, args, dtype)
        results[label] = record
    floors = {label.removeprefix("floor: "): records[label] for label in records if label.startswith("floor")}
    add_ratios([*results.values(), *floors.values()], results.get("ttnet", {}))
    return {
        "title": row.title,
        **started,
        "tiny": args.tiny,
        "allowed_error": problem.allowed,
        "rivals": results,
        "floors": floors,
    }


def add_ratios(records: list[dict[str, Any]], own: dict[str, Any]) -> None:
    """CPU and wall-clock time in units of this library's, both medians of the same race."""
    for clock in ("cpu", "wall"):
        key = f"{clock}_seconds"
        for record in records:
            if key in own and key in record:
                ratio = record[key]["median"] / own[key]["median"]
                record[f"{clock}_ratio_to_ttnet"] = float(f"{ratio:.4g}")


def memory_of(name: str, label: str, args: argparse.Namespace, dtype: str) -> int | str:
    """Peak memory of one call, measured in a process of its own; or the reason why there is none."""
    command = [sys.executable, __file__, "--memory", name, label, "--dtype", dtype]
    command += ["--threads", str(args.threads), "--seed", str(args.seed), *(["--tiny"] if args.tiny else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * args.limit)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1]
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def print_memory(name: str, label: str, args: argparse.Namespace) -> None:
    """What `memory_of` asks another process for."""
    row, dtype = ROWS[name], args.dtype[0]
    rivals = assemble([label.split(", ")[0]])
    problem, tiny = problem_of(row, args, dtype, tiny=args.tiny), problem_of(row, args, dtype, tiny=True)
    attempt = enter(rivals, row, problem, tiny)[label]
    if not isinstance(attempt, Attempt):
        raise Unavailable(attempt)
    print(json.dumps({"peak_bytes": peak_of(attempt.run)}))


def progress(name: str, result: dict[str, Any]) -> None:
    """One line for each rival of a row, on the error stream."""
    print(f"{name}   (load {result['load_average'][0]})", file=sys.stderr)
    for label, record in [*result["rivals"].items(), *result["floors"].items()]:
        if "skipped" in record:
            print(f"    {label:32} skipped: {record['skipped']}", file=sys.stderr)
            continue
        cpu = record["cpu_seconds"]
        parts = [f"{cpu['median']:.4g} s [{cpu['low']:.4g}, {cpu['high']:.4g}]"]
        parts += [f"{record['cpu_ratio_to_ttnet']:.2f}x"] if "cpu_ratio_to_ttnet" in record else []
        if "error" in record:
            parts.append(f"error {record['error']:.1e}" + ("" if record["accurate"] else " TOO LARGE"))
        parts += [f"{record['evaluations']} evaluations"] if "evaluations" in record else []
        peak = record.get("peak_bytes")
        parts += [f"peak {peak / 2**20:.0f} MiB" if isinstance(peak, int) else str(peak)] if peak else []
        print(f"    {label:32} " + "   ".join(parts), file=sys.stderr)
    sys.stderr.flush()


def run(args: argparse.Namespace) -> None:
    """Run the rows and write the file after each, so that nothing is lost."""
    environment = describe(PACKAGES)
    rivals = assemble(args.rivals)
    torch.set_num_threads(args.threads)
    record = json.loads(args.results.read_text()) if args.results.exists() else {"runs": {}}
    for dtype in args.dtype:
        key = f"{args.threads} thread{'s' if args.threads > 1 else ''}, {dtype}"
        kept = record["runs"].get(key, {})
        if kept.get("environment") != environment:
            kept = {"rows": {}}  # of another machine or of other versions: they do not belong together
        settings = {"threads": args.threads, "dtype": dtype, "seed": args.seed, "rounds": args.rounds}
        current = {**settings, "environment": environment, "rows": kept["rows"]}
        for name in args.rows:
            current["rows"][name] = run_row(name, rivals, args, dtype)
            progress(f"{name}, {key}", current["rows"][name])
            current["rows"] = {known: current["rows"][known] for known in ROWS if known in current["rows"]}
            record["runs"][key] = current
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), default=list(RIVALS), metavar="RIVAL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for the rounds of one rival")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a run is given up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--tiny", action="store_true", help="tiny problems, to try the harness out")
    parser.add_argument("--table", action="store_true", help="only write the table, from the file")
    parser.add_argument("--memory", nargs=2, metavar=("ROW", "RIVAL"), help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measure, or only write the table."""
    args = parse()
    if not args.table:
        fix_environment(args.threads)
        warnings.simplefilter("ignore")  # what the rivals warn of is not ours to print
        if args.memory:
            print_memory(*args.memory, args)
            return
        run(args)
    table = args.results.with_suffix(".md")
    table.write_text(render(json.loads(args.results.read_text())))
    print(f"{os.path.relpath(args.results)}, {os.path.relpath(table)}")


if __name__ == "__main__":
    main()
