"""`TensorTrain`: an immutable train with numpy's habits. A thin face over functions of cores."""

from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Literal, Self, overload

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.utils import _pytree as pytree

from ttnet import algebra, linalg
from ttnet import cores as _cores
from ttnet import decompose as _decompose
from ttnet import gauge as _gauge
from ttnet import random as _random
from ttnet import rounding as _rounding
from ttnet._typing import Cores, CoresLike, PerBond
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.truncation import Truncation, TruncationReport


class TensorTrain:
    """A tensor of shape (n_0, ..., n_{d-1}) as a chain of d cores.

        1--[0]--r1--[1]--r2-- ... --[d-1]--1
            |        |                |
           n_0      n_1            n_{d-1}

    Immutable: every operation returns a new train, which may share cores with the old one.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}); the boundary ranks are 1.
        center: Core around which the train is known to be canonical, None where it is not known to be.

    Raises:
        ShapeError: Cores that do not fit together.
        DTypeError: Integer cores or several dtypes.
        DeviceError: Several devices.

    Examples:
        >>> import torch, ttnet
        >>> train = ttnet.random_train((4, 5, 6), rank=3, seed=0, dtype=torch.float64)
        >>> train.ranks, train.num_parameters
        ((1, 3, 3, 1), 75)
        >>> rounded, report = train.truncate(ttnet.Truncation(max_rank=2), return_report=True)
        >>> bool((train.full() - rounded.full()).norm() <= report.error_bound)
        True
    """

    __slots__ = ("_center", "_cores")

    def __init__(self, cores: CoresLike, center: int | None = None) -> None:
        self._cores = _cores.check(cores)
        self._center = None if center is None else _gauge.check_center(center, len(self._cores))

    @property
    def cores(self) -> Cores:
        """The cores, core k of shape (r_k, n_k, r_{k+1})."""
        return self._cores

    @property
    def center(self) -> int | None:
        """The canonical center, or None."""
        return self._center

    @property
    def ndim(self) -> int:
        """Number of modes d."""
        return len(self._cores)

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes (n_0, ..., n_{d-1})."""
        return _cores.shape_of(self._cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All d + 1 ranks; the first and the last are 1."""
        return _cores.ranks_of(self._cores)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the cores."""
        return self._cores[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the cores."""
        return self._cores[0].device

    @property
    def num_parameters(self) -> int:
        """Number of entries of all cores."""
        return sum(core.numel() for core in self._cores)

    def __len__(self) -> int:
        """Size of the first mode, as a numpy array has it."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Shape, ranks, dtype and center."""
        return (
            f"TensorTrain(shape={self.shape}, ranks={self.ranks}, dtype={self.dtype}, center={self.center})"
        )

    def full(self) -> Tensor:
        """The dense tensor, shape (n_0, ..., n_{d-1})."""
        return _cores.contract(self._cores)

    def __iter__(self) -> Iterator["TensorTrain | Tensor"]:
        """The slices of the first mode, as a numpy array has them."""
        return (self[i] for i in range(len(self)))

    # numpy's scalars leave `number * train` to the train.
    __array_priority__ = 1000

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The dense tensor for numpy."""
        dense = self.full().detach().cpu().resolve_conj().numpy()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    # Algebra -----------------------------------------------------------------------------------------------

    def _like(self, other: "TensorTrain") -> "TensorTrain":
        if not isinstance(other, TensorTrain):
            raise DTypeError(f"other: expected a TensorTrain, got {type(other).__name__}")
        if other.device != self.device:
            raise DeviceError(
                f"other: expected a train on {self.device}, got one on {other.device}; use .to(...)"
            )
        return other.to(torch.promote_types(self.dtype, other.dtype))

    def __add__(self, other: "TensorTrain") -> "TensorTrain":
        """Sum; the ranks add."""
        other = self._like(other)
        return TensorTrain(algebra.add(self.to(other.dtype).cores, other.cores))

    def __sub__(self, other: "TensorTrain") -> "TensorTrain":
        """Difference; the ranks add."""
        other = self._like(other)
        return TensorTrain(algebra.subtract(self.to(other.dtype).cores, other.cores))

    def __mul__(self, other: "TensorTrain | complex | Tensor") -> "TensorTrain":
        """Entrywise product with a train, whose ranks multiply, or with a number."""
        if isinstance(other, TensorTrain):
            other = self._like(other)
            return TensorTrain(algebra.hadamard(self.to(other.dtype).cores, other.cores))
        factor = _number(other)
        dtype = torch.result_type(self._cores[0], factor)
        at = self._center or 0
        return TensorTrain(algebra.scale(self.to(dtype).cores, factor, at=at), self._center)

    def __rmul__(self, other: complex | Tensor) -> "TensorTrain":
        """Number times train."""
        return self * other

    def __truediv__(self, other: complex | Tensor) -> "TensorTrain":
        """Train over a number."""
        number = _number(other)
        return self * (number.reciprocal() if isinstance(number, Tensor) else 1 / number)

    def __neg__(self) -> "TensorTrain":
        """The negative."""
        return self * -1

    def dot(self, other: "TensorTrain") -> Tensor:
        """Inner product <self, other>, `self` conjugated; a scalar tensor.

        Raises:
            ShapeError: The shapes differ.
            DTypeError: `other` is no train.
            DeviceError: The devices differ.
        """
        other = self._like(other)
        algebra.check_same_shape(self._cores, other.cores)
        return _cores.inner(self.to(other.dtype).cores, other.cores)

    __matmul__ = dot

    def norm(self) -> Tensor:
        """Frobenius norm, a real scalar tensor; from the center alone where there is one."""
        if self._center is not None:
            return linalg.frobenius_norm(self._cores[self._center])
        return linalg.frobenius_norm(self.orthogonalize(0).cores[0])

    def __getitem__(self, key: object) -> "TensorTrain | Tensor":
        """Index modes with integers, slices, lists of integers, masks and an ellipsis, each mode on its own.

        Returns:
            A train of the remaining modes, or a scalar tensor where every mode has an integer.

        Raises:
            ShapeError: Too many indices, or one out of range.
        """
        picked = algebra.index(self._cores, _expand_key(key, self.ndim))
        return picked if isinstance(picked, Tensor) else TensorTrain(picked)

    def conj(self) -> "TensorTrain":
        """Complex conjugate."""
        return TensorTrain([core.conj().resolve_conj() for core in self._cores], self._center)

    def sum(self, modes: int | Sequence[int] | None = None) -> "TensorTrain | Tensor":
        """Sum over `modes` (default: all of them, which gives a scalar tensor)."""
        chosen = range(self.ndim) if modes is None else (modes,) if isinstance(modes, int) else modes
        summed = {_gauge.check_center(mode, self.ndim, name="modes") for mode in chosen}
        cores = [core.sum(1, keepdim=True) if k in summed else core for k, core in enumerate(self._cores)]
        picked = algebra.index(cores, [0 if k in summed else slice(None) for k in range(self.ndim)])
        return picked if isinstance(picked, Tensor) else TensorTrain(picked)

    # Gauge and rounding ------------------------------------------------------------------------------------

    def orthogonalize(self, center: int) -> "TensorTrain":
        """The same tensor in the canonical gauge around `center`; the present center spares work.

        Raises:
            ShapeError: There is no core `center`.
        """
        center = _gauge.check_center(center, self.ndim)
        if center == self._center:
            return self
        return TensorTrain(_gauge.orthogonalize(self._cores, center, start=self._center), center)

    @overload
    def truncate(self, truncation: Truncation, *, return_report: Literal[False] = False) -> "TensorTrain": ...

    @overload
    def truncate(
        self, truncation: Truncation, *, return_report: Literal[True]
    ) -> "tuple[TensorTrain, TruncationReport]": ...

    def truncate(
        self, truncation: Truncation, *, return_report: bool = False
    ) -> "TensorTrain | tuple[TensorTrain, TruncationReport]":
        """A train of lower ranks, see `ttnet.rounding.truncate`.

        Args:
            truncation: Which singular values are kept.
            return_report: Whether the `TruncationReport` is returned as well.

        Returns:
            The train, with center 0, or the pair (train, report).

        Raises:
            RankError: `max_rank` is a list that the bonds cannot have.
        """
        cores, report = _rounding.truncate(
            self._cores, truncation, center=self._center, certify=return_report
        )
        train = TensorTrain(cores, 0)
        return (train, report) if return_report else train

    def spectra(self) -> tuple[Tensor, ...]:
        """Singular values of all d - 1 bonds, in descending order, without autograd."""
        return _gauge.spectra(self._cores, center=self._center)

    def spectrum(self, bond: int) -> Tensor:
        """Singular values of one bond, in descending order, without autograd.

        Raises:
            ShapeError: There is no such bond.
        """
        if not 0 <= bond < self.ndim - 1:
            raise ShapeError(f"bond: expected an index from 0 to {self.ndim - 2}, got {bond}")
        with torch.no_grad():
            core = self.orthogonalize(bond).cores[bond]
            return linalg.svd(_cores.left_unfold(core.to(linalg.working_dtype(core.dtype))))[1]

    def entropy(self, bond: int) -> float:
        """Von Neumann entropy of one bond in nats, see `ttnet.gauge.entropy`.

        Raises:
            ShapeError: There is no such bond.
        """
        return _gauge.entropy(self.spectrum(bond))

    # Storage -----------------------------------------------------------------------------------------------

    def to(self, *args: object, **kwargs: object) -> Self:
        """Another dtype or device, with the arguments of `torch.Tensor.to`.

        Raises:
            DTypeError: An integer dtype, or a real one for a complex train.
        """
        target = self._cores[0].new_empty(0).to(*args, **kwargs).dtype  # pyright: ignore[reportCallIssue, reportArgumentType]
        if self.dtype.is_complex and not target.is_complex:
            raise DTypeError(
                f"dtype: expected a complex one for a train of {self.dtype}, got {target}; the real part "
                f"of a train is not the train of the real parts"
            )
        cores = tuple(core.to(*args, **kwargs) for core in self._cores)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if all(new is old for new, old in zip(cores, self._cores, strict=True)):
            return self
        return type(self)(cores, self._center)

    def detach(self) -> "TensorTrain":
        """The same train, cut off from autograd."""
        return TensorTrain([core.detach() for core in self._cores], self._center)

    def clone(self) -> "TensorTrain":
        """A train with memory of its own."""
        return TensorTrain([core.clone() for core in self._cores], self._center)


def _number(value: object) -> complex | Tensor:
    """A Python number, or a tensor of no dimension, which keeps its graph."""
    if isinstance(value, Number):
        return value.item() if isinstance(value, np.generic) else value  # pyright: ignore[reportReturnType]
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    error = ShapeError if isinstance(value, Tensor) else DTypeError
    raise error(f"other: expected a number or a train, got {what}")


def _expand_key(key: object, ndim: int) -> list[algebra.Index]:
    entries = list(key) if isinstance(key, tuple) else [key]
    given = sum(entry is not Ellipsis for entry in entries)
    dots = len(entries) - given
    if given > ndim or dots > 1:
        raise ShapeError(f"index: expected at most {ndim} indices and one ellipsis, got {key!r}")
    at = next((k for k, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    fill: list[object] = [slice(None)] * (ndim - given)
    return entries[:at] + fill + entries[at + dots :]  # pyright: ignore[reportReturnType]


pytree.register_pytree_node(
    TensorTrain,
    # Whatever is mapped over the cores may spoil the gauge: the center is not handed on.
    lambda train: (list(train.cores), None),
    lambda leaves, _: _unflatten(leaves),
    serialized_type_name="ttnet.TensorTrain",
)


def _unflatten(leaves: object) -> TensorTrain:
    # A pytree may hold anything while it is mapped (vmap's placeholders, None): no checks here.
    train = object.__new__(TensorTrain)
    train._cores = tuple(leaves)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    train._center = None
    return train


@overload
def tt_svd(
    tensor: Tensor, truncation: Truncation | None = None, *, return_report: Literal[False] = False
) -> TensorTrain: ...


@overload
def tt_svd(
    tensor: Tensor, truncation: Truncation | None = None, *, return_report: Literal[True]
) -> tuple[TensorTrain, TruncationReport]: ...


def tt_svd(
    tensor: Tensor, truncation: Truncation | None = None, *, return_report: bool = False
) -> TensorTrain | tuple[TensorTrain, TruncationReport]:
    """Decompose a dense tensor into a train, see `ttnet.decompose.tt_svd`.

    Args:
        tensor: Shape (n_0, ..., n_{d-1}), float or complex.
        truncation: Which singular values are kept; by default all.
        return_report: Whether the `TruncationReport` is returned as well.

    Returns:
        A train with center d - 1, or the pair (train, report).

    Raises:
        ShapeError: `tensor` has no mode or an empty one.
        DTypeError: `tensor` is of an integer dtype.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
    """
    cores, report = _decompose.tt_svd(tensor, truncation or Truncation())
    train = TensorTrain(cores, -1)
    return (train, report) if return_report else train


def random_train(
    shape: Sequence[int],
    rank: PerBond,
    *,
    seed: int | torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
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
