"""What a sweeping callback in a Trainer refuses, and what it warns of."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ttnet.adapters import MetaTT, attach
from ttnet.errors import ConfigError
from ttnet.interop.transformers import DMRGCallback


class Model(nn.Module):
    """Two matrices, and outputs as they are told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(self.second(self.first(x).tanh()))


class Summing(Trainer):
    """Has a loss of its own."""

    def compute_loss(self, model, inputs, *args, **kwargs):  # noqa: ARG002
        outputs = model(**inputs)
        while not isinstance(outputs, torch.Tensor):
            outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
        return outputs.square().mean()


def job(
    tmp_path, answer=lambda y: {"loss": y.square().mean()}, callbacks=(DMRGCallback,), ranks=None, **sweeps
):
    torch.manual_seed(0)
    model = Model(answer)
    adapter = attach(model, MetaTT("in matrix out", rank=3, target_modules=["first", "second"]))
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    data = [{"x": torch.randn(6)} for _ in range(8)]
    made = [kind(adapter, ranks or {0: 3, 1: 2}, **sweeps) for kind in callbacks]
    return adapter, Summing(model, arguments, train_dataset=data, callbacks=made)


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: {"logits": y},
        lambda y: (y,),
        lambda y: [y],
        lambda y: y,
        lambda y: {"logits": y, "loss": None},
    ],
)
def test_a_two_site_sweep_needs_a_loss(answer, tmp_path):
    _, trainer = job(tmp_path, answer, mode="two-site")
    with pytest.raises(ConfigError, match=r"problem: expected a loss, since Model returns none"):
        trainer.train()


@pytest.mark.parametrize("answer", [lambda y: (y.square().mean(), y), lambda y: {"loss": y.square().mean()}])
def test_a_two_site_sweep_finds_the_loss(answer, tmp_path):
    adapter, trainer = job(tmp_path, answer, mode="two-site")
    trainer.train()
    assert adapter.cores.ranks == (1, 2, 2, 1)


def test_a_sweep_that_no_epoch_reaches_is_told(tmp_path):
    adapter, trainer = job(tmp_path, ranks={0: 3, 1: 2, 2: 1})
    with pytest.warns(UserWarning, match="no sweep happens after 2 completed epochs, for the training has 2"):
        trainer.train()
    assert adapter.cores.ranks == (1, 2, 2, 1)


class SecondCallback(DMRGCallback):
    """The same under another name."""


def test_two_callbacks_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"the Trainer has 2.*class SecondCallback"):
        job(tmp_path, callbacks=(DMRGCallback, DMRGCallback))[1].train()
    job(tmp_path, callbacks=(DMRGCallback, SecondCallback))[1].train()
