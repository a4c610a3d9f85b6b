import math
import re
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import dense
from tests.strategies import DTYPES, eps, scale_of, trains
from ttnet import Truncation, cores
from ttnet.errors import ConfigError, DeviceError, DTypeError, RankError, ShapeError


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], ShapeError, "at least one core, got none"),
        ([ones(1, 2, 1), None], ShapeError, "expected tensors, got NoneType as core 1"),
        ([[[[1.0]]]], ShapeError, "expected tensors, got list as core 0"),
        ([np.ones((1, 2))], ShapeError, r"core 0 as (left_rank, mode, right_rank), got (1, 2)"),
        ([ones(1, 2)], ShapeError, r"core 0 as (left_rank, mode, right_rank), got (1, 2)"),
        (
            [ones(1, 2, 3), ones(3, 2, 2, 1)],
            ShapeError,
            "core 1 as (left_rank, mode, right_rank), got (3, 2, 2, 1)",
        ),
        ([ones(1, 0, 1)], ShapeError, "sizes of at least 1 in core 0, got (1, 0, 1)"),
        ([ones(1, 2, 0), ones(0, 2, 1)], ShapeError, "sizes of at least 1 in core 0"),
        (
            [ones(1, 2, 3), ones(2, 2, 1)],
            ShapeError,
            "equal ranks at bond 0, got 3 in core 0 and 2 in core 1",
        ),
        ([ones(2, 2, 1)], ShapeError, "boundary ranks of 1, got 2 and 1"),
        ([ones(1, 2, 3), ones(3, 2, 2)], ShapeError, "boundary ranks of 1, got 1 and 2"),
        ([ones(1, 2, 1, dtype=torch.int64)], DTypeError, "got torch.int64; convert"),
        (
            [ones(1, 2, 1), ones(1, 2, 1, dtype=torch.float64)],
            DTypeError,
            "float32 in core 0 and torch.float64 in core 1",
        ),
        ([ones(1, 2, 1), ones(1, 2, 1, device="meta")], DeviceError, "one device, got cpu and meta (core 1)"),
    ],
)
def test_what_is_no_train_is_refused(bad, error, message):
    with pytest.raises(error, match=f"^(cores|dtype): .*{re.escape(message)}"):
        cores.check(bad)


def test_check_hands_back_the_same_tensors():
    given_cores = [ones(1, 2, 3), ones(3, 4, 1)]
    checked = cores.check(iter(given_cores))
    assert isinstance(checked, tuple)
    assert all(a is b for a, b in zip(checked, given_cores, strict=True))


def test_shape_and_ranks_are_read_off():
    some = [ones(1, 2, 3), ones(3, 5, 4), ones(4, 6, 1)]
    assert cores.shape_of(some) == (2, 5, 6)
    assert cores.ranks_of(some) == (1, 3, 4, 1)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((3,), ()), ((2, 3), (2,)), ((2, 3, 4, 5), (2, 6, 5)), ((1, 4, 1, 4), (1, 4, 4)), ((1, 1), (1,))],
)
def test_possible_ranks_are_those_of_the_unfoldings(shape, ranks):
    assert cores.possible_ranks(shape) == ranks
    generic = torch.randn(shape, dtype=torch.float64)
    assert ranks == tuple(
        np.linalg.matrix_rank(dense.unfolding(dense.array(generic), k)) for k in range(len(ranks))
    )


@given(trains(storage=True))
def test_contract(train):
    contracted = cores.contract(train.cores)
    assert contracted.dtype == train.dtype
    assert contracted.shape == train.shape
    tolerance = 10 * eps(train.dtype) * scale_of(train)
    assert dense.distance(contracted, dense.full(train.cores)) <= tolerance


