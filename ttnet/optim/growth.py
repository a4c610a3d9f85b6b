"""How ranks grow: the projected two-site gradient against its noise floor, and subspace expansion."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.cores import left_unfold, merge_bond, right_unfold
from ttnet.errors import ConfigError
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import HasResiduals, LocalProblem, Start
from ttnet.optim.problems.problem import Problem

Growth = Literal["free", "test"] | None

FLIPS = 16
"""Sign flips from which the noise floor is taken."""

DEVIATIONS = 4.0
"""Standard deviations above the mean of the flips at which the floor lies: a sweep has many visits."""

EXPANSION = 4
"""Directions that a one-site update may add to a bond."""


def rank_cap(
    growth: Growth,
    rank: int,
    local: LocalProblem,
    start: Start,
    cores: Sequence[Tensor],
    visit: Visit,
    generator: torch.Generator,
) -> int | None:
    """Largest rank that a two-site split may choose under a growth rule; None for no bound."""
    if growth == "free":
        return None
    if growth is None:
        return rank
    return rank + count_directions(local, start, cores[visit.site], cores[visit.last], generator)


def count_directions(
    local: LocalProblem, start: Start, left: Tensor, right: Tensor, generator: torch.Generator
) -> int:
    """How many directions outside the present bond space carry more gradient than noise would.

    The two-site gradient G is projected off both present subspaces, (1 - U U^H) G (1 - V^H V), and its
    singular values are compared with the largest ones of the same after the residual of each sample got a
    random sign.

    Args:
        local: The two-site problem; a sum over samples.
        start: The block and its gradient.
        left: Left core (l, m, r), not necessarily orthogonal.
        right: Right core (r, n, s).
        generator: Source of the signs.

    Returns:
        Number of singular values above the floor: the mean of the noise plus `DEVIATIONS` of it.

    Raises:
        ConfigError: The problem is no sum over samples.
    """
    if not isinstance(local, HasResiduals):
        raise ConfigError(
            "growth: 'test' needs the residuals of samples, which a plain closure does not show; use "
            "GatherLoss, Composite(outputs=, loss=), or growth='free'"
        )
    flips = [local.sign_flipped_gradient(start.block, generator) for _ in range(FLIPS)]
    spectra = torch.linalg.svdvals(project(torch.stack([start.gradient, *flips]), left, right))
    signal, noise = spectra[0], spectra[1:, 0]
    return int((signal > noise.mean() + DEVIATIONS * noise.std()).sum())


def project(gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(1 - U U^H) G (1 - V^H V), with U and V from the cores on both sides.

    Args:
        gradient: Shape (..., l, m, n, s), one or several.
        left: Left core (l, m, r).
        right: Right core (r, n, s).

    Returns:
        Shape (..., l m, n s).
    """
    matrix = gradient.flatten(-2).flatten(-3, -2)
    u = linalg.positive_qr(left_unfold(left))[0]
    v = linalg.positive_lq(right_unfold(right))[1]
    matrix = matrix - u @ (u.mH @ matrix)
    return matrix - (matrix @ v.mH) @ v


def expansion(
    growth: Growth,
    problem: Problem,
    cores: Sequence[Tensor],
    bond: int,
    cap: object,
    generator: torch.Generator,
    *,
    forward: bool,
) -> tuple[Tensor, Tensor] | None:
    """Enrich a bond between one-site updates by the leading directions of the projected two-site gradient.

    The side that the center leaves gets the new directions, the other one zeros: the train does not change.

    Args:
        growth: "free" or "test".
        problem: The problem.
        cores: Canonical around the core that was updated.
        bond: The bond to enrich.
        cap: Largest rank, or None.
        generator: Source of the signs of "test".
        forward: Whether the center goes right.

    Returns:
        The two cores, or None where nothing is added.

    References:
        Gleis, Li and von Delft, Phys. Rev. Lett. 130, 246402 (2023).
    """
    left, right = cores[bond], cores[bond + 1]
    rank = left.shape[2]
    limit = min(left.shape[0] * left.shape[1], right.shape[1] * right.shape[2])
    room = min(limit, cap if isinstance(cap, int) else limit) - rank
    if room <= 0:
        return None
    local = problem.local(cores, Visit(bond, 2, forward=forward))
    block = merge_bond(left, right)
    loss, gradient = local.value_and_gradient(block)
    wanted = min(room, EXPANSION)
    if growth == "test":
        start = Start(block=block, loss=loss, gradient=gradient)
        wanted = min(wanted, count_directions(local, start, left, right, generator))
    u, s, vh = linalg.svd(project(gradient, left, right))
    wanted = min(wanted, int((s > 1e-12 * torch.linalg.vector_norm(gradient)).sum()))
    if wanted == 0:
        return None
    if forward:
        fresh = u[:, :wanted].reshape(*left.shape[:2], wanted)
        padding = right.new_zeros(wanted, *right.shape[1:])
    else:
        fresh = left.new_zeros(*left.shape[:2], wanted)
        padding = vh[:wanted].reshape(wanted, *right.shape[1:])
    return torch.cat([left, fresh], 2), torch.cat([right, padding], 0)
