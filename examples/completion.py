"""Completion: a smooth function on a grid of 8^10 points, of which ten thousand are seen.

python examples/completion.py --samples 10000
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

import ttnet
from ttnet.optim import fit


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What was fitted.

    Attributes:
        error: Relative error on points that `fit` never saw.
        certificate: Relative error on the tenth of its points that it held out itself.
        rank: Largest rank.
        parameters: Number of entries of the train's cores.
    """

    error: float
    certificate: float
    rank: int
    parameters: int


def distance_to_a_corner(indices: Tensor, size: int) -> Tensor:
    """sqrt(1 + |x|^2) at grid points x in [0, 1]^d."""
    points = indices.to(torch.float64) / (size - 1)
    return (1 + points.square().sum(1)).sqrt()


def main(
    dimensions: int = 10, size: int = 8, samples: int = 10_000, max_rank: int = 5, seed: int = 0
) -> Completion:
    """Fit a train to random entries and test it on others.

    Args:
        dimensions: Number of variables.
        size: Grid points of each.
        samples: Number of entries that are given, drawn at random.
        max_rank: Largest rank; `fit` climbs to it from rank 1 as long as the held-out error falls.
        seed: Seed of the points and of the start.

    Returns:
        Errors and size of the train.
    """
    generator = torch.Generator().manual_seed(seed)
    given = torch.randint(size, (samples, dimensions), generator=generator)
    fresh = torch.randint(size, (20_000, dimensions), generator=generator)
    result = fit(
        given, distance_to_a_corner(given, size), shape=(size,) * dimensions, max_rank=max_rank, seed=seed
    )
    train: ttnet.TensorTrain = result.tensor_train
    exact = distance_to_a_corner(fresh, size)
    completion = Completion(
        error=float((train.gather(fresh) - exact).norm() / exact.norm()),
        certificate=result.certificate or 0.0,
        rank=max(train.ranks),
        parameters=train.num_parameters,
    )
    print(
        f"seed {seed}: {samples} of {size**dimensions:.1e} entries seen, "
        f"error on others {completion.error:.1e} "
        f"(held out by fit: {completion.certificate:.1e}), "
        f"rank {completion.rank}, {completion.parameters} parameters, {len(result.trajectory)} sweeps"
    )
    return completion


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    for seed in range(options.seeds):
        main(samples=options.samples, seed=seed)
