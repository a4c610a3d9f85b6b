"""Entries of a train against the plain product of matrices: values, gradients of any order, transforms."""

import resource
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import dense
from tests.strategies import DTYPES, cores_of, eps
from ttnet.entries import Layout, meet
from ttnet.errors import ConfigError, DTypeError, ShapeError
from ttnet.gather import gather
from ttnet.random import random_cores

SHAPES = [((5,), 1, 9), ((3, 1, 2), 2, 300), ((3, 4, 2, 3), 3, 7), ((2,) * 10, 4, 600), ((40, 3, 30), 5, 50)]


def plain(cores, indices: Tensor) -> Tensor:
    """One vector-matrix product for each entry and core."""
    indices = indices % torch.tensor([core.shape[1] for core in cores])
    vectors = cores[0][0, indices[:, 0]]
    for k in range(1, len(cores)):
        vectors = torch.einsum("br,rbs->bs", vectors, cores[k][:, indices[:, k]])
    return vectors[:, 0]


def random_indices(shape, batch: int) -> Tensor:
    return torch.stack([torch.randint(-n, n, (batch,)) for n in shape], 1)


def leaves(shape, rank, dtype=torch.float64):
    return [core.requires_grad_() for core in random_cores(shape, rank, seed=1, dtype=dtype)]


def close(found, expected) -> bool:
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "rank", "batch"), SHAPES)
def test_values_are_those_of_the_dense_tensor(shape, rank, batch, dtype, device) -> None:
    cores = [core.to(device) for core in random_cores(shape, rank, seed=0, dtype=dtype)]
    indices = random_indices(shape, batch)
    full = dense.full(cores)
    values = gather(cores, indices.to(device))
    assert values.dtype == dtype
    assert values.device.type == device.type
    expected = full[tuple(indices.T.numpy())]
    scale = np.prod([float(core.abs().max()) * core.shape[0] for core in cores])
    np.testing.assert_allclose(values.cpu().numpy(), expected, rtol=0, atol=20 * eps(dtype) * scale)


@given(
    kind=st.sampled_from(["random", "deficient", "zero core", "zero", "cancelling"]),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple),
    batch=st.integers(0, 400),
    chunk=st.none() | st.integers(1, 50),
    distinct=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_any_train_and_any_repetition(kind, shape, batch, chunk, distinct, seed) -> None:
    cores = cores_of(kind, shape, [3] * (len(shape) - 1), torch.float64, seed)
    indices = random_indices(shape, distinct)[torch.randint(0, distinct, (batch,))]
    leaves_ = [core.clone().requires_grad_() for core in cores]
    values = gather(leaves_, indices, chunk_size=chunk)
    assert close([values], [plain(cores, indices)])
    weights = torch.randn(batch, dtype=torch.float64)
    found = torch.autograd.grad((values * weights).sum(), leaves_)
    expected = torch.autograd.grad((plain(leaves_, indices) * weights).sum(), leaves_)
    assert close(found, expected)


def test_chunks_and_fused_cores_change_nothing() -> None:
    shape = (4,) * 12
    cores = leaves(shape, 6)
    # Some entries occur more than once: vectors are shared by some rows and not by others.
    indices = random_indices(shape, 3500)[torch.randint(0, 3500, (5000,))]
    layout = Layout.choose(shape, (1, *[core.shape[2] for core in cores]), 5000, 8, None)
    assert len(layout.groups) < 8
    expected = plain(cores, indices)
    weights = torch.randn(5000, dtype=torch.float64)
    gradients = torch.autograd.grad((expected * weights).sum(), cores)
    for chunk in (None, 700, 5000, 10**6):
        values = gather(cores, indices, chunk_size=chunk)
        assert close([values], [expected])
        assert close(torch.autograd.grad((values * weights).sum(), cores), gradients)


