"""Sums and entrywise products that are rounded without being formed.

The exact sum has the added ranks and a block-diagonal core, the exact product the multiplied ranks. A sweep
needs their action on a few vectors only, see `ttnet.implicit`.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.algebra import add, check_same_shape, hadamard, scale
from ttnet.cores import check, shape_of
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.implicit import ProductSite, SumSite
from ttnet.methods import Ends, check_method, choose, dtype_for, round_sites, scale_core
from ttnet.rounding import check_caps, truncate
from ttnet.scaling import exponential
from ttnet.transforms import is_batched, needs_gradient
from ttnet.truncation import Truncation, TruncationReport


def truncate_sum(
    trains: Sequence[CoresLike],
    truncation: Truncation,
    *,
    coefficients: Sequence[complex | Tensor] | None = None,
    method: str = "auto",
    certify: bool = True,
) -> tuple[Cores, TruncationReport]:
    """Round a linear combination of trains; its block-diagonal cores are never formed.

    Args:
        trains: One tuple of cores for each term, core k of shape (r_k, n_k, r_{k+1}), ranks of its own.
        truncation: Which singular values of the sum are kept.
        coefficients: One number for each term, by default 1.
        method: See `ttnet.rounding.truncate`; "svd" forms the sum, and is taken where a gradient is needed.
        certify: Whether the bound counts the roundoff of terms that cancel.

    Returns:
        Cores in the canonical gauge with center 0 and the report, whose `ranks_before` are the added ranks.
        The Frobenius error is at most `report.error_bound`.

    Raises:
        ShapeError: No train, trains of different shapes, or another number of coefficients than of trains.
        DTypeError: Trains of different dtypes, or complex coefficients of real trains.
        DeviceError: Trains on different devices.
        ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.

    Examples:
        >>> import ttnet
        >>> train = ttnet.random_train((4, 5, 6), rank=3)
        >>> cores, report = truncate_sum([train.cores] * 5, Truncation(rtol=1e-5))
        >>> report.ranks_before, report.ranks_after
        ((15, 15), (3, 3))
    """
    trains = [check(train) for train in trains]
    if not trains:
        raise ShapeError("trains: expected at least one train, got none")
    for train in trains[1:]:
        _check_alike(trains[0], train)
    factors = _coefficients(coefficients, trains)
    tensors = [*factors, *(core for train in trains for core in train)]
    plain = any(map(is_batched, tensors)) or any(map(needs_gradient, tensors))
    check_method(method, truncation, plain=plain)
    check_caps(truncation, shape_of(trains[0]))
    first = trains[0][0]
    method = "svd" if plain else choose(method, truncation, first.dtype, max(_sizes(trains)))
    if method == "svd":
        terms = [scale(train, factor.to(first.dtype)) for train, factor in zip(trains, factors, strict=True)]
        return truncate(reduce(add, terms), truncation, certify=certify, method="svd")
    with torch.no_grad():
        dtype = dtype_for(method, first)
        scaled = [[scale_core(core.to(dtype)) for core in train] for train in trains]
        sites = [SumSite([train[k][0] for train in scaled]) for k in range(len(trains[0]))]
        units = [scale_core(factor) for factor in factors]
        logs = [
            log + math.fsum(step for _, step in train) for (_, log), train in zip(units, scaled, strict=True)
        ]
        largest = max((log for (unit, _), log in zip(units, logs, strict=True) if unit != 0), default=0.0)
        weights = [unit * exponential(log - largest) for (unit, _), log in zip(units, logs, strict=True)]
        start = torch.stack(weights).to(dtype).reshape(1, -1)
        ends = Ends(start=start, stop=start.new_ones(len(trains), 1), log_scale=largest)
        return round_sites(sites, truncation, ends, method=method, storage=first.dtype, certify=certify)


def truncate_product(
    a: CoresLike, b: CoresLike, truncation: Truncation, *, method: str = "auto", certify: bool = True
) -> tuple[Cores, TruncationReport]:
    """Round the entrywise product of two trains; its cores, of the multiplied ranks, are never formed.

    Args:
        a: Cores of shape (r_k, n_k, r_{k+1}).
        b: Cores of shape (s_k, n_k, s_{k+1}).
        truncation: Which singular values of the product are kept.
        method: See `ttnet.rounding.truncate`. The interfaces (r s, r s) that "gram" and "randomized" measure
            the error with cost n r^2 s^2 (r + s) each; "svd" forms the product, and is taken where a gradient
            is needed.
        certify: Whether the bound counts the roundoff of terms that cancel.

    Returns:
        Cores in the canonical gauge with center 0 and the report, whose `ranks_before` are the multiplied
        ranks. The Frobenius error is at most `report.error_bound`.

    Raises:
        ShapeError: The shapes differ.
        DTypeError: The dtypes differ.
        DeviceError: The devices differ.
        ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.

    Examples:
        >>> import ttnet
        >>> train = ttnet.random_train((4, 5, 6), rank=2)
        >>> _, report = truncate_product(train.cores, train.cores, Truncation(rtol=1e-5))
        >>> report.ranks_before, report.ranks_after
        ((4, 4), (3, 3))
    """
    a, b = check(a), check(b)
    _check_alike(a, b)
    plain = any(map(is_batched, (*a, *b))) or any(map(needs_gradient, (*a, *b)))
    check_method(method, truncation, plain=plain)
    check_caps(truncation, shape_of(a))
    largest = max(x.numel() * y.shape[0] * y.shape[2] for x, y in zip(a, b, strict=True))
    method = "svd" if plain else choose(method, truncation, a[0].dtype, largest)
    if method == "svd":
        return truncate(hadamard(a, b), truncation, certify=certify, method="svd")
    with torch.no_grad():
        dtype = dtype_for(method, a[0])
        pairs = [(scale_core(x.to(dtype)), scale_core(y.to(dtype))) for x, y in zip(a, b, strict=True)]
        sites = [ProductSite(x, y) for (x, _), (y, _) in pairs]
        one = pairs[0][0][0].new_ones(1, 1)
        ends = Ends(start=one, stop=one, log_scale=math.fsum(p + q for (_, p), (_, q) in pairs))
        return round_sites(sites, truncation, ends, method=method, storage=a[0].dtype, certify=certify)


def _check_alike(a: Cores, b: Cores) -> None:
    check_same_shape(a, b)
    if a[0].dtype != b[0].dtype:
        raise DTypeError(
            f"other: expected {a[0].dtype} in all trains, got {b[0].dtype}; convert with .to(...)"
        )
    if a[0].device != b[0].device:
        raise DeviceError(f"other: expected all trains on {a[0].device}, got one on {b[0].device}")


def _coefficients(coefficients: Sequence[complex | Tensor] | None, trains: Sequence[Cores]) -> list[Tensor]:
    """The coefficients in double precision."""
    like = trains[0][0]
    values = [1.0] * len(trains) if coefficients is None else list(coefficients)
    if len(values) != len(trains):
        raise ShapeError(f"coefficients: expected one for each of {len(trains)} trains, got {len(values)}")
    dtype = torch.complex128 if like.is_complex() else torch.float64
    found = []
    for value in values:
        number = value if isinstance(value, Tensor) else _number(value)
        if number.ndim:
            raise ShapeError(f"coefficients: expected numbers, got a tensor of shape {tuple(number.shape)}")
        if number.is_complex() and not like.is_complex():
            raise DTypeError(
                f"coefficients: expected real numbers for trains of {like.dtype}, got {value!r}; convert the "
                f"trains with .to(torch.complex128)"
            )
        found.append(number.to(like.device, dtype))
    return found


def _number(value: complex) -> Tensor:
    return torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)


def _sizes(trains: Sequence[Cores]) -> list[int]:
    """Entries of the cores that the sum would have."""
    sizes = []
    for cores in zip(*trains, strict=True):
        left, right = sum(core.shape[0] for core in cores), sum(core.shape[2] for core in cores)
        sizes.append(left * cores[0].shape[1] * right)
    return sizes
