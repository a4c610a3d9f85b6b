"""Weights and modules that a model uses in several places."""

import copy

import pytest
import torch
import transformers
from torch import nn

from tests.adapters.models import HEADS, LAYERS, TOKENS, VOCABULARY, WIDTH, logits, randomize
from ttnet.adapters import MetaTT, attach, load
from ttnet.errors import StateError


class Pair(nn.Module):
    """Two layers one after the other."""

    def __init__(self, first, second):
        super().__init__()
        self.layers = nn.ModuleList([first, second])

    def forward(self, x):
        return self.layers[1](torch.tanh(self.layers[0](x)))


def tied_pair():
    model = Pair(nn.Linear(4, 4), nn.Linear(4, 4))
    model.layers[1].weight = model.layers[0].weight
    return model


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=LAYERS,
        n_positions=16,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_shared_weight_is_not_merged():
    model = tied_pair()
    x, before = torch.randn(3, 4), state(model)
    adapter = randomize(attach(model, MetaTT(rank=2, target_modules="all-linear")))
    with torch.no_grad():
        out = model(x)
        with pytest.raises(StateError, match=r"'layers\.0', 'layers\.1'.*share one weight.*unmerged"):
            adapter.merge()
        with pytest.raises(StateError, match="share one weight"):
            adapter.detach(merge=True)
        assert torch.equal(model(x), out)
    assert same(state(adapter.detach()), before)


def test_a_weight_shared_as_memory_is_not_merged():
    model = tied_pair()
    model.layers[1].weight = nn.Parameter(model.layers[0].weight.data)
    adapter = attach(model, MetaTT(rank=2, target_modules="all-linear"))
    with pytest.raises(StateError, match="share one weight"):
        adapter.merge()


def test_an_adapted_head_tied_to_the_embedding():
    model = gpt2()
    adapter = randomize(attach(model, MetaTT("in matrix out", rank=3, target_modules=["lm_head"])))
    with pytest.raises(StateError, match=r"transformer\.wte.*lm_head|lm_head.*transformer\.wte"):
        adapter.merge()
    model.tie_weights()
    assert adapter.adapted("lm_head").weight is model.transformer.wte.weight
    with pytest.raises(StateError, match=r"the matrix is adapted.*detach the adapter, resize"):
        model.lm_head.weight = nn.Parameter(torch.zeros(VOCABULARY + 2, WIDTH))


@pytest.mark.parametrize("merge", [False, True])
def test_one_module_under_two_names_is_one_matrix(merge):
    linear = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(linear, nn.Tanh()), nn.Sequential(linear, nn.Tanh()))
    x, before = torch.randn(3, 4), state(model)
    adapter = randomize(attach(model, MetaTT(rank=2, target_modules="all-linear")))
    assert [site.name for site in adapter.layout.sites] == ["0.0"]
    assert model[0][0] is model[1][0]
    with torch.no_grad():
        out = model(x)
        twin = copy.deepcopy(linear)
        twin.weight += adapter.delta("0.0").T
        torch.testing.assert_close(out, torch.tanh(twin(torch.tanh(twin(x)))))
        adapter.merge()
        torch.testing.assert_close(model(x), out)
        adapter.unmerge()
        adapter.detach(merge=merge)
    assert model[0][0] is linear
    assert model[1][0] is linear
    assert same(state(model), before) != merge


@pytest.mark.parametrize("names", [["lm_head"], ["wte"], ["lm_head", "wte"]])
@pytest.mark.parametrize("tasks", [None, ["a", "b"]])
def test_a_tied_module_is_trained_apart_and_comes_back_tied(names, tasks, tmp_path):
    model = gpt2()
    with torch.no_grad():
        base = logits(model)
    before = state(model)
    options = {} if tasks is None else {"tasks": tasks, "heads_by": "task"}
    variant = "4d" if tasks is None else "4+1d"
    adapter = attach(
        model, MetaTT(variant, rank=2, target_modules=["c_attn"], modules_to_save=names, **options)
    )
    if tasks is not None:
        adapter.select(task="b")
    with torch.no_grad():
        assert torch.equal(logits(model), base)
    optimizer = torch.optim.SGD(adapter.parameter_groups(lr=0.5))
    logits(model).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        trained = logits(model)
        assert not torch.equal(trained, base)
        with adapter.disabled():
            assert torch.equal(logits(model), base)
            assert model.lm_head.weight is model.transformer.wte.weight
        assert torch.equal(logits(model), trained)
        adapter.save(tmp_path)
        other = gpt2()
        if tasks is not None:
            load(other, tmp_path).select(task="b")
        else:
            load(other, tmp_path)
        assert torch.equal(logits(other), trained)
        adapter.detach()
        assert torch.equal(logits(model), base)
    assert same(state(model), before)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_modules_that_are_trained_whole_stay_tied_to_each_other():
    model = gpt2()
    attach(model, MetaTT(rank=2, target_modules=["c_attn"], modules_to_save=["lm_head", "wte"]))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.requires_grad
    assert model(input_ids=TOKENS).logits.requires_grad
