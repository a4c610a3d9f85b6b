"""Environments: what the rest of a train contributes to a block, kept as long as it stays true.

An environment left of core k is a function of cores 0 ... k-1 alone, and cores never change in place: it is
valid as long as those are the same objects. So nothing has to be invalidated by hand.

    (left 0)--[0]--[1]--(left 2)  block  (right 3)--[4]--[5]--(right 5)
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

E = TypeVar("E")


class Environments(Generic[E]):
    """Left and right environments of a train, extended one core at a time.

    Args:
        boundary: Environment beyond either end.
        extend_left: (environment, k, core k) -> environment with core k taken in from the right.
        extend_right: The same from the left.
    """

    def __init__(
        self,
        boundary: tuple[E, E],
        extend_left: Callable[[E, int, Tensor], E],
        extend_right: Callable[[E, int, Tensor], E],
    ) -> None:
        self._boundary = boundary
        self._extend_left = extend_left
        self._extend_right = extend_right
        self._left: list[tuple[Tensor, E]] = []
        self._right: list[tuple[Tensor, E]] = []

    def left(self, cores: Sequence[Tensor], site: int) -> E:
        """Environment of cores 0 ... site-1."""
        stack = self._left
        valid = _common(stack, cores[:site])
        del stack[valid:]
        environment = stack[-1][1] if stack else self._boundary[0]
        for k in range(valid, site):
            environment = self._extend_left(environment, k, cores[k])
            stack.append((cores[k], environment))
        return environment

    def right(self, cores: Sequence[Tensor], site: int) -> E:
        """Environment of cores site+1 ... d-1."""
        stack, count = self._right, len(cores)
        valid = _common(stack, cores[:site:-1])
        del stack[valid:]
        environment = stack[-1][1] if stack else self._boundary[1]
        for k in range(count - 1 - valid, site, -1):
            environment = self._extend_right(environment, k, cores[k])
            stack.append((cores[k], environment))
        return environment


def _common(stack: Sequence[tuple[Tensor, object]], cores: Sequence[Tensor]) -> int:
    """How many of the first cores are the objects that the stack was built from."""
    for k, ((known, _), core) in enumerate(zip(stack, cores, strict=False)):
        if known is not core:
            return k
    return min(len(stack), len(cores))
