import numpy as np
import pytest
import torch

from tests import dense
from tests.strategies import DTYPES, STORAGE_DTYPES, cores_of
from ttnet import Truncation
from ttnet.errors import ConfigError, ShapeError
from ttnet.metric import factor_metric
from ttnet.rounding import truncate

METHODS = ("svd", "qr-svd", "gram", "randomized", "auto")


def positive(size, dtype, rank=None):
    """A random positive (semi)definite matrix."""
    half = torch.randn(rank or 2 * size, size, dtype=dtype)
    return half.mH @ half / size


def norm_in(metric, tensor):
    """sqrt(vec(x)^H (C_0 x C_1 x ...) vec(x)), densely."""
    weighted = tensor
    for mode, matrix in enumerate(metric):
        if matrix is not None:
            weighted = np.moveaxis(np.tensordot(dense.array(matrix), weighted, (1, mode)), 0, mode)
    return float(np.sqrt(max((tensor.conj() * weighted).sum().real, 0.0)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_two_modes_give_the_weighted_svd(method, dtype):
    cores = cores_of("random", (7, 8), [6], dtype, 0)
    metric = [positive(7, dtype), positive(8, dtype)]
    found, report = truncate(cores, Truncation(max_rank=3), metric=metric, method=method)
    left, right = [np.linalg.cholesky(matrix.numpy()).conj().T for matrix in metric]
    spectrum = np.linalg.svd(left @ dense.full(cores).astype(complex) @ right.T, compute_uv=False)
    best = dense.norm(spectrum[3:])
    error = norm_in(metric, dense.full(found) - dense.full(cores))
    slack = 1.2 if method == "randomized" else 1 + 1e-9
    assert best * (1 - 1e-9) <= error <= best * slack
    assert error == pytest.approx(report.error_estimate, rel=1e-6)
    assert report.norm == pytest.approx(norm_in(metric, dense.full(cores)), rel=1e-9)
    plain, _ = truncate(cores, Truncation(max_rank=3))
    assert error < norm_in(metric, dense.full(plain) - dense.full(cores))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_the_bound_holds_in_the_metric(method, dtype):
    cores = cores_of("random", (4, 3, 4, 3), [4, 6, 3], dtype, 1)
    working = torch.float32 if dtype == torch.bfloat16 else dtype
    # The zeros are exact: of eigenvalues that are roundoff, a norm would show the square root.
    blind = torch.diag(torch.tensor([2, 0, 1, 0], dtype=working))
    metric = [positive(4, working), None, blind, positive(3, working)]
    for truncation in (Truncation(max_rank=2), Truncation(max_rank=3, rtol=0.2), Truncation(max_rank=9)):
        found, report = truncate(cores, truncation, metric=metric, method=method)
        error = norm_in(metric, dense.full(found) - dense.full(cores))
        assert error <= report.error_bound
        assert found[0].dtype == dtype
        assert report.norm == pytest.approx(norm_in(metric, dense.full(cores)), rel=1e-1)


def test_a_tolerance_is_one_of_the_metric():
    cores = cores_of("random", (5, 5, 5, 5), [5, 9, 5], torch.float64, 2)
    metric = [torch.diag(torch.tensor([1e4, 1, 1e-2, 1e-2, 1e-2], dtype=torch.float64))] * 4
    found, report = truncate(cores, Truncation(rtol=1e-2), metric=metric)
    assert norm_in(metric, dense.full(found) - dense.full(cores)) <= 1e-2 * report.norm
    assert max(report.ranks_after) < 5 < max(truncate(cores, Truncation(rtol=1e-2))[1].ranks_after)


def test_what_a_semidefinite_metric_does_not_see_is_dropped():
    cores = cores_of("random", (3, 4), [3], torch.float64, 0)
    metric = [torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)), None]
    found, _ = truncate(cores, Truncation(), metric=metric)
    expected = dense.full(cores)
    expected[2] = 0
    assert dense.distance(dense.full(found), expected) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_roots(dtype):
    core = cores_of("random", (5,), [], dtype, 0)
    for matrix in (positive(5, dtype), positive(5, dtype, rank=2)):
        (root,) = factor_metric([matrix], core)
        torch.testing.assert_close(root.factor.mH @ root.factor, matrix, rtol=1e-4, atol=1e-5)
        eye = torch.eye(len(root.factor), dtype=dtype)
        torch.testing.assert_close(root.factor @ root.inverse, eye, rtol=1e-3, atol=1e-3)
    assert root.factor.shape == (2, 5)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        ([None], ShapeError, "metric: expected one matrix or None for each of 2 modes, got 1"),
        ([None, torch.eye(2)], ShapeError, r"metric: expected shape \(3, 3\) for mode 1, got \(2, 2\)"),
        ([torch.diag(torch.tensor([1.0, -1.0, 1])), None], ConfigError, "no negative eigenvalue for mode 0"),
        ([torch.ones(3, 3).triu(), None], ConfigError, "metric: expected a Hermitian matrix for mode 0"),
        ([torch.zeros(3, 3), None], ConfigError, "finite matrix other than zero for mode 0"),
        ([torch.eye(3).to(torch.complex64), None], ConfigError, "expected a real matrix for mode 0"),
    ],
)
def test_what_is_no_metric_is_refused(metric, error, message):
    with pytest.raises(error, match=message):
        truncate(cores_of("random", (3, 3), [2], torch.float64, 0), Truncation(), metric=metric)


def test_the_metric_can_be_differentiated():
    leaves = [core.requires_grad_() for core in cores_of("random", (3, 4), [3], torch.float64, 0)]
    metric = [positive(3, torch.float64), None]
    assert torch.autograd.gradcheck(
        lambda *c: torch.tensordot(*truncate(c, Truncation(max_rank=2), metric=metric)[0], 1), leaves
    )
