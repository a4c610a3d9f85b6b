"""Randomized rounding: a random train tells which directions of the right side matter.

A random train of rank l, contracted with what lies left of bond k, is a sketch S_k of shape (l, r_k). The
range of (S_k carry)^H then holds the leading right singular vectors, nearly. The train of rank l that it
leads to is rounded by small SVDs, and the whole is projected once more onto the bases found: that error is
measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet.bases import OVERSAMPLING, normalize, random_directions
from ttnet.implicit import DenseSite, Site
from ttnet.projection import Projection, gram_matrix, over_power, project
from ttnet.scaling import exponential
from ttnet.truncation import Truncation, TruncationReport


def sketch(
    sites: Sequence[Site], truncation: Truncation, *, start: Tensor, stop: Tensor, log_scale: float = 0.0
) -> Projection | None:
    """Round a train whose cores need not be formed by a random sketch.

    Args:
        sites: One for each core.
        truncation: Which singular values are kept; `max_rank` is needed.
        start: What closes the train on the left, shape (q, l).
        stop: What closes it on the right, shape (r, 1).
        log_scale: Exponent of 2 that the train has been divided by.

    Returns:
        The projection; None where roundoff hides the norm.

    References:
        Al Daas, Ballard, Cazeaux, Hallman, Miedlar, Pasha, Reid, Saibaba, SIAM J. Sci. Comput. 45 (2023).
    """
    bonds = len(sites) - 1
    caps = [truncation.at_bond(k, bonds).max_rank for k in range(bonds)]
    sketches = _sketches(sites, [cap + OVERSAMPLING for cap in caps if isinstance(cap, int)], start)
    wide = _project_onto(sites, start, stop, lambda k, block: torch.linalg.qr((sketches[k - 1] @ block).mH).Q)
    one = stop.new_ones(1, 1)
    small = [DenseSite(core) for core in wide.cores]
    found = project(small, truncation, start=one, stop=one, gram=False, certify=False)
    if found is None:
        return None
    bases = [core.reshape(core.shape[0], -1).mH for core in found.cores]
    grams = _grams(sites, start)
    final = _project_onto(sites, start, stop, lambda k, _: bases[k], grams)
    squared = final.size**2 + math.fsum(final.weights)
    ranks = tuple(site.left_rank for site in sites[1:])
    size, eps = max([1, *ranks]), torch.finfo(stop.dtype).eps
    if not squared > 1e4 * eps * final.reach:
        return None
    norm = math.sqrt(squared)
    reach = max(1.0, final.reach / squared)
    unseen = 8 * len(sites) * max(1.0, reach / size) * eps * final.residue
    roundoff = 4 * len(sites) * math.sqrt(size * reach) * eps
    estimate = math.sqrt(math.fsum(final.weights))
    report = TruncationReport(
        ranks_before=ranks,
        ranks_after=found.report.ranks_after,
        discarded_weight=tuple(final.weights),
        norm=norm,
        error_estimate=estimate,
        error_bound=math.sqrt(estimate**2 + unseen) + roundoff * norm,
    )
    exponent = final.log + log_scale
    missed = truncation.bounds_error and estimate**2 > over_power(truncation, exponent).weight_budget(norm)
    if truncation.cutoff:
        missed = missed or max(final.weights, default=0.0) > truncation.cutoff * squared
    return Projection(cores=tuple(final.cores), report=report, exponent=exponent, resolved=not missed)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """A projection and what it left out, all over 2**log (squares over its square)."""

    cores: list[Tensor]
    log: float
    size: float
    weights: list[float]
    residue: float
    reach: float


def _project_onto(
    sites: Sequence[Site],
    start: Tensor,
    stop: Tensor,
    basis_of: Callable[[int, Tensor], Tensor],
    grams: Sequence[tuple[Tensor, float, float]] = (),
) -> _Pass:
    """Project the right side of each bond onto a basis (n p, q); with Gram matrices, measure what is lost."""
    carry, log_carry = stop, 0.0
    cores, lost = [], []
    for k in range(len(sites) - 1, 0, -1):
        block = sites[k].absorb_right(carry)
        basis = basis_of(k, block)
        carry = block @ basis
        if grams:
            gram, trace, log = grams[k - 1]
            residue = torch.addmm(block, carry, basis.mH, alpha=-1)
            weight = max(float((residue.conj() * (gram @ residue)).sum().real), 0.0)
            sizes = [float(torch.linalg.vector_norm(tensor)) ** 2 * trace for tensor in (residue, block)]
            lost.append((weight, *sizes, 2 * log_carry + log))
        cores.append(basis.mH.reshape(basis.shape[1], sites[k].mode, -1))
        carry, _, log = normalize(carry)
        log_carry += log
    first = start @ sites[0].absorb_right(carry)
    cores.append(first.reshape(1, sites[0].mode, -1))
    units = [exponential(log - 2 * log_carry) for *_, log in lost]
    columns = [[unit * row[i] for unit, row in zip(units, lost, strict=True)] for i in range(3)]
    return _Pass(
        cores=cores[::-1],
        log=log_carry,
        size=float(torch.linalg.vector_norm(first)),
        weights=columns[0][::-1],
        residue=math.fsum(columns[1]),
        reach=max(columns[2], default=0.0),
    )


def _sketches(sites: Sequence[Site], widths: list[int], start: Tensor) -> list[Tensor]:
    """Sketch (l, r) of what lies left of each bond; only its range matters, not its scale."""
    sketches, state = [], start
    for site, width in zip(sites, widths, strict=False):
        absorbed = site.absorb_left(state)
        rank = min(width, *absorbed.shape)
        state = normalize(random_directions(absorbed.shape[0], rank, start).mH @ absorbed)[0]
        sketches.append(state)
    return sketches


def _grams(sites: Sequence[Site], start: Tensor) -> list[tuple[Tensor, float, float]]:
    """Gram matrix of what lies left of each bond, its trace and its exponent of 2."""
    grams, gram, log = [], start.mH @ start, 0.0
    for site in sites[:-1]:
        gram, trace, log = gram_matrix(site.close_left(site.absorb_left(gram)), log)
        grams.append((gram, trace, log))
    return grams
