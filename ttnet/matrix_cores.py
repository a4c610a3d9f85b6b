"""Cores of a TT-matrix and what can be computed with them exactly.

A core is (left_rank, row, column, right_rank); with row and column merged into one mode, a TT-matrix is a
train, and whatever is linear (sums, gauge, rounding, norm) is done on that train.

        m_0      m_1              m_{d-1}       rows: outputs
         |        |                  |
     1--[0]--r1--[1]--r2-- ... --[d-1]--1
         |        |                  |
        n_0      n_1              n_{d-1}       columns: inputs
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet import cores as _cores
from ttnet._typing import Cores, CoresLike
from ttnet.arrays import to_tensors
from ttnet.errors import DTypeError, ShapeError
from ttnet.random import check_shape

_BATCHED = 4096  # multiplications from which on many small products are faster than a large one and a copy


def tensordot(a: Tensor, b: Tensor, axes_a: Sequence[int], axes_b: Sequence[int]) -> Tensor:
    """Contract `axes_a` of one tensor with `axes_b` of another; the free axes of `a` come first."""
    return torch.tensordot(a, b, dims=(list(axes_a), list(axes_b)))  # pyright: ignore[reportArgumentType]


def check(cores: CoresLike) -> Cores:
    """Read `cores` as the cores of a TT-matrix, or say why they are none.

    Args:
        cores: Tensors, or arrays of numpy, of shape (left_rank, row, column, right_rank).

    Returns:
        The same tensors as a tuple.

    Raises:
        ShapeError: No core, a core that is not 4-dimensional, neighboring ranks that differ, or a boundary
            rank that is not 1.
        DTypeError: An integer core, or two dtypes.
        DeviceError: Two devices.
    """
    cores = tuple(to_tensors(cores, "cores"))
    for k, core in enumerate(cores):
        if not isinstance(core, Tensor):
            raise ShapeError(f"cores: expected tensors, got {type(core).__name__} as core {k}")
        if core.ndim != 4:
            raise ShapeError(
                f"cores: expected core {k} as (left_rank, row, column, right_rank), got {tuple(core.shape)}"
            )
    _cores.check(merge_modes(cores))
    return cores


def rows_of(cores: CoresLike) -> tuple[int, ...]:
    """Sizes of the row modes, one for each core."""
    return tuple(core.shape[1] for core in cores)


def columns_of(cores: CoresLike) -> tuple[int, ...]:
    """Sizes of the column modes, one for each core."""
    return tuple(core.shape[2] for core in cores)


def merge_modes(cores: CoresLike) -> Cores:
    """Cores (l, row, column, r) as those of a train, (l, row column, r)."""
    return tuple(core.flatten(1, 2) for core in cores)


def split_modes(cores: CoresLike, rows: Sequence[int], columns: Sequence[int]) -> Cores:
    """Cores (l, row column, r) of a train as those of a TT-matrix, (l, row, column, r).

    Raises:
        ShapeError: A mode is not the product of its row and its column, or the counts differ.
    """
    expected = tuple(m * n for m, n in zip(rows, columns, strict=False))
    if not len(rows) == len(columns) == len(cores) or expected != _cores.shape_of(cores):
        raise ShapeError(
            f"rows, columns: expected one of each for the modes {_cores.shape_of(cores)}, whose products are "
            f"these, got rows={tuple(rows)} and columns={tuple(columns)}"
        )
    return tuple(core.unflatten(1, (m, n)) for core, m, n in zip(cores, rows, columns, strict=True))


def check_modes(rows: Sequence[int], columns: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row and column modes as tuples of one length.

    Raises:
        ShapeError: No mode, a size below 1, or lists of different lengths.
    """
    rows, columns = check_shape(rows), check_shape(columns)
    if len(rows) != len(columns):
        raise ShapeError(
            f"columns: expected {len(rows)} modes like rows={rows}, got {columns}; pad with modes of 1"
        )
    return rows, columns


