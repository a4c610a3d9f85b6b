"""Rounding as a projection: a sweep that summarizes what lies left of a bond, one that cuts from the right.

    left of bond k, shape (s, r) or (r, r)        carry of bond k, shape (r, p)

      +--[0]--[1]--r                                r--[k]--[k+1]-- ... --+
    s |   |    |                                        |     |           | p

What lies left is summarized by an orthonormal basis and the triangle R that leads to it, or by the Gram
matrix R^H R. The triangle is kept as long as it is small: short bonds, or directions that depend on each
other to the last bit, as in a sum of multiples. Beyond, a Gram matrix is matrix products alone, several times
faster than a QR, and resolves errors down to the square root of the precision. So each projection measures
its residue, and says whether roundoff could hide more than was asked for; whoever called then takes triangles
throughout.

The projections are orthogonal and nested, so that the squares of their errors add.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ttnet._typing import Cores
from ttnet.bases import (
    OVERSAMPLING,
    normalize,
    random_directions,
    reveal_range,
    right_vectors,
    weighted_basis,
    weighted_subspace,
    weighted_values,
)
from ttnet.implicit import Site
from ttnet.scaling import exponential, power_of_two, times_power_of_two
from ttnet.truncation import Truncation, TruncationReport, select_rank, tail_weights

_MARGIN = 0.1
"""Share of a tolerance that roundoff may hide."""

_SUBSPACE = 4
"""Subspace iteration pays, and errs little, where the sizes are this many times the rank."""


@dataclass(kw_only=True)
class LeftSide:
    """What lies left of the bonds: bases as far as site `zone`, then Gram matrices.

    Attributes:
        zone: The first site whose core is not among `bases`.
        triangle: R at the left bond of site `zone`, shape (s, r), over 2**log_triangle.
        bases: Orthonormal cores (q, n, s) of the sites before; None stands for the identity, s = q n.
        widths: Number of columns s of each basis.
        grams: Gram matrix, its trace and its exponent of 2, at the left bond of each site after `zone`.
        sizes: Logarithm (base 2) of the norm of the interface left of each site of the zone.
        residues: Logarithm of what each basis leaves out.
    """

    zone: int = 0
    triangle: Tensor
    log_triangle: float = 0.0
    bases: list[Tensor | None] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    grams: list[tuple[Tensor, float, float]] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    residues: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Cores (center 0) of a train over a power of 2, so that its norm is near 1.

    Attributes:
        cores: The center comes first.
        report: Of the train that the cores make.
        exponent: Of the power of 2.
        resolved: Whether roundoff hides nothing that was asked for.
    """

    cores: Cores
    report: TruncationReport
    exponent: float
    resolved: bool

    def at_scale(self) -> tuple[Cores, TruncationReport]:
        """Cores and report of the train itself."""
        first = times_power_of_two(self.cores[0], self.exponent)
        return (first, *self.cores[1:]), times_report(self.report, self.exponent)


def project(
    sites: Sequence[Site],
    truncation: Truncation,
    *,
    start: Tensor,
    stop: Tensor,
    gram: bool,
    certify: bool = True,
    log_scale: float = 0.0,
    bases: Sequence[Tensor] = (),
) -> Projection | None:
    """Round a train whose cores need not be formed.

    Args:
        sites: One for each core.
        truncation: Which singular values are kept.
        start: What closes the train on the left of site `len(bases)`, shape (q, l).
        stop: What closes it on the right, shape (r, 1).
        gram: Whether Gram matrices may stand for triangles.
        certify: Whether the bound counts the roundoff of terms that cancel.
        log_scale: Exponent of 2 that the train has been divided by.
        bases: Left-orthogonal cores (q, n, s) that are there already.

    Returns:
        The projection; None where roundoff hides the norm or a cut.
    """
    left = look_left(sites, start, gram=gram, bases=bases)
    return _cut(sites, left, truncation, stop, certify=certify, log_scale=log_scale)


