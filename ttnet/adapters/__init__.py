"""Tensor-train adapters: one train over the structural axes of a model adapts all its chosen matrices."""

from ttnet.adapters.adapter import TTAdapter
from ttnet.adapters.attach import attach, load
from ttnet.adapters.axes import Axis, Pattern, parse_pattern
from ttnet.adapters.config import MetaTT, TTAdapterConfig
from ttnet.adapters.coordinates import coordinates
from ttnet.adapters.files import SavedAdapter, read
from ttnet.adapters.layout import Layout, Site

__all__ = [
    "Axis",
    "Layout",
    "MetaTT",
    "Pattern",
    "SavedAdapter",
    "Site",
    "TTAdapter",
    "TTAdapterConfig",
    "attach",
    "coordinates",
    "load",
    "parse_pattern",
    "read",
]
