"""One step of a `DMRGScheduler`: what becomes of each train, computed before anybody is told."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ttnet._typing import Cores
from ttnet.cores import ranks_of
from ttnet.errors import ConfigError
from ttnet.gauge import GaugeMaps, spectra
from ttnet.optim.alignment import aligned, interface_maps
from ttnet.optim.cuts import Cut, Gauge, grow, paper_cut, rounding_cut
from ttnet.optim.distributed import agree, mean, together
from ttnet.optim.norms import Norm
from ttnet.optim.problems.problem import Problem
from ttnet.optim.ranks import AdaptiveRanks
from ttnet.optim.result import SweepReport
from ttnet.optim.shared import run_together
from ttnet.optim.subject import Subject
from ttnet.optim.swept import SweptTrain
from ttnet.optim.two_site import OWN_PROBLEM, TwoSiteOptions, two_site_sweep
from ttnet.rounding import distance
from ttnet.tensor_train import TensorTrain

Mode = Literal["truncate", "paper", "two-site"]

Measure = Callable[[TensorTrain, TensorTrain], Mapping[str, float]]
"""Relative Frobenius errors by name, of the train after against that before (both weighted by a metric)."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a sweep makes of a train.

    Attributes:
        cores: The new cores.
        maps: The maps that led there.
        report: What happened.
    """

    cores: Cores
    maps: GaugeMaps
    report: SweepReport


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The sweep of one epoch.

    Attributes:
        mode: "truncate", "paper" or "two-site".
        two_site: Options of the mode "two-site".
        gauge: In which gauge the cores are afterwards.
        measure: Relative errors by name, of one train or by its name.
        seed: Seed of new directions, different for each train.
        epoch: Completed epochs.
        subject: The loss; it is told of each change, so that later trains see earlier ones.
        norms: In which norm each train is cut, by name.
    """

    mode: Mode
    two_site: TwoSiteOptions
    gauge: Gauge
    measure: Measure | Mapping[str, Measure] | None
    seed: Mapping[str, int]
    epoch: int
    subject: Subject
    norms: Mapping[str, Norm]

    def to_targets(self, train: SweptTrain, targets: tuple[int, ...]) -> Change:
        """Bring one train to scheduled ranks.

        Args:
            train: The train.
            targets: Ranks of its d - 1 bonds.

        Returns:
            The change.

        Raises:
            NonFiniteError: The loss of an optimizing sweep is NaN or infinite.
        """
        started, old = time.perf_counter(), train.cores()
        if self.mode != "two-site":
            loss = mean(self._losses())
            steps = self._cut(train, old, targets)
            return self._finish(train, old, steps, started, loss=loss, cut=steps[0])
        swept, report = self._optimize(train, old, targets, None)
        steps = [self._in_gauge(swept, old)]
        if self.two_site.growth == "free" and ranks_of(swept)[1:-1] != targets:
            # The sweep could not fill them: the train needs no more, or its neighbors were too small.
            steps.append(grow(steps[0].cores, targets, generator=self._generator(train)))
        return self._finish(train, old, steps, started, report=report)

    def adapt(self, group: Sequence[SweptTrain], rule: AdaptiveRanks) -> dict[str, Change]:
        """Let the ranks of some trains follow the error or the loss, together.

        Args:
            group: The trains that the rule is for.
            rule: The rule.

        Returns:
            The changes by name of the train, without those that nothing was done to.

        Raises:
            ConfigError: The rule needs a loss and there is none.
            NonFiniteError: The loss of an optimizing sweep is NaN or infinite.
        """
        if rule.max_loss_increase is not None and not agree(bool(self.subject)):
            raise ConfigError(
                "problem: AdaptiveRanks(max_loss_increase=) needs scheduler.step(problem), got None"
            )
        started = time.perf_counter()
        cores = {train.name: train.cores() for train in group}
        swept: dict[str, tuple[Cut, SweepReport]] = {}
        if self.mode == "two-site":
            for train in group:
                found, report = self._optimize(
                    train, cores[train.name], _room(rule, train), _budget(rule, train.name, cores)
                )
                swept[train.name] = self._in_gauge(found, cores[train.name]), report
                cores[train.name] = swept[train.name][0].cores
                self.subject.change(train.name, cores[train.name])
        targets = agree(self._choose(group, rule, cores))
        changes = {}
        for train in group:
            before, goal = cores[train.name], targets[train.name]
            optimized, report = swept.get(train.name, (None, None))
            cuts = [] if goal == ranks_of(before)[1:-1] else self._cut(train, before, goal)
            steps = ([optimized] if optimized else []) + cuts
            if steps:
                loss = None if report else mean(self._losses())
                cut = cuts[0] if cuts else None
                changes[train.name] = self._finish(
                    train, before, steps, started, loss=loss, cut=cut, report=report
                )
        return changes

    def _optimize(
        self, train: SweptTrain, cores: Cores, caps: tuple[int, ...], budget: int | None
    ) -> tuple[Cores, SweepReport]:
        """The two-site sweep, by process 0 where there are several; the same cores in all of them."""
        device = cores[0].device

        def run(problem: Problem) -> tuple[Cores, SweepReport]:
            swept, report = two_site_sweep(
                cores,
                problem,
                self.two_site,
                max_rank=caps,
                max_parameters=budget,
                seed=self.seed[train.name],
            )
            return tuple(core.cpu() for core in swept), report

        with self.subject.problem(train.name) as problem:
            if self.two_site.solver in OWN_PROBLEM:
                swept, report = agree(run(problem))
            else:
                swept, report = run_together(problem, run, device)
        return tuple(core.to(device) for core in swept), replace(report, spectra=_values(cores))

    def _in_gauge(self, swept: Cores, old: Cores) -> Cut:
        """The cores of an optimizing sweep in the gauge that was asked for, with their maps from the old."""
        if self.gauge == "nearest":
            return aligned(swept, old)
        cut = rounding_cut(swept, ranks_of(swept)[1:-1], gauge=self.gauge)
        cores = tuple(core.to(old[0].dtype) for core in cut.cores)
        return replace(cut, cores=cores, maps=interface_maps(old, cores))

    def _cut(self, train: SweptTrain, cores: Cores, targets: tuple[int, ...]) -> list[Cut]:
        """The cuts that lead to the targets: down first, then up."""
        down = tuple(min(a, b) for a, b in zip(ranks_of(cores)[1:-1], targets, strict=True))
        if self.mode == "paper":
            first = paper_cut(cores, down)
        else:
            first = rounding_cut(cores, down, gauge=self.gauge, norm=self.norms[train.name])
        if ranks_of(first.cores)[1:-1] == targets:
            return [first]
        return [first, grow(first.cores, targets, generator=self._generator(train))]

    def _finish(
        self,
        train: SweptTrain,
        before: Cores,
        steps: list[Cut],
        started: float,
        *,
        loss: float | None = None,
        cut: Cut | None = None,
        report: SweepReport | None = None,
    ) -> Change:
        """Tell the others of a change, and report it: a cut of `before`, an optimizing sweep, or both."""
        cores, norm = steps[-1].cores, self.norms[train.name]
        self.subject.change(train.name, cores)
        report = report or SweepReport(
            ranks_before=(),
            ranks_after=(),
            discarded_weight=(0.0,) * (len(cores) - 1),
            spectra=_values(norm.weighted(before)),
            norm=norm.name,
            loss_before=loss,
            seconds=0.0,
        )
        if cut is not None:
            weights = zip(report.discarded_weight, cut.discarded_weight, strict=True)
            measure = self._measure_of(train)
            pair = norm.weighted(before), norm.weighted(cores)
            report = replace(
                report,
                discarded_weight=tuple(a + b for a, b in weights),
                relative_error=_relative_distance(*pair),
                matrix_errors=dict(measure(*map(TensorTrain, pair))) if measure else {},
                loss_after=mean(self._losses()),
            )
        report = replace(
            report,
            epoch=self.epoch,
            ranks_before=train.active_ranks,
            ranks_after=ranks_of(cores)[1:-1],
            seconds=time.perf_counter() - started,
        )
        maps = reduce(GaugeMaps.then, [step.maps for step in steps])
        return Change(cores=cores, maps=maps, report=report)

    def _choose(
        self, group: Sequence[SweptTrain], rule: AdaptiveRanks, cores: Mapping[str, Cores]
    ) -> dict[str, tuple[int, ...]]:
        names = [train.name for train in group]
        # Process 0 decides, on its own loss.
        start = None if rule.max_loss_increase is None else self._losses()[0]

        def accept(targets: tuple[tuple[int, ...], ...]) -> bool:
            # All processes try the same ranks, so that a loss may gather the weights of a sharded model.
            cuts = {
                n: rounding_cut(cores[n], ranks, norm=self.norms[n]).cores
                for n, ranks in zip(names, targets, strict=True)
            }
            if rule.max_error is not None:
                errors = [self._error(train, cores[train.name], cuts[train.name]) for train in group]
                if agree(max(errors) > rule.max_error):
                    return False
            if rule.max_loss_increase is None or start is None:
                return True
            loss = self._losses(cuts)[0]
            return loss is not None and loss <= start + rule.max_loss_increase * abs(start)

        values = agree(
            [
                [
                    _pad(s, core.shape[2]).cpu()
                    for s, core in zip(spectra(self.norms[n].weighted(cores[n])), cores[n], strict=False)
                ]
                for n in names
            ]
        )
        shapes = [train.parameter.shape for train in group]
        return dict(zip(names, rule.joint_targets(values, shapes, accept), strict=True))

    def _losses(self, trial: Mapping[str, Cores] | None = None) -> list[float | None]:
        """The loss in each process; where one fails, all stop."""
        return together("problem", lambda: self.subject.loss(trial))

    def _error(self, train: SweptTrain, before: Cores, after: Cores) -> float:
        measure, norm = self._measure_of(train), self.norms[train.name]
        pair = norm.weighted(before), norm.weighted(after)
        if measure is None:
            return _relative_distance(*pair)
        return max(measure(*map(TensorTrain, pair)).values(), default=0.0)

    def _measure_of(self, train: SweptTrain) -> Measure | None:
        return self.measure.get(train.name) if isinstance(self.measure, Mapping) else self.measure

    def _generator(self, train: SweptTrain) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed[train.name])


def _room(rule: AdaptiveRanks, train: SweptTrain) -> tuple[int, ...]:
    """Ranks that an optimizing sweep may use before it is cut."""
    grown = [r + rule.max_growth for r in train.active_ranks]
    if train.capacity is not None:
        grown = [min(a, b) for a, b in zip(grown, train.capacity, strict=True)]
    return tuple(grown)


def _budget(rule: AdaptiveRanks, name: str, cores: Mapping[str, Cores]) -> int | None:
    """Entries that a train may grow to: what the others leave of the budget, or what it has."""
    if rule.max_parameters is None:
        return None
    sizes = {each: sum(core.numel() for core in of) for each, of in cores.items()}
    return max(rule.max_parameters - sum(sizes.values()) + sizes[name], sizes[name])


def _relative_distance(before: Cores, after: Cores) -> float:
    norm = distance(before, [torch.zeros_like(core) for core in before])
    return distance(before, after) / norm if norm > 0 else 0.0


def _values(cores: Cores) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(values.tolist()) for values in spectra(cores))


def _pad(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count - len(values))])
