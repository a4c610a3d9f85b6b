"""`ttnet finetune` from the command line to the files it leaves, on a tiny random BERT."""

import json

import pytest
import torch

from tests.cli.samples import write_jsonl

FAST = ("--epochs", 2, "--batch-size", 8, "--max-length", 16, "--lr", "2e-2", "--threads", 1)


@pytest.fixture
def finetune(ttnet, tiny_bert, data_dir, tmp_path):
    """Fine-tune on the task `praise`: output directory, exit code, stdout, stderr."""

    def call(*words, output="out", task="praise", model=tiny_bert):
        base = (
            "finetune",
            "--model",
            model,
            "--task",
            task,
            "--data-dir",
            data_dir,
            "--output",
            tmp_path / output,
        )
        return (tmp_path / output, *ttnet(*base, *FAST, *words))

    return call


def records(output):
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def test_a_run_with_a_sweep_leaves_everything(finetune, ttnet):
    output, code, printed, errors = finetune("--ranks", "0:4,1:2", "--head-lr", "1e-2")
    assert code == 0, errors
    result = json.loads((output / "result.json").read_text())
    history = records(output)
    assert [max(record["ranks"]) for record in history] == [4, 2]
    assert history[0]["sweep"] is None
    assert history[1]["sweep"]["ranks_after"] == [2, 2, 2]
    assert len(history[1]["spectra"]) == 3
    assert (output / "ranks.png").stat().st_size > 1000
    assert result["test_accuracy"] == result["test"]["accuracy"]
    assert result["dev_accuracy"] == history[1]["dev"]["accuracy"]
    assert result["ranks"] == history[1]["ranks"]
    assert result["adapter_parameters"] == 16 * 2 + 2 * (2 + 2) * 2 + 16 * 2
    assert result["head_parameters"] == 16 * 2 + 2
    assert result["seed"] == 0
    assert result["sweeps"] == {"mode": "truncate", "cut": "plain"}
    assert {"python", "torch", "transformers", "ttnet"} <= set(result["versions"])
    assert "epoch 1/2" in printed
    assert "swept 4" in printed
    assert "in layer matrix out" in printed
    assert "tensor train" in printed

    code, shown, _ = ttnet("inspect", output)
    assert code == 0
    assert "in layer matrix out" in shown
    code, shown, _ = ttnet("inspect", output / "adapter", "--json")
    found = json.loads(shown)
    assert found["ranks"] == [1, 2, 2, 2, 1]
    assert found["parameters"] == result["adapter_parameters"]
    assert found["lora_parameters"] == 2 * 2 * 2 * (16 + 16)
    assert [bond["between"] for bond in found["bonds"]] == ["in|layer", "layer|matrix", "matrix|out"]


def test_the_saved_adapter_is_the_best_checkpoint(finetune, tiny_bert):
    from transformers import AutoModelForSequenceClassification

    from ttnet.adapters import load

    output, code, _, errors = finetune("--ranks", "0:3,1:2")
    assert code == 0, errors
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    adapter = load(model, output / "adapter")
    assert max(adapter.cores.ranks) == 2
    best = json.loads((output / "result.json").read_text())["best_step"]
    assert best in [record["step"] for record in records(output)]


@pytest.mark.parametrize("method", ["lora", "classifier"])
def test_rivals_run_on_the_same_terms(finetune, method):
    output, code, _, errors = finetune("--method", method, *(("--rank", 2) if method == "lora" else ()))
    assert code == 0, errors
    result = json.loads((output / "result.json").read_text())
    assert result["adapter_parameters"] == (2 * 2 * 2 * (16 + 16) if method == "lora" else 0)
    assert result["head_parameters"] == 16 * 2 + 2
    checkpoints = sorted((output / "checkpoints").glob("*/trained.safetensors"))
    assert checkpoints
    assert checkpoints[0].stat().st_size < 10_000


def test_the_classifier_alone_is_compared(finetune):
    output, code, printed, errors = finetune("--compare-classifier", "--rank", 2)
    assert code == 0, errors
    alone = json.loads((output / "result.json").read_text())["classifier_alone"]
    assert 0 <= alone["test"]["accuracy"] <= 1
    assert alone["parameters"] == 16 * 2 + 2
    assert "classifier alone" in printed
    plain, code, _, _ = finetune("--rank", 2, output="plain")
    assert code == 0
    same = [json.loads((folder / "result.json").read_text())["dev"] for folder in (output, plain)]
    assert same[0] == same[1]


def test_a_regression_is_scored_by_correlations(finetune, data_dir):
    for split, count in (("train", 24), ("dev", 8)):
        rows = [
            {
                "sentence1": "good film" if n % 2 else "bad film",
                "sentence2": "the book",
                "label": 2.5 * (n % 2),
            }
            for n in range(count)
        ]
        write_jsonl(data_dir / "stsb" / f"{split}.jsonl", rows)
    output, code, _, errors = finetune("--rank", 2, task="stsb")
    assert code == 0, errors
    result = json.loads((output / "result.json").read_text())
    assert result["metric"] == "pearson"
    assert set(result["dev"]) == {"pearson", "spearman"}
    assert result["test"] is None


@pytest.mark.parametrize(
    "options", [("--max-parameters", 60), ("--max-loss-increase", 0.5), ("--max-error", 0.9)]
)
def test_ranks_adapt(finetune, options):
    output, code, _, errors = finetune("--rank", 4, *options)
    assert code == 0, errors
    history = records(output)
    assert sum(history[1]["ranks"]) < sum(history[0]["ranks"])


