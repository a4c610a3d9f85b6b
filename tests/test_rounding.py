import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import dense
from tests.strategies import DTYPES, KINDS, cores_of, eps, ghz, scale_of, trains, truncations
from ttnet import TensorTrain, Truncation, tt_svd
from ttnet.algebra import add, subtract
from ttnet.cores import ranks_of
from ttnet.errors import ConfigError, NonFiniteError, RankError, ShapeError
from ttnet.random import random_cores
from ttnet.rounding import distance, truncate

EXACT = ("svd", "qr-svd", "gram")


def check_truncation(train, truncation, method="auto"):
    """Everything that is promised of any truncation of any train; returns cores and report."""
    before = [core.clone() for core in train.cores]
    found, report = truncate(train.cores, truncation, center=train.center, method=method)
    assert all(torch.equal(new, old) for new, old in zip(train.cores, before, strict=True))
    assert {core.dtype for core in found} == {train.dtype}
    assert dense.is_canonical(found, 0)
    assert report.ranks_before == train.ranks[1:-1]
    assert report.ranks_after == ranks_of(found)[1:-1]
    assert all(new <= old for new, old in zip(report.ranks_after, report.ranks_before, strict=True))
    truth = dense.full(train.cores)
    error, norm = dense.distance(dense.full(found), truth), dense.norm(truth)
    roundoff = report.error_bound - report.error_estimate
    assert report.norm == pytest.approx(norm, abs=roundoff)
    assert report.error_estimate == pytest.approx(math.sqrt(math.fsum(report.discarded_weight)))
    assert error <= report.error_bound
    assert error == pytest.approx(report.error_estimate, abs=roundoff)
    # No train of these ranks is nearer than the best matrix of that rank at any bond.
    for bond, rank in enumerate(report.ranks_after):
        assert error >= dense.tail(truth, bond, rank) - roundoff - 1e-13 * norm
    return found, report, error, roundoff


@pytest.mark.parametrize("method", EXACT)
@given(trains(storage=True), truncations())
def test_the_report_is_the_dense_truth(method, train, truncation):
    check_truncation(train, truncation, method)


@given(trains(storage=True), truncations(), st.integers(1, 4))
def test_the_report_of_a_sketch_is_the_dense_truth(train, truncation, cap):
    check_truncation(train, replace(truncation, max_rank=cap), "randomized")


@settings(max_examples=20)
@given(st.data(), st.sampled_from(EXACT), truncations())
def test_ranks_far_above_what_is_needed(data, method, truncation):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    sizes = st.sampled_from([3, 20, 33, 48])
    ranks = data.draw(st.lists(sizes, min_size=len(shape) - 1, max_size=len(shape) - 1))
    dtype, kind = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(KINDS))
    cores = cores_of(kind, shape, ranks, dtype, data.draw(st.integers(0, 99)))
    check_truncation(TensorTrain(cores), truncation, method)


@pytest.mark.parametrize("method", EXACT)
@given(trains(storage=True), st.sampled_from([1e-6, 1e-3, 0.1, 0.5]), st.booleans())
def test_tolerances_of_the_whole_train_are_certified(method, train, tolerance, relative):
    norm = dense.norm(dense.full(train.cores))
    truncation = Truncation(rtol=tolerance) if relative else Truncation(atol=tolerance * norm or None)
    *_, error, roundoff = check_truncation(train, truncation, method)
    assert error <= tolerance * norm + roundoff


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["qr-svd", "gram", "randomized"])
def test_a_cap_costs_what_the_plain_way_would(method, dtype, device):
    cores = [core.to(device) for core in cores_of("random", (8, 8, 8, 8), [8, 40, 8], dtype, 0)]
    _, best = truncate(cores, Truncation(max_rank=4), method="svd")
    found, report = truncate(cores, Truncation(max_rank=4), method=method)
    error = dense.distance(dense.full(found), dense.full(cores))
    assert error <= (1.2 if method == "randomized" else 1.02) * best.error_estimate
    assert error == pytest.approx(report.error_estimate, rel=1e-4)
    assert found[0].device == cores[0].device


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-7])
def test_the_guard_of_gram_finds_the_exact_ranks(rtol, noise):
    exact = cores_of("random", (6, 6, 6, 6), [3, 5, 4], torch.float64, 0)
    other = cores_of("random", (6, 6, 6, 6), [6, 20, 6], torch.float64, 1)
    size = noise * dense.norm(dense.full(exact)) / dense.norm(dense.full(other))
    noisy = add(exact, [other[0] * size, *other[1:]])
    expected = truncate(noisy, Truncation(rtol=rtol), method="svd")[1].ranks_after
    for method in ("gram", "qr-svd", "auto"):
        assert truncate(noisy, Truncation(rtol=rtol), method=method)[1].ranks_after == expected
    if noise < rtol:
        assert expected == (3, 5, 4)


