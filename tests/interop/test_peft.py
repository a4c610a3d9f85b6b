"""peft's own generic cases, run on MetaTT inside peft, and what one train shared by layers must not break."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from tests.adapters.models import bert
from tests.interop.peft_models import CASES, build, config, cores, loss_of, randomize, run, wrapped
from ttnet.adapters import Axis, Split, TTAdapterConfig, attach
from ttnet.errors import ConfigError, DTypeError
from ttnet.interop.peft import METHOD, MetaTTConfig
from ttnet.interop.peft._versions import check_version
from ttnet.interop.transformers import DMRGCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, MetaTTConfig]:
    """A base model and a config for it."""
    return build(request.param)


# What a tuner of peft is tested for ------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_a_disabled_one_is_the_base_to_the_bit(case) -> None:
    base, options = case
    twin = copy.deepcopy(base)
    if options.init is None:
        assert torch.equal(run(wrapped(copy.deepcopy(base), copy.deepcopy(options), seed=None)), run(twin))
    model = wrapped(base, options)
    changed = run(model)
    assert not torch.allclose(changed, run(twin), atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(run(model), run(twin))
    assert torch.equal(run(model), changed)


def test_outputs_are_those_of_an_attached_adapter_with_the_same_cores(case) -> None:
    base, options = case
    twin = copy.deepcopy(base)
    attached = attach(twin, TTAdapterConfig.from_dict({**options.options.to_dict(), "modules_to_save": []}))
    model = wrapped(base, options)
    attached.cores.assign(cores(model).tensor_train())
    assert torch.equal(run(model), run(twin))
    loss_of(model).backward()
    loss_of(twin).backward()
    for ours, theirs in zip(cores(model).parameters(), attached.cores.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_merged_model_computes_the_same_and_unmerging_restores_every_bit(case) -> None:
    base, options = case
    before = copy.deepcopy(base.state_dict())
    model = wrapped(base, options)
    expected = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(run(model), expected)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    model.merge_adapter()
    with model.disable_adapter():
        run(model)  # which unmerges
    unloaded = model.unload()
    assert type(unloaded).__name__ == type(base).__name__
    assert all(torch.equal(value, before[name]) for name, value in unloaded.state_dict().items())
    assert not unloaded._forward_pre_hooks


def test_merge_and_unload_leaves_a_plain_model_with_the_same_outputs(case) -> None:
    base, options = case
    names = set(base.state_dict())
    model = wrapped(base, options)
    expected = run(model)
    plain = model.merge_and_unload(safe_merge=True)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(run(plain), expected, atol=1e-4, rtol=1e-4)


def test_what_is_saved_loads_with_the_same_bits_and_holds_each_core_once(case, tmp_path: Path) -> None:
    base, options = case
    twin = copy.deepcopy(base)
    model = wrapped(base, options)
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == {f"base_model.metatt_cores.core_{k}" for k in range(cores(model).num_cores)}
    for low in (False, True):
        loaded = PeftModel.from_pretrained(copy.deepcopy(twin), tmp_path, low_cpu_mem_usage=low)
        state = get_peft_model_state_dict(loaded)
        assert all(torch.equal(state[name], value) for name, value in saved.items())
        assert state.keys() == saved.keys()
        assert torch.equal(run(loaded), run(model))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert not any(parameter.is_meta for parameter in loaded.parameters())
    trained = PeftModel.from_pretrained(twin, tmp_path, is_trainable=True)
    assert all(core.requires_grad for core in cores(trained).parameters())


def test_training_lowers_the_loss_and_moves_nothing_but_the_cores(case) -> None:
    base, options = case
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = wrapped(base, options, seed=None).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in cores(model).parameters()}
    first = loss_of(model.eval()).item()
    for _ in range(8):
        loss_of(model.train()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(model.eval()).item() < 0.95 * first
    after = model.unload().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_copy_has_cores_hooks_and_factors_of_its_own(case) -> None:
    base, options = case
    model = wrapped(base, options)
    expected = run(model)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin), expected)
    randomize(twin, "default", 6)
    assert not torch.allclose(run(twin), expected, atol=1e-3)
    assert torch.equal(run(model), expected)
    loss_of(twin).backward()
    assert all(core.grad is None for core in cores(model).parameters())
    assert all(core.grad is not None for core in cores(twin).parameters())


# Several adapters ------------------------------------------------------------------------------------------


def test_several_adapters_are_set_and_deleted_and_keep_out_of_each_others_way(tmp_path: Path) -> None:
    base = bert()
    twin = copy.deepcopy(base)
    model = wrapped(base, config())
    first = run(model)
    model.add_adapter("other", config(rank=2, target_modules=["query", "output.dense"]))
    randomize(model, "other", 7)
    assert torch.equal(run(model), first)
    assert not any(core.requires_grad for core in cores(model, "other").parameters())
    assert all(core.requires_grad for core in cores(model).parameters())
    model.set_adapter("other")
    second = run(model)
    assert not torch.allclose(second, first, atol=1e-3)
    assert not any(core.requires_grad for core in cores(model).parameters())
    assert all(core.requires_grad for core in cores(model, "other").parameters())
    assert {s.name: s.available_adapters for s in model.get_layer_status()}[
        "model.bert.encoder.layer.0.attention.self.query"
    ] == ["default", "other"]

    model.save_pretrained(tmp_path)
    for name, expected in (("default", first), ("other", second)):
        place = tmp_path if name == "default" else tmp_path / name
        assert torch.equal(run(PeftModel.from_pretrained(copy.deepcopy(twin), place)), expected)
    loaded = PeftModel.from_pretrained(twin, tmp_path)
    loaded.load_adapter(tmp_path / "other", "again")
    loaded.set_adapter("again")
    assert torch.equal(run(loaded), second)

    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("other")
    assert torch.equal(run(model), first)
    assert list(model.base_model.metatt_cores) == ["default"]
    assert not any("other" in name for name in model.state_dict())


def test_two_active_adapters_add_up_merged_and_unmerged() -> None:
    model = wrapped(bert(), config())
    model.add_adapter("other", config(rank=2, target_modules=["query", "output.dense"]))
    randomize(model, "other", 7)
    name = "bert.encoder.layer.1.attention.self.query"
    layer = model.get_base_model().get_submodule(name)
    x = torch.randn(4, 32)
    change = layer.get_delta_weight("default") + layer.get_delta_weight("other")
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ change.T)
    expected = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(run(model), expected)


def test_the_merge_of_one_adapter_keeps_the_others() -> None:
    model = wrapped(bert(), config())
    model.add_adapter("other", config())
    randomize(model, "other", 7)
    model.set_adapter("other")
    expected = run(model)
    model.set_adapter("default")
    plain = model.merge_and_unload(adapter_names=["other"])
    torch.testing.assert_close(run(plain), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_cannot_be_added_leaves_the_model_as_it_was() -> None:
    model = wrapped(bert(), config())
    expected, names = run(model), set(model.state_dict())
    for options, error in (
        ({"target_modules": ["nothing"]}, "no module is called 'nothing'"),
        ({"pattern": "5d", "head_dim": 7}, "head_dim: 7"),
    ):
        with pytest.raises(ValueError, match=error):
            model.add_adapter("other", config(**options))
        assert set(model.state_dict()) == names
        assert list(model.peft_config) == ["default"]
    assert torch.equal(run(model), expected)
    assert all(core.requires_grad for core in cores(model).parameters())


def test_adding_an_adapter_keeps_what_is_trained() -> None:
    model = wrapped(bert(), config())
    model.set_requires_grad("default", False)
    model.add_adapter("other", config())
    assert not any(core.requires_grad for core in cores(model).parameters())


# With a classifier, in a Trainer ---------------------------------------------------------------------------


def test_the_classifier_is_trained_and_saved(tmp_path: Path) -> None:
    base = bert()
    twin = copy.deepcopy(base)
    model = get_peft_model(base, config(target_modules="all-linear", task_type="SEQ_CLS"))
    names = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"default", "classifier"}
    assert "classifier" not in cores(model).layout.modules
    assert model.get_nb_trainable_parameters()[0] == cores_size(model) + 33 * 3
    model.print_trainable_parameters()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        loss_of(model).backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    expected = run(model.eval())
    assert torch.equal(run(PeftModel.from_pretrained(copy.deepcopy(twin), tmp_path)), expected)
    model.add_adapter("second", config(task_type="SEQ_CLS"))
    assert torch.equal(run(model), expected)
    with model.disable_adapter():
        assert torch.equal(run(model), run(twin))


def cores_size(model: nn.Module) -> int:
    return sum(core.numel() for core in cores(model).parameters())


def test_a_trainer_sweeps_saves_and_resumes(tmp_path: Path) -> None:
    data = [{"input_ids": row, "labels": row[0] % 3} for row in torch.randint(1, 40, (8, 6))]
    base = bert()

    def trainer(epochs: int) -> transformers.Trainer:
        model = get_peft_model(copy.deepcopy(base), config(rank=4, task_type="SEQ_CLS"))
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=epochs,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            save_strategy="epoch",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        callback = DMRGCallback(cores(model), {0: 4, 1: 2})
        return transformers.Trainer(model, args, train_dataset=data, callbacks=[callback])  # pyright: ignore[reportArgumentType]

    whole = trainer(2)
    whole.train()
    assert cores(whole.model).ranks == (1, 2, 2, 2, 1)
    resumed = trainer(2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(run(resumed.model.eval()), run(whole.model.eval()))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "checkpoint-2")
    assert torch.equal(run(loaded), run(whole.model))


# Configs, names, versions ----------------------------------------------------------------------------------


def test_the_config_has_every_option_of_an_adapter_and_the_same_defaults() -> None:
    ours = {field.name: getattr(MetaTTConfig(), field.name) for field in fields(MetaTTConfig)}
    assert TTAdapterConfig().to_dict() == {name: ours[name] for name in TTAdapterConfig().to_dict()}


@pytest.mark.parametrize(
    "options",
    [
        {"axes": [Axis("expert", size=3)], "pattern": "in layer expert matrix out", "rank": [2, 3, 3, 2]},
        {"split": {"c_attn": Split(parts=("q", "k", "v"))}, "init": "ze-id-no-id", "dtype": torch.float64},
        {
            "pattern": "in1 in2 layer matrix out",
            "factors": {"in": [(4, 8), (6, 8)]},
            "bond_ranks": [2, 2, 2, 2],
        },
        {"layers_pattern": "layers", "layers_to_transform": 1, "exclude_modules": {"a"}, "frozen": "in"},
    ],
)
def test_a_config_comes_back_from_its_file(tmp_path: Path, options: dict[str, Any]) -> None:
    written = MetaTTConfig(task_type="CAUSAL_LM", **options)
    written.save_pretrained(str(tmp_path))
    for cls in (MetaTTConfig, peft.PeftConfig):
        read = cls.from_pretrained(str(tmp_path))
        assert read == written
        assert read.options == written.options
    assert read.peft_type is METHOD


def test_targets_that_were_found_take_the_place_of_none_and_all_linear() -> None:
    for targets, count in ((None, 4), ("all-linear", 12)):
        model = get_peft_model(bert(), config(target_modules=targets))
        found = sorted(cores(model).layout.modules)
        assert len(found) == count
        assert sorted(model.targeted_module_names) == found
        again = get_peft_model(bert(), config(target_modules=model.peft_config["default"].target_modules))
        assert sorted(cores(again).layout.modules) == found
    model = get_peft_model(
        bert(), config(target_modules="all-linear", exclude_modules=["intermediate.dense"])
    )
    assert len(cores(model).layout.modules) == 10


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="heads_by"):
        MetaTTConfig(heads_by="task")
    with pytest.raises(ConfigError, match="alpha"):
        MetaTTConfig(alpha=float("nan"))
    with pytest.raises(ValueError, match="get_peft_model"):
        peft.inject_adapter_in_model(config(), bert())
    with pytest.raises(ValueError, match="different peft types"):
        wrapped(bert(), config()).add_adapter("other", peft.LoraConfig(target_modules=["query"]))
    model = wrapped(bert(), config())
    with torch.no_grad():
        cores(model).core_1.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert not model.get_model_status().merged_adapters
    layer = model.get_base_model().get_submodule("bert.encoder.layer.1.attention.self.query")
    layer.base_layer.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DTypeError, match="dequantize"):
        layer.merge()


def test_a_status_names_the_method() -> None:
    status = wrapped(bert(), config()).get_model_status()
    assert status.peft_types == {"default": "METATT"}
    assert status.num_adapter_layers == 4
    assert status.requires_grad == {"default": True}


def test_without_the_import_peft_does_not_know_the_method(tmp_path: Path, monkeypatch) -> None:
    wrapped(bert(), config()).save_pretrained(tmp_path)
    monkeypatch.delitem(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, METHOD)
    with pytest.raises(KeyError, match="METATT"):
        PeftModel.from_pretrained(bert(), tmp_path)


@pytest.mark.parametrize("version", ["0.20.9", "0.22.0", "0.22.0.dev0", "1.0", None])
def test_other_versions_of_peft_are_refused(version: str | None) -> None:
    with pytest.raises(ImportError, match=r"peft>=0\.21,<0\.22"):
        check_version(version)
    check_version("0.21.0")
