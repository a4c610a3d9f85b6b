"""What sweeps need of a distributed job: one process decides, all hold the same bits."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agree(value: _T) -> _T:
    """The value that process 0 has; `value` itself where there is one process."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: _T) -> list[_T]:
    """The value of each process, in the order of their ranks; of the only one where there is one."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def average(value: float | None) -> float | None:
    """The mean over all processes of a value that each of them has."""
    if not is_distributed() or value is None:
        return value
    values = gather(value)
    return sum(values) / len(values)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of process 0, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)
