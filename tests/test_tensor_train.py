import copy
import math
import pickle

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import ttnet
from tests import dense
from tests.strategies import DTYPES, STORAGE_DTYPES, cores_of, eps, ghz, scale_of, trains
from ttnet import TensorTrain, Truncation
from ttnet.errors import ConfigError, DeviceError, DTypeError, NonFiniteError, RankError, ShapeError


def example(shape=(3, 4, 5), rank=3, *, seed=0, dtype=torch.float64, **options):
    return ttnet.random_train(shape, rank, seed=seed, dtype=dtype, **options)


@given(trains(storage=True))
def test_what_is_derived_from_the_cores(train):
    assert train.ndim == len(train.cores) == len(train.shape)
    assert len(train) == train.shape[0]
    assert train.shape == tuple(core.shape[1] for core in train.cores)
    assert train.ranks == (1, *(core.shape[2] for core in train.cores))
    assert train.num_parameters == sum(core.numel() for core in train.cores)
    assert train.device == torch.device("cpu")
    assert repr(train) == (
        f"TensorTrain(shape={train.shape}, ranks={train.ranks}, dtype={train.dtype}, center={train.center})"
    )
    full = train.full()
    assert full.dtype == train.dtype
    assert dense.distance(full, dense.full(train.cores)) <= 10 * eps(train.dtype) * scale_of(train)


def test_trains_are_immutable():
    train = example()
    for name in ("cores", "center", "ranks", "shape", "dtype", "anything"):
        with pytest.raises(AttributeError):
            setattr(train, name, None)
    with pytest.raises(TypeError):
        train[0] = 1
    assert isinstance(train.cores, tuple)


def test_a_train_does_not_follow_the_list_it_was_made_of():
    cores = list(example().cores)
    train = TensorTrain(cores)
    cores.clear()
    assert train.ndim == 3


@pytest.mark.parametrize(("center", "expected"), [(None, None), (0, 0), (2, 2), (-1, 2)])
def test_center_is_remembered(center, expected):
    assert TensorTrain(example().cores, center).center == expected


@pytest.mark.parametrize("center", [3, -4, 0.5])
def test_a_center_that_is_no_core_is_refused(center):
    with pytest.raises(ShapeError, match=rf"^center: expected a core index from 0 to 2, got {center}"):
        TensorTrain(example().cores, center)


def test_cores_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"^cores: expected equal ranks at bond 0"):
        TensorTrain([torch.ones(1, 2, 3), torch.ones(2, 2, 1)])
    with pytest.raises(DTypeError, match=r"^dtype: .*int64"):
        TensorTrain([torch.ones(1, 2, 1, dtype=torch.int64)])
    with pytest.raises(DeviceError, match=r"^cores: expected one device"):
        TensorTrain([torch.ones(1, 2, 1), torch.ones(1, 2, 1, device="meta")])


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda train: pickle.loads(pickle.dumps(train))]
)
def test_copies_and_pickles(copied):
    train = example(dtype=torch.complex64).orthogonalize(1)
    found = copied(train)
    assert found.center == 1
    assert all(torch.equal(a, b) for a, b in zip(found.cores, train.cores, strict=True))


def test_clone_has_memory_of_its_own_and_detach_has_no_graph():
    cores = [core.requires_grad_() for core in example().cores]
    train = TensorTrain(cores, 1)
    clone, detached = train.clone(), train.detach()
    assert clone.center == detached.center == 1
    assert all(
        a.data_ptr() != b.data_ptr() and a.requires_grad for a, b in zip(clone.cores, cores, strict=True)
    )
    assert all(
        a.data_ptr() == b.data_ptr() and not a.requires_grad
        for a, b in zip(detached.cores, cores, strict=True)
    )


@pytest.mark.parametrize("right", STORAGE_DTYPES)
@pytest.mark.parametrize("left", STORAGE_DTYPES)
def test_arithmetic_of_two_dtypes(left, right):
    a, b = example(dtype=left), example(seed=1, rank=2, dtype=right)
    expected = torch.promote_types(left, right)
    x, y = dense.full(a.cores), dense.full(b.cores)
    for found, truth in ((a + b, x + y), (a - b, x - y), (a * b, x * y)):
        assert found.dtype == expected
        assert found.center is None
        assert dense.distance(dense.full(found.cores), truth) <= 20 * eps(expected) * scale_of(a) * scale_of(
            b
        )
    product = a.dot(b)
    assert product.dtype == expected
    assert product.shape == ()
    assert abs(product.item() - dense.inner(x, y)) <= 20 * eps(expected) * scale_of(a) * scale_of(b)
    assert torch.equal(a @ b, product)


