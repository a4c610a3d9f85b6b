import json

import peft
import pytest
import torch

from tests.adapters.models import FAMILIES, TOKENS, logits, randomize
from tests.interop.loras import build, check_peft, fitted, neox, t5, vit, with_peft
from ttnet import Truncation
from ttnet.adapters import Axis, MetaTT, attach, read
from ttnet.errors import ConfigError, NonFiniteError, PatternError, RankError
from ttnet.interop.lora import from_delta, read_lora, to_lora

# peft asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LAYOUTS = ("5d", "in (layer matrix) out", "in matrix layer out", "layer in matrix out")


@pytest.mark.parametrize(
    ("family", "variant"),
    [(family, "4d") for family in FAMILIES]
    + [(f, variant) for f in ("gpt2", "llama") for variant in LAYOUTS],
)
def test_peft_loads_what_is_exported(family, variant, tmp_path):
    model, adapter = fitted(family, variant, "all-linear", rank=4)
    report = to_lora(adapter, tmp_path)
    assert max(report.errors.values()) < 1e-12
    with torch.no_grad():
        check_peft(tmp_path, family, logits(model))


def test_targets_are_exact(tmp_path):
    _, adapter = fitted("bert", targets=["attention.output.dense"])
    to_lora(adapter, tmp_path)
    loaded = peft.PeftModel.from_pretrained(build("bert"), str(tmp_path))
    own = {name for name, _ in loaded.base_model.model.named_modules() if name.endswith("lora_A")}
    assert own == {f"bert.encoder.layer.{k}.attention.output.dense.lora_A" for k in range(2)}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 3
    assert not config["fan_in_fan_out"]


def test_a_saved_adapter_is_exported_without_its_model(tmp_path):
    model, adapter = fitted("gpt2", targets="all-linear")
    adapter.save(tmp_path / "tt")
    to_lora(tmp_path / "tt", tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["fan_in_fan_out"]
    with torch.no_grad():
        check_peft(tmp_path / "lora", "gpt2", logits(model))


def test_a_split_module(tmp_path):
    model, adapter = fitted("gpt2", targets=["c_attn"], split={"c_attn": ("query", "key", "value")})
    to_lora(adapter, tmp_path)
    with torch.no_grad():
        check_peft(tmp_path, "gpt2", logits(model))


def test_one_task(tmp_path):
    model, adapter = fitted("bert", "4+1d", tasks=["rte", "mrpc"], heads_by="task")
    with torch.no_grad():
        for k, parameter in enumerate(model.classifier.parameters()):
            parameter += 0.1 * (k + 1)
    for task in ("rte", "mrpc"):
        to_lora(adapter, tmp_path / task, select={"task": task})
        adapter.select(task=task)
        with torch.no_grad():
            check_peft(tmp_path / task, "bert", logits(model))
    assert read_lora(tmp_path / "rte").module_names == ("classifier",)
    with pytest.raises(ConfigError, match="qnli"):
        to_lora(adapter, tmp_path / "no", select={"task": "qnli"})
    assert not (tmp_path / "no").exists()


def test_modules_trained_whole(tmp_path):
    model, adapter = fitted("bert")
    with torch.no_grad():
        model.classifier.weight += 1
    to_lora(adapter, tmp_path / "with")
    with torch.no_grad():
        check_peft(tmp_path / "with", "bert", logits(model))
    to_lora(adapter, tmp_path / "without", modules_to_save=False)
    assert read_lora(tmp_path / "without").module_names == ()


@pytest.mark.parametrize(
    ("family", "inputs", "split"),
    [
        (t5, {"input_ids": TOKENS, "decoder_input_ids": TOKENS}, None),
        (vit, {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}, None),
        (neox, {"input_ids": TOKENS}, "auto"),
    ],
)
def test_more_families(family, inputs, split, tmp_path):
    def make():
        torch.manual_seed(0)
        return family().eval()

    @torch.no_grad()
    def run(model):
        return model(**inputs).logits

    model = make()
    adapter = attach(model, MetaTT("4d", rank=3, alpha=0.1, target_modules="all-linear", split=split))
    to_lora(randomize(adapter), tmp_path)
    expected = run(model)
    assert float((run(make()) - expected).abs().max()) > 1e-3
    torch.testing.assert_close(with_peft(tmp_path, make(), run), expected, atol=1e-5, rtol=1e-5)


def test_a_cap_is_kept_and_its_errors_are_measured(tmp_path):
    _, adapter = fitted("llama", targets="all-linear", rank=6)
    report = to_lora(adapter, tmp_path, max_lora_rank=2)
    assert set(report.ranks.values()) == {2}
    for name, (a, b) in read_lora(tmp_path).factors.items():
        exact = adapter.delta(name).detach().double()
        values = torch.linalg.svdvals(exact)
        error = float((exact - (b.double() @ a.double()).T).norm() / exact.norm())
        assert report.errors[name] == pytest.approx(error, rel=1e-5)
        assert error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-4)
    assert report.worst[1] > 0.01


