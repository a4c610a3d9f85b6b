import dataclasses
import math
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import spectra
from ttnet import Truncation, TruncationReport
from ttnet.errors import ConfigError, RankError, TTNetError
from ttnet.truncation import check_truncation, select_rank, tail_weights


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_rank": 0}, RankError, "max_rank: expected an integer of at least 1, got 0"),
        ({"max_rank": -3}, RankError, "max_rank: .*got -3"),
        ({"max_rank": True}, RankError, "max_rank: .*got True"),
        ({"max_rank": 2.5}, RankError, "max_rank: .*got 2.5"),
        ({"max_rank": "3"}, RankError, "max_rank: .*got '3'"),
        ({"max_rank": [4, 0]}, RankError, "max_rank: .*got 0"),
        ({"max_rank": [4, 2.0]}, RankError, "max_rank: .*got 2.0"),
        ({"max_rank": [4, True]}, RankError, "max_rank: .*got True"),
        ({"min_rank": 0}, RankError, "min_rank: .*got 0"),
        ({"min_rank": 1.5}, RankError, "min_rank: .*got 1.5"),
        ({"min_rank": None}, RankError, "min_rank: .*got None"),
        ({"min_rank": 5, "max_rank": 4}, RankError, "min_rank: expected at most max_rank=4, got 5; lower it"),
        (
            {"min_rank": 5, "max_rank": [8, 4]},
            RankError,
            r"min_rank: expected at most max_rank=\(8, 4\), got 5",
        ),
        *[
            ({name: bad}, ConfigError, f"{name}: expected a finite number of at least 0, got ")
            for name in ("cutoff", "rtol", "atol", "svd_min", "degeneracy_tol")
            for bad in (-1e-9, math.inf, math.nan, "1e-3", 1j, True, np.bool_(True), torch.tensor([1e-3]))
        ],
        ({"cutoff": None}, ConfigError, "cutoff: .*got None"),
        ({"svd_min": None}, ConfigError, "svd_min: .*got None"),
    ],
)
def test_bad_options_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        Truncation(**options)
    assert isinstance(caught.value, TTNetError)
    assert isinstance(caught.value, ValueError)


