import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ttnet
from tests import dense
from tests.matrices import dense_of, dense_product, products
from tests.strategies import DTYPES, eps, truncations
from ttnet import TensorTrain, Truncation
from ttnet.apply_matrix import apply
from ttnet.errors import ConfigError, NonFiniteError, RankError, ShapeError
from ttnet.operators import laplace, qtt_laplace
from ttnet.products import METHODS, product_error
from ttnet.tt_matrix import TTMatrix


def bare(factor):
    return tuple(c.unsqueeze(2) for c in factor.cores) if isinstance(factor, TensorTrain) else factor.cores


def pair(d=6, n=3, a=3, r=4, *, dtype=torch.float64, seed=0):
    matrix = TTMatrix.random([n] * d, [n] * d, a, seed=seed, dtype=dtype)
    return matrix, ttnet.random_train([n] * d, r, seed=seed + 1, dtype=dtype)


def decaying(d=6, n=3, r=6, ratio=0.3, *, dtype=torch.float64, seed=0):
    train = ttnet.random_train([n] * d, r, seed=seed, dtype=dtype)
    scales = [ratio ** torch.arange(core.shape[2], dtype=torch.float64) for core in train.cores]
    return TensorTrain([core * s.to(core.dtype) for core, s in zip(train.cores, scales, strict=True)])


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(factors=products(storage=True), truncation=truncations())
def test_the_reported_error_holds(method, factors, truncation):
    left, right = factors
    product, report = apply(left, right, truncation, method=method, return_report=True)
    exact = dense_product(left, right)
    error = dense.norm(dense_of(product) - exact)
    # What is left out is the roundoff of this comparison itself.
    assert error <= report.error_bound * (1 + 1e-12) + 1e-300
    assert report.error_bound >= report.error_estimate >= 0
    assert abs(report.norm - dense.norm(exact)) <= report.error_bound + 1e-5 * report.norm
    assert product.dtype == left.dtype
    assert product.center == 0
    ranks = [(a.shape[-1], b.shape[-1]) for a, b in zip(left.cores[:-1], right.cores[:-1], strict=True)]
    assert report.ranks_before == tuple(a * b for a, b in ranks)
    assert report.ranks_after == product.ranks[1:-1]
    if truncation.max_rank is not None:
        assert max(report.ranks_after, default=1) <= truncation.max_rank


@pytest.mark.parametrize("method", ["density", "qr"])
@settings(max_examples=15)
@given(
    factors=products(kinds=("random", "deficient", "repeated", "graded")),
    rtol=st.sampled_from([1e-2, 0.1, 0.5]),
)
def test_tolerances_are_met(method, factors, rtol):
    left, right = factors
    product = apply(left, right, Truncation(rtol=rtol), method=method)
    exact = dense_product(left, right)
    assert dense.norm(dense_of(product) - exact) <= rtol * (1 + 1e-3) * dense.norm(exact) + 1e-300
    absolute = Truncation(atol=max(rtol * dense.norm(exact), 1e-300))
    product = apply(left, right, absolute, method=method)
    assert dense.norm(dense_of(product) - exact) <= rtol * (1 + 1e-3) * dense.norm(exact) + 1e-300


