"""Indices of trains and TT-matrices against numpy's."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import dense
from tests.matrices import full, matrices
from tests.matrices import scale_of as matrix_scale_of
from tests.strategies import eps, scale_of, trains
from ttnet.errors import ShapeError
from ttnet.indexing import expand_key, index


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
        found = index(train.cores, variant)
        if isinstance(found, torch.Tensor):
            assert found.shape == ()
            found_dense = dense.array(found)
        else:
            found_dense = dense.full(found)
        assert dense.distance(found_dense, np.asarray(truth)) <= 20 * eps(train.dtype) * scale_of(train)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_tensor_is_an_index(dtype):
    cores = [torch.randn(1, 200, 1)]
    (found,) = index(cores, [torch.tensor([3, 100], dtype=dtype)])
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
        ("a", "got 'a'"),
    ],
)
def test_bad_indices_are_refused(entry, message):
    cores = [torch.ones(1, 2, 2), torch.ones(2, 3, 1)]
    with pytest.raises(ShapeError, match=f"^index: .*{re.escape(message)}"):
        index(cores, [slice(None), entry])


@given(st.data())
def test_new_modes_stand_where_numpy_puts_them(data):
    train = data.draw(trains(scales=False))
    key = [data.draw(st.integers(0, n - 1) | st.just(slice(None))) for n in train.shape]
    for _ in range(data.draw(st.integers(1, 3))):
        key.insert(data.draw(st.integers(0, len(key))), None)
    found = dense.full(index(train.cores, key))
    truth = dense.full(train.cores)[tuple(key)]
    assert dense.distance(found, truth) <= 20 * eps(train.dtype) * scale_of(train)


@settings(max_examples=50)
@given(st.data())
def test_rows_and_columns_are_those_of_the_dense_tensor(data):
    matrix = data.draw(matrices())
    sizes = (*matrix.rows, *matrix.columns)
    key = [data.draw(st.integers(-n, n - 1) | entries(n)) for n in sizes]
    for side in data.draw(st.sampled_from([(), (0,), (1,), (0, 1)])):
        for k in range(side * matrix.ndim, (side + 1) * matrix.ndim):
            key[k] = data.draw(st.integers(-sizes[k], sizes[k] - 1))
    truth = np.asarray(dense.index(full(matrix.cores).reshape(sizes), key))
    found = index(matrix.cores, key)
    if isinstance(found, torch.Tensor):
        assert found.shape == ()
        values = dense.array(found)
    else:
        values = full(found) if found[0].ndim == 4 else dense.full(found)
        kept = sum(not isinstance(entry, int | np.integer) for entry in key[: matrix.ndim])
        rows = truth.shape[:kept]
        truth = truth.reshape(int(np.prod(rows)), -1) if found[0].ndim == 4 else truth
    assert dense.distance(values, truth) <= 20 * eps(matrix.dtype) * matrix_scale_of(matrix)


def test_what_a_key_says_of_modes():
    assert expand_key((0, None, ...), 3) == [0, None, slice(None), slice(None)]
    assert expand_key(None, 1) == [None, slice(None)]
    for key in ((0, 0, 0), (..., ...)):
        with pytest.raises(ShapeError, match=r"^index: expected at most 2 indices and one ellipsis"):
            expand_key(key, 2)
    with pytest.raises(ShapeError, match=r"^index: expected no None for a TT-matrix"):
        index([torch.ones(1, 2, 2, 1)], [None, 0, 0])


def test_indices_are_differentiable():
    cores = [torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    cores[1] = cores[1].detach().mT.reshape(2, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *c: index(c, [[0, 1, 0], -1]), cores)
    assert torch.autograd.gradcheck(lambda *c: index(c, [1, None, slice(None)]), cores)
