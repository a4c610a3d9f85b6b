"""The train an adapter starts from."""

import math

import torch
from torch import Tensor

from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.layout import Layout
from ttnet.random import resolve_ranks
from ttnet.tensor_train import TensorTrain


def initial_train(layout: Layout, config: TTAdapterConfig) -> TensorTrain:
    """The cores as `config.init` asks: with one core zero and the others identities, dW is exactly 0.

    Args:
        layout: Modes of the train.
        config: Ranks, initializations, seed and dtype.

    Returns:
        A train on the CPU whose core k has the shape (r_k, n_k, r_{k+1}). An identity is rectangular where it
        must be: one for each width of `in` and `out`, and one for each slice of every other core.

    Raises:
        RankError: A list of ranks that the bonds cannot have.
    """
    ranks = (1, *resolve_ranks(layout.shape, config.rank), 1)
    generator = torch.Generator().manual_seed(config.seed)
    cores = []
    for k, (init, size) in enumerate(zip(config.core_inits, layout.shape, strict=True)):
        shape = (ranks[k], size, ranks[k + 1])
        if init == "zero":
            core = torch.zeros(shape)
        elif init == "identity":
            core = _identity(layout, k, shape)
        else:
            core = _normal(layout, k, shape, config.init_std, generator)
        cores.append(core.to(config.torch_dtype))
    return TensorTrain(cores)


def _identity(layout: Layout, k: int, shape: tuple[int, int, int]) -> Tensor:
    left, size, right = shape
    if layout.pattern.modes[k] == ("in",):
        blocks = [torch.eye(end - start, right) for start, end in layout.in_blocks.values()]
        return torch.cat(blocks).reshape(shape)
    if layout.pattern.modes[k] == ("out",):
        widths = [size] if layout.head_dim else [end - start for start, end in layout.out_blocks.values()]
        return torch.cat([torch.eye(left, width) for width in widths], dim=1).reshape(shape)
    return torch.eye(left, right)[:, None].repeat(1, size, 1)


def _normal(
    layout: Layout, k: int, shape: tuple[int, int, int], std: float | None, generator: torch.Generator
) -> Tensor:
    core = torch.randn(shape, generator=generator)
    if std is not None:
        return core * std
    # The columns of `in`, the rows of `out` and each inner slice get the norm an identity has.
    if layout.pattern.modes[k] == ("in",):
        for start, end in layout.in_blocks.values():
            core[:, start:end] /= math.sqrt(end - start)
        return core
    if layout.pattern.modes[k] == ("out",):
        blocks = [(0, shape[1])] if layout.head_dim else layout.out_blocks.values()
        for start, end in blocks:
            core[:, start:end] /= math.sqrt(end - start)
        return core
    return core / math.sqrt(shape[0])
