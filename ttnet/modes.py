"""Modes of trains, exactly: products side by side and mode by mode, concatenation, sums and means."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.algebra import add, index
from ttnet.cores import shape_of
from ttnet.errors import ShapeError
from ttnet.gauge import check_center


def outer(a: CoresLike, b: CoresLike) -> Cores:
    """Tensor product: the modes of `b` follow those of `a`, no rank changes.

    Args:
        a: Cores of a tensor (n_0, ..., n_{d-1}).
        b: Cores of a tensor (m_0, ..., m_{e-1}), of the same dtype.

    Returns:
        Cores of the tensor a[i] b[j] of shape (n_0, ..., n_{d-1}, m_0, ..., m_{e-1}).
    """
    return (*a, *b)


def kron(a: CoresLike, b: CoresLike) -> Cores:
    """Kronecker product mode by mode, as `numpy.kron`; the ranks multiply.

    Args:
        a: Core k of shape (r_k, n_k, r_{k+1}).
        b: Core k of shape (s_k, m_k, s_{k+1}), as many of them.

    Returns:
        Core k of shape (r_k s_k, n_k m_k, r_{k+1} s_{k+1}).

    Raises:
        ShapeError: Different numbers of modes.
    """
    if len(a) != len(b):
        raise ShapeError(f"other: expected a train of {len(a)} modes, got {len(b)}")
    return tuple(torch.kron(x.contiguous(), y.contiguous()) for x, y in zip(a, b, strict=True))


def concatenate(trains: Sequence[CoresLike], mode: int = 0) -> Cores:
    """Join trains along one mode, as `torch.cat`; the ranks add.

    Args:
        trains: Cores of tensors whose shapes differ in mode `mode` at most, of one dtype.
        mode: The mode that grows; negative ones count from the end.

    Returns:
        Cores of the joined tensor.

    Raises:
        ShapeError: No train, no such mode, or shapes that differ elsewhere.
    """
    if not len(trains):
        raise ShapeError("trains: expected at least one train, got none")
    shapes = [shape_of(cores) for cores in trains]
    mode = check_center(mode, len(shapes[0]), name="mode")
    rest = [shape[:mode] + shape[mode + 1 :] for shape in shapes]
    for shape, others in zip(shapes, rest, strict=True):
        if others != rest[0]:
            raise ShapeError(f"trains: expected the shape {shapes[0]} but for mode {mode}, got {shape}")
    total = sum(shape[mode] for shape in shapes)
    padded = []
    before = 0
    for cores, shape in zip(trains, shapes, strict=True):
        after = total - before - shape[mode]
        wide = torch.nn.functional.pad(cores[mode], (0, 0, before, after))
        padded.append(tuple(wide if k == mode else core for k, core in enumerate(cores)))
        before += shape[mode]
    return reduce(add, padded)


def sum_modes(cores: CoresLike, modes: int | Sequence[int] | None = None) -> Cores | Tensor:
    """Sum over modes, which disappear.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        modes: Modes that are summed over; None for all. Negative ones count from the end.

    Returns:
        Cores of the remaining modes, or a scalar tensor where none remains.

    Raises:
        ShapeError: There is no such mode.
    """
    return _reduce(cores, modes, lambda core: core.sum(1, keepdim=True))


def mean_modes(cores: CoresLike, modes: int | Sequence[int] | None = None) -> Cores | Tensor:
    """Mean over modes, which disappear; free of the overflow that a sum over all entries may have.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        modes: Modes that are averaged over; None for all. Negative ones count from the end.

    Returns:
        Cores of the remaining modes, or a scalar tensor where none remains.

    Raises:
        ShapeError: There is no such mode.
    """
    return _reduce(cores, modes, lambda core: core.mean(1, keepdim=True))


def _reduce(
    cores: CoresLike, modes: int | Sequence[int] | None, fold: Callable[[Tensor], Tensor]
) -> Cores | Tensor:
    chosen = range(len(cores)) if modes is None else (modes,) if isinstance(modes, int) else modes
    gone = {check_center(mode, len(cores), name="modes") for mode in chosen}
    reduced = [fold(core) if k in gone else core for k, core in enumerate(cores)]
    return index(reduced, [0 if k in gone else slice(None) for k in range(len(cores))])
