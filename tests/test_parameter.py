import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import dense
from tests.strategies import DTYPES, eps, trains
from ttnet import TensorTrain, TTParameter, random_train
from ttnet.errors import DTypeError, ShapeError, StateError


def example(shape=(3, 4, 2, 3), rank=2, *, seed=0, dtype=torch.float64):
    return random_train(shape, rank, seed=seed, dtype=dtype)


def energy(train):
    """A loss that is not linear in any core."""
    full = train.full()
    return (full.abs() ** 2).sum() + (full.real**3).sum()


def values(parameter):
    return [core.detach().clone() for core in parameter.core_parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Values


@given(trains(storage=True))
def test_a_parameter_holds_a_copy(train):
    parameter = TTParameter(train)
    assert parameter.shape == train.shape
    assert parameter.ranks == train.ranks
    assert equal(parameter.cores, train.cores)
    assert all(
        isinstance(core, nn.Parameter) and core.requires_grad and core.is_contiguous()
        for core in parameter.cores
    )
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(parameter.cores, train.cores, strict=True))
    snapshot = parameter.tensor_train()
    assert equal(snapshot.cores, train.cores)
    assert not any(core.requires_grad for core in snapshot.cores)
    with torch.no_grad():
        parameter.cores[0].add_(1)
    assert equal(snapshot.cores, train.cores)


def test_parameters_are_named_one_level_deep():
    parameter = TTParameter(list(example().cores))
    names = ["core_0", "core_1", "core_2", "core_3"]
    assert [name for name, _ in parameter.named_parameters()] == names
    assert list(parameter.state_dict()) == names
    assert repr(parameter) == "TTParameter(shape=(3, 4, 2, 3), ranks=(1, 2, 2, 2, 1))"


def test_the_live_train_differentiates_into_the_parameters():
    train = example()
    parameter = TTParameter(train)
    energy(parameter()).backward()
    leaves = [core.clone().requires_grad_() for core in train.cores]
    expected = torch.autograd.grad(energy(TensorTrain(leaves)), leaves)
    for core, gradient in zip(parameter.cores, expected, strict=True):
        torch.testing.assert_close(core.grad, gradient)


def test_what_is_no_train_is_refused():
    with pytest.raises(ShapeError, match=r"^cores: expected equal ranks at bond 0"):
        TTParameter([torch.ones(1, 2, 3), torch.ones(2, 2, 1)])
    with pytest.raises(DTypeError, match=r"^dtype: "):
        TTParameter([torch.ones(1, 2, 1, dtype=torch.int64)])


# Assign


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_assign_keeps_every_parameter_the_same_object(dtype, rank, device):
    parameter = TTParameter(example(dtype=dtype)).to(device)
    before = parameter.core_parameters()
    optimizer = torch.optim.SGD(parameter.parameters(), lr=0.1)
    energy(parameter()).backward()
    new = example(rank=rank, seed=1, dtype=dtype)
    parameter.assign(new)
    assert all(a is b for a, b in zip(parameter.core_parameters(), before, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], before, strict=True))
    assert parameter.ranks == new.ranks
    assert equal([core.cpu() for core in parameter.cores], new.cores)
    for core in parameter.cores:
        assert core.grad is None
        assert core.requires_grad
        assert core.is_leaf
        assert core.is_contiguous()
    energy(parameter()).backward()
    assert all(core.grad.shape == core.shape for core in parameter.cores)
    optimizer.step()
    assert not equal([core.cpu() for core in parameter.cores], new.cores)


def test_assigned_values_are_a_copy():
    parameter, train = TTParameter(example()), example(rank=4, seed=1)
    expected = [core.clone() for core in train.cores]
    parameter.assign(train)
    with torch.no_grad():
        parameter.cores[0].zero_()
    assert equal(train.cores, expected)
    same = values(parameter)
    parameter.assign(parameter.cores)
    assert equal(parameter.cores, same)


def test_assign_converts_to_the_dtype_of_the_parameters():
    parameter = TTParameter(example(dtype=torch.float32))
    parameter.assign(example(seed=1, dtype=torch.float64))
    assert {core.dtype for core in parameter.cores} == {torch.float32}
    parameter.assign(list(example(seed=1, dtype=torch.bfloat16).cores))
    assert {core.dtype for core in parameter.cores} == {torch.float32}
    complex_parameter = TTParameter(example(dtype=torch.complex64))
    complex_parameter.assign(example(seed=1, dtype=torch.float64))
    assert complex_parameter.cores[0].dtype == torch.complex64


def test_assign_leaves_a_frozen_parameter_frozen():
    parameter = TTParameter(example()).requires_grad_(False)
    parameter.assign(example(rank=3))
    assert not any(core.requires_grad for core in parameter.cores)


