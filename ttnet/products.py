"""Apply and round: the product of a TT-matrix with a train, or with another TT-matrix, without its ranks.

The exact product has ranks r s, the products of the ranks of its factors. Here it is never formed: a sweep
from the left summarizes, for each bond, how the interface (a, s) of the two factors weighs in the result, and
a sweep from the right projects onto what weighs most.

    interface of bond k, shape (s, a, q)          carry of bond k, shape (s, a, p)

      +--[A_0]--[A_1]--a                            a--[A_k]--[A_{k+1}]--+
    q |    |      |                                      |       |       | p
      +--[x_0]--[x_1]--s                            s--[x_k]--[x_{k+1}]--+

The projections are orthogonal and nested, so the squares of their errors add: the error is certified. In
method "qr" the interface is the triangular factor of a QR; in method "density" its Gram matrix, which costs
half as much and resolves relative errors down to the square root of the precision. Both say in the report
what roundoff may have hidden.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ttnet import cores as _cores
from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.errors import ConfigError
from ttnet.gauge import orthogonalize
from ttnet.interfaces import (
    Sites,
    absorb,
    exponential,
    interfaces,
    mirror,
    rescale,
    rescale_all,
    size_of,
)
from ttnet.matrix_cores import check_fits, columns_of, matmat, merge_modes, rows_of
from ttnet.projection import Projection, over_power, times_report
from ttnet.rounding import check_caps
from ttnet.rounding import truncate as _truncate
from ttnet.scaling import check_norm, times_power_of_two
from ttnet.truncation import Truncation, TruncationReport, select_rank, tail_weights
from ttnet.zip_up import measure_error, zip_up

METHODS = ("auto", "density", "qr", "zip-up", "direct")
"""What `method` can be, see `apply`."""


def apply(
    matrix: CoresLike,
    other: CoresLike,
    truncation: Truncation,
    *,
    method: str = "auto",
) -> tuple[Cores, TruncationReport]:
    """Product of a TT-matrix with a train or with a TT-matrix, rounded.

    Methods:
        "density": Projects onto the leading eigenvectors of density matrices (Gram matrices), which resolve
            errors down to about the square root of the precision times the norm. Where the
            tolerance asks for more, or the error came out below that, "qr" is taken instead.
        "qr": The same projections from triangular factors: twice the time, full precision.
        "zip-up": One sweep that cuts as it goes, then a rounding. Least memory; the error is not controlled,
            but measured afterwards and reported. `discarded_weight` is that of the rounding.
        "direct": Forms the exact product and rounds it; the only one that autograd passes through.
        "auto": "density" in double precision whatever the dtype; "direct" where a gradient is needed.

    Args:
        matrix: Cores of shape (a, m_k, n_k, b).
        other: Cores of shape (s, n_k, c_k, t); a train has c_k = 1.
        truncation: Which singular values of the product are kept. Tolerances are certified, except with
            "zip-up"; a `max_rank` that contradicts them wins, and the report tells what it cost.
        method: One of `METHODS`.

    Returns:
        Cores of shape (r, m_k c_k, r') in the canonical gauge with center 0, and the report. Its
        `ranks_before` are those of the exact product; the Frobenius error is at most `report.error_bound`.

    Raises:
        ShapeError: The modes do not fit.
        ConfigError: `method` is unknown, or runs without autograd while a gradient is needed.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
        NonFiniteError: A factor holds a NaN or an infinity, or the norm of the product is not within the
            range of the dtype: take `normalized()` of the factors.

    References:
        Stoudenmire and White, New J. Phys. 12, 055026 (2010) (zip-up); McCulloch, J. Stat. Mech. P10014
        (2007) and tensornetwork.org/mps/algorithms/denmat_mpo_mps (density matrix).
    """
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {METHODS}, got {method!r}")
    check_fits(matrix, rows_of(other))
    check_caps(truncation, tuple(m * c for m, c in zip(rows_of(matrix), columns_of(other), strict=True)))
    storage, dtype = matrix[0].dtype, linalg.working_dtype(matrix[0].dtype)
    left, right = [core.to(dtype) for core in matrix], [core.to(dtype) for core in other]
    with_gradient = torch.is_grad_enabled() and any(core.requires_grad for core in (*matrix, *other))
    if method == "direct" or (method == "auto" and with_gradient):
        cores, report = _truncate(merge_modes(matmat(left, right)), truncation)
        return tuple(core.to(storage) for core in cores), _with_storage(report, storage, dtype)
    if with_gradient:
        raise ConfigError(
            f"method: {method!r} runs without autograd; use 'direct', or torch.no_grad() or .detach()"
        )
    with torch.no_grad():
        if method == "auto":
            # In double precision Gram matrices resolve all that float32 can tell, at less than a QR costs.
            dtype = _double(dtype, matrix[0].device)
            left, right = [core.to(dtype) for core in left], [core.to(dtype) for core in right]
        # Entries of size 1, so that squares neither overflow nor underflow; `log_` is an exponent of 2.
        left, log_left = rescale_all(left)
        right, log_right = rescale_all(right)
        sites, log_scale = list(zip(left, right, strict=True)), log_left + log_right
        if method == "zip-up":
            cores, report, exponent = zip_up(sites, truncation, log_scale)
        else:
            gram = method != "qr" and _is_loose(truncation, dtype)
            found = _project(sites, truncation, log_scale, gram=gram)
            if not found.resolved:
                found = _project(sites, truncation, log_scale, gram=False)
            cores, report, exponent = found.cores, found.report, found.exponent
        check_norm(report.norm, exponent, storage)
        first = times_power_of_two(cores[0], exponent).to(storage)
        report = _with_storage(times_report(report, exponent), storage, dtype)
        return (first, *(core.to(storage) for core in cores[1:])), report


def product_error(matrix: CoresLike, other: CoresLike, result: CoresLike) -> tuple[float, float]:
    """Measure how far a train is from a product, ||A x - y||, without forming the product.

    Args:
        matrix: Cores A of shape (a, m_k, n_k, b).
        other: Cores x of shape (s, n_k, c_k, t); a train has c_k = 1.
        result: Cores y of shape (r, m_k c_k, r').

    Returns:
        The Frobenius error and a bound of it that holds whatever roundoff did: the square of the error is a
        difference of squares, so errors below the square root of the precision cannot be told from zero.

    Raises:
        ShapeError: The modes do not fit.
        NonFiniteError: A factor holds a NaN or an infinity.
    """
    check_fits(matrix, rows_of(other))
    with torch.no_grad():
        dtype = linalg.working_dtype(matrix[0].dtype)
        factors = [rescale_all([core.to(dtype) for core in cores]) for cores in (matrix, other, result)]
        (left, log_left), (right, log_right), (train, log_train) = factors
        train = orthogonalize(train, -1)
        sites, log_scale = list(zip(left, right, strict=True)), log_left + log_right
        error, bound, _ = measure_error(sites, train, log_scale, log_train)
        return error, bound


# Projection: "density" and "qr" ----------------------------------------------------------------------------


def _project(sites: Sites, truncation: Truncation, log_scale: float, *, gram: bool) -> Projection:
    """Cut the product in a sweep from the right."""
    found, logs = zip(*interfaces(mirror(sites), gram=gram), strict=True)
    logs = [log / 2 for log in logs] if gram else list(logs)
    total = float(found[-1].real)
    # A Gram matrix may lose its sign to cancellation; the bound below then says that nothing is known.
    size = math.sqrt(abs(total)) if gram else abs(total)
    log_norm = math.log2(size) + logs[-1] if size > 0 else logs[-1]
    exponent = math.floor(logs[-1]) + log_scale
    norm = size * 2.0 ** (logs[-1] % 1)
    bonds = len(sites) - 1
    truncation = over_power(truncation, exponent)
    allowed = _allowed_error(truncation, norm, bonds)
    remaining = _budget(truncation, norm) ** 2
    eps = torch.finfo(sites[0][0].dtype).eps
    limits = _rank_limits(sites)

    # Everything below is relative to the norm, so that neither overflows nor underflows.
    weights, unseen, roundoff = [0.0] * bonds, 0.0, 0.0
    carry, log_carry = sites[0][0].new_ones(1, 1, 1), 0.0
    cores = []
    for k in range(bonds, 0, -1):
        reach = _reach(carry, sites[k]) * exponential(log_carry + logs[k] - log_norm)
        size_left = size_of(found[k])
        roundoff += eps * reach * (math.sqrt(size_left) if gram else size_left)
        block, step = rescale(absorb(carry, *sites[k]))  # (s, a, m, c, p)
        log_carry += step
        unfolded = block.reshape(block.shape[0] * block.shape[1], -1)
        interface = _as_matrix(found[k], gram=gram)
        unit = exponential(log_carry + logs[k] - log_norm)
        values, basis = _leading(interface, unfolded, gram=gram, limit=limits[k - 1])
        rank = select_rank(values * unit, truncation.at_bond(k - 1, bonds), max_weight=remaining / k)
        basis = basis[:, :rank]
        projected = unfolded @ basis
        if gram:
            # The residue, not the small eigenvalues: those are differences of large numbers.
            residue = unfolded - projected @ basis.mH
            weight = max(float((residue.conj() * (interface @ residue)).sum().real), 0.0)
            unseen += eps * (size_of(residue) * unit) ** 2 * size_left
        else:
            weight = float(tail_weights(values)[rank])
        weights[k - 1] = weight * unit * unit
        remaining = max(remaining - weights[k - 1], 0.0)
        cores.append(basis.mH.reshape(rank, -1, block.shape[4]))
        carry = projected.reshape(*block.shape[:2], rank)
    roundoff += eps * _reach(carry, sites[0]) * exponential(log_carry - log_norm)
    last = absorb(carry, *sites[0])
    last = times_power_of_two(last, log_carry + log_scale - exponent)
    cores.append(last.reshape(1, -1, last.shape[4]))

    unseen *= 8 * (bonds + 1)
    squared = math.fsum(weights)
    report = _report(sites, cores[::-1], weights, norm=norm, unseen=unseen, roundoff=8 * roundoff)
    resolved = not gram or (size > 0 and unseen <= 0.1 * max(squared, allowed * allowed))
    return Projection(cores=tuple(cores[::-1]), report=report, exponent=exponent, resolved=resolved)


def _as_matrix(interface: Tensor, *, gram: bool) -> Tensor:
    """Gram matrix (s* a*, s a), or triangular factor (q, s a)."""
    if gram:
        return interface.permute(3, 2, 0, 1).reshape(interface.shape[0] * interface.shape[1], -1)
    return interface.flatten(0, 1).mT


def _leading(interface: Tensor, unfolded: Tensor, *, gram: bool, limit: int) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors of interface @ unfolded, at most `limit` of them."""
    if gram:
        density = unfolded.mH @ interface @ unfolded
        values, vectors = torch.linalg.eigh((density + density.mH) / 2)
        return values.flip(0).clamp_min(0).sqrt()[:limit], vectors.flip(1)[:, :limit]
    _, values, vh = linalg.svd(interface @ unfolded)
    return values[:limit], vh.mH[:, :limit]


def _reach(carry: Tensor, site: tuple[Tensor, Tensor]) -> float:
    """Size of what is added up when a site is taken in, which is what roundoff is relative to."""
    return size_of(carry) * size_of(site[0]) * size_of(site[1])


def _rank_limits(sites: Sites) -> list[int]:
    """Largest rank that the left side of each bond can have: its modes, and the ranks of the product."""
    limits, modes = [], 1
    for a, x in sites[:-1]:
        modes = min(modes * a.shape[1] * x.shape[2], a.shape[3] * x.shape[3])
        limits.append(modes)
    return limits


def _report(
    sites: Sites, cores: CoresLike, weights: list[float], *, norm: float, unseen: float, roundoff: float
) -> TruncationReport:
    """Report of a projection whose figures are relative to the norm."""
    squared = math.fsum(weights)
    return TruncationReport(
        ranks_before=tuple(len(a) * len(x) for a, x in sites[1:]),
        ranks_after=_cores.ranks_of(cores)[1:-1],
        discarded_weight=tuple(weight * norm * norm if weight else 0.0 for weight in weights),
        norm=norm,
        error_estimate=norm * math.sqrt(squared) if squared else 0.0,
        error_bound=norm * (math.sqrt(squared + unseen) + roundoff),
    )


def _budget(truncation: Truncation, norm: float) -> float:
    """Error of the whole product that `rtol` and `atol` allow, relative to its norm."""
    budgets = [truncation.rtol] if truncation.rtol else []
    if truncation.atol:
        budgets.append(truncation.atol / norm if norm > 0 else math.inf)
    return min(budgets, default=math.inf)


def _allowed_error(truncation: Truncation, norm: float, bonds: int) -> float:
    """Relative error that the tolerances ask for, 0 where none does."""
    asked = [_budget(truncation, norm)] if truncation.bounds_error else []
    if truncation.cutoff:
        asked.append(math.sqrt(truncation.cutoff * bonds))
    return min(asked, default=0.0)


def _is_loose(truncation: Truncation, dtype: torch.dtype) -> bool:
    """Whether Gram matrices resolve what the tolerances ask for (`atol` is judged afterwards)."""
    resolution = 10 * math.sqrt(torch.finfo(dtype).eps)
    asked = [truncation.rtol, math.sqrt(truncation.cutoff), truncation.svd_min]
    tolerances = [tolerance for tolerance in asked if tolerance]
    return min(tolerances, default=1.0) >= resolution and (
        bool(tolerances) or truncation.max_rank is not None
    )


def _double(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The same kind of number in double precision, where the device has it."""
    if device.type == "mps":
        return dtype
    return torch.complex128 if dtype.is_complex else torch.float64


def _with_storage(report: TruncationReport, storage: torch.dtype, dtype: torch.dtype) -> TruncationReport:
    """Add what rounding the cores to a dtype of less precision costs."""
    if dtype == storage:
        return report
    size = math.sqrt(max([1, *report.ranks_after])) * (len(report.ranks_after) + 1)
    return replace(report, error_bound=report.error_bound + size * torch.finfo(storage).eps * report.norm)
