"""Zip-up: a product that is cut while it is formed, and how far a train is from a product."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.gauge import orthogonalize
from ttnet.interfaces import Sites, absorb, canonical, exponential, interfaces, mirror, rescale, size_of
from ttnet.projection import over_power
from ttnet.rounding import truncate
from ttnet.scaling import check_norm
from ttnet.truncation import Truncation, TruncationReport, select_rank


def zip_up(sites: Sites, truncation: Truncation, log_scale: float) -> tuple[Cores, TruncationReport, float]:
    """Form a product from left to right, cutting each bond as it comes, then round it.

    Args:
        sites: Pairs of cores of the two factors.
        truncation: Which singular values the rounding keeps; the first sweep keeps more.
        log_scale: Exponent of 2 that the factors have been divided by.

    Returns:
        Cores of merged modes with center 0 and the report, whose error is measured, both of the product over
        a power of 2, and the exponent of that.

    References:
        Stoudenmire and White, New J. Phys. 12, 055026 (2010).
    """
    bonds = len(sites) - 1
    # Right-orthogonal factors, so that what is cut locally is near what is cut from the product.
    left, log_left = _right_orthogonal([a for a, _ in sites])
    right, log_right = _right_orthogonal([x for _, x in sites])
    log_carry = log_left + log_right
    carry, cores = left[0].new_ones(1, 1, 1), []
    turned = mirror(list(zip(left, right, strict=True)))[::-1]
    for k, (a, x) in enumerate(turned[:-1]):
        block, step = rescale(absorb(carry, a, x))  # (t, b, m, c, p)
        log_carry += step
        basis, rest = _cut(block.reshape(block.shape[0] * block.shape[1], -1).mT, truncation, k, bonds)
        cores.append(basis.reshape(-1, block.shape[4], len(rest)).transpose(0, 1))
        carry = rest.mT.reshape(*block.shape[:2], -1)
    last = absorb(carry, *turned[-1])
    last = last.reshape(-1, carry.shape[2], 1).transpose(0, 1)
    cores.append(last)
    exponent = log_carry + log_scale
    rounded, report = truncate(cores, over_power(truncation, exponent), center=bonds)
    # In double precision, since the square of the error is a difference of squares.
    wide = torch.promote_types(left[0].dtype, torch.float64)
    if left[0].device.type != "mps":
        sites = [(a.to(wide), x.to(wide)) for a, x in sites]
    result = orthogonalize([core.to(sites[0][0].dtype) for core in rounded], -1, start=0)
    error, bound, norm = measure_error(sites, result, -log_carry)
    ranks = tuple(len(a) * len(x) for a, x in sites[1:])
    report = replace(report, ranks_before=ranks, norm=norm, error_estimate=error, error_bound=bound)
    return rounded, report, exponent


def _cut(matrix: Tensor, truncation: Truncation, bond: int, bonds: int) -> tuple[Tensor, Tensor]:
    """Basis (m, r) and its coefficients (r, n): more than is wished, for what is cut cannot be judged yet."""
    wish = truncation.at_bond(bond, bonds)
    rank = 2 * wish.max_rank if isinstance(wish.max_rank, int) else None
    weights = [weight for weight in (wish.cutoff, (wish.rtol or 0.0) ** 2 / bonds) if weight]
    if rank is not None and not weights and 2 * rank <= min(matrix.shape):
        # Subspace iteration from random vectors finds the leading ones much sooner than an SVD finds all.
        start = torch.randn(matrix.shape[1], rank, generator=torch.Generator().manual_seed(bond))
        basis = start.to(dtype=matrix.dtype, device=matrix.device)
        for factor in (matrix, matrix.mH, matrix):
            basis = torch.linalg.qr(factor @ basis)[0]
        return basis, basis.mH @ matrix
    # A hundredth of the weight that may be cut.
    eps = torch.finfo(matrix.dtype).eps
    u, s, vh = linalg.svd(matrix)
    rank = select_rank(s, Truncation(max_rank=rank, cutoff=max(min(weights, default=0.0) / 100, eps * eps)))
    return u[:, :rank], s[:rank, None] * vh[:rank]


def _right_orthogonal(cores: CoresLike) -> tuple[list[Tensor], float]:
    """Right-orthogonal cores of a TT-matrix over its norm, which may overflow, and its exponent of 2."""
    work, log_scale = list(cores), 0.0
    for k in range(len(work) - 1, -1, -1):
        if k:
            work[k - 1 : k + 1] = canonical(work[k - 1 : k + 1], 0)
        work[max(k - 1, 0)], step = rescale(work[max(k - 1, 0)])
        log_scale += step
    return work, log_scale


def measure_error(
    sites: Sites, result: CoresLike, log_scale: float, log_result: float = 0.0
) -> tuple[float, float, float]:
    """Distance of a train y from a product A x, by contraction.

    Args:
        sites: Pairs of cores of the two factors.
        result: Cores of y, canonical with center d - 1.
        log_scale: Exponent of 2 that the factors have been divided by.
        log_result: Exponent of 2 that y has been divided by.

    Returns:
        ||A x - y||, a bound of it and ||A x||.

    Raises:
        NonFiniteError: The norm of the product is not within the range of float64.
    """
    sizes = [(size_of(gram), log, gram) for gram, log in interfaces(sites, gram=True)]
    squared_norm, log_squared = float(sizes[-1][2].real), sizes[-1][1]
    eps = torch.finfo(result[0].dtype).eps
    carry, log_carry, roundoff = result[0].new_ones(1, 1, 1), 0.0, 0.0
    log_norm = 0.5 * (log_squared + math.log2(squared_norm)) if squared_norm > 0 else 0.5 * log_squared
    for k, ((a, x), core) in enumerate(zip(mirror(sites)[::-1], result, strict=True)):
        size, log, _ = sizes[len(sites) - k]
        roundoff += eps * size * (size_of(carry) * exponential(log_carry + 0.5 * log - log_norm)) ** 2
        block = absorb(carry, a, x)  # (t, b, m, c, p)
        if k + 1 == len(sites):
            carry = block.reshape(-1, core.shape[0]).mT
            break
        projected = block.reshape(block.shape[0] * block.shape[1], -1)
        projected = projected @ core.conj().transpose(0, 1).reshape(-1, core.shape[2])
        carry, step = rescale(projected.reshape(*block.shape[:2], -1))
        log_carry += step
    # Pythagoras: what the basis of y cannot hold, and how far y is from the best that it holds.
    unit = exponential(log_carry - log_norm)
    inside = carry.reshape(-1) * unit
    outside = max((1.0 if squared_norm > 0 else 0.0) - size_of(inside) ** 2, 0.0)
    train = result[-1].reshape(-1) * exponential(log_result - log_norm - log_scale)
    gap = size_of(inside - train)
    check_norm(float(squared_norm > 0), log_norm + log_scale, torch.float64)
    squared, norm = outside + gap * gap, exponential(log_norm + log_scale)
    count = 8 * (len(sites) + 1)
    bound = math.sqrt(squared + count * roundoff) + count * eps * size_of(train)
    return norm * math.sqrt(squared), norm * bound, norm if squared_norm > 0 else 0.0
