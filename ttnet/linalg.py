"""Dense factorizations that sweeps are made of: positive QR and LQ, and an SVD that does not give up.

They accept batches and `torch.func.vmap`, and their gradients are finite where the factors are not unique,
by the convention of `ttnet.factor_gradients`. Without a gradient they are torch's.
"""

from typing import Any

import torch
from torch import Tensor

from ttnet.errors import DTypeError, NonFiniteError
from ttnet.factor_gradients import qr_gradient, svd_gradient
from ttnet.transforms import is_batched, needs_gradient

__all__ = [
    "check_finite",
    "frobenius_norm",
    "is_batched",
    "needs_gradient",
    "positive_lq",
    "positive_qr",
    "svd",
    "working_dtype",
]

_HALF = (torch.bfloat16, torch.float16)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which tensors of `dtype` are factorized.

    Args:
        dtype: Dtype of the cores.

    Returns:
        float32 for the half precisions, `dtype` itself for float32, float64, complex64 and complex128.

    Raises:
        DTypeError: `dtype` is an integer, a bool, or a float that torch cannot factorize.
    """
    if dtype in _HALF:
        return torch.float32
    if dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        return dtype
    raise DTypeError(
        f"dtype: expected float32, float64, complex64, complex128, bfloat16 or float16, got {dtype}; "
        f"convert the tensor first, for instance with .to(torch.float64)"
    )


def positive_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """QR factorization with a real, non-negative diagonal of R, which fixes the gauge.

    The gradient is finite for every matrix. Where R is singular its pseudo-inverse takes the place of R^-1:
    for a function of the product Q R the gradient is then right along all directions that Q spans and all
    that keep the rank; a zero matrix (m, n) with m <= n still gets the whole of it.

    Args:
        matrix: Shape (..., m, n).

    Returns:
        Q (..., m, k) with orthonormal columns and R (..., k, n), where k = min(m, n).
    """
    return _PositiveQR.apply(matrix) if needs_gradient(matrix) else _positive_qr(matrix)  # pyright: ignore[reportReturnType]


def _positive_qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    q, r = qr(matrix)
    phase = _phase(torch.diagonal(r, dim1=-2, dim2=-1))
    return q * phase.unsqueeze(-2), r * phase.conj().unsqueeze(-1)


def qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Thin QR factorization at any scale, without autograd.

    Torch's own is wrong by half where the squares of complex entries are about to overflow.

    Args:
        matrix: Shape (..., m, n).

    Returns:
        Q (..., m, k) and R (..., k, n), where k = min(m, n).
    """
    if not matrix.is_complex() or not matrix.numel():
        q, r = torch.linalg.qr(matrix)
        return q, r
    scale = _power_of_its_size(matrix)
    # A product with a real number is exact; a quotient of complex numbers is not.
    q, r = torch.linalg.qr(matrix * scale.reciprocal())
    return q, r * scale


def _power_of_its_size(matrix: Tensor) -> Tensor:
    """A power of 2 near the largest entry of each matrix (..., 1, 1), with an inverse in range."""
    largest = torch.maximum(matrix.real.abs(), matrix.imag.abs()).amax((-2, -1), keepdim=True)
    info = torch.finfo(largest.dtype)
    largest = torch.where(largest > 0, largest, 1).clamp(info.tiny, 0.125 / info.tiny)
    return largest / (2 * torch.frexp(largest).mantissa)


def positive_lq(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """LQ factorization with a real, non-negative diagonal of L.

    Args:
        matrix: Shape (..., m, n).

    Returns:
        L (..., m, k) and Q (..., k, n) with orthonormal rows, where k = min(m, n).
    """
    q, r = positive_qr(matrix.mH)
    # Torch's adjoints conjugate lazily, which numpy and data_ptr() do not know.
    return r.mH.resolve_conj(), q.mH.resolve_conj()


def _phase(diagonal: Tensor) -> Tensor:
    magnitude = diagonal.abs()
    # The quotient of a subnormal number is too coarse to be a phase.
    tiny = torch.finfo(magnitude.dtype).tiny
    return torch.where(magnitude >= tiny, diagonal / magnitude.clamp_min(tiny), torch.ones_like(diagonal))


def frobenius_norm(tensor: Tensor) -> Tensor:
    """Frobenius norm that neither overflows nor underflows on the way.

    Args:
        tensor: Any shape.

    Returns:
        A real scalar tensor; the gradient at zero is zero.
    """
    largest = tensor.detach().abs().amax()
    scale = largest.clamp_min(torch.finfo(largest.dtype).tiny)
    return scale * torch.linalg.vector_norm(tensor / scale)


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD; where the divide-and-conquer driver fails, a slower and safer way is taken.

    The gradient is finite for every matrix and exact where it exists. Among equal singular values it is that
    of a function of U S V^H, all of them kept or all of them cut; terms of null directions vanish. To carry
    the gradient of null directions as well, compute U^H A in place of S V^H, as `ttnet.decompose` does.
    Second derivatives are finite too, and exact where the singular values differ.

    Args:
        matrix: Shape (..., m, n).

    Returns:
        U (..., m, k), S (..., k) in descending order and V^H (..., k, n), where k = min(m, n).

    Raises:
        NonFiniteError: `matrix` holds a NaN or an infinity.
    """
    return _SVD.apply(matrix) if needs_gradient(matrix) else _svd(matrix)  # pyright: ignore[reportReturnType]


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if matrix.shape[-2] < matrix.shape[-1]:
        # LAPACK sums along the rows of a wide matrix in strides: slower, and in float32 off by up to 1e-3.
        u, s, vh = _svd(matrix.mH)
        return vh.mH.resolve_conj(), s, u.mH.resolve_conj()
    if torch.compiler.is_compiling() or is_batched(matrix):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh  # a plain tuple, which is what vmap expects of an autograd function
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        check_finite(matrix)
        return _svd_by_qr(matrix)
    if not bool(torch.isfinite(s).all()):
        check_finite(matrix)
        return _svd_by_qr(matrix)
    return u, s, vh


def _svd_by_qr(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of R after a QR: another matrix with the same singular values, on which the driver can converge."""
    scale = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
    q, r = torch.linalg.qr(matrix / scale)
    # One more QR of R^H makes the matrix nearly diagonal: a step of the QR iteration for singular values.
    q2, r2 = torch.linalg.qr(r.mH)
    u, s, vh = torch.linalg.svd(r2.mH, full_matrices=False)
    return q @ u, s * scale, vh @ q2.mH


def check_finite(matrix: Tensor) -> None:
    """Refuse a matrix that no factorization can take.

    Args:
        matrix: Any shape.

    Raises:
        NonFiniteError: `matrix` holds a NaN or an infinity.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError(
            f"matrix: expected finite entries for an SVD, got NaN or infinity in a tensor of shape "
            f"{tuple(matrix.shape)}; look for a diverging loss or an overflow before the sweep"
        )


class _SVD(torch.autograd.Function):
    """Thin SVD with the gradient of `ttnet.factor_gradients`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _svd(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        return svd_gradient((u, s, vh), (slopes[0], slopes[1], slopes[2]))


class _PositiveQR(torch.autograd.Function):
    """Positive QR with the gradient of `ttnet.factor_gradients`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor]:
        return _positive_qr(matrix)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        q, r = ctx.saved_tensors
        return qr_gradient((q, r), (slopes[0], slopes[1]))
