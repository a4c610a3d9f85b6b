"""`fit`: completion and regression from entries, with several starts and a held-out error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet.creation import random_train
from ttnet.errors import ConfigError, ShapeError
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
        indices: Shape (batch, d), integers.
        values: Shape (batch,).
        shape: Mode sizes; by default the largest index of each mode plus 1.
        max_rank: Largest rank.
        starts: Number of random starts; the best by held-out error is kept.
        held_out: Share of the entries that is held out, above 0.
        sweeps: Largest number of sweeps of a start.
        tol: A rank is done when two sweeps in turn lower the held-out error by less than this share of it,
            and the loss by less than a tenth.
        target: Relative held-out error at which to stop.
        l2: Weight of |train|^2 / 2.
        progress: Show one line a sweep.
        seed: Seed of the starts and of what is held out.

    Returns:
        The result; its certificate is the relative error |x - values| / |values| on the held-out entries,
        its trajectory that of the best start.

    Raises:
        ConfigError: `starts` or `held_out` out of range.
        ShapeError: Indices and values of different lengths.

    References:
        Grasedyck, Kluge and Kraemer, SIAM J. Sci. Comput. 37, A2424 (2015).
    """
    if starts < 1:
        raise ConfigError(f"starts: expected at least 1, got {starts}")
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out: expected a share between 0 and 1, got {held_out}")
    if len(indices) != len(values) or len(values) < 2:
        raise ShapeError(
            f"values: expected one for each row of `indices`, and at least two, got {len(values)} for "
            f"{len(indices)} rows"
        )
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
        if (found[-1].certificate or 0.0) <= target:
            break
    return min(found, key=lambda result: result.certificate or 0.0)


class _HeldOut:
    """The relative error on entries that the fit has not seen."""

    def __init__(self, indices: Tensor, values: Tensor) -> None:
        self._indices, self._values = indices, values
        self._norm = float(torch.linalg.vector_norm(values)) or 1.0

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

    def until(self, *, max_rank: int, sweeps: int, tol: float, target: float) -> DMRGResult:
        """Raise the rank up to `max_rank`; see `fit`."""
        status, fruitless = Status.MAX_SWEEPS, 0
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
            pays = error < (1 - tol) * lowest or loss < (1 - FALLING) * last
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
        fresh = torch.randn(ranks[k], core.shape[1], ranks[k + 1], generator=generator, dtype=torch.float64)
        grown = KICK * float(core.abs().mean()) * fresh.to(core)
        grown[: core.shape[0], :, : core.shape[2]] = core
        cores.append(grown)
    return TensorTrain(cores)


def _near_constant(sizes: Sequence[int], values: Tensor, *, seed: int) -> TensorTrain:
    """A rank-1 train near the root mean square of the values; products of random signs begin near zero."""
    noise = random_train(sizes, 1, seed=seed, dtype=values.dtype, device=values.device)
    level = float(values.square().mean().sqrt()) ** (1 / len(sizes))
    return TensorTrain([level * (1 + 0.1 * core) for core in noise.cores])
