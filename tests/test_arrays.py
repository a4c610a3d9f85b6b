"""Arrays of numpy as tensors."""

import numpy as np
import pytest
import torch

import ttnet
from ttnet.arrays import to_tensor, to_tensors
from ttnet.errors import DTypeError

ARRAY = np.arange(24.0).reshape(4, 6)
LONG = pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="a long double is a double here")


def read_only() -> np.ndarray:
    array = ARRAY.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        ARRAY[::-1],
        ARRAY[:, ::-2],
        ARRAY.T,
        ARRAY.astype(">f8"),
        read_only(),
        ARRAY.astype("complex64"),
    ],
)
def test_any_array_becomes_a_tensor(array) -> None:
    tensor = to_tensor(array, "tensor")
    assert np.array_equal(tensor.numpy(), array)
    assert np.allclose(ttnet.tt_svd(array).numpy(), array, atol=1e-5)
    assert np.array_equal(ttnet.rank_one([array[0], array[1]]).numpy(), np.outer(array[0], array[1]))


def test_memory_is_shared_where_torch_can() -> None:
    array = ARRAY.copy()
    assert to_tensor(array, "tensor").data_ptr() == array.__array_interface__["data"][0]
    tensor = torch.ones(2)
    assert to_tensor(tensor, "tensor") is tensor
    assert to_tensors([tensor, array, "x"], "cores")[::2] == [tensor, "x"]


@pytest.mark.parametrize(
    "dtype", [pytest.param(np.longdouble, marks=LONG), pytest.param(np.clongdouble, marks=LONG), object, "U3"]
)
def test_foreign_dtypes_are_named(dtype) -> None:
    message = (
        r"^tensor: expected a tensor or an array of floats, got an array of dtype .*numpy.asarray\(tensor"
    )
    with pytest.raises(DTypeError, match=message):
        ttnet.tt_svd(ARRAY.astype(dtype))
    with pytest.raises(DTypeError, match=r"^tensor: .* got str"):
        to_tensor("text", "tensor")


def test_cores_may_be_arrays() -> None:
    cores = ttnet.random_train((4, 5, 6), rank=3, seed=0, dtype=torch.float64).cores
    train = ttnet.TensorTrain([core.numpy() for core in cores])
    assert all(torch.equal(a, b) for a, b in zip(train.cores, cores, strict=True))
    matrix = ttnet.TTMatrix([np.ones((1, 2, 3, 2)), torch.ones(2, 4, 5, 1, dtype=torch.float64)])
    assert (matrix.rows, matrix.columns) == ((2, 4), (3, 5))
    with pytest.raises(DTypeError, match=r"^cores: .* got an array of dtype object"):
        ttnet.TensorTrain([np.ones((1, 4, 1), dtype=object)])
