"""Rows of maximal volume."""

import itertools

import pytest
import torch

from ttnet.errors import ConfigError, ShapeError
from ttnet.maxvol import maxvol


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 7), (300, 1)])
def test_all_rows_are_small_combinations_of_the_chosen(shape, dtype) -> None:
    matrix = torch.randn(shape, dtype=dtype)
    rows, coefficients = maxvol(matrix)
    assert len(set(rows.tolist())) == shape[1]
    assert torch.allclose(coefficients @ matrix[rows], matrix)
    assert float(coefficients.abs().max()) <= 1.05 + 1e-9
    assert torch.allclose(coefficients[rows], torch.eye(shape[1], dtype=dtype), atol=1e-9)


def test_the_volume_is_near_the_largest() -> None:
    matrix = torch.linalg.qr(torch.randn(9, 3, dtype=torch.float64))[0]
    volumes = [
        float(torch.linalg.det(matrix[list(rows)]).abs()) for rows in itertools.combinations(range(9), 3)
    ]
    found = float(torch.linalg.det(matrix[maxvol(matrix, tolerance=1.0)[0]]).abs())
    assert found >= 0.5 * max(volumes)
    assert found > sorted(volumes)[len(volumes) // 2]


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match=r"matrix: expected shape \(m, r\) with m >= r, got \(2, 3\)"):
        maxvol(torch.ones(2, 3))
    with pytest.raises(ConfigError, match=r"tolerance: expected at least 1, got 0.5"):
        maxvol(torch.ones(3, 1), tolerance=0.5)
