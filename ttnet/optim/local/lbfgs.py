"""L-BFGS on a block, with Armijo steps; `torch.optim.LBFGS` would cost seconds at its first use."""

import torch
from torch import Tensor

from ttnet.optim.local.problem import LocalProblem, LocalResult, Start, armijo, real_dot


def lbfgs(local: LocalProblem, start: Start, *, steps: int = 8, damping: float = 0.0) -> LocalResult:
    """Limited-memory BFGS that remembers all of its few steps.

    Args:
        local: The problem.
        start: Where to begin.
        steps: Number of steps.
        damping: Not used; every solver has the same call.

    Returns:
        The result; the start where no step decreases the loss.

    References:
        Nocedal and Wright, Numerical Optimization, algorithm 7.4.
    """
    del damping
    here, used = start, 0
    pairs: list[tuple[Tensor, Tensor, float]] = []
    size = float(torch.linalg.vector_norm(start.gradient))
    length = 0.1 * max(float(torch.linalg.vector_norm(start.block)), 1e-8) / size if size > 0 else 1.0
    for _ in range(steps):
        direction = -_two_loops(here.gradient, pairs)
        found = armijo(local, here, direction, step=1.0 if pairs else length)
        if found is None:
            break
        block, _, trials = found
        loss, slope = local.value_and_gradient(block)
        used += trials + 1
        moved, bent = block - here.block, slope - here.gradient
        curvature = real_dot(moved, bent)
        # Armijo steps do not promise positive curvature: such pairs are left out.
        if curvature > 1e-12 * real_dot(bent, bent):
            pairs.append((moved, bent, curvature))
        here = Start(block=block, loss=loss, gradient=slope)
    return LocalResult(block=here.block, loss=here.loss, evaluations=used)


def _two_loops(slope: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    result, weights = slope, []
    for moved, bent, curvature in reversed(pairs):
        weight = real_dot(moved, result) / curvature
        weights.append(weight)
        result = result - weight * bent
    if pairs:
        _, bent, curvature = pairs[-1]
        result = result * (curvature / real_dot(bent, bent))
    for (moved, bent, curvature), weight in zip(pairs, reversed(weights), strict=True):
        result = result + (weight - real_dot(bent, result) / curvature) * moved
    return result
