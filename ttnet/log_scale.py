"""Norms and inner products as logarithms, for trains whose norm no float can hold, and the norm itself."""

import math

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import check_same_shape
from ttnet.cores import extend_left
from ttnet.gauge import orthogonalize_scaled
from ttnet.scaling import split_power, times_power_of_two


def log_dot(a: CoresLike, b: CoresLike) -> tuple[Tensor, Tensor]:
    """Inner product <a, b>, `a` conjugated, as a phase and the logarithm of its magnitude.

    Args:
        a: Cores of shape (r_k, n_k, r_{k+1}).
        b: Cores of shape (s_k, n_k, s_{k+1}), of the same dtype.

    Returns:
        The phase, +-1 for real trains and of modulus 1 for complex ones, in the dtype of the cores (float32
        or better), and the natural logarithm of the magnitude, in float64: two scalars. A product of zero
        has phase 0 and logarithm -inf. Both are differentiable where the product is not zero.

    Raises:
        ShapeError: The shapes differ.
    """
    check_same_shape(a, b)
    working = linalg.working_dtype(torch.promote_types(a[0].dtype, b[0].dtype))
    environment = a[0].new_ones(1, 1, dtype=working)
    scales = []
    for x, y in zip(a, b, strict=True):
        x, x_scale = _normalized(x.to(working))
        y, y_scale = _normalized(y.to(working))
        environment, scale = _normalized(extend_left(environment, x, y))
        scales += [x_scale, y_scale, scale]
    value = environment.reshape(())
    magnitude = value.abs()
    if not bool(magnitude > 0):
        return value.detach(), _minus_infinity(value)
    return value / magnitude, _sum_of_logs(scales) + magnitude.to(torch.float64).log()


def log_norm(cores: CoresLike) -> Tensor:
    """Natural logarithm of the Frobenius norm; -inf for a zero train.

    It comes from QR factorizations, not from <x, x>: it is right to full precision also where the train is a
    small difference of large ones. Its gradient is that of ``log <x, x> / 2``, and zero for a zero train.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).

    Returns:
        A real scalar in float64.
    """
    with torch.no_grad():
        value = _log_norm_by_qr(cores)
    if not torch.is_grad_enabled() or not any(core.requires_grad for core in cores):
        return value
    if not bool(value > -torch.inf):
        # The graph stays whole; the gradient of a zero train is zero, as that of its norm.
        return value + 0 * torch.stack([core.real.sum() for core in cores]).sum()
    half = log_dot(cores, cores)[1] / 2
    return value + (half - half.detach())


def norm(cores: CoresLike, *, center: int | None = None) -> Tensor:
    """Frobenius norm, in the precision of the cores; infinite, or zero, where it is out of their range.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        center: Present center, where there is one: the norm is read off that core.

    Returns:
        A real scalar. Under `torch.func.vmap` and `torch.compile` it is NaN where an intermediate overflows.
    """
    if center is not None:
        return linalg.frobenius_norm(cores[center])
    work, exponent = orthogonalize_scaled(cores, 0)
    value = linalg.frobenius_norm(work[0])
    if not exponent:
        return value
    return times_power_of_two(value.to(linalg.working_dtype(value.dtype)), exponent).to(value.dtype)


def normalize(cores: CoresLike) -> tuple[Cores, Tensor]:
    """A train over its norm, and the logarithm of that norm: at any scale, with nothing lost.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), in whose product the norm may be one that no number of
            their dtype can hold.

    Returns:
        Cores of the canonical gauge with center 0 and norm 1, and the natural logarithm of the norm, a real
        scalar in float64. Both are differentiable. A zero train stays zero, with logarithm -inf.

    Raises:
        NonFiniteError: A core holds a NaN or an infinity.

    Examples:
        >>> import ttnet
        >>> train = ttnet.random_train((4,) * 1000, rank=3, seed=0)
        >>> cores, logarithm = normalize(train.cores)
        >>> round(float(norm(cores)), 4), bool((logarithm - train.log_norm()).abs() < 1e-3)
        (1.0, True)
    """
    storage = cores[0].dtype
    working = linalg.working_dtype(storage)
    head, exponent = split_power(cores[0].to(working))
    (first, *rest), total = orthogonalize_scaled((head, *(core.to(working) for core in cores[1:])), 0)
    size = linalg.frobenius_norm(first)
    if not bool(size > 0):
        return tuple(core.to(storage) for core in (first, *rest)), _minus_infinity(size)
    logarithm = size.to(torch.float64).log() + (exponent + total) * math.log(2)
    return tuple(core.to(storage) for core in (first / size, *rest)), logarithm


def _log_norm_by_qr(cores: CoresLike) -> Tensor:
    working = linalg.working_dtype(cores[0].dtype)
    carry = cores[0].new_ones(1, 1, dtype=working)
    scales = []
    for core in cores:
        core, core_scale = _normalized(core.to(working))
        rows = (carry @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
        # A wide matrix has no smaller factor that carries its norm to the right.
        rows = linalg.positive_qr(rows)[1] if rows.shape[0] > rows.shape[1] else rows
        carry, scale = _normalized(rows)
        scales += [core_scale, scale]
    norm = linalg.frobenius_norm(carry)
    return _sum_of_logs(scales) + norm.to(torch.float64).log() if bool(norm > 0) else _minus_infinity(norm)


def _sum_of_logs(scales: list[Tensor]) -> Tensor:
    return torch.stack(scales).to(torch.float64).log().sum()


def _minus_infinity(like: Tensor) -> Tensor:
    return torch.full((), -torch.inf, dtype=torch.float64, device=like.device)


def _normalized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor over its largest magnitude, which is a constant of the graph: the two sum up to nothing."""
    largest = tensor.detach().abs().amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return tensor / scale, scale
