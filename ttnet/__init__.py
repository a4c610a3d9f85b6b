"""ttnet: tensor trains, DMRG on gradients, and tensor-train adapters in PyTorch."""

from ttnet import operators
from ttnet.apply_matrix import apply
from ttnet.creation import (
    arange,
    cross,
    eye,
    full,
    meshgrid,
    ones,
    ones_like,
    random_train,
    random_train_with_spectra,
    rank_one,
    sum_of,
    superdiagonal,
    tt_svd,
    unit,
    zeros,
    zeros_like,
)
from ttnet.cross import CrossOptions, CrossReport
from ttnet.functions import (
    add,
    apply_elementwise,
    concatenate,
    distance,
    divide,
    kron,
    log_dot,
    multiply,
    outer,
    pad,
    stack,
)
from ttnet.measure import expectation, variance
from ttnet.parameter import TTParameter
from ttnet.tangent import riemannian_gradient, tangent_projection
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix

__version__ = "0.1.0"

__all__ = [
    "CrossOptions",
    "CrossReport",
    "TTMatrix",
    "TTParameter",
    "TensorTrain",
    "Truncation",
    "TruncationReport",
    "add",
    "apply",
    "apply_elementwise",
    "arange",
    "concatenate",
    "cross",
    "distance",
    "divide",
    "expectation",
    "eye",
    "full",
    "kron",
    "log_dot",
    "meshgrid",
    "multiply",
    "ones",
    "ones_like",
    "operators",
    "outer",
    "pad",
    "random_train",
    "random_train_with_spectra",
    "rank_one",
    "riemannian_gradient",
    "stack",
    "sum_of",
    "superdiagonal",
    "tangent_projection",
    "tt_svd",
    "unit",
    "variance",
    "zeros",
    "zeros_like",
]