def test_the_inner_product_conjugates_its_first_argument():
    a, b = example(dtype=torch.complex128), example(dtype=torch.complex128, seed=1)
    torch.testing.assert_close(a.dot(b), torch.vdot(a.full().flatten(), b.full().flatten()))
    torch.testing.assert_close((a * 1j).dot(b), -1j * a.dot(b))
    torch.testing.assert_close(a.dot(b), b.dot(a).conj())
    torch.testing.assert_close(a.conj().full(), a.full().conj())
    torch.testing.assert_close(a.dot(a).real.sqrt(), a.norm())


NUMBERS = [
    2,
    -3,
    0,
    True,
    0.1,
    1 / 3,
    1j,
    0.3 - 0.1j,
    *(t(0.1) for t in (np.float32, np.float64)),
    np.int64(3),
]


@pytest.mark.parametrize("number", [*NUMBERS, np.complex128(0.1j)], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [None, 1])
def test_numbers_of_every_type(number, dtype, center):
    train = example(dtype=dtype)
    train = train if center is None else train.orthogonalize(center)
    plain = number.item() if isinstance(number, np.generic) else number
    expected = train.full() * plain
    for found in (train * number, number * train):
        assert isinstance(found, TensorTrain)
        assert found.dtype == expected.dtype
        assert found.center == center
        torch.testing.assert_close(found.full(), expected, rtol=50 * eps(dtype), atol=50 * eps(dtype))
        assert found.norm().item() == pytest.approx(dense.norm(dense.array(expected)), rel=1e-5)
    if number:
        quotient = train / number
        assert quotient.dtype == (train.full() / plain).dtype
        torch.testing.assert_close(
            quotient.full(), train.full() / plain, rtol=50 * eps(dtype), atol=50 * eps(dtype)
        )


@pytest.mark.parametrize("number", [0.1, 2, 0.1j], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64])
def test_numbers_as_tensors(number, dtype):
    train = example(dtype=torch.float32)
    if isinstance(number, complex) and not dtype.is_complex:
        dtype = torch.complex128
    tensor = torch.tensor(number, dtype=dtype)
    for found in (train * tensor, tensor * train):
        assert found.dtype == torch.result_type(train.full(), tensor)
        torch.testing.assert_close(found.full(), train.full() * tensor)
    torch.testing.assert_close((train / tensor).full(), train.full() / tensor)


def test_a_number_keeps_its_graph():
    number = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    train = example()
    (train * number).full().sum().backward()
    torch.testing.assert_close(number.grad, train.full().sum())


def test_negative():
    train = example().orthogonalize(2)
    assert (-train).center == 2
    torch.testing.assert_close((-train).full(), -train.full())


@pytest.mark.parametrize("other", ["2", None, [1, 2], object()], ids=["text", "none", "list", "object"])
def test_what_is_no_number_is_refused(other):
    for operation in (lambda: example() * other, lambda: example() / other):
        with pytest.raises(DTypeError, match=r"^other: expected a number or a train, got "):
            operation()


def test_tensors_are_no_numbers():
    with pytest.raises(
        ShapeError, match=r"^other: expected a number or a train, got a tensor of shape \(2,\)"
    ):
        example() * torch.ones(2)


@pytest.mark.parametrize("operation", ["__add__", "__sub__", "__mul__", "__truediv__"])
@pytest.mark.parametrize("other", [torch.ones(3, 4, 5), None], ids=["tensor", "none"])
def test_what_is_neither_number_nor_train_is_refused(operation, other):
    with pytest.raises((DTypeError, ShapeError), match=r"^other: expected a number or a train, got "):
        getattr(example(), operation)(other)


@pytest.mark.parametrize("operation", ["dot", "__matmul__"])
@pytest.mark.parametrize("other", [1, torch.ones(3, 4, 5), None], ids=["number", "tensor", "none"])
def test_what_is_no_train_is_refused(operation, other):
    with pytest.raises(DTypeError, match=rf"^other: expected a TensorTrain, got {type(other).__name__}"):
        getattr(example(), operation)(other)


@pytest.mark.parametrize("operation", ["__add__", "__sub__", "__mul__", "dot"])
def test_other_shapes_and_devices_are_refused(operation):
    with pytest.raises(ShapeError, match=r"^other: expected a train of shape \(3, 4, 5\), got \(3, 4, 6\)"):
        getattr(example(), operation)(example((3, 4, 6)))
    meta = TensorTrain([core.to("meta") for core in example().cores])
    with pytest.raises(
        DeviceError, match=r"^other: expected a TensorTrain on cpu, got one on meta; use \.to"
    ):
        getattr(example(), operation)(meta)


@given(trains(storage=True))
def test_norm(train):
    truth, tolerance = dense.norm(dense.full(train.cores)), 50 * eps(train.dtype) * scale_of(train)
    assert train.norm().item() == pytest.approx(truth, abs=tolerance)
    assert not train.norm().dtype.is_complex
    assert TensorTrain(train.cores).norm().item() == pytest.approx(truth, abs=tolerance)


def test_norm_with_a_center_reads_that_core_alone():
    train = example().orthogonalize(1)
    spoiled = TensorTrain([train.cores[0] * 5, train.cores[1], train.cores[2]], 1)
    assert torch.equal(spoiled.norm(), train.norm())


