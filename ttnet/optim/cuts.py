"""Changes of rank as gauge maps: rounding, the literal sweep of MetaTT, slices of a zero train, growth.

A `Cut` holds the new cores AND the maps that led there, so that optimizer state can follow. All of it is
computed in double precision: the cores of an adapter are small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.cores import absorb_right, left_unfold, ranks_of, right_unfold
from ttnet.gauge import GaugeMaps, left_triangles
from ttnet.optim.norms import Norm
from ttnet.truncation import tail_weights

Gauge = Literal["nearest", "canonical", "balanced"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A change of ranks.

    Attributes:
        cores: New cores, in the dtype of the old ones.
        maps: How the interfaces changed, in double precision.
        discarded_weight: Sum of the discarded squares, by bond.
    """

    cores: Cores
    maps: GaugeMaps
    discarded_weight: tuple[float, ...]


def rounding_cut(
    cores: CoresLike, ranks: Sequence[int], *, gauge: Gauge = "nearest", norm: Norm | None = None
) -> Cut:
    """Cut a train to `ranks` by TT rounding, into a gauge of choice: the tensor of `ttnet.rounding.truncate`.

    With R the triangle of the left interface and L that of the right one (already cut further right), the SVD
    R L = U S V^H of a bond gives the projector left @ right = (L V S^-1/2) (S^-1/2 U^H R), up to a change of
    gauge T between the two factors. In the norm of a metric, R and L are those of the weighted train, and the
    maps, which act on bonds alone, are applied to the train itself.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        ranks: Targets for the d - 1 bonds, each at most the present rank. Directions of a target that the
            train does not fill (numerically zero singular values) keep an old left side, with a zero right
            one. A bond stays below its target only where its old left sides are not so many: see `grow`.
        gauge: "nearest" keeps the scales of the old cores: a bond that is not cut is not touched, and the two
            factors of a cut bond have equal Gram matrices and lie nearest to the identity. "balanced" gives
            both sides the root of the singular values. "canonical" puts the center on core 0. Both are those
            of the new train in the Frobenius norm, whatever the norm of the cut, and no gauge changes what
            is cut.
        norm: In which errors are measured, by default Frobenius. What a semidefinite metric does not see may
            go with what is cut. It has to see something of the train, see `norm_of`.

    Returns:
        The cut. Its error in the norm is the root of the summed discarded weights.

    References:
        Schollwoeck, Ann. Phys. 326, 96 (2011), section 4; Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011).
    """
    work = _double(cores)
    triangles = left_triangles(work)
    if _is_zero(work, triangles):
        return slice_cut(cores, ranks)
    resolution = 4 * torch.finfo(cores[0].dtype).eps
    plain = _Seen(cores=work, triangles=triangles, resolution=resolution)
    if norm is None or norm.roots is None:
        maps, weights = _round(plain, plain, ranks, gauge)
        return Cut(cores=_like(maps.apply(work), cores), maps=maps, discarded_weight=tuple(weights))
    weighted = norm.weighted(work)
    seen = _Seen(cores=weighted, triangles=left_triangles(weighted), resolution=resolution)
    # Another gauge would be found from the metric's singular values, and empty what it does not see.
    maps, weights = _round(plain, seen, ranks, "nearest")
    if gauge != "nearest":
        cut = maps.apply(work)
        plain = _Seen(cores=cut, triangles=left_triangles(cut), resolution=resolution)
        maps = maps.then(_round(plain, plain, ranks_of(cut)[1:-1], gauge)[0])
    return Cut(cores=_like(maps.apply(work), cores), maps=maps, discarded_weight=tuple(weights))


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A train in double precision as a norm sees it: its cores, and the R of its left interfaces."""

    cores: CoresLike
    triangles: Sequence[Tensor]
    resolution: float


def _round(plain: _Seen, seen: _Seen, ranks: Sequence[int], gauge: Gauge) -> tuple[GaugeMaps, list[float]]:
    """The maps that cut a train, whose errors are those of `seen`, and the discarded weights."""
    work, bonds = plain.cores, len(plain.triangles)
    left, right, weights = [work[0]] * bonds, [work[0]] * bonds, [0.0] * bonds
    carry = work[0].new_ones(1, 1)
    for k in range(bonds - 1, -1, -1):
        lower = linalg.positive_lq(right_unfold(absorb_right(seen.cores[k + 1], carry)))[0]
        rank = work[k].shape[2]
        if ranks[k] == rank and gauge == "nearest":
            left[k] = right[k] = _eye(rank, rank, work[k])
            carry = lower
            continue
        u, s, vh = linalg.svd(seen.triangles[k] @ lower)
        filled = min(ranks[k], max(1, int((s > seen.resolution * s[0]).sum())))
        weights[k] = float(tail_weights(s)[filled])
        u, s, vh = u[:, :filled], s[:filled], vh[:filled]
        carry = lower @ vh.mH
        root = s.sqrt()
        pair = carry / root, (u / root).mH @ seen.triangles[k]
        left[k], right[k] = _fill(*_in_gauge(*pair, root, gauge), ranks[k], plain.triangles[k])
    return GaugeMaps(left=tuple(left), right=tuple(right)), weights


def paper_cut(cores: CoresLike, ranks: Sequence[int]) -> Cut:
    """The literal sweep of MetaTT: SVD of each merged pair from left to right, then from right to left.

    The first half cuts in no gauge, so that its discarded weights bound nothing; the second half finds
    nothing left to cut. The center ends on core 0.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        ranks: Targets for the d - 1 bonds.

    Returns:
        The cut; its weights are those of the first half.

    References:
        MetaTT, arXiv 2506.09105, algorithm of section "DMRG-inspired sweep".
    """
    start = _double(cores)
    triangles = left_triangles(start)
    if _is_zero(start, triangles):
        return slice_cut(cores, ranks)
    work = list(start)
    bonds = range(len(work) - 1)
    weights = [0.0] * len(bonds)
    first: dict[int, tuple[Tensor, Tensor]] = {}
    for k in bonds:
        u, s, vh, upper, lower = _pair_svd(work[k], work[k + 1])
        kept = _filled(s, ranks[k])
        weights[k] = float(tail_weights(s)[kept])
        first[k] = (lower @ vh[:kept].mH) / s[:kept], u[:, :kept].mH @ upper
        work[k], work[k + 1] = _apply_pair(work[k], work[k + 1], *first[k])
    second: dict[int, tuple[Tensor, Tensor]] = {}
    for k in reversed(bonds):
        u, s, vh, upper, lower = _pair_svd(work[k], work[k + 1])
        kept = _filled(s, ranks[k])
        second[k] = lower @ vh[:kept].mH, (u[:, :kept].mH @ upper) / s[:kept].unsqueeze(1)
        work[k], work[k + 1] = _apply_pair(work[k], work[k + 1], *second[k])
    maps = _maps(first, len(bonds)).then(_maps(second, len(bonds)))
    pairs = [_fill(*each) for each in zip(maps.left, maps.right, ranks, triangles, strict=True)]
    maps = GaugeMaps(left=tuple(left for left, _ in pairs), right=tuple(right for _, right in pairs))
    return Cut(cores=_like(maps.apply(start), cores), maps=maps, discarded_weight=tuple(weights))


def slice_cut(cores: CoresLike, ranks: Sequence[int]) -> Cut:
    """Cut a train by dropping trailing indices: what is right while the train is zero.

    An SVD of a zero train has no directions to prefer and would wipe its identity cores; slices keep them.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        ranks: Targets for the d - 1 bonds, each at most the present rank.

    Returns:
        The cut, with zero weights.
    """
    work = _double(cores)
    left = [_eye(core.shape[2], rank, core) for core, rank in zip(work[:-1], ranks, strict=True)]
    maps = GaugeMaps(left=tuple(left), right=tuple(m.mT for m in left))
    return Cut(cores=_like(maps.apply(work), cores), maps=maps, discarded_weight=(0.0,) * len(left))


def grow(cores: CoresLike, ranks: Sequence[int], *, generator: torch.Generator | None = None) -> Cut:
    """Raise ranks without changing the tensor.

    A new direction has a random left side, orthogonal to the present ones and of their mean size, and a zero
    right side: it gets gradient from the first step.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        ranks: Targets for the d - 1 bonds, each at least the present rank.
        generator: Source of the random directions, on the CPU.

    Returns:
        The cut, with zero weights.
    """
    old, start = ranks_of(cores)[1:-1], _double(cores)
    left = [_eye(a, b, core) for a, b, core in zip(old, ranks, start, strict=False)]
    maps = GaugeMaps(left=tuple(left), right=tuple(m.mT for m in left))
    work = list(maps.apply(start))
    for k, (before, after) in enumerate(zip(old, ranks, strict=True)):
        if after == before:
            continue
        matrix = left_unfold(work[k]).clone()
        basis = linalg.positive_qr(matrix[:, :before])[0]
        fresh = torch.randn(matrix.shape[0], after - before, generator=generator, dtype=matrix.dtype).to(
            matrix.device
        )
        fresh = linalg.positive_qr(fresh - basis @ (basis.mH @ fresh))[0]
        size = torch.linalg.vector_norm(matrix[:, :before]) / math.sqrt(before)
        # Where the left side has no room for so many directions, the last ones stay empty.
        matrix[:, before : before + fresh.shape[1]] = fresh * (size if size > 0 else 1.0)
        work[k] = matrix.reshape(work[k].shape)
    return Cut(cores=_like(work, cores), maps=maps, discarded_weight=(0.0,) * len(old))


def _double(cores: CoresLike) -> list[Tensor]:
    return [c.detach().to(torch.complex128 if c.is_complex() else torch.float64) for c in cores]


def _eye(rows: int, columns: int, like: Tensor) -> Tensor:
    return torch.eye(rows, columns, dtype=like.dtype, device=like.device)


def _is_zero(cores: CoresLike, triangles: Sequence[Tensor]) -> bool:
    last = triangles[-1] @ right_unfold(cores[-1]) if triangles else cores[-1]
    return float(torch.linalg.vector_norm(last)) == 0.0


def _like(new: CoresLike, old: CoresLike) -> Cores:
    return tuple(core.to(old[0].dtype) for core in new)


def _in_gauge(left: Tensor, right: Tensor, root: Tensor, gauge: Gauge) -> tuple[Tensor, Tensor]:
    """Bring the balanced pair (L V S^-1/2, S^-1/2 U^H R), `root` = S^1/2, into a gauge."""
    if gauge == "balanced":
        return left, right
    if gauge == "canonical":
        return left * root, right / root.unsqueeze(1)
    # P = A^-1 # B, the geometric mean that makes both Gram matrices equal: P A P = B.
    gram_left, gram_right = left.mH @ left, right @ right.mH
    half = _hermitian_power(gram_left, 0.5)
    minus_half = _hermitian_power(gram_left, -0.5)
    mean = minus_half @ _hermitian_power(half @ gram_right @ half, 0.5) @ minus_half
    change, inverse = _hermitian_power(mean, 0.5), _hermitian_power(mean, -0.5)
    left, right = left @ change, inverse @ right
    # The unitary that is left free brings the left factor nearest to the identity (Procrustes).
    u, _, vh = linalg.svd(left.mH[:, : left.shape[1]])
    turn = u @ vh
    return left @ turn, turn.mH @ right


def _hermitian_power(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mH) / 2)
    floor = torch.finfo(values.dtype).eps * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    return (vectors * values.clamp_min(floor).pow(power)) @ vectors.mH


def _fill(left: Tensor, right: Tensor, rank: int, triangle: Tensor) -> tuple[Tensor, Tensor]:
    """Fill a bond up to its target: with the largest old left directions not in use, and zero right sides.

    Where the left interface, of which `triangle` is the R, has no more directions, some are missing still.
    """
    missing = rank - left.shape[1]
    if missing == 0:
        return left, right
    rest = torch.linalg.qr(left, mode="complete")[0][:, left.shape[1] :]
    _, sizes, vh = linalg.svd(triangle @ rest)
    count = min(missing, int((sizes > _resolution(sizes) * torch.linalg.vector_norm(triangle)).sum()))
    spare = rest @ vh[:count].mH
    return torch.cat([left, spare], 1), torch.cat([right, right.new_zeros(count, right.shape[1])])


def _pair_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """SVD of a merged pair of cores from the triangles of its two factors."""
    upper = linalg.positive_qr(left_unfold(left))[1]
    lower = linalg.positive_lq(right_unfold(right))[0]
    u, s, vh = linalg.svd(upper @ lower)
    return u, s, vh, upper, lower


def _filled(values: Tensor, rank: int) -> int:
    """How many of `rank` singular values are not zero numerically, at least 1."""
    return min(rank, max(1, int((values > _resolution(values) * values[0]).sum())))


def _resolution(values: Tensor) -> float:
    return torch.finfo(values.dtype).eps * values.numel()


def _apply_pair(left: Tensor, right: Tensor, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    return absorb_right(left, to_left), (to_right @ right_unfold(right)).reshape(-1, *right.shape[1:])


def _maps(pairs: dict[int, tuple[Tensor, Tensor]], bonds: int) -> GaugeMaps:
    return GaugeMaps(
        left=tuple(pairs[k][0] for k in range(bonds)), right=tuple(pairs[k][1] for k in range(bonds))
    )
