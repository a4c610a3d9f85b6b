"""`TensorTrain`: an immutable train with numpy's habits. A thin face over functions of cores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NoReturn, TypeAlias, overload

import torch
from torch import Tensor

from ttnet import algebra, distributions, indexing, linalg, reorder
from ttnet import cores as _cores
from ttnet import gather as _gather
from ttnet import gauge as _gauge
from ttnet import log_scale as _log_scale
from ttnet import modes as _modes
from ttnet import rounding as _rounding
from ttnet._typing import Cores, CoresLike
from ttnet.chain import CoreChain, register_pytree
from ttnet.errors import DTypeError, ShapeError
from ttnet.extrema import Extreme, extreme_entry
from ttnet.truncation import Truncation, TruncationReport

_Ints = Sequence[int]
_Cut = Truncation | None
_Given = Mapping[int, int] | None
_Seed = int | torch.Generator | None
_Metric = Sequence[Tensor | None] | None
_No = Literal[False]
_Yes = Literal[True]
_Train: TypeAlias = "TensorTrain"
_Pair: TypeAlias = "tuple[TensorTrain, TruncationReport]"
_TrainOrPair: TypeAlias = "TensorTrain | tuple[TensorTrain, TruncationReport]"


class TensorTrain(CoreChain):
    """A tensor of shape (n_0, ..., n_{d-1}) as a chain of d cores.

        1--[0]--r1--[1]--r2-- ... --[d-1]--1
            |        |                |
           n_0      n_1            n_{d-1}

    Immutable: every operation returns a new train, which may share cores with the old one. Whatever truncates
    takes `return_report=True`, and then returns the pair (train, report).

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), tensors or arrays of numpy, which are not copied; the
            boundary ranks are 1.
        center: Core around which the train is known to be canonical, None where it is not known to be. It is
            not checked: norms, spectra and truncations are wrong where it is not true.

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

    __slots__ = ()

    def __init__(self, cores: CoresLike, center: int | None = None) -> None:
        checked = _cores.check(cores)
        super().__init__(checked, None if center is None else _gauge.check_center(center, len(checked)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes (n_0, ..., n_{d-1})."""
        return _cores.shape_of(self._cores)

    def __len__(self) -> int:
        """Size of the first mode, as a numpy array has it."""
        return self.shape[0]

    def __repr__(self) -> str:
        return (
            f"TensorTrain(shape={self.shape}, ranks={self.ranks}, dtype={self.dtype}, center={self.center})"
        )

    def full(self) -> Tensor:
        """The dense tensor, shape (n_0, ..., n_{d-1})."""
        return _cores.contract(self._cores)

    # Entries -----------------------------------------------------------------------------------------------

    def __getitem__(self, key: object) -> "TensorTrain | Tensor":
        """Index modes with integers, slices, lists, masks, None and an ellipsis, each mode on its own.

        Returns:
            A train of the remaining modes, or a scalar tensor where every mode has an integer.

        Raises:
            ShapeError: Too many indices, or one out of range.
        """
        return _train_or_scalar(indexing.index(self._cores, indexing.expand_key(key, self.ndim)))

    def __iter__(self) -> Iterator["TensorTrain | Tensor"]:
        """The slices of the first mode, as a numpy array has them."""
        return (self[i] for i in range(len(self)))

    def gather(self, indices: Tensor | Sequence[_Ints], *, chunk_size: int | None = None) -> Tensor:
        """Many entries at once, fast and differentiable, see `ttnet.gather.gather`.

        Args:
            indices: Shape (batch, d), integers; repeated, unsorted and negative ones are fine.
            chunk_size: Entries that are worked on at a time; chosen from the shapes where it is None.

        Returns:
            Shape (batch,).

        Raises:
            ShapeError, DTypeError, DeviceError: Indices that do not fit, are no integers, or are elsewhere.
        """
        if not isinstance(indices, Tensor) and not len(indices):
            indices = torch.empty(0, self.ndim, dtype=torch.int64)
        return _gather.gather(self._cores, indices, chunk_size=chunk_size)

    def extreme(
        self, kind: Literal["max", "min", "absmax"] = "absmax", *, beam: int = 100, squarings: int = 5
    ) -> Extreme:
        """The largest entry, the smallest, or that of largest magnitude, and its index.

        Exact up to 2^18 entries, beyond that the best that a search found: see `ttnet.extrema.extreme_entry`.
        """
        return extreme_entry(self._cores, kind, beam=beam, squarings=squarings)

    def max(self) -> Tensor:
        """The largest entry, a scalar tensor; see `extreme`."""
        return self.extreme("max").value

    def min(self) -> Tensor:
        """The smallest entry, a scalar tensor; see `extreme`."""
        return self.extreme("min").value

    def argmax(self) -> tuple[int, ...]:
        """Where the largest entry is: one index for each mode, not a flat position; see `extreme`."""
        return self.extreme("max").index

    def argmin(self) -> tuple[int, ...]:
        """Where the smallest entry is: one index for each mode, not a flat position; see `extreme`."""
        return self.extreme("min").index

    # Algebra -----------------------------------------------------------------------------------------------

    @overload
    def dot(self, other: "TensorTrain", modes: None = None) -> Tensor: ...
    @overload
    def dot(self, other: "TensorTrain", modes: int | _Ints) -> "TensorTrain | Tensor": ...
    def dot(self, other: "TensorTrain", modes: int | _Ints | None = None) -> "TensorTrain | Tensor":
        """Inner product <self, other>, `self` conjugated; a scalar tensor.

        Args:
            other: A train of the same shape, or one with more modes.
            modes: The modes of `other` that those of `self` are contracted with, in ascending order; the
                others remain, a train. See `ttnet.modes.partial_dot`.

        Returns:
            A scalar tensor, or with `modes` the train of the modes that remain.

        Raises:
            ShapeError: The shapes differ, or `modes` is no ascending list of as many modes.
            DTypeError: `other` is no train.
            DeviceError: The devices differ.
        """
        a, b = self._promoted(other)
        if modes is not None:
            return _train_or_scalar(_modes.partial_dot(a, b, modes))
        algebra.check_same_shape(a, b)
        return _cores.inner(a, b)

    __matmul__ = dot

    def __rmatmul__(self, other: object) -> NoReturn:
        """Refused: `@` is the inner product of two trains."""
        raise DTypeError(
            f"other: expected a TensorTrain, got {type(other).__name__}; a @ b is the inner product of two "
            f"trains: multiply a mode by a matrix with mode_product"
        )

    def norm(self) -> Tensor:
        """Frobenius norm, a real scalar tensor; from the center alone where there is one."""
        return _log_scale.norm(self._cores, center=self._center)

    def log_norm(self) -> Tensor:
        """Natural logarithm of the norm, a float64 scalar, finite where `norm` overflows; -inf for zero."""
        if self._center is None:
            return _log_scale.log_norm(self._cores)
        return _log_scale.log_norm((self._cores[self._center].reshape(1, -1, 1),))

    def normalized(self) -> tuple["TensorTrain", Tensor]:
        """The train over its norm, with center 0, and the logarithm of that norm, a float64 scalar.

        Works also where no number can hold the norm, and leads back to where all else works. A zero train
        stays zero, with logarithm -inf. See `ttnet.log_scale.normalize`.
        """
        cores, logarithm = _log_scale.normalize(self._cores)
        return TensorTrain(cores, 0), logarithm

    # Modes -------------------------------------------------------------------------------------------------

    def mode_product(self, matrices: Tensor | Sequence[Tensor], modes: int | _Ints) -> "TensorTrain":
        """Multiply modes by matrices (m, n_k), which makes them modes of size m; no rank changes.

        See `ttnet.modes.mode_product`: one matrix and one mode, or as many of both.
        """
        return TensorTrain(_modes.mode_product(self._cores, matrices, modes))

    def sum(self, modes: int | _Ints | None = None) -> "TensorTrain | Tensor":
        """Sum over `modes` (default: all of them, which gives a scalar tensor)."""
        return _train_or_scalar(_modes.sum_modes(self._cores, modes))

    def mean(self, modes: int | _Ints | None = None) -> "TensorTrain | Tensor":
        """Mean over `modes` (default: all of them, which gives a scalar tensor)."""
        return _train_or_scalar(_modes.mean_modes(self._cores, modes))

    @overload
    def permute(self, dims: _Ints, truncation: _Cut = None, *, return_report: _No = False) -> _Train: ...
    @overload
    def permute(self, dims: _Ints, truncation: _Cut = None, *, return_report: _Yes) -> _Pair: ...
    def permute(self, dims: _Ints, truncation: _Cut = None, *, return_report: bool = False) -> _TrainOrPair:
        """Reorder the modes, as `torch.permute`; exact unless `truncation` says otherwise, ranks may grow.

        See `ttnet.reorder.permute`. A truncation holds for all bonds. Without one the reverse order is free.
        """
        cores, report = reorder.permute(self._cores, dims, truncation)
        order, same = tuple(d % self.ndim for d in dims), tuple(range(self.ndim))
        mirrored = None if self._center is None else self.ndim - 1 - self._center
        kept = {same: self._center, same[::-1]: mirrored} if truncation is None else {}
        train = TensorTrain(cores, kept.get(order, 0))
        return (train, report) if return_report else train

    @overload
    def reshape(self, shape: _Ints, truncation: _Cut = None, *, return_report: _No = False) -> _Train: ...
    @overload
    def reshape(self, shape: _Ints, truncation: _Cut = None, *, return_report: _Yes) -> _Pair: ...
    def reshape(self, shape: _Ints, truncation: _Cut = None, *, return_report: bool = False) -> _TrainOrPair:
        """Split and merge modes, as `torch.reshape`, -1 too; exact unless `truncation` says otherwise.

        See `ttnet.reorder.reshape`. Ranks may grow where modes are split; a truncation holds for all bonds.
        """
        cores, report = reorder.reshape(self._cores, shape, truncation)
        return (TensorTrain(cores), report) if return_report else TensorTrain(cores)

    @overload
    def to_qtt(self, base: int = 2, truncation: _Cut = None, *, return_report: _No = False) -> _Train: ...
    @overload
    def to_qtt(self, base: int = 2, truncation: _Cut = None, *, return_report: _Yes) -> _Pair: ...
    def to_qtt(self, base: int = 2, truncation: _Cut = None, *, return_report: bool = False) -> _TrainOrPair:
        """Quantics: split every mode of size base^m into m modes of size `base`, the coarsest first."""
        cores, report = reorder.to_qtt(self._cores, base, truncation)
        return (TensorTrain(cores), report) if return_report else TensorTrain(cores)

    def from_qtt(self, shape: _Ints) -> "TensorTrain":
        """Merge the modes of a quantics train into modes of sizes `shape`, exactly."""
        return TensorTrain(reorder.from_qtt(self._cores, shape))

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
    def truncate(
        self,
        truncation: Truncation,
        *,
        method: str = "auto",
        metric: _Metric = None,
        return_report: _No = False,
    ) -> _Train: ...
    @overload
    def truncate(
        self, truncation: Truncation, *, method: str = "auto", metric: _Metric = None, return_report: _Yes
    ) -> _Pair: ...
    def truncate(
        self,
        truncation: Truncation,
        *,
        method: str = "auto",
        metric: _Metric = None,
        return_report: bool = False,
    ) -> _TrainOrPair:
        """A train of lower ranks, see `ttnet.rounding.truncate`.

        Args:
            truncation: Which singular values are kept.
            method: "auto" (the fastest that is safe), "svd", "qr-svd", "gram" or "randomized".
            metric: A Hermitian positive semidefinite matrix C_k (n_k, n_k), or None, for each mode: errors
                are measured in the norm sqrt(vec(x)^H (C_0 x ... x C_{d-1}) vec(x)).
            return_report: Whether the `TruncationReport` is returned as well.

        Returns:
            The train, with center 0 (none with a metric), or the pair (train, report).

        Raises:
            RankError: `max_rank` is a list that the bonds cannot have, or is needed and missing.
            ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.
            ShapeError: A matrix of the metric does not fit its mode.
        """
        cores, report = _rounding.truncate(
            self._cores, truncation, center=self._center, certify=return_report, method=method, metric=metric
        )
        train = TensorTrain(cores, 0 if metric is None else None)
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
        """Von Neumann entropy of one bond in nats, see `ttnet.gauge.entropy`."""
        return _gauge.entropy(self.spectrum(bond))

    def entropies(self) -> tuple[float, ...]:
        """Von Neumann entropies of all d - 1 bonds in nats, in one sweep."""
        return tuple(_gauge.entropy(values) for values in self.spectra())

    # Probabilities -----------------------------------------------------------------------------------------

    def sample(
        self, count: int, *, squared: bool = False, given: _Given = None, seed: _Seed = None
    ) -> distributions.Draws:
        """Independent draws of indices, exact, and their log-probabilities, see `distributions.sample`.

        The entries are the weights, or with `squared` their squares (Born's rule); `given` fixes indices,
        ``{mode: index}``.
        """
        return distributions.sample(self._cores, count, squared=squared, given=given, seed=seed)

    def marginals(self, *, squared: bool = False, given: _Given = None) -> tuple[Tensor, ...]:
        """Probabilities (n_k,) of the indices of every mode, see `ttnet.distributions.marginals`."""
        return distributions.marginals(self._cores, squared=squared, given=given)

    def marginal(self, modes: int | _Ints, *, squared: bool = False) -> "TensorTrain":
        """Joint distribution of some modes, a train of sum 1, see `ttnet.distributions.marginal`."""
        return TensorTrain(distributions.marginal(self._cores, modes, squared=squared))


register_pytree(TensorTrain)


def _train_or_scalar(picked: Cores | Tensor) -> TensorTrain | Tensor:
    return picked if isinstance(picked, Tensor) else TensorTrain(picked)
