"""One scheduler for several trains: rules, reports, budgets, and that an error changes none of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttnet import TTParameter
from ttnet.cores import contract
from ttnet.errors import ConfigError, NonFiniteError, StateError
from ttnet.nn import TTLinear
from ttnet.optim import AdaptiveRanks, BatchLoss, DMRGScheduler, LeastSquares, RankSchedule
from ttnet.random import random_cores

SHAPES = {"layers.0": (4, 3, 4), "layers.1": (4, 5, 3)}


class Layer(TTParameter):
    """A train that is a layer."""


class Net(nn.Module):
    """Two trains whose product is fitted."""

    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        cores = [random_cores(s, rank, seed=k, dtype=torch.float64) for k, s in enumerate(SHAPES.values())]
        self.layers = nn.ModuleList([Layer(each) for each in cores])
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("target", torch.randn(12, 15, generator=generator, dtype=torch.float64))

    def forward(self) -> Tensor:
        a, b = (contract(layer.cores) for layer in self.layers)
        return (a.reshape(12, 4) @ b.reshape(4, 15) - self.target).square().mean()


def make(ranks: Any, *, by: str = "module", **options: Any) -> tuple[Net, Any, DMRGScheduler]:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    what = {"module": net, "list": list(net.layers), "dict": dict(zip("ab", net.layers, strict=True))}[by]
    return net, optimizer, DMRGScheduler(optimizer, what, ranks=ranks, **options)


def train(net: Net, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net().backward()
        optimizer.step()
    optimizer.zero_grad()


def ranks_of(net: Net) -> list[tuple[int, ...]]:
    return [layer.ranks[1:-1] for layer in net.layers]


@pytest.mark.parametrize("mode", ["truncate", "paper", "two-site"])
def test_one_schedule_for_all(mode):
    net, optimizer, scheduler = make({0: 3, 2: 2}, mode=mode)
    assert scheduler.step(net) is None
    train(net, optimizer)
    start = float(net().detach())
    reports = scheduler.step(net)
    assert list(reports) == list(SHAPES) == list(scheduler.last_cut)
    assert ranks_of(net) == [(2, 2), (2, 2)] == list(scheduler.active_ranks.values())
    first, second = reports.values()
    assert first.loss_before == pytest.approx(start)
    # The second train is changed after the first.
    assert second.loss_before == pytest.approx(first.loss_after)
    assert second.loss_after == pytest.approx(float(net().detach()))
    train(net, optimizer)


@pytest.mark.parametrize("by", ["list", "dict"])
def test_a_rule_for_each(by):
    rules = [{0: 3, 1: 2}, RankSchedule({0: 3, 2: [1, 2]})]
    names = ["0", "1"] if by == "list" else ["a", "b"]
    net, _, scheduler = make(rules if by == "list" else dict(zip(names, rules, strict=True)), by=by)
    reports = scheduler.step()
    assert list(reports) == names[:1]
    assert ranks_of(net) == [(2, 2), (3, 3)]
    assert list(scheduler.step()) == names[1:]
    assert ranks_of(net) == [(2, 2), (1, 2)]
    assert scheduler.step() is None


def test_a_budget_counts_all_trains():
    net, optimizer, scheduler = make(AdaptiveRanks(max_parameters=70, max_cut=9))
    with torch.no_grad():
        # Nothing is lost by cutting the second train to rank 1.
        for layer in list(net.layers)[1:]:
            for core in layer.core_parameters():
                core[1:, :, :] *= 1e-6 if core.shape[0] > 1 else 1
                core[:, :, 1:] *= 1e-6 if core.shape[2] > 1 else 1
    train(net, optimizer, 0)
    scheduler.step()
    size = sum(p.numel() for layer in net.layers for p in layer.core_parameters())
    assert 40 < size <= 70
    assert ranks_of(net)[1] == (1, 1)
    assert max(ranks_of(net)[0]) == 3
    # Rules of their own, though equal, are budgets of their own.
    apart, _, other = make([AdaptiveRanks(max_parameters=70), AdaptiveRanks(max_parameters=70)], by="list")
    assert other.step() is None
    assert ranks_of(apart) == [(3, 3), (3, 3)]


@pytest.mark.parametrize("mode", ["truncate", "two-site"])
def test_the_loss_is_that_of_all_cuts_together(mode):
    allowed = 0.02
    net, optimizer, scheduler = make(AdaptiveRanks(max_loss_increase=allowed, max_cut=2), mode=mode)
    train(net, optimizer, 10)
    reports = scheduler.step(net)
    before = next(iter(reports.values())).loss_before
    assert list(reports.values())[-1].loss_after == pytest.approx(float(net().detach()))
    assert float(net().detach()) <= before * (1 + allowed)


def test_problems_by_name():
    net, _, scheduler = make({0: 3, 1: 2}, mode="two-site")
    points = {n: torch.cartesian_prod(*map(torch.arange, shape)) for n, shape in SHAPES.items()}
    problems = {n: LeastSquares(p, torch.ones(len(p), dtype=torch.float64)) for n, p in points.items()}
    with pytest.raises(ConfigError, match=r"problem: expected one for each train, .*got \['layers.0'\]"):
        scheduler.step({"layers.0": problems["layers.0"]})
    with pytest.raises(ConfigError, match="got one LeastSquares for all"):
        scheduler.step(problems["layers.0"])
    reports = scheduler.step(problems)
    assert all(report.loss_after < 0.3 * report.loss_before for report in reports.values())
    for layer in net.layers:
        assert float((contract(layer.cores) - 1).detach().abs().max()) < 0.7


def test_batches_are_drawn_once_for_all_trains():
    net, _, scheduler = make({0: 3, 1: 2, 2: 3}, mode="two-site")
    problem = BatchLoss(lambda scale: net() * scale, iter([1.0, 2.0]))
    assert len(scheduler.step(problem)) == 2
    assert problem.held == (1.0,)
    assert len(scheduler.step(problem)) == 2
    assert problem.held == (2.0,)


def test_an_error_at_a_later_train_changes_none():
    net, _, scheduler = make({0: 3, 1: 2}, mode="two-site")
    points = {n: torch.cartesian_prod(*map(torch.arange, shape)) for n, shape in SHAPES.items()}
    values = {n: torch.ones(len(p), dtype=torch.float64) for n, p in points.items()}
    values["layers.1"][3] = float("nan")
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(NonFiniteError):
        scheduler.step({n: LeastSquares(points[n], values[n]) for n in SHAPES})
    net.layers[1].core_parameters()[0].grad = torch.ones_like(net.layers[1].core_parameters()[0])
    with pytest.raises(StateError):
        scheduler.step(net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert scheduler.epoch == 0


@pytest.mark.parametrize("mode", ["truncate", "two-site"])
def test_resuming_gives_the_same_bits(mode):
    rules = [AdaptiveRanks(max_loss_increase=0.1, patience=2), {0: 3, 3: 2}]
    net, optimizer, scheduler = make(rules, by="list", mode=mode)
    for _ in range(2):
        train(net, optimizer)
        scheduler.step(net)
    states = [part.state_dict() for part in (net, optimizer, scheduler)]
    other, again, resumed = make(rules, by="list", mode=mode)
    for part, state in zip((other, again, resumed), states, strict=True):
        part.load_state_dict(state)
    # The loaded optimizer state shares memory with the saved one.
    again.load_state_dict({**states[1], "state": {
        k: {n: v.clone() for n, v in s.items()} for k, s in states[1]["state"].items()}})  # fmt: skip
    for each in ((net, optimizer, scheduler), (other, again, resumed)):
        for _ in range(2):
            train(*each[:2])
            each[2].step(each[0])
    assert ranks_of(net) == ranks_of(other)
    assert ranks_of(net)[1] == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert resumed.state_dict() == scheduler.state_dict()
    _, _, single = make({0: 3}, by="dict")
    with pytest.raises(ConfigError, match=r"state: expected that of the trains \['a', 'b'\]"):
        single.load_state_dict(scheduler.state_dict())


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([{0: 3}], r"ranks: expected a rule for each of \['0', '1'\], got 1"),
        ({"0": {0: 3}}, r"ranks: expected a rule for each of \['0', '1'\], got \['0'\]"),
        ([{0: 3}, 4], "ranks: expected a RankSchedule, AdaptiveRanks or a mapping .*got int"),
        ({"2": 3, "x": {0: 3}}, "ranks: expected completed epochs"),
    ],
)
def test_bad_rules(ranks, message):
    with pytest.raises(ConfigError, match=message):
        make(ranks, by="list")


def test_bad_trains():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))])
    for what in (nn.Linear(2, 2), [], [nn.Linear(2, 2)], 3):
        with pytest.raises(ConfigError, match="parameter: expected a TTParameter, several of them"):
            DMRGScheduler(optimizer, what, ranks={0: 3})
    net = Net()
    with pytest.raises(ConfigError, match="parameter: expected each train once"):
        DMRGScheduler(optimizer, [net.layers[0], net.layers[0]], ranks={0: 3})
    with pytest.raises(ConfigError, match="optimizer: expected one that holds every core"):
        DMRGScheduler(torch.optim.Adam(net.layers[0].parameters()), net, ranks={0: 3})


@pytest.mark.parametrize("mode", ["truncate", "two-site"])
def test_the_layers_of_a_model(mode):
    """Layers that cache nothing of their cores, one of them between nonlinear functions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        TTLinear((4, 4), (3, 4), 3, seed=0, dtype=torch.float64),
        nn.Tanh(),
        TTLinear((3, 4), (2, 2), 3, seed=1, dtype=torch.float64),
    )
    x, y = torch.randn(40, 16, dtype=torch.float64), torch.randint(0, 4, (40,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def problem() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    scheduler = DMRGScheduler(optimizer, model, ranks={0: 3, 1: 2}, mode=mode)
    for _ in range(10):
        optimizer.zero_grad()
        problem().backward()
        optimizer.step()
    reports = scheduler.step(problem)
    assert list(reports) == ["0.cores", "2.cores"]
    assert [model[k].cores.ranks for k in (0, 2)] == [(1, 2, 1), (1, 2, 1)]
    assert reports["2.cores"].loss_after == pytest.approx(float(problem().detach()))
    if mode == "two-site":
        assert reports["2.cores"].loss_after < reports["0.cores"].loss_before
