"""Which projection rounds a train: guarded Gram matrices, triangles, or a random sketch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.errors import ConfigError, NonFiniteError, RankError
from ttnet.implicit import Site
from ttnet.projection import project
from ttnet.scaling import check_norm, split_power
from ttnet.sketch import sketch
from ttnet.truncation import Truncation, TruncationReport

METHODS = ("auto", "svd", "qr-svd", "gram", "randomized")
"""What `method` can be, see `ttnet.rounding.truncate`."""

_SMALL = 512
"""Entries of a core up to which factorizations cost less than the calls that would avoid them."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """How a train of sites is closed, and what was taken out of it.

    Attributes:
        start: What closes it on the left, shape (q, l).
        stop: What closes it on the right, shape (r, 1).
        log_scale: Exponent of 2 that the train has been divided by.
        bases: Left-orthogonal cores left of `start`.
    """

    start: Tensor
    stop: Tensor
    log_scale: float = 0.0
    bases: Sequence[Tensor] = ()


def check_method(method: str, truncation: Truncation, *, plain: bool) -> None:
    """Refuse a method that there is not, or not for this.

    Args:
        method: One of `METHODS`.
        truncation: What it is asked for.
        plain: Whether a gradient is needed or a batch hidden: then "svd" is the only method.

    Raises:
        ConfigError: `method` is unknown, or runs without autograd and vmap while they are needed.
        RankError: "randomized" without `max_rank`.
    """
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {METHODS}, got {method!r}")
    if plain and method not in ("auto", "svd"):
        raise ConfigError(
            f"method: expected 'auto' or 'svd' under autograd and vmap, got {method!r}; use torch.no_grad() "
            f"or .detach() where no gradient is needed"
        )
    if method == "randomized" and truncation.max_rank is None:
        raise RankError(
            "max_rank: expected a number for method 'randomized', got None; set it, or use 'auto'"
        )


def choose(method: str, truncation: Truncation, dtype: torch.dtype, largest: int) -> str:
    """The method that "auto" stands for.

    Args:
        method: One of `METHODS`; all but "auto" are returned as they are.
        truncation: What is asked for.
        dtype: Dtype of the cores.
        largest: Entries of the largest core.
    """
    if method != "auto":
        return method
    if largest <= _SMALL:
        return "svd"
    return "gram" if is_loose(truncation, linalg.working_dtype(dtype)) else "qr-svd"


def dtype_for(method: str, core: Tensor) -> torch.dtype:
    """The dtype that a method computes in: Gram matrices square the singular values, so they are double.

    Args:
        method: One of `METHODS`.
        core: A core, for its dtype and its device, which may know no double precision.
    """
    dtype = linalg.working_dtype(core.dtype)
    if method != "gram" or core.device.type == "mps":
        return dtype
    return torch.complex128 if dtype.is_complex else torch.float64


def is_loose(truncation: Truncation, dtype: torch.dtype) -> bool:
    """Whether Gram matrices resolve what the tolerances ask for (`atol` is judged afterwards)."""
    resolution = 10 * math.sqrt(torch.finfo(dtype).eps)
    asked = [truncation.rtol, math.sqrt(truncation.cutoff), truncation.svd_min]
    tolerances = [tolerance for tolerance in asked if tolerance]
    some = bool(tolerances) or truncation.max_rank is not None or bool(truncation.atol)
    return some and truncation.degeneracy_tol is None and min(tolerances, default=1.0) >= resolution


def round_sites(
    sites: Sequence[Site],
    truncation: Truncation,
    ends: Ends,
    *,
    method: str,
    storage: torch.dtype,
    certify: bool = True,
) -> tuple[Cores, TruncationReport]:
    """Round a train whose cores need not be formed.

    Args:
        sites: One for each core.
        truncation: Which singular values are kept.
        ends: How it is closed.
        method: "qr-svd", "gram" or "randomized"; the latter two give way to the first where they are not
            safe.
        storage: Dtype of the result.
        certify: Whether the bound counts the roundoff of terms that cancel.

    Returns:
        Cores with center 0 and the report.

    Raises:
        NonFiniteError: The norm is not within the range of `storage`, or a core is not finite.
    """
    found = None
    if method == "randomized":
        found = sketch(sites, truncation, start=ends.start, stop=ends.stop, log_scale=ends.log_scale)
    elif method == "gram" and truncation.degeneracy_tol is None:
        found = project(
            sites,
            truncation,
            start=ends.start,
            stop=ends.stop,
            gram=True,
            certify=certify,
            log_scale=ends.log_scale,
            bases=ends.bases,
        )
    if found is None or not found.resolved:
        found = project(
            sites,
            truncation,
            start=ends.start,
            stop=ends.stop,
            gram=False,
            certify=certify,
            log_scale=ends.log_scale,
            bases=ends.bases,
        )
    if found is None:
        raise NonFiniteError("cores: expected finite cores, got NaN or infinity in them or in their product")
    check_norm(found.report.norm, found.exponent, storage)
    cores, report = found.at_scale()
    if cores[0].dtype != storage:
        report = _with_storage(report, storage)
    return tuple(core.to(storage) for core in cores), report


def _with_storage(report: TruncationReport, storage: torch.dtype) -> TruncationReport:
    """Add what rounding the cores to a lower precision costs."""
    size = math.sqrt(max([1, *report.ranks_after])) * (len(report.ranks_after) + 1)
    return replace(report, error_bound=report.error_bound + 4 * size * torch.finfo(storage).eps * report.norm)


def scale_core(core: Tensor) -> tuple[Tensor, float]:
    """A core of a norm whose powers stay within range, and the exponent of 2 that it was divided by: exact.

    Raises:
        NonFiniteError: The core holds a NaN or an infinity.
    """
    if 1e-8 < float(torch.linalg.vector_norm(core.detach())) < 1e8:
        return core, 0.0
    return split_power(core)
