"""Options are refused where they enter, with the option and a remedy in the message."""

import json

import pytest

from ttnet.cli.options import FinetuneOptions, check_same, parse_names, parse_rank, parse_ranks
from ttnet.errors import ConfigError, FormatError, RankError


def options(**changes):
    return FinetuneOptions(**({"model": "minilm", "output": "out", "task": "rte"} | changes))


def test_ranks_are_read_in_order():
    assert parse_ranks("0:12, 2:8,4:6") == {0: 12, 2: 8, 4: 6}
    assert parse_ranks("0:12/8/12,1:4") == {0: (12, 8, 12), 1: 4}
    assert parse_rank(" 8 ") == 8


@pytest.mark.parametrize("text", ["0:12,2", "12", "", "0:12,", "a:3", "0:", "-1:3"])
def test_malformed_ranks_say_what_is_expected(text):
    with pytest.raises(ConfigError, match=r"--ranks .*expected EPOCHS:RANK pairs like 0:12,2:8,4:6"):
        parse_ranks(text)


def test_epochs_of_ranks_increase():
    with pytest.raises(ConfigError, match="epochs must increase, 2 does not"):
        parse_ranks("0:12,3:8,2:4")


@pytest.mark.parametrize("text", ["0", "-3", "8/0/8"])
def test_a_rank_is_at_least_one(text):
    with pytest.raises(RankError, match="at least 1"):
        parse_rank(text)
    with pytest.raises(RankError, match=r"--ranks .*at least 1"):
        parse_ranks(f"0:{text}")


def test_a_rank_is_a_whole_number():
    with pytest.raises(RankError, match=r"--rank '8\.5'"):
        parse_rank("8.5")


def test_names():
    assert parse_names("a, b,") == ("a", "b")
    assert parse_names(None) is None


def test_the_starting_rank_comes_from_key_zero_or_rank():
    assert options(ranks={0: 12, 2: 8}).starting_rank == 12
    assert options(ranks={2: 8}, rank=10).schedule_of_ranks == {0: 10, 2: 8}
    assert options().starting_rank == 8


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "full"}, "--method 'full' is unknown; choose from tt, lora, classifier"),
        ({"dmrg_mode": "two"}, "--dmrg-mode 'two'"),
        ({"gauge": "left"}, "--gauge 'left'"),
        ({"dtype": "float16"}, "--dtype 'float16'"),
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"alpha": 0.0}, "--alpha 0.0"),
        ({"warmup_ratio": 1.0}, "--warmup-ratio"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"task": None}, "no data named"),
        ({"task": None, "data_dir": "d"}, "--data-dir needs --task|no data named"),
        ({"data_dir": "d", "train_file": "f"}, "exclude each other"),
        ({"dev_file": "f"}, "need --train-file"),
        ({"full": True, "train_samples": 5}, "--full and --train-samples"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
        ({"ranks": {0: 8, 3: 4}}, "--ranks sweeps after 3 completed epochs, but --epochs 3"),
        ({"ranks": {1: 8}}, "begin with 0:RANK, or give --rank"),
        ({"ranks": {0: 8}, "rank": 4}, "disagree"),
        ({"ranks": {0: 8}, "max_parameters": 9}, "exclude each other"),
        ({"ranks": {0: 8}, "method": "lora"}, "need --method tt"),
        ({"rank": (4, 4, 4), "method": "lora"}, "one whole number"),
        ({"dmrg_mode": "paper", "gauge": "nearest"}, "leave --gauge out"),
        ({"cut": "outputs"}, "--cut 'outputs' is unknown; choose from plain, inputs"),
        ({"cut": "inputs"}, "--cut inputs: nothing is swept, since the rank stays; give --ranks"),
        ({"dmrg_mode": "two-site"}, "--dmrg-mode two-site: nothing is swept"),
        ({"cut": "inputs", "method": "lora"}, "--cut inputs needs --method tt, got --method lora"),
        ({"dmrg_mode": "two-site", "method": "classifier"}, "--dmrg-mode two-site needs --method tt"),
        ({"cut": "inputs", "ranks": {0: 8, 1: 4}, "dmrg_mode": "paper"}, "use --dmrg-mode truncate"),
        ({"cut": "inputs", "max_parameters": 9, "dmrg_mode": "two-site"}, "use --dmrg-mode truncate"),
        ({"held_batches": 2, "ranks": {0: 8, 1: 4}}, "--held-batches: no sweep looks at training data"),
        ({"held_batches": 0, "ranks": {0: 8, 1: 4}, "cut": "inputs"}, "--held-batches 0"),
    ],
)
def test_bad_options_are_named(changes, text):
    with pytest.raises((ConfigError, RankError), match=text):
        options(**changes)


def test_a_resumed_run_keeps_its_options(tmp_path):
    stored = tmp_path / "options.json"
    stored.write_text(json.dumps(options(ranks={0: 4, 1: 2}).to_json()))
    check_same(options(ranks={0: 4, 1: 2}, resume=True, threads=3), stored)
    with pytest.raises(ConfigError, match="--cut was 'plain', is 'inputs'"):
        check_same(options(ranks={0: 4, 1: 2}, cut="inputs"), stored)
    with pytest.raises(ConfigError, match=r"--lr was None, is 0\.1"):
        check_same(options(ranks={0: 4, 1: 2}, lr=0.1), stored)
    early = options(ranks={0: 4, 1: 2}).to_json()
    del early["cut"], early["held_batches"]
    stored.write_text(json.dumps(early))
    check_same(options(ranks={0: 4, 1: 2}), stored)
    stored.write_text("{")
    with pytest.raises(FormatError, match="--overwrite"):
        check_same(options(), stored)


def test_auto_becomes_a_dtype_of_this_machine(tmp_path):
    from ttnet.cli.training import resolve_dtype

    options = FinetuneOptions(model="m", output=str(tmp_path), task="sst2", dtype="auto")
    assert resolve_dtype(options).dtype in ("bf16", "float32")
    exact = FinetuneOptions(model="m", output=str(tmp_path), task="sst2", dtype="fp16")
    assert resolve_dtype(exact) is exact
