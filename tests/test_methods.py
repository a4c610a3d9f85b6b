import math

import pytest
import torch

from tests.strategies import cores_of, eps
from ttnet import Truncation
from ttnet.errors import ConfigError, NonFiniteError, RankError
from ttnet.methods import check_method, choose, is_loose, scale_core
from ttnet.rounding import truncate


@pytest.mark.parametrize(
    ("truncation", "dtype", "loose"),
    [
        (Truncation(max_rank=3), torch.float64, True),
        (Truncation(rtol=1e-6), torch.float64, True),
        (Truncation(rtol=1e-9), torch.float64, False),
        (Truncation(rtol=1e-6), torch.float32, False),
        (Truncation(rtol=1e-2), torch.complex64, True),
        (Truncation(max_rank=3, cutoff=1e-20), torch.float64, False),
        (Truncation(), torch.float64, False),
        (Truncation(max_rank=3, degeneracy_tol=1e-6), torch.float64, False),
    ],
)
def test_auto_takes_gram_where_it_resolves_what_is_asked(truncation, dtype, loose):
    assert is_loose(truncation, dtype) is loose
    assert choose("auto", truncation, dtype, 10**6) == ("gram" if loose else "qr-svd")
    assert choose("auto", truncation, dtype, 8) == "svd"
    assert choose("randomized", truncation, dtype, 8) == "randomized"


def test_methods_are_checked():
    check_method("gram", Truncation(), plain=False)
    with pytest.raises(ConfigError, match=r"method: expected one of \('auto', 'svd', .*, got 'eig'"):
        check_method("eig", Truncation(), plain=False)
    with pytest.raises(ConfigError, match="method: expected 'auto' or 'svd' under autograd and vmap"):
        check_method("gram", Truncation(), plain=True)
    with pytest.raises(RankError, match="max_rank: expected a number for method 'randomized', got None"):
        check_method("randomized", Truncation(rtol=0.1), plain=False)


@pytest.mark.parametrize("scale", [1.0, 5e-324, 1e-300, 1e300, 0.0])
def test_scaling_a_core_is_exact(scale):
    core = torch.ones(2, 3, 2, dtype=torch.float64) * scale
    scaled, exponent = scale_core(core)
    assert scaled.flatten()[0].item() == (math.ldexp(scale, -int(exponent)) if scale else 0.0)
    assert scale == 0 or 0.1 < float(scaled.abs().amax()) < 10
    with pytest.raises(NonFiniteError, match="matrix: expected finite entries"):
        scale_core(torch.full((1, 2, 1), torch.inf))


@pytest.mark.parametrize("method", ["qr-svd", "gram", "randomized"])
def test_a_result_out_of_range_is_refused(method):
    cores = [core * 1e30 for core in cores_of("random", (4, 4), [4], torch.float32, 0)]
    with pytest.raises(NonFiniteError, match=r"train: expected a norm within the range of torch\.float32"):
        truncate(cores, Truncation(max_rank=2), method=method)


@pytest.mark.parametrize("method", ["qr-svd", "gram", "randomized", "svd"])
def test_a_long_train_neither_overflows_nor_loses_its_error(method):
    cores = cores_of("random", (4,) * 60, [12] * 59, torch.float32, 0)
    cores = [core / (4 * 12) ** 0.5 for core in cores]
    _, report = truncate(cores, Truncation(max_rank=3), method=method)
    _, expected = truncate([core.double() for core in cores], Truncation(max_rank=3), method="svd")
    slack = 0.05 if method == "randomized" else 1e-2
    assert report.relative_error == pytest.approx(expected.relative_error, rel=slack)
    assert report.norm == pytest.approx(expected.norm, rel=1e4 * eps(torch.float32))
