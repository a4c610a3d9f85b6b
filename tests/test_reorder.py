"""Permute, reshape and quantics against torch, and their reports against the true error."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import dense
from tests.matrices import full, matrices
from tests.matrices import scale_of as matrix_scale_of
from tests.strategies import DTYPES, cores_of, eps
from ttnet import reorder
from ttnet.algebra import add
from ttnet.construct import ones, sum_of, superdiagonal
from ttnet.cores import check, contract, possible_ranks, ranks_of, shape_of
from ttnet.errors import ConfigError, RankError, ShapeError
from ttnet.random import random_cores
from ttnet.truncation import Truncation
from ttnet.tt_matrix import TTMatrix


def error(found, expected) -> float:
    return dense.distance(found, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("dims", [(2, 0, 3, 1), (3, 2, 1, 0), (0, 1, 2, 3), (1, 0, 2, 3), (-1, 0, -2, 1)])
def test_permute(dims, dtype) -> None:
    cores = random_cores((3, 2, 4, 1), 3, seed=0, dtype=dtype)
    found, report = reorder.permute(cores, dims)
    expected = contract(cores).permute(dims)
    assert shape_of(check(found)) == expected.shape
    assert error(contract(found), expected) <= 1000 * eps(dtype) * dense.norm(dense.array(expected))
    assert report.norm == pytest.approx(dense.norm(dense.array(expected)), rel=20 * eps(dtype))


def test_permuting_there_and_back_keeps_the_ranks() -> None:
    cores = random_cores((3, 4, 2, 5, 3), 3, seed=0, dtype=torch.float64)
    dims = (4, 1, 3, 0, 2)
    away, _ = reorder.permute(cores, dims)
    back, _ = reorder.permute(away, [dims.index(k) for k in range(5)])
    assert ranks_of(back) == ranks_of(cores)
    assert error(contract(back), contract(cores)) < 1e-11


@given(
    kind=st.sampled_from(["random", "deficient", "zero", "graded", "repeated"]),
    dims=st.permutations(range(4)),
    truncation=st.sampled_from(
        [
            Truncation(max_rank=2),
            Truncation(rtol=0.3),
            Truncation(rtol=1e-2),
            Truncation(cutoff=1e-2),
            Truncation(atol=0.5),
        ]
    ),
    seed=st.integers(0, 50),
)
def test_the_error_of_a_permutation_is_within_its_report(kind, dims, truncation, seed) -> None:
    cores = cores_of(kind, (3, 2, 3, 2), [3, 4, 2], torch.float64, seed)
    found, report = reorder.permute(cores, dims, truncation)
    expected = contract(cores).permute(tuple(dims))
    true = error(contract(found), expected)
    assert true <= report.error_bound
    assert report.ranks_after == ranks_of(found)[1:-1]
    if truncation.bounds_error:
        assert true <= math.sqrt(truncation.weight_budget(report.norm)) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((4, 6), (24,)),
        ((24,), (2, 3, 4)),
        ((4, 6), (2, 2, 3, 2)),
        ((2, 2, 3, 2), (4, 6)),
        ((6, 4), (4, 6)),
        ((1, 4, 1, 3), (4, 3)),
        ((4, 3), (1, 2, 1, 2, 3, 1)),
        ((2, 3, 4, 5), (6, 2, 10)),
        ((1, 1), (1,)),
        ((1,), (1, 1, 1)),
        ((5,), (5,)),
    ],
)
def test_reshape(old, new, dtype) -> None:
    cores = random_cores(old, 3, seed=0, dtype=dtype)
    found, report = reorder.reshape(cores, new)
    expected = contract(cores).reshape(new)
    assert shape_of(check(found)) == new
    assert error(contract(found), expected) <= 500 * eps(dtype) * max(1.0, dense.norm(dense.array(expected)))
    assert report.ranks_after == ranks_of(found)[1:-1]
    assert all(r <= limit for r, limit in zip(report.ranks_after, possible_ranks(new), strict=True))


def test_reshape_within_a_tolerance() -> None:
    cores = random_cores((16, 9, 16), 6, seed=0, dtype=torch.float64)
    for truncation in (Truncation(rtol=0.2), Truncation(max_rank=3), Truncation(max_rank=[2, 3, 3, 3, 2])):
        found, report = reorder.reshape(cores, (4, 4, 3, 3, 4, 4), truncation)
        true = error(contract(found), contract(cores).reshape(4, 4, 3, 3, 4, 4))
        assert true <= report.error_bound
        assert true <= 0.2 * report.norm or not truncation.bounds_error
        assert report.ranks_after == ranks_of(found)[1:-1]


def test_quantics_there_and_back() -> None:
    cores = random_cores((8, 4, 1, 16), 3, seed=0, dtype=torch.float64)
    quantics, _ = reorder.to_qtt(cores)
    assert shape_of(quantics) == (2,) * 5 + (1,) + (2,) * 4
    assert error(contract(quantics).reshape(8, 4, 1, 16), contract(cores)) < 1e-12
    back = reorder.from_qtt(quantics, (8, 4, 1, 16))
    assert shape_of(back) == (8, 4, 1, 16)
    assert error(contract(back), contract(cores)) < 1e-12
    thirds, _ = reorder.to_qtt(random_cores((27, 9), 2, seed=0), base=3)
    assert shape_of(thirds) == (3,) * 5


def test_quantics_finds_the_small_ranks() -> None:
    grid = torch.linspace(0, 1, 2**10, dtype=torch.float64)
    quantics, _ = reorder.to_qtt([torch.exp(grid).reshape(1, -1, 1)])
    assert max(ranks_of(quantics)) == 1
    quantics, _ = reorder.to_qtt(sum_of([torch.sin(7 * grid), grid]))
    assert max(ranks_of(quantics)) <= 3


def test_every_permutation_of_four() -> None:
    cores = random_cores((2, 3, 2, 3), 2, seed=0, dtype=torch.float64)
    for dims in itertools.permutations(range(4)):
        assert error(contract(reorder.permute(cores, dims)[0]), contract(cores).permute(dims)) < 1e-12


@pytest.mark.parametrize(
    ("shape", "expected"), [((-1,), (24,)), ((4, -1), (4, 6)), (-1, (24,)), ((2, -1, 3), (2, 4, 3))]
)
def test_one_size_may_be_left_open(shape, expected) -> None:
    cores = random_cores((3, 2, 4), 2, seed=0)
    found, _ = reorder.reshape(cores, shape)
    assert shape_of(found) == expected


ALL_BONDS = [
    lambda cores, wish: reorder.permute(cores, (0, 1, 2), wish),
    lambda cores, wish: reorder.permute(cores, (2, 1, 0), wish),
    lambda cores, wish: reorder.permute(cores, (1, 0, 2), wish),
    lambda cores, wish: reorder.permute(cores, (0, 2, 1), wish),
    lambda cores, wish: reorder.reshape(cores, (4, 4, 8), wish),
    lambda cores, wish: reorder.reshape(cores, (16, 8), wish),
    lambda cores, wish: reorder.reshape(cores, (2, 2, 4, 8), wish),
    lambda cores, wish: reorder.reshape(cores, (4, 4, 2, 4), wish),
    lambda cores, wish: reorder.to_qtt(cores, 2, wish),
]


@pytest.mark.parametrize("make", ALL_BONDS)
def test_a_truncation_holds_for_every_bond_of_the_result(make) -> None:
    cores = random_cores((4, 4, 8), 4, seed=0, dtype=torch.float64)
    exact = contract(make(cores, None)[0])
    found, report = make(cores, Truncation(max_rank=2))
    assert max(ranks_of(found)) == 2
    assert report.ranks_after == ranks_of(found)[1:-1]
    true = error(contract(found), exact)
    assert 0.1 * report.norm < true <= report.error_bound
    bonds = len(found) - 1
    found, _ = make(cores, Truncation(max_rank=[1] + [2] * (bonds - 1)))
    assert ranks_of(found)[1:-1] == (1,) + (2,) * (bonds - 1)
    # Twice the train by doubled ranks: every bond has something to drop.
    doubled = add(cores, cores)
    found, report = make(doubled, Truncation(rtol=1e-10))
    assert ranks_of(found) == ranks_of(make(cores, None)[0])
    assert error(contract(found), 2 * exact) <= 1e-10 * report.norm


@pytest.mark.parametrize("make", ALL_BONDS)
def test_what_is_no_truncation_or_impossible_is_named(make) -> None:
    cores = random_cores((4, 4, 8), 4, seed=0)
    with pytest.raises(ConfigError, match=r"truncation: .* got 2; write Truncation\(max_rank=2\)"):
        make(cores, 2)
    bonds = len(make(cores, None)[0]) - 1
    with pytest.raises(RankError, match=r"max_rank: expected at most \d+ at bond 0"):
        make(cores, Truncation(max_rank=[99] * bonds))


@pytest.mark.parametrize(
    ("kind", "truncation"),
    [
        ("equal", Truncation()),
        ("equal", Truncation(max_rank=64)),
        ("deficient", Truncation(max_rank=64)),
        ("random", None),
        ("random", Truncation(rtol=1e-10)),
    ],
)
def test_gradients_where_nothing_is_cut(kind, truncation) -> None:
    cores = {
        "equal": superdiagonal(torch.ones(4, dtype=torch.float64), 4),
        "deficient": add(ones([4] * 4, dtype=torch.float64), ones([4] * 4, dtype=torch.float64)),
        "random": random_cores([4] * 4, 3, seed=0, dtype=torch.float64),
    }[kind]
    weights = torch.randn(256, dtype=torch.float64)
    leaves = [core.clone().requires_grad_() for core in cores]
    for found, exact in [
        (reorder.reshape(leaves, (2, 2, 4, 2, 2, 4), truncation)[0], contract(leaves)),
        (reorder.permute(leaves, (1, 0, 3, 2), truncation)[0], contract(leaves).permute(1, 0, 3, 2)),
    ]:
        got = torch.autograd.grad(contract(found).flatten() @ weights, leaves)
        expected = torch.autograd.grad(exact.flatten() @ weights, leaves)
        assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "new_rows", "new_columns"),
    [
        ((9, 16), (4, 6), (3, 3, 4, 4), (2, 2, 2, 3)),
        ((9, 16, 3), (4, 6, 5), (3, 6, 24), (2, 6, 10)),
        ((4, 6), (6, 4), (6, 4), (4, 6)),
        ((2, 4, 2), (2, 2, 2), (2, 2, 2, 2), (2, 2, 1, 2)),
        ((2, 3), (3, 1), (2, 3, 1, 1), (3, 1, 1, 1)),
        ((4, 1), (2, 1), (4,), (2,)),
    ],
)
def test_reshape_of_matrices(rows, columns, new_rows, new_columns, dtype) -> None:
    matrix = TTMatrix.random(rows, columns, 3, seed=0, dtype=dtype)
    found = matrix.reshape(new_rows, new_columns)
    assert (found.rows, found.columns) == (new_rows, new_columns)
    assert dense.distance(found.full(), matrix.full()) <= 200 * eps(dtype) * float(matrix.norm())


@settings(max_examples=30)
@given(matrices(), st.data())
def test_permute_of_matrices(matrix, data) -> None:
    dims = data.draw(st.permutations(range(matrix.ndim)))
    x = full(matrix.cores).reshape(*matrix.rows, *matrix.columns)
    exact = x.transpose([*dims, *(matrix.ndim + d for d in dims)])
    found = full(matrix.permute(dims).cores)
    assert dense.distance(found.reshape(exact.shape), exact) <= 2000 * eps(matrix.dtype) * matrix_scale_of(
        matrix
    )


def test_bad_input_is_named() -> None:
    cores = random_cores((4, 6), 2, seed=0)
    with pytest.raises(ShapeError, match=r"dims: expected a permutation of 0 to 1, got \(0, 0\)"):
        reorder.permute(cores, (0, 0))
    with pytest.raises(ShapeError, match=r"shape: expected 24 entries as in \(4, 6\), got 25 in \(5, 5\)"):
        reorder.reshape(cores, (5, 5))
    with pytest.raises(ShapeError, match=r"cores: expected a power of base=2 as size of mode 1, got 6"):
        reorder.to_qtt(cores)
    with pytest.raises(ConfigError, match=r"base: expected an integer of at least 2, got 1"):
        reorder.to_qtt(cores, base=1)
    with pytest.raises(
        ShapeError, match=r"shape: expected products of neighboring modes of \(4, 6\), got \(6, 4\)"
    ):
        reorder.from_qtt(cores, (6, 4))
    with pytest.raises(RankError, match=r"max_rank: expected one rank for each of the 2 bonds"):
        reorder.reshape(cores, (2, 2, 6), Truncation(max_rank=[2]))
    long = [torch.ones(1, 2, 1)] * 40
    with pytest.raises(
        ShapeError, match=r"shape: expected boundaries near those between .* keep more of the boundaries"
    ):
        reorder.reshape([torch.ones(1, 3, 1), *long], (2**40, 3))
    matrix = TTMatrix.identity((4, 2))
    with pytest.raises(ShapeError, match=r"^rows: expected a product of 8 as of \(4, 2\), got \(4, 4\)"):
        matrix.reshape((4, 4), (4, 2))
    with pytest.raises(ShapeError, match=r"^columns: expected 2 modes"):
        matrix.reshape((4, 2), (8,))
    with pytest.raises(ShapeError, match=r"^shape: expected at least one mode"):
        reorder.reshape(random_cores((3, 4), 2, seed=0), (-1, 5))
