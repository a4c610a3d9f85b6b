import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ttnet
from tests import dense
from tests.matrices import full
from tests.strategies import DTYPES, eps
from ttnet import TensorTrain, Truncation
from ttnet.correlations import correlations
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.measure import (
    expectation,
    local_expectations,
    overlap_environments,
    sandwich,
    site_densities,
    variance,
)
from ttnet.operators import heisenberg, ising, majumdar_ghosh, spin_matrices
from ttnet.tt_matrix import TTMatrix


def vector(train):
    dense_train = dense.full(train.cores).ravel()
    return dense_train / dense.norm(dense_train)


def at(matrix, site, shape):
    left, right = int(np.prod(shape[:site])), int(np.prod(shape[site + 1 :]))
    return np.kron(np.kron(np.eye(left), matrix), np.eye(right))


def random_matrices(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, n, dtype=dtype, generator=generator) for n in shape]


@pytest.mark.parametrize("dtype", DTYPES)
def test_expectations_are_those_of_the_dense_state(dtype):
    shape = (2, 3, 2, 2)
    train = ttnet.random_train(shape, 3, seed=0, dtype=dtype)
    matrix = TTMatrix.random(shape, shape, 2, seed=1, dtype=dtype)
    other = TTMatrix.random(shape, shape, 3, seed=2, dtype=dtype)
    x = vector(train)
    exact = x.conj() @ full(matrix.cores) @ x
    assert expectation(matrix, train).item() == pytest.approx(exact, rel=1e3 * eps(dtype))
    exact = exact + x.conj() @ full(other.cores) @ x
    assert expectation([matrix, other], train).item() == pytest.approx(exact, rel=1e3 * eps(dtype))
    assert expectation([matrix, other], train.orthogonalize(2) * 1e9).dtype == dtype
    bra = ttnet.random_train(shape, 2, seed=3, dtype=dtype)
    exact = dense.full(bra.cores).ravel().conj() @ full(matrix.cores) @ dense.full(train.cores).ravel()
    assert sandwich(bra, matrix, train).item() == pytest.approx(exact, rel=1e3 * eps(dtype))


def test_sandwich_takes_rectangular_operators_and_promotes():
    matrix = TTMatrix.random((2, 3), (4, 5), 2, seed=0, dtype=torch.float32)
    bra = ttnet.random_train((2, 3), 2, seed=1, dtype=torch.complex128)
    ket = ttnet.random_train((4, 5), 2, seed=2, dtype=torch.complex128)
    exact = dense.full(bra.cores).ravel().conj() @ full(matrix.cores) @ dense.full(ket.cores).ravel()
    assert sandwich(bra, matrix, ket).item() == pytest.approx(exact, rel=1e-12)


def test_expectations_neither_overflow_nor_underflow():
    d = 400
    train = ttnet.random_train([2] * d, 2, seed=0, dtype=torch.float32)
    energy = expectation(ising(d, coupling=0.0, field=[1.0] + [0.0] * (d - 1), dtype=torch.float32), train)
    assert torch.isfinite(energy)
    assert abs(energy) <= 1 + 1e-4
    assert expectation(TTMatrix.identity([2] * d), train * 1e-20).item() == pytest.approx(1, rel=1e-4)


