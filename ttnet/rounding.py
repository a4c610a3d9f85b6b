"""Rounding: a train of lower ranks near a given one, with a certified error.

The plain way brings the train into the gauge whose center is the last core; then each bond is cut by an SVD
on the way back. In that gauge the discarded weight of a bond is the squared error it adds, and errors of
different bonds are orthogonal: the total error is the root of the sum. The faster ways are projections that
measure what they leave out, see `ttnet.projection` and `ttnet.sketch`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import subtract
from ttnet.cores import absorb_right, extend_left, possible_ranks, ranks_of, right_unfold, shape_of
from ttnet.errors import ConfigError, RankError
from ttnet.gauge import check_center, orthogonalize, orthogonalize_scaled
from ttnet.implicit import DenseSite
from ttnet.methods import Ends, check_method, choose, dtype_for, round_sites, scale_core
from ttnet.metric import apply_modes, factor_metric
from ttnet.projection import over_power, times_report
from ttnet.scaling import check_norm, exponential, split_power, times_power_of_two
from ttnet.transforms import is_batched, needs_gradient
from ttnet.truncation import Truncation, TruncationReport, check_truncation, select_rank, tail_weights


def truncate(
    cores: CoresLike,
    truncation: Truncation,
    *,
    center: int | None = None,
    certify: bool = True,
    method: str = "auto",
    metric: Sequence[Tensor | None] | None = None,
) -> tuple[Cores, TruncationReport]:
    """Round a train.

    Methods:
        "svd": QR there, SVD back: the plain way. The only one that autograd and `torch.func.vmap` pass; the
            ranks are chosen from detached values. The gradient is right where the spectrum has a gap at each
            cut, equal singular values on one side of it included. Null directions that are kept are one
            choice of many, and the gradient is projected on them, as in `ttnet.gauge.orthogonalize`.
        "qr-svd": The same cuts; an SVD sees the triangle of a QR only, and directions that depend on each
            other to the last bit (as in a sum of multiples) are dropped on the way there.
        "gram": Matrix products and small eigenvalue problems. What it leaves out is measured; where roundoff
            could hide more than was asked for, or make the cut ambiguous, "qr-svd" is taken instead.
        "randomized": A random train sketches what lies left of each bond. Needs `max_rank`; the error is
            measured and a bit above the best. Where it misses a tolerance, "qr-svd" is taken instead.
        "auto": The fastest that is safe.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        truncation: Which singular values are kept.
        center: Present center, where there is one; work that it makes needless is skipped.
        certify: Whether the bound counts the roundoff of terms that cancel, as in a small difference of large
            trains. It takes the norms of all interfaces, about a third of the time of the rounding itself.
        method: One of `METHODS`.
        metric: One Hermitian positive semidefinite matrix C_k (n_k, n_k) or None (identity) for each mode.
            The error is then measured in the norm sqrt(vec(x)^H (C_0 x ... x C_{d-1}) vec(x)): tolerances,
            discarded weights, norm and bounds are all in it. What a semidefinite C_k does not see is set to
            zero.

    Returns:
        Cores in the canonical gauge with center 0, and the report. The Frobenius error of the train is at
        most `report.error_bound`. With a metric they are canonical in it, and in the plain gauge have no
        center. Under `torch.func.vmap` the numbers of the report are NaN.

    Raises:
        RankError: `max_rank` is a list of the wrong length, asks for more than a bond allows, or is missing
            where `method` is "randomized".
        ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.
        ShapeError: A matrix of the metric does not fit its mode.
        NonFiniteError: The norm is not within the range of the dtype, see `ttnet.log_scale.normalize`; or a
            core holds a NaN or an infinity.

    Examples:
        >>> import ttnet
        >>> train = ttnet.random_train((4, 5, 6), rank=3)
        >>> cores, report = truncate(train.cores, Truncation(max_rank=2), method="gram")
        >>> report.ranks_after
        (2, 2)

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011), algorithm 2 ("svd"); Al Daas, Ballard, Manning, SIAM
        J. Sci. Comput. 44 (2022) ("gram"); Al Daas et al., SIAM J. Sci. Comput. 45 (2023) ("randomized").
    """
    batched = any(map(is_batched, cores))
    plain = batched or any(map(needs_gradient, cores))
    check_method(method, truncation, plain=plain)
    check_caps(truncation, shape_of(cores))
    if center is not None:
        center = check_center(center, len(cores))
    if metric is not None:
        return _in_metric(cores, truncation, metric, certify, method)
    if batched:
        return _batched(cores, truncation, center)
    method = "svd" if plain else choose(method, truncation, cores[0].dtype, max(map(torch.numel, cores)))
    if method == "svd":
        return _by_svd(cores, truncation, center, certify)
    with torch.no_grad():
        dtype = dtype_for(method, cores[0])
        at = 0 if center is None or method == "randomized" else center
        scaled = [scale_core(core.to(dtype)) if k >= at else (core, 0.0) for k, core in enumerate(cores)]
        sites = [DenseSite(core) for core, _ in scaled]
        ends = Ends(
            start=torch.eye(sites[at].left_rank, dtype=dtype, device=cores[0].device),
            stop=torch.ones(1, 1, dtype=dtype, device=cores[0].device),
            log_scale=math.fsum(log for _, log in scaled),
            bases=[core.to(dtype) for core in cores[:at]],
        )
        return round_sites(
            sites,
            truncation,
            ends,
            method=method,
            storage=cores[0].dtype,
            certify=certify and center is None,
        )


def _in_metric(
    cores: CoresLike, truncation: Truncation, metric: Sequence[Tensor | None], certify: bool, method: str
) -> tuple[Cores, TruncationReport]:
    """Round in the Frobenius norm of the modes times L_k, where C_k = L_k^H L_k."""
    roots = factor_metric(metric, cores)
    factors = [root and root.factor for root in roots]
    found, report = truncate(apply_modes(factors, cores), truncation, certify=certify, method=method)
    back = apply_modes([root and root.inverse for root in roots], found)
    back = tuple(core.to(cores[0].dtype) for core in back)
    if math.isnan(report.norm):
        return back, report
    # What the inverse costs, and rounding to half precision.
    conditions = [root.condition for root in roots if root is not None]
    roundoff = 8 * torch.finfo(cores[0].dtype).eps * (len(cores) + math.fsum(conditions))
    size = math.sqrt(max([1, *report.ranks_after]))
    return back, replace(report, error_bound=report.error_bound + size * roundoff * report.norm)


def _by_svd(
    cores: CoresLike, truncation: Truncation, center: int | None, certify: bool
) -> tuple[Cores, TruncationReport]:
    """The plain way, on a train over a power of 2: neither its norm nor the squares leave the range."""
    storage, dtype = cores[0].dtype, linalg.working_dtype(cores[0].dtype)
    found, exponent = orthogonalize_scaled(cores, -1, start=center)
    last, step = split_power(found[-1].to(dtype))
    work, exponent = [*found[:-1], last.to(storage)], exponent + step
    norm = float(linalg.frobenius_norm(work[-1].detach().to(dtype)))
    check_norm(norm, exponent, storage)
    weights = _cut_back(work, over_power(truncation, exponent), norm)
    scale = norm
    if certify and center is None:
        scale = math.exp(min(_log_roundoff_scale(cores) - exponent * math.log(2), 700.0))
    report = TruncationReport.from_weights(
        ranks_of(cores)[1:-1], ranks_of(work)[1:-1], weights, norm=norm, dtype=storage, scale=scale
    )
    work[0] = times_power_of_two(work[0].to(dtype), exponent).to(storage)
    return tuple(work), times_report(report, exponent)


def _cut_back(work: list[Tensor], truncation: Truncation, norm: float) -> list[float]:
    """Cut all bonds of a train whose center is its last core, from there; returns the discarded weights."""
    bonds, dtype = len(work) - 1, linalg.working_dtype(work[-1].dtype)
    remaining = truncation.weight_budget(norm)
    weights = [0.0] * bonds
    for k in range(bonds - 1, -1, -1):
        factors = linalg.svd(right_unfold(work[k + 1]).to(dtype).mH)
        rank = select_rank(factors[1], truncation.at_bond(k, bonds), max_weight=remaining / (k + 1))
        weights[k] = float(tail_weights(factors[1])[rank])
        if math.isfinite(remaining):
            remaining = max(remaining - weights[k], 0.0)
        _keep(work, k, factors, rank)
    return weights


def _keep(work: list[Tensor], k: int, factors: tuple[Tensor, Tensor, Tensor], rank: int) -> None:
    """Cut bond k by the SVD of the adjoint of core k + 1: `rank` directions stay there, the rest goes left.

    The adjoint, because a gradient is right for a function of the left factor, see `ttnet.factor_gradients`.
    """
    v, s, uh = factors
    left, mode, right = work[k], *work[k + 1].shape[1:]
    kept = v[:, :rank].mH.resolve_conj()
    if needs_gradient(work[k + 1]):
        # The same matrix, whose gradient also reaches the null directions.
        selected = right_unfold(work[k + 1]).to(v.dtype) @ v[:, :rank]
    else:
        selected = uh[:rank].mH * s[:rank]
    work[k] = absorb_right(left.to(v.dtype), selected).to(left.dtype)
    work[k + 1] = kept.reshape(rank, mode, right).to(left.dtype)


def _batched(cores: CoresLike, truncation: Truncation, center: int | None) -> tuple[Cores, TruncationReport]:
    """Fixed ranks under vmap: nothing depends on values."""
    if not truncation.is_fixed:
        raise ConfigError(
            "truncation: expected fixed ranks (max_rank alone) under vmap, got a tolerance; the ranks would "
            "differ from sample to sample"
        )
    work = list(orthogonalize(cores, -1, start=center))
    bonds = len(work) - 1
    for k in range(bonds - 1, -1, -1):
        factors = linalg.svd(right_unfold(work[k + 1]).to(linalg.working_dtype(work[k].dtype)).mH)
        cap, count = truncation.at_bond(k, bonds).max_rank, factors[1].shape[-1]
        _keep(work, k, factors, min(cap, count) if isinstance(cap, int) else count)
    unknown = math.nan
    report = TruncationReport(
        ranks_before=ranks_of(cores)[1:-1],
        ranks_after=ranks_of(work)[1:-1],
        discarded_weight=(unknown,) * bonds,
        norm=unknown,
        error_estimate=unknown,
        error_bound=unknown,
    )
    return tuple(work), report


def _log_roundoff_scale(cores: CoresLike) -> float:
    """Logarithm of the largest product of the norms of the left and the right interface of a bond.

    The QR factorization of an interface errs relative to the norm of that interface, and the error is
    multiplied by the other one.
    """
    left = _log_interface_norms(cores)
    right = _log_interface_norms([core.transpose(0, 2) for core in reversed(cores)])
    return max((a + b for a, b in zip(left, reversed(right), strict=True)), default=-math.inf)


def _log_interface_norms(cores: CoresLike) -> list[float]:
    """Logarithms of the Frobenius norms of the d - 1 left interfaces, from their Gram matrices.

    Only magnitudes matter: single precision will do.
    """
    dtype = torch.complex64 if cores[0].is_complex() else torch.float32
    gram = torch.ones(1, 1, dtype=dtype, device=cores[0].device)
    total, logs = 0.0, []
    for core in cores[:-1]:
        size = float(torch.linalg.vector_norm(core.detach(), math.inf))
        if size == 0:
            return [*logs, *[-math.inf] * (len(cores) - 1 - len(logs))]
        core_ = (core.detach() / size).to(dtype)
        gram = extend_left(gram, core_, core_)
        trace = max(float(gram.diagonal().real.sum()), torch.finfo(dtype).eps)
        total += math.log(size) + math.log(trace) / 2
        logs.append(total)
        gram = gram / trace
    return logs


def check_caps(truncation: Truncation, shape: tuple[int, ...]) -> None:
    """Refuse a list of caps that the bonds of a train of this shape cannot have.

    Raises:
        RankError: The list has the wrong length, or a rank in it is impossible.
        ConfigError: `truncation` is none.
    """
    check_truncation(truncation)
    if truncation.max_rank is None or isinstance(truncation.max_rank, int):
        return
    possible = possible_ranks(shape)
    if not possible and truncation.max_rank:
        raise RankError(f"max_rank: expected no rank for a train without bonds, got {truncation.max_rank}")
    for k, limit in enumerate(possible):
        cap = truncation.at_bond(k, len(possible)).max_rank
        if isinstance(cap, int) and cap > limit:
            raise RankError(
                f"max_rank: expected at most {limit} at bond {k} of shape {shape}, got {cap}; lower it"
            )


def distance(a: CoresLike, b: CoresLike) -> float:
    """Frobenius norm of the difference of two trains, by orthogonalization: accurate also for near trains.

    Args:
        a: Cores of shape (r_k, n_k, r_{k+1}).
        b: Cores of shape (s_k, n_k, s_{k+1}).

    Returns:
        The norm, computed in float32 or better.

    Raises:
        ShapeError: The shapes differ.
        NonFiniteError: The norm is not within the range of float64, or a core is not finite.
    """
    with torch.no_grad():
        dtype = linalg.working_dtype(torch.promote_types(a[0].dtype, b[0].dtype))
        difference = subtract([core.to(dtype) for core in a], [core.to(dtype) for core in b])
        work, exponent = orthogonalize_scaled(difference, 0)
        norm = float(linalg.frobenius_norm(work[0]))
        check_norm(norm, exponent, torch.float64)
        return norm * exponential(exponent)
