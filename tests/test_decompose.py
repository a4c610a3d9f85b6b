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
from ttnet import Truncation, unfoldings
from ttnet.cores import contract, possible_ranks, ranks_of
from ttnet.decompose import METHODS, tt_svd
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, RankError, ShapeError


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
    cores, report = tt_svd(tensor, truncation, method=data.draw(st.sampled_from(METHODS)))
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


def smooth(n, d, dtype=torch.float64):
    """1 / (1 + sum x) on a grid: singular values that fall exponentially."""
    grid = torch.linspace(0, 1, n, dtype=torch.float64)
    total = torch.ones((), dtype=torch.float64)
    for _ in range(d):
        total = total.unsqueeze(-1) + grid
    return total.reciprocal().to(dtype)


def noisy(tensor, level):
    noise = torch.randn_like(tensor)
    return tensor + noise * (level * tensor.norm() / noise.norm())


@pytest.fixture
def used(monkeypatch):
    """Names of the factors that were taken, in order; a Gram matrix that was refused counts too."""
    names = []
    for name in ("gram_vectors", "triangular_factor"):
        genuine = getattr(unfoldings, name)
        monkeypatch.setattr(
            unfoldings, name, lambda m, name=name, genuine=genuine: (names.append(name), genuine(m))[1]
        )
    return names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 9, 10, 7), (4,) * 7, (300, 4, 5), (2, 3, 1, 500), (40, 50)])
@pytest.mark.parametrize("method", ["auto", "qr", "gram"])
def test_fast_methods_find_what_the_svd_finds(method, shape, dtype):
    ranks = [min(3, r) for r in possible_ranks(shape)]
    tensor = noisy(contract(cores_of("graded", shape, ranks, dtype, 0)), 1e-3)
    truth = dense.array(tensor)
    norm = dense.norm(truth)
    for truncation in (
        Truncation(rtol=0.03),
        Truncation(rtol=5e-3),
        Truncation(cutoff=1e-4),
        Truncation(svd_min=0.02),
        Truncation(max_rank=2),
        Truncation(max_rank=2, rtol=0.3),
        Truncation(atol=0.1 * norm, min_rank=2),
        Truncation(),
    ):
        expected = tt_svd(tensor, truncation, method="svd")[1]
        cores, report = tt_svd(tensor, truncation, method=method)
        assert report.ranks_after == ranks_of(cores)[1:-1] == expected.ranks_after
        assert report.ranks_before == expected.ranks_before
        assert dense.is_canonical(cores, len(shape) - 1)
        error = dense.distance(dense.full(cores), truth)
        assert error <= report.error_bound
        roundoff = 100 * eps(dtype) * norm
        assert error == pytest.approx(report.error_estimate, abs=roundoff)
        assert error == pytest.approx(expected.error_estimate, rel=2e-3, abs=roundoff)


@pytest.mark.parametrize("level", [0.0, 1e-12, 1e-11])
@pytest.mark.parametrize("method", ["auto", "gram", "qr", "svd"])
@pytest.mark.parametrize("shape", [(10, 10, 10, 10), (4,) * 7])
def test_exact_ranks_at_a_tolerance_below_what_a_gram_matrix_resolves(shape, method, level, used):
    tensor = noisy(contract(cores_of("random", shape, [3] * (len(shape) - 1), torch.float64, 0)), level)
    _, report = tt_svd(tensor, Truncation(rtol=1e-10), method=method)
    assert report.ranks_after == (3,) * (len(shape) - 1)
    assert "gram_vectors" not in used


@pytest.mark.parametrize("level", [0.0, 1e-8])
def test_a_tolerance_above_the_noise_takes_the_gram_matrix(level, used):
    tensor = noisy(contract(cores_of("random", (10,) * 5, [3] * 4, torch.float64, 0)), level)
    cores, report = tt_svd(tensor, Truncation(rtol=1e-6))
    assert report.ranks_after == (3, 3, 3, 3)
    assert set(used) == {"gram_vectors"}
    assert dense.distance(dense.full(cores), dense.array(tensor)) <= report.error_bound
    # Measured on the tensor, not read from squares: nothing was lost, and the report says so.
    assert report.relative_error < 2 * level + 1e-14


@pytest.mark.parametrize(("rtol", "factor"), [(1e-2, "gram_vectors"), (3e-4, "triangular_factor")])
@pytest.mark.parametrize(("n", "d"), [(10, 5), (4, 8)])
def test_a_gram_matrix_in_single_precision_stops_above_3e_4(rtol, factor, n, d, used):
    tensor = smooth(n, d, torch.float32)
    cores, report = tt_svd(tensor, Truncation(rtol=rtol))
    assert set(used) == {factor}
    assert report.ranks_after == tt_svd(tensor, Truncation(rtol=rtol), method="svd")[1].ranks_after
    error = dense.distance(dense.full(cores), dense.array(tensor))
    assert error <= min(report.error_bound, rtol * report.norm)


