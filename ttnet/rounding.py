"""Rounding: a train of lower ranks near a given one, with a certified error.

The train is first brought into the gauge whose center is the last core; then each bond is cut by an SVD on
the way back. In that gauge the discarded weight of a bond is the squared error it adds, and errors of
different bonds are orthogonal: the total error is the root of the sum.
"""

import math

import torch

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import subtract
from ttnet.cores import absorb_right, extend_left, possible_ranks, ranks_of, right_unfold, shape_of
from ttnet.errors import RankError
from ttnet.gauge import orthogonalize
from ttnet.truncation import Truncation, TruncationReport, select_rank, tail_weights


def truncate(
    cores: CoresLike, truncation: Truncation, *, center: int | None = None, certify: bool = True
) -> tuple[Cores, TruncationReport]:
    """Round a train.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        truncation: Which singular values are kept.
        center: Present center, where there is one; work that it makes needless is skipped.
        certify: Whether the bound counts the roundoff of terms that cancel, as in a small difference of large
            trains. It takes the norms of all interfaces, about a third of the time of the rounding itself.

    Returns:
        Cores in the canonical gauge with center 0, and the report. The Frobenius error of the train is at
        most `report.error_bound`.

    Raises:
        RankError: `max_rank` is a list of the wrong length, or asks for more than a bond allows.

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011), algorithm 2.
    """
    check_caps(truncation, shape_of(cores))
    work = list(orthogonalize(cores, -1, start=center))
    dtype = linalg.working_dtype(work[-1].dtype)
    norm = float(linalg.frobenius_norm(work[-1].detach().to(dtype)))
    bonds = len(work) - 1
    remaining = truncation.weight_budget(norm)
    weights = [0.0] * bonds
    for k in range(bonds - 1, -1, -1):
        u, s, vh = linalg.svd(right_unfold(work[k + 1]).to(dtype))
        rank = select_rank(s, truncation.at_bond(k, bonds), max_weight=remaining / (k + 1))
        weights[k] = float(tail_weights(s)[rank])
        if math.isfinite(remaining):
            remaining = max(remaining - weights[k], 0.0)
        work[k] = absorb_right(work[k].to(dtype), u[:, :rank] * s[:rank]).to(work[k].dtype)
        mode, right = work[k + 1].shape[1:]
        work[k + 1] = vh[:rank].reshape(rank, mode, right).to(work[k + 1].dtype)
    report = TruncationReport.from_weights(
        ranks_of(cores)[1:-1],
        ranks_of(work)[1:-1],
        weights,
        norm=norm,
        dtype=work[0].dtype,
        scale=_roundoff_scale(cores) if certify and center is None else norm,
    )
    return tuple(work), report


def _roundoff_scale(cores: CoresLike) -> float:
    """Largest product of the norms of the left and the right interface of a bond.

    The QR factorization of an interface errs relative to the norm of that interface, and the error is
    multiplied by the other one.
    """
    left = _log_interface_norms(cores)
    right = _log_interface_norms([core.transpose(0, 2) for core in reversed(cores)])
    largest = max((a + b for a, b in zip(left, reversed(right), strict=True)), default=-math.inf)
    return math.exp(min(largest, 700.0))


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
    """
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
    """
    with torch.no_grad():
        dtype = linalg.working_dtype(torch.promote_types(a[0].dtype, b[0].dtype))
        difference = subtract([core.to(dtype) for core in a], [core.to(dtype) for core in b])
        return float(linalg.frobenius_norm(orthogonalize(difference, 0)[0]))