def test_a_narrow_bond_further_right_loses_nothing(tmp_path):
    _, adapter = fitted("bert", rank=[8, 3, 8])
    assert max(to_lora(adapter, tmp_path, max_lora_rank=3).errors.values()) < 1e-6


def test_ranks_that_differ(tmp_path):
    _, adapter = fitted("llama", targets="all-linear", rank=6)
    report = to_lora(adapter, tmp_path, rtol=0.1)
    assert len(set(report.ranks.values())) > 1
    assert 1e-3 < report.worst[1] <= 0.1
    loaded = peft.PeftModel.from_pretrained(build("llama"), str(tmp_path))
    for name, rank in report.ranks.items():
        module = loaded.base_model.model.get_submodule(name)
        assert module.lora_A["default"].weight.shape[0] == rank
        assert module.scaling["default"] == 1


def test_export_refuses(tmp_path):
    _, adapter = fitted("bert")
    adapter.save(tmp_path / "tt")
    with pytest.raises(ConfigError, match="holds an adapter of ttnet"):
        to_lora(adapter, tmp_path / "tt")
    read(tmp_path / "tt")
    with pytest.raises(RankError, match="max_lora_rank"):
        to_lora(adapter, tmp_path / "new", max_lora_rank=0)
    with pytest.raises(ConfigError, match="dtype"):
        to_lora(adapter, tmp_path / "new", dtype="int8")
    with torch.no_grad():
        adapter.cores.core_0[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        to_lora(adapter, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# A tuned model to a train ----------------------------------------------------------------------------------


def tuned(family, names, scale=0.1):
    model = build(family)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter += scale * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize(
    ("family", "names", "options"),
    [
        ("bert", ("query.weight", "value.weight", "classifier"), {}),
        ("gpt2", ("c_attn.weight",), {"split": "auto"}),
        ("llama", ("q_proj.weight", "v_proj.weight"), {"pattern": "5d"}),
    ],
)
def test_what_fine_tuning_changed(family, names, options):
    target = tuned(family, names)
    found = from_delta(build(family), target, truncation=Truncation(rtol=1e-7), **options)
    assert found.worst[1] < 1e-5
    assert found.left_out == {}
    model = build(family)
    found.attach(model)
    with torch.no_grad():
        assert float((logits(build(family)) - logits(target)).abs().max()) > 1e-2
        torch.testing.assert_close(logits(model), logits(target), atol=1e-4, rtol=1e-4)


def test_every_matrix_meets_its_tolerance():
    base, target = build("llama"), tuned("llama", ("proj.weight",))
    options = {"target_modules": "all-linear", "truncation": Truncation(), "sweeps": 2}
    found = from_delta(base, target, max_error=0.3, **options)
    assert 0.1 < found.worst[1] <= 0.3
    twin = found.attach(build("llama"))
    for site in found.saved.layout.sites[::5]:
        exact = (target.get_submodule(site.name).weight - base.get_submodule(site.name).weight).T.detach()
        error = float((exact - twin.delta(site.name).detach()).norm() / exact.norm())
        assert error == pytest.approx(found.errors[site.name], rel=1e-3)


def test_what_is_left_out_is_named():
    found = from_delta(build("bert"), tuned("bert", ("query", "LayerNorm.bias")))
    assert "bert.embeddings.LayerNorm.bias" in found.left_out
    assert "bert.encoder.layer.0.attention.self.query.bias" in found.left_out
    assert not any(name.endswith("query.weight") for name in found.left_out)


def test_an_unchanged_model_gives_a_zero_train():
    with pytest.warns(UserWarning, match="every matrix to compress is zero"):
        found = from_delta(build("bert"), build("bert"))
    assert found.relative_error == 0
    assert found.saved.train.ranks == (1, 1, 1, 1, 1)
    assert float(found.saved.train.norm()) == 0


def test_from_delta_refuses():
    with pytest.raises(ConfigError, match="one kind"):
        from_delta(build("bert"), build("roberta"))
    with pytest.raises(PatternError, match="task"):
        from_delta(build("bert"), build("bert"), pattern="4+1d", axes=[Axis("task", size=2)])
    broken = build("bert")
    with torch.no_grad():
        broken.bert.encoder.layer[0].attention.self.query.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="query"):
        from_delta(build("bert"), broken)
