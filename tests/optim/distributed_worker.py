"""One process of a tiny distributed job; `test_distributed.py` starts two and compares what they write."""

import copy
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ttnet import TTParameter
from ttnet.cores import contract
from ttnet.errors import StateError
from ttnet.optim import AdaptiveRanks, BatchLoss, DMRGScheduler, RankSchedule, TwoSiteOptions
from ttnet.optim.distributed import agree, broadcast, is_distributed
from ttnet.random import random_cores

SHAPE, RANK = (5, 4, 6), 4


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
    results: dict[str, object] = {
        "is_distributed": is_distributed(),
        "agree": agree((process, "from process 0")),
        "broadcast": values,
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
