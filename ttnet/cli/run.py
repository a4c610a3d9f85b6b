"""One run of `ttnet finetune`, from options to the output directory."""

import logging
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import DataCollatorWithPadding, EvalPrediction, PrinterCallback, Trainer, TrainerCallback

from ttnet.cli.baseline import HeadBaseline
from ttnet.cli.data import Features, tokenize
from ttnet.cli.history import History, Record, write_json
from ttnet.cli.methods import Adapted, adapt, adapter_config
from ttnet.cli.metrics import score
from ttnet.cli.models import head_names, load_model, target_modules
from ttnet.cli.options import FinetuneOptions, check_same
from ttnet.cli.progress import EpochReport
from ttnet.cli.report import RESULT, bond_labels, draw, print_result, read_result, surroundings, write_result
from ttnet.cli.sweeps import TrainTraining, sweep_callback, sweep_reports
from ttnet.cli.tasks import Task, load_task
from ttnet.cli.training import (
    SaveEvery,
    SmallCheckpoints,
    checkpoint_step,
    last_checkpoint,
    make_optimizer,
    resolve_dtype,
    training_arguments,
)
from ttnet.errors import ConfigError

OPTIONS = "options.json"
WRITTEN = (OPTIONS, RESULT, "history.jsonl", "ranks.png", "adapter", "checkpoints")


def run(options: FinetuneOptions, console: Console) -> Record:
    """Fine-tune, score, and write the output directory.

    Args:
        options: Options of the run.
        console: Where progress and the table go.

    Returns:
        What `result.json` holds.

    Raises:
        TTNetError: An option, a file or the model does not fit; or the training failed.
    """
    options = resolve_dtype(options)
    output = Path(options.output)
    main_process = int(os.environ.get("RANK", "0")) == 0
    checkpoint = _check_output(options, output, console) if main_process or options.resume else None
    if options.resume and (output / RESULT).is_file():
        result = read_result(output / RESULT)
        console.print("the run is complete already")
        print_result(console, result, output)
        return result
    _prepare(options)
    if options.method == "tt":
        adapter_config(options)
    task = load_task(options)
    for note in task.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    transformers.set_seed(options.seed)
    model, tokenizer = load_model(options, task.space)
    arguments = training_arguments(options, output / "checkpoints", task.metrics[0])
    if options.method != "classifier":
        target_modules(model, options)
    documents = {
        name: tokenize(split, tokenizer, options.max_length)
        for name, split in (("train", task.train), ("dev", task.dev), ("test", task.test))
        if split is not None and split.labels is not None
    }
    collate = DataCollatorWithPadding(tokenizer)
    alone = None
    if options.compare_classifier:
        alone = _classifier_alone(model, collate, options, task, documents)
    adapted = adapt(model, options)
    if main_process:
        _begin_output(options, output)
    history = History(output / "history.jsonl", checkpoint_step(checkpoint))
    sweeps = None
    if adapted.adapter is not None:
        sweeps = sweep_callback(adapted.adapter, options, documents["train"], collate)

    def describe(epoch: int) -> Record:
        return {**adapted.describe(), "sweep": sweep_reports(sweeps).get(epoch - 1)}

    report = EpochReport(history, task.metrics, describe, console, bar=console.is_terminal)
    callbacks: list[TrainerCallback] = [report] if sweeps is None else [sweeps, report]
    trainer = _trainer(adapted, options, arguments, collate, task, documents, callbacks)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        report.close()
    result = _result(options, task, adapted, trainer, history, documents, alone)
    if main_process:
        adapted.save(output / "adapter")
        if adapted.adapter is not None and history.records:
            draw(output / "ranks.png", history.records, bond_labels(result["pattern"]))
        write_result(output / RESULT, result)
        print_result(console, result, output)
        if adapted.adapter is not None and options.max_parameters is not None:
            count = adapted.adapter.tensor_train().num_parameters
            if count > options.max_parameters:
                console.print(
                    f"note: the train has {count:,} parameters, more than --max-parameters "
                    f"{options.max_parameters:,}; more epochs, or a larger --max-cut, bring it down further",
                    soft_wrap=True,
                )
    return result


