import copy

import peft
import pytest
import torch
from torch import Tensor, nn

from tests.interop.families import CASES, GROUPED, Case
from ttnet.adapters import MetaTT, TTAdapter, attach, load
from ttnet.errors import ConfigError, PatternError, ShapeError
from ttnet.interop.lora import to_lora
from ttnet.optim import DMRGScheduler

pytestmark = [
    # peft asks transformers by a name that is going away.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:::peft"),  # it warns of what it does itself
]

FUSED = [name for name, case in CASES.items() if case.parts]
NAMED = [name for name, case in CASES.items() if case.default]
LOTR = "in (layer matrix) out"


def outputs(model: nn.Module, case: Case) -> Tensor:
    found = model(**case.inputs)
    if isinstance(found, Tensor):
        return found
    names = ("logits", "start_logits", "logits_per_text")
    return next(found[name] for name in names if name in found)


def loss_of(model: nn.Module, case: Case) -> Tensor:
    found = model(**case.inputs)
    loss = getattr(found, "loss", None)
    return (outputs(model, case) - 1).square().mean() if loss is None else loss


def put(case: Case, pattern: str = "4d", targets: str | None = "all-linear", **options):
    """A model of the case with an adapter, and a copy without one."""
    model = case.build()
    base = copy.deepcopy(model)
    values = {"rank": 4, "alpha": 2.0, "exclude_modules": case.exclude or None} | options
    return model, base, attach(model, MetaTT(pattern, target_modules=targets, **values))


@torch.no_grad()
def randomize(adapter: TTAdapter, scale: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(5)
    for core in adapter.cores.core_parameters():
        core.copy_(torch.randn(core.shape, generator=generator) * scale)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0.0)