def test_truncation_is_a_value():
    truncation = Truncation(max_rank=[4, 2], rtol=1e-3)
    assert truncation == Truncation(max_rank=(4, 2), rtol=1e-3)
    assert hash(truncation) == hash(Truncation(max_rank=(4, 2), rtol=1e-3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        truncation.rtol = 1.0
    with pytest.raises(TypeError):
        Truncation(4)


def test_integers_of_numpy_are_integers():
    assert Truncation(max_rank=np.int64(4), cutoff=np.float64(0.5)) == Truncation(max_rank=4, cutoff=0.5)
    assert Truncation(max_rank=np.array([4, 2])) == Truncation(max_rank=[4, 2])
    assert type(Truncation(max_rank=np.int64(4)).max_rank) is int
    assert Truncation(min_rank=np.int32(2)) == Truncation(min_rank=2)


def test_numbers_of_numpy_and_torch_are_numbers():
    found = Truncation(
        max_rank=torch.tensor([4, 2]), rtol=np.float32(0.5), atol=torch.tensor(0.25), cutoff=np.array(0.125)
    )
    assert found == Truncation(max_rank=[4, 2], rtol=0.5, atol=0.25, cutoff=0.125)
    assert hash(found) == hash(Truncation(max_rank=[4, 2], rtol=0.5, atol=0.25, cutoff=0.125))
    assert type(found.rtol) is type(found.atol) is float
    assert Truncation(max_rank=torch.tensor(3)) == Truncation(max_rank=3)
    with pytest.raises(RankError, match=r"max_rank: .*got 2.0"):
        Truncation(max_rank=torch.tensor([2.0, 2.0]))


def test_what_is_no_truncation_is_named():
    check_truncation(Truncation())
    for bad, remedy in ((3, "max_rank=3"), (np.int64(3), "max_rank=3"), (0.1, "rtol=0.1"), ("x", "...")):
        with pytest.raises(ConfigError, match=re.escape(f"write Truncation({remedy})") + "$"):
            check_truncation(bad)


def test_each_bond_takes_its_cap():
    truncation = Truncation(max_rank=[4, 2, 3], rtol=1e-3)
    assert [truncation.at_bond(k, 3) for k in range(3)] == [
        Truncation(max_rank=r, rtol=1e-3) for r in (4, 2, 3)
    ]
    assert Truncation(max_rank=4).at_bond(1, 3) == Truncation(max_rank=4)
    with pytest.raises(RankError, match="max_rank: expected one rank for each of the 2 bonds, got 3: "):
        truncation.at_bond(0, 2)


@pytest.mark.parametrize(
    ("options", "is_fixed", "bounds_error"),
    [
        ({}, True, False),
        ({"max_rank": 3, "min_rank": 2}, True, False),
        ({"cutoff": 1e-3}, False, False),
        ({"svd_min": 1e-3}, False, False),
        ({"degeneracy_tol": 0.0}, False, False),
        ({"rtol": 1e-3}, False, True),
        ({"atol": 1e-3}, False, True),
        ({"rtol": 0.0}, True, False),
    ],
)
def test_what_a_truncation_depends_on(options, is_fixed, bounds_error):
    truncation = Truncation(**options)
    assert truncation.is_fixed is is_fixed
    assert truncation.bounds_error is bounds_error


def test_budget_is_the_square_of_the_stricter_tolerance():
    assert Truncation().weight_budget(5.0) == math.inf
    assert Truncation(rtol=0.1).weight_budget(5.0) == pytest.approx(0.25)
    assert Truncation(rtol=0.1, atol=0.2).weight_budget(5.0) == pytest.approx(0.04)
    assert Truncation(rtol=0.1, atol=0.9).weight_budget(5.0) == pytest.approx(0.25)
    assert Truncation(atol=1e200).weight_budget(5.0) == sys.float_info.max


@given(spectra())
def test_tail_weights(values):
    tails = tail_weights(values.to(torch.float32))
    assert tails.dtype == torch.float64
    squares = [float(v) ** 2 for v in values.to(torch.float32)]
    np.testing.assert_allclose(tails, [math.fsum(squares[k:]) for k in range(len(squares) + 1)], rtol=1e-12)


def naive_rank(values, truncation, max_weight):
    """The documented rule, read aloud."""
    values = values.tolist()
    count, total = len(values), math.fsum(v * v for v in values)
    cap = min(count, truncation.max_rank or count)

    def meets(rank):
        weight = math.fsum(v * v for v in values[rank:])
        return (
            weight <= max_weight and (not truncation.cutoff or weight <= truncation.cutoff * total)
        ) or rank == count

    tolerances = truncation.cutoff or truncation.svd_min or math.isfinite(max_weight)
    rank = (
        next(r for r in range(count + 1) if meets(r))
        if truncation.cutoff or math.isfinite(max_weight)
        else count
    )
    if truncation.svd_min:
        rank = min(rank, sum(0 < v >= truncation.svd_min * math.sqrt(total) for v in values))
    rank = min(max(rank, truncation.min_rank if tolerances else rank, 1), cap)
    if truncation.degeneracy_tol is None:
        return rank
    together = rank
    while (
        together < count
        and 0 < values[together - 1] <= values[together] + truncation.degeneracy_tol * values[together - 1]
    ):
        together += 1
    return together if together <= cap else rank


@given(
    values=spectra(),
    max_rank=st.none() | st.integers(1, 8),
    min_rank=st.integers(1, 8),
    cutoff=st.sampled_from([0.0, 1e-20, 1e-3, 0.3, 0.9, 2.0]),
    svd_min=st.sampled_from([0.0, 1e-9, 0.2, 0.9]),
    degeneracy_tol=st.sampled_from([None, 0.0, 1e-6, 0.6]),
    max_weight=st.sampled_from([math.inf, 0.0, 1e-20, 0.3, 1.7, 1e3]),
)
def test_rank_is_the_smallest_that_meets_every_wish(
    values, max_rank, min_rank, cutoff, svd_min, degeneracy_tol, max_weight
):
    truncation = Truncation(
        max_rank=max_rank,
        min_rank=min(min_rank, max_rank or min_rank),
        cutoff=cutoff,
        svd_min=svd_min,
        degeneracy_tol=degeneracy_tol,
    )
    rank = select_rank(values, truncation, max_weight=max_weight)
    assert rank == naive_rank(values, truncation, max_weight)
    assert 1 <= rank <= values.numel()


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({}, 5),
        ({"max_rank": 3}, 3),
        ({"max_rank": 9}, 5),
        ({"cutoff": 1.1e-4}, 3),  # squares are 4, 4, 1, 1e-4, 1e-8: what is cut is 1e-4 of 9
        ({"cutoff": 1e-5}, 4),
        ({"cutoff": 0.12}, 2),
        ({"cutoff": 1.0}, 1),
        ({"cutoff": 1.0, "min_rank": 4}, 4),
        ({"cutoff": 1.0, "min_rank": 9}, 5),
        ({"cutoff": 1e-30, "max_rank": 2}, 2),
        ({"svd_min": 0.4}, 2),
        ({"svd_min": 2.0}, 1),
        ({"cutoff": 0.5, "degeneracy_tol": 1e-6}, 2),
        ({"cutoff": 0.5, "degeneracy_tol": 0.5}, 3),
        ({"max_rank": 1, "degeneracy_tol": 1e-6}, 1),
    ],
)
def test_rank_of_a_known_spectrum(options, rank):
    values = torch.tensor([2.0, 2.0, 1.0, 1e-2, 1e-4])
    assert select_rank(values, Truncation(**options)) == rank


