"""Interfaces of a product that is never formed: what the factors left of a bond contribute to it.

The product of a TT-matrix with cores (a, m, n, b) and a train or TT-matrix with cores (s, n, c, t) has the
merged bonds (a, s). Left of a bond its cores make a matrix with columns (a, s); all that a sweep needs of it
is its Gram matrix, or the triangular factor of its QR.

      +--[A_0]--[A_1]--a
    q |    |      |
      +--[x_0]--[x_1]--s
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.errors import NonFiniteError
from ttnet.gauge import orthogonalize
from ttnet.matrix_cores import columns_of, merge_modes, rows_of, split_modes, tensordot

Sites = list[tuple[Tensor, Tensor]]
"""Pairs of cores, the matrix's (a, m, n, b) and the other factor's (s, n, c, t)."""


def absorb_left(carry: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """One more site left of a bond: (p, a, s) with (a, m, n, b) and (s, n, c, t) to (p, m, c, b, t)."""
    half = tensordot(carry, x, [2], [0])  # (p, a, n, c, t)
    return tensordot(half, a, [1, 2], [0, 2]).permute(0, 3, 1, 4, 2)


def absorb_right(carry: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """One more site right of a bond: (b, t, p) with (a, m, n, b) and (s, n, c, t) to (a, s, m, c, p)."""
    half = tensordot(x, carry, [3], [1])  # (s, n, c, b, p)
    return tensordot(a, half, [2, 3], [1, 3]).permute(0, 2, 1, 3, 4)


def extend_triangle(triangle: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """Interface (q, a, s) of the next bond: the R of a QR of its (q m c, b t) unfolding."""
    block = absorb_left(triangle, a, x)
    r = torch.linalg.qr(block.reshape(-1, block.shape[3] * block.shape[4]), mode="r").R
    return r.reshape(-1, block.shape[3], block.shape[4])


def extend_gram(gram: Tensor, a: Tensor, x: Tensor, bra: Tensor | None = None) -> Tensor:
    """Take one more site into the inner products of two products, <B x, A x>, left of a bond.

    Args:
        gram: Shape (b s, a, s): the bonds of `bra` and x, conjugated and merged, then those of `a` and x.
        a: Core (a, m, n, a').
        x: Core (s, n, c, s').
        bra: Core (b, m, n, b') of the operator B, by default `a`.

    Returns:
        Shape (b' s', a', s').
    """
    bra = a if bra is None else bra
    half = absorb_left(gram, a, x).unflatten(0, (bra.shape[0], x.shape[0]))  # (b*, s*, m, c, a', t)
    half = tensordot(bra.conj(), half, [0, 1], [0, 2])  # (n, b'*, s*, c, a', t)
    half = tensordot(x.conj(), half, [0, 1, 2], [2, 0, 3])  # (t*, b'*, a', t)
    return half.transpose(0, 1).flatten(0, 1)


def interfaces(sites: Sites, *, gram: bool) -> Iterator[tuple[Tensor, float]]:
    """Interface of each bond and of both ends, scaled to size 1, and the exponent of the scale."""
    interface, log_scale = sites[0][0].new_ones(1, 1, 1), 0.0
    yield interface, log_scale
    for a, x in sites:
        interface = extend_gram(interface, a, x) if gram else extend_triangle(interface, a, x)
        interface, step = rescale(interface)
        log_scale += step
        yield interface, log_scale


def rescale(tensor: Tensor) -> tuple[Tensor, float]:
    """The tensor with a largest entry of 1/2 to 1, and the exponent of 2 that it was divided by: exact."""
    largest = float(torch.linalg.vector_norm(tensor, math.inf))
    if not math.isfinite(largest):
        raise NonFiniteError(
            "matrix, other: expected finite cores, got NaN or infinity in them or in a partial product"
        )
    reach = 120 if torch.finfo(tensor.dtype).bits == 32 else 1000
    exponent = min(max(math.frexp(largest)[1], -reach), reach) if largest > 0 else 0
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
