import math

import pytest
import torch

from tests import dense
from ttnet.errors import ShapeError
from ttnet.nn.features import balanced_factors, covering_factors, paired_modes, share_norm
from ttnet.random import random_cores

NAMES = ("rows", "columns")


def all_factorizations(number, count):
    if count == 1:
        return {(number,)}
    return {
        tuple(sorted((f, *rest)))
        for f in range(1, number + 1)
        if number % f == 0
        for rest in all_factorizations(number // f, count - 1)
    }


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("number", [1, 2, 7, 12, 36, 96, 97, 128, 360])
def test_balanced_factors_have_the_smallest_sum(number, count):
    factors = balanced_factors(number, count)
    assert list(factors) == sorted(factors)
    assert math.prod(factors) == number
    assert sum(factors) == min(map(sum, all_factorizations(number, count)))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [1, 2, 7, 31, 1000, 30522, 50257])
def test_covering_factors_cover_and_are_nearly_equal(number, count):
    factors = covering_factors(number, count)
    assert len(factors) == count
    assert math.prod(factors) >= number
    assert max(factors) - min(factors) <= 1
    assert math.prod([*factors[:-1], factors[-1] - 1]) < number


def test_modes_are_paired_so_that_the_cores_are_alike():
    assert paired_modes(3072, 768, None, names=NAMES) == ((12, 16, 16), (12, 8, 8))
    assert paired_modes(64, 64, 2, names=NAMES) == ((8, 8), (8, 8))
    assert paired_modes((2, 8, 4), 30, None, names=NAMES) == ((2, 8, 4), (5, 2, 3))
    assert paired_modes(30, (2, 8, 4), None, names=NAMES) == ((5, 2, 3), (2, 8, 4))
    assert paired_modes((2, 3), (4, 5), None, names=NAMES) == ((2, 3), (4, 5))
    assert paired_modes(31, 4, 2, names=NAMES, padded=True) == ((6, 6), (2, 2))


@pytest.mark.parametrize(
    ("rows", "columns", "count", "message"),
    [
        (0, 4, None, r"^rows: expected an integer of at least 1, or a sequence of modes .* got 0"),
        (4, (2, 0), None, r"^columns: expected .*got \(2, 0\)"),
        (4, 2.5, None, r"^columns: expected .*got 2.5"),
        ((), 4, None, r"^rows: expected"),
        ((2, 2), (2, 2, 2), None, r"^rows, columns: expected as many modes .*pad the shorter"),
        ((2, 2), 4, 3, r"with num_cores=3"),
        (4, 4, 0, r"^num_cores: expected an integer of at least 1, got 0"),
    ],
)
def test_what_are_no_modes_is_refused(rows, columns, count, message):
    with pytest.raises(ShapeError, match=message):
        paired_modes(rows, columns, count, names=NAMES)


def test_sharing_the_norm_keeps_the_tensor(device):
    cores = random_cores((3, 4, 5), 3, seed=0, dtype=torch.float64, device=device)
    cores = [cores[0] * 1e3, cores[1], cores[2] * 1e-5]
    shared = share_norm(cores)
    assert dense.distance(dense.full(shared), dense.full(cores)) <= 1e-14 * dense.norm(dense.full(cores))
    norms = [float(core.norm()) for core in shared]
    assert max(norms) == pytest.approx(min(norms))


def test_a_zero_core_stays_as_it_is():
    cores = [torch.zeros(1, 2, 1), torch.ones(1, 3, 1)]
    assert all(torch.equal(a, b) for a, b in zip(share_norm(cores), cores, strict=True))
