"""Rows of a tall matrix that represent all others: maximal-volume submatrices."""

import torch
from torch import Tensor

from ttnet.errors import ConfigError, ShapeError


def maxvol(matrix: Tensor, *, tolerance: float = 1.05, max_swaps: int = 200) -> tuple[Tensor, Tensor]:
    """Choose r rows of a matrix (m, r) whose square submatrix has a locally maximal volume.

    Every other row is a combination of the chosen ones with coefficients of at most `tolerance`, so that
    interpolation through the chosen rows loses little.

    Args:
        matrix: Shape (m, r), m >= r, of full column rank; orthonormal columns are best.
        tolerance: Largest coefficient that is left, at least 1.
        max_swaps: Rows that are exchanged at most.

    Returns:
        The chosen rows (r,), and the coefficients (m, r): ``matrix = coefficients @ matrix[rows]``.

    Raises:
        ShapeError: `matrix` is wider than tall, or not a matrix.
        ConfigError: `tolerance` is below 1.

    References:
        Goreinov et al., "How to find a good submatrix", in Matrix Methods (2010).
    """
    if matrix.ndim != 2 or matrix.shape[0] < matrix.shape[1]:
        raise ShapeError(f"matrix: expected shape (m, r) with m >= r, got {tuple(matrix.shape)}")
    if not tolerance >= 1:
        raise ConfigError(f"tolerance: expected at least 1, got {tolerance!r}")
    count, rank = matrix.shape
    # Gaussian elimination with partial pivoting finds a good start.
    permutation = torch.linalg.lu(matrix)[0].abs().argmax(0)
    rows = permutation[:rank].clone()
    coefficients = torch.linalg.solve(matrix[rows], matrix, left=False)
    for _ in range(max_swaps):
        flat = int(coefficients.abs().argmax())
        i, j = divmod(flat, rank)
        pivot = coefficients[i, j]
        if abs(pivot) <= tolerance:
            break
        # Row i replaces the chosen row j: a change of rank one.
        change = coefficients[i].clone()
        change[j] -= 1
        coefficients = coefficients - torch.outer(coefficients[:, j] / pivot, change)
        rows[j] = i
    if count > rank:
        coefficients = torch.linalg.solve(matrix[rows], matrix, left=False)
    return rows, coefficients
