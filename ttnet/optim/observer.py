"""Observers of a minimization, and the line that is logged after each sweep."""

import logging
from collections.abc import Callable

from ttnet.optim.result import SweepReport
from ttnet.tensor_train import TensorTrain

Observer = Callable[[SweepReport, TensorTrain], bool | None]
"""Called after each sweep with its report and the train; returns True to stop."""

logger = logging.getLogger("ttnet.optim")


class Progress:
    """Logs one line a sweep to the logger `ttnet.optim`, level INFO."""

    def __call__(self, sweep: int, report: SweepReport) -> None:
        """Log the line of a sweep."""
        logger.info(
            "sweep %3d  loss % .12e  max rank %4d  discarded %.1e  gradient %.1e  %.2f s",
            sweep,
            report.loss_after if report.loss_after is not None else float("nan"),
            report.max_rank,
            max(report.discarded_weight, default=0.0),
            report.gradient_norm if report.gradient_norm is not None else float("nan"),
            report.seconds,
        )
