import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train as tensorly_train

from tests import dense
from tests.strategies import DTYPES, STORAGE_DTYPES, cores_of, eps, ghz, shapes, trains, truncations
from ttnet import Truncation
from ttnet.cores import contract, possible_ranks, ranks_of
from ttnet.decompose import tt_svd
from ttnet.errors import DTypeError, NonFiniteError, RankError, ShapeError


def normal(*shape, dtype=torch.float64, device="cpu"):
    working = torch.float32 if dtype == torch.bfloat16 else dtype
    return torch.randn(*shape, dtype=working).to(device=device, dtype=dtype)


@given(st.data())
def test_the_report_is_the_dense_truth(data):
    dtype = data.draw(st.sampled_from(STORAGE_DTYPES))
    if data.draw(st.booleans()):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        working = torch.float32 if dtype == torch.bfloat16 else dtype
        tensor = torch.randn(data.draw(shapes()), dtype=working, generator=generator).to(dtype)
    else:
        tensor = data.draw(trains(dtype=dtype, scales=False)).full()
    tensor *= 10.0 ** data.draw(st.sampled_from([0, 0, -25, 25]))
    truncation = data.draw(truncations())
    before = tensor.clone()
    cores, report = tt_svd(tensor, truncation)
    assert torch.equal(tensor, before)
    assert {core.dtype for core in cores} == {dtype}
    assert dense.is_canonical(cores, tensor.ndim - 1)
    assert report.ranks_after == ranks_of(cores)[1:-1]
    truth = dense.array(tensor)
    norm, error = dense.norm(truth), dense.distance(dense.full(cores), truth)
    roundoff = report.error_bound - report.error_estimate
    assert report.norm == pytest.approx(norm, abs=roundoff)
    assert error <= report.error_bound
    assert error == pytest.approx(report.error_estimate, abs=roundoff)
    if truncation.max_rank is None and truncation.cutoff == truncation.svd_min == 0:
        budget = truncation.weight_budget(norm)
        assert error <= math.sqrt(budget) + roundoff


@given(shapes(min_modes=2), st.integers(1, 5), st.integers(0, 99), st.sampled_from(DTYPES))
def test_error_is_within_the_root_of_the_bonds_of_the_best(shape, rank, seed, dtype):
    tensor = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    cores, _ = tt_svd(tensor, Truncation(max_rank=rank))
    truth = dense.array(tensor)
    tails = [dense.tail(truth, k, r) for k, r in enumerate(ranks_of(cores)[1:-1])]
    error, roundoff = dense.distance(dense.full(cores), truth), 50 * eps(dtype) * dense.norm(truth)
    assert max(tails) - roundoff <= error <= math.sqrt(math.fsum(t * t for t in tails)) + roundoff
    assert error <= math.sqrt(len(tails)) * max(tails) + roundoff


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 3, 9])
def test_two_modes_are_a_truncated_svd(dtype, rank, device):
    matrix = normal(5, 4, dtype=dtype, device=device)
    cores, report = tt_svd(matrix, Truncation(max_rank=rank))
    u, s, vh = np.linalg.svd(dense.unfolding(dense.array(matrix), 0), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert dense.distance(dense.full(cores), best) < 50 * eps(dtype) * s[0]
    assert report.discarded_weight[0] == pytest.approx((s[rank:] ** 2).sum(), abs=50 * eps(dtype) * s[0] ** 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (1,), (3, 1), (1, 1, 1), (2, 3, 4), (3, 1, 4, 2)])
def test_nothing_is_lost_without_a_truncation(shape, dtype):
    tensor = normal(*shape, dtype=dtype)
    cores, report = tt_svd(tensor, Truncation())
    torch.testing.assert_close(contract(cores), tensor)
    assert report.ranks_after == possible_ranks(shape)
    assert report.discarded_weight == (0.0,) * (len(shape) - 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("ranks", [(1, 2, 2, 3, 1), (1, 3, 7, 4, 1), (1, 1, 1, 1, 1)])
def test_tensorly_finds_the_same(ranks, dtype):
    tensor = normal(3, 4, 3, 5, dtype=dtype).numpy()
    theirs = tensorly_train(tensorly.tensor(tensor), rank=list(ranks))
    cores, report = tt_svd(torch.from_numpy(tensor), Truncation(max_rank=ranks[1:-1]))
    assert ranks_of(cores) == ranks
    ours = tensorly.tt_to_tensor([core.numpy() for core in cores])
    np.testing.assert_allclose(ours, contract(cores).numpy(), atol=1e-12)
    np.testing.assert_allclose(ours, tensorly.tt_to_tensor(theirs), atol=1e-10)
    assert np.linalg.norm(tensor - tensorly.tt_to_tensor(theirs)) == pytest.approx(report.error_estimate)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_ranks_are_found_by_a_tolerance(dtype):
    tensor = contract(cores_of("random", (4, 5, 4, 5), [2, 3, 2], dtype, 0))
    cores, report = tt_svd(tensor, Truncation(rtol=1e3 * eps(dtype)))
    assert ranks_of(cores) == (1, 2, 3, 2, 1)
    assert report.relative_error < 1e3 * eps(dtype)


def test_repeated_singular_values_are_cut_or_kept_together():
    tensor = contract(ghz((3, 3, 3)))
    assert tt_svd(tensor, Truncation(cutoff=0.4))[1].ranks_after == (2, 2)
    assert tt_svd(tensor, Truncation(cutoff=0.4, degeneracy_tol=1e-9))[1].ranks_after == (3, 3)
    cores, report = tt_svd(tensor, Truncation(max_rank=2))
    assert report.discarded_weight == pytest.approx((1.0, 0.0))
    assert dense.distance(dense.full(cores), dense.array(tensor)) == pytest.approx(1.0)


def test_zero_has_rank_one():
    cores, report = tt_svd(torch.zeros(3, 4, 5), Truncation(rtol=1e-6))
    assert ranks_of(cores) == (1, 1, 1, 1)
    assert report.norm == report.error_bound == report.relative_error == 0.0
    assert not contract(cores).any()


def test_a_single_core_has_memory_of_its_own():
    tensor = torch.arange(3.0)
    (core,), report = tt_svd(tensor, Truncation(max_rank=4))
    tensor.zero_()
    assert core.flatten().tolist() == [0.0, 1.0, 2.0]
    assert report.ranks_after == ()


def test_tt_svd_is_differentiable_where_the_spectrum_is_simple():
    tensor = normal(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: contract(tt_svd(t, Truncation(max_rank=2))[0]), tensor)


@pytest.mark.parametrize("shape", [(), (3, 0, 2), (0,)])
def test_no_mode_or_an_empty_one_is_refused(shape):
    with pytest.raises(ShapeError, match=r"^tensor: expected at least one mode and no empty one, got shape"):
        tt_svd(torch.zeros(shape), Truncation())


def test_integers_are_refused():
    with pytest.raises(DTypeError, match=r"dtype: .*got torch.int64; convert"):
        tt_svd(torch.ones(2, 3, dtype=torch.int64), Truncation())


@pytest.mark.parametrize("caps", [(4, 2), (2, 5), (2,), (2, 2, 2)])
def test_impossible_caps_are_refused(caps):
    with pytest.raises(RankError, match=r"^max_rank: expected"):
        tt_svd(torch.ones(3, 2, 4), Truncation(max_rank=caps))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_entries_are_refused(bad):
    tensor = torch.ones(2, 3, 2)
    tensor[0, 1, 1] = bad
    with pytest.raises(NonFiniteError, match="matrix: expected finite entries"):
        tt_svd(tensor, Truncation(rtol=1e-3))