def test_shared_prefixes_and_suffixes_are_worked_on_once() -> None:
    shape = (7,) * 9
    left, right = torch.randint(0, 7, (12, 4)), torch.randint(0, 7, (15, 4))
    middle = torch.arange(7)
    rows = torch.cartesian_prod(torch.arange(12), middle, torch.arange(15))
    indices = torch.cat([left[rows[:, 0]], rows[:, 1:2], right[rows[:, 2]]], 1)
    layout = Layout(shape=shape, groups=tuple((k,) for k in range(9)), chunk=10**6)
    sides = meet(layout.codes(indices), list(shape))
    assert max(step.parents.numel() for side in sides for step in side.steps) <= 12 * 7
    cores = random_cores(shape, 4, seed=0, dtype=torch.float64)
    assert close([gather(cores, indices)], [plain(cores, indices)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("shape", "rank", "batch"), [((3,), 1, 4), ((2, 3), 2, 4), ((2, 1, 2), 2, 9)])
def test_derivatives_of_first_and_second_order(shape, rank, batch, dtype) -> None:
    cores, indices = leaves(shape, rank, dtype), random_indices(shape, batch)

    def function(*cores: Tensor) -> Tensor:
        return gather(cores, indices, chunk_size=5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own forward mode scripts functions
        assert torch.autograd.gradcheck(function, cores, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, cores, check_fwd_over_rev=True)


def test_third_derivative() -> None:
    cores, indices = leaves((3, 2, 3), 2), random_indices((3, 2, 3), 8)

    def third(function) -> tuple[Tensor, ...]:
        loss = function(cores, indices).pow(3).sum()
        for _ in range(2):
            loss = sum(g.square().sum() for g in torch.autograd.grad(loss, cores, create_graph=True))
        return torch.autograd.grad(loss, cores)

    assert close(third(gather), third(plain))


def test_only_what_is_needed_gets_a_gradient() -> None:
    cores = random_cores((4, 3, 5, 2), 3, seed=0, dtype=torch.float64)
    indices = random_indices((4, 3, 5, 2), 9)
    for k in range(4):
        train = [core.clone().requires_grad_(j == k) for j, core in enumerate(cores)]
        gather(train, indices).square().sum().backward()
        expected = torch.autograd.grad(plain(train, indices).square().sum(), train[k])
        assert close([train[k].grad], expected)
        assert all(core.grad is None for j, core in enumerate(train) if j != k)


def test_function_transforms() -> None:
    func = torch.func
    cores = random_cores((3, 4, 2), 3, seed=0, dtype=torch.float64)
    indices = torch.stack([torch.randint(0, n, (6, 20)) for n in (3, 4, 2)], 2)
    many = tuple(torch.stack([core, 2 * core, core - 1]) for core in cores)

    def loss(function):
        return lambda cores, indices: (function(cores, indices) - 1).square().sum()

    assert close(
        [func.vmap(gather, (None, 0))(cores, indices)], [func.vmap(plain, (None, 0))(cores, indices)]
    )
    assert close(
        [func.vmap(gather, (None, 1))(cores, indices)], [func.vmap(plain, (None, 1))(cores, indices)]
    )
    assert close(
        [func.vmap(gather, (0, None))(many, indices[0])], [func.vmap(plain, (0, None))(many, indices[0])]
    )
    assert close(func.grad(loss(gather))(cores, indices[0]), func.grad(loss(plain))(cores, indices[0]))
    for dims, args in (
        ((None, 0), (cores, indices)),
        ((0, None), (many, indices[0])),
        ((0, 0), (many, indices[:3])),
    ):
        found = func.vmap(func.grad(loss(gather)), dims)(*args)
        assert close(found, func.vmap(func.grad(loss(plain)), dims)(*args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = func.hessian(loss(gather))(cores, indices[0])
        expected = func.hessian(loss(plain))(cores, indices[0])
    for a, b in zip(found, expected, strict=True):
        assert close(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_takes_it_as_one_operator(backend) -> None:
    cores, indices = leaves((3, 4, 2), 3), random_indices((3, 4, 2), 10)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda cores, indices: gather(cores, indices).square().sum(), backend=backend, fullgraph=True
    )
    loss = compiled(cores, indices)
    expected = plain(cores, indices).square().sum()
    assert close([loss], [expected])
    assert close(torch.autograd.grad(loss, cores), torch.autograd.grad(expected, cores))


def test_importing_it_does_not_import_the_compiler() -> None:
    code = "import sys, ttnet.gather; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_half_precision_is_computed_in_float32() -> None:
    cores = [core.to(torch.bfloat16) for core in random_cores((4, 5, 6, 3), 3, seed=0)]
    indices = random_indices((4, 5, 6, 3), 50)
    values = gather(cores, indices)
    assert values.dtype == torch.bfloat16
    exact = plain([core.double() for core in cores], indices)
    assert (
        torch.equal(values, exact.to(torch.bfloat16))
        or (values - exact).abs().max() <= 0.01 * exact.abs().max()
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integer_dtypes_lists_and_empty_batches(dtype) -> None:
    cores = leaves((200, 3), 2)
    indices = torch.tensor([[100, 2], [0, 1]], dtype=dtype)
    assert close([gather(cores, indices)], [plain(cores, indices.long())])
    assert close([gather(cores, [[100, 2], [0, 1]])], [plain(cores, indices.long())])
    empty = gather(cores, torch.empty(0, 2, dtype=dtype))
    assert empty.shape == (0,)
    assert all(not bool(g.any()) for g in torch.autograd.grad(empty.sum(), cores))


def test_memory_is_bounded_by_the_chunk() -> None:
    cores = leaves((4,) * 12, 16)
    indices = torch.randint(0, 4, (400_000, 12), dtype=torch.int8)
    gather(cores, indices[:1000]).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gather(cores, indices).sum().backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    # The vectors of all entries at all bonds would take 600 MB.
    assert grown < 150 * 2**20


def test_bad_input_is_named() -> None:
    cores = random_cores((4, 5), 2, seed=0)
    with pytest.raises(DTypeError, match=r"indices: expected integers, got torch.float32"):
        gather(cores, torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"indices: expected shape \(batch, 2\), got \(3, 3\)"):
        gather(cores, torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"indices: expected -5 to 4 in column 1, got 5"):
        gather(cores, [[0, 0], [1, 5]])
    with pytest.raises(ShapeError, match=r"indices: expected -4 to 3 in column 0, got -5"):
        gather(cores, [[-5, 0]])
    with pytest.raises(ConfigError, match=r"chunk_size: .* got 0"):
        gather(cores, [[0, 0]], chunk_size=0)
