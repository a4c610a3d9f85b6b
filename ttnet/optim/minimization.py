"""A minimization by sweeps: when it ends, what is the best, and how it goes on after an interruption."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ttnet.errors import FormatError, NonFiniteError
from ttnet.optim.observer import Observer, Progress
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

    def sweep(self, problem: Problem | Callable[[], Tensor]) -> SweepReport:
        """One sweep."""
        ...

    def noise_now(self, *, before: bool = False) -> float:
        """The noise of this sweep, or of the one before."""
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
        self._trajectory: list[SweepReport] = []
        self._best: tuple[float, TensorTrain] | None = None
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
        total = sweeps + one_site_sweeps
        for index in range(len(self._trajectory), total):
            if index == sweeps:
                self._sweeper.sites = 1
            try:
                report = self._sweeper.sweep(problem)
            except NonFiniteError:
                status = Status.NON_FINITE
                break
            self._keep(report)
            if watch is not None:
                watch(index + 1, report)
            observer = self._sweeper.observer
            if observer is not None and observer(report, self._sweeper.parameter.tensor_train()):
                status = Status.STOPPED
                break
            settled = _settled(self._trajectory, tol, entropy_tol)
            if settled and self._sweeper.noise_now(before=True) == 0.0:
                status = Status.CONVERGED
                if index >= sweeps or not one_site_sweeps:
                    break
        best = self._best or (math.nan, self._sweeper.parameter.tensor_train())
        self._sweeper.parameter.assign(best[1])
        return DMRGResult(
            tensor_train=best[1], loss=best[0], trajectory=tuple(self._trajectory), status=status
        )

    def _keep(self, report: SweepReport) -> None:
        self._trajectory.append(report)
        loss = report.loss_after if report.loss_after is not None else math.inf
        if self._best is None or loss <= self._best[0]:
            self._best = loss, self._sweeper.parameter.tensor_train()
        if self._path is not None:
            state = {
                "format": FORMAT,
                "sweeper": self._sweeper.state_dict(),
                "trajectory": [each.as_dict() for each in self._trajectory],
                "best": (self._best[0], list(self._best[1].cores)),
            }
            partial = self._path.with_name(self._path.name + ".partial")
            torch.save(state, partial)
            partial.replace(self._path)

    def _resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            trajectory = [SweepReport(**each) for each in state["trajectory"]]
            loss, cores = state["best"]
            best = loss, TensorTrain(cores)
        except Exception as error:
            raise FormatError(
                f"checkpoint: expected a file that a minimization has written, got {path}, which cannot be "
                f"read ({error}); name another file, or remove it"
            ) from error
        shape = self._sweeper.parameter.shape
        if state["format"] != FORMAT or best[1].shape != shape:
            raise FormatError(
                f"checkpoint: expected one of format {FORMAT} and a train of shape {shape}, got {path} of "
                f"format {state['format']} with shape {best[1].shape}; name another file, or remove it"
            )
        self._sweeper.load_state_dict(state["sweeper"])
        self._trajectory, self._best = trajectory, best


def _settled(trajectory: Sequence[SweepReport], tol: float, entropy_tol: float | None) -> bool:
    last = trajectory[-1]
    if last.loss_before is None or last.loss_after is None:
        return False
    if last.loss_before - last.loss_after > tol * max(abs(last.loss_before), abs(last.loss_after)):
        return False
    if entropy_tol is None:
        return True
    if len(trajectory) < 2:
        return False
    before = trajectory[-2].entropies
    return all(abs(a - b) <= entropy_tol for a, b in zip(before, last.entropies, strict=True))
