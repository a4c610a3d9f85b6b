import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matrices import full
from ttnet import Truncation
from ttnet.errors import DTypeError, NonFiniteError, ShapeError
from ttnet.mpo import from_terms, pair_terms
from ttnet.tt_matrix import TTMatrix

X = np.array([[0.0, 1.0], [1.0, 0.0]])
Y = np.array([[0.0, -1.0j], [1.0j, 0.0]])
Z = np.diag([1.0, -1.0])
UP, DOWN = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
LETTERS = [X, Y, Z, UP, DOWN, 2 * X, np.eye(2), X + 3 * Z, 0 * X]


def dense_sum(terms, shape):
    """Kronecker products, one term after the other."""
    total = np.zeros((math.prod(shape),) * 2, dtype=complex)
    for coefficient, factors in terms:
        product = np.eye(1)
        for site, n in enumerate(shape):
            product = np.kron(product, factors.get(site, np.eye(n)))
        total += coefficient * product
    return total


def smallest_ranks(cores):
    matrix = TTMatrix(cores)
    return (
        TTMatrix.from_dense(matrix.full(), matrix.rows, matrix.columns, Truncation(rtol=1e-11)).ranks
        if matrix.full().any()
        else (1,) * (len(cores) + 1)
    )


coefficients = st.sampled_from([1.0, -1.0, 0.5, 2.0, 1j, 0.0, 1e-3])
strings = st.dictionaries(st.integers(0, 3), st.sampled_from(LETTERS), max_size=4)


@settings(max_examples=80)
@given(st.lists(st.tuples(coefficients, strings), max_size=8))
def test_any_sum_is_right_and_of_smallest_rank(terms):
    cores = from_terms(terms, [2] * 4, dtype=torch.complex128)
    exact = dense_sum(terms, [2] * 4)
    scale = sum(abs(c) * math.prod(np.abs(m).sum() for m in f.values()) for c, f in terms)
    assert np.abs(full(cores).astype(complex) - exact).max() <= 1e-12 * (1 + scale)
    if np.abs(exact).max() > 1e-9:
        assert (1, *(core.shape[3] for core in cores)) == smallest_ranks(cores)


def test_modes_may_differ():
    rng = np.random.default_rng(0)
    shape = (2, 3, 1, 4)
    terms = [
        (rng.normal(), {k: rng.normal(size=(shape[k],) * 2) for k in sites})
        for count in range(4)
        for sites in itertools.combinations(range(4), count)
    ]
    cores = from_terms(terms, shape, dtype=torch.float64)
    assert np.allclose(full(cores).astype(float), dense_sum(terms, shape).real, rtol=0, atol=1e-12)
    assert (1, *(core.shape[3] for core in cores)) == smallest_ranks(cores)


@pytest.mark.parametrize(
    ("decay", "rank"),
    [(lambda r: math.exp(-0.3 * r), 3), (lambda r: 0.5**r + 3 * 0.9**r, 4), (lambda r: r**0, 3), (float, 4)],
)
def test_long_ranged_couplings_cost_what_they_must(decay, rank):
    n = 30
    terms = [(decay(j - i), {i: Z, j: Z}) for i in range(n) for j in range(i + 1, n)]
    cores = from_terms(terms, [2] * n, dtype=torch.float64)
    assert max(core.shape[3] for core in cores) == rank
    small = from_terms([t for t in terms if max(t[1]) < 8], [2] * 8, dtype=torch.float64)
    exact = dense_sum([t for t in terms if max(t[1]) < 8], [2] * 8).real
    assert np.abs(full(small).astype(float) - exact).max() <= 1e-12 * np.abs(exact).max()


def test_products_over_the_whole_chain_do_not_explode():
    # Projectors depend on the identity and each other; expanded, these two terms would be 2^60.
    n = 60
    cores = from_terms([(1.0, dict.fromkeys(range(n), UP)), (1.0, dict.fromkeys(range(n), DOWN))], [2] * n)
    assert {core.shape[3] for core in cores[:-1]} == {2}


