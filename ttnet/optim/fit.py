"""`fit`: completion and regression from entries, with several starts and a held-out error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet.creation import random_train
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.gather import gather
from ttnet.optim.dmrg import TwoSiteDMRG
from ttnet.optim.observer import Progress
from ttnet.optim.problems.gather import LeastSquares
from ttnet.optim.result import DMRGResult, Status, SweepReport
from ttnet.parameter import TTParameter
from ttnet.random import check_shape, resolve_ranks
from ttnet.tensor_train import TensorTrain

KICK = 1e-2
"""Size of the random directions that a bond is given when it grows, relative to the core's entries."""

STALLED = 2
"""Sweeps in turn that lower neither the held-out error nor the loss, after which a rank is done."""

FALLING = 0.1
"""Share by which a sweep has to lower the loss if it is to count: held-out entries are few, and noisy."""

FRUITLESS = 2
"""Ranks in turn that do not lower it, after which the fit is done: one may begin at a saddle."""

ROUNDOFF = 30
"""Relative error, in units of the last place, at which entries are met and sweeps move roundoff alone."""


@dataclass
class _Best:
    """The best train of a start by the error on held-out entries."""

    error: float
    train: TensorTrain


def fit(
    indices: Tensor,
    values: Tensor,
    *,
    shape: Sequence[int] | None = None,
    max_rank: int = 8,
    starts: int = 1,
    held_out: float = 0.1,
    sweeps: int = 200,
    tol: float = 0.02,
    target: float = 0.0,
    l2: float = 0.0,
    progress: bool = False,
    seed: int = 0,
) -> DMRGResult:
    """A train through given entries: completion of a tensor of which `values` are known.

    One-site sweeps solve for each core exactly; where they no longer lower the error on entries that are
    held out, all ranks rise by one. It ends at `max_rank`, or where two higher ranks do not lower that
    error, and returns the best train by it. Many starts help against local minima: each further one begins
    from other random directions, and all end early where one has reached `target`.

    Args:
        indices: Shape (batch, d), integers from 0.
        values: Shape (batch,), real or complex.
        shape: Mode sizes; by default the largest index of each mode plus 1.
        max_rank: Largest rank.
        starts: Number of random starts; the best by held-out error is kept.
        held_out: Share of the entries that is held out, above 0.
        sweeps: Largest number of sweeps of a start.
        tol: A rank is done when two sweeps in turn lower the held-out error by less than this share of it,
            and the loss by less than a tenth.
        target: Relative held-out error at which to stop; a fit also stops at roundoff.
        l2: Weight of |train|^2 / 2.
        progress: Show one line a sweep.
        seed: Seed of the starts and of what is held out.

    Returns:
        The result; its certificate is the relative error |x - values| / |values| on the held-out entries,
        its trajectory that of the best start.

    Raises:
        ConfigError: `starts`, `sweeps`, `max_rank` or `held_out` out of range.
        ShapeError: Indices and values of different lengths, or indices outside `shape`.
        DTypeError: Values that are neither real nor complex, or indices that are no integers.
        NonFiniteError: A value is NaN or infinite.

    References:
        Grasedyck, Kluge and Kraemer, SIAM J. Sci. Comput. 37, A2424 (2015).
    """
    for name, number in {"starts": starts, "sweeps": sweeps, "max_rank": max_rank}.items():
        if number < 1:
            raise ConfigError(f"{name}: expected at least 1, got {number}")
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out: expected a share between 0 and 1, got {held_out}")
    _check_entries(indices, values)
    sizes = tuple(int(n) + 1 for n in indices.amax(0)) if shape is None else check_shape(shape)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).to(indices.device)
    count = max(int(held_out * len(values)), 1)
    shown, hidden = order[count:], order[:count]
    problem = LeastSquares(indices[shown], values[shown], l2=l2)
    check = _HeldOut(indices[hidden], values[hidden])
    found: list[DMRGResult] = []
    for attempt in range(starts):
        start = _near_constant(sizes, values, seed=seed + attempt)
        run = _Run(problem, check, start, seed=seed + attempt, progress=progress)
        found.append(run.until(max_rank=max_rank, sweeps=sweeps, tol=tol, target=target))
        if (found[-1].certificate or 0.0) <= run.floor(target):
            break
    return min(found, key=lambda result: result.certificate or 0.0)


def _check_entries(indices: Tensor, values: Tensor) -> None:
    if indices.ndim != 2 or values.ndim != 1 or len(indices) != len(values) or len(values) < 2:
        raise ShapeError(
            f"values: expected one for each row of `indices` (batch, d), and at least two, got shape "
            f"{tuple(values.shape)} for indices of shape {tuple(indices.shape)}"
        )
    if not (values.is_floating_point() or values.is_complex()):
        raise DTypeError(f"values: expected real or complex numbers, got {values.dtype}; use .double()")
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise NonFiniteError(f"values: expected finite numbers, got {bad} that are not; leave them out")


