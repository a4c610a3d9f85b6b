"""What a sweep needs of a large unfolding: a small matrix with the same left singular vectors and values.

For a wide M (p, q) that is a factor F (p, p) with F F^H = M M^H:

    QR     F = R^H of the QR of M^H: as accurate as an SVD of M, in a fraction of its time
    Gram   F = W sqrt(L) of the eigenvectors and eigenvalues of M M^H: one matrix product, but its squares
           hide singular values below sqrt(eps) of the norm

The Gram matrix is therefore guarded: `resolves` says whether its roundoff can change a decision, and
`left_out` measures what a basis leaves out, from M itself.
"""

import math

import torch
from torch import Tensor

from ttnet.truncation import Truncation, select_rank, tail_weights

_CHUNK = 1 << 16


def triangular_factor(matrix: Tensor) -> Tensor:
    """Factor F of a wide matrix by QR.

    Args:
        matrix: Shape (p, q), p <= q.

    Returns:
        Shape (p, p), lower triangular, F F^H = M M^H.
    """
    return torch.linalg.qr(matrix.mH, mode="r").R.mH


def gram_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and values of a wide matrix by its Gram matrix; entries of about 1 at most.

    Args:
        matrix: Shape (p, q), p <= q.

    Returns:
        W (p, p), orthonormal, and S (p,), descending: F = W S, with F F^H = M M^H up to `gram_noise`.
    """
    values, vectors = torch.linalg.eigh(matrix @ matrix.mH)
    return vectors.flip(-1), values.flip(-1).clamp_min(0).sqrt()


def gram_noise(columns: int, dtype: torch.dtype) -> float:
    """Roundoff of a Gram matrix relative to its trace: measured errors lie below, whatever the entries.

    Args:
        columns: Terms that are summed for each entry.
        dtype: Dtype of the sums.
    """
    return (8 + math.sqrt(columns) / 16) * torch.finfo(dtype).eps


def may_resolve(truncation: Truncation, *, total: float, max_weight: float, noise: float) -> bool:
    """Whether the tolerances of a bond are so far above the noise that a Gram matrix is worth a try.

    Args:
        truncation: The wish, with a single `max_rank`.
        total: Sum of all squares.
        max_weight: Largest sum of discarded squares at this bond.
        noise: Uncertainty of such sums.
    """
    if truncation.degeneracy_tol is not None:
        return False
    allowed = min(max_weight, truncation.cutoff * total if truncation.cutoff else math.inf)
    smallest = truncation.svd_min**2 * total if truncation.svd_min else math.inf
    return min(allowed, smallest) >= 2 * noise


def resolves(values: Tensor, rank: int, truncation: Truncation, *, max_weight: float, noise: float) -> bool:
    """Whether `rank` would be chosen as well if the squares of `values` were off by `noise`.

    Args:
        values: Singular values from a Gram matrix, shape (n,), descending.
        rank: The rank that was chosen from them.
        truncation: The wish, with a single `max_rank`.
        max_weight: Largest sum of discarded squares at this bond.
        noise: Uncertainty of such a sum.

    Returns:
        False also where a cap, not a tolerance, ends the spectrum within reach of the noise.
    """
    tails = tail_weights(values)
    for shift in (noise, -noise):
        shifted = (tails + shift).clamp_min(0)
        shifted[-1] = 0
        if select_rank((-shifted.diff()).clamp_min(0).sqrt(), truncation, max_weight=max_weight) != rank:
            return False
    squares = values.to(torch.float64).square()
    if truncation.svd_min and bool(((squares - truncation.svd_min**2 * tails[0]).abs() <= noise).any()):
        return False
    return rank == values.numel() or rank != truncation.max_rank or float(squares[rank - 1]) >= 100 * noise


def excess(values: Tensor, rank: int, noise: float) -> float:
    """Weight that the leading vectors of a noisy Gram matrix may leave out above the least possible.

    Second order in the noise over the gap of the squares at the cut; at most the noise.
    """
    if rank == values.numel():
        return 0.0
    kept, cut = values[rank - 1 : rank + 1].to(torch.float64).square().tolist()
    return noise * min(1.0, noise / (kept - cut)) if kept > cut else noise


def left_out(matrix: Tensor, basis: Tensor, rest: Tensor) -> float:
    """Squared norm of M - basis @ rest, in pieces that stay in the cache.

    Args:
        matrix: Shape (p, q).
        basis: Shape (p, r).
        rest: Shape (r, q).
    """
    width = min(matrix.shape[1], max(1, _CHUNK // matrix.shape[0]))
    buffer = matrix.new_empty(matrix.shape[0], width)
    norms = []
    for piece, part in zip(matrix.split(width, 1), rest.split(width, 1), strict=True):
        difference = torch.mm(basis, part, out=buffer[:, : piece.shape[1]]).sub_(piece)
        norms.append(torch.linalg.vector_norm(difference))
    return float(torch.stack(norms).to(torch.float64).square().sum())


def squared_norm(tensor: Tensor) -> float:
    """Sum of the squares of all entries; sums of many float32 squares are finished in float64.

    Args:
        tensor: Any shape, with squares in the range of its dtype.
    """
    inner = tuple(range(tensor.ndim // 3, tensor.ndim))
    return float(torch.linalg.vector_norm(tensor, dim=inner).to(torch.float64).square().sum())
