"""Bases of what matters: the leading right singular vectors of a matrix, and the range of a deficient one.

Everything here is what a sweep does at one bond, without autograd.
"""

import math

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.scaling import power_of_two

OVERSAMPLING = 8
"""Random directions beyond the rank that is looked for."""

_SEED = 20111  # any number will do: errors are measured, but the same input should give the same bits


def random_directions(rows: int, columns: int, like: Tensor) -> Tensor:
    """Independent normal entries (rows, columns), the same ones at each call."""
    generator = torch.Generator().manual_seed(_SEED)
    # Drawn on the CPU, so that all devices see the same directions.
    return torch.randn(rows, columns, dtype=like.dtype, generator=generator).to(like.device)


def normalize(tensor: Tensor) -> tuple[Tensor, float, float]:
    """The tensor with a Frobenius norm near 1, that norm, and the exponent of 2 it was divided by: exact."""
    size = float(torch.linalg.vector_norm(tensor))
    exponent = power_of_two(size)
    if not exponent:
        return tensor, size, 0.0
    return tensor * 2.0**-exponent, math.ldexp(size, -exponent), float(exponent)


def reveal_range(matrix: Tensor, directions: Tensor, size: float) -> tuple[Tensor, Tensor, float] | None:
    """Orthonormal basis of the range of a matrix whose rank is far below its sizes.

    Args:
        matrix: Shape (m, n), of norm `size`.
        directions: Random, shape (n, s): a rank near s or above is not looked for.
        size: Frobenius norm of `matrix`.

    Returns:
        Q (m, rank), Q^H matrix, and the norm of matrix - Q Q^H matrix, which is roundoff; None where the
        rank is too large.

    References:
        Halko, Martinsson, Tropp, SIAM Rev. 53, 217 (2011).
    """
    tolerance = 16 * torch.finfo(matrix.dtype).eps * math.sqrt(matrix.shape[1]) * size
    q, r = torch.linalg.qr(matrix @ directions)
    # The directions are random: the first rows of R that are not roundoff count the rank.
    rows = r.abs().square().sum(1).flip(0).cumsum(0).flip(0)
    rank = int((rows > tolerance**2).sum())
    if rank + 2 > min(directions.shape[1], matrix.shape[0]):
        return None
    q = q[:, : max(rank, 1)]
    reduced = q.mH @ matrix
    error = float(torch.linalg.vector_norm(torch.addmm(matrix, q, reduced, alpha=-1)))
    return (q, reduced, error) if error <= tolerance else None


def right_vectors(block: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (k,) and right singular vectors (n, k) of a block (m, n), by a QR of its long side."""
    rows, columns = block.shape
    if columns > 1.3 * rows:
        q, r = torch.linalg.qr(block.mH)
        u, s, _ = linalg.svd(r)
        return s, q @ u
    if rows > 1.3 * columns:
        block = torch.linalg.qr(block, mode="r").R
    _, s, vh = linalg.svd(block)
    return s, vh.mH


def weighted_values(gram: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Singular values of F C where F^H F is a Gram matrix, and what their right vectors are made of.

    Args:
        gram: Shape (r, r), positive semidefinite up to roundoff.
        block: C, shape (r, n).

    Returns:
        The values (k,), descending; vectors; and F C, or None where the vectors are right ones already.
    """
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        values, vectors = torch.linalg.eigh(gram)
        factor = vectors * values.clamp_min(0).sqrt()
    product = factor.mH @ block
    is_wide = product.shape[0] <= product.shape[1]
    values, vectors = torch.linalg.eigh(product @ product.mH if is_wide else product.mH @ product)
    return values.flip(0).clamp_min(0).sqrt(), vectors.flip(1), product if is_wide else None


def weighted_basis(vectors: Tensor, product: Tensor | None, rank: int) -> Tensor:
    """Orthonormal basis (n, rank) of the leading right vectors that `weighted_values` found."""
    if product is None:
        return vectors[:, :rank].contiguous()
    # A QR, because dividing by small singular values would lose the orthogonality.
    return torch.linalg.qr(product.mH @ vectors[:, :rank]).Q


def weighted_subspace(gram: Tensor, block: Tensor, directions: Tensor, rank: int) -> Tensor:
    """The same basis by subspace iteration: near the best, for a rank far below the sizes.

    Args:
        gram: Shape (r, r).
        block: Shape (r, n).
        directions: Random, shape (r, s) with s > rank.
        rank: Number of columns.

    Returns:
        Shape (n, rank), orthonormal.
    """
    basis = torch.linalg.qr(block.mH @ (gram @ directions)).Q
    basis = torch.linalg.qr(block.mH @ (gram @ (block @ basis))).Q
    image = block @ basis
    _, vectors = torch.linalg.eigh(image.mH @ (gram @ image))
    return basis @ vectors.flip(1)[:, :rank]