class _HeldOut:
    """The relative error on entries that the fit has not seen."""

    def __init__(self, indices: Tensor, values: Tensor) -> None:
        self._indices, self._values = indices, values
        self._norm = float(torch.linalg.vector_norm(values)) or 1.0
        self.size = self._norm / math.sqrt(len(values))  # of a value

    def __call__(self, train: TensorTrain) -> float:
        found = gather(train.cores, self._indices)
        return float(torch.linalg.vector_norm(found - self._values)) / self._norm


class _Run:
    """One start: sweeps at each rank for as long as they pay, then the next rank."""

    def __init__(
        self, problem: LeastSquares, check: _HeldOut, start: TensorTrain, *, seed: int, progress: bool
    ) -> None:
        self._problem, self._check = problem, check
        self._parameter = TTParameter(start)
        self._optimizer = TwoSiteDMRG(
            self._parameter, local_steps=2, damping=0.0, accept=None, growth=None, sites=1, seed=seed
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._watch = Progress() if progress else None
        self._trajectory: list[SweepReport] = []
        self._best = _Best(self._check(start), start)
        self._roundoff = ROUNDOFF * torch.finfo(start.dtype).eps
        self._least_loss = 0.5 * (self._roundoff * check.size) ** 2

    def floor(self, target: float) -> float:
        """The held-out error at which to stop."""
        return max(target, self._roundoff)

    def until(self, *, max_rank: int, sweeps: int, tol: float, target: float) -> DMRGResult:
        """Raise the rank up to `max_rank`; see `fit`."""
        status, fruitless, target = Status.MAX_SWEEPS, 0, self.floor(target)
        for rank in range(1, max_rank + 1):
            before = self._best.error
            if rank > 1:
                self._parameter.assign(_grown(self._parameter.tensor_train(), rank, self._generator))
            settled = self._sweep_while_it_pays(sweeps, tol, target)
            if not settled:
                break
            fruitless = fruitless + 1 if self._best.error > (1 - tol) * before else 0
            if self._best.error <= target or fruitless == FRUITLESS or rank == max_rank:
                status = Status.CONVERGED
                break
        loss = self._trajectory[-1].loss_after
        return DMRGResult(
            tensor_train=self._best.train,
            loss=float("nan") if loss is None else loss,
            trajectory=tuple(self._trajectory),
            status=status,
            certificate=self._best.error,
        )

    def _sweep_while_it_pays(self, sweeps: int, tol: float, target: float) -> bool:
        """Whether the error settled, or reached the target, within the number of sweeps."""
        stalled, lowest, loss = 0, float("inf"), float("inf")
        while len(self._trajectory) < sweeps:
            self._trajectory.append(self._optimizer.sweep(self._problem))
            if self._watch is not None:
                self._watch(len(self._trajectory), self._trajectory[-1])
            train = self._parameter.tensor_train()
            error = self._check(train)
            last, loss = loss, self._trajectory[-1].loss_after or 0.0
            # A loss of roundoff falls and rises by chance.
            falls = last > self._least_loss and loss < (1 - FALLING) * last
            pays = error < (1 - tol) * lowest or falls
            stalled = 0 if pays else stalled + 1
            lowest = min(error, lowest)
            if error < self._best.error:
                self._best = _Best(error, train)
            if stalled == STALLED or error <= target:
                return True
        return False


def _grown(train: TensorTrain, rank: int, generator: torch.Generator) -> TensorTrain:
    """The train with ranks up to `rank`, the new entries small and random: a sweep then fills them."""
    ranks = (1, *resolve_ranks(train.shape, rank), 1)
    cores = []
    for k, core in enumerate(train.orthogonalize(0).cores):
        size = ranks[k], core.shape[1], ranks[k + 1]
        dtype = torch.complex128 if core.is_complex() else torch.float64
        fresh = torch.randn(size, generator=generator, dtype=dtype)
        grown = KICK * float(core.abs().mean()) * fresh.to(core)
        grown[: core.shape[0], :, : core.shape[2]] = core
        cores.append(grown)
    return TensorTrain(cores)


def _near_constant(sizes: Sequence[int], values: Tensor, *, seed: int) -> TensorTrain:
    """A rank-1 train near the root mean square of the values; products of random signs begin near zero."""
    noise = random_train(sizes, 1, seed=seed, dtype=values.dtype, device=values.device)
    level = float(values.abs().square().mean().sqrt()) ** (1 / len(sizes))
    return TensorTrain([level * (1 + 0.1 * core) for core in noise.cores])
