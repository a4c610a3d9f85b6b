import math

import numpy as np
import pytest
import torch

from tests import dense
from tests.strategies import DTYPES, eps
from ttnet import Truncation, unfoldings


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 5)])
def test_factors_have_the_left_singular_vectors_and_values(shape, dtype, device):
    matrix = torch.randn(*shape, dtype=dtype, device=device)
    vectors, values = unfoldings.gram_vectors(matrix)
    for factor in (unfoldings.triangular_factor(matrix), vectors * values):
        torch.testing.assert_close(factor @ factor.mH, matrix @ matrix.mH)
    truth = np.linalg.svd(dense.unfolding(dense.array(matrix), 0), compute_uv=False)
    np.testing.assert_allclose(values.cpu(), truth, rtol=1e3 * eps(dtype) ** 0.5, atol=0)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shape", [(4, 50000), (64, 4096), (7, 300)])
def test_the_roundoff_of_a_gram_matrix_is_below_its_bound(shape, positive):
    matrix = torch.rand(shape) if positive else torch.randn(shape)
    error = (matrix @ matrix.mT).double() - matrix.double() @ matrix.double().mT
    total = float(matrix.double().square().sum())
    assert float(torch.linalg.matrix_norm(error)) <= unfoldings.gram_noise(shape[1], torch.float32) * total


@pytest.mark.parametrize("dtype", DTYPES)
def test_left_out(dtype, monkeypatch):
    monkeypatch.setattr(unfoldings, "_CHUNK", 64)
    matrix = torch.randn(5, 50, dtype=dtype)
    basis = torch.linalg.qr(torch.randn(5, 2, dtype=dtype)).Q
    rest = basis.mH @ matrix
    truth = dense.norm(dense.array(matrix) - dense.array(basis) @ dense.array(rest)) ** 2
    assert unfoldings.left_out(matrix, basis, rest) == pytest.approx(truth, rel=1e3 * eps(dtype))


@pytest.mark.parametrize("shape", [(7,), (3, 4), (20, 30, 40)])
def test_squared_norm(shape):
    tensor = torch.rand(shape)
    assert unfoldings.squared_norm(tensor) == pytest.approx(float(tensor.double().square().sum()), rel=1e-6)


VALUES = torch.tensor([1.0, 0.1, 1e-3, 1e-8, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("truncation", "max_weight", "rank", "certain"),
    [
        (Truncation(), 1e-4, 2, True),
        (Truncation(), 1e-9, 3, True),
        (Truncation(), 1e-14, 3, False),  # below the noise
        (Truncation(), 1e-6 + 1e-14, 2, False),  # within the noise of a tail
        (Truncation(cutoff=1e-4), math.inf, 2, True),
        (Truncation(cutoff=0.99e-6), math.inf, 3, True),
        (Truncation(svd_min=1e-2), math.inf, 2, True),
        (Truncation(svd_min=1e-3 / math.sqrt(1.010001)), math.inf, 3, False),
        (Truncation(svd_min=1e-12), math.inf, 4, False),
        (Truncation(max_rank=2), math.inf, 2, True),
        (Truncation(max_rank=4), math.inf, 4, False),  # which vector is the fourth, the noise decides
    ],
)
def test_a_decision_is_certain_outside_the_noise(truncation, max_weight, rank, certain):
    noise = 1e-13
    found = unfoldings.resolves(VALUES, rank, truncation, max_weight=max_weight, noise=noise)
    assert found == certain


@pytest.mark.parametrize(
    ("options", "max_weight", "worth"),
    [
        ({}, 1e-4, True),
        ({}, 1e-13, False),
        ({}, math.inf, True),
        ({"cutoff": 1e-6}, math.inf, True),
        ({"cutoff": 1e-13}, math.inf, False),
        ({"svd_min": 1e-3}, math.inf, True),
        ({"svd_min": 1e-8}, 1e-4, False),
        ({"degeneracy_tol": 1e-6}, 1e-4, False),
    ],
)
def test_tolerances_near_the_noise_are_not_worth_a_try(options, max_weight, worth):
    truncation = Truncation(**options)
    assert unfoldings.may_resolve(truncation, total=1.0, max_weight=max_weight, noise=1e-13) == worth


def test_excess_is_of_second_order_in_the_noise():
    assert unfoldings.excess(VALUES, 1, 1e-6) == pytest.approx(1e-12 / 0.99)
    assert unfoldings.excess(VALUES, 5, 1e-6) == 0.0
    assert unfoldings.excess(torch.ones(3), 2, 1e-6) == 1e-6