@pytest.mark.parametrize(
    "key",
    [
        (1, 2, 3),
        (-1, -4, -5),
        0,
        -3,
        slice(None),
        slice(1, None),
        slice(None, None, -1),
        (slice(None), 2),
        (..., 2),
        (1, ...),
        (1, ..., 2),
        (..., slice(0, 2), 1),
        ...,
        (),
        [0, 2, 0],
        ([0, 2], 1, [4, 4, 0]),
        ([True, False, True], slice(1, 3), 2),
        (np.array([1, 2]), np.int64(1), np.array([True, False, True, False, False])),
        (1, slice(None), 2),
    ],
    ids=repr,
)
def test_indexing_has_the_semantics_of_numpy(key):
    train = example()
    entries = list(key) if isinstance(key, tuple) else [key]
    if any(entry is Ellipsis for entry in entries):
        at = next(k for k, entry in enumerate(entries) if entry is Ellipsis)
        entries[at : at + 1] = [slice(None)] * (3 - len(entries) + 1)
    found, truth = train[key], dense.index(train.full().numpy(), entries)
    assert tuple(found.shape) == truth.shape
    np.testing.assert_allclose(np.asarray(found), truth, atol=1e-13)
    assert isinstance(found, torch.Tensor) == (truth.ndim == 0)


def test_indexing_with_tensors():
    train = example()
    found = train[torch.tensor([2, 0]), torch.tensor(1), torch.tensor([True, False, True, True, False])]
    torch.testing.assert_close(found.full(), train.full()[[2, 0], 1][:, [0, 2, 3]])


@pytest.mark.parametrize("key", [(0, 0, 0, 0), (..., ...), (..., 0, ...), (0, ..., 0, 0, 0)], ids=repr)
def test_too_many_indices_are_refused(key):
    with pytest.raises(ShapeError, match=r"^index: expected at most 3 indices and one ellipsis"):
        example()[key]


def test_iteration_runs_over_the_first_mode():
    train = example()
    for found, expected in zip(train, train.full(), strict=True):
        torch.testing.assert_close(found.full(), expected)
    assert [float(entry) for entry in example((4,))] == example((4,)).full().tolist()


@pytest.mark.parametrize("shape", [(4,), (1,)])
def test_entries_are_no_views_of_the_cores(shape):
    train = ttnet.TensorTrain([torch.ones(1, *shape, 1)])
    for entry in (train[0], train[..., -1], train.max(), train.sum()):
        entry += 5
    assert torch.equal(train.full(), torch.ones(shape))


def test_no_entries_are_gathered_from_no_indices():
    for none in ([], (), np.empty((0, 3), dtype=np.int64), torch.empty(0, 3, dtype=torch.int64)):
        assert example().gather(none).shape == (0,)


def test_what_is_no_truncation_is_refused_with_a_remedy():
    train, array = example(), example().numpy()
    for bad, remedy in ((2, "max_rank=2"), ([2, 2], r"max_rank=\[2, 2\]"), (1e-3, "rtol=0.001"), (None, "")):
        message = rf"^truncation: expected a Truncation, got .*; write Truncation\({remedy}\)$"
        calls = [
            lambda cut: train.truncate(cut),
            lambda cut: train.truncate(cut, method="gram"),
            lambda cut: ttnet.add(train, train, truncation=cut),
            lambda cut: ttnet.multiply(train, train, cut),
        ]
        if bad is not None:  # which is the default of these
            calls += [lambda cut: ttnet.tt_svd(array, cut), lambda cut: train.reshape((-1,), cut)]
        for call in calls:
            with pytest.raises(ConfigError, match=message):
                call(bad)


def test_operators_without_exact_cores_are_refused_with_a_remedy():
    train = example()
    for call, message in [
        (lambda: torch.ones(3) @ train, "other: expected a TensorTrain, got Tensor; .* mode_product"),
        (lambda: 2**train, "exponent: .* got a TensorTrain; .* ttnet.apply_elementwise"),
        (lambda: torch.tensor(2.0) ** train, "exponent: .* ttnet.apply_elementwise"),
        (lambda: abs(train), "abs: .* ttnet.apply_elementwise"),
        (lambda: train**0.5, "exponent: .* got 0.5"),
    ]:
        with pytest.raises(DTypeError, match=f"^{message}"):
            call()
    torch.testing.assert_close((train ** torch.tensor(2)).full(), train.full() ** 2)
    for call in (lambda: train + train.numpy(), lambda: train.numpy() * train):
        with pytest.raises(ShapeError, match=r"^other: expected a number or a train, got an array .*tt_svd"):
            call()
    torch.testing.assert_close((train * np.array(2.0)).full(), 2 * train.full())


