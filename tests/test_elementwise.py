"""Functions of the entries of trains."""

import pytest
import torch

from ttnet.construct import ones, sum_of
from ttnet.cores import contract
from ttnet.cross import CrossOptions
from ttnet.elementwise import apply_elementwise, divide
from ttnet.errors import NonFiniteError, ShapeError
from ttnet.random import random_cores

SHAPE = (6, 5, 7, 4)
OPTIONS = CrossOptions(rtol=1e-9, seed=0)


def positive():
    return sum_of([torch.linspace(0.5, 1, n, dtype=torch.float64) for n in SHAPE])


def test_division() -> None:
    a, b = random_cores(SHAPE, 2, seed=0, dtype=torch.float64), positive()
    cores, report = divide(a, b, options=OPTIONS)
    exact = contract(a) / contract(b)
    assert report.converged
    assert float((contract(cores) - exact).norm() / exact.norm()) < 1e-9


def test_functions_of_several_trains() -> None:
    a, b = positive(), ones(SHAPE, dtype=torch.float64)
    cores, report = apply_elementwise(lambda x, y: torch.sqrt(x) + y, (a, b), options=OPTIONS)
    assert report.converged
    assert torch.allclose(contract(cores), contract(a).sqrt() + 1, atol=1e-8)


def test_bad_input_is_named() -> None:
    zero = sum_of([torch.arange(3, dtype=torch.float64)] * 3)
    with pytest.raises(
        NonFiniteError, match=r"function: expected finite values, got inf at index \(0, 0, 0\)"
    ):
        divide(ones((3, 3, 3), dtype=torch.float64), zero, options=OPTIONS)
    with pytest.raises(ShapeError, match=r"other: expected a train of shape"):
        divide(ones((3, 3)), ones((3, 2)))
    with pytest.raises(ShapeError, match=r"trains: expected at least one train"):
        apply_elementwise(torch.sqrt, ())
