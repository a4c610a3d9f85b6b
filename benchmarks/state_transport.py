"""Does carrying Adam's moments through a cut pay, and in which gauge? A fit with the cut in the middle.

A train of rank 8 is fitted to noisy samples of a random train of rank 4 by Adam, on all samples at once and
in batches. After `STEPS` steps one sweep of `DMRGScheduler` cuts it to rank 4, to the same tensor each time,
and Adam goes on: with its moments carried or reset, and with the cores in each of the gauges. The literal
sweep of MetaTT with its restart stands beside them.

    OMP_NUM_THREADS=1 python benchmarks/state_transport.py

writes `benchmarks/results/state_transport.json`.
"""

import argparse
import copy
import json
import math
import os
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

import ttnet
from ttnet.cores import contract
from ttnet.optim import DMRGScheduler
from ttnet.random import random_cores

MODES, SIZE, TEACHER_RANK, START_RANK = 8, 3, 4, 8
SAMPLES, NOISE = 4000, math.sqrt(5e-5)
STEPS, LEARNING_RATE, CHECKPOINTS = 300, 1e-2, (3, 30, 300)
DTYPE = torch.float64
BATCHES = (None, 256)
VARIANTS = [
    *(
        ("truncate", gauge, state)
        for gauge in ("nearest", "canonical", "balanced")
        for state in ("transport", "reset")
    ),
    ("paper", "canonical", "reset"),
]


def evaluate(cores: tuple[Tensor, ...], positions: Tensor) -> Tensor:
    """The train at the sampled positions, by their number in the dense tensor, which is small here."""
    return contract(cores).flatten()[positions]


class Run:
    """A train, its optimizer and its data, which can be copied at the cut."""

    def __init__(self, seed: int, batch: int | None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.positions = torch.randint(SIZE**MODES, (SAMPLES,), generator=generator)
        teacher = random_cores((SIZE,) * MODES, TEACHER_RANK, seed=generator, dtype=DTYPE)
        values = evaluate(teacher, self.positions)
        noise = NOISE * torch.randn(SAMPLES, generator=generator, dtype=DTYPE)
        self.values = values / values.std() + noise
        start = random_cores((SIZE,) * MODES, START_RANK, seed=generator, dtype=DTYPE)
        self.parameter = ttnet.TTParameter(start)
        self.optimizer = torch.optim.Adam(self.parameter.parameters(), lr=LEARNING_RATE)
        self.generator, self.batch = generator, batch

    def copy(self) -> "Run":
        """The same run, independent of this one, with the same batches to come."""
        twin = copy.copy(self)
        twin.parameter = ttnet.TTParameter(self.parameter.tensor_train())
        twin.optimizer = torch.optim.Adam(twin.parameter.parameters(), lr=LEARNING_RATE)
        twin.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        twin.generator = torch.Generator()
        twin.generator.set_state(self.generator.get_state())
        return twin

    def train(self, steps: int) -> None:
        """Take steps of Adam."""
        for _ in range(steps):
            positions, values = self.positions, self.values
            if self.batch is not None:
                chosen = torch.randint(SAMPLES, (self.batch,), generator=self.generator)
                positions, values = positions[chosen], values[chosen]
            self.optimizer.zero_grad()
            (evaluate(self.parameter.cores, positions) - values).square().mean().backward()
            self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def loss(self) -> float:
        """Mean squared error over all samples; the noise has 5e-5."""
        return float((evaluate(self.parameter.cores, self.positions) - self.values).square().mean())


def measure(seed: int, batch: int | None) -> list[dict[str, object]]:
    """All variants of one run, from one and the same state before the cut."""
    base = Run(seed, batch)
    base.train(STEPS)
    rows = []
    for mode, gauge, state in VARIANTS:
        run = base.copy()
        scheduler = DMRGScheduler(
            run.optimizer, run.parameter, ranks={1: TEACHER_RANK}, mode=mode, gauge=gauge, state=state
        )
        report = scheduler.step()
        assert report is not None
        row = {"seed": seed, "batch": batch, "mode": mode, "gauge": gauge, "state": state}
        row |= {"before": base.loss(), "cut": run.loss(), "relative_error": report.relative_error}
        done = 0
        for steps in CHECKPOINTS:
            run.train(steps - done)
            done = steps
            row[f"after_{steps}"] = run.loss()
        rows.append(row)
    return rows


def summarize(rows: list[dict[str, object]]) -> dict[str, float]:
    """Geometric means over the seeds: losses, and losses relative to just after the cut."""

    def mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    keys = ("before", "cut", *(f"after_{steps}" for steps in CHECKPOINTS))
    losses = {key: mean([row[key] for row in rows]) for key in keys}
    return losses | {f"ratio_{steps}": losses[f"after_{steps}"] / losses["cut"] for steps in CHECKPOINTS}


def main() -> None:
    """Measure, write the file, show the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "state_transport.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    rows = [row for batch in BATCHES for seed in options.seeds for row in measure(seed, batch)]
    summary = []
    for batch in BATCHES:
        for mode, gauge, state in VARIANTS:
            wanted = (batch, mode, gauge, state)
            same = [r for r in rows if (r["batch"], r["mode"], r["gauge"], r["state"]) == wanted]
            summary.append({"batch": batch, "mode": mode, "gauge": gauge, "state": state, **summarize(same)})
            numbers = "".join(f"{value:10.2e}" for value in summarize(same).values())
            print(f"{batch!s:5} {mode:9} {gauge:10} {state:10}{numbers}")
    result = {
        "task": {
            "modes": MODES,
            "size": SIZE,
            "teacher_rank": TEACHER_RANK,
            "ranks": [START_RANK, TEACHER_RANK],
            "samples": SAMPLES,
            "noise_floor": NOISE**2,
            "optimizer": "Adam",
            "learning_rate": LEARNING_RATE,
            "steps": [STEPS, CHECKPOINTS[-1]],
        },
        "seeds": options.seeds,
        "dtype": str(DTYPE).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ttnet": ttnet.__version__,
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "seconds": round(time.perf_counter() - started, 1),
        "means": "geometric, over the seeds; `ratio_*` is relative to the loss just after the cut",
        "summary": summary,
        "runs": rows,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
