"""Learning a train: two-site sweeps beside Adam over all cores, at the same time and the same evaluations.

    python benchmarks/learning.py --threads 1

writes `benchmarks/results/learning.json`. Teacher: 4,000 entries of a random train of rank 4 (8 modes of size
3, entries of variance 1) with noise of variance 5e-5, which is the floor of the mean square. The sweeps begin
at rank 2 and find the rank by themselves; Adam is given it, or begins at 8 and is cut to it.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import describe, fix_environment, moment
from torch import Tensor

import ttnet
from ttnet.optim import DMRGScheduler, LeastSquares, RankSchedule, TwoSiteDMRG

MODES, SIZE, TEACHER_RANK, SAMPLES, FLOOR, SEEDS = 8, 3, 4, 4000, 5e-5, 5
ARRIVED = 1.1 * FLOOR
"""Mean square at which a method has reached the floor."""

BUDGET = 20.0
"""CPU seconds that Adam may take."""

Trace = list[tuple[float, int, float]]
"""CPU seconds, gradient evaluations, mean square on the training entries."""


class Teacher:
    """Noisy entries of a random train."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape = (SIZE,) * MODES
        self.indices = torch.randint(SIZE, (SAMPLES, MODES), generator=generator)
        teacher = ttnet.random_train(self.shape, TEACHER_RANK, seed=generator, dtype=torch.float64)
        values = teacher.gather(self.indices)
        noise = math.sqrt(FLOOR) * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
        self.values = values / values.std() + noise
        self.seed = seed

    def start(self, rank: int) -> ttnet.TTParameter:
        """A random train whose entries have the size of the data."""
        return ttnet.TTParameter(
            ttnet.random_train(self.shape, rank, seed=self.seed + 100, dtype=torch.float64)
        )

    def mean_square(self, train: ttnet.TensorTrain) -> Tensor:
        """Of the residuals."""
        return (train.gather(self.indices) - self.values).square().mean()


def sweeps(teacher: Teacher, solver: str, local_steps: int) -> tuple[Trace, ttnet.TensorTrain]:
    """Two-site sweeps whose ranks grow where the projected gradient stands out of the noise.

    A cap that rises by one every second sweep lets the other bonds settle before the test is believed.
    """
    problem = LeastSquares(teacher.indices, teacher.values)
    parameter = teacher.start(2)
    optimizer = TwoSiteDMRG(
        parameter,
        truncation=[ttnet.Truncation(max_rank=2 + k // 2, cutoff=1e-5) for k in range(30)],
        max_rise=0.01,
        solver=solver,  # pyright: ignore[reportArgumentType]
        local_steps=local_steps,
        growth="test",
        seed=teacher.seed,
    )
    trace: Trace = []
    began, count = time.process_time(), 0
    for _ in range(40):
        report = optimizer.sweep(problem)
        count += report.evaluations
        trace.append((time.process_time() - began, count, 2 * float(report.loss_after or math.nan)))
        if trace[-1][2] <= ARRIVED and len(trace) > 1 and trace[-1][2] > 0.999 * trace[-2][2]:
            break
        if trace[-1][0] > BUDGET:
            break
    return trace, parameter.tensor_train()


def adam(teacher: Teacher, rate: float, *, cut: bool) -> tuple[Trace, ttnet.TensorTrain]:
    """Adam over all cores, at the teacher's rank or cut to it in the middle; the rate falls by a cosine."""
    parameter = teacher.start(2 * TEACHER_RANK if cut else TEACHER_RANK)
    optimizer = torch.optim.Adam(parameter.parameters(), lr=rate)
    scheduler = DMRGScheduler(optimizer, parameter, ranks=RankSchedule({0: 8, 1: 6, 2: 4})) if cut else None
    trace: Trace = []
    began, step, spent = time.process_time(), 0, 0.0
    while spent < BUDGET:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * spent / BUDGET))
        optimizer.zero_grad()
        loss = teacher.mean_square(parameter())
        loss.backward()
        optimizer.step()
        step += 1
        spent = time.process_time() - began
        if step % 20 == 0:
            trace.append((spent, step, float(loss.detach())))
            if loss <= ARRIVED:
                break
        if scheduler is not None and scheduler.epoch < 2 and spent > BUDGET * (scheduler.epoch + 1) / 4:
            optimizer.zero_grad()
            scheduler.step()
    return trace, parameter.tensor_train()


METHODS: dict[str, Callable[[Teacher], tuple[Trace, ttnet.TensorTrain]]] = {
    "two-site Newton-CG": lambda teacher: sweeps(teacher, "newton-cg", 8),
    "two-site L-BFGS": lambda teacher: sweeps(teacher, "lbfgs", 8),
    "Adam, lr 1e-2": lambda teacher: adam(teacher, 1e-2, cut=False),
    "Adam, lr 3e-2": lambda teacher: adam(teacher, 3e-2, cut=False),
    "Adam with truncations, lr 1e-2": lambda teacher: adam(teacher, 1e-2, cut=True),
}


def at(trace: Trace, *, seconds: float = math.inf, evaluations: float = math.inf) -> float | None:
    """The mean square that a method had reached by a time and a number of evaluations."""
    seen = [loss for spent, count, loss in trace if spent <= seconds and count <= evaluations]
    return min(seen, default=None)


def summary(values: list[float | None]) -> dict[str, Any] | None:
    """Mean and standard deviation, where every seed has a value."""
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    return {"mean": statistics.mean(known), "spread": statistics.stdev(known), "worst": max(known)}


def teachers(seeds: int) -> dict[str, Any]:
    """Every method on every seed, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    METHODS["two-site Newton-CG"](Teacher(99))  # warms up
    for seed in range(seeds):
        teacher = Teacher(seed)
        for name, method in METHODS.items():
            trace, train = method(teacher)
            arrived = next((spent for spent, _, loss in trace if loss <= ARRIVED), None)
            counted = next((count for _, count, loss in trace if loss <= ARRIVED), None)
            run = {
                "seconds_to_floor": arrived,
                "evaluations_to_floor": counted,
                "mean_square": trace[-1][2],
                "ranks": list(train.ranks[1:-1]),
                "trace": trace[:: max(len(trace) // 30, 1)],
            }
            runs[name].append(run)
            print(
                f"  seed {seed} {name:32s} floor after {arrived} s, {counted} evaluations; "
                f"{trace[-1][2]:.2e}, ranks {run['ranks']}",
                file=sys.stderr,
            )
    return {
        name: {
            "reached_the_floor": sum(run["seconds_to_floor"] is not None for run in each),
            "seconds_to_floor": summary([run["seconds_to_floor"] for run in each]),
            "evaluations_to_floor": summary([run["evaluations_to_floor"] for run in each]),
            "mean_square_at_seconds": {
                str(s): summary([at(run["trace"], seconds=s) for run in each]) for s in (0.5, 1, 2, 5, 20)
            },
            "mean_square_at_evaluations": {
                str(n): summary([at(run["trace"], evaluations=n) for run in each]) for n in (300, 600, 1200)
            },
            "runs": each,
        }
        for name, each in runs.items()
    }


def main() -> None:
    """Run everything and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learning.json")
    options = parser.parse_args()
    fix_environment(options.threads)
    torch.set_num_threads(options.threads)
    record = {
        "dtype": "float64",
        "threads": options.threads,
        **describe(["ttnet", "torch", "numpy", "scikit-learn"]),
        **moment(),
        "teacher": teachers(options.seeds),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