def _check_output(options: FinetuneOptions, output: Path, console: Console) -> Path | None:
    """Refuse a directory in use; find the checkpoint to resume from."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; name a directory")
    in_use = output.is_dir() and any(output.iterdir())
    if in_use and not (options.resume or options.overwrite):
        raise ConfigError(f"--output {output}: is not empty; name another, or give --resume or --overwrite")
    if not options.resume:
        return None
    if (output / OPTIONS).is_file():
        check_same(options, output / OPTIONS)
    elif in_use:
        raise ConfigError(
            f"--resume: {output} holds no run, {OPTIONS} is missing; name the directory of the run"
        )
    checkpoint = last_checkpoint(output / "checkpoints")
    where = f"resuming from {checkpoint}" if checkpoint else "there is no checkpoint yet: the run begins anew"
    console.print(where, soft_wrap=True, highlight=False)
    return checkpoint


def _begin_output(options: FinetuneOptions, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        for name in WRITTEN:
            path = output / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_json(output / OPTIONS, options.to_json())


def _prepare(options: FinetuneOptions) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|accelerate|peft|torch)\..*")


def _trainer(
    adapted: Adapted,
    options: FinetuneOptions,
    arguments: transformers.TrainingArguments,
    collate: Any,
    task: Task,
    documents: dict[str, list[Features]],
    callbacks: list[TrainerCallback],
) -> Trainer:
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        outputs = prediction.predictions
        return score(
            task.metrics, outputs[0] if isinstance(outputs, tuple) else outputs, prediction.label_ids
        )  # pyright: ignore[reportArgumentType]

    common: dict[str, Any] = {
        "model": adapted.model,
        "args": arguments,
        "data_collator": collate,
        "train_dataset": documents["train"],
        "eval_dataset": documents["dev"],
        "compute_metrics": metrics,
        "optimizers": (make_optimizer(adapted.model, adapted.head, options), None),
        "callbacks": [*callbacks, SaveEvery(options.save_steps)] if options.save_steps else callbacks,
    }
    trainer = SmallCheckpoints(**common) if adapted.adapter is None else TrainTraining(**common)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _classifier_alone(
    model: Any, collate: Any, options: FinetuneOptions, task: Task, documents: dict[str, list[Features]]
) -> Record | None:
    started = time.perf_counter()
    device = torch.accelerator.current_accelerator()
    if device is not None:
        model.to(device)
    baseline = HeadBaseline(model, head_names(model)[-1], collate, options)
    if len(head_names(model)) != 1 or not baseline.supported(documents["dev"][:8]):
        raise ConfigError(
            f"--compare-classifier: the head of {options.model} reads more than features that can be kept; "
            "leave the option out and run --method classifier"
        )
    found = baseline.run(task, documents)
    return {
        "dev": found.dev,
        "test": found.test,
        "lr": found.lr,
        "parameters": found.parameters,
        "seconds": time.perf_counter() - started,
    }


def _result(
    options: FinetuneOptions,
    task: Task,
    adapted: Adapted,
    trainer: Trainer,
    history: History,
    documents: dict[str, list[Features]],
    alone: Record | None,
) -> Record:
    started = time.perf_counter()
    best = trainer.state.best_global_step
    # The best checkpoint was scored on the dev split when it was written.
    dev = next((record["dev"] for record in history.records if record["step"] == best), None)
    if dev is None:
        dev = _predict(trainer, task, documents["dev"], "dev")
    test = _predict(trainer, task, documents["test"], "test") if "test" in documents else None
    described = adapted.describe()
    config = None if adapted.adapter is None else adapted.adapter.config
    return {
        "task": task.name,
        "metric": task.metrics[0],
        "model": options.model,
        "method": options.method,
        "pattern": None if config is None else config.pattern,
        "targets": adapted.targets,
        "dev": dev,
        "test": test,
        "documents": {name: len(rows) for name, rows in documents.items()},
        "adapter_parameters": described["parameters"]["adapter"],
        "head_parameters": described["parameters"]["head"],
        "ranks": described["ranks"],
        "sweeps": _sweeps(options),
        "best_step": best,
        "seconds": history.seconds,
        "seconds_scoring": time.perf_counter() - started,
        "classifier_alone": alone,
        "seed": options.seed,
        "dtype": options.dtype,
        "notes": task.notes,
        **surroundings(),
        "options": options.to_json(),
    }


def _sweeps(options: FinetuneOptions) -> Record | None:
    """How the ranks were changed; None where they stayed."""
    if options.ranks is None and not options.adaptive:
        return None
    return {"mode": options.dmrg_mode, "cut": options.cut if options.dmrg_mode == "truncate" else None}


def _predict(trainer: Trainer, task: Task, documents: list[Features], split: str) -> dict[str, float]:
    found = trainer.predict(documents, metric_key_prefix=split).metrics or {}  # pyright: ignore[reportArgumentType]
    return {name: found[f"{split}_{name}"] for name in task.metrics}
