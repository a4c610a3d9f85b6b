"""Trains and TT-matrices from and to numpy, tensorly, quimb and torchTT.

The libraries agree on what a train is and differ in how they write it down: order of the indices of a core,
boundary ranks, which index of an operator acts. Every function here keeps the tensor, its dtype and, where
the other side holds torch tensors, its device and graph; cores are shared with such a side, not copied.

A library is imported when one of its functions is called.
"""

import importlib
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ttnet.creation import tt_svd
from ttnet.errors import ConfigError, DTypeError, ShapeError
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation
from ttnet.tt_matrix import TTMatrix

# numpy ------------------------------------------------------------------------------------------------------


def to_numpy(train: TensorTrain | TTMatrix) -> np.ndarray:
    """The dense tensor of a train, or the dense matrix of a TT-matrix, as a numpy array.

    Args:
        train: Modes (n_0, ..., n_{d-1}), or rows and columns.

    Returns:
        Shape `train.shape`, in memory of its own, without gradient.

    Raises:
        DTypeError: bfloat16, which numpy does not have.
    """
    return _to_array(_checked(train).full())


def from_numpy(array: np.ndarray, truncation: Truncation | None = None) -> TensorTrain:
    """Decompose a dense numpy array by a TT-SVD; of a matrix use `TTMatrix.from_dense`.

    Args:
        array: Shape (n_0, ..., n_{d-1}), float or complex.
        truncation: Which singular values are kept; by default all.

    Returns:
        A train of the array's dtype on the CPU.

    Raises:
        ShapeError: `array` has no mode or an empty one.
        DTypeError: Integers, or a dtype that torch does not have.
    """
    return tt_svd(_to_tensor(array, name="array"), truncation)


def to_numpy_cores(train: TensorTrain | TTMatrix) -> list[np.ndarray]:
    """The cores as numpy arrays, the form that teneva and most scripts work with.

    Args:
        train: A train or a TT-matrix.

    Returns:
        Core k of shape (r_k, n_k, r_{k+1}), or (r_k, row, column, r_{k+1}), in memory of its own.

    Raises:
        DTypeError: bfloat16, which numpy does not have.
    """
    return [_to_array(core) for core in _checked(train).cores]


def from_numpy_cores(cores: Sequence[np.ndarray]) -> TensorTrain | TTMatrix:
    """A train of a list of 3-dimensional cores, or a TT-matrix of one of 4-dimensional cores.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), or (r_k, row, column, r_{k+1}); they are copied.

    Returns:
        A train or a TT-matrix on the CPU.

    Raises:
        ShapeError: Cores that do not fit together.
        DTypeError: Integer cores, several dtypes, or one that torch does not have.
    """
    return _from_cores([_to_tensor(core, name=f"cores[{k}]") for k, core in enumerate(cores)])


# tensorly ---------------------------------------------------------------------------------------------------


def to_tensorly(train: TensorTrain | TTMatrix) -> Any:
    """A `TTTensor`, or of a TT-matrix a `TTMatrix`, of tensorly's present backend.

    Args:
        train: A train or a TT-matrix.

    Returns:
        With the backend "pytorch" the very cores, with their graph; with any other, copies of the numbers.

    Raises:
        DTypeError: bfloat16 and a backend other than "pytorch".
    """
    train = _checked(train)
    tensorly = _imported("tensorly", "to_tensorly")
    if tensorly.get_backend() == "pytorch":
        factors = list(train.cores)
    else:
        factors = [tensorly.tensor(_to_array(core)) for core in train.cores]
    if isinstance(train, TTMatrix):
        return _imported("tensorly.tt_matrix", "to_tensorly").TTMatrix(factors)
    return _imported("tensorly.tt_tensor", "to_tensorly").TTTensor(factors)


