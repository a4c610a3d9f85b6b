"""Names for the types that every module speaks of."""

from collections.abc import Sequence

from torch import Tensor

Cores = tuple[Tensor, ...]
"""Cores of a train, core k of shape (left_rank, mode, right_rank)."""

CoresLike = Sequence[Tensor]
"""Anything that can be read as the cores of a train."""

PerBond = int | Sequence[int]
"""One rank for all bonds, or one for each of the d - 1 bonds."""