@torch.no_grad()
def check_states(model: nn.Module, base: nn.Module, adapter: TTAdapter, case: Case, directory) -> None:
    """Disabled, merged, saved and loaded, exported, taken off."""
    plain, adapted = outputs(base, case), outputs(model, case)
    assert not torch.allclose(adapted, plain, atol=1e-4)
    with adapter.disabled():
        torch.testing.assert_close(outputs(model, case), plain, atol=0.0, rtol=0.0)
    adapter.merge()
    close(outputs(model, case), adapted)
    adapter.unmerge()
    torch.testing.assert_close(outputs(model, case), adapted, atol=0.0, rtol=0.0)
    adapter.save(directory / "own")
    fresh = copy.deepcopy(base)
    load(fresh, directory / "own")
    torch.testing.assert_close(outputs(fresh, case), adapted, atol=0.0, rtol=0.0)
    to_lora(adapter, directory / "lora")
    if not any(isinstance(module, nn.TransformerEncoderLayer) for module in model.modules()):
        # In inference torch's own layer reads weights past the modules that peft puts there.
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(directory / "lora")).eval()
        close(outputs(loaded.base_model.model, case), adapted)
    adapter.detach()
    torch.testing.assert_close(outputs(model, case), plain, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("name", CASES)
def test_a_family_by_default_is_trained_cut_saved_and_exported(name, tmp_path):
    case = CASES[name]
    targets = None if case.default else "all-linear"
    model, base, adapter = put(case, targets=targets)
    with torch.no_grad():
        torch.testing.assert_close(outputs(model, case), outputs(base, case), atol=0.0, rtol=0.0)
    assert set(adapter.saved_modules) == set(case.saved.split())
    assert len(adapter.layout.axes[0].labels) == case.layers
    if case.default:
        found = {module.rpartition(".")[2] for module in adapter.layout.modules}
        assert found == set(case.default.split())
        assert len(adapter.layout.axes[1].labels) == case.matrices[0]
    shape, ranks = adapter.layout.shape, adapter.tensor_train().ranks
    assert adapter.num_parameters == sum(a * m * b for a, m, b in zip(ranks, shape, ranks[1:], strict=False))

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0)
    scheduler = DMRGScheduler(optimizer, adapter.cores, ranks={0: 4, 1: 2})
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, case)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < losses[0]
    allowed = ("tt_adapter.", *(f"{saved}." for saved in adapter.saved_modules))
    assert all(key.startswith(allowed) for key, p in model.named_parameters() if p.grad is not None)
    assert all(float(p.grad.abs().max()) > 0 for p in adapter.cores.parameters())
    optimizer.zero_grad()
    scheduler.step()
    assert max(adapter.tensor_train().ranks) == 2
    check_states(model, base, adapter, case, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_all_linear_modules_of_a_family_with_a_head_axis(name, tmp_path):
    case = CASES[name]
    told = {} if case.head_dim else {"head_dim": 2 if name == "mamba" else 8}
    told = {"head_dim": 4} if name in ("clip", "llava") else told
    model, base, adapter = put(case, "5d", **told)
    labels = adapter.layout.axes[1].labels
    assert len(labels) == case.matrices[1]
    assert adapter.layout.head_dim == told.get("head_dim", case.head_dim)
    assert not any(
        part in module
        for module in adapter.layout.modules
        for part in ("lm_head", "embed", *case.saved.split())
    )
    assert all(isinstance(label, int) for label in adapter.layout.axes[0].labels)
    randomize(adapter, 0.3)
    check_states(model, base, adapter, case, tmp_path)


@pytest.mark.parametrize("name", FUSED)
def test_parts_of_fused_weights(name, tmp_path):
    case = CASES[name]
    model, base, adapter = put(case, LOTR, split="auto")
    parts = [label.rpartition(".")[2] for label in adapter.layout.axes[1].labels]
    assert [part for part in parts if part in ("query", "key", "value")] == case.parts.split()
    randomize(adapter, 0.3)
    check_states(model, base, adapter, case, tmp_path)


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_the_columns_of_the_value_are_those_that_attention_mixes(name):
    case = CASES[name]
    model = case.build()
    adapter = attach(model, MetaTT(target_modules=None, split="auto", init="normal"))
    module = next(iter(adapter.layout.modules))
    members = [adapter.layout.sites[k] for k in adapter.layout.modules[module]]
    groups = members[0].groups
    adapter.detach()
    fused, parent = model.get_submodule(module), model.get_submodule(module.rpartition(".")[0])
    weight = fused.weight if type(fused).__name__ == "Conv1D" else fused.weight.T
    fused.weight.normal_()
    for key, parameter in parent.named_parameters():
        if key.endswith("bias"):
            parameter.zero_()
    seen = []
    names = ("c_proj", "out_proj", "dense", "o_proj", "Wo")
    out = next((m for key, m in parent.named_modules() if key in names), None)
    out = out or model.get_submodule(f"{module.rsplit('.', 2)[0]}.output.dense")
    out.register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    start = 0
    for site in members:
        width = site.out_features // groups
        columns = weight.unflatten(1, (groups, -1))[:, :, start : start + width]
        kept, start = columns.clone(), start + width
        columns.zero_()
        seen.clear()
        model(**case.inputs)
        assert (seen[0] == 0) == (site.name.rpartition(".")[2] == "value"), site.name
        columns.copy_(kept)


def test_experts_in_one_parameter_are_named_in_the_error():
    model = CASES["mixtral"].build()
    with pytest.raises(
        ConfigError, match=r"'gate_up_proj' is no module here but a parameter of shape \(4, 96, 32\)"
    ):
        attach(model, MetaTT(target_modules=["gate_up_proj"]))


def test_modules_that_peft_takes_for_experts_are_warned_of(tmp_path):
    model = CASES["deepseek-v2"].build()
    adapter = attach(model, MetaTT(target_modules="all-linear"))
    with pytest.warns(UserWarning, match=r"exclude_modules=\['down_proj', 'gate_proj', 'up_proj'\]"):
        to_lora(adapter, tmp_path)


def test_a_module_that_its_model_passes_over_is_warned_of():
    case = CASES["mamba"]
    model, _, _ = put(case, exclude_modules=["out_proj"])
    with pytest.warns(UserWarning, match=r"dt_proj' is adapted, .* exclude_modules=\['dt_proj'\]"):
        outputs(model, case)
    outputs(model, case)  # once is enough


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("torch", {}, ConfigError, "nn.MultiheadAttention holds query and value in one parameter"),
        ("mamba", {}, ConfigError, "query and value are called otherwise here"),
        (
            "timm",
            {"split": "auto"},
            ConfigError,
            r"how query, key and value lie in 'qkv' is not known for Images",
        ),
        ("timm", {"pattern": "5d"}, PatternError, "names no head size; give head_dim="),
        ("clip", {"pattern": "5d"}, ShapeError, r"heads of widths \[8, 12\]; give head_dim=4"),
        (
            "bert",
            {"pattern": "5d", "head_dim": 12},
            ShapeError,
            "12 does not divide .* give head_dim=32, which",
        ),
        (
            "qwen2-moe",
            {"pattern": "5d", "targets": "all-linear"},
            ShapeError,
            r"exclude_modules=\['shared_expert_gate'\]",
        ),
    ],
)
def test_what_cannot_work_says_what_to_pass(name, options, error, message):
    config = MetaTT(
        options.get("pattern", "4d"),
        target_modules=options.get("targets"),
        **{key: value for key, value in options.items() if key in ("split", "head_dim")},
    )
    with pytest.raises(error, match=message):
        attach(CASES[name].build(), config)


