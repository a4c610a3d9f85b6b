"""What a local solver may ask of the block it works on.

Gradients follow torch: for a real loss of a complex block the gradient g has dL = Re <g, dx>, so that -g is a
descent direction and a quadratic form x^H A x / 2 has the gradient A x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""A linear map of blocks."""


class LocalProblem(Protocol):
    """The loss as a function of one block, everything else held fixed."""

    def value(self, block: Tensor) -> float:
        """The loss."""
        ...

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient, of the block's shape."""
        ...

    def curvature(self, block: Tensor) -> Operator:
        """The Hessian at `block`, or the generalized Gauss-Newton matrix, as an operator."""
        ...


@runtime_checkable
class Quadratic(Protocol):
    """A local problem whose loss is exactly quadratic in the block: a Newton step needs no line search."""

    is_quadratic: bool


@runtime_checkable
class HasOperator(Protocol):
    """A local problem that is the Rayleigh quotient of a Hermitian operator."""

    def apply(self, block: Tensor) -> Tensor:
        """The operator times a block."""
        ...


@runtime_checkable
class HasConstraint(Protocol):
    """A local problem whose block has to lie in a subspace."""

    def feasible(self, block: Tensor) -> Tensor:
        """The block, moved into the subspace."""
        ...


@runtime_checkable
class HasSystem(Protocol):
    """A local problem that is a projected linear system, not necessarily symmetric."""

    vector: Tensor

    def multiply(self, block: Tensor) -> Tensor:
        """The operator times a block."""
        ...


@runtime_checkable
class HasMatrix(Protocol):
    """A quadratic local problem, or a projected system, whose operator can be formed as a matrix."""

    vector: Tensor | None

    def as_matrix(self) -> Tensor:
        """The operator, shape (block entries, block entries)."""
        ...

    def value(self, block: Tensor) -> float:
        """The loss."""
        ...


@runtime_checkable
class HasPreconditioner(Protocol):
    """A local problem that knows an approximate inverse of its curvature."""

    def precondition(self, block: Tensor) -> Tensor:
        """The approximate inverse, Hermitian and positive, times a block."""
        ...


@runtime_checkable
class HasResiduals(Protocol):
    """A local problem that is a sum over samples, so that a noise floor of its gradient is known."""

    def sign_flipped_gradient(self, block: Tensor, generator: torch.Generator) -> Tensor:
        """The gradient after the residual of each sample got a random sign: what noise alone would give."""
        ...


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a local solver begins, evaluated."""

    block: Tensor
    loss: float
    gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What a local solver found.

    Attributes:
        block: The block, never worse than the start unless the solver says otherwise.
        loss: The loss there.
        evaluations: Number of gradients, values and curvature products that were computed.
    """

    block: Tensor
    loss: float
    evaluations: int


def real_dot(a: Tensor, b: Tensor) -> float:
    """Re <a, b> of two blocks."""
    return float(torch.vdot(a.reshape(-1), b.reshape(-1)).real)


def armijo(
    local: LocalProblem, start: Start, direction: Tensor, *, step: float = 1.0, trials: int = 12
) -> tuple[Tensor, float, int] | None:
    """Backtracking line search along a descent direction.

    Args:
        local: The problem.
        start: Where the search begins.
        direction: Descent direction, of the block's shape.
        step: First step length; halved, or set by the parabola through what is known, at each trial.
        trials: Largest number of evaluations.

    Returns:
        Block, loss and number of evaluations; None where no trial decreases the loss enough.

    References:
        Nocedal and Wright, Numerical Optimization, section 3.1.
    """
    slope = real_dot(start.gradient, direction)
    if not slope < 0:
        return None
    for trial in range(1, trials + 1):
        block = start.block + step * direction
        loss = local.value(block)
        if loss <= start.loss + 1e-4 * step * slope:
            return block, loss, trial
        curvature = loss - start.loss - step * slope
        best = -slope * step * step / (2 * curvature) if curvature > 0 else 0.5 * step
        step = min(max(best, 0.1 * step), 0.5 * step)
    return None
