"""The largest and the smallest entry of a train, and where they are.

A small tensor is searched exhaustively. In a large one the search is a heuristic: a beam of the index
prefixes that carry the most norm, from either end; the same on a power of the train, in which the largest
entries stand out; and an ascent along the coordinates from the best. Nothing can promise the largest entry.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import add, hadamard
from ttnet.construct import constant
from ttnet.cores import absorb_left, contract, shape_of
from ttnet.errors import ConfigError, DTypeError
from ttnet.gather import gather
from ttnet.gauge import orthogonalize
from ttnet.rounding import truncate
from ttnet.truncation import Truncation

_SMALL = 2**18  # entries of a tensor that is searched exhaustively
_POWER_RANK = 10  # of the powers: their squares have the square of it


@dataclass(frozen=True)
class Extreme:
    """An entry and where it is.

    Attributes:
        value: The entry, a scalar tensor, differentiable in the cores.
        index: One index for each mode.
    """

    value: Tensor
    index: tuple[int, ...]


def extreme_entry(
    cores: CoresLike,
    kind: Literal["max", "min", "absmax"] = "absmax",
    *,
    beam: int = 100,
    squarings: int = 5,
) -> Extreme:
    """The largest entry, the smallest, or that of largest magnitude.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}); real, but for "absmax".
        kind: "max", "min" or "absmax".
        beam: Prefixes that are kept: more find more.
        squarings: Times the train is squared and rounded, to make large entries stand out.

    Returns:
        The entry and its index. The right one where there are at most 2^18 entries, else the best found.

    Raises:
        ConfigError: `kind` is none of the three, `beam` is below 1, or `squarings` below 0.
        DTypeError: The largest or smallest entry of a complex train.

    References:
        Chertkov et al., "Optimization of functions given in the tensor train format" (2022).
    """
    if kind not in ("max", "min", "absmax"):
        raise ConfigError(f"kind: expected 'max', 'min' or 'absmax', got {kind!r}")
    for name, value, least in (("beam", beam, 1), ("squarings", squarings, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if cores[0].is_complex() and kind != "absmax":
        raise DTypeError(f"train: expected real entries for {kind!r}, got {cores[0].dtype}; use 'absmax'")
    with torch.no_grad():
        work = [_scaled(core.detach().to(linalg.working_dtype(core.dtype))) for core in cores]
        is_small = math.prod(shape_of(work)) <= _SMALL
        index = _exhaustive(work, kind) if is_small else _search(work, kind, beam, squarings)
    position = torch.tensor([index], device=cores[0].device)
    return Extreme(gather(cores, position)[0], index)


def _scaled(core: Tensor) -> Tensor:
    """The core with a largest magnitude of 1: a positive factor changes no order."""
    largest = core.abs().amax()
    return core / torch.where(largest > 0, largest, torch.ones_like(largest))


def _exhaustive(cores: CoresLike, kind: str) -> tuple[int, ...]:
    best = int(_score(contract(cores), kind).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(best), shape_of(cores)))


def _score(values: Tensor, kind: str) -> Tensor:
    return values if kind == "max" else -values if kind == "min" else values.abs()


def _search(cores: CoresLike, kind: str, beam: int, squarings: int) -> tuple[int, ...]:
    scaled = _normalized(orthogonalize(cores, 0))
    found = _candidates(scaled, beam, squarings)
    best = _climb(cores, found, kind)
    if kind != "absmax":
        # Shifted by the largest magnitude, all entries have one sign: the wanted one has the largest.
        largest = float(gather(scaled, found).abs().max())
        shift = constant(shape_of(cores), largest if kind == "max" else -largest, dtype=cores[0].dtype)
        shifted = add(scaled, [core.to(cores[0].device) for core in shift])
        found = _candidates(_normalized(orthogonalize(shifted, 0)), beam, squarings)
        best = torch.cat([best, _climb(cores, found, kind)])
    winner = best[_score(gather(cores, best), kind).argmax()]
    return tuple(winner.tolist())


def _candidates(cores: Cores, beam: int, squarings: int) -> Tensor:
    """Indices (count, d) found by beams on a train with center 0 and on its powers."""
    found = [_beam(cores, beam), _mirrored_beam(cores, beam)]
    power = cores
    for step in range(squarings):
        power, _ = truncate(power, Truncation(max_rank=_POWER_RANK), center=0 if step == 0 else None)
        power = _normalized(orthogonalize(hadamard(power, power), 0))
    if squarings:
        power, _ = truncate(power, Truncation(max_rank=_POWER_RANK), center=0)
        found += [_beam(power, beam), _mirrored_beam(power, beam)]
    return torch.cat(found).unique(dim=0)


def _normalized(cores: CoresLike) -> Cores:
    """A train with center 0, of norm 1 where it is not zero."""
    norm = linalg.frobenius_norm(cores[0])
    return (cores[0] / torch.where(norm > 0, norm, torch.ones_like(norm)), *cores[1:])


def _beam(cores: CoresLike, beam: int) -> Tensor:
    """Grow index prefixes from the left, keep those whose slices have the largest norms; center 0."""
    vectors = cores[0].new_ones(1, 1)
    prefixes = torch.empty(1, 0, dtype=torch.int64, device=vectors.device)
    for core in cores:
        n = core.shape[1]
        # The cores to the right are orthogonal: the norm of a slice is that of its vector.
        grown = absorb_left(vectors, core).flatten(0, 1)
        norms = torch.linalg.vector_norm(grown, dim=1)
        kept = norms.topk(min(beam, len(norms)))[1]
        prefixes = torch.cat([prefixes[kept // n], (kept % n).unsqueeze(1)], 1)
        vectors = grown[kept] / norms[kept[0]].clamp_min(torch.finfo(norms.dtype).tiny)
    return prefixes


def _mirrored_beam(cores: CoresLike, beam: int) -> Tensor:
    mirrored = [core.permute(2, 1, 0) for core in reversed(cores)]
    return _beam(orthogonalize(mirrored, 0), beam).flip(1)


def _climb(cores: CoresLike, points: Tensor, kind: str, *, keep: int = 10, rounds: int = 4) -> Tensor:
    """Take the best points (count, d) and improve one coordinate after another."""
    points = points[_score(gather(cores, points), kind).topk(min(keep, len(points)))[1]].clone()
    rows = torch.arange(len(points), device=points.device)
    for _ in range(rounds):
        before = points.clone()
        rights = _right_vectors(cores, points)
        left = cores[0].new_ones(len(points), 1)
        for k, core in enumerate(cores):
            grown = torch.einsum("pa,anb->pnb", left, core)
            values = (grown @ rights[k].unsqueeze(2)).squeeze(2)
            points[:, k] = _score(values, kind).argmax(1)
            left = _unit_rows(grown[rows, points[:, k]])
        if torch.equal(points, before):
            break
    return points


def _right_vectors(cores: CoresLike, points: Tensor) -> list[Tensor]:
    """For each core the product (count, r) of the matrices right of it, of positive scale."""
    vectors = cores[0].new_ones(len(points), 1)
    found = [vectors]
    for k in range(len(cores) - 1, 0, -1):
        chosen = cores[k][:, points[:, k]]
        vectors = _unit_rows(torch.einsum("apb,pb->pa", chosen, vectors))
        found.append(vectors)
    return found[::-1]


def _unit_rows(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(largest > 0, largest, torch.ones_like(largest))
