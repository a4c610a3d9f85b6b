"""The end of a run: `result.json`, `ranks.png` and the table."""

import datetime
import importlib.metadata
import itertools
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import ttnet
from ttnet.cli.history import Record, write_json
from ttnet.cli.progress import show_ranks, shown
from ttnet.errors import FormatError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")
RESULT = "result.json"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on.

    Returns:
        Version by name; packages that are not installed are left out.
    """
    found = {"python": platform.python_version(), "ttnet": ttnet.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def surroundings() -> dict[str, Any]:
    """Versions, machine, threads and the hour.

    Returns:
        Plain data for `result.json`.
    """
    device = torch.accelerator.current_accelerator()
    return {
        "versions": versions(),
        "device": device.type if device is not None else "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_result(path: Path, result: Record) -> None:
    """Write `result.json`, its scores also as flat numbers such as `test_accuracy`.

    Args:
        path: Where it shall stand.
        result: With `dev` and `test`, metrics by name.
    """
    flat = {
        f"{split}_{name}": value for split in ("dev", "test") for name, value in (result[split] or {}).items()
    }
    write_json(path, {**result, **flat})


def draw(path: Path, history: Sequence[Record], labels: Sequence[str]) -> None:
    """Draw ranks and spectra over the epochs.

    Args:
        path: The `ranks.png`.
        history: Records with `ranks` and `spectra`.
        labels: Name of each bond.
    """
    from ttnet.plot import plot_ranks

    plot_ranks(history, labels).savefig(path, dpi=120)


def bond_labels(pattern: str) -> list[str]:
    """What each bond joins.

    Args:
        pattern: Such as "in layer matrix out".

    Returns:
        Such as `in|layer`, one for each bond.
    """
    from ttnet.adapters.axes import parse_pattern

    modes = [" ".join(mode) for mode in parse_pattern(pattern).modes]
    return [f"{left}|{right}" for left, right in itertools.pairwise(modes)]


def print_result(console: Console, result: Record, output: Path) -> None:
    """The table at the end.

    Args:
        console: Where it goes.
        result: What `result.json` holds.
        output: The output directory.
    """
    parts = [result["task"], Path(result["model"]).name, result["pattern"]]
    title = ", ".join(part for part in parts if part)
    table = Table("", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    columns = _columns(result)
    for column in columns:
        table.add_column(column["name"], justify="right")
    table.add_row("rank", *(column["rank"] for column in columns))
    table.add_row("adapter parameters", *(f"{column['adapter']:,}" for column in columns))
    table.add_row("head parameters", *(f"{column['head']:,}" for column in columns))
    for split in ("dev", "test"):
        for name in result[split] or ():
            table.add_row(f"{split} {name}", *(shown((column[split] or {}).get(name)) for column in columns))
    table.add_row("seconds", *(f"{column['seconds']:.0f}" for column in columns))
    console.print(table)
    console.print(_summary(result), soft_wrap=True)
    sweeps = result.get("sweeps")
    if sweeps:
        cut = f", cut {sweeps['cut']}" if sweeps["cut"] else ""
        console.print(f"sweeps {sweeps['mode']}{cut}", soft_wrap=True, highlight=False)
    for note in result["notes"]:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    console.print(f"written to {output}", soft_wrap=True, highlight=False)


def _summary(result: Record) -> str:
    """The main number beside that of the classifier alone, in a sentence."""
    split = "test" if result["test"] else "dev"
    metric = result["metric"]
    parameters = result["adapter_parameters"]
    text = f"{split} {metric} {shown(result[split][metric])} with {parameters:,} adapter parameters"
    alone = result.get("classifier_alone")
    return (
        f"{text}, {shown(alone[split][metric])} for the classifier alone on the frozen model"
        if alone
        else text
    )


def _columns(result: Record) -> list[Record]:
    names = {"tt": "tensor train", "lora": "LoRA", "classifier": "classifier alone"}
    columns = [
        {
            "name": names[result["method"]],
            "rank": show_ranks(result["ranks"][1:-1]) if result["ranks"] else "-",
            "adapter": result["adapter_parameters"],
            "head": result["head_parameters"],
            "dev": result["dev"],
            "test": result["test"],
            "seconds": result["seconds"],
        }
    ]
    alone = result.get("classifier_alone")
    if alone:
        columns.append(
            {"name": "classifier alone", "rank": "-", "adapter": 0, "head": alone["parameters"], **alone}
        )
    return columns


def read_result(path: Path) -> Record:
    """Read the `result.json` of a run that is complete.

    Args:
        path: The file.

    Returns:
        Its contents.

    Raises:
        FormatError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error}); start again with --overwrite") from None
