"""LoRA adapters compressed into one train."""

import json
import time

import peft
import pytest
import torch
from torch.nn import functional as F

from tests.adapters.models import FAMILIES, TOKENS, logits, randomize
from tests.interop.loras import build, fitted, neox, peft_adapter, t5, vit, with_peft
from ttnet import Truncation, tt_svd
from ttnet.adapters import Axis, MetaTT, Split, attach, load
from ttnet.errors import ConfigError, FormatError, PatternError, RankError, ShapeError
from ttnet.interop.lora import LoraFiles, from_lora, read_lora, to_lora
from ttnet.interop.lora.peft_files import write_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


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
    peft_adapter("llama", tmp_path, target_modules="all-linear")
    plain, swept = (
        from_lora(tmp_path, truncation=Truncation(max_rank=8), sweeps=sweeps) for sweeps in (0, 20)
    )
    assert swept.relative_error < 0.97 * plain.relative_error
    assert float(swept.saved.train.norm()) < 10 * float(plain.saved.train.norm())


def test_close_to_the_best_train_of_the_dense_tensor(tmp_path):
    peft_adapter("bert", tmp_path)
    lora = read_lora(tmp_path)
    names = [f"bert.encoder.layer.{k}.attention.self.{m}" for k in range(2) for m in ("query", "value")]
    deltas = [lora.scales[n] * (lora.factors[n][1] @ lora.factors[n][0]).T.double() for n in names]
    dense = torch.stack(deltas, 1).reshape(32, 2, 2, 32)
    best = tt_svd(dense, Truncation(max_rank=4))
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


# Known answers ---------------------------------------------------------------------------------------------


def llama_like(layers=3, hidden=48, keys=16, inner=80):
    """Names and widths of all matrices of a model with grouped queries."""
    widths = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    return {f"model.layers.{k}.{name}": pair for k in range(layers) for name, pair in widths.items()}


def layered(widths):
    """A model with these linear modules."""
    root = torch.nn.Module()
    for name, (rows, columns) in widths.items():
        module = root
        *parents, last = name.split(".")
        for part in parents:
            if part not in module._modules:
                module.add_module(part, torch.nn.ModuleDict())
            module = module._modules[part]
        module.add_module(last, torch.nn.Linear(rows, columns))
    return root


def exported(directory, pattern="4d", rank=4, seed=0, noise=0.0, **options):
    """The LoRA of a random train over all matrices, with noise of this relative size."""
    torch.manual_seed(seed)
    adapter = attach(
        layered(llama_like()), MetaTT(pattern, rank=rank, target_modules="all-linear", head_dim=8, **options)
    )
    randomize(adapter)
    select = {"task": "one"} if options.get("tasks") else None
    to_lora(adapter, directory, select=select)
    if noise:
        lora = read_lora(directory)
        factors = {}
        for name, (a, b) in lora.factors.items():
            more = torch.randn(2, a.shape[1]), torch.randn(b.shape[0], 2)
            size = noise * float((b @ a).norm() / (more[1] @ more[0]).norm())
            factors[name] = torch.cat([a, more[0]]), torch.cat([b, size * more[1]], 1)
        files = LoraFiles(factors=factors, scales=dict.fromkeys(factors, 1.0))
        write_lora(directory, files, targets=list(factors), fan_in_fan_out=False, overwrite=True)
    return adapter


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("pattern", "rank"),
    [
        ("4d", 2),
        ("4d", 8),
        ("4d", (8, 3, 6)),
        ("4d", (4, 8, 6)),
        ("5d", 4),
        ("in matrix layer out", 5),
        ("in (layer matrix) out", 6),
    ],
)
def test_an_exact_rank_is_found(pattern, rank, seed, tmp_path):
    adapter = exported(tmp_path, pattern, rank, seed)
    cap = rank if isinstance(rank, int) else list(rank)
    found = from_lora(tmp_path, pattern=pattern, truncation=Truncation(max_rank=cap), head_dim=8)
    assert found.worst[1] < 1e-5
    assert found.num_parameters <= adapter.num_parameters


@pytest.mark.parametrize("pattern", ["4d", "5d"])
def test_a_tolerance_finds_the_exact_ranks(pattern, tmp_path):
    adapter = exported(tmp_path, pattern, 4)
    found = from_lora(tmp_path, pattern=pattern, truncation=Truncation(rtol=1e-4), head_dim=8)
    assert found.saved.train.ranks == adapter.tensor_train().ranks
    assert found.relative_error < 1e-4


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_noise_costs_no_more_than_itself(noise, tmp_path):
    exported(tmp_path, noise=noise)
    found = from_lora(tmp_path, truncation=Truncation(max_rank=4))
    assert 0.8 * noise < found.relative_error < noise
    assert found.worst[1] < 1.2 * noise


@pytest.mark.parametrize("family", [t5, vit, neox])
@pytest.mark.parametrize("pattern", ["4d", "in matrix layer out"])
def test_an_exact_rank_is_found_in_other_families(family, pattern, tmp_path):
    torch.manual_seed(0)
    adapter = attach(family(), MetaTT(pattern, rank=3, target_modules="all-linear"))
    to_lora(randomize(adapter), tmp_path)
    assert from_lora(tmp_path, pattern=pattern, truncation=Truncation(max_rank=3)).worst[1] < 1e-5


