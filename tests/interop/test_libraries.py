"""Trains cross to other libraries and back as the same tensors, by the other side's own dense form."""

import subprocess
import sys

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from tensorly.decomposition import parafac, tensor_train
from tensorly.tt_matrix import TTMatrix as TensorlyMatrix

from tests.strategies import DTYPES, trains
from ttnet import TensorTrain, Truncation, TTMatrix, random_train
from ttnet.errors import ConfigError, DTypeError, ShapeError
from ttnet.interop import libraries

SHAPES = [(3,), (2, 3), (4, 1, 3), (2, 3, 2, 4)]
ROUND_TRIPS = {
    "numpy": (libraries.to_numpy_cores, libraries.from_numpy_cores),
    "tensorly": (libraries.to_tensorly, libraries.from_tensorly),
    "quimb": (libraries.to_quimb, libraries.from_quimb),
    "torchtt": (libraries.to_torchtt, libraries.from_torchtt),
}
PACKAGES = {"quimb": "quimb", "torchtt": "torchTT"}


def require(name):
    """Skip where a library is not installed."""
    if name in PACKAGES:
        try:
            libraries._imported(name, "this test")  # without its warning, which would be an error
        except ImportError as error:
            pytest.skip(str(error))
    return sys.modules.get(name)


@pytest.fixture
def qtn():
    require("quimb")
    return pytest.importorskip("quimb.tensor")


@pytest.fixture
def torchtt():
    require("torchtt")
    return pytest.importorskip("torchtt")


@pytest.fixture
def pytorch_backend():
    with tensorly.backend_context("pytorch"):
        yield


def some_train(shape=(2, 3, 4), dtype=torch.float64, device="cpu"):
    return random_train(shape, rank=3, seed=0, dtype=dtype, device=device)


def some_matrix(rows=(2, 3, 4), columns=(3, 1, 2), dtype=torch.float64, device="cpu"):
    return TTMatrix.random(rows, columns, rank=3, seed=0, dtype=dtype, device=device)


def dense(array):
    """What another library made, as numbers."""
    return np.asarray(array.detach().cpu() if isinstance(array, torch.Tensor) else array)


def assert_same_cores(one, two):
    assert type(one) is type(two)
    assert one.dtype == two.dtype
    assert all(torch.equal(a, b) for a, b in zip(one.cores, two.cores, strict=True))


# All of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back_are_the_same_cores(name, shape, dtype):
    require(name)
    there, back = ROUND_TRIPS[name]
    train = some_train(shape, dtype)
    assert_same_cores(back(there(train)), train)
    matrix = some_matrix(shape, tuple(reversed(shape)), dtype)
    assert_same_cores(back(there(matrix)), matrix)


@pytest.mark.parametrize("name", ROUND_TRIPS)
@given(train=trains(min_modes=1))
def test_there_and_back_of_any_train(name, train):
    require(name)
    there, back = ROUND_TRIPS[name]
    assert_same_cores(back(there(train)), train)


@pytest.mark.parametrize("name", ["quimb", "torchtt", "tensorly"])
@pytest.mark.usefixtures("pytorch_backend")
def test_device_and_graph_are_kept(name, device):
    require(name)
    there, back = ROUND_TRIPS[name]
    train = some_train(device=device)
    leaves = [core.clone().requires_grad_() for core in train.cores]
    returned = back(there(TensorTrain(leaves)))
    assert returned.device.type == device.type
    (returned.full() ** 2).sum().backward()
    for leaf, core in zip(leaves, train.cores, strict=True):
        assert leaf.grad.shape == core.shape
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.norm() > 0


@pytest.mark.parametrize("name", ["numpy", "tensorly"])
def test_numbers_leave_the_graph_and_the_device_behind(name, device):
    there, back = ROUND_TRIPS[name]
    train = some_train(device=device)
    returned = back(there(TensorTrain([core.requires_grad_() for core in train.cores])))
    assert returned.device.type == "cpu"
    assert not any(core.requires_grad for core in returned.cores)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_lazy_conjugates_are_carried_out(name):
    require(name)
    there, back = ROUND_TRIPS[name]
    train = TensorTrain([core.conj() for core in some_train(dtype=torch.complex64).cores])
    assert torch.equal(back(there(train)).full(), train.full())


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_is_no_train_is_refused(name):
    require(name)
    there, back = ROUND_TRIPS[name]
    with pytest.raises(DTypeError, match="train: expected a TensorTrain or a TTMatrix, got Tensor"):
        there(torch.zeros(2))
    if name != "numpy":
        with pytest.raises(DTypeError, match="got int"):
            back(3)


@pytest.mark.parametrize("name", ["quimb", "torchtt"])
def test_a_missing_library_is_named_with_the_way_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.tensor", None)
    there, back = ROUND_TRIPS[name]
    for call in (lambda: there(some_train()), lambda: back(3)):
        with pytest.raises(
            ImportError, match=rf"{name} needs {PACKAGES[name]}.*pip install 'ttnet\[bench\]'"
        ):
            call()


