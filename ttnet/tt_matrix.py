"""`TTMatrix`: an immutable matrix in tensor-train form. A thin face over functions of cores."""

from collections.abc import Sequence
from typing import Literal, Self, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ttnet import cores as _cores
from ttnet import decompose as _decompose
from ttnet import indexing as _indexing
from ttnet import matrix_cores as _matrix
from ttnet import modes as _mode
from ttnet import mpo as _mpo
from ttnet import random as _random
from ttnet import reorder as _reorder
from ttnet._typing import Cores, CoresLike, PerBond
from ttnet.arrays import to_tensor
from ttnet.chain import CoreChain, register_pytree
from ttnet.errors import DeviceError, DTypeError
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation, TruncationReport

_Modes = Sequence[int]
_Dtype = torch.dtype | None
_Device = torch.device | str | None
Factor = TypeVar("Factor", TensorTrain, "TTMatrix", Tensor)
"""What a TT-matrix can be multiplied with."""


class TTMatrix(CoreChain):
    """A matrix of shape (m_0 ... m_{d-1}, n_0 ... n_{d-1}) as a chain of d cores; also known as an MPO.

           m_0      m_1              m_{d-1}
            |        |                  |
        1--[0]--r1--[1]--r2-- ... --[d-1]--1
            |        |                  |
           n_0      n_1              n_{d-1}

    Immutable: every operation returns a new one, which may share cores with the old one. Arithmetic is entry
    by entry, as of trains; gauge and rounding are those of the train of its merged modes, see `as_train`.

    Args:
        cores: Core k of shape (r_k, m_k, n_k, r_{k+1}), rows before columns; the boundary ranks are 1.
        center: Core around which the train of merged modes is known to be canonical, None where it is not.

    Raises:
        ShapeError: Cores that do not fit together, or no core `center`.
        DTypeError: Integer cores or several dtypes.
        DeviceError: Several devices.

    Examples:
        >>> import torch, ttnet
        >>> from ttnet.tt_matrix import TTMatrix
        >>> matrix = TTMatrix.random((2, 3), (4, 5), rank=2, seed=0, dtype=torch.float64)
        >>> matrix.shape, matrix.ranks
        ((6, 20), (1, 2, 1))
        >>> train = ttnet.random_train((4, 5), rank=3, seed=1, dtype=torch.float64)
        >>> torch.allclose((matrix @ train).full().flatten(), matrix.full() @ train.full().flatten())
        True
    """

    __slots__ = ()

    def __init__(self, cores: CoresLike, center: int | None = None) -> None:
        checked = _matrix.check(cores)
        super().__init__(checked, TensorTrain(_matrix.merge_modes(checked), center).center)

    @classmethod
    def from_train(cls, train: TensorTrain, rows: _Modes, columns: _Modes) -> Self:
        """The TT-matrix whose merged modes are those of a train, the inverse of `as_train`.

        Raises:
            ShapeError: The modes of the train are not the products of `rows` and `columns`.
        """
        return cls(_matrix.split_modes(train.cores, rows, columns), train.center)

    @overload
    @classmethod
    def from_dense(
        cls,
        matrix: Tensor | np.ndarray,
        rows: _Modes,
        columns: _Modes,
        truncation: Truncation | None = None,
        *,
        return_report: Literal[False] = False,
    ) -> Self: ...

    @overload
    @classmethod
    def from_dense(
        cls,
        matrix: Tensor | np.ndarray,
        rows: _Modes,
        columns: _Modes,
        truncation: Truncation | None = None,
        *,
        return_report: Literal[True],
    ) -> tuple[Self, TruncationReport]: ...

    @classmethod
    def from_dense(
        cls,
        matrix: Tensor | np.ndarray,
        rows: _Modes,
        columns: _Modes,
        truncation: Truncation | None = None,
        *,
        return_report: bool = False,
    ) -> Self | tuple[Self, TruncationReport]:
        """Decompose a dense matrix by a TT-SVD of its interleaved modes.

        Args:
            matrix: Shape (prod(rows), prod(columns)), float or complex.
            rows: Row modes (m_0, ..., m_{d-1}).
            columns: Column modes (n_0, ..., n_{d-1}).
            truncation: Which singular values are kept; by default all.
            return_report: Whether the `TruncationReport` is returned as well.

        Returns:
            The TT-matrix, or the pair (matrix, report).

        Raises:
            ShapeError: The modes do not multiply to the shape of `matrix`.
            DTypeError: `matrix` is of an integer dtype.
            RankError: `truncation.max_rank` is a list that the bonds cannot have.
        """
        merged = _matrix.interleave(to_tensor(matrix, "matrix"), rows, columns)
        cores, report = _decompose.tt_svd(merged, Truncation() if truncation is None else truncation)
        result = cls(_matrix.split_modes(cores, rows, columns), -1)
        return (result, report) if return_report else result

    @classmethod
    def from_terms(
        cls, terms: Sequence[_mpo.Term], shape: _Modes, *, dtype: _Dtype = None, device: _Device = None
    ) -> Self:
        """A sum of products of local matrices, of the smallest ranks; see `ttnet.mpo.from_terms`."""
        return cls(_mpo.from_terms(terms, shape, dtype=dtype, device=device))

    @classmethod
    def identity(cls, shape: _Modes, *, dtype: _Dtype = None, device: _Device = None) -> Self:
        """The identity on modes `shape`, of rank 1."""
        return cls(_matrix.identity(shape, dtype=dtype, device=device))

    @classmethod
    def zeros(cls, rows: _Modes, columns: _Modes, *, dtype: _Dtype = None, device: _Device = None) -> Self:
        """The zero matrix, of rank 1."""
        sizes = zip(*_matrix.check_modes(rows, columns), strict=True)
        return cls([torch.zeros(1, m, n, 1, dtype=dtype, device=device) for m, n in sizes])

    @classmethod
    def diagonal(cls, train: TensorTrain) -> Self:
        """The diagonal matrix whose diagonal is `train`, of the same ranks."""
        return cls(_matrix.diagonal(train.cores))

    @classmethod
    def random(
        cls,
        rows: _Modes,
        columns: _Modes,
        rank: PerBond,
        *,
        seed: int | torch.Generator | None = None,
        dtype: _Dtype = None,
        device: _Device = None,
    ) -> Self:
        """A seeded random TT-matrix whose entries have mean 0 and variance 1, see `ttnet.random_train`."""
        merged = [m * n for m, n in zip(*_matrix.check_modes(rows, columns), strict=True)]
        cores = _random.random_cores(merged, rank, seed=seed, dtype=dtype, device=device)
        return cls(_matrix.split_modes(cores, rows, columns))

    @property
    def rows(self) -> tuple[int, ...]:
        """Row modes (m_0, ..., m_{d-1})."""
        return _matrix.rows_of(self._cores)

    @property
    def columns(self) -> tuple[int, ...]:
        """Column modes (n_0, ..., n_{d-1})."""
        return _matrix.columns_of(self._cores)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix, (m_0 ... m_{d-1}, n_0 ... n_{d-1})."""
        return int(np.prod(self.rows, dtype=object)), int(np.prod(self.columns, dtype=object))

    def __repr__(self) -> str:
        """Rows, columns, ranks and dtype."""
        return f"TTMatrix(rows={self.rows}, columns={self.columns}, ranks={self.ranks}, dtype={self.dtype})"

    def full(self) -> Tensor:
        """The dense matrix, shape (prod(rows), prod(columns))."""
        return _matrix.contract(self._cores)

    def as_train(self) -> TensorTrain:
        """The train of merged modes (m_0 n_0, ..., m_{d-1} n_{d-1})."""
        return TensorTrain(_matrix.merge_modes(self._cores), self._center)

    def _with(self, train: TensorTrain) -> Self:
        return type(self).from_train(train, self.rows, self.columns)

    # Algebra -----------------------------------------------------------------------------------------------

    def __matmul__(self, other: Factor) -> Factor:
        """Exact product with a train or a TT-matrix, whose ranks multiply, or with a dense tensor.

        A dense tensor has the shape (..., n_0, ..., n_{d-1}). `ttnet.apply_matrix.apply` rounds on the way.

        Raises:
            ShapeError: The modes are not the columns of this matrix.
            DTypeError: `other` is none of these.
            DeviceError: The devices differ.
        """
        matrix, factor = pair(self, other)
        if isinstance(factor, TensorTrain):
            return TensorTrain(_matrix.matvec(matrix.cores, factor.cores))
        if isinstance(factor, Tensor):
            return _matrix.apply_dense(matrix.cores, factor)
        return TTMatrix(_matrix.matmat(matrix.cores, factor.cores))

    def dot(self, other: "TTMatrix") -> Tensor:
        """Frobenius inner product tr(self^H other), a scalar tensor."""
        a, b = self._promoted(other)
        _matrix.check_same_modes(a, b)
        return _cores.inner(_matrix.merge_modes(a), _matrix.merge_modes(b))

    def norm(self) -> Tensor:
        """Frobenius norm, a real scalar tensor."""
        return self.as_train().norm()

    def log_norm(self) -> Tensor:
        """Natural logarithm of the norm, a float64 scalar, finite where `norm` overflows; -inf for zero."""
        return self.as_train().log_norm()

    def trace(self) -> Tensor:
        """Trace, a scalar tensor.

        Raises:
            ShapeError: Rows and columns differ.
        """
        return _matrix.trace(self._cores)

    def diag(self) -> TensorTrain:
        """The diagonal as a train of the same ranks.

        Raises:
            ShapeError: Rows and columns differ.
        """
        return TensorTrain(_matrix.extract_diagonal(self._cores))

    def kron(self, other: "TTMatrix") -> "TTMatrix":
        """Kronecker product: the cores of `other` follow those of this matrix."""
        matrix, factor = pair(self, other)
        return TTMatrix([*matrix.cores, *factor.cores])

    @property
    def mT(self) -> Self:  # noqa: N802
        """The transpose."""
        return type(self)(_matrix.transpose(self._cores), self._center)

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose, as numpy calls it."""
        return self.mT

    @property
    def mH(self) -> Self:  # noqa: N802
        """The conjugate transpose."""
        return self.mT.conj()

    # Entries and modes, in the order (m_0, ..., m_{d-1}, n_0, ..., n_{d-1}) ---------------------------------

    def __getitem__(self, key: object) -> "TTMatrix | TensorTrain | Tensor":
        """Index rows and columns, ``matrix[i_0, ..., j_0, ...]``, each mode on its own; an ellipsis fills up.

        Returns:
            A scalar tensor where every mode has an integer; a train where all rows have one, or all columns;
            else a TT-matrix, see `ttnet.indexing.index_matrix`.

        Raises:
            ShapeError: Too many indices, or one out of range.
        """
        return _of(_indexing.index(self._cores, _indexing.expand_key(key, 2 * self.ndim)))

    def gather(self, indices: Tensor | Sequence[_Modes], *, chunk_size: int | None = None) -> Tensor:
        """Many entries at once, fast and differentiable, see `ttnet.gather.gather`.

        Args:
            indices: Shape (batch, 2 d), integers: row modes, then column modes.
            chunk_size: Entries that are worked on at a time; chosen from the shapes where it is None.

        Returns:
            Shape (batch,).

        Raises:
            ShapeError, DTypeError, DeviceError: Indices that do not fit, are no integers, or are elsewhere.
        """
        merged = _matrix.merge_indices(self._cores, torch.as_tensor(indices, device=self.device))
        return self.as_train().gather(merged, chunk_size=chunk_size)

    def sum(self, modes: int | _Modes | None = None) -> "TTMatrix | TensorTrain | Tensor":
        """Sum over `modes` of rows and columns (default: all), with the result that indexing has."""
        return _of(_mode.sum_modes(self._cores, modes))

    def mean(self, modes: int | _Modes | None = None) -> "TTMatrix | TensorTrain | Tensor":
        """Mean over `modes` of rows and columns (default: all), with the result that indexing has."""
        return _of(_mode.mean_modes(self._cores, modes))

    def permute(self, dims: _Modes, truncation: Truncation | None = None) -> "TTMatrix":
        """Reorder the pairs of row and column modes; exact unless `truncation` says otherwise.

        See `TensorTrain.permute`; ``matrix.as_train().permute(..., return_report=True)`` has the report.
        """
        train = self.as_train().permute(dims, truncation)
        rows, columns = ([modes[d] for d in dims] for modes in (self.rows, self.columns))
        return TTMatrix.from_train(train, rows, columns)

    def reshape(self, rows: _Modes, columns: _Modes, truncation: Truncation | None = None) -> "TTMatrix":
        """Split and merge modes; exact unless `truncation` says otherwise. The matrix `full()` is the same.

        See `ttnet.reorder.reshape_matrix`, which also gives the report.
        """
        return TTMatrix(_reorder.reshape_matrix(self._cores, rows, columns, truncation)[0])

    # Gauge and rounding ------------------------------------------------------------------------------------

    def orthogonalize(self, center: int) -> Self:
        """The same matrix in the canonical gauge (of its train of merged modes) around `center`.

        Raises:
            ShapeError: There is no core `center`.
        """
        return self._with(self.as_train().orthogonalize(center))

    @overload
    def truncate(
        self, truncation: Truncation, *, method: str = "auto", return_report: Literal[False] = False
    ) -> Self: ...

    @overload
    def truncate(
        self, truncation: Truncation, *, method: str = "auto", return_report: Literal[True]
    ) -> tuple[Self, TruncationReport]: ...

    def truncate(
        self, truncation: Truncation, *, method: str = "auto", return_report: bool = False
    ) -> Self | tuple[Self, TruncationReport]:
        """A TT-matrix of lower ranks, near in the Frobenius norm; see `TensorTrain.truncate`.

        Args:
            truncation: Which singular values are kept.
            method: "auto" (the fastest that is safe), "svd", "qr-svd", "gram" or "randomized".
            return_report: Whether the `TruncationReport` is returned as well.

        Returns:
            The matrix, with center 0, or the pair (matrix, report).

        Raises:
            RankError: `max_rank` is a list that the bonds cannot have, or is needed and missing.
            ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.
        """
        if not return_report:
            return self._with(self.as_train().truncate(truncation, method=method))
        train, report = self.as_train().truncate(truncation, method=method, return_report=True)
        return self._with(train), report


def _of(picked: Cores | Tensor) -> TTMatrix | TensorTrain | Tensor:
    if isinstance(picked, Tensor):
        return picked
    return TTMatrix(picked) if picked[0].ndim == 4 else TensorTrain(picked)


def pair(matrix: TTMatrix, other: Factor) -> tuple[TTMatrix, Factor]:
    """Both factors of a product in one dtype.

    Raises:
        DTypeError: `other` is neither a train, nor a TT-matrix, nor a tensor.
        DeviceError: The devices differ.
    """
    if not isinstance(other, TensorTrain | TTMatrix | Tensor):
        raise DTypeError(f"other: expected a TensorTrain, a TTMatrix or a Tensor, got {type(other).__name__}")
    if other.device != matrix.device:
        raise DeviceError(
            f"other: expected {matrix.device}, got {other.device}; move one of them with .to(...)"
        )
    dtype = torch.promote_types(matrix.dtype, other.dtype)
    return matrix.to(dtype), other.to(dtype)


register_pytree(TTMatrix)
