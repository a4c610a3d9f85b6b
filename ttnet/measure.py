"""What is measured on a train read as a state: expectation values, correlations, variances, samples.

Values are those of the normalized state: <x|H|x> / <x|x>. Operators are square TT-matrices whose modes are
those of the train; a list of them stands for their sum, which is never formed.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ttnet import algebra, linalg
from ttnet import cores as _cores
from ttnet import matrix_cores as _matrix
from ttnet._typing import Cores
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.gauge import orthogonalize_scaled
from ttnet.interfaces import extend_gram
from ttnet.matrix_cores import tensordot
from ttnet.tensor_train import TensorTrain
from ttnet.tt_matrix import TTMatrix, pair

Operators = TTMatrix | Sequence[TTMatrix]
"""One operator, or several that stand for their sum."""

SiteMatrices = Tensor | Sequence[Tensor]
"""One matrix (n, n) for all sites, or one for each."""


# Expectation values ----------------------------------------------------------------------------------------


def sandwich(bra: TensorTrain, operator: TTMatrix, ket: TensorTrain) -> Tensor:
    """Matrix element <bra|H|ket>, `bra` conjugated, not normalized; differentiates by contraction.

    Args:
        bra: Modes (m_0, ..., m_{d-1}), the rows of `operator`.
        operator: H.
        ket: Modes (n_0, ..., n_{d-1}), its columns.

    Returns:
        A scalar tensor.

    Raises:
        ShapeError: The modes do not fit.
        DTypeError: An argument is of another type.
        DeviceError: The devices differ.
    """
    value, log_scale = _sandwich(bra, operator, ket)
    return value * log_scale.exp()


def expectation(operators: Operators, train: TensorTrain) -> Tensor:
    """Expectation value <x|H|x> / <x|x>; differentiates by contraction and does not overflow on the way.

    Args:
        operators: H, or operators H_i that stand for their sum.
        train: x.

    Returns:
        A scalar tensor: the real part where operator and train are real, complex otherwise.

    Raises:
        ShapeError: The modes do not fit.
        DTypeError: An argument is of another type.
        DeviceError: The devices differ.
        NonFiniteError: The train is zero.

    Examples:
        >>> import torch, ttnet
        >>> from ttnet.operators import heisenberg
        >>> up = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 2, 1)
        >>> round(expectation(heisenberg(5, dtype=torch.float64), ttnet.TensorTrain([up] * 5)).item(), 12)
        1.0
    """
    squared_norm, log_norm = _sandwich(
        train, TTMatrix.identity(train.shape, dtype=train.dtype, device=train.device), train
    )
    if not bool(squared_norm != 0):
        raise NonFiniteError("train: expected a train of positive norm, got the zero train")
    parts = []
    for operator in _listed(operators, train):
        value, log_scale = _sandwich(train, operator, train)
        parts.append(value / squared_norm * (log_scale - log_norm).exp())
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def overlap_environments(bra: TensorTrain, ket: TensorTrain) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Overlap <bra|ket> of what is left and of what is right of every core.

        +--bra*--(k)--bra*--+        left[k] (r_k, s_k)
        |   |          |    |        right[k] (r_{k+1}, s_{k+1})
        +--ket---(k)--ket---+

    Args:
        bra: Ranks r; conjugated.
        ket: Ranks s, of the same shape.

    Returns:
        d left and d right environments; left[0] and right[d-1] are 1.

    Raises:
        ShapeError: The shapes differ.
    """
    algebra.check_same_shape(bra.cores, ket.cores)
    dtype = torch.promote_types(bra.dtype, ket.dtype)
    a, b = bra.to(dtype).cores, ket.to(dtype).cores
    left, right = [a[0].new_ones(1, 1)], [a[0].new_ones(1, 1)]
    for k in range(len(a) - 1):
        left.append(_cores.extend_left(left[-1], a[k], b[k]))
        right.append(_cores.extend_right(right[-1], a[-1 - k], b[-1 - k]))
    return tuple(left), tuple(reversed(right))


