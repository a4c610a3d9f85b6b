"""In which norm the cuts of a sweep measure errors: the Frobenius norm, or that of a metric of the modes.

A metric has one Hermitian positive semidefinite matrix C_k or None for each mode, see `ttnet.metric`. With
C_k = L_k^H L_k its norm is the Frobenius norm of the train whose mode k has been multiplied by L_k. The maps
of a cut act on bonds, and the matrices L_k on modes: so the maps that cut the weighted train well are applied
to the train itself, and no inverse of L_k is needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.errors import ConfigError, ShapeError, StateError
from ttnet.metric import Root, apply_modes, factor_metric
from ttnet.optim.distributed import broadcast, gather, is_distributed
from ttnet.tensor_train import TensorTrain

Metric = Sequence[Tensor | None]
"""One Hermitian positive semidefinite matrix (n_k, n_k) or None (identity) for each mode."""

MetricSource = Metric | Callable[[], Metric]
"""A metric, or a function that returns the one of the moment."""

Metrics = MetricSource | Mapping[str, MetricSource] | Callable[[], Mapping[str, Metric]]
"""A metric of one train (or the same for all), or metrics by name of the train."""

NormName = Literal["frobenius", "metric"]


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The norm of a train.

    Attributes:
        roots: For each mode a square matrix L_k (n_k, n_k) or None; None for the Frobenius norm.
    """

    roots: tuple[Tensor | None, ...] | None = None

    @property
    def name(self) -> NormName:
        """What a report calls it."""
        return "frobenius" if self.roots is None else "metric"

    def weighted(self, cores: CoresLike) -> Cores:
        """Cores of a train whose Frobenius norm is this norm of the given one.

        Args:
            cores: Core k of shape (r_k, n_k, r_{k+1}).

        Returns:
            Cores of the same shapes: in double precision, or those given where the norm is Frobenius.
        """
        if self.roots is None:
            return tuple(cores)
        double = [core.detach().to(_precise(core)) for core in cores]
        roots = [
            None if root is None else root.to(core.device, core.dtype)
            for root, core in zip(self.roots, double, strict=True)
        ]
        return apply_modes(roots, double)


def norm_of(metric: Metric | None, cores: CoresLike) -> Norm:
    """The norm of a metric.

    Each matrix is factored in the coarser of its own precision and that of its core, so that negative
    eigenvalues which are roundoff of single precision are taken for zero.

    Args:
        metric: One matrix (n_k, n_k) or None for each mode; None for the Frobenius norm.
        cores: Core k of shape (r_k, n_k, r_{k+1}).

    Returns:
        The norm; that of Frobenius also where the metric sees nothing of the train but roundoff, since it
        could tell no direction from another.

    Raises:
        ShapeError: Another number of matrices than modes, or a matrix that does not fit its mode.
        ConfigError: It is no metric, see `ttnet.metric.factor_metric`.
    """
    check_metric(metric, [core.shape[1] for core in cores])
    if metric is None or all(matrix is None for matrix in metric):
        return Norm()
    like = [core.detach().to(_coarser(core, matrix)) for core, matrix in zip(cores, metric, strict=True)]
    detached = [None if matrix is None else matrix.detach() for matrix in metric]
    found = [factor_metric([matrix], [core])[0] for matrix, core in zip(detached, like, strict=True)]
    norm = Norm(roots=tuple(root if root is None else _square(root) for root in found))
    roundoff = max(torch.finfo(core.dtype).eps for core in like)
    return norm if _sees(norm, cores, 4 * roundoff) else Norm()


def check_metric(metric: object, shape: Sequence[int]) -> None:
    """Refuse what cannot be a metric of a train of this shape, without looking at values.

    Args:
        metric: What came in its place.
        shape: Mode sizes.

    Raises:
        ConfigError: It is no sequence of tensors and None.
        ShapeError: Another number of matrices than modes, or a matrix that does not fit its mode.
    """
    if metric is None:
        return
    if not isinstance(metric, Sequence) or not all(m is None or isinstance(m, Tensor) for m in metric):
        raise ConfigError(
            f"metric: expected a matrix or None for each mode, or a function that returns them, got "
            f"{type(metric).__name__}; see ttnet.adapters.input_moments"
        )
    if len(metric) != len(shape):
        raise ShapeError(
            f"metric: expected one matrix or None for each of {len(shape)} modes, got {len(metric)}"
        )
    for k, (matrix, size) in enumerate(zip(metric, shape, strict=True)):
        if matrix is not None and matrix.shape != (size, size):
            raise ShapeError(
                f"metric: expected shape ({size}, {size}) for mode {k}, got {tuple(matrix.shape)}"
            )


