import pytest
import torch

from tests.strategies import DTYPES, eps
from ttnet.bases import (
    normalize,
    random_directions,
    reveal_range,
    right_vectors,
    weighted_basis,
    weighted_subspace,
    weighted_values,
)


def defect(basis):
    return float(torch.linalg.matrix_norm(basis.mH @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)))


def test_directions_are_the_same_at_each_call_and_global_randomness_is_left_alone():
    state = torch.get_rng_state()
    first, second = [random_directions(5, 3, torch.ones(1, dtype=torch.float64)) for _ in range(2)]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 0.0])
def test_normalizing_is_exact(scale):
    tensor = torch.randn(4, 4, dtype=torch.float64) * scale
    scaled, size, exponent = normalize(tensor)
    assert torch.equal(scaled * 2.0**exponent, tensor)
    assert size == float(torch.linalg.vector_norm(scaled)) <= 40


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_range_of_a_deficient_matrix_is_revealed(dtype):
    matrix = torch.randn(60, 5, dtype=dtype) @ torch.randn(5, 40, dtype=dtype)
    directions, size = torch.randn(40, 20, dtype=dtype), float(torch.linalg.vector_norm(matrix))
    basis, reduced, error = reveal_range(matrix, directions, size)
    assert basis.shape == (60, 5)
    assert defect(basis) < 100 * eps(dtype)
    assert float(torch.linalg.vector_norm(basis @ reduced - matrix)) < 200 * eps(dtype) * size
    assert error < 200 * eps(dtype) * size
    noisy = matrix + 1e3 * eps(dtype) * torch.randn(60, 40, dtype=dtype) * size
    assert reveal_range(noisy, directions, size) is None
    assert reveal_range(torch.randn(60, 40, dtype=dtype), directions, size) is None


@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (6, 6), (5, 1)])
def test_right_vectors(shape):
    matrix = torch.randn(*shape, dtype=torch.complex128)
    values, vectors = right_vectors(matrix)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix))
    assert defect(vectors) < 1e-13
    torch.testing.assert_close(torch.linalg.vector_norm(matrix @ vectors, dim=0), values)


@pytest.mark.parametrize("shape", [(30, 80), (30, 20)])
@pytest.mark.parametrize("rank_of_gram", [30, 7])
def test_weighted_bases_span_the_leading_directions(shape, rank_of_gram):
    half = torch.randn(rank_of_gram, 30, dtype=torch.complex128)
    block = torch.randn(*shape, dtype=torch.complex128)
    gram, weighted = half.mH @ half, half @ block
    exact = torch.linalg.svdvals(weighted)
    values, vectors, product = weighted_values(gram, block)
    torch.testing.assert_close(values[: len(exact)], exact[: len(values)], atol=1e-5, rtol=1e-6)
    basis = weighted_basis(vectors, product, 4)
    assert defect(basis) < 1e-12
    left = float(torch.linalg.vector_norm(weighted - weighted @ basis @ basis.mH))
    best = float(torch.linalg.vector_norm(exact[4:]))
    assert left == pytest.approx(best, rel=1e-9)


def test_subspace_iteration_is_near_the_best():
    half, block = torch.randn(90, 60, dtype=torch.float64), torch.randn(60, 70, dtype=torch.float64)
    gram, weighted = half.mH @ half, half @ block
    near = weighted_subspace(gram, block, random_directions(60, 12, block), 4)
    assert near.shape == (70, 4)
    assert defect(near) < 1e-12
    left = float(torch.linalg.vector_norm(weighted - weighted @ near @ near.mH))
    best = float(torch.linalg.vector_norm(torch.linalg.svdvals(weighted)[4:]))
    assert best <= left <= 1.01 * best
