"""Recovery of the rank of a teacher train from few noisy entries: the bonds grow as far as the data asks.

python examples/teacher.py --seeds 5
"""

import argparse
from dataclasses import dataclass

import torch

import ttnet
from ttnet.optim import LeastSquares, TwoSiteDMRG


@dataclass(frozen=True, kw_only=True)
class Student:
    """What the student learned.

    Attributes:
        ranks: Ranks of the bonds.
        loss: Half the mean square error on the noisy samples.
        floor: Half the mean square of the noise itself.
        error: Relative error of the student against the teacher, all entries counted.
        evaluations: Local evaluations it took.
    """

    ranks: tuple[int, ...]
    loss: float
    floor: float
    error: float
    evaluations: int


def main(
    modes: int = 8, size: int = 3, rank: int = 4, samples: int = 4000, noise: float = 0.01, seed: int = 0
) -> Student:
    """Learn a random teacher with entries of unit size from noisy samples of them.

    Args:
        modes: Number of modes of the teacher.
        size: Size of each.
        rank: Its rank, which the student is not told.
        samples: Number of entries that are seen, drawn with replacement.
        noise: Standard deviation of the noise; the floor of the loss is half its square.
        seed: Seed of teacher, samples, noise and student.

    Returns:
        The student.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher = ttnet.random_train((size,) * modes, rank, seed=seed, dtype=torch.float64)
    teacher = teacher * (size ** (modes / 2) / float(teacher.norm()))
    indices = torch.randint(0, size, (samples, modes), generator=generator)
    kicks = noise * torch.randn(samples, generator=generator, dtype=torch.float64)
    values = teacher.gather(indices) + kicks

    parameter = ttnet.TTParameter(ttnet.random_train((size,) * modes, 2, seed=seed + 1, dtype=torch.float64))
    optimizer = TwoSiteDMRG(
        parameter, truncation=ttnet.Truncation(max_rank=16, cutoff=1e-5), growth="test", seed=seed
    )
    result = optimizer.minimize(LeastSquares(indices, values), sweeps=30, tol=1e-3)
    student = Student(
        ranks=result.tensor_train.ranks[1:-1],
        loss=result.loss,
        floor=0.5 * float(kicks.square().mean()),
        error=ttnet.distance(result.tensor_train, teacher) / float(teacher.norm()),
        evaluations=sum(report.evaluations for report in result.trajectory),
    )
    print(
        f"seed {seed}: teacher {teacher.ranks[1:-1]}, student {student.ranks}, loss {student.loss:.2e} "
        f"(noise {student.floor:.2e}), error {student.error:.1e}, {len(result.trajectory)} sweeps, "
        f"{student.evaluations} evaluations"
    )
    return student


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    for seed in range(parser.parse_args().seeds):
        main(seed=seed)
