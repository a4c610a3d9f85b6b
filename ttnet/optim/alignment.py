"""How two trains lie to each other: the maps between their interfaces, and the gauge of one near the other.

A sweep that optimizes leaves no gauge maps: its interfaces span other spaces than before. What the old and
the new ones have in common is found by least squares.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.cores import absorb_left, left_unfold, ranks_of
from ttnet.gauge import GaugeMaps, orthogonalize
from ttnet.optim.cuts import Cut, grow, rounding_cut

NULL = 1e-8
"""Directions of an interface that are smaller than this fraction of its largest are taken for zero."""

SCALE_FLOOR = 1e-6
"""Least scale of a direction that an aligned interface keeps, relative to its largest."""


def interface_maps(old: CoresLike, new: CoresLike) -> GaugeMaps:
    """Maps X, Y with new left = old left @ X and new right = Y @ old right, in the sense of least squares.

    They are exact where the new interface lies in the span of the old one (a change of gauge, a cut); what is
    outside of it is not mapped, and a direction that is all new has a zero column in X or a zero row in Y.

    Args:
        old: Cores of shape (r_k, n_k, r_{k+1}).
        new: Cores of shape (s_k, n_k, s_{k+1}).

    Returns:
        X (r, s) and Y (s, r) for each bond, in double precision.
    """
    old, new = _double(old), _double(new)
    left = _left_maps(old, new)
    right = reversed(_left_maps(_mirrored(old), _mirrored(new)))
    return GaugeMaps(left=tuple(left), right=tuple(matrix.mT for matrix in right))


def aligned(cores: CoresLike, reference: CoresLike) -> Cut:
    """Bring a train into the gauge that is nearest to another one's cores, without changing the tensor.

    Each left interface gets the Gram matrix of the reference's (so that Adam finds the scales that it knows)
    and is turned as near to it as it goes; the last core holds what remains. A train that is the reference in
    another gauge becomes the reference.

    Args:
        cores: Cores of shape (r_k, n_k, r_{k+1}).
        reference: Cores of other ranks, perhaps; it is cut or grown to those of `cores` first.

    Returns:
        The cores, in the dtype of `reference`, with the maps from `reference` by least squares.
    """
    ranks = ranks_of(cores)[1:-1]
    present = ranks_of(reference)[1:-1]
    down = tuple(min(a, b) for a, b in zip(present, ranks, strict=True))
    model = _double(rounding_cut(reference, down).cores)
    generator = torch.Generator().manual_seed(0)
    model = _double(grow(model, ranks, generator=generator).cores)
    work = orthogonalize(_double(cores), -1)
    turns = _turns(model, work)
    if turns is None:
        # No gauge to be near to: the reference is zero somewhere.
        work = _double(rounding_cut(_double(cores), ranks, gauge="balanced").cores)
    else:
        inverses = tuple(torch.linalg.inv(turn) for turn in turns)
        work = GaugeMaps(left=tuple(turns), right=inverses).apply(work)
    found = tuple(core.to(reference[0].dtype) for core in work)
    return Cut(cores=found, maps=interface_maps(reference, found), discarded_weight=(0.0,) * len(ranks))


def _left_maps(old: Cores, new: Cores) -> list[Tensor]:
    maps = []
    triangle = overlap = old[0].new_ones(1, 1)
    for a, b in zip(old[:-1], new[:-1], strict=True):
        q, triangle = linalg.positive_qr(left_unfold(absorb_left(triangle, a)))
        overlap = q.mH @ left_unfold(absorb_left(overlap, b))
        maps.append(torch.linalg.pinv(triangle, rtol=NULL) @ overlap)
    return maps


def _turns(model: Cores, canonical: Cores) -> list[Tensor] | None:
    """T = W H at each bond: H the positive factor of the model's left interface, W the nearest unitary."""
    turns = []
    triangle = overlap = model[0].new_ones(1, 1)
    for a, b in zip(model[:-1], canonical[:-1], strict=True):
        q, triangle = linalg.positive_qr(left_unfold(absorb_left(triangle, a)))
        overlap = q.mH @ left_unfold(absorb_left(overlap, b))
        u, s, vh = torch.linalg.svd(triangle, full_matrices=False)
        if overlap.shape[0] != overlap.shape[1] or not bool(s[0] > 0):
            return None
        w, _, zh = torch.linalg.svd(overlap.mH @ (u @ vh))
        scales = s.clamp_min(SCALE_FLOOR * s[0])
        turns.append((w @ zh) @ ((vh.mH * scales) @ vh))
    return turns


def _mirrored(cores: CoresLike) -> Cores:
    return tuple(core.permute(2, 1, 0) for core in reversed(cores))


def _double(cores: Sequence[Tensor]) -> Cores:
    return tuple(c.detach().to(torch.complex128 if c.is_complex() else torch.float64) for c in cores)
