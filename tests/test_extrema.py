"""Extreme entries against the dense tensor, and planted ones where no dense tensor fits."""

import pytest
import torch

from tests.strategies import DTYPES
from ttnet import extrema
from ttnet.algebra import add, scale
from ttnet.construct import arange, sum_of, unit, zeros
from ttnet.cores import contract
from ttnet.errors import ConfigError, DTypeError
from ttnet.extrema import extreme_entry
from ttnet.random import random_cores


def best(full, kind):
    return {"max": full.max, "min": full.min, "absmax": full.abs().max}[kind]()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["max", "min", "absmax"])
@pytest.mark.parametrize("shape", [(5,), (3, 1, 4), (4, 3, 5, 2)])
def test_small_tensors_are_searched_exhaustively(shape, kind, dtype) -> None:
    if dtype.is_complex and kind != "absmax":
        pytest.skip("complex numbers have no order")
    cores = random_cores(shape, 3, seed=0, dtype=dtype)
    found = extreme_entry(cores, kind)
    full = contract(cores)
    assert torch.allclose(full[found.index], found.value)
    assert float(found.value.abs() if kind == "absmax" else found.value) == pytest.approx(
        float(best(full, kind))
    )


@pytest.mark.parametrize("kind", ["max", "min", "absmax"])
def test_the_search_finds_what_is_there(kind, monkeypatch) -> None:
    monkeypatch.setattr(extrema, "_SMALL", 0)
    for seed in range(4):
        cores = random_cores((6,) * 5, 4, seed=seed, dtype=torch.float64)
        found = extreme_entry(cores, kind)
        value = found.value.abs() if kind == "absmax" else found.value
        assert float(value) == pytest.approx(float(best(contract(cores), kind)), rel=1e-12)


def test_a_large_tensor() -> None:
    shape = (8,) * 10
    noise = random_cores(shape, 3, seed=0, dtype=torch.float64)
    noise = scale(noise, 1e-2 / float(extreme_entry(noise).value.abs()))
    index = tuple(torch.randint(0, 8, (10,)).tolist())
    cores = add(noise, unit(shape, index, dtype=torch.float64))
    assert extreme_entry(cores, "max").index == index
    assert extreme_entry(scale(cores, -1), "min").index == index


def test_monotone_functions() -> None:
    shape = (4,) * 10
    assert extreme_entry(arange(shape, dtype=torch.float64), "max").index == (3,) * 10
    assert extreme_entry(arange(shape, dtype=torch.float64), "min").index == (0,) * 10
    parabola = sum_of([-((torch.linspace(0, 1, 30, dtype=torch.float64) - 0.37) ** 2)] * 5)
    assert extreme_entry(parabola, "max").index == (11,) * 5


def test_zero_and_gradient() -> None:
    assert float(extreme_entry(zeros((9,) * 8)).value) == 0
    cores = [core.requires_grad_() for core in random_cores((3, 4, 2), 2, seed=0, dtype=torch.float64)]
    found = extreme_entry(cores, "max")
    expected = torch.autograd.grad(contract(cores).max(), cores)
    for a, b in zip(torch.autograd.grad(found.value, cores), expected, strict=True):
        assert torch.allclose(a, b)


def test_bad_input_is_named() -> None:
    cores = random_cores((3, 4), 2, seed=0)
    with pytest.raises(ConfigError, match=r"kind: expected 'max', 'min' or 'absmax', got 'largest'"):
        extreme_entry(cores, "largest")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"beam: expected an integer of at least 1, got 0"):
        extreme_entry(cores, beam=0)
    with pytest.raises(DTypeError, match=r"train: expected real entries for 'max', got torch.complex64"):
        extreme_entry(random_cores((3, 4), 2, dtype=torch.complex64), "max")
