"""Functions of several trains against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ttnet
from tests import dense
from tests.strategies import STORAGE_DTYPES, eps, scale_of, trains
from ttnet import CrossOptions, TensorTrain, Truncation
from ttnet.errors import DeviceError, DTypeError, NonFiniteError, ShapeError


def example(shape=(3, 4, 5), rank=3, *, seed=0, dtype=torch.float64):
    return ttnet.random_train(shape, rank, seed=seed, dtype=dtype)


@given(trains(storage=True, scales=False), trains(storage=True, scales=False))
def test_outer(a, b):
    found = ttnet.outer(a, b)
    assert found.dtype == torch.promote_types(a.dtype, b.dtype)
    exact = np.multiply.outer(dense.full(a.cores), dense.full(b.cores))
    assert dense.distance(dense.full(found.cores), exact) <= 20 * eps(found.dtype) * scale_of(a) * scale_of(b)


@pytest.mark.parametrize("right", STORAGE_DTYPES)
@pytest.mark.parametrize("left", STORAGE_DTYPES)
def test_every_pair_of_dtypes_is_promoted(left, right):
    a, b = example((2, 3), 2, dtype=left), example((2, 3), 2, seed=1, dtype=right)
    dtype = torch.promote_types(left, right)
    x, y = dense.full(a.cores), dense.full(b.cores)
    tolerance = 50 * eps(dtype) * scale_of(a) * scale_of(b)
    for found, exact in (
        (ttnet.kron(a, b), np.kron(x, y)),
        (ttnet.concatenate([a, b]), np.concatenate([x, y])),
        (ttnet.outer(a, b), np.multiply.outer(x, y)),
    ):
        assert found.dtype == dtype
        assert dense.distance(dense.full(found.cores), exact) <= tolerance
    assert ttnet.distance(a, b) == pytest.approx(dense.norm(x - y), rel=1e-3)
    phase, magnitude = ttnet.log_dot(a, b)
    assert abs(phase.item() * magnitude.exp().item() - dense.inner(x, y)) <= tolerance


@given(st.data())
def test_concatenate(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    mode = data.draw(st.integers(-len(shape), len(shape) - 1))
    some = []
    for seed in range(data.draw(st.integers(1, 3))):
        shape[mode] = data.draw(st.integers(1, 3))
        some.append(example(tuple(shape), 2, seed=seed))
    exact = np.concatenate([np.asarray(train) for train in some], mode)
    np.testing.assert_allclose(np.asarray(ttnet.concatenate(some, mode)), exact, atol=1e-13)


def test_distance_resolves_small_differences():
    a = example()
    b = a + ttnet.unit(a.shape, (1, 2, 3), dtype=torch.float64) * 1e-12
    assert ttnet.distance(a, b) == pytest.approx(1e-12, rel=0.1)


def test_log_dot_where_dot_overflows():
    a = example((10,) * 400, 3, dtype=torch.float32)
    phase, magnitude = ttnet.log_dot(a, -2 * a)
    assert phase.item() == pytest.approx(-1, abs=1e-5)
    assert magnitude.item() == pytest.approx(2 * a.log_norm().item() + np.log(2), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128, torch.bfloat16])
def test_elementwise_functions(dtype):
    a, b = example((5, 4, 6), 2, dtype=dtype), example((5, 4, 6), 2, seed=1, dtype=dtype)
    found, report = ttnet.apply_elementwise(torch.sin, a, return_report=True)
    assert report.converged
    assert found.dtype == dtype
    scale = 1 if dtype == torch.bfloat16 else 1e-3
    assert dense.distance(found.full(), torch.sin(a.full())) <= 0.3 * scale * float(found.norm())
    both = ttnet.apply_elementwise(lambda x, y: x * x + y, a, b)
    exact = a.full().square() + b.full()
    assert dense.distance(both.full(), exact) <= 0.3 * scale * float(both.norm())


METHODS = ["auto", "svd", "qr-svd", "gram", "randomized"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_rounded_sums_and_products(method, dtype):
    some = [example((4, 5, 6, 3), 3, seed=k, dtype=dtype) for k in range(3)]
    x = [dense.full(train.cores) for train in some]
    weights = [0.5, -2.0, 1.0]
    truncation = Truncation(max_rank=4)
    for (found, report), exact in (
        (
            ttnet.add(*some, truncation=truncation, coefficients=weights, method=method, return_report=True),
            sum(w * a for w, a in zip(weights, x, strict=True)),
        ),
        (ttnet.multiply(*some[:2], truncation, method=method, return_report=True), x[0] * x[1]),
    ):
        assert (found.dtype, found.center, max(found.ranks)) == (dtype, 0, 4)
        assert dense.is_canonical(found.cores, 0)
        assert dense.distance(dense.full(found.cores), exact) <= report.error_bound


@given(trains(scales=False), st.sampled_from([(), (2.0, -1.0), (1j, 0.5)]))
def test_a_sum_loses_nothing_without_a_truncation(train, coefficients):
    other = ttnet.random_train(train.shape, 2, seed=0, dtype=train.dtype)
    found = ttnet.add(train, other, truncation=Truncation(), coefficients=coefficients or None)
    p, q = coefficients or (1, 1)
    dtype = train.dtype.to_complex() if coefficients == (1j, 0.5) else train.dtype
    assert found.dtype == dtype
    exact = p * dense.full(train.cores) + q * dense.full(other.cores)
    tolerance = 500 * eps(dtype) * (scale_of(train) + scale_of(other))
    assert dense.distance(dense.full(found.cores), exact) <= tolerance


def test_rounded_sums_and_products_promote_and_refuse():
    a, b = example(dtype=torch.float32), example(seed=1)
    assert ttnet.add(a, b, truncation=Truncation(max_rank=2)).dtype == torch.float64
    assert ttnet.multiply(a, b, Truncation(max_rank=2)).dtype == torch.float64
    with pytest.raises(ShapeError, match="other: "):
        ttnet.multiply(a, example((3, 4, 6)), Truncation(max_rank=2))
    with pytest.raises(DTypeError, match="trains: "):
        ttnet.add(a, 1, truncation=Truncation(max_rank=2))
    with pytest.raises(ShapeError, match="coefficients: "):
        ttnet.add(a, b, truncation=Truncation(max_rank=2), coefficients=[1.0])


def test_divide():
    a, b = example((5, 4, 6), 2), example((5, 4, 6), 2, seed=1)
    b = b * b + 1
    exact = a.full() / b.full()
    options = CrossOptions(rtol=1e-11, seed=0)
    found, report = ttnet.divide(a, b, options=options, return_report=True)
    assert report.converged
    torch.testing.assert_close(found.full(), exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(ttnet.divide(a, b).full(), exact, rtol=0, atol=1e-6)
    with pytest.raises(NonFiniteError, match="index"):
        ttnet.divide(a, ttnet.zeros_like(a))


@pytest.mark.parametrize("divide", [ttnet.divide, lambda a, b, **_: a / b], ids=["function", "operator"])
def test_a_quotient_that_is_not_found_is_no_secret(divide):
    noise = ttnet.tt_svd(torch.rand(6, 6, 6, 6, 6, 6, dtype=torch.float64) + 0.5)
    with pytest.warns(RuntimeWarning, match=r"^cross approximation: .*\(error \d") as caught:
        divide(ttnet.ones_like(noise), noise, options=CrossOptions(max_rank=100, max_sweeps=5, seed=0))
    assert caught[0].filename == __file__


def test_what_is_no_train_or_elsewhere_is_named():
    train = example()
    meta = TensorTrain([core.to("meta") for core in train.cores])
    for function in (ttnet.outer, ttnet.kron, ttnet.divide, ttnet.log_dot, ttnet.distance):
        with pytest.raises(DTypeError, match=r"^trains: expected TensorTrains, got Tensor"):
            function(train, train.full())
        with pytest.raises(DeviceError, match=r"^trains: expected one device, got cpu and meta"):
            function(train, meta)
    for function in (ttnet.divide, ttnet.log_dot, ttnet.distance):
        with pytest.raises(ShapeError, match=r"^other: expected a train of shape \(3, 4, 5\)"):
            function(train, example((3, 4, 6)))
    with pytest.raises(ShapeError, match=r"^trains: expected at least one train"):
        ttnet.concatenate([])
    with pytest.raises(ShapeError, match=r"^trains: expected at least one train"):
        ttnet.apply_elementwise(torch.sin)


def test_functions_are_differentiable_where_they_are_exact():
    a, b = example((2, 3), 2), example((2, 3), 2, seed=1)
    leaves = [core.requires_grad_() for core in a.cores]
    for function in (ttnet.outer, ttnet.kron, lambda x, y: ttnet.concatenate([x, y])):
        assert torch.autograd.gradcheck(lambda *c, f=function: f(TensorTrain(c), b).full(), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_functions_of_matrices(dtype):
    a = ttnet.TTMatrix.random((2, 3), (3, 1), 2, seed=0, dtype=dtype)
    b = ttnet.TTMatrix.random((2, 3), (3, 1), 2, seed=1, dtype=dtype)
    x, y = (m.full().reshape(2, 3, 3, 1) for m in (a, b))
    for found, exact in (
        (ttnet.kron(a, b), torch.kron(a.full(), b.full())),
        (ttnet.outer(a, b), torch.kron(a.full(), b.full())),
        (ttnet.concatenate([a, b], 1), torch.cat([x, y], 1).reshape(12, 3)),
        (ttnet.concatenate([a, b], -1), torch.cat([x, y], 3).reshape(6, 6)),
        (
            ttnet.pad(a, [(0, 0), (0, 0), (0, 1), (0, 0)]),
            torch.nn.functional.pad(x, (0, 0, 0, 1)).reshape(6, 4),
        ),
    ):
        assert isinstance(found, ttnet.TTMatrix)
        torch.testing.assert_close(found.full(), exact)
    with pytest.raises(DTypeError, match=r"^trains: expected TTMatrices, got TensorTrain"):
        ttnet.outer(a, a.as_train())


def test_stack_and_pad():
    a, b = example(), example(seed=1, dtype=torch.complex128)
    stacked = ttnet.stack([a, b], 1)
    torch.testing.assert_close(stacked.full(), torch.stack([a.full().to(b.dtype), b.full()], 1))
    padded = ttnet.pad(a, [(1, 2), (0, 0), (3, 0)], 2j)
    exact = np.pad(np.asarray(a).astype(complex), [(1, 2), (0, 0), (3, 0)], constant_values=2j)
    np.testing.assert_allclose(np.asarray(padded), exact, atol=1e-13)
    with pytest.raises(DTypeError, match=r"^other: "):
        ttnet.pad(a, [(1, 2)] * 3, "edge")
