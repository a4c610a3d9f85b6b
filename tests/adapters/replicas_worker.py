"""One process of a tiny distributed job; `test_replicas.py` starts two and compares what they write."""

import copy
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F

from ttnet.adapters import MetaTT, Replicas, TTAdapter, attach, load, replicate
from ttnet.errors import TTNetError
from ttnet.optim import AdaptiveRanks, BatchLoss, DMRGScheduler, TwoSiteOptions

WIDTH, LAYERS, STEPS = 16, 2, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.gelu(self.query(x)) * self.value(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.classifier = nn.Linear(WIDTH, 3)
        self.other = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.other(x) if other else self.classifier(x)


def adapted(process: int, rank: int = 4) -> tuple[Net, TTAdapter]:
    """The same base everywhere; cores and heads that differ until process 0 sends its own."""
    torch.manual_seed(0)
    model = Net()
    config = MetaTT(
        "4d",
        rank=rank,
        alpha=2.0,
        target_modules=["query", "value"],
        modules_to_save=["classifier", "other"],
    )
    adapter = attach(model, config)
    generator = torch.Generator().manual_seed(process)
    with torch.no_grad():
        for parameter in (*adapter.cores.parameters(), *model.classifier.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model, adapter


def shard(model: Net, replicas: Replicas | None, **options: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ignored = None if replicas is None else replicas.parameters()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=ignored, **options)
    fully_shard(model, mesh=mesh, ignored_params=ignored, **options)


def batch(step: int, process: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + process)
    return torch.randn(6, WIDTH, generator=generator), torch.randint(3, (6,), generator=generator)


def loss_of(model: nn.Module, step: int, process: int) -> Tensor:
    x, labels = batch(step, process)
    return F.cross_entropy(model(x), labels)


class Job:
    """A training with a sweep after each epoch; `processes` share each step's batches by their number."""

    def __init__(self, process: int, processes: int, *, sharded: bool = False, **options: Any) -> None:
        self.mine = range(2) if processes == 1 else [process]
        self.model, self.adapter = adapted(process)
        self.replicas = replicate(self.adapter) if processes > 1 else None
        self.adapter.cores.replicated = True
        if sharded:
            shard(self.model, self.replicas)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        options = {"ranks": {0: 4, 1: 3, 2: [2, 1, 2], 3: 4}} | options
        self.scheduler = DMRGScheduler(self.optimizer, self.adapter.cores, **options)
        self.step = 0
        self.gradients: list[Tensor] = []

    def epoch(self, problem: Any = None) -> Any:
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            for process in self.mine:
                (loss_of(self.model, self.step, process) / len(self.mine)).backward()
            if not self.step:
                self.gradients = [g.grad.clone() for g in self.parameters() if g.grad is not None]
            self.optimizer.step()
            self.step += 1
        self.optimizer.zero_grad()
        return self.scheduler.step(problem)

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def run(self, epochs: int, problem: Any = None) -> dict[str, Any]:
        reports = [self.epoch(problem) for _ in range(epochs)]
        return self.result() | {
            "ranks": [report and report.ranks_after for report in reports],
            "before": [report.loss_before for report in reports if report],
            "after": [report.loss_after for report in reports if report],
        }

    def result(self) -> dict[str, Any]:
        with torch.no_grad():
            outputs = self.model(batch(99, 0)[0])
        return {
            "keep_shapes": self.scheduler.keep_shapes,
            "parameters": [p.detach().clone() for p in self.parameters()],
            "states": copy.deepcopy(self.optimizer.state_dict()["state"]),
            "outputs": outputs,
            "gradients": self.gradients,
        }


def resumed(process: int, directory: Path) -> dict[str, Any]:
    """The sharded job, saved by process 0 after two of four epochs and taken up by a new model."""
    job = Job(process, 2, sharded=True)
    job.run(2)
    if process == 0:
        job.adapter.save(directory / "adapter")
        torch.save((job.optimizer.state_dict(), job.scheduler.state_dict()), directory / "states.pt")
    dist.barrier()
    again = Job(process + 7, 2, sharded=True)
    again.mine, again.step = job.mine, job.step
    again.adapter.load_weights(directory / "adapter")
    optimizer, scheduler = torch.load(directory / "states.pt", weights_only=True)
    again.optimizer.load_state_dict(optimizer)
    again.scheduler.load_state_dict(scheduler)
    return again.run(2)


def held(job: Job, process: int) -> BatchLoss:
    """The mean loss of a few batches of this process."""
    return BatchLoss(lambda step: loss_of(job.model, step, process), range(50, 60), hold=2)


def two_site(process: int) -> dict[str, Any]:
    job = Job(
        process, 2, sharded=True, mode="two-site", two_site=TwoSiteOptions(solver="lbfgs", local_steps=1)
    )
    return job.run(1, held(job, process))


def adaptive(process: int) -> dict[str, Any]:
    """Process 0 likes every cut, process 1 none, and asking for the loss is collective."""
    job = Job(process, 2, sharded=True, ranks=AdaptiveRanks(max_loss_increase=0.0, max_cut=2))
    calls = 0

    def problem() -> Tensor:
        nonlocal calls
        calls += 1 if process else -1
        return calls + 0 * job.model(batch(70, 0)[0]).sum()

    return job.run(2, problem)


def partly_used(process: int) -> dict[str, Any]:
    """Process 0 trains one head, process 1 the other; in two backward passes before one step."""
    model, adapter = adapted(process)
    replicas = replicate(adapter)
    own: dict[str, Tensor] = {}
    for step in range(2):
        x, labels = batch(step, process)
        for total in (False, True):
            loss = F.cross_entropy(model(x, other=bool(process)), labels)
            if total:
                loss.backward()
                continue
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, found, strict=True):
                add = torch.zeros_like(trained[name]) if gradient is None else gradient
                own[name] = own.get(name, 0) + add
    averaged = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    replicas.remove()
    model.zero_grad()
    loss_of(model, 0, process).backward()
    alone = adapter.cores.core_parameters()[0].grad.clone()
    return {"own": own, "averaged": averaged, "alone": alone, "replicated": adapter.cores.replicated}


def thawed(process: int) -> dict[str, Any]:
    """A base parameter that was thawed by hand; outputs of an evaluation before and after replication."""
    model, adapter = adapted(process)
    weight = model.layers[0].norm.weight.requires_grad_()
    with torch.no_grad():
        weight.add_(process)
        model.eval()(batch(99, 0)[0])
    replicate(adapter)
    with torch.no_grad():
        outputs = model(batch(99, 0)[0])
    own = torch.autograd.grad(loss_of(model, 0, process), weight)[0]
    loss_of(model, 0, process).backward()
    return {"own": own, "averaged": weight.grad.clone(), "outputs": outputs}


def half(process: int) -> dict[str, Any]:
    """A base that computes in bf16 under heads in float32, with a thawed parameter that is sharded."""
    model, adapter = adapted(process)
    model.layers[0].norm.weight.requires_grad_()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    replicas = replicate(adapter)
    shard(model, replicas, mp_policy=policy)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model, step, process).backward()
        optimizer.step()
    whole = (*adapter.cores.parameters(), *model.classifier.parameters())
    return {"parameters": [p.detach().clone() for p in whole]}


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except TTNetError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refusals(process: int, directory: Path) -> dict[str, str]:
    job = Job(process, 2, sharded=True)
    with torch.no_grad():
        job.model(batch(0, 0)[0])
    _, other = adapted(process, rank=3 + process)
    whole, inside = adapted(process)
    shard(whole, None)
    groups = [dist.new_group([other]) for other in range(2)]
    everyone = dist.new_group([0, 1])
    removed = Job(process, 2)
    replicate(adapted(process)[1], everyone).remove()
    removed.replicas.remove()
    optimizer = torch.optim.AdamW(whole.parameters())
    return {
        "merge": refusal(job.adapter.merge),
        "twice": refusal(lambda: replicate(job.adapter)),
        "differ": refusal(lambda: replicate(other)),
        "group": refusal(lambda: replicate(adapted(process)[1], groups[process])),
        "removed": refusal(removed.epoch),
        "replicate": refusal(lambda: replicate(inside)),
        "save": refusal(lambda: inside.save(directory / "never")),
        "sweep": refusal(lambda: DMRGScheduler(optimizer, inside.cores, ranks={0: 4})),
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
    sharded = Job(process, 2, sharded=True)
    results: dict[str, Any] = {
        "sharded": sharded.run(4),
        "plain": Job(process, 2).run(4),
        "alone": Job(0, 1).run(4),
        "resumed": resumed(process, directory),
        "two-site": two_site(process),
        "adaptive": adaptive(process),
        "partly used": partly_used(process),
        "thawed": thawed(process),
        "half": half(process),
        "refusals": refusals(process, directory),
    }
    results["shards"] = [type(p.data).__name__ for p in sharded.model.layers.parameters()]
    if process == 0:
        sharded.adapter.save(directory / "saved")
        torch.manual_seed(0)
        model = Net()
        adapter = load(model, directory / "saved")
        results["loaded"] = {"outputs": model(batch(99, 0)[0]).detach(), "ranks": adapter.cores.ranks}
    torch.save(results, directory / f"{process}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
