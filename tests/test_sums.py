from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import dense
from tests.strategies import DTYPES, KINDS, STORAGE_DTYPES, cores_of, eps, truncations
from ttnet import Truncation
from ttnet.algebra import add, hadamard, scale
from ttnet.cores import ranks_of
from ttnet.errors import ConfigError, DTypeError, RankError, ShapeError
from ttnet.sums import truncate_product, truncate_sum

METHODS = ("svd", "qr-svd", "gram", "auto")


def check_rounding(found, report, truth):
    """What a report promises of any rounding."""
    assert dense.is_canonical(found, 0)
    assert report.ranks_after == ranks_of(found)[1:-1]
    error, norm = dense.distance(dense.full(found), truth), dense.norm(truth)
    roundoff = report.error_bound - report.error_estimate
    assert error <= report.error_bound
    assert error == pytest.approx(report.error_estimate, abs=roundoff)
    assert report.norm == pytest.approx(norm, abs=roundoff)
    return error, roundoff


@settings(max_examples=30)
@given(st.data())
def test_any_sum_is_rounded_as_its_report_says(data):
    dtype = data.draw(st.sampled_from(STORAGE_DTYPES))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    terms, coefficients = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(shape) - 1, max_size=len(shape) - 1))
        kind = data.draw(st.sampled_from(KINDS))
        term = cores_of(kind, shape, ranks, dtype, data.draw(st.integers(0, 99)))
        term[0] = term[0] * 10.0 ** data.draw(st.sampled_from([0, 0, -12, 12]))
        terms.append(term)
        coefficients.append(data.draw(st.sampled_from([1.0, -1.0, 0.0, 0.5, -3.0])))
    truth = sum(dense.full(term) * factor for term, factor in zip(terms, coefficients, strict=True))
    method = data.draw(st.sampled_from(METHODS))
    found, report = truncate_sum(terms, data.draw(truncations()), coefficients=coefficients, method=method)
    check_rounding(found, report, truth)
    added = [sum(column) for column in zip(*(ranks_of(term)[1:-1] for term in terms), strict=True)]
    assert report.ranks_before == tuple(added)


@settings(max_examples=30)
@given(st.data())
def test_any_product_is_rounded_as_its_report_says(data):
    dtype = data.draw(st.sampled_from(STORAGE_DTYPES))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    a, b = [
        cores_of(
            data.draw(st.sampled_from(KINDS)),
            shape,
            data.draw(st.lists(st.integers(1, 3), min_size=len(shape) - 1, max_size=len(shape) - 1)),
            dtype,
            data.draw(st.integers(0, 99)),
        )
        for _ in range(2)
    ]
    a[-1] = a[-1] * 10.0 ** data.draw(st.sampled_from([0, 0, -12, 12]))
    method = data.draw(st.sampled_from(METHODS))
    found, report = truncate_product(a, b, data.draw(truncations()), method=method)
    check_rounding(found, report, dense.full(a) * dense.full(b))
    assert report.ranks_before == ranks_of(hadamard(a, b))[1:-1]


