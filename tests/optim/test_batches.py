"""A loss over held batches: what is held, and that the mean of parts is the loss of the whole."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ttnet import TTParameter
from ttnet.cores import contract, merge_bond
from ttnet.errors import ConfigError, StateError
from ttnet.gauge import orthogonalize
from ttnet.optim import BatchLoss, DMRGScheduler, TwoSiteDMRG, TwoSiteOptions
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import HasResiduals, LocalProblem
from ttnet.optim.problems.closure import Closure
from ttnet.random import random_cores

SHAPE = (4, 5, 3)


@pytest.fixture
def parameter() -> TTParameter:
    return TTParameter(random_cores(SHAPE, 2, seed=0, dtype=torch.float64))


def batches(count: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    target = contract(random_cores(SHAPE, 3, seed=2, dtype=torch.float64)).reshape(20, 3)
    rows = [torch.randint(0, 20, (size,), generator=generator) for _ in range(count)]
    return [(r, target[r]) for r in rows]


def error(parameter: TTParameter, batch: tuple[Tensor, Tensor]) -> Tensor:
    rows, target = batch
    return (torch.tanh(contract(parameter.cores).reshape(20, 3)[rows]) - target).square().mean()


def local(problem: object, parameter: TTParameter) -> tuple[LocalProblem, Tensor]:
    cores = orthogonalize([core.detach() for core in parameter.core_parameters()], 0)
    return problem.local(cores, Visit(0, 2, forward=True)), merge_bond(*cores[:2])  # pyright: ignore


def test_batches_are_held_until_the_next_are_asked_for(parameter):
    data = batches(5)
    problem = BatchLoss(lambda batch: error(parameter, batch), data, hold=2)
    with pytest.raises(StateError, match=r"call advance\(\) first"):
        problem()
    seen = []
    for _ in range(3):
        problem.advance()
        seen.append([next(i for i, each in enumerate(data) if each is batch) for batch in problem.held])
        expected = torch.stack([error(parameter, batch) for batch in problem.held]).mean()
        torch.testing.assert_close(problem(), expected)
    assert seen == [[0, 1], [2, 3], [4, 0]]


def test_the_end_of_an_iterator_and_bad_options(parameter):
    problem = BatchLoss(lambda batch: error(parameter, batch), iter(batches(3)), hold=2)
    problem.advance()
    with pytest.raises(StateError, match=r"batches: expected another batch, got the end.*DataLoader"):
        problem.advance()
    with pytest.raises(ConfigError, match="hold: expected at least 1, got 0"):
        BatchLoss(lambda batch: error(parameter, batch), [], hold=0)
    with pytest.raises(StateError, match="batches: expected another batch"):
        BatchLoss(lambda batch: error(parameter, batch), []).advance()


@pytest.mark.parametrize("with_outputs", [False, True])
def test_the_mean_of_the_parts_is_the_loss_of_the_whole(parameter, with_outputs):
    def outputs(batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.tanh(contract(parameter.cores).reshape(20, 3)[batch[0]])

    def loss(found: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (found - batch[1]).square().mean()

    data = batches(4)
    if with_outputs:
        problem = BatchLoss(loss, data, hold=4, outputs=outputs)
    else:
        problem = BatchLoss(lambda batch: error(parameter, batch), data, hold=4)
    problem.advance()
    together = tuple(torch.cat(each) for each in zip(*data, strict=True))
    parts, block = local(problem.bound(parameter), parameter)
    whole, _ = local(Closure(lambda: error(parameter, together), parameter), parameter)
    value, gradient = parts.value_and_gradient(block)
    expected, slope = whole.value_and_gradient(block)
    assert value == pytest.approx(expected)
    assert parts.value(block) == pytest.approx(expected)
    torch.testing.assert_close(gradient, slope)
    product = parts.curvature(block)(slope)
    if with_outputs:
        # Gauss-Newton is positive.
        assert float((product * slope).sum()) > 0
    else:
        torch.testing.assert_close(product, whole.curvature(block)(slope))
    assert isinstance(parts, HasResiduals) == with_outputs


def test_signs_of_batches_tell_noise_once_there_are_enough(parameter):
    for hold in (7, 8):
        problem = BatchLoss(lambda batch: error(parameter, batch), batches(8), hold=hold)
        problem.advance()
        parts, block = local(problem.bound(parameter), parameter)
        assert isinstance(parts, HasResiduals) == (hold == 8)
    gradients = torch.stack([local(part, parameter)[0].value_and_gradient(block)[1] for part in
                             problem.bound(parameter).parts])  # fmt: skip # pyright: ignore
    generator = torch.Generator().manual_seed(3)
    flipped = parts.sign_flipped_gradient(block, generator)
    signs = torch.randint(0, 2, (8,), generator=torch.Generator().manual_seed(3)).to(gradients) * 2 - 1
    torch.testing.assert_close(flipped, torch.einsum("b,b...->...", signs, gradients) / 8)
    assert not torch.allclose(flipped, gradients.mean(0))


def test_each_batch_has_random_numbers_of_its_own_which_are_replayed(parameter):
    drawn: list[float] = []

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        drawn.append(float(torch.rand(())))
        return error(parameter, batch) * (1 + drawn[-1])

    problem = BatchLoss(loss, batches(4), hold=2)
    state = torch.get_rng_state()
    problem.advance()
    value = float(problem().detach())
    parts, block = local(problem.bound(parameter), parameter)
    assert parts.value(block) == pytest.approx(value)
    assert parts.value_and_gradient(block)[0] == pytest.approx(value)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(drawn) == 6
    assert drawn[0] != drawn[1]
    assert drawn[:2] == drawn[2:4] == drawn[4:]
    torch.rand(1)  # a training goes on
    problem.advance()
    problem()
    assert drawn[6] not in drawn[:6]


def test_a_scheduler_draws_once_for_each_sweep(parameter):
    loader = DataLoader(TensorDataset(*map(torch.cat, zip(*batches(6), strict=True))), batch_size=6)
    drawn = []
    draws = (drawn.append(1) or tuple(batch) for _ in range(9) for batch in loader)
    problem = BatchLoss(lambda batch: error(parameter, batch), draws, hold=2)
    optimizer = torch.optim.Adam(parameter.parameters())
    options = TwoSiteOptions(sweeps=2)
    scheduler = DMRGScheduler(
        optimizer, parameter, ranks={0: 2, 1: 2, 3: 3}, mode="two-site", two_site=options
    )
    counts, held = [], []
    for _ in range(3):
        report = scheduler.step(problem)
        counts.append(len(drawn))
        held.append(problem.held)
        assert report is None or report.loss_after == pytest.approx(float(problem().detach()))
    assert counts == [2, 2, 4]
    assert held[0] is held[1] is not held[2]


def test_it_is_a_closure_for_the_optimizer_too(parameter):
    problem = BatchLoss(lambda batch: error(parameter, batch), batches(2), hold=2)
    problem.advance()
    a = TwoSiteDMRG(parameter).sweep(problem)
    assert a.loss_after < a.loss_before
