"""`replicate`: one adapter in several processes, each of which holds all of it while the base may be sharded.

Nothing is wrapped. At the end of each backward pass the gradients of all processes are averaged in one
message; what is trained is small. The shapes of the cores are read anew each time, so sweeps may change them.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ttnet.adapters.adapter import TTAdapter
from ttnet.adapters.merging import is_fully_sharded, refuse_sharded, trained_parameters
from ttnet.errors import ConfigError, ShapeError, StateError


class Replicas:
    """The copies of an adapter in all processes of a group; `replicate` makes one.

    Args:
        adapter: This process's copy.
        process_group: The processes; None for all.
    """

    def __init__(self, adapter: TTAdapter, process_group: "dist.ProcessGroup | None" = None) -> None:
        self.adapter = adapter
        self.process_group = process_group
        self._queued = -1  # the backward pass that will end with an exchange
        self._hooked: dict[nn.Parameter, torch.utils.hooks.RemovableHandle] = {}
        refuse_sharded(adapter, "replicate")
        self._check_alike()
        self.synchronize()
        self._hook()
        # A sharded base may compute in bf16, what is trained stays in float32.
        heads = adapter._saved_modules().values()
        self._casts = [module.register_forward_pre_hook(_cast_inputs) for module in heads]
        adapter.cores.replicated = True

    def parameters(self) -> set[nn.Parameter]:
        """The cores and the parameters of modules trained whole: what `fully_shard` has to ignore.

        Pass it as `ignored_params=` to each call of `torch.distributed.fsdp.fully_shard`.
        """
        return set(trained_parameters(self.adapter))

    @torch.no_grad()
    def synchronize(self) -> None:
        """Give every process what is trained in process 0, and the buffers of modules trained whole."""
        modules = (*self.adapter._saved_modules().values(), *self.adapter.__dict__["_originals"].values())
        states = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        for tensor in dict.fromkeys([*self._averaged(), *states]):
            dist.broadcast(tensor.detach(), group_src=0, group=self.process_group)
            # The exchange writes without telling, and caches of what is computed from cores look here.
            torch.autograd.graph.increment_version(tensor)

    def remove(self) -> None:
        """Let the copies go their own ways: gradients are not averaged any more, and sweeps are refused."""
        for handle in (*self._hooked.values(), *self._casts):
            handle.remove()
        self._hooked, self._casts = {}, []
        self.adapter.cores.replicated = False

    def _check_alike(self) -> None:
        own = [(tuple(p.shape), str(p.dtype), p.requires_grad) for p in self._averaged()]
        found: list[object] = [None] * dist.get_world_size(self.process_group)
        dist.all_gather_object(found, own, group=self.process_group)
        for process, other in enumerate(found):
            if other != found[0]:
                raise ShapeError(
                    f"adapter: expected the same cores and modules in all processes, got {found[0]} in "
                    f"process 0 and {other} in process {process}; attach with the same config everywhere"
                )

    def _averaged(self) -> tuple[nn.Parameter, ...]:
        """What is trained: all that requires grad in the model, but for what `fully_shard` takes care of."""
        model: nn.Module = self.adapter.__dict__["model"]
        own = trained_parameters(self.adapter)
        if any(is_fully_sharded(module) for module in model.modules()):
            return own
        return tuple(dict.fromkeys([*own, *(p for p in model.parameters() if p.requires_grad)]))

    def _hook(self) -> None:
        for parameter in trained_parameters(self.adapter):
            if parameter not in self._hooked:
                trained = parameter.requires_grad
                # Torch hooks what requires grad; the hook then outlives freezing and thawing.
                handle = parameter.requires_grad_().register_post_accumulate_grad_hook(self._queue)
                parameter.requires_grad_(trained)
                self._hooked[parameter] = handle

    def _queue(self, parameter: Tensor) -> None:  # noqa: ARG002
        task = torch._C._current_graph_task_id()
        if task != self._queued:
            self._queued = task
            torch.autograd.Variable._execution_engine.queue_callback(self._average)  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def _average(self) -> None:
        """Average all gradients; one that a process does not have counts as zero there."""
        self._queued = -1
        self._hook()  # heads of tasks that were added meanwhile
        trained = [p for p in self._averaged() if p.requires_grad]
        for kind in dict.fromkeys((p.device, p.dtype) for p in trained):
            own = [p for p in trained if (p.device, p.dtype) == kind]
            present = torch.tensor([p.grad is not None for p in own]).to(*kind)
            flat = torch.cat([present, *(_dense_gradient(p).reshape(-1) for p in own)])
            dist.all_reduce(flat, group=self.process_group)
            flat /= dist.get_world_size(self.process_group)
            anywhere = flat[: len(own)].tolist()
            values = flat[len(own) :].split([p.numel() for p in own])
            for parameter, value, count in zip(own, values, anywhere, strict=True):
                if not count:
                    continue
                new = value.view(parameter.shape)
                if parameter.grad is None or parameter.grad.is_sparse:
                    parameter.grad = new.clone()
                else:
                    parameter.grad.copy_(new)


def replicate(adapter: TTAdapter, process_group: "dist.ProcessGroup | None" = None) -> Replicas:
    """Train one adapter in several processes, each with data of its own, under nothing or `fully_shard`.

    Every process gets the values of process 0, and from now on each backward pass ends with the mean of all
    processes' gradients of the cores, the modules trained whole and the base parameters that were thawed by
    hand (those that `fully_shard` shards are averaged there): take it instead of `DistributedDataParallel`.
    Inputs of modules trained whole are cast to their dtype, since a base that is sharded may compute in bf16.
    Ranks may change, and `DMRGScheduler` lets them by default. With gradient
    accumulation every backward pass averages what has come together so far, which gives the same mean. Where
    a parameter got no gradient in some process, it counts as zero there; each process must call backward
    equally often, and reach at least one of the parameters.

    Args:
        adapter: An attached adapter, of the same config in every process; on its final device.
        process_group: How all processes talk to each other, by default the default group. Sweeps are agreed
            upon by all processes, so that a group of some of them is refused.

    Returns:
        The replicas: `parameters()` is what `fully_shard` has to ignore, `remove()` ends it.

    Raises:
        ConfigError: `adapter` is none, or the group has not all processes.
        ShapeError: The processes hold different cores or modules.
        StateError: `torch.distributed` is not initialized, the adapter is replicated already, or its
            parameters are sharded.

    Examples:
        ::

            adapter = attach(model, MetaTT("4d", rank=8, target_modules=["query", "value"]))
            replicas = replicate(adapter)
            for layer in model.bert.encoder.layer:
                fully_shard(layer, ignored_params=replicas.parameters())
            fully_shard(model, ignored_params=replicas.parameters())
    """
    if not isinstance(adapter, TTAdapter):
        raise ConfigError(
            f"adapter: expected a TTAdapter, as attach(model, config) returns it, got "
            f"{type(adapter).__name__}"
        )
    if not (dist.is_available() and dist.is_initialized()):
        raise StateError(
            "replicate: torch.distributed is not initialized; start the script with torchrun and call "
            "torch.distributed.init_process_group() first"
        )
    size = dist.get_world_size(process_group)
    if size != dist.get_world_size():
        raise ConfigError(
            f"process_group: expected one of all {dist.get_world_size()} processes, which agree upon sweeps, "
            f"got one of {size}; start separate jobs for separate trainings"
        )
    if adapter.cores.replicated:
        raise StateError("replicate: the adapter is replicated already; call remove() on its replicas first")
    return Replicas(adapter, process_group)


def _dense_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _cast_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is None:
        return args
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in args
    )
