"""A start from the gradient of dW."""

import pytest
import torch
from torch import nn

from tests.adapters.models import FAMILIES, adapted, logits
from ttnet import Truncation, tt_svd
from ttnet.adapters import MetaTT, attach, initialize_from_gradients
from ttnet.errors import ConfigError, NonFiniteError, StateError


def loss_of(model):
    return lambda shift: (logits(model) - shift).square().mean()


def dense_gradient(adapter, model, shifts):
    """The gradient of every dW in one dense tensor (in, layer, matrix, out), each taken by itself."""
    layout = adapter.layout
    whole = torch.zeros(layout.shape)
    for site in layout.sites:
        weight = model.get_submodule(site.name).base.weight.requires_grad_(True)
        gradient = sum(torch.autograd.grad(loss_of(model)(shift), weight)[0] for shift in shifts)
        weight.requires_grad_(False)
        place = [layout.place(mode, site) for mode in layout.pattern.middle_modes]
        rows, columns = layout.in_blocks[site.in_features], layout.out_blocks[site.out_features]
        whole[(slice(*rows), *place, slice(*columns))] = (
            gradient if type(model.get_submodule(site.name).base).__name__ == "Conv1D" else gradient.T
        )
    return whole


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pattern", ["4d", "in (layer matrix) out"])
def test_the_subspaces_are_those_of_the_dense_decomposition(name, pattern):
    model, adapter = adapted(name, pattern, "all-linear" if name == "llama" else None, random=False)
    shifts = [0.0, 1.0, -0.5]
    dense = dense_gradient(adapter, model, shifts)
    frozen = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        base = logits(model)
    start = initialize_from_gradients(adapter, shifts, loss_of(model))
    assert (start.batches, start.zero_core) == (3, 0)
    best = tt_svd(dense, Truncation(max_rank=3))
    assert start.captured == pytest.approx(float(best.norm() / dense.norm()), rel=2e-2)
    with torch.no_grad():
        assert torch.equal(logits(model), base)
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert all(p.grad is None for p in model.parameters())
    # The gradient of the zero core is the gradient of dW in the basis of the right interface.
    tail = torch.eye(1)
    for core in reversed(adapter.cores.cores[1:]):
        tail = (core.reshape(-1, core.shape[2]) @ tail).reshape(core.shape[0], -1)
    basis = torch.linalg.qr(tail.detach().T)[0]
    assert float((dense.reshape(len(dense), -1) @ basis).norm()) > 0.99 * float(best.norm())


@pytest.mark.parametrize(
    ("name", "pattern", "options"),
    [
        ("llama", "5d", {}),
        ("bert", "in1 in2 layer matrix out1 out2", {"factors": {"in": (4, 8), "out": (8, 4)}}),
        ("bert", "in2 in1 layer matrix out", {"factors": {"in": (4, 8)}}),
        ("bert", "4+1d", {"tasks": ["a", "b"]}),
        ("bert", "in (layer task) matrix out", {"tasks": ["a", "b"]}),
        ("gpt2", "4d", {"split": "auto"}),
        ("bert", "4d", {"init": "no-id-id-ze"}),
        ("bert", "in layer head out", {"target_modules": ["query"]}),
    ],
)
def test_every_pattern_starts_at_the_base_and_learns_faster_than_chance(name, pattern, options):
    model = FAMILIES[name].build()
    targets = options.pop("target_modules", FAMILIES[name].query_value)
    adapter = attach(model, MetaTT(pattern, rank=3, target_modules=targets, **options))
    if adapter.layout.runtime:
        adapter.select(task="b")
    loss = loss_of(model)
    with torch.no_grad():
        base = logits(model)
    ranks, parameters = adapter.cores.ranks, adapter.cores.core_parameters()
    start = initialize_from_gradients(adapter, [0.3], loss)
    assert 0.2 < start.captured <= 1
    assert adapter.cores.ranks == ranks
    assert adapter.cores.core_parameters() == parameters
    with torch.no_grad():
        torch.testing.assert_close(logits(model), base)
    # A step of the zero core moves dW by what its subspaces hold of the gradient.
    core = parameters[start.zero_core]
    informed = torch.autograd.grad(loss(0.3), core)[0].norm()
    others = []
    for _ in range(5):
        twin = FAMILIES[name].build()
        state = model.state_dict().items()
        twin.load_state_dict({k.replace(".base.", "."): v for k, v in state if "tt_" not in k})
        other = attach(twin, MetaTT(pattern, rank=3, target_modules=targets, **options))
        if other.layout.runtime:
            other.select(task="b")
        with torch.no_grad():
            for each in other.cores.core_parameters():
                each.normal_()
        pairs = enumerate(zip(other.cores.cores, adapter.cores.cores, strict=True))
        other.cores.assign(
            [torch.zeros_like(c) if k == start.zero_core else c / c.norm() * p.norm() for k, (c, p) in pairs]
        )
        core = other.cores.core_parameters()[start.zero_core]
        others.append(torch.autograd.grad(loss_of(twin)(0.3), core)[0].norm())
    assert informed > max(others)


def test_what_cannot_start_from_gradients_is_refused():
    model, adapter = adapted("bert")
    with pytest.raises(ConfigError, match="batches: expected at least one"):
        initialize_from_gradients(adapter, [], loss_of(model))
    with pytest.raises(NonFiniteError, match="norm 0"):
        initialize_from_gradients(adapter, [0.0], lambda shift: 0.0 * logits(model).sum() + shift)
    adapter.merge()
    with pytest.raises(StateError, match="merged"):
        initialize_from_gradients(adapter, [0.0], loss_of(model))
    model, adapter = adapted("bert", "layer in matrix out")
    with pytest.raises(ConfigError, match="between 'in' and 'out'"):
        initialize_from_gradients(adapter, [0.0], loss_of(model))
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, MetaTT("4d", rank=2, target_modules="all-linear", diagonal=["layer"]))
    with pytest.raises(ConfigError, match="no diagonal cores"):
        initialize_from_gradients(adapter, [0.0], loss_of(model))


def test_places_that_share_a_mode_do_not_count_twice():
    found = []
    for pattern in ("in layer task matrix out", "in layer (task matrix) out"):
        torch.manual_seed(4)
        model = FAMILIES["bert"].build()
        adapter = attach(
            model, MetaTT(pattern, rank=1, tasks=["a", "b", "c"], target_modules=["query", "value"])
        )
        adapter.select(task="a")
        found.append(initialize_from_gradients(adapter, [0.3], loss_of(model)).captured)
    assert found[0] < 0.99
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_ranks_that_the_gradient_cannot_fill():
    model, adapter = adapted("bert", rank=(8, 1, 1), random=False)
    with torch.no_grad():
        base = logits(model)
    initialize_from_gradients(adapter, [0.3], loss_of(model))
    assert adapter.cores.ranks == (1, 8, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(logits(model), base)


def test_a_start_while_one_task_is_trained_is_refused():
    model = FAMILIES["bert"].build()
    adapter = attach(model, MetaTT("4+1d", rank=2, tasks=["a", "b"], init="normal"))
    adapter.train_only("a")
    before = [core.detach().clone() for core in adapter.cores.cores]
    with pytest.raises(StateError, match="train_only is on"):
        initialize_from_gradients(adapter, [0.0], loss_of(model))
    assert all(torch.equal(one, other) for one, other in zip(before, adapter.cores.cores, strict=True))
