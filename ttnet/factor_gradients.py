r"""Gradients of the thin SVD and of the positive QR that stay finite where the factors are not unique.

The factors of a matrix with equal or zero singular values are one choice of many, and have no derivative of
their own. What a train, or any other function of the product alone, makes of them has one. Here the right
factor is read as a projection of the matrix A,

    V^H = S^-1 U^H A        R = Q^H A,

so that only the rotation of U and of Q is differentiated, and of that the terms without a limit are dropped:

- between singular values closer than about eps^(2/3) of their size the quotient 1/(s_i - s_j) fades to 0
  (Lorentzian): a function of U S V^H, whose cut does not part such values, has no such term;
- in null directions (singular values at the level of roundoff) 1/s is 0, and so is the gradient of s;
- where R is singular, R^-1 is its pseudo-inverse.

Nothing is changed where the derivative exists. All is made of differentiable operations: second derivatives
are exact where the spectrum is simple and R is regular, and finite elsewhere.

References:
    Wan and Zhang, arXiv:1909.02659 (complex SVD); Walter and Lehmann, Algebraic and Geometric Topology of
    Automatic Differentiation, arXiv:1001.1654 (QR); Liao et al., Phys. Rev. X 9, 031041 (Lorentzian).
"""

import torch
from torch import Tensor

from ttnet.transforms import is_batched


def svd_gradient(factors: tuple[Tensor, Tensor, Tensor], slopes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Gradient of a matrix from the gradients of its thin SVD.

    Args:
        factors: U (..., m, k), S (..., k), descending, and V^H (..., k, n), k = min(m, n).
        slopes: Gradients of the three, of the same shapes.

    Returns:
        Shape (..., m, n), finite.
    """
    u, s, vh = factors
    slope_u, slope_s, slope_vh = slopes
    floor = _noise_floor(s, max(u.shape[-2], vh.shape[-1]))
    live = s > floor
    inverse = torch.where(live, 1 / torch.where(live, s, 1), 0)
    # V^H = S^-1 (U^H A): what it receives goes to the matrix, to S and to U.
    direct = inverse.unsqueeze(-1) * slope_vh
    slope_s = torch.where(live, slope_s - (direct * vh.conj()).sum(-1).real, 0)
    own = u.mH @ slope_u
    turning = own + s.unsqueeze(-1) * (direct @ vh.mH).mH
    turning = (turning - turning.mH) * _rotation_weights(s, live, floor)
    inner = direct + (torch.diag_embed(slope_s.to(u.dtype)) + turning) @ vh
    gradient = u @ inner
    if u.shape[-2] > u.shape[-1]:
        gradient = gradient + ((slope_u - u @ own) * inverse.unsqueeze(-2)) @ vh
    return gradient


def _noise_floor(s: Tensor, size: int) -> Tensor:
    """Value below which singular values are roundoff, for each matrix; above the range that 1/s overflows."""
    info = torch.finfo(s.dtype)
    return (s.detach().amax(-1, keepdim=True) * (size * info.eps)).clamp_min(4 * info.tiny)


def _rotation_weights(s: Tensor, live: Tensor, floor: Tensor) -> Tensor:
    """s_j / (s_j^2 - s_i^2) for the pair (i, j), faded to 0 where the two are close or both null."""
    tolerance = torch.finfo(s.dtype).eps ** (2 / 3)
    row, column = s.unsqueeze(-1), s.unsqueeze(-2)
    some = live.unsqueeze(-1) | live.unsqueeze(-2)
    # Relative to the larger of the two, so that the squares stay in range at any scale.
    larger = torch.where(some, torch.maximum(row, column), 1).detach()
    gap = (column - row) / larger
    width = tolerance + floor.unsqueeze(-1) / larger
    lorentzian = gap / (gap.square() + width.square())
    weights = lorentzian * (column / larger) / (torch.where(some, column + row, 1) / larger) / larger
    return torch.where(some, weights, 0)


def qr_gradient(factors: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor]) -> Tensor:
    """Gradient of a matrix from the gradients of its QR factorization with a real diagonal of R.

    Args:
        factors: Q (..., m, k) and R (..., k, n), k = min(m, n).
        slopes: Gradients of the two, of the same shapes.

    Returns:
        Shape (..., m, n), finite.
    """
    q, r = factors
    slope_q, slope_r = slopes
    rank = q.shape[-1]
    own = q.mH @ slope_q
    turning = own + r @ slope_r.mH
    turning = (turning - turning.mH).tril()
    # Half of the diagonal, which is imaginary: the diagonal of R stays real.
    turning = turning - torch.diag_embed(torch.diagonal(turning, dim1=-2, dim2=-1)) / 2
    rotation = q @ turning
    if q.shape[-2] > rank:
        rotation = rotation + (slope_q - q @ own)
    rotation = _divide_by_adjoint(rotation, r[..., :rank])
    return q @ slope_r + torch.nn.functional.pad(rotation, (0, r.shape[-1] - rank))


def _divide_by_adjoint(matrix: Tensor, triangle: Tensor) -> Tensor:
    """`matrix` times R^-H, or times the pseudo-inverse where the triangle R is singular."""
    info = torch.finfo(triangle.dtype)
    size = triangle.detach().abs()
    columns = size.amax(-2)
    dead = torch.diagonal(size, dim1=-2, dim2=-1) <= columns * (info.eps * size.shape[-1])
    dead = (dead | (columns < 4 * info.tiny)).any(-1)
    if not (torch.compiler.is_compiling() or is_batched(dead)):
        if not bool(dead.any()):
            return _solve(matrix, triangle)
        if bool(dead.all()):
            return matrix @ _pseudo_inverse(triangle).mH
    dead = dead.unsqueeze(-1).unsqueeze(-1)
    identity = torch.eye(size.shape[-1], dtype=triangle.dtype, device=triangle.device)
    regular = _solve(matrix, torch.where(dead, identity, triangle))
    return torch.where(dead, matrix @ _pseudo_inverse(torch.where(dead, triangle, identity)).mH, regular)


def _solve(matrix: Tensor, triangle: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(triangle.mH, matrix, upper=False, left=False)


def _pseudo_inverse(triangle: Tensor) -> Tensor:
    info = torch.finfo(triangle.dtype)
    floor = 4 * info.tiny / info.eps
    return torch.linalg.pinv(triangle, atol=floor, rtol=info.eps * triangle.shape[-1])
