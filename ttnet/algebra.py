"""Algebra of trains, exact: sums add ranks, products multiply them. Nothing is rounded here."""

from functools import reduce
from numbers import Integral, Number

import numpy as np
import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.errors import DTypeError, ShapeError


def check_same_shape(a: CoresLike, b: CoresLike) -> None:
    """Refuse two trains of different shapes, or two TT-matrices.

    Raises:
        ShapeError: The shapes differ.
    """
    if modes_of(a) != modes_of(b):
        what = "a train of shape " if a[0].ndim == 3 else ""
        raise ShapeError(f"other: expected {what}{_sizes(a)}, got {_sizes(b)}")


def modes_of(cores: CoresLike) -> tuple[tuple[int, ...], ...]:
    """Mode sizes of each core: (n_k,) of a train, (m_k, n_k) of a TT-matrix."""
    return tuple(tuple(core.shape[1:-1]) for core in cores)


def _sizes(cores: CoresLike) -> str:
    sizes = tuple(zip(*modes_of(cores), strict=True))
    return f"rows {sizes[0]} and columns {sizes[1]}" if len(sizes) == 2 else str(sizes[0])


def broadcast(a: CoresLike, b: CoresLike) -> tuple[Cores, Cores]:
    """Bring two trains, or TT-matrices, to one shape as numpy does, without copies or higher ranks.

    Args:
        a: Core k of shape (r_k, ..., r_{k+1}), with one mode or two.
        b: Core k of shape (s_k, ..., s_{k+1}), with as many. Modes are matched from the last one; sizes of 1
            are repeated, and so are modes that are missing in front.

    Returns:
        Cores of both, of one shape.

    Raises:
        ShapeError: Sizes that differ and are not 1.
    """
    if modes_of(a) == modes_of(b):
        return tuple(a), tuple(b)
    count = max(len(a), len(b))
    long_a, long_b = (
        [cores[0].new_ones([1] * cores[0].ndim)] * (count - len(cores)) + list(cores) for cores in (a, b)
    )
    for x, y in zip(modes_of(long_a), modes_of(long_b), strict=True):
        if any(m != n and 1 not in (m, n) for m, n in zip(x, y, strict=True)):
            what = "a train of shape " if x[1:] == () else ""
            raise ShapeError(
                f"other: expected {what}{_sizes(a)}, got {_sizes(b)}; only sizes of 1 and missing first "
                f"modes broadcast"
            )
    return _expand(long_a, long_b), _expand(long_b, long_a)


def _expand(cores: CoresLike, like: CoresLike) -> Cores:
    sizes = [torch.broadcast_shapes(*modes) for modes in zip(modes_of(cores), modes_of(like), strict=True)]
    return tuple(core.expand(-1, *size, -1) for core, size in zip(cores, sizes, strict=True))


def check_number(value: object) -> complex | Tensor:
    """A Python number, or a tensor or an array of no dimension; a tensor keeps its graph.

    Raises:
        ShapeError: A tensor or an array that has dimensions.
        DTypeError: Anything else.
    """
    if isinstance(value, Number):
        return value.item() if isinstance(value, np.generic) else value  # pyright: ignore[reportReturnType]
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value.item()
    if isinstance(value, Tensor | np.ndarray):
        what = "a tensor" if isinstance(value, Tensor) else "an array"
        raise ShapeError(
            f"other: expected a number or a train, got {what} of shape {tuple(value.shape)}; make a train of "
            f"it with ttnet.tt_svd, or take train.full()"
        )
    raise DTypeError(f"other: expected a number or a train, got {type(value).__name__}")


def scale(cores: CoresLike, factor: complex | Tensor, *, at: int = 0) -> Cores:
    """Multiply a train by a number, which goes into core `at`."""
    return tuple(core * factor if k == at else core for k, core in enumerate(cores))


def constant_like(cores: CoresLike, number: complex | Tensor, dtype: torch.dtype) -> Cores:
    """The train, or TT-matrix, of the same modes with one value everywhere, of rank 1."""
    ones = [core.new_ones(1, *core.shape[1:-1], 1, dtype=dtype) for core in cores]
    return scale(ones, number)


