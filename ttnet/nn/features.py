"""Features as modes: a number as a product of balanced factors, and cores of equal norm."""

import math
from collections.abc import Sequence
from functools import cache
from numbers import Integral

from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.errors import ShapeError
from ttnet.linalg import frobenius_norm

Features = int | Sequence[int]
"""A number of features, or the modes that it is the product of."""

DEFAULT_CORES = 3
"""Number of cores where the user gives neither modes nor a number."""


@cache
def balanced_factors(number: int, count: int) -> tuple[int, ...]:
    """The factors of a number whose sum is smallest, which are the most equal ones.

    Args:
        number: At least 1.
        count: How many factors; 1 is a factor too.

    Returns:
        `count` factors in ascending order.

    Examples:
        >>> balanced_factors(768, 3), balanced_factors(7, 2)
        ((8, 8, 12), (1, 7))
    """
    if count == 1:
        return (number,)
    # The smallest of the factors is at most the root; larger ones would only reorder the same product.
    largest = math.floor(number ** (1 / count) + 1e-9)
    splits = [
        (factor, *balanced_factors(number // factor, count - 1))
        for factor in range(1, largest + 1)
        if number % factor == 0
    ]
    return tuple(sorted(min(splits, key=lambda factors: (sum(factors), factors))))


def covering_factors(number: int, count: int) -> tuple[int, ...]:
    """Nearly equal factors whose product is at least a number, and not much more.

    Args:
        number: At least 1.
        count: How many factors.

    Returns:
        `count` factors in ascending order.

    Examples:
        >>> covering_factors(30522, 3)
        (31, 31, 32)
    """
    base = max(1, math.floor(number ** (1 / count) + 1e-9))
    factors = [base] * count
    for k in reversed(range(count)):
        if math.prod(factors) >= number:
            break
        factors[k] += 1
    return tuple(factors)


def read_modes(features: Features, *, name: str) -> tuple[int, ...] | None:
    """The modes that a user gave, None for a mere number.

    Args:
        features: What the user gave.
        name: Name of the argument, for messages.

    Raises:
        ShapeError: No mode, or a size that is not an integer of at least 1.
    """
    given = (features,) if isinstance(features, Integral) else features
    sizes = tuple(given) if isinstance(given, Sequence) else ()
    if not sizes or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in sizes):
        raise ShapeError(
            f"{name}: expected an integer of at least 1, or a sequence of modes such as (4, 8, 8), got "
            f"{features!r}"
        )
    return None if isinstance(features, Integral) else tuple(int(n) for n in sizes)


def paired_modes(
    rows: Features, columns: Features, num_cores: int | None, *, names: tuple[str, str], padded: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row and column modes of a matrix, as many of the one as of the other.

    Small row modes are paired with large column modes, and the largest pairs go to the ends of the train,
    where cores have one rank only.

    Args:
        rows: Number of rows or its modes.
        columns: Number of columns or its modes.
        num_cores: How many cores; by default as many as there are modes, or 3.
        names: Names of the two arguments, for messages.
        padded: Whether the product of the row modes may be larger than the number of rows.

    Returns:
        Row modes and column modes.

    Raises:
        ShapeError: A size below 1, or numbers of modes that differ.
    """
    given = [read_modes(f, name=name) for f, name in zip((rows, columns), names, strict=True)]
    counts = [len(modes) for modes in given if modes is not None]
    if num_cores is not None:
        if isinstance(num_cores, bool) or not isinstance(num_cores, Integral) or num_cores < 1:
            raise ShapeError(f"num_cores: expected an integer of at least 1, got {num_cores!r}")
        counts.append(int(num_cores))
    if len(set(counts)) > 1:
        raise ShapeError(
            f"{names[0]}, {names[1]}: expected as many modes of the one as of the other (and num_cores), got "
            f"{rows!r} and {columns!r} with num_cores={num_cores}; pad the shorter one with modes of 1"
        )
    count = counts[0] if counts else DEFAULT_CORES
    factors = covering_factors if padded else balanced_factors
    if given[0] is not None and given[1] is not None:
        return given[0], given[1]
    if given[0] is not None:
        return given[0], _opposite(balanced_factors(_number(columns), count), given[0])
    if given[1] is not None:
        return _opposite(factors(_number(rows), count), given[1]), given[1]
    pairs = zip(
        factors(_number(rows), count), reversed(balanced_factors(_number(columns), count)), strict=True
    )
    left: list[tuple[int, int]] = []
    right: list[tuple[int, int]] = []
    for k, pair in enumerate(sorted(pairs, key=math.prod, reverse=True)):
        (right if k % 2 else left).append(pair)
    ordered = [*left, *reversed(right)]
    return tuple(m for m, _ in ordered), tuple(n for _, n in ordered)


def _number(features: Features) -> int:
    return math.prod(features) if isinstance(features, Sequence) else int(features)


def _opposite(factors: tuple[int, ...], partner: tuple[int, ...]) -> tuple[int, ...]:
    """Factors in the order that puts the largest beside the smallest partner."""
    order = sorted(range(len(partner)), key=lambda k: partner[k], reverse=True)
    placed = dict(zip(order, sorted(factors), strict=True))
    return tuple(placed[k] for k in range(len(partner)))


def share_norm(cores: CoresLike) -> Cores:
    """The same train with cores of one Frobenius norm, so that one learning rate suits all of them.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).

    Returns:
        The same cores, each times a number; unchanged where one is zero.
    """
    norms = [float(frobenius_norm(core.detach())) for core in cores]
    if min(norms) == 0.0 or not all(math.isfinite(norm) for norm in norms):
        return tuple(cores)
    mean = math.exp(math.fsum(math.log(norm) for norm in norms) / len(norms))
    return tuple(scaled(core, mean / norm) for core, norm in zip(cores, norms, strict=True))


def scaled(core: Tensor, factor: float) -> Tensor:
    """A core times a number, rounded once."""
    return (core.double() * factor).to(core.dtype) if core.is_floating_point() else core * factor