@pytest.mark.parametrize("modes", [None, 0, 1, -1, (0, 2), [1], (0, 1, 2), ()], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum(modes, dtype):
    train = example(dtype=dtype).orthogonalize(1)
    axes = modes if modes is None or isinstance(modes, int) else tuple(set(modes))
    truth = train.full().numpy().sum(axis=axes)
    found = train.sum(modes)
    assert isinstance(found, torch.Tensor) == (truth.ndim == 0)
    np.testing.assert_allclose(np.asarray(found), truth, rtol=0, atol=1e3 * eps(dtype))


@pytest.mark.parametrize("modes", [(0, 0), (0, -3), [1, 2, 1]])
def test_a_mode_that_is_named_twice_is_refused(modes):
    for reduce in (example().sum, example().mean):
        with pytest.raises(ShapeError, match=r"^modes: expected each mode once, got \("):
            reduce(modes)


@pytest.mark.parametrize("mode", [3, -4, "0", True])
def test_a_mode_that_does_not_exist_is_refused(mode):
    with pytest.raises(ShapeError, match=rf"^modes: expected a core index from 0 to 2, got {mode!r}"):
        example().sum((mode,))


def test_orthogonalize_tracks_the_center():
    train = example()
    canonical = train.orthogonalize(1)
    assert train.center is None
    assert canonical.center == 1
    assert dense.is_canonical(canonical.cores, 1)
    assert canonical.orthogonalize(1) is canonical
    assert canonical.orthogonalize(-2) is canonical
    moved = canonical.orthogonalize(2)
    assert moved.center == 2
    assert moved.cores[0] is canonical.cores[0]
    torch.testing.assert_close(moved.full(), train.full())


def test_operations_that_break_the_gauge_forget_the_center():
    train = example((3, 4, 5)).orthogonalize(1)
    for found in (train + train, train - train, train * train, train[:, [0, 0]], train[1:], train.sum(0)):
        assert found.center is None


def test_truncate():
    train = example()
    found = train.truncate(Truncation(max_rank=2))
    again, report = train.truncate(Truncation(max_rank=2), return_report=True)
    assert found.center == again.center == 0
    assert found.ranks == again.ranks == (1, 2, 2, 1)
    assert report.ranks_after == (2, 2)
    torch.testing.assert_close(found.full(), again.full())
    assert dense.distance(found.full(), train.full()) == pytest.approx(report.error_estimate)


@pytest.mark.parametrize("method", ["auto", "svd", "qr-svd", "gram", "randomized"])
def test_truncate_by_every_method(method):
    train = example((4, 5, 6, 3), 6)
    found, report = train.truncate(Truncation(max_rank=3), method=method, return_report=True)
    assert (found.center, found.ranks) == (0, (1, 3, 3, 3, 1))
    assert dense.is_canonical(found.cores, 0)
    assert dense.distance(found.full(), train.full()) <= report.error_bound
    assert found.norm().item() == pytest.approx(dense.norm(dense.array(found.full())))
    with pytest.raises(ConfigError, match=r"^method: "):
        train.truncate(Truncation(max_rank=3), method="magic")


def test_truncate_in_a_metric():
    train, roots = example(), [torch.randn(n, n, dtype=torch.float64) for n in (3, 4, 5)]
    found, report = train.truncate(
        Truncation(max_rank=2), metric=[root.mH @ root for root in roots], return_report=True
    )
    assert found.center is None
    difference = torch.einsum("abc,ia,jb,kc->ijk", found.full() - train.full(), *roots)
    assert float(difference.norm()) <= report.error_bound
    assert found.norm().item() == pytest.approx(dense.norm(dense.array(found.full())))
    unseen = train.truncate(Truncation(max_rank=2), metric=[None, None, None])
    torch.testing.assert_close(unseen.full(), train.truncate(Truncation(max_rank=2)).full())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (1,), (1, 1, 1), (5, 1, 3), (2,) * 8])
def test_edge_shapes_live_through_everything(shape, dtype):
    a, b = example(shape, 3, dtype=dtype), example(shape, 1, dtype=dtype, seed=1)
    total = (a + b).truncate(Truncation(rtol=1e-5))
    truth = a.full() + b.full()
    assert dense.distance(total.full(), truth) <= 2e-5 * dense.norm(dense.array(truth))
    assert total.orthogonalize(-1).norm().item() == pytest.approx(dense.norm(dense.array(truth)), rel=1e-4)
    assert len(total.spectra()) == len(shape) - 1
    assert abs(a.dot(b).item() - dense.inner(dense.array(a.full()), dense.array(b.full()))) < 1e-3


@given(trains(kinds=("random", "repeated", "zero core"), min_modes=2))
def test_spectra_spectrum_and_entropy_agree(train):
    truth, all_at_once = dense.full(train.cores), train.spectra()
    for bond in range(train.ndim - 1):
        values = train.spectrum(bond)
        tolerance = 50 * eps(train.dtype) * scale_of(train)
        for found in (values, all_at_once[bond]):
            count = min(len(found), len(dense.spectrum(truth, bond)))
            np.testing.assert_allclose(
                found[:count], dense.spectrum(truth, bond)[:count], rtol=0, atol=tolerance
            )
            assert (found[count:] <= tolerance).all()
        if dense.norm(truth) > 1e3 * tolerance:
            assert train.entropy(bond) == pytest.approx(dense.entropy(truth, bond), abs=1e-2)