def test_an_ambiguous_rank_is_left_to_the_qr(used):
    values = torch.tensor([1.0, 1e-3, 1e-6], dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64)).Q for n in (30, 400))
    tensor = (u * values) @ v.mT
    # The tolerance cuts between two weights that differ by less than the noise of a Gram matrix.
    for atol, rank in ((1e-6 * (1 + 1e-4), 2), (1e-6 * (1 - 1e-4), 3)):
        assert tt_svd(tensor, Truncation(atol=atol))[1].ranks_after == (rank,)
    assert "triangular_factor" in used


def test_a_cap_alone_takes_the_gram_matrix_only_where_it_is_as_good(used):
    exact = contract(cores_of("random", (12, 12, 12), [3, 3], torch.float64, 0))
    small = torch.randn(12, 144, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(small, full_matrices=False)
    steep = ((u * 0.01 ** torch.arange(12.0, dtype=torch.float64)) @ vh).reshape(12, 12, 12)
    for tensor in (exact, noisy(exact, 1e-3), noisy(exact, 1e-9), steep):
        for rank in (2, 3, 6):
            expected = tt_svd(tensor, Truncation(max_rank=rank), method="svd")[1]
            cores, _ = tt_svd(tensor, Truncation(max_rank=rank))
            error = dense.distance(dense.full(cores), dense.array(tensor))
            assert error <= 1.02 * expected.error_estimate + 200 * eps(torch.float64) * expected.norm
    assert {"gram_vectors", "triangular_factor"} == set(used)


def test_a_bound_on_the_roundoff_that_does_not_hold_is_noticed(monkeypatch, used):
    genuine = unfoldings.left_out
    monkeypatch.setattr(unfoldings, "left_out", lambda *factors: 2 * genuine(*factors) + 1e-6)
    tensor = noisy(contract(cores_of("random", (10,) * 4, [3] * 3, torch.float64, 0)), 1e-4)
    report = tt_svd(tensor / tensor.norm(), Truncation(rtol=1e-2))[1]
    assert report.ranks_after == (3, 3, 3)
    assert "triangular_factor" in used


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(torch.float64, 150), (torch.float32, 30), (torch.complex64, 30)]
)
def test_any_scale(exponent, dtype, method):
    tensor = contract(cores_of("random", (6, 7, 8), [2, 3], dtype, 0))
    for scale in (10.0**exponent, 10.0**-exponent):
        cores, report = tt_svd(tensor * scale, Truncation(rtol=1e-2), method=method)
        assert report.ranks_after == (2, 3)
        torch.testing.assert_close(contract(cores) / scale, tensor)
        assert report.norm / scale == pytest.approx(float(tensor.norm()), rel=1e-5)
        assert report.error_bound < 1e-2 * report.norm


@pytest.mark.parametrize("method", METHODS)
def test_any_layout_in_memory(method):
    tensor = contract(cores_of("random", (9, 8, 7, 6), [2, 3, 2], torch.complex128, 0))
    for view in (tensor.permute(2, 0, 3, 1), tensor[:, ::2], tensor.conj(), tensor[:1].expand(4, 8, 7, 6)):
        cores, report = tt_svd(view, Truncation(rtol=1e-6), method=method)
        torch.testing.assert_close(contract(cores), view.resolve_conj())
        assert all(core.is_contiguous() for core in cores[:-1])
        assert dense.distance(dense.full(cores), dense.array(view)) <= report.error_bound


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 2, 4)])
def test_bonds_that_keep_everything_share_no_memory(shape):
    tensor = normal(*shape)
    cores, _ = tt_svd(tensor, Truncation())
    before = contract(cores)
    tensor.zero_()
    torch.testing.assert_close(contract(cores), before)


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="method: expected one of auto, svd, qr, gram, got 'eig'"):
        tt_svd(torch.ones(2, 2), Truncation(), method="eig")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rank", [1, 2, 3, 9])
