import json

import peft
import pytest
import torch
import transformers

from tests.adapters.models import FAMILIES, TOKENS, adapted, logits, randomize
from ttnet import Truncation
from ttnet.adapters import Axis, MetaTT, attach, load, read
from ttnet.errors import ConfigError, FormatError, NonFiniteError, PatternError, RankError, ShapeError
from ttnet.interop.lora import from_delta, from_lora, read_lora, to_lora

# peft asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LAYOUTS = ("5d", "in (layer matrix) out", "in matrix layer out", "layer in matrix out")


def build(family, seed=0):
    torch.manual_seed(seed)
    return FAMILIES[family].build()


def fitted(family, variant="4d", targets=None, **options):
    torch.manual_seed(0)
    return adapted(family, variant, targets, **{"alpha": 0.3} | options)


@torch.no_grad()
def with_peft(directory, model, run=logits):
    return run(peft.PeftModel.from_pretrained(model, str(directory)).eval())


@torch.no_grad()
def check_peft(directory, family, expected, tolerance=1e-5):
    base = logits(build(family))
    assert float((expected - base).abs().max()) > 1e-2
    torch.testing.assert_close(with_peft(directory, build(family)), expected, atol=tolerance, rtol=tolerance)


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


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
    )
    return transformers.ViTForImageClassification(config)


def neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return transformers.GPTNeoXForCausalLM(config)


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


# LoRA to train ---------------------------------------------------------------------------------------------


