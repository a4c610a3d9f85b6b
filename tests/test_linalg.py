import math

import numpy as np
import pytest
import torch

from tests import dense
from tests.strategies import DTYPES, eps
from ttnet import linalg
from ttnet.errors import DTypeError, NonFiniteError

SHAPES = [(1, 1), (5, 3), (3, 5), (4, 4), (1, 6), (6, 1)]


def matrices(shape, dtype, device="cpu"):
    """A generic matrix, one of rank one, one with a zero column and the zero matrix."""
    generic = torch.randn(*shape, dtype=dtype)
    gap = generic.clone()
    gap[:, 0] = 0
    found = [generic, generic[:, :1] * generic[:1], gap, torch.zeros_like(generic)]
    return [matrix.to(device) for matrix in found]


def assert_orthonormal_columns(matrix):
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    assert (matrix.mH @ matrix - identity).abs().max() < 20 * eps(matrix.dtype)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
)
def test_half_precision_is_factorized_in_single(dtype, expected):
    assert linalg.working_dtype(dtype) is expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_precision_is_factorized_as_it_is(dtype):
    assert linalg.working_dtype(dtype) is dtype


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_other_dtypes_are_refused_with_a_remedy(dtype):
    with pytest.raises(DTypeError, match=rf"dtype: .*got {dtype}; convert .*\.to\(") as caught:
        linalg.working_dtype(dtype)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_positive_qr(shape, dtype, device):
    for matrix in matrices(shape, dtype, device):
        q, r = linalg.positive_qr(matrix)
        assert q.shape == (shape[0], min(shape))
        assert r.shape == (min(shape), shape[1])
        assert_orthonormal_columns(q)
        torch.testing.assert_close(q @ r, matrix)
        assert (r.tril(-1) == 0).all()
        diagonal = torch.diagonal(r)
        assert (diagonal.real >= 0).all()
        assert (diagonal.imag == 0).all() if dtype.is_complex else True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_positive_lq(shape, dtype):
    for matrix in matrices(shape, dtype):
        lower, q = linalg.positive_lq(matrix)
        assert lower.shape == (shape[0], min(shape))
        assert_orthonormal_columns(q.mH)
        torch.testing.assert_close(lower @ q, matrix)
        assert (lower.triu(1) == 0).all()
        assert (torch.diagonal(lower).real >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_qr_fixes_the_gauge(dtype):
    q, r = linalg.positive_qr(torch.randn(7, 4, dtype=dtype))
    phases = torch.randn(4, dtype=dtype).sgn()
    again_q, again_r = linalg.positive_qr((q * phases) @ (phases.conj().unsqueeze(1) * r))
    torch.testing.assert_close(again_q, q)
    torch.testing.assert_close(again_r, r)


@pytest.mark.parametrize("dtype", DTYPES)
def test_qr_and_svd_take_batches(dtype):
    batch = torch.randn(2, 3, 5, 4, dtype=dtype)
    q, r = linalg.positive_qr(batch)
    torch.testing.assert_close(q @ r, batch)
    u, s, vh = linalg.svd(batch)
    torch.testing.assert_close((u * s.unsqueeze(-2)) @ vh, batch)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30])
def test_q_is_orthonormal_at_any_scale(scale):
    matrix = torch.randn(6, 1) @ torch.randn(1, 3) * scale
    assert_orthonormal_columns(linalg.positive_qr(matrix)[0])


def test_positive_qr_removes_any_phase(monkeypatch):
    genuine = torch.linalg.qr
    phases = torch.tensor([1j, -1.0, 0.6 + 0.8j], dtype=torch.complex128)

    def other_gauge(matrix):
        q, r = genuine(matrix)
        return q * phases, phases.conj().unsqueeze(1) * r

    matrix = torch.randn(5, 3, dtype=torch.complex128)
    expected = linalg.positive_qr(matrix)
    monkeypatch.setattr(torch.linalg, "qr", other_gauge)
    for found, truth in zip(linalg.positive_qr(matrix), expected, strict=True):
        torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_and_its_fallback(shape, dtype, device):
    for matrix in matrices(shape, dtype, device):
        tall = shape[0] >= shape[1]
        for factorize in (linalg.svd, linalg._svd_by_qr) if tall else (linalg.svd,):
            u, s, vh = factorize(matrix)
            assert u.shape == (shape[0], min(shape))
            assert vh.shape == (min(shape), shape[1])
            assert_orthonormal_columns(u)
            assert_orthonormal_columns(vh.mH)
            assert (s >= 0).all()
            assert (s.diff() <= 0).all()
            torch.testing.assert_close((u * s) @ vh, matrix)
            truth = np.linalg.svd(dense.unfolding(dense.array(matrix), 0), compute_uv=False)
            np.testing.assert_allclose(s.cpu(), truth, rtol=0, atol=50 * eps(dtype) * max(1.0, truth[0]))


