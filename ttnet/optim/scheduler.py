"""`DMRGScheduler`: sweeps over a trained train between epochs of any torch optimizer."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ttnet._typing import Cores, CoresLike
from ttnet.errors import ConfigError, NonFiniteError, RankError, StateError
from ttnet.gauge import spectra
from ttnet.optim.cuts import Cut, Gauge, grow, paper_cut, rounding_cut
from ttnet.optim.distributed import agree, broadcast, is_distributed
from ttnet.optim.ranks import AdaptiveRanks, RankSchedule
from ttnet.optim.result import SweepReport
from ttnet.optim.transport import StateRule, carry_state, state_tensors, unwrap
from ttnet.parameter import TTParameter
from ttnet.rounding import distance
from ttnet.tensor_train import TensorTrain

Mode = Literal["truncate", "paper", "two-site"]
Problem = Callable[[], Tensor]
"""A closure that returns the loss."""

Measure = Callable[[Cores, Cores], Mapping[str, float]]
"""Relative errors by name, of the cores after against those before."""


class DMRGScheduler:
    """Alternates an optimizer's epochs with sweeps that change the ranks of a train.

    Call `step` once after each epoch, where a learning rate scheduler steps. A sweep that changes no rank
    leaves parameters and optimizer bit-identical.

    Args:
        optimizer: The optimizer that trains the cores (any wrapper that holds it as `.optimizer` will do).
        parameter: The train.
        ranks: A `RankSchedule`, whose ranks are exact targets, or `AdaptiveRanks`.
        mode: "truncate" rounds in the canonical gauge, so that the discarded weight is the error; "paper" is
            the literal sweep of MetaTT.
        state: "transport" carries moments through the sweep, "reset" restarts the optimizer for the cores.
        gauge: In which gauge the cores are afterwards: "nearest" keeps the old scales, "canonical" puts the
            norm on core 0, "balanced" shares it among the cores. By default "nearest", and "canonical" for
            "paper", which knows no other.
        measure: Relative errors of a change of the cores, by name (an adapter's `matrix_errors`); reported
            and used by `AdaptiveRanks(max_error=)`.
        keep_shapes: Cut without changing shapes, as distributed data parallelism needs it: both sides of a
            removed direction become zero and stay so, gradients and moments included. By default where
            `torch.distributed` runs several processes; process 0 decides then. See `compact`.
        seed: Seed of the directions that growing ranks receive.

    Raises:
        ConfigError: An option has a value it cannot have, the optimizer does not hold the cores, or is LBFGS.
        RankError: A list in the schedule that the bonds cannot have.

    References:
        MetaTT, arXiv 2506.09105; its sweep is the mode "paper".
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameter: TTParameter,
        *,
        ranks: RankSchedule | AdaptiveRanks | Mapping[int, int],
        mode: Mode = "truncate",
        state: StateRule = "transport",
        gauge: Gauge | None = None,
        measure: Measure | None = None,
        keep_shapes: bool | None = None,
        seed: int = 0,
    ) -> None:
        _check_options(mode, state, gauge)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not all(id(core) in held for core in parameter.core_parameters()):
            raise ConfigError(
                "optimizer: expected one that holds every core of `parameter`, got one that does not; build "
                "it from parameter.parameters() or model.parameters() after the adapter is attached"
            )
        if isinstance(unwrap(optimizer), torch.optim.LBFGS):
            raise ConfigError(
                "optimizer: expected one that steps each parameter by itself, got LBFGS, whose history "
                "cannot follow a change of rank; use Adam, AdamW or SGD"
            )
        self.optimizer = optimizer
        self.parameter = parameter
        self.ranks = RankSchedule(ranks) if isinstance(ranks, Mapping) else ranks
        if isinstance(self.ranks, RankSchedule):
            for epoch in self.ranks.ranks:
                self.ranks.targets(epoch, parameter.shape)
        self.mode: Mode = mode
        self.state: StateRule = state
        self.gauge: Gauge = gauge or ("canonical" if mode == "paper" else "nearest")
        self.measure = measure
        self.keep_shapes = is_distributed() if keep_shapes is None else keep_shapes
        self.seed = seed
        self.epoch = 0
        self.active_ranks = parameter.ranks[1:-1]
        self.last_cut: int | None = None
        self._used_gradients: dict[int, tuple[Tensor, int]] = {}
        # A gradient that the optimizer has already stepped on may stay until the next zero_grad.
        unwrap(optimizer).register_step_post_hook(self._note_used_gradients)

    def step(self, problem: Problem | None = None) -> SweepReport | None:
        """Complete an epoch and sweep if it is time.

        Args:
            problem: Closure that returns the loss; `AdaptiveRanks(max_loss_increase=)` needs it, and the
                report then has the loss before and after.

        Returns:
            The report, or None where nothing was swept.

        Raises:
            StateError: Cores hold gradients that the optimizer has not used yet (in the middle of
                accumulation).
            NonFiniteError: A core holds a NaN or an infinity.
            ConfigError: A problem is needed and none was given.
        """
        epoch = self.epoch + 1
        report = self._sweep(epoch, problem)
        self.epoch = epoch
        return report

    def _sweep(self, epoch: int, problem: Problem | None) -> SweepReport | None:
        started = time.perf_counter()
        parameter = self.parameter
        if not self.keep_shapes:
            self.active_ranks = parameter.ranks[1:-1]
        old_ranks = self.active_ranks
        before = TensorTrain(_slice(parameter.core_parameters(), old_ranks)).detach().clone()
        if isinstance(self.ranks, RankSchedule):
            targets = self.ranks.targets(epoch, parameter.shape)
            if targets is None or targets == old_ranks:
                return None
            self._check_capacity(targets)
            self._check_ready()
        else:
            # The singular values of a zero train say nothing yet.
            if not self.ranks.is_due(epoch, self.last_cut) or float(before.norm()) == 0.0:
                return None
            self._check_ready()
            targets = agree(self._adapt(self.ranks, before.cores, problem))
            if targets == old_ranks:
                return None
        loss_before = self._evaluate(problem)
        values = tuple(tuple(s.tolist()) for s in before.spectra())
        norm = float(before.norm())
        cut, steps = self._change(before.cores, targets, epoch)
        self._assign(cut, steps)
        self.active_ranks = targets
        self.last_cut = epoch
        error = distance(before.cores, cut.cores)
        return SweepReport(
            epoch=epoch,
            ranks_before=old_ranks,
            ranks_after=targets,
            spectra=values,
            discarded_weight=steps[0].discarded_weight,
            relative_error=error / norm if norm > 0 else 0.0,
            matrix_errors=dict(self.measure(before.cores, cut.cores)) if self.measure else {},
            loss_before=loss_before,
            loss_after=self._evaluate(problem),
            seconds=time.perf_counter() - started,
        )

    def _assign(self, cut: Cut, steps: list[Cut]) -> None:
        parameter = self.parameter
        capacity = parameter.ranks[1:-1]
        parameter.assign(_pad_cores(cut.cores, capacity) if self.keep_shapes else cut.cores)
        for each in steps:
            carry_state(self.optimizer, parameter, each.maps, self.state)
        if is_distributed():
            broadcast(parameter.core_parameters())
            broadcast(state_tensors(self.optimizer, parameter))
        self._used_gradients.clear()

    def compact(self) -> None:
        """Drop, at the end of a training, the directions that `keep_shapes` emptied; optimizer state goes."""
        if not self.keep_shapes:
            return
        compacted = _slice(self.parameter.core_parameters(), self.active_ranks)
        self.parameter.assign([core.detach().clone() for core in compacted])
        for core in self.parameter.core_parameters():
            unwrap(self.optimizer).state.pop(core, None)

    def _change(self, cores: Cores, targets: tuple[int, ...], epoch: int) -> tuple[Cut, list[Cut]]:
        """The whole change, and the cuts it is made of: down first, then up."""
        present = tuple(core.shape[2] for core in cores[:-1])
        down = tuple(min(a, b) for a, b in zip(present, targets, strict=True))
        steps = [
            paper_cut(cores, down) if self.mode == "paper" else rounding_cut(cores, down, gauge=self.gauge)
        ]
        reached = tuple(core.shape[2] for core in steps[0].cores[:-1])
        if reached != targets:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            steps.append(grow(steps[0].cores, targets, generator=generator))
        return steps[-1], steps

    def _adapt(self, ranks: AdaptiveRanks, cores: Cores, problem: Problem | None) -> tuple[int, ...]:
        if ranks.max_loss_increase is not None and problem is None:
            raise ConfigError(
                "problem: AdaptiveRanks(max_loss_increase=) needs scheduler.step(problem), got None"
            )
        start = self._evaluate(problem)

        def accept(targets: tuple[int, ...]) -> bool:
            cut = rounding_cut(cores, targets).cores
            if ranks.max_error is not None and self._error(cores, cut) > ranks.max_error:
                return False
            if ranks.max_loss_increase is None or start is None:
                return True
            with self.parameter.substituted(cut):
                loss = self._evaluate(problem)
            return loss is not None and loss <= start + ranks.max_loss_increase * abs(start)

        padded = [_pad(s, core.shape[2]) for s, core in zip(spectra(cores), cores, strict=False)]
        return ranks.targets(padded, self.parameter.shape, accept)

    def _error(self, before: Cores, after: Cores) -> float:
        if self.measure:
            return max(self.measure(before, after).values(), default=0.0)
        zero = tuple(torch.zeros_like(core) for core in before)
        norm = distance(before, zero)
        return distance(before, after) / norm if norm > 0 else 0.0

    def _evaluate(self, problem: Problem | None) -> float | None:
        """The loss, with the random state put back afterwards so that evaluations can be compared."""
        if problem is None:
            return None
        device = self.parameter.core_parameters()[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            return float(problem())

    def _check_capacity(self, targets: tuple[int, ...]) -> None:
        capacity = self.parameter.ranks[1:-1]
        if self.keep_shapes and any(a > b for a, b in zip(targets, capacity, strict=True)):
            raise RankError(
                f"ranks: expected at most {capacity}, the ranks at construction, since shapes are kept "
                f"(keep_shapes=True, as in a distributed job), got {targets}; construct larger ranks"
            )

    def _check_ready(self) -> None:
        for k, core in enumerate(self.parameter.core_parameters()):
            if not bool(torch.isfinite(core.detach()).all()):
                raise NonFiniteError(
                    f"parameter: core {k} holds NaN or infinity, nothing was swept; go back to the last "
                    f"checkpoint and lower the learning rate"
                )
            if self._is_pending(k, core.grad) and not self._has_overflowed():
                raise StateError(
                    f"scheduler.step: core {k} holds a gradient that the optimizer has not used, and a "
                    f"change of rank would drop it; call optimizer.step() or optimizer.zero_grad() first"
                )

    def _is_pending(self, k: int, gradient: Tensor | None) -> bool:
        if gradient is None or not bool(gradient.any()):
            return False
        used, version = self._used_gradients.get(k, (None, 0))
        return gradient is not used or gradient._version != version

    def _has_overflowed(self) -> bool:
        """Whether GradScaler skips a step with these gradients: then they wait for nothing."""
        gradients = (p.grad for group in self.optimizer.param_groups for p in group["params"])
        return any(not bool(torch.isfinite(g).all()) for g in gradients if g is not None)

    def _note_used_gradients(self, *_: object) -> None:
        # The gradients themselves, not their ids: an id is given again once its tensor is freed.
        cores = self.parameter.core_parameters()
        self._used_gradients = {
            k: (c.grad, c.grad._version) for k, c in enumerate(cores) if c.grad is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """Position in the schedule; the cores and the optimizer have state of their own."""
        return {
            "epoch": self.epoch,
            "last_cut": self.last_cut,
            "seed": self.seed,
            "active_ranks": list(self.active_ranks),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; load cores and optimizer as well to resume to the same bits."""
        self.epoch, self.last_cut, self.seed = state["epoch"], state["last_cut"], state["seed"]
        self.active_ranks = tuple(state["active_ranks"])


def _check_options(mode: str, state: str, gauge: str | None) -> None:
    if mode == "two-site":
        raise ConfigError(
            "mode: 'two-site' comes with TwoSiteDMRG and is not there yet; use 'truncate' or 'paper'"
        )
    allowed = {"mode": (mode, ("truncate", "paper")), "state": (state, ("transport", "reset"))}
    allowed["gauge"] = (gauge, (None, "nearest", "canonical", "balanced"))  # pyright: ignore[reportArgumentType]
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ConfigError(f"{name}: expected one of {choices}, got {value!r}")
    if mode == "paper" and gauge not in (None, "canonical"):
        raise ConfigError(
            f"gauge: mode 'paper' ends in the gauge 'canonical', got {gauge!r}; use mode='truncate'"
        )


def _slice(cores: CoresLike, ranks: tuple[int, ...]) -> Cores:
    bounds = (1, *ranks, 1)
    return tuple(core[: bounds[k], :, : bounds[k + 1]] for k, core in enumerate(cores))


def _pad_cores(cores: CoresLike, ranks: tuple[int, ...]) -> Cores:
    bounds = (1, *ranks, 1)
    padded = [core.new_zeros(bounds[k], core.shape[1], bounds[k + 1]) for k, core in enumerate(cores)]
    for whole, core in zip(padded, cores, strict=True):
        whole[: core.shape[0], :, : core.shape[2]] = core
    return tuple(padded)


def _pad(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values.new_zeros(count - len(values))])
