"""Gauge: which cores are orthogonal, where the center is, what the bonds carry.

Left of the center every core is left-orthogonal (its (l n, r) unfolding has orthonormal columns), right of it
right-orthogonal (its (l, n r) unfolding has orthonormal rows); the center holds the norm.
"""

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.cores import absorb_left, absorb_right, left_unfold, right_unfold
from ttnet.errors import ShapeError
from ttnet.scaling import check_norm, split_power, times_power_of_two
from ttnet.transforms import is_batched


def check_center(center: int, count: int, *, name: str = "center") -> int:
    """`center` as an index from 0 to `count` - 1; negative ones count from the end.

    Args:
        center: Index of a core.
        count: Number of cores.
        name: Name of the argument, as the user typed it, for messages.

    Raises:
        ShapeError: There is no such core.
    """
    if isinstance(center, bool) or not isinstance(center, Integral) or not -count <= center < count:
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
        NonFiniteError: The norm is out of the range of the dtype, see `ttnet.log_scale.normalize`; or a core
            holds a NaN or an infinity. Neither is looked for under `torch.func.vmap` and `torch.compile`.

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011), section 3.
    """
    work, exponent = orthogonalize_scaled(cores, center, start=start)
    if not exponent:
        return work
    k = check_center(center, len(cores))
    core = work[k].to(linalg.working_dtype(work[k].dtype))
    check_norm(float(linalg.frobenius_norm(core.detach())), exponent, work[k].dtype)
    return (*work[:k], times_power_of_two(core, exponent).to(work[k].dtype), *work[k + 1 :])


def orthogonalize_scaled(cores: CoresLike, center: int, *, start: int | None = None) -> tuple[Cores, float]:
    """Bring a train of any norm, also one that no number can hold, into the canonical gauge.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        center: Core that will hold the norm.
        start: Present center, where there is one.

    Returns:
        New cores, and the exponent of 2 that the center was divided by: 0 where nothing came near the ends of
        the range, and then the center holds the norm itself.

    Raises:
        ShapeError: There is no core `center`.
        NonFiniteError: A core holds a NaN or an infinity.
    """
    center = check_center(center, len(cores))
    carried: list[Tensor] = []
    work = list(cores)
    for k, neighbor in _steps(len(cores), center, start):
        _shift(work, k, neighbor)
        carried.append(work[neighbor])
    if _is_in_range(carried):
        return tuple(work), 0.0
    return _sweep_scaled(cores, center, start)


def _steps(count: int, center: int, start: int | None) -> list[tuple[int, int]]:
    """The cores that hand their norm on, each with the one that takes it."""
    rightward = [(k, k + 1) for k in range(0 if start is None else start, center)]
    return rightward + [(k, k - 1) for k in range(count - 1 if start is None else start, center, -1)]


def _shift(work: list[Tensor], k: int, neighbor: int) -> None:
    if neighbor > k:
        work[k], work[neighbor] = shift_right(work[k], work[neighbor])
    else:
        work[neighbor], work[k] = shift_left(work[neighbor], work[k])


def _is_in_range(carried: list[Tensor]) -> bool:
    """Whether no core on the way overflowed or lost digits to underflow; zero counts as if it had."""
    if not carried or torch.compiler.is_compiling() or any(map(is_batched, carried)):
        return True
    sizes = torch.stack([torch.linalg.vector_norm(core.detach(), math.inf) for core in carried])
    info = torch.finfo(sizes.dtype)
    # Some room for the sums of a norm.
    return bool(((sizes >= info.tiny) & (sizes <= info.max / 1024)).all())


def _sweep_scaled(cores: CoresLike, center: int, start: int | None) -> tuple[Cores, float]:
    """The same sweep with the scale taken out of every core, before and after each step."""
    storage, working = cores[0].dtype, linalg.working_dtype(cores[0].dtype)
    steps = _steps(len(cores), center, start)
    work, total = [core.to(working) for core in cores], 0.0
    for k in {k for step in steps for k in step}:
        work[k], exponent = split_power(work[k])
        total += exponent
    for k, neighbor in steps:
        _shift(work, k, neighbor)
        work[neighbor], exponent = split_power(work[neighbor])
        total += exponent
    return tuple(core.to(storage) for core in work), total


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
