import numpy as np
import pytest
import torch
from hypothesis import given, settings

import ttnet
from tests import dense
from tests.matrices import full, matrices, scale_of
from tests.strategies import eps
from ttnet import matrix_cores
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.tt_matrix import TTMatrix


def example(rows=(2, 3, 2), columns=(3, 2, 4), rank=3, *, seed=0, dtype=torch.complex128):
    return TTMatrix.random(rows, columns, rank, seed=seed, dtype=dtype).cores


@settings(max_examples=30)
@given(matrices())
def test_contract_and_transpose_are_the_definition(matrix):
    exact, slack = full(matrix.cores), 10 * eps(matrix.dtype) * scale_of(matrix)
    assert dense.distance(matrix_cores.contract(matrix.cores), exact) <= slack
    assert dense.distance(matrix_cores.contract(matrix_cores.transpose(matrix.cores)), exact.T) <= slack
    merged = matrix_cores.merge_modes(matrix.cores)
    again = matrix_cores.split_modes(merged, matrix.rows, matrix.columns)
    assert all(torch.equal(a, b) for a, b in zip(again, matrix.cores, strict=True))


@settings(max_examples=30)
@given(matrices(square=True))
def test_trace_and_diagonal_are_the_definition(matrix):
    exact, slack = full(matrix.cores), 50 * eps(matrix.dtype) * scale_of(matrix)
    assert abs(matrix_cores.trace(matrix.cores).item() - np.trace(exact)) <= slack * len(exact)
    diagonal = matrix_cores.extract_diagonal(matrix.cores)
    assert dense.distance(dense.full(diagonal).ravel(), np.diag(exact)) <= slack
    assert dense.distance(full(matrix_cores.diagonal(diagonal)), np.diag(np.diag(exact))) <= slack


def test_products_are_those_of_the_dense_matrices():
    a, b = example(), example((3, 2, 4), (2, 2, 2), 2, seed=1)
    x = ttnet.random_train((3, 2, 4), 3, seed=2, dtype=torch.complex128)
    assert dense.distance(full(matrix_cores.matmat(a, b)), full(a) @ full(b)) <= 1e-12
    product = matrix_cores.matvec(a, x.cores)
    assert [core.shape[2] for core in product] == [9, 9, 1]
    assert dense.distance(dense.full(product).ravel(), full(a) @ dense.full(x.cores).ravel()) <= 1e-12
    tensor = torch.randn(5, 2, 3, 2, 4, dtype=torch.complex128)
    applied = matrix_cores.apply_dense(a, tensor)
    assert applied.shape == (5, 2, 2, 3, 2)
    exact = dense.array(tensor).reshape(10, -1) @ full(a).T
    assert dense.distance(dense.array(applied).reshape(10, -1), exact) <= 1e-12
    assert matrix_cores.apply_dense(a, tensor[0, 0]).shape == (2, 3, 2)


@pytest.mark.parametrize("columns", [(3, 4, 5), (2, 2, 2, 2, 2), (7,), (1, 20, 1), (4, 300), (4, 12, 12, 3)])
def test_many_and_few_columns_are_applied_alike(columns):
    cores = example((2,) * len(columns), columns)
    tensor = torch.randn(3, *columns, dtype=torch.complex128, requires_grad=True)
    exact = dense.array(tensor).reshape(3, -1) @ full(cores).T
    found = matrix_cores.apply_dense(cores, tensor)
    assert dense.distance(dense.array(found).reshape(3, -1), exact) <= 1e-12
    (slope,) = torch.autograd.grad(found.real.sum(), tensor)
    assert dense.distance(slope.reshape(3, -1), np.tile(full(cores).conj().sum(0), (3, 1))) <= 1e-12


def test_interleave_is_the_inverse_of_contract():
    cores = example()
    tensor = matrix_cores.interleave(matrix_cores.contract(cores), (2, 3, 2), (3, 2, 4))
    assert dense.distance(tensor, dense.full(matrix_cores.merge_modes(cores))) <= 1e-12


def test_identity_is_the_identity():
    cores = matrix_cores.identity((2, 3), dtype=torch.float32)
    assert np.array_equal(full(cores), np.eye(6))
    assert cores[0].dtype == torch.float32


def test_what_is_no_tt_matrix_is_refused():
    good = list(example())
    with pytest.raises(ShapeError, match=r"core 1 as \(left_rank, row, column, right_rank\)"):
        matrix_cores.check([good[0], good[1][0], good[2]])
    with pytest.raises(ShapeError, match="at least one core"):
        matrix_cores.check([])
    with pytest.raises(ShapeError, match="tensors, got list"):
        matrix_cores.check([[1.0]])
    with pytest.raises(ShapeError, match="equal ranks at bond 0"):
        matrix_cores.check([good[0], good[1][:2], good[2]])
    with pytest.raises(ShapeError, match="boundary ranks"):
        matrix_cores.check(good[:2])
    with pytest.raises(DTypeError, match="one dtype"):
        matrix_cores.check([good[0].to(torch.complex64), *good[1:]])
    with pytest.raises(DTypeError, match=r"torch\.int64"):
        matrix_cores.check([torch.ones(1, 2, 2, 1, dtype=torch.int64)])
    with pytest.raises(DeviceError, match="meta"):
        matrix_cores.check([good[0].to("meta"), *good[1:]])


def test_modes_that_do_not_fit_are_named():
    cores = example()
    with pytest.raises(ShapeError, match=r"square TT-matrix, got rows \(2, 3, 2\) and columns \(3, 2, 4\)"):
        matrix_cores.trace(cores)
    with pytest.raises(ShapeError, match=r"expected modes \(3, 2, 4\).*got \(2, 3, 2\)"):
        matrix_cores.matmat(cores, cores)
    with pytest.raises(ShapeError, match=r"last modes of a tensor to be \(3, 2, 4\), got shape \(3, 2\)"):
        matrix_cores.apply_dense(cores, torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"expected shape \(4, 6\).*got \(4, 4\)"):
        matrix_cores.interleave(torch.zeros(4, 4), (2, 2), (2, 3))
    with pytest.raises(ShapeError, match="pad with modes of 1"):
        matrix_cores.interleave(torch.zeros(4, 4), (2, 2), (4,))
    with pytest.raises(ShapeError, match="products are"):
        matrix_cores.split_modes(matrix_cores.merge_modes(cores), (2, 3), (3, 2))
