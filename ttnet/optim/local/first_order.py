"""First-order local solvers: steepest descent, nonlinear conjugate gradients, Adam."""

import math

import torch
from torch import Tensor

from ttnet.optim.local.problem import LocalProblem, LocalResult, Start, armijo, real_dot


def gradient(local: LocalProblem, start: Start, *, steps: int = 8, damping: float = 0.0) -> LocalResult:
    """Steepest descent; Armijo steps that begin at the Barzilai-Borwein length.

    Args:
        local: The problem.
        start: Where to begin.
        steps: Number of descent steps.
        damping: Not used; every solver has the same call.

    Returns:
        The result; the start where no step decreases the loss.
    """
    del damping
    return _descend(local, start, steps, conjugate=False)


def conjugate_gradient(
    local: LocalProblem, start: Start, *, steps: int = 8, damping: float = 0.0
) -> LocalResult:
    """Nonlinear conjugate gradients, Polak-Ribiere with restarts, Armijo steps.

    Args:
        local: The problem.
        start: Where to begin.
        steps: Number of steps.
        damping: Not used; every solver has the same call.

    Returns:
        The result; the start where no step decreases the loss.

    References:
        Nocedal and Wright, Numerical Optimization, section 5.2.
    """
    del damping
    return _descend(local, start, steps, conjugate=True)


def _descend(local: LocalProblem, start: Start, steps: int, *, conjugate: bool) -> LocalResult:
    here, used = start, 0
    direction = -start.gradient
    length = _first_length(start)
    for _ in range(steps):
        found = armijo(local, here, direction, step=length)
        if found is None:
            break
        block, _, trials = found
        loss, slope = local.value_and_gradient(block)
        used += trials + 1
        moved, bent = block - here.block, slope - here.gradient
        curvature = real_dot(moved, bent)
        squared = real_dot(here.gradient, here.gradient)
        beta = max(real_dot(slope, bent) / squared, 0.0) if conjugate and squared > 0 else 0.0
        length = real_dot(moved, moved) / curvature if curvature > 0 else 2 * length
        here = Start(block=block, loss=loss, gradient=slope)
        direction = beta * direction - slope
        if beta > 0:
            # A conjugate direction is longer than the gradient: keep the length of the move, not the factor.
            length *= float(torch.linalg.vector_norm(slope) / torch.linalg.vector_norm(direction))
        if real_dot(direction, slope) >= 0:
            direction = -slope
    return LocalResult(block=here.block, loss=here.loss, evaluations=used)


def _first_length(start: Start) -> float:
    """A first step of a tenth of the block's size."""
    size = float(torch.linalg.vector_norm(start.gradient))
    return 0.1 * max(float(torch.linalg.vector_norm(start.block)), 1e-8) / size if size > 0 else 1.0


def adam(local: LocalProblem, start: Start, *, steps: int = 20, damping: float = 1e-2) -> LocalResult:
    """Adam on the block, from fresh moments; the best block seen is returned.

    Args:
        local: The problem.
        start: Where to begin.
        steps: Number of steps.
        damping: Learning rate, relative to the root mean square of the block.

    Returns:
        The best of the blocks visited.

    References:
        Kingma and Ba, arXiv 1412.6980.
    """
    first = torch.zeros_like(start.gradient)
    second = torch.zeros_like(start.gradient.abs())
    block, slope = start.block, start.gradient
    best = start
    rate = damping * max(float(torch.linalg.vector_norm(block)) / math.sqrt(block.numel()), 1e-8)
    for step in range(1, steps + 1):
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope.abs().square()
        block = block - rate * _corrected(first, second, step)
        loss, slope = local.value_and_gradient(block)
        if not math.isfinite(loss):
            break
        if loss < best.loss:
            best = Start(block=block, loss=loss, gradient=slope)
    return LocalResult(block=best.block, loss=best.loss, evaluations=steps)


def _corrected(first: Tensor, second: Tensor, step: int) -> Tensor:
    return (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-12)
