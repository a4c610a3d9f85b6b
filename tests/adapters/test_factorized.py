"""Factorized features, structural axes in every order that makes sense, split modules, structured cores."""

import math

import pytest
import torch
import transformers
from torch import nn

from tests.adapters.models import (
    FAMILIES,
    HEADS,
    VOCABULARY,
    WIDTH,
    adapted,
    bert,
    dense_model,
    logits,
    naive_delta,
    naive_module_delta,
    randomize,
)
from ttnet import Truncation
from ttnet.adapters import MetaTT, Split, TTAdapterConfig, attach, load
from ttnet.errors import ConfigError, PatternError, RankError, ShapeError, StateError

FACTORS = {"in": [(4, 8), (6, 8)], "out": [(8, 4), (4, 4), (6, 8), (12, 8)]}
PATTERNS = [
    "in1 in2 layer matrix out1 out2",
    "in2 in1 (layer matrix) out2 out1",
    "in1 layer in2 matrix out1 out2",
    "layer in1 in2 matrix out",
    "in layer out1 matrix out2",
]


def factors_for(pattern):
    return {side: own for side, own in FACTORS.items() if f"{side}1" in pattern}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_factorized_features_equal_the_dense_twin(name, pattern, tmp_path):
    targets = {"gpt2": ("c_attn", "c_fc"), "llama": "all-linear", "bert": "all-linear"}[name]
    own = factors_for(pattern)
    if name == "bert":
        own = {side: [*sizes, (6, 8)] for side, sizes in own.items()}
    if name == "gpt2":
        own = {side: [*sizes, (16, 8)] for side, sizes in own.items()}
    torch.manual_seed(4)
    model, adapter = adapted(name, pattern, targets, factors=own)
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(dense_model(model, adapter)))
    model.float()
    adapter.save(tmp_path)
    torch.manual_seed(4)
    fresh = FAMILIES[name].build()
    load(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize(
    "pattern",
    [
        "layer in matrix out",
        "in layer out matrix",
        "matrix in out layer",
        "in layer head matrix out",
        "in head layer out",
    ],
)
def test_structural_axes_in_any_place_equal_the_dense_twin(pattern):
    model, adapter = adapted("llama", pattern, None if "matrix" in pattern else ("q_proj",))
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(dense_model(model, adapter)))
    before = adapter.tensor_train()
    after = before.truncate(rank(2))
    errors = adapter.matrix_errors(before, after)
    adapter.cores.assign(after)
    for site in adapter.layout.sites:
        whole = naive_delta(adapter, site.name)
        adapter.cores.assign(before)
        expected = float(
            (naive_delta(adapter, site.name) - whole).norm() / naive_delta(adapter, site.name).norm()
        )
        adapter.cores.assign(after)
        assert errors[site.name] == pytest.approx(expected, rel=1e-6)


def rank(value):
    return Truncation(max_rank=value)


@pytest.mark.parametrize("pattern", [*PATTERNS, "layer in matrix out", "in layer out matrix"])
def test_the_start_is_the_base_to_the_bit_and_learns(pattern):
    model = bert()
    with torch.no_grad():
        base = logits(model)
    config = MetaTT(pattern, rank=3, target_modules=["query", "value"], factors=factors_for(pattern) or None)
    adapter = attach(model, config)
    with torch.no_grad():
        assert torch.equal(logits(model), base)
    logits(model).square().sum().backward()
    assert adapter.cores.core_0.grad.abs().sum() > 0


