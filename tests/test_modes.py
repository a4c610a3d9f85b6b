"""Products, joining, padding, contractions with matrices and trains, sums and means, against numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import dense
from tests.matrices import full, matrices
from tests.matrices import scale_of as matrix_scale_of
from tests.strategies import DTYPES, eps, normal, scale_of, trains
from ttnet import modes
from ttnet.cores import check, contract, ranks_of
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.random import random_cores


def near(found, expected, dtype) -> bool:
    expected = np.asarray(expected)
    return dense.distance(found, expected) <= 100 * eps(dtype) * max(1.0, dense.norm(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype) -> None:
    a, b = random_cores((3, 1, 4), 2, seed=0, dtype=dtype), random_cores((2, 3, 2), 3, seed=1, dtype=dtype)
    assert near(contract(check(modes.kron(a, b))), np.kron(dense.full(a), dense.full(b)), dtype)
    outer = np.multiply.outer(dense.full(a), dense.full(b))
    assert near(contract(check(modes.outer(a, b))), outer, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [0, 1, -1])
def test_concatenation(mode, dtype) -> None:
    shapes = [[3, 2, 4] for _ in range(3)]
    for k, shape in enumerate(shapes):
        shape[mode] = k + 1
    trains = [random_cores(shape, 2, seed=k, dtype=dtype) for k, shape in enumerate(shapes)]
    expected = np.concatenate([dense.full(cores) for cores in trains], axis=mode)
    assert near(contract(check(modes.concatenate(trains, mode))), expected, dtype)


def test_concatenation_of_one_mode() -> None:
    vectors = [random_cores((n,), 1, seed=n) for n in (2, 1, 3)]
    joined = modes.concatenate(vectors)
    assert torch.equal(contract(joined), torch.cat([contract(v) for v in vectors]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [None, 0, -1, (0, 2), (1,), (), (0, 1, 2, 3)])
def test_sums_and_means(chosen, dtype) -> None:
    cores = random_cores((3, 1, 4, 2), 3, seed=0, dtype=dtype)
    full = dense.full(cores)
    axes = tuple(range(4)) if chosen is None else chosen
    for reduce, expected in (
        (modes.sum_modes, full.sum(axis=axes)),
        (modes.mean_modes, full.mean(axis=axes)),
    ):
        found = reduce(cores, chosen)
        found = found if isinstance(found, torch.Tensor) else contract(check(found))
        assert near(found, expected, dtype)


def test_the_mean_of_many_entries_does_not_overflow() -> None:
    ones = [torch.ones(1, 10, 1) for _ in range(200)]
    assert float(modes.mean_modes(ones)) == pytest.approx(1.0)


@given(trains(scales=False), st.data())
def test_padding(train, data):
    widths = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in train.shape]
    value = data.draw(st.sampled_from([0, 0.0, -2.5, 1e3]))
    exact = np.pad(dense.full(train.cores), widths, constant_values=value)
    found = check(modes.pad(train.cores, widths, value))
    assert dense.distance(dense.full(found), exact) <= 20 * eps(train.dtype) * (
        scale_of(train) + dense.norm(exact)
    )
    if value == 0:
        assert ranks_of(found) == train.ranks


@settings(max_examples=50)
@given(matrices(), st.data())
def test_padding_and_concatenation_of_matrices(matrix, data):
    sizes = (*matrix.rows, *matrix.columns)
    x = full(matrix.cores).reshape(sizes)
    scale = matrix_scale_of(matrix)
    widths = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in sizes]
    exact = np.pad(x, widths, constant_values=0.5)
    padded = modes.pad(matrix.cores, widths, 0.5)
    assert modes.dense_shape(padded) == exact.shape
    tolerance = 20 * eps(matrix.dtype)
    assert dense.distance(full(padded).reshape(exact.shape), exact) <= tolerance * (scale + dense.norm(exact))
    mode = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    joined = modes.concatenate([matrix.cores, matrix.cores], mode)
    exact = np.concatenate([x, x], mode)
    assert dense.distance(full(joined).reshape(exact.shape), exact) <= tolerance * scale


@settings(max_examples=50)
@given(matrices(), st.data())
def test_sums_over_rows_and_columns(matrix, data):
    sizes = (*matrix.rows, *matrix.columns)
    chosen = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    for side in data.draw(st.sampled_from([(), (0,), (1,), (0, 1)])):
        chosen |= set(range(side * matrix.ndim, (side + 1) * matrix.ndim))
    exact = full(matrix.cores).reshape(sizes).sum(axis=tuple(chosen))
    found = modes.sum_modes(matrix.cores, tuple(chosen))
    values = dense.array(found) if isinstance(found, torch.Tensor) else None
    values = (full(found) if found[0].ndim == 4 else dense.full(found)) if values is None else values
    tolerance = 20 * eps(matrix.dtype) * np.prod(sizes) * matrix_scale_of(matrix)
    assert dense.distance(values.reshape(exact.shape), exact) <= tolerance


@given(trains(scales=False), st.data())
def test_stacking(train, data):
    mode = data.draw(st.integers(-train.ndim - 1, train.ndim))
    other = random_cores(train.shape, 2, seed=0, dtype=train.dtype)
    exact = np.stack([dense.full(train.cores), dense.full(other)], mode)
    found = dense.full(check(modes.stack([train.cores, other], mode)))
    assert dense.distance(found, exact) <= 20 * eps(train.dtype) * (scale_of(train) + dense.norm(exact))


@given(trains(scales=False), st.data())
def test_mode_product(train, data):
    chosen = data.draw(st.lists(st.integers(-train.ndim, train.ndim - 1), max_size=3))
    generator = torch.Generator().manual_seed(0)
    exact, several, sizes = dense.full(train.cores), [], list(train.shape)
    for mode in chosen:
        several.append(
            normal(data.draw(st.integers(1, 3)), sizes[mode], dtype=train.dtype, generator=generator)
        )
        sizes[mode] = len(several[-1])
        exact = np.moveaxis(np.tensordot(dense.array(several[-1]), exact, (1, mode)), 0, mode)
    found = dense.full(check(modes.mode_product(train.cores, several, chosen)))
    scale = scale_of(train) * math.prod(dense.norm(dense.array(m)) for m in several)
    assert dense.distance(found, exact) <= 50 * eps(train.dtype) * scale


@given(trains(scales=False, min_modes=2), st.data())
def test_partial_dot(train, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, train.ndim - 1), min_size=1)))
    bra = random_cores([train.shape[k] for k in chosen], 3, seed=0, dtype=train.dtype)
    exact = np.tensordot(dense.full(bra).conj(), dense.full(train.cores), (range(len(chosen)), chosen))
    found = modes.partial_dot(bra, train.cores, [k - train.ndim if k % 2 else k for k in chosen])
    found = dense.array(found) if isinstance(found, torch.Tensor) else dense.full(check(found))
    scale = scale_of(train) * math.prod(dense.norm(dense.array(core)) for core in bra)
    assert dense.distance(found, exact) <= 50 * eps(train.dtype) * scale


def test_new_functions_are_differentiable() -> None:
    a = [core.requires_grad_() for core in random_cores((2, 3, 2), 2, seed=0, dtype=torch.float64)]
    b = random_cores((3,), 1, seed=1, dtype=torch.float64)
    matrix = torch.ones(2, 3, dtype=torch.float64)
    for function in (
        lambda *c: modes.pad(c, [(1, 0)] * 3, 2.0),
        lambda *c: modes.stack([c, c], 1),
        lambda *c: modes.mode_product(c, matrix, 1),
        lambda *c: modes.partial_dot(b, c, 1),
    ):
        assert torch.autograd.gradcheck(lambda *c, f=function: contract(f(*c)), a)


def test_bad_input_is_named() -> None:
    a, b = random_cores((3, 2), 2, seed=0), random_cores((3, 2, 2), 2, seed=0)
    with pytest.raises(ShapeError, match=r"other: expected a train of 2 modes, got 3"):
        modes.kron(a, b)
    with pytest.raises(
        ShapeError, match=r"trains: expected the shape \(3, 2\) but for mode 0, got \(3, 2, 2\)"
    ):
        modes.concatenate([a, b])
    with pytest.raises(ShapeError, match=r"mode: expected a core index from 0 to 1, got 2"):
        modes.concatenate([a, a], 2)
    with pytest.raises(ShapeError, match=r"modes: expected a core index from 0 to 1, got 5"):
        modes.sum_modes(a, 5)
    with pytest.raises(ShapeError, match=r"trains: expected at least one train"):
        modes.concatenate([])
    for widths in ([(1, 1)], [(1, 1), (0, -1)], [1, 2], [(1, 1), (1, 1, 1)]):
        with pytest.raises(ShapeError, match=r"^widths: expected 2 pairs \(before, after\)"):
            modes.pad(a, widths)
    with pytest.raises(ShapeError, match=r"matrices: expected \(m, 3\) for mode 0, got \(2, 2\)"):
        modes.mode_product(a, torch.ones(2, 2), 0)
    with pytest.raises(ShapeError, match=r"matrices: expected one for each of the modes \[0, 1\], got 1"):
        modes.mode_product(a, [torch.ones(2, 3)], [0, 1])
    with pytest.raises(DTypeError, match=r"matrices: .*int64"):
        modes.mode_product(a, torch.ones(2, 3, dtype=torch.int64), 0)
    with pytest.raises(DeviceError, match="matrices: "):
        modes.mode_product(a, torch.ones(2, 3, device="meta"), 0)
    with pytest.raises(ShapeError, match=r"modes: expected 2 modes in ascending order, got \(1, 0\)"):
        modes.partial_dot(a, b, (1, 0))
    with pytest.raises(
        ShapeError, match=r"other: expected sizes \(3, 2\) of the modes \[1, 2\], got \(2, 2\)"
    ):
        modes.partial_dot(a, b, (1, 2))
    with pytest.raises(ShapeError, match="trains: expected at least one train"):
        modes.stack([])
    with pytest.raises(ShapeError, match=r"expected a train of shape \(3, 2\), got \(3, 2, 2\)"):
        modes.stack([a, b])
