"""Functions that make trains: from dense tensors, at random, from functions, and those known exactly.

What takes `dtype` and `device` has torch's defaults for them. No train has an integer dtype.
"""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from ttnet import construct
from ttnet import decompose as _decompose
from ttnet import random as _random
from ttnet import spectral as _spectral
from ttnet._typing import PerBond
from ttnet.arrays import to_tensor, to_tensors
from ttnet.black_box import VectorizedFunction
from ttnet.cross import CrossOptions, CrossReport
from ttnet.cross import cross as _cross_cores
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix

_Shape = Sequence[int]
_Dtype = torch.dtype | None
_Device = torch.device | str | None
_Seed = int | torch.Generator | None


@overload
def tt_svd(
    tensor: Tensor | np.ndarray,
    truncation: Truncation | None = None,
    *,
    method: str = "auto",
    return_report: Literal[False] = False,
) -> TensorTrain: ...


@overload
def tt_svd(
    tensor: Tensor | np.ndarray,
    truncation: Truncation | None = None,
    *,
    method: str = "auto",
    return_report: Literal[True],
) -> tuple[TensorTrain, TruncationReport]: ...


def tt_svd(
    tensor: Tensor | np.ndarray,
    truncation: Truncation | None = None,
    *,
    method: str = "auto",
    return_report: bool = False,
) -> TensorTrain | tuple[TensorTrain, TruncationReport]:
    """Decompose a dense tensor into a train, see `ttnet.decompose.tt_svd`.

    Args:
        tensor: Shape (n_0, ..., n_{d-1}), float or complex, of torch or of numpy.
        truncation: Which singular values are kept; by default all.
        method: "auto" (the fastest that is safe), "svd", "qr" or "gram".
        return_report: Whether the `TruncationReport` is returned as well.

    Returns:
        A train with center d - 1, or the pair (train, report).

    Raises:
        ShapeError: `tensor` has no mode or an empty one.
        DTypeError: `tensor` is of an integer dtype, or of one that torch does not have.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
        ConfigError: `method` is unknown, `truncation` is none, or a tolerance is set under vmap.
        NonFiniteError: `tensor` holds a NaN or an infinity.

    Examples:
        >>> import numpy, ttnet
        >>> ttnet.tt_svd(numpy.ones((2, 3, 4)), ttnet.Truncation(rtol=1e-10)).ranks
        (1, 1, 1, 1)
    """
    cores, report = _decompose.tt_svd(
        to_tensor(tensor, "tensor"), Truncation() if truncation is None else truncation, method=method
    )
    train = TensorTrain(cores, -1)
    return (train, report) if return_report else train


def random_train(
    shape: _Shape, rank: PerBond, *, seed: _Seed = None, dtype: _Dtype = None, device: _Device = None
) -> TensorTrain:
    """A seeded random train, see `ttnet.random.random_cores`.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        rank: One rank for all bonds (clipped to what each allows), or one for each bond.
        seed: An integer, a generator, or None for torch's global generator.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A train whose entries have mean 0 and variance 1.

    Raises:
        ShapeError: A mode below 1.
        RankError: A rank that a bond cannot have.
        DTypeError: An integer dtype.
    """
    return TensorTrain(_random.random_cores(shape, rank, seed=seed, dtype=dtype, device=device))


def random_train_with_spectra(
    shape: _Shape,
    spectra: Tensor | Sequence[Tensor | Sequence[float]],
    *,
    norm: float = 1.0,
    seed: _Seed = None,
    dtype: _Dtype = None,
    device: _Device = None,
) -> TensorTrain:
    """A random train whose bonds have given singular values, see `ttnet.spectral.random_with_spectra`.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        spectra: Singular values of each of the d - 1 bonds, or one vector for all of them, cut to what each
            allows; up to the scale that `norm` sets.
        norm: Frobenius norm of the train.
        seed: An integer, a generator on the CPU, or None for torch's global generator.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A train with center 0.

    Raises:
        ShapeError: A mode below 1, or not one spectrum for each bond.
        RankError: More singular values than a bond allows.
        ConfigError: Singular values that are not positive, or that no train has.
        DTypeError: An integer dtype.
    """
    cores = _spectral.random_with_spectra(shape, spectra, norm=norm, seed=seed, dtype=dtype)
    return TensorTrain([core.to(device) for core in cores], 0)


@overload
def cross(
    function: VectorizedFunction,
    domain: _Shape | Sequence[Tensor],
    *,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    device: _Device = None,
    return_report: Literal[False] = False,
) -> TensorTrain: ...


@overload
def cross(
    function: VectorizedFunction,
    domain: _Shape | Sequence[Tensor],
    *,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    device: _Device = None,
    return_report: Literal[True],
) -> tuple[TensorTrain, CrossReport]: ...


def cross(
    function: VectorizedFunction,
    domain: _Shape | Sequence[Tensor],
    *,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    device: _Device = None,
    return_report: bool = False,
) -> TensorTrain | tuple[TensorTrain, CrossReport]:
    """A train of a function, from few of its entries, see `ttnet.cross.cross`.

    Args:
        function: From indices (batch, d), int64, to values (batch,); called with grid points (batch, d) where
            `domain` holds grids.
        domain: Mode sizes (n_0, ..., n_{d-1}), or one grid of points (n_k,) for each mode.
        options: Tolerance, caps and seed.
        pivots: Points (count, d), integers, known to matter.
        device: Where the function is called and where the train will be; default: the CPU.
        return_report: Whether the `CrossReport`, with the error on held-out entries, is returned as well.

    Returns:
        The train in the dtype of the function's values, or the pair (train, report).

    Raises:
        ShapeError: A mode below 1, values or pivots of a wrong shape.
        NonFiniteError: The function returned a NaN or an infinity; the message tells the index.
        ConfigError: An option is out of range.

    Warns:
        RuntimeWarning: The tolerance was not met, and the report, which says so, is not returned.

    Examples:
        >>> import torch, ttnet
        >>> grid = torch.linspace(0, 1, 10, dtype=torch.float64)
        >>> train = ttnet.cross(lambda x: x.sum(1).exp(), [grid] * 6)
        >>> train.shape, max(train.truncate(ttnet.Truncation(rtol=1e-6)).ranks)
        ((10, 10, 10, 10, 10, 10), 1)
    """
    cores, report = _cross_cores(function, domain, options=options, pivots=pivots, device=device)
    if return_report:
        return TensorTrain(cores), report
    report.warn()
    return TensorTrain(cores)


