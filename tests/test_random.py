import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import STORAGE_DTYPES, shapes
from ttnet.cores import contract, possible_ranks, ranks_of, shape_of
from ttnet.errors import DTypeError, RankError, ShapeError
from ttnet.random import check_shape, random_cores, resolve_ranks


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(shapes(), st.integers(1, 9), st.sampled_from(STORAGE_DTYPES))
def test_shape_ranks_and_dtype(shape, rank, dtype):
    cores = random_cores(shape, rank, seed=0, dtype=dtype)
    assert shape_of(cores) == shape
    assert ranks_of(cores)[1:-1] == tuple(min(rank, limit) for limit in possible_ranks(shape))
    assert {core.dtype for core in cores} == {dtype}
    assert all(core.isfinite().all() for core in cores)


def test_ranks_by_bond():
    assert ranks_of(random_cores((3, 4, 5), [2, 5], seed=0)) == (1, 2, 5, 1)
    assert ranks_of(random_cores((3,), [], seed=0)) == (1, 1)


def test_a_seed_fixes_the_train(device):
    some = random_cores((3, 4, 5), 3, seed=7)
    assert same(some, random_cores((3, 4, 5), 3, seed=7))
    assert not same(some, random_cores((3, 4, 5), 3, seed=8))
    elsewhere = random_cores((3, 4, 5), 3, seed=7, device=device)
    assert elsewhere[0].device.type == device.type
    assert same(some, [core.cpu() for core in elsewhere])


def test_a_seed_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    random_cores((3, 4), 2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_goes_on_and_the_global_state_is_the_default():
    generator = torch.Generator().manual_seed(3)
    first, second = (random_cores((3, 4), 2, seed=generator) for _ in range(2))
    assert not same(first, second)
    assert same(first, random_cores((3, 4), 2, seed=3))
    torch.manual_seed(5)
    assert same(random_cores((3, 4), 2), random_cores((3, 4), 2, seed=torch.Generator().manual_seed(5)))


def test_default_dtype_is_that_of_torch():
    assert random_cores((2, 2), 2)[0].dtype == torch.float32
    assert random_cores((2, 2), 2, dtype=torch.complex128)[0].dtype == torch.complex128


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_entries_have_mean_zero_and_variance_one(dtype):
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack(
        [contract(random_cores((2, 2, 2, 2), [2, 4, 2], seed=generator, dtype=dtype)) for _ in range(2000)]
    )
    assert samples.mean().abs() < 0.05
    assert samples.abs().square().mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("shape", [(), (3, 0), (3, -1), (3, 2.0), (3, True), (3, None), (3, "4")])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match=rf"^shape: .*got {re.escape(str(shape))}"):
        random_cores(shape, 2)


def test_a_number_is_no_shape():
    with pytest.raises(ShapeError, match=r"^shape: .*got \(None,\)"):
        check_shape(None)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "rank: expected at least 1, got 0"),
        (-2, "rank: expected at least 1, got -2"),
        ((2,), "rank: expected one rank for each of the 2 bonds, got (2,)"),
        ((2, 2, 2), "rank: expected one rank for each of the 2 bonds, got (2, 2, 2)"),
        ((2, 6), "rank: expected an integer from 1 to 5 at bond 1, got 6"),
        ((0, 2), "rank: expected an integer from 1 to 3 at bond 0, got 0"),
        ((2.0, 2), "rank: expected an integer from 1 to 3 at bond 0, got 2.0"),
        ((2, True), "rank: expected an integer from 1 to 5 at bond 1, got True"),
        (True, "rank: expected"),
        (2.5, "rank: expected"),
        (None, "rank: expected"),
    ],
)
def test_bad_ranks_are_refused(rank, message):
    with pytest.raises(RankError, match=rf"^{re.escape(message)}"):
        random_cores((3, 4, 5), rank)


def test_ranks_are_refused_under_the_name_that_the_user_typed():
    with pytest.raises(RankError, match=r"^ranks: expected at least 1"):
        resolve_ranks((3, 4), 0, name="ranks")


def test_integers_of_numpy_are_integers():
    assert ranks_of(random_cores(np.array([3, 4, 5]), np.int64(2), seed=0)) == (1, 2, 2, 1)
    assert resolve_ranks((3, 4, 5), [np.int64(2), np.int32(3)]) == (2, 3)
    assert check_shape(torch.ones(3, 4).shape) == (3, 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integer_dtypes_are_refused(dtype):
    with pytest.raises(DTypeError, match=f"dtype: .*got {dtype}"):
        random_cores((3, 4), 2, dtype=dtype)
