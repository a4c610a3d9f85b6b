"""Seeded random trains."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral

import torch

from ttnet import linalg
from ttnet._typing import Cores, PerBond
from ttnet.cores import possible_ranks
from ttnet.errors import RankError, ShapeError


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Mode sizes as a tuple.

    Raises:
        ShapeError: No mode, or a size below 1.
    """
    sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in sizes):
        raise ShapeError(f"shape: expected at least one mode, each an integer of at least 1, got {sizes}")
    return tuple(int(n) for n in sizes)


def resolve_ranks(shape: Sequence[int], rank: PerBond, *, name: str = "rank") -> tuple[int, ...]:
    """Ranks of the d - 1 bonds: one number is clipped to what each bond allows, a list must be possible.

    Args:
        shape: Mode sizes.
        rank: One rank for all bonds, or one for each of the d - 1 bonds.
        name: Name of the argument, as the user typed it, for messages.

    Returns:
        d - 1 ranks.

    Raises:
        RankError: A rank below 1, a list of another length, or one that a bond cannot have.
    """
    possible = possible_ranks(tuple(shape))
    if isinstance(rank, Integral) and not isinstance(rank, bool):
        if rank < 1:
            raise RankError(f"{name}: expected at least 1, got {rank}")
        return tuple(min(int(rank), limit) for limit in possible)
    ranks = tuple(rank) if isinstance(rank, Sequence) else (rank,)
    if len(ranks) != len(possible):
        raise RankError(f"{name}: expected one rank for each of the {len(possible)} bonds, got {ranks}")
    for k, (r, limit) in enumerate(zip(ranks, possible, strict=True)):
        if isinstance(r, bool) or not isinstance(r, Integral) or not 1 <= r <= limit:
            raise RankError(f"{name}: expected an integer from 1 to {limit} at bond {k}, got {r!r}")
    return tuple(int(r) for r in ranks)


def random_cores(
    shape: Sequence[int],
    rank: PerBond,
    *,
    seed: int | torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Cores:
    """Cores with independent normal entries, scaled so that an entry of the tensor has variance 1.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        rank: One rank for all bonds (clipped to what each allows), or one for each bond.
        seed: An integer, a generator, or None for torch's global generator. The same integer gives the same
            train on every device.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        Core k of shape (r_k, n_k, r_{k+1}).

    Raises:
        ShapeError: A mode below 1.
        RankError: A rank that a bond cannot have.
        DTypeError: An integer dtype.
    """
    sizes = check_shape(shape)
    ranks = (1, *resolve_ranks(sizes, rank), 1)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    working = linalg.working_dtype(dtype)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    source = "cpu" if generator is None else generator.device
    cores = []
    for left, n, right in zip(ranks, sizes, ranks[1:], strict=False):
        core = torch.randn(left, n, right, generator=generator, dtype=working, device=source)
        cores.append((core / math.sqrt(left)).to(dtype=dtype, device=device))
    return tuple(cores)
