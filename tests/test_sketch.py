import pytest
import torch

from tests import dense
from tests.strategies import DTYPES, cores_of
from ttnet import Truncation
from ttnet.algebra import subtract
from ttnet.implicit import DenseSite
from ttnet.rounding import truncate
from ttnet.sketch import sketch


def sketched(cores, truncation):
    one = torch.ones(1, 1, dtype=cores[0].dtype)
    return sketch([DenseSite(core) for core in cores], truncation, start=one, stop=one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_is_measured(dtype):
    cores = cores_of("random", (7, 7, 7, 7), [7, 40, 7], dtype, 0)
    kept, report = sketched(cores, Truncation(max_rank=3)).at_scale()
    error = dense.distance(dense.full(kept), dense.full(cores))
    assert dense.is_canonical(kept, 0)
    assert error == pytest.approx(report.error_estimate, rel=1e-4)
    assert error <= report.error_bound
    assert error <= 1.1 * truncate(cores, Truncation(max_rank=3), method="svd")[1].error_estimate


def test_a_tolerance_that_is_missed_is_told():
    cores = cores_of("random", (7, 7, 7, 7), [7, 40, 7], torch.float64, 0)
    assert not sketched(cores, Truncation(max_rank=3, rtol=1e-3)).resolved
    assert not sketched(cores, Truncation(max_rank=3, cutoff=1e-3)).resolved
    assert sketched(cores, Truncation(max_rank=7, rtol=0.9)).resolved


def test_a_difference_of_near_trains_is_left_to_the_triangles():
    a = cores_of("random", (5, 5, 5), [5, 5], torch.float64, 0)
    assert sketched(subtract(a, a), Truncation(max_rank=2)) is None
