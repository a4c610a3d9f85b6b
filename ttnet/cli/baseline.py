"""The classifier alone on the frozen model: features once, then the head on them; a floor for adapters."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from ttnet.cli.data import Features
from ttnet.cli.metrics import score
from ttnet.cli.options import FinetuneOptions
from ttnet.cli.tasks import Task

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates among which the dev split chooses; the steps are those of the adapter's run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadResult:
    """What the classifier alone reaches.

    Args:
        dev: Metric by name on the dev split.
        test: Metric by name on the test split, none where it has no labels.
        lr: The learning rate that the dev split chose.
        parameters: Parameters of the head.
    """

    dev: dict[str, float]
    test: dict[str, float]
    lr: float
    parameters: int


class HeadBaseline:
    """Train the head on cached features of the model as it stands.

    Args:
        model: The model, without an adapter or with one whose dW is 0; it is not changed.
        head: Name of its head.
        collate: Pads features to a batch.
        options: Epochs, batch size, schedule, seed and dtype of the run.
    """

    def __init__(self, model: nn.Module, head: str, collate: Any, options: FinetuneOptions) -> None:
        """Copy the untrained head."""
        self.model = model
        self.module = model.get_submodule(head)
        self.initial = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.collate = collate
        self.options = options

    def supported(self, sample: Sequence[Features]) -> bool:
        """Whether the head's output is a function of the features that are kept.

        Args:
            sample: A few documents.

        Returns:
            False for heads that read a position which is chosen later, as those of decoders do.
        """
        features, outputs = next(self._features(sample))
        with torch.no_grad():
            again = _apply(self.module, features)
        # Features are kept as the head saw them, so that reduced precision is the only difference.
        return again.shape == outputs.shape and bool(torch.allclose(again, outputs, atol=2e-2, rtol=2e-2))

    def run(self, task: Task, splits: dict[str, list[Features]]) -> HeadResult:
        """Train the head at every learning rate and keep the best on the dev split.

        Args:
            task: Its metrics, and whether it is a regression.
            splits: Tokenized documents of train, dev and, where it is labeled, test.

        Returns:
            The scores.
        """
        cached = {split: self._cache(documents) for split, documents in splits.items()}
        results: list[HeadResult] = []
        for rate in RATES:
            self._fit(*cached["train"], rate, task.space.regression)
            scores = {split: self._score(task, *data) for split, data in cached.items() if split != "train"}
            count = sum(parameter.numel() for parameter in self.module.parameters())
            results.append(
                HeadResult(dev=scores["dev"], test=scores.get("test", {}), lr=rate, parameters=count)
            )
            self.module.load_state_dict(self.initial)
        return max(results, key=lambda result: result.dev[task.metrics[0]])

    @torch.no_grad()
    def _features(self, documents: Sequence[Features]) -> Iterator[tuple[Tensor, Tensor]]:
        """What enters the head and what leaves the model, batch by batch, longest documents first."""
        seen: list[Tensor] = []
        handle = self.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        reduced = self.options.dtype == "bf16"
        try:
            for start in range(0, len(documents), 64):
                batch = self.collate(
                    [{k: v for k, v in row.items() if k != "labels"} for row in documents[start : start + 64]]
                )
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced):
                    outputs = self.model(**{name: value.to(device) for name, value in batch.items()}).logits
                inputs = seen.pop().float()
                # Heads of encoders read the first position.
                yield (inputs[:, :1] if inputs.ndim == 3 else inputs), outputs.float()
        finally:
            handle.remove()
            self.model.train(training)

    def _cache(self, documents: list[Features]) -> tuple[Tensor, Tensor]:
        order = sorted(range(len(documents)), key=lambda position: -len(documents[position]["input_ids"]))
        features = torch.cat(
            [inputs for inputs, _ in self._features([documents[position] for position in order])]
        )
        labels = torch.tensor([documents[position]["labels"] for position in order], device=features.device)
        return features, labels

    def _fit(self, features: Tensor, labels: Tensor, rate: float, regression: bool) -> None:
        generator = torch.Generator().manual_seed(self.options.seed)
        size = self.options.batch_size * self.options.gradient_accumulation
        steps = self.options.epochs * -(-len(labels) // size)
        parameters = list(self.module.parameters())
        before = [parameter.requires_grad for parameter in parameters]
        self.module.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=self.options.weight_decay)
        warmup = round(self.options.warmup_ratio * steps)
        schedule = get_scheduler(self.options.schedule, optimizer, warmup, steps)
        for _ in range(self.options.epochs):
            for chosen in torch.randperm(len(labels), generator=generator).split(size):
                outputs = _apply(self.module, features[chosen])
                if regression:
                    loss = nn.functional.mse_loss(outputs[:, 0], labels[chosen].to(outputs))
                else:
                    loss = nn.functional.cross_entropy(outputs, labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm or float("inf"))
                optimizer.step()
                schedule.step()
        for parameter, trained in zip(parameters, before, strict=True):
            parameter.requires_grad_(trained)
            parameter.grad = None

    @torch.no_grad()
    def _score(self, task: Task, features: Tensor, labels: Tensor) -> dict[str, float]:
        return score(task.metrics, _apply(self.module, features).cpu().numpy(), labels.cpu().numpy())


def _apply(head: nn.Module, features: Tensor) -> Tensor:
    """Outputs (documents, classes) of the head without its dropout."""
    training = head.training
    head.eval()
    outputs = head(features)
    head.train(training)
    return outputs[:, 0] if outputs.ndim == 3 else outputs
