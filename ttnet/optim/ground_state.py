"""`dmrg`: lowest and excited states of a matrix product operator."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from ttnet.errors import ConfigError
from ttnet.measure import expectation, variance
from ttnet.optim.dmrg import Solver, TwoSiteDMRG
from ttnet.optim.observer import Observer
from ttnet.optim.problems.energy import RayleighQuotient, is_hermitian
from ttnet.optim.result import DMRGResult, Status
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation
from ttnet.tt_matrix import TTMatrix

OVERLAP = 1e-3
"""Largest overlap of a state with one that it should be orthogonal to."""


def dmrg(
    H: TTMatrix | Sequence[TTMatrix],
    train: TensorTrain,
    *,
    sweeps: int = 10,
    max_rank: int | Sequence[int] = 64,
    cutoff: float | Sequence[float] = 1e-12,
    noise: float | Sequence[float] = 0.0,
    orthogonal_to: Sequence[TensorTrain] = (),
    penalty: float | None = None,
    sites: int = 2,
    one_site_sweeps: int = 0,
    solver: Solver = "lanczos",
    local_steps: int | None = None,
    tol: float = 1e-10,
    entropy_tol: float | None = None,
    observer: Observer | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> DMRGResult:
    """The lowest state of a Hermitian operator, or the lowest one orthogonal to given states.

    Args:
        H: The operator, or several whose sum is meant.
        train: Where to begin; its norm does not matter.
        sweeps: Largest number of sweeps; there and back is ONE sweep.
        max_rank: Largest rank, one number or a list by sweep whose last entry repeats.
        cutoff: Relative sum of discarded squares at a bond, one number or a list by sweep.
        noise: Relative size of a random perturbation of each block, one number or a list by sweep. It
            converges only where the noise is 0: end the list with it.
        orthogonal_to: States to stay orthogonal to, found before.
        penalty: By default each block is optimized in the complement of these states, which needs no weight.
            A number: the energy that an overlap of 1 with one of them costs; it has to exceed the gap.
        sites: 2, or 1 with subspace expansion.
        one_site_sweeps: Sweeps at the end with one-site updates at fixed ranks, which discard nothing.
        solver: Local solver.
        local_steps: Its iterations; 8 Krylov vectors at most by default.
        tol: Converged when a sweep without noise changes the energy by less than `tol` times its size, and it
            and the one before had the last settings of the lists.
        entropy_tol: If given, the entropies must have settled to this, in nats, as well.
        observer: Called after each sweep, may stop it.
        progress: Show one line a sweep.
        checkpoint: A file written after each sweep, from which an interrupted run goes on to the same bits.
        seed: Seed of the noise.

    Returns:
        The result: the normalized state, its energy without any penalty, and as certificate the variance
        <H^2> - <H>^2: there is an eigenvalue within the square root of it. The status is NOT_ORTHOGONAL where
        an overlap with a state of `orthogonal_to` is above 1e-3.

    Raises:
        ConfigError: A negative number of sweeps, an empty list, or an operator that is not Hermitian.
        ShapeError: The operator does not fit the train.

    References:
        White, Phys. Rev. Lett. 69, 2863 (1992); Schollwoeck, Ann. Phys. 326, 96 (2011), section 6.

    Examples:
        >>> import torch, ttnet
        >>> start = ttnet.random_train((2,) * 8, rank=4, seed=0, dtype=torch.float64)
        >>> result = dmrg(ttnet.operators.heisenberg(8, dtype=torch.float64), start)
        >>> round(result.loss, 10), result.converged
        (-3.3749325987, True)
    """
    if sweeps < 1:
        raise ConfigError(f"sweeps: expected at least 1, got {sweeps}")
    ranks = _by_sweep("max_rank", max_rank)
    cutoffs = _by_sweep("cutoff", cutoff)
    count = max(len(ranks), len(cutoffs))
    truncation = [
        Truncation(max_rank=int(ranks[min(k, len(ranks) - 1)]), cutoff=cutoffs[min(k, len(cutoffs) - 1)])
        for k in range(count)
    ]
    if not is_hermitian(H, math.sqrt(torch.finfo(train.dtype).eps)):
        raise ConfigError(
            "H: expected a Hermitian operator, got one that differs from its adjoint; minimize its Hermitian "
            "part, (H + H.mH) / 2, or add the terms that are missing"
        )
    problem = RayleighQuotient(H, orthogonal_to=orthogonal_to, penalty=penalty)
    operators = [H] if isinstance(H, TTMatrix) else H
    dtype = reduce(
        torch.promote_types, (each.dtype for each in operators if each.dtype.is_complex), train.dtype
    )
    parameter = TTParameter(train.to(dtype))
    optimizer = TwoSiteDMRG(
        parameter,
        truncation=truncation,
        solver=solver,
        local_steps=local_steps,
        noise=noise,
        sites=sites,
        observer=observer,
        seed=seed,
    )
    result = optimizer.minimize(
        problem,
        sweeps=sweeps,
        tol=tol,
        entropy_tol=entropy_tol,
        one_site_sweeps=one_site_sweeps,
        progress=progress,
        checkpoint=checkpoint,
    )
    state = result.tensor_train.orthogonalize(0)
    state = state / state.norm()
    result = replace(result, tensor_train=state, certificate=float(variance(H, state)))
    if not orthogonal_to or not math.isfinite(result.loss):
        return result
    overlap = max(abs(complex(other.dot(state))) / float(other.norm()) for other in orthogonal_to)
    status = Status.NOT_ORTHOGONAL if overlap > OVERLAP else result.status
    return replace(result, loss=float(expectation(H, state).real), status=status)


def _by_sweep(name: str, value: float | Sequence[float]) -> Sequence[float]:
    values = (value,) if isinstance(value, int | float) else tuple(value)
    if not values:
        raise ConfigError(
            f"{name}: expected a number or a list with one entry for each sweep, got an empty list"
        )
    return values
