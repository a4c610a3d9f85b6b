"""Indices of trains and TT-matrices: integers, slices, lists, masks, new modes and an ellipsis."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.cores import absorb_left, absorb_right
from ttnet.errors import ShapeError

Index = int | slice | Sequence[int] | Tensor | None
"""What one mode can be indexed with; None stands for a new mode of size 1."""


def expand_key(key: object, ndim: int) -> list[Index]:
    """What stands in ``train[key]`` as one entry for each mode, and None for new ones; an ellipsis fills up.

    Raises:
        ShapeError: More entries than modes, or two ellipses.
    """
    entries = list(key) if isinstance(key, tuple) else [key]
    dots = sum(entry is Ellipsis for entry in entries)
    given = sum(entry is not None for entry in entries) - dots
    if given > ndim or dots > 1:
        raise ShapeError(f"index: expected at most {ndim} indices and one ellipsis, got {key!r}")
    at = next((k for k, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    fill: list[object] = [slice(None)] * (ndim - given)
    return entries[:at] + fill + entries[at + dots :]  # pyright: ignore[reportReturnType]


def index(cores: CoresLike, key: Sequence[Index]) -> Cores | Tensor:
    """Index each mode on its own, as `numpy.ix_` does; an integer removes its mode.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), or (r_k, m_k, n_k, r_{k+1}), see `index_matrix`.
        key: One entry for each mode: an integer, a slice, a list of integers or a boolean mask. None, between
            them, is a new mode of size 1.

    Returns:
        The remaining cores, or a scalar tensor where every mode has an integer.

    Raises:
        ShapeError: An index is out of range, or of a kind that a mode cannot have, or picks nothing.
    """
    if cores[0].ndim == 4:
        return index_matrix(cores, key)
    kept: list[Tensor] = []
    carry: Tensor | None = None
    rank, rest = 1, enumerate(cores)
    for entry in key:
        if entry is None:
            carry = torch.eye(rank, dtype=cores[0].dtype, device=cores[0].device) if carry is None else carry
            kept.append(carry.unsqueeze(1))
            carry = None
            continue
        k, core = next(rest)
        rank = core.shape[2]
        picked = pick(core, entry, k)
        if picked.ndim == 2:
            carry = picked if carry is None else carry @ picked
        else:
            kept.append(picked if carry is None else absorb_left(carry, picked))
            carry = None
    if carry is not None:
        if not kept:
            # Of a train of one core it is a view.
            return carry.reshape(()).clone() if len(cores) == 1 else carry.reshape(())
        kept[-1] = absorb_right(kept[-1], carry)
    return tuple(kept)


def index_matrix(cores: CoresLike, key: Sequence[Index]) -> Cores | Tensor:
    """Index each row mode and each column mode on its own.

    Args:
        cores: Core k of shape (r_k, m_k, n_k, r_{k+1}).
        key: One entry for each mode (m_0, ..., m_{d-1}, n_0, ..., n_{d-1}): an integer, a slice, a list of
            integers or a boolean mask.

    Returns:
        A scalar tensor where every mode has an integer; cores (r, n, r') of a train where every row mode has
        one, or every column mode; else cores (r, m, n, r') of a TT-matrix. There a pair of integers removes
        its core, and an integer whose partner is none leaves a mode of size 1.

    Raises:
        ShapeError: An index is out of range, or of a kind that a mode cannot have, or picks nothing; a None.
    """
    if any(entry is None for entry in key):
        raise ShapeError("index: expected no None for a TT-matrix, whose modes come in pairs; use as_train()")
    count = len(cores)
    rows, columns = key[:count], key[count:]
    fixed = [[_is_integer(entry) for entry in entries] for entries in (rows, columns)]
    if all(fixed[0]):
        return index(
            [pick(core, entry, k) for k, (core, entry) in enumerate(zip(cores, rows, strict=True))], columns
        )
    chosen = []
    for k, (core, row, column) in enumerate(zip(cores, rows, columns, strict=True)):
        core = pick(core, column, count + k, 2)
        core = core.unsqueeze(2) if core.ndim == 3 else core
        core = pick(core, row, k)
        chosen.append(core.unsqueeze(1) if core.ndim == 3 else core)
    if all(fixed[1]):
        picked = [core.squeeze(2) for core in chosen]
        return index(picked, [0 if gone else slice(None) for gone in fixed[0]])
    sizes = [tuple(core.shape[1:3]) for core in chosen]
    gone = [row and column for row, column in zip(*fixed, strict=True)]
    kept = index([core.flatten(1, 2) for core in chosen], [0 if g else slice(None) for g in gone])
    left = [size for size, g in zip(sizes, gone, strict=True) if not g]
    return tuple(core.unflatten(1, size) for core, size in zip(kept, left, strict=True))


def _is_integer(entry: Index) -> bool:
    if isinstance(entry, slice | list | tuple) or entry is None:
        return False
    return not isinstance(entry, Tensor | np.ndarray) or entry.ndim == 0


def pick(core: Tensor, entry: Index, k: int, dim: int = 1) -> Tensor:
    """Index one mode of core `k`; an integer removes it.

    Args:
        core: Shape (left_rank, ..., right_rank).
        entry: An integer, a slice, a list of integers or a boolean mask.
        k: Number of the mode, for messages.
        dim: Dimension of `core` that is indexed.

    Returns:
        The core with the chosen entries, or without the mode.

    Raises:
        ShapeError: An index is out of range, or of a kind that a mode cannot have, or picks nothing.
    """
    size = core.shape[dim]
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
    if chosen.ndim == 0:
        return core.select(dim, int(chosen))
    return core.index_select(dim, chosen.to(core.device) % size)


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
