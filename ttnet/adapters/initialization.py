"""The train an adapter starts from."""

import math

import torch
from torch import Tensor

from ttnet.adapters.axes import side_of
from ttnet.adapters.config import TTAdapterConfig, read_kind
from ttnet.adapters.cores import expand_diagonals
from ttnet.adapters.structure import Layout
from ttnet.random import resolve_ranks
from ttnet.tensor_train import TensorTrain


def initial_train(layout: Layout, config: TTAdapterConfig) -> TensorTrain:
    """The cores as `config.init` asks: with one core zero and the others identities, dW is exactly 0.

    Args:
        layout: Modes of the train.
        config: Ranks, initializations, seed and dtype.

    Returns:
        A train on the CPU whose core k has the shape (r_k, n_k, r_{k+1}). An identity is rectangular where it
        must be: one for each width of `in` and `out`, and one for each slice of every other core. Where a
        side is factorized, the identities of its cores together make the one of the whole side.

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
            core = _normal(layout, k, shape, config, generator)
        cores.append(core.to(config.torch_dtype))
    return TensorTrain(cores)


def new_slice(
    kind: str, like: Tensor, config: TTAdapterConfig, *, seed: int, diagonal: bool = False
) -> Tensor:
    """A slice for a new place of a structural axis.

    Args:
        kind: "zero", "identity" or "normal".
        like: Another slice of the core, shape (r, ..., s).
        config: Scale and seed of "normal".
        seed: Added to the seed, so that each new place has its own.
        diagonal: Whether it must be diagonal.

    Raises:
        ConfigError: `kind` is unknown.
    """
    kind = read_kind(kind)
    if kind == "zero":
        return torch.zeros_like(like)
    left, right = like.shape[0], like.shape[-1]
    shape = (left, *[1] * (like.dim() - 2), right)
    if kind == "identity":
        return torch.eye(left, right).view(shape).expand(like.shape).to(like)
    generator = torch.Generator().manual_seed(config.seed + 7919 * seed)
    flat = _normal_slices((left, like.numel() // (left * right), right), config.init_std, generator, diagonal)
    return flat.view(like.shape).to(like)


def _identity(layout: Layout, k: int, shape: tuple[int, int, int]) -> Tensor:
    left, size, right = shape
    (axis, *_) = mode = layout.pattern.modes[k]
    side = side_of(axis)
    if side == "in":
        # As (left size, right): with identities in all cores of a side, A is the rectangular identity.
        blocks = [torch.eye(left * n, right).view(left, n, right) for n in _own_sizes(layout, mode[0])]
        return torch.cat(blocks, 1)
    if side == "out" and axis != "head":
        blocks = [torch.eye(left, right * n).view(left, right, n).mT for n in _own_sizes(layout, mode[0])]
        return torch.cat(blocks, 1)
    return torch.eye(left, right)[:, None].repeat(1, size, 1)


def _own_sizes(layout: Layout, axis: str) -> list[int]:
    """The sizes of the blocks that lie beside each other in a feature mode: one for each width."""
    blocks = layout.feature_blocks[side_of(axis) or "in"].values()
    return [end - start for start, end in dict.fromkeys(own[axis] for own in blocks)]


def _normal(
    layout: Layout, k: int, shape: tuple[int, int, int], config: TTAdapterConfig, generator: torch.Generator
) -> Tensor:
    axis = layout.pattern.modes[k][0]
    side = side_of(axis)
    if side is None or axis == "head":
        diagonal = k in config.modes_of(config.diagonal)
        return _normal_slices(shape, config.init_std, generator, diagonal)
    core = torch.randn(shape, generator=generator)
    if config.init_std is not None:
        return core * config.init_std
    # The columns of A and the rows of the tail get the norm they have in an identity.
    start = 0
    for size in _own_sizes(layout, axis):
        core[:, start : start + size] /= math.sqrt(size * (shape[0] if side == "in" else shape[2]))
        start += size
    return core


def _normal_slices(
    shape: tuple[int, int, int], std: float | None, generator: torch.Generator, diagonal: bool
) -> Tensor:
    if diagonal:
        return expand_diagonals(
            torch.randn(shape[0], shape[1], generator=generator) * (1.0 if std is None else std)
        )
    return torch.randn(shape, generator=generator) * (1 / math.sqrt(shape[0]) if std is None else std)
