"""The gradients of `linalg.svd` and `linalg.positive_qr`: exact where they exist, finite everywhere."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests import dense
from tests.strategies import DTYPES
from ttnet import linalg

EXACT = (torch.float64, torch.complex128)
SHAPES = [(4, 3), (3, 4), (3, 3), (1, 3), (3, 1)]


def low_rank(matrix, rank):
    u, s, vh = linalg.svd(matrix)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


def projectors(matrix, rank):
    u, s, vh = linalg.svd(matrix)
    return u[..., :rank] @ u[..., :rank].mH, vh[..., :rank, :].mH @ vh[..., :rank, :], s


def with_spectrum(values, shape, dtype=torch.float64):
    k = len(values)
    u, v = (torch.linalg.qr(torch.randn(n, k, dtype=dtype)).Q for n in shape)
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mH


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_with_a_simple_spectrum(shape, dtype):
    matrix = torch.randn(*shape, dtype=dtype, requires_grad=True)
    rank = min(2, *shape)
    for function in (low_rank, projectors):
        assert gradcheck(lambda m, f=function: f(m, rank), matrix)
        assert gradgradcheck(lambda m, f=function: f(m, rank), matrix, fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_factor_of_a_real_svd_is_differentiated(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(linalg.svd, matrix)
    assert gradgradcheck(linalg.svd, matrix, fast_mode=True)


@pytest.mark.parametrize("dtype", EXACT)
def test_batches(dtype):
    matrix = torch.randn(2, 4, 3, dtype=dtype, requires_grad=True)
    assert gradcheck(lambda m: low_rank(m, 2), matrix)
    assert gradcheck(linalg.positive_qr, matrix)
    assert gradcheck(linalg.positive_lq, matrix)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (4, 4)])
@pytest.mark.parametrize(
    "values", [(2, 2, 1, 0.5), (2, 2, 2, 0.5), (3, 1, 1, 0.2), (3, 2, 1, 1), (1, 1, 0, 0)]
)
@pytest.mark.parametrize("gap", [0.0, 1e-13])
def test_equal_singular_values_that_stay_together(shape, values, gap, dtype):
    values = [value * (1 + k * gap) for k, value in enumerate(values)]
    matrix = with_spectrum(values, shape, dtype).requires_grad_()
    for rank in (2, 3):
        if values[rank - 1] > 1.5 * values[rank]:
            assert gradcheck(lambda m, rank=rank: low_rank(m, rank), matrix, atol=1e-6, fast_mode=True)
            basis = lambda m, rank=rank: projectors(m, rank)[0]  # noqa: E731
            assert gradcheck(basis, matrix, atol=1e-6, fast_mode=True)


def test_the_gradient_of_a_projection_on_equal_values_in_closed_form():
    matrix = with_spectrum((2, 2, 0.5), (4, 3)).requires_grad_()
    slope = torch.randn(4, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((low_rank(matrix, 2) * slope).sum(), matrix)
    truth = dense.gradient(lambda m: (low_rank(m, 2) * slope).sum(), matrix.detach())
    torch.testing.assert_close(found, truth, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_identity(shape, dtype):
    matrix = torch.randn(*shape, dtype=dtype, requires_grad=True)
    slope = torch.randn(*shape, dtype=dtype)
    (found,) = torch.autograd.grad(low_rank(matrix, 9), matrix, slope)
    torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4, 3)])
@pytest.mark.parametrize("kind", ["zero", "ones", "repeated", "zero column", "tiny", "huge"])
def test_first_and_second_gradients_are_finite(kind, shape, dtype, device):
    matrix = torch.ones(*shape, dtype=dtype, device=device)
    if kind == "zero":
        matrix = torch.zeros_like(matrix)
    elif kind == "repeated":
        matrix = torch.eye(*shape[-2:], dtype=dtype, device=device).expand(shape).clone()
    elif kind == "zero column":
        matrix = torch.randn_like(matrix)
        matrix[..., 0] = 0
    elif kind in ("tiny", "huge"):
        exponent = 10 if torch.finfo(dtype).eps > 1e-10 else 100
        matrix = torch.randn_like(matrix) * 10.0 ** (exponent if kind == "huge" else -exponent)
    matrix.requires_grad_()
    rank = min(2, *shape)
    factors = [low_rank(matrix, rank), *projectors(matrix, rank)]
    factors += [factor.abs() for factor in (*linalg.positive_qr(matrix), *linalg.positive_lq(matrix))]
    loss = sum(factor.real.sum() for factor in factors)
    (first,) = torch.autograd.grad(loss, matrix, create_graph=True)
    assert torch.isfinite(first).all()
    if kind not in ("tiny", "huge"):
        (second,) = torch.autograd.grad(first.abs().sum(), matrix)
        assert torch.isfinite(second).all()


def test_singular_values_of_the_zero_matrix_have_no_slope():
    matrix = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(linalg.svd(matrix)[1].sum(), matrix)
    assert not found.any()


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
def test_positive_qr_of_full_rank(shape, dtype):
    matrix = torch.randn(*shape, dtype=dtype, requires_grad=True)
    for factorize in (linalg.positive_qr, linalg.positive_lq):
        assert gradcheck(factorize, matrix)
        assert gradgradcheck(factorize, matrix, fast_mode=True)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3)])
def test_products_of_a_deficient_qr(shape, dtype):
    left, right = torch.randn(shape[0], 2, dtype=dtype), torch.randn(2, shape[1], dtype=dtype)
    matrix = (left @ right).requires_grad_()
    slope = torch.randn(*shape, dtype=dtype)
    q, r = linalg.positive_qr(matrix)
    (found,) = torch.autograd.grad(q @ r, matrix, slope)
    assert torch.isfinite(found).all()
    # Variations of either factor keep the rank.
    torch.testing.assert_close(found @ right.mH, slope @ right.mH)
    if shape[0] <= shape[1]:
        torch.testing.assert_close(found, slope)
        torch.testing.assert_close(left.mH @ found, left.mH @ slope)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5)])
def test_the_product_of_the_qr_of_zero_is_the_identity(shape):
    matrix = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(shape, dtype=torch.float64)
    q, r = linalg.positive_qr(matrix)
    torch.testing.assert_close(torch.autograd.grad(q @ r, matrix, slope)[0], slope)


@pytest.mark.parametrize("function", [lambda m: low_rank(m, 2), lambda m: linalg.positive_qr(m)[1]])
def test_vmap_differentiates_sample_by_sample(function):
    batch = torch.randn(4, 3, 5, dtype=torch.float64)
    batch[1] = 0
    batch[2] = batch[2, :1]

    def loss(matrix):
        return function(matrix).pow(3).sum()

    expected = torch.stack([torch.func.grad(loss)(matrix) for matrix in batch])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), expected)
    summed = torch.func.grad(lambda m: torch.func.vmap(loss)(m).sum())(batch)
    torch.testing.assert_close(summed, expected)
