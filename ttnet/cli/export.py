"""The command `ttnet export`: a saved adapter in the format of another library."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ttnet.cli.compress import check_output, parse_assignments, show_errors
from ttnet.cli.errors import reported
from ttnet.errors import ConfigError

if TYPE_CHECKING:
    from ttnet.adapters.axes import Label
    from ttnet.adapters.structure import Layout
    from ttnet.interop.lora import LoraReport

ADAPTER = "adapter"
FORMATS = ("lora",)


@reported
def export(
    directory: Annotated[
        Path, typer.Argument(help="Where an adapter was saved, or the output of `ttnet finetune`.")
    ],
    *,
    to: Annotated[str, typer.Option("--to", help="The format: lora, the files that peft loads.")] = "lora",
    output: Annotated[Path, typer.Option("--out", "--output", help="Directory to write; new or empty.")],
    max_lora_rank: Annotated[
        int | None, typer.Option(help="Cut every matrix to this rank, such as a server's limit.")
    ] = None,
    rtol: Annotated[
        float, typer.Option(help="Take the smallest ranks with at most this relative error of each matrix.")
    ] = 0.0,
    select: Annotated[
        list[str] | None,
        typer.Option(help="A place on an axis that is selected at run time, such as `task=rte`."),
    ] = None,
    modules_to_save: Annotated[
        bool, typer.Option(help="Write the modules trained whole too, such as the classifier.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="Of the factors: float32, bfloat16 or float16.")] = "float32",
    task_type: Annotated[str | None, typer.Option(help="peft's task type, such as CAUSAL_LM.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Name of the base model to write, if not the one it was made on.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a LoRA that is in the output directory.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write a saved adapter as a LoRA that peft loads: exact, or cut to a rank with the errors shown."""
    del debug
    if to not in FORMATS:
        raise ConfigError(f"--to {to!r}: expected one of {', '.join(FORMATS)}")
    check_output(output, overwrite=overwrite)
    from ttnet.adapters import files
    from ttnet.interop.lora import to_lora

    inner = directory / ADAPTER
    source = inner if (inner / files.CONFIG_NAME).is_file() else directory
    saved = files.read(source)
    report = to_lora(
        saved,
        output,
        max_lora_rank=max_lora_rank,
        rtol=rtol,
        select=_selection(saved.layout, parse_assignments("--select", select or [])),
        modules_to_save=modules_to_save,
        dtype=dtype,
        task_type=task_type,
        base_model=base_model,
        overwrite=overwrite,
    )
    train = sum(core.numel() for core in saved.train.cores)
    _show(Console(highlight=False), report, source, train)


def _selection(layout: "Layout", pairs: list[tuple[str, str]]) -> dict[str, "Label"]:
    """The labels that words such as task=rte name; a label that is a number is found by its digits."""
    known = {axis.name: axis.labels or () for axis in layout.runtime}
    found: dict[str, Label] = {}
    for name, word in pairs:
        if name in found:
            raise ConfigError(f"--select {name}: given twice; one LoRA is one place, export each by itself")
        found[name] = next((label for label in known.get(name, ()) if str(label) == word), word)
    for name, labels in known.items():
        if name not in found and len(labels) > 1:
            raise ConfigError(
                f"--select: the adapter has an axis {name!r}; give --select {name}={labels[0]}, or another "
                f"of {', '.join(map(str, labels))}"
            )
    return found


def _show(console: Console, report: "LoraReport", source: Path, parameters: int) -> None:
    ranks = sorted(set(report.ranks.values()))
    show_errors(console, report.errors, ranks=report.ranks)
    table = Table("", "parameters", "ranks", "bytes", box=box.SIMPLE_HEAD)
    for name, count, shown, folder in (
        ("train", parameters, "", source),
        ("LoRA", report.num_parameters, ", ".join(map(str, ranks)), report.directory),
    ):
        size = sum(path.stat().st_size for path in folder.glob("adapter_*"))
        table.add_row(name, f"{count:,}", shown, f"{size:,}")
    console.print(table)
    if report.modules:
        console.print(f"saved whole beside it: {escape(', '.join(report.modules))}", soft_wrap=True)
    console.print(f"written to {escape(str(report.directory))}", soft_wrap=True)