def test_entries_stay_sparse_and_exact():
    terms = [(0.1, {k: Z, k + 1: Z}) for k in range(9)] + [(0.3, {k: X}) for k in range(10)]
    cores = from_terms(terms, [2] * 10, dtype=torch.float64)
    assert {round(v, 12) for core in cores for v in core.flatten().tolist()} <= {
        0.0,
        1.0,
        -1.0,
        0.1,
        -0.1,
        0.3,
    }
    assert max(core.shape[3] for core in cores) == 3


def test_small_terms_beside_large_ones_are_kept():
    cores = from_terms([(1e8, {0: X}), (1e-8, {1: Z, 2: Z}), (1.0, {2: X})], [2] * 3, dtype=torch.float64)
    zz = np.kron(np.eye(2), np.kron(Z, Z))
    assert np.trace(full(cores) @ zz) / 8 == pytest.approx(1e-8, rel=1e-12)


def test_dtypes_follow_the_terms():
    assert from_terms([(1.0, {0: X})], [2])[0].dtype == torch.get_default_dtype()
    assert from_terms([(1.0, {0: Y})], [2])[0].dtype == torch.get_default_dtype().to_complex()
    assert from_terms([(1j, {0: X})], [2], dtype=torch.complex128)[0].dtype == torch.complex128
    assert (
        from_terms([(1.0, {0: Y.astype(complex)}), (1j, {0: [[0, 1], [-1, 0]]})], [2])[0].abs().max() <= 1e-15
    )
    with pytest.raises(DTypeError, match="complex one for complex terms"):
        from_terms([(1.0, {0: Y})], [2], dtype=torch.float32)


def test_nothing_and_constants():
    assert [core.shape for core in from_terms([], [2, 3])] == [(1, 2, 2, 1), (1, 3, 3, 1)]
    assert not full(from_terms([], [2, 3])).any()
    assert not full(from_terms([(1.0, {0: X}), (-1.0, {0: X})], [2, 3])).any()
    assert np.array_equal(full(from_terms([(2.5, {})], [2, 3], dtype=torch.float64)), 2.5 * np.eye(6))


def test_pair_terms_split_a_two_site_matrix():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 9)) + 1j * rng.normal(size=(9, 9))
    cores = from_terms(pair_terms(matrix, 0, 2, coefficient=2.0), [3] * 3, dtype=torch.complex128)
    split = matrix.reshape(3, 3, 3, 3)
    exact = 2 * np.einsum("acbd,ij->aicbjd", split, np.eye(3)).reshape(27, 27)
    assert np.allclose(full(cores).astype(complex), exact, rtol=0, atol=1e-12)
    assert len(pair_terms(np.kron(X, Z), 0, 1)) == 1
    assert pair_terms(np.zeros((4, 4)), 0, 1) == []
    uneven = rng.normal(size=(2, 3, 2, 3))
    cores = from_terms(pair_terms(uneven, 0, 1), [2, 3], dtype=torch.float64)
    assert np.allclose(full(cores).astype(float), uneven.reshape(6, 6), rtol=0, atol=1e-12)
    with pytest.raises(ShapeError, match="matrix"):
        pair_terms(np.zeros((3, 3)), 0, 1)


def test_bad_terms_are_named():
    with pytest.raises(ShapeError, match="sites from 0 to 1, got 2 in term 0"):
        from_terms([(1.0, {2: X})], [2, 2])
    with pytest.raises(ShapeError, match=r"shape \(3, 3\) at site 1, got \(2, 2\) in term 1"):
        from_terms([(1.0, {0: X}), (1.0, {1: X})], [2, 3])
    with pytest.raises(ShapeError, match="pairs"):
        from_terms([X], [2])
    with pytest.raises(DTypeError, match="coefficient of term 0"):
        from_terms([("a", {0: X})], [2])
    with pytest.raises(DTypeError, match="numbers in the matrix of site 0"):
        from_terms([(1.0, {0: [["a", "b"], ["c", "d"]]})], [2])
    with pytest.raises(NonFiniteError, match="matrix of site 0"):
        from_terms([(1.0, {0: X + np.nan})], [2])
    with pytest.raises(NonFiniteError, match="coefficient"):
        from_terms([(math.inf, {0: X})], [2])
