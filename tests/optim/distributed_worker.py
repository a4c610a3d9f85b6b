"""One process of a tiny distributed job; `test_distributed.py` starts two and compares what they write."""

import copy
import math
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ttnet import TTParameter
from ttnet.cores import contract
from ttnet.errors import StateError, TTNetError
from ttnet.optim import AdaptiveRanks, BatchLoss, DMRGScheduler, RankSchedule, TwoSiteOptions
from ttnet.optim.cuts import rounding_cut
from ttnet.optim.distributed import agree, broadcast, is_distributed
from ttnet.optim.norms import norm_of
from ttnet.random import random_cores

SHAPE, RANK = (5, 4, 6), 4
LATER = {"epoch": 3, "seed": 0, "last_cut": None, "active_ranks": [RANK, RANK]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cores = TTParameter(random_cores(SHAPE, RANK, seed=0, dtype=torch.float64))
        self.head = nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.unsqueeze(1) @ contract(self.cores.cores).flatten(0, 1).T).squeeze(1)[:, :6])


def job(
    process: int,
    ranks: RankSchedule | AdaptiveRanks,
    make: type[torch.optim.Optimizer],
    *,
    nudge: float = 0.0,
    two_site: TwoSiteOptions | None = None,
    hold: int = 2,
) -> dict[str, object]:
    """Train with a sweep after each epoch; every process has data of its own."""
    torch.manual_seed(0)
    net = Net()
    ddp = DistributedDataParallel(net)
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(ddp.parameters(), lr=1e-2, **options)
    mode = "two-site" if two_site else "truncate"
    scheduler = DMRGScheduler(optimizer, net.cores, ranks=ranks, mode=mode, two_site=two_site)
    data = torch.Generator().manual_seed(process)
    reports, zeros, means = [], [], []
    batches = [torch.randn(8, 6, generator=data, dtype=torch.float64) for _ in range(10)]
    held = BatchLoss(lambda x: (net(x) - 1).square().mean(), batches, hold=hold)
    for _ in range(4):
        for _ in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 6, generator=data, dtype=torch.float64)
            (ddp(x) - 1).square().mean().backward()
            optimizer.step()
        optimizer.zero_grad()
        if nudge and process:
            with torch.no_grad():
                for core in net.cores.core_parameters():
                    core.add_(nudge)
                    for value in optimizer.state[core].values():
                        if value.ndim:
                            value.add_(nudge)
        sign = 1 - 2 * process
        closure = lambda sign=sign: sign * contract(net.cores.cores).square().sum()  # noqa: E731
        reports.append(scheduler.step(held if two_site else closure))
        if two_site and reports[-1]:
            mean = held().detach()
            dist.all_reduce(mean)
            means.append(float(mean) / 2)
        bounds = (1, *scheduler.active_ranks, 1)
        zeros.append(
            not any(
                bool(core[bounds[k] :].any()) or bool(core[:, :, bounds[k + 1] :].any())
                for k, core in enumerate(net.cores.core_parameters())
            )
        )
    shapes = [tuple(core.shape) for core in net.cores.core_parameters()]
    before = contract(net.cores.cores).detach().clone()
    parameters = [p.detach().clone() for p in net.parameters()]
    states = copy.deepcopy(optimizer.state_dict()["state"])
    scheduler.compact()
    return {
        "keep_shapes": scheduler.keep_shapes,
        "ranks": [report and report.ranks_after for report in reports],
        "means": means,
        "before": [report.loss_before for report in reports if report],
        "after": [report.loss_after for report in reports if report],
        "zeros": zeros,
        "shapes": shapes,
        "parameters": parameters,
        "states": states,
        "compact": net.cores.ranks[1:-1],
        "drift": float((contract(net.cores.cores).detach() - before).abs().max()),
    }


def failing(process: int) -> dict[str, object]:
    """A sweep whose loss fails in process 1 alone: nobody waits for ever, no train has moved."""
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = DMRGScheduler(optimizer, net.cores, ranks={0: RANK, 1: 2}, mode="two-site")
    calls = 0

    def problem() -> Tensor:
        nonlocal calls
        calls += 1
        if process and calls > 3:
            raise ValueError("no more data")
        return contract(net.cores.cores).square().sum()

    before = [p.detach().clone() for p in net.parameters()]
    message = ""
    try:
        scheduler.step(problem)
    except (StateError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
    unchanged = all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    return {"message": message, "unchanged": unchanged, "epoch": scheduler.epoch}


def metrics(process: int) -> dict[str, float]:
    """Errors of cuts in the mean of two metrics, and those of one process that has this mean."""
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.complex128)
    square = root @ root.mH
    square = (square + square.mH) / 2
    whole = torch.diag(torch.arange(1, 6))
    sources = {
        # Process 1 has the columns of its matrix in the place of its rows, or a lazy conjugate.
        "strided": (square.clone().mT.contiguous().mT if process else square, square),
        "whole numbers": ((1 + 2 * process) * whole, 2 * whole.double()),
    }
    for name, (own, expected) in sources.items():
        cores = random_cores(SHAPE, RANK, seed=0, dtype=torch.complex128)
        parameter = TTParameter(cores)
        optimizer = torch.optim.SGD(parameter.parameters())
        ranks = {0: RANK, 1: 2}
        scheduler = DMRGScheduler(optimizer, parameter, ranks=ranks, metric=lambda own=own: [own, None, None])
        found[name] = math.sqrt(sum(scheduler.step().discarded_weight))
        norm = norm_of([expected.to(cores[0].dtype), None, None], cores)
        found[name + " expected"] = math.sqrt(sum(rounding_cut(cores, (2, 2), norm=norm).discarded_weight))
    return found