@pytest.mark.parametrize("method", ["auto", "qr", "direct"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_tight_tolerances_are_met(method, dtype):
    matrix, _ = pair(dtype=dtype)
    train = decaying(dtype=dtype, ratio=0.01)
    exact = dense_product(matrix, train)
    for rtol in (1e-4, 1e-8, 1e-12):
        product, report = apply(matrix, train, Truncation(rtol=rtol), method=method, return_report=True)
        assert dense.norm(dense_of(product) - exact) <= min(rtol * dense.norm(exact), report.error_bound)
        assert report.error_bound <= (rtol + 1e-12) * dense.norm(exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_cut_product_is_as_good_as_rounding_the_exact_one(method, dtype):
    matrix, train = pair(a=4, r=5, dtype=dtype)
    truncation = Truncation(max_rank=7)
    exact = dense_product(matrix, train)
    product, report = apply(matrix, train, truncation, method=method, return_report=True)
    error = dense.norm(dense_of(product) - exact)
    best = dense.norm(dense_of((matrix @ train).truncate(truncation)) - exact)
    assert error <= (1.3 if method == "zip-up" else 1.0 + 1e-3) * best
    assert report.error_estimate == pytest.approx(error, rel=1e-3)
    assert report.error_bound <= 1.01 * error
    if method not in ("zip-up", "auto"):
        squared = math.fsum(report.discarded_weight)
        assert math.sqrt(squared) == pytest.approx(report.error_estimate, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_matrix_times_matrix(method):
    a = TTMatrix.random((2, 3, 2, 2), (3, 2, 2, 1), 3, seed=0, dtype=torch.complex128)
    b = TTMatrix.random((3, 2, 2, 1), (2, 2, 3, 3), 2, seed=1, dtype=torch.complex128)
    exact = dense_product(a, b)
    product, report = apply(a, b, Truncation(max_rank=4), method=method, return_report=True)
    assert product.rows == a.rows
    assert product.columns == b.columns
    error = dense.norm(dense_of(product) - exact)
    assert error <= report.error_bound
    assert report.error_estimate == pytest.approx(error, rel=1e-6)
    whole = apply(a, b, Truncation(), method=method)
    assert dense.norm(dense_of(whole) - exact) <= 1e-12 * dense.norm(exact)


@pytest.mark.parametrize("method", METHODS)
def test_a_cap_below_a_tolerance_is_told(method):
    # The exact product has rank 12; a cap of 12 must not cost anything, one of 4 must not be hidden.
    matrix, train = pair(d=8, n=3, a=3, r=4)
    exact = dense_of(matrix @ train)
    wish = Truncation(rtol=1e-10, max_rank=12)
    product, report = apply(matrix, train, wish, method=method, return_report=True)
    error = dense.norm(dense_of(product) - exact)
    assert error <= report.error_bound
    assert error <= (1e-6 if method == "density" else 1e-10) * dense.norm(exact)
    wish = Truncation(rtol=1e-10, max_rank=4)
    product, report = apply(matrix, train, wish, method=method, return_report=True)
    error = dense.norm(dense_of(product) - exact)
    assert error > 0.1 * dense.norm(exact)
    assert error <= report.error_bound <= 1.001 * error
    assert report.relative_error == pytest.approx(error / dense.norm(exact), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram_matrices_that_see_nothing_give_way_to_triangles(dtype):
    # What the left of a bond can tell apart is less than its rank: all error of the cut is roundoff, but the
    # Gram matrix must cancel to show it.
    matrix = TTMatrix.identity([3] * 6, dtype=dtype)
    first = ttnet.random_train([3] * 6, (3, 4, 4, 3, 3), seed=0, dtype=dtype)
    second = ttnet.random_train([3] * 6, (3, 4, 4, 3, 3), seed=1, dtype=dtype)
    train = first + TensorTrain([*first.cores[:3], *second.cores[3:]])
    exact = dense_of(train)
    for method in ("density", "auto"):
        product, report = apply(matrix, train, Truncation(max_rank=6), method=method, return_report=True)
        assert dense.norm(dense_of(product) - exact) <= report.error_bound <= 2000 * eps(dtype) * report.norm


@pytest.mark.parametrize("method", ["density", "qr", "auto"])
def test_a_tolerance_below_what_gram_matrices_resolve_finds_the_exact_ranks(method):
    train = ttnet.random_train((4,) * 5, rank=3, seed=0, dtype=torch.float64)
    matrix = TTMatrix.identity((4,) * 5, dtype=torch.float64)
    product, report = apply(matrix + matrix, train, Truncation(rtol=1e-10), method=method, return_report=True)
    assert product.ranks == train.ranks
    assert report.error_bound < 1e-10 * report.norm


@pytest.mark.parametrize("method", ["auto", "density", "qr", "zip-up", "direct"])
@pytest.mark.parametrize("factor", [0.01, 1.0])
def test_a_product_that_no_number_can_hold_is_refused_and_its_normalized_factor_is_not(method, factor):
    train = ttnet.random_train((4,) * 160, rank=3, seed=0, dtype=torch.float32)
    train = TensorTrain([core * factor for core in train.cores])
    matrix = TTMatrix.identity((4,) * 160, dtype=torch.float32)
    with pytest.raises(NonFiniteError, match=r"train: expected a norm within the range of .*normalized\(\)"):
        apply(matrix, train, Truncation(rtol=1e-2), method=method)
    product = apply(matrix, train.normalized()[0], Truncation(rtol=1e-2), method=method)
    assert float(product.norm()) == pytest.approx(1, rel=1e-3)


def test_operators_that_cancel_are_judged_honestly():
    # A second difference of a smooth function: the product is 10 orders smaller than what it is made of.
    levels = 16
    points = torch.linspace(0, 1, 2**levels, dtype=torch.float64)
    train = ttnet.tt_svd(torch.sin(3 * points).reshape([2] * levels), Truncation(rtol=1e-15))
    matrix = qtt_laplace(levels, boundary="neumann", dtype=torch.float64)
    exact = dense_of(matrix @ train)
    for method in METHODS:
        product, report = apply(matrix, train, Truncation(max_rank=6), method=method, return_report=True)
        error = dense.norm(dense_of(product) - exact)
        assert error <= report.error_bound
        if method in ("auto", "qr"):
            assert error <= 1e-4 * dense.norm(exact)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "direct"])
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(torch.float32, 25), (torch.float32, -25), (torch.float64, 200)]
)
def test_squares_neither_overflow_nor_underflow(method, dtype, exponent):
    matrix, train = pair(dtype=dtype)
    reference = apply(matrix, train, Truncation(max_rank=5), method=method)
    scaled = apply(matrix * 10.0**exponent, train * 10.0**-exponent, Truncation(max_rank=5), method=method)
    assert dense.norm(dense_of(scaled) - dense_of(reference)) <= 1e-3 * dense.norm(dense_of(reference))
    large, report = apply(
        matrix * 10.0**exponent, train, Truncation(max_rank=5, rtol=1e-3), method=method, return_report=True
    )
    error = dense.norm(dense_of(large) - dense_product(matrix * 10.0**exponent, train))
    assert error <= report.error_bound
    assert report.error_estimate == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize("method", ["auto", "density", "qr", "zip-up"])
def test_long_chains_stay_in_range(method):
    d = 600
    matrix = TTMatrix.identity([2] * d, dtype=torch.float32) * 2.0
    cores = ttnet.random_train([2] * d, 3, seed=0, dtype=torch.float32).cores
    train = TensorTrain([core / 2**0.5 for core in cores]).orthogonalize(0)
    train = train / train.norm()
    product, report = apply(matrix, train, Truncation(max_rank=3), method=method, return_report=True)
    assert report.norm == pytest.approx(2.0, rel=1e-3)
    assert float((product - train * 2.0).norm()) <= report.error_bound
    assert float((product - train * 2.0).norm()) <= 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_one_site_rank_one_and_zero(method):
    matrix = TTMatrix.random([3], [4], 1, seed=0, dtype=torch.float64)
    train = ttnet.random_train([4], 1, seed=1, dtype=torch.float64)
    product = apply(matrix, train, Truncation(max_rank=1), method=method)
    torch.testing.assert_close(product.full(), matrix.full() @ train.full())
    zero = TTMatrix.zeros([3, 3, 3], [2, 2, 2], dtype=torch.float64)
    product, report = apply(
        zero,
        ttnet.random_train([2, 2, 2], 2, seed=0, dtype=torch.float64),
        Truncation(rtol=1e-3, atol=1e-3),
        method=method,
        return_report=True,
    )
    assert product.ranks == (1, 1, 1, 1)
    assert not product.full().any()
    assert report.error_bound == report.norm == report.relative_error == 0


def test_the_result_needs_no_gauge_of_the_input_and_uses_it():
    matrix, train = pair()
    for center in (None, 0, 3, 5):
        given_train = train if center is None else train.orthogonalize(center)
        product, report = apply(matrix, given_train, Truncation(max_rank=6), return_report=True)
        assert dense.is_canonical(product.cores, 0)
        error = dense.norm(dense_of(product) - dense_product(matrix, train))
        assert report.error_estimate == pytest.approx(error, rel=1e-9)


def test_product_error_measures_any_train():
    matrix, train = pair(dtype=torch.complex128)
    exact = dense_product(matrix, train)
    good = (matrix @ train).truncate(Truncation(max_rank=8))
    other = ttnet.random_train([3] * 6, 3, seed=9, dtype=torch.complex128)
    for candidate in (good, good * 1e-20, good * 0, other * 1e6):
        error, bound = product_error(matrix.cores, bare(train), candidate.cores)
        truth = dense.norm(dense_of(candidate) - exact)
        assert error == pytest.approx(truth, rel=1e-9)
        assert truth <= bound <= 1.0001 * truth + 1e-300
    error, bound = product_error(matrix.cores, bare(train), (matrix @ train).cores)
    assert error <= bound <= 1e-4 * dense.norm(exact)
    zero = TTMatrix.zeros([3] * 6, [3] * 6, dtype=torch.complex128)
    assert product_error(zero.cores, bare(train), (train * 0).cores) == (0.0, 0.0)
    assert product_error(zero.cores, bare(train), train.cores)[0] == pytest.approx(float(train.norm()))


def test_gradients_pass_through_the_direct_method_alone():
    matrix, train = pair(d=4)
    cores = [core.clone().requires_grad_() for core in train.cores]
    for method in ("direct", "auto"):
        product = apply(matrix, TensorTrain(cores), Truncation(max_rank=4), method=method)
        (gradient,) = torch.autograd.grad(product.norm(), [cores[1]])
        assert torch.isfinite(gradient).all()
        assert gradient.any()
    for method in ("density", "qr", "zip-up"):
        with pytest.raises(ConfigError, match="direct"):
            apply(matrix, TensorTrain(cores), Truncation(max_rank=4), method=method)
        with torch.no_grad():
            product = apply(matrix, TensorTrain(cores), Truncation(max_rank=4), method=method)
        assert not product.cores[0].requires_grad


class Largest(TorchDispatchMode):
    """Watch the size of every tensor that is computed."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                self.size = max(self.size, part.untyped_storage().nbytes() // part.itemsize)
        return result


def test_ranks_are_never_formed():
    # No tensor of a sweep is as large as a core of the exact product.
    matrix, train = pair(d=8, n=4, a=5, r=10)
    for method in ("zip-up", "density"):
        with Largest() as largest:
            apply(matrix, train, Truncation(max_rank=8), method=method)
        assert 0 < largest.size <= 5 * 10 * 4 * 5 * 10
    with Largest() as largest:
        apply(matrix, train, Truncation(max_rank=8), method="direct")
    assert largest.size >= 5 * 10 * 4 * 5 * 10


def test_bad_arguments_are_named():
    matrix, train = pair()
    with pytest.raises(ShapeError, match=r"other: expected modes \(3, 3, 3, 3, 3, 3\).*got \(2, 2\)"):
        apply(matrix, ttnet.random_train([2, 2], 1, seed=0, dtype=torch.float64), Truncation())
    with pytest.raises(ConfigError, match="method: expected one of"):
        apply(matrix, train, Truncation(), method="zipup")
    with pytest.raises(RankError, match="max_rank"):
        apply(matrix, train, Truncation(max_rank=[2, 2]))
    for method in ("density", "qr", "zip-up"):
        with pytest.raises(NonFiniteError, match="matrix, other"):
            apply(matrix * math.nan, train, Truncation(max_rank=2), method=method)
        large, vector = matrix.to(torch.float32) * 1e30, train.to(torch.float32) * 1e30
        with pytest.raises(NonFiniteError, match=r"range of torch\.float32|finite"):
            apply(large, vector, Truncation(max_rank=2), method=method)


def test_lists_of_ranks_and_minima_are_kept():
    matrix, train = pair()
    ranks = (3, 5, 6, 4, 2)
    for method in METHODS:
        product = apply(matrix, train, Truncation(max_rank=ranks), method=method)
        assert product.ranks[1:-1] == ranks
        product = apply(matrix, train, Truncation(rtol=0.99, min_rank=2), method=method)
        assert min(product.ranks[1:-1]) >= 2


def test_half_precision_is_computed_in_single():
    matrix, train = pair(dtype=torch.bfloat16)
    exact = dense_product(matrix, train)
    for method in METHODS:
        product, report = apply(matrix, train, Truncation(max_rank=12), method=method, return_report=True)
        assert product.dtype == torch.bfloat16
        assert dense.norm(dense_of(product) - exact) <= report.error_bound
        assert dense.norm(dense_of(product) - exact) <= 0.05 * dense.norm(exact)


@pytest.mark.parametrize("method", METHODS)
def test_every_device(method, device):
    matrix, train = pair()
    product = apply(matrix.to(device), train.to(device), Truncation(max_rank=6), method=method)
    assert product.device.type == device.type
    reference = apply(matrix, train, Truncation(max_rank=6), method=method)
    assert dense.norm(dense_of(product) - dense_of(reference)) <= 1e-9 * dense.norm(dense_of(reference))


def test_repeated_application_is_a_power_method():
    # A user's loop: rounding after each step, errors that add up as reported.
    matrix = laplace([8, 8, 8], dtype=torch.float64)
    train = ttnet.random_train([8, 8, 8], 2, seed=0, dtype=torch.float64)
    bounds = []
    for _ in range(150):
        train, report = apply(matrix, train, Truncation(max_rank=6), return_report=True)
        train = train / report.norm
        bounds.append(report.error_bound)
    largest = 3 * (2 + 2 * math.cos(math.pi / 9))
    assert float(train.dot(matrix @ train) / train.dot(train)) == pytest.approx(largest, rel=1e-4)
    assert np.isfinite(bounds).all()