def failing_svd(monkeypatch, outcome):
    """Let the first call of the driver fail as it does on a bad day."""
    genuine, calls = torch.linalg.svd, []

    def svd(matrix, **options):
        calls.append(matrix)
        if len(calls) > 1:
            return genuine(matrix, **options)
        if outcome == "raise":
            raise torch.linalg.LinAlgError("failed to converge")
        return tuple(factor * torch.nan for factor in genuine(matrix, **options))

    monkeypatch.setattr(torch.linalg, "svd", svd)
    return calls


@pytest.mark.parametrize("outcome", ["raise", "nan"])
@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_svd_survives_a_driver_that_gives_up(monkeypatch, outcome, shape):
    matrix = torch.randn(shape, dtype=torch.complex128)
    calls = failing_svd(monkeypatch, outcome)
    u, s, vh = linalg.svd(matrix)
    assert len(calls) == 2
    torch.testing.assert_close((u * s) @ vh, matrix)


def test_a_long_single_precision_svd_is_accurate():
    matrix = 1 / (1 + torch.rand(4, 1, dtype=torch.float64) + torch.rand(200000, dtype=torch.float64))
    u, s, vh = linalg.svd(matrix.float())
    error = torch.linalg.matrix_norm((u * s).double() @ vh.double() - matrix)
    assert error < 2e-5 * torch.linalg.matrix_norm(matrix)


def test_nothing_is_recorded_without_a_gradient():
    matrix = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        factors = (*linalg.svd(matrix), *linalg.positive_qr(matrix))
    assert not any(factor.requires_grad for factor in factors)
    assert all(factor.requires_grad for factor in (*linalg.svd(matrix), *linalg.positive_qr(matrix)))


def test_vmap_gives_what_a_batch_gives():
    batch = torch.randn(3, 4, 5, dtype=torch.float64)
    for factorize in (linalg.svd, linalg.positive_qr, linalg.positive_lq):
        for found, expected in zip(torch.func.vmap(factorize)(batch), factorize(batch), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_svd_of_non_finite_entries_is_refused(bad):
    matrix = torch.ones(4, 3)
    matrix[1, 2] = bad
    with pytest.raises(
        NonFiniteError, match=r"matrix: expected finite entries .*\(4, 3\).*look for"
    ) as caught:
        linalg.svd(matrix)
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30])
def test_frobenius_norm_neither_overflows_nor_underflows(dtype, scale):
    tensor = torch.randn(3, 4, 2, dtype=dtype) * scale
    assert float(linalg.frobenius_norm(tensor)) == pytest.approx(dense.norm(dense.array(tensor)), rel=1e-5)


def test_frobenius_norm_differentiates_also_at_zero():
    tensor = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(linalg.frobenius_norm, tensor)
    zero = torch.zeros(3, requires_grad=True)
    linalg.frobenius_norm(zero).backward()
    assert (zero.grad == 0).all()


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_no_factor_is_conjugated_lazily(shape):
    matrix = torch.randn(*shape, dtype=torch.complex128)
    for factors in (linalg.positive_qr(matrix), linalg.positive_lq(matrix), linalg.svd(matrix)):
        assert not any(factor.is_conj() for factor in factors)
        assert all(factor.numpy().size for factor in factors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (6, 6)])
def test_a_qr_is_right_at_every_scale(dtype, shape):
    matrix = torch.randn(*shape, dtype=dtype)
    info = torch.finfo(dtype)
    reach = int(math.log10(info.max)) - 2
    for exponent in [*range(-reach, reach, max(1, reach // 40)), reach / 2 - 0.5, reach / 2, reach / 2 + 0.5]:
        scaled = matrix * 10.0**exponent
        q, r = linalg.positive_qr(scaled)
        assert_orthonormal_columns(q)
        largest = float(scaled.abs().amax())
        torch.testing.assert_close(q @ (r / largest), scaled / largest)
