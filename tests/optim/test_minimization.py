import itertools

import pytest
import torch
from torch import nn

from tests.optim.problems import HEISENBERG
from ttnet import TensorTrain, Truncation, TTMatrix, TTParameter, operators, random_train
from ttnet.errors import ConfigError, NonFiniteError
from ttnet.optim import RayleighQuotient, Status, TwoSiteDMRG, dmrg

F64 = torch.float64


def neel(length, device):
    cores = [torch.eye(2, dtype=F64, device=device)[k % 2].reshape(1, 2, 1) for k in range(length)]
    return TensorTrain(cores)


def start(shape, rank, device, *, seed=0):
    return random_train(shape, rank, seed=seed, dtype=F64).to(device)


# When it ends, and what is the best ------------------------------------------------------------------------


def test_it_does_not_settle_before_the_last_settings_are_in_force(device):
    H = operators.heisenberg(8, dtype=F64).to(device)
    result = dmrg(H, neel(8, device), max_rank=[1, 16])
    assert result.converged
    assert result.loss == pytest.approx(HEISENBERG[8], rel=1e-9)


def test_a_forced_rise_is_no_settling_and_the_best_obeys_the_last_cap(device):
    H = operators.heisenberg(8, dtype=F64).to(device)
    result = dmrg(H, start((2,) * 8, 4, device), max_rank=[16, 4], sweeps=12)
    assert result.converged
    assert max(result.tensor_train.ranks) == 4
    assert len(result.trajectory) > 2
    last = result.trajectory[-1]
    assert last.loss_after == pytest.approx(last.loss_before, rel=1e-9)


def test_without_a_sweep_at_the_last_settings_the_best_of_the_others_is_returned(device):
    H = operators.heisenberg(6, dtype=F64).to(device)
    result = dmrg(H, start((2,) * 6, 2, device), max_rank=[8, 2], sweeps=1)
    assert max(result.tensor_train.ranks) > 2
    assert result.status is Status.MAX_SWEEPS


def test_the_last_update_of_a_sweep_is_judged_by_its_own_settings(device):
    # The second sweep has noise, by which updates are not judged; the first one has none.
    train = start((4, 4), 4, device)
    target = train.full()
    parameter = TTParameter(train * 1.01)
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(cutoff=0.3), noise=[0.0, 1.0])
    report = optimizer.sweep(lambda: (parameter().full() - target).square().sum())
    assert report.undone == 1
    assert report.loss_after <= report.loss_before


def test_one_site_sweeps_follow_at_once_and_leave_the_optimizer_as_it_was(device):
    parameter = TTParameter(start((2,) * 6, 8, device))
    sites = []
    optimizer = TwoSiteDMRG(
        parameter,
        truncation=Truncation(max_rank=8),
        solver="lanczos",
        observer=lambda *_: sites.append(optimizer.sites),
    )
    problem = RayleighQuotient(operators.heisenberg(6, dtype=F64).to(device))
    result = optimizer.minimize(problem, sweeps=20, one_site_sweeps=2)
    assert result.converged
    assert sites == sorted(sites, reverse=True)
    assert sites[-1] == 1
    assert len(sites) < 10
    assert optimizer.sites == 2


def test_one_site_updates_obey_the_cutoff_and_a_cap_that_falls(device):
    H, guess = operators.heisenberg(10, dtype=F64).to(device), start((2,) * 10, 4, device)
    result = dmrg(H, guess, cutoff=1e-6, sites=1, sweeps=8)
    assert result.loss == pytest.approx(HEISENBERG[10], rel=1e-5)
    assert max(result.tensor_train.ranks) <= 16
    assert max(result.trajectory[-1].entropies) > 0.1
    capped = dmrg(H, guess, max_rank=[12, 4], sites=1, sweeps=4)
    assert max(capped.tensor_train.ranks) == 4


# Losses that are not finite -------------------------------------------------------------------------------