@pytest.mark.parametrize(
    "options", [{"cutoff": 1e-3}, {"svd_min": 1e-3}, {"cutoff": 1e-9, "degeneracy_tol": 1.0}]
)
def test_a_zero_spectrum_has_rank_one(options):
    assert select_rank(torch.zeros(4), Truncation(**options)) == 1


def test_a_multiplet_larger_than_the_cap_is_cut_where_the_tolerance_says():
    options = {"cutoff": 0.8, "degeneracy_tol": 1e-6}
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])
    for cap, rank in ((5, 4), (4, 4), (3, 1), (2, 1), (1, 1)):
        assert select_rank(values, Truncation(max_rank=cap, **options)) == rank


def test_one_bond_takes_no_list():
    with pytest.raises(RankError, match=r"max_rank: expected a single rank .* use truncation.at_bond"):
        select_rank(torch.ones(3), Truncation(max_rank=[1, 2]))


def test_report():
    report = TruncationReport.from_weights([4, 4], [2, 3], [9.0, 16.0], norm=10.0, dtype=torch.float32)
    assert report.ranks_before == (4, 4)
    assert report.ranks_after == (2, 3)
    assert report.discarded_weight == (9.0, 16.0)
    assert report.error_estimate == 5.0
    assert report.relative_error == 0.5
    assert 5.0 < report.error_bound < 5.001
    wide = TruncationReport.from_weights(
        [4, 4], [2, 3], [9.0, 16.0], norm=10.0, dtype=torch.float32, scale=1e4
    )
    assert wide.error_bound - 5.0 == pytest.approx(1e3 * (report.error_bound - 5.0))


def test_report_of_a_zero_train():
    report = TruncationReport.from_weights([1], [1], [0.0], norm=0.0, dtype=torch.float64)
    assert report.relative_error == report.error_bound == 0.0