def test_bf16_on_the_cpu_and_five_axes(finetune):
    output, code, _, errors = finetune("--dtype", "bf16", "--axes", "5d", "--rank", 2, "--dmrg-mode", "paper")
    assert code == 0, errors
    assert json.loads((output / "result.json").read_text())["pattern"] == "in layer matrix head out"


@pytest.mark.parametrize("ranks", [("--ranks", "0:4,1:2"), ("--rank", 4, "--max-error", 0.9)])
def test_cuts_know_the_inputs(finetune, ranks):
    output, code, printed, errors = finetune(*ranks, "--cut", "inputs", "--held-batches", 2)
    assert code == 0, errors
    result = json.loads((output / "result.json").read_text())
    assert result["sweeps"] == {"mode": "truncate", "cut": "inputs"}
    assert result["options"]["held_batches"] == 2
    history = records(output)
    assert history[1]["sweep"]["norm"] == "metric"
    assert sum(history[1]["ranks"]) < sum(history[0]["ranks"])
    assert "relative error of x dW" in printed
    assert "sweeps truncate, cut inputs" in printed
    plain, code, printed, errors = finetune(*ranks, output="plain")
    assert code == 0, errors
    assert json.loads((plain / "result.json").read_text())["sweeps"]["cut"] == "plain"
    # The same train was cut, in another norm.
    assert records(plain)[0]["dev_loss"] == history[0]["dev_loss"]
    assert records(plain)[1]["sweep"]["norm"] == "frobenius"
    assert records(plain)[1]["sweep"]["relative_error"] != history[1]["sweep"]["relative_error"]
    assert "relative error of x dW" not in printed


def test_sweeps_that_optimize(finetune):
    options = ("--ranks", "0:3,1:2", "--dmrg-mode", "two-site", "--held-batches", 2)
    output, code, printed, errors = finetune(*options)
    assert code == 0, errors
    result = json.loads((output / "result.json").read_text())
    assert result["sweeps"] == {"mode": "two-site", "cut": None}
    sweep = records(output)[1]["sweep"]
    assert sweep["ranks_after"] == [2, 2, 2]
    assert sweep["loss_after"] <= sweep["loss_before"]
    assert "optimized, loss" in printed


@pytest.mark.parametrize("options", [("--cut", "inputs"), ("--dmrg-mode", "two-site")])
def test_a_sweep_on_training_data_resumes_to_the_same_bits(finetune, monkeypatch, options):
    options = (*options, "--ranks", "0:3,1:2", "--held-batches", 2)
    whole, code, _, errors = finetune(*options, output="whole")
    assert code == 0, errors

    from ttnet.cli.training import CheckedTraining

    step = CheckedTraining.training_step

    def dying(self, *args):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return step(self, *args)

    # The checkpoint at the end of the first epoch is older than the sweep.
    monkeypatch.setattr(CheckedTraining, "training_step", dying)
    broken, code, _, _ = finetune(*options, output="broken")
    assert code == 130
    monkeypatch.undo()
    _, code, printed, errors = finetune(*options, "--resume", output="broken")
    assert code == 0, errors
    assert "checkpoint-6" in " ".join(printed.split())
    name = "adapter/adapter_model.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_a_killed_run_resumes_to_the_same_bits(finetune, monkeypatch):
    options = ("--ranks", "0:3,1:2", "--save-steps", 4)
    whole, code, _, errors = finetune(*options, output="whole")
    assert code == 0, errors

    from ttnet.cli.training import CheckedTraining

    step = CheckedTraining.training_step

    def dying(self, *args):
        if self.state.global_step == 9:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(CheckedTraining, "training_step", dying)
    broken, code, _, errors = finetune(*options, output="broken")
    assert code == 130
    assert "--resume" in errors
    monkeypatch.undo()
    # A checkpoint that was being written when the run died is passed over.
    (broken / "checkpoints" / "checkpoint-9").mkdir()
    _, code, _, errors = finetune(*options, "--lr", "1e-3", "--resume", output="broken")
    assert code == 2
    assert "--lr was 0.02, is 0.001" in errors
    _, code, printed, errors = finetune(*options, "--resume", output="broken")
    assert code == 0, errors
    assert "checkpoint-8" in " ".join(printed.split())
    name = "adapter/adapter_model.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert [record["dev"] for record in records(broken)] == [record["dev"] for record in records(whole)]
    _, code, printed, _ = finetune(*options, "--resume", output="broken")
    assert code == 0
    assert "complete already" in printed


def test_a_loss_that_is_not_finite_stops_the_run(finetune, monkeypatch):
    from ttnet.cli.training import CheckedTraining

    loss = CheckedTraining.compute_loss

    def spoiled(self, *args, **kwargs):
        value = loss(self, *args, **kwargs)
        return value * torch.nan if self.state.global_step == 8 and self.model.training else value

    monkeypatch.setattr(CheckedTraining, "compute_loss", spoiled)
    output, code, _, errors = finetune("--rank", 2)
    assert code == 1
    assert "the training loss is nan after 8 steps" in errors
    assert "checkpoint-6" in "".join(errors.split())
    assert "--lr" in errors
    assert "Traceback" not in errors
    assert not (output / "result.json").exists()


def test_quiet_prints_nothing(finetune):
    _, code, printed, errors = finetune("--rank", 2, "--quiet")
    assert (code, printed, errors) == (0, "", "")


def test_a_size_that_was_not_reached_is_told(finetune):
    _, code, printed, errors = finetune("--rank", 4, "--max-parameters", 10, "--max-cut", 1)
    assert code == 0, errors
    assert "more than --max-parameters 10" in " ".join(printed.split())
