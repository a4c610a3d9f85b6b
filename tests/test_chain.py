"""What trains and TT-matrices have in common."""

import numpy as np
import pytest
import torch

import ttnet
from tests.strategies import STORAGE_DTYPES
from ttnet import TTMatrix
from ttnet.chain import CoreChain
from ttnet.errors import DTypeError

MAKERS = {
    "train": lambda dtype: ttnet.random_train((3, 4, 2), 3, seed=0, dtype=dtype).orthogonalize(1),
    "matrix": lambda dtype: TTMatrix.random((3, 2), (2, 4), 3, seed=0, dtype=dtype).orthogonalize(1),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_numpy_reads_chains(make, dtype):
    chain = make(dtype)
    expected = chain.full().to(torch.float32) if dtype == torch.bfloat16 else chain.full()
    for found in (chain.numpy(), np.asarray(chain), chain.conj().conj().numpy()):
        assert found.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(found, expected.numpy())
    assert np.asarray(chain, dtype=np.complex128).dtype == np.complex128


def test_numpy_takes_what_autograd_follows(make):
    chain = make(torch.float64)
    assert not chain.requires_grad
    following = type(chain)([core.requires_grad_() for core in chain.clone().cores])
    assert following.requires_grad
    assert not following.detach().requires_grad
    np.testing.assert_array_equal(following.numpy(), chain.numpy())


def test_the_center_stays_where_the_gauge_does(make):
    chain = make(torch.complex64)
    for found in (chain.conj(), chain.detach(), chain.clone(), chain.to(torch.complex128)):
        assert type(found) is type(chain)
        assert found.center == chain.center == 1
        assert found.ndim == len(chain.cores)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.uint8])
def test_integers_are_refused(make, dtype):
    with pytest.raises(DTypeError, match=rf"^dtype: expected float32, .*got {dtype}"):
        make(torch.float32).to(dtype)


def test_a_real_dtype_for_complex_cores_is_refused_with_the_way_out(make):
    chain = make(torch.complex128)
    with pytest.raises(DTypeError, match=r"got torch\.float64; the real part .*take `\.real`"):
        chain.to(torch.float64)
    assert chain.real.dtype == torch.float64


def test_a_bare_chain_is_no_tensor():
    with pytest.raises(TypeError, match=r"^CoreChain: "):
        CoreChain([torch.ones(1, 2, 1)]).full()