@pytest.mark.parametrize("rank", [2, 1, 4], ids=["same", "lower", "higher"])
def test_a_graph_from_before_is_refused_by_torch(rank):
    parameter = TTParameter(example())
    loss = energy(parameter())
    parameter.assign(example(rank=rank, seed=1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_bad_values_are_refused_and_change_nothing():
    parameter = TTParameter(example())
    before, signature = values(parameter), parameter.signature()
    with pytest.raises(ShapeError, match=r"^train: expected mode sizes \(3, 4, 2, 3\), got \(3, 4, 2\)"):
        parameter.assign(example((3, 4, 2)))
    with pytest.raises(ShapeError, match=r"^cores: expected boundary ranks of 1"):
        parameter.assign(parameter.cores[:-1])
    with pytest.raises(DTypeError, match=r"^train: expected real cores, .*got torch\.complex64"):
        parameter.assign(example(dtype=torch.complex64))
    assert equal(parameter.cores, before)
    assert parameter.signature() == signature


# Signature


def change_in_place(parameter):
    with torch.no_grad():
        parameter.cores[1].mul_(1.0)


def replace_data(parameter):
    parameter.cores[1].data = parameter.cores[1].data.clone()


CHANGES = {
    "in place": change_in_place,
    "data": replace_data,
    "assign": lambda p: p.assign(example(seed=1)),
    "assign other ranks": lambda p: p.assign(example(rank=3)),
    "load": lambda p: p.load_state_dict(TTParameter(example(seed=1)).state_dict()),
    "load other ranks": lambda p: p.load_state_dict(TTParameter(example(rank=3)).state_dict()),
    "dtype": lambda p: p.float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_signature_changes_with_the_values(change):
    parameter = TTParameter(example())
    before = parameter.signature()
    assert hash(before) == hash(parameter.signature())
    parameter().full()
    assert parameter.signature() == before
    change(parameter)
    assert parameter.signature() != before


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_signature_changes_with_every_step_of_an_optimizer(make):
    parameter = TTParameter(example())
    optimizer = make(parameter.parameters())
    seen = {parameter.signature()}
    for _ in range(3):
        optimizer.zero_grad()
        energy(parameter()).backward()
        assert parameter.signature() in seen
        optimizer.step()
        assert parameter.signature() not in seen
        seen.add(parameter.signature())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_signature_changes_with_a_merged_block(dtype):
    parameter = TTParameter(example(dtype=dtype))
    outside = parameter.signature()
    with parameter.merged(1) as block:
        inside = parameter.signature()
        parameter().full()
        assert parameter.signature() == inside != outside
        with torch.no_grad():
            block.mul_(2)
        assert parameter.signature() != inside
        changed = parameter.signature()
        with torch.no_grad():
            parameter.core_0.mul_(1)
        assert parameter.signature() != changed
    assert parameter.signature() != outside  # core_0 was written to


def test_signature_tells_stand_ins_apart_that_lie_in_the_same_memory():
    parameter = TTParameter(example((4, 4, 4, 4), [4, 4, 4]))
    seen = set()
    for bond in (0, 0, 1, 1, 2):
        with parameter.merged(bond) as block:
            signature = parameter.signature()
            del block
        gc.collect()
        assert signature not in seen
        seen.add(signature)
    for seed in range(5):
        with parameter.substituted(example((4, 4, 4, 4), [4, 4, 4], seed=seed)):
            signature = parameter.signature()
        assert signature not in seen
        seen.add(signature)


def test_signature_changes_with_a_fused_step_on_a_copy():
    parameter = copy.deepcopy(TTParameter(example()))
    optimizer = torch.optim.AdamW(parameter.parameters(), fused=True)
    energy(parameter()).backward()
    before = parameter.signature()
    optimizer.step()
    assert parameter.signature() != before


def test_signature_stays_while_an_optimizer_steps_elsewhere():
    parameter, other = TTParameter(example()), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*parameter.parameters(), *other.parameters()])
    before = parameter.signature()
    other(torch.ones(2)).sum().backward()
    optimizer.step()
    assert parameter.signature() == before


# Merged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bond", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (5, 2, 2, 2), (2, 2, 2, 5)])
def test_a_merged_block_stands_in_for_two_cores(shape, bond, dtype):
    train = example(shape, dtype=dtype)
    parameter = TTParameter(train)
    outside = parameter.cores
    with parameter.merged(bond) as block:
        left, m, n, right = train.ranks[bond], shape[bond], shape[bond + 1], train.ranks[bond + 2]
        assert block.shape == (left, m, n, right)
        assert block.is_leaf
        assert block.requires_grad
        assert not isinstance(block, nn.Parameter)
        assert len(list(parameter.parameters())) == 4
        inside = parameter.cores
        assert [core.ndim for core in inside] == [3] * 4
        assert inside[bond].shape[2] == min(left * m, n * right)
        assert all(
            (a is b) == (k not in (bond, bond + 1))
            for k, (a, b) in enumerate(zip(inside, outside, strict=True))
        )
        torch.testing.assert_close(parameter().full(), train.full())
        torch.testing.assert_close(parameter.tensor_train().full(), train.full())
        with torch.no_grad():
            block.mul_(3)
        torch.testing.assert_close(parameter().full(), 3 * train.full())
    assert all(a is b for a, b in zip(parameter.cores, outside, strict=True))
    assert equal(parameter.cores, train.cores)


@pytest.mark.parametrize("bond", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (5, 2, 2, 2), (2, 2, 2, 5)])
def test_gradient_of_the_block_is_the_dense_one(shape, bond):
    train = example(shape)
    parameter = TTParameter(train)
    cores = list(train.cores)

    def loss_at(block):
        left = torch.from_numpy(dense.left_interface(cores[:bond]).astype(np.float64))
        right = torch.from_numpy(dense.right_interface(cores[bond + 2 :]).astype(np.float64))
        full = torch.einsum("il,lmnr,rj->imnj", left, block, right)
        return (full**2).sum() + (full**3).sum()

    with parameter.merged(bond) as block:
        (gradient,) = torch.autograd.grad(energy(parameter()), block)
        expected = block.detach().clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss_at(expected), expected)[0])
        numerical = dense.gradient(lambda b: loss_at(b).detach(), block.detach())
        torch.testing.assert_close(gradient, numerical, rtol=1e-6, atol=1e-6)
        assert all(core.grad is None for core in parameter.parameters())


