import pytest
import torch

from ttnet import TensorTrain, TTMatrix, operators, random_train
from ttnet.errors import ConfigError, ShapeError
from ttnet.optim import LinearSystem, Status, solve

F64, C128 = torch.float64, torch.complex128


def start(shape, rank, *, seed=0, dtype=F64, device=None):
    return random_train(shape, rank, seed=seed, dtype=dtype, device=device)


def residual(A, x, b):
    rest = A.full() @ x.full().reshape(A.shape[1], -1) - b.full().reshape(A.shape[0], -1)
    return float(torch.linalg.vector_norm(rest) / torch.linalg.vector_norm(b.full()))


@pytest.mark.parametrize(("scale", "shift"), [(4.0, 0.5), (1.0, 0.37)])
def test_a_hermitian_operator_need_not_be_positive(scale, shift, device):
    eye = TTMatrix.identity((2,) * 8, dtype=F64, device=device)
    A = (operators.heisenberg(8, dtype=F64) * scale).to(device) + eye * shift
    b = start((2,) * 8, 4, device=device)
    result = solve(A, b)
    assert result.converged
    assert residual(A, result.tensor_train, b) <= 1.001e-8


def test_large_blocks_of_an_indefinite_operator():
    A = operators.heisenberg(10, dtype=F64) + TTMatrix.identity((2,) * 10, dtype=F64) * 0.37
    b = start((2,) * 10, 4)
    alone = solve(A, b, kind="symmetric")
    assert alone.status is Status.STALLED
    assert "no more" in alone.message
    result = solve(A, b)
    assert result.converged
    assert residual(A, result.tensor_train, b) <= 1e-8


def test_a_small_tolerance_is_reached_where_the_energy_is_at_roundoff():
    A, b = operators.qtt_laplace((6,), dtype=F64), start((2,) * 6, 3)
    result = solve(A, b, kind="symmetric", tol=1e-12)
    assert result.converged
    assert residual(A, result.tensor_train, b) <= 1e-11


def test_what_a_run_says_of_its_end():
    A, b = operators.laplace((6, 6, 6), dtype=F64), start((6, 6, 6), 3)
    assert solve(A, b, max_rank=2).status is Status.STALLED
    assert solve(A, b, sites=2, sweeps=1, local_steps=1, max_rank=2).status is Status.MAX_SWEEPS
    nothing = solve(A, b * 0.0)
    assert nothing.converged
    assert float(nothing.tensor_train.norm()) == 0.0


def test_a_solution_has_no_more_ranks_than_it_needs():
    b = start((4,) * 4, 2)
    result = solve(TTMatrix.identity((4,) * 4, dtype=F64), b)
    assert result.tensor_train.ranks == b.ranks
    A, ones = operators.qtt_laplace((10,), dtype=F64), TensorTrain([torch.ones(1, 2, 1, dtype=F64)] * 10)
    result = solve(A, ones)
    assert result.converged
    assert result.certificate == pytest.approx(residual(A, result.tensor_train, ones), abs=1e-9)
    assert max(result.tensor_train.ranks) == 3


@pytest.mark.parametrize("which", ["A", "b", "start"])
def test_one_complex_part_makes_all_complex(which):
    dtypes = {name: C128 if name == which else F64 for name in ("A", "b", "start")}
    A = operators.laplace((3, 4), dtype=dtypes["A"])
    if which == "A":
        A = A + 0.5j * TTMatrix.identity((3, 4), dtype=C128)
    b = start((3, 4), 2, dtype=dtypes["b"])
    result = solve(A, b, start=start((3, 4), 1, seed=1, dtype=dtypes["start"]))
    assert result.converged
    assert result.tensor_train.dtype == C128
    assert residual(A.to(C128), result.tensor_train, b.to(C128)) <= 1e-8


@pytest.mark.parametrize("kind", [None, "normal"])
@pytest.mark.parametrize(("rows", "columns"), [((4, 3, 4), (3, 3, 3)), ((3, 3, 3), (4, 3, 4))])
@pytest.mark.parametrize("several", [False, True])
def test_rectangular_operators_are_solved_by_least_squares(kind, rows, columns, several, device):
    A = TTMatrix.random(rows, columns, 2, seed=0, dtype=F64, device=device)
    b = start((*rows, 2) if several else rows, 2, seed=1, device=device)
    result = solve(A, b, kind=kind)
    right = b.full().reshape(A.shape[0], -1)
    exact = torch.linalg.pinv(A.full()) @ right
    least = torch.linalg.vector_norm(A.full() @ exact - right) / torch.linalg.vector_norm(right)
    assert result.tensor_train.shape == (*columns, *b.shape[3:])
    assert residual(A, result.tensor_train, b) == pytest.approx(float(least), abs=1e-6)


@pytest.mark.parametrize("kind", [None, "symmetric", "normal", "galerkin"])
def test_a_zero_operator_leaves_the_residual_at_one(kind):
    result = solve(TTMatrix.identity((2, 3, 2), dtype=F64) * 0.0, start((2, 3, 2), 2), kind=kind)
    assert not result.converged
    assert result.certificate == pytest.approx(1.0)


def test_bad_systems_are_named():
    A = TTMatrix.random((4, 3), (3, 3), 2, seed=0, dtype=F64)
    for kind in ("symmetric", "galerkin"):
        with pytest.raises(ConfigError, match="kind: expected 'normal' for a rectangular A"):
            LinearSystem(A, start((4, 3), 1), kind=kind)
    with pytest.raises(ShapeError, match=r"b: expected the row modes of A, \(4, 3\)"):
        solve(A, start((3, 3), 1))
    with pytest.raises(ShapeError, match=r"start: expected the column modes of A, \(3, 3\)"):
        solve(A, start((4, 3), 1), start=start((4, 3), 1))
    with pytest.raises(ConfigError, match="sweeps: expected at least 1, got 0"):
        solve(A, start((4, 3), 1), sweeps=0)
