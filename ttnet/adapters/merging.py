"""The weights that a merged adapter puts into its model, and what sharding does not allow."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ttnet.adapters.linear import is_conv1d
from ttnet.adapters.quantized import is_dense, refusal
from ttnet.adapters.ties import address, weight_owners
from ttnet.errors import DTypeError, NonFiniteError, StateError

if TYPE_CHECKING:
    from ttnet.adapters.adapter import TTAdapter


def merged_weights(adapter: "TTAdapter") -> dict[str, Tensor]:
    """W + dW of every adapted module, in the weight's dtype and layout.

    Args:
        adapter: The adapter; of run-time axes, the places selected are taken.

    Returns:
        New weights by name of the module; nothing is changed.

    Raises:
        DTypeError: A weight that is quantized or sharded.
        NonFiniteError: A dW, or a sum in the weight's dtype, that is not finite.
        StateError: No place, or a mixed batch, is selected on a run-time axis, or several modules share a
            weight.
    """
    model: nn.Module = adapter.__dict__["model"]
    if any(is_fully_sharded(module) for module in model.modules()):
        # Between passes a group may hold whole weights, but what is written into them is lost.
        raise DTypeError(
            "merge: the model's weights are sharded by fully_shard; save the adapter, load it on a model "
            "that is not sharded, and merge it there"
        )
    owners = weight_owners(model)
    new: dict[str, Tensor] = {}
    for name in adapter.layout.modules:
        base = adapter.adapted(name).base
        weight = getattr(base, "weight", None)
        if not is_dense(weight):
            raise refusal(name, weight)
        shared = owners[address(weight)]
        if len(shared) > 1:
            raise StateError(
                f"merge: the modules {shared} share one weight, and dW of {name!r} would change all of them; "
                "keep the adapter unmerged, or give each a weight of its own before attach, "
                "nn.Parameter(weight.detach().clone())"
            )
        delta = adapter.delta(name)
        if not bool(delta.isfinite().all()):
            raise NonFiniteError(f"merge: dW of {name!r} is not finite; train with a lower learning rate")
        wide = torch.promote_types(weight.dtype, delta.dtype)
        value = weight.to(wide).add(delta if is_conv1d(base) else delta.T).to(weight.dtype)
        if not bool((value.isfinite() | ~weight.isfinite()).all()):
            raise NonFiniteError(
                f"merge: W + dW of {name!r} is not finite in {weight.dtype}; merge in a wider dtype, such as "
                "model.float(), or keep the adapter unmerged"
            )
        new[name] = value
    return new


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether `torch.distributed.fsdp.fully_shard` was applied to a module itself."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def trained_parameters(adapter: "TTAdapter") -> tuple[nn.Parameter, ...]:
    """The cores and the parameters of modules trained whole, each once, frozen ones included."""
    heads = [parameter for module in adapter._saved_modules().values() for parameter in module.parameters()]
    return tuple(dict.fromkeys([*adapter.cores.core_parameters(), *heads]))


def refuse_sharded(adapter: "TTAdapter", name: str) -> None:
    """Refuse cores and modules trained whole that `fully_shard` was not told to ignore.

    Args:
        adapter: The adapter.
        name: What is refused, for the message.

    Raises:
        StateError: One of them is a DTensor.
    """
    if any(hasattr(parameter, "full_tensor") for parameter in trained_parameters(adapter)):
        raise StateError(
            f"{name}: the adapter's own parameters are sharded; call replicas = replicate(adapter) first, "
            f"and then fully_shard(..., ignored_params=replicas.parameters())"
        )


def check_trainable(adapter: "TTAdapter") -> None:
    """Refuse to train while the weights hold dW, since that would leave the cores as they are.

    Raises:
        StateError: The adapter is merged, in training mode, under grad.
    """
    if adapter.merged and adapter.training and torch.is_grad_enabled():
        raise StateError(
            "the adapter is merged, training would leave its cores as they are; call unmerge() first"
        )