def test_identities_of_a_factorized_side_make_a_whole_identity():
    options = {"rank": (8, 4, 4, 4, 8), "init": "identity", "random": False}
    _, adapter = adapted("bert", PATTERNS[0], factors={"in": (8, 4), "out": (4, 8)}, **options)
    left, right = adapter.factors(FAMILIES["bert"].query)
    assert torch.equal(left, torch.eye(WIDTH, 4))
    assert torch.equal(right @ right.T, 4.0 * torch.eye(4))  # alpha is 2
    for seed in range(3):
        options = {"rank": 8, "init": "normal", "random": False, "seed": seed}
        _, adapter = adapted("bert", PATTERNS[0], factors={"in": (8, 4), "out": (4, 8)}, **options)
        left, _ = adapter.factors(FAMILIES["bert"].query)
        assert 0.3 < left.norm(dim=0).mean() < 2


@pytest.mark.parametrize(
    ("pattern", "factors", "error", "message"),
    [
        ("in1 in2 layer matrix out", None, ConfigError, "factorizes 'in'; give factors="),
        ("in1 in2 layer matrix out", {"in": (5, 6)}, ShapeError, "multiply to the width 32"),
        ("in1 in2 layer matrix out", {"in": (2, 4, 4)}, ShapeError, "expected 2 factors"),
        ("in layer matrix out", {"in": (4, 8)}, ConfigError, "has one axis 'in'"),
        ("in1 in2 layer matrix out", {"in": (4.0, 8)}, ConfigError, "integers of at least 1"),
        ("in1 in2 layer matrix out", {"inn": (4, 8)}, ConfigError, "mapping with 'in' and 'out'"),
    ],
)
def test_factors_that_do_not_fit_are_refused(pattern, factors, error, message):
    with pytest.raises(error, match=message):
        attach(bert(), MetaTT(pattern, factors=factors, target_modules=["query", "value"]))


# Split modules --------------------------------------------------------------------------------------------


def neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPTNeoXForCausalLM(config).eval()


def falcon(**options):
    config = transformers.FalconConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    return transformers.FalconForCausalLM(config).eval()


