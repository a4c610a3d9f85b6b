"""Ground state of the open Heisenberg chain, with the entropy of each bond and the energy variance.

python examples/heisenberg.py --length 20 --plot entropy.png
"""

import argparse
from dataclasses import dataclass

import torch

import ttnet
from ttnet.optim import dmrg

EXACT = {8: -3.374932598687891, 12: -5.142090632840535, 20: -8.682473334398966}
"""Energies from the Bethe equations, J = 1: Alcaraz et al., J. Phys. A 20, 6397 (1987)."""


@dataclass(frozen=True, kw_only=True)
class GroundState:
    """What the sweeps found.

    Attributes:
        energy: Energy of the state.
        variance: <H^2> - <H>^2: an eigenvalue lies within its square root of the energy.
        entropies: Von Neumann entropy of each bond, in nats.
        max_rank: Largest rank of the state.
    """

    energy: float
    variance: float
    entropies: tuple[float, ...]
    max_rank: int


def main(length: int = 20, max_rank: int = 128, cutoff: float = 1e-14, seed: int = 0) -> GroundState:
    """Find the ground state of H = sum_k S_k . S_{k+1} on a chain of spins 1/2.

    Args:
        length: Number of sites.
        max_rank: Largest rank; the first sweeps have less.
        cutoff: Relative sum of discarded squares at a bond.
        seed: Seed of the random start.

    Returns:
        Energy, certificate and entropies.
    """
    H = ttnet.operators.heisenberg(length, dtype=torch.float64)
    start = ttnet.random_train((2,) * length, rank=8, seed=seed, dtype=torch.float64)
    schedule = [min(rank, max_rank) for rank in (16, 32, 64, max_rank)]
    result = dmrg(H, start, max_rank=schedule, cutoff=cutoff, tol=1e-13, sweeps=20)
    state = result.tensor_train
    print(f"N = {length}: energy {result.loss:.15f}, variance {result.certificate:.1e}, {result.message}")
    if length in EXACT:
        print(f"error against the exact energy {result.loss - EXACT[length]:.1e}")
    # Singlets sit on the odd bonds of an open chain: cutting one costs more entropy than cutting between two.
    for bond, entropy in enumerate(state.entropies()):
        print(
            f"  bond {bond:2d}  rank {state.ranks[bond + 1]:3d}  entropy {entropy:.6f}  "
            + "#" * int(50 * entropy)
        )
    return GroundState(
        energy=result.loss,
        variance=result.certificate or 0.0,
        entropies=state.entropies(),
        max_rank=max(state.ranks),
    )


def plot(found: GroundState, path: str) -> None:
    """Save the entropy profile as a figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(range(1, len(found.entropies) + 1), found.entropies, "o-")
    axes.set(xlabel="bond", ylabel="entropy (nats)", title=f"Heisenberg chain, energy {found.energy:.12f}")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--max-rank", type=int, default=128)
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    ground = main(options.length, options.max_rank)
    if options.plot:
        plot(ground, options.plot)
