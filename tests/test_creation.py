"""Every function that makes trains against numpy."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ttnet
from tests import dense
from tests.strategies import DTYPES, STORAGE_DTYPES, dtypes, shapes
from ttnet import CrossOptions, TensorTrain, Truncation, TTMatrix
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, RankError, ShapeError


@pytest.mark.parametrize("read", [torch.as_tensor, lambda tensor: tensor.numpy()], ids=["torch", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tt_svd(read, dtype):
    tensor = torch.randn(3, 4, 5, dtype=dtype)
    train = ttnet.tt_svd(read(tensor))
    assert (train.center, train.dtype) == (2, dtype)
    torch.testing.assert_close(train.full(), tensor)
    rounded, report = ttnet.tt_svd(read(tensor), Truncation(max_rank=2), return_report=True)
    assert rounded.ranks == (1, 2, 2, 1)
    assert dense.distance(rounded.full(), tensor) == pytest.approx(report.error_estimate, rel=1e-4)


@pytest.mark.parametrize("method", ["auto", "svd", "qr", "gram"])
def test_tt_svd_by_every_method(method):
    tensor = ttnet.random_train((6, 6, 6, 6), 4, seed=0, dtype=torch.float64).full()
    train, report = ttnet.tt_svd(tensor, Truncation(rtol=1e-3), method=method, return_report=True)
    assert train.ranks == (1, 4, 4, 4, 1)
    assert dense.is_canonical(train.cores, 3)
    assert dense.distance(train.full(), tensor) <= report.error_bound
    with pytest.raises(ConfigError, match=r"^method: "):
        ttnet.tt_svd(tensor, method="magic")


def test_tt_svd_under_vmap():
    tensors = torch.randn(3, 4, 3, 2, dtype=torch.float64)
    found = torch.func.vmap(lambda t: ttnet.tt_svd(t, Truncation(max_rank=2)).full())(tensors)
    expected = torch.stack([ttnet.tt_svd(t, Truncation(max_rank=2)).full() for t in tensors])
    torch.testing.assert_close(found, expected)


def test_tt_svd_refuses():
    with pytest.raises(ShapeError, match=r"^tensor: "):
        ttnet.tt_svd(torch.tensor(1.0))
    for tensor in (torch.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3), torch.ones(2, 3) > 0):
        with pytest.raises(DTypeError, match=r"^dtype: .*got torch\.(int64|bool); convert the tensor first"):
            ttnet.tt_svd(tensor)


def test_random_train():
    train = ttnet.random_train((3, 4, 5), 2, seed=3, dtype=torch.complex64)
    assert (train.shape, train.ranks, train.dtype) == ((3, 4, 5), (1, 2, 2, 1), torch.complex64)
    assert torch.equal(train.full(), ttnet.random_train((3, 4, 5), 2, seed=3, dtype=torch.complex64).full())
    with pytest.raises(RankError, match=re.escape("rank: expected at least 1, got 0")):
        ttnet.random_train((3, 4, 5), 0)


def test_random_train_with_spectra(device):
    values = 0.5 ** torch.arange(4, dtype=torch.float64)
    train = ttnet.random_train_with_spectra(
        (4, 4, 4, 4), values, norm=3.0, seed=0, dtype=torch.float64, device=device
    )
    assert (train.center, train.device.type) == (0, device.type)
    assert train.norm().item() == pytest.approx(3)
    for found in train.spectra():
        torch.testing.assert_close(found.cpu(), 3 * values / values.norm())
    with pytest.raises(ConfigError, match=r"^spectra: "):
        ttnet.random_train_with_spectra((4, 4), [[1.0, -1.0]])


@given(shapes(), dtypes(storage=True), st.sampled_from([0, 1, -2.5]))
def test_constant_trains(shape, dtype, value):
    for train, exact in (
        (ttnet.zeros(shape, dtype=dtype), np.zeros(shape)),
        (ttnet.ones(shape, dtype=dtype), np.ones(shape)),
        (ttnet.full(shape, value, dtype=dtype), np.full(shape, value)),
    ):
        assert isinstance(train, TensorTrain)
        assert (train.dtype, train.ranks) == (dtype, (1,) * (len(shape) + 1))
        np.testing.assert_array_equal(np.asarray(train), exact)
    like = ttnet.random_train(shape, 2, dtype=dtype)
    for train, exact in ((ttnet.zeros_like(like), 0), (ttnet.ones_like(like), 1)):
        assert (train.shape, train.dtype, train.device) == (like.shape, like.dtype, like.device)
        assert (np.asarray(train) == exact).all()


def test_a_complex_value_makes_a_complex_train():
    train = ttnet.full((2, 3), 1 - 2j)
    assert train.dtype == torch.complex64
    np.testing.assert_array_equal(np.asarray(train), np.full((2, 3), 1 - 2j))


@given(shapes(), st.data())
def test_unit_and_arange(shape, data):
    index = tuple(data.draw(st.integers(-n, n - 1)) for n in shape)
    exact = np.zeros(shape)
    exact[index] = 1
    np.testing.assert_array_equal(np.asarray(ttnet.unit(shape, index)), exact)
    positions = ttnet.arange(shape, dtype=torch.float64)
    np.testing.assert_allclose(np.asarray(positions), np.arange(math.prod(shape)).reshape(shape), atol=1e-10)
    assert max(positions.ranks) <= 2


@pytest.mark.parametrize("read", [torch.as_tensor, lambda vector: vector.numpy()], ids=["torch", "numpy"])
def test_trains_of_vectors(read):
    a, b, c = (torch.randn(n, dtype=torch.float64) for n in (2, 3, 4))
    vectors = [read(vector) for vector in (a, b, c)]
    torch.testing.assert_close(ttnet.rank_one(vectors).full(), torch.einsum("i,j,k->ijk", a, b, c))
    torch.testing.assert_close(ttnet.sum_of(vectors).full(), a[:, None, None] + b[:, None] + c)
    exact = torch.zeros(3, 3, 3, dtype=torch.float64)
    exact[range(3), range(3), range(3)] = b
    torch.testing.assert_close(ttnet.superdiagonal(read(b), 3).full(), exact)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_eye(dtype, device):
    matrix = ttnet.eye((2, 1, 3), dtype=dtype, device=device)
    assert isinstance(matrix, TTMatrix)
    assert matrix.device.type == device.type
    assert torch.equal(matrix.full(), torch.eye(6, dtype=dtype, device=device))


@pytest.mark.parametrize("make", [ttnet.zeros, ttnet.ones, ttnet.arange, ttnet.eye], ids=lambda f: f.__name__)
def test_integer_dtypes_and_empty_modes_are_refused(make):
    with pytest.raises(DTypeError, match=r"^dtype: .*got torch\.int64"):
        make((2, 3), dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"^(shape|rows): "):
        make((2, 0))


def test_devices(device):
    for train in (
        ttnet.zeros((2, 3), device=device),
        ttnet.full((2, 3), 2.0, device=device),
        ttnet.unit((2, 3), (1, 1), device=device),
        ttnet.arange((2, 3), device=device),
        ttnet.random_train((2, 3), 2, device=device),
        ttnet.cross(lambda i: i.sum(1).double(), (2, 3), device=device),
    ):
        assert train.device.type == device.type


def test_cross():
    grid = torch.linspace(0, 1, 8, dtype=torch.float64)
    options = CrossOptions(rtol=1e-9, seed=0)
    train, report = ttnet.cross(lambda x: 1 / (1 + x.sum(1)), [grid] * 4, options=options, return_report=True)
    assert report.converged
    assert train.ranks[1:-1] == report.ranks
    exact = 1 / (1 + grid[:, None, None, None] + grid[:, None, None] + grid[:, None] + grid)
    torch.testing.assert_close(train.full(), exact, rtol=0, atol=1e-7)
    again = ttnet.cross(lambda x: 1 / (1 + x.sum(1)), [grid] * 4, options=options)
    assert torch.equal(again.full(), train.full())
    with pytest.raises(NonFiniteError):
        ttnet.cross(lambda x: x.sum(1) / 0, [grid] * 2)


def test_cross_says_when_it_failed():
    rough = torch.randn(8, 8, 8, 8, dtype=torch.float64)
    options = CrossOptions(rtol=1e-6, max_rank=2, seed=0)
    with pytest.warns(RuntimeWarning, match=r"max_rank .*\(error \d") as caught:
        ttnet.cross(lambda i: rough[tuple(i.T)], (8,) * 4, options=options)
    assert caught[0].filename == __file__
    _, report = ttnet.cross(lambda i: rough[tuple(i.T)], (8,) * 4, options=options, return_report=True)
    assert not report.converged


@pytest.mark.parametrize("read", [lambda x: x, lambda x: x.numpy()], ids=["torch", "numpy"])
def test_meshgrid(read):
    vectors = [torch.linspace(0, 1, n, dtype=torch.float64) for n in (3, 1, 4)]
    found = ttnet.meshgrid([read(vector) for vector in vectors])
    for train, exact in zip(found, torch.meshgrid(*vectors, indexing="ij"), strict=True):
        assert train.ranks == (1, 1, 1, 1)
        assert torch.equal(train.full(), exact)
    with pytest.raises(ShapeError):
        ttnet.meshgrid([])