def interleave(matrix: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """A dense matrix as the tensor of merged modes that a TT-SVD decomposes.

    Args:
        matrix: Shape (prod(rows), prod(columns)).
        rows: Row modes (m_0, ..., m_{d-1}).
        columns: Column modes (n_0, ..., n_{d-1}).

    Returns:
        Shape (m_0 n_0, ..., m_{d-1} n_{d-1}).

    Raises:
        ShapeError: The sizes do not multiply to the shape of `matrix`.
    """
    rows, columns = check_modes(rows, columns)
    if tuple(matrix.shape) != (math.prod(rows), math.prod(columns)):
        raise ShapeError(
            f"matrix: expected shape {(math.prod(rows), math.prod(columns))} for rows={rows} and "
            f"columns={columns}, got {tuple(matrix.shape)}"
        )
    count = len(rows)
    order = [axis for k in range(count) for axis in (k, count + k)]
    return (
        matrix.reshape(*rows, *columns)
        .permute(order)
        .reshape([m * n for m, n in zip(rows, columns, strict=True)])
    )


def contract(cores: CoresLike) -> Tensor:
    """The dense matrix of a TT-matrix, shape (prod(rows), prod(columns)), in memory of its own."""
    rows, columns = rows_of(cores), columns_of(cores)
    modes = [size for pair in zip(rows, columns, strict=True) for size in pair]
    dense = _cores.contract(merge_modes(cores)).reshape(modes)
    order = [*range(0, len(modes), 2), *range(1, len(modes), 2)]
    return dense.permute(order).reshape(math.prod(rows), math.prod(columns))


def identity(
    shape: Sequence[int], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Cores:
    """Cores (1, n_k, n_k, 1) of the identity.

    Raises:
        ShapeError: A mode below 1.
    """
    return tuple(torch.eye(n, dtype=dtype, device=device)[None, :, :, None] for n in check_shape(shape))


def diagonal(cores: CoresLike) -> Cores:
    """Cores (r, n, n, r') of the diagonal matrix whose diagonal is a train with cores (r, n, r')."""
    return tuple(torch.diag_embed(core.movedim(1, -1), dim1=1, dim2=2) for core in cores)


def extract_diagonal(cores: CoresLike) -> Cores:
    """Cores (r, n, r') of the diagonal of a square TT-matrix with cores (r, n, n, r').

    Raises:
        ShapeError: A core is not square.
    """
    check_square(cores)
    return tuple(core.diagonal(dim1=1, dim2=2).movedim(-1, 1) for core in cores)


def transpose(cores: CoresLike) -> Cores:
    """Cores of the transpose: rows and columns change places."""
    return tuple(core.transpose(1, 2) for core in cores)


def trace(cores: CoresLike) -> Tensor:
    """Trace of a square TT-matrix, a scalar tensor.

    Raises:
        ShapeError: A core is not square.
    """
    check_square(cores)
    carry = cores[0].new_ones(1, 1)
    for core in cores:
        carry = carry @ core.diagonal(dim1=1, dim2=2).sum(-1)
    return carry.reshape(())


def check_square(cores: CoresLike, *, name: str = "matrix") -> None:
    """Refuse a TT-matrix whose rows are not its columns.

    Raises:
        ShapeError: They differ.
    """
    if rows_of(cores) != columns_of(cores):
        raise ShapeError(
            f"{name}: expected a square TT-matrix, got rows {rows_of(cores)} and columns {columns_of(cores)}"
        )


def check_fits(matrix: CoresLike, modes: tuple[int, ...], *, name: str = "other") -> None:
    """Refuse a factor whose modes are not the columns of a TT-matrix.

    Args:
        matrix: Cores of the TT-matrix on the left.
        modes: Modes of what it is applied to.
        name: Name of the argument, as the user typed it, for messages.

    Raises:
        ShapeError: They differ.
    """
    if columns_of(matrix) != modes:
        raise ShapeError(
            f"{name}: expected modes {columns_of(matrix)}, the columns of the TT-matrix, got {modes}"
        )


def check_same_modes(a: CoresLike, b: CoresLike) -> None:
    """Refuse two TT-matrices of different rows or columns.

    Raises:
        ShapeError: They differ.
    """
    if rows_of(a) != rows_of(b) or columns_of(a) != columns_of(b):
        raise ShapeError(
            f"other: expected rows {rows_of(a)} and columns {columns_of(a)}, got rows {rows_of(b)} and "
            f"columns {columns_of(b)}"
        )


def merge_indices(cores: CoresLike, indices: Tensor) -> Tensor:
    """Indices of entries of a TT-matrix as those of its train of merged modes.

    Args:
        cores: Core k of shape (r_k, m_k, n_k, r_{k+1}).
        indices: Shape (batch, 2 d), integers: row modes, then column modes; negative ones count from the end.

    Returns:
        Shape (batch, d).

    Raises:
        ShapeError: `indices` is not (batch, 2 d), or an index is out of range.
        DTypeError: `indices` are no integers.
    """
    sizes = (*rows_of(cores), *columns_of(cores))
    if indices.ndim != 2 or indices.shape[1] != len(sizes):
        raise ShapeError(
            f"indices: expected shape (batch, {len(sizes)}), rows then columns, got {tuple(indices.shape)}"
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise DTypeError(f"indices: expected integers, got {indices.dtype}")
    bounds = torch.tensor(sizes, device=indices.device)
    wrong = ((indices < -bounds) | (indices >= bounds)).any(0)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ShapeError(f"indices: expected -{sizes[k]} to {sizes[k] - 1} in column {k}, got others")
    rows, columns = (indices.long() % bounds).tensor_split(2, 1)
    return rows * bounds[len(cores) :] + columns


def matvec(matrix: CoresLike, vector: CoresLike) -> Cores:
    """Product with a train, exact; the ranks multiply.

    Args:
        matrix: Cores of shape (r_k, m_k, n_k, r_{k+1}).
        vector: Cores of shape (s_k, n_k, s_{k+1}).

    Returns:
        Cores of shape (r_k s_k, m_k, r_{k+1} s_{k+1}).

    Raises:
        ShapeError: The modes of `vector` are not the columns of `matrix`.
    """
    return merge_modes(matmat(matrix, [core.unsqueeze(2) for core in vector]))


def matmat(a: CoresLike, b: CoresLike) -> Cores:
    """Product of two TT-matrices, exact; the ranks multiply.

    Args:
        a: Cores of shape (r_k, m_k, n_k, r_{k+1}).
        b: Cores of shape (s_k, n_k, c_k, s_{k+1}).

    Returns:
        Cores of shape (r_k s_k, m_k, c_k, r_{k+1} s_{k+1}).

    Raises:
        ShapeError: The rows of `b` are not the columns of `a`.
    """
    check_fits(a, rows_of(b))
    return tuple(_product_core(x, y) for x, y in zip(a, b, strict=True))


def _product_core(x: Tensor, y: Tensor) -> Tensor:
    product = tensordot(x, y, [2], [1])  # (l, m, r, s, c, t)
    return product.permute(0, 3, 1, 4, 2, 5).reshape(
        x.shape[0] * y.shape[0], x.shape[1], y.shape[2], x.shape[3] * y.shape[3]
    )


def apply_dense(cores: CoresLike, tensor: Tensor) -> Tensor:
    """Product with dense tensors; the matrix is never formed.

    Args:
        cores: Core k of shape (r_k, m_k, n_k, r_{k+1}).
        tensor: Shape (..., n_0, ..., n_{d-1}).

    Returns:
        Shape (..., m_0, ..., m_{d-1}).

    Raises:
        ShapeError: The last modes of `tensor` are not the columns.
    """
    columns = columns_of(cores)
    cut = tensor.ndim - len(columns)
    if cut < 0 or tuple(tensor.shape[cut:]) != columns:
        raise ShapeError(
            f"other: expected the last modes of a tensor to be {columns}, got shape {tuple(tensor.shape)}"
        )
    # (batch and finished rows, rank, columns still to come)
    work = tensor.reshape(math.prod(tensor.shape[:cut]), 1, -1)
    for core in cores:
        left, row, column, right = core.shape
        done, rest = work.shape[0], work.shape[2] // column
        if rest == 1 or core.numel() * rest < _BATCHED:
            work = tensordot(
                work.reshape(done, left, column, rest), core, [1, 2], [0, 2]
            )  # (done, rest, m, r)
            work = work.permute(0, 2, 3, 1)
        else:  # one product for each index that is done, none of which is moved
            matrix = core.permute(1, 3, 0, 2).reshape(row * right, left * column)
            work = matrix @ work.reshape(done, left * column, rest)
        work = work.reshape(done * row, right, rest)
    return work.reshape(*tensor.shape[:cut], *rows_of(cores))
