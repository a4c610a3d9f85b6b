"""Numpy arrays as tensors, also those that torch refuses: reversed, read-only, of another byte order."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttnet.errors import DTypeError


def to_tensor(value: Any, name: str) -> Tensor:
    """A tensor as it is, an array as a tensor; memory is shared where torch can.

    Args:
        value: A tensor, an array, or nested lists of numbers.
        name: Name of the argument, for the message.

    Returns:
        The tensor.

    Raises:
        DTypeError: A dtype that torch does not have.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        native = value.dtype.newbyteorder("=")
        shared = value.dtype.isnative and value.flags.writeable and all(step >= 0 for step in value.strides)
        value = value if shared else np.array(value, dtype=native, order="C")
    try:
        return torch.as_tensor(value)
    except TypeError:
        what = f"an array of dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DTypeError(
            f"{name}: expected a tensor or an array of floats, got {what}; convert it first, for instance "
            f"with numpy.asarray({name}, dtype=numpy.float64)"
        ) from None


def to_tensors(values: Iterable[Any], name: str) -> list[Any]:
    """The same values, arrays among them as tensors; whoever takes them checks the rest.

    Args:
        values: Tensors, arrays, or anything else.
        name: Name of the argument, for the message.

    Returns:
        As many values.

    Raises:
        DTypeError: An array of a dtype that torch does not have.
    """
    return [to_tensor(value, name) if isinstance(value, np.ndarray) else value for value in values]