def test_importing_imports_no_library():
    code = (
        "import sys, ttnet; assert not any(name.startswith('ttnet.interop') for name in sys.modules);"
        "import ttnet.interop.libraries; assert not {'quimb', 'torchtt', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# numpy ------------------------------------------------------------------------------------------------------


def test_numpy_dense(device):
    train, matrix = some_train(device=device), some_matrix(device=device)
    np.testing.assert_allclose(libraries.to_numpy(train), train.full().cpu())
    np.testing.assert_allclose(libraries.to_numpy(matrix), matrix.full().cpu())
    array = libraries.to_numpy(train)
    np.testing.assert_allclose(libraries.from_numpy(array).full(), array)
    assert libraries.from_numpy(array, Truncation(max_rank=1)).ranks == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1, ::2],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(">f8"),
        lambda a: a.T,
        lambda a: np.broadcast_to(a[:1], a.shape),
    ],
    ids=["strides", "fortran", "big endian", "transposed", "read-only"],
)
def test_numpy_arrays_of_any_layout(view):
    array = view(np.random.default_rng(0).normal(size=(4, 6)))
    np.testing.assert_allclose(libraries.from_numpy(array).full(), array.astype(float), atol=1e-14)


def test_numpy_cores_are_copies():
    cores = [np.ones((1, 2, 1)), np.ones((1, 2, 1))]
    train = libraries.from_numpy_cores(cores)
    cores[0][:] = 7
    assert train.full().tolist() == [[1, 1], [1, 1]]
    libraries.to_numpy_cores(train)[0][:] = 7
    assert train.full().tolist() == [[1, 1], [1, 1]]


def test_numpy_refusals():
    with pytest.raises(DTypeError, match="bfloat16"):
        libraries.to_numpy_cores(some_train().to(torch.bfloat16))
    with pytest.raises(DTypeError, match=r"array: .*object"):
        libraries.from_numpy(np.array([object()]))
    with pytest.raises(DTypeError, match="int64"):
        libraries.from_numpy_cores([np.ones((1, 2, 1), dtype=np.int64)])
    with pytest.raises(ShapeError, match="at least one core"):
        libraries.from_numpy_cores([])
    with pytest.raises(ShapeError, match="left_rank, mode, right_rank"):
        libraries.from_numpy_cores([np.ones((2, 2))])


# tensorly ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensorly_sees_the_same_tensor(backend, dtype):
    train, matrix = some_train(dtype=dtype), some_matrix(dtype=dtype)
    with tensorly.backend_context(backend):
        other = libraries.to_tensorly(train)
        assert (other.shape, other.rank) == (train.shape, train.ranks)
        np.testing.assert_allclose(dense(other.to_tensor()), train.full(), rtol=1e-4, atol=1e-5)
        other = libraries.to_tensorly(matrix)
        assert isinstance(other, TensorlyMatrix)
        np.testing.assert_allclose(dense(other.to_matrix()), matrix.full(), rtol=1e-4, atol=1e-5)


def test_tensorlys_own_decomposition_comes_over():
    array = np.random.default_rng(0).normal(size=(3, 4, 5))
    train = libraries.from_tensorly(tensor_train(array, rank=[1, 3, 5, 1]))
    np.testing.assert_allclose(train.full(), array, atol=1e-12)


@pytest.mark.usefixtures("pytorch_backend")
def test_the_pytorch_backend_shares_the_cores():
    train = some_train()
    assert all(a is b for a, b in zip(libraries.to_tensorly(train).factors, train.cores, strict=True))


def test_other_decompositions_of_tensorly_are_refused():
    other = parafac(np.random.default_rng(0).normal(size=(3, 4)), rank=2)
    with pytest.raises(DTypeError, match=r"CPTensor.*ttnet\.tt_svd"):
        libraries.from_tensorly(other)


# quimb ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quimb_sees_the_same_tensor(qtn, backend, shape):
    train = some_train(shape, torch.complex128)
    state = libraries.to_quimb(train, backend=backend)
    assert isinstance(state, qtn.MatrixProductState)
    assert all(isinstance(a, torch.Tensor if backend == "torch" else np.ndarray) for a in state.arrays)
    np.testing.assert_allclose(dense(state.to_dense()).ravel(), train.full().flatten())
    matrix = some_matrix(shape, tuple(reversed(shape)), torch.complex128)
    operator = libraries.to_quimb(matrix, backend=backend)
    assert isinstance(operator, qtn.MatrixProductOperator)
    np.testing.assert_allclose(dense(operator.to_dense()), matrix.full())