def test_a_truncation_that_makes_the_loss_infinite_is_taken_back(device):
    train = start((4, 4, 4, 4), 4, device)
    Z = train.full()
    parameter = TTParameter(train)

    def problem():
        distance = torch.linalg.vector_norm(parameter().full() - Z).clamp_min(1e-9)
        return -torch.log(0.02 * torch.linalg.vector_norm(Z) - distance)

    result = TwoSiteDMRG(parameter, truncation=Truncation(cutoff=1e-2)).minimize(problem, sweeps=3)
    assert result.status is not Status.NON_FINITE
    assert result.loss == pytest.approx(float(problem().detach()), rel=1e-6)


def test_the_loss_of_the_last_good_train_is_returned_where_no_sweep_was_finished(device):
    parameter = TTParameter(start((3, 3, 3), 2, device))
    calls = itertools.count()

    def problem():
        loss = (parameter().full() - 1).square().sum()
        return loss * torch.nan if next(calls) > 12 else loss

    result = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2)).minimize(problem)
    assert result.status is Status.NON_FINITE
    assert result.loss == pytest.approx(float((parameter().full().detach() - 1).square().sum()))
    with pytest.raises(NonFiniteError, match="problem"):
        TwoSiteDMRG(parameter).step(problem)


# Problems that change, and what they depend on -------------------------------------------------------------


class Rising:
    """The split of the first block raises the loss: the cutoff is coarse."""

    def __init__(self, parameter, target):
        self.parameter, self.target = parameter, target

    def loss(self):
        return (self.parameter().full() - self.target).square().sum()


def test_updates_by_steps_of_a_bound_method_are_taken_back(device):
    target = start((4, 4, 4, 4), 4, device)
    parameter = TTParameter(target + start((4, 4, 4, 4), 4, device, seed=3) * 1e-3)
    model = Rising(parameter, target.full())
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(cutoff=0.2))
    losses = [optimizer.step(model.loss) for _ in range(11)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))


def test_a_problem_that_changes_between_sweeps_is_not_judged_by_the_one_before(device):
    parameter = TTParameter(start((3, 3, 3), 2, device))
    low, high = (lambda: parameter().full().square().sum()), (lambda: parameter().full().square().sum() + 100)
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2))
    for _ in range(3):
        optimizer.step(low)
    report = optimizer.sweep(high)
    assert report.undone == 0


def test_a_sweep_that_steps_began_knows_its_ranks(device):
    parameter = TTParameter(start((3, 3, 3), 2, device))
    problem = lambda: (parameter().full() - 1).square().sum()  # noqa: E731
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2))
    optimizer.step(problem)
    assert optimizer.sweep(problem).ranks_before == (2, 2)


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs", "cg"])
def test_a_loss_need_not_use_every_core(device, solver):
    parameter = TTParameter(start((3, 3, 3, 3), 2, device))
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2), solver=solver)

    def problem():
        return (torch.tensordot(*parameter.cores[:2], 1) - 1).square().sum()

    report = optimizer.sweep(problem)
    assert report.loss_untruncated < 1e-3 < report.loss_before


def test_a_loss_without_the_train_is_refused(device):
    parameter = TTParameter(start((3, 3, 3), 2, device))
    weight = torch.ones(3, requires_grad=True, device=device)
    for problem in (lambda: parameter().full().sum().detach(), lambda: weight.square().sum()):
        with pytest.raises(ConfigError, match="problem: expected a loss with a graph that leads to"):
            TwoSiteDMRG(parameter).step(problem)


# Interruptions ----------------------------------------------------------------------------------------------


def dropout(device, *, sites=2):
    parameter = TTParameter(start((4, 4, 4, 4), 3, device))
    target = start((4, 4, 4, 4), 4, device, seed=1).full()

    def problem():
        return (nn.functional.dropout(parameter().full(), 0.3) - target).square().sum()

    return parameter, problem, TwoSiteDMRG(parameter, truncation=Truncation(max_rank=3), sites=sites)


