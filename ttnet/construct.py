"""Trains that are known exactly: constants, unit tensors, products and sums of vectors, indices."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.random import check_shape


def zeros(
    shape: Sequence[int], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Cores:
    """The zero tensor, of rank 1.

    Raises:
        ShapeError: A mode below 1.
        DTypeError: An integer dtype.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    linalg.working_dtype(dtype)
    return tuple(torch.zeros(1, n, 1, dtype=dtype, device=device) for n in check_shape(shape))


def ones(
    shape: Sequence[int], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Cores:
    """The tensor of ones, of rank 1.

    Raises:
        ShapeError: A mode below 1.
        DTypeError: An integer dtype.
    """
    return constant(shape, 1.0, dtype=dtype, device=device)


def constant(
    shape: Sequence[int],
    value: complex,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Cores:
    """A tensor with one value in all entries, of rank 1.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        value: The value.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        Core k of shape (1, n_k, 1); the first one carries the value.

    Raises:
        ShapeError: A mode below 1.
        DTypeError: An integer dtype.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    linalg.working_dtype(dtype)
    cores = [torch.ones(1, n, 1, dtype=dtype, device=device) for n in check_shape(shape)]
    return (cores[0] * value, *cores[1:])


def unit(
    shape: Sequence[int],
    index: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Cores:
    """The tensor that is 1 at one index and 0 elsewhere, of rank 1.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        index: One index for each mode; negative ones count from the end.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        Core k of shape (1, n_k, 1).

    Raises:
        ShapeError: A mode below 1, or an index that is out of range.
        DTypeError: An integer dtype.
    """
    sizes = check_shape(shape)
    if len(index) != len(sizes) or any(not -n <= i < n for i, n in zip(index, sizes, strict=False)):
        raise ShapeError(f"index: expected one index within each mode of {sizes}, got {tuple(index)}")
    cores = zeros(sizes, dtype=dtype, device=device)
    for core, i in zip(cores, index, strict=True):
        core[0, i, 0] = 1
    return cores


def superdiagonal(values: Tensor, ndim: int) -> Cores:
    """The tensor with ``values[i]`` at (i, i, ..., i) and 0 elsewhere: the identity of `ndim` legs for ones.

    Args:
        values: Shape (n,).
        ndim: Number of modes d.

    Returns:
        Cores with modes n and ranks n.

    Raises:
        ShapeError: `values` is no vector, or `ndim` is below 1.
        DTypeError: Integer values.
    """
    _check_vectors([values], "values")
    if isinstance(ndim, bool) or not isinstance(ndim, int) or ndim < 1:
        raise ShapeError(f"ndim: expected an integer of at least 1, got {ndim!r}")
    first = torch.diag(values).unsqueeze(0)
    if ndim == 1:
        return (values.reshape(1, -1, 1),)
    n = values.numel()
    steps = torch.arange(n, device=values.device)
    copy = values.new_zeros(n, n, n)
    copy[steps, steps, steps] = 1
    last = torch.eye(n, dtype=values.dtype, device=values.device).unsqueeze(2)
    return (first, *([copy] * (ndim - 2)), last)


def rank_one(vectors: Sequence[Tensor]) -> Cores:
    """The product v_0[i_0] v_1[i_1] ... of vectors.

    Args:
        vectors: d vectors (n_k,) of one float or complex dtype.

    Returns:
        Core k of shape (1, n_k, 1).

    Raises:
        ShapeError: No vector, or one that is not one-dimensional.
        DTypeError: Integers, or several dtypes.
        DeviceError: Several devices.
    """
    _check_vectors(vectors, "vectors")
    return tuple(vector.reshape(1, -1, 1) for vector in vectors)


def sum_of(vectors: Sequence[Tensor]) -> Cores:
    """The sum v_0[i_0] + v_1[i_1] + ... of vectors, of rank 2.

    Args:
        vectors: d vectors (n_k,) of one float or complex dtype, for instance grids.

    Returns:
        First core [v, 1], inner cores [[1, 0], [v, 1]], last core [1; v].

    Raises:
        ShapeError: No vector, or one that is not one-dimensional.
        DTypeError: Integers, or several dtypes.
        DeviceError: Several devices.
    """
    _check_vectors(vectors, "vectors")
    if len(vectors) == 1:
        return (vectors[0].reshape(1, -1, 1),)
    cores, last = [], len(vectors) - 1
    for k, vector in enumerate(vectors):
        one, zero = torch.ones_like(vector), torch.zeros_like(vector)
        rows = [[vector, one]] if k == 0 else [[one], [vector]] if k == last else [[one, zero], [vector, one]]
        cores.append(torch.stack([torch.stack(row, 1) for row in rows]))
    return tuple(cores)


def arange(
    shape: Sequence[int], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Cores:
    """The row-major position of each entry, ``torch.arange(prod(shape)).reshape(shape)``, of rank 2.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        dtype: Default: torch's default dtype. Positions above its mantissa are rounded.
        device: Default: the CPU.

    Returns:
        Cores of ranks 2.

    Raises:
        ShapeError: A mode below 1.
        DTypeError: An integer dtype.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    linalg.working_dtype(dtype)
    sizes = check_shape(shape)
    strides = [float(math.prod(sizes[k + 1 :])) for k in range(len(sizes))]
    # torch has no complex arange.
    grids = [torch.arange(n, device=device).to(dtype) for n in sizes]
    return sum_of([grid * stride for grid, stride in zip(grids, strides, strict=True)])


def _check_vectors(vectors: Sequence[Tensor], name: str) -> None:
    if not len(vectors):
        raise ShapeError(f"{name}: expected at least one vector, got none")
    for k, vector in enumerate(vectors):
        if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.numel():
            got = f"shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else type(vector).__name__
            raise ShapeError(f"{name}: expected tensors of shape (n,), got {got} at position {k}")
        linalg.working_dtype(vector.dtype)
        if vector.dtype != vectors[0].dtype:
            raise DTypeError(f"{name}: expected one dtype, got {vectors[0].dtype} and {vector.dtype}")
        if vector.device != vectors[0].device:
            raise DeviceError(f"{name}: expected one device, got {vectors[0].device} and {vector.device}")
