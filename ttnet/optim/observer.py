"""Observers of a minimization, and the line that is logged after each sweep."""

import logging
import sys
from collections.abc import Callable

from ttnet.optim.result import SweepReport
from ttnet.tensor_train import TensorTrain

Observer = Callable[[SweepReport, TensorTrain], bool | None]
"""Called after each sweep with its report and the train; returns True to stop."""

logger = logging.getLogger("ttnet.optim")


class Progress:
    """Shows one line a sweep: to the logger `ttnet.optim` where level INFO is heard, else on stderr."""

    def __init__(self) -> None:
        self._show = _console()

    def __call__(self, sweep: int, report: SweepReport) -> None:
        """Show the line of a sweep."""
        line = (
            f"sweep {sweep:3d}  loss {_or_nan(report.loss_after): .12e}  max rank {report.max_rank:4d}  "
            f"discarded {max(report.discarded_weight, default=0.0):.1e}  "
            f"gradient {_or_nan(report.gradient_norm):.1e}  {report.seconds:.2f} s"
        )
        if logger.isEnabledFor(logging.INFO):
            logger.info(line)
        else:
            self._show(line)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _console() -> Callable[[str], object]:
    """The console of rich where it is installed."""
    try:
        from rich.console import Console
    except ImportError:
        return lambda line: sys.stderr.write(line + "\n")
    return Console(stderr=True, highlight=True).print
