"""The interface of a problem: what a sweep asks before each local update."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import LocalProblem


class Problem(Protocol):
    """A loss of a train that can be seen as a function of one block.

    Cores left of the visit are left-orthogonal and those right of it right-orthogonal; the block that
    belongs to `cores` is their own product. Implementations keep their environments in
    `ttnet.optim.environments.Environments`.
    """

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        """The loss as a function of the block of `visit`.

        Args:
            cores: All cores, in canonical gauge around the visit; not to be changed.
            visit: Which cores the block replaces: (l, m, r) for one site, (l, m, n, r) for two.

        Returns:
            The local problem.
        """
        ...