@pytest.mark.usefixtures("qtn")
def test_quimbs_operator_acts_as_ours():
    train = some_train((3, 2, 2), torch.complex128)
    matrix = some_matrix((2, 3, 4), (3, 2, 2), torch.complex128)
    state, operator = libraries.to_quimb(train), libraries.to_quimb(matrix)
    product = libraries.from_quimb(operator.apply(state))
    np.testing.assert_allclose(product.full(), (matrix @ train).full(), atol=1e-12)


def test_quimbs_own_networks_come_over(qtn):
    state = qtn.MPS_rand_state(5, 4, phys_dim=3, dtype="complex128", seed=0)
    train = libraries.from_quimb(state)
    assert (train.shape, train.ranks) == ((3,) * 5, (1, 4, 4, 4, 4, 1))
    np.testing.assert_allclose(train.full().flatten(), state.to_dense().ravel(), atol=1e-12)
    operator = qtn.MPO_ham_heis(4)
    np.testing.assert_allclose(libraries.from_quimb(operator).full(), operator.to_dense(), atol=1e-12)


def test_quimbs_order_of_indices_does_not_matter(qtn):
    state = qtn.MPS_rand_state(4, 3, phys_dim=2, seed=0)
    wanted = libraries.from_quimb(state)
    for order in ("lrp", "plr", "rpl"):
        state.permute_arrays(order)
        assert_same_cores(libraries.from_quimb(state), wanted)


def test_quimbs_exponent_and_double_bonds(qtn):
    state = qtn.MPS_rand_state(4, 3, phys_dim=2, seed=0)
    state.exponent = 2.0
    np.testing.assert_allclose(libraries.from_quimb(state).full().flatten(), state.to_dense().ravel())
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 3, 2)), rng.normal(size=(3, 2, 2))
    network = qtn.TensorNetwork(
        [qtn.Tensor(left, ("a", "b", "k0"), "I0"), qtn.Tensor(right, ("b", "k1", "a"), "I1")]
    )
    pair = network.view_as(qtn.MatrixProductState, cyclic=False, L=2, site_tag_id="I{}", site_ind_id="k{}")
    np.testing.assert_allclose(libraries.from_quimb(pair).full(), np.einsum("abi,bja->ij", left, right))


def test_quimb_networks_that_are_no_train_are_refused(qtn):
    with pytest.raises(ShapeError, match="cyclic"):
        libraries.from_quimb(qtn.MPS_rand_state(4, 2, cyclic=True))
    state = qtn.MPS_computational_state("0101")
    state.gate_(np.eye(4), (0, 2), contract=False)
    with pytest.raises(ShapeError, match="2 at site 0"):
        libraries.from_quimb(state)
    sparse = qtn.MatrixProductState([np.ones((2, 3)), np.ones((2, 4))], sites=[1, 3], L=5)
    with pytest.raises(ShapeError, match="0 at site 0"):
        libraries.from_quimb(sparse)
    state = qtn.MPS_rand_state(4, 2)
    qtn.new_bond(state[0], state[2], size=2)
    with pytest.raises(ShapeError, match="neighboring sites"):
        libraries.from_quimb(state)
    with pytest.raises(ConfigError, match="backend"):
        libraries.to_quimb(some_train(), backend="jax")
    with pytest.raises(DTypeError, match="got Tensor"):
        libraries.from_quimb(state[0])


# torchTT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("torchtt")
def test_torchtt_sees_the_same_tensor(shape):
    train = some_train(shape, torch.complex128)
    other = libraries.to_torchtt(train)
    assert (tuple(other.N), tuple(other.R), other.is_ttm) == (train.shape, train.ranks, False)
    torch.testing.assert_close(other.full(), train.full())
    matrix = some_matrix(shape, tuple(reversed(shape)), torch.complex128)
    other = libraries.to_torchtt(matrix)
    assert (tuple(other.M), tuple(other.N), other.is_ttm) == (matrix.rows, matrix.columns, True)
    torch.testing.assert_close(other.full().reshape(matrix.shape), matrix.full())


@pytest.mark.usefixtures("torchtt")
def test_torchtts_operator_acts_as_ours():
    train, matrix = some_train((3, 1, 2)), some_matrix()
    product = libraries.to_torchtt(matrix) @ libraries.to_torchtt(train)
    torch.testing.assert_close(libraries.from_torchtt(product).full(), (matrix @ train).full())


def test_torchtts_own_trains_come_over(torchtt):
    other = torchtt.randn([3, 4, 5], [1, 2, 3, 1], dtype=torch.float64)
    torch.testing.assert_close(libraries.from_torchtt(other).full(), other.full())


def test_integers_that_torchtt_accepts_are_refused(torchtt):
    other = torchtt.TT([torch.ones(1, 2, 1, dtype=torch.int64)])
    with pytest.raises(DTypeError, match="int64"):
        libraries.from_torchtt(other)
