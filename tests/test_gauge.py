import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import dense
from tests.strategies import DTYPES, cores_of, eps, ghz, scale_of, trains
from ttnet import TensorTrain, gauge
from ttnet.cores import contract, possible_ranks, ranks_of
from ttnet.errors import NonFiniteError, ShapeError


@given(st.data())
def test_orthogonalize_keeps_the_tensor_and_its_input(data):
    train = data.draw(trains(storage=True))
    center = data.draw(st.integers(-train.ndim, train.ndim - 1))
    before = [core.clone() for core in train.cores]
    found = gauge.orthogonalize(train.cores, center, start=train.center)
    assert all(torch.equal(new, old) for new, old in zip(train.cores, before, strict=True))
    assert {core.dtype for core in found} == {train.dtype}
    assert dense.is_canonical(found, center % train.ndim)
    tolerance = 50 * eps(train.dtype) * scale_of(train)
    assert dense.distance(dense.full(found), dense.full(train.cores)) <= tolerance
    norm = dense.norm(dense.full(train.cores))
    assert dense.norm(dense.array(found[center])) == pytest.approx(norm, rel=1e-5, abs=tolerance)


@given(trains(kinds=("random", "zero")))
def test_ranks_above_what_a_side_allows_are_reduced(train):
    found = ranks_of(gauge.orthogonalize(train.cores, 0))
    assert all(r <= math.prod(train.shape[k + 1 :]) for k, r in enumerate(found[1:-1]))
    both = ranks_of(gauge.orthogonalize(gauge.orthogonalize(train.cores, 0), -1))
    assert all(r <= limit for r, limit in zip(both[1:-1], possible_ranks(train.shape), strict=True))


@pytest.mark.parametrize(("source", "target"), [(0, 4), (4, 0), (1, 3), (3, 1), (2, 2), (-1, 2)])
def test_moving_the_center_leaves_the_other_cores_alone(source, target):
    cores = gauge.orthogonalize(cores_of("random", (3,) * 5, [3, 4, 4, 3], torch.float64, 0), source)
    found = gauge.move_center(cores, source, target)
    low, high = sorted((source % 5, target))
    for k, (new, old) in enumerate(zip(found, cores, strict=True)):
        assert (new is old) == (not low <= k <= high or source == target)
    assert dense.is_canonical(found, target)
    torch.testing.assert_close(TensorTrain(found).full(), TensorTrain(cores).full())


@pytest.mark.parametrize("center", [3, -4, 1.5, None, "0"])
def test_a_center_that_is_no_core_is_refused(center):
    cores = cores_of("random", (2, 2, 2), [2, 2], torch.float32, 0)
    with pytest.raises(ShapeError, match=f"center: expected a core index from 0 to 2, got {center!r}"):
        gauge.orthogonalize(cores, center)


@pytest.mark.parametrize("center", [0, 1, 2])
def test_orthogonalize_is_differentiable(center):
    cores = cores_of("random", (2, 3, 2), [2, 2], torch.float64, 0)
    leaves = [core.requires_grad_() for core in cores]
    assert torch.autograd.gradcheck(lambda *c: gauge.orthogonalize(c, center), leaves)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["zero core", "zero", "deficient", "repeated"])
@pytest.mark.parametrize("center", [0, 1, 3])
def test_gradients_of_degenerate_trains_are_finite(kind, center, dtype):
    for seed in range(4 if kind == "zero core" else 1):
        cores = [core.requires_grad_() for core in cores_of(kind, (3, 2, 3, 2), [3, 4, 2], dtype, seed)]
        found = gauge.orthogonalize(cores, center)
        loss = contract(found).abs().square().sum() + sum(core.abs().sum() for core in found)
        for slope in torch.autograd.grad(loss, cores):
            assert torch.isfinite(slope).all()


