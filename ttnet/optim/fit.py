"""`fit`: completion and regression from entries, with several starts and a held-out error."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ttnet.errors import ConfigError
from ttnet.gather import gather
from ttnet.optim.dmrg import TwoSiteDMRG
from ttnet.optim.growth import Growth
from ttnet.optim.problems.gather import LeastSquares
from ttnet.optim.result import DMRGResult, Status, SweepReport
from ttnet.parameter import TTParameter
from ttnet.random import check_shape
from ttnet.tensor_train import TensorTrain, random_train
from ttnet.truncation import Truncation


def fit(
    indices: Tensor,
    values: Tensor,
    *,
    shape: Sequence[int] | None = None,
    max_rank: int = 8,
    cutoff: float = 1e-10,
    growth: Growth = "free",
    starts: int = 1,
    held_out: float = 0.1,
    sweeps: int = 20,
    tol: float = 1e-3,
    l2: float = 0.0,
    local_steps: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> DMRGResult:
    """A train through given entries: completion of a tensor of which `values` are known.

    Some entries are held out; after each sweep the error on them is computed, and the best train by that
    error is returned. Ranks begin at 1 and rise by one with each sweep, up to `max_rank`: with few entries,
    a jump of the ranks would fit noise.

    Args:
        indices: Shape (batch, d), integers.
        values: Shape (batch,).
        shape: Mode sizes; by default the largest index of each mode plus 1.
        max_rank: Largest rank.
        cutoff: Relative sum of discarded squares at a bond.
        growth: "free", or "test" to grow only where the projected gradient stands out of noise.
        starts: Number of random starts; the best by held-out error is kept.
        held_out: Share of the entries that is held out, above 0.
        sweeps: Largest number of sweeps of a start.
        tol: A start has converged when two sweeps at the largest rank lower the held-out error by less than
            this share of it.
        l2: Weight of |train|^2 / 2.
        local_steps: Conjugate gradient iterations at a block, preconditioned by its exact Hessian.
        progress: Log one line a sweep.
        seed: Seed of the starts and of what is held out.

    Returns:
        The result; its certificate is the relative error |x - values| / |values| on the held-out entries.

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
    sizes = tuple(int(n) + 1 for n in indices.amax(0)) if shape is None else check_shape(shape)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(values), generator=generator).to(indices.device)
    count = max(int(held_out * len(values)), 1)
    shown, hidden = order[count:], order[:count]
    problem = LeastSquares(indices[shown], values[shown], l2=l2)
    schedule = [Truncation(max_rank=rank, cutoff=cutoff) for rank in range(2, max(max_rank, 2) + 1)]
    best: DMRGResult | None = None
    for attempt in range(starts):
        start = _near_constant(sizes, values, seed=seed + attempt)
        watch = _HeldOutWatch(indices[hidden], values[hidden], tol=tol, settle=len(schedule))
        optimizer = TwoSiteDMRG(
            TTParameter(start),
            truncation=schedule if max_rank > 1 else Truncation(max_rank=1),
            local_steps=local_steps or 2,
            damping=0.0,
            accept=None,
            growth=growth,
            observer=watch,
            seed=seed + attempt,
        )
        result = optimizer.minimize(problem, sweeps=sweeps, tol=0.0, progress=progress)
        if watch.best is not None:
            error, train = watch.best
            status = Status.CONVERGED if result.status is Status.STOPPED else result.status
            result = replace(result, tensor_train=train, certificate=error, status=status)
        if best is None or (result.certificate or 0.0) < (best.certificate or 0.0):
            best = result
    if best is None:
        raise ConfigError(f"starts: expected at least 1, got {starts}")
    return best


class _HeldOutWatch:
    """The error on held-out entries after each sweep; stops where it no longer falls."""

    def __init__(self, indices: Tensor, values: Tensor, *, tol: float, settle: int) -> None:
        self._indices, self._values = indices, values
        self._norm = float(torch.linalg.vector_norm(values)) or 1.0
        self._tol, self._settle = tol, settle
        self._sweeps = self._stalled = 0
        self.best: tuple[float, TensorTrain] | None = None

    def __call__(self, report: SweepReport, train: TensorTrain) -> bool:
        del report
        self._sweeps += 1
        error = (
            float(torch.linalg.vector_norm(gather(train.cores, self._indices) - self._values)) / self._norm
        )
        improved = self.best is None or error < (1 - self._tol) * self.best[0]
        if self.best is None or error < self.best[0]:
            self.best = error, train
        self._stalled = 0 if improved else self._stalled + 1
        return self._sweeps >= self._settle and self._stalled >= 2


def _near_constant(sizes: Sequence[int], values: Tensor, *, seed: int) -> TensorTrain:
    """A rank-1 train near the root mean square of the values; products of random signs begin near zero."""
    noise = random_train(sizes, 1, seed=seed, dtype=values.dtype, device=values.device)
    level = float(values.square().mean().sqrt()) ** (1 / len(sizes))
    return TensorTrain([level * (1 + 0.1 * core) for core in noise.cores])
