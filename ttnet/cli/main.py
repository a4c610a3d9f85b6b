"""The entry point `ttnet`: its commands and its version."""

from typing import Annotated

import typer

from ttnet.cli.compress import compress
from ttnet.cli.export import export
from ttnet.cli.finetune import finetune
from ttnet.cli.inspect import inspect

app = typer.Typer(
    name="ttnet",
    help="Tensor-train adapters for transformers, with ranks that DMRG sweeps adapt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(finetune)
app.command()(inspect)
app.command()(export)
app.command()(compress)


def _version(wanted: bool) -> None:
    if wanted:
        from ttnet import __version__

        typer.echo(f"ttnet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Tensor-train adapters for transformers, with ranks that DMRG sweeps adapt."""
    del version


def main() -> None:
    """Run the command line; ends with exit code 0, 2 for bad input, or 1 for a run that failed."""
    app()


if __name__ == "__main__":
    main()