@pytest.mark.parametrize("kind", ["random", "repeated"])
@pytest.mark.parametrize("center", [0, 1, 3])
def test_the_tensor_of_a_canonical_train_has_the_gradient_of_the_train(kind, center):
    cores = [core.requires_grad_() for core in cores_of(kind, (3, 4, 3, 5), [3, 3, 3], torch.complex128, 0)]
    slope = torch.randn(3, 4, 3, 5, dtype=torch.complex128)
    expected = torch.autograd.grad(contract(cores), cores, slope)
    found = torch.autograd.grad(contract(gauge.orthogonalize(cores, center)), cores, slope)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_zero_core_still_learns():
    cores = cores_of("random", (2, 3, 3), [2, 3], torch.float64, 0)
    cores[0] = torch.zeros_like(cores[0])
    leaves = [core.requires_grad_() for core in cores]
    target = torch.randn(2, 3, 3, dtype=torch.float64)

    def gradient(found):
        return torch.autograd.grad((contract(found) - target).square().sum(), leaves)[0]

    # The first core has as many rows as columns: its Q spans every direction.
    torch.testing.assert_close(gradient(gauge.orthogonalize(leaves, 1)), gradient(leaves))
    # Further on, a tall matrix of zeros has a Q that spans some: what arrives is a part of the gradient.
    assert gradient(gauge.orthogonalize(leaves, 2)).any()


@pytest.mark.parametrize("center", [0, 1, 2])
def test_orthogonalize_under_vmap(center):
    batch = [torch.randn(4, *shape, dtype=torch.float64) for shape in ((1, 2, 2), (2, 3, 3), (3, 4, 1))]
    found = torch.func.vmap(lambda *cores: gauge.orthogonalize(cores, center))(*batch)
    for k in range(4):
        expected = gauge.orthogonalize([core[k] for core in batch], center)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a[k], b)


@given(trains())
def test_spectra_and_entropy(train):
    truth = dense.full(train.cores)
    found = gauge.spectra(train.cores, center=train.center)
    assert len(found) == train.ndim - 1
    for bond, values in enumerate(found):
        assert not values.dtype.is_complex
        assert (values >= 0).all()
        assert (values.diff() <= 0).all()
        expected = dense.spectrum(truth, bond)
        count = max(len(expected), len(values))
        padded = [np.pad(np.asarray(v, np.float64), (0, count - len(v))) for v in (values, expected)]
        np.testing.assert_allclose(*padded, rtol=0, atol=50 * eps(train.dtype) * scale_of(train))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_entropy_of_a_random_train(dtype, scale):
    cores = cores_of("random", (3, 2, 3, 2), [3, 4, 2], dtype, 0)
    cores[1] *= scale
    for bond, values in enumerate(gauge.spectra(cores)):
        assert gauge.entropy(values) == pytest.approx(dense.entropy(dense.full(cores), bond), abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_singular_values(dtype):
    cores = ghz((3, 4, 3, 5), dtype)
    for values in gauge.spectra(cores):
        torch.testing.assert_close(values[:3], torch.ones(3, dtype=values.dtype))
        assert (values[3:] < 10 * eps(dtype)).all()
        assert gauge.entropy(values) == pytest.approx(math.log(3), rel=1e-5)


def test_entropy_of_extremes():
    assert gauge.entropy(torch.zeros(3)) == 0.0
    assert gauge.entropy(torch.tensor([5.0, 0.0])) == 0.0
    assert gauge.entropy(torch.full((8,), 1e-200, dtype=torch.float64)) == pytest.approx(math.log(8))


def test_spectra_of_storage_are_computed_in_single_precision():
    cores = cores_of("random", (3, 4, 3), [3, 3], torch.bfloat16, 0)
    for bond, values in enumerate(gauge.spectra(cores)):
        assert values.dtype == torch.float32
        expected = dense.spectrum(dense.full(cores), bond)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5 * expected[0])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("ranks", [[2, 3, 3], [5, 6, 4]])
def test_left_triangles(dtype, ranks):
    cores = cores_of("random", (2, 3, 2, 4), ranks, dtype, 0)
    triangles = gauge.left_triangles(cores)
    assert len(triangles) == 3
    for k, triangle in enumerate(triangles):
        interface = dense.left_interface(cores[: k + 1])
        assert triangle.shape == (min(interface.shape), ranks[k])
        assert (triangle.tril(-1) == 0).all()
        # The same Gram matrix, hence the same triangle up to the signs that are fixed.
        found = dense.array(triangle)
        gram = interface.conj().T @ interface
        np.testing.assert_allclose(found.conj().T @ found, gram, rtol=0, atol=1e-5 * dense.norm(gram))


