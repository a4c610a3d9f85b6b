"""Each mistake ends with exit code 2, one message that names option and remedy, and nothing written."""

import pytest

GOOD = {"--rank": "2", "--epochs": "1", "--max-length": "16"}


@pytest.fixture
def fail(ttnet, tiny_bert, data_dir, tmp_path):
    """Run with one thing wrong and return the message on stderr, as one line."""

    def call(**changes):
        options = {
            "--model": tiny_bert,
            "--task": "praise",
            "--data-dir": data_dir,
            "--output": tmp_path / "out",
        }
        options |= GOOD | {"--" + name.replace("_", "-"): value for name, value in changes.items()}
        words = [part for name, value in options.items() if value is not None for part in (name, value)]
        code, _, errors = ttnet("finetune", *words)
        assert code == 2, errors
        assert "Traceback" not in errors
        assert not (tmp_path / "out").exists()
        return " ".join(errors.split())

    return call


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"target_modules": "quary"}, ["--target-modules", "'quary'", "did you mean", "query"]),
        ({"target_modules": "layer[9]"}, ["--target-modules", "regular expression"]),
        ({"rank": "0"}, ["--rank", "at least 1"]),
        ({"rank": "x"}, ["--rank 'x'", "whole number"]),
        ({"rank": "2/99/2"}, ["rank", "99"]),
        ({"rank": "2/2"}, ["rank", "3 bonds"]),
        ({"ranks": "0:12,2", "rank": None}, ["--ranks '0:12,2'", "'2'", "0:12,2:8,4:6"]),
        ({"cut": "inputs"}, ["--cut inputs", "nothing is swept", "--ranks"]),
        ({"dmrg_mode": "two-site"}, ["--dmrg-mode two-site", "nothing is swept"]),
        (
            {"cut": "inputs", "max_error": "0.1", "axes": "in1 in2 layer matrix out"},
            ["--cut inputs", "factorizes 'in'", "cut it plainly"],
        ),
        ({"axes": "in layer matrx out"}, ["'matrx'", "did you mean 'matrix'"]),
        ({"axes": "in layer layer out"}, ["'layer'", "in layer layer out"]),
        ({"axes": "6d"}, ["'6d'", "4d"]),
        ({"axes": "in1 in2 layer out"}, ["factors", "in1 in2 layer out"]),
        ({"init": "zero-one-zero-one"}, ["init", "identity"]),
        ({"task": "prais"}, ["--task 'prais'", "did you mean praise"]),
        ({"task": "mrcp", "data_dir": None}, ["--task 'mrcp' is unknown", "mrpc"]),
        ({"text_columns": "sentence9"}, ["--text-columns", "'sentence9'", "sentence1"]),
        ({"label_column": "y"}, ["--label-column y", "sentence1"]),
        ({"model": "/no/such/model"}, ["--model /no/such/model", "no such directory"]),
        ({"model": "not-a-model-here"}, ["--model not-a-model-here", "minilm"]),
        ({"max_length": "64"}, ["--max-length 64", "32"]),
        ({"metric": "rouge"}, ["--metric 'rouge'", "accuracy"]),
        ({"method": "dora"}, ["--method 'dora'", "lora"]),
        ({"lr": "-1"}, ["--lr -1"]),
        ({"data_dir": "/no/such/data"}, ["--data-dir /no/such/data"]),
        ({"train_file": "a.jsonl", "data_dir": None}, ["a.jsonl", "no such file"]),
        ({"model": None}, ["--model"]),
        ({"epochs": "two"}, ["--epochs", "integer"]),
    ],
)
def test_bad_input_is_named(fail, changes, parts):
    errors = fail(**changes)
    assert all(part in errors for part in parts), errors


def test_a_damaged_weight_file_of_the_model(fail, tiny_bert, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(tiny_bert, copy)
    (copy / "model.safetensors").write_bytes(b"no tensors")
    assert "--model" in fail(model=copy)


def test_an_output_in_use_is_left_alone(ttnet, tiny_bert, data_dir, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    words = (
        "finetune",
        "--model",
        tiny_bert,
        "--task",
        "praise",
        "--data-dir",
        data_dir,
        "--output",
        tmp_path,
    )
    code, _, errors = ttnet(*words)
    assert code == 2
    assert "is not empty" in " ".join(errors.split())
    assert "--overwrite" in errors
    code, _, errors = ttnet(*words, "--resume")
    assert code == 2
    assert "holds no run" in " ".join(errors.split())
    assert (tmp_path / "kept.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (None, None, ["adapter_config.json"]),
        ("adapter_config.json", "{", ["adapter_config.json", "JSON"]),
        ("adapter_config.json", '{"peft_type": "LORA"}', ["expected an adapter written by ttnet", "LORA"]),
    ],
)
def test_inspect_refuses_what_is_no_adapter(ttnet, tmp_path, name, content, parts):
    if name:
        (tmp_path / name).write_text(content)
    code, _, errors = ttnet("inspect", tmp_path)
    assert code == 2
    assert all(part in errors for part in parts), errors
    assert "Traceback" not in errors


def test_inspect_refuses_damaged_weights(ttnet, tmp_path):
    from torch import nn

    from ttnet.adapters import MetaTT, attach

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    attach(model, MetaTT("4d", rank=2, target_modules="all-linear")).save(tmp_path)
    assert ttnet("inspect", tmp_path)[0] == 0
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    code, _, errors = ttnet("inspect", tmp_path)
    assert code == 2
    assert "adapter_model.safetensors" in errors