def from_tensorly(factorized: Any) -> TensorTrain | TTMatrix:
    """A train of tensorly's `TTTensor`, a TT-matrix of its `TTMatrix`.

    Args:
        factorized: With factors of any backend; torch tensors are taken as they are, others copied.

    Returns:
        A train or a TT-matrix.

    Raises:
        DTypeError: Something else, as a CP or Tucker tensor, whose `to_tensor()` `ttnet.tt_svd` decomposes;
            or integer factors.
        ShapeError: Factors that do not fit together.
    """
    tt_tensor = _imported("tensorly.tt_tensor", "from_tensorly").TTTensor
    tt_matrix = _imported("tensorly.tt_matrix", "from_tensorly").TTMatrix
    if not isinstance(factorized, tt_tensor | tt_matrix):
        raise DTypeError(
            f"factorized: expected a TTTensor or a TTMatrix of tensorly, got {type(factorized).__name__}; "
            "decompose its dense tensor with ttnet.tt_svd"
        )
    return _from_cores([_to_tensor(core, name=f"factor {k}") for k, core in enumerate(factorized.factors)])


# quimb ------------------------------------------------------------------------------------------------------


def to_quimb(train: TensorTrain | TTMatrix, *, backend: Literal["torch", "numpy"] = "torch") -> Any:
    """A `MatrixProductState`, or of a TT-matrix a `MatrixProductOperator`.

        --[0]--[1]--        k0, k1, ...: modes of a train, rows (upper indices) of a TT-matrix
           |    |           b0, b1, ...: columns (lower indices)

    Args:
        train: A train or a TT-matrix.
        backend: "torch" hands over the very cores, with device and graph; "numpy" copies, which those parts
            of quimb need that are written for numpy, as DMRG.

    Returns:
        The network with quimb's usual names of indices, sites 0 to d - 1.

    Raises:
        ImportError: quimb is not installed.
        ConfigError: Another backend.
        DTypeError: bfloat16 and `backend="numpy"`.
    """
    train = _checked(train)
    if backend not in ("torch", "numpy"):
        raise ConfigError(f"backend: expected 'torch' or 'numpy', got {backend!r}")
    quimb = _imported("quimb.tensor", "to_quimb")
    arrays = [core.resolve_conj() if backend == "torch" else _to_array(core) for core in train.cores]
    arrays[0] = arrays[0][0]
    arrays[-1] = arrays[-1][..., 0]
    if isinstance(train, TTMatrix):
        return quimb.MatrixProductOperator(arrays, shape="ludr")
    return quimb.MatrixProductState(arrays, shape="lpr")


def from_quimb(network: Any) -> TensorTrain | TTMatrix:
    """A train of an open `MatrixProductState`, a TT-matrix of an open `MatrixProductOperator`.

    Args:
        network: With arrays of torch, which are taken as they are, or of anything that numpy reads. Its
            `exponent`, a power of 10 that scales the network, is spread over the cores.

    Returns:
        Modes (or rows and columns) in the order of the sites.

    Raises:
        ImportError: quimb is not installed.
        DTypeError: Something else, or integer arrays.
        ShapeError: A cyclic network, not one tensor at each site, or a bond of sites that are no neighbors.
    """
    quimb = _imported("quimb.tensor", "from_quimb")
    if not isinstance(network, quimb.MatrixProductState | quimb.MatrixProductOperator):
        raise DTypeError(
            "network: expected a MatrixProductState or a MatrixProductOperator of quimb, got "
            f"{type(network).__name__}"
        )
    if network.cyclic:
        raise ShapeError(
            "network: expected open boundaries, got a cyclic network; a train has boundary ranks of 1: "
            "decompose the dense tensor, or cut the ring with quimb first"
        )
    sites = range(network.L)
    tags = [network.site_tag(site) for site in sites]
    found: list[Any] = [network.select_tensors(tag) if tag in network.tag_map else () for tag in tags]
    for site, tensors in zip(sites, found, strict=True):
        if len(tensors) != 1:
            raise ShapeError(
                f"network: expected one tensor at each site from 0 to {network.L - 1}, got {len(tensors)} at "
                f"site {site}; contract several into one, and number the sites from 0"
            )
    tensors = [at[0] for at in found]
    is_operator = isinstance(network, quimb.MatrixProductOperator)
    bonds = [tuple(i for i in left.inds if i in right.inds) for left, right in pairwise(tensors)]
    scale = 10.0 ** (float(network.exponent) / len(sites))
    cores = []
    for site, tensor, left, right in zip(sites, tensors, [(), *bonds], [*bonds, ()], strict=True):
        modes = (
            (network.upper_ind(site), network.lower_ind(site)) if is_operator else (network.site_ind(site),)
        )
        if sorted(tensor.inds) != sorted((*left, *modes, *right)):
            raise ShapeError(
                f"network: expected bonds between neighboring sites only, got the indices {tensor.inds} at "
                f"site {site}"
            )
        groups = (left, *((mode,) for mode in modes), right)
        shape = [math.prod(tensor.ind_size(index) for index in group) for group in groups]
        data = tensor.transpose(*left, *modes, *right).data
        core = _to_tensor(data, name=f"site {site}").reshape(shape)
        cores.append(core * scale if scale != 1 else core)
    return _from_cores(cores)