def look_left(sites: Sequence[Site], start: Tensor, *, gram: bool, bases: Sequence[Tensor] = ()) -> LeftSide:
    """Summarize what lies left of each bond, see `LeftSide`."""
    triangle, size, log = normalize(start)
    left = LeftSide(triangle=triangle, log_triangle=log, zone=len(bases), bases=list(bases))
    left.widths = [core.shape[2] for core in bases]
    left.sizes = [_log2(size) + log] * (len(bases) + 1)
    left.residues = [-math.inf] * len(bases)
    widest = max(site.right_rank for site in sites)
    directions, guess, may_collapse = random_directions(widest, max(widest // 2, 1), start), widest, True
    for site in sites[left.zone : -1]:
        if left.grams:
            matrix, _, log = left.grams[-1]
            left.grams.append(gram_matrix(site.close_left(site.absorb_left(matrix)), log))
            continue
        block = site.absorb_left(left.triangle)
        rows, columns = block.shape
        basis, error = None, 0.0
        if rows > columns // 2:
            found, tried = None, min(guess, columns // 2)
            if may_collapse and columns >= 2 * OVERSAMPLING:
                size = float(torch.linalg.vector_norm(block))
                found = reveal_range(block, directions[:columns, :tried], size)
                if found is None and tried < columns // 2:
                    found = reveal_range(block, directions[:columns, : columns // 2], size)
                may_collapse = found is not None
            if found is not None:
                basis, block, error = found
                guess = basis.shape[1] + OVERSAMPLING
            elif gram:
                left.grams.append(gram_matrix(block.mH @ block, 2 * left.log_triangle))
                continue
            elif rows > columns:
                basis, block = torch.linalg.qr(block)
        width = block.shape[0]
        left.residues.append(_log2(error) + left.log_triangle)
        left.triangle, size, log = normalize(block)
        left.log_triangle += log
        left.bases.append(None if basis is None else basis.reshape(-1, site.mode, width))
        left.widths.append(width)
        left.sizes.append(_log2(size) + left.log_triangle)
        left.zone += 1
    return left


def gram_matrix(matrix: Tensor, log: float) -> tuple[Tensor, float, float]:
    """A Gram matrix of trace near 1, that trace, and the exponent of 2 that it is over."""
    trace = float(matrix.diagonal().real.sum())
    exponent = power_of_two(trace)
    if exponent:
        matrix, trace, log = matrix * 2.0**-exponent, math.ldexp(trace, -exponent), log + exponent
    return matrix, trace, log


def _cut(
    sites: Sequence[Site],
    left: LeftSide,
    truncation: Truncation,
    stop: Tensor,
    *,
    certify: bool,
    log_scale: float,
) -> Projection | None:
    """Cut bond by bond from the right."""
    bonds, zone, fixed = len(sites) - 1, left.zone, truncation.is_fixed
    eps = torch.finfo(stop.dtype).eps
    sized = _measure(sites, left, stop)
    if sized is None:
        return None
    size, log_norm = sized
    exponent = log_norm + log_scale
    log_norm += _log2(size) if size > 0 else 0.0
    budget = over_power(truncation, exponent).weight_budget(size)
    remaining = budget / size / size if size > 0 else budget
    allowed = _allowed(truncation, remaining, bonds)
    limits = _rank_limits(sites, left)
    directions = random_directions(max(site.right_rank for site in sites), _tried(truncation, bonds), stop)

    # Weights are relative to the norm, so that they neither overflow nor underflow.
    weights, unseen, reach = [0.0] * bonds, 0.0, 1.0
    cores, rights = [], []
    carry, log_carry = stop, 0.0
    for k in range(bonds, 0, -1):
        wish = truncation.at_bond(k - 1, bonds)
        share = remaining / k
        if k > zone:
            block = sites[k].absorb_right(carry)
            gram, trace, log_gram = left.grams[k - zone - 1]
            unit = exponential(2 * (log_carry - log_norm) + log_gram)
            largest = float(torch.linalg.vector_norm(block)) ** 2 * trace * unit
            reach = max(reach, largest)
            basis = _gram_basis(gram, block, unit, largest, wish, share, limits[k - 1], directions)
            if basis is None:
                return None
            carry = block @ basis
            # The residue, not the small eigenvalues: those are differences of large numbers.
            residue = torch.addmm(block, carry, basis.mH, alpha=-1)
            weights[k - 1] = max(float((residue.conj() * (gram @ residue)).sum().real), 0.0) * unit
            unseen += eps * float(torch.linalg.vector_norm(residue)) ** 2 * trace * unit
        else:
            if k == zone and certify:
                rights = _right_sizes(sites[: k + 1], carry, log_carry)
            block, log = _block(sites, left, k, carry)
            log_carry += log
            unit = exponential(2 * (log_carry - log_norm))
            values, basis = right_vectors(block)
            values = values * math.sqrt(unit)
            rank = select_rank(values, wish, max_weight=share)
            weights[k - 1] = float(tail_weights(values)[rank])
            basis = basis[:, :rank].contiguous()
            carry = block @ basis
        remaining = max(remaining - weights[k - 1], 0.0)
        cores.append(basis.mH.reshape(basis.shape[1], sites[k].mode, -1))
        carry, _, log = normalize(carry)
        log_carry += log
    if zone == 0 and certify:
        rights = _right_sizes(sites[:1], carry, log_carry)
    block, log = _block(sites, left, 0, carry)
    first = times_power_of_two(block, log_carry + log + log_scale - exponent)
    cores.append(first.reshape(1, sites[0].mode, -1))

    # What lies left of the zone is exact but for roundoff; where large terms cancel, that is what counts.
    collapsed = 0.0
    for k in range(len(rights)):
        reach = max(reach, exponential(2 * (left.sizes[k] + rights[k] - log_norm)))
        if k + 1 < len(rights):
            collapsed += exponential(left.residues[k] + rights[k + 1] - log_norm)
    largest_rank = max([1, *(site.left_rank for site in sites)])
    roundoff = 4.0 * (bonds + 1) * math.sqrt(largest_rank * reach) * eps + collapsed
    unseen *= 8 * (bonds + 1) * max(1.0, reach / largest_rank)
    squared = math.fsum(weights)
    report = TruncationReport(
        ranks_before=tuple(site.left_rank for site in sites[1:]),
        ranks_after=tuple(core.shape[2] for core in cores[:0:-1]),
        discarded_weight=tuple(weight * size * size for weight in weights),
        norm=size,
        error_estimate=math.sqrt(squared) * size,
        error_bound=(math.sqrt(squared + unseen) + roundoff) * size,
    )
    resolved = unseen <= _MARGIN * max(squared, allowed)
    if fixed and left.grams:
        # Between roundoff and the resolution, the directions that were kept are a matter of luck.
        resolved = unseen <= max(_MARGIN * squared, roundoff**2)
        resolved = resolved and not roundoff < math.sqrt(squared) < math.sqrt(30 * eps * reach)
    return Projection(cores=tuple(cores[::-1]), report=report, exponent=exponent, resolved=resolved)


def over_power(truncation: Truncation, exponent: float) -> Truncation:
    """The same wish for the train over 2**exponent: `atol` is the only one that knows of its scale."""
    if not truncation.atol or not exponent:
        return truncation
    # Squares stay in range, and a tolerance far below roundoff remains one.
    atol = min(max(math.log2(truncation.atol) - exponent, -500.0), 500.0)
    return replace(truncation, atol=2.0**atol)


def times_report(report: TruncationReport, exponent: float) -> TruncationReport:
    """The report of the train times 2**exponent; weights are inf, or 0, where squares leave the range."""
    if not exponent:
        return report
    factor = exponential(exponent)
    return replace(
        report,
        norm=report.norm * factor,
        discarded_weight=tuple(weight * factor * factor for weight in report.discarded_weight),
        error_estimate=report.error_estimate * factor,
        error_bound=report.error_bound * factor,
    )


def _measure(sites: Sequence[Site], left: LeftSide, stop: Tensor) -> tuple[float, float] | None:
    """Norm of the train and its exponent of 2; None where a Gram matrix cannot tell it."""
    if not left.grams:
        block, log = _block(sites, left, len(sites) - 1, stop)
        return float(torch.linalg.vector_norm(block)), log
    block = sites[-1].absorb_right(stop)
    gram, trace, log = left.grams[-1]
    total = float((block.conj() * (gram @ block)).sum().real)
    largest = float(torch.linalg.vector_norm(block)) ** 2 * trace
    if not total > 1e4 * torch.finfo(stop.dtype).eps * largest:
        return None
    return math.sqrt(total) * 2.0 ** (log % 2 / 2), log // 2


def _block(sites: Sequence[Site], left: LeftSide, k: int, carry: Tensor) -> tuple[Tensor, float]:
    """Site k of the zone times the carry, in an orthonormal basis of the left, and an exponent of 2."""
    if k == left.zone:
        return left.triangle @ sites[k].absorb_right(carry), left.log_triangle
    basis = left.bases[k]
    if basis is None:
        return carry.reshape(left.widths[k - 1] if k else 1, -1), 0.0
    return (basis.reshape(-1, basis.shape[2]) @ carry).view(basis.shape[0], -1), 0.0


def _gram_basis(
    gram: Tensor,
    block: Tensor,
    unit: float,
    largest: float,
    wish: Truncation,
    share: float,
    limit: int,
    directions: Tensor,
) -> Tensor | None:
    """Leading right directions of a block behind a Gram matrix; None where roundoff hides where to cut."""
    fixed, count = wish.is_fixed, min(*block.shape, limit)
    cap = min(wish.max_rank, count) if isinstance(wish.max_rank, int) else count
    tried = cap + OVERSAMPLING
    if fixed and _SUBSPACE * tried < min(block.shape):
        return weighted_subspace(gram, block, directions[: block.shape[0], :tried], cap)
    values, vectors, product = weighted_values(gram, block)
    values = values[:count] * math.sqrt(unit)
    rank = cap if fixed else select_rank(values, wish, max_weight=share)
    noise = 8 * torch.finfo(gram.dtype).eps * largest
    if not fixed and not _is_clear(values, wish, share, noise * math.sqrt(block.shape[0])):
        return None
    return weighted_basis(vectors, product, rank)


def _tried(truncation: Truncation, bonds: int) -> int:
    """Number of random directions that any bond needs."""
    caps = [truncation.at_bond(k, bonds).max_rank for k in range(bonds)]
    return max([cap for cap in caps if isinstance(cap, int)], default=0) + OVERSAMPLING


def _is_clear(values: Tensor, wish: Truncation, max_weight: float, noise: float) -> bool:
    """Whether eigenvalues that are wrong by `noise` still tell where to cut."""
    total = float(values.square().sum())
    asked = [max_weight] if math.isfinite(max_weight) else []
    asked += [wish.cutoff * total] if wish.cutoff else []
    asked += [wish.svd_min**2 * total] if wish.svd_min else []
    return wish.degeneracy_tol is None and noise <= _MARGIN * min(asked, default=math.inf)


def _allowed(truncation: Truncation, budget: float, bonds: int) -> float:
    """Squared relative error that the tolerances ask for, 0 where none does."""
    asked = [budget] if truncation.bounds_error else []
    asked += [truncation.cutoff * bonds] if truncation.cutoff else []
    return min(asked, default=0.0)


def _rank_limits(sites: Sequence[Site], left: LeftSide) -> list[int]:
    """Largest rank that the left side of each bond can have."""
    limits, rank = [], 1
    for k, site in enumerate(sites[:-1]):
        rank = left.widths[k] if k < left.zone else min(rank * site.mode, site.right_rank)
        limits.append(rank)
    return limits


def _right_sizes(sites: Sequence[Site], carry: Tensor, log_carry: float) -> list[float]:
    """Logarithms (base 2) of the norms of the interfaces right of the left bond of each site.

    Only magnitudes matter: single precision will do.
    """
    dtype = torch.complex64 if carry.is_complex() else torch.float32
    carry = carry.to(dtype)
    gram, _, log = gram_matrix(carry @ carry.mH, 2 * log_carry)
    found = []
    for site in reversed(sites):
        single = site.to(dtype)
        gram, trace, log = gram_matrix(single.close_right(single.absorb_right(gram)), log)
        found.append((_log2(max(trace, 0.0)) + log) / 2)
    return found[::-1]


def _log2(size: float) -> float:
    return math.log2(size) if size > 0 else -math.inf
