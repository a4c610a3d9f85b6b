"""Modes of trains and TT-matrices, exactly: products side by side and by modes, joining, padding, sums.

Where a mode has a number, those of a TT-matrix are counted in the order of the dense tensor, rows before
columns: (m_0, ..., m_{d-1}, n_0, ..., n_{d-1}).
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional

from ttnet._typing import Cores, CoresLike
from ttnet.algebra import add, check_same_shape, modes_of, scale
from ttnet.cores import absorb_right, shape_of
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.gauge import check_center
from ttnet.indexing import index


def outer(a: CoresLike, b: CoresLike) -> Cores:
    """Tensor product: the modes of `b` follow those of `a`, no rank changes.

    Args:
        a: Cores of a tensor (n_0, ..., n_{d-1}), or of a TT-matrix.
        b: Cores of a tensor (m_0, ..., m_{e-1}), or of a TT-matrix, of the same dtype.

    Returns:
        Cores of the tensor a[i] b[j] of shape (n_0, ..., n_{d-1}, m_0, ..., m_{e-1}), or of the Kronecker
        product of the matrices.
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
    """Join trains, or TT-matrices, along one mode, as `torch.cat`; the ranks add.

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
    shapes = [dense_shape(cores) for cores in trains]
    mode = check_center(mode, len(shapes[0]), name="mode")
    rest = [shape[:mode] + shape[mode + 1 :] for shape in shapes]
    for shape, others in zip(shapes, rest, strict=True):
        if others != rest[0]:
            raise ShapeError(f"trains: expected the shape {shapes[0]} but for mode {mode}, got {shape}")
    total = sum(shape[mode] for shape in shapes)
    padded = []
    before = 0
    for cores, shape in zip(trains, shapes, strict=True):
        widths = [(0, 0)] * len(shape)
        widths[mode] = (before, total - before - shape[mode])
        padded.append(pad(cores, widths))
        before += shape[mode]
    return reduce(add, padded)


def dense_shape(cores: CoresLike) -> tuple[int, ...]:
    """Sizes of all modes, (n_0, ...) of a train or (m_0, ..., n_0, ...) of a TT-matrix."""
    return tuple(n for sizes in zip(*modes_of(cores), strict=True) for n in sizes)


def stack(trains: Sequence[CoresLike], mode: int = 0) -> Cores:
    """Join trains along a new mode, as `torch.stack`; the ranks add.

    Args:
        trains: Cores of tensors of one shape and one dtype.
        mode: Where the new mode is in the result; negative ones count from its end.

    Returns:
        Cores of the joined tensor.

    Raises:
        ShapeError: No train, no such mode, or shapes that differ.
    """
    if not len(trains):
        raise ShapeError("trains: expected at least one train, got none")
    mode = check_center(mode, len(trains[0]) + 1, name="mode")
    for cores in trains:
        check_same_shape(trains[0], cores)
    whole = slice(None)
    key = [*[whole] * mode, None, *[whole] * (len(trains[0]) - mode)]
    return concatenate([_cores_of(index(cores, key)) for cores in trains], mode)


def pad(cores: CoresLike, widths: Sequence[Sequence[int]], value: complex = 0.0) -> Cores:
    """Put a constant around a tensor, as `numpy.pad`.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), or (r_k, m_k, n_k, r_{k+1}).
        widths: For each mode how many entries are put before and after it; rows before columns.
        value: The constant; anything but 0 adds 2 to the ranks.

    Returns:
        Cores of the padded tensor, modes of size before + n + after.

    Raises:
        ShapeError: Not a pair of integers of at least 0 for each mode.
    """
    pairs = _check_widths(widths, len(dense_shape(cores)))
    padded, outside = [], []
    for k, core in enumerate(cores):
        mine = pairs[k :: len(cores)]
        if any(before or after for before, after in mine):
            core = functional.pad(core, [0, 0, *(n for pair in reversed(mine) for n in pair)])
        padded.append(core)
        # Two states: every mode was inside so far, or one was not and the others are free.
        states = core.new_zeros(2, *core.shape[1:-1], 2)
        states[..., 1] = 1
        inside = tuple(slice(b, n - a) for (b, a), n in zip(mine, core.shape[1:-1], strict=True))
        states[(0, *inside, 0)], states[(0, *inside, 1)] = 1, 0
        outside.append(states)
    if value == 0:
        return tuple(padded)
    outside[0] = outside[0][:1]
    outside[-1] = outside[-1][..., 1:]  # also where it is the first
    return add(padded, scale(outside, value))


def _check_widths(widths: Sequence[Sequence[int]], count: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, ...]] = [tuple(pair) if isinstance(pair, Sequence) else () for pair in widths]
    fits = all(len(p) == 2 and all(isinstance(n, Integral) and n >= 0 for n in p) for p in pairs)
    if len(pairs) != count or not fits:
        raise ShapeError(f"widths: expected {count} pairs (before, after) of at least 0, got {widths!r}")
    return [(int(p[0]), int(p[1])) for p in pairs]


def mode_product(cores: CoresLike, matrices: Tensor | Sequence[Tensor], modes: int | Sequence[int]) -> Cores:
    """Multiply modes by matrices: ``sum_i matrix[j, i] x[..., i, ...]``; no rank changes.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        matrices: One matrix (m, n_k), or one for each of `modes`; dtypes are promoted.
        modes: One mode, or several; negative ones count from the end. A mode that is named twice is
            multiplied twice.

    Returns:
        Cores whose modes have the sizes m.

    Raises:
        ShapeError: Different numbers of matrices and modes, no such mode, or a matrix that does not fit it.
        DTypeError: A matrix of an integer dtype.
        DeviceError: A matrix on another device.
    """
    several = [matrices] if isinstance(matrices, Tensor) else list(matrices)
    chosen = [modes] if isinstance(modes, int) else list(modes)
    if len(several) != len(chosen):
        raise ShapeError(f"matrices: expected one for each of the modes {chosen}, got {len(several)}")
    dtype = reduce(torch.promote_types, [matrix.dtype for matrix in several], cores[0].dtype)
    result = [core.to(dtype) for core in cores]
    for matrix, mode in zip(several, chosen, strict=True):
        k = check_center(mode, len(result), name="modes")
        if matrix.ndim != 2 or matrix.shape[1] != result[k].shape[1]:
            raise ShapeError(
                f"matrices: expected (m, {result[k].shape[1]}) for mode {k}, got {tuple(matrix.shape)}"
            )
        if matrix.device != result[k].device:
            raise DeviceError(f"matrices: expected {result[k].device}, got {matrix.device}; use .to(...)")
        if not (matrix.is_floating_point() or matrix.is_complex()):
            raise DTypeError(f"matrices: expected a float or complex dtype, got {matrix.dtype}; use .to(...)")
        result[k] = torch.matmul(matrix.to(dtype), result[k])
    return tuple(result)


def partial_dot(bra: CoresLike, ket: CoresLike, modes: int | Sequence[int]) -> Cores | Tensor:
    """Contract all modes of one train, conjugated, with some modes of another.

    Args:
        bra: Cores of a tensor of e modes, conjugated here.
        ket: Cores of a tensor of at least as many modes.
        modes: For each mode of `bra` the mode of `ket` that it is contracted with, in ascending order;
            negative ones count from the end.

    Returns:
        Cores of the modes of `ket` that remain, or a scalar tensor where none does. A bond has the product of
        the ranks of both, or the rank of `ket` where all modes of `bra` lie on one side of it.

    Raises:
        ShapeError: Not e ascending modes of `ket`, or modes of other sizes.
    """
    chosen = [check_center(m, len(ket), name="modes") for m in ([modes] if isinstance(modes, int) else modes)]
    if len(chosen) != len(bra) or any(a >= b for a, b in pairwise(chosen)):
        raise ShapeError(
            f"modes: expected {len(bra)} modes in ascending order, got {modes}; use permute first"
        )
    sizes = tuple(ket[k].shape[1] for k in chosen)
    if sizes != shape_of(bra):
        raise ShapeError(f"other: expected sizes {shape_of(bra)} of the modes {chosen}, got {sizes}")
    # (bond of the result, rank of the bra, rank of the ket)
    environment = ket[0].new_ones(1, 1, 1)
    kept: list[Tensor] = []
    rest = iter(bra)
    for k, core in enumerate(ket):
        if k in chosen:
            half = torch.tensordot(environment, core, 1)  # (bond, bra, n, ket')
            environment = torch.einsum("bpns,pnq->bqs", half, next(rest).conj())
            continue
        half = torch.tensordot(environment, core, 1)  # (bond, bra, n, ket')
        kept.append(half.transpose(1, 2).flatten(2))
        rank = half.shape[1] * half.shape[3]
        identity = torch.eye(rank, dtype=core.dtype, device=core.device)
        environment = identity.unflatten(1, (half.shape[1], half.shape[3]))
    if not kept:
        return environment.reshape(())
    kept[-1] = absorb_right(kept[-1], environment.flatten(1))
    return tuple(kept)


def _cores_of(picked: Cores | Tensor) -> Cores:
    # An index that keeps a mode keeps cores.
    return (picked,) if isinstance(picked, Tensor) else picked


def sum_modes(cores: CoresLike, modes: int | Sequence[int] | None = None) -> Cores | Tensor:
    """Sum over modes, which disappear.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), or (r_k, m_k, n_k, r_{k+1}).
        modes: Modes that are summed over; None for all. Negative ones count from the end.

    Returns:
        Cores of the remaining modes, or a scalar tensor where none remains; of a TT-matrix what
        `ttnet.indexing.index_matrix` leaves.

    Raises:
        ShapeError: There is no such mode, or one is named twice.
    """
    return _reduce(cores, modes, torch.sum)


def mean_modes(cores: CoresLike, modes: int | Sequence[int] | None = None) -> Cores | Tensor:
    """Mean over modes, which disappear; free of the overflow that a sum over all entries may have.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), or (r_k, m_k, n_k, r_{k+1}).
        modes: Modes that are averaged over; None for all. Negative ones count from the end.

    Returns:
        Cores of the remaining modes, or a scalar tensor where none remains, as of `sum_modes`.

    Raises:
        ShapeError: There is no such mode, or one is named twice.
    """
    return _reduce(cores, modes, torch.mean)


def _reduce(
    cores: CoresLike, modes: int | Sequence[int] | None, fold: Callable[..., Tensor]
) -> Cores | Tensor:
    count = len(dense_shape(cores))
    chosen = range(count) if modes is None else (modes,) if isinstance(modes, int) else modes
    chosen = [check_center(mode, count, name="modes") for mode in chosen]
    gone = set(chosen)
    if len(gone) < len(chosen):
        raise ShapeError(f"modes: expected each mode once, got {tuple(chosen)}")
    reduced = list(cores)
    for mode in gone:
        reduced[mode % len(cores)] = fold(reduced[mode % len(cores)], 1 + mode // len(cores), keepdim=True)
    return index(reduced, [0 if mode in gone else slice(None) for mode in range(count)])