def test_contract_agrees_with_single_entries():
    train = [torch.randn(1, 3, 2), torch.randn(2, 1, 4), torch.randn(4, 2, 1)]
    contracted = cores.contract(train)
    for position in product(range(3), range(1), range(2)):
        assert contracted[position].item() == pytest.approx(dense.entry(train, position), rel=1e-5, abs=1e-5)


def test_contract_has_memory_of_its_own_for_one_core():
    core = torch.randn(1, 4, 1)
    before = core.clone()
    cores.contract([core]).zero_()
    assert torch.equal(core, before)


@given(st.data())
def test_inner_and_its_environments(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    bra = data.draw(trains(dtype=dtype, scales=False))
    kind = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(kind)
    edges = [1, *[1 + kind % 3] * (bra.ndim - 1), 1]
    ket = [
        torch.randn(edges[k], n, edges[k + 1], dtype=dtype, generator=generator)
        for k, n in enumerate(bra.shape)
    ]
    found = cores.inner(bra.cores, ket)
    assert found.shape == ()
    assert found.dtype == dtype
    scale = scale_of(bra) * math.prod(float(core.abs().square().sum().sqrt()) for core in ket)
    truth = dense.inner(dense.full(bra.cores), dense.full(ket))
    assert abs(found.item() - truth) <= 20 * eps(dtype) * scale
    left = right = torch.ones(1, 1, dtype=dtype)
    at = kind % bra.ndim
    for k in range(at):
        left = cores.extend_left(left, bra.cores[k], ket[k])
    for k in reversed(range(at, bra.ndim)):
        right = cores.extend_right(right, bra.cores[k], ket[k])
    expected = dense.left_interface(bra.cores[:at]).conj().T @ dense.left_interface(ket[:at])
    np.testing.assert_allclose(
        dense.array(left), expected, rtol=0, atol=50 * eps(dtype) * scale_of_cores(bra.cores[:at], ket[:at])
    )
    expected = dense.right_interface(bra.cores[at:]).conj() @ dense.right_interface(ket[at:]).T
    np.testing.assert_allclose(
        dense.array(right), expected, rtol=0, atol=50 * eps(dtype) * scale_of_cores(bra.cores[at:], ket[at:])
    )


def scale_of_cores(*trains_):
    return math.prod(dense.norm(dense.array(core)) for train in trains_ for core in train)


def test_inner_conjugates_its_first_argument():
    bra, ket = [torch.full((1, 1, 1), 1j)], [torch.full((1, 1, 1), 2.0 + 0j)]
    assert cores.inner(bra, ket).item() == -2j


def test_contract_and_inner_are_differentiable():
    some = [
        torch.randn(1, 2, 2, dtype=torch.complex128, requires_grad=True),
        torch.randn(2, 3, 1, dtype=torch.complex128, requires_grad=True),
    ]
    assert torch.autograd.gradcheck(lambda *c: cores.contract(c), some)
    assert torch.autograd.gradcheck(lambda *c: cores.inner(c, c).real, some)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_bond(dtype):
    left, right = torch.randn(2, 3, 4, dtype=dtype), torch.randn(4, 5, 6, dtype=dtype)
    block = cores.merge_bond(left, right)
    assert block.shape == (2, 3, 5, 6)
    assert dense.distance(block, np.tensordot(dense.array(left), dense.array(right), 1)) < 100 * eps(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("absorb", ["left", "right"])
@pytest.mark.parametrize(
    "truncation",
    [
        Truncation(),
        Truncation(max_rank=2),
        Truncation(max_rank=[3]),
        Truncation(rtol=0.4),
        Truncation(atol=2.0),
        Truncation(cutoff=0.1),
    ],
)
def test_split_bond(dtype, absorb, truncation):
    block = torch.randn(2, 3, 4, 2, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    before = block.clone()
    a, b, weight = cores.split_bond(block, truncation, absorb=absorb)
    assert a.dtype == b.dtype == dtype
    assert torch.equal(block, before)
    assert a.shape[:2] == (2, 3)
    assert b.shape[1:] == (4, 2)
    assert a.shape[2] == b.shape[0] <= 6
    values = np.linalg.svd(dense.array(block).reshape(6, 8).astype(complex), compute_uv=False)
    norm = dense.norm(values)
    assert weight == pytest.approx((values[a.shape[2] :] ** 2).sum(), abs=20 * eps(dtype) * norm**2)
    error = dense.distance(np.tensordot(dense.array(a), dense.array(b), 1), dense.array(block))
    roundoff = 20 * eps(dtype) * norm
    assert error == pytest.approx(math.sqrt(weight), abs=roundoff)
    allowed = truncation.rtol * norm if truncation.rtol else truncation.atol or norm
    assert error <= allowed + roundoff
    isometry = dense.left_defect(a) if absorb == "right" else dense.right_defect(b)
    assert isometry < 50 * eps(dtype)


def test_split_bond_of_zero_has_rank_one():
    a, b, weight = cores.split_bond(torch.zeros(2, 3, 3, 2), Truncation(rtol=1e-3))
    assert a.shape[2] == 1
    assert weight == 0
    assert not cores.merge_bond(a, b).any()


def test_split_bond_refuses():
    with pytest.raises(ShapeError, match=r"block: expected shape \(left, m, n, right\), got \(2, 2, 2\)"):
        cores.split_bond(torch.ones(2, 2, 2), Truncation())
    with pytest.raises(ConfigError, match="absorb: expected 'left' or 'right', got 'both'"):
        cores.split_bond(torch.ones(1, 2, 2, 1), Truncation(), absorb="both")
    with pytest.raises(RankError, match="max_rank: expected one rank for each of the 1 bonds, got 2"):
        cores.split_bond(torch.ones(1, 2, 2, 1), Truncation(max_rank=[1, 2]))


def test_merge_inverts_split():
    left, right = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(4, 5, 6, dtype=torch.float64)
    block = cores.merge_bond(left, right)
    a, b, weight = cores.split_bond(block, Truncation(cutoff=1e-20))
    assert a.shape[2] == 4
    assert weight < 1e-24
    torch.testing.assert_close(cores.merge_bond(a, b), block)


def test_possible_ranks_of_a_long_train_are_capped():
    found = cores.possible_ranks((10,) * 3000)
    assert found[:3] == (10, 100, 1000) == found[:-4:-1]
    assert max(found) == 2**62


@given(trains(scales=False), st.data())
def test_modes_of_size_one_are_contracted_too(train, data):
    at = data.draw(st.integers(0, train.ndim))
    rank = train.ranks[at]
    wider = [*train.cores[:at], torch.eye(rank, dtype=train.dtype)[:, None], *train.cores[at:]]
    expected = np.expand_dims(dense.full(train.cores), at)
    assert dense.distance(cores.contract(wider), expected) <= 20 * eps(train.dtype) * scale_of(train)


@pytest.mark.parametrize("absorb", ["left", "right"])
@pytest.mark.parametrize("values", [(1, 1, 1, 1), (2, 1, 1, 0), (1, 0, 0, 0)])
@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (1, 4, 2, 3)])
def test_gradients_of_a_split_that_keeps_everything_are_those_of_the_identity(absorb, values, sizes):
    left, right = (
        torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64))[0] for n in (4, sizes[2] * sizes[3])
    )
    block = ((left * torch.tensor(values, dtype=torch.float64)) @ right.mH).reshape(sizes).requires_grad_()
    weights = torch.randn(sizes, dtype=torch.float64)
    a, b, _ = cores.split_bond(block, Truncation(), absorb=absorb)
    (slope,) = torch.autograd.grad((cores.merge_bond(a, b) * weights).sum(), block)
    if sizes == (2, 2, 2, 2) or (absorb == "right" and values[-1] == 0):
        torch.testing.assert_close(slope, weights)
    assert bool(torch.isfinite(slope).all())