@pytest.mark.parametrize("method", ["qr-svd", "gram", "randomized"])
def test_methods_that_neither_autograd_nor_vmap_passes_say_so(method):
    cores = [core.requires_grad_() for core in cores_of("random", (3, 3), [3], torch.float64, 0)]
    with pytest.raises(
        ConfigError, match=f"method: expected 'auto' or 'svd' under autograd .* got '{method}'"
    ):
        truncate(cores, Truncation(max_rank=2), method=method)
    with torch.no_grad():
        assert truncate(cores, Truncation(max_rank=2), method=method)[1].ranks_after == (2,)


def test_vmap_takes_fixed_ranks_and_refuses_tolerances():
    batches = [
        torch.stack(group)
        for group in zip(
            *(cores_of("random", (3, 4, 3), [3, 3], torch.float64, seed) for seed in range(3)), strict=True
        )
    ]
    rounded = torch.func.vmap(lambda *c: truncate(c, Truncation(max_rank=2))[0])(*batches)
    for i in range(3):
        expected, _ = truncate([batch[i] for batch in batches], Truncation(max_rank=2))
        assert dense.distance(dense.full([core[i] for core in rounded]), dense.full(expected)) < 1e-12
    seen = []
    torch.func.vmap(lambda *c: (seen.append(truncate(c, Truncation(max_rank=2))[1]), c)[1])(*batches)
    assert seen[0].ranks_after == (2, 2)
    assert math.isnan(seen[0].norm)
    with pytest.raises(ConfigError, match=r"truncation: expected fixed ranks \(max_rank alone\) under vmap"):
        torch.func.vmap(lambda *c: truncate(c, Truncation(rtol=1e-3))[0])(*batches)


def full_of(cores):
    return TensorTrain(truncate(cores, Truncation(rtol=0.3))[0]).full()


def test_ranks_chosen_by_a_tolerance_are_differentiable():
    leaves = [core.requires_grad_() for core in cores_of("random", (3, 4, 3), [3, 3], torch.float64, 1)]
    assert max(truncate(leaves, Truncation(rtol=0.3))[1].ranks_after) < 3
    assert torch.autograd.gradcheck(lambda *c: full_of(c), leaves)


@pytest.mark.parametrize("kind", ["zero", "zero core", "repeated", "deficient"])
@pytest.mark.parametrize("truncation", [Truncation(max_rank=2), Truncation(rtol=1e-3), Truncation()])
def test_gradients_are_finite_where_factors_are_not_unique(kind, truncation):
    leaves = [core.requires_grad_() for core in cores_of(kind, (3, 3, 3), [3, 3], torch.float64, 1)]
    train = TensorTrain(truncate(leaves, truncation)[0])
    weights = torch.randn(3, 3, 3, dtype=torch.float64)
    for slope in torch.autograd.grad((train.full() * weights).sum(), leaves):
        assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("rtol", [0.05 * k for k in range(4, 20)])
def test_the_bonds_share_one_budget(rtol):
    # A full spectrum at every bond: whoever hands out the budget twice overdraws it here.
    train = tt_svd(torch.randn(4, 4, 4, 4, 4, dtype=torch.float64))
    rounded = TensorTrain(truncate(train.cores, Truncation(rtol=rtol))[0])
    norm = dense.norm(dense.full(train.cores))
    for found in (rounded, tt_svd(train.full(), Truncation(rtol=rtol))):
        assert dense.distance(dense.full(found.cores), dense.full(train.cores)) <= rtol * norm
        assert found.num_parameters < train.num_parameters


