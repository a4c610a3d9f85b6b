"""DMRG sweeps inside `transformers.Trainer`, and checkpoints that hold the adapter alone.

Sweeps happen when an epoch begins, not when one ends: the Trainer evaluates and saves after `on_epoch_end`,
and a model that was just cut would be judged before it had recovered.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ttnet.adapters import TTAdapter, input_moments
from ttnet.adapters.moments import check_pattern
from ttnet.errors import ConfigError, NonFiniteError
from ttnet.interop.fsdp import leave_unsharded
from ttnet.interop.held_batches import evaluating, train_batches
from ttnet.optim import AdaptiveRanks, BatchLoss, DMRGScheduler, RankSchedule, SweepReport
from ttnet.optim.arguments import check_options
from ttnet.optim.batches import seeded
from ttnet.optim.norms import Metric, Metrics
from ttnet.optim.subject import Loss
from ttnet.parameter import TTParameter

TRAINING_ARGUMENTS = "training_args.bin"


class DMRGCallback(TrainerCallback, ExportableState):
    """Steps a `DMRGScheduler` at each epoch of a Trainer, and keeps its state in the checkpoints.

    After a sweep that changed ranks the Trainer's best metric is forgotten, so that `load_best_model_at_end`
    takes the best among the checkpoints at the final ranks.

    Args:
        adapter: What is swept: an adapter, whose matrices then measure the errors, or a bare `TTParameter`.
        ranks: `RankSchedule`, `AdaptiveRanks` or a mapping from completed epochs to ranks.
        problem: What `DMRGScheduler.step` is given: a closure that returns the loss, or a `BatchLoss`.
            Without it, a sweep of the mode "two-site" minimizes the model's own loss on training data.
        metric: Norm of the cuts: "inputs" for that of x dW, with the second moments of what the adapted
            matrices read (`input_moments`) on training data before each sweep; or the `metric` of
            `DMRGScheduler`, a matrix or None for each mode or a function that returns them. None is plain.
        held_batches: Number of training batches that a two-site sweep or the metric "inputs" holds; others
            for each sweep, determined by the Trainer's seed and the epoch. The model is in evaluation mode
            meanwhile, without dropout.
        options: Further options of `DMRGScheduler` (`mode`, `two_site`, `state`, `gauge`, `measure`,
            `seed`).

    Raises:
        ConfigError: `metric` does not go with the mode or the pattern, or `held_batches` is below 1.

    Attributes:
        reports: The `SweepReport` of each sweep of this process, in order.
        scheduler: The scheduler; None until the training begins.

    Examples:
        ::

            trainer = DMRGTrainer(model, args, train_dataset=data, callbacks=[DMRGCallback(adapter, {0: 12,
            2: 8})])
    """

    def __init__(
        self,
        adapter: TTAdapter | TTParameter,
        ranks: RankSchedule | AdaptiveRanks | Mapping[int, int],
        *,
        problem: Loss | None = None,
        metric: Metrics | Literal["inputs"] | None = None,
        held_batches: int = 8,
        **options: Any,
    ) -> None:
        if held_batches < 1:
            raise ConfigError(f"held_batches: expected at least 1, got {held_batches!r}")
        chosen = {"mode": "truncate", "state": "transport", "gauge": None, "two_site": None} | options
        check_options(chosen["mode"], chosen["state"], chosen["gauge"], chosen["two_site"], metric=metric)
        if isinstance(metric, str):
            _check_inputs(adapter, metric)
        self.parameter = adapter.cores if isinstance(adapter, TTAdapter) else adapter
        if isinstance(adapter, TTAdapter):
            options.setdefault("measure", adapter.matrix_errors)
        self.ranks = RankSchedule(ranks) if isinstance(ranks, Mapping) else ranks
        self.problem = problem
        self.metric = metric
        self.adapter = adapter if isinstance(adapter, TTAdapter) else None
        self.held_batches = held_batches
        self.options = options
        self.reports: list[SweepReport] = []
        self.scheduler: DMRGScheduler | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the scheduler around the Trainer's optimizer; take back its state from a checkpoint.

        Warns of sweeps that no epoch of this training reaches.

        Raises:
            ConfigError: The Trainer has another callback of this class, whose state has the same name.
        """
        del control
        callbacks: Any = state.stateful_callbacks
        stored = callbacks.get(type(self).__name__)
        if isinstance(stored, list):
            raise ConfigError(
                f"callbacks: a checkpoint holds one {type(self).__name__}, the Trainer has {len(stored)}; "
                "give the second one a class of its own, class SecondCallback(DMRGCallback): pass"
            )
        self._warn_of_late_sweeps(state.num_train_epochs)
        metric = self._inputs_of(args, **kwargs) if isinstance(self.metric, str) else self.metric
        self.scheduler = DMRGScheduler(
            kwargs["optimizer"], self.parameter, ranks=self.ranks, metric=metric, **self.options
        )
        if state.global_step and isinstance(stored, dict) and stored["attributes"]:
            self.scheduler.load_state_dict(stored["attributes"])

    def _warn_of_late_sweeps(self, epochs: int) -> None:
        # A sweep happens when an epoch begins, and after the last one none does.
        late = sorted(key for key in getattr(self.ranks, "ranks", {}) if key >= epochs > 0)
        if late:
            warnings.warn(
                f"ranks: no sweep happens after {late[0]} completed epochs, for the training has {epochs} "
                "and a sweep is followed by an epoch; train longer, or give smaller keys",
                stacklevel=2,
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sweep for every epoch completed since the last sweep."""
        del control
        if self.scheduler is None:
            return
        completed = math.floor((state.epoch or 0.0) + 1e-6)
        while self.scheduler.epoch < completed:
            report = self._step(args, **kwargs)
            if report is not None:
                self.reports.append(report)
                state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def _step(self, args: TrainingArguments, **kwargs: Any) -> SweepReport | None:
        scheduler = self.scheduler
        if scheduler is None or scheduler.mode != "two-site":
            return None if scheduler is None else scheduler.step(self.problem)
        with seeded(self._seed(args)):
            if self.problem is not None:
                return scheduler.step(self.problem)
            model: nn.Module = kwargs["model"]
            batches = train_batches(kwargs["train_dataloader"], args)
            loss = BatchLoss(lambda batch: _loss_of(model, batch), batches, hold=self.held_batches)
            with evaluating(model):
                return scheduler.step(loss)

    def _inputs_of(self, args: TrainingArguments, **kwargs: Any) -> Callable[[], Metric]:
        """A function that collects the second moments of the inputs on the next held batches."""
        adapter: Any = self.adapter
        model: nn.Module = kwargs["model"]
        loader = kwargs["train_dataloader"]

        def metric() -> Metric:
            with seeded(self._seed(args)), evaluating(model):
                batches = islice(train_batches(loader, args, "metric"), self.held_batches)
                return input_moments(adapter, batches, lambda batch: model(**batch))

        return metric

    def _seed(self, args: TrainingArguments) -> int:
        # A resumed Trainer restores the random state after this event: the sweep must not depend on it.
        epoch = 0 if self.scheduler is None else self.scheduler.epoch
        return args.seed + 1_000_003 * (epoch + 1) + 7919 * args.process_index

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the directions that a distributed job has kept as zeros."""
        del args, state, control, kwargs
        if self.scheduler is not None and self.scheduler.keep_shapes:
            self.scheduler.compact()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this callback."""
        return {"args": {}, "attributes": {} if self.scheduler is None else self.scheduler.state_dict()}


def _check_inputs(adapter: TTAdapter | TTParameter, metric: str) -> None:
    if metric != "inputs":
        raise ConfigError(
            f"metric: expected 'inputs', a matrix or None for each mode, or a function that returns them, "
            f"got {metric!r}"
        )
    if not isinstance(adapter, TTAdapter):
        raise ConfigError(
            f"metric: 'inputs' needs the adapter, whose matrices read them, got {type(adapter).__name__}; "
            f"pass the adapter itself"
        )
    check_pattern(adapter.layout.pattern)


def _loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    outputs = model(**batch)
    if isinstance(outputs, Mapping):
        loss = outputs.get("loss")
    else:
        loss = outputs[0] if isinstance(outputs, tuple | list) and len(outputs) else outputs
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ConfigError(
            f"problem: expected a loss, since {type(model).__name__} returns none for a training batch (give "
            "labels, if it takes them); pass DMRGCallback(..., problem=BatchLoss(loss, batches))"
        )
    return loss


class DMRGTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter (with the modules it saves) instead of the whole model.

    The rest is `transformers.Trainer`: mixed precision, several processes, loggers, resuming, the best model
    at the end. A loss that is NaN or infinite stops the training with `NonFiniteError`. Under FSDP2 the base
    is sharded, and the adapter is left out of that and replicated, see `ttnet.adapters.replicate`.

    Args:
        model: A model with an attached adapter.
        args: Arguments of the Trainer.
        kwargs: As for `transformers.Trainer`.

    Raises:
        ConfigError: The model has no adapter, or `args` ask for FSDP in a form that shards adapters too.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments | None = None, **kwargs: Any) -> None:
        adapter = getattr(model, "tt_adapter", None)
        if not isinstance(adapter, TTAdapter):
            raise ConfigError(
                f"model: expected a model with an attached adapter, got {type(model).__name__} without one; "
                f"call ttnet.adapters.attach(model, config) first"
            )
        self.adapter = adapter
        with _known_to_be_adapted(model):
            super().__init__(model=model, args=args, **kwargs)  # pyright: ignore[reportArgumentType]
        if self.is_fsdp_enabled:
            leave_unsharded(adapter, self.accelerator, self.args.device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step of the Trainer; refuses a loss that is not finite, before it reaches the optimizer."""
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"loss: expected a finite number, got {float(loss)} at step {self.state.global_step + 1}; "
                f"lower the learning rate, or use float32 or bf16 where it was fp16"
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        del state_dict
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir or ".")
        directory.mkdir(parents=True, exist_ok=True)
        self.adapter.save(directory)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)
        torch.save(self.args, directory / TRAINING_ARGUMENTS)

    @contextmanager
    def _as_unsharded(self) -> Iterator[None]:
        """The files of a Trainer without FSDP: what is trained is whole in every process."""
        sharded, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            yield
        finally:
            self.is_fsdp_enabled = sharded

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, and the modules it saves, in process 0."""
        with self._as_unsharded():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._as_unsharded():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._as_unsharded():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        self.adapter.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self.adapter.load_weights(self.state.best_model_checkpoint)


@contextmanager
def _known_to_be_adapted(model: nn.Module) -> Iterator[None]:
    """Let the Trainer take a quantized model, which it refuses where it sees no adapter of peft's."""
    mark = "_hf_peft_config_loaded"
    hidden = getattr(model, "is_quantized", False) and not getattr(model, mark, False)
    if hidden:
        model.__dict__[mark] = True
    try:
        yield
    finally:
        if hidden:
            del model.__dict__[mark]
