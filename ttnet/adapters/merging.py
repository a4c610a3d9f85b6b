"""The weights that a merged adapter puts into its model."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ttnet.adapters.linear import is_conv1d
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
        NonFiniteError: A dW that is not finite.
        StateError: No place, or a mixed batch, is selected on a run-time axis.
    """
    new: dict[str, Tensor] = {}
    for name in adapter.layout.modules:
        base = adapter.adapted(name).base
        weight = base.weight
        if (
            not isinstance(weight, Tensor)
            or not weight.is_floating_point()
            or type(weight) is not nn.Parameter
        ):
            raise DTypeError(
                f"merge: the weight of {name!r} is quantized or sharded ({type(weight).__name__}, "
                f"{getattr(weight, 'dtype', None)}); dequantize the model first"
            )
        delta = adapter.delta(name)
        if not bool(delta.isfinite().all()):
            raise NonFiniteError(f"merge: dW of {name!r} is not finite; train with a lower learning rate")
        wide = torch.promote_types(weight.dtype, delta.dtype)
        new[name] = weight.to(wide).add(delta if is_conv1d(base) else delta.T).to(weight.dtype)
    return new


def check_trainable(adapter: "TTAdapter") -> None:
    """Refuse to train while the weights hold dW, since that would leave the cores as they are.

    Raises:
        StateError: The adapter is merged, in training mode, under grad.
    """
    if adapter.merged and adapter.training and torch.is_grad_enabled():
        raise StateError(
            "the adapter is merged, training would leave its cores as they are; call unmerge() first"
        )
