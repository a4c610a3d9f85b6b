"""`TwoSiteDMRG`: sweeps that merge two cores, improve the block by gradients, and split it again.

    --[k]--[k+1]--   merge   --[ block ]--   solve   --[ block' ]--   split   --[k]--[k+1]--
       |     |                  |     |                 |      |                 |     |

The rank of the bond is chosen anew at each split. A split that raised the loss is noticed for nothing: the
next block begins with an evaluation of the loss, and only where that is worse than before the update is it
taken back.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.cores import merge_bond, ranks_of
from ttnet.errors import ConfigError, NonFiniteError
from ttnet.gauge import orthogonalize, shift_left, shift_right
from ttnet.optim.geometry import Visit, there_and_back
from ttnet.optim.growth import Growth, expansion, rank_cap
from ttnet.optim.local import SOLVERS
from ttnet.optim.local.problem import HasConstraint, LocalProblem, LocalResult, Start
from ttnet.optim.minimization import Minimization
from ttnet.optim.observer import Observer
from ttnet.optim.problems.closure import Closure, RandomState, Replayed, random_state
from ttnet.optim.problems.problem import Problem
from ttnet.optim.record import SweepRecord, Update
from ttnet.optim.result import DMRGResult, SweepReport
from ttnet.optim.split import Split, at_bond, cuts_one, place, place_one, split_block
from ttnet.parameter import TTParameter
from ttnet.truncation import Truncation

Solver = Literal["newton-cg", "lbfgs", "cg", "adam", "gradient", "lanczos", "gmres"]


class TwoSiteDMRG:
    """Minimizes any differentiable loss of a train by sweeps of two-site (or one-site) updates.

    Args:
        parameter: The train; it receives the result after each `step` and `sweep`.
        truncation: How blocks are split, one for all sweeps or a list by sweep, whose last entry repeats.
        solver: "newton-cg", "lbfgs", "cg", "adam", "gradient"; "lanczos" for Rayleigh quotients, "gmres"
            for systems that are not symmetric.
        local_steps: Iterations of the solver at a block; by default what suits the solver.
        damping: Newton-CG: damping relative to the curvature along the gradient. Adam: relative learning
            rate.
        accept: "armijo": an update whose split raises the loss is shortened or undone. None: taken as it is.
        max_rise: Share by which the loss may rise for each direction that a split drops, where the tolerances
            ask for it; a split that costs more keeps its rank.
        growth: "free": a bond takes any rank that the truncation allows. "test": it grows by as many
            directions as stand out of the noise floor of the projected gradient. None: ranks never grow.
        noise: Relative size of a random perturbation before the split, a number or a list by sweep: it helps
            bonds to leave a symmetric or a stuck state.
        sites: 2, or 1 with subspace expansion by the projected two-site gradient, before which the truncation
            cuts the bond; such a cut is never taken back.
        max_parameters: Largest number of entries of all cores; bonds stop growing there.
        observer: Called after each sweep, may stop the minimization; see `ttnet.optim.observer`.
        seed: Seed of the noise and of the tests.

    Raises:
        ConfigError: An option has a value it cannot have.

    References:
        White, Phys. Rev. Lett. 69, 2863 (1992); Stoudenmire and Schwab, arXiv 1605.05775.
    """

    def __init__(
        self,
        parameter: TTParameter,
        *,
        truncation: Truncation | Sequence[Truncation] = Truncation(),  # noqa: B008 - frozen
        solver: Solver = "newton-cg",
        local_steps: int | None = None,
        damping: float | None = None,
        accept: Literal["armijo"] | None = "armijo",
        max_rise: float = 0.0,
        growth: Growth = "free",
        noise: float | Sequence[float] = 0.0,
        sites: int = 2,
        max_parameters: int | None = None,
        observer: Observer | None = None,
        seed: int = 0,
    ) -> None:
        _check_choice("solver", solver, tuple(SOLVERS))
        _check_choice("accept", accept, ("armijo", None))
        _check_choice("growth", growth, ("free", "test", None))
        _check_choice("sites", sites, (1, 2))
        if not max_rise >= 0:
            raise ConfigError(f"max_rise: expected a number of at least 0, got {max_rise!r}")
        if local_steps is not None and local_steps < 1:
            raise ConfigError(f"local_steps: expected at least 1, got {local_steps}")
        self.parameter = parameter
        self.truncation = (truncation,) if isinstance(truncation, Truncation) else tuple(truncation)
        self.noise = (noise,) if isinstance(noise, int | float) else tuple(noise)
        self.growth: Growth = growth
        self.accept = accept
        self.max_rise = max_rise
        self.sites = sites
        self.max_parameters = max_parameters
        self.observer = observer
        options = {"steps": local_steps, "damping": damping}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._solve: Callable[..., LocalResult] = SOLVERS[solver]
        self._generator = torch.Generator().manual_seed(seed)
        self._cores: Cores = ()
        self._signature: object = None
        self._position = 0
        self.sweeps_done = 0
        self._pending: Update | None = None
        self._wrapped: tuple[object, Problem] | None = None
        self.random: RandomState | None = None
        self._record = SweepRecord()
        self.loss = math.nan

    # One local update --------------------------------------------------------------------------------------

    def step(self, problem: Problem | Callable[[], Tensor]) -> float:
        """One local update: merge, solve, split, move on.

        Args:
            problem: A closure that returns the loss with its graph, or a problem object; the same object
                at each step, as a new lambda is a new problem, by which no update before it is judged.

        Returns:
            The loss before the update.

        Raises:
            NonFiniteError: The loss is NaN or infinite; the parameter is as before.
        """
        subject = self._as_problem(problem)
        self._synchronize()
        found = self._visit(subject)
        self._write_back()
        return found

    def sweep(self, problem: Problem | Callable[[], Tensor]) -> SweepReport:
        """There and back over all bonds: one sweep.

        A closure's random state is fixed for the sweep: hold one batch for as long as a sweep takes.

        Args:
            problem: A closure that returns the loss with its graph, or a problem object.

        Returns:
            The report.

        Raises:
            NonFiniteError: The loss is NaN or infinite; the parameter holds the last good train.
        """
        started = time.perf_counter()
        subject = self._as_problem(problem, fresh=self._position == 0)
        self._synchronize()
        try:
            self._visit(subject)
            while self._position:
                self._visit(subject)
            loss = self._settle(subject)
        finally:
            self._write_back()
        return self._record.report(ranks_of(self._cores)[1:-1], loss, time.perf_counter() - started)

    def minimize(
        self,
        problem: Problem | Callable[[], Tensor],
        *,
        sweeps: int = 10,
        tol: float = 1e-8,
        entropy_tol: float | None = None,
        one_site_sweeps: int = 0,
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> DMRGResult:
        """Sweep until the loss settles.

        Args:
            problem: A closure that returns the loss with its graph, or a problem object.
            sweeps: Largest number of sweeps.
            tol: Converged when a sweep without noise changes the loss by less than `tol` times its size, and
                it and the one before had the last settings of the lists.
            entropy_tol: If given, the entropies must have settled to this, in nats, as well.
            one_site_sweeps: Sweeps at the end, or once the loss has settled, with one-site updates at fixed
                ranks, which split nothing.
            progress: Show one line a sweep.
            checkpoint: A file that is written after each sweep. Where it exists already, the run goes on from
                it, to the same bits that it would have reached without an interruption.

        Returns:
            The result, and the parameter, with the best train seen under the last settings of the lists, or
            under the others where no sweep came that far.

        Raises:
            FormatError: `checkpoint` is no such file, or one of other ranks or modes.
        """
        run = Minimization(self, checkpoint)
        return run.until(
            problem,
            sweeps=sweeps,
            one_site_sweeps=one_site_sweeps,
            tol=tol,
            entropy_tol=entropy_tol,
            progress=progress,
        )

    def _visit(self, problem: Problem) -> float:
        visits = there_and_back(len(self._cores), self.sites)
        visit = visits[self._position % len(visits)]
        if self._position == 0:
            self._record = SweepRecord(ranks=ranks_of(self._cores)[1:-1])
        local, start = self._judge(problem, visit)
        self._record.saw(start)
        clock = time.perf_counter()
        result = self._solve(local, start, **self._options)
        self._record.solved(result, time.perf_counter() - clock)
        clock = time.perf_counter()
        before = self._cores
        if visit.sites == 2:
            forced = self._split_two(visit, start, result, local)
        else:
            forced = self._shift_one(problem, visit, result)
        self._pending = Update(
            visit=visit,
            sweep=self.sweeps_done,
            cores=before,
            start=start.block,
            loss=start.loss,
            block=result.block,
            forced=forced,
            shrunk=max(before[visit.site].shape[2] - self._cores[visit.site].shape[2], 0),
        )
        self._record.phases["split"] += time.perf_counter() - clock
        self._position = (self._position + 1) % len(visits)
        if self._position == 0:
            self.sweeps_done += 1
        return start.loss

    def _begin(self, problem: Problem, visit: Visit) -> tuple[LocalProblem, Start]:
        clock = time.perf_counter()
        cores = self._cores
        block = cores[visit.site] if visit.sites == 1 else merge_bond(cores[visit.site], cores[visit.last])
        local = problem.local(cores, visit)
        block = local.feasible(block) if isinstance(local, HasConstraint) else block
        loss, gradient = local.value_and_gradient(block)
        self._record.phases["environments"] += time.perf_counter() - clock
        self._record.evaluations += 1
        return local, Start(block=block, loss=loss, gradient=gradient)

    def _split_two(self, visit: Visit, start: Start, result: LocalResult, local: LocalProblem) -> bool:
        """Split an optimized block; whether the truncation forced the rank below that of the start."""
        rank = self._cores[visit.site].shape[2]
        cap = rank_cap(self.growth, rank, local, start, self._cores, visit, self._generator)
        truncation = self._at_bond(visit.site, cap)
        block = result.block
        level = self._noise(self.sweeps_done)
        if level:
            kick = torch.randn(block.shape, generator=self._generator, dtype=torch.float64).to(block)
            block = block + level * kick * (torch.linalg.vector_norm(block) / math.sqrt(block.numel()))
        parts = self._split(block, truncation, forward=visit.forward)
        self._cores = place(self._cores, visit.site, parts)
        self._record.cut(visit.site, parts)
        return isinstance(truncation.max_rank, int) and truncation.max_rank < rank

    def _split(self, block: Tensor, truncation: Truncation, *, forward: bool) -> Split:
        return split_block(block, truncation, forward=forward, bonds=max(len(self._cores) - 1, 1))

    def _shift_one(self, problem: Problem, visit: Visit, result: LocalResult) -> bool:
        """Move the center on after a one-site update; whether the truncation cut the bond.

        Where ranks may grow, the bond gets new directions after it was cut.
        """
        work = list(self._cores)
        work[visit.site] = result.block
        to = visit.site + (1 if visit.forward else -1)
        if not 0 <= to < len(work):
            self._cores = tuple(work)
            return False
        bond, has_cut = min(visit.site, to), False
        truncation = self._at_bond(bond, None)
        if cuts_one(truncation, work[bond].shape[2], fixed=self.growth is None):
            block = result.block.unsqueeze(3 if visit.forward else 1)
            parts = self._split(block, truncation, forward=visit.forward)
            work[bond], work[bond + 1] = place_one(work, bond, parts, forward=visit.forward)
            self._record.cut(bond, parts)
            has_cut = parts.is_lossy
        if self.growth is not None:
            cap = truncation.max_rank
            extra = expansion(self.growth, problem, work, bond, cap, self._generator, forward=visit.forward)
            if extra is not None:
                work[bond], work[bond + 1] = extra
        shift = shift_right if visit.forward else shift_left
        work[bond], work[bond + 1] = shift(work[bond], work[bond + 1])
        self._cores = tuple(work)
        return has_cut

    # Acceptance --------------------------------------------------------------------------------------------

    def _judge(self, problem: Problem, visit: Visit) -> tuple[LocalProblem, Start]:
        """Begin a visit: its loss is the one after the last update, which is taken back if it rose."""
        local, start = self._begin(problem, visit)
        if self._pending is not None and not self._is_fine(start.loss):
            self._take_back(problem)
            local, start = self._begin(problem, visit)
        if not math.isfinite(start.loss):
            self._undo()
            raise NonFiniteError(
                f"problem: expected a finite loss at cores {visit.site} to {visit.last}, got {start.loss}; "
                f"the last good train is kept: raise `damping`, or look for an overflow in the loss"
            )
        self.loss = start.loss
        return local, start

    def _is_fine(self, loss: float) -> bool:
        pending = self._pending
        if self.accept is None or pending is None or pending.forced or self._noise(pending.sweep):
            return True
        ceiling = self._record.ceiling(pending)
        if ceiling < loss <= ceiling + self.max_rise * pending.shrunk * abs(ceiling):
            self._record.forget()
            return True
        return loss <= ceiling

    def _take_back(self, problem: Problem) -> None:
        """Shorten the last update until its split does not raise the loss, or undo it."""
        pending = self._pending
        self._pending = None
        if pending is None or pending.visit.sites == 1:
            self._undo()
            return
        self._record.undone += 1
        self._cores = pending.cores
        local = problem.local(self._cores, pending.visit)
        rank = pending.cores[pending.visit.site].shape[2]
        more = Truncation(max_rank=self._at_bond(pending.visit.site, rank, sweep=pending.sweep).max_rank)
        for share in (1.0, 0.5, 0.25, 0.0625):
            block = pending.start + share * (pending.block - pending.start)
            parts = self._split(block, more, forward=pending.visit.forward)
            self._record.evaluations += 1
            if local.value((parts.left @ parts.right).reshape(block.shape)) <= self._record.ceiling(pending):
                break
        else:
            parts = self._split(pending.start, Truncation(max_rank=rank), forward=pending.visit.forward)
        self._cores = place(self._cores, pending.visit.site, parts)
        self._record.cut(pending.visit.site, parts)

    def _undo(self) -> None:
        if self._pending is not None:
            visit = self._pending.visit
            # The center is where it was before the update: bring it to where the next visit expects it.
            to = visit.site + 1 if visit.forward else max(visit.site - (visit.sites == 1), 0)
            self._cores = orthogonalize(self._pending.cores, min(to, len(self._cores) - 1))
            self._pending = None

    def _settle(self, problem: Problem) -> float:
        """The loss after the last split of a sweep."""
        _, start = self._judge(problem, there_and_back(len(self._cores), self.sites)[0])
        self._pending = None
        return start.loss

    # State -------------------------------------------------------------------------------------------------

    def _synchronize(self) -> None:
        """Take the parameter's cores where somebody else has changed them; canonical, center 0."""
        self.parameter.check_sweep("TwoSiteDMRG")
        signature = self.parameter.signature()
        if signature == self._signature and self._cores:
            return
        cores = [core.detach() for core in self.parameter.core_parameters()]
        dtype = linalg.working_dtype(cores[0].dtype)
        with torch.no_grad():
            self._cores = orthogonalize([core.to(dtype).clone() for core in cores], 0)
        self._position, self._pending, self._signature = 0, None, signature

    def _write_back(self) -> None:
        self.parameter.assign(self._cores)
        self._signature = self.parameter.signature()

    def _as_problem(self, problem: Problem | Callable[[], Tensor], *, fresh: bool = False) -> Problem:
        known = self._wrapped is not None and _is_same(self._wrapped[0], problem)
        if self._wrapped is not None and known and not fresh:
            return self._wrapped[1]
        if hasattr(problem, "local"):
            subject: Problem = problem  # pyright: ignore[reportAssignmentType]
        elif callable(problem):
            subject = Closure(problem, self.parameter)
        else:
            raise ConfigError(
                f"problem: expected a closure or a problem object, got {type(problem).__name__}"
            )
        if self._wrapped is not None and not known:
            # Losses of another problem say nothing about this one.
            self._pending, self.loss = None, math.nan
            self._record.forget()
        if self.random is not None and isinstance(subject, Replayed):
            subject.set_random_state(self.random)
        self._wrapped, self.random = (problem, subject), None
        return subject

    def _at_bond(self, bond: int, cap: int | None, *, sweep: int | None = None) -> Truncation:
        """The truncation of a sweep, by default this one, with a growth cap and the budget of parameters."""
        index = self.sweeps_done if sweep is None else sweep
        scheduled = self.truncation[min(index, len(self.truncation) - 1)]
        return at_bond(scheduled, bond, cap, self._cores, self.max_parameters)

    def _noise(self, sweep: int) -> float:
        return float(self.noise[min(sweep, len(self.noise) - 1)])

    @property
    def schedule(self) -> int:
        """Number of sweeps from which on the last truncation and the last noise of the lists are in force."""
        return max(len(self.truncation), len(self.noise))

    @property
    def is_noisy(self) -> bool:
        """Whether the sweep before had noise."""
        return self._noise(max(self.sweeps_done - 1, 0)) != 0.0

    def _random_state(self) -> RandomState | None:
        """That of the problem; between sweeps, that which the next sweep would give to a closure."""
        if self.random is not None or self._wrapped is None:
            return self.random
        problem, subject = self._wrapped
        if not isinstance(subject, Replayed):
            return None
        if self._position or self._pending is not None or problem is subject:
            return subject.random_state()
        return random_state(self._cores[0].device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to give the same bits, also in the middle of a sweep.

        Plain values and tensors, copied: `torch.load` reads them back as it is. The random state of a closure
        is among them; the first closure after `load_state_dict` receives it.
        """
        return {
            "cores": [core.clone() for core in self._cores],
            "position": self._position,
            "sweeps_done": self.sweeps_done,
            "sites": self.sites,
            "pending": None if self._pending is None else self._pending.as_dict(),
            "loss": self.loss,
            "generator": self._generator.get_state(),
            "random": self._random_state(),
            "log": self._record.as_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; the parameter receives the cores."""
        self._cores = tuple(core.clone() for core in state["cores"])
        self._position, self.sweeps_done = state["position"], state["sweeps_done"]
        self.sites, self.loss = state["sites"], state["loss"]
        self._pending = None if state["pending"] is None else Update.from_dict(state["pending"])
        self._wrapped, self.random = None, state["random"]
        self._generator.set_state(state["generator"])
        self._record = SweepRecord(**state["log"])
        if self._cores:
            self._write_back()


def _is_same(a: object, b: object) -> bool:
    """Whether two problems are one: a bound method is another object each time that it is looked up."""
    return a is b or (isinstance(a, MethodType) and a == b)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {choices}, got {value!r}")
