"""ttnet: tensor trains, DMRG on gradients, and tensor-train adapters in PyTorch."""

from ttnet import operators
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain, random_train, tt_svd
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix

__version__ = "0.1.0"

__all__ = [
    "TTMatrix",
    "TTParameter",
    "TensorTrain",
    "Truncation",
    "TruncationReport",
    "operators",
    "random_train",
    "tt_svd",
]
