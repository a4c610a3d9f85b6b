"""How a command ends badly: one message on stderr and an exit code, or the traceback with --debug."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from ttnet.errors import NonFiniteError, StateError, TTNetError

BAD_INPUT = 2
FAILED_RUN = 1
INTERRUPTED = 130

RESUME = "the same command with --resume goes on from the last checkpoint"

P = ParamSpec("P")
T = TypeVar("T")


class RunError(TTNetError, RuntimeError):
    """A run that began well cannot go on."""


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ends with this error.

    Args:
        error: What was raised.

    Returns:
        2 where the user's input is at fault, 1 for a run that failed, 130 for an interruption.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TTNetError) and not isinstance(error, RunError | NonFiniteError | StateError):
        return BAD_INPUT
    return FAILED_RUN


def message(error: BaseException, *, resumable: bool = False) -> str:
    """What the user reads of an error, on one line.

    Args:
        error: What was raised.
        resumable: Whether the command has checkpoints.

    Returns:
        The message; errors that ttnet did not raise on purpose are named and point at --debug.
    """
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{'; ' + RESUME if resumable else ''}"
    if isinstance(error, TTNetError):
        return text
    return f"{type(error).__name__}: {text or 'no message'} (--debug shows where)"


def reported(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command so that what it raises becomes a message and an exit code.

    Args:
        command: A function whose keyword `debug`, if it has one, lets tracebacks through.

    Returns:
        The function with the same signature, which typer reads.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if kwargs.get("debug"):
                raise
            console = Console(stderr=True, soft_wrap=True)
            console.print(
                f"[bold red]error:[/] {escape(message(error, resumable='resume' in kwargs))}", highlight=False
            )
            raise typer.Exit(exit_code(error)) from None

    return wrapped