FUSED = {
    "gpt2": (FAMILIES["gpt2"].build, "c_attn", (32, 32, 32), 1),
    "neox": (neox, "query_key_value", (32, 32, 32), HEADS),
    "falcon": (
        lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
        "query_key_value",
        (32, 16, 16),
        2,
    ),
    "falcon-mq": (
        lambda: falcon(multi_query=True, new_decoder_architecture=False),
        "query_key_value",
        (32, 8, 8),
        1,
    ),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("variant", ["4d", "5d", "in layer task matrix out"])
def test_parts_of_a_split_module_are_matrices_of_their_own(name, variant, tmp_path):
    build, module, widths, groups = FUSED[name]
    torch.manual_seed(6)
    model = build()
    tasks = {"tasks": ["a", "b"]} if "task" in variant else {}
    config = MetaTT(
        variant,
        rank=3,
        target_modules=[module],
        split="auto",
        head_dim=8 if variant == "5d" else None,
        **tasks,
    )
    adapter = randomize(attach(model, config))
    labels = {"task": "b"} if tasks else {}
    assert [site.out_features for site in adapter.layout.sites[:3]] == list(widths)
    assert adapter.layout.sites[0].groups == groups
    assert adapter.layout.axes[-1].labels[0].endswith(f"{module}.query")
    if tasks:
        adapter.select(task=["b", "a", "b"])
        mixed = logits(model)
        adapter.select(**labels)
        torch.testing.assert_close(logits(model)[0], mixed[0], rtol=1e-4, atol=1e-5)
    fused = next(iter(adapter.layout.modules))
    left, right = adapter.factors(fused)
    assert left.shape == (32, 3)
    torch.testing.assert_close(
        (left @ right).double(), naive_module_delta(adapter, fused, **labels), rtol=1e-4, atol=1e-5
    )
    query, _ = adapter.factors(f"{fused}.query")
    assert torch.equal(query, left)
    model.double()
    with torch.no_grad():
        out = logits(model)
        torch.testing.assert_close(out, logits(dense_model(model, adapter, **labels)))
    model.float()
    adapter.save(tmp_path)
    torch.manual_seed(6)
    fresh = build()
    other = load(fresh, tmp_path)
    if tasks:
        other.select(**labels)
    with torch.no_grad():
        assert torch.equal(logits(fresh), logits(model))
        adapter.merge()
        torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_the_parts_are_what_attention_takes_them_for(name):
    build, module, _, _ = FUSED[name]
    model = build()
    adapter = randomize(attach(model, MetaTT(rank=3, target_modules=[module], split="auto")))
    matrices = adapter.layout.pattern.find("matrix")
    core = adapter.cores.core_parameters()[matrices]
    whole = core.detach().clone()

    def keep(part):
        with torch.no_grad():
            core.zero_()
            if part is not None:
                core[:, part] = whole[:, part]

    with torch.no_grad():
        keep(1)
        for fused in adapter.layout.modules:
            columns = adapter.delta(fused).abs().sum(0) > 0
            base = model.get_submodule(fused).base
            (base.weight if name == "gpt2" else base.weight.T)[:, columns] = 0.0
            if base.bias is not None:
                base.bias[columns] = 0.0
        keep(None)
        out = logits(model)
        keep(0)  # where all keys vanish, queries change nothing
        torch.testing.assert_close(logits(model), out)
        keep(2)
        assert not torch.allclose(logits(model), out, atol=1e-3)


def test_splits_by_hand_and_their_refusals():
    model = FAMILIES["gpt2"].build()
    adapter = attach(model, MetaTT(rank=2, target_modules=["c_attn"], split={"c_attn": 3}))
    assert [s.name.rpartition(".")[2] for s in adapter.layout.sites[:3]] == ["part0", "part1", "part2"]
    assert adapter.num_parameters == 2 * (32 + 32) + 4 * (2 + 3)
    cases = [
        ({"c_attn": ("q", "k")}, None, None),
        ({"c_attn": 5}, ShapeError, "no multiple of"),
        ({"c_atn": 3}, ConfigError, "did you mean 'c_attn'"),
        ({"c_attn": 1}, ConfigError, "at least two parts"),
        ({"c_attn": Split(parts=("q", "k", "v"), sizes=(1, 2, 1))}, None, None),
        ("all", ConfigError, "'auto' or a mapping"),
    ]
    for split, error, message in cases:
        if error is None:
            attach(FAMILIES["gpt2"].build(), MetaTT(target_modules=["c_attn"], split=split))
            continue
        with pytest.raises(error, match=message):
            attach(FAMILIES["gpt2"].build(), MetaTT(target_modules=["c_attn"], split=split))
    with pytest.raises(PatternError, match="parts of a split module"):
        attach(FAMILIES["gpt2"].build(), MetaTT("matrix in layer out", split="auto"))
    with pytest.raises(ConfigError, match="'auto' reads the configuration"):
        attach(nn.Sequential(nn.Linear(2, 2)), MetaTT(target_modules="all-linear", split="auto"))
    config = MetaTT(split={"c_attn": Split(parts=("q", "k", "v"), groups=2)})
    assert TTAdapterConfig.from_dict(config.to_dict()) == config


# Structured and frozen cores ------------------------------------------------------------------------------


def test_diagonal_cores_are_stored_as_diagonals(tmp_path):
    options = {"rank": 3, "diagonal": ("layer", "matrix", "head"), "init": "normal"}
    torch.manual_seed(7)
    model, adapter = adapted("llama", "5d", "all-linear", **options)
    assert [tuple(p.shape) for p in adapter.cores.core_parameters()[1:4]] == [(3, 2), (3, 7), (3, 6)]
    assert adapter.num_parameters == 3 * (80 + 2 + 7 + 6 + 8)
    for core in adapter.cores.cores[1:4]:
        assert torch.count_nonzero(core) == 3 * core.shape[1]
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(dense_model(model, adapter)))
    model.float()
    logits(model).sum().backward()
    assert adapter.cores.core_1.grad.shape == (3, 2)
    with torch.no_grad():
        out = logits(model)
    adapter.save(tmp_path)
    torch.manual_seed(7)
    fresh = FAMILIES["llama"].build()
    other = load(fresh, tmp_path)
    assert other.cores.core_1.shape == (3, 2)
    with torch.no_grad():
        assert torch.equal(logits(fresh), out)
    other.cores.load_state_dict(adapter.cores.state_dict())
    other.cores.assign(adapter.tensor_train())
    with pytest.raises(StateError, match="diagonal slices"):
        other.cores.assign(adapter.tensor_train().orthogonalize(2))
    with pytest.raises(StateError, match="are diagonal, a sweep"), other.cores.merged(1):
        pass
    with pytest.raises(RankError, match="needs one rank on both sides"):
        adapted("llama", "4d", rank=(3, 2, 2), diagonal=("layer",))
    for axis in ("in", "out"):
        with pytest.raises(ConfigError, match="no inner structural axis"):
            MetaTT("4d", diagonal=(axis,))


