import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ttnet
from tests import dense
from tests.strategies import DTYPES, KINDS, cores_of, eps, scale_of, trains
from ttnet import TensorTrain, algebra
from ttnet.cores import ranks_of
from ttnet.errors import DTypeError, ShapeError


@st.composite
def pairs(draw):
    """Two trains of one shape and dtype."""
    a = draw(trains(scales=False))
    ranks = draw(st.lists(st.integers(1, 3), min_size=a.ndim - 1, max_size=a.ndim - 1))
    b = cores_of(draw(st.sampled_from(KINDS)), a.shape, ranks, a.dtype, draw(st.integers(0, 99)))
    return a, TensorTrain(b)


@given(pairs())
def test_sum_and_difference(pair):
    a, b = pair
    tolerance = 20 * eps(a.dtype) * (scale_of(a) + scale_of(b))
    inside = [r + s for r, s in zip(a.ranks[1:-1], b.ranks[1:-1], strict=True)]
    for operation, sign in ((algebra.add, 1), (algebra.subtract, -1)):
        found = operation(a.cores, b.cores)
        assert ranks_of(found) == (1, *inside, 1)
        assert found[0].dtype == a.dtype
        assert (
            dense.distance(dense.full(found), dense.full(a.cores) + sign * dense.full(b.cores)) <= tolerance
        )


@given(pairs())
def test_entrywise_product(pair):
    a, b = pair
    found = algebra.hadamard(a.cores, b.cores)
    assert ranks_of(found) == tuple(r * s for r, s in zip(a.ranks, b.ranks, strict=True))
    truth = dense.full(a.cores) * dense.full(b.cores)
    assert dense.distance(dense.full(found), truth) <= 20 * eps(a.dtype) * scale_of(a) * scale_of(b)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("factor", [-2, 0.1, 0, torch.tensor(3.0, dtype=torch.float64)])
def test_a_factor_goes_into_one_core(at, factor):
    cores = [torch.randn(1, 2, 3).double(), torch.randn(3, 2, 2).double(), torch.randn(2, 3, 1).double()]
    found = algebra.scale(cores, factor, at=at)
    assert [new is old for new, old in zip(found, cores, strict=True)] == [k != at for k in range(3)]
    np.testing.assert_allclose(dense.full(found), dense.full(cores) * float(factor), rtol=1e-14)


@pytest.mark.parametrize("operation", [algebra.add, algebra.subtract, algebra.hadamard])
@pytest.mark.parametrize("other", [(2, 3), (2, 3, 5), (2, 3, 4, 1)])
def test_other_shapes_are_refused(operation, other):
    a = [torch.ones(1, n, 1) for n in (2, 3, 4)]
    b = [torch.ones(1, n, 1) for n in other]
    with pytest.raises(
        ShapeError, match=re.escape(f"other: expected a train of shape (2, 3, 4), got {other}")
    ):
        operation(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_algebra_is_differentiable(dtype):
    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    a, b = [normal(1, 2, 2), normal(2, 3, 1)], [normal(1, 2, 3), normal(3, 3, 1)]
    for operation in (algebra.add, algebra.subtract, algebra.hadamard):
        assert torch.autograd.gradcheck(lambda *c, f=operation: f(c[:2], c[2:]), [*a, *b])
    factor = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, *c: algebra.scale(c, f, at=1), [factor, *a])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_train_minus_itself_is_zero(dtype):
    a = cores_of("random", (3, 2, 4), [3, 2], dtype, 0)
    scale = math.prod(dense.norm(dense.array(core)) for core in a)
    assert dense.norm(dense.full(algebra.subtract(a, a))) <= 10 * eps(dtype) * scale


@given(st.data())
def test_broadcasting_is_that_of_numpy(data):
    a = data.draw(trains(scales=False))
    shape = tuple(1 if data.draw(st.booleans()) else n for n in a.shape)[
        data.draw(st.integers(0, a.ndim - 1)) :
    ]
    ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(shape) - 1, max_size=len(shape) - 1))
    b = TensorTrain(cores_of("random", shape, ranks, a.dtype, data.draw(st.integers(0, 99))))
    x, y = dense.full(a.cores), dense.full(b.cores)
    for found, exact in ((a + b, x + y), (b - a, y - x), (a * b, x * y), (b * a, y * x)):
        assert found.shape == exact.shape
        spread = max(1.0, exact.size**0.5)
        tolerance = 20 * eps(a.dtype) * spread * (scale_of(a) + 1) * (scale_of(b) + 1)
        assert dense.distance(dense.full(found.cores), exact) <= tolerance


def test_both_sides_broadcast_and_no_rank_grows():
    a, b = (ttnet.random_train(shape, 2, seed=0) for shape in ((3, 1, 2), (4, 1)))
    assert ((a + b).shape, (a + b).ranks) == ((3, 4, 2), (1, 3, 3, 1))
    c, d = (ttnet.TTMatrix.random((2, m), (n, 3), 2, seed=0) for m, n in ((1, 4), (5, 1)))
    assert ((c * d).rows, (c * d).columns) == ((2, 5), (4, 3))
    torch.testing.assert_close(
        (c + d).full().reshape(2, 5, 4, 3), c.full().reshape(2, 1, 4, 3) + d.full().reshape(2, 5, 1, 3)
    )


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, np.int64(2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_powers(exponent, dtype):
    train = ttnet.random_train((3, 4, 2), 2, seed=0, dtype=dtype)
    exact = dense.full(train.cores) ** exponent
    found = train**exponent
    assert found.ranks == tuple(r**exponent for r in train.ranks)
    assert dense.distance(dense.full(found.cores), exact) <= 200 * eps(dtype) * max(1.0, dense.norm(exact))


@pytest.mark.parametrize("exponent", [-1, 0.5, True, None])
def test_powers_without_exact_cores_are_refused(exponent):
    with pytest.raises(DTypeError, match=r"^exponent: .* use ttnet.apply_elementwise"):
        ttnet.ones((2, 3)) ** exponent
