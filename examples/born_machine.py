"""Born machine on bars and stripes: a distribution |x|^2 / <x, x> learned by maximum likelihood.

Shows how to write a problem of one's own with cached environments: in the gauge of a sweep the norm of the
train is that of the block, and `GatherLoss` keeps what the rest of the train contributes to the amplitudes.

    python examples/born_machine.py --size 4 --samples 1000
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ttnet
from ttnet.optim import GatherLoss, TwoSiteDMRG
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import LocalProblem, Operator


@dataclass(frozen=True, kw_only=True)
class BornMachine:
    """The train, its loss and the least one, share of patterns among samples, patterns found."""

    train: ttnet.TensorTrain
    loss: float
    floor: float
    hits: float
    found: int


class NegativeLogLikelihood:
    """log <x, x> - mean log x(pattern)^2, for patterns (batch, d) of indices, block by block."""

    def __init__(self, patterns: Tensor) -> None:
        targets = torch.zeros(len(patterns))
        self._amplitudes = GatherLoss(patterns, targets, lambda x, _: -x.square().log().mean())

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        """The loss as a function of the block of `visit`."""
        return LocalLikelihood(self._amplitudes.local(cores, visit))


class LocalLikelihood:
    """The same for one block B: its norm is that of the train, since all other cores are orthogonal."""

    def __init__(self, data: LocalProblem) -> None:
        self._data = data

    def value(self, block: Tensor) -> float:
        """The loss."""
        return self._data.value(block) + float(block.square().sum().log())

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        value, gradient = self._data.value_and_gradient(block)
        norm = block.square().sum()
        return value + float(norm.log()), gradient + 2 * block / norm

    def curvature(self, block: Tensor) -> Operator:
        """The Hessian; that of log |B|^2 is 2 (1 - 2 B B^T / |B|^2) / |B|^2."""
        data, norm = self._data.curvature(block), block.square().sum()
        return lambda v: data(v) + 2 * (v - 2 * (block * v).sum() / norm * block) / norm


def bars_and_stripes(size: int) -> Tensor:
    """All images of whole rows or of whole columns, (2 * 2^size - 2, size^2), row by row."""
    bits = torch.tensor(list(itertools.product((0, 1), repeat=size)))
    rows = bits.unsqueeze(2).expand(-1, size, size)
    return torch.unique(torch.cat([rows, rows.mT]).flatten(1), dim=0)


def main(
    size: int = 4, max_rank: int = 16, sweeps: int = 20, samples: int = 1000, seed: int = 0
) -> BornMachine:
    """Learn the distribution that gives all bars and stripes the same probability, and draw from it.

    Args:
        size: Side of the images.
        max_rank: Largest rank; 16 is exact for a side of 4.
        sweeps: Largest number of sweeps.
        samples: Number of images to draw.
        seed: Seed of the start and of the samples.

    Returns:
        The machine, its likelihood and how good its samples are.
    """
    patterns = bars_and_stripes(size)
    # Amplitudes of one sign: a likelihood cannot change a sign, since it is infinite on the way.
    start = [
        core.abs() for core in ttnet.random_train((2,) * size**2, 2, seed=seed, dtype=torch.float64).cores
    ]
    optimizer = TwoSiteDMRG(
        ttnet.TTParameter(start), truncation=ttnet.Truncation(max_rank=max_rank, cutoff=1e-10)
    )
    result = optimizer.minimize(NegativeLogLikelihood(patterns), sweeps=sweeps, tol=1e-6)
    images = result.tensor_train.sample(samples, squared=True, seed=seed).indices
    known = {tuple(pattern) for pattern in patterns.tolist()}
    drawn = [tuple(image) for image in images.tolist()]
    machine = BornMachine(
        train=result.tensor_train,
        loss=result.loss,
        floor=math.log(len(patterns)),
        hits=sum(image in known for image in drawn) / samples,
        found=len(known & set(drawn)),
    )
    print(
        f"seed {seed}: NLL {machine.loss:.9f}, floor ln {len(patterns)} = {machine.floor:.9f}, "
        f"{len(result.trajectory)} sweeps, ranks {machine.train.ranks[1:-1]}"
    )
    print(
        f"{machine.hits:.1%} of {samples} samples are patterns, "
        f"{machine.found} of {len(patterns)} patterns seen"
    )
    return machine


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    main(options.size, samples=options.samples)
