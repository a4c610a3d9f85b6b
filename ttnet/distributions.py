"""Trains as probability distributions: marginals, conditionals and samples.

Either the entries of a non-negative train are the weights, or the squared magnitudes of the entries of any
train (Born's rule). All that lies right of a bond is summed up beforehand, given indices included:

    w(i) = | row of the left indices . core[:, i, :] . X |^2      X (r, s): X X^H sums over all that follows

for Born's rule, and without the square, with a vector X, for a non-negative train.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import hadamard, real_part, scale
from ttnet.cores import absorb_right, right_unfold, shape_of
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.gauge import check_center
from ttnet.modes import sum_modes

_LARGEST = 2**22  # entries of the largest intermediate of one chunk of samples


class Draws(NamedTuple):
    """What `sample` draws.

    Attributes:
        indices: Shape (count, d), int64; given indices stand in every row.
        log_probabilities: Shape (count,), float64: natural logarithms of the probabilities, given the given.
    """

    indices: Tensor
    log_probabilities: Tensor


def sample(
    cores: CoresLike,
    count: int,
    *,
    squared: bool = False,
    given: Mapping[int, int] | None = None,
    seed: int | torch.Generator | None = None,
) -> Draws:
    """Independent draws of indices, each index from its exact distribution given those before it.

    Args:
        cores: A train whose entries are non-negative; any train where `squared` is true.
        count: Number of draws.
        squared: Whether the weights are the squared magnitudes of the entries (Born's rule).
        given: Indices that are fixed, ``{mode: index}``; the others are drawn conditionally on them.
        seed: An integer, a CPU generator, or None for torch's global generator.

    Returns:
        Indices and log-probabilities. Conditional weights below zero, which a rounded train may have, count
        as zero.

    Raises:
        ConfigError: `count` is below 1.
        ShapeError: A given index does not exist.
        DTypeError: A complex train without `squared`.
        NonFiniteError: All weights are zero.

    References:
        Ferris and Vidal, Phys. Rev. B 85, 165146 (2012).
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"count: expected an integer of at least 1, got {count!r}")
    fixed = _check_given(given, shape_of(cores))
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    with torch.no_grad():
        work = _normalized(cores, squared=squared)
        rests = _sums_to_the_right(work, fixed, squared=squared)
        uniform = torch.rand(count, len(work), generator=generator, dtype=torch.float64).to(work[0].device)
        widest = max(
            core.shape[1] * (core.shape[2] + x.shape[1]) for core, x in zip(work, rests, strict=True)
        )
        drawn = [
            _draw(work, rests, fixed, part, squared=squared)
            for part in uniform.split(max(1, _LARGEST // widest))
        ]
    return Draws(torch.cat([indices for indices, _ in drawn]), torch.cat([logs for _, logs in drawn]))


def marginals(
    cores: CoresLike, *, squared: bool = False, given: Mapping[int, int] | None = None
) -> tuple[Tensor, ...]:
    """Probabilities of the indices of each mode on its own.

    Args:
        cores: A train whose entries are non-negative; any train where `squared` is true.
        squared: Whether the weights are the squared magnitudes of the entries (Born's rule).
        given: Indices that are fixed, ``{mode: index}``: the probabilities are conditional on them.

    Returns:
        d real vectors (n_k,), each of sum 1; that of a given mode is 1 at its index.

    Raises:
        ShapeError: A given index does not exist.
        DTypeError: A complex train without `squared`.
        NonFiniteError: All weights are zero.
    """
    fixed = _check_given(given, shape_of(cores))
    with torch.no_grad():
        work = [_keep(core, fixed.get(k)) for k, core in enumerate(_normalized(cores, squared=squared))]
        rights = _sums_to_the_right(work, {}, squared=squared)
        mirrored = [core.permute(2, 1, 0) for core in reversed(work)]
        lefts = _sums_to_the_right(mirrored, {}, squared=squared)[::-1]
        found = []
        for core, left, right in zip(work, lefts, rights, strict=True):
            weights = torch.einsum("as,anb,bt->nst", left, core, right).flatten(1)
            found.append(_weights(weights, squared=squared))
    totals = [weights.sum() for weights in found]
    if not all(bool(total > 0) for total in totals):
        raise NonFiniteError("train: expected a positive sum of weights, got 0 for these given indices")
    return tuple(weights / total for weights, total in zip(found, totals, strict=True))


def marginal(cores: CoresLike, modes: int | Sequence[int], *, squared: bool = False) -> Cores:
    """The joint distribution of some modes as a train of sum 1, the other modes summed out.

    Args:
        cores: A train whose entries are non-negative; any train where `squared` is true.
        modes: Modes that remain, in their order in the train.
        squared: Whether the weights are the squared magnitudes of the entries; the ranks are squared then,
            and twice that for a complex train.

    Returns:
        Cores of the distribution, real also for a complex train. Differentiable.

    Raises:
        ShapeError: There is no such mode, or none is named.
        DTypeError: A complex train without `squared`.
        NonFiniteError: All weights are zero.
    """
    chosen = (modes,) if isinstance(modes, int) else tuple(modes)
    kept = {check_center(mode, len(cores), name="modes") for mode in chosen}
    if not kept:
        raise ShapeError("modes: expected at least one mode that remains, got none")
    weights = _normalized(cores, squared=squared)
    if squared:
        weights = list(hadamard([core.conj().resolve_conj() for core in weights], weights))
    summed = sum_modes(weights, [k for k in range(len(cores)) if k not in kept])
    total = sum_modes(summed)  # pyright: ignore[reportArgumentType]
    if not bool(total.real > 0):  # pyright: ignore[reportAttributeAccessIssue]
        raise NonFiniteError("train: expected a positive sum of weights, got 0 or less")
    distribution = scale(tuple(summed), 1 / total)  # pyright: ignore[reportArgumentType, reportOperatorIssue]
    return real_part(distribution) if distribution[0].is_complex() else distribution


def _draw(
    cores: list[Tensor], rests: list[Tensor], fixed: dict[int, int], uniform: Tensor, *, squared: bool
) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(uniform), device=uniform.device)
    vectors = cores[0].new_ones(len(uniform), 1)
    indices = torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
    logs = uniform.new_zeros(len(uniform))
    for k, (core, rest) in enumerate(zip(cores, rests, strict=True)):
        left, n, right = core.shape
        grown = (vectors @ core.reshape(left, n * right)).reshape(-1, n, right)
        if k in fixed:
            chosen = torch.full_like(rows, fixed[k])
        else:
            weights = _weights(grown @ rest, squared=squared)
            steps = weights.cumsum(1)
            if not bool((steps[:, -1] > 0).all()):
                raise NonFiniteError(
                    "train: expected a positive sum of weights, got 0 for these given indices"
                )
            # The last index with weight ends the search, whatever roundoff says of the sum.
            last = n - 1 - (weights.flip(1) > 0).to(torch.int8).argmax(1)
            chosen = torch.searchsorted(steps, uniform[:, k : k + 1] * steps[:, -1:], right=True).squeeze(1)
            chosen = torch.minimum(chosen, last)
            logs = logs + (weights[rows, chosen] / steps[:, -1]).log()
        indices[:, k] = chosen
        vectors = grown[rows, chosen]
        largest = vectors.abs().amax(1, keepdim=True)
        vectors = vectors / torch.where(largest > 0, largest, torch.ones_like(largest))
    return indices, logs


def _weights(amplitudes: Tensor, *, squared: bool) -> Tensor:
    """Weights from amplitudes (..., s), in double precision."""
    if squared:
        return amplitudes.abs().to(torch.float64).square().sum(-1)
    return amplitudes.sum(-1).to(torch.float64).clamp_min(0)


def _sums_to_the_right(cores: list[Tensor], fixed: dict[int, int], *, squared: bool) -> list[Tensor]:
    """For each core the matrix X (r, s) of its right bond, scaled; s is 1 without squares."""
    rest = cores[0].new_ones(1, 1)
    rests = [rest]
    for k in range(len(cores) - 1, 0, -1):
        grown = absorb_right(_keep(cores[k], fixed.get(k)), rest)
        if squared:
            # X X^H sums the squares; its triangular factor has the same product.
            rest = linalg.positive_lq(right_unfold(grown))[0]
        else:
            rest = grown.sum(1)
        largest = rest.abs().amax()
        rest = rest / torch.where(largest > 0, largest, torch.ones_like(largest))
        rests.append(rest)
    return rests[::-1]


def _keep(core: Tensor, index: int | None) -> Tensor:
    """The core with all other indices of its mode set to zero."""
    if index is None:
        return core
    kept = torch.zeros_like(core)
    kept[:, index] = core[:, index]
    return kept


def _normalized(cores: CoresLike, *, squared: bool) -> list[Tensor]:
    """Cores of largest magnitude 1, in float32 or better: weights need no scale."""
    if cores[0].is_complex() and not squared:
        raise DTypeError(
            f"train: expected real entries as weights, got {cores[0].dtype}; squared=True takes their squares"
        )
    work = [core.to(linalg.working_dtype(core.dtype)) for core in cores]
    largest = [core.detach().abs().amax() for core in work]
    if not all(bool(value > 0) for value in largest):
        raise NonFiniteError("train: expected a positive sum of weights, got a zero train")
    return [core / value for core, value in zip(work, largest, strict=True)]


def _check_given(given: Mapping[int, int] | None, shape: tuple[int, ...]) -> dict[int, int]:
    fixed = {}
    for mode, index in (given or {}).items():
        k = check_center(mode, len(shape), name="given")
        if not -shape[k] <= index < shape[k]:
            raise ShapeError(
                f"given: expected an index from {-shape[k]} to {shape[k] - 1} of mode {k}, got {index}"
            )
        fixed[k] = index % shape[k]
    return fixed