def test_frozen_cores_and_rates_by_core():
    model, adapter = adapted("bert", frozen=("in", "out"))
    assert [p.requires_grad for p in adapter.cores.core_parameters()] == [False, True, True, False]
    groups = adapter.parameter_groups(1e-3, {"matrix": 5e-3}, head_lr=1e-4, weight_decay=0.1)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        ("layer", 1e-3, 1),
        ("matrix", 5e-3, 1),
        ("modules_to_save", 1e-4, 2),
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    before = [p.detach().clone() for p in adapter.cores.core_parameters()]
    logits(model).square().sum().backward()
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(before, adapter.cores.core_parameters(), strict=True)]
    assert same == [True, False, False, True]
    with pytest.raises(StateError, match=r"\['in', 'out'\] are frozen"), adapter.cores.merged(1):
        pass
    with pytest.raises(ConfigError, match="'in' is frozen"):
        adapter.parameter_groups(1e-3, {"in": 1e-3})
    with pytest.raises(PatternError, match="no axis 'head'"):
        adapter.parameter_groups(1e-3, {"head": 1e-3})
    with pytest.raises(ConfigError, match="lr: expected a finite number"):
        adapter.parameter_groups(-1.0)
    _, adapter = adapted("bert", "in (layer matrix) out")
    with pytest.raises(ConfigError, match="a rate already"):
        adapter.parameter_groups(1e-3, {"layer": 1e-3, "matrix": 1e-3})


def test_dropout_leaves_out_entries_of_x_in_training_alone():
    model = nn.Sequential(nn.Linear(400, 3))
    adapter = randomize(attach(model, MetaTT("in out", rank=2, target_modules="all-linear", dropout=0.5)))
    x = torch.ones(4000, 400)
    change = adapter.delta("0").sum(0)
    base = x @ model[0].weight.T + model[0].bias
    model.eval()
    torch.testing.assert_close(model(x) - base, change.expand(4000, 3), rtol=1e-3, atol=1e-3)
    model.train()
    moved = model(x) - base
    assert moved.std(0).min() > 0.1
    spread = adapter.delta("0").square().sum(0).sqrt() / math.sqrt(4000)
    assert ((moved.mean(0) - change).abs() < 5 * spread).all()
    with pytest.raises(ConfigError, match="dropout: expected a number from 0"):
        MetaTT(dropout=1.0)


def test_matrices_that_read_the_same_x_drop_the_same_entries():
    model, adapter = adapted("bert", targets=("query", "key"), dropout=0.3)
    model.train()
    logits(model).sum().backward()
    assert adapter.cores.core_0.grad is not None


def test_initialization_by_axis():
    config = MetaTT(init={"in": "normal", "out": "ze"})
    assert config.core_inits == ("normal", "identity", "identity", "zero")
    with pytest.raises(PatternError, match="no axis 'head'"):
        MetaTT(init={"head": "zero"})
    with pytest.raises(ConfigError, match="init: expected zero"):
        MetaTT(init={"in": "xavier"})


