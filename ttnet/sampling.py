"""Perfect sampling of a train read as a wave function."""

from typing import NamedTuple

import torch
from torch import Tensor

from ttnet._typing import Cores
from ttnet.errors import ConfigError
from ttnet.measure import normalized_cores
from ttnet.tensor_train import TensorTrain


class Samples(NamedTuple):
    """What `sample` draws.

    Attributes:
        indices: Shape (count, d), int64: one index for each mode.
        log_probabilities: Shape (count,), float64: the logarithms of their probabilities.
    """

    indices: Tensor
    log_probabilities: Tensor


def sample(train: TensorTrain, count: int, *, seed: int | torch.Generator | None = None) -> Samples:
    """Perfect sampling: independent draws of indices with probability |x[i_0, ..., i_{d-1}]|^2 / ||x||^2.

    Each index is drawn from its exact distribution given those before it: no chain, no burn-in.

    Args:
        train: The state x, of any norm but 0.
        count: Number of draws.
        seed: An integer, a CPU generator, or None for torch's global generator.

    Returns:
        `Samples`: indices (count, d) and log-probabilities (count,).

    Raises:
        ConfigError: `count` is below 1.
        NonFiniteError: The train is zero.

    References:
        Ferris and Vidal, Phys. Rev. B 85, 165146 (2012).
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"count: expected an integer of at least 1, got {count!r}")
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    with torch.no_grad():
        cores = normalized_cores(train)
        uniform = torch.rand(count, len(cores), generator=generator, dtype=torch.float64).to(train.device)
        widest = max(core.shape[1] * core.shape[2] for core in cores)
        drawn = [_draw(cores, part) for part in uniform.split(max(1, _SAMPLE_ENTRIES // widest))]
    return Samples(torch.cat([indices for indices, _ in drawn]), torch.cat([logs for _, logs in drawn]))


_SAMPLE_ENTRIES = 2**23
"""Entries of the largest intermediate of one chunk of samples."""


def _draw(cores: Cores, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and log-probabilities for uniform numbers (batch, d); cores right-orthogonal, of norm 1."""
    rows = torch.arange(len(uniform), device=uniform.device)
    vectors = cores[0].new_ones(len(uniform), 1)
    indices, logs = [], torch.zeros(len(uniform), dtype=torch.float64, device=uniform.device)
    for k, core in enumerate(cores):
        branches = (vectors @ core.flatten(1)).reshape(len(uniform), core.shape[1], core.shape[2])
        weights = torch.linalg.vector_norm(branches, dim=2).to(torch.float64).square()
        cumulative = weights.cumsum(1)
        # Divided, the last entry is exactly 1, and an outcome of weight 0 is never drawn.
        chosen = (cumulative / cumulative[:, -1:] <= uniform[:, k : k + 1]).sum(1)
        weight = weights[rows, chosen]
        logs += (weight / cumulative[:, -1]).log()
        vectors = branches[rows, chosen] / weight.sqrt().to(weights.dtype)[:, None].to(branches.dtype)
        indices.append(chosen)
    return torch.stack(indices, 1), logs
