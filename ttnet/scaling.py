"""Powers of 2 that are taken out of tensors, so that norms and their squares stay in range.

Every step is exact, and autograd passes it; nothing leaves the range of a dtype unseen.
"""

import math

import torch
from torch import Tensor

from ttnet.errors import NonFiniteError


def power_of_two(size: float) -> int:
    """Exponent of 2 that brings `size` near 1; 0 where it is near enough."""
    exponent = math.frexp(size)[1] if 0 < size < math.inf else 0
    return exponent if abs(exponent) > 4 else 0


def exponential(exponent: float) -> float:
    """2 to a power, within the range of floats."""
    return 2.0 ** min(max(exponent, -2000.0), 1023.0)


def times_power_of_two(tensor: Tensor, exponent: float) -> Tensor:
    """The tensor times a power of 2, in steps that do not overflow on the way.

    Args:
        tensor: Any shape, float32 or better.
        exponent: An integer, as a number of any type.

    Returns:
        The product; infinite, or zero, where it is out of range.
    """
    step = 60.0 if torch.finfo(tensor.dtype).bits == 32 else 500.0
    # Some steps take any number out of range, and more would change nothing.
    exponent = max(min(exponent, 8 * step), -8 * step)
    while exponent:
        part = max(min(exponent, step), -step)
        tensor, exponent = tensor * 2.0**part, exponent - part
    return tensor


def split_power(tensor: Tensor) -> tuple[Tensor, float]:
    """The tensor with a largest entry near 1, and the exponent of 2 that it was divided by.

    Args:
        tensor: Any shape, float32 or better.

    Raises:
        NonFiniteError: The tensor holds a NaN or an infinity.
    """
    entries = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    # Of real and imaginary parts: the magnitude of a finite number may overflow.
    largest = float(torch.linalg.vector_norm(entries, math.inf))
    if not math.isfinite(largest):
        raise NonFiniteError("matrix: expected finite entries in every core, got NaN or infinity")
    exponent = power_of_two(largest)
    return times_power_of_two(tensor, -exponent), float(exponent)


def check_norm(norm: float, exponent: float, dtype: torch.dtype) -> None:
    """Refuse the norm of a train that numbers of a dtype cannot hold in full precision.

    Args:
        norm: The norm over 2**exponent; 0 is in the range of every dtype.
        exponent: Of 2.
        dtype: Dtype of the cores.

    Raises:
        NonFiniteError: It is above the largest number of `dtype`, or below the smallest normal one.
    """
    if norm == 0:
        return
    info, logarithm = torch.finfo(dtype), math.log2(norm) + exponent
    if not math.log2(info.tiny) <= logarithm <= math.log2(info.max):
        raise NonFiniteError(
            f"train: expected a norm within the range of {dtype} ({info.tiny:.3g} to {info.max:.3g}), got "
            f"log_norm {logarithm * math.log(2):.6g}; take train.normalized(), which returns the train over "
            f"its norm and the logarithm of that norm"
        )
