"""ttnet: tensor trains, DMRG on gradients, and tensor-train adapters in PyTorch."""

from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain, random_train, tt_svd
from ttnet.truncation import Truncation, TruncationReport

__version__ = "0.1.0"

__all__ = ["TTParameter", "TensorTrain", "Truncation", "TruncationReport", "random_train", "tt_svd"]
