"""Splitting a block that a sweep has optimized: which rank, and how."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.truncation import Truncation, select_rank, tail_weights

GRAM_FLOOR = 1e-12
"""Smallest relative weight to which a Gram matrix in double precision resolves a tail, with a margin."""

GRAM_NOISE = 1e-14
"""Relative square above which one of its eigenvalues is no roundoff, with a margin."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A block (l m, n r) as a product of two factors, one of them orthogonal.

    Attributes:
        left: Shape (l m, k).
        right: Shape (k, n r).
        singular_values: All of the block's, in descending order.
        discarded_weight: Sum of the squares of those that were cut.
    """

    left: Tensor
    right: Tensor
    singular_values: Tensor
    discarded_weight: float


def split(matrix: Tensor, truncation: Truncation, *, forward: bool, max_weight: float) -> Split:
    """Split a block over its bond.

    Where the truncation asks for no more resolution than a Gram matrix in double precision has, its
    eigenvectors span the kept space: they are orthogonal to roundoff, and the other factor is the exact
    projection of the block. That is the density matrix of DMRG, and several times faster than an SVD.

    Args:
        matrix: Shape (l m, n r).
        truncation: Which singular values are kept, with a single `max_rank`.
        forward: Whether the left factor is orthogonal (the center goes right) or the right one.
        max_weight: Largest sum of discarded squares.

    Returns:
        The split.

    References:
        White, Phys. Rev. Lett. 69, 2863 (1992).
    """
    if _gram_may_resolve(truncation, max_weight, min(matrix.shape)):
        found = _split_by_gram(matrix, truncation, forward=forward)
        if found is not None:
            return found
    u, s, vh = linalg.svd(matrix)
    rank = select_rank(s, truncation, max_weight=max_weight)
    weight = float(tail_weights(s)[rank])
    u, kept, vh = u[:, :rank], s[:rank], vh[:rank]
    left, right = (u, kept.unsqueeze(1) * vh) if forward else (u * kept, vh)
    return Split(left=left, right=right, singular_values=s, discarded_weight=weight)


def _gram_may_resolve(truncation: Truncation, max_weight: float, size: int) -> bool:
    caps = isinstance(truncation.max_rank, int) and truncation.max_rank < size
    fine = truncation.svd_min or truncation.degeneracy_tol is not None or max_weight != float("inf")
    return not fine and (caps or truncation.cutoff >= GRAM_FLOOR)


def _split_by_gram(matrix: Tensor, truncation: Truncation, *, forward: bool) -> Split | None:
    """The split from the eigenvectors of the smaller Gram matrix; None where it does not resolve the rank."""
    double = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    by_rows = matrix.shape[0] <= matrix.shape[1]
    values, vectors = torch.linalg.eigh(double @ double.mH if by_rows else double.mH @ double)
    s = values.flip(0).clamp_min(0).sqrt()
    rank = select_rank(s, truncation)
    tails = tail_weights(s)
    if 0 < truncation.cutoff < GRAM_FLOOR:
        # The cap decides where it is reached by a true singular value; then the cutoff does not matter.
        if rank != truncation.max_rank or not tails[rank - 1] - tails[rank] > GRAM_NOISE * tails[0]:
            return None
    kept = vectors.flip(1)[:, :rank].to(matrix.dtype)
    if by_rows == forward:
        # The small side is the one to be orthogonal: its eigenvectors are the factor.
        basis = kept
    else:
        # Eigenvectors of the small side give the kept space, a QR of its image the orthogonal factor.
        basis = torch.linalg.qr(matrix @ kept if forward else matrix.mH @ kept)[0]
    left, right = (basis, basis.mH @ matrix) if forward else (matrix @ basis, basis.mH)
    return Split(left=left, right=right, singular_values=s, discarded_weight=float(tails[rank]))
