"""Layers whose weight is a tensor train: `TTLinear` and `TTEmbedding`."""

from ttnet.nn.embedding import TTEmbedding
from ttnet.nn.linear import TTLinear

__all__ = ["TTEmbedding", "TTLinear"]