def test_entropy_of_known_states():
    state = TensorTrain(ghz((3, 3, 3, 3)))
    assert [state.entropy(k) for k in range(3)] == pytest.approx([math.log(3)] * 3)
    assert example((3, 4, 5), 1).entropy(1) == pytest.approx(0.0, abs=1e-12)
    assert (example() * 0).entropy(0) == 0.0


@pytest.mark.parametrize("bond", [2, -1, 5])
def test_a_bond_that_does_not_exist_is_refused(bond):
    for operation in (example().spectrum, example().entropy):
        with pytest.raises(ShapeError, match=rf"^bond: expected an index from 0 to 1, got {bond}"):
            operation(bond)


def test_orthogonalize_and_truncate_refuse():
    with pytest.raises(ShapeError, match=r"^center: "):
        example().orthogonalize(3)
    with pytest.raises(RankError, match=r"^max_rank: "):
        example().truncate(Truncation(max_rank=(9, 9)))


@pytest.mark.parametrize("exponent", [-25, 25])
def test_far_from_one_nothing_overflows(exponent):
    train = example(dtype=torch.float32) * 10.0**exponent
    rounded, report = train.truncate(Truncation(rtol=0.5), return_report=True)
    norm = dense.norm(dense.full(train.cores))
    assert train.norm().item() == pytest.approx(norm, rel=1e-5)
    assert report.norm == pytest.approx(norm, rel=1e-5)
    assert rounded.ranks < train.ranks
    assert dense.distance(dense.full(rounded.cores), dense.full(train.cores)) <= 0.5 * norm


def test_to_another_dtype_or_device(device):
    train = example(dtype=torch.float32).orthogonalize(1)
    assert train.to(torch.float32) is train
    double = train.to(torch.float64)
    assert (double.dtype, double.center) == (torch.float64, 1)
    assert train.to(dtype=torch.complex64).dtype == torch.complex64
    assert train.to(device).device.type == device.type
    assert train.to(device, torch.bfloat16).dtype == torch.bfloat16
    assert train.to(double.cores[0]).dtype == torch.float64


def test_dtypes_that_a_train_cannot_have_are_refused():
    with pytest.raises(DTypeError, match=r"^dtype: .*got torch\.int64"):
        example().to(torch.int64)
    with pytest.raises(
        DTypeError, match=r"^dtype: expected a complex one .*, got torch\.float32; the real part"
    ):
        example(dtype=torch.complex64).to(torch.float32)


def test_numpy_and_tensorly_read_trains():
    train = example(dtype=torch.float32)
    assert np.asarray(train).dtype == np.float32
    assert np.asarray(train, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.asarray(train), train.full().numpy())
    complex_train = example(dtype=torch.complex64).conj()
    assert np.asarray(complex_train).dtype == np.complex64
    theirs = tensorly.tt_to_tensor([core.numpy() for core in train.cores])
    np.testing.assert_allclose(theirs, train.full().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "read", [lambda train: train.full(), lambda train: torch.from_numpy(np.asarray(train))]
)
def test_the_dense_tensor_has_memory_of_its_own(read):
    for shape in ((4,), (3, 4)):
        train = example(shape)
        before = train.clone()
        read(train).zero_()
        assert torch.equal(train.full(), before.full())


def test_a_train_is_a_pytree():
    train = example().orthogonalize(1)
    leaves, spec = pytree.tree_flatten(train)
    assert all(a is b for a, b in zip(leaves, train.cores, strict=True))
    again = pytree.tree_unflatten(leaves, spec)
    torch.testing.assert_close(again.full(), train.full())
    # What is mapped over the cores need not keep the gauge: nothing may rely on the old center.
    mapped = pytree.tree_map(lambda core: core + 1, train)
    assert mapped.center is None
    assert mapped.norm().item() == pytest.approx(dense.norm(dense.full(mapped.cores)))
    stepped = pytree.tree_map(lambda p, g: p - 0.1 * g, train, torch.func.grad(lambda t: t.norm())(train))
    assert stepped.norm() < train.norm()