def peft_adapter(family, directory, seed=1, **options):
    """A LoRA that peft itself made and saved, its factors random."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=6, **({"target_modules": ["query", "value"]} | options))
    model = peft.get_peft_model(build(family), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
            elif "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(str(directory))
    with torch.no_grad():
        return logits(model.eval())


@pytest.mark.parametrize("variant", ["4d", "5d", "in (layer matrix) out"])
def test_a_lora_without_truncation_is_exact(variant, tmp_path):
    expected = peft_adapter("bert", tmp_path, modules_to_save=["classifier"])
    found = from_lora(
        tmp_path, pattern=variant, truncation=Truncation(rtol=1e-6), head_dim=8 if variant == "5d" else None
    )
    assert found.worst[1] < 1e-5
    model = build("bert")
    found.attach(model)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"use_rslora": True}),
        ("bert", {"rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.attention.self.value": 3}}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("llama", {"target_modules": "all-linear"}),
    ],
)
def test_scales_and_families(family, options, tmp_path):
    expected = peft_adapter(family, tmp_path, **options)
    model = build(family)
    from_lora(tmp_path, truncation=Truncation(rtol=1e-6)).attach(model)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", ["4d", "5d"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_train_comes_back_from_its_lora(family, variant, tmp_path):
    _, adapter = fitted(family, variant)
    to_lora(adapter, tmp_path)
    found = from_lora(tmp_path, pattern=variant, truncation=Truncation(max_rank=3), head_dim=8)
    assert found.num_parameters <= adapter.num_parameters
    assert found.worst[1] < 1e-4


def test_errors_are_those_of_the_saved_train(tmp_path):
    peft_adapter("llama", tmp_path / "lora", target_modules="all-linear")
    found = from_lora(tmp_path / "lora", truncation=Truncation(max_rank=5))
    found.save(tmp_path / "tt")
    adapter = load(build("llama"), tmp_path / "tt")
    lora = read_lora(tmp_path / "lora")
    assert found.errors.keys() == lora.factors.keys()
    for name, (a, b) in lora.factors.items():
        exact = lora.scales[name] * (b @ a).T.double()
        error = float((adapter.delta(name).detach().double() - exact).norm() / exact.norm())
        assert found.errors[name] == pytest.approx(error, rel=1e-4)


def test_sweeps_use_the_entries_that_no_matrix_reads(tmp_path):
    _, adapter = fitted("gpt2", targets="all-linear")
    to_lora(adapter, tmp_path)
    plain, fitted_train = (
        from_lora(tmp_path, truncation=Truncation(max_rank=3), sweeps=sweeps) for sweeps in (0, 20)
    )
    assert fitted_train.relative_error < 0.2 * plain.relative_error
    assert float(fitted_train.saved.train.norm()) < 100 * float(adapter.tensor_train().norm())


def test_close_to_the_best_train_of_the_dense_tensor(tmp_path):
    peft_adapter("bert", tmp_path)
    lora = read_lora(tmp_path)
    names = [f"bert.encoder.layer.{k}.attention.self.{m}" for k in range(2) for m in ("query", "value")]
    deltas = [lora.scales[n] * (lora.factors[n][1] @ lora.factors[n][0]).T.double() for n in names]
    dense = torch.stack(deltas, 1).reshape(32, 2, 2, 32)
    import ttnet

    best = ttnet.tt_svd(dense, Truncation(max_rank=4))
    error = float((best.full() - dense).norm() / dense.norm())
    assert from_lora(tmp_path, truncation=Truncation(max_rank=4), sweeps=0).relative_error < 1.2 * error
    assert from_lora(tmp_path, truncation=Truncation(max_rank=4)).relative_error <= error


def test_tolerances(tmp_path):
    peft_adapter("llama", tmp_path, target_modules="all-linear")
    found = from_lora(tmp_path, truncation=Truncation(rtol=0.3), sweeps=0)
    assert 0.05 < found.relative_error <= 0.3
    assert from_lora(tmp_path, truncation=Truncation(), max_error=0.2, sweeps=2).worst[1] <= 0.2
    with pytest.raises(RankError, match="max_error"):
        from_lora(tmp_path, truncation=Truncation(max_rank=2), max_error=0.01, sweeps=1)


def test_several_adapters_share_one_train(tmp_path):
    expected = {
        name: peft_adapter("bert", tmp_path / name, seed, modules_to_save=["classifier"])
        for seed, name in enumerate(("rte", "mrpc"))
    }
    found = from_lora([tmp_path / "rte", tmp_path / "mrpc"], truncation=Truncation(rtol=1e-6))
    assert found.saved.layout.pattern.text == "in layer task matrix out"
    found.save(tmp_path / "both")
    model = build("bert")
    adapter = load(model, tmp_path / "both")
    for task, outputs in expected.items():
        adapter.select(task=task)
        with torch.no_grad():
            torch.testing.assert_close(logits(model), outputs, atol=1e-4, rtol=1e-4)
        to_lora(adapter, tmp_path / f"{task}-again")
        torch.testing.assert_close(
            with_peft(tmp_path / f"{task}-again", build("bert")), outputs, atol=1e-4, rtol=1e-4
        )
    with pytest.raises(PatternError, match="task"):
        from_lora([tmp_path / "rte", tmp_path / "mrpc"], pattern="4d")


def test_adapters_of_other_shapes_are_refused(tmp_path):
    _, adapter = fitted("bert")
    to_lora(adapter, tmp_path / "a")
    other = FAMILIES["bert"].build(hidden_size=16)
    to_lora(attach(other, MetaTT("4d", rank=2)), tmp_path / "b")
    with pytest.raises(ShapeError, match="one model"):
        from_lora([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"format": "ttnet-adapter"}, "adapter of ttnet"),
    ],
)
def test_what_is_no_plain_lora_is_refused(change, message, tmp_path):
    peft_adapter("bert", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=message):
        from_lora(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        from_lora(tmp_path)
    peft_adapter("bert", tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(FormatError, match="damaged"):
        from_lora(tmp_path)
    weights.unlink()
    with pytest.raises(FormatError, match="no such file"):
        from_lora(tmp_path)


def test_bad_options_of_from_lora(tmp_path):
    peft_adapter("bert", tmp_path)
    with pytest.raises(PatternError, match="not factorized"):
        from_lora(tmp_path, pattern="in1 in2 layer matrix out")
    with pytest.raises(PatternError, match="expert"):
        from_lora(tmp_path, pattern="in layer expert matrix out", axes=[Axis("expert", size=2)])
    with pytest.raises(PatternError, match="head_dim"):
        from_lora(tmp_path, pattern="5d")
    with pytest.raises(RankError, match="3 bonds"):
        from_lora(tmp_path, truncation=Truncation(max_rank=[2, 2]))
    with pytest.raises(ConfigError, match="max_error"):
        from_lora(tmp_path, max_error=2.0)
    with pytest.raises(ConfigError, match="exclude_modules"):
        from_lora(tmp_path, exclude_modules=["query", "value"])


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
    found = from_delta(build("bert"), build("bert"))
    assert found.relative_error == 0
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
