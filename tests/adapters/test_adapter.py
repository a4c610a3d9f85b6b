"""Merge, unmerge, disable, detach, and the error of every matrix."""

import pytest
import torch
from torch import nn

from tests.adapters.models import FAMILIES, TOKENS, adapted, bert, logits, naive_delta, randomize
from ttnet import TensorTrain, Truncation
from ttnet.adapters import MetaTT, attach
from ttnet.errors import DTypeError, NonFiniteError, ShapeError, StateError


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ["4d", "5d"])
def test_merging_keeps_the_outputs_and_unmerging_the_bits(name, variant):
    model, adapter = adapted(name, variant, "all-linear")
    before = state(model)
    with torch.no_grad():
        out = logits(model)
        adapter.merge()
        assert adapter.merged
        torch.testing.assert_close(logits(model), out, rtol=1e-3, atol=1e-4)
        adapter.unmerge()
        assert same(state(model), before)
        assert torch.equal(logits(model), out)


def test_merging_in_double_precision_is_exact_to_rounding():
    model, adapter = adapted("gpt2", targets=("c_attn", "c_proj", "c_fc"))
    model.double()
    with torch.no_grad():
        out = logits(model)
        adapter.merge()
        torch.testing.assert_close(logits(model), out, rtol=1e-10, atol=1e-11)


def test_merging_twice_or_unmerging_before_is_refused():
    _, adapter = adapted("bert")
    with pytest.raises(StateError, match=r"call merge\(\) first"):
        adapter.unmerge()
    adapter.merge()
    with pytest.raises(StateError, match=r"call unmerge\(\) first"):
        adapter.merge()


def test_a_merge_that_is_not_finite_changes_nothing():
    model, adapter = adapted("bert")
    with torch.no_grad():
        adapter.cores.core_1[:, 1] = float("nan")
    before = state(model)
    with pytest.raises(NonFiniteError, match=r"layer\.1"):
        adapter.merge()
    after = state(model)
    assert all(torch.equal(after[name], before[name]) for name in before if "core_1" not in name)
    assert not adapter.merged


def test_a_quantized_weight_is_not_merged():
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, MetaTT(rank=2, target_modules="all-linear"))
    model[0].base.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DTypeError, match="quantized"):
        adapter.merge()


def test_training_while_merged_is_refused():
    model, adapter = adapted("bert")
    adapter.merge()
    logits(model)
    model.train()
    with pytest.raises(StateError, match="unmerge"):
        logits(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_disabled_is_the_base_model_to_the_bit(name):
    model = FAMILIES[name].build()
    with torch.no_grad():
        base = logits(model)
        adapter = randomize(attach(model, MetaTT(rank=3, target_modules="all-linear")))
        for module in adapter.saved_modules:
            for parameter in model.get_submodule(module).parameters():
                parameter.add_(1.0)
        trained = logits(model)
        with adapter.disabled():
            assert torch.equal(logits(model), base)
            with adapter.disabled():
                assert torch.equal(logits(model), base)
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), trained)
        adapter.merge()
        merged = logits(model)
        with adapter.disabled():
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), merged)
        with pytest.raises(IndexError), adapter.disabled():
            model(input_ids=TOKENS + 1000)
        assert torch.equal(logits(model), merged)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("merged", [False, True])
def test_detach_gives_the_model_back_as_it_was(name, merged):
    model = FAMILIES[name].build()
    frozen = next(model.parameters()).requires_grad_(False)
    before, types = state(model), [type(module) for module in model.modules()]
    with torch.no_grad():
        base = logits(model)
    adapter = randomize(attach(model, MetaTT(rank=3, target_modules="all-linear")))
    with torch.no_grad():
        for module in adapter.saved_modules:
            for parameter in model.get_submodule(module).parameters():
                parameter.add_(1.0)
    if merged:
        adapter.merge()
    assert adapter.detach() is model
    assert [type(module) for module in model.modules()] == types
    assert same(state(model), before)
    assert not frozen.requires_grad
    assert sum(not parameter.requires_grad for parameter in model.parameters()) == 1
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(logits(model), base)
    with pytest.raises(StateError, match="not attached"):
        adapter.detach()
    attach(model, MetaTT(rank=2, target_modules="all-linear"))


