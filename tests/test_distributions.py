"""Marginals, conditionals and samples against the dense distribution."""

import numpy as np
import pytest
import torch

from tests import dense
from tests.strategies import DTYPES, ghz
from ttnet import distributions
from ttnet.cores import check, contract, shape_of
from ttnet.distributions import marginal, marginals, sample
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.random import random_cores

SHAPE = (3, 1, 4, 2)
GIVEN = [None, {0: 1}, {2: 3, 3: 0}, {-1: -1}, {0: 0, 1: 0, 2: 2, 3: 1}]


def train(squared, dtype=torch.float64):
    cores = random_cores(SHAPE, 3, seed=0, dtype=dtype)
    return cores if squared else [core.abs() for core in cores]


def distribution(cores, squared, given=None) -> np.ndarray:
    full = dense.full(cores)
    weights = np.abs(full) ** 2 if squared else full.real.copy()
    for mode, index in (given or {}).items():
        kept = np.zeros(SHAPE[mode])
        kept[index] = 1
        weights = np.moveaxis(np.moveaxis(weights, mode, -1) * kept, -1, mode)
    return (weights / weights.sum()).astype(float)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("squared", [False, True])
def test_marginals(squared, given, dtype) -> None:
    if dtype.is_complex and not squared:
        dtype = dtype.to_real()
    cores = train(squared, dtype)
    exact = distribution(cores, squared, given)
    for k, found in enumerate(marginals(cores, squared=squared, given=given)):
        expected = exact.sum(axis=tuple(j for j in range(4) if j != k))
        np.testing.assert_allclose(
            found.numpy(), expected, atol=1e-5 if torch.finfo(dtype).eps > 1e-9 else 1e-12
        )


@pytest.mark.parametrize("modes", [0, (1, 2), [0, -1], (0, 1, 2, 3)])
@pytest.mark.parametrize(
    ("squared", "dtype"), [(False, torch.float64), (True, torch.float64), (True, torch.complex128)]
)
def test_joint_marginals_are_trains(modes, squared, dtype) -> None:
    cores = train(squared, dtype)
    found = check(marginal(cores, modes, squared=squared))
    kept = {modes} if isinstance(modes, int) else {mode % 4 for mode in modes}
    exact = distribution(cores, squared).sum(axis=tuple(k for k in range(4) if k not in kept))
    np.testing.assert_allclose(contract(found).numpy(), exact, atol=1e-13)
    assert shape_of(found) == exact.shape
    assert found[0].dtype == torch.float64


@pytest.mark.parametrize("given", GIVEN[:4])
@pytest.mark.parametrize("squared", [False, True])
def test_samples_follow_the_distribution(squared, given) -> None:
    cores = train(squared, torch.complex128 if squared else torch.float64)
    count = 20_000
    draws = sample(cores, count, squared=squared, given=given, seed=0)
    exact = distribution(cores, squared, given)
    probabilities = exact[tuple(draws.indices.T.numpy())]
    np.testing.assert_allclose(draws.log_probabilities.exp().numpy(), probabilities, rtol=1e-9)
    flat = np.ravel_multi_index(tuple(draws.indices.T.numpy()), SHAPE)
    frequency = np.bincount(flat, minlength=exact.size) / count
    assert np.abs(frequency - exact.ravel()).sum() < 3 * np.sqrt(exact.size / count)
    for mode, index in (given or {}).items():
        assert bool((draws.indices[:, mode] == index % SHAPE[mode]).all())


def test_samples_are_seeded() -> None:
    a, b, c = (sample(train(True), 50, squared=True, seed=s).indices for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_only_possible_indices_are_drawn() -> None:
    cores = [torch.tensor([[[0.0], [1.0], [0.0], [2.0], [0.0]]])] * 3
    for squared in (False, True):
        draws = sample(cores, 500, squared=squared, seed=0)
        assert set(draws.indices.unique().tolist()) == {1, 3}


def test_a_thousand_modes_in_float32() -> None:
    cores = [core.abs() * 10 for core in random_cores((2,) * 1000, 2, seed=0)]
    draws = sample(cores, 5, seed=0)
    assert bool(torch.isfinite(draws.log_probabilities).all())
    assert all(bool(torch.isfinite(p).all()) for p in marginals(cores, squared=True))


def test_equal_weights_of_a_repeated_spectrum() -> None:
    draws = sample(ghz((3, 4, 3, 5)), 2000, squared=True, seed=0)
    assert bool((draws.indices == draws.indices[:, :1]).all())
    assert set(draws.indices[:, 0].tolist()) == {0, 1, 2}
    torch.testing.assert_close(draws.log_probabilities, torch.full_like(draws.log_probabilities, -np.log(3)))


@pytest.mark.parametrize("squared", [False, True])
def test_chunks_change_nothing(squared, monkeypatch) -> None:
    cores = train(squared)
    whole = sample(cores, 50, squared=squared, seed=3)
    monkeypatch.setattr(distributions, "_LARGEST", 60)
    chunked = sample(cores, 50, squared=squared, seed=torch.Generator().manual_seed(3))
    assert torch.equal(whole.indices, chunked.indices)
    torch.testing.assert_close(whole.log_probabilities, chunked.log_probabilities)


def test_every_device(device) -> None:
    cores = train(True)
    moved = [core.to(device) for core in cores]
    found = sample(moved, 50, squared=True, given={0: 1}, seed=3)
    assert found.indices.device.type == found.log_probabilities.device.type == device.type
    assert torch.equal(found.indices.cpu(), sample(cores, 50, squared=True, given={0: 1}, seed=3).indices)
    assert all(p.device.type == device.type for p in marginals(moved, squared=True))


def test_small_negative_weights_count_as_zero() -> None:
    cores = [torch.tensor([[[1.0], [-1e-9]]]), torch.tensor([[[1.0], [1.0]]])]
    draws = sample(cores, 100, seed=0)
    assert bool((draws.indices[:, 0] == 0).all())


def test_marginal_is_differentiable() -> None:
    cores = [core.abs().requires_grad_() for core in random_cores((2, 3, 2), 2, seed=0, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *c: contract(marginal(c, (0, 2))), cores)
    assert torch.autograd.gradcheck(lambda *c: contract(marginal(c, 1, squared=True)), cores)


def test_bad_input_is_named() -> None:
    cores = train(False)
    with pytest.raises(ConfigError, match=r"count: expected an integer of at least 1, got 0"):
        sample(cores, 0)
    with pytest.raises(ShapeError, match=r"given: expected an index from -3 to 2 of mode 0, got 3"):
        sample(cores, 1, given={0: 3})
    with pytest.raises(ShapeError, match=r"given: expected a core index from 0 to 3, got 4"):
        marginals(cores, given={4: 0})
    with pytest.raises(DTypeError, match=r"train: expected real entries as weights, got torch.complex64"):
        sample(train(True, torch.complex64), 1)
    with pytest.raises(NonFiniteError, match=r"got a zero train"):
        sample([torch.zeros(1, 2, 1)] * 2, 1)
    impossible = [torch.tensor([[[1.0], [0.0]]])] * 2
    with pytest.raises(NonFiniteError, match=r"got 0 for these given indices"):
        sample(impossible, 1, given={1: 1})
    with pytest.raises(NonFiniteError, match=r"got 0 for these given indices"):
        marginals(impossible, given={1: 1})
    with pytest.raises(ShapeError, match=r"modes: expected at least one mode that remains"):
        marginal(cores, ())
