"""The sweep of `DMRGScheduler(mode="two-site")`: options, and the sweep itself on a copy of the cores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.cores import ranks_of
from ttnet.errors import ConfigError
from ttnet.optim.dmrg import Solver, TwoSiteDMRG
from ttnet.optim.growth import Growth
from ttnet.optim.problems.problem import Problem
from ttnet.optim.result import SweepReport
from ttnet.parameter import TTParameter
from ttnet.truncation import Truncation

OWN_PROBLEM = ("lanczos", "gmres")
"""Solvers that need an operator, not gradients: their problem is that of process 0."""


@dataclass(frozen=True, kw_only=True)
class TwoSiteOptions:
    """How `DMRGScheduler(mode="two-site")` sweeps; the names are those of `TwoSiteDMRG`.

    Args:
        solver: Local solver: "newton-cg", "lbfgs", "cg", "adam", "gradient", "lanczos" or "gmres".
        local_steps: Iterations of the solver at a block; by default what suits the solver.
        damping: Newton-CG: damping relative to the curvature along the gradient. Adam: relative learning
            rate.
        accept: "armijo": an update whose split raises the loss is shortened or undone. None: taken as it is.
        growth: "free": scheduled ranks are exact. "test": a bond grows by the directions that stand out of
            the noise of the data, at most to its scheduled rank. None: ranks never grow.
        noise: Relative size of a random perturbation before each split.
        sweeps: Sweeps there and back at each scheduled epoch, all on the same held batches.

    Raises:
        ConfigError: `sweeps` is below 1. The other options are checked where a scheduler is made with them.
    """

    solver: Solver = "newton-cg"
    local_steps: int | None = None
    damping: float | None = None
    accept: Literal["armijo"] | None = "armijo"
    growth: Growth = "free"
    noise: float = 0.0
    sweeps: int = 1

    def __post_init__(self) -> None:
        """Check the number of sweeps where it enters."""
        if self.sweeps < 1:
            raise ConfigError(f"sweeps: expected at least 1, got {self.sweeps!r}")

    def optimizer(
        self,
        parameter: TTParameter,
        *,
        max_rank: Sequence[int] | None = None,
        max_parameters: int | None = None,
        seed: int = 0,
    ) -> TwoSiteDMRG:
        """The optimizer with these options.

        Args:
            parameter: The train.
            max_rank: Largest rank of each of the d - 1 bonds.
            max_parameters: Largest number of entries of all cores.
            seed: Seed of the noise and of the tests.

        Raises:
            ConfigError: An option has a value it cannot have.
        """
        return TwoSiteDMRG(
            parameter,
            truncation=Truncation(max_rank=max_rank),
            solver=self.solver,
            local_steps=self.local_steps,
            damping=self.damping,
            accept=self.accept,
            growth=self.growth,
            noise=self.noise,
            max_parameters=max_parameters,
            seed=seed,
        )


def two_site_sweep(
    cores: CoresLike,
    problem: Problem,
    options: TwoSiteOptions,
    *,
    max_rank: Sequence[int],
    max_parameters: int | None = None,
    seed: int = 0,
) -> tuple[Cores, SweepReport]:
    """Sweep over a copy of some cores.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        problem: What is minimized.
        options: How.
        max_rank: Largest rank of each of the d - 1 bonds.
        max_parameters: Largest number of entries of all cores.
        seed: Seed of the noise and of the tests.

    Returns:
        The new cores, in float32 or better, with the center on core 0, and one report of all sweeps.

    Raises:
        NonFiniteError: The loss is NaN or infinite.
    """
    dtype = linalg.working_dtype(cores[0].dtype)
    copy = TTParameter([core.detach().to(dtype) for core in cores])
    optimizer = options.optimizer(copy, max_rank=max_rank, max_parameters=max_parameters, seed=seed)
    reports = [optimizer.sweep(problem) for _ in range(options.sweeps)]
    swept = tuple(core.detach() for core in copy.core_parameters())
    return swept, _summary(reports, ranks_of(cores)[1:-1])


def _summary(reports: Sequence[SweepReport], ranks: tuple[int, ...]) -> SweepReport:
    """One report of consecutive sweeps: what is counted is added, the rest is as the last sweep left it."""
    first, last = reports[0], reports[-1]
    untruncated = [r.loss_untruncated for r in reports if r.loss_untruncated is not None]
    norms = [r.gradient_norm for r in reports if r.gradient_norm is not None]
    return replace(
        last,
        ranks_before=ranks,
        loss_before=first.loss_before,
        loss_untruncated=min(untruncated, default=None),
        gradient_norm=max(norms, default=None),
        evaluations=sum(r.evaluations for r in reports),
        undone=sum(r.undone for r in reports),
        seconds=sum(r.seconds for r in reports),
        phases={name: sum(r.phases.get(name, 0.0) for r in reports) for name in last.phases},
    )