def test_detach_can_keep_what_was_learned():
    model, adapter = adapted("bert")
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
        out = logits(model)
        adapter.detach(merge=True)
        torch.testing.assert_close(logits(model), out, rtol=1e-4, atol=1e-5)
    assert not hasattr(model, "tt_adapter")


def test_one_adapter_at_a_time():
    model, _ = adapted("bert")
    with pytest.raises(StateError, match="has an adapter already"):
        attach(model, MetaTT())


def test_reading_needs_the_name_of_an_adapted_matrix():
    _, adapter = adapted("bert")
    with pytest.raises(ShapeError, match=r"'bert\.pooler' is not an adapted matrix"):
        adapter.factors("bert.pooler")


@pytest.mark.parametrize("variant", ["4d", "5d", "in (layer matrix) out"])
def test_the_error_of_every_matrix_is_exact(variant):
    _, adapter = adapted("llama", variant, "all-linear", rank=6)
    before = adapter.tensor_train()
    after = before.truncate(Truncation(max_rank=3))
    errors = adapter.matrix_errors(before, after)
    wholes = {site.name: naive_delta(adapter, site.name) for site in adapter.layout.sites}
    adapter.cores.assign(after)
    for name, whole in wholes.items():
        expected = float((whole - naive_delta(adapter, name)).norm() / whole.norm())
        assert errors[name] == pytest.approx(expected, rel=1e-4)
    assert list(errors) == list(wholes)


def test_the_error_of_a_matrix_that_vanishes():
    _, adapter = adapted("bert")
    train = adapter.tensor_train()
    zero = TensorTrain([torch.zeros_like(core) for core in train.cores])
    assert set(adapter.matrix_errors(zero, zero).values()) == {0.0}
    assert set(adapter.matrix_errors(zero, train).values()) == {float("inf")}
    assert all(error == pytest.approx(1.0) for error in adapter.matrix_errors(train, zero).values())
    assert all(error < 1e-7 for error in adapter.matrix_errors(train, train).values())


def test_names_of_torch_keep_their_meaning():
    model = bert()
    adapter = attach(model, MetaTT())
    assert adapter.train() is adapter
    assert adapter.num_parameters == sum(p.numel() for p in adapter.parameters())
    assert "pattern='in layer matrix out'" in repr(adapter)


def test_an_adapter_that_was_taken_off_changes_nothing():
    model, old = adapted("bert")
    old.detach()
    attach(model, MetaTT(rank=2))
    before = state(model)
    for act in (old.merge, old.detach, old.disabled().__enter__):
        with pytest.raises(StateError, match="not attached"):
            act()
    assert same(state(model), before)


def test_a_detach_that_fails_leaves_the_adapter_on():
    model, adapter = adapted("bert")
    layer = model.bert.encoder.layer[1].attention.self
    kept, layer.value = layer.value, nn.Linear(32, 32)
    with pytest.raises(StateError, match="was replaced after attach"):
        adapter.detach()
    layer.value = kept
    assert all(adapter.adapted(name) for name in adapter.layout.modules)
    assert adapter.detach() is model


def test_originals_keep_their_bits_in_a_narrower_dtype():
    model, adapter = adapted("bert")
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    model.bfloat16()
    with adapter.disabled():
        assert model.classifier.weight.dtype == torch.bfloat16
    model.float()
    adapter.detach()
    assert same(model.classifier.state_dict(), before)


def test_a_sum_that_overflows_is_not_merged():
    model = nn.Sequential(nn.Linear(4, 4)).half()
    adapter = randomize(attach(model, MetaTT(rank=2, alpha=1e6, target_modules="all-linear")))
    before = model[0].weight.clone()
    with pytest.raises(NonFiniteError, match=r"W \+ dW of '0' is not finite in torch\.float16"):
        adapter.merge()
    assert torch.equal(model[0].weight, before)


def test_cores_without_values_are_not_made_real():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    attach(model, MetaTT(rank=2, target_modules="all-linear"))
    with pytest.raises(StateError, match="meta device"):
        model.to_empty(device="cpu")