@given(trains(), st.sampled_from([1e-12, 1e-6, 1e-2, 0.3]))
def test_cutoff_is_the_relative_sum_of_discarded_squares_of_each_bond(train, cutoff):
    _, report, _, roundoff = check_truncation(train, Truncation(cutoff=cutoff))
    for weight in report.discarded_weight:
        assert math.sqrt(weight) <= math.sqrt(cutoff) * report.norm * (1 + 1e-6) + roundoff


@given(st.data())
def test_caps_by_bond(data):
    train = data.draw(trains(kinds=("random",), min_modes=2, scales=False))
    caps = [
        data.draw(st.integers(1, r)) for r in TensorTrain(truncate(train.cores, Truncation())[0]).ranks[1:-1]
    ]
    _, report, *_ = check_truncation(train, Truncation(max_rank=caps))
    assert all(rank <= cap for rank, cap in zip(report.ranks_after, caps, strict=True))


def test_caps_by_bond_are_met_exactly():
    cores = cores_of("random", (3, 3, 3, 3), [3, 5, 3], torch.float64, 0)
    assert truncate(cores, Truncation(max_rank=(2, 4, 3)))[1].ranks_after == (2, 4, 3)


def test_a_single_cap_clips():
    cores = cores_of("random", (2, 3, 2), [2, 2], torch.float64, 0)
    found, report = truncate(cores, Truncation(max_rank=50))
    assert report.ranks_after == (2, 2)
    assert report.discarded_weight == (0.0, 0.0)
    assert dense.distance(dense.full(found), dense.full(cores)) < 1e-13


