"""What an adapted model computes, against the naive twin that holds W + dW."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn

from tests.adapters.models import FAMILIES, TOKENS, adapted, bert, dense_model, logits, naive_delta, randomize
from ttnet.adapters import Axis, MetaTT, TTAdapterConfig, attach, load
from ttnet.errors import ConfigError, PatternError, StateError

ALL = {
    "bert": "all-linear",
    "roberta": ("query", "key", "value", "attention.output.dense"),
    "mpnet": "all-linear",
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": "all-linear",
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ["4d", "5d"])
def test_output_is_unchanged_to_the_bit_at_the_start(name, variant):
    model = FAMILIES[name].build()
    with torch.no_grad():
        before = logits(model)
        adapter = attach(model, MetaTT(variant, rank=3, target_modules=FAMILIES[name].query_value))
        assert torch.equal(logits(model), before)
    assert all(torch.count_nonzero(adapter.delta(site.name)) == 0 for site in adapter.layout.sites)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "variant", ["4d", "5d", "in (layer matrix) out", "in matrix layer out", "in layer out"]
)
@pytest.mark.parametrize("targets", ["some", "all"])
def test_forward_equals_the_dense_twin(name, variant, targets):
    chosen = ALL[name] if targets == "all" else None
    model, adapter = adapted(name, variant, chosen)
    model.double()
    twin = dense_model(model, adapter)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(twin))
        assert not torch.allclose(logits(model), logits(adapter.detach()), atol=1e-3)


def test_factors_of_every_matrix_equal_the_naive_ones():
    _, adapter = adapted("llama", "5d", "all-linear", rank=(3, 4, 2, 5))
    built = adapter.workspace._build().pairs(torch.float32)
    for k, site in enumerate(adapter.layout.sites):
        naive = naive_delta(adapter, site.name)
        left, right = adapter.factors(site.name)
        assert left.shape == (site.in_features, 3)
        assert right.shape == (3, site.out_features)
        torch.testing.assert_close((left @ right).double(), naive, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(built[k][0] @ built[k][1], left @ right)


def test_widths_are_a_disjoint_union():
    _, adapter = adapted("llama", targets="all-linear")
    layout = adapter.layout
    assert layout.in_blocks == {32: (0, 32), 48: (32, 80)}
    assert layout.out_blocks == {32: (0, 32), 16: (32, 48), 48: (48, 96)}
    assert layout.shape == (80, 2, 7, 96)
    assert len(layout.presence) == 14


def test_heads_are_a_prefix():
    _, adapter = adapted("llama", "5d", "all-linear")
    assert adapter.layout.shape == (80, 2, 7, 6, 8)
    _, adapter = adapted("gpt2", "5d")
    assert adapter.layout.shape == (32, 2, 1, 12, 8)


def test_only_the_cores_and_the_classifier_are_trainable():
    for name, family in FAMILIES.items():
        model, _ = adapted(name)
        trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        cores = {key for key in trainable if key.startswith("tt_adapter.cores.core_")}
        assert len(cores) == 4
        assert {key.split(".")[0] for key in trainable - cores} == set(family.heads)


def test_the_cores_are_once_in_the_state_dict():
    model, adapter = adapted("bert")
    keys = [key for key in model.state_dict() if "core_" in key]
    assert keys == [f"tt_adapter.cores.core_{k}" for k in range(4)]
    assert sum(p is adapter.cores.core_0 for p in model.parameters()) == 1
    assert [name for name, module in model.named_modules() if module is adapter] == ["tt_adapter"]


def test_gradients_equal_those_of_the_naive_twin():
    model, adapter = adapted("bert", targets=("query", "key", "value"))
    model.double()
    logits(model).square().sum().backward()
    gradients = [core.grad.clone() for core in adapter.cores.core_parameters()]
    twin = copy.deepcopy(model)
    for core in twin.tt_adapter.cores.core_parameters():
        core.grad = None
    weights = {}
    cores = twin.tt_adapter.cores.cores
    for site in adapter.layout.sites:
        layer, matrix = (axis.labels.index(site.coordinates[axis.name]) for axis in adapter.layout.axes)
        delta = 2.0 * cores[0][0] @ cores[1][:, layer] @ cores[2][:, matrix] @ cores[3][:, :, 0]
        weights[f"{site.name}.base.weight"] = twin.get_submodule(site.name).weight + delta.T
    twin.tt_adapter.bypassed = True
    out = torch.func.functional_call(twin, weights, kwargs={"input_ids": TOKENS}).logits
    for mine, other in zip(gradients, torch.autograd.grad(out.square().sum(), cores), strict=True):
        torch.testing.assert_close(mine, other)


def test_gradient_accumulation_rebuilds_the_factors():
    model, adapter = adapted("bert")
    loss = logits(model).square().sum()
    once = torch.autograd.grad(loss, adapter.cores.core_parameters())
    for _ in range(2):
        logits(model).square().sum().backward()
    for core, gradient in zip(adapter.cores.core_parameters(), once, strict=True):
        torch.testing.assert_close(core.grad, 2 * gradient, rtol=1e-5, atol=1e-6)


def test_two_forwards_then_one_backward():
    model, adapter = adapted("bert")
    once = torch.autograd.grad(logits(model).square().sum(), adapter.cores.core_parameters())
    (logits(model).square().sum() + logits(model).square().sum()).backward()
    for core, gradient in zip(adapter.cores.core_parameters(), once, strict=True):
        torch.testing.assert_close(core.grad, 2 * gradient, rtol=1e-5, atol=1e-6)


class CountedProducts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts products that have a factor A as right operand."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default and tuple(args[1].shape) == self.shape:
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "targets", "each"), [("bert", ("query", "key", "value"), 1), ("llama", "all-linear", 4)]
)
def test_x_times_a_is_computed_once_for_all_that_read_x(name, targets, each):
    model, _ = adapted(name, targets=targets)
    counted = 0
    with torch.no_grad():
        for width in (32, 48):
            with CountedProducts((width, 3)) as products:
                logits(model)
            counted += products.count
    assert counted == 2 * each  # layers times distinct inputs: q k v, o, gate up, down


def test_x_changed_in_place_is_projected_anew():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})])

        def forward(self, x):
            first = self.layers[0]["a"](x)
            x.mul_(2.0)
            return first, self.layers[0]["b"](x)

    model = Changing()
    adapter = randomize(attach(model, MetaTT(rank=2, target_modules="all-linear")))
    x = torch.randn(3, 4)
    with torch.no_grad():
        _, second = model(x.clone())
        expected = (
            2 * x @ (model.layers[0]["b"].weight.T + adapter.delta("layers.0.b")) + model.layers[0]["b"].bias
        )
    torch.testing.assert_close(second, expected)


def test_nothing_is_held_after_the_forward():
    model, adapter = adapted("bert")
    logits(model)
    assert adapter.workspace._held is adapter.workspace._current is adapter.workspace._replayed is None
    with pytest.raises(IndexError):
        model(input_ids=TOKENS + 1000)
    assert not adapter.workspace.inside
    assert adapter.workspace._held is None


def test_factors_are_cached_without_grad_until_a_core_changes():
    model, adapter = adapted("bert")
    with torch.no_grad():
        first = logits(model)
        kept = adapter.workspace._cached[1]
        assert torch.equal(logits(model), first)
        assert adapter.workspace._cached[1] is kept
        adapter.cores.core_3.mul_(2.0)
        assert not torch.equal(logits(model), first)
    adapter.cores.assign(adapter.tensor_train() * 0.0)
    with torch.no_grad(), adapter.disabled():
        base = logits(model)
    with torch.no_grad():
        assert torch.equal(logits(model), base)


def test_a_submodule_called_alone_is_right_with_and_without_grad():
    model, adapter = adapted("bert")
    name = FAMILIES["bert"].query
    x = torch.randn(2, 5, 32)
    module = model.get_submodule(name)
    with torch.no_grad():
        expected = x @ (module.weight.T + adapter.delta(name)) + module.bias
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    for _ in range(2):
        module(x).sum().backward()
    assert adapter.cores.core_0.grad is not None
    hidden = model.bert(input_ids=TOKENS).last_hidden_state
    twin = dense_model(model, adapter).bert(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(hidden, twin, rtol=1e-4, atol=1e-5)


def test_inference_mode_then_training():
    model, adapter = adapted("bert")
    with torch.inference_mode():
        first = logits(model)
    for core in adapter.cores.core_parameters():
        core.requires_grad_(False)
    out = model(inputs_embeds=torch.randn(1, 4, 32, requires_grad=True)).logits
    out.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), first)


def test_a_copy_of_the_model_has_an_adapter_of_its_own():
    model, adapter = adapted("bert")
    loss = logits(model).sum()  # a live graph must not disturb the copy
    twin = copy.deepcopy(model)
    loss.backward()
    other = twin.tt_adapter
    name = FAMILIES["bert"].query
    assert other is not adapter
    assert twin.get_submodule(name).adapter is other
    assert model.get_submodule(name).adapter is adapter
    with torch.no_grad():
        before = logits(model)
        assert torch.equal(logits(twin), before)
        other.cores.core_0.mul_(3.0)
        assert torch.equal(logits(model), before)
        assert not torch.equal(logits(twin), before)
        other.cores.core_0.copy_(adapter.cores.core_0)
    other.detach()
    assert not hasattr(twin, "tt_adapter")
    assert not twin._forward_hooks
    assert model._forward_hooks


def test_pickle():
    model, _ = adapted("bert")
    twin = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(logits(twin), logits(model))
    assert twin.get_submodule(FAMILIES["bert"].query).adapter is twin.tt_adapter


def test_the_state_dict_loads_other_ranks():
    model, adapter = adapted("bert", rank=(2, 3, 4))
    twin, other = adapted("bert", rank=5)
    twin.load_state_dict(model.state_dict())
    assert other.cores.ranks == adapter.cores.ranks
    with torch.no_grad():
        assert torch.equal(logits(twin), logits(model))


def test_a_merged_bond_works_as_two_cores():
    model, adapter = adapted("bert")
    with torch.no_grad():
        before = logits(model)
    for bond in range(3):
        with adapter.cores.merged(bond) as block:
            torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
            (gradient,) = torch.autograd.grad(logits(model).square().sum(), block)
            assert gradient.shape == block.shape
            assert gradient.norm() > 0


def test_torch_transformer_layers_leave_their_fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    adapter = randomize(attach(model, MetaTT(rank=2, target_modules=["linear1", "linear2"])))
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        out = model(x)
        adapter.merge()
        torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-5)
        with adapter.disabled():
            assert not torch.allclose(model(x), out, atol=1e-3)


def test_hooks_on_the_base_are_run():
    model, _ = adapted("bert")
    module = model.get_submodule(FAMILIES["bert"].query)
    seen = []
    with torch.no_grad():
        expected = logits(model)
        module.base.register_forward_hook(lambda *args: seen.append(args[2].shape))
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    assert len(seen) == 1


def test_a_linear_subclass_is_called_as_it_is():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(4, 5))
    adapter = randomize(attach(model, MetaTT(rank=2, target_modules="all-linear")))
    x = torch.randn(3, 4)
    expected = 2 * (x @ model[0].weight.T + model[0].bias) + x @ adapter.delta("0")
    torch.testing.assert_close(model(x), expected)


def test_model_code_reads_the_base_through_the_layer():
    model, _ = adapted("bert")
    module = model.get_submodule(FAMILIES["bert"].query)
    assert module.weight is module.base.weight
    assert module.bias is module.base.bias
    assert (module.in_features, module.out_features) == (32, 32)


def test_stacks_of_an_encoder_decoder_stay_apart():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    adapter = randomize(attach(model, MetaTT(rank=2)))
    assert dict(zip(["in", "layer", "matrix", "out"], adapter.layout.shape, strict=True))["matrix"] == 6
    twin = dense_model(model, adapter)
    with torch.no_grad():
        inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
        torch.testing.assert_close(model(**inputs).logits, twin(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_coordinates_and_axes_of_the_users_own(tmp_path):
    def where(name, module):  # noqa: ARG001
        block, kind = name.split(".")[3], name.rsplit(".", 1)[-1]
        return {"half": "low" if int(block) < 1 else "high", "kind": kind}

    model = bert()
    config = TTAdapterConfig(
        pattern="in half kind out",
        axes=(Axis("half", labels=("low", "high")), Axis("kind", size=2)),
        rank=2,
        target_modules=("query", "value"),
    )
    adapter = randomize(attach(model, config, coordinates=where))
    assert adapter.layout.shape == (32, 2, 2, 32)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(dense_model(model, adapter)), rtol=1e-4, atol=1e-5)
    adapter.save(tmp_path)
    assert load(adapter.detach(), tmp_path).layout == adapter.layout


def test_coordinates_that_do_not_fit_are_refused():
    config = MetaTT(target_modules=["query", "value"])
    with pytest.raises(PatternError, match="have the same labels"):
        attach(bert(), config, coordinates=lambda name, module: {"layer": 0, "matrix": "q"})  # noqa: ARG005
    with pytest.raises(PatternError, match="has the label None; use an integer or a text"):
        attach(bert(), config, coordinates=lambda name, module: {"layer": None, "matrix": name})  # noqa: ARG005
    declared = MetaTT("in half out", axes=[Axis("half", labels=["low"])], target_modules=["query"])
    with pytest.raises(PatternError, match=r"labels \['high'\] are used"):
        attach(bert(), declared, coordinates=lambda name, module: {"half": "high", "name": name})  # noqa: ARG005


def test_generate_with_a_cache_gives_the_tokens_of_the_merged_model():
    model, adapter = adapted("llama", targets="all-linear")
    options = {"max_new_tokens": 5, "do_sample": False}
    tokens = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **options)
    adapter.merge()
    assert torch.equal(model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **options), tokens)


def test_factors_do_not_outlive_tensors_that_stood_in_for_the_cores():
    model, adapter = adapted("bert")
    cores = {f"tt_adapter.cores.{name}": p.detach().numpy() for name, p in adapter.cores.named_parameters()}
    memory = {name: core.copy() for name, core in cores.items()}

    def run(factor):
        for name, core in cores.items():
            memory[name][:] = core * factor
        scaled = {name: torch.from_numpy(core) for name, core in memory.items()}  # new, at the old place
        with torch.no_grad():
            return torch.func.functional_call(model, scaled, kwargs={"input_ids": TOKENS}).logits

    outs = [run(factor) for factor in (0.5, 1.0, 1.5)]
    with torch.no_grad():
        assert torch.equal(outs[1], logits(model))
    assert not torch.allclose(outs[0], outs[1], atol=1e-4)
    assert not torch.allclose(outs[1], outs[2], atol=1e-4)


@pytest.mark.parametrize("notice", ["refresh", "eval", "step"])
def test_cores_changed_past_the_version_counter(notice):
    model, adapter = adapted("bert")
    with torch.no_grad():
        old = logits(model)
    if notice == "step":
        logits(model)
    for core in adapter.cores.core_parameters():
        core.data.mul_(1.5)
    if notice != "step":
        getattr(adapter if notice == "refresh" else model, notice)()
    with torch.no_grad():
        out = logits(model)
    assert not torch.allclose(out, old, atol=1e-3)
    torch.testing.assert_close(out, logits(model).detach())


class Reading(nn.Module):
    """Reads the weight of its linear module, as the attention of WavLM does, and calls it on demand."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)})])

    def forward(self, x, called=()):
        for name, module in self.layers[0].items():
            x = module(x) if name in called else nn.functional.linear(x, module.weight, module.bias)
        return x