def test_gradients_where_the_spectrum_is_simple(rank, dtype):
    tensor = normal(3, 4, 2, dtype=dtype).requires_grad_()

    def rounded(t):
        return contract(tt_svd(t, Truncation(max_rank=rank))[0])

    assert torch.autograd.gradcheck(rounded, tensor)
    assert torch.autograd.gradgradcheck(rounded, tensor, fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_by_any_method_and_with_a_tolerance(method):
    tensor = noisy(smooth(6, 4), 1e-3).requires_grad_()
    slope = torch.randn(6, 6, 6, 6, dtype=torch.float64)
    found = []
    for options in ({"rtol": 1e-2, "method": method}, {"max_rank": (2, 2, 2), "method": "svd"}):
        kind = options.pop("method")
        cores, report = tt_svd(tensor, Truncation(**options), method=kind)
        assert report.ranks_after == (2, 2, 2)
        found.append(torch.autograd.grad(contract(cores), tensor, slope)[0])
    torch.testing.assert_close(*found)


def test_gradients_of_a_ghz_tensor_are_those_of_the_tangent_projection():
    """Equal singular values inside, a gap at the cut: compare with differences of the dense projection."""
    tensor = contract(ghz((3, 3, 3)))
    tensor[0, 1, 2] = 0.05
    slope = torch.randn(3, 3, 3, dtype=torch.float64)
    caps = Truncation(max_rank=3)

    def loss(t):
        return (contract(tt_svd(t, caps)[0]) * slope).sum()

    leaf = tensor.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(found, dense.gradient(loss, tensor), atol=1e-7, rtol=0)

    shape = (4, 4, 4)
    larger = contract(ghz((3, 3, 3)))
    larger = torch.nn.functional.pad(larger, (0, 1, 0, 1, 0, 1))
    slope = torch.randn(shape, dtype=torch.float64)
    leaf = larger.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(found, dense.gradient(loss, larger), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
@pytest.mark.parametrize("kind", ["zero", "repeated", "deficient"])
@pytest.mark.parametrize("options", [{"max_rank": 2}, {"max_rank": 9}, {"rtol": 1e-2}])
def test_gradients_of_degenerate_tensors_are_finite(options, kind, dtype):
    tensor = contract(cores_of(kind, (3, 4, 3), [2, 2], dtype, 0)).requires_grad_()
    cores, _ = tt_svd(tensor, Truncation(**options))
    loss = sum(core.abs().sum() for core in cores) + contract(cores).abs().square().sum()
    assert torch.isfinite(torch.autograd.grad(loss, tensor)[0]).all()


def test_the_zero_tensor_at_full_rank_has_the_gradient_of_the_identity():
    tensor = torch.zeros(2, 3, 6, dtype=torch.float64, requires_grad=True)
    slope = normal(2, 3, 6)
    (found,) = torch.autograd.grad(contract(tt_svd(tensor, Truncation(max_rank=9))[0]), tensor, slope)
    torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rank", [2, 9])
def test_fixed_ranks_under_vmap(rank, dtype):
    batch = normal(4, 3, 4, 5, dtype=dtype)
    batch[1] = 0
    truncation = Truncation(max_rank=rank)
    reports = []

    def rounded(tensor):
        cores, report = tt_svd(tensor, truncation)
        reports.append(report)
        return contract(cores)

    expected = torch.stack([rounded(tensor) for tensor in batch])
    torch.testing.assert_close(torch.func.vmap(rounded)(batch), expected)
    assert reports[-1].ranks_after == reports[0].ranks_after
    assert math.isnan(reports[-1].norm)
    assert math.isnan(reports[-1].error_bound)

    def loss(tensor):
        return rounded(tensor).abs().square().sum()

    slopes = torch.func.vmap(torch.func.grad(loss))(batch)
    torch.testing.assert_close(slopes, torch.stack([torch.func.grad(loss)(tensor) for tensor in batch]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo warns of what it does itself
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_fixed_ranks_compile_with_a_break_of_the_graph(needs_gradient):
    def rounded(tensor):
        return contract(tt_svd(tensor, Truncation(max_rank=2))[0])

    tensor = normal(3, 4, 5).requires_grad_(needs_gradient)
    found, expected = torch.compile(rounded, backend="eager")(tensor), rounded(tensor)
    torch.testing.assert_close(found, expected)
    if needs_gradient:
        slopes = [torch.autograd.grad(full.pow(3).sum(), tensor)[0] for full in (found, expected)]
        torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    "options", [{"rtol": 1e-3}, {"atol": 1.0}, {"cutoff": 1e-3}, {"svd_min": 1e-3}, {"degeneracy_tol": 1e-3}]
)
def test_tolerances_under_vmap_are_refused(options):
    truncation = Truncation(max_rank=2, **options)
    with pytest.raises(ConfigError, match=r"^truncation: expected max_rank alone under vmap.*fix the ranks"):
        torch.func.vmap(lambda t: tt_svd(t, truncation)[0])(torch.ones(2, 3, 3))


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e290])
def test_squares_out_of_range(method, scale):
    tensor = torch.randn(6, 7, 8, dtype=torch.float64)
    _, expected = tt_svd(tensor, Truncation(rtol=0.3), method=method)
    norm = float(tensor.norm())
    for wish in (Truncation(rtol=0.3), Truncation(atol=0.3 * norm * scale)):
        cores, report = tt_svd(tensor * scale, wish, method=method)
        assert report.ranks_after == expected.ranks_after
        assert report.norm / scale == pytest.approx(norm)
        assert report.relative_error == pytest.approx(expected.relative_error)
        error = float((contract(cores) / scale - tensor).norm())
        assert error == pytest.approx(report.error_estimate / scale)
