"""Bring the bases of different widths to one gauge, so that the matrices between them are those of one train.

    X_k = A_b M_k T_c,   A_b = U_b S_b^-1,   U_b orthonormal, found for each width b by itself

A basis U_b knows A_b up to an invertible matrix S_b. Where two widths read the same slices of the first
structural modes, the columns of S_b U_b^T X_k, stacked over these slices, lie in one space of the rank of the
bond behind them, whatever b is: a linear equation for S_b, solved exactly where there is such a train.
"""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from ttnet import linalg

_RANK_TOLERANCE = 1e-6  # relative; factors in float32 are exact to 1e-7
_WORST_CONDITION = 1e-5
_DENSE = 400  # unknowns up to which the equations are solved by a full SVD
_ITERATIONS, _CONVERGED = 300, 1e-10

Slices = dict[tuple[int, ...], Tensor]


def align(
    small: Sequence[Tensor],
    blocks: Sequence[Hashable],
    places: Sequence[tuple[int, ...]],
    caps: Sequence[int | None],
) -> dict[Hashable, Tensor]:
    """The maps S_b that bring all widths to the gauge of one of them.

    Args:
        small: For each matrix U_b^T X, shape (r, s).
        blocks: The width b of each.
        places: The slice of each structural mode, that next to the basis first.
        caps: Largest rank behind each of these modes.

    Returns:
        S_b of shape (r, r) by width; empty where no two widths share slices.
    """
    weights: dict[Hashable, float] = {}
    for block, matrix in zip(blocks, small, strict=True):
        weights[block] = weights.get(block, 0.0) + float(matrix.square().sum())
    order = sorted(weights, key=lambda block: -weights[block])
    done = [k for k, block in enumerate(blocks) if block == order[0]]
    aligned = list(small)
    maps: dict[Hashable, Tensor] = {}
    for block in order[1:]:
        own = [k for k, other in enumerate(blocks) if other == block]
        found = _map(aligned, places, done, own, caps)
        if found is None:
            continue
        maps[block] = found
        for k in own:
            aligned[k] = found @ small[k]
        done += own
    return _balanced(maps, list(weights)) if maps else {}


def _map(
    small: Sequence[Tensor],
    places: Sequence[tuple[int, ...]],
    done: Sequence[int],
    own: Sequence[int],
    caps: Sequence[int | None],
) -> Tensor | None:
    for count in range(len(caps), 0, -1):
        shared = {places[k][:count] for k in done} & {places[k][:count] for k in own}
        if len(shared) < 2:
            continue
        prefixes = sorted(shared)
        spaces = [
            _column_space(_columns(small, places, part, prefixes), caps[count - 1]) for part in (done, own)
        ]
        if spaces[0] is not None and spaces[1] is not None:
            return _solve(spaces[0], spaces[1])
    return None


def _columns(
    small: Sequence[Tensor],
    places: Sequence[tuple[int, ...]],
    part: Iterable[int],
    prefixes: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Matrices (prefixes, r, s), one for each place on the other modes where every prefix is there."""
    count = len(prefixes[0])
    groups: dict[tuple[int, ...], dict[tuple[int, ...], list[Tensor]]] = {}
    for k in part:
        groups.setdefault(places[k][count:], {}).setdefault(places[k][:count], []).append(small[k])
    found = []
    for group in groups.values():
        each = [group.get(prefix, []) for prefix in prefixes]
        found += [torch.stack(slices) for slices in zip(*each, strict=False)]
    return found


def _column_space(columns: list[Tensor], cap: int | None) -> Tensor | None:
    """An orthonormal basis (n, r, rank) of the space of all columns."""
    if not columns:
        return None
    n, r, _ = columns[0].shape
    stack = torch.cat(columns, 2).reshape(n * r, -1)
    vectors, values, _ = linalg.svd(stack)
    rank = int((values > _RANK_TOLERANCE * values[0]).sum())
    rank = rank if cap is None else min(rank, cap)
    return vectors[:, :rank].reshape(n, r, rank) if rank else None


def _solve(space: Tensor, other: Tensor) -> Tensor:
    """S with (I x S) other in `space` as far as can be, both of shape (n, r, rank)."""
    # Where each slice weighs alike and the columns are orthonormal, one dominant direction cannot win.
    outer = _whitener(space)
    space = torch.linalg.qr((outer @ space).flatten(0, 1))[0].reshape(space.shape)
    inner = _whitener(other)
    other = inner @ other
    solution = _leading(space, other)
    met = float(torch.einsum("lai,ab,lbj->ij", space, solution, other).square().sum())
    u, values, vh = linalg.svd(torch.linalg.solve(outer, solution @ inner))
    # What the equations leave open is noise: it shall not be divided by.
    floor = max(_WORST_CONDITION, (1 - min(met, 1.0)) ** 0.5)
    return (u * (values / values[0]).clamp(min=floor)) @ vh


def _whitener(slices: Tensor) -> Tensor:
    """W with sum_l W X_l X_l^T W = 1."""
    values, vectors = torch.linalg.eigh(torch.einsum("lai,lbi->ab", slices, slices))
    return (vectors * values.clamp(min=1e-12 * float(values[-1])).rsqrt()) @ vectors.T


def _leading(space: Tensor, other: Tensor) -> Tensor:
    """The S of norm 1 that maximizes |sum_l space_l^T S other_l|."""
    r = space.shape[1]
    if r * r <= _DENSE:
        table = torch.einsum("lai,lbj->ijab", space, other).reshape(-1, r * r)
        return linalg.svd(table)[2][0].reshape(r, r)
    generator = torch.Generator(space.device).manual_seed(0)
    trial = torch.randn(4, r, r, generator=generator, dtype=space.dtype, device=space.device)
    last = 0.0
    for _ in range(_ITERATIONS):
        trial = torch.linalg.qr(trial.flatten(1).T)[0].T.reshape(trial.shape)
        image = torch.einsum("lai,kab,lbj->kij", space, trial, other)
        trial = torch.einsum("lai,kij,lbj->kab", space, image, other)
        value = float(torch.linalg.matrix_norm(trial.flatten(1), 2))
        if abs(value - last) <= _CONVERGED * value:
            break
        last = value
    _, _, vh = linalg.svd(trial.flatten(1))
    return vh[0].reshape(r, r)


def _balanced(maps: dict[Hashable, Tensor], blocks: Sequence[Hashable]) -> dict[Hashable, Tensor]:
    """The same gauge for all, in which the bases U_b S_b^-1 together are orthogonal."""
    like = next(iter(maps.values()))
    identity = torch.eye(like.shape[0], dtype=like.dtype, device=like.device)
    # A solution is known up to a factor: a scale of one for each.
    scaled = {block: maps.get(block, identity) for block in blocks}
    scaled = {block: own * torch.linalg.inv(own).norm() / len(own) ** 0.5 for block, own in scaled.items()}
    inverses = [torch.linalg.inv(own) for own in scaled.values()]
    gram = torch.stack([own.T @ own for own in inverses]).mean(0)
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp(min=1e-12 * float(values[-1])).sqrt()) @ vectors.T
    return {block: root @ own for block, own in scaled.items()}
