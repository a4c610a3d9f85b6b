"""The command `ttnet finetune`: its options, and nothing that is slow to import."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ttnet.cli.errors import reported
from ttnet.cli.options import FinetuneOptions, parse_names, parse_rank, parse_ranks

DATA, ADAPTER, TRAINING, OUTPUT = "Data", "Adapter and ranks", "Training", "Output"


def _option(text: str, panel: str, *names: str) -> typer.models.OptionInfo:
    return typer.Option(*names, help=text, rich_help_panel=panel)


@reported
def finetune(
    *,
    model: Annotated[str, _option("Hub name, directory, or `minilm`, which comes with a package.", DATA)],
    task: Annotated[str | None, _option("GLUE task (cola, sst2, mrpc, ...) or `reuters-r8`.", DATA)] = None,
    data_dir: Annotated[
        Path | None, _option("Reads DATA_DIR/TASK/{train,dev,test}.jsonl[.gz].", DATA)
    ] = None,
    train_file: Annotated[Path | None, _option("Training data: .jsonl, .csv, .tsv, also .gz.", DATA)] = None,
    dev_file: Annotated[Path | None, _option("Dev data; by default 10 % of the training data.", DATA)] = None,
    test_file: Annotated[Path | None, _option("Test data, scored once at the end.", DATA)] = None,
    text_columns: Annotated[str | None, _option("One or two column names, `a,b`.", DATA)] = None,
    label_column: Annotated[str, _option("Column of the label.", DATA)] = "label",
    problem: Annotated[str, _option("auto, classification or regression.", DATA)] = "auto",
    metric: Annotated[str | None, _option("Metric that chooses the best checkpoint.", DATA)] = None,
    train_samples: Annotated[int | None, _option("Train on a seeded subset of this size.", DATA)] = None,
    full: Annotated[
        bool, _option("All of reuters-r8 instead of its default subset.", DATA, "--full")
    ] = False,
    data_seed: Annotated[int, _option("Seed of subsets and of a dev split made here.", DATA)] = 0,
    method: Annotated[str, _option("tt, lora (by peft), or classifier (the head alone).", ADAPTER)] = "tt",
    pattern: Annotated[
        str, _option("4d, 5d, or axes such as `in layer matrix out`.", ADAPTER, "--pattern", "--axes")
    ] = "4d",
    rank: Annotated[str | None, _option("Rank, or one for each bond: `8/12/8`.", ADAPTER)] = None,
    ranks: Annotated[
        str | None, _option("Ranks by completed epochs: `0:12,2:8,4:6`; key 0 is the start.", ADAPTER)
    ] = None,
    max_parameters: Annotated[int | None, _option("Adaptive ranks: come down to this size.", ADAPTER)] = None,
    max_error: Annotated[
        float | None, _option("Adaptive ranks: largest relative error of a sweep on any matrix.", ADAPTER)
    ] = None,
    max_loss_increase: Annotated[
        float | None, _option("Adaptive ranks: largest relative rise of the loss in a sweep.", ADAPTER)
    ] = None,
    min_rank: Annotated[int, _option("Adaptive ranks: smallest rank of a bond.", ADAPTER)] = 1,
    max_cut: Annotated[int, _option("Adaptive ranks: most ranks a bond loses in a sweep.", ADAPTER)] = 4,
    patience: Annotated[int, _option("Adaptive ranks: epochs between two cuts.", ADAPTER)] = 1,
    rank_warmup: Annotated[int, _option("Adaptive ranks: epochs before the first sweep.", ADAPTER)] = 1,
    dmrg_mode: Annotated[
        str,
        _option(
            "truncate (proper rounding), paper (its literal sweep) or two-site (sweeps that optimize).",
            ADAPTER,
        ),
    ] = "truncate",
    cut: Annotated[
        str, _option("What a cut keeps: plain (dW) or inputs (x dW, on training data).", ADAPTER)
    ] = "plain",
    held_batches: Annotated[
        int | None,
        _option("Training batches that a two-site sweep or `--cut inputs` looks at; 8.", ADAPTER),
    ] = None,
    state: Annotated[str, _option("Moments at a sweep: transport or reset.", ADAPTER)] = "transport",
    gauge: Annotated[
        str | None, _option("After a sweep: nearest (the default), canonical or balanced.", ADAPTER)
    ] = None,
    alpha: Annotated[float, _option("Factor of dW.", ADAPTER)] = 1.0,
    init: Annotated[
        str | None,
        _option("Initialization by core, `zero-identity-identity-identity`; normal is the third.", ADAPTER),
    ] = None,
    target_modules: Annotated[
        str | None,
        _option(
            "Comma list of name endings, a regular expression, or all-linear; by default query and value.",
            ADAPTER,
        ),
    ] = None,
    lr: Annotated[
        float | None, _option("Learning rate; the default depends on the method.", TRAINING)
    ] = None,
    head_lr: Annotated[float | None, _option("Learning rate of the head, if another.", TRAINING)] = None,
    weight_decay: Annotated[float, _option("Weight decay.", TRAINING)] = 0.0,
    warmup_ratio: Annotated[
        float, _option("Share of the steps with a rising learning rate.", TRAINING)
    ] = 0.06,
    schedule: Annotated[
        str, _option("linear, cosine, constant or constant_with_warmup.", TRAINING)
    ] = "linear",
    max_grad_norm: Annotated[
        float, _option("Gradients are clipped to this norm; 0 leaves them.", TRAINING)
    ] = 1.0,
    epochs: Annotated[int, _option("Passes over the training data.", TRAINING)] = 3,
    batch_size: Annotated[int, _option("Documents of a batch on each device.", TRAINING)] = 32,
    gradient_accumulation: Annotated[int, _option("Batches of an optimizer step.", TRAINING)] = 1,
    max_length: Annotated[int, _option("Tokens kept of a document.", TRAINING)] = 128,
    dropout: Annotated[
        float | None, _option("Dropout of the model, if another; 0 is fastest on a CPU.", TRAINING)
    ] = None,
    attention: Annotated[
        str, _option("Kernel: sdpa, eager, or auto (eager for bf16 on a CPU).", TRAINING)
    ] = "auto",
    seed: Annotated[int, _option("Seed of everything but the data.", TRAINING)] = 0,
    dtype: Annotated[
        str, _option("float32, autocast to bf16 or fp16 (GPU), or auto: bf16 where it is fast.", TRAINING)
    ] = "float32",
    threads: Annotated[int | None, _option("CPU threads of torch.", TRAINING)] = None,
    output: Annotated[Path, _option("Directory to write; new or empty.", OUTPUT)],
    save_steps: Annotated[int | None, _option("Checkpoints also after this many steps.", OUTPUT)] = None,
    keep_checkpoints: Annotated[int, _option("Checkpoints that stay on disk.", OUTPUT)] = 3,
    report_to: Annotated[
        str | None, _option("Loggers of transformers: tensorboard, wandb, ...", OUTPUT)
    ] = None,
    compare_classifier: Annotated[
        bool, _option("Score the classifier alone on the frozen model too.", OUTPUT, "--compare-classifier")
    ] = False,
    resume: Annotated[bool, _option("Go on from the last checkpoint in OUTPUT.", OUTPUT, "--resume")] = False,
    overwrite: Annotated[bool, _option("Replace the run that is in OUTPUT.", OUTPUT, "--overwrite")] = False,
    quiet: Annotated[bool, _option("Print errors alone.", OUTPUT, "--quiet")] = False,
    debug: Annotated[bool, _option("Show tracebacks.", OUTPUT, "--debug")] = False,
) -> None:
    """Fine-tune a pretrained transformer with a tensor-train adapter whose ranks DMRG sweeps adapt."""
    del debug
    options = FinetuneOptions(
        model=model,
        task=task,
        data_dir=None if data_dir is None else str(data_dir),
        train_file=None if train_file is None else str(train_file),
        dev_file=None if dev_file is None else str(dev_file),
        test_file=None if test_file is None else str(test_file),
        text_columns=parse_names(text_columns),
        label_column=label_column,
        problem=problem,
        metric=metric,
        train_samples=train_samples,
        full=full,
        data_seed=data_seed,
        method=method,  # pyright: ignore[reportArgumentType]
        pattern=pattern,
        rank=None if rank is None else parse_rank(rank),
        ranks=None if ranks is None else parse_ranks(ranks),
        max_parameters=max_parameters,
        max_error=max_error,
        max_loss_increase=max_loss_increase,
        min_rank=min_rank,
        max_cut=max_cut,
        patience=patience,
        rank_warmup=rank_warmup,
        dmrg_mode=dmrg_mode,
        cut=cut,
        held_batches=held_batches,
        state=state,
        gauge=gauge,
        alpha=alpha,
        init=None if init is None else tuple(init.split("-")),
        target_modules=_targets(target_modules),
        lr=lr,
        head_lr=head_lr,
        weight_decay=weight_decay,
        warmup_ratio=warmup_ratio,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        epochs=epochs,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        max_length=max_length,
        dropout=dropout,
        attention=attention,
        seed=seed,
        dtype=dtype,
        threads=threads,
        output=str(output),
        save_steps=save_steps,
        keep_checkpoints=keep_checkpoints,
        report_to=parse_names(report_to),
        compare_classifier=compare_classifier,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
    )
    # Torch and transformers are imported when a run begins, not for --help or a typo.
    from ttnet.cli.run import run

    # In a distributed job only the first process speaks.
    run(options, Console(quiet=quiet or os.environ.get("RANK", "0") != "0", highlight=False))


def _targets(text: str | None) -> tuple[str, ...] | str | None:
    if text is not None and (text == "all-linear" or re.search(r"[\\^$*+?()\[\]{}|]", text)):
        return text
    return parse_names(text)
