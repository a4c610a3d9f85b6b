"""The sweeps of a run: which ranks, when, and what they reported."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters import TTAdapter
from ttnet.cli.data import Features
from ttnet.cli.history import Record
from ttnet.cli.options import FinetuneOptions
from ttnet.cli.training import CheckedTraining
from ttnet.interop.transformers import DMRGCallback, DMRGTrainer
from ttnet.optim import AdaptiveRanks, RankSchedule

HELD_BATCHES = 4
"""Batches of training data on which adaptive ranks compare losses."""


class TrainTraining(CheckedTraining, DMRGTrainer):
    """The training of a tensor-train adapter."""


def sweep_callback(
    adapter: TTAdapter, options: FinetuneOptions, documents: list[Features], collate: Any
) -> DMRGCallback | None:
    """The callback that sweeps, as the options ask.

    Args:
        adapter: The adapter on its model.
        options: Options of the run.
        documents: Tokenized training documents, of which the first are held for losses.
        collate: Pads features to a batch.

    Returns:
        A callback for the Trainer, or None where the rank is constant.
    """
    ranks: RankSchedule | AdaptiveRanks
    if options.adaptive:
        ranks = AdaptiveRanks(
            max_parameters=options.max_parameters,
            max_error=options.max_error,
            max_loss_increase=options.max_loss_increase,
            warmup=options.rank_warmup,
            patience=options.patience,
            min_rank=options.min_rank,
            max_cut=options.max_cut,
        )
    elif options.ranks is not None:
        ranks = RankSchedule(options.schedule_of_ranks)
    else:
        return None
    extra: dict[str, Any] = {}
    if options.held_batches is not None:
        extra["held_batches"] = options.held_batches
    if options.cut == "inputs":
        extra["metric"] = "inputs"
    if options.max_loss_increase is not None:
        extra["problem"] = held_loss(adapter, options, documents, collate)
    return DMRGCallback(
        adapter,
        ranks,
        mode=options.dmrg_mode,
        state=options.state,
        gauge=options.gauge,
        seed=options.seed,
        **extra,
    )


def held_loss(
    adapter: TTAdapter, options: FinetuneOptions, documents: list[Features], collate: Any
) -> Callable[[], Tensor]:
    """The mean loss on a few batches of training data, without dropout.

    Args:
        adapter: The adapter on its model.
        options: Options of the run.
        documents: Tokenized training documents; the first of them are used.
        collate: Pads features to a batch.

    Returns:
        A closure that returns the loss.
    """
    model: nn.Module = adapter.__dict__["model"]
    size = 2 * options.batch_size
    chosen = documents[: HELD_BATCHES * options.batch_size]
    batches = [collate(chosen[start : start + size]) for start in range(0, len(chosen), size)]

    def loss() -> Tensor:
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        try:
            losses = [
                model(**{name: value.to(device) for name, value in batch.items()}).loss for batch in batches
            ]
        finally:
            model.train(training)
        return torch.stack(losses).mean()

    return loss


def sweep_reports(callback: DMRGCallback | None) -> dict[int, Record]:
    """What the sweeps of this process did.

    Args:
        callback: The callback, if there is one.

    Returns:
        Report as plain data, by completed epochs.
    """
    reports = [] if callback is None else callback.reports
    return {report.epoch: report.as_dict() for report in reports if report.epoch is not None}
