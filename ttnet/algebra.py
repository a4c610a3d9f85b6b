"""Algebra of trains, exact: sums add ranks, products multiply them. Nothing is rounded here."""

from collections.abc import Sequence
from numbers import Number

import numpy as np
import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.cores import absorb_left, absorb_right, shape_of
from ttnet.errors import DTypeError, ShapeError


def check_same_shape(a: CoresLike, b: CoresLike) -> None:
    """Refuse two trains of different shapes.

    Raises:
        ShapeError: The shapes differ.
    """
    if shape_of(a) != shape_of(b):
        raise ShapeError(f"other: expected a train of shape {shape_of(a)}, got {shape_of(b)}")


def check_number(value: object) -> complex | Tensor:
    """A Python number, or a tensor of no dimension, which keeps its graph.

    Raises:
        ShapeError: A tensor that has dimensions.
        DTypeError: Anything else.
    """
    if isinstance(value, Number):
        return value.item() if isinstance(value, np.generic) else value  # pyright: ignore[reportReturnType]
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    error = ShapeError if isinstance(value, Tensor) else DTypeError
    raise error(f"other: expected a number or a train, got {what}")


def scale(cores: CoresLike, factor: complex | Tensor, *, at: int = 0) -> Cores:
    """Multiply a train by a number, which goes into core `at`."""
    return tuple(core * factor if k == at else core for k, core in enumerate(cores))


def add(a: CoresLike, b: CoresLike) -> Cores:
    """Sum of two trains of one shape; the ranks add.

    Args:
        a: Cores of shape (r_k, n_k, r_{k+1}).
        b: Cores of shape (s_k, n_k, s_{k+1}).

    Returns:
        Cores of shape (r_k + s_k, n_k, r_{k+1} + s_{k+1}), boundaries 1.

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
        return torch.cat([x, y], 2)
    if last:
        return torch.cat([x, y], 0)
    upper = torch.cat([x, x.new_zeros(x.shape[0], x.shape[1], y.shape[2])], 2)
    lower = torch.cat([y.new_zeros(y.shape[0], y.shape[1], x.shape[2]), y], 2)
    return torch.cat([upper, lower], 0)


def subtract(a: CoresLike, b: CoresLike) -> Cores:
    """Difference of two trains of one shape; the ranks add.

    Raises:
        ShapeError: The shapes differ.
    """
    return add(a, scale(b, -1, at=len(b) - 1))


def hadamard(a: CoresLike, b: CoresLike) -> Cores:
    """Entrywise product of two trains of one shape; the ranks multiply.

    Args:
        a: Cores of shape (r_k, n_k, r_{k+1}).
        b: Cores of shape (s_k, n_k, s_{k+1}).

    Returns:
        Cores of shape (r_k s_k, n_k, r_{k+1} s_{k+1}).

    Raises:
        ShapeError: The shapes differ.
    """
    check_same_shape(a, b)
    return tuple(
        torch.einsum("anb,cnd->acnbd", x, y).flatten(3, 4).flatten(0, 1) for x, y in zip(a, b, strict=True)
    )


def real_part(cores: CoresLike) -> Cores:
    """The real part of a complex train, exactly; twice the ranks.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), complex.

    Returns:
        Real cores of ranks 2 r_k, boundaries 1.
    """
    return _real_cores(cores, cores[-1].real, -cores[-1].imag)


def imaginary_part(cores: CoresLike) -> Cores:
    """The imaginary part of a complex train, exactly; twice the ranks.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), complex.

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
        found.append(torch.cat([torch.cat([a, b], 2), torch.cat([-b, a], 2)], 0))
    if not found:
        return (upper.clone(),)
    found[0] = found[0][:1]
    return (*found, torch.cat([upper, lower], 0))


Index = int | slice | Sequence[int] | Tensor
"""What one mode can be indexed with."""


def expand_key(key: object, ndim: int) -> list[Index]:
    """What stands in ``train[key]`` as one entry for each mode; an ellipsis fills up.

    Raises:
        ShapeError: More entries than modes, or two ellipses.
    """
    entries = list(key) if isinstance(key, tuple) else [key]
    given = sum(entry is not Ellipsis for entry in entries)
    dots = len(entries) - given
    if given > ndim or dots > 1:
        raise ShapeError(f"index: expected at most {ndim} indices and one ellipsis, got {key!r}")
    at = next((k for k, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    fill: list[object] = [slice(None)] * (ndim - given)
    return entries[:at] + fill + entries[at + dots :]  # pyright: ignore[reportReturnType]


def index(cores: CoresLike, key: Sequence[Index]) -> Cores | Tensor:
    """Index each mode on its own, as `numpy.ix_` does; an integer removes its mode.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        key: One entry for each mode: an integer, a slice, a list of integers or a boolean mask.

    Returns:
        The remaining cores, or a scalar tensor where every mode has an integer.

    Raises:
        ShapeError: An index is out of range, or of a kind that a mode cannot have.
    """
    kept: list[Tensor] = []
    carry: Tensor | None = None
    for k, (core, entry) in enumerate(zip(cores, key, strict=True)):
        picked = _pick(core, entry, k)
        if picked.ndim == 2:
            carry = picked if carry is None else carry @ picked
        else:
            kept.append(picked if carry is None else absorb_left(carry, picked))
            carry = None
    if carry is not None:
        if not kept:
            return carry.reshape(())
        kept[-1] = absorb_right(kept[-1], carry)
    return tuple(kept)


def _pick(core: Tensor, entry: Index, k: int) -> Tensor:
    size = core.shape[1]
    if isinstance(entry, slice) and entry == slice(None):
        return core
    try:
        # The slice of a range, because a slice of a tensor cannot run backwards.
        chosen = torch.as_tensor(list(range(size))[entry] if isinstance(entry, slice) else entry)
    except (TypeError, ValueError, RuntimeError):
        chosen = torch.empty(0)
    if chosen.dtype == torch.bool and chosen.ndim:
        if chosen.shape != (size,):
            raise ShapeError(
                f"index: expected a mask of shape ({size},) for mode {k}, got {tuple(chosen.shape)}"
            )
        chosen = chosen.nonzero().flatten()
    if chosen.dtype not in _INTEGERS or chosen.ndim > 1 or not chosen.numel():
        raise ShapeError(
            f"index: expected an integer, a slice, a list or a mask for mode {k}, not empty, got {entry!r}"
        )
    chosen = chosen.long()
    if int(chosen.min()) < -size or int(chosen.max()) >= size:
        raise ShapeError(f"index: expected indices from {-size} to {size - 1} for mode {k}, got {entry!r}")
    return core[:, int(chosen)] if chosen.ndim == 0 else core.index_select(1, chosen.to(core.device) % size)


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