def _sandwich(bra: TensorTrain, operator: TTMatrix, ket: TensorTrain) -> tuple[Tensor, Tensor]:
    """The matrix element as a number of moderate size and the log of its scale."""
    operator, ket = pair(operator, ket)
    bra = bra.to(ket.dtype)
    operator = operator.to(ket.dtype)
    _matrix.check_fits(operator.cores, ket.shape, name="ket")
    _matrix.check_fits(_matrix.transpose(operator.cores), bra.shape, name="bra")
    environment = ket.cores[0].new_ones(1, 1, 1)
    log_scale = environment.real.new_zeros(())
    for p, a, s in zip(bra.cores, operator.cores, ket.cores, strict=True):
        half = tensordot(environment, s, [2], [0])  # (p, a, n, s')
        half = tensordot(half, a, [1, 2], [0, 2])  # (p, s', m, a')
        environment = tensordot(p.conj(), half, [0, 1], [0, 2]).transpose(1, 2)
        largest = environment.detach().abs().amax()
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))
        environment = environment / scale
        log_scale = log_scale + scale.log()
    return environment.reshape(()), log_scale


def _listed(operators: Operators, train: TensorTrain) -> list[TTMatrix]:
    listed = [operators] if isinstance(operators, TTMatrix) else list(operators)
    if not listed or not all(isinstance(operator, TTMatrix) for operator in listed):
        kinds = [type(operator).__name__ for operator in listed]
        raise DTypeError(f"operators: expected a TTMatrix or a list of them, not empty, got {kinds}")
    for operator in listed:
        _matrix.check_square(operator.cores, name="operators")
        _matrix.check_fits(operator.cores, train.shape, name="train")
    return listed


# One and two sites -----------------------------------------------------------------------------------------


def site_densities(train: TensorTrain) -> tuple[Tensor, ...]:
    """Density matrix of every site, in one sweep: <O_k> is the trace of O_k @ density[k].

    Args:
        train: The state x, of any norm but 0.

    Returns:
        d Hermitian matrices of shape (n_k, n_k) and trace 1.

    Raises:
        NonFiniteError: The train is zero.
    """
    cores = normalized_cores(train)
    environment, densities = cores[0].new_ones(1, 1), []
    for core in cores:
        half = _cores.absorb_left(environment, core)
        densities.append(tensordot(half, core.conj(), [0, 2], [0, 2]))
        environment = _cores.left_unfold(core).mH @ _cores.left_unfold(half)
    return tuple(densities)


def local_expectations(matrices: SiteMatrices, train: TensorTrain) -> Tensor:
    """Expectation value of a matrix on each site, in one sweep.

    Args:
        matrices: One matrix (n, n) for all sites, or one for each.
        train: The state, of any norm but 0.

    Returns:
        Shape (d,).

    Raises:
        ShapeError: A matrix does not fit its site.
        NonFiniteError: The train is zero.
    """
    by_site = matrices_by_site(matrices, train, "matrices")
    densities = site_densities(train)
    return torch.stack([trace_with(o, rho) for o, rho in zip(by_site, densities, strict=True)])


def trace_with(matrix: Tensor, density: Tensor) -> Tensor:
    """Expectation value of a matrix in a density matrix, tr(matrix density)."""
    dtype = torch.promote_types(matrix.dtype, density.dtype)
    return (matrix.to(dtype) * density.to(dtype).mT).sum()


def matrices_by_site(matrices: SiteMatrices, train: TensorTrain, name: str) -> list[Tensor]:
    """One matrix for each site, on the train's device, in its precision or better.

    Raises:
        ShapeError: A matrix does not fit its site.
    """
    by_site = (
        [matrices] * train.ndim if isinstance(matrices, Tensor) and matrices.ndim == 2 else list(matrices)
    )
    shapes = [tuple(matrix.shape) for matrix in by_site]
    if shapes != [(n, n) for n in train.shape]:
        raise ShapeError(
            f"{name}: expected a matrix (n, n) for all sites or one for each of the modes {train.shape}, "
            f"got shapes {shapes}"
        )
    dtype = linalg.working_dtype(train.dtype)
    return [
        matrix.to(device=train.device, dtype=torch.promote_types(matrix.dtype, dtype)) for matrix in by_site
    ]


