"""What a run shows while it trains: a bar, one line an epoch, and the record behind each line."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ttnet.cli.history import History, Record

Describe = Callable[[int], Record]


class EpochReport(TrainerCallback):
    """Write one record and one line at the evaluation of each epoch.

    Args:
        history: Where records go.
        metrics: Names of metrics, the main one first.
        describe: Gives, after so many epochs, what the record says of the adapter: `ranks`, `parameters`, ...
        console: Where lines go.
        bar: Whether to show a progress bar.
    """

    def __init__(
        self, history: History, metrics: tuple[str, ...], describe: Describe, console: Console, bar: bool
    ) -> None:
        """Show nothing until training begins."""
        self.history = history
        self.metrics = metrics
        self.describe = describe
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not bar,
        )
        self.task = self.progress.add_task("steps", total=None)
        self.started = 0.0
        self.loss: float | None = None
        self.rate: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar where the run stands."""
        del args, control, kwargs
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        self.progress.start()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        del args, control, kwargs
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep the mean training loss of the epoch, which is logged just before the evaluation."""
        del args, state, control, kwargs
        if logs and "loss" in logs:
            self.loss, self.rate = logs["loss"], logs.get("learning_rate")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Record the epoch and print its line."""
        del control, kwargs
        now = time.perf_counter()
        scores = {name: (metrics or {}).get(f"eval_{name}") for name in ("loss", *self.metrics)}
        epoch = round(state.epoch or 0)
        record: Record = {
            "epoch": epoch,
            "step": state.global_step,
            "train_loss": self.loss,
            "learning_rate": self.rate,
            "dev_loss": scores.pop("loss"),
            "dev": scores,
            **self.describe(epoch),
            "seconds": now - self.started,
        }
        self.started = now
        if state.is_world_process_zero:
            self.history.append(record)
            self.progress.console.print(epoch_line(record, int(args.num_train_epochs)), soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        del args, state, control, kwargs
        self.close()

    def close(self) -> None:
        """Take the bar away, also after a failure."""
        self.progress.stop()


def epoch_line(record: Record, epochs: int) -> str:
    """One epoch in one line.

    Args:
        record: The record of the epoch.
        epochs: Epochs of the run.

    Returns:
        The line in rich markup.
    """
    parts = [f"[bold]epoch {record['epoch']}/{epochs}[/]"]
    if record["train_loss"] is not None:
        parts.append(f"loss {record['train_loss']:.4f}")
    parts += [f"dev {name} {shown(value)}" for name, value in record["dev"].items()]
    if record.get("ranks"):
        parts.append(f"ranks {show_ranks(record['ranks'][1:-1])}")
    parts.append(f"trainable {sum(record['parameters'].values()):,}")
    parts.append(f"{record['seconds']:.1f} s")
    if record.get("sweep"):
        parts.append(escape(show_sweep(record["sweep"])))
    return "  ".join(parts)


def show_ranks(ranks: Sequence[int]) -> str:
    """Ranks of the bonds, as one number where they agree.

    Args:
        ranks: Ranks of the d - 1 bonds.

    Returns:
        Such as `8`, or `8/12/8`.
    """
    return str(ranks[0]) if len(set(ranks)) == 1 else "/".join(map(str, ranks))


def show_sweep(sweep: Record) -> str:
    """What the sweep before an epoch did.

    Args:
        sweep: A `SweepReport` as a dictionary.

    Returns:
        A few words.
    """
    before, after = show_ranks(sweep["ranks_before"]), show_ranks(sweep["ranks_after"])
    if sweep["loss_untruncated"] is not None:
        change = f"optimized, loss {sweep['loss_before']:.4f} -> {sweep['loss_after']:.4f}"
    else:
        of = " of x dW" if sweep["norm"] == "metric" else ""
        change = f"relative error{of} {sweep['relative_error']:.1e}"
    return f"(swept {before} -> {after}, {change})"


def shown(value: float | None) -> str:
    """A score with four decimals, or a dash.

    Args:
        value: The score.

    Returns:
        Its text.
    """
    return "-" if value is None else f"{value:.4f}"
