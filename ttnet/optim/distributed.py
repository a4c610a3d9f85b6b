"""What sweeps need of a distributed job: one process decides, all hold the same bits."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ttnet.errors import StateError

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


def together(name: str, ask: Callable[[], _T]) -> list[_T]:
    """What each process answers; a failure in one of them is an error in all, and nobody waits for ever.

    Args:
        name: What is asked, for the message.
        ask: Called once in each process.

    Returns:
        The answers in the order of the processes' ranks.

    Raises:
        StateError: Another process failed. A process that fails itself raises its own error.
    """
    if not is_distributed():
        return [ask()]
    try:
        answer = True, ask()
    except Exception:
        gather((False, None))
        raise
    answers: list[Any] = gather(answer)
    failed = sum(not succeeded for succeeded, _ in answers)
    if failed:
        raise StateError(
            f"{name}: failed in {failed} of {len(answers)} processes; their own messages say why, and no "
            f"train was changed"
        )
    return [value for _, value in answers]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values of those processes that have one; None where none has."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of process 0, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)
            # The exchange writes without telling, and caches of what is computed from cores look here.
            torch.autograd.graph.increment_version(tensor)