def test_a_split_of_the_users_own_serves_a_plain_module():
    model = CASES["timm"].build()
    adapter = attach(model, MetaTT("5d", split={"qkv": ("query", "key", "value")}, head_dim=8))
    assert adapter.layout.axes[1].labels == ("attn.qkv.query", "attn.qkv.key", "attn.qkv.value")
    assert adapter.layout.shape == (32, 2, 3, 4, 8)


def test_layers_of_stages_are_counted_through():
    adapter = attach(CASES["swin"].build(), MetaTT(target_modules="all-linear"))
    places = {
        site.name: (site.coordinates["layer"], site.coordinates["matrix"]) for site in adapter.layout.sites
    }
    assert places["swin.encoder.layers.0.blocks.1.attention.q_proj"] == (1, "attention.q_proj")
    assert places["swin.encoder.layers.1.blocks.0.attention.q_proj"] == (2, "attention.q_proj")
    assert places["swin.encoder.layers.0.downsample.reduction"] == (1, "downsample.reduction")


def test_experts_in_a_list_are_no_layers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))

    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(3))
    adapter = attach(model, MetaTT(target_modules="all-linear"))
    assert adapter.layout.axes[0].labels == (0, 1, 2)
    assert adapter.layout.axes[1].labels == ("gate", "experts.0.0", "experts.1.0")


def test_encoder_and_decoder_of_a_t5_stay_apart():
    adapter = attach(CASES["t5"].build(), MetaTT())
    assert adapter.layout.axes[1].labels == (
        "encoder.block:layer.0.SelfAttention.q",
        "encoder.block:layer.0.SelfAttention.v",
        "decoder.block:layer.0.SelfAttention.q",
        "decoder.block:layer.0.SelfAttention.v",
        "decoder.block:layer.1.EncDecAttention.q",
        "decoder.block:layer.1.EncDecAttention.v",
    )


def test_towers_with_heads_of_two_widths_take_the_narrower():
    options = {**CASES["llava"].options}
    options["vision_config"] = {**options["vision_config"], "hidden_size": 64}
    case = Case("LlavaForConditionalGeneration", options, {}, "", (0, 0))
    adapter = attach(case.build(), MetaTT("5d"))
    assert adapter.layout.head_dim == GROUPED["hidden_size"] // GROUPED["num_attention_heads"] == 8


def test_a_number_at_the_start_of_a_name_is_the_layer():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), nn.ReLU())
    adapter = attach(model, MetaTT(target_modules="all-linear"))
    assert adapter.layout.presence == ((0, "0"), (0, "2"))


def test_a_tied_head_is_neither_adapted_nor_trained():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layers = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4)])
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

    adapter = attach(Tied(), MetaTT(target_modules="all-linear"))
    assert adapter.saved_modules == ()
    assert list(adapter.layout.modules) == ["layers.0"]
