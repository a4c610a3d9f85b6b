"""The loop of `transformers.Trainer` with what a run adds: its sampler, two learning rates, finite losses."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from ttnet.cli.data import LengthGroupedSampler
from ttnet.cli.options import FinetuneOptions
from ttnet.errors import ConfigError, NonFiniteError

TRAINED = "trained.safetensors"
STATE = "trainer_state.json"


class CheckedTraining(Trainer):
    """A trainer that groups documents by length and stops at the first loss that is not finite."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        documents: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(document["input_ids"]) for document in documents]
        return LengthGroupedSampler(lengths, self.args.train_batch_size, self.args.seed)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass.

        Args:
            model: The model.
            inputs: A batch.
            num_items_in_batch: As in `transformers.Trainer`.

        Returns:
            The loss.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except NonFiniteError:
            loss = torch.tensor(math.nan)
        self._check_finite(float(loss), "training")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores of the dev split; a loss that is not finite stops the run before its checkpoint is written.

        Args:
            args: As in `transformers.Trainer`.
            kwargs: As in `transformers.Trainer`.

        Returns:
            Metrics by name.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        metrics = super().evaluate(*args, **kwargs)
        self._check_finite(metrics.get("eval_loss", 0.0), "dev")
        return metrics

    def _check_finite(self, loss: float, which: str) -> None:
        if math.isfinite(loss):
            return
        last = last_checkpoint(Path(str(self.args.output_dir)))
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise NonFiniteError(
            f"the {which} loss is {loss} after {self.state.global_step} steps; {kept}. "
            f"Lower --lr (it is {self.args.learning_rate:g}), raise --warmup-ratio, or use --dtype float32"
        )


class SmallCheckpoints(CheckedTraining):
    """Checkpoints that hold the trained parameters alone; a frozen base is not copied into each."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in self._trained()}, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        stored = load_file(Path(resume_from_checkpoint) / TRAINED)
        with torch.no_grad():
            for name, value in self._trained():
                value.copy_(stored[name])

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        module: nn.Module = self.model  # pyright: ignore[reportAssignmentType]
        return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


class SaveEvery(TrainerCallback):
    """Checkpoints in the middle of an epoch, beside those at its end.

    Args:
        steps: Optimizer steps between two checkpoints.
    """

    def __init__(self, steps: int) -> None:
        """Save after every `steps` steps."""
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint when it is time."""
        del args, kwargs
        if state.global_step % self.steps == 0:
            control.should_save = True


def resolve_dtype(options: FinetuneOptions) -> FinetuneOptions:
    """Options whose dtype "auto" is decided: bf16 where the hardware computes in it, float32 elsewhere."""
    if options.dtype != "auto":
        return options
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return dataclasses.replace(options, dtype="bf16" if fast else "float32")


def training_arguments(options: FinetuneOptions, checkpoints: Path, main_metric: str) -> TrainingArguments:
    """The options in the words of transformers.

    Args:
        options: Options of the run.
        checkpoints: Directory of the checkpoints.
        main_metric: The metric that chooses the best checkpoint.

    Returns:
        Arguments for a `Trainer`.

    Raises:
        ConfigError: The dtype needs a GPU that is not there.
    """
    accelerated = torch.accelerator.is_available()
    if options.dtype == "fp16" and not accelerated:
        raise ConfigError("--dtype fp16 needs a GPU, and none is there; use bf16 or float32")
    if options.dtype == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError("--dtype bf16: this GPU has no bfloat16; use fp16 or float32")
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_ratio,
        lr_scheduler_type=options.schedule,
        max_grad_norm=options.max_grad_norm,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=options.keep_checkpoints,
        load_best_model_at_end=True,
        metric_for_best_model=main_metric,
        greater_is_better=True,
        bf16=options.dtype == "bf16",
        fp16=options.dtype == "fp16",
        use_cpu=not accelerated,
        dataloader_pin_memory=accelerated,
        logging_nan_inf_filter=False,
        seed=options.seed,
        disable_tqdm=True,
        report_to=list(options.report_to or ("none",)),
        remove_unused_columns=True,
    )


def make_optimizer(
    model: nn.Module, head: tuple[str, ...], options: FinetuneOptions
) -> torch.optim.Optimizer:
    """AdamW over what is trained, the head with its own learning rate where one is given.

    Args:
        model: The model with its adapter.
        head: Names of the modules of the head.
        options: Options of the run.

    Returns:
        The optimizer: a group for the adapter, a group for the head.
    """
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups: list[dict[str, Any]] = []
    for rate, belongs in (
        (options.learning_rate, lambda name: not in_head(name, head)),
        (options.head_lr or options.learning_rate, lambda name: in_head(name, head)),
    ):
        members = [value for name, value in trained if belongs(name)]
        if members:
            groups.append({"params": members, "lr": rate})
    return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)


def in_head(name: str, head: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to the head.

    Args:
        name: Its name in the model, also with the wrappers of peft.
        head: Names of the modules of the head.

    Returns:
        True where a part of the name is a head's name.
    """
    return any(part in head for part in name.split("."))


def count_parameters(model: nn.Module, head: tuple[str, ...]) -> dict[str, int]:
    """What is trained.

    Args:
        model: The model with its adapter.
        head: Names of the modules of the head.

    Returns:
        Number of trained parameters of `adapter` and of `head`.
    """
    counts = {"adapter": 0, "head": 0}
    for name, value in model.named_parameters():
        if value.requires_grad:
            counts["head" if in_head(name, head) else "adapter"] += value.numel()
    return counts


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is whole: its state is written last.

    Args:
        checkpoints: Directory of the checkpoints.

    Returns:
        Its directory, or None.
    """
    found = [entry for entry in checkpoints.glob("checkpoint-*") if entry.name.rpartition("-")[2].isdigit()]
    for entry in sorted(found, key=lambda entry: -int(entry.name.rpartition("-")[2])):
        try:
            json.loads((entry / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return entry
    return None


def checkpoint_step(checkpoint: Path | None) -> int:
    """Optimizer steps that a checkpoint has behind it.

    Args:
        checkpoint: Its directory, or None.

    Returns:
        The number in its name, or 0.
    """
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