class Attempt:
    """A sweep that is due, of processes that train alike; `break_` makes them differ."""

    def __init__(self, process: int, **options: Any) -> None:
        self.process = process
        self.net = Net()
        self.cores = self.net.cores
        self.cores.replicated = True
        self.optimizer = torch.optim.Adam(self.cores.parameters(), lr=1e-2)
        options = {"ranks": {0: RANK, 1: 2}} | options
        self.scheduler = DMRGScheduler(self.optimizer, self.cores, **options)
        contract(self.cores.cores).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def message(self, break_: Callable[["Attempt"], object], problem: Any = None) -> tuple[str, bool]:
        """What the sweep says, and whether the train kept every bit."""
        message, before, epoch = "", [], 0
        try:
            break_(self)
            before, epoch = [p.detach().clone() for p in self.cores.parameters()], self.scheduler.epoch
            self.scheduler.step(problem)
        except (TTNetError, ValueError) as error:
            message = f"{type(error).__name__}: {error}"
        same = all(map(torch.equal, before, (p.detach() for p in self.cores.parameters())))
        return message, same and self.scheduler.epoch == epoch


def only_loss(process: int) -> list[float | None]:
    """Reported losses where process 0 alone is given one."""
    attempt = Attempt(process)
    report = attempt.scheduler.step(None if process else lambda: contract(attempt.cores.cores).square().sum())
    return [report.loss_before, report.loss_after]


def refusals(process: int) -> dict[str, tuple[str, bool]]:
    def failing_loss() -> Tensor:
        if process:
            raise ValueError("no more data")
        return torch.zeros(())

    def only_in_1(change: Callable[[Attempt], object]) -> Callable[[Attempt], object]:
        return lambda attempt: change(attempt) if process else None

    def nothing(_: Attempt) -> None: ...

    def pend(attempt: Attempt) -> None:
        contract(attempt.cores.cores).square().sum().backward()

    def scale(attempt: Attempt) -> None:
        with torch.no_grad():
            attempt.cores.core_parameters()[1].mul_(1.1)

    def tear(attempt: Attempt) -> None:
        attempt.cores.replicated = False

    def free_shapes(attempt: Attempt) -> None:
        tear(attempt)
        DMRGScheduler(attempt.optimizer, attempt.cores, ranks={0: RANK}, keep_shapes=False)

    changes: dict[str, Callable[[Attempt], object]] = {
        "gradient": only_in_1(pend),
        "epoch": only_in_1(lambda attempt: attempt.scheduler.load_state_dict(LATER)),
        "ranks": only_in_1(lambda attempt: attempt.cores.assign(random_cores(SHAPE, 3, seed=0))),
        "state": only_in_1(lambda attempt: attempt.optimizer.state.clear()),
        "values": only_in_1(scale),
        "torn": tear,
        "shapes": free_shapes,
    }
    found = {name: Attempt(process).message(change) for name, change in changes.items()}
    adaptive = AdaptiveRanks(max_loss_increase=0.1)
    found["loss, schedule"] = Attempt(process).message(nothing, failing_loss)
    found["loss, adaptive"] = Attempt(process, ranks=adaptive).message(nothing, failing_loss)
    return found


def main(process: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(directory / "meeting").as_uri(),
        rank=process,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    values = torch.arange(3.0) + process
    broadcast([values])
    attempts = refusals(process)
    results: dict[str, object] = {
        "is_distributed": is_distributed(),
        "agree": agree((process, "from process 0")),
        "broadcast": values,
        "version": values._version,
        "metrics": metrics(process),
        "only loss": only_loss(process),
        "refusals": {name: message for name, (message, _) in attempts.items()},
        "unchanged": {name: same for name, (_, same) in attempts.items()},
        "scheduled": job(process, RankSchedule({0: RANK, 1: 3, 2: [1, 2], 3: 4}), torch.optim.Adam),
        "sgd": job(process, RankSchedule({0: RANK, 2: 2}), torch.optim.SGD),
        "nudged": job(process, RankSchedule({0: RANK, 4: 2}), torch.optim.Adam, nudge=1e-9),
        "two-site": job(
            process,
            RankSchedule({0: RANK, 1: 3, 2: [1, 2], 3: 4}),
            torch.optim.Adam,
            two_site=TwoSiteOptions(solver="lbfgs", local_steps=2),
        ),
        "tested": job(
            process,
            AdaptiveRanks(max_loss_increase=0.05, max_growth=1, patience=9),
            torch.optim.SGD,
            two_site=TwoSiteOptions(growth="test", local_steps=2),
            hold=8,
        ),
        "failing": failing(process),
        # The processes disagree: a cut lowers the loss of process 0 and raises that of process 1.
        "adaptive": job(process, AdaptiveRanks(max_loss_increase=0.0, max_cut=1), torch.optim.Adam),
    }
    torch.save(results, directory / f"{process}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
