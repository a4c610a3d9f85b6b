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
from ttnet.optim import AdaptiveRanks, DMRGScheduler, RankSchedule
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
) -> dict[str, object]:
    """Train with a sweep after each epoch; every process has data of its own."""
    torch.manual_seed(0)
    net = Net()
    ddp = DistributedDataParallel(net)
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(ddp.parameters(), lr=1e-2, **options)
    scheduler = DMRGScheduler(optimizer, net.cores, ranks=ranks)
    data = torch.Generator().manual_seed(process)
    reports, zeros = [], []
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
        reports.append(scheduler.step(lambda sign=sign: sign * contract(net.cores.cores).square().sum()))
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
        "zeros": zeros,
        "shapes": shapes,
        "parameters": parameters,
        "states": states,
        "compact": net.cores.ranks[1:-1],
        "drift": float((contract(net.cores.cores).detach() - before).abs().max()),
    }


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
        # The processes disagree: a cut lowers the loss of process 0 and raises that of process 1.
        "adaptive": job(process, AdaptiveRanks(max_loss_increase=0.0, max_cut=1), torch.optim.Adam),
    }
    torch.save(results, directory / f"{process}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
