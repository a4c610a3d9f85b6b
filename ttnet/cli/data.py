"""From texts to batches: tokenize once, group by length, pad each batch to its longest document."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from ttnet.cli.tasks import Split

Features = dict[str, Any]
POOL = 8
"""Batches from which documents of like length are put together: more save padding, fewer mix better."""


def tokenize(split: Split, tokenizer: Any, max_length: int) -> list[Features]:
    """Token ids of every document, unpadded.

    Args:
        split: Documents with one or two texts.
        tokenizer: A tokenizer of transformers.
        max_length: Tokens kept of a document; of a pair the longer text is cut first.

    Returns:
        For each document the model's inputs, and `labels` where there are any.
    """
    first = [texts[0] for texts in split.texts]
    pairs = any(len(texts) > 1 for texts in split.texts)
    second = [texts[1] if len(texts) > 1 else "" for texts in split.texts] if pairs else None
    encoded = tokenizer(first, second, truncation=True, max_length=max_length)
    features: list[Features] = [
        {name: values[position] for name, values in encoded.items()} for position in range(len(split))
    ]
    if split.labels is not None:
        for row, label in zip(features, split.labels, strict=True):
            row["labels"] = label
    return features


class LengthGroupedSampler(Sampler[int]):
    """Random order in which neighbors have like lengths; a function of seed and epoch alone.

    Documents are shuffled, sorted by length within pools of some batches, and the batches shuffled. Resuming
    in the middle of an epoch finds the same order, which a sampler on the global random state does not give.

    Args:
        lengths: Tokens of each document.
        batch_size: Documents of a batch, over all devices.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Order epoch 0 until `set_epoch` is called."""
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next.

        Args:
            epoch: Completed epochs.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Positions of the documents in the order of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[torch.Tensor] = []
        for pool in order.split(POOL * self.batch_size):
            batches += pool[self.lengths[pool].argsort(descending=True, stable=True)].split(self.batch_size)
        # A short batch must stay last, or every later batch would straddle two groups.
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        shuffled = [whole[position] for position in torch.randperm(len(whole), generator=generator).tolist()]
        for batch in [*shuffled, *rest]:
            yield from batch.tolist()