# What is published ------------------------------------------------------------------------------------------


def one_matrix(rows, columns):
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(rows, columns, bias=False))


def transformer(layers, names, width):
    with torch.device("meta"):
        return nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    nn.ModuleDict({n: nn.Linear(width, width) for n in names}) for _ in range(layers)
                )
            }
        )


def count(model, config):
    return attach(model, config).num_parameters


def test_parameter_counts_of_the_relatives():
    width, layers = 768, 12
    model = lambda names="qv": transformer(layers, names, width)  # noqa: E731
    targets = {"target_modules": "all-linear"}
    for r in (2, 8):
        # LoRA: a pair for each matrix, as many two-core trains.
        lora = 2 * layers * count(one_matrix(width, width), MetaTT("in out", rank=r, **targets))
        assert lora == 2 * layers * r * (width + width)
        # LoTR (Bershatsky et al., 2024): L and R shared, an r x r core for each layer and matrix.
        assert (
            count(model(), MetaTT("in (layer matrix) out", rank=r, **targets))
            == 2 * width * r + 2 * layers * r * r
        )
        # FacT-TT (Jie and Deng, 2023): 2 d r + 12 L r^2 with the MLP in 4 + 4 square chunks, 12 a layer.
        chunks = "abcdefghijkl"
        fact = count(model(chunks), MetaTT("in (layer matrix) out", rank=r, **targets))
        assert fact == 2 * width * r + 12 * layers * r * r
        # LoRTA (Hounie et al., 2024): CP of rank r over (d, d / H, H, L, matrices).
        lorta = MetaTT(
            "in layer matrix head out", rank=r, head_dim=64, diagonal=("layer", "matrix", "head"), **targets
        )
        assert count(model("qkvo"), lorta) == r * (width + 64 + 12 + layers + 4)
        # VeRA (Kopiczko et al., 2024): frozen shared A, B; here trained diagonals by layer and matrix.
        config = MetaTT("in (layer matrix) out", rank=r, frozen=("in", "out"), diagonal=("layer",), **targets)
        adapter = attach(model(), config)
        assert sum(p.numel() for p in adapter.parameters() if p.requires_grad) == 2 * layers * r
        # MetaTT-(4+1)D.
        config = MetaTT("4+1d", rank=r, tasks=["a", "b", "c"], **targets)
        assert count(model(), config) == 2 * width * r + (layers + 2 + 3) * r * r


@pytest.mark.parametrize("r", [5, 8])
def test_parameter_counts_of_the_factorized_relatives(r):
    # LoRETTA-adp and TT-LoRA factorize the widths: sum of r_{k-1} n_k r_k, one train for each matrix.
    factors = {"in": (8, 8, 12), "out": (12, 8, 8)}
    config = MetaTT("in1 in2 in3 out1 out2 out3", rank=r, factors=factors, target_modules="all-linear")
    assert count(one_matrix(768, 768), config) == r * (8 + 8) + r * r * (8 + 12 + 12 + 8)
    # LoRETTA-rep: a LoRA pair of bottleneck 8, both trains, over (8, 8, 12, 8) and (8, 12, 8, 8).
    config = MetaTT(
        "in1 in2 in3 out1 out2 out3", rank=(r, r, 8, r, r), factors=factors, target_modules="all-linear"
    )
    assert count(one_matrix(768, 768), config) == 2 * (8 * r + 8 * r * r + 12 * r * 8)
    # Shared over layers and matrices besides: only the structural modes are added.
    config = MetaTT(
        "in1 in2 in3 layer matrix out1 out2 out3", rank=r, factors=factors, target_modules="all-linear"
    )
    expected = r * 8 + r * r * (8 + 12) + r * r * (12 + 2) + r * r * (12 + 8) + r * 8
    assert count(transformer(12, "qv", 768), config) == expected
