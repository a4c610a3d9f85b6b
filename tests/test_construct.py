"""Trains that are known exactly, against what torch makes."""

import pytest
import torch

from tests import dense
from tests.strategies import DTYPES
from ttnet import construct
from ttnet.cores import check, contract, ranks_of
from ttnet.errors import DTypeError, ShapeError

SHAPES = [(4,), (1,), (3, 1, 2), (2, 3, 4, 5)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_constants_and_indices(shape, dtype, device) -> None:
    like = {"dtype": dtype, "device": device}
    assert torch.equal(contract(check(construct.zeros(shape, **like))), torch.zeros(shape, **like))
    assert torch.equal(contract(check(construct.ones(shape, **like))), torch.ones(shape, **like))
    assert torch.equal(contract(construct.constant(shape, 2.5, **like)), torch.full(shape, 2.5, **like))
    positions = torch.arange(torch.Size(shape).numel(), device=device).to(dtype).reshape(shape)
    assert torch.equal(contract(check(construct.arange(shape, **like))), positions)
    assert max(ranks_of(construct.arange(shape))) <= 2


def test_default_dtype_is_that_of_torch() -> None:
    assert construct.zeros((2, 3))[0].dtype == torch.get_default_dtype()
    assert construct.arange((2, 3))[0].dtype == torch.get_default_dtype()


@pytest.mark.parametrize("index", [(0, 0, 0), (2, 0, 3), (-1, -1, -1)])
def test_unit(index) -> None:
    expected = torch.zeros(3, 1, 4)
    expected[index] = 1
    assert torch.equal(contract(construct.unit((3, 1, 4), index)), expected)


@pytest.mark.parametrize("ndim", [1, 2, 4])
def test_superdiagonal(ndim) -> None:
    values = torch.tensor([1.0, -2.0, 3.0])
    expected = torch.zeros((3,) * ndim)
    for i in range(3):
        expected[(i,) * ndim] = values[i]
    assert torch.equal(contract(check(construct.superdiagonal(values, ndim))), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_sums_of_vectors(shape, dtype) -> None:
    vectors = [torch.randn(n, dtype=dtype) for n in shape]
    grids = torch.meshgrid(*vectors, indexing="ij")
    product, total = torch.ones(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    for grid in grids:
        product, total = product * grid, total + grid
    assert dense.distance(contract(check(construct.rank_one(vectors))), product) < 1e-5
    assert dense.distance(contract(check(construct.sum_of(vectors))), total) < 1e-5


def test_gradients_reach_the_vectors() -> None:
    vectors = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 2)]
    for make in (construct.rank_one, construct.sum_of):
        assert torch.autograd.gradcheck(lambda *v, make=make: contract(make(v)), vectors)


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match=r"shape: expected at least one mode"):
        construct.zeros(())
    with pytest.raises(DTypeError, match=r"dtype: expected .*float32.* got torch.int64"):
        construct.ones((2, 2), dtype=torch.int64)
    with pytest.raises(
        ShapeError, match=r"index: expected one index within each mode of \(2, 3\), got \(0, 3\)"
    ):
        construct.unit((2, 3), (0, 3))
    with pytest.raises(ShapeError, match=r"vectors: expected at least one vector"):
        construct.rank_one([])
    with pytest.raises(ShapeError, match=r"vectors: .* got shape \(2, 2\) at position 1"):
        construct.sum_of([torch.ones(2), torch.ones(2, 2)])
    with pytest.raises(DTypeError, match=r"vectors: expected one dtype, got torch.float32 and torch.float64"):
        construct.rank_one([torch.ones(2), torch.ones(2, dtype=torch.float64)])
    with pytest.raises(ShapeError, match=r"ndim: expected an integer of at least 1, got 0"):
        construct.superdiagonal(torch.ones(2), 0)
