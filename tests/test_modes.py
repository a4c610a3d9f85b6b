"""Kronecker and outer products, concatenation, sums and means, against numpy and torch."""

import numpy as np
import pytest
import torch

from tests import dense
from tests.strategies import DTYPES, eps
from ttnet import modes
from ttnet.cores import check, contract
from ttnet.errors import ShapeError
from ttnet.random import random_cores


def near(found, expected, dtype) -> bool:
    expected = np.asarray(expected)
    return dense.distance(found, expected) <= 100 * eps(dtype) * max(1.0, dense.norm(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype) -> None:
    a, b = random_cores((3, 1, 4), 2, seed=0, dtype=dtype), random_cores((2, 3, 2), 3, seed=1, dtype=dtype)
    assert near(contract(check(modes.kron(a, b))), np.kron(dense.full(a), dense.full(b)), dtype)
    outer = np.multiply.outer(dense.full(a), dense.full(b))
    assert near(contract(check(modes.outer(a, b))), outer, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [0, 1, -1])
def test_concatenation(mode, dtype) -> None:
    shapes = [[3, 2, 4] for _ in range(3)]
    for k, shape in enumerate(shapes):
        shape[mode] = k + 1
    trains = [random_cores(shape, 2, seed=k, dtype=dtype) for k, shape in enumerate(shapes)]
    expected = np.concatenate([dense.full(cores) for cores in trains], axis=mode)
    assert near(contract(check(modes.concatenate(trains, mode))), expected, dtype)


def test_concatenation_of_one_mode() -> None:
    vectors = [random_cores((n,), 1, seed=n) for n in (2, 1, 3)]
    joined = modes.concatenate(vectors)
    assert torch.equal(contract(joined), torch.cat([contract(v) for v in vectors]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [None, 0, -1, (0, 2), (1,), (), (0, 1, 2, 3)])
def test_sums_and_means(chosen, dtype) -> None:
    cores = random_cores((3, 1, 4, 2), 3, seed=0, dtype=dtype)
    full = dense.full(cores)
    axes = tuple(range(4)) if chosen is None else chosen
    for reduce, expected in (
        (modes.sum_modes, full.sum(axis=axes)),
        (modes.mean_modes, full.mean(axis=axes)),
    ):
        found = reduce(cores, chosen)
        found = found if isinstance(found, torch.Tensor) else contract(check(found))
        assert near(found, expected, dtype)


def test_the_mean_of_many_entries_does_not_overflow() -> None:
    ones = [torch.ones(1, 10, 1) for _ in range(200)]
    assert float(modes.mean_modes(ones)) == pytest.approx(1.0)


def test_bad_input_is_named() -> None:
    a, b = random_cores((3, 2), 2, seed=0), random_cores((3, 2, 2), 2, seed=0)
    with pytest.raises(ShapeError, match=r"other: expected a train of 2 modes, got 3"):
        modes.kron(a, b)
    with pytest.raises(
        ShapeError, match=r"trains: expected the shape \(3, 2\) but for mode 0, got \(3, 2, 2\)"
    ):
        modes.concatenate([a, b])
    with pytest.raises(ShapeError, match=r"mode: expected a core index from 0 to 1, got 2"):
        modes.concatenate([a, a], 2)
    with pytest.raises(ShapeError, match=r"modes: expected a core index from 0 to 1, got 5"):
        modes.sum_modes(a, 5)
    with pytest.raises(ShapeError, match=r"trains: expected at least one train"):
        modes.concatenate([])
