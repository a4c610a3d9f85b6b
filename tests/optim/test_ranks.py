"""Targets of sweeps, by the calendar and by the train itself, without any scheduler."""

import math

import pytest
import torch

from ttnet.errors import ConfigError, RankError
from ttnet.optim import AdaptiveRanks, RankSchedule, SweepReport

SHAPE = (6, 4, 5, 6)


def test_schedule_holds_from_its_key_on():
    schedule = RankSchedule({0: 12, 2: 8, 4: 4})
    assert [schedule.at(epoch) for epoch in range(7)] == [12, 12, 8, 8, 4, 4, 4]
    assert RankSchedule({2: 3}).at(1) is None
    assert RankSchedule({4: 4, 0: 12, 2: 8}).at(3) == 8


def test_key_zero_is_no_sweep():
    assert RankSchedule({0: 5}).targets(0, SHAPE) is None
    assert RankSchedule({2: 5}).targets(1, SHAPE) is None
    assert RankSchedule({0: 5}).targets(1, SHAPE) == (5, 5, 5)


def test_a_number_clips_and_a_list_must_be_possible():
    schedule = RankSchedule({0: 12, 1: 10, 2: [6, 20, 3], 3: (7, 3, 3), 4: [3, 3]})
    assert schedule.targets(1, SHAPE) == (6, 10, 6)
    assert schedule.targets(2, SHAPE) == (6, 20, 3)
    with pytest.raises(RankError, match=r"ranks: expected an integer from 1 to 6 at bond 0, got 7"):
        schedule.targets(3, SHAPE)
    with pytest.raises(RankError, match=r"ranks: expected one rank for each of the 3 bonds"):
        schedule.targets(4, SHAPE)
    assert RankSchedule({1: 3}).targets(1, (7,)) == ()


@pytest.mark.parametrize("key", [-1, "2", 1.5, True])
def test_keys_are_epochs(key):
    with pytest.raises(ConfigError, match="ranks: expected completed epochs"):
        RankSchedule({key: 3})


@pytest.mark.parametrize("rank", [0, -2, [3, 0], 2.5, True, []])
def test_ranks_are_at_least_one(rank):
    with pytest.raises(RankError, match="ranks: expected ranks of at least 1"):
        RankSchedule({0: rank})


def test_an_empty_schedule_is_refused():
    with pytest.raises(ConfigError, match="at least one entry"):
        RankSchedule({})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "max_parameters, max_error, max_loss_increase"),
        ({"max_error": -0.1}, "max_error"),
        ({"max_error": math.nan}, "max_error"),
        ({"max_loss_increase": math.inf}, "max_loss_increase"),
        ({"max_parameters": -1}, "max_parameters"),
        ({"max_error": 0.1, "warmup": -1}, "warmup"),
        ({"max_error": 0.1, "patience": 0}, "patience"),
        ({"max_error": 0.1, "min_rank": 0}, "min_rank"),
        ({"max_error": 0.1, "max_cut": 0}, "max_cut"),
    ],
)
def test_adaptive_ranks_check_their_fields(options, name):
    with pytest.raises(ConfigError, match=name):
        AdaptiveRanks(**options)


def test_warmup_and_patience():
    ranks = AdaptiveRanks(max_error=0.1, warmup=3, patience=2)
    assert [ranks.is_due(epoch, None) for epoch in range(1, 6)] == [False, False, True, True, True]
    assert [ranks.is_due(epoch, 3) for epoch in range(4, 7)] == [False, True, True]
    assert not AdaptiveRanks(max_error=0.1, warmup=0).is_due(0, None)


SPECTRA = (
    torch.tensor([10.0, 1.0, 0.01, 0.001]),
    torch.tensor([10.0, 5.0, 4.0, 3.0]),
    torch.tensor([10.0, 2.0, 0.5, 0.1]),
)
"""Relative weights of the last directions, bond by bond: 1e-8, 6e-2, 1e-4."""


def test_least_weight_goes_first():
    seen = []

    def refuse_all(ranks: tuple[int, ...]) -> bool:
        seen.append(ranks)
        return False

    ranks = AdaptiveRanks(max_parameters=60, max_cut=9)
    cut = ranks.targets(SPECTRA, SHAPE, refuse_all)
    assert not seen  # the budget alone asks nobody
    sizes = [6 * a + 4 * a * b + 5 * b * c + 6 * c for a, b, c in ((4, 4, 4), cut)]
    assert sizes[1] <= 60 < sizes[0]
    assert cut == (1, 4, 1)
    bare = AdaptiveRanks(max_parameters=140, max_cut=9).targets(SPECTRA, SHAPE, refuse_all)
    assert bare == (2, 4, 3)
    assert AdaptiveRanks(max_parameters=10**6).targets(SPECTRA, SHAPE, refuse_all) == (4, 4, 4)


def test_floors():
    everything = {"spectra": SPECTRA, "shape": SHAPE, "accept": lambda _: True}
    assert AdaptiveRanks(max_error=1.0, max_cut=1).targets(**everything) == (3, 3, 3)
    assert AdaptiveRanks(max_error=1.0, max_cut=9).targets(**everything) == (1, 1, 1)
    assert AdaptiveRanks(max_error=1.0, max_cut=9, min_rank=3).targets(**everything) == (3, 3, 3)
    assert AdaptiveRanks(max_error=1.0, max_cut=9, min_rank=6).targets(**everything) == (4, 4, 4)
    assert AdaptiveRanks(max_parameters=0, max_cut=2).targets(**everything) == (2, 2, 2)


def test_accept_is_bisected():
    calls = []

    def accept(ranks: tuple[int, ...]) -> bool:
        calls.append(ranks)
        return ranks[1] == 4 and ranks[0] >= 2

    found = AdaptiveRanks(max_error=0.1, max_cut=9).targets(SPECTRA, SHAPE, accept)
    # Order of removal: bond 0 twice, then bond 2 twice, bond 0 once more, ...
    assert found == (2, 4, 2)
    assert len(calls) <= 4
    none = AdaptiveRanks(max_error=0.1).targets(SPECTRA, SHAPE, lambda _: False)
    assert none == (4, 4, 4)


def test_a_budget_and_a_tolerance_both_hold():
    ranks = AdaptiveRanks(max_parameters=140, max_error=0.1, max_cut=9)
    assert ranks.targets(SPECTRA, SHAPE, lambda _: True) == (2, 4, 3)  # the budget is met, cutting stops
    assert ranks.targets(SPECTRA, SHAPE, lambda r: r[0] >= 3) == (3, 4, 4)  # the tolerance stops it before


def test_zero_spectra_and_trains_without_bonds():
    zeros = (torch.zeros(3), torch.zeros(2))
    assert AdaptiveRanks(max_parameters=0).targets(zeros, (3, 4, 2), lambda _: True) == (1, 1)
    assert AdaptiveRanks(max_parameters=0).targets((), (3,), lambda _: True) == ()


def test_report():
    report = SweepReport(
        epoch=2,
        ranks_before=(4,),
        ranks_after=(2,),
        spectra=((2.0, 1.0),),
        discarded_weight=(1.0,),
        relative_error=0.4,
        seconds=0.1,
    )
    assert report.max_error == 0.4
    assert report.as_dict()["ranks_after"] == (2,)
    worst = SweepReport(**report.as_dict() | {"matrix_errors": {"a": 0.5, "b": 0.1}})
    assert worst.max_error == 0.5