def add(a: CoresLike, b: CoresLike) -> Cores:
    """Sum of two trains, or two TT-matrices, of one shape; the ranks add.

    Args:
        a: Cores of shape (r_k, ..., r_{k+1}).
        b: Cores of shape (s_k, ..., s_{k+1}).

    Returns:
        Cores of shape (r_k + s_k, ..., r_{k+1} + s_{k+1}), boundaries 1.

    Raises:
        ShapeError: The shapes differ.
    """
    check_same_shape(a, b)
    last = len(a) - 1
    return tuple(
        _direct_sum(x, y, first=k == 0, last=k == last) for k, (x, y) in enumerate(zip(a, b, strict=True))
    )


def _direct_sum(x: Tensor, y: Tensor, *, first: bool, last: bool) -> Tensor:
    if first and last:
        return x + y
    if first:
        return torch.cat([x, y], -1)
    if last:
        return torch.cat([x, y], 0)
    upper = torch.cat([x, x.new_zeros(*x.shape[:-1], y.shape[-1])], -1)
    lower = torch.cat([y.new_zeros(*y.shape[:-1], x.shape[-1]), y], -1)
    return torch.cat([upper, lower], 0)


def subtract(a: CoresLike, b: CoresLike) -> Cores:
    """Difference of two trains, or two TT-matrices, of one shape; the ranks add.

    Raises:
        ShapeError: The shapes differ.
    """
    return add(a, scale(b, -1, at=len(b) - 1))


def hadamard(a: CoresLike, b: CoresLike) -> Cores:
    """Entrywise product of two trains, or two TT-matrices, of one shape; the ranks multiply.

    Args:
        a: Cores of shape (r_k, ..., r_{k+1}).
        b: Cores of shape (s_k, ..., s_{k+1}).

    Returns:
        Cores of shape (r_k s_k, ..., r_{k+1} s_{k+1}).

    Raises:
        ShapeError: The shapes differ.
    """
    check_same_shape(a, b)
    pairs = zip(a, b, strict=True)
    return tuple(torch.einsum("a...b,c...d->ac...bd", x, y).flatten(-2).flatten(0, 1) for x, y in pairs)


def power(cores: CoresLike, exponent: int) -> Cores:
    """Entrywise power of a train or a TT-matrix; the ranks are raised to it, too.

    Args:
        cores: Core k of shape (r_k, ..., r_{k+1}).
        exponent: An integer of at least 0.

    Returns:
        Cores of shape (r_k^exponent, ..., r_{k+1}^exponent).

    Raises:
        DTypeError: Another exponent.
    """
    if isinstance(exponent, Tensor) and not exponent.ndim:
        exponent = exponent.item()  # pyright: ignore[reportAssignmentType]
    if isinstance(exponent, bool) or not isinstance(exponent, Integral) or exponent < 0:
        raise DTypeError(
            f"exponent: expected an integer of at least 0, got {exponent!r}; other powers have no exact "
            f"cores: use ttnet.apply_elementwise"
        )
    if not exponent:
        return constant_like(cores, 1, cores[0].dtype)
    return reduce(hadamard, [cores] * int(exponent))  # pyright: ignore[reportReturnType]


def real_part(cores: CoresLike) -> Cores:
    """The real part of a complex train or TT-matrix, exactly; twice the ranks.

    Args:
        cores: Core k of shape (r_k, ..., r_{k+1}), complex.

    Returns:
        Real cores of ranks 2 r_k, boundaries 1.
    """
    return _real_cores(cores, cores[-1].real, -cores[-1].imag)


def imaginary_part(cores: CoresLike) -> Cores:
    """The imaginary part of a complex train or TT-matrix, exactly; twice the ranks.

    Args:
        cores: Core k of shape (r_k, ..., r_{k+1}), complex.

    Returns:
        Real cores of ranks 2 r_k, boundaries 1.
    """
    return _real_cores(cores, cores[-1].imag, cores[-1].real)


def _real_cores(cores: CoresLike, upper: Tensor, lower: Tensor) -> Cores:
    """Cores that carry (real part, imaginary part), closed by the last core [upper; lower].

    First core [A, B], inner cores [[A, B], [-B, A]] of a complex core A + iB.
    """
    found = []
    for core in cores[:-1]:
        a, b = core.real, core.imag
        found.append(torch.cat([torch.cat([a, b], -1), torch.cat([-b, a], -1)], 0))
    if not found:
        return (upper.clone(),)
    found[0] = found[0][:1]
    return (*found, torch.cat([upper, lower], 0))
