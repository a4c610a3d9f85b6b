"""`DMRGScheduler`: sweeps over trained trains between epochs of any torch optimizer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ttnet.errors import ConfigError, StateError
from ttnet.optim.arguments import check_optimizer, check_options, named_trains, rank_rules
from ttnet.optim.change import Change, Measure, Mode, Sweep
from ttnet.optim.cuts import Gauge
from ttnet.optim.distributed import gather, is_distributed, together
from ttnet.optim.norms import Metrics, check_metrics, norms_now
from ttnet.optim.ranks import AdaptiveRanks, RankSchedule
from ttnet.optim.result import SweepReport
from ttnet.optim.subject import Loss, Subject
from ttnet.optim.swept import SweptTrain
from ttnet.optim.transport import StateRule
from ttnet.optim.two_site import TwoSiteOptions
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain

Ranks = RankSchedule | AdaptiveRanks | Mapping[int, Any]
"""A rule for the ranks of a train; a mapping is read as a `RankSchedule`."""


class DMRGScheduler:
    """Alternates an optimizer's epochs with sweeps that change the ranks of trains.

    Call `step` once after each epoch, where a learning rate scheduler steps. Where there is nothing to do,
    parameters and optimizer keep every bit. An error leaves all trains as they were.

    Args:
        optimizer: The optimizer that trains the cores (any wrapper that holds it as `.optimizer` will do).
        parameter: The train; or several: a sequence, a mapping by name, or a module, which stands for every
            `TTParameter` in it, by its qualified name.
        ranks: A `RankSchedule`, whose ranks are exact targets, or `AdaptiveRanks`; for several trains one
            for all, a sequence, or a mapping by name. One `AdaptiveRanks` for all cuts them together, with
            one budget.
        mode: "truncate" rounds in the canonical gauge, so that the discarded weight is the error; "paper" is
            the literal sweep of MetaTT; "two-site" optimizes merged pairs of cores on the loss that `step`
            is given, and splits them at the scheduled ranks.
        two_site: Options of the mode "two-site".
        state: "transport" carries moments through the sweep, "reset" restarts the optimizer for the cores.
            After an optimizing sweep, what is carried is the part of the moments that lies in the directions
            which the old and the new interfaces share.
        gauge: In which gauge the cores are afterwards: "nearest" keeps the old scales, "canonical" puts the
            norm on core 0, "balanced" shares it among the cores. By default "nearest", and "canonical" for
            "paper", which knows no other.
        measure: Relative errors of a change of the cores, by name (an adapter's `matrix_errors`); reported
            and used by `AdaptiveRanks(max_error=)`. For several trains a mapping by name.
        metric: For each mode a Hermitian positive semidefinite matrix or None, or a function without
            arguments that returns such a metric and is called at each sweep that is due; for several trains
            by name. Cuts of the mode "truncate", `AdaptiveRanks` included, then measure every error in the
            norm sqrt(vec(x)^H (C_0 x ... x C_{d-1}) vec(x)), and `measure` is given the trains whose modes
            have been multiplied by roots of C_k. In several processes the mean of their metrics counts.
        keep_shapes: Cut without changing shapes, as distributed data parallelism needs it: both sides of a
            removed direction become zero and stay so, gradients and moments included. By default where
            `torch.distributed` runs several processes and the trains are not `replicated`; False is refused
            there. See `compact`.
        seed: Seed of the directions that growing ranks receive.

    In several processes (the default group of `torch.distributed`) all have to call `step`. Process 0 decides
    about ranks, reports have the mean of the losses, and cores that have drifted apart are refused.

    Raises:
        ConfigError: An option has a value it cannot have, the optimizer does not hold the cores, or is LBFGS;
            or shapes may change in several processes, but the trains are not `replicated`.
        RankError: A list in the schedule that the bonds cannot have.
        ShapeError: A matrix of the metric does not fit its mode.

    References:
        MetaTT, arXiv 2506.09105; its sweep is the mode "paper".
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameter: TTParameter | nn.Module | Sequence[TTParameter] | Mapping[str, TTParameter],
        *,
        ranks: Ranks | Sequence[Ranks] | Mapping[str, Ranks],
        mode: Mode = "truncate",
        two_site: TwoSiteOptions | None = None,
        state: StateRule = "transport",
        gauge: Gauge | None = None,
        measure: Measure | Mapping[str, Measure] | None = None,
        metric: Metrics | None = None,
        keep_shapes: bool | None = None,
        seed: int = 0,
    ) -> None:
        check_options(mode, state, gauge, two_site, metric)
        self.parameter = parameter
        self._is_single = isinstance(parameter, TTParameter)
        named = named_trains(parameter)
        check_optimizer(optimizer, named)
        check_metrics(metric, {name: each.shape for name, each in named.items()})
        self.optimizer = optimizer
        self.mode: Mode = mode
        self.two_site = two_site or TwoSiteOptions()
        self.state: StateRule = state
        self.gauge: Gauge = gauge or ("canonical" if mode == "paper" else "nearest")
        self.measure = measure
        self.metric = metric
        is_torn = _is_torn(named.values())
        self.keep_shapes = is_torn if keep_shapes is None else keep_shapes
        if not self.keep_shapes and is_torn:
            raise ConfigError(
                "keep_shapes: expected True or None in several processes, where DistributedDataParallel does "
                "not average gradients whose shapes have changed, got False; call "
                "ttnet.adapters.replicate(adapter) before, or set parameter.replicated = True where you "
                "average gradients yourself"
            )
        self.seed = seed
        self.epoch = 0
        rules = rank_rules(ranks, list(named))
        self._trains = {
            name: SweptTrain(name, each, rules[name], optimizer, keep_shapes=self.keep_shapes)
            for name, each in named.items()
        }
        self.ranks = rules[next(iter(named))] if self._is_single else rules
        for train in self._trains.values():
            if isinstance(train.ranks, RankSchedule):
                for epoch in train.ranks.ranks:
                    train.ranks.targets(epoch, train.parameter.shape)
            if mode == "two-site":
                self.two_site.optimizer(train.parameter)  # checks the options

    @property
    def active_ranks(self) -> Any:
        """Ranks in use, below those of the cores where shapes are kept; by name for several trains."""
        return self._each({name: train.active_ranks for name, train in self._trains.items()})

    @property
    def last_cut(self) -> Any:
        """Completed epochs at the last sweep, or None; by name for several trains."""
        return self._each({name: train.last_cut for name, train in self._trains.items()})

    def step(self, problem: Loss | None = None) -> Any:
        """Complete an epoch and sweep if it is time.

        Args:
            problem: What is minimized in the mode "two-site" and measured in the others: a closure that
                returns the loss with its graph, a `BatchLoss`, which holds other batches for each sweep, or a
                problem object; for several trains a closure or a `BatchLoss` of all of them, or a mapping of
                problems by name. `AdaptiveRanks(max_loss_increase=)` needs it, and reports then have the loss
                before and after.

        Returns:
            The `SweepReport`, or None where nothing was swept; for several trains a dictionary of the reports
            of those that were swept, by name, or None.

        Raises:
            StateError: Cores hold gradients that the optimizer has not used yet (in the middle of
                accumulation); or the processes of a job hold different cores, are not at the same epoch, or
                one of them has failed.
            NonFiniteError: A core or a loss is NaN or infinite.
            ConfigError: A problem is needed and none was given, or a function returned what is no metric.
        """
        if self.mode == "two-site" and problem is None:
            raise ConfigError(
                "problem: mode 'two-site' minimizes what scheduler.step(problem) is given, got None; pass a "
                "closure that returns the loss, or BatchLoss(loss, batches)"
            )
        epoch = self.epoch + 1
        reports = self._sweep(epoch, problem)
        self.epoch = epoch
        return self._each(reports) if reports else None

    def compact(self) -> None:
        """Drop, at the end of a training, the directions that `keep_shapes` emptied; optimizer state goes."""
        if self.keep_shapes:
            for train in self._trains.values():
                train.compact()

    def state_dict(self) -> dict[str, Any]:
        """Position in the schedule; the cores and the optimizer have state of their own."""
        trains = {name: train.state_dict() for name, train in self._trains.items()}
        position = {"epoch": self.epoch, "seed": self.seed}
        return position | (self._each(trains) if self._is_single else {"trains": trains})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; load cores and optimizer as well to resume to the same bits.

        Raises:
            ConfigError: The state is that of other trains.
        """
        names = list(self._trains)
        trains = dict.fromkeys(names, state) if self._is_single else state.get("trains", {})
        if set(trains) != set(names):
            raise ConfigError(f"state: expected that of the trains {names}, got {list(trains)}")
        self.epoch, self.seed = state["epoch"], state["seed"]
        for name, train in self._trains.items():
            train.load_state_dict(trains[name])

    def _sweep(self, epoch: int, problem: Loss | None) -> dict[str, SweepReport]:
        due, subject = self._prepare(epoch, problem)
        if not due:
            return {}
        seeds = {name: self.seed * 1_000_003 + epoch + 7919 * i for i, name in enumerate(self._trains)}
        sweep = Sweep(
            mode=self.mode,
            two_site=self.two_site,
            gauge=self.gauge,
            measure=self.measure,
            seed=seeds,
            epoch=epoch,
            subject=subject,
            norms=norms_now(
                self.metric,
                {train.name: train.cores() for group in due for train in group},
                list(self._trains),
            ),
        )
        changes: dict[str, Change] = {}
        for group in due:
            rule = group[0].ranks
            if isinstance(rule, AdaptiveRanks):
                changes.update(sweep.adapt(group, rule))
            else:
                targets = rule.targets(epoch, group[0].parameter.shape) or ()
                changes[group[0].name] = sweep.to_targets(group[0], targets)
        for name, change in changes.items():
            self._trains[name].assign(change.cores, change.maps, self.state)
            self._trains[name].last_cut = epoch
        return {name: change.report for name, change in changes.items()}

    def _prepare(self, epoch: int, problem: Loss | None) -> tuple[list[list[SweptTrain]], Subject]:
        """What is due and its loss, after all processes have agreed that they may go on."""
        due: list[list[SweptTrain]] = []
        parameters = {name: train.parameter for name, train in self._trains.items()}
        subject = Subject(None, parameters)

        def prepare() -> tuple[object, ...]:
            nonlocal due, subject
            if not self.keep_shapes and _is_torn(parameters.values()):
                raise StateError(
                    "scheduler.step: the trains are not replicated any more, so each process has its own, "
                    "and a sweep would overwrite them; call replicate(adapter) again"
                )
            due = self._due(epoch)
            names = [train.name for group in due for train in group]
            for group in due:
                for train in group:
                    train.check_ready()
            if due:
                subject = Subject(problem, parameters)
            carried = self.state == "transport"
            return epoch, [
                (name, train.shapes(state=carried and name in names)) for name, train in self._trains.items()
            ]

        states = together("scheduler.step", prepare)
        if any(state != states[0] for state in states):
            raise StateError(
                f"scheduler.step: expected the same epoch and the same shapes of cores and optimizer states "
                f"in all processes, got {' and '.join(map(str, states))}; load checkpoints in every process"
            )
        if is_distributed():
            apart = [train.is_apart() for train in self._trains.values()]
            if any(map(any, gather(apart))):
                raise StateError(
                    "scheduler.step: desynchronized, the processes hold different cores, since gradients are "
                    "not averaged, or no longer: DistributedDataParallel stops doing so after load_weights "
                    "of other ranks, compact(), add_task or train_only; make such changes before wrapping, "
                    "or use ttnet.adapters.replicate"
                )
        return due, subject

    def _due(self, epoch: int) -> list[list[SweptTrain]]:
        """The trains to sweep now; those that one `AdaptiveRanks` rules come together."""
        groups: dict[object, list[SweptTrain]] = {}
        for name, train in self._trains.items():
            rule = train.ranks
            if isinstance(rule, AdaptiveRanks):
                if rule.is_due(epoch, train.last_cut):
                    train.check_ready()
                    # The singular values of a zero train say nothing yet.
                    if float(TensorTrain(train.cores()).norm()) != 0.0:
                        groups.setdefault(id(rule), []).append(train)
                continue
            targets = rule.targets(epoch, train.parameter.shape)
            if targets is not None and self._is_due(epoch, rule, targets, train.active_ranks):
                train.check_capacity(targets)
                groups[name] = [train]
        return list(groups.values())

    def _is_due(
        self, epoch: int, rule: RankSchedule, targets: tuple[int, ...], active: tuple[int, ...]
    ) -> bool:
        if self.mode != "two-site":
            return targets != active
        if epoch in rule.ranks or any(a > b for a, b in zip(active, targets, strict=True)):
            return True
        return self.two_site.growth == "free" and targets != active

    def _each(self, values: Mapping[str, Any]) -> Any:
        """The value itself for a single train, else the values by name."""
        return next(iter(values.values())) if self._is_single else dict(values)


def _is_torn(trains: Iterable[TTParameter]) -> bool:
    """Whether several processes train, and nobody averages gradients whose shapes have changed."""
    return is_distributed() and not all(train.replicated for train in trains)
