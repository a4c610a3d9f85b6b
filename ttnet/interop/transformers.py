"""DMRG sweeps inside `transformers.Trainer`, and checkpoints that hold the adapter alone.

Sweeps happen when an epoch begins, not when one ends: the Trainer evaluates and saves after `on_epoch_end`,
and a model that was just cut would be judged before it had recovered.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ttnet._typing import Cores
from ttnet.adapters import TTAdapter
from ttnet.errors import ConfigError, NonFiniteError
from ttnet.interop.held_batches import evaluating, train_batches
from ttnet.optim import AdaptiveRanks, BatchLoss, DMRGScheduler, RankSchedule, SweepReport
from ttnet.optim.batches import seeded
from ttnet.optim.subject import Loss
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain

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
        held_batches: Number of training batches that such a sweep holds; others for each sweep, determined by
            the Trainer's seed and the epoch. The model is in evaluation mode meanwhile, without dropout.
        options: Further options of `DMRGScheduler` (`mode`, `two_site`, `state`, `gauge`, `measure`,
            `seed`).

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
        held_batches: int = 8,
        **options: Any,
    ) -> None:
        self.parameter = adapter.cores if isinstance(adapter, TTAdapter) else adapter
        if isinstance(adapter, TTAdapter):

            def measure(before: Cores, after: Cores) -> dict[str, float]:
                return adapter.matrix_errors(TensorTrain(before), TensorTrain(after))

            options.setdefault("measure", measure)
        self.ranks = RankSchedule(ranks) if isinstance(ranks, Mapping) else ranks
        self.problem = problem
        self.held_batches = held_batches
        self.options = options
        self.reports: list[SweepReport] = []
        self.scheduler: DMRGScheduler | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the scheduler around the Trainer's optimizer; take back its state from a checkpoint."""
        del args, control
        self.scheduler = DMRGScheduler(kwargs["optimizer"], self.parameter, ranks=self.ranks, **self.options)
        callbacks: Any = state.stateful_callbacks
        stored = callbacks.get(type(self).__name__) if state.global_step else None
        if isinstance(stored, dict) and stored["attributes"]:
            self.scheduler.load_state_dict(stored["attributes"])

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
        # A resumed Trainer restores the random state after this event: the sweep must not depend on it.
        seed = args.seed + 1_000_003 * (scheduler.epoch + 1) + 7919 * args.process_index
        with seeded(seed):
            if self.problem is not None:
                return scheduler.step(self.problem)
            model: nn.Module = kwargs["model"]
            batches = train_batches(kwargs["train_dataloader"], args)
            loss = BatchLoss(lambda batch: _loss_of(model, batch), batches, hold=self.held_batches)
            with evaluating(model):
                return scheduler.step(loss)

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


def _loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    outputs = model(**batch)
    return outputs["loss"] if isinstance(outputs, dict) else outputs[0]


class DMRGTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter (with the modules it saves) instead of the whole model.

    The rest is `transformers.Trainer`: mixed precision, several processes, loggers, resuming, the best model
    at the end. A loss that is NaN or infinite stops the training with `NonFiniteError`.

    Args:
        model: A model with an attached adapter.
        args: Arguments of the Trainer.
        kwargs: As for `transformers.Trainer`.

    Raises:
        ConfigError: The model has no adapter.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments | None = None, **kwargs: Any) -> None:
        adapter = getattr(model, "tt_adapter", None)
        if not isinstance(adapter, TTAdapter):
            raise ConfigError(
                f"model: expected a model with an attached adapter, got {type(model).__name__} without one; "
                f"call ttnet.adapters.attach(model, config) first"
            )
        self.adapter = adapter
        super().__init__(model=model, args=args, **kwargs)  # pyright: ignore[reportArgumentType]

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        self.adapter.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self.adapter.load_weights(self.state.best_model_checkpoint)