def zeros(shape: _Shape, *, dtype: _Dtype = None, device: _Device = None) -> TensorTrain:
    """The zero train, of rank 1."""
    return TensorTrain(construct.zeros(shape, dtype=dtype, device=device))


def ones(shape: _Shape, *, dtype: _Dtype = None, device: _Device = None) -> TensorTrain:
    """The train of ones, of rank 1."""
    return TensorTrain(construct.ones(shape, dtype=dtype, device=device))


def full(shape: _Shape, value: complex, *, dtype: _Dtype = None, device: _Device = None) -> TensorTrain:
    """The train with one value in all entries, of rank 1.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        value: The value; a complex one gives a complex train, unless `dtype` says otherwise.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        The train.

    Raises:
        ShapeError: A mode below 1.
        DTypeError: An integer dtype.
    """
    if dtype is None and isinstance(value, complex):
        dtype = torch.get_default_dtype().to_complex()
    return TensorTrain(construct.constant(shape, value, dtype=dtype, device=device))


def zeros_like(train: TensorTrain) -> TensorTrain:
    """The zero train of the same shape, dtype and device, of rank 1."""
    return zeros(train.shape, dtype=train.dtype, device=train.device)


def ones_like(train: TensorTrain) -> TensorTrain:
    """The train of ones of the same shape, dtype and device, of rank 1."""
    return ones(train.shape, dtype=train.dtype, device=train.device)


def arange(shape: _Shape, *, dtype: _Dtype = None, device: _Device = None) -> TensorTrain:
    """The row-major position of each entry, ``torch.arange(prod(shape)).reshape(shape)``, of rank 2."""
    return TensorTrain(construct.arange(shape, dtype=dtype, device=device))


def unit(shape: _Shape, index: _Shape, *, dtype: _Dtype = None, device: _Device = None) -> TensorTrain:
    """The train that is 1 at `index`, one number for each mode, and 0 elsewhere; of rank 1.

    Raises:
        ShapeError: A mode below 1, or an index that is out of range.
        DTypeError: An integer dtype.
    """
    return TensorTrain(construct.unit(shape, index, dtype=dtype, device=device))


def eye(shape: _Shape, *, dtype: _Dtype = None, device: _Device = None) -> TTMatrix:
    """The identity matrix on modes `shape`, a TT-matrix of rank 1."""
    return TTMatrix.identity(shape, dtype=dtype, device=device)


def rank_one(vectors: Sequence[Tensor | np.ndarray]) -> TensorTrain:
    """The product v_0[i_0] v_1[i_1] ... of d vectors (n_k,), of rank 1.

    Raises:
        ShapeError: No vector, or one that is not one-dimensional.
        DTypeError: Integers, or several dtypes.
        DeviceError: Several devices.
    """
    return TensorTrain(construct.rank_one(to_tensors(vectors, "vectors")))


def meshgrid(vectors: Sequence[Tensor | np.ndarray]) -> tuple[TensorTrain, ...]:
    """The coordinates on a grid, as ``torch.meshgrid(*vectors, indexing="ij")``: d trains of rank 1.

    Args:
        vectors: The grid points (n_k,) of each mode.

    Returns:
        Trains of shape (n_0, ..., n_{d-1}); entry (i_0, ..., i_{d-1}) of train k is ``vectors[k][i_k]``.

    Raises:
        ShapeError: No vector, or one that is not one-dimensional.
        DTypeError: Integers, or several dtypes.
        DeviceError: Several devices.

    Examples:
        >>> import torch, ttnet
        >>> x, y = ttnet.meshgrid([torch.linspace(0, 1, 5), torch.linspace(0, 2, 9)])
        >>> (x * x + y).shape, (x * x + y).ranks
        ((5, 9), (1, 2, 1))
    """
    points = to_tensors(vectors, "vectors")
    rank_one(points)  # refuses what is no grid
    ones = [torch.ones_like(vector) for vector in points]
    return tuple(rank_one([*ones[:k], vector, *ones[k + 1 :]]) for k, vector in enumerate(points))


def sum_of(vectors: Sequence[Tensor | np.ndarray]) -> TensorTrain:
    """The sum v_0[i_0] + v_1[i_1] + ... of d vectors (n_k,), for instance grids; of rank 2.

    Raises:
        ShapeError: No vector, or one that is not one-dimensional.
        DTypeError: Integers, or several dtypes.
        DeviceError: Several devices.
    """
    return TensorTrain(construct.sum_of(to_tensors(vectors, "vectors")))


def superdiagonal(values: Tensor | np.ndarray, ndim: int) -> TensorTrain:
    """The train with ``values[i]`` at (i, i, ..., i) of `ndim` modes and 0 elsewhere.

    Raises:
        ShapeError: `values` is no vector, or `ndim` is below 1.
        DTypeError: Integer values.
    """
    return TensorTrain(construct.superdiagonal(to_tensors([values], "values")[0], ndim))
