"""`solve`: linear systems in train format."""

from dataclasses import replace

import torch

from ttnet.creation import random_train
from ttnet.optim.dmrg import TwoSiteDMRG
from ttnet.optim.problems.system import Kind, LinearSystem, Preconditioner
from ttnet.optim.result import DMRGResult, Status, SweepReport
from ttnet.parameter import TTParameter
from ttnet.rounding import distance
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation
from ttnet.tt_matrix import TTMatrix


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
        A: The operator.
        b: The right-hand side; with one mode more than A has rows its last mode counts right-hand sides.
        start: Where to begin; by default a random train of rank 2.
        tol: Relative residual |A x - b| / |b| at which to stop. It is computed, not estimated.
        sweeps: Largest number of sweeps.
        max_rank: Largest rank.
        cutoff: Relative sum of discarded squares at a bond; by default `tol` squared over 100 d.
        kind: "symmetric" for Hermitian positive A, "galerkin" (local GMRES) or "normal" (least squares) for
            others. By default "symmetric" where A equals its adjoint; where it does not, "galerkin", and
            "normal" after it where that does not arrive.
        sites: 1 with enrichment by the projected residual, in the manner of AMEn, or 2. By default 1, and 2
            for "galerkin", whose projected systems are safer with larger blocks.
        local_steps: Iterations of the local solver.
        preconditioner: For the local conjugate gradients: (block, visit) -> block.
        progress: Show one line a sweep.
        seed: Seed of the default start.

    Returns:
        The result; its certificate is the relative residual.

    Raises:
        ShapeError: `A` and `b` do not fit.
        ConfigError: An unknown `kind`.

    References:
        Dolgov and Savostyanov, SIAM J. Sci. Comput. 36, A2248 (2014); Holtz, Rohwedder and Schneider, SIAM
        J. Sci. Comput. 34, A683 (2012).
    """
    kinds: list[Kind] = [kind] if kind else ["symmetric"] if _is_hermitian(A) else ["galerkin", "normal"]
    if start is None:
        start = random_train(b.shape, 2, seed=seed, dtype=b.dtype, device=b.device)
        start = start * (b.norm() / start.norm())
    cutoff = tol**2 / (100 * max(b.ndim - 1, 1)) if cutoff is None else cutoff
    results: list[DMRGResult] = []
    for each in kinds:
        problem = LinearSystem(A, b, kind=each, preconditioner=preconditioner)
        watch = _ResidualWatch(problem, tol)
        optimizer = TwoSiteDMRG(
            TTParameter(start),
            truncation=Truncation(max_rank=max_rank, cutoff=cutoff),
            solver="gmres" if each == "galerkin" else "newton-cg",
            accept=None,
            local_steps=local_steps or 40,
            damping=0.0 if each != "galerkin" else 0.01 * tol,
            sites=sites or (2 if each == "galerkin" else 1),
            observer=watch,
        )
        result = optimizer.minimize(problem, sweeps=sweeps, tol=0.0, progress=progress)
        status = Status.CONVERGED if watch.residual <= tol else Status.MAX_SWEEPS
        status = result.status if result.status is Status.NON_FINITE else status
        results.append(replace(result, tensor_train=watch.train, certificate=watch.residual, status=status))
        if results[-1].converged:
            break
    return min(results, key=lambda result: result.certificate or 0.0)


class _ResidualWatch:
    """Computes the residual after each sweep, keeps the best train and stops at the tolerance.

    The first train is zero, whose residual is 1: nothing worse is ever returned.
    """

    def __init__(self, problem: LinearSystem, tol: float) -> None:
        self._problem = problem
        self._tol = tol
        self._norm = float(problem.b.norm())
        self._stalled = 0
        self.residual, self.train = 1.0, problem.b * 0.0

    def __call__(self, report: SweepReport, train: TensorTrain) -> bool:
        del report
        image = self._problem.A @ train
        residual = distance(image.cores, self._problem.b.cores) / (self._norm or 1.0)
        improved = residual < 0.9 * self.residual
        if residual < self.residual:
            self.residual, self.train = residual, train
        self._stalled = 0 if improved else self._stalled + 1
        return residual <= self._tol or self._stalled >= 3


def _is_hermitian(A: TTMatrix) -> bool:
    rows, columns = A.rows, A.columns
    if rows != columns:
        return False
    scale = float(A.norm())
    return float((A - A.mH).norm()) <= 100 * torch.finfo(A.dtype).eps * scale