@pytest.mark.parametrize(
    "pattern", ["in layer task matrix out", "in task layer matrix out", "in layer (task matrix) out"]
)
def test_tasks_of_one_train_come_back_as_one_train(pattern, tmp_path):
    adapter = exported(tmp_path / "one", pattern, rank=4, tasks=["one", "two"])
    to_lora(adapter, tmp_path / "two", select={"task": "two"})
    found = from_lora(
        [tmp_path / "one", tmp_path / "two"], pattern=pattern, truncation=Truncation(max_rank=4)
    )
    assert found.worst[1] < 1e-5
    assert len(found.errors) == 2 * 21


@pytest.mark.parametrize(
    "split", [("query", "key", "value"), Split(parts=("query", "key", "value"), groups=4)]
)
def test_parts_of_fused_modules_are_matrices_of_their_own(split, tmp_path):
    model = build("gpt2")
    torch.manual_seed(0)
    adapter = attach(
        model, MetaTT("5d", rank=3, target_modules=["c_attn"], split={"c_attn": split}, head_dim=8)
    )
    to_lora(randomize(adapter), tmp_path / "lora")
    found = from_lora(
        tmp_path / "lora",
        pattern="5d",
        split={"c_attn": split},
        head_dim=8,
        truncation=Truncation(max_rank=3),
    )
    assert found.worst[1] < 1e-5
    assert "transformer.h.0.attn.c_attn.key" in found.errors
    found.save(tmp_path / "tt")
    again = build("gpt2")
    load(again, tmp_path / "tt")
    with torch.no_grad():
        torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="needs the model"):
        from_lora(tmp_path / "lora", split="auto")
    with pytest.raises(ConfigError, match="no module is called 'qkv'"):
        from_lora(tmp_path / "lora", split={"qkv": 3})


# Files of all kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_files_of_half_precision(dtype, tmp_path):
    _, adapter = fitted("bert")
    to_lora(adapter, tmp_path, dtype=dtype)
    assert read_lora(tmp_path).factors["bert.encoder.layer.0.attention.self.query"][0].dtype == getattr(
        torch, dtype
    )
    found = from_lora(tmp_path, truncation=Truncation(max_rank=3))
    assert found.worst[1] < 2e-2
    assert {core.dtype for core in found.saved.train.cores} == {torch.float32}


def test_layers_that_are_left_out(tmp_path):
    expected = peft_adapter(
        "llama", tmp_path, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]
    )
    model = build("llama")
    from_lora(tmp_path, truncation=Truncation(rtol=1e-6)).attach(model)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_a_lora_of_a_changed_base_is_refused(start, tmp_path):
    peft_adapter("bert", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    with pytest.raises(FormatError, match="changed the weights of the base"):
        from_lora(tmp_path)


def test_dora_and_trained_biases_that_peft_saved_are_refused(tmp_path):
    for name, options, message in (
        ("dora", {"use_dora": True}, "use_dora"),
        ("bias", {"bias": "lora_only"}, "bias"),
        ("tokens", {"trainable_token_indices": [1]}, "trained beside the factors|no factor"),
    ):
        peft_adapter("bert", tmp_path / name, **options)
        with pytest.raises(FormatError, match=message):
            from_lora(tmp_path / name)


# What was trained ------------------------------------------------------------------------------------------


def trained(directory, steps=20):
    torch.manual_seed(0)
    model = peft.get_peft_model(
        build("llama"), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        output = model(input_ids=TOKENS).logits
        F.cross_entropy(output[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(directory))


def test_a_trained_lora_is_compressed_to_sensible_errors(tmp_path):
    trained(tmp_path)
    lora = read_lora(tmp_path)
    exact = {name: lora.scales[name] * (b @ a).double() for name, (a, b) in lora.factors.items()}
    last = 1.0
    for rank in (2, 4, 8):
        found = from_lora(tmp_path, truncation=Truncation(max_rank=rank))
        for name, error in found.errors.items():
            values = torch.linalg.svdvals(exact[name])
            assert error >= 0.999 * float(
                values[rank:].norm() / values.norm()
            )  # no matrix of this rank is closer
        assert found.relative_error < 0.9 * last
        last = found.relative_error
    assert from_lora(tmp_path, truncation=Truncation(rtol=0.1), sweeps=2).relative_error <= 0.1


def test_twenty_four_matrices_of_bert_base_take_seconds(tmp_path):
    torch.manual_seed(0)
    names = [f"encoder.layer.{k}.attention.self.{name}" for k in range(12) for name in ("query", "value")]
    factors = {name: (torch.randn(8, 768), torch.randn(768, 8)) for name in names}
    files = LoraFiles(factors=factors, scales=dict.fromkeys(names, 1.0))
    write_lora(tmp_path, files, targets=names, fan_in_fan_out=False)
    start = time.process_time()
    found = from_lora(tmp_path, truncation=Truncation(max_rank=8))
    assert time.process_time() - start < 10
    assert found.relative_error < 1
