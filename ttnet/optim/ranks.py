"""Which ranks a sweep aims at: by the calendar (`RankSchedule`) or by the train itself (`AdaptiveRanks`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ttnet._typing import PerBond
from ttnet.errors import ConfigError, RankError
from ttnet.random import resolve_ranks
from ttnet.truncation import tail_weights


@dataclass(frozen=True)
class RankSchedule:
    """Ranks by completed epochs.

    Args:
        ranks: Maps a number of completed epochs to the rank from then on, one number or one for each bond.
            Key 0 is the rank at construction: no sweep happens there. A number above what a bond allows
            clips.

    Raises:
        ConfigError: No entry, or a key that is no integer of at least 0.
        RankError: A rank below 1.

    Examples:
        >>> RankSchedule({0: 12, 2: 8, 4: 4}).at(3)
        8
    """

    ranks: Mapping[int, PerBond]

    def __post_init__(self) -> None:
        """Check keys and ranks where they enter."""
        if not self.ranks:
            raise ConfigError("ranks: expected at least one entry such as {0: 12, 2: 8}, got none")
        for epoch, rank in self.ranks.items():
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                raise ConfigError(
                    f"ranks: expected completed epochs (integers from 0) as keys, got {epoch!r}"
                )
            values = rank if isinstance(rank, Sequence) else (rank,)
            if not values or any(isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in values):
                raise RankError(f"ranks: expected ranks of at least 1, got {rank!r} for epoch {epoch}")

    def at(self, epoch: int) -> PerBond | None:
        """Rank after `epoch` completed epochs; None before the first entry."""
        past = [key for key in self.ranks if key <= epoch]
        return self.ranks[max(past)] if past else None

    def targets(self, epoch: int, shape: Sequence[int]) -> tuple[int, ...] | None:
        """Ranks of the d - 1 bonds of a train of this shape after `epoch` completed epochs.

        Raises:
            RankError: A list that the bonds cannot have.
        """
        rank = self.at(epoch)
        return None if rank is None or epoch == 0 else resolve_ranks(shape, rank, name="ranks")


@dataclass(frozen=True, kw_only=True)
class AdaptiveRanks:
    """Ranks that follow the singular values, the error, or the loss.

    At each sweep single ranks are proposed for removal, the direction of least relative weight first. Cutting
    goes on while the train has more than `max_parameters` (where given) and while the cut costs no more than
    `max_error` and `max_loss_increase` (where given).

    Args:
        max_parameters: Number of core entries to come down to.
        max_error: Largest relative error of a sweep: of the worst adapted matrix where the scheduler has a
            `measure`, else of the train.
        max_loss_increase: Largest relative rise of the loss in a sweep; `scheduler.step(problem)` then needs
            the problem.
        warmup: Completed epochs before the first sweep.
        patience: Epochs between a sweep that cut and the next.
        min_rank: Smallest rank of a bond.
        max_cut: Largest number of ranks that a bond loses in a sweep.
        max_growth: Largest number of ranks that a bond gains in a sweep of the mode "two-site", before it is
            cut by the criteria above. A sweep grows no train beyond `max_parameters`.

    Raises:
        ConfigError: No criterion, or a value out of range.
    """

    max_parameters: int | None = None
    max_error: float | None = None
    max_loss_increase: float | None = None
    warmup: int = 1
    patience: int = 1
    min_rank: int = 1
    max_cut: int = 4
    max_growth: int = 0

    def __post_init__(self) -> None:
        """Check every field where it enters."""
        criteria = ("max_parameters", "max_error", "max_loss_increase")
        if all(getattr(self, name) is None for name in criteria):
            raise ConfigError(f"AdaptiveRanks: expected at least one of {', '.join(criteria)}, got none")
        for name in (*criteria, "warmup", "max_growth"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {value!r}")
        for name in ("patience", "min_rank", "max_cut"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)!r}")

    def is_due(self, epoch: int, last_cut: int | None) -> bool:
        """Whether a sweep may cut after `epoch` completed epochs, the last cut having been at `last_cut`."""
        return epoch >= max(self.warmup, 1) and (last_cut is None or epoch - last_cut >= self.patience)

    def targets(
        self, spectra: Sequence[Tensor], shape: Sequence[int], accept: Callable[[tuple[int, ...]], bool]
    ) -> tuple[int, ...]:
        """Ranks to cut to.

        Args:
            spectra: Singular values of each bond, one for each present rank, in descending order.
            shape: Mode sizes.
            accept: Whether a cut to these ranks costs little enough. Taken to hold for fewer cuts if it holds
                for more; called about log2 of the number of proposals times.

        Returns:
            Ranks of the d - 1 bonds.
        """
        return self.joint_targets([spectra], [shape], lambda ranks: accept(ranks[0]))[0]

    def joint_targets(
        self,
        spectra: Sequence[Sequence[Tensor]],
        shapes: Sequence[Sequence[int]],
        accept: Callable[[tuple[tuple[int, ...], ...]], bool],
    ) -> tuple[tuple[int, ...], ...]:
        """Ranks to cut several trains to: the weakest direction of all goes first, one budget for all.

        Args:
            spectra: Of each train, the singular values of each bond, in descending order.
            shapes: Mode sizes of each train.
            accept: Whether a cut of all trains to these ranks costs little enough; see `targets`.

        Returns:
            Ranks of the bonds of each train.
        """
        proposals = [tuple(tuple(len(s) for s in each) for each in spectra)]
        weights = [[_relative_weights(s) for s in each] for each in spectra]
        floors = [[max(min(self.min_rank, r), r - self.max_cut) for r in each] for each in proposals[0]]
        while self.max_parameters is None or _total(proposals[-1], shapes) > self.max_parameters:
            ranks = proposals[-1]
            places = [(i, k) for i, each in enumerate(ranks) for k, r in enumerate(each) if r > floors[i][k]]
            if not places:
                break
            worst = min(places, key=lambda at: weights[at[0]][at[1]][ranks[at[0]][at[1]] - 1])
            proposals.append(
                tuple(
                    tuple(r - ((i, k) == worst) for k, r in enumerate(each)) for i, each in enumerate(ranks)
                )
            )
        if self.max_error is None and self.max_loss_increase is None:
            return proposals[-1]
        low, high = 0, len(proposals) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if accept(proposals[middle]) else (low, middle - 1)
        return proposals[low]


def _relative_weights(singular_values: Tensor) -> list[float]:
    """Weight of each direction and of all behind it, relative to the bond's."""
    tails = tail_weights(singular_values).tolist()
    return [t / tails[0] if tails[0] > 0 else 0.0 for t in tails[:-1]]


def _total(ranks: Sequence[Sequence[int]], shapes: Sequence[Sequence[int]]) -> int:
    return sum(_parameters(each, shape) for each, shape in zip(ranks, shapes, strict=True))


def _parameters(ranks: Sequence[int], shape: Sequence[int]) -> int:
    bounds = (1, *ranks, 1)
    return sum(left * n * right for left, n, right in zip(bounds, shape, bounds[1:], strict=False))