@pytest.mark.parametrize(
    ("shape", "caps", "message"),
    [
        ((2, 3, 2), (2, 3), r"max_rank: expected at most 2 at bond 1 of shape \(2, 3, 2\), got 3; lower it"),
        ((2, 3, 2), (2,), "max_rank: expected one rank for each of the 2 bonds, got 1"),
        ((2, 3, 2), (2, 2, 2), "max_rank: expected one rank for each of the 2 bonds, got 3"),
        ((2, 3, 2), (), "max_rank: expected one rank for each of the 2 bonds, got 0"),
        ((4,), (2,), r"max_rank: expected no rank for a train without bonds, got \(2,\)"),
    ],
)
def test_impossible_caps_are_refused(shape, caps, message):
    cores = cores_of("random", shape, [2] * (len(shape) - 1), torch.float64, 0)
    with pytest.raises(RankError, match=f"^{message}"):
        truncate(cores, Truncation(max_rank=caps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_sum_is_rounded_back(dtype):
    cores = cores_of("random", (4, 3, 4, 3), [3, 4, 2], dtype, 0)
    doubled = add(cores, cores)
    _, report = truncate(doubled, Truncation(rtol=1e3 * eps(dtype)))
    assert report.ranks_before == (6, 8, 4)
    assert report.ranks_after == (3, 4, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "truncation", [Truncation(rtol=1e-3), Truncation(cutoff=1e-9), Truncation(svd_min=1e-3)]
)
@pytest.mark.parametrize("kind", ["zero", "zero core"])
def test_a_zero_train_is_rounded_to_rank_one(dtype, truncation, kind):
    cores = cores_of(kind, (3, 4, 3), [3, 3], dtype, 1)
    found, report = truncate(cores, truncation)
    assert report.ranks_after == (1, 1)
    assert report.norm == report.error_estimate == report.relative_error == 0.0
    assert not dense.full(found).any()


def test_multiplets_stay_together_where_the_cap_has_room():
    cores = ghz((3, 3, 3, 3))
    third = {"cutoff": 0.4}  # the last of 3 equal singular values carries a third of the weight
    assert truncate(cores, Truncation(**third))[1].ranks_after == (2, 2, 2)
    assert truncate(cores, Truncation(**third, degeneracy_tol=1e-9))[1].ranks_after == (3, 3, 3)
    assert truncate(cores, Truncation(**third, degeneracy_tol=1e-9, max_rank=2))[1].ranks_after == (2, 2, 2)


def test_min_rank_keeps_more_than_the_tolerance_asks_for():
    cores = cores_of("random", (3, 3, 3, 3), [3, 5, 3], torch.float64, 0)
    assert truncate(cores, Truncation(cutoff=1.0))[1].ranks_after == (1, 1, 1)
    assert truncate(cores, Truncation(cutoff=1.0, min_rank=4))[1].ranks_after == (3, 4, 3)


def test_a_cap_that_breaks_a_tolerance_is_reported():
    cores = cores_of("random", (4, 4, 4), [4, 4], torch.float64, 0)
    *_, error, _ = check_truncation(TensorTrain(cores), Truncation(rtol=1e-8, max_rank=1))
    assert error > 0.1 * dense.norm(dense.full(cores))


def test_the_bound_holds_where_the_terms_cancel():
    a = cores_of("random", (4, 4, 4, 4), [4, 4, 4], torch.float64, 0)
    b = [core + 1e-12 * torch.randn_like(core) for core in a]
    small = subtract(a, b)
    found, report = truncate(small, Truncation(rtol=1e-2))
    error = dense.distance(dense.full(found), dense.full(small))
    assert error <= report.error_bound <= 1e-10
    assert error > 100 * eps(torch.float64) * report.norm


@pytest.mark.parametrize("center", [None, 0, 1, 2, 3])
def test_the_center_spares_work_and_changes_nothing(center):
    cores = cores_of("random", (3, 4, 3, 2), [3, 4, 2], torch.float64, 0)
    train = TensorTrain(cores) if center is None else TensorTrain(cores).orthogonalize(center)
    found, report = truncate(train.cores, Truncation(max_rank=2), center=center)
    expected, _ = truncate(cores, Truncation(max_rank=2))
    np.testing.assert_allclose(dense.full(found), dense.full(expected), atol=1e-12)
    assert report.error_bound >= dense.distance(dense.full(found), dense.full(cores))


def test_an_atol_beyond_all_numbers_cuts_to_rank_one():
    cores = cores_of("random", (3, 3), [3], torch.float64, 0)
    assert truncate(cores, Truncation(atol=1e200))[1].ranks_after == (1,)


def test_non_finite_cores_are_refused():
    cores = cores_of("random", (3, 3), [3], torch.float64, 0)
    cores[1][0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="matrix: expected finite entries"):
        truncate(cores, Truncation(max_rank=2))


def test_rounding_is_differentiable_where_the_spectrum_is_simple():
    leaves = [core.requires_grad_() for core in cores_of("random", (3, 4, 3), [3, 3], torch.float64, 0)]
    assert torch.autograd.gradcheck(
        lambda *c: TensorTrain(truncate(c, Truncation(max_rank=2))[0]).full(), leaves
    )


@given(trains(dtype=torch.float64, scales=False), st.integers(0, 9))
def test_distance(train, seed):
    other = cores_of("random", train.shape, [2] * (train.ndim - 1), torch.float64, seed)
    truth = dense.distance(dense.full(train.cores), dense.full(other))
    scale = scale_of(train) + scale_of(TensorTrain(other))
    assert distance(train.cores, other) == pytest.approx(truth, abs=50 * eps(torch.float64) * scale)


def test_distance_of_near_trains_and_of_two_dtypes():
    cores = cores_of("random", (3, 4, 3), [3, 3], torch.float64, 0)
    near = [cores[0] * (1 + 1e-12), *cores[1:]]
    assert distance(cores, near) == pytest.approx(1e-12 * dense.norm(dense.full(cores)), rel=1e-2)
    assert distance(cores, [core.to(torch.complex64) for core in cores]) < 1e-5
    with pytest.raises(ShapeError, match=r"other: expected a train of shape \(3, 4, 3\), got \(3, 4\)"):
        distance(cores, cores_of("random", (3, 4), [3], torch.float64, 0))


GHZ_CUTS = [Truncation(rtol=1e-10), Truncation(max_rank=3), Truncation()]


def slopes_of(make, leaves, weights):
    return torch.autograd.grad((TensorTrain(make(leaves)).full().real * weights).sum(), leaves)


@pytest.mark.parametrize("modes", [2, 3, 4])
@pytest.mark.parametrize("truncation", GHZ_CUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_where_nothing_is_cut_are_those_of_the_identity(modes, truncation, dtype):
    # Equal singular values at every bond, and a square core, which has no directions outside.
    leaves = [core.requires_grad_() for core in ghz((3,) * modes, dtype)]
    weights = torch.randn((3,) * modes, dtype=torch.float64)
    found = slopes_of(lambda cores: truncate(cores, truncation)[0], leaves, weights)
    torch.testing.assert_close(found, slopes_of(lambda cores: cores, leaves, weights))


@pytest.mark.parametrize("kind", ["deficient", "repeated"])
@pytest.mark.parametrize("truncation", [Truncation(), Truncation(max_rank=8)])
def test_gradients_of_directions_that_are_stored_twice(kind, truncation):
    leaves = [core.requires_grad_() for core in cores_of(kind, (4, 4, 4), [2, 2], torch.float64, 0)]
    weights = torch.randn(4, 4, 4, dtype=torch.float64)
    found = slopes_of(lambda cores: truncate(cores, truncation)[0], leaves, weights)
    torch.testing.assert_close(found, slopes_of(lambda cores: cores, leaves, weights))


def test_gradients_of_a_cut_beside_equal_singular_values():
    """Two equal values stay, a small one goes: compare with differences of the dense function."""
    cores = ghz((3, 3, 3))
    cores[0] = cores[0] * torch.tensor([1, 1, 0.1], dtype=torch.float64)
    leaves = [core.clone().requires_grad_() for core in cores]
    weights = torch.randn(3, 3, 3, dtype=torch.float64)
    found = slopes_of(lambda c: truncate(c, Truncation(max_rank=2))[0], leaves, weights)
    for k, slope in enumerate(found):

        def loss(core, k=k):
            moved = [*cores[:k], core, *cores[k + 1 :]]
            return (TensorTrain(truncate(moved, Truncation(max_rank=2))[0]).full() * weights).sum()

        torch.testing.assert_close(slope, dense.gradient(loss, cores[k]), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def long():
    """Cores of 1200 modes: in float64 no number holds the norm."""
    return list(TensorTrain(random_cores((4,) * 1200, 3, seed=0, dtype=torch.float32)).cores)


@pytest.mark.parametrize("factor", [0.01, 1.0])
@pytest.mark.parametrize("method", ["auto", "svd", "qr-svd", "gram", "randomized"])
def test_a_norm_out_of_range_is_refused_with_the_remedy(long, factor, method):
    cores = [core * factor for core in long[:200]]
    cores[-1] = cores[-1][:, :, :1]
    message = r"train: expected a norm within the range of torch\.float32 .* got log_norm .*normalized\(\)"
    with pytest.raises(NonFiniteError, match=message):
        truncate(cores, Truncation(max_rank=2, rtol=1e-3), method=method)


@pytest.mark.parametrize("method", ["svd", "qr-svd", "gram"])
def test_what_is_out_of_range_on_the_way_alone_is_rounded(method):
    # The left half is beyond float32, the right half takes it back.
    cores = cores_of("random", (4,) * 120, [3] * 119, torch.float64, 0)
    cores = [core * (10.0 if k < 60 else 0.01) for k, core in enumerate(cores)]
    exact = cores
    cores = [core.float() for core in cores]
    found, report = truncate(cores, Truncation(rtol=1e-3), method=method)
    assert distance(found, exact) <= 1e-2 * report.norm
    assert report.norm == pytest.approx(float(TensorTrain(exact).norm()), rel=1e-3)


def test_atol_far_from_one_is_met():
    exact = cores_of("random", (4, 5, 4), [4, 4], torch.float64, 0)
    for scale in (1e-180, 1e180):
        scaled = [exact[0] * scale, *exact[1:]]
        _, whole = truncate(scaled, Truncation(), method="svd")
        for method in ("svd", "gram", "qr-svd"):
            _, report = truncate(scaled, Truncation(atol=0.5 * whole.norm), method=method)
            _, expected = truncate(exact, Truncation(rtol=0.5), method="svd")
            assert report.ranks_after == expected.ranks_after
            assert report.error_estimate / report.norm == pytest.approx(expected.relative_error)


def test_a_distance_out_of_range_is_refused(long):
    with pytest.raises(NonFiniteError, match=r"train: expected a norm within the range of torch\.float64"):
        distance(long, [long[0] * 2, *long[1:]])
