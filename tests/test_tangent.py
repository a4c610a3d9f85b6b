import pytest
import torch

import ttnet
from tests import dense
from ttnet.errors import ShapeError


def tangent_basis(at: ttnet.TensorTrain) -> torch.Tensor:
    """Columns that span the tangent space, from the derivatives of the dense tensor by every core entry."""
    cores = [core.detach() for core in at.cores]
    derivatives = torch.func.jacrev(
        lambda *args: ttnet.TensorTrain(args).full().reshape(-1), tuple(range(len(cores)))
    )
    return torch.cat([part.reshape(part.shape[0], -1) for part in derivatives(*cores)], 1)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (3, 4, 2, 3)])
def test_projection_is_the_dense_one(shape, device):
    at = ttnet.random_train(shape, 2, seed=0, dtype=torch.float64, device=device)
    vector = ttnet.random_train(shape, 3, seed=1, dtype=torch.float64, device=device)
    basis = tangent_basis(at)
    u, s, _ = torch.linalg.svd(basis, full_matrices=False)
    u = u[:, s > 1e-10 * s[0]]
    expected = u @ (u.T @ vector.full().reshape(-1))
    found = ttnet.tangent_projection(vector, at)
    torch.testing.assert_close(found.full().reshape(-1), expected)
    assert found.ranks[1:-1] == tuple(2 * r for r in at.ranks[1:-1])


def test_projection_of_complex_trains_is_idempotent_and_leaves_the_train():
    at = ttnet.random_train((3, 4, 3), 2, seed=0, dtype=torch.complex128)
    vector = ttnet.random_train((3, 4, 3), 3, seed=1, dtype=torch.complex128)
    once = ttnet.tangent_projection(vector, at)
    twice = ttnet.tangent_projection(once, at)
    assert ttnet.distance(once, twice) < 1e-12 * once.norm()
    assert ttnet.distance(ttnet.tangent_projection(at, at), at) < 1e-12 * at.norm()
    # What is left is orthogonal to the tangent space.
    assert abs(complex((vector - once).dot(once))) < 1e-10 * float(vector.norm()) ** 2


def test_riemannian_gradient_is_the_projected_gradient(device):
    at = ttnet.random_train((3, 4, 2, 3), 2, seed=0, dtype=torch.float64, device=device)
    target = ttnet.random_train((3, 4, 2, 3), 3, seed=1, dtype=torch.float64, device=device)
    found = ttnet.riemannian_gradient(lambda x: 0.5 * (x - target).dot(x - target), at)
    expected = ttnet.tangent_projection(at - target, at)
    assert dense.distance(found.full(), expected.full()) < 1e-10
    assert all(core.requires_grad is False for core in found.cores)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ShapeError):
        ttnet.tangent_projection(ttnet.ones((2, 3)), ttnet.ones((3, 2)))
