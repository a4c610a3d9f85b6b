"""More of what peft tests in its own methods: mixed batches, fresh processes, whole models."""

import copy
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

import ttnet.interop.peft as bridge
from tests.adapters.models import TOKENS, bert, llama
from tests.interop.peft_models import config, cores, loss_of, randomize, run, wrapped
from ttnet import Truncation
from ttnet.adapters import MetaTT
from ttnet.errors import ConfigError, StateError
from ttnet.interop.peft import MetaTTConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


def two_adapters(base, **options):
    model = wrapped(base, config(**options))
    model.add_adapter("other", config(**options | {"rank": 2}))
    randomize(model, "other", 7)
    return model.eval()


def test_the_name_of_the_config_is_that_of_the_method() -> None:
    assert bridge.MetaTTPeftConfig is MetaTTConfig
    assert get_peft_model(bert(), MetaTTConfig(rank=4)).peft_config["default"].peft_type == "METATT"


def test_each_sample_of_a_batch_names_its_adapter() -> None:
    model = two_adapters(bert())
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = run(model)
    with model.disable_adapter():
        expected["__base__"] = run(model)
    model.set_adapter("default")
    names = ["other", "__base__", "default"]
    with torch.no_grad():
        mixed = model(input_ids=TOKENS, adapter_names=names).logits
    wanted = torch.stack([expected[name][k] for k, name in enumerate(names)])
    torch.testing.assert_close(mixed, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed, expected["default"], atol=1e-3)
    assert torch.equal(run(model), expected["default"])


@pytest.mark.parametrize("beams", [1, 2])
def test_each_prompt_of_a_generation_names_its_adapter(beams: int) -> None:
    model = two_adapters(llama(), target_modules="all-linear", task_type="CAUSAL_LM")
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "num_beams": beams,
        "attention_mask": torch.ones_like(TOKENS),
    }
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = model.generate(input_ids=TOKENS, **options)
    names = ["default", "other", "default"]
    mixed = model.generate(input_ids=TOKENS, adapter_names=names, **options)
    assert torch.equal(mixed, torch.stack([expected[name][k] for k, name in enumerate(names)]))


def test_mixed_batches_that_cannot_be_are_refused() -> None:
    model = two_adapters(bert())
    with pytest.raises(ConfigError, match="adapter_names: expected one of"):
        model(input_ids=TOKENS, adapter_names=["nobody"] * 3)
    with pytest.raises(ValueError, match="adapter_names: got 2 names for a batch of 3"):
        model(input_ids=TOKENS, adapter_names=["default", "other"])
    with pytest.raises(StateError, match=r"model\.eval"):
        model.train()(input_ids=TOKENS, adapter_names=["default"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(StateError, match="unmerge_adapter"):
        model(input_ids=TOKENS, adapter_names=["default"] * 3)
    model.unmerge_adapter()
    run(model)


def test_what_one_train_cannot_do_in_peft_is_refused() -> None:
    options = MetaTT("4+1d", rank=3, tasks=["rte", "mrpc"], target_modules=["query", "value"])
    model = get_peft_model(bert(), MetaTTConfig.from_options(options))
    for method in (model.add_task, model.train_only):
        with pytest.raises(StateError, match=r"ttnet\.adapters\.attach"):
            method("qnli")
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


def test_the_error_of_a_cut_in_each_matrix() -> None:
    model = wrapped(bert(), config(rank=4))
    before = cores(model).tensor_train()
    errors = cores(model).matrix_errors(before, before.truncate(Truncation(max_rank=2)))
    assert set(errors) == set(cores(model).layout.modules)
    assert 0.01 < max(errors.values()) < 1
    assert max(cores(model).matrix_errors(before, before).values()) < 1e-6


def test_a_fresh_process_needs_one_import(tmp_path: Path) -> None:
    base = bert()
    base.save_pretrained(tmp_path / "base")
    model = wrapped(base, config())
    expected = run(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(expected, tmp_path / "expected.pt")
    program = f"""
import torch, transformers, peft, ttnet.interop.peft
base = transformers.AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "base")!r})
model = peft.PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
with torch.no_grad():
    found = model(input_ids=torch.tensor({TOKENS.tolist()})).logits
torch.testing.assert_close(found, torch.load({str(tmp_path / "expected.pt")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_whole_model_is_pickled(tmp_path: Path) -> None:
    model = wrapped(bert(), config())
    expected = run(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(run(loaded), expected)
    loss_of(loaded).backward()
    assert all(core.grad is not None for core in cores(loaded).parameters())


def test_a_trainer_loads_the_best_of_its_checkpoints(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [{"input_ids": row, "labels": row[0] % 3} for row in torch.randint(1, 40, (8, 6))]
    base = bert()
    model = get_peft_model(copy.deepcopy(base), config(rank=4, task_type="SEQ_CLS"))
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=0.5,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, args, train_dataset=data, eval_dataset=data)  # pyright: ignore[reportArgumentType]
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert torch.equal(run(PeftModel.from_pretrained(base, best)), run(trainer.model.eval()))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_the_extra_of_the_package_is_the_range_that_is_checked() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extra = tomllib.loads(text)["project"]["optional-dependencies"]["peft"]
    first, last = (".".join(map(str, limit)) for limit in bridge.SUPPORTED)
    assert f"peft>={first},<{last}" in extra
    assert re.fullmatch(r"0\.21\..*", peft.__version__)


# The traps that have no test of their own elsewhere --------------------------------------------------------


def test_trap_1_and_10_each_core_is_registered_and_saved_once(tmp_path: Path) -> None:
    model = wrapped(llama(), config(target_modules="all-linear"))
    ours = [name for name in model.state_dict() if "core_" in name]
    assert len(ours) == cores(model).num_cores
    model.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 4 * sum(core.numel() for core in cores(model).parameters()) + 1000


def test_trap_2_names_have_one_level_behind_the_adapter() -> None:
    names = [name for name, _ in wrapped(bert(), config()).named_parameters() if "core_" in name]
    assert names == [f"base_model.metatt_cores.default.core_{k}" for k in range(4)]


def test_trap_3_a_copy_begins_its_own_forward_pass() -> None:
    model = wrapped(bert(), config())
    twin = copy.deepcopy(model)
    (hook,) = (h for h in twin.get_base_model()._forward_pre_hooks.values())
    assert hook.__self__ is twin.base_model


def test_trap_9_a_compiled_model_computes_the_same() -> None:
    model = wrapped(bert(), config())
    expected = run(model)
    layer = model.get_base_model().get_submodule("bert.encoder.layer.1.attention.self.query")
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(4, 32)
    torch.testing.assert_close(compiled(x), layer(x))
    assert torch.equal(run(model), expected)
