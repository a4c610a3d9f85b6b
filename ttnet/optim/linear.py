"""`solve`: linear systems in train format."""

import torch

from ttnet.creation import random_train
from ttnet.errors import ConfigError, NonFiniteError, ShapeError
from ttnet.optim.dmrg import TwoSiteDMRG
from ttnet.optim.observer import Progress
from ttnet.optim.problems.energy import is_hermitian
from ttnet.optim.problems.system import Kind, LinearSystem, Preconditioner
from ttnet.optim.result import DMRGResult, Status, SweepReport
from ttnet.parameter import TTParameter
from ttnet.rounding import distance
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation
from ttnet.tt_matrix import TTMatrix

FRUITLESS = 3
"""Sweeps in turn that do not lower the residual by a tenth, after which a run is over."""

LOCAL_STEPS: dict[Kind, int] = {"symmetric": 40, "galerkin": 40, "normal": 300}
"""Iterations of the local solver: least squares square the condition number."""


def solve(
    A: TTMatrix,
    b: TensorTrain,
    *,
    start: TensorTrain | None = None,
    tol: float = 1e-8,
    sweeps: int = 20,
    max_rank: int | None = None,
    cutoff: float | None = None,
    kind: Kind | None = None,
    sites: int | None = None,
    local_steps: int | None = None,
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
    seed: int = 0,
) -> DMRGResult:
    """The solution x of A x = b as a train whose ranks follow the tolerance.

    Args:
        A: The operator; where it, `b` or `start` is complex, so is x.
        b: The right-hand side; with one mode more than A has rows its last mode counts right-hand sides.
        start: Where to begin, in the modes of x; by default a random train of rank 2.
        tol: Relative residual |A x - b| / |b| at which to stop. It is computed, not estimated.
        sweeps: Largest number of sweeps.
        max_rank: Largest rank.
        cutoff: Relative sum of discarded squares at a bond; by default `tol` squared over 100 d.
        kind: "symmetric" for Hermitian positive A, "galerkin" (local GMRES) for square ones, "normal" (least
            squares) for any. By default "symmetric", "normal" and "galerkin" in turn, until one arrives at
            `tol`, where A equals its adjoint, be it positive or not; "galerkin" and then "normal" for other
            square ones.
        sites: 1 with enrichment by the projected residual, in the manner of AMEn, or 2. By default 1, and 2
            for "galerkin", whose projected systems are safer with larger blocks.
        local_steps: Iterations of the local solver; by default 40, and 300 for "normal".
        preconditioner: For the local conjugate gradients of `kind`, or of "symmetric" where that is None:
            (block, visit) -> block.
        progress: Show one line a sweep.
        seed: Seed of the default start.

    Returns:
        The result; its certificate is the relative residual. Where that arrived at `tol`, x is rounded as far
        as it stays there. Its status is `Status.STALLED` where three sweeps in turn did not lower it by a
        tenth.

    Raises:
        ShapeError: `A`, `b` and `start` do not fit.
        ConfigError: An unknown `kind`, or one that takes no rectangular A; `sweeps` below 1.

    References:
        Dolgov and Savostyanov, SIAM J. Sci. Comput. 36, A2248 (2014); Holtz, Rohwedder and Schneider, SIAM
        J. Sci. Comput. 34, A683 (2012).
    """
    if sweeps < 1:
        raise ConfigError(f"sweeps: expected at least 1, got {sweeps}")
    dtype = torch.promote_types(A.dtype, b.dtype)
    if start is not None:
        dtype = torch.promote_types(dtype, start.dtype)
    A, b = A.to(dtype), b.to(dtype)
    shape = (*A.columns, *b.shape[len(A.rows) :])
    if start is None:
        start = random_train(shape, 2, seed=seed, dtype=dtype, device=b.device)
        start = start * (b.norm() / start.norm())
    if start.shape != shape:
        raise ShapeError(f"start: expected the column modes of A, {shape}, got {start.shape}")
    cutoff = tol**2 / (100 * max(b.ndim - 1, 1)) if cutoff is None else cutoff
    results: list[DMRGResult] = []
    kinds: list[Kind] = [kind] if kind else _kinds(A)
    for each in kinds:
        problem = LinearSystem(
            A, b, kind=each, preconditioner=preconditioner if kind or each == "symmetric" else None
        )
        optimizer = TwoSiteDMRG(
            TTParameter(start.to(dtype)),
            truncation=Truncation(max_rank=max_rank, cutoff=cutoff),
            solver="gmres" if each == "galerkin" else "newton-cg",
            accept=None,
            local_steps=local_steps or LOCAL_STEPS[each],
            damping=0.0 if each != "galerkin" else 0.01 * tol,
            sites=sites or (2 if each == "galerkin" else 1),
        )
        run = _Run(problem, optimizer, start * 0.0, tol)
        results.append(run.until(sweeps, Progress() if progress else None))
        if results[-1].converged:
            break
    return min(results, key=lambda result: result.certificate or 0.0)


class _Run:
    """Sweeps by one kind of local systems; computes the residual after each, and keeps the best train.

    The first train is zero, whose residual is 1: nothing worse is ever returned.
    """

    def __init__(self, problem: LinearSystem, optimizer: TwoSiteDMRG, zero: TensorTrain, tol: float) -> None:
        self._problem = problem
        self._optimizer = optimizer
        self._tol = tol
        self._norm = float(problem.b.norm())
        self._best, self._train = 1.0 if self._norm else 0.0, zero
        self._loss = 1.0 if problem.kind == "galerkin" else 0.0

    def until(self, sweeps: int, progress: Progress | None) -> DMRGResult:
        """Sweep until the residual is at the tolerance, or falls no more."""
        trajectory: list[SweepReport] = []
        status, fruitless = Status.MAX_SWEEPS, 0
        while status is Status.MAX_SWEEPS and len(trajectory) < sweeps:
            try:
                report = self._optimizer.sweep(self._problem)
            except NonFiniteError:
                status = Status.NON_FINITE
                break
            trajectory.append(report)
            if progress is not None:
                progress(len(trajectory), report)
            train = self._optimizer.parameter.tensor_train()
            residual = self._residual(train)
            fruitless = 0 if residual < 0.9 * self._best else fruitless + 1
            if residual < self._best and report.loss_after is not None:
                self._best, self._train, self._loss = residual, train, report.loss_after
            if fruitless == FRUITLESS:
                status = Status.STALLED
            if self._best <= self._tol:
                status = Status.CONVERGED
                self._round()
        return DMRGResult(
            tensor_train=self._train,
            loss=self._loss,
            trajectory=tuple(trajectory),
            status=status,
            certificate=self._best,
        )

    def _residual(self, train: TensorTrain) -> float:
        image = self._problem.A @ train
        return distance(image.cores, self._problem.b.cores) / (self._norm or 1.0)

    def _round(self) -> None:
        """The lowest ranks whose residual is at most the tolerance: sweeps leave more than it needs."""
        error = self._tol
        while error > torch.finfo(self._train.dtype).eps:
            rounded = self._train.truncate(Truncation(rtol=error))
            if rounded.ranks == self._train.ranks:
                return
            residual = self._residual(rounded)
            if residual <= self._tol:
                self._best, self._train = residual, rounded
                return
            error *= 0.1


def _kinds(A: TTMatrix) -> list[Kind]:
    """Kinds of local systems, in the order in which they are tried."""
    if A.rows != A.columns:
        return ["normal"]
    return (
        ["symmetric", "normal", "galerkin"]
        if is_hermitian(A, 100 * torch.finfo(A.dtype).eps)
        else ["galerkin", "normal"]
    )
