"""The command `ttnet compress`: LoRA adapters of peft, one or several, as one tensor train."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ttnet.cli.errors import reported
from ttnet.cli.options import parse_names, parse_rank
from ttnet.errors import ConfigError

if TYPE_CHECKING:
    from ttnet.interop.lora import Compression


@reported
def compress(
    directories: Annotated[
        list[str], typer.Argument(help="Directories that peft saved a LoRA in; `name=DIR` names its task.")
    ],
    *,
    output: Annotated[Path, typer.Option("--out", "--output", help="Directory to write; new or empty.")],
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern", "--axes", help="4d, 5d, 4+1d or axes; by default 4d, for several directories 4+1d."
        ),
    ] = None,
    rank: Annotated[
        str | None, typer.Option(help="Largest rank, or one for each bond: `8/12/8`. 8 without a tolerance.")
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Largest relative error of all matrices together.")
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="Largest relative error of any matrix.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of a head, for the axis `head`.")] = None,
    exclude_modules: Annotated[
        str | None, typer.Option(help="Comma list of name endings that are left out.")
    ] = None,
    sweeps: Annotated[int, typer.Option(help="Most sweeps of least squares after the TT-SVD.")] = 20,
    dtype: Annotated[
        str, typer.Option(help="Of the cores: float32, float64, bfloat16, float16.")
    ] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an adapter that is in the output directory.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Compress one LoRA, or several of one model (one task each), into a single tensor-train adapter."""
    del debug
    check_output(output, overwrite=overwrite)
    from ttnet.interop.lora import from_lora
    from ttnet.interop.lora.peft_files import check_no_peft_adapter
    from ttnet.truncation import Truncation

    check_no_peft_adapter(output)
    limit = None if rank is None else parse_rank(rank)
    if limit is None and rtol is None and max_error is None:
        limit = 8
    named = [word for word in directories if "=" in word and not Path(word).is_dir()]
    if named and len(named) < len(directories):
        raise ConfigError("DIRECTORIES: name all tasks, as in `rte=runs/rte mrpc=runs/mrpc`, or none")
    given = parse_assignments("DIRECTORIES", named)
    sources: dict[str, str] | list[str] | str = dict(given) if named else directories
    if len(given) > len(sources) and named:
        raise ConfigError("DIRECTORIES: two tasks have the same name")
    found = from_lora(
        directories[0] if len(directories) == 1 and not named else sources,
        pattern=pattern,
        truncation=Truncation(max_rank=limit, rtol=rtol),
        max_error=max_error,
        head_dim=head_dim,
        exclude_modules=parse_names(exclude_modules) or (),
        sweeps=sweeps,
        dtype=dtype,
    )
    try:
        found.save(output)
    except OSError as error:
        raise ConfigError(f"--out {output}: cannot be written ({error.strerror})") from None
    _show(Console(highlight=False), found, output)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Check that nothing of value is in the output directory.

    Args:
        output: The directory.
        overwrite: Whether an adapter there may be replaced.

    Raises:
        ConfigError: It is a file, or it is not empty.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--out {output}: it is a file; give a directory")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"--out {output}: it is not empty; give a new directory, or --overwrite")


def parse_assignments(option: str, words: Iterable[str]) -> list[tuple[str, str]]:
    """Read words such as `task=rte`.

    Args:
        option: What they belong to, for messages.
        words: The words.

    Raises:
        ConfigError: One has no name or no value.
    """
    pairs = []
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise ConfigError(f"{option} {word!r}: expected name=value, such as task=rte")
        pairs.append((name, value))
    return pairs


def show_errors(
    console: Console, errors: Mapping[str, float], *, ranks: Mapping[str, int] | None = None
) -> None:
    """A table of the errors by kind of matrix, and of the worst matrices.

    Args:
        console: Where it goes.
        errors: Relative error by name of the matrix.
        ranks: Rank by name, if they are worth a column.
    """
    table = Table("matrix", title="relative errors", title_justify="left", box=box.SIMPLE_HEAD)
    columns = ["count", "median", "largest", *(["rank"] if ranks else [])]
    for column in columns:
        table.add_column(column, justify="right")
    kinds: dict[str, list[str]] = {}
    for name in errors:
        kinds.setdefault(_kind(name), []).append(name)
    for kind, names in kinds.items():
        values = [errors[name] for name in names]
        row = [escape(kind), str(len(names)), f"{median(values):.2e}", f"{max(values):.2e}"]
        if ranks:
            own = sorted({ranks[name] for name in names})
            row.append(str(own[0]) if len(own) == 1 else f"{own[0]} to {own[-1]}")
        table.add_row(*row)
    console.print(table)
    worst = max(errors, key=lambda name: errors[name])
    console.print(f"largest: {errors[worst]:.2e}, {escape(worst)}", soft_wrap=True)


def _kind(name: str) -> str:
    """A name whose layer is left open."""
    return re.sub(r"(?<![^./])\d+(?![^.])", "*", name, count=1)


def _show(console: Console, found: "Compression", output: Path) -> None:
    show_errors(console, found.errors)
    train = found.saved.train
    table = Table("", "parameters", "ranks", box=box.SIMPLE_HEAD)
    table.add_row("LoRA", f"{found.source_parameters:,}", "")
    table.add_row("train", f"{found.num_parameters:,}", "/".join(map(str, train.ranks[1:-1])))
    console.print(table)
    times = found.source_parameters / found.num_parameters
    console.print(
        f"{escape(found.saved.layout.pattern.text)}: {times:.1f} times fewer parameters, relative error of "
        f"all matrices together {found.relative_error:.2e}",
        soft_wrap=True,
    )
    if found.left_out:
        console.print(
            f"left out, for it is not the same in all adapters or is no factor: "
            f"{escape(', '.join(found.left_out))}",
            soft_wrap=True,
        )
    console.print(f"written to {escape(str(output))}", soft_wrap=True)
