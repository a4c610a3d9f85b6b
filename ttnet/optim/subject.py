"""What `DMRGScheduler.step` is given: the loss of trains that have changed, and the problem of each train."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.cores import merge_bond
from ttnet.errors import ConfigError
from ttnet.gauge import orthogonalize
from ttnet.optim.batches import BatchLoss
from ttnet.optim.geometry import there_and_back
from ttnet.optim.problems.closure import Closure
from ttnet.optim.problems.problem import Problem
from ttnet.parameter import TTParameter

OneLoss = Callable[[], Tensor] | Problem
"""A closure that returns the loss (a `BatchLoss` is one), or a problem object."""

Loss = OneLoss | Mapping[str, OneLoss]
"""One loss that depends on all trains, or one for each train by name."""


class Subject:
    """The loss of one step of a scheduler, for trains some of which have changed already.

    New cores are put in the place of a train's own only while a loss is evaluated, so that an error anywhere
    leaves every train as it was.

    Args:
        problem: A closure, a `BatchLoss` (which is told to hold the next batches), a problem object, a
            mapping of these by name of the train, or None.
        trains: The trains by name.

    Raises:
        ConfigError: The problem is something else, or a problem object for several trains.
    """

    def __init__(self, problem: Loss | None, trains: Mapping[str, TTParameter]) -> None:
        self._trains = dict(trains)
        self._changed: dict[str, Cores] = {}
        self._problems: dict[str, Problem] = {}
        self._losses = _by_name(problem, self._trains)
        self._is_joint = not isinstance(problem, Mapping) and not hasattr(problem, "local")
        for each in {id(loss): loss for loss in self._losses.values()}.values():
            if isinstance(each, BatchLoss):
                each.advance()

    def __bool__(self) -> bool:
        """Whether there is a loss at all."""
        return bool(self._losses)

    def change(self, name: str, cores: Cores) -> None:
        """From now on a train counts as changed to these cores."""
        self._changed[name] = cores

    def loss(self, trial: Mapping[str, Cores] | None = None) -> float | None:
        """The loss, or the sum of all trains' own; None where there is none.

        The random state is put back afterwards, so that evaluations can be compared.

        Args:
            trial: Cores by name that count as changed for this evaluation.
        """
        standing = {**self._changed, **(trial or {})}
        if not self._losses:
            return None
        if self._is_joint:
            loss = next(iter(self._losses.values()))
            with self._standing(standing), self._forked(), torch.no_grad():
                return float(loss())  # pyright: ignore[reportCallIssue]
        total = 0.0
        for name in self._losses:
            cores = standing.get(name, self._trains[name].core_parameters())
            with self.problem(name, standing) as problem:
                total += _value(problem, cores)
        return total

    @contextmanager
    def problem(self, name: str, standing: Mapping[str, Cores] | None = None) -> Iterator[Problem]:
        """The problem of one train, while the others are as they have changed.

        Args:
            name: The train.
            standing: Changed cores by name; by default those of `change`.

        Yields:
            The problem, made once for each train.
        """
        if name not in self._problems:
            loss, parameter = self._losses[name], self._trains[name]
            if isinstance(loss, BatchLoss):
                self._problems[name] = loss.bound(parameter)
            elif hasattr(loss, "local"):
                self._problems[name] = loss  # pyright: ignore[reportArgumentType]
            else:
                self._problems[name] = Closure(loss, parameter)  # pyright: ignore[reportArgumentType]
        standing = self._changed if standing is None else standing
        with self._standing({other: cores for other, cores in standing.items() if other != name}):
            yield self._problems[name]

    @contextmanager
    def _standing(self, cores: Mapping[str, Cores]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, each in cores.items():
                parameter = self._trains[name]
                own = parameter.core_parameters()[0]
                like = [core.to(device=own.device, dtype=own.dtype) for core in each]
                stack.enter_context(parameter.substituted(like))
            yield

    @contextmanager
    def _forked(self) -> Iterator[None]:
        devices = {p.core_parameters()[0].device for p in self._trains.values()}
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield


def _by_name(problem: Loss | None, trains: Mapping[str, TTParameter]) -> dict[str, OneLoss]:
    if problem is None:
        return {}
    if isinstance(problem, Mapping):
        if set(problem) != set(trains):
            raise ConfigError(
                f"problem: expected one for each train, {sorted(trains)}, got {sorted(problem)}"
            )
        return {name: _check(problem[name]) for name in trains}
    loss = _check(problem)
    if len(trains) > 1 and hasattr(loss, "local"):
        raise ConfigError(
            f"problem: expected a closure, a BatchLoss, or one problem for each of the trains "
            f"{sorted(trains)} by name, got one {type(loss).__name__} for all"
        )
    return dict.fromkeys(trains, loss)


def _check(problem: OneLoss) -> OneLoss:
    if not callable(problem) and not hasattr(problem, "local"):
        raise ConfigError(
            f"problem: expected a closure, a BatchLoss or a problem object, got {type(problem).__name__}; "
            f"wrap batches as BatchLoss(loss, batches)"
        )
    return problem


def _value(problem: Problem, cores: Cores) -> float:
    dtype = linalg.working_dtype(cores[0].dtype)
    with torch.no_grad():
        cores = orthogonalize([core.detach().to(dtype) for core in cores], 0)
        visit = there_and_back(len(cores), 2)[0]
        block = merge_bond(cores[0], cores[1]) if visit.sites == 2 else cores[0]
        return problem.local(cores, visit).value(block)
