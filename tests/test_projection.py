from dataclasses import replace

import pytest
import torch

from tests import dense
from tests.strategies import cores_of
from ttnet import Truncation
from ttnet.algebra import add, scale, subtract
from ttnet.implicit import DenseSite
from ttnet.projection import look_left, project


def projection(cores, truncation, *, gram):
    one = torch.ones(1, 1, dtype=cores[0].dtype)
    found = project([DenseSite(core) for core in cores], truncation, start=one, stop=one, gram=gram)
    if found is None:
        return None
    cores, report = found.at_scale()
    return replace(found, cores=cores, report=report, exponent=0.0)


def test_what_depends_to_the_last_bit_is_kept_as_a_triangle_and_the_rest_as_gram_matrices():
    cores = cores_of("random", (5,) * 6, [5, 10, 10, 10, 5], torch.float64, 0)
    multiples = cores
    for factor in (2.0, -0.5, 3.0):
        multiples = add(multiples, scale(cores, factor))
    one = torch.ones(1, 1, dtype=torch.float64)
    left = look_left([DenseSite(core) for core in multiples], one, gram=True)
    assert (left.zone, left.grams, left.widths) == (5, [], [5, 10, 10, 10, 5])
    other = add(multiples, cores_of("random", (5,) * 6, [5, 40, 40, 40, 5], torch.float64, 1))
    left = look_left([DenseSite(core) for core in other], one, gram=True)
    assert left.zone == 2  # 25 rows for 80 columns are a triangle of their own
    assert len(left.grams) == 3
    found = projection(multiples, Truncation(max_rank=4), gram=True)
    truth = dense.full(multiples)
    assert dense.distance(dense.full(found.cores), truth) <= found.report.error_bound
    assert found.report.error_bound < found.report.error_estimate * (1 + 1e-6)


def test_gram_says_when_it_cannot_resolve_what_is_asked():
    a = cores_of("random", (5, 5, 5, 5), [5, 9, 5], torch.float64, 0)
    b = [core + 1e-10 * torch.randn_like(core) for core in a]
    small = subtract(a, b)
    assert projection(small, Truncation(max_rank=3), gram=True) is None
    exact = projection(small, Truncation(max_rank=3), gram=False)
    error = dense.distance(dense.full(exact.cores), dense.full(small))
    assert error <= exact.report.error_bound
    assert error == pytest.approx(exact.report.error_estimate, rel=1e-3)
    graded = cores_of("graded", (5, 5, 5, 5), [5, 9, 5], torch.float64, 0)
    found = projection(graded, Truncation(rtol=1e-9), gram=True)
    assert found is None or not found.resolved
    assert projection(graded, Truncation(rtol=1e-3), gram=True).resolved


def test_a_zero_train_is_left_to_the_triangles():
    cores = [core * 0 for core in cores_of("random", (5, 5, 5, 5), [5, 20, 5], torch.float64, 0)]
    assert projection(cores, Truncation(max_rank=3), gram=True) is None
    found = projection(cores, Truncation(max_rank=3), gram=False)
    assert found.report.norm == found.report.error_bound == 0.0
