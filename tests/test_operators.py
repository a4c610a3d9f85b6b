import math

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from tests.matrices import full
from ttnet import Truncation, operators
from ttnet.errors import ConfigError, ShapeError
from ttnet.tt_matrix import TTMatrix

DOUBLE = {"dtype": torch.float64}

HEISENBERG = {
    4: -1.616025403784438,
    6: -2.4935771338879276,
    8: -3.374932598687891,
    10: -4.258035207282881,
    12: -5.142090632840535,
}
SPIN_ONE = {4: -4.645751311064588, 6: -7.370274969424612}


def spectrum(matrix, count=1):
    """Lowest eigenvalues of a TT-matrix by a sparse solver that applies it to dense vectors."""
    if matrix.shape[0] <= 256:
        return np.linalg.eigvalsh(full(matrix.cores).astype(float))[:count]

    def matvec(x):
        return (matrix @ torch.from_numpy(x.reshape(matrix.columns))).numpy().ravel()

    linear = scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=matrix.shape[0])
    return np.sort(scipy.sparse.linalg.eigsh(linear, k=count, which="SA", tol=1e-12, v0=start)[0])


def is_smallest(matrix):
    dense = TTMatrix.from_dense(matrix.full(), matrix.rows, matrix.columns, Truncation(rtol=1e-11))
    return matrix.ranks == dense.ranks


@pytest.mark.parametrize("length", HEISENBERG)
def test_heisenberg_has_the_ground_energy_of_the_literature(length):
    assert spectrum(operators.heisenberg(length, **DOUBLE)) == pytest.approx(HEISENBERG[length], abs=1e-10)


@pytest.mark.parametrize("length", SPIN_ONE)
def test_spin_one_has_the_ground_energy_of_the_literature(length):
    chain = operators.heisenberg(length, spin=1, **DOUBLE)
    assert spectrum(chain) == pytest.approx(SPIN_ONE[length], abs=1e-9)


@pytest.mark.parametrize("length", [2, 4, 8])
def test_closed_forms(length):
    energy = 1 - 1 / math.sin(math.pi / (4 * length + 2))
    assert spectrum(operators.ising(length, **DOUBLE)) == pytest.approx(energy, abs=1e-12)
    energy = (1 - 1 / math.sin(math.pi / (2 * (length + 1)))) / 2
    assert spectrum(operators.xx(length, **DOUBLE)) == pytest.approx(energy, abs=1e-12)
    energy = -3 * length / 8
    assert spectrum(operators.majumdar_ghosh(length, **DOUBLE)) == pytest.approx(energy, abs=1e-12)


def test_aklt_is_fourfold_degenerate():
    energies = spectrum(operators.aklt(5, **DOUBLE), count=5)
    assert energies[:4] == pytest.approx([-8 / 3] * 4, abs=1e-11)
    assert energies[4] > -8 / 3 + 0.5


@pytest.mark.parametrize("spin", [0.5, 1, 1.5])
def test_heisenberg_is_the_sum_that_its_docstring_says(spin):
    s = {
        name: matrix.numpy() for name, matrix in operators.spin_matrices(spin, dtype=torch.complex128).items()
    }
    n = len(s["1"])
    fields = [0.3, -0.2, 0.7]

    def at(matrix, site):
        return np.kron(np.kron(np.eye(n**site), matrix), np.eye(n ** (2 - site)))

    exact = -sum(h * at(s["z"], k) for k, h in enumerate(fields))
    for k in range(2):
        exact = exact + 2 * (at(s["x"], k) @ at(s["x"], k + 1) + at(s["y"], k) @ at(s["y"], k + 1))
        exact = exact - at(s["z"], k) @ at(s["z"], k + 1)
    chain = operators.heisenberg(3, spin=spin, coupling=2.0, anisotropy=-0.5, field=fields, **DOUBLE)
    assert np.abs(full(chain.cores) - exact).max() <= 1e-13
    # The algebra of spins, and the ladder that heisenberg is made of.
    assert np.allclose(s["x"] @ s["y"] - s["y"] @ s["x"], 1j * s["z"])
    assert np.allclose(s["x"] @ s["x"] + s["y"] @ s["y"] + s["z"] @ s["z"], spin * (spin + 1) * s["1"])
    assert np.allclose(s["+"], s["x"] + 1j * s["y"])
    assert np.allclose(s["-"], s["+"].conj().T)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (operators.heisenberg(6, field=0.5, **DOUBLE), 5),
        (operators.ising(6, **DOUBLE), 3),
        (operators.xx(6, **DOUBLE), 4),
        (operators.aklt(4, **DOUBLE), 10),
        (operators.majumdar_ghosh(6, **DOUBLE), 8),
        (operators.laplace((3, 4, 5), **DOUBLE), 2),
        (operators.qtt_laplace(6, **DOUBLE), 3),
        (operators.qtt_laplace((2, 3, 2), **DOUBLE), 4),
        (operators.qtt_shift(6, **DOUBLE), 2),
        (operators.qtt_shift(6, periodic=True, **DOUBLE), 2),
    ],
)
def test_ranks_are_the_smallest(matrix, rank):
    assert max(matrix.ranks) == rank
    assert is_smallest(matrix)