def check_metrics(metrics: Metrics | None, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse metrics that do not fit the trains; what is a function is looked at when it is called.

    Args:
        metrics: As `DMRGScheduler` takes them.
        shapes: Mode sizes by name of the train.

    Raises:
        ConfigError: A name is that of no train, or something is no metric.
        ShapeError: A metric does not fit its train.
    """
    if callable(metrics):
        return
    for name, metric in _by_name(metrics, list(shapes)).items():
        if not callable(metric):
            check_metric(metric, shapes[name])


def norms_now(
    metrics: Metrics | None, cores: Mapping[str, CoresLike], names: Sequence[str]
) -> dict[str, Norm]:
    """The norms of a sweep: functions are called, and the mean is taken over the processes of a job.

    Args:
        metrics: As `DMRGScheduler` takes them.
        cores: Cores of the trains that are swept, by name.
        names: Names of all trains.

    Returns:
        A norm for each of these trains; the same in all processes.

    Raises:
        ConfigError: Something is no metric, or the processes have different ones.
        ShapeError: A metric does not fit its train.
        StateError: The function failed in another process; one that fails itself raises its own error.
    """
    if metrics is None:
        return {name: Norm() for name in cores}
    found: dict[str, Metric | None] = {}
    failure: Exception | None = None
    try:
        found = _evaluate(metrics, cores, names)
    except Exception as error:  # the other processes have to hear of it first
        failure = error
    if is_distributed():
        _share(found, cores, failure)
    elif failure is not None:
        raise failure
    return {name: norm_of(found[name], cores[name]) for name in cores}


def _evaluate(
    metrics: Metrics, cores: Mapping[str, CoresLike], names: Sequence[str]
) -> dict[str, Metric | None]:
    value: Any = metrics() if callable(metrics) else metrics
    by_name = _by_name(value, names)
    found: dict[str, Metric | None] = {}
    for name, own in cores.items():
        metric: Any = by_name.get(name)
        metric = metric() if callable(metric) else metric
        check_metric(metric, [core.shape[1] for core in own])
        found[name] = metric and [None if m is None else _copy(m, own[0].device) for m in metric]
    return found


def _copy(matrix: Tensor, device: torch.device) -> Tensor:
    """A dense copy in float32 or better: the mean over processes is taken in place, of raw memory."""
    matrix = matrix.detach().resolve_conj().resolve_neg()
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    return matrix.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def _by_name(metrics: Any, names: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(metrics, Mapping):
        return dict.fromkeys(names, metrics)
    unknown = [name for name in metrics if name not in names]
    if unknown:
        raise ConfigError(f"metric: expected names of trains among {list(names)}, got {unknown}")
    return metrics


def _share(
    found: Mapping[str, Metric | None], cores: Mapping[str, CoresLike], failure: Exception | None
) -> None:
    """Replace the matrices of each process by their mean, in place."""
    shapes = None if failure else [None if m is None else tuple(map(_kind, m)) for m in found.values()]
    everyone = gather(shapes)
    if failure is not None:
        raise failure
    if None in everyone:
        raise StateError(
            f"metric: failed in {everyone.count(None)} of {len(everyone)} processes; their own messages say "
            f"why, and no train was changed"
        )
    if any(each != everyone[0] for each in everyone):
        raise ConfigError("metric: expected the same modes and dtypes in every process, got different ones")
    matrices = [m for name in cores for m in found[name] or () if m is not None]
    for matrix in matrices:
        whole = torch.view_as_real(matrix) if matrix.is_complex() else matrix
        dist.all_reduce(whole)
        whole /= len(everyone)
    broadcast(matrices)


def _kind(matrix: Tensor | None) -> tuple[tuple[int, ...], str] | None:
    return None if matrix is None else (tuple(matrix.shape), str(matrix.dtype))


def _square(root: Root) -> Tensor:
    """A square L with L^H L = C, in double precision.

    A Cholesky factor is one as it is, and zero wherever C has zero blocks. In the place of the factor that
    eigenvectors give, the Hermitian root is taken, which has the blocks of C as well: matrices of several
    widths in one mode stay apart.
    """
    factor = root.factor.to(_precise(root.factor))
    if factor.shape[0] == factor.shape[1] and not bool(factor.tril(-1).any()):
        return factor
    sizes = torch.linalg.vector_norm(factor, dim=1)
    return factor.mH @ (factor / sizes.unsqueeze(1))


def _sees(norm: Norm, cores: CoresLike, roundoff: float) -> bool:
    """Whether the norm of a train that is not zero is more than roundoff."""
    plain = float(TensorTrain([core.detach().to(_precise(core)) for core in cores]).norm())
    bound = plain * math.prod(
        float(torch.linalg.matrix_norm(root, 2)) for root in norm.roots or () if root is not None
    )
    return plain == 0.0 or float(TensorTrain(norm.weighted(cores)).norm()) > roundoff * bound


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _coarser(core: Tensor, matrix: Tensor | None) -> torch.dtype:
    double = (torch.float64, torch.complex128)
    if core.dtype in double and (matrix is None or matrix.dtype in double):
        return core.dtype
    return torch.complex64 if core.is_complex() else torch.float32
