"""Problems whose minimum is known, for the tests of sweeps."""

import math

import torch
from torch import Tensor

from ttnet import TensorTrain, random_train

HEISENBERG = {
    4: -1.616025403784438,
    6: -2.4935771338879276,
    8: -3.374932598687891,
    10: -4.258035207282881,
    12: -5.142090632840535,
    14: -6.026724661862161,
    20: -8.682473334398966,
}
"""Ground state energies of open spin-1/2 Heisenberg chains, J = 1."""

SPIN_ONE = {4: -4.645751311064588, 6: -7.370274969424612, 8: -10.124637222358906}
"""The same for spin 1."""


def ising_energy(length: int) -> float:
    """Critical transverse-field Ising chain, Pauli matrices, open."""
    return 1 - 1 / math.sin(math.pi / (4 * length + 2))


def xx_energy(length: int) -> float:
    """XX chain of even length, open."""
    return (1 - 1 / math.sin(math.pi / (2 * (length + 1)))) / 2


def entries(*, seed: int, noise: float = 0.0) -> tuple[TensorTrain, Tensor, Tensor]:
    """A teacher of rank 3 with entries of unit size, random indices and the (noisy) values there."""
    generator = torch.Generator().manual_seed(seed)
    teacher = random_train((4,) * 5, 3, seed=seed, dtype=torch.float64)
    teacher = teacher * (32 / float(teacher.norm()))
    indices = torch.randint(0, 4, (1500, 5), generator=generator)
    values = teacher.full()[tuple(indices.T)]
    return (
        teacher,
        indices,
        values + noise * torch.randn(len(values), generator=generator, dtype=torch.float64),
    )
