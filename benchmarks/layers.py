"""Time of a linear layer: `nn.Linear`, `TTLinear` and tensorly-torch's `FactorizedLinear` of the same shape.

All layers of a case live in one process and run in turn, so that the machine's moods hit them alike. Reported
are medians over the rounds of a forward pass without grad and of a forward and backward pass, by the CPU time
of the thread and by the wall clock, ratios to `nn.Linear`, parameters, and the size of what autograd keeps.
TTLinear and FactorizedLinear have the same modes and ranks; `ttlinear-2` has two cores of the same rank, and
`ttlinear-kept` keeps its dense matrix between calls without grad.

    python benchmarks/layers.py --results benchmarks/results/layers.json
"""

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import ttnet
from ttnet.nn import TTLinear
from ttnet.nn.paths import bucket, plan_for

CASES: list[tuple[int, int, int]] = [(1024, 1024, 8), (1024, 1024, 16), (4096, 4096, 16)]
"""Input features, output features, rank."""

FACTORIZATIONS = ("blocktt",)
"""tensorly-torch's name of a matrix in tensor-train form."""

BUDGET = 2.0
"""Seconds of one contestant in one measurement; fewer rounds are run where a call takes long."""


def load_rival() -> tuple[ModuleType | None, str]:
    """tensorly-torch, or None and why it is not there."""
    try:
        module = importlib.import_module("tltorch")
    except ImportError as error:
        return None, f"not measured, tensorly-torch cannot be imported: {error}"
    return module, str(getattr(module, "__version__", "unknown"))


def contestants(case: tuple[int, int, int], rival: ModuleType | None) -> dict[str, nn.Module]:
    """The dense layer, ours in three forms, and the rival's."""
    inputs, outputs, rank = case
    torch.manual_seed(0)
    ours = TTLinear(inputs, outputs, rank)
    layers: dict[str, nn.Module] = {
        "linear": nn.Linear(inputs, outputs),
        "ttlinear": ours,
        "ttlinear-2": TTLinear(inputs, outputs, rank, num_cores=2),
        "ttlinear-kept": TTLinear(inputs, outputs, rank, cache=True),
    }
    if rival is not None:
        for factorization in FACTORIZATIONS:
            layers[f"tltorch-{factorization}"] = rival.FactorizedLinear(
                ours.in_modes,
                ours.out_modes,
                bias=True,
                factorization=factorization,
                rank=list(ours.cores.ranks),
                implementation="factorized",
            )
    return layers


def forward(layer: nn.Module, x: Tensor) -> None:
    """A call without grad."""
    with torch.no_grad():
        layer(x)


def forward_backward(layer: nn.Module, x: Tensor) -> None:
    """A call and the gradients of its parameters and of its input."""
    layer.zero_grad(set_to_none=True)
    layer(x.detach().requires_grad_()).square().mean().backward()


def race(
    layers: dict[str, nn.Module], run: Callable[[nn.Module, Tensor], None], x: Tensor, rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds by the two clocks, the layers taking turns."""
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
    slowest = 0.0
    for layer in layers.values():
        run(layer, x)  # finds the order of contraction
        started = time.perf_counter()
        run(layer, x)
        slowest = max(slowest, time.perf_counter() - started)
    rounds = max(3, min(rounds, int(BUDGET / max(slowest, 1e-9))))
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            started_at = {clock: read() for clock, read in clocks.items()}
            run(layer, x)
            for clock, read in clocks.items():
                seconds[name][clock].append(read() - started_at[clock])
    return {
        name: {**{clock: statistics.median(times) for clock, times in own.items()}, "rounds": rounds}
        for name, own in seconds.items()
    }


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters and input left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *layer.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layer(x)
    del output
    return sum(kept.values())


def describe(layer: nn.Module, batch: int) -> dict[str, Any]:
    """How one of our layers computes."""
    if not isinstance(layer, TTLinear):
        return {}
    plan = plan_for(layer.out_modes, layer.in_modes, layer.cores.ranks[1:-1], bucket(batch))
    return {
        "in_modes": layer.in_modes,
        "out_modes": layer.out_modes,
        "ranks": layer.cores.ranks,
        "products_of_cores": len(plan.weight_steps),
        "products_with_input": len(plan.input_steps),
        "batch_last": plan.batch_last,
    }


def measure(
    case: tuple[int, int, int], batches: list[int], rounds: int, rival: ModuleType | None
) -> list[dict[str, Any]]:
    """All rows of one case."""
    layers = contestants(case, rival)
    rows = []
    for batch in batches:
        x = torch.randn(batch, case[0], generator=torch.Generator().manual_seed(1))
        times = {
            "forward": race(layers, forward, x, rounds),
            "forward+backward": race(layers, forward_backward, x, rounds),
        }
        for work, results in times.items():
            row: dict[str, Any] = {"case": list(case), "batch": batch, "work": work, "layers": {}}
            for name, seconds in results.items():
                row["layers"][name] = {
                    "seconds": seconds,
                    "cpu_ratio_to_linear": seconds["cpu"] / results["linear"]["cpu"],
                    "parameters": sum(p.numel() for p in layers[name].parameters()),
                    "kept_bytes": kept_bytes(layers[name], x),
                    **describe(layers[name], batch),
                }
            rows.append(row)
            shown = "  ".join(f"{name} {1e3 * own['cpu']:.3f}" for name, own in results.items())
            print(f"{case} batch {batch:5} {work:17} ms: {shown}", flush=True)
    return rows


def main() -> None:
    """Run the cases, write the JSON and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/layers.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rival, version = load_rival()
    record = {
        "dtype": "float32",
        "threads": args.threads,
        "rounds": args.rounds,
        "device": "cpu",
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tensorly-torch": version,
            "ttnet": ttnet.__version__,
        },
        "rows": [
            row for index in args.cases for row in measure(CASES[index], args.batches, args.rounds, rival)
        ],
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
