import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

import ttnet
from tests import dense
from tests.matrices import full, matrices, scale_of
from tests.strategies import DTYPES, eps
from ttnet import TensorTrain, Truncation
from ttnet.errors import DeviceError, DTypeError, RankError, ShapeError
from ttnet.tt_matrix import TTMatrix


def example(rows=(2, 3, 2), columns=(3, 2, 2), rank=3, *, seed=0, dtype=torch.float64):
    return TTMatrix.random(rows, columns, rank, seed=seed, dtype=dtype)


@settings(max_examples=30)
@given(matrices(storage=True))
def test_what_is_derived_from_the_cores(matrix):
    assert matrix.rows == tuple(core.shape[1] for core in matrix.cores)
    assert matrix.columns == tuple(core.shape[2] for core in matrix.cores)
    assert matrix.shape == (np.prod(matrix.rows), np.prod(matrix.columns)) == tuple(matrix.full().shape)
    assert matrix.ranks == (1, *(core.shape[3] for core in matrix.cores))
    assert matrix.num_parameters == sum(core.numel() for core in matrix.cores)
    assert matrix.device == torch.device("cpu")
    assert repr(matrix) == (
        f"TTMatrix(rows={matrix.rows}, columns={matrix.columns}, ranks={matrix.ranks}, dtype={matrix.dtype})"
    )
    assert dense.distance(matrix.full(), full(matrix.cores)) <= 10 * eps(matrix.dtype) * scale_of(matrix)
    again = TTMatrix.from_train(matrix.as_train(), matrix.rows, matrix.columns)
    assert again.center == matrix.center
    assert all(torch.equal(a, b) for a, b in zip(again.cores, matrix.cores, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_algebra_is_that_of_the_dense_matrices(dtype):
    a, b = example(dtype=dtype), example(rank=2, seed=1, dtype=dtype)
    x, y = full(a.cores), full(b.cores)
    number = 1.5 - 2j if dtype.is_complex else -1.5
    slack = 100 * eps(dtype) * dense.norm(x) * dense.norm(y)
    cases = [
        (a + b, x + y),
        (a - b, x - y),
        (a * number, x * number),
        (number * a, x * number),
        (np.float64(2) * a, x * 2),
        (a / 4, x / 4),
        (-a, -x),
        (a * b, x * y),
        (a.mT, x.T),
        (a.conj(), x.conj()),
        (a.mH, x.conj().T),
        (a @ b.mH, x @ y.conj().T),
        (a.kron(b), np.kron(x, y)),
    ]
    for result, exact in cases:
        assert isinstance(result, TTMatrix)
        assert result.dtype == dtype
        assert dense.distance(full(result.cores), exact) <= slack
    assert abs(a.dot(b).item() - (x.conj() * y).sum()) <= slack
    assert float(a.norm()) == pytest.approx(dense.norm(x), rel=100 * eps(dtype))
    square = a @ b.mH
    assert abs(square.trace().item() - np.trace(x @ y.conj().T)) <= slack
    assert dense.distance(dense.full(square.diag().cores).ravel(), np.diag(x @ y.conj().T)) <= slack


def test_products_promote_and_take_trains_matrices_and_tensors():
    matrix = example(dtype=torch.float32)
    train = ttnet.random_train((3, 2, 2), 2, seed=1, dtype=torch.complex128)
    product = matrix @ train
    assert isinstance(product, TensorTrain)
    assert product.dtype == torch.complex128
    assert product.ranks == (1, 6, 6, 1)
    exact = full(matrix.cores) @ dense.full(train.cores).ravel()
    assert dense.distance(dense.full(product.cores).ravel(), exact) <= 1e-12
    applied = matrix @ train.full()
    assert isinstance(applied, torch.Tensor)
    assert dense.distance(applied.flatten(), exact) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_dense_is_a_tt_svd_of_the_interleaved_modes(dtype):
    exact = torch.randn(12, 8, dtype=dtype)
    matrix = TTMatrix.from_dense(exact, (2, 3, 2), (2, 2, 2))
    assert dense.distance(full(matrix.cores), exact) <= 50 * eps(dtype) * dense.norm(dense.array(exact))
    assert matrix.center == 2
    matrix, report = TTMatrix.from_dense(
        exact, (2, 3, 2), (2, 2, 2), Truncation(max_rank=2), return_report=True
    )
    error = dense.distance(full(matrix.cores), exact)
    assert error == pytest.approx(report.error_estimate, rel=1e-4)
    assert error <= report.error_bound
    assert matrix.ranks == (1, 2, 2, 1)


def test_constructors():
    assert np.array_equal(full(TTMatrix.identity((2, 3), dtype=torch.float64).cores), np.eye(6))
    zeros = TTMatrix.zeros((2, 3), (1, 4), dtype=torch.complex64)
    assert zeros.shape == (6, 4)
    assert not full(zeros.cores).any()
    assert float(zeros.norm()) == 0
    train = ttnet.random_train((2, 3), 2, seed=0, dtype=torch.float64)
    diagonal = TTMatrix.diagonal(train)
    assert diagonal.ranks == train.ranks
    assert dense.distance(full(diagonal.cores), np.diag(dense.full(train.cores).ravel())) <= 1e-14
    first, second = (TTMatrix.random((2, 3), (3, 3), 2, seed=4) for _ in range(2))
    assert torch.equal(first.full(), second.full())
    assert first.dtype == torch.get_default_dtype()
    terms = [(2.0, {0: torch.eye(2)}), (1.0, {1: [[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]})]
    sums = TTMatrix.from_terms(terms, (2, 3), dtype=torch.float64)
    assert np.allclose(full(sums.cores).astype(float), np.diag([3.0, 4, 5, 3, 4, 5]))


def test_gauge_and_rounding_are_those_of_the_merged_train():
    matrix = example() + example()
    centered = matrix.orthogonalize(1)
    assert centered.center == 1
    assert dense.is_canonical(centered.as_train().cores, 1)
    assert dense.distance(full(centered.cores), full(matrix.cores)) <= 1e-12
    rounded, report = matrix.truncate(Truncation(rtol=1e-10), return_report=True)
    assert rounded.ranks == example().ranks
    assert rounded.center == 0
    assert dense.distance(full(rounded.cores), full(matrix.cores)) <= report.error_bound
    assert matrix.truncate(Truncation(max_rank=1)).ranks == (1, 1, 1, 1)


def test_storage():
    matrix = example().orthogonalize(1)
    assert matrix.to(torch.float64) is matrix
    single = matrix.to(torch.float32)
    assert single.dtype == torch.float32
    assert single.center == 1
    with pytest.raises(DTypeError, match="complex"):
        example(dtype=torch.complex64).to(torch.float32)
    assert matrix.mT.center == 1
    leaf = TTMatrix([core.clone().requires_grad_() for core in matrix.cores])
    assert not leaf.detach().cores[0].requires_grad
    copied = matrix.clone()
    copied.cores[0].zero_()
    assert matrix.cores[0].any()
    for twin in (copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
        assert all(torch.equal(a, b) for a, b in zip(twin.cores, matrix.cores, strict=True))
        assert twin.center == 1


def test_a_tt_matrix_is_a_pytree_and_differentiates():
    matrix = example()
    doubled = pytree.tree_map(lambda core: core * 2, matrix)
    assert isinstance(doubled, TTMatrix)
    assert dense.distance(full(doubled.cores), full(matrix.cores) * 8) <= 1e-12
    train = ttnet.random_train((3, 2, 2), 2, seed=1, dtype=torch.float64)

    def energy(*cores):
        return (TTMatrix(cores) @ train).dot(ttnet.random_train((2, 3, 2), 2, seed=2, dtype=torch.float64))

    cores = [core.clone().requires_grad_() for core in matrix.cores]
    assert torch.autograd.gradcheck(energy, cores)
    assert torch.autograd.gradcheck(lambda *c: (TTMatrix(c) @ TTMatrix(c).mT).trace(), cores)

    def norms(batch):
        return (TTMatrix([batch, *matrix.cores[1:]]) @ train).full().square().sum()

    batch = torch.randn(4, *matrix.cores[0].shape, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(norms)(batch), torch.stack([norms(core) for core in batch]))


def test_tt_matrices_are_immutable():
    matrix = example()
    for name in ("cores", "center", "rows", "anything"):
        with pytest.raises(AttributeError):
            setattr(matrix, name, None)


def test_bad_arguments_are_named():
    matrix = example()
    with pytest.raises(ShapeError, match="expected rows"):
        matrix + example((2, 3, 2), (3, 2, 4))
    with pytest.raises(DTypeError, match="expected a TTMatrix, got TensorTrain"):
        matrix + matrix.as_train()
    with pytest.raises(DTypeError, match="other"):
        matrix @ 2.0
    with pytest.raises(DTypeError, match="other"):
        matrix * "2"
    with pytest.raises(ShapeError, match=r"got \(2, 3, 2\)"):
        matrix @ example()
    with pytest.raises(ShapeError, match="last modes"):
        matrix @ torch.zeros(2, dtype=torch.float64)
    with pytest.raises(DeviceError, match="meta"):
        matrix @ torch.zeros(3, 2, 2, device="meta")
    with pytest.raises(ShapeError, match="columns"):
        TTMatrix.zeros((2, 3), (2,))
    with pytest.raises(RankError, match="max_rank"):
        matrix.truncate(Truncation(max_rank=[1]))
    with pytest.raises(ShapeError, match="center"):
        TTMatrix(matrix.cores, 3)
    with pytest.raises(DTypeError, match=r"torch\.int64"):
        TTMatrix.from_dense(torch.ones(4, 4, dtype=torch.int64), (2, 2), (2, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_habits(dtype):
    matrix = example(dtype=dtype)
    exact = full(matrix.cores)
    slack = 100 * eps(dtype) * dense.norm(exact)
    for found, expected in ((matrix.T, exact.T), (matrix.real, exact.real), (matrix.imag, exact.imag)):
        assert isinstance(found, TTMatrix)
        assert dense.distance(full(found.cores), expected) <= slack
    assert dense.distance(full(sum([matrix, matrix]).cores), exact + exact) <= slack
    for method in ("svd", "gram"):
        rounded, report = matrix.truncate(Truncation(max_rank=2), method=method, return_report=True)
        assert rounded.center == 0
        assert dense.distance(full(rounded.cores), exact) <= report.error_bound + slack
        assert matrix.truncate(Truncation(max_rank=2), method=method).ranks == rounded.ranks
    assert matrix.log_norm().item() == pytest.approx(np.log(dense.norm(exact)), abs=1e-4)
    assert dense.distance(np.asarray(matrix), exact) <= slack
    again = TTMatrix.from_dense(np.asarray(matrix), matrix.rows, matrix.columns)
    assert dense.distance(full(again.cores), exact) <= slack
    for found, expected in (
        (1 + matrix, 1 + exact),
        (matrix - 2, exact - 2),
        (2 - matrix, 2 - exact),
        (matrix**2, exact**2),
    ):
        assert isinstance(found, TTMatrix)
        assert dense.distance(full(found.cores), expected) <= 10 * slack * dense.norm(exact)


@settings(max_examples=30)
@given(matrices())
def test_gather_indices_and_sums_are_those_of_the_dense_tensor(matrix):
    sizes = (*matrix.rows, *matrix.columns)
    exact = full(matrix.cores).reshape(sizes)
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(-n, n, (20,), generator=generator) for n in sizes], 1)
    slack = 20 * eps(matrix.dtype) * scale_of(matrix)
    assert dense.distance(matrix.gather(indices), exact[tuple(indices.T.numpy())]) <= 5 * slack
    assert (
        dense.distance(matrix.gather(indices.tolist()[:1]), exact[tuple(indices[0].tolist())][None])
        <= 5 * slack
    )
    assert abs(matrix[tuple(indices[0])].item() - exact[tuple(indices[0].tolist())]) <= slack
    assert abs(matrix.sum().item() - exact.sum()) <= slack * exact.size
    assert abs(matrix.mean().item() - exact.mean()) <= slack
    row, column = matrix[(0,) * matrix.ndim], matrix[(..., *(0,) * matrix.ndim)]
    for found, expected in ((row, exact[(0,) * matrix.ndim]), (column, exact[(..., *(0,) * matrix.ndim)])):
        assert isinstance(found, TensorTrain)
        assert dense.distance(dense.full(found.cores), expected) <= slack
    rows = matrix.sum(tuple(range(matrix.ndim, 2 * matrix.ndim)))
    assert dense.distance(dense.full(rows.cores).ravel(), full(matrix.cores).sum(1)) <= slack * exact.size


def test_pieces_of_a_matrix_keep_its_kind():
    matrix = example()
    dense_tensor = matrix.full().reshape(2, 3, 2, 3, 2, 2)
    assert (matrix[0, :, :, 1].rows, matrix[0, :, :, 1].columns) == ((3, 2), (2, 2))
    torch.testing.assert_close(matrix[0, :, :, 1].full(), dense_tensor[0, :, :, 1].reshape(6, 4))
    assert (matrix[0, :, :, :].rows, matrix[0, :, :, :].columns) == ((1, 3, 2), (3, 2, 2))
    torch.testing.assert_close(matrix[0].full(), dense_tensor[0].reshape(6, 12))
    torch.testing.assert_close(matrix[1:, ..., 0].full(), dense_tensor[1:, ..., 0].reshape(6, 6))
    with pytest.raises(ShapeError, match=r"^index: expected at most 6 indices"):
        matrix[(0,) * 7]


def test_gather_of_a_matrix_refuses():
    matrix = example()
    with pytest.raises(
        ShapeError, match=r"^indices: expected shape \(batch, 6\), rows then columns, got \(1, 3\)"
    ):
        matrix.gather([[0, 0, 0]])
    with pytest.raises(ShapeError, match=r"^indices: expected -3 to 2 in column 3"):
        matrix.gather([[0, 0, 0, 3, 0, 0]])
    with pytest.raises(DTypeError, match=r"^indices: "):
        matrix.gather(torch.zeros(1, 6))


def test_division_of_matrices_is_entrywise():
    a, b = example(rank=2), example(rank=1, seed=1) ** 2 + 1
    torch.testing.assert_close((a / b).full(), a.full() / b.full(), rtol=0, atol=1e-6)
    torch.testing.assert_close((2 / b).full(), 2 / b.full(), rtol=0, atol=1e-6)
