"""Gauge: which cores are orthogonal, where the center is, what the bonds carry.

Left of the center every core is left-orthogonal (its (l n, r) unfolding has orthonormal columns), right of it
right-orthogonal (its (l, n r) unfolding has orthonormal rows); the center holds the norm.
"""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.cores import absorb_left, absorb_right, left_unfold, right_unfold
from ttnet.errors import ShapeError


def check_center(center: int, count: int, *, name: str = "center") -> int:
    """`center` as an index from 0 to `count` - 1; negative ones count from the end.

    Args:
        center: Index of a core.
        count: Number of cores.
        name: Name of the argument, as the user typed it, for messages.

    Raises:
        ShapeError: There is no such core.
    """
    if not isinstance(center, Integral) or not -count <= center < count:
        raise ShapeError(f"{name}: expected a core index from 0 to {count - 1}, got {center!r}")
    return int(center) % count


def orthogonalize(cores: CoresLike, center: int, *, start: int | None = None) -> Cores:
    """Bring a train into the canonical gauge around `center`.

        >--[0]--[1]--(center)--[3]--<      work: QR from the left, LQ from the right

    The tensor is unchanged; a bond whose rank is above what its side allows is reduced to that. Its gradient
    is finite for every train, a zero one too: see `ttnet.factor_gradients`. It works under `torch.func.vmap`.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        center: Core that will hold the norm.
        start: Present center, where there is one: only the cores between the two are worked on.

    Returns:
        New cores; those that need no work are the ones given.

    Raises:
        ShapeError: There is no core `center`.

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011), section 3.
    """
    center = check_center(center, len(cores))
    last = len(cores) - 1
    work = list(cores)
    for k in range(0 if start is None else start, center):
        work[k], work[k + 1] = shift_right(work[k], work[k + 1])
    for k in range(last if start is None else start, center, -1):
        work[k - 1], work[k] = shift_left(work[k - 1], work[k])
    return tuple(work)


def move_center(cores: CoresLike, source: int, target: int) -> Cores:
    """Move the center of a canonical train; only the cores between `source` and `target` change."""
    return orthogonalize(cores, target, start=check_center(source, len(cores)))


def shift_right(core: Tensor, neighbor: Tensor) -> tuple[Tensor, Tensor]:
    """Make `core` left-orthogonal and hand the rest to its right neighbor."""
    dtype = linalg.working_dtype(core.dtype)
    q, r = linalg.positive_qr(left_unfold(core).to(dtype))
    core_ = q.reshape(core.shape[0], core.shape[1], -1).to(core.dtype)
    return core_, absorb_left(r, neighbor.to(dtype)).to(neighbor.dtype)


def shift_left(neighbor: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """Make `core` right-orthogonal and hand the rest to its left neighbor."""
    dtype = linalg.working_dtype(core.dtype)
    lower, q = linalg.positive_lq(right_unfold(core).to(dtype))
    core_ = q.reshape(-1, core.shape[1], core.shape[2]).to(core.dtype)
    return absorb_right(neighbor.to(dtype), lower).to(neighbor.dtype), core_


@dataclass(frozen=True, kw_only=True)
class GaugeMaps:
    """How the interfaces of a train changed, bond by bond.

    With the cores left of bond k read as one matrix (n_0 ... n_k, r), the left interface, and those right of
    it as (r, n_{k+1} ... n_{d-1}), the right interface:

        new left interface = old left interface @ left[k]         left[k]   (r_old, r_new)
        new right interface = right[k] @ old right interface      right[k]  (r_new, r_old)

    A pure change of gauge has right[k] = left[k]^-1; a cut has right[k] @ left[k] = 1 on fewer directions, so
    that left[k] @ right[k] projects. Where several bonds are cut at once, the relations of a bond hold up to
    what is discarded at the others; `apply` is exact.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]

    def apply(self, cores: CoresLike) -> Cores:
        """New cores right[k-1] . core . left[k] from the old ones."""
        work = []
        for k, core in enumerate(cores):
            core = core.to(self.left[0].dtype) if self.left else core
            core = core if k == 0 else absorb_left(self.right[k - 1], core)
            work.append(core if k == len(self.left) else absorb_right(core, self.left[k]))
        return tuple(work)

    def then(self, later: "GaugeMaps") -> "GaugeMaps":
        """These maps followed by `later`."""
        return GaugeMaps(
            left=tuple(a @ b for a, b in zip(self.left, later.left, strict=True)),
            right=tuple(b @ a for a, b in zip(self.right, later.right, strict=True)),
        )


def left_triangles(cores: CoresLike) -> list[Tensor]:
    """R factor of the left interface at each bond.

    With the cores left of bond k read as a matrix (n_0 ... n_k, r), its QR factorization has this R.

    Returns:
        One matrix (s, r) for each of the d - 1 bonds, s <= r where the left side is short; float32 or better.
    """
    triangles = []
    dtype = linalg.working_dtype(cores[0].dtype)
    carry = cores[0].new_ones(1, 1, dtype=dtype)
    for core in cores[:-1]:
        carry = linalg.positive_qr(left_unfold(absorb_left(carry, core.to(dtype))))[1]
        triangles.append(carry)
    return triangles


def spectra(cores: CoresLike, *, center: int | None = None) -> tuple[Tensor, ...]:
    """Singular values of every bond, in one sweep there and back.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        center: Present center, where there is one.

    Returns:
        d - 1 real tensors in descending order, without autograd, in float32 or better.
    """
    with torch.no_grad():
        work = list(
            orthogonalize([core.to(linalg.working_dtype(core.dtype)) for core in cores], -1, start=center)
        )
        found = []
        for k in range(len(work) - 1, 0, -1):
            u, s, vh = linalg.svd(right_unfold(work[k]))
            found.append(s)
            work[k - 1] = absorb_right(work[k - 1], u * s)
            work[k] = vh.reshape(-1, work[k].shape[1], work[k].shape[2])
    return tuple(reversed(found))


def entropy(singular_values: Tensor) -> float:
    """Von Neumann entropy of a bond in nats, -sum p ln p, p the normalized squares; 0 for a zero train."""
    values = singular_values.detach().to(torch.float64)
    norm = linalg.frobenius_norm(values)
    if norm <= 0:
        return 0.0
    return float(torch.special.entr((values / norm).square()).sum())