@pytest.mark.parametrize("steps", [5, 13])
def test_a_state_holds_the_random_state_and_is_plain(device, steps, tmp_path):
    torch.manual_seed(0)
    parameter, problem, optimizer = dropout(device)
    for _ in range(steps):
        optimizer.step(problem)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    for _ in range(3):
        optimizer.step(problem)
    optimizer.sweep(problem)
    torch.manual_seed(99)
    other, same, resumed = dropout(device)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for _ in range(3):
        resumed.step(same)
    torch.manual_seed(0)
    resumed.sweep(same)
    assert all(torch.equal(a, b) for a, b in zip(parameter.cores, other.cores, strict=True))


def test_a_checkpoint_holds_the_random_state(device, tmp_path):
    torch.manual_seed(0)
    _, problem, optimizer = dropout(device)
    whole = optimizer.minimize(problem, sweeps=3, tol=0.0)
    _, problem, optimizer = dropout(device)
    optimizer.minimize(problem, sweeps=1, tol=0.0, checkpoint=tmp_path / "run.pt")
    torch.manual_seed(99)
    _, problem, optimizer = dropout(device)
    resumed = optimizer.minimize(problem, sweeps=3, tol=0.0, checkpoint=tmp_path / "run.pt")
    assert resumed.loss == whole.loss
    pairs = zip(whole.tensor_train.cores, resumed.tensor_train.cores, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_state_is_a_copy(device):
    parameter, problem, optimizer = dropout(device)
    for _ in range(3):
        optimizer.step(problem)
    state = optimizer.state_dict()
    losses = list(state["log"]["losses"])
    optimizer.step(problem)
    assert state["log"]["losses"] == losses
    assert len(parameter.cores) == 4


def test_a_finished_checkpoint_returns_at_once(device, tmp_path):
    H = operators.heisenberg(6, dtype=F64).to(device)
    options = {"max_rank": 8, "one_site_sweeps": 2, "checkpoint": tmp_path / "run.pt"}
    first = dmrg(H, start((2,) * 6, 4, device), **options)
    assert first.converged
    again = dmrg(H, start((2,) * 6, 4, device), **options)
    assert again.converged
    assert len(again.trajectory) == len(first.trajectory)
    assert again.loss == first.loss


# States -----------------------------------------------------------------------------------------------------


def ising_with_ground_energy_zero(device):
    """-4 sum Z - sum X X - E0: the gap, 6.24, is large beside the ground state energy, which is 0."""
    H = operators.ising(6, coupling=1.0, field=4.0, dtype=F64)
    levels = torch.linalg.eigvalsh(H.full())
    H = H - TTMatrix.identity((2,) * 6, dtype=F64) * float(levels[0])
    return H.to(device), levels - levels[0]


def test_an_excited_state_needs_no_penalty(device):
    H, levels = ising_with_ground_energy_zero(device)
    ground = dmrg(H, start((2,) * 6, 4, device)).tensor_train
    for guess in (start((2,) * 6, 4, device, seed=1), ground):
        excited = dmrg(H, guess, orthogonal_to=[ground * 0.5])
        assert excited.converged
        assert excited.loss == pytest.approx(float(levels[1]), rel=1e-8)
        assert abs(float(excited.tensor_train.dot(ground))) < 1e-5


def test_a_penalty_below_the_gap_is_reported_and_not_part_of_the_energy(device):
    H, levels = ising_with_ground_energy_zero(device)
    ground = dmrg(H, start((2,) * 6, 4, device)).tensor_train
    options = {"orthogonal_to": [ground], "sweeps": 20}
    poor = dmrg(H, start((2,) * 6, 4, device, seed=1), penalty=1.0, **options)
    assert poor.status is Status.NOT_ORTHOGONAL
    assert poor.loss == pytest.approx(0.0, abs=1e-6)
    good = dmrg(H, start((2,) * 6, 4, device, seed=1), penalty=20.0, **options)
    assert good.converged
    assert good.loss == pytest.approx(float(levels[1]), rel=1e-8)


def test_energies_do_not_depend_on_the_unit(device):
    H = operators.heisenberg(6, coupling=1e-20, dtype=F64).to(device)
    result = dmrg(H, start((2,) * 6, 4, device))
    assert result.loss * 1e20 == pytest.approx(HEISENBERG[6], rel=1e-8)
