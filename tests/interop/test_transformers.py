"""Sweeps inside a real Trainer on a tiny random BERT: ranks, checkpoints, resuming, the best model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from ttnet import Truncation
from ttnet.adapters import MetaTT, TTAdapter, TTAdapterConfig, attach, input_moments, load
from ttnet.errors import ConfigError, NonFiniteError
from ttnet.interop.held_batches import train_batches
from ttnet.interop.transformers import DMRGCallback, DMRGTrainer
from ttnet.optim import AdaptiveRanks, BatchLoss, TwoSiteOptions

RANKS = {0: 6, 1: 4, 2: 3}
SWEEP_OPTIONS = ("state", "mode", "gauge", "two_site", "held_batches", "metric")
SAMPLES, BATCH, EPOCHS = 24, 4, 3  # 6 steps an epoch


def bert() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        initializer_range=0.2,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


def samples() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 40, (SAMPLES, 8), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": (row[0] > row[1]).long()}
        for row in tokens
    ]


def adapted(rank: int = 6) -> tuple[torch.nn.Module, TTAdapter]:
    model = bert()
    return model, attach(model, MetaTT("4d", rank=rank, alpha=4.0, target_modules=["query", "value"]))


def trainer(
    directory: Path,
    *,
    ranks: Any = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    problem: Any = None,
    **options: Any,
) -> DMRGTrainer:
    sweeps = {name: options.pop(name) for name in SWEEP_OPTIONS if name in options}
    compute_metrics = options.pop("compute_metrics", None)
    arguments = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 5e-3,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    model, adapter = adapted()
    return DMRGTrainer(
        model,
        TrainingArguments(str(directory), **arguments | options),
        train_dataset=samples(),
        eval_dataset=samples()[:8],
        compute_metrics=compute_metrics,
        callbacks=[DMRGCallback(adapter, ranks or RANKS, problem=problem, **sweeps), *callbacks],
    )


def final(job: DMRGTrainer) -> list[Tensor]:
    cores = [core.detach().clone() for core in job.adapter.cores.core_parameters()]
    return [*cores, job.model.classifier.weight.detach().clone()]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def callback_of(job: DMRGTrainer) -> DMRGCallback:
    return next(c for c in job.callback_handler.callbacks if isinstance(c, DMRGCallback))


class Ranks(TrainerCallback):
    """Notes the ranks at the end of each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):  # noqa: ARG002
        self.seen.append(model.tt_adapter.cores.ranks[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[DMRGTrainer, Path, list[int]]:
    """One uninterrupted training with a checkpoint every three steps."""
    directory = tmp_path_factory.mktemp("whole")
    ranks = Ranks()
    job = trainer(directory, callbacks=(ranks,))
    job.train()
    return job, directory, ranks.seen


def test_ranks_follow_the_schedule(whole):
    job, _, seen = whole
    assert seen == [6] * 6 + [4] * 6 + [3] * 6
    reports = callback_of(job).reports
    # The structural bond of two matrices allows all of these ranks; both ends are wider still.
    assert [(r.epoch, r.ranks_after) for r in reports] == [(1, (4, 4, 4)), (2, (3, 3, 3))]
    assert set(reports[0].matrix_errors) == {site.name for site in job.adapter.layout.sites}
    assert all(0 < error < 1 for report in reports for error in report.matrix_errors.values())
    assert reports[0].max_error == max(reports[0].matrix_errors.values())
    assert any(bool(core.any()) for core in job.adapter.cores.core_parameters()[:1])


def test_checkpoints_hold_the_adapter_alone_at_ranks_of_their_own(whole):
    _, directory, _ = whole
    found = {}
    for checkpoint in directory.glob("checkpoint-*"):
        names = {path.name for path in checkpoint.iterdir()}
        assert {
            "adapter_config.json",
            "adapter_model.safetensors",
            "trainer_state.json",
            "optimizer.pt",
        } <= names
        assert not names & {"model.safetensors", "pytorch_model.bin"}
        weights = (checkpoint / "adapter_model.safetensors").stat().st_size
        assert weights < 4 * 3000
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        found[step] = load(bert(), checkpoint).cores.ranks[1:-1]
    sixes, fours, threes = (6, 6, 6), (4, 4, 4), (3, 3, 3)
    assert found == {3: sixes, 6: sixes, 9: fours, 12: fours, 15: threes, 18: threes}


def test_a_checkpoint_holds_the_position_in_the_schedule(whole):
    _, directory, _ = whole
    state = json.loads((directory / "checkpoint-9" / "trainer_state.json").read_text())
    stored = state["stateful_callbacks"]["DMRGCallback"]["attributes"]
    assert (stored["epoch"], stored["last_cut"]) == (1, 1)


@pytest.mark.parametrize("step", [3, 6, 9, 12, 15])
def test_resuming_gives_the_bits_of_the_uninterrupted_training(whole, tmp_path, step):
    """Steps 6 and 12 end an epoch, before the sweep that opens the next; the others are within one."""
    job, directory, seen = whole
    ranks = Ranks()
    resumed = trainer(tmp_path, callbacks=(ranks,))
    resumed.train(resume_from_checkpoint=str(directory / f"checkpoint-{step}"))
    assert ranks.seen == seen[step:]
    assert same_bits(final(job), final(resumed))


@pytest.mark.parametrize("options", [{"state": "reset", "mode": "paper"}, {"gauge": "balanced"}])
def test_resuming_in_other_modes(tmp_path, options):
    job = trainer(tmp_path / "whole", save_steps=9, **options)
    job.train()
    resumed = trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-9"))
    assert same_bits(final(job), final(resumed))


def test_the_best_model_is_the_best_at_the_final_ranks(tmp_path):
    scores = iter([0.9, 0.8, 0.3, 0.6, 0.5])

    def metric(_) -> dict[str, float]:
        return {"score": next(scores)}

    job = trainer(
        tmp_path,
        num_train_epochs=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        compute_metrics=metric,
    )
    job.train()
    assert job.state.best_metric == 0.6
    assert job.state.best_model_checkpoint == str(tmp_path / "checkpoint-24")
    best = load(bert(), tmp_path / "checkpoint-24").cores.core_parameters()
    assert job.adapter.cores.ranks[1:-1] == (3, 3, 3)
    assert same_bits(final(job)[:-1], [core.detach() for core in best])
    last = load(bert(), tmp_path / "checkpoint-30").cores.core_parameters()
    assert not same_bits(final(job)[:-1], [core.detach() for core in last])


class Break(TrainerCallback):
    """Makes the loss NaN from a step on."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):  # noqa: ARG002
        if state.global_step == 7:
            with torch.no_grad():
                model.classifier.bias.fill_(math.nan)


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    job = trainer(tmp_path, callbacks=(Break(),))
    with pytest.raises(NonFiniteError, match="loss: expected a finite number, got nan at step 8"):
        job.train()
    assert all(bool(torch.isfinite(core).all()) for core in job.adapter.cores.core_parameters())
    assert not (tmp_path / "checkpoint-9").exists()


def test_adaptive_ranks_with_a_problem(tmp_path):
    batch = {key: torch.stack([sample[key] for sample in samples()[:8]]) for key in samples()[0]}
    box: list[DMRGTrainer] = []

    def problem() -> Tensor:
        return box[0].model(**batch).loss

    ranks = AdaptiveRanks(max_loss_increase=0.5, max_cut=1)
    box.append(trainer(tmp_path, ranks=ranks, problem=problem, save_strategy="no"))
    box[0].train()
    reports = callback_of(box[0]).reports
    assert reports
    assert all(r.loss_after <= r.loss_before * 1.5 + 1e-9 for r in reports)
    assert box[0].adapter.cores.ranks[1:-1] == reports[-1].ranks_after


def test_a_bare_train_in_an_ordinary_trainer(tmp_path):
    model, adapter = adapted()
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = DMRGCallback(adapter.cores, {0: 6, 1: [3, 4, 2]})
    Trainer(model, arguments, train_dataset=samples(), callbacks=[callback]).train()
    assert adapter.cores.ranks[1:-1] == (3, 4, 2)
    assert callback.reports[0].matrix_errors == {}


def test_a_model_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model: expected a model with an attached adapter"):
        DMRGTrainer(bert(), TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))


def test_gradient_accumulation_and_clipping_go_with_sweeps(tmp_path):
    job = trainer(tmp_path, gradient_accumulation_steps=4, max_grad_norm=0.1, save_strategy="no")
    job.train()
    assert [r.ranks_after for r in callback_of(job).reports] == [(4, 4, 4), (3, 3, 3)]


# Sweeps that optimize --------------------------------------------------------------------------------------

TWO_SITE = {
    "mode": "two-site",
    "two_site": TwoSiteOptions(solver="lbfgs", local_steps=2),
    "held_batches": 3,
}


class Modes(TrainerCallback):
    """Notes the mode of the model at each forward pass of a sweep."""

    def __init__(self) -> None:
        self.training: set[bool] = set()
        self.sizes: set[int] = set()

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):  # noqa: ARG002
        if state.epoch == 0:
            model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):  # noqa: ARG002
        if module.tt_adapter.cores._substitute is not None:
            self.training.add(module.training)
            self.sizes.add(len(kwargs["input_ids"]))


def test_a_two_site_sweep_holds_training_batches_by_itself(tmp_path):
    modes, ranks = Modes(), Ranks()
    job = trainer(tmp_path, ranks={0: 6, 2: 4}, callbacks=(modes, ranks), **TWO_SITE)
    job.train()
    (report,) = callback_of(job).reports
    assert report.loss_after < report.loss_before
    assert ranks.seen == [6] * 12 + [4] * 6
    assert modes.training == {False}
    assert modes.sizes == {BATCH}
    assert job.model.training


def test_resuming_a_two_site_training(tmp_path):
    options = {"ranks": {0: 6, 1: 4}, "num_train_epochs": 2, **TWO_SITE}
    job = trainer(tmp_path / "whole", save_steps=6, **options)
    job.train()
    assert callback_of(job).reports
    resumed = trainer(tmp_path / "resumed", **options)
    # The epoch has ended, the sweep that opens the next comes after resuming.
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert callback_of(resumed).reports[0].loss_after == callback_of(job).reports[0].loss_after
    assert same_bits(final(job), final(resumed))


def test_a_two_site_sweep_on_a_problem_of_the_users(tmp_path):
    batch = {key: torch.stack([sample[key] for sample in samples()[:8]]) for key in samples()[0]}
    box: list[DMRGTrainer] = []
    options = {name: value for name, value in TWO_SITE.items() if name != "held_batches"}
    problem = BatchLoss(lambda rows: box[0].model(**{k: v[rows] for k, v in batch.items()}).loss,
                        [slice(0, 4), slice(4, 8)], hold=2)  # fmt: skip
    box.append(trainer(tmp_path, ranks={0: 6, 1: 5}, problem=problem, num_train_epochs=2, **options))
    box[0].train()
    (report,) = callback_of(box[0]).reports
    assert report.loss_after < report.loss_before


def test_a_dataset_without_length_needs_a_problem():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(samples())

    arguments = TrainingArguments("unused", report_to=[], use_cpu=True)
    with pytest.raises(ConfigError, match="problem: expected a loss"):
        next(train_batches(torch.utils.data.DataLoader(Endless()), arguments))
    with pytest.raises(ConfigError, match=r"metric: expected matrices.*lambda: input_moments"):
        next(train_batches(torch.utils.data.DataLoader(Endless()), arguments, "metric"))


# Cuts that know the inputs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> tuple[DMRGTrainer, Path]:
    """One uninterrupted training whose cuts know the inputs."""
    directory = tmp_path_factory.mktemp("informed")
    job = trainer(directory, ranks={0: 6, 1: 2}, num_train_epochs=2, metric="inputs", held_batches=6)
    job.train()
    return job, directory


def test_cuts_by_the_inputs_keep_what_the_model_computes(informed, tmp_path):
    """The first sweep starts from the same train in both jobs: the weighted cut is better in its own norm."""
    job, directory = informed
    plain = trainer(tmp_path, ranks={0: 6, 1: 2}, num_train_epochs=2)
    plain.train()
    reports = callback_of(job).reports[0], callback_of(plain).reports[0]
    assert [report.norm for report in reports] == ["metric", "frobenius"]
    assert [report.ranks_after for report in reports] == [(2, 2, 2)] * 2
    assert set(reports[0].matrix_errors) == {site.name for site in job.adapter.layout.sites}
    assert not same_bits(final(job), final(plain))
    model = bert()
    adapter = load(model, directory / "checkpoint-6")
    batch = {key: torch.stack([sample[key] for sample in samples()]) for key in samples()[0]}
    metric = input_moments(adapter, [batch], lambda rows: model.eval()(**rows))
    # The callback held 6 batches of 4 documents: all of the data, in an order of its own.
    expected = adapter.tensor_train().truncate(Truncation(max_rank=2), metric=metric, return_report=True)[1]
    assert reports[0].relative_error == pytest.approx(expected.relative_error, rel=1e-3)
    assert reports[1].relative_error != pytest.approx(expected.relative_error, rel=1e-2)
    assert job.model.training
    assert not any(module._forward_pre_hooks for name, module in job.model.named_modules() if "query" in name)


@pytest.mark.parametrize("step", [3, 6, 9])
def test_resuming_a_training_with_cuts_by_the_inputs(informed, tmp_path, step):
    job, directory = informed
    options = {"ranks": {0: 6, 1: 2}, "num_train_epochs": 2, "metric": "inputs", "held_batches": 6}
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(directory / f"checkpoint-{step}"))
    assert same_bits(final(job), final(resumed))


def test_a_metric_of_the_users(tmp_path):
    calls: list[int] = []

    def metric() -> list[Tensor | None]:
        calls.append(1)
        return [torch.diag(torch.logspace(0, -2, 32)), None, None, None]

    job = trainer(tmp_path, ranks={0: 6, 1: 3}, num_train_epochs=2, save_strategy="no", metric=metric)
    job.train()
    assert calls == [1]
    assert callback_of(job).reports[0].norm == "metric"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metric": "outputs"}, "metric: expected 'inputs', a matrix or None for each mode"),
        ({"metric": "inputs", "mode": "paper"}, "metric: expected None, since mode 'paper'"),
        ({"metric": "inputs", "mode": "two-site"}, "metric: expected None, since mode 'two-site'"),
        ({"metric": "inputs", "held_batches": 0}, "held_batches: expected at least 1, got 0"),
        ({"gauge": "left"}, "gauge: expected one of"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_training(options, text):
    with pytest.raises(ConfigError, match=text):
        DMRGCallback(adapted()[1], RANKS, **options)


def test_inputs_need_an_adapter_with_an_axis_of_them():
    with pytest.raises(ConfigError, match=r"metric: 'inputs' needs the adapter.*got AdapterCores"):
        DMRGCallback(adapted()[1].cores, RANKS, metric="inputs")
    pattern = TTAdapterConfig(pattern="in1 in2 layer matrix out", rank=2, factors={"in": (4, 8)})
    with pytest.raises(ConfigError, match="factorizes 'in'"):
        DMRGCallback(attach(bert(), pattern), RANKS, metric="inputs")
