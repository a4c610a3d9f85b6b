"""Splitting a block that a sweep has optimized: which rank, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
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

    @property
    def is_lossy(self) -> bool:
        """Whether more than roundoff was cut."""
        eps = torch.finfo(self.singular_values.dtype).eps
        return self.discarded_weight > (10 * eps) ** 2 * float(self.singular_values.square().sum())


def split_block(block: Tensor, truncation: Truncation, *, forward: bool, bonds: int) -> Split:
    """Split a block (l, m, n, r) of a train with so many bonds; see `split`."""
    matrix = block.flatten(2, 3).flatten(0, 1)
    budget = truncation.weight_budget(float(torch.linalg.vector_norm(matrix)))
    return split(matrix, truncation, forward=forward, max_weight=budget / bonds)


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


def place(cores: Cores, site: int, parts: Split) -> Cores:
    """The cores with the factors of a split at `site` and `site + 1`."""
    left, right = cores[site], cores[site + 1]
    first = parts.left.reshape(left.shape[0], left.shape[1], -1)
    second = parts.right.reshape(-1, right.shape[1], right.shape[2])
    return (*cores[:site], first, second, *cores[site + 2 :])


def cuts_one(truncation: Truncation, rank: int, *, fixed: bool) -> bool:
    """Whether a truncation asks to cut a bond of this rank after a one-site update.

    Fixed ranks are cut by a cap alone.
    """
    if isinstance(truncation.max_rank, int) and truncation.max_rank < rank:
        return True
    tolerances = truncation.cutoff, truncation.rtol, truncation.atol, truncation.svd_min
    return not fixed and any(tolerances)


def place_one(cores: Sequence[Tensor], bond: int, parts: Split, *, forward: bool) -> tuple[Tensor, Tensor]:
    """The two cores at a bond after a split of the one that the center leaves; the other one takes it in."""
    left, right = cores[bond], cores[bond + 1]
    if forward:
        return parts.left.reshape(*left.shape[:2], -1), torch.tensordot(parts.right, right, 1)
    return torch.tensordot(left, parts.left, 1), parts.right.reshape(-1, *right.shape[1:])


def at_bond(
    scheduled: Truncation, bond: int, cap: int | None, cores: Cores, max_parameters: int | None
) -> Truncation:
    """A truncation at one bond, with a growth cap and the budget of parameters.

    Args:
        scheduled: The truncation of all bonds.
        bond: The bond between `cores[bond]` and the next.
        cap: Largest rank by the growth rule; None for no bound.
        cores: All cores.
        max_parameters: Largest number of their entries; None for no bound.

    Returns:
        A truncation with a single `max_rank`.
    """
    truncation = scheduled.at_bond(bond, len(cores) - 1)
    caps = [each for each in (truncation.max_rank, cap) if isinstance(each, int)]
    if max_parameters is not None:
        left, right = cores[bond], cores[bond + 1]
        per_rank = left.shape[0] * left.shape[1] + right.shape[1] * right.shape[2]
        others = sum(core.numel() for core in cores) - left.numel() - right.numel()
        caps.append(max((max_parameters - others) // per_rank, 1))
    limit = min(caps, default=None)
    floor = truncation.min_rank if limit is None else min(truncation.min_rank, limit)
    return replace(truncation, max_rank=limit, min_rank=floor)


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