def test_expectation_differentiates():
    train = ttnet.random_train((2, 2, 2), 2, seed=0, dtype=torch.complex128)
    matrix = heisenberg(3, dtype=torch.complex128)
    cores = [core.clone().requires_grad_() for core in train.cores]
    assert torch.autograd.gradcheck(lambda *c: expectation(matrix, TensorTrain(c)).real, cores)


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=5).map(tuple),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    seed=st.integers(0, 99),
)
def test_one_and_two_site_functions_are_those_of_the_dense_state(shape, dtype, seed):
    train = ttnet.random_train(shape, 3, seed=seed, dtype=dtype)
    a, b = random_matrices(shape, dtype, seed), random_matrices(shape, torch.complex128, seed + 1)
    x, d = vector(train), len(shape)
    first = [at(dense.array(o), k, shape) for k, o in enumerate(a)]
    second = [at(dense.array(o), k, shape) for k, o in enumerate(b)]
    means = np.array([x.conj() @ o @ x for o in first], dtype=complex)
    assert np.abs(local_expectations(a, train).numpy() - means).max() <= 1e-12
    for k, rho in enumerate(site_densities(train)):
        assert torch.allclose(rho, rho.mH)
        assert rho.trace().item() == pytest.approx(1)
        assert (a[k] @ rho).trace().item() == pytest.approx(means[k], abs=1e-12)
    pairs = np.array([[x.conj() @ p @ q @ x for q in second] for p in first], dtype=complex).reshape(d, d)
    assert np.abs(correlations(a, b, train).numpy() - pairs).max() <= 1e-11
    others = np.array([x.conj() @ o @ x for o in second], dtype=complex)
    connected = correlations(a, b, train, connected=True).numpy()
    assert np.abs(connected - (pairs - np.outer(means, others))).max() <= 1e-11


def test_one_matrix_for_all_sites():
    z = spin_matrices(dtype=torch.float64)["z"]
    train = ttnet.random_train([2] * 5, 3, seed=0, dtype=torch.float64) * 1e100
    assert torch.allclose(local_expectations(z, train), local_expectations([z] * 5, train))
    same = correlations(z, z, train)
    assert torch.allclose(same, correlations(z, z.clone(), train))
    assert torch.allclose(same, same.mT)
    assert torch.allclose(same.diagonal(), torch.full((5,), 0.25, dtype=torch.float64))


def test_singlets_have_the_correlations_of_singlets():
    singlet = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64) / 2**0.5
    cores = [torch.eye(2, dtype=torch.float64)[None], singlet[:, :, None]] * 3
    state = TensorTrain(cores)
    z = spin_matrices(dtype=torch.float64)["z"]
    expected = torch.kron(torch.eye(3), torch.tensor([[0.25, -0.25], [-0.25, 0.25]])).to(torch.float64)
    torch.testing.assert_close(correlations(z, z, state, connected=True), expected)
    chain = majumdar_ghosh(6, dtype=torch.float64)
    assert expectation(chain, state).item() == pytest.approx(-3 * 6 / 8, abs=1e-14)
    assert variance(chain, state).item() <= 1e-28
    assert variance([chain, chain], state).item() <= 1e-28
    assert variance(chain, state, method="pairs").item() <= 1e-13


