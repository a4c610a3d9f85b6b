import numpy as np
import pytest
import torch

import ttnet
from tests import dense
from tests.strategies import DTYPES, ghz
from ttnet import TensorTrain, sampling
from ttnet.errors import ConfigError, NonFiniteError
from ttnet.sampling import sample


def probabilities(train):
    weights = np.abs(dense.full(train.cores)) ** 2
    return weights / weights.sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probabilities_are_those_of_the_dense_state(dtype):
    train = ttnet.random_train((2, 3, 1, 4), 3, seed=0, dtype=dtype) * 1e6
    indices, logs = sample(train, 200, seed=0)
    assert indices.shape == (200, 4)
    assert indices.dtype == torch.int64
    assert logs.dtype == torch.float64
    exact = np.log(probabilities(train)[tuple(indices.T.numpy())].astype(float))
    assert np.abs(logs.numpy() - exact).max() <= (
        1e-3 if dtype in (torch.float32, torch.complex64) else 1e-11
    )


@pytest.mark.parametrize("center", [None, 0, 1, 2])
def test_frequencies_follow_the_probabilities(center):
    train = ttnet.random_train((2, 3, 2), 3, seed=1, dtype=torch.float64)
    exact = probabilities(train).ravel().astype(float)
    train = train if center is None else train.orthogonalize(center)
    count = 20000
    indices, _ = sample(train, count, seed=2)
    found = np.bincount(np.ravel_multi_index(tuple(indices.T.numpy()), train.shape), minlength=12) / count
    chi_squared = (count * (found - exact) ** 2 / exact).sum()
    assert chi_squared < 35  # 11 degrees of freedom: 1 in 4000


def test_what_has_no_weight_is_never_drawn():
    indices, logs = sample(TensorTrain(ghz((3, 4, 3, 5))), 2000, seed=0)
    assert (indices == indices[:, :1]).all()
    assert set(indices[:, 0].tolist()) == {0, 1, 2}
    torch.testing.assert_close(logs, torch.full_like(logs, -np.log(3)))


def test_seeds_and_chunks(monkeypatch):
    train = ttnet.random_train((3,) * 6, 4, seed=0, dtype=torch.float64)
    first = sample(train, 50, seed=3)
    assert torch.equal(first.indices, sample(train, 50, seed=torch.Generator().manual_seed(3)).indices)
    assert not torch.equal(first.indices, sample(train, 50, seed=4).indices)
    monkeypatch.setattr(sampling, "_SAMPLE_ENTRIES", 7 * 12)
    chunked = sample(train, 50, seed=3)
    assert torch.equal(first.indices, chunked.indices)
    torch.testing.assert_close(first.log_probabilities, chunked.log_probabilities)


def test_long_trains_stay_in_range():
    train = ttnet.random_train([2] * 150, 3, seed=0, dtype=torch.float32)
    train = TensorTrain([core / 2**0.5 for core in train.cores])
    indices, logs = sample(train, 10, seed=0)
    assert indices.shape == (10, 150)
    assert torch.isfinite(logs).all()
    assert (logs < 0).all()


def test_every_device(device):
    train = ttnet.random_train((3,) * 6, 4, seed=0, dtype=torch.float64)
    found = sample(train.to(device), 50, seed=3)
    assert found.indices.device.type == device.type
    assert torch.equal(found.indices.cpu(), sample(train, 50, seed=3).indices)


def test_bad_arguments_are_named():
    train = ttnet.random_train((2, 2), 2, seed=0)
    with pytest.raises(ConfigError, match="count"):
        sample(train, 0)
    with pytest.raises(NonFiniteError, match="train"):
        sample(train * 0, 1)
