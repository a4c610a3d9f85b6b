"""Newton-CG: the Newton step of the block by conjugate gradients, damped, with a line search.

To a loss that is convex in the train's output this is what Lanczos is to an energy: the output is linear in
the block, and the Gauss-Newton matrix is the Hessian.
"""

import math

import torch
from torch import Tensor

from ttnet.optim.local.direct import direct
from ttnet.optim.local.first_order import conjugate_gradient
from ttnet.optim.local.problem import (
    HasPreconditioner,
    LocalProblem,
    LocalResult,
    Operator,
    Quadratic,
    Start,
    armijo,
    real_dot,
)


def newton_cg(local: LocalProblem, start: Start, *, steps: int = 8, damping: float = 1e-3) -> LocalResult:
    """A damped, truncated Newton step; without damping, a small quadratic block is solved for exactly.

    Args:
        local: The problem.
        start: Where to begin.
        steps: Largest number of conjugate gradient iterations.
        damping: Multiple of the identity added to the curvature, relative to the curvature along the
            gradient.

    Returns:
        The result; the start where no step decreases the loss.

    References:
        Nocedal and Wright, Numerical Optimization, algorithm 7.1 (line search Newton-CG).
    """
    size = float(torch.linalg.vector_norm(start.gradient))
    if size == 0.0 or not math.isfinite(size):
        return LocalResult(block=start.block, loss=start.loss, evaluations=0)
    quadratic = isinstance(local, Quadratic) and local.is_quadratic
    if quadratic and not damping:
        exact = direct(local, start)
        if exact is not None:
            return exact
    operator = local.curvature(start.block)
    precondition = local.precondition if isinstance(local, HasPreconditioner) else None
    along, scale = None, 0.0
    if precondition is None or damping or not quadratic:
        along = operator(start.gradient)
        scale = real_dot(start.gradient, along) / size**2
        if scale <= 0:
            # No positive curvature along the gradient: far from a minimum, where first-order methods belong.
            return conjugate_gradient(local, start, steps=steps)
    direction, change, used = _solve(operator, start.gradient, along, damping * scale, steps, precondition)
    if quadratic:
        # The model is the loss: its value at the end of the step is known.
        return LocalResult(block=start.block + direction, loss=start.loss + change, evaluations=used)
    found = armijo(local, start, direction)
    if found is None:
        found = armijo(local, start, -start.gradient, step=1.0 / scale)
    if found is None:
        return LocalResult(block=start.block, loss=start.loss, evaluations=used + 24)
    block, loss, evaluations = found
    return LocalResult(block=block, loss=loss, evaluations=used + evaluations)


def _solve(
    operator: Operator,
    gradient: Tensor,
    along: Tensor | None,
    damping: float,
    steps: int,
    precondition: Operator | None,
) -> tuple[Tensor, float, int]:
    """Conjugate gradients for (operator + damping) p = -gradient, `along` = operator(gradient) where known.

    Stops at a residual of 1e-3 of the gradient, and where the curvature along a direction is not positive.

    Returns:
        The step p, the change g.p + p.Hp/2 of the undamped model, and the number of operator products.
    """
    step, image = torch.zeros_like(gradient), torch.zeros_like(gradient)
    residual = -gradient
    ready = residual if precondition is None else precondition(residual)
    direction = ready
    norm = real_dot(residual, ready)
    stop = 1e-6 * norm
    used = int(along is not None)
    for iteration in range(steps):
        if iteration == 0 and precondition is None and along is not None:
            product = -along
        else:
            product = operator(direction)
            used += 1
        damped = product + damping * direction if damping else product
        bend = real_dot(direction, damped)
        if bend <= 0:
            break
        length = norm / bend
        step = step + length * direction
        image = image + length * product
        residual = residual - length * damped
        ready = residual if precondition is None else precondition(residual)
        previous, norm = norm, real_dot(residual, ready)
        if norm <= stop:
            break
        direction = ready + (norm / previous) * direction
    return step, real_dot(gradient, step) + 0.5 * real_dot(step, image), used
