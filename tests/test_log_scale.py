"""Norms and inner products in log scale, where no float could hold them and where one can."""

import math

import pytest
import torch
from hypothesis import given

from tests import dense
from tests.strategies import DTYPES, eps, scale_of, trains
from ttnet import TensorTrain, Truncation
from ttnet.algebra import add, scale
from ttnet.cores import contract, inner
from ttnet.errors import ShapeError
from ttnet.log_scale import log_dot, log_norm, normalize
from ttnet.random import random_cores


@given(train=trains(scales=False))
def test_log_norm_is_that_of_the_dense_tensor(train) -> None:
    exact = dense.norm(dense.full(train.cores))
    found = float(log_norm(train.cores))
    roundoff = 50 * eps(train.dtype) * scale_of(train)
    assert (
        abs((math.exp(found) if found > -math.inf else 0.0) - exact)
        <= roundoff + 50 * eps(train.dtype) * exact
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_dot_is_that_of_the_dense_tensors(dtype) -> None:
    a, b = (
        random_cores((3, 1, 4, 2), 3, seed=0, dtype=dtype),
        random_cores((3, 1, 4, 2), 2, seed=1, dtype=dtype),
    )
    phase, logarithm = log_dot(a, b)
    assert phase.dtype == dtype
    assert not logarithm.is_complex()
    exact = dense.inner(dense.full(a), dense.full(b))
    assert complex(phase) * math.exp(float(logarithm)) == pytest.approx(
        exact, rel=1e-4 if eps(dtype) > 1e-9 else 1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1e-3), (torch.complex64, 1e3), (torch.bfloat16, 1.0)]
)
def test_two_thousand_modes(dtype, factor) -> None:
    shape = (10,) * 2000
    vectors = [torch.full((1, 10, 1), factor, dtype=dtype) for _ in shape]
    expected = 2000 * (math.log(float(vectors[0].abs().max())) + 0.5 * math.log(10))
    assert float(log_norm(vectors)) == pytest.approx(expected, rel=1e-4)
    phase, logarithm = log_dot(vectors, scale(vectors, -1))
    assert complex(phase) == pytest.approx(-1)
    assert float(logarithm) == pytest.approx(2 * expected, rel=1e-4)


def test_random_train_of_two_thousand_modes_in_float32() -> None:
    cores = random_cores((4,) * 2000, 4, seed=0)
    exact = float(log_norm([core.double() for core in cores]))
    assert float(log_norm(cores)) == pytest.approx(exact, rel=1e-7)
    assert float(log_dot(cores, cores)[1]) == pytest.approx(2 * exact, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero(dtype) -> None:
    zeros = [torch.zeros_like(core) for core in random_cores((3, 2, 4), 2, seed=0, dtype=dtype)]
    phase, logarithm = log_dot(zeros, zeros)
    assert complex(phase) == 0
    assert float(logarithm) == -math.inf
    assert float(log_norm(zeros)) == -math.inf
    leaves = [core.requires_grad_() for core in zeros]
    value = log_norm(leaves)
    assert float(value.detach()) == -math.inf
    gradients = torch.autograd.grad(value, leaves)
    assert all(not gradient.any() for gradient in gradients)


def test_a_small_difference_of_large_trains() -> None:
    a, b = (random_cores((4,) * 6, 3, seed=s, dtype=torch.float64) for s in (0, 1))
    difference = add(add(a, scale(b, 1e-9)), scale(a, -1))
    assert float(log_norm(difference)) == pytest.approx(math.log(1e-9) + float(log_norm(b)), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients(dtype) -> None:
    cores = [core.requires_grad_() for core in random_cores((2, 3, 2), 2, seed=0, dtype=dtype)]
    other = random_cores((2, 3, 2), 2, seed=1, dtype=dtype)
    assert torch.autograd.gradcheck(lambda *c: log_norm(c), cores)
    assert torch.autograd.gradcheck(lambda *c: log_dot(c, other)[1], cores)
    repeated = [
        torch.cat([core.detach()] * 2, 2) if k == 0 else core.detach() for k, core in enumerate(cores)
    ]
    repeated[1] = torch.cat([repeated[1]] * 2, 0)
    leaves = [core.requires_grad_() for core in repeated]
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(log_norm(leaves), leaves))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"other: expected a train of shape \(3, 2\), got \(2, 3\)"):
        log_dot(random_cores((3, 2), 1), random_cores((2, 3), 1))


def test_it_agrees_with_inner() -> None:
    a, b = (
        random_cores((5, 4, 3), 3, seed=0, dtype=torch.float64),
        random_cores((5, 4, 3), 2, seed=1, dtype=torch.float64),
    )
    phase, logarithm = log_dot(a, b)
    assert float(phase * logarithm.exp()) == pytest.approx(float(inner(a, b)), rel=1e-12)


@pytest.mark.parametrize("factor", [0.01, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_normalized_train_is_within_range_whatever_its_norm_was(dtype, factor) -> None:
    train = TensorTrain([core * factor for core in random_cores((4,) * 250, 3, seed=0, dtype=dtype)])
    assert not 0 < float(train.norm()) < math.inf or dtype in (torch.float64, torch.complex128)
    unit, logarithm = train.normalized()
    assert unit.center == 0
    assert float(unit.norm()) == pytest.approx(1, rel=10 * eps(dtype))
    assert float(TensorTrain(unit.cores).norm()) == pytest.approx(1, rel=1e4 * eps(dtype))
    assert float(logarithm) == pytest.approx(float(train.log_norm()), rel=1e3 * eps(dtype))
    assert float(log_dot(unit.cores, train.cores)[1]) == pytest.approx(float(logarithm), rel=1e3 * eps(dtype))
    unit.orthogonalize(-1).truncate(Truncation(rtol=1e-3))


def test_normalizing_differentiates_and_leaves_zero_alone() -> None:
    leaves = [core.requires_grad_() for core in random_cores((3, 4, 3), 2, seed=0, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *c: contract(normalize(c)[0]), leaves)
    assert torch.autograd.gradcheck(lambda *c: normalize(c)[1], leaves)
    for shape in ((3,), (3, 4)):
        train, logarithm = TensorTrain([torch.zeros(1, n, 1) for n in shape]).normalized()
        assert float(logarithm) == -math.inf
        assert not train.full().any()
    train, logarithm = TensorTrain([torch.full((1, 4, 1), 1e-42)]).normalized()
    assert float(logarithm) == pytest.approx(math.log(2e-42), rel=1e-3)
    torch.testing.assert_close(train.full(), torch.full((4,), 0.5))
