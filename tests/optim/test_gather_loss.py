import math

import pytest
import torch
from torch import nn

from tests.optim.problems import entries
from ttnet import Truncation, TTParameter, random_train
from ttnet.errors import ConfigError, DTypeError, ShapeError
from ttnet.optim import Closure, GatherLoss, LeastSquares, TwoSiteDMRG
from ttnet.optim.geometry import Visit, there_and_back

F64, C128 = torch.float64, torch.complex128
SHAPE = (3, 2, 4, 3)


def column_indices(count, shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in shape], 1)


def hinge(outputs, targets):
    return (1 - outputs * targets).relu().mean()


def linear(outputs, targets):
    return (outputs * targets).mean()


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("loss", [hinge, linear])
def test_newton_takes_losses_without_curvature(loss, l2, features):
    indices = column_indices(30)
    points = [nn.functional.one_hot(column, n).to(F64) for column, n in zip(indices.T, SHAPE, strict=True)]
    targets = torch.where(indices.sum(1) % 2 == 0, 1.0, -1.0).to(F64)
    problem = GatherLoss(points if features else indices, targets, loss, l2=l2)
    optimizer = TwoSiteDMRG(TTParameter(random_train(SHAPE, 2, seed=0, dtype=F64)), local_steps=2)
    report = optimizer.sweep(problem)
    assert report.loss_after < report.loss_before
    assert math.isfinite(report.loss_after)


def test_newton_takes_a_kernel_without_second_derivative():
    indices = column_indices(40, (3, 2, 4))
    targets = torch.randint(3, (40,), generator=torch.Generator().manual_seed(1))
    problem = GatherLoss(indices, targets, nn.functional.multi_margin_loss, label_mode=0)
    train = random_train((3, *(3, 2, 4)), 2, seed=0, dtype=F64)
    report = TwoSiteDMRG(TTParameter(train), truncation=Truncation(max_rank=3)).sweep(problem)
    assert report.loss_after < report.loss_before


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("kind", ["squares", "entries", "features", "complex features", "label"])
def test_complex_trains_agree_with_their_closure(kind, sites, device):
    indices = column_indices(30).to(device)
    generator = torch.Generator().manual_seed(1)
    points = [nn.functional.one_hot(column, n).to(F64) for column, n in zip(indices.T, SHAPE, strict=True)]
    if kind == "complex features":
        points = [torch.randn(30, n, generator=generator, dtype=C128).to(device) for n in SHAPE]
    targets = torch.randn(30, generator=generator, dtype=C128 if kind == "squares" else F64).to(device)
    shape, label, equation = SHAPE, None, "abcd,za,zb,zc,zd->z"
    if kind == "label":
        shape, label, equation = (*SHAPE, 3), 4, "abcde,za,zb,zc,zd->ze"
        targets = torch.randn(30, 3, generator=generator, dtype=F64).to(device)

    def loss(outputs, targets):
        size = (outputs * outputs.conj()).real
        return (size - targets).square().mean() + outputs.real.cosh().mean()

    if kind == "squares":
        problem = LeastSquares(indices, targets, l2=0.1)

        def loss(outputs, targets):
            return 0.5 * (outputs - targets).abs().square().mean()
    else:
        gathered = kind in ("entries", "label")
        problem = GatherLoss(indices if gathered else points, targets, loss, label_mode=label, l2=0.1)
    train = random_train(shape, 2, seed=0, dtype=C128, device=device)
    for visit in there_and_back(len(shape), sites):
        cores = list(train.orthogonalize(visit.site).cores)
        parameter = TTParameter(cores)

        def twin(p=parameter):
            full = p().full()
            outputs = torch.einsum(equation, full, *(point.to(C128) for point in points))
            return loss(outputs, targets) + 0.05 * (full * full.conj()).real.sum()

        block = cores[visit.site] if sites == 1 else torch.tensordot(cores[visit.site], cores[visit.last], 1)
        own, other = problem.local(cores, visit), Closure(twin, parameter).local(cores, visit)
        value, gradient = own.value_and_gradient(block)
        expected, slope = other.value_and_gradient(block)
        assert value == pytest.approx(expected, rel=1e-12)
        assert own.value(block) == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(gradient, slope)
        # Output is linear in the block, so that Gauss-Newton is the Hessian.
        torch.testing.assert_close(own.curvature(block)(slope), other.curvature(block)(slope))