def test_vmap_over_trains():
    some = [example((3, 2, 3), [2, 2], seed=k) for k in range(4)]
    batch = pytree.tree_map(lambda *cores: torch.stack(cores), *some)
    vmap = torch.func.vmap
    torch.testing.assert_close(vmap(lambda t: t.full())(batch), torch.stack([t.full() for t in some]))
    torch.testing.assert_close(vmap(lambda t: t.norm())(batch), torch.stack([t.norm() for t in some]))
    torch.testing.assert_close(vmap(lambda t: t.dot(t))(batch), torch.stack([t.dot(t) for t in some]))
    moved = vmap(lambda t: t.orthogonalize(1))(batch)
    expected = [t.orthogonalize(1) for t in some]
    for k, core in enumerate(moved.cores):
        torch.testing.assert_close(core, torch.stack([t.cores[k] for t in expected]))
    torch.testing.assert_close(
        vmap(lambda t: (t + t * t)[1].full())(batch), torch.stack([(t + t * t)[1].full() for t in some])
    )


@pytest.mark.parametrize("kind", ["random", "deficient", "repeated"])
def test_gradient_of_the_norm_is_that_of_the_dense_norm(kind):
    train = TensorTrain(cores_of(kind, (3, 4, 3), [2, 3], torch.float64, 0))
    for found, expected in zip(
        torch.func.grad(lambda t: t.norm())(train).cores,
        torch.func.grad(lambda t: torch.linalg.vector_norm(t.full()))(train).cores,
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_gradient_of_the_norm_of_zero_is_finite():
    gradient = torch.func.grad(lambda t: t.norm())(example() * 0)
    assert all(core.isfinite().all() for core in gradient.cores)


def test_second_derivatives_of_contractions():
    train, target = example((2, 3, 2), 2), example((2, 3, 2), 2, seed=1)

    def loss(*cores):
        difference = TensorTrain(cores) - target
        return difference.dot(difference)

    leaves = [core.requires_grad_() for core in train.cores]
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@given(st.data())
def test_rounding_a_sum_is_near_the_sum(data):
    a = data.draw(trains(dtype=torch.float64, kinds=("random", "graded", "zero core")))
    total = (a + a * 0.5).truncate(Truncation(rtol=1e-10))
    assert all(new <= old for new, old in zip(total.ranks, a.ranks, strict=True))
    assert dense.distance(
        dense.full(total.cores), dense.full(a.cores) * np.longdouble(1.5)
    ) <= 1e-9 * scale_of(a)


@given(trains(storage=True), st.sampled_from([0, 2, 0.5, -1.5, 1j]))
def test_numbers_are_added_to_every_entry(train, number):
    truth = dense.full(train.cores)
    for found, exact in (
        (train + number, truth + number),
        (number + train, truth + number),
        (train - number, truth - number),
        (number - train, number - truth),
    ):
        assert found.dtype == torch.result_type(train.cores[0], number)
        assert all(new <= old + 1 for new, old in zip(found.ranks, train.ranks, strict=True))
        tolerance = 20 * eps(train.dtype) * (scale_of(train) + 2 * math.sqrt(truth.size))
        assert dense.distance(dense.full(found.cores), exact) <= tolerance


def test_numbers_as_tensors_are_added_with_their_graph():
    number = torch.tensor(2.0, requires_grad=True)
    train = example()
    found = train - number
    assert found.dtype == torch.float64
    found.full().sum().backward()
    assert number.grad.item() == pytest.approx(-60)
    assert (number + train).requires_grad


def test_the_builtin_sum_takes_trains():
    some = [example(seed=k) for k in range(3)]
    total = sum(some)
    assert total.ranks == (1, 9, 9, 1)
    torch.testing.assert_close(total.full(), sum(train.full() for train in some))


def test_division_by_a_train_is_entrywise():
    a, b = example((6, 5, 7), 2), example((6, 5, 7), 2, seed=1)
    b = b * b + 1
    torch.testing.assert_close((a / b).full(), a.full() / b.full(), rtol=0, atol=1e-6)
    torch.testing.assert_close((2 / b).full(), 2 / b.full(), rtol=0, atol=1e-6)
    assert (a.to(torch.float32) / b).dtype == torch.float64
    half = a.to(torch.bfloat16) / b.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert dense.distance(half.full(), a.full() / b.full()) < 0.1 * float((a.full() / b.full()).norm())
    with pytest.raises(NonFiniteError, match="index"):
        a / (a * 0)


@given(trains())
def test_log_norm(train):
    norm = dense.norm(dense.full(train.cores))
    tolerance = 1e3 * eps(train.dtype) * scale_of(train)
    assert math.exp(train.log_norm()) == pytest.approx(norm, abs=tolerance)
    assert train.log_norm().dtype == torch.float64


def test_log_norm_is_finite_where_the_norm_overflows():
    train = example((10,) * 1000, 3, dtype=torch.float32)
    expected = train.log_norm().item()
    assert expected > 1000
    assert train.norm().item() == math.inf
    assert TensorTrain([core / 100 for core in train.cores]).norm().item() == 0
    finite = TensorTrain(
        [
            core * (1e3 if k % 2 else 1e-3)
            for k, core in enumerate(example((10,) * 60, 3, dtype=torch.float32).cores)
        ]
    )
    torch.testing.assert_close(finite.norm(), finite.log_norm().exp().float(), rtol=1e-4, atol=0)
    assert (train * math.exp(-60)).log_norm().item() == pytest.approx(expected - 60, rel=1e-6)
    smaller = TensorTrain([core / math.sqrt(10) for core in train.cores]).orthogonalize(700)
    assert smaller.log_norm().item() == pytest.approx(expected - 500 * math.log(10), rel=1e-5)
    assert (train * 0).log_norm().item() == -math.inf


@pytest.mark.parametrize("center", [None, 1])
def test_gradient_of_the_log_norm(center):
    leaves = [core.requires_grad_() for core in example().cores]
    train = TensorTrain(leaves) if center is None else TensorTrain(leaves).orthogonalize(center)
    found = torch.autograd.grad(train.log_norm(), leaves)
    expected = torch.autograd.grad(torch.linalg.vector_norm(TensorTrain(leaves).full()).log(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    functional = torch.func.grad(lambda t: t.log_norm())(example())
    for a, b in zip(functional.cores, expected, strict=True):
        torch.testing.assert_close(a, b)


@given(trains(storage=True))
def test_real_and_imaginary_parts(train):
    truth = dense.full(train.cores)
    for found, exact in ((train.real, truth.real), (train.imag, truth.imag)):
        assert found.dtype == (train.dtype.to_real() if train.dtype.is_complex else train.dtype)
        assert dense.distance(dense.full(found.cores), exact) <= 20 * eps(train.dtype) * scale_of(train)
    if train.dtype.is_complex:
        assert all(new == 2 * old for new, old in zip(train.real.ranks[1:-1], train.ranks[1:-1], strict=True))
    else:
        assert train.real is train


def test_parts_of_a_train_whose_cores_are_all_complex():
    train = example((3, 4, 2, 3), 3, dtype=torch.complex128)
    torch.testing.assert_close(train.real.full(), train.full().real)
    torch.testing.assert_close(train.imag.full(), train.full().imag)


@given(trains(storage=True), st.data())
def test_gather(train, data):
    count = data.draw(st.integers(1, 6))
    rows = [[data.draw(st.integers(-n, n - 1)) for n in train.shape] for _ in range(count)]
    truth = np.array([dense.entry(train.cores, row) for row in rows])
    for indices in (rows, np.array(rows), torch.tensor(rows), torch.tensor(rows, dtype=torch.int32)):
        found = train.gather(indices, chunk_size=2)
        assert found.dtype == train.dtype
        assert dense.norm(dense.array(found) - truth) <= 50 * eps(train.dtype) * scale_of(train)


def test_gather_refuses():
    with pytest.raises(DeviceError, match=r"^indices: .*cpu, got meta"):
        example().gather(torch.zeros(2, 3, dtype=torch.int64, device="meta"))
    with pytest.raises(DTypeError, match=r"^indices: expected integers, got torch\.float32"):
        example().gather(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"^indices: expected shape \(batch, 3\)"):
        example().gather(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"3"):
        example().gather([[3, 0, 0]])


@given(trains(kinds=("random", "zero", "graded"), scales=False))
def test_extreme_entries(train):
    truth = dense.full(train.cores)
    tolerance = 50 * eps(train.dtype) * scale_of(train)
    found = train.extreme()
    assert abs(abs(found.value.item()) - float(np.abs(truth).max())) <= tolerance
    assert abs(dense.entry(train.cores, found.index) - found.value.item()) <= tolerance
    if not train.dtype.is_complex:
        assert abs(train.max().item() - float(truth.max())) <= tolerance
        assert abs(train.min().item() - float(truth.min())) <= tolerance
        assert float(truth.max()) - float(truth[train.argmax()]) <= tolerance
        assert float(truth[train.argmin()]) - float(truth.min()) <= tolerance
    else:
        with pytest.raises(DTypeError, match=r"^train: expected real entries"):
            train.max()


@pytest.mark.parametrize("modes", [None, 0, (0, 2), (0, 1, 2)], ids=repr)
def test_mean(modes):
    train = example()
    found = train.mean(modes)
    np.testing.assert_allclose(np.asarray(found), train.full().numpy().mean(modes), atol=1e-14)


@given(trains(storage=True, kinds=("random", "deficient", "repeated", "zero"), scales=False), st.data())
def test_permute(train, data):
    dims = data.draw(st.permutations(range(train.ndim)))
    truth = dense.full(train.cores).transpose(dims)
    found = train.permute(dims)
    assert found.shape == truth.shape
    tolerance = 500 * eps(train.dtype) * scale_of(train)
    assert dense.distance(dense.full(found.cores), truth) <= tolerance
    if found.center is not None and train.dtype in DTYPES and dense.norm(truth) > 0:
        assert dense.is_canonical(found.cores, found.center)
    rounded, report = train.permute(dims, Truncation(max_rank=2), return_report=True)
    assert dense.distance(dense.full(rounded.cores), truth) <= report.error_bound + tolerance


def test_permute_keeps_what_is_known_of_the_gauge():
    train = example().orthogonalize(2)
    assert train.permute((0, 1, 2)).center == 2
    assert train.permute((2, 1, 0)).center == 0
    assert dense.is_canonical(train.permute((2, 1, 0)).cores, 0)
    assert example().permute((-1, 1, 0)).center is None
    assert train.permute((1, 0, 2)).center == 0
    with pytest.raises(ShapeError, match=r"^dims: "):
        train.permute((0, 0, 1))


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (4, 6), (2, 2, 6), (1, 24, 1), (3, 8), (2, 12)])
def test_reshape(shape):
    train = example((4, 3, 2))
    torch.testing.assert_close(train.reshape(shape).full(), train.full().reshape(shape))
    rounded, report = train.reshape(shape, Truncation(max_rank=1), return_report=True)
    assert dense.distance(rounded.full(), train.full().reshape(shape)) <= report.error_bound + 1e-12
    with pytest.raises(ShapeError, match=r"^shape: "):
        train.reshape((5, 5))


def test_quantics_and_back():
    train = example((8, 4), 2)
    quantics = train.to_qtt()
    assert quantics.shape == (2, 2, 2, 2, 2)
    torch.testing.assert_close(quantics.full().reshape(8, 4), train.full())
    torch.testing.assert_close(quantics.from_qtt((8, 4)).full(), train.full())
    rounded, report = example((9, 3), 3).to_qtt(3, Truncation(max_rank=2), return_report=True)
    assert rounded.shape == (3, 3, 3)
    assert dense.distance(rounded.full().reshape(9, 3), example((9, 3), 3).full()) <= report.error_bound
    with pytest.raises(ShapeError, match=r"power of base=2"):
        example().to_qtt()


def test_entropies():
    train = example()
    assert train.entropies() == pytest.approx([train.entropy(0), train.entropy(1)])


def test_probabilities():
    train = example((3, 4, 2))
    weights = train * train
    truth = weights.full() / weights.sum()
    for source, squared in ((weights, False), (train, True)):
        for k, found in enumerate(source.marginals(squared=squared)):
            torch.testing.assert_close(found, truth.sum([j for j in range(3) if j != k]))
        torch.testing.assert_close(source.marginal([0, 2], squared=squared).full(), truth.sum(1))
        draws = source.sample(100, squared=squared, given={1: 2}, seed=0)
        conditional = truth[:, 2] / truth[:, 2].sum()
        assert (draws.indices[:, 1] == 2).all()
        torch.testing.assert_close(
            draws.log_probabilities.exp(), conditional[draws.indices[:, 0], draws.indices[:, 2]]
        )


def test_trains_are_equal_to_themselves_alone():
    train = example()
    assert train == train
    assert train != train.clone()
    assert {train: 1}[train] == 1


def test_vmap_over_gather_and_sums():
    some = [example((3, 2, 3), [2, 2], seed=k) for k in range(4)]
    batch = pytree.tree_map(lambda *cores: torch.stack(cores), *some)
    vmap = torch.func.vmap
    at = torch.tensor([[0, 1, 2], [2, 0, -1]])
    torch.testing.assert_close(vmap(lambda t: t.gather(at))(batch), torch.stack([t.gather(at) for t in some]))
    for reduction in (
        lambda t: t.sum(),
        lambda t: t.sum(0).full(),
        lambda t: t.mean((0, 2)).full(),
        lambda t: (t + 1).full(),
        lambda t: (t - 0.5 * t).norm(),
        lambda t: t.conj().full(),
        lambda t: t.truncate(Truncation(max_rank=1)).full(),
    ):
        torch.testing.assert_close(vmap(reduction)(batch), torch.stack([reduction(t) for t in some]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gather_and_dot(backend):
    train, other = example(), example(seed=1, rank=2)
    at = torch.tensor([[0, 1, 2], [2, 0, 4]])

    def function(cores, others):
        return TensorTrain(cores).gather(at), TensorTrain(cores).dot(TensorTrain(others))

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for found, expected in zip(
        compiled(list(train.cores), list(other.cores)), function(train.cores, other.cores), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_modes_are_multiplied_contracted_and_made():
    train, small = example(), example((3, 5), 2)
    x, y = train.full(), small.full()
    matrix = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(train.mode_product(matrix, 1).full(), torch.einsum("abc,xb->axc", x, matrix))
    torch.testing.assert_close(small.dot(train, (0, 2)).full(), torch.einsum("abc,ac->b", x, y))
    torch.testing.assert_close(train.dot(train, (0, 1, 2)), train.dot(train))
    torch.testing.assert_close(train[None, 0, ..., None].full(), x[None, 0, ..., None])
    torch.testing.assert_close(train.reshape((-1, 5)).full(), x.reshape(-1, 5))
    with pytest.raises(DTypeError, match=r"^other: expected a TensorTrain, got TTMatrix"):
        train + ttnet.eye((3, 4, 5))
