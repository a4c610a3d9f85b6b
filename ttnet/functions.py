"""Functions of trains, most of several, with the names they have in numpy.

Two dtypes are promoted as torch promotes them; two devices are an error.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor

from ttnet import elementwise as _elementwise
from ttnet import log_scale as _log_scale
from ttnet import modes as _modes
from ttnet import rounding as _rounding
from ttnet import sums as _sums
from ttnet._typing import Cores
from ttnet.algebra import check_number
from ttnet.chain import CoreChain
from ttnet.cross import CrossOptions, CrossReport
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix

Chain = TypeVar("Chain", TensorTrain, TTMatrix)
"""A train or a TT-matrix."""


def outer(a: Chain, b: Chain) -> Chain:
    """Tensor product ``a[i] * b[j]``: the modes of `b` follow those of `a`, no rank changes.

    Args:
        a: A train, or a TT-matrix.
        b: Another of the same kind.

    Returns:
        A train, or the TT-matrix that is the Kronecker product of the matrices.

    Raises:
        DTypeError: Arguments that are no trains or no TT-matrices, or one of each.
        DeviceError: The devices differ.
    """
    return type(a)(_modes.outer(*_together([a, b])))


def kron(a: Chain, b: Chain) -> Chain:
    """Kronecker product of what `full()` gives, as `numpy.kron`.

    Mode sizes and ranks of two trains multiply; the modes of TT-matrices stand side by side, as in `outer`.

    Raises:
        ShapeError: Trains with different numbers of modes.
        DTypeError: Arguments that are no trains or no TT-matrices, or one of each.
        DeviceError: The devices differ.
    """
    return outer(a, b) if isinstance(a, TTMatrix) else type(a)(_modes.kron(*_together([a, b])))


def concatenate(trains: Sequence[Chain], mode: int = 0) -> Chain:
    """Join trains, or TT-matrices, along one mode, as `numpy.concatenate`; the ranks add.

    Args:
        trains: Trains whose shapes differ in mode `mode` at most.
        mode: The mode that grows; negative ones count from the end. Those of a TT-matrix are its rows, then
            its columns.

    Returns:
        The joined train or TT-matrix.

    Raises:
        ShapeError: No train, no such mode, or shapes that differ elsewhere.
        DTypeError: Arguments that are no trains or no TT-matrices, or one of each.
        DeviceError: The devices differ.
    """
    together = _together(trains)
    return type(trains[0])(_modes.concatenate(together, mode))


def stack(trains: Sequence[TensorTrain], mode: int = 0) -> TensorTrain:
    """Join trains of one shape along a new mode, as `numpy.stack`; the ranks add.

    Raises:
        ShapeError: No train, no such mode, or shapes that differ.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.
    """
    return TensorTrain(_modes.stack(_together(trains), mode))


def pad(train: Chain, widths: Sequence[Sequence[int]], value: complex = 0.0) -> Chain:
    """Put a constant around a tensor, as `numpy.pad`.

    Args:
        train: A train, or a TT-matrix.
        widths: For each mode how many entries are put before and after it; those of a TT-matrix are its rows,
            then its columns.
        value: The constant; anything but 0 adds 2 to the ranks.

    Returns:
        The padded train or TT-matrix.

    Raises:
        ShapeError: Not a pair of integers of at least 0 for each mode.
        DTypeError: An argument that is neither a train nor a TT-matrix.

    Examples:
        >>> import ttnet
        >>> ttnet.pad(ttnet.ones((2, 3)), [(1, 1), (0, 2)], value=7.0).shape
        (4, 5)
    """
    (cores,) = _together([train])
    number = check_number(value)
    dtype = torch.result_type(cores[0], number)
    return type(train)(_modes.pad([core.to(dtype) for core in cores], widths, value))


def log_dot(a: TensorTrain, b: TensorTrain) -> tuple[Tensor, Tensor]:
    """Inner product <a, b>, `a` conjugated, as a phase and the logarithm of its magnitude.

    Finite where `dot` overflows; see `ttnet.log_scale.log_dot`.

    Args:
        a: A train.
        b: A train of the same shape.

    Returns:
        The phase, +-1 for real trains, and the natural logarithm of the magnitude: two scalars. A product of
        zero has phase 0 and logarithm -inf.

    Raises:
        ShapeError: The shapes differ.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.
    """
    return _log_scale.log_dot(*_together([a, b]))


def distance(a: TensorTrain, b: TensorTrain) -> float:
    """Frobenius norm of a - b, accurate also for near trains, without autograd.

    Raises:
        ShapeError: The shapes differ.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.
    """
    return _rounding.distance(*_together([a, b]))


@overload
def add(
    *trains: TensorTrain,
    truncation: Truncation,
    coefficients: Sequence[complex | Tensor] | None = None,
    method: str = "auto",
    return_report: Literal[False] = False,
) -> TensorTrain: ...


@overload
def add(
    *trains: TensorTrain,
    truncation: Truncation,
    coefficients: Sequence[complex | Tensor] | None = None,
    method: str = "auto",
    return_report: Literal[True],
) -> tuple[TensorTrain, TruncationReport]: ...


def add(
    *trains: TensorTrain,
    truncation: Truncation,
    coefficients: Sequence[complex | Tensor] | None = None,
    method: str = "auto",
    return_report: bool = False,
) -> TensorTrain | tuple[TensorTrain, TruncationReport]:
    """A linear combination of trains, rounded without forming the added ranks; ``a + b`` is the exact sum.

    Args:
        trains: Trains of one shape.
        truncation: Which singular values of the sum are kept.
        coefficients: One number for each train, by default 1; complex ones make the result complex.
        method: See `TensorTrain.truncate`.
        return_report: Whether the `TruncationReport` is returned as well.

    Returns:
        The sum, with center 0, or the pair (sum, report).

    Raises:
        ShapeError: No train, different shapes, or another number of coefficients than of trains.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
        ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.

    Examples:
        >>> import ttnet
        >>> train = ttnet.random_train((4, 5, 6), rank=3)
        >>> ttnet.add(*[train] * 5, truncation=ttnet.Truncation(max_rank=3)).ranks
        (1, 3, 3, 1)
    """
    factors = coefficients or ()
    is_complex = any(torch.as_tensor(factor).is_complex() for factor in factors)
    terms = _together([train.to(train.dtype.to_complex()) for train in trains] if is_complex else trains)
    cores, report = _sums.truncate_sum(
        terms, truncation, coefficients=coefficients, method=method, certify=return_report
    )
    return (TensorTrain(cores, 0), report) if return_report else TensorTrain(cores, 0)


@overload
def multiply(
    a: TensorTrain,
    b: TensorTrain,
    truncation: Truncation,
    *,
    method: str = "auto",
    return_report: Literal[False] = False,
) -> TensorTrain: ...


@overload
def multiply(
    a: TensorTrain,
    b: TensorTrain,
    truncation: Truncation,
    *,
    method: str = "auto",
    return_report: Literal[True],
) -> tuple[TensorTrain, TruncationReport]: ...


def multiply(
    a: TensorTrain,
    b: TensorTrain,
    truncation: Truncation,
    *,
    method: str = "auto",
    return_report: bool = False,
) -> TensorTrain | tuple[TensorTrain, TruncationReport]:
    """The entrywise product, rounded without forming the multiplied ranks; ``a * b`` is the exact one.

    Args:
        a: A train.
        b: A train of the same shape.
        truncation: Which singular values of the product are kept.
        method: See `TensorTrain.truncate`.
        return_report: Whether the `TruncationReport` is returned as well.

    Returns:
        The product, with center 0, or the pair (product, report).

    Raises:
        ShapeError: The shapes differ.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
        ConfigError: `method` is unknown, or cannot be differentiated or batched as asked.
    """
    x, y = _together([a, b])
    cores, report = _sums.truncate_product(x, y, truncation, method=method, certify=return_report)
    return (TensorTrain(cores, 0), report) if return_report else TensorTrain(cores, 0)


@overload
def apply_elementwise(
    function: Callable[..., Tensor],
    *trains: TensorTrain,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    return_report: Literal[False] = False,
) -> TensorTrain: ...


@overload
def apply_elementwise(
    function: Callable[..., Tensor],
    *trains: TensorTrain,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    return_report: Literal[True],
) -> tuple[TensorTrain, CrossReport]: ...


def apply_elementwise(
    function: Callable[..., Tensor],
    *trains: TensorTrain,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    return_report: bool = False,
) -> TensorTrain | tuple[TensorTrain, CrossReport]:
    """A train of function(x, y, ...), entry by entry, of trains x, y, ..., by cross approximation.

    Nothing is differentiated through it.

    Args:
        function: From as many vectors (batch,) as there are trains to values (batch,), for instance
            `torch.exp`.
        trains: Trains of one shape.
        options: Tolerance, caps and seed; by default a tolerance of 1e-8, or what the dtype resolves, and a
            fixed seed.
        pivots: Indices (count, d) that are known to matter.
        return_report: Whether the `CrossReport`, with the error on held-out entries, is returned as well.

    Returns:
        The train, or the pair (train, report).

    Raises:
        ShapeError: No train, or different shapes.
        NonFiniteError: The function returned a NaN or an infinity; the message tells the index.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.

    Warns:
        RuntimeWarning: The tolerance was not met, and the report, which says so, is not returned.
    """
    cores, report = _elementwise.apply_elementwise(
        function, _together(trains), options=options, pivots=pivots
    )
    if return_report:
        return TensorTrain(cores), report
    report.warn()
    return TensorTrain(cores)


@overload
def divide(
    a: TensorTrain,
    b: TensorTrain,
    *,
    options: CrossOptions | None = None,
    return_report: Literal[False] = False,
) -> TensorTrain: ...


@overload
def divide(
    a: TensorTrain, b: TensorTrain, *, options: CrossOptions | None = None, return_report: Literal[True]
) -> tuple[TensorTrain, CrossReport]: ...


def divide(
    a: TensorTrain, b: TensorTrain, *, options: CrossOptions | None = None, return_report: bool = False
) -> TensorTrain | tuple[TensorTrain, CrossReport]:
    """The quotient a / b, entry by entry, by cross approximation; ``a / b`` is this with default options.

    Nothing is differentiated through it.

    Args:
        a: A train.
        b: A train of the same shape, without zeros.
        options: Tolerance, caps and seed; by default a tolerance of 1e-8, or what the dtype resolves.
        return_report: Whether the `CrossReport`, with the error on held-out entries, is returned as well.

    Returns:
        The train, or the pair (train, report).

    Raises:
        ShapeError: The shapes differ.
        NonFiniteError: A zero of `b` was met.
        DTypeError: An argument is no train.
        DeviceError: The devices differ.

    Warns:
        RuntimeWarning: The tolerance was not met, and the report, which says so, is not returned.
    """
    cores, report = _elementwise.divide(*_together([a, b]), options=options)
    if return_report:
        return TensorTrain(cores), report
    report.warn()
    return TensorTrain(cores)


def _together(trains: Sequence[CoreChain]) -> list[Cores]:
    """The cores of all trains, or of all TT-matrices, in one dtype."""
    if not len(trains):
        raise ShapeError("trains: expected at least one train, got none")
    kind = TTMatrix if isinstance(trains[0], TTMatrix) else TensorTrain
    for train in trains:
        if not isinstance(train, kind):
            plural = "TTMatrices" if kind is TTMatrix else "TensorTrains"
            raise DTypeError(f"trains: expected {plural}, got {type(train).__name__}")
        if train.device != trains[0].device:
            raise DeviceError(
                f"trains: expected one device, got {trains[0].device} and {train.device}; use .to(...)"
            )
    dtype = reduce(torch.promote_types, [train.dtype for train in trains])
    return [train.to(dtype).cores for train in trains]