@pytest.mark.parametrize("method", ["svd", "qr-svd", "gram", "randomized", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cap_costs_what_the_formed_sum_would(method, dtype):
    terms = [cores_of("random", (6, 6, 6, 6), [9, 12, 9], dtype, seed) for seed in range(4)]
    found, report = truncate_sum(terms, Truncation(max_rank=4), method=method)
    truth = sum(dense.full(term) for term in terms)
    error, _ = check_rounding(found, report, truth)
    _, best = truncate_sum(terms, Truncation(max_rank=4), method="svd")
    assert error <= (1.1 if method == "randomized" else 1.001) * best.error_estimate


@pytest.mark.parametrize("method", ["svd", "qr-svd", "gram", "randomized", "auto"])
def test_a_cap_costs_what_the_formed_product_would(method):
    a, b = [cores_of("random", (6, 6, 6, 6), [4, 7, 5], torch.complex128, seed) for seed in range(2)]
    found, report = truncate_product(a, b, Truncation(max_rank=4), method=method)
    error, _ = check_rounding(found, report, dense.full(a) * dense.full(b))
    _, best = truncate_product(a, b, Truncation(max_rank=4), method="svd")
    assert error <= (1.1 if method == "randomized" else 1.001) * best.error_estimate


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_of_multiples_collapses(dtype, device):
    term = [core.to(device) for core in cores_of("random", (4, 4, 4, 4, 4), [4, 8, 8, 4], dtype, 0)]
    multiples = [1.0, -0.5, 3.0, 2.0, 0.25]
    found, report = truncate_sum(
        [term] * 5, Truncation(rtol=1e3 * eps(dtype)), coefficients=multiples, method="qr-svd"
    )
    assert report.ranks_before == (20, 40, 40, 20)
    assert report.ranks_after == (4, 8, 8, 4)
    assert found[0].device == term[0].device
    check_rounding(found, report, dense.full(term) * 5.75)


def test_terms_that_cancel_leave_zero_and_an_honest_bound():
    term = cores_of("random", (4, 4, 4), [4, 4], torch.float64, 0)
    for method in METHODS:
        found, report = truncate_sum([term, term], Truncation(rtol=1e-6), coefficients=[1, -1], method=method)
        assert dense.norm(dense.full(found)) <= report.error_bound < 1e-11


def test_magnitudes_far_apart_and_beyond_squares():
    small, large = [cores_of("random", (4, 4, 4), [3, 3], torch.float64, seed) for seed in range(2)]
    small, large = [core * 1e-60 for core in small], [core * 1e60 for core in large]
    coefficients = [1e150, 1e-150]
    for method in ("qr-svd", "gram"):
        found, report = truncate_sum(
            [small, large], Truncation(max_rank=2), coefficients=coefficients, method=method
        )
        truth = dense.full(small) * 1e150 + dense.full(large) * 1e-150
        assert dense.distance(dense.full(found), truth) <= report.error_bound <= report.norm


def test_gradients_pass_through_the_formed_sum_and_product():
    leaves = [
        core.requires_grad_()
        for seed in range(2)
        for core in cores_of("random", (3, 3, 3), [2, 2], torch.float64, seed)
    ]
    for call in (
        lambda *c: truncate_sum([c[:3], c[3:]], Truncation(max_rank=2))[0],
        lambda *c: truncate_product(c[:3], c[3:], Truncation(max_rank=2))[0],
    ):
        assert torch.autograd.gradcheck(
            lambda *c, call=call: reduce(lambda x, y: torch.tensordot(x, y, 1), call(*c)), leaves
        )
        with pytest.raises(ConfigError, match="method: expected 'auto' or 'svd' under autograd"):
            truncate_sum([leaves[:3]], Truncation(max_rank=2), method="gram")


def test_what_does_not_fit_is_refused():
    a = cores_of("random", (3, 3), [2], torch.float64, 0)
    with pytest.raises(ShapeError, match="trains: expected at least one train, got none"):
        truncate_sum([], Truncation())
    with pytest.raises(ShapeError, match=r"other: expected a train of shape \(3, 3\), got \(3, 4\)"):
        truncate_sum([a, cores_of("random", (3, 4), [2], torch.float64, 0)], Truncation())
    with pytest.raises(DTypeError, match=r"other: expected torch\.float64 in all trains"):
        truncate_product(a, [core.float() for core in a], Truncation())
    with pytest.raises(ShapeError, match="coefficients: expected one for each of 1 trains, got 2"):
        truncate_sum([a], Truncation(), coefficients=[1, 2])
    with pytest.raises(DTypeError, match="coefficients: expected real numbers"):
        truncate_sum([a], Truncation(), coefficients=[1j])
    with pytest.raises(RankError, match="max_rank: expected a number for method 'randomized', got None"):
        truncate_product(a, a, Truncation(rtol=0.1), method="randomized")
    with pytest.raises(ConfigError, match="method: expected one of"):
        truncate_sum([a], Truncation(), method="fast")


def test_the_formed_sum_is_the_oracle():
    terms = [cores_of("random", (5, 4, 5), [3, 3], torch.float64, seed) for seed in range(3)]
    formed = reduce(add, [scale(term, 2.0) for term in terms])
    truth = dense.full(formed)
    for method in METHODS:
        found, report = truncate_sum(terms, Truncation(), coefficients=[2, 2, 2], method=method)
        assert dense.distance(dense.full(found), truth) <= report.error_bound < 1e-10
