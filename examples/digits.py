"""Handwritten digits by one tensor train: 64 pixels, one open mode for the ten classes, two-site Newton-CG.

The first 1,347 of scikit-learn's images train, the last 450 test. A pixel x becomes the two features
(1, x - mean). With them the train is a polynomial of the pixels, so that it can begin as a linear model;
products of 64 arbitrary features would all but vanish.

    python examples/digits.py --seeds 5
"""

import argparse
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import ttnet
from ttnet.optim import GatherLoss, TwoSiteDMRG

PIXELS, CLASSES, LABEL = 64, 10, 32
"""The label's mode stands in the middle, between the upper and the lower half of the image."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares of images that are misread: by the linear model and by the train; and its rank."""

    linear: float
    test: float
    training: float
    max_rank: int


def linear_train(weights: Tensor) -> ttnet.TensorTrain:
    """A linear classifier as a train of rank 11: the bonds carry a 1 and the sum of each class so far.

    Args:
        weights: Shape (pixels, classes), of the second feature of each pixel; the first one is 1.

    Returns:
        A train with modes (2, ..., 2, classes, 2, ..., 2).
    """
    size = CLASSES + 1
    cores = []
    for k, row in enumerate(weights):
        core = weights.new_zeros(size, 2, size)
        core[:, 0] = torch.eye(size)
        core[(0, 1, slice(1, None)) if k < LABEL else (slice(1, None), 1, 0)] = row
        cores.append(core)
    label = weights.new_zeros(size, CLASSES, size)
    for c in range(CLASSES):
        label[0, c, 1 + c] = label[1 + c, c, 0] = 1.0
    return ttnet.TensorTrain([cores[0][:1], *cores[1:LABEL], label, *cores[LABEL:-1], cores[-1][:, :, :1]])


def perturbed(train: ttnet.TensorTrain, size: float, seed: int) -> ttnet.TensorTrain:
    """Random numbers of relative size `size` added to each core: another start for each seed."""
    noise = ttnet.random_train(train.shape, train.ranks[1:-1], seed=seed, dtype=train.dtype)
    pairs = zip(train.cores, noise.cores, strict=True)
    return ttnet.TensorTrain([core + size * core.norm() / kick.norm() * kick for core, kick in pairs])


def outputs(train: ttnet.TensorTrain, features: Tensor) -> Tensor:
    """Scores (batch, classes) of images with features (batch, pixels, 2)."""
    left = right = features.new_ones(len(features), 1)
    for k in range(LABEL):
        left = torch.einsum("bl,lnr,bn->br", left, train.cores[k], features[:, k])
    for k in range(PIXELS, LABEL, -1):
        right = torch.einsum("lnr,br,bn->bl", train.cores[k], right, features[:, k - 1])
    return torch.einsum("bl,lcr,br->bc", left, train.cores[LABEL], right)


def shifted(images: Tensor) -> Tensor:
    """Images (batch, 8, 8) and the same shifted by a pixel to each side, (5 batch, 8, 8)."""
    padded = F.pad(images, (1, 1, 1, 1))
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    return torch.cat([padded[:, i : i + 8, j : j + 8] for i, j in corners])


def load(training: int, test: slice, *, shifts: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and digits that train, images and digits that test."""
    images, digits = load_digits(return_X_y=True)
    images, digits = torch.tensor(images).reshape(-1, 8, 8) / 16, torch.tensor(digits)
    shown, labels = images[:training], digits[:training]
    if shifts:
        shown, labels = shifted(shown), labels.repeat(5)
    return shown, labels, images[test], digits[test]


def features(images: Tensor, mean: Tensor, scale: float) -> Tensor:
    """The two features of each pixel, (batch, pixels, 2)."""
    centered = scale * (images.flatten(1) - mean)
    return torch.stack([torch.ones_like(centered), centered], 2)


def start(points: Tensor, labels: Tensor, scale: float) -> ttnet.TensorTrain:
    """Ridge regression onto 4 (one-hot - 1/10), logits of a moderate size."""
    x, y = points[:, :, 1], 4 * (F.one_hot(labels, CLASSES) - 0.1).to(points)
    ridge = scale**2 * torch.eye(PIXELS, dtype=x.dtype)
    return linear_train(torch.linalg.solve(x.T @ x + ridge, x.T @ y)).truncate(ttnet.Truncation(rtol=1e-10))


def error(train: ttnet.TensorTrain, points: Tensor, truth: Tensor) -> float:
    """Share of images that are misread."""
    return float((outputs(train, points).argmax(1) != truth).double().mean())


def main(
    training: int = 1347,
    test: slice = slice(-450, None),
    *,
    max_rank: int = 20,
    sweeps: int = 3,
    scale: float = 1.5,
    l2: float = 3e-5,
    shifts: bool = False,
    seed: int = 0,
) -> Scores:
    """Train on the first images, also shifted ones if `shifts`, and test on the last; `seed` is of the start.

    The smaller the `scale` of the second feature, the dearer are products of many pixels under `l2`.
    """
    shown, labels, others, truth = load(training, test, shifts=shifts)
    mean = shown.flatten(1).mean(0)
    points, other_points = features(shown, mean, scale), features(others, mean, scale)
    linear = start(points, labels, scale)
    parameter = ttnet.TTParameter(perturbed(linear, 0.01, seed))
    optimizer = TwoSiteDMRG(parameter, truncation=ttnet.Truncation(max_rank=max_rank), seed=seed)
    loss = partial(F.cross_entropy, label_smoothing=0.1)
    problem = GatherLoss(list(points.unbind(1)), labels, loss, label_mode=LABEL, l2=l2)
    result = optimizer.minimize(problem, sweeps=sweeps)

    scores = Scores(
        linear=error(linear, other_points, truth),
        test=error(result.tensor_train, other_points, truth),
        training=error(result.tensor_train, points, labels),
        max_rank=max(result.tensor_train.ranks),
    )
    print(
        f"seed {seed}: test error {scores.test:.2%} (linear model {scores.linear:.2%}), training error "
        f"{scores.training:.2%}, loss {result.loss:.4f}, rank {scores.max_rank}"
    )
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shifts", action="store_true", help="show the training images shifted, too")
    options = parser.parse_args()
    found = [main(seed=seed, shifts=options.shifts).test for seed in range(options.seeds)]
    print(f"mean test error {sum(found) / len(found):.2%}")