def test_second_derivatives_of_the_block():
    parameter = TTParameter(example())
    with parameter.merged(1) as block:
        (gradient,) = torch.autograd.grad(energy(parameter()), block, create_graph=True)
        direction = torch.randn_like(block)
        (product,) = torch.autograd.grad(gradient, block, direction)
        step = 1e-6
        with torch.no_grad():
            block.add_(direction, alpha=step)
        (after,) = torch.autograd.grad(energy(parameter()), block)
    torch.testing.assert_close(product, (after - gradient.detach()) / step, rtol=1e-4, atol=1e-4)


def test_the_other_cores_keep_their_gradients_inside():
    train = example()
    parameter = TTParameter(train)
    with parameter.merged(1):
        energy(parameter()).backward()
    leaves = [core.clone().requires_grad_() for core in train.cores]
    expected = torch.autograd.grad(energy(TensorTrain(leaves)), leaves)
    torch.testing.assert_close(parameter.core_0.grad, expected[0])
    torch.testing.assert_close(parameter.core_3.grad, expected[3])
    assert parameter.core_1.grad is None
    assert parameter.core_2.grad is None


def test_a_block_of_storage_is_computed_in_single_precision():
    train = example(dtype=torch.bfloat16)
    parameter = TTParameter(train)
    with parameter.merged(1) as block:
        assert block.dtype == torch.float32
        assert {core.dtype for core in parameter.cores} == {torch.float32}
        assert dense.distance(parameter().full(), dense.full(train.cores)) < 1e-4
        energy(parameter()).backward()
        assert block.grad.dtype == torch.float32
    assert parameter.core_0.grad.dtype == torch.bfloat16
    assert equal(parameter.cores, train.cores)


@pytest.mark.parametrize("rank", [2, 4])
def test_an_exception_restores_the_cores(rank):
    parameter = TTParameter(example(rank=rank))
    before, outside = values(parameter), parameter.cores

    def interrupted():
        with parameter.merged(1) as block:
            with torch.no_grad():
                block.zero_()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(a is b for a, b in zip(parameter.cores, outside, strict=True))
    assert equal(parameter.cores, before)
    with parameter.merged(0):
        pass


def test_nothing_is_merged_substituted_assigned_or_loaded_inside():
    parameter = TTParameter(example())
    state = TTParameter(example(rank=3)).state_dict()
    for context in (lambda: parameter.merged(1), lambda: parameter.substituted(example(seed=1))):
        with context():
            inside = values(parameter)
            for name, attempt in {
                "merged": lambda: parameter.merged(0).__enter__(),
                "substituted": lambda: parameter.substituted(example()).__enter__(),
                "assign": lambda: parameter.assign(example(seed=2)),
                "load_state_dict": lambda: parameter.load_state_dict(state),
            }.items():
                with pytest.raises(StateError, match=f"^{name}: .*leave it") as caught:
                    attempt()
                assert isinstance(caught.value, RuntimeError)
            assert equal(values(parameter), inside)
        parameter.assign(example())


@pytest.mark.parametrize("bond", [-1, 3, 17])
def test_a_bond_that_does_not_exist_is_refused(bond):
    parameter = TTParameter(example())
    with (
        pytest.raises(ShapeError, match=f"^bond: expected an index from 0 to 2, got {bond}"),
        parameter.merged(bond),
    ):
        pass
    assert parameter.cores == parameter.core_parameters()


