import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import dense
from tests.strategies import DTYPES, KINDS, cores_of, eps, scale_of, trains
from ttnet import TensorTrain, algebra
from ttnet.cores import ranks_of
from ttnet.errors import ShapeError


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


def entries(size):
    """What one mode can be indexed with, as numpy takes it too."""
    integers = st.integers(-size, size - 1)
    edges = st.none() | st.integers(-size - 2, size + 2)
    slices = st.builds(slice, edges, edges, st.sampled_from([None, 1, 2, 3, -1, -2]))
    lists = st.lists(integers, min_size=1, max_size=5)
    masks = st.lists(st.booleans(), min_size=size, max_size=size).filter(any)
    return st.one_of(
        integers,
        slices.filter(lambda s: len(range(size)[s])),
        lists,
        masks,
        lists.map(np.array),
        masks.map(np.array),
        integers.map(np.int64),
    )


def as_torch(entry):
    """The same index as a tensor."""
    return torch.as_tensor(entry) if isinstance(entry, list | int | np.ndarray | np.generic) else entry


@given(st.data())
def test_each_mode_is_indexed_on_its_own(data):
    train = data.draw(trains(scales=False))
    key = [data.draw(entries(n)) for n in train.shape]
    truth = dense.index(dense.full(train.cores), key)
    for variant in (key, [as_torch(entry) for entry in key]):
        found = algebra.index(train.cores, variant)
        if isinstance(found, torch.Tensor):
            assert found.shape == ()
            found_dense = dense.array(found)
        else:
            found_dense = dense.full(found)
        assert dense.distance(found_dense, np.asarray(truth)) <= 20 * eps(train.dtype) * scale_of(train)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_tensor_is_an_index(dtype):
    cores = [torch.randn(1, 200, 1)]
    (found,) = algebra.index(cores, [torch.tensor([3, 100], dtype=dtype)])
    assert torch.equal(found, cores[0][:, [3, 100]])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "expected indices from -3 to 2 for mode 1, got 3"),
        (-4, "got -4"),
        (torch.tensor(5), "got tensor(5)"),
        ([0, 3], "expected indices from -3 to 2 for mode 1, got [0, 3]"),
        ([], "not empty, got []"),
        (slice(2, 2), "not empty, got slice(2, 2, None)"),
        ([False, False, False], "not empty"),
        ([True, False], "expected a mask of shape (3,) for mode 1, got (2,)"),
        ([[0, 1], [1, 2]], "expected an integer, a slice, a list or a mask for mode 1"),
        ([[0, 1], [1]], "expected an integer"),
        (True, "got True"),
        (torch.tensor(True), "got tensor(True)"),
        (1.0, "got 1.0"),
        (torch.tensor(1.5), "got tensor(1.5"),
        ([0.0, 1.0], "got [0.0, 1.0]"),
        (1j, "got 1j"),
        (None, "got None"),
        ("a", "got 'a'"),
    ],
)
def test_bad_indices_are_refused(entry, message):
    cores = [torch.ones(1, 2, 2), torch.ones(2, 3, 1)]
    with pytest.raises(ShapeError, match=f"^index: .*{re.escape(message)}"):
        algebra.index(cores, [slice(None), entry])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_algebra_is_differentiable(dtype):
    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    a, b = [normal(1, 2, 2), normal(2, 3, 1)], [normal(1, 2, 3), normal(3, 3, 1)]
    for operation in (algebra.add, algebra.subtract, algebra.hadamard):
        assert torch.autograd.gradcheck(lambda *c, f=operation: f(c[:2], c[2:]), [*a, *b])
    assert torch.autograd.gradcheck(lambda *c: algebra.index(c, [[0, 1, 0], -1]), a)
    factor = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, *c: algebra.scale(c, f, at=1), [factor, *a])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_train_minus_itself_is_zero(dtype):
    a = cores_of("random", (3, 2, 4), [3, 2], dtype, 0)
    scale = math.prod(dense.norm(dense.array(core)) for core in a)
    assert dense.norm(dense.full(algebra.subtract(a, a))) <= 10 * eps(dtype) * scale
