"""Frozen bases whose weight is quantized: which they are, how a gradient passes, and why none is merged.

Nothing here knows a library: a base is called, and what it returns is taken.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttnet.errors import DTypeError

if TYPE_CHECKING:
    from typing import TypeGuard


def is_dense(weight: object) -> "TypeGuard[nn.Parameter]":
    """Whether a weight holds its numbers as they are: no quantized or sharded tensor, and no float8."""
    return type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype.itemsize > 1


def is_packed(module: nn.Module) -> bool:
    """Whether a module holds its weight in integers or float8, under whatever name."""
    weight = getattr(module, "weight", None)
    if is_dense(weight):
        return False
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return _hides_weight(module) or any(
        not value.is_floating_point() or value.dtype.itemsize == 1 for value in own
    )


def device_of(module: nn.Module) -> torch.device:
    """Where a module lives; one that hides its tensors, as those of torch.ao do, lives on the CPU."""
    return next((value.device for value in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def run_base(base: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call a base so that a gradient reaches x.

    The modules of torch.ao, whose `weight` is a method, have no gradient of their own: they get that of their
    dequantized weight.

    Args:
        base: The frozen module.
        x: Shape (..., in_features).
        args: What else it is called with.
        kwargs: The same, by name.

    Returns:
        Shape (..., out_features).
    """
    if x.requires_grad and _hides_weight(base):
        return _StraightThrough.apply(x, base)  # pyright: ignore[reportReturnType]
    return base(x, *args, **kwargs)


def refusal(name: str, weight: object) -> DTypeError:
    """The error for a weight that cannot take dW: rounding the sum again would lose what was learned.

    Args:
        name: Name of its module.
        weight: The weight, None where the module has none.
    """
    kind = type(weight).__name__ + (f" of {weight.dtype}" if isinstance(weight, Tensor) else "")
    return DTypeError(
        f"merge: the weight of {name!r} is quantized or sharded ({kind}) and cannot hold the sum; "
        "keep the adapter unmerged, export it with to_lora, or dequantize the model first"
    )


def _hides_weight(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return inspect.ismethod(weight) and weight.__self__ is module


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.base = base
        return base(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.base.weight().dequantize().to(gradient.dtype), None
