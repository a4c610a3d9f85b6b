"""A minimization by sweeps: when it ends, what is the best, and how it goes on after an interruption."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.errors import FormatError, NonFiniteError
from ttnet.optim.growth import Growth
from ttnet.optim.observer import Observer, Progress
from ttnet.optim.problems.closure import RandomState, random_state
from ttnet.optim.problems.problem import Problem
from ttnet.optim.result import DMRGResult, Status, SweepReport
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain

FORMAT = 1
"""Version of the checkpoints."""


class Sweeper(Protocol):
    """What is swept: a `TwoSiteDMRG`."""

    parameter: TTParameter
    observer: Observer | None
    sites: int
    growth: Growth
    sweeps_done: int
    loss: float
    random: RandomState | None

    @property
    def schedule(self) -> int:
        """Number of sweeps from which on the last settings of its lists are in force."""
        ...

    @property
    def is_noisy(self) -> bool:
        """Whether the sweep before had noise."""
        ...

    def sweep(self, problem: Problem | Callable[[], Tensor]) -> SweepReport:
        """One sweep."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back its state."""
        ...


class Minimization:
    """Sweeps and the best train they have seen.

    Args:
        sweeper: The optimizer.
        checkpoint: File that keeps the state after each sweep; taken back at once where it exists.

    Raises:
        FormatError: `checkpoint` is no such file, or does not fit.
    """

    def __init__(self, sweeper: Sweeper, checkpoint: str | os.PathLike[str] | None = None) -> None:
        self._sweeper = sweeper
        self._path = None if checkpoint is None else Path(checkpoint)
        self._sites = sweeper.sites
        self._growth: Growth = sweeper.growth
        self._trajectory: list[SweepReport] = []
        self._best: tuple[bool, float, TensorTrain] | None = None
        self._turned: int | None = None
        self._random = random_state(sweeper.parameter.core_parameters()[0].device)
        if self._path is not None and self._path.exists():
            self._resume(self._path)

    def until(
        self,
        problem: Problem | Callable[[], Tensor],
        *,
        sweeps: int,
        one_site_sweeps: int,
        tol: float,
        entropy_tol: float | None,
        progress: bool,
    ) -> DMRGResult:
        """Sweep until the loss settles; see `TwoSiteDMRG.minimize`."""
        watch = Progress() if progress else None
        status = Status.MAX_SWEEPS
        try:
            while True:
                done = len(self._trajectory)
                settled = done > (self._turned or 0) and self._is_settled(tol, entropy_tol)
                if self._turned is None and one_site_sweeps and (settled or done >= sweeps):
                    self._turned = done
                elif settled:
                    status = Status.CONVERGED
                    break
                if done >= (sweeps if self._turned is None else self._turned + one_site_sweeps):
                    break
                if self._turned is not None:
                    self._sweeper.sites, self._sweeper.growth = 1, None
                else:
                    self._sweeper.sites = self._sites
                if not hasattr(problem, "local"):
                    # One function for the whole run, also after an interruption.
                    self._sweeper.random = self._random
                report = self._sweeper.sweep(problem)
                self._keep(report)
                if watch is not None:
                    watch(done + 1, report)
                observer = self._sweeper.observer
                stop = observer is not None and observer(report, self._sweeper.parameter.tensor_train())
                self._save()
                if stop:
                    status = Status.STOPPED
                    break
        except NonFiniteError:
            status = Status.NON_FINITE
        finally:
            self._sweeper.sites, self._sweeper.growth = self._sites, self._growth
        _, loss, train = self._best or (False, self._sweeper.loss, self._sweeper.parameter.tensor_train())
        self._sweeper.parameter.assign(train)
        return DMRGResult(tensor_train=train, loss=loss, trajectory=tuple(self._trajectory), status=status)

    def _is_settled(self, tol: float, entropy_tol: float | None) -> bool:
        """Whether the last sweep changed little, it and the one before by the last settings of the lists."""
        schedule = self._sweeper.schedule
        if self._sweeper.is_noisy or self._sweeper.sweeps_done < schedule + (schedule > 1):
            return False
        first, last = self._trajectory[0].loss_before, self._trajectory[-1]
        if first is None or last.loss_before is None or last.loss_after is None:
            return False
        # A rise is no settling, unless it is roundoff: of the loss itself, or of a square that has vanished.
        eps = torch.finfo(linalg.working_dtype(self._sweeper.parameter.core_parameters()[0].dtype)).eps
        size = max(abs(last.loss_before), abs(last.loss_after))
        floor = eps**1.5 * abs(first)
        fall = last.loss_before - last.loss_after
        if (
            not -max(tol * size, (1000 if eps < 1e-10 else 16) * eps * size, floor)
            <= fall
            <= max(tol * size, floor)
        ):
            return False
        if entropy_tol is None:
            return True
        if len(self._trajectory) < 2:
            return False
        before = self._trajectory[-2].entropies
        return all(abs(a - b) <= entropy_tol for a, b in zip(before, last.entropies, strict=True))

    def _keep(self, report: SweepReport) -> None:
        """The best is sought among the sweeps with the last settings, where there are any."""
        self._trajectory.append(report)
        loss = report.loss_after if report.loss_after is not None else math.inf
        final = self._sweeper.sweeps_done >= self._sweeper.schedule
        if self._best is None or final > self._best[0] or (final == self._best[0] and loss <= self._best[1]):
            self._best = final, loss, self._sweeper.parameter.tensor_train()

    def _save(self) -> None:
        if self._path is None or self._best is None:
            return
        final, loss, train = self._best
        state = {
            "format": FORMAT,
            "sweeper": self._sweeper.state_dict(),
            "trajectory": [each.as_dict() for each in self._trajectory],
            "best": (final, loss, list(train.cores)),
            "turned": self._turned,
            "random": self._random,
        }
        partial = self._path.with_name(self._path.name + ".partial")
        torch.save(state, partial)
        partial.replace(self._path)

    def _resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            trajectory = [SweepReport(**each) for each in state["trajectory"]]
            final, loss, cores = state["best"]
            best, turned, random = (final, loss, TensorTrain(cores)), state["turned"], state["random"]
        except Exception as error:
            raise FormatError(
                f"checkpoint: expected a file that a minimization has written, got {path}, which cannot be "
                f"read ({error}); name another file, or remove it"
            ) from error
        shape = self._sweeper.parameter.shape
        if state["format"] != FORMAT or best[2].shape != shape:
            raise FormatError(
                f"checkpoint: expected one of format {FORMAT} and a train of shape {shape}, got {path} of "
                f"format {state['format']} with shape {best[2].shape}; name another file, or remove it"
            )
        self._sweeper.load_state_dict(state["sweeper"])
        self._trajectory, self._best, self._turned, self._random = trajectory, best, turned, random