@pytest.mark.parametrize("method", ["residual", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_variances_are_those_of_the_dense_state(method, dtype):
    shape = (2, 3, 2, 2)
    train = ttnet.random_train(shape, 3, seed=0, dtype=dtype) * 1e5
    matrices = [TTMatrix.random(shape, shape, rank, seed=rank, dtype=dtype) for rank in (2, 3, 1)]
    x = vector(train)
    for count in (1, 2, 3):
        total = sum(full(matrix.cores) for matrix in matrices[:count])
        mean = x.conj() @ total @ x
        exact = dense.norm(total @ x - mean * x) ** 2
        given_operators = matrices[0] if count == 1 else matrices[:count]
        assert variance(given_operators, train, method=method).item() == pytest.approx(exact, rel=1e-10)


def test_small_variances_are_resolved():
    # A perturbed eigenvector: variance of the order of the perturbation squared, far below eps <H>^2.
    up = torch.tensor([1.0, 0.0], dtype=torch.float64)
    chain = heisenberg(6, coupling=0.0, field=1e3, dtype=torch.float64)
    angles = [up + torch.tensor([0.0, 1e-8], dtype=torch.float64)] + [up] * 5
    state = TensorTrain([angle.reshape(1, 2, 1) for angle in angles])
    assert variance(chain, state).item() == pytest.approx(1e-16 * 1e6, rel=1e-4)


def test_environments_close_to_the_overlap():
    bra = ttnet.random_train((2, 3, 2, 3), 3, seed=0, dtype=torch.complex128)
    ket = ttnet.random_train((2, 3, 2, 3), 2, seed=1, dtype=torch.float64)
    left, right = overlap_environments(bra, ket)
    exact = dense.inner(dense.full(bra.cores), dense.full(ket.cores))
    for k in range(4):
        assert left[k].shape == (bra.ranks[k], ket.ranks[k])
        assert right[k].shape == (bra.ranks[k + 1], ket.ranks[k + 1])
        closed = torch.einsum("rs,rnt,snu,tu->", left[k], bra.cores[k].conj(), ket.cores[k] + 0j, right[k])
        assert closed.item() == pytest.approx(exact, rel=1e-12)


def test_one_site_and_half_precision():
    train = ttnet.random_train([3], 1, seed=0, dtype=torch.bfloat16)
    (o,) = random_matrices([3], torch.float32)
    x = vector(train)
    assert local_expectations(o, train).item() == pytest.approx(float(x @ dense.array(o) @ x), rel=1e-5)
    assert correlations(o, o, train).item() == pytest.approx(float(x @ dense.array(o @ o) @ x), rel=1e-4)


def test_bad_arguments_are_named():
    train = ttnet.random_train((2, 2, 2), 2, seed=0, dtype=torch.float64)
    chain = heisenberg(3, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"train: expected modes \(2, 2, 2, 2\)"):
        variance(heisenberg(4, dtype=torch.float64), train)
    with pytest.raises(ShapeError, match="square"):
        expectation(TTMatrix.random((2, 2, 2), (2, 2, 3), 1), train)
    with pytest.raises(DTypeError, match="operators: expected a TTMatrix or a list"):
        expectation([], train)
    with pytest.raises(DTypeError, match="operators"):
        expectation([train], train)
    with pytest.raises(ConfigError, match="method"):
        variance(chain, train, method="square")
    with pytest.raises(ShapeError, match="matrices"):
        local_expectations(torch.eye(3, dtype=torch.float64), train)
    with pytest.raises(ShapeError, match="second"):
        correlations(torch.eye(2), [torch.eye(2)], train)
    with pytest.raises(ShapeError, match="bra"):
        sandwich(ttnet.random_train((2, 2), 1, dtype=torch.float64), chain, train)
    for measure in (lambda t: expectation(chain, t), lambda t: variance(chain, t), site_densities):
        with pytest.raises(NonFiniteError, match="train: expected a train of positive"):
            measure(train * 0)


@pytest.mark.parametrize("method", ["auto", "pairs", "residual"])
def test_real_and_complex_operators_add_in_any_order(method):
    shape = (2, 3, 2)
    state = ttnet.random_train(shape, 3, seed=0, dtype=torch.float64)
    a = TTMatrix.random(shape, shape, 2, seed=1, dtype=torch.float64)
    b = TTMatrix.random(shape, shape, 2, seed=2, dtype=torch.complex128)
    x = vector(state)
    y = (full(a.cores) + full(b.cores)) @ x
    exact = dense.norm(y) ** 2 - abs(x.conj() @ y) ** 2
    for operators in ([a, b], [b, a], [a, b.to(torch.complex64).to(torch.complex128), a * 0]):
        assert variance(operators, state, method=method).item() == pytest.approx(exact, rel=1e-5)


def test_a_cut_ground_state_is_certified_by_its_variance():
    # |E - E_0| is at most the variance over the gap (Temple), here on a state found densely.
    chain = heisenberg(8, dtype=torch.float64)
    energies, states = np.linalg.eigh(full(chain.cores).astype(float))
    ground = ttnet.tt_svd(torch.from_numpy(states[:, 0].copy()).reshape([2] * 8), Truncation(max_rank=6))
    error = expectation(chain, ground).item() - energies[0]
    spread = variance(chain, ground).item()
    assert 0 < error <= spread / (energies[1] - energies[0]) * 1.1