def test_complex_squares_are_preconditioned_exactly():
    indices = column_indices(200)
    targets = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=C128)
    cores = list(random_train(SHAPE, 2, seed=0, dtype=C128).orthogonalize(1).cores)
    local = LeastSquares(indices, targets, l2=1e-3).local(cores, Visit(1, 2, forward=True))
    block = torch.tensordot(cores[1], cores[2], 1)
    operator = local.curvature(block)
    torch.testing.assert_close(local.precondition(operator(block)), block, rtol=1e-6, atol=1e-9)


def test_a_complex_train_is_completed():
    teacher = random_train(SHAPE, 2, seed=3, dtype=C128)
    indices = column_indices(400)
    values = teacher.full()[tuple(indices.T)]
    parameter = TTParameter(random_train(SHAPE, 2, seed=4, dtype=C128))
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2), damping=0.0)
    result = optimizer.minimize(LeastSquares(indices, values), sweeps=15)
    assert float((result.tensor_train - teacher).norm() / teacher.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("label", [None, 4])
def test_every_integer_dtype_is_an_index(dtype, label, device):
    indices = column_indices(20).to(device)
    targets = torch.ones(20, *(() if label is None else (2,)), dtype=F64, device=device)
    shape = SHAPE if label is None else (*SHAPE, 2)
    train = random_train(shape, 2, seed=0, dtype=F64, device=device).orthogonalize(0)
    found = []
    for points in (indices, indices.to(dtype)):
        local = LeastSquares(points, targets, label_mode=label).local(train.cores, Visit(0, 1, forward=True))
        found.append(local.value_and_gradient(train.cores[0]))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


INDICES = torch.tensor([[0, 1], [2, 0]])


@pytest.mark.parametrize(
    ("points", "options", "error", "words"),
    [
        (INDICES.bool(), {}, DTypeError, "booleans in mode 0"),
        (INDICES - 1, {}, ShapeError, "indices from 0 in mode 0, got -1"),
        (INDICES[:0], {}, ShapeError, "at least one"),
        ([], {}, ShapeError, "at least one"),
        ([INDICES[:, 0], INDICES[:1, 1]], {}, ShapeError, r"same number .* \[2, 1\]"),
        ([INDICES], {}, ShapeError, r"got torch.int64 of shape \(2, 2\) in mode 0"),
        (INDICES.double(), {}, ShapeError, "points: expected integer indices"),
        (INDICES, {"label_mode": 3}, ConfigError, "label_mode: expected a mode of 3, got 3"),
    ],
)
def test_bad_points_are_named(points, options, error, words):
    with pytest.raises(error, match=words):
        GatherLoss(points, torch.zeros(len(points) and 2, dtype=F64), linear, **options)


def test_points_that_the_train_does_not_fit_are_named():
    visit, cores = Visit(0, 1, forward=True), random_train((3, 2), 1, seed=0, dtype=F64).cores
    targets = torch.zeros(2, dtype=F64)
    with pytest.raises(ShapeError, match="indices below 2 in mode 1, got 2"):
        LeastSquares(INDICES.flip(1), targets).local(cores, visit)
    with pytest.raises(ShapeError, match="2 features in mode 1, got 4"):
        LeastSquares([torch.ones(2, 3), torch.ones(2, 4)], targets).local(cores, visit)
    with pytest.raises(DTypeError, match="complex cores"):
        LeastSquares(INDICES, targets.to(C128)).local(cores, visit)
    with pytest.raises(DTypeError, match="complex cores"):
        LeastSquares([torch.ones(2, 3), torch.ones(2, 2).to(C128)], targets).local(cores, visit)
    with pytest.raises(ShapeError, match=r"targets: expected \(batch, labels\)"):
        LeastSquares(INDICES, targets, label_mode=2)
    with pytest.raises(ConfigError, match="loss: expected a function of the outputs"):
        GatherLoss(INDICES, targets, lambda _, t: t.sum()).local(cores, visit).value_and_gradient(cores[0])


def test_targets_of_one_column_do_not_broadcast():
    _, indices, values = entries(seed=0)
    cores = random_train((4,) * 5, 2, seed=0, dtype=F64).orthogonalize(0).cores
    visit = Visit(0, 1, forward=True)
    plain, column = (LeastSquares(indices, each).local(cores, visit) for each in (values, values[:, None]))
    assert column.value(cores[0]) == plain.value(cores[0])
