"""Products of two thin factors: the best approximation of a rank, and exact distances, never formed."""

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.truncation import Truncation, select_rank


def round_product(
    left: Tensor, right: Tensor, *, max_rank: int | None = None, rtol: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The best approximation of left @ right of a lower rank, in float64.

    Args:
        left: Shape (m, r).
        right: Shape (r, n).
        max_rank: Largest rank.
        rtol: Largest relative Frobenius error; the cap comes first.

    Returns:
        Factors (m, s) and (s, n), each with half of the singular values; the given ones where nothing is cut.
    """
    if not rtol and (max_rank is None or left.shape[1] <= max_rank):
        return left, right
    columns, lower = torch.linalg.qr(left.double())
    rows, upper = torch.linalg.qr(right.double().T)
    u, values, vh = linalg.svd(lower @ upper.T)
    budget = (rtol * float(values.norm())) ** 2 if rtol else float("inf")
    kept = select_rank(values, Truncation(max_rank=max_rank), max_weight=budget)
    roots = values[:kept].sqrt()
    return columns @ (u[:, :kept] * roots), (roots[:, None] * vh[:kept]) @ rows.T


def balanced_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of equal norms, which a dtype of small range holds.

    Args:
        left: Shape (m, r).
        right: Shape (r, n).

    Returns:
        Factors of the same shapes.
    """
    norms = float(left.double().norm()), float(right.double().norm())
    if not min(norms):
        return left, right
    factor = (norms[1] / norms[0]) ** 0.5
    return left.double() * factor, right.double() / factor


def product_error(exact: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """The relative Frobenius distance of two products of factors.

    The difference is [A, A'] diag(1, -1) [B; B'], whose norm is that of its triangles: also tiny distances
    come out right.

    Args:
        exact: Factors (m, r) and (r, n).
        other: Factors (m, s) and (s, n).

    Returns:
        |A B - A' B'| / |A B|; 0 where both vanish, infinity where only `exact` does.
    """
    rank = exact[0].shape[1]
    left = torch.linalg.qr(torch.cat([exact[0].double(), other[0].double()], 1), mode="r")[1]
    right = torch.linalg.qr(torch.cat([exact[1].double(), other[1].double()]).T, mode="r")[1]
    whole = left[:, :rank] @ right[:, :rank].T
    norm, error = float(whole.norm()), float((whole - left[:, rank:] @ right[:, rank:].T).norm())
    return relative(error, norm)


def relative(error: float, norm: float) -> float:
    """Error / norm; 0 where both vanish, infinity where only the norm does."""
    return error / norm if norm else (float("inf") if error else 0.0)
