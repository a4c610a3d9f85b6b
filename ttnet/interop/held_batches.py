"""Training batches for the sweeps of a Trainer, drawn beside its own dataloader, which they leave alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ttnet.errors import ConfigError


def train_batches(
    loader: DataLoader[Any], args: TrainingArguments, argument: Literal["problem", "metric"] = "problem"
) -> Iterator[Any]:
    """Batches of a dataloader's data in a random order of their own, without end.

    The loader itself is not iterated, since Trainer and accelerate count what it has given.

    Args:
        loader: The dataloader; its dataset, its collate function and nothing else are used.
        args: Arguments of the Trainer: batch size and device.
        argument: What needs the batches, for messages.

    Yields:
        Collated batches, on the device.

    Raises:
        ConfigError: The dataset has no length.
    """
    dataset: Any = loader.dataset
    count = len(dataset) if hasattr(dataset, "__len__") else 0
    if not count:
        wishes = {
            "problem": ("a loss", "BatchLoss(loss, batches)"),
            "metric": ("matrices", "lambda: input_moments(adapter, batches, run)"),
        }
        wish, remedy = wishes[argument]
        raise ConfigError(
            f"{argument}: expected {wish}, since batches cannot be drawn from a training dataset without a "
            f"length; pass DMRGCallback(..., {argument}={remedy})"
        )
    size = min(args.per_device_train_batch_size, count)
    while True:
        order = torch.randperm(count).tolist()
        for start in range(0, len(order) - size + 1, size):
            batch = loader.collate_fn([dataset[k] for k in order[start : start + size]])
            yield _to_device(batch, args.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module's own mode comes back afterwards.

    Args:
        model: The model.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict) or hasattr(batch, "items"):
        return {name: _to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch
