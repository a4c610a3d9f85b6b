"""Tensor-train adapters: one train over the structural axes of a model adapts all its chosen matrices."""

from ttnet.adapters.adapter import TTAdapter
from ttnet.adapters.attach import attach, load
from ttnet.adapters.axes import Axis, Pattern, parse_pattern
from ttnet.adapters.config import MetaTT, TTAdapterConfig
from ttnet.adapters.coordinates import coordinates
from ttnet.adapters.files import SavedAdapter, read
from ttnet.adapters.gradients import GradientStart, initialize_from_gradients
from ttnet.adapters.layout import Layout, Site
from ttnet.adapters.moments import input_moments
from ttnet.adapters.replicas import Replicas, replicate
from ttnet.adapters.split import Split

__all__ = [
    "Axis",
    "GradientStart",
    "Layout",
    "MetaTT",
    "Pattern",
    "Replicas",
    "SavedAdapter",
    "Site",
    "Split",
    "TTAdapter",
    "TTAdapterConfig",
    "attach",
    "coordinates",
    "initialize_from_gradients",
    "input_moments",
    "load",
    "parse_pattern",
    "read",
    "replicate",
]
