"""`ttnet export` and `ttnet compress`: what they write, what they show, and that bad input leaves nothing."""

import json

import pytest
import torch
from torch import nn

from ttnet.adapters import MetaTT, attach, read
from ttnet.interop.lora import read_lora, to_lora


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)) for _ in range(3)))
    adapter = attach(model, MetaTT("4d", rank=4, target_modules="all-linear"))
    with torch.no_grad():
        for core in adapter.cores.core_parameters():
            core.normal_()
    return adapter


@pytest.fixture
def saved(adapter, tmp_path):
    adapter.save(tmp_path / "tt")
    return tmp_path / "tt"


@pytest.fixture
def lora(adapter, tmp_path):
    to_lora(adapter, tmp_path / "lora")
    return tmp_path / "lora"


def line(text):
    return " ".join(text.split())


def test_export(ttnet, saved, adapter, tmp_path):
    code, shown, errors = ttnet("export", saved, "--to", "lora", "--out", tmp_path / "out")
    assert code == 0, errors
    found = read_lora(tmp_path / "out")
    for name, (a, b) in found.factors.items():
        torch.testing.assert_close((b @ a).T, adapter.delta(name))
    assert "*.0" in shown
    assert f"{adapter.num_parameters:,}" in shown
    assert "written to" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_export_to_a_rank(ttnet, saved, tmp_path):
    code, shown, _ = ttnet("export", saved, "--out", tmp_path / "out", "--max-lora-rank", 2)
    assert code == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    assert "largest: " in shown


def test_export_of_one_task(ttnet, tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8)))
    attach(model, MetaTT("4+1d", rank=2, target_modules="all-linear", tasks=["a", "b"])).save(tmp_path / "tt")
    code, _, errors = ttnet("export", tmp_path / "tt", "--out", tmp_path / "out")
    assert code != 0
    assert "task" in errors
    assert not (tmp_path / "out").exists()
    code, _, errors = ttnet("export", tmp_path / "tt", "--out", tmp_path / "out", "--select", "task=a")
    assert code == 0, errors


def test_compress(ttnet, lora, adapter, tmp_path):
    code, shown, errors = ttnet("compress", lora, "--out", tmp_path / "out", "--rank", 4)
    assert code == 0, errors
    assert read(tmp_path / "out").train.ranks == adapter.tensor_train().ranks
    assert "times fewer parameters" in shown
    assert "4/4/4" in shown
    assert ttnet("inspect", tmp_path / "out")[0] == 0


def test_compress_to_an_accuracy(ttnet, lora, tmp_path):
    code, _, errors = ttnet("compress", lora, "--out", tmp_path / "a", "--rtol", "0.5", "--sweeps", 0)
    assert code == 0, errors
    assert max(read(tmp_path / "a").train.ranks) < 4
    code, _, errors = ttnet(
        "compress", lora, "--out", tmp_path / "b", "--rank", 1, "--max-error", "0.01", "--sweeps", 0
    )
    assert code == 2
    assert "max_error" in errors
    assert not (tmp_path / "b").exists()


def test_compress_several(ttnet, lora, tmp_path):
    words = ("compress", f"rte={lora}", f"mrpc={lora}", "--out", tmp_path / "out", "--rank", 4)
    code, shown, errors = ttnet(*words)
    assert code == 0, errors
    layout = read(tmp_path / "out").layout
    assert layout.pattern.text == "in layer task matrix out"
    assert {axis.name: axis.labels for axis in layout.axes}["task"] == ("rte", "mrpc")
    assert "rte/" in shown


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("export", "tt", "--to", "gguf"), ["--to 'gguf'", "lora"]),
        (("export", "lora"), ["expected an adapter written by ttnet", "LORA"]),
        (("export", "nothing"), ["adapter_config.json"]),
        (("export", "tt", "--max-lora-rank", "0"), ["max_lora_rank", "at least 1"]),
        (("export", "tt", "--dtype", "int4"), ["dtype", "bfloat16"]),
        (("export", "tt", "--select", "task"), ["--select 'task'", "task=rte"]),
        (("export", "tt", "--select", "task=rte"), ["'task'"]),
        (("compress", "tt"), ["adapter of ttnet"]),
        (("compress", "nothing"), ["adapter_config.json"]),
        (("compress", "lora", "--rank", "x"), ["--rank 'x'"]),
        (("compress", "lora", "--rtol", "-1"), ["rtol"]),
        (("compress", "lora", "--pattern", "in layer matrx out"), ["'matrx'", "'matrix'"]),
        (("compress", "lora", "--pattern", "5d"), ["head_dim"]),
        (("compress", "lora", "--exclude-modules", "0,1"), ["exclude_modules"]),
        (("compress", "lora", "rte=lora"), ["name all tasks"]),
        (("compress", "lora", "lora"), ["given twice"]),
    ],
)
def test_bad_input_leaves_nothing(ttnet, saved, lora, tmp_path, monkeypatch, words, parts):
    del saved, lora
    monkeypatch.chdir(tmp_path)
    code, _, errors = ttnet(*words, "--out", tmp_path / "out")
    assert code == 2, errors
    assert all(part in line(errors) for part in parts), errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export", "compress"])