def test_an_adapter_that_nothing_calls_is_warned_of_once():
    model = Reading()
    adapter = attach(model, MetaTT(rank=2))
    with torch.no_grad():
        model(torch.randn(2, 4))
    with adapter.disabled():
        model(torch.randn(2, 4))
    with pytest.warns(UserWarning, match=r"no adapted module was called, 'layers\.0\.q_proj' and the others"):
        model(torch.randn(2, 4))
    model(torch.randn(2, 4))


class Router(nn.Linear):
    def forward(self, hidden_states, scale=1.0):
        scores = super().forward(hidden_states)
        return scale * scores, scores


class Scaled(nn.Linear):
    def forward(self, hidden_states, scale=1.0):
        return scale * super().forward(hidden_states)


def test_a_module_may_be_called_by_name_and_with_more():
    model = nn.ModuleList([Scaled(4, 4), nn.Linear(4, 4), Router(4, 4)])
    adapter = randomize(attach(model, MetaTT("in layer out", rank=2, target_modules="all-linear")))
    assert list(adapter.layout.modules) == ["0", "1"]  # a router returns no product
    x = torch.randn(3, 4)
    change = x @ adapter.delta("0")
    torch.testing.assert_close(model[0](x, 3.0), model[0].base(x, 3.0) + change)
    torch.testing.assert_close(model[0](hidden_states=x, scale=2.0), model[0].base(x, 2.0) + change)
    torch.testing.assert_close(model[1](input=x), model[1](x))
    with pytest.raises(TypeError, match="expected a tensor"):
        model[1]()
    with adapter.disabled():
        assert torch.equal(model[0](hidden_states=x, scale=2.0), model[0].base(x, 2.0))
    adapter.detach()
    attach(model, MetaTT("in out", rank=2, target_modules=["2"]))
    with pytest.raises(ConfigError, match=r"'2' is Router and returns tuple.*exclude_modules=\['2'\]"):
        model[2](x)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_torch_encoders_make_no_nested_tensors_while_they_are_adapted():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 4, 16), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding)
        adapter = attach(model, MetaTT(rank=2, target_modules="all-linear"))
        out = model(x, src_key_padding_mask=padding)
        torch.testing.assert_close(out[~padding], before[~padding])
        adapter.detach()
        assert torch.equal(model(x, src_key_padding_mask=padding), before)


def test_a_part_that_runs_without_grad_is_named():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower, self.layers = nn.ModuleList([nn.Linear(4, 4)]), nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x):
            with torch.no_grad():
                x = self.tower[0](x)
            return self.layers[0](x)

    model = Tower()
    attach(model, MetaTT("in stack out", rank=2, target_modules="all-linear"))
    with pytest.raises(StateError, match=r"'tower\.0' runs without grad.*exclude_modules"):
        model(torch.randn(2, 4))
