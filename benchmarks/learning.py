"""Learning a train: two-site sweeps beside Adam over all cores, at the same time and the same evaluations.

    python benchmarks/learning.py --threads 1

writes `benchmarks/results/learning.json`. Teacher: 4,000 entries of a random train of rank 4 (8 modes of size
3, entries of variance 1) with noise of variance 5e-5, which is the floor of the mean square. The sweeps begin
at rank 2 and find the rank by themselves; Adam is given it, or begins at 8 and is cut to it. Digits: the
classifier of `examples/digits.py`, whose settings were chosen by folds of the training images; the first
1,347 images train, the last 450 test; every method begins at the same linear model and has the same time.
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
from ttnet.optim import DMRGScheduler, GatherLoss, LeastSquares, RankSchedule, TwoSiteDMRG

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


def digits(seeds: int) -> dict[str, Any]:
    """Test errors of the example's classifier by two-site sweeps and by Adam, which has the same time."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import digits as example  # pyright: ignore[reportMissingImports]

    scale, l2, rank = 1.5, 3e-5, 20
    shown, labels, others, truth = example.load(1347, slice(-450, None))
    mean = shown.flatten(1).mean(0)
    points, other_points = (example.features(images, mean, scale) for images in (shown, others))
    linear = example.start(points, labels, scale)
    runs: dict[str, list[dict[str, float]]] = {}

    def loss_of(scores: Tensor, wanted: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(scores, wanted, label_smoothing=0.1)

    def sweeping(seed: int, solver: str) -> tuple[ttnet.TensorTrain, int]:
        parameter = ttnet.TTParameter(example.perturbed(linear, 0.01, seed))
        problem = GatherLoss(list(points.unbind(1)), labels, loss_of, label_mode=example.LABEL, l2=l2)
        truncation = ttnet.Truncation(max_rank=rank)
        optimizer = TwoSiteDMRG(parameter, truncation=truncation, solver=solver, seed=seed)  # pyright: ignore[reportArgumentType]
        result = optimizer.minimize(problem, sweeps=3)
        return result.tensor_train, sum(report.evaluations for report in result.trajectory)

    def stepping(seed: int, seconds: float, *, cut: bool) -> tuple[ttnet.TensorTrain, int]:
        first = example.perturbed(linear, 0.01, seed)
        wider = first + ttnet.random_train(first.shape, rank - 11, seed=seed, dtype=first.dtype) * 1e-12
        parameter = ttnet.TTParameter(wider if cut else first)
        optimizer = torch.optim.Adam(parameter.parameters(), lr=1e-3)
        cuts = {0: rank, **{k: rank - 3 * k for k in (1, 2, 3)}}
        generator = torch.Generator().manual_seed(seed)
        scheduler = DMRGScheduler(optimizer, parameter, ranks=RankSchedule(cuts)) if cut else None
        began, steps = time.process_time(), 0
        while time.process_time() - began < seconds:
            batch = torch.randint(len(points), (128,), generator=generator)
            optimizer.zero_grad()
            train = parameter()
            loss = loss_of(example.outputs(train, points[batch]), labels[batch])
            (loss + 0.5 * l2 * train.dot(train)).backward()
            optimizer.step()
            steps += 1
            spent = time.process_time() - began
            if scheduler is not None and scheduler.epoch < 3 and spent > seconds * (scheduler.epoch + 1) / 6:
                optimizer.zero_grad()
                scheduler.step()
        return parameter.tensor_train(), steps

    for seed in range(seeds):
        seconds = 0.0
        for name in ("two-site Newton-CG", "two-site L-BFGS", "Adam", "Adam with truncations 20, 17, 14, 11"):
            began = time.process_time()
            if name.startswith("two-site"):
                train, count = sweeping(seed, "newton-cg" if "Newton" in name else "lbfgs")
            else:
                train, count = stepping(seed, seconds, cut="truncations" in name)
            spent = time.process_time() - began
            seconds = spent if name == "two-site Newton-CG" else seconds
            run = {
                "test_error": example.error(train, other_points, truth),
                "training_error": example.error(train, points, labels),
                "evaluations_or_steps": count,
                "cpu_seconds": spent,
            }
            runs.setdefault(name, []).append(run)
            print(f"  seed {seed} {name:32s} {run}", file=sys.stderr)
    return {
        name: {"test_error": summary([run["test_error"] for run in each]), "runs": each}
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
        "digits": digits(options.seeds),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