def random_maps(ranks, dtype):
    """Invertible changes of gauge."""
    left = tuple(torch.randn(r, r, dtype=dtype) for r in ranks)
    return gauge.GaugeMaps(left=left, right=tuple(torch.linalg.inv(matrix) for matrix in left))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gauge_maps_change_the_cores_and_not_the_tensor(dtype):
    cores = cores_of("random", (3, 4, 2, 3), [3, 4, 2], dtype, 0)
    maps = random_maps([3, 4, 2], dtype)
    found = maps.apply(cores)
    truth = dense.full(cores)
    assert dense.distance(dense.full(found), truth) <= 1e4 * eps(dtype) * dense.norm(truth)
    roundoff = 1e4 * eps(dtype)
    for k in range(3):
        left = dense.left_interface(cores[: k + 1]) @ dense.array(maps.left[k])
        right = dense.array(maps.right[k]) @ dense.right_interface(cores[k + 1 :])
        assert dense.distance(dense.left_interface(found[: k + 1]), left) <= roundoff * dense.norm(left)
        assert dense.distance(dense.right_interface(found[k + 1 :]), right) <= roundoff * dense.norm(right)


def test_gauge_maps_follow_one_another():
    cores = cores_of("random", (3, 4, 2), [3, 2], torch.complex128, 0)
    first, second = random_maps([3, 2], torch.complex128), random_maps([3, 2], torch.complex128)
    for at_once, in_turn in zip(
        first.then(second).apply(cores), second.apply(first.apply(cores)), strict=True
    ):
        torch.testing.assert_close(at_once, in_turn)


def test_gauge_maps_of_a_single_core():
    core = torch.randn(1, 4, 1)
    assert gauge.GaugeMaps(left=(), right=()).apply([core])[0] is core


@pytest.mark.parametrize("factor", [0.01, 1.0])
@pytest.mark.parametrize("center", [0, 150, -1])
def test_a_norm_that_no_number_can_hold_is_refused(factor, center):
    cores = [core * factor for core in cores_of("random", (4,) * 300, [3] * 299, torch.float32, 0)]
    message = r"train: expected a norm within the range of torch\.float32 .*train\.normalized\(\)"
    with pytest.raises(NonFiniteError, match=message):
        gauge.orthogonalize(cores, center)
    found, exponent = gauge.orthogonalize_scaled(cores, center)
    assert dense.is_canonical(found, center % 300)
    logarithm = float(torch.linalg.vector_norm(found[center]).log()) + exponent * math.log(2)
    assert logarithm == pytest.approx(float(TensorTrain(cores).log_norm()), rel=1e-5)


@pytest.mark.parametrize("center", [0, 3, -1])
def test_what_is_out_of_range_on_the_way_alone_does_no_harm(center):
    exact = cores_of("random", (3,) * 6, [3] * 5, torch.float64, 0)
    scales = (1e25, 1e25, 1e-30, 1e-30, 1e30, 1e-20)
    cores = [(core * scale).float() for core, scale in zip(exact, scales, strict=True)]
    found = gauge.orthogonalize(cores, center)
    torch.testing.assert_close(contract(found), contract(exact).float(), rtol=1e-4, atol=1e-4)


def test_non_finite_cores_are_refused():
    cores = cores_of("random", (3, 3), [3], torch.float32, 0)
    cores[1][0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="matrix: expected finite entries in every core"):
        gauge.orthogonalize(cores, 0)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.complex64, 4e18), (torch.complex128, 10**153.5)])
def test_complex_cores_whose_squares_are_about_to_overflow(dtype, scale):
    cores = [torch.randn(1, 24, 8, dtype=dtype), torch.randn(8, 8, 1, dtype=dtype)]
    found = gauge.orthogonalize([cores[0] * scale, cores[1]], 1)
    torch.testing.assert_close(contract([found[0], found[1] / scale]), contract(cores))