def test_chains_of_one_and_two_sites():
    assert not operators.heisenberg(1).full().any()
    assert torch.equal(operators.ising(1, field=2.0).full(), torch.tensor([[0.0, -2.0], [-2.0, 0.0]]))
    assert spectrum(operators.heisenberg(2, **DOUBLE)) == pytest.approx(-0.75)
    assert not operators.aklt(1).full().any()


def second_difference(n, boundary):
    matrix = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    for i, j in [(0, n - 1), (n - 1, 0)]:
        matrix[i, j] -= boundary == "periodic"
        matrix[i, i] -= boundary == "neumann"
    return matrix


def kronecker_sum(matrices):
    total, size = np.zeros((1, 1)), 1
    for matrix in matrices:
        total = np.kron(total, np.eye(len(matrix))) + np.kron(np.eye(size), matrix)
        size *= len(matrix)
    return total


@pytest.mark.parametrize("boundary", operators.BOUNDARIES)
@pytest.mark.parametrize("levels", [1, 4, (2, 3), (1, 1, 2), (2, 2, 2)])
def test_laplace_on_grids_and_in_quantics_form(boundary, levels):
    counts = (levels,) if isinstance(levels, int) else levels
    spacing = [0.5 + k for k in range(len(counts))]
    exact = kronecker_sum(
        [second_difference(2**c, boundary) / h**2 for c, h in zip(counts, spacing, strict=True)]
    )
    quantics = operators.qtt_laplace(levels, boundary=boundary, spacing=spacing, **DOUBLE)
    grid = operators.laplace([2**c for c in counts], boundary=boundary, spacing=spacing, **DOUBLE)
    for matrix in (quantics, grid):
        assert np.abs(full(matrix.cores) - exact).max() <= 1e-13 * np.abs(exact).max()
        assert np.linalg.eigvalsh(full(matrix.cores).astype(float))[0] >= -1e-12
    assert is_smallest(quantics)


def test_boundaries_may_differ_by_dimension():
    matrix = operators.laplace((3, 4), boundary=("periodic", "neumann"), **DOUBLE)
    exact = kronecker_sum([second_difference(3, "periodic"), second_difference(4, "neumann")])
    assert np.abs(full(matrix.cores) - exact).max() <= 1e-14


def test_shifts_shift():
    x = torch.arange(1.0, 17.0, **DOUBLE)
    shifted = (operators.qtt_shift(4, **DOUBLE) @ x.reshape([2] * 4)).flatten()
    assert torch.equal(shifted, torch.cat([x[1:], torch.zeros(1, **DOUBLE)]))
    shifted = (operators.qtt_shift(4, periodic=True, **DOUBLE) @ x.reshape([2] * 4)).flatten()
    assert torch.equal(shifted, x.roll(-1))
    back = (operators.qtt_shift(4, periodic=True, **DOUBLE).mT @ x.reshape([2] * 4)).flatten()
    assert torch.equal(back, x.roll(1))


def test_large_operators_are_built_quickly_in_any_dtype(device):
    chain = operators.heisenberg(120, dtype=torch.complex64, device=device)
    assert chain.dtype == torch.complex64
    assert chain.device.type == device.type
    assert operators.qtt_laplace([20, 20], dtype=torch.float32).shape == (2**40, 2**40)


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match=r"spin: expected 1/2, 1"):
        operators.heisenberg(4, spin=0.7)
    with pytest.raises(ConfigError, match="length"):
        operators.ising(0)
    with pytest.raises(ConfigError, match="length"):
        operators.xx(2.5)
    with pytest.raises(ConfigError, match="field: expected one number or 3"):
        operators.ising(3, field=[1.0])
    with pytest.raises(ConfigError, match="boundary"):
        operators.laplace(4, boundary="open")
    with pytest.raises(ConfigError, match="spacing"):
        operators.laplace((4, 4), spacing=[1.0])
    with pytest.raises(ConfigError, match="spacing"):
        operators.qtt_laplace(4, spacing=0.0)
    with pytest.raises(ShapeError, match="shape"):
        operators.laplace([4, 0])
