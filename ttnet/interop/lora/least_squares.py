"""The small least-squares problems of alternating fits, by their normal equations."""

import torch
from torch import Tensor

_STEPS = 30


def solve_symmetric(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """The solution of (gram + ridge) x = right, of least norm where that matrix is singular.

    Args:
        gram: Shape (n, n), symmetric and positive semidefinite.
        right: Shape (n, m).
        ridge: At least 0.

    Returns:
        Shape (n, m).
    """
    values, vectors = torch.linalg.eigh(gram)
    limit = gram.shape[0] * torch.finfo(gram.dtype).eps * values[-1].clamp(min=0)
    seen = values + ridge > limit
    inverse = torch.where(seen, 1 / torch.where(seen, values + ridge, 1), 0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))


def solve_slices(
    left: Tensor, right: Tensor, target: Tensor, places: Tensor, start: Tensor, ridge: float
) -> Tensor:
    """Lower sum_k tr(G^T left_k G right_k - 2 G^T target_k) + ridge |core|^2, G = core[places_k].

    Each slice is a problem of its own, sum over its k of left_k G right_k + ridge G = target_k; all are
    solved at once by conjugate gradients.

    Args:
        left: Shape (terms, r, r), symmetric and positive semidefinite.
        right: Shape (terms, s, s), likewise.
        target: Shape (terms, r, s).
        places: Shape (terms,), the slice of each term.
        start: Shape (slices, r, s); the result is no worse.
        ridge: At least 0.

    Returns:
        Shape (slices, r, s).
    """

    def apply(core: Tensor) -> Tensor:
        return (ridge * core).index_add_(0, places, left @ core[places] @ right)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2), keepdim=True)

    core = start.clone()
    residual = torch.zeros_like(core).index_add_(0, places, target) - apply(core)
    direction, square = residual.clone(), dot(residual, residual)
    first = square.clone()
    tiny = torch.finfo(core.dtype).tiny
    for _ in range(_STEPS):
        image = apply(direction)
        curvature = dot(direction, image)
        # A slice that is solved, or along which nothing changes, takes no more steps.
        going = (curvature > tiny) & (square > 1e-24 * first)
        if not bool(going.any()):
            break
        step = torch.where(going, square / torch.where(going, curvature, 1), 0)
        core += step * direction
        residual -= step * image
        new = dot(residual, residual)
        direction = residual + torch.where(going, new / square.clamp(min=tiny), 0) * direction
        square = new
    return core
