"""Truncation as a value: which singular values are kept, and what was lost.

Choosing a rank is apart from cutting: `Truncation` states the wish, `select_rank` reads a spectrum,
and `TruncationReport` tells what a cut cost.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttnet._typing import PerBond
from ttnet.errors import ConfigError, RankError


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Which singular values a truncation keeps.

    The rank of a bond is the smallest one that meets every tolerance, then at least `min_rank` and at most
    `max_rank`; `degeneracy_tol` then keeps a multiplet together where `max_rank` leaves room for it.

    Args:
        max_rank: Largest rank, one number for all bonds or one for each of the d - 1 bonds (`train.ranks` has
            two entries more, the boundary ones). A single number above what a bond allows clips; an
            impossible one in a list raises where the bonds are known.
        cutoff: Largest sum of discarded squares at a bond, relative to the sum of all squares there. The
            relative error of the tensor is its square root: 1e-10 keeps an error of 1e-5 a bond.
        rtol: Largest Frobenius error of the whole train, relative to its norm.
        atol: Largest Frobenius error of the whole train.
        svd_min: Singular values below this fraction of the bond's norm are discarded.
        min_rank: Smallest rank, where the bond allows it.
        degeneracy_tol: Neighboring singular values whose relative gap is at most this stay together.

    Raises:
        RankError: `max_rank` or `min_rank` is below 1, or `min_rank` is above `max_rank`.
        ConfigError: A tolerance is negative or not finite.
    """

    max_rank: PerBond | None = None
    cutoff: float = 0.0
    rtol: float | None = None
    atol: float | None = None
    svd_min: float = 0.0
    min_rank: int = 1
    degeneracy_tol: float | None = None

    def __post_init__(self) -> None:
        """Check every field where it enters."""
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        if self.max_rank is not None and not isinstance(self.max_rank, int):
            if not isinstance(self.max_rank, Iterable):
                raise RankError(f"max_rank: expected an integer or one for each bond, got {self.max_rank!r}")
            object.__setattr__(self, "max_rank", tuple(_plain(rank) for rank in self.max_rank))
        caps = (self.max_rank,) if isinstance(self.max_rank, int) else self.max_rank or ()
        for name, value in [("min_rank", self.min_rank), *(("max_rank", cap) for cap in caps)]:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RankError(f"{name}: expected an integer of at least 1, got {value!r}")
        if caps and self.min_rank > min(caps):
            raise RankError(
                f"min_rank: expected at most max_rank={self.max_rank}, got {self.min_rank}; lower it"
            )
        for name in ("cutoff", "rtol", "atol", "svd_min", "degeneracy_tol"):
            value = getattr(self, name)
            if value is None and name not in ("cutoff", "svd_min"):
                continue
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not (math.isfinite(value) and value >= 0)
            ):
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {value!r}")

    @property
    def is_fixed(self) -> bool:
        """Whether the ranks follow from the shapes alone (no tolerance is set)."""
        no_tolerance = not self.cutoff and not self.svd_min and self.degeneracy_tol is None
        return no_tolerance and not self.rtol and not self.atol

    @property
    def bounds_error(self) -> bool:
        """Whether `rtol` or `atol` bound the error of the whole train."""
        return bool(self.rtol or self.atol)

    def at_bond(self, bond: int, bonds: int) -> "Truncation":
        """The truncation of one bond: `max_rank` becomes a single number.

        Args:
            bond: Index of the bond, between cores `bond` and `bond + 1`.
            bonds: Number of bonds of the train, d - 1.

        Returns:
            The same truncation with the cap of this bond.

        Raises:
            RankError: `max_rank` is a list whose length is not `bonds`.
        """
        if self.max_rank is None or isinstance(self.max_rank, int):
            return self
        if len(self.max_rank) != bonds:
            raise RankError(
                f"max_rank: expected one rank for each of the {bonds} bonds, got {len(self.max_rank)}: "
                f"{tuple(self.max_rank)}"
            )
        return replace(self, max_rank=self.max_rank[bond])

    def weight_budget(self, norm: float) -> float:
        """Largest squared Frobenius error allowed for a train of norm `norm`; infinity where none is set."""
        budgets = [self.atol] if self.atol else []
        if self.rtol:
            budgets.append(self.rtol * norm)
        return min(min(budgets) * min(budgets), sys.float_info.max) if budgets else math.inf


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own; anything else as it is."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def check_truncation(truncation: object) -> None:
    """Refuse what is no `Truncation`, such as a bare rank or a bare tolerance.

    Args:
        truncation: What came in its place.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(truncation, Truncation):
        return
    value = _plain(truncation)
    wish = "..."
    if isinstance(value, float):
        wish = f"rtol={value}"
    elif isinstance(value, int | list | tuple) and not isinstance(value, bool):
        wish = f"max_rank={value}"
    elif value is None:
        wish = ""
    raise ConfigError(f"truncation: expected a Truncation, got {truncation!r}; write Truncation({wish})")


@dataclass(frozen=True, kw_only=True)
class TruncationReport:
    """What a truncation kept and what it lost.

    Attributes:
        ranks_before: Ranks of the d - 1 bonds before.
        ranks_after: Ranks of the d - 1 bonds after.
        discarded_weight: Sum of the squares of the discarded singular values, by bond.
        norm: Frobenius norm of the train before (in the metric, where one was given).
        error_estimate: Square root of the summed weights. Where the bonds are cut one after another in the
            canonical gauge, the errors are orthogonal and this IS the error, up to roundoff. The methods
            "gram", "randomized", "density" and "zip-up" measure it as a difference of squares, whose roundoff
            is that of the square root of the precision: an error below that times `norm` is not resolved.
        error_bound: Certified bound of the Frobenius error: the estimate plus a bound of the roundoff.
    """

    ranks_before: tuple[int, ...]
    ranks_after: tuple[int, ...]
    discarded_weight: tuple[float, ...]
    norm: float
    error_estimate: float
    error_bound: float

    @property
    def relative_error(self) -> float:
        """`error_estimate` over `norm`; 0 for a zero train."""
        return self.error_estimate / self.norm if self.norm > 0 else 0.0

    @classmethod
    def from_weights(
        cls,
        ranks_before: Sequence[int],
        ranks_after: Sequence[int],
        weights: Sequence[float],
        *,
        norm: float,
        dtype: torch.dtype,
        scale: float | None = None,
    ) -> "TruncationReport":
        """Report of a sweep that discarded `weights`.

        The bound adds the roundoff of `dtype` relative to `scale` (default: `norm`), the largest product of
        the norms of the two interfaces of a bond. It is far above the norm where the terms of a sum cancel.
        """
        estimate = math.sqrt(math.fsum(weights))
        size = max([1, *ranks_before])
        scale = norm if scale is None else max(norm, scale)
        roundoff = 4.0 * (len(weights) + 1) * math.sqrt(size) * torch.finfo(dtype).eps * scale
        return cls(
            ranks_before=tuple(ranks_before),
            ranks_after=tuple(ranks_after),
            discarded_weight=tuple(weights),
            norm=norm,
            error_estimate=estimate,
            error_bound=estimate + roundoff,
        )


def tail_weights(singular_values: Tensor) -> Tensor:
    """Weight that is discarded by each rank: entry k is the sum of squares from index k on.

    Args:
        singular_values: Shape (n,), descending.

    Returns:
        Shape (n + 1,), float64, on the CPU; the last entry is 0.
    """
    squares = singular_values.detach().to("cpu", torch.float64).square()
    tails = torch.flip(torch.cumsum(torch.flip(squares, (0,)), 0), (0,))
    return torch.cat([tails, tails.new_zeros(1)])


def select_rank(singular_values: Tensor, truncation: Truncation, *, max_weight: float = math.inf) -> int:
    """Rank at which a spectrum is cut.

    Args:
        singular_values: Shape (n,), descending, real.
        truncation: The wish, with a single `max_rank` (see `Truncation.at_bond`). Its `rtol` and `atol`
            belong to the whole train: whoever sweeps turns them into `max_weight`.
        max_weight: Largest sum of discarded squares at this bond.

    Returns:
        A rank between 1 and n. The tolerances yield to `max_rank`: read the discarded weight in the report.
    """
    if not isinstance(truncation.max_rank, int | None):
        raise RankError(
            "max_rank: expected a single rank for one bond, got a list; use truncation.at_bond(...)"
        )
    count = singular_values.numel()
    cap = count if truncation.max_rank is None else min(count, truncation.max_rank)
    floor = min(truncation.min_rank, cap)
    if truncation.is_fixed and math.isinf(max_weight):
        return cap
    tails = tail_weights(singular_values)
    total = float(tails[0])
    rank = cap
    allowed = max_weight
    if truncation.cutoff:
        allowed = min(allowed, truncation.cutoff * total)
    if not math.isinf(allowed):
        rank = min(rank, int((tails > allowed).sum()))
    if truncation.svd_min:
        values = singular_values.detach()
        rank = min(rank, int(((values >= truncation.svd_min * math.sqrt(total)) & (values > 0)).sum()))
    rank = min(max(rank, floor, 1), cap)
    return _keep_multiplet(singular_values, rank, cap, truncation.degeneracy_tol)


def _keep_multiplet(singular_values: Tensor, rank: int, cap: int, tolerance: float | None) -> int:
    if tolerance is None:
        return rank
    values = singular_values.detach().tolist()

    def is_split(at: int) -> bool:
        return (
            at < len(values)
            and values[at - 1] > 0
            and values[at - 1] - values[at] <= tolerance * values[at - 1]
        )

    grown = rank
    while grown < cap and is_split(grown):
        grown += 1
    # The multiplet is larger than the cap: it is cut anyway, at the rank that the tolerances asked for.
    return rank if is_split(grown) else grown