def test_an_output_in_use_is_left_alone(ttnet, saved, lora, tmp_path, command):
    source = saved if command == "export" else lora
    target = tmp_path / "used"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    code, _, errors = ttnet(command, source, "--out", target)
    assert code == 2
    assert "--overwrite" in errors
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    assert ttnet(command, source, "--out", target, "--overwrite")[0] == 0
    assert (target / "mine.txt").read_text() == "kept"


def test_an_adapter_is_not_replaced_by_its_own_export(ttnet, saved):
    code, _, errors = ttnet("export", saved, "--out", saved, "--overwrite")
    assert code == 2
    assert "same names" in line(errors)
    read(saved)


@pytest.mark.parametrize("command", ["export", "compress"])
def test_help(ttnet, command):
    code, shown, _ = ttnet(command, "--help")
    assert code == 0
    assert "LoRA" in shown


def tasked(directory, labels):
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8)))
    attach(model, MetaTT("4+1d", rank=2, target_modules="all-linear", tasks=labels)).save(directory)


def test_a_task_is_selected_by_the_text_of_its_label(ttnet, tmp_path):
    tasked(tmp_path / "tt", [10, 11])
    words = ("export", tmp_path / "tt", "--out", tmp_path / "out")
    code, _, errors = ttnet(*words)
    assert code == 2
    assert "--select task=10" in line(errors)
    code, _, errors = ttnet(*words, "--select", "task=10", "--select", "task=11")
    assert code == 2
    assert "given twice" in line(errors)
    assert not (tmp_path / "out").exists()
    code, _, errors = ttnet(*words, "--select", "task=11")
    assert code == 0, errors


def test_compress_does_not_replace_its_source(ttnet, lora):
    before = {path.name: path.read_bytes() for path in lora.iterdir()}
    code, _, errors = ttnet("compress", lora, "--out", lora, "--overwrite")
    assert code == 2
    assert "peft adapter of type LORA" in line(errors)
    assert {path.name: path.read_bytes() for path in lora.iterdir()} == before


def test_export_replaces_a_lora_when_told(ttnet, saved, lora):
    assert ttnet("export", saved, "--out", lora)[0] == 2
    (lora / "adapter_config.json").write_text("{")
    assert ttnet("export", saved, "--out", lora, "--overwrite")[0] == 0
    read_lora(lora)


def test_compress_of_the_working_directory(ttnet, lora, tmp_path, monkeypatch):
    monkeypatch.chdir(lora)
    code, _, errors = ttnet("compress", ".", "--pattern", "4+1d", "--out", tmp_path / "out")
    assert code == 0, errors
    assert {axis.name: axis.labels for axis in read(tmp_path / "out").layout.axes}["task"] == ("lora",)


def test_brackets_are_shown_as_they_are(ttnet, tmp_path):
    tasked(tmp_path / "a[b]", ["[bold]", "[/x]"])
    code, shown, errors = ttnet("inspect", tmp_path / "a[b]")
    assert code == 0, errors
    assert "a[b]" in shown
    assert "[bold], [/x]" in shown


def test_inspect_of_a_run_without_a_train(ttnet, tmp_path):
    (tmp_path / "result.json").write_text('{"method": "lora"}')
    code, _, errors = ttnet("inspect", tmp_path)
    assert code == 2
    assert "--method lora" in line(errors)


@pytest.mark.parametrize(("command", "resumes"), [("finetune", True), ("export", False)])
def test_an_interruption_mentions_resume_where_it_is_one(command, resumes):
    from ttnet.cli.errors import message

    assert ("--resume" in message(KeyboardInterrupt(), resumable=resumes)) == (command == "finetune")