def test_a_merged_block_of_two_cores_is_the_whole_tensor():
    parameter = TTParameter(example((4, 5), 3))
    with parameter.merged(0) as block:
        torch.testing.assert_close(block.reshape(4, 5), parameter().full())


# Substituted


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_another_train_stands_in(rank):
    parameter, other = TTParameter(example()), example(rank=rank, seed=1)
    before, outside = values(parameter), parameter.signature()
    with parameter.substituted(other):
        assert equal(parameter.cores, other.cores)
        torch.testing.assert_close(parameter().full(), other.full())
        assert parameter.signature() != outside
        assert equal(parameter.parameters(), before)
    assert equal(parameter.cores, before)
    assert parameter.signature() == outside


def test_a_train_that_does_not_fit_cannot_stand_in():
    parameter = TTParameter(example())
    with (
        pytest.raises(ShapeError, match=r"^train: expected mode sizes"),
        parameter.substituted(example((3, 4))),
    ):
        pass
    with (
        pytest.raises(DTypeError, match=r"^train: expected real cores"),
        parameter.substituted(example(dtype=torch.complex128)),
    ):
        pass
    assert parameter.cores == parameter.core_parameters()


# Files and copies


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_state_dict_of_other_ranks_is_adopted(rank):
    class Network(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.weight = TTParameter(example(rank=rank, seed=rank))
            self.head = nn.Linear(3, 2, dtype=torch.float64)

    source, target = Network(rank), Network(2)
    before = target.weight.core_parameters()
    energy(target.weight()).backward()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    loaded = target.load_state_dict(torch.load(buffer, weights_only=True))
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys
    assert all(a is b for a, b in zip(target.weight.core_parameters(), before, strict=True))
    assert target.weight.ranks == source.weight.ranks
    assert equal(target.weight.cores, source.weight.cores)
    assert equal(target.head.parameters(), source.head.parameters())
    if rank != 2:
        assert all(core.grad is None for core in target.weight.cores[:1])
    energy(target.weight()).backward()


def test_a_state_dict_that_does_not_fit_is_refused_by_name():
    parameter = TTParameter(example())
    before = values(parameter)
    with pytest.raises(RuntimeError, match="size mismatch for core_0"):
        parameter.load_state_dict(TTParameter(example((4, 4, 2, 3), [2, 3, 3])).state_dict())
    state = TTParameter(example(rank=3)).state_dict()
    state["core_1"] = state["core_1"][:, :, :1]
    with pytest.raises(ShapeError, match=r"^cores: expected equal ranks at bond 1, got 1 in core 1"):
        parameter.load_state_dict(state)
    state = TTParameter(example(rank=3)).state_dict()
    del state["core_2"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"core_2"'):
        parameter.load_state_dict(state)
    assert parameter.ranks == (1, 2, 2, 2, 1)
    assert equal(parameter.cores, before)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_copies_are_whole_and_apart(copied, inside):
    parameter = TTParameter(example())
    parameter.assign(example(rank=3, seed=1))
    if inside:
        with parameter.merged(1):
            found = copied(parameter)
    else:
        found = copied(parameter)
    assert equal(found.cores, parameter.cores)
    assert found.ranks == parameter.ranks
    before = values(parameter)
    found.assign(example(seed=5))
    with found.merged(0):
        pass
    assert equal(parameter.cores, before)


def test_modules_convert(device):
    parameter = TTParameter(example(dtype=torch.float32)).to(device)
    before = parameter.core_parameters()
    parameter.to(torch.bfloat16)
    assert {core.dtype for core in parameter.cores} == {torch.bfloat16}
    assert all(a is b for a, b in zip(parameter.core_parameters(), before, strict=True))
    assert parameter.tensor_train().device.type == device.type


@given(st.sampled_from(DTYPES), st.integers(0, 99))
def test_a_cut_and_back_is_the_same_to_the_bit(dtype, seed):
    train = example(seed=seed, dtype=dtype)
    parameter = TTParameter(train)
    parameter.assign(example(rank=1, dtype=dtype))
    parameter.assign(train)
    assert equal(parameter.cores, train.cores)
    assert dense.distance(parameter().full(), dense.full(train.cores)) < 1e3 * eps(dtype)


def test_training_goes_on_across_a_change_of_ranks():
    target = example((4, 4, 4), 2, seed=3).full()
    parameter = TTParameter(example((4, 4, 4), 4))
    for rank in (4, 2):
        if rank != 4:
            parameter.assign(example((4, 4, 4), rank, seed=4))
        optimizer = torch.optim.Adam(parameter.parameters(), lr=0.05)
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = (parameter().full() - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0]
