"""A loss nobody planned for: Student's t through a network with dropout, one of whose layers is a train.

A tenth of the targets are gross outliers. Sweeps improve the train, Adam improves the rest of the network, in
turn; the same is done with the squared error, for comparison.

    python examples/robust_network.py --seeds 3
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ttnet
from ttnet.optim import Composite, TwoSiteDMRG

INPUTS, HIDDEN = (3, 3, 3), (3, 3)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Root mean square errors on clean data, relative to their standard deviation.

    Attributes:
        robust: Trained with Student's t.
        squared: Trained with the squared error.
        rank: Largest rank of the robust network's train.
    """

    robust: float
    squared: float
    rank: int


class Network(nn.Module):
    """readout(dropout(tanh(x W))) where W (27, 9) is a train of five modes."""

    def __init__(self, *, rank: int, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        train = ttnet.random_train(INPUTS + HIDDEN, rank, seed=seed, dtype=torch.float64)
        self.train_of_weights = ttnet.TTParameter(train * (3.0 / float(train.norm())))
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(9, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (batch, 27) to outputs (batch,)."""
        weights = self.train_of_weights().full().reshape(27, 9)
        return self.readout(self.dropout(torch.tanh(x @ weights))).squeeze(1)


def student_t(residuals: Tensor, *, scale: float = 0.05, freedom: float = 2.0) -> Tensor:
    """Negative log likelihood of Student's t up to a constant: quadratic for small residuals, then flat."""
    return (freedom + 1) / 2 * torch.log1p((residuals / scale).square() / freedom).mean()


def train(
    data: tuple[Tensor, Tensor], loss: Callable[[Tensor], Tensor], *, rounds: int, dropout: float, seed: int
) -> Network:
    """Sweeps over the train and Adam over the readout, in turn."""
    inputs, targets = data
    torch.manual_seed(seed)
    model = Network(rank=2, seed=seed + 1, dropout=dropout)
    problem = Composite(
        outputs=lambda: model(inputs),
        loss=lambda outputs: loss(outputs - targets),
        parameter=model.train_of_weights,
    )
    sweeps = TwoSiteDMRG(model.train_of_weights, truncation=ttnet.Truncation(max_rank=4, cutoff=1e-8))
    adam = torch.optim.Adam(model.readout.parameters(), lr=1e-2)
    for _ in range(rounds):
        sweeps.sweep(problem)
        for _ in range(40):
            adam.zero_grad()
            loss(model(inputs) - targets).backward()
            adam.step()
    return model.eval()


def main(samples: int = 1000, rounds: int = 10, dropout: float = 0.02, seed: int = 0) -> Errors:
    """Learn a teacher network from targets with noise 0.02, a tenth of which are off by about 1.

    Args:
        samples: Number of training samples.
        rounds: Sweeps, each followed by 40 steps of Adam.
        dropout: Probability that a hidden unit is dropped; the same units at each evaluation of a sweep.
        seed: Seed of everything.

    Returns:
        Errors on clean data of both losses.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + 100)
    teacher = Network(rank=3, seed=seed + 100)
    inputs = torch.randn(samples + 1000, 27, generator=generator, dtype=torch.float64)
    clean = teacher(inputs).detach()
    targets = clean + 0.02 * torch.randn(len(clean), generator=generator, dtype=torch.float64)
    gross = torch.rand(len(clean), generator=generator) < 0.1
    targets = targets + gross * torch.randn(len(clean), generator=generator, dtype=torch.float64).abs()
    data, held_out = (inputs[:samples], targets[:samples]), (inputs[samples:], clean[samples:])

    def error(model: Network) -> float:
        with torch.no_grad():
            return float((model(held_out[0]) - held_out[1]).square().mean().sqrt() / held_out[1].std())

    robust = train(data, student_t, rounds=rounds, dropout=dropout, seed=seed)
    squared = train(data, lambda r: r.square().mean(), rounds=rounds, dropout=dropout, seed=seed)
    found = Errors(robust=error(robust), squared=error(squared), rank=max(robust.train_of_weights.ranks))
    print(
        f"seed {seed}: error on clean data {found.robust:.4f} with Student's t, {found.squared:.4f} squared"
    )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    for seed in range(parser.parse_args().seeds):
        main(seed=seed)
