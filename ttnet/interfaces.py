"""Interfaces of a product that is never formed: what the factors left of a bond contribute to it.

The product of a TT-matrix with cores (a, m, n, b) and a train or TT-matrix with cores (s, n, c, t) has the
merged bonds (s, a). Right of a bond its cores make a matrix with rows (s, a); all that a sweep needs of it is
its Gram matrix, or the triangular factor of a QR. What is left of a bond is right of it in the mirror.

    a--[A_2]--[A_3]--+
         |      |    | q
    s--[x_2]--[x_3]--+
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.errors import NonFiniteError
from ttnet.gauge import orthogonalize
from ttnet.matrix_cores import columns_of, merge_modes, rows_of, split_modes

Sites = list[tuple[Tensor, Tensor]]
"""Pairs of cores, the matrix's (a, m, n, b) and the other factor's (s, n, c, t)."""


def mirror(sites: Sites) -> Sites:
    """The same product read from the right."""
    return [(a.transpose(0, 3), x.transpose(0, 3)) for a, x in reversed(sites)]


def absorb(carry: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """One more site right of a bond: (t, b, p) with (a, m, n, b) and (s, n, c, t) to (s, a, m, c, p)."""
    grown = _absorb(carry, a, x)  # (s, c, a, m, p)
    return grown.permute(0, 2, 3, 1, 4)


def _absorb(carry: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """What `absorb` returns, as (s, c, a, m, p): the order in which nothing large is ever copied."""
    rank, rows, columns, _ = a.shape
    s, _, c, t = x.shape
    half = x.transpose(1, 2).reshape(-1, t) @ carry.reshape(t, -1)  # (s c n, b p)
    half = half.reshape(s * c, columns * a.shape[3], carry.shape[2])
    grown = _times(a.reshape(rank * rows, -1), half)
    return grown.reshape(s, c, rank, rows, carry.shape[2])


def _times(matrix: Tensor, batch: Tensor) -> Tensor:
    """One matrix (i, j) times each of a batch (k, j, l): (k, i, l), without the copies of `torch.matmul`."""
    return torch.bmm(matrix.expand(len(batch), *matrix.shape), batch)


def extend_triangle(triangle: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """Interface (s, a, q) of the next bond from (t, b, q): the R of a QR of its (m c q, s a) unfolding."""
    block = absorb(triangle, a, x)
    unfolded = block.reshape(block.shape[0] * block.shape[1], -1)
    return torch.linalg.qr(unfolded.mT, mode="r").R.mT.reshape(*block.shape[:2], -1)


def extend_gram(gram: Tensor, a: Tensor, x: Tensor, bra: Tensor | None = None) -> Tensor:
    """Take one more site into the inner products of two products, <B x, A x>, right of a bond.

    Args:
        gram: Shape (s', a', b', s'): the bonds of x and `a`, then those of `bra` and x, conjugated.
        a: Core (a, m, n, a').
        x: Core (s, n, c, s').
        bra: Core (b, m, n, b') of the operator B, by default `a`.

    Returns:
        Shape (s, a, b, s).
    """
    bra = a if bra is None else bra
    rank, columns, inner, last = x.shape
    half = _absorb(gram.reshape(*gram.shape[:2], -1), a, x)  # (s, c, a, m, b'* s'*)
    half = half.reshape(-1, bra.shape[1] * bra.shape[3], last)
    half = _times(bra.conj().transpose(1, 2).reshape(-1, half.shape[1]), half)  # (s c a, b* n*, s'*)
    half = half.reshape(rank, inner, -1, columns * last)
    x = x.permute(2, 1, 3, 0).reshape(inner, -1, rank).conj()
    full = half.reshape(-1, half.shape[3]) @ x[0] if inner == 1 else (half @ x).sum(1)
    return full.reshape(rank, a.shape[0], bra.shape[0], rank)


def interfaces(sites: Sites, *, gram: bool) -> Iterator[tuple[Tensor, float]]:
    """Interface of each bond and of both ends, from the right, scaled to size 1, and the scale's exponent.

    Gram matrices are (s, a, a*, s*), triangular factors (s, a, q).
    """
    one = sites[0][0].new_ones(())
    interface, log_scale = one.reshape(1, 1, 1, 1) if gram else one.reshape(1, 1, 1), 0.0
    yield interface, log_scale
    for a, x in reversed(sites):
        interface = extend_gram(interface, a, x) if gram else extend_triangle(interface, a, x)
        interface, step = rescale(interface)
        log_scale += step
        yield interface, log_scale


def rescale(tensor: Tensor) -> tuple[Tensor, float]:
    """The tensor with a size of 1/2 to 1, and the exponent of 2 that it was divided by: exact."""
    size = size_of(tensor)
    if not math.isfinite(size) or size < math.sqrt(torch.finfo(tensor.dtype).tiny):
        # The squares overflow or underflow.
        size = float(torch.linalg.vector_norm(tensor, math.inf))
    if not math.isfinite(size):
        raise NonFiniteError(
            "matrix, other: expected finite cores, got NaN or infinity in them or in a partial product"
        )
    reach = 120 if torch.finfo(tensor.dtype).bits == 32 else 1000
    exponent = min(max(math.frexp(size)[1], -reach), reach) if size > 0 else 0
    return (tensor * 2.0**-exponent, float(exponent)) if exponent else (tensor, 0.0)


def rescale_all(cores: CoresLike) -> tuple[list[Tensor], float]:
    """Cores with entries of size 1, and the exponent of 2 that the whole was divided by."""
    scaled = [rescale(core) for core in cores]
    return [core for core, _ in scaled], math.fsum(exponent for _, exponent in scaled)


def exponential(exponent: float) -> float:
    """2 to a power, the largest one where it overflows."""
    return 2.0 ** min(exponent, 1023.0)


def size_of(tensor: Tensor) -> float:
    """Frobenius norm as a number."""
    return float(torch.linalg.vector_norm(tensor))


def canonical(cores: CoresLike, center: int, *, start: int | None = None) -> Cores:
    """Orthogonalize cores (l, row, column, r) as a train of merged modes."""
    moved = orthogonalize(merge_modes(cores), center, start=start)
    return split_modes(moved, rows_of(cores), columns_of(cores))