def normalized_cores(train: TensorTrain) -> Cores:
    """Right-orthogonal cores of the train divided by its norm, in float32 or better."""
    dtype = linalg.working_dtype(train.dtype)
    start = train.center if dtype == train.dtype else None
    cores, _ = orthogonalize_scaled(train.to(dtype).cores, 0, start=start)
    norm = linalg.frobenius_norm(cores[0])
    if not bool(norm > 0) or not bool(torch.isfinite(norm)):
        raise NonFiniteError(
            f"train: expected a train of positive, finite norm, got norm {float(norm.detach())}"
        )
    return (cores[0] / norm, *cores[1:])


# Variance --------------------------------------------------------------------------------------------------


def variance(operators: Operators, train: TensorTrain, *, method: str = "auto") -> Tensor:
    """Variance <H^2> - <H>^2 as ||(H - <H>) x||^2 / ||x||^2, which is 0 for eigenvectors only.

    Methods:
        "auto": "pairs", and "residual" where that leaves fewer than three digits.
        "residual": The norm of (H - <H>) x by orthogonalization, exact also where <H^2> and <H>^2 agree in
            all digits: variances far below the precision times <H>^2 are resolved. Forms (H - <H>) x, whose
            ranks are (sum_i w_i + 1) r for operators of ranks w_i and a train of ranks r.
        "pairs": The sum over pairs of <H_i H_j> - <H_i> <H_j>, by contraction: cheaper and small in memory,
            but no better than the precision times <H>^2.

    Args:
        operators: H, or operators H_i that stand for their sum, which is never formed. For an H that is not
            Hermitian, <H^2> stands for ||H x||^2 and <H>^2 for its absolute square.
        train: The state x, of any norm but 0.
        method: "auto", "residual" or "pairs".

    Returns:
        A real scalar tensor, not negative.

    Raises:
        ShapeError: The modes do not fit.
        DTypeError: An argument is of another type.
        DeviceError: The devices differ.
        ConfigError: `method` is unknown.
        NonFiniteError: The train is zero.
    """
    if method not in ("auto", "residual", "pairs"):
        raise ConfigError(f"method: expected 'auto', 'residual' or 'pairs', got {method!r}")
    listed = _listed(operators, train)
    state = TensorTrain(normalized_cores(train), 0)
    means = [expectation(operator, state) for operator in listed]
    if method != "residual":
        found, squared = _variance_by_pairs(listed, state, means)
        unresolved = 1e3 * torch.finfo(found.dtype).eps * squared
        if method == "pairs" or bool(found.detach() > unresolved):
            return found
    residual = state * -torch.stack(means).sum()
    for operator in listed:
        residual = operator @ state + residual
    return residual.norm().square()


def _variance_by_pairs(
    listed: list[TTMatrix], state: TensorTrain, means: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The variance of a sum by pairs of operators, and the magnitude of the terms that cancel in it."""
    paired = [pair(operator, state) for operator in listed]
    total = torch.zeros_like(means[0].real)
    size = torch.zeros_like(total)
    dtype = reduce(torch.promote_types, [mean.dtype for mean in means])
    for i, (first, x) in enumerate(paired):
        for j, (second, _) in enumerate(paired[: i + 1]):
            moment = _moment(first.to(dtype), second.to(dtype), x.to(dtype))
            total = total + (1 if i == j else 2) * (moment - means[i].conj() * means[j]).real
            size = size + 2 * (moment.detach().abs() + (means[i] * means[j]).detach().abs())
    return total.clamp_min(0), size


def _moment(bra: TTMatrix, ket: TTMatrix, state: TensorTrain) -> Tensor:
    """<A x, B x>."""
    gram = state.cores[0].new_ones(1, 1, 1, 1)
    for a, b, core in reversed(list(zip(bra.cores, ket.cores, state.cores, strict=True))):
        gram = extend_gram(gram, b, core.unsqueeze(2), a)
    return gram.reshape(())