# torchTT ----------------------------------------------------------------------------------------------------


def to_torchtt(train: TensorTrain | TTMatrix) -> Any:
    """A `torchtt.TT` that shares the cores.

    Args:
        train: A train or a TT-matrix; its rows are torchTT's `M`, its columns `N`.

    Returns:
        The TT object, on the same device and with the same graph.

    Raises:
        ImportError: torchTT is not installed.
    """
    return _imported("torchtt", "to_torchtt").TT(list(_checked(train).cores))


def from_torchtt(tt: Any) -> TensorTrain | TTMatrix:
    """A train of a `torchtt.TT`, or a TT-matrix where it is one.

    Args:
        tt: Its cores are taken as they are.

    Returns:
        A train or a TT-matrix.

    Raises:
        ImportError: torchTT is not installed.
        DTypeError: Something else, or integer cores, which torchTT accepts.
        ShapeError: No cores, or boundary ranks other than 1.
    """
    if not isinstance(tt, _imported("torchtt", "from_torchtt").TT):
        raise DTypeError(f"tt: expected a torchtt.TT, got {type(tt).__name__}")
    return _from_cores(list(tt.cores))


# What they share --------------------------------------------------------------------------------------------


def _imported(module: str, function: str) -> Any:
    package = {"quimb": "quimb", "torchtt": "torchTT", "tensorly": "tensorly"}[module.partition(".")[0]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchTT warns that it runs without its C++ part
            return importlib.import_module(module)
    except ImportError as error:
        extra = "ttnet" if package == "tensorly" else "ttnet[bench]"
        raise ImportError(
            f"{function} needs {package} ({error}); install it with pip install '{extra}'"
        ) from error


def _checked(train: object) -> TensorTrain | TTMatrix:
    if isinstance(train, TensorTrain | TTMatrix):
        return train
    raise DTypeError(
        f"train: expected a TensorTrain or a TTMatrix, got {type(train).__name__}; of a TTParameter give "
        ".tensor_train()"
    )


def _to_array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise DTypeError("train: numpy has no bfloat16; convert it first with .to(torch.float32)")
    return tensor.detach().cpu().resolve_conj().resolve_neg().numpy().copy()


def _to_tensor(array: object, *, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    values = np.asarray(array)
    try:
        # A copy: its owner may change the array, and torch knows no negative strides or foreign byte orders.
        return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise DTypeError(
            f"{name}: expected numbers that torch can hold, got {values.dtype} ({error}); convert them, "
            "for instance with .astype('float64')"
        ) from None


def _from_cores(cores: Sequence[Tensor]) -> TensorTrain | TTMatrix:
    return TTMatrix(cores) if cores and cores[0].ndim == 4 else TensorTrain(cores)
