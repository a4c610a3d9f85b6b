"""The scheduler's sweeps that optimize: what they leave, what they touch, what they refuse."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttnet import TTParameter
from ttnet.cores import contract
from ttnet.errors import ConfigError, NonFiniteError, StateError
from ttnet.optim import (
    AdaptiveRanks,
    BatchLoss,
    Composite,
    DMRGScheduler,
    LeastSquares,
    TwoSiteOptions,
)
from ttnet.random import random_cores

SHAPE = (4, 3, 4, 3)


class Net(nn.Module):
    """A train inside a network with dropout and a head of its own."""

    def __init__(self, rank: int = 4, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> None:
        super().__init__()
        self.cores = TTParameter(random_cores(SHAPE, rank, seed=0, dtype=dtype))
        self.head = nn.Linear(3, 2).to(dtype)
        self.dropout = nn.Dropout(dropout)
        teacher = contract(random_cores(SHAPE, 2, seed=1, dtype=torch.float64))
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.register_buffer("target", (teacher / teacher.std() + 0.1 * noise).to(dtype))

    def loss(self, rows: Tensor | None = None) -> Tensor:
        rows = torch.arange(SHAPE[0]) if rows is None else rows
        rows = rows.to(self.target.device)
        full = self.dropout(contract(self.cores.cores)[rows])
        return (full - self.target[rows]).square().mean() + 0.1 * self.head(full).square().mean()

    def forward(self) -> Tensor:
        return self.loss()


def make(
    *,
    rank: int = 4,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    device: torch.device | None = None,
    **options: Any,
) -> tuple[Net, torch.optim.Optimizer, DMRGScheduler]:
    torch.manual_seed(0)
    net = Net(rank, dtype, dropout).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    options = {"ranks": {0: rank, 1: 2}, "mode": "two-site"} | options
    return net, optimizer, DMRGScheduler(optimizer, net.cores, **options)


def train(net: Net, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net().backward()
        optimizer.step()
    optimizer.zero_grad()


def snapshot(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], Any]:
    return [p.detach().clone() for p in net.parameters()], copy.deepcopy(optimizer.state_dict())


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


# Ranks and losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gauge", ["nearest", "canonical", "balanced"])
def test_a_sweep_ends_below_what_a_cut_reaches(gauge, device):
    net, optimizer, scheduler = make(gauge=gauge, device=device)
    train(net, optimizer)
    other, again, cutter = make(mode="truncate", device=device)
    train(other, again)
    parameters = net.cores.core_parameters()
    report, cut = scheduler.step(net), cutter.step(other)
    assert report.ranks_before == (4, 4, 3)
    assert report.ranks_after == (2, 2, 2) == net.cores.ranks[1:-1]
    assert report.loss_before == pytest.approx(cut.loss_before)
    assert report.loss_after == pytest.approx(float(net().detach()), rel=1e-9)
    assert report.loss_after < 0.2 * cut.loss_after
    assert report.epoch == 1
    assert report.evaluations > 0
    assert len(report.spectra[0]) == 4
    assert all(a is b for a, b in zip(parameters, net.cores.core_parameters(), strict=True))
    train(net, optimizer)
    assert float(net().detach()) < 2 * report.loss_after


def test_every_key_is_a_sweep_even_at_the_same_rank():
    net, optimizer, scheduler = make(ranks={0: 3, 1: 3, 3: 3})
    seen = []
    for _ in range(4):
        train(net, optimizer, 1)
        before = snapshot(net, optimizer)
        report = scheduler.step(net)
        seen.append(report and report.epoch)
        assert report or same_bits(before, snapshot(net, optimizer))
    assert seen == [1, None, 3, None]


@pytest.mark.parametrize("mode", ["truncate", "two-site"])
def test_ranks_may_rise_to_exact_targets(mode):
    net, optimizer, scheduler = make(rank=2, ranks={0: 2, 1: 3, 2: [4, 4, 3]}, mode=mode)
    losses = []
    for targets in ((3, 3, 3), (4, 4, 3)):
        train(net, optimizer)
        report = scheduler.step(net)
        assert report.ranks_after == targets == net.cores.ranks[1:-1]
        losses.append(report.loss_after)
        tolerance = 1 + 1e-9 if mode == "truncate" else 0.9
        assert report.loss_after < tolerance * report.loss_before
    train(net, optimizer, 20)
    assert all(float(s[-1]) > 1e-4 for s in net.cores.tensor_train().spectra())


def test_tested_growth_asks_the_noise():
    teacher = contract(random_cores((5, 5, 5), 2, seed=3, dtype=torch.float64))
    teacher = teacher / teacher.std()
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, 5, (400, 3), generator=generator)
    noise = 0.3 * torch.randn(400, generator=generator, dtype=torch.float64)
    problem = LeastSquares(points, teacher[tuple(points.T)] + noise)
    found = []
    for growth in ("test", "free", None):
        parameter = TTParameter(random_cores((5, 5, 5), 1, seed=4, dtype=torch.float64))
        optimizer = torch.optim.Adam(parameter.parameters())
        scheduler = DMRGScheduler(
            optimizer,
            parameter,
            ranks={0: 1, 1: 4, 2: 4, 3: 4},
            mode="two-site",
            two_site=TwoSiteOptions(growth=growth),
        )
        reports = [scheduler.step(problem) for _ in range(3)]
        assert reports[-1].loss_after <= reports[0].loss_before
        found.append(parameter.ranks[1:-1])
    assert found[1:] == [(4, 4), (1, 1)]
    # At most one bond takes noise for a signal, as one visit in a hundred or so will.
    assert min(found[0]) >= 2
    assert sum(found[0]) < 8


def test_a_composite_shows_its_outputs():
    net, optimizer, scheduler = make(two_site=TwoSiteOptions(growth="test"), ranks={0: 4, 1: 3})
    train(net, optimizer)
    problem = Composite(
        outputs=lambda: contract(net.cores.cores).reshape(-1, 3),
        loss=lambda out: (out - net.target.reshape(-1, 3)).square().mean(),
        parameter=net.cores,
    )
    report = scheduler.step(problem)
    assert report.loss_after < 0.2 * report.loss_before
    assert max(report.ranks_after) <= 3


def test_adaptive_ranks_follow_the_loss_after_the_sweep():
    ranks = AdaptiveRanks(max_loss_increase=0.3, max_cut=3)
    net, optimizer, scheduler = make(ranks=ranks)
    train(net, optimizer)
    report = scheduler.step(net)
    # The teacher's rank is 2, the rest is noise.
    assert report.ranks_after == (2, 2, 2) == net.cores.ranks[1:-1]
    assert report.loss_after == pytest.approx(float(net().detach()), rel=1e-9)
    assert report.loss_after < 0.3 * report.loss_before
    assert 0 < report.relative_error < 0.3


def test_adaptive_ranks_may_grow_within_a_budget(device):
    ranks = AdaptiveRanks(max_parameters=60, max_growth=1)
    net, optimizer, scheduler = make(rank=1, ranks=ranks, device=device)
    for _ in range(3):
        train(net, optimizer, 1)
        report = scheduler.step(net)
    size = sum(core.numel() for core in net.cores.core_parameters())
    assert 2 <= report.max_rank
    assert 14 < size <= 60


def test_several_sweeps_are_one_report():
    net, optimizer, scheduler = make(two_site=TwoSiteOptions(sweeps=3, solver="lbfgs", local_steps=2))
    train(net, optimizer)
    start = float(net().detach())
    report = scheduler.step(net)
    one, again, single = make(two_site=TwoSiteOptions(solver="lbfgs", local_steps=2))
    train(one, again)
    other = single.step(one)
    assert report.loss_before == pytest.approx(start)
    assert report.evaluations > 2 * other.evaluations
    assert report.loss_after <= other.loss_after


# What it leaves alone --------------------------------------------------------------------------------------


def test_the_rest_of_the_model_its_gradients_and_its_mode_stay():
    net, optimizer, scheduler = make(dropout=0.3)
    train(net, optimizer)
    net.eval()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    head, state = net.head.weight.detach().clone(), copy.deepcopy(optimizer.state[net.head.weight])
    assert scheduler.step(net) is not None
    assert not net.training
    assert not net.dropout.training
    assert torch.equal(net.head.weight, head)
    assert torch.equal(net.head.weight.grad, torch.ones_like(head))
    assert same_bits(optimizer.state[net.head.weight], state)
    assert all(core.grad is None for core in net.cores.core_parameters())


def test_dropout_is_one_function_for_a_sweep(device):
    net, optimizer, scheduler = make(dropout=0.3, device=device)
    train(net, optimizer)
    masks = []
    net.dropout.register_forward_hook(lambda _, inputs, out: masks.append((out == 0) & (inputs[0] != 0)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    report = scheduler.step(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(masks) > 5
    assert bool(masks[0].any())
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert report.loss_after < report.loss_before


@pytest.mark.parametrize("gauge", ["nearest", "canonical"])
def test_a_sweep_that_moves_nothing_carries_the_moments_exactly(gauge):
    """With a constant loss only the gauge changes, and first moments are covectors."""
    net, optimizer, scheduler = make(rank=3, ranks={0: 3, 1: 3}, gauge=gauge)
    train(net, optimizer)
    cores, before = net.cores.core_parameters(), net.cores.tensor_train().full()
    values = [core.detach().clone() for core in cores]
    states = [copy.deepcopy(optimizer.state[core]) for core in cores]
    products = [float((s["exp_avg"] * v).sum()) for s, v in zip(states, values, strict=True)]
    assert scheduler.step(lambda: 0.0 * contract(net.cores.cores).sum() + 1.0) is not None
    torch.testing.assert_close(net.cores.tensor_train().full(), before)
    for core, value, state, product in zip(cores, values, states, products, strict=True):
        moments = optimizer.state[core]
        assert moments["step"] == state["step"]
        # <moment, core> does not depend on the gauge.
        assert float((moments["exp_avg"] * core.detach()).sum()) == pytest.approx(product, rel=1e-8)
        if gauge == "nearest":
            torch.testing.assert_close(core.detach(), value)
            torch.testing.assert_close(moments["exp_avg_sq"], state["exp_avg_sq"])


def test_reset_forgets_the_cores_alone():
    net, optimizer, scheduler = make(state="reset")
    train(net, optimizer)
    scheduler.step(net)
    assert not any(core in optimizer.state for core in net.cores.core_parameters())
    assert net.head.weight in optimizer.state
    train(net, optimizer)


def test_the_nearest_gauge_keeps_the_scales():
    sizes = {}
    for gauge in ("nearest", "canonical"):
        net, optimizer, scheduler = make(rank=3, ranks={0: 3, 1: 3}, gauge=gauge)
        with torch.no_grad():
            net.cores.core_1.mul_(100)
            net.cores.core_0.div_(100)
        train(net, optimizer, 1)
        scheduler.step(net)
        sizes[gauge] = [float(core.detach().norm()) for core in net.cores.core_parameters()]
    assert sizes["nearest"][1] > 20 * sizes["nearest"][0]
    assert sizes["canonical"][1] < 2 * sizes["canonical"][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay(dtype, device):
    net, optimizer, scheduler = make(dtype=dtype, device=device)
    train(net, optimizer)
    report = scheduler.step(net)
    assert all(core.dtype == dtype for core in net.cores.core_parameters())
    assert report.loss_after < report.loss_before
    assert float(net().detach()) < report.loss_before
    train(net, optimizer)


def test_a_zero_train_is_optimized_away_from_zero():
    net, optimizer, scheduler = make()
    with torch.no_grad():
        net.cores.core_0.zero_()
    report = scheduler.step(net)
    assert report.ranks_after == (2, 2, 2)
    assert report.loss_after < 0.5 * report.loss_before
    assert all(bool(torch.isfinite(core.detach()).all()) for core in net.cores.core_parameters())
    train(net, optimizer)


@pytest.mark.parametrize("state", ["transport", "reset"])
def test_kept_shapes_hold_exact_zeros(state, device):
    net, optimizer, scheduler = make(
        device=device, keep_shapes=True, state=state, ranks={0: 4, 1: [2, 3, 2], 2: 3}
    )
    train(net, optimizer)
    report = scheduler.step(net)
    assert net.cores.ranks[1:-1] == (4, 4, 3)
    assert report.ranks_after == scheduler.active_ranks == (2, 3, 2)
    train(net, optimizer)
    bounds = (1, 2, 3, 2, 1)
    for k, core in enumerate(net.cores.core_parameters()):
        for tensor in (core.detach(), optimizer.state[core]["exp_avg"]):
            assert not bool(tensor[bounds[k] :].any())
            assert not bool(tensor[:, :, bounds[k + 1] :].any())
    assert scheduler.step(net).ranks_after == (3, 3, 3)
    scheduler.compact()
    assert net.cores.ranks[1:-1] == (3, 3, 3)


# What it refuses -------------------------------------------------------------------------------------------


def test_a_loss_is_needed():
    net, _, scheduler = make()
    with pytest.raises(ConfigError, match=r"problem: mode 'two-site' minimizes .* BatchLoss"):
        scheduler.step()
    with pytest.raises(ConfigError, match="problem: expected a closure, a BatchLoss or a problem object"):
        scheduler.step([torch.zeros(2)])
    assert scheduler.epoch == 0
    assert net.cores.ranks[1:-1] == (4, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "truncate", "two_site": TwoSiteOptions()}, "two_site: expected None, since mode is"),
        ({"two_site": {"solver": "cg"}}, "two_site: expected TwoSiteOptions, got dict"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_options_are_checked_when_the_scheduler_is_made():
    with pytest.raises(ConfigError, match="solver"):
        make(two_site=TwoSiteOptions(solver="bfgs"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="sweeps: expected at least 1, got 0"):
        TwoSiteOptions(sweeps=0)


def test_a_pending_gradient_is_refused():
    net, optimizer, scheduler = make()
    train(net, optimizer)
    net().backward()
    with pytest.raises(StateError, match="holds a gradient that the optimizer has not used"):
        scheduler.step(net)
    optimizer.step()
    assert scheduler.step(net) is not None


@pytest.mark.parametrize("after", [0, 6])
def test_a_loss_that_is_not_finite_changes_nothing(after):
    net, optimizer, scheduler = make()
    train(net, optimizer)
    before, calls = snapshot(net, optimizer), 0

    def problem() -> Tensor:
        nonlocal calls
        calls += 1
        return net() * (math.nan if calls > after else 1.0)

    with pytest.raises(NonFiniteError):
        scheduler.step(problem)
    assert same_bits(before, snapshot(net, optimizer))
    assert scheduler.epoch == 0


# In a training ---------------------------------------------------------------------------------------------


class Job:
    """Batches, dropout, two groups of parameters, a learning rate schedule, accumulation, GradScaler."""

    def __init__(self, device: torch.device, **options: Any) -> None:
        torch.manual_seed(0)
        self.net = Net(dtype=torch.float32, dropout=0.1).to(device)
        groups = [{"params": self.net.head.parameters(), "lr": 3e-3}, {"params": self.net.cores.parameters()}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: 0.9**epoch)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=8.0)
        self.device = device
        self.sweeps = DMRGScheduler(self.optimizer, self.net.cores, mode="two-site", **options)

    def epoch(self, number: int) -> Any:
        torch.manual_seed(number)
        for step in range(4):
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = self.net.loss(torch.tensor([step % 4, (step + 1) % 4]))
            self.scaler.scale(loss / 2).backward()
            if step % 2:
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
        self.rate.step()
        rows = torch.randperm(4).reshape(2, 2)
        return self.sweeps.step(BatchLoss(self.net.loss, rows, hold=2))

    def parts(self) -> tuple[Any, ...]:
        return self.net, self.optimizer, self.rate, self.scaler, self.sweeps


@pytest.mark.parametrize(
    "options",
    [
        {"ranks": {0: 4, 1: 3, 3: 4}},
        {"ranks": {0: 4, 2: 3}, "state": "reset", "two_site": TwoSiteOptions(solver="adam", noise=1e-3)},
        {"ranks": AdaptiveRanks(max_loss_increase=0.05, patience=2, max_growth=1)},
    ],
)
def test_resuming_gives_the_same_bits(options, device, tmp_path):
    whole = Job(device, **options)
    reports = []
    for number in range(4):
        reports.append(whole.epoch(number))
        torch.save([part.state_dict() for part in whole.parts()], tmp_path / f"{number}.pt")
    assert sum(report is not None for report in reports) in (1, 2)
    assert all(r.loss_after < r.loss_before for r in reports if r)
    for saved in (0, 1, 2):
        resumed = Job(device, **options)
        states = torch.load(tmp_path / f"{saved}.pt", weights_only=True)
        for part, state in zip(resumed.parts(), states, strict=True):
            part.load_state_dict(state)
        for number in range(saved + 1, 4):
            resumed.epoch(number)
        assert same_bits(snapshot(whole.net, whole.optimizer), snapshot(resumed.net, resumed.optimizer))
        assert resumed.sweeps.state_dict() == whole.sweeps.state_dict()
