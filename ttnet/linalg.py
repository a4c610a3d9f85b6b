"""Dense factorizations that sweeps are made of: positive QR and LQ, and an SVD that does not give up.

They accept batches where torch does, compute half precision in float32, and differentiate as torch does.
"""

import torch
from torch import Tensor

from ttnet.errors import DTypeError, NonFiniteError

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

    Args:
        matrix: Shape (..., m, n).

    Returns:
        Q (..., m, k) with orthonormal columns and R (..., k, n), where k = min(m, n).
    """
    q, r = torch.linalg.qr(matrix)
    phase = _phase(torch.diagonal(r, dim1=-2, dim2=-1))
    return q * phase.unsqueeze(-2), r * phase.conj().unsqueeze(-1)


def positive_lq(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """LQ factorization with a real, non-negative diagonal of L.

    Args:
        matrix: Shape (..., m, n).

    Returns:
        L (..., m, k) and Q (..., k, n) with orthonormal rows, where k = min(m, n).
    """
    q, r = positive_qr(matrix.mH)
    return r.mH, q.mH


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

    Args:
        matrix: Shape (..., m, n).

    Returns:
        U (..., m, k), S (..., k) in descending order and V^H (..., k, n), where k = min(m, n).

    Raises:
        NonFiniteError: `matrix` holds a NaN or an infinity.
    """
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        _refuse_non_finite(matrix)
        return _svd_by_qr(matrix)
    if not bool(torch.isfinite(s).all()):
        _refuse_non_finite(matrix)
        return _svd_by_qr(matrix)
    return u, s, vh


def _svd_by_qr(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of R after a QR: another matrix with the same singular values, on which the driver can converge."""
    if matrix.shape[-2] < matrix.shape[-1]:
        u, s, vh = _svd_by_qr(matrix.mH)
        return vh.mH, s, u.mH
    scale = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
    q, r = torch.linalg.qr(matrix / scale)
    # One more QR of R^H makes the matrix nearly diagonal: a step of the QR iteration for singular values.
    q2, r2 = torch.linalg.qr(r.mH)
    u, s, vh = torch.linalg.svd(r2.mH, full_matrices=False)
    return q @ u, s * scale, vh @ q2.mH


def _refuse_non_finite(matrix: Tensor) -> None:
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError(
            f"matrix: expected finite entries for an SVD, got NaN or infinity in a tensor of shape "
            f"{tuple(matrix.shape)}; look for a diverging loss or an overflow before the sweep"
        )
