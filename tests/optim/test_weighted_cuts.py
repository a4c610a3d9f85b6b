"""Cuts in the norm of a metric, against dense weighted TT-SVDs; the scheduler that makes them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttnet import TTParameter
from ttnet.cores import contract, ranks_of
from ttnet.errors import ConfigError, ShapeError, StateError
from ttnet.optim import AdaptiveRanks, DMRGScheduler
from ttnet.optim import norms as norms_module
from ttnet.optim.cuts import rounding_cut
from ttnet.optim.norms import Norm, norm_of, norms_now
from ttnet.random import random_cores
from ttnet.rounding import truncate
from ttnet.truncation import Truncation

GAUGES = ("nearest", "canonical", "balanced")
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPE, RANKS, TARGETS = (6, 4, 5, 7), (6, 9, 7), (3, 9, 4)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.complex64) else 1e-10


def positive(
    size: int, *, rank: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A Hermitian positive (semi)definite matrix whose eigenvalues are spread over decades."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=dtype))[0]
    values = torch.logspace(1, -2, size, dtype=torch.float64)
    values[size if rank is None else rank :] = 0
    matrix = (q * values.to(q.real.dtype)) @ q.mH
    return (matrix + matrix.mH) / 2


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mH


def weigh(metric: Any, tensor: Tensor) -> Tensor:
    """The dense tensor times C_k^1/2 in each mode."""
    tensor = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
    for k, matrix in enumerate(metric):
        if matrix is not None:
            own = root(matrix.to(tensor.dtype))
            tensor = torch.movedim(torch.tensordot(own, tensor, dims=([1], [k])), 0, k)
    return tensor


def dense_tt_svd(tensor: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """TT-SVD from right to left: the tensor of these ranks."""
    shape, right = tensor.shape, torch.eye(1, dtype=tensor.dtype)
    rest = tensor.reshape(-1, 1)
    for k in range(len(shape) - 1, 0, -1):
        u, s, vh = torch.linalg.svd(rest.reshape(-1, shape[k] * right.shape[0]), full_matrices=False)
        rank = ranks[k - 1]
        core = vh[:rank].reshape(-1, shape[k], right.shape[0])
        right = torch.tensordot(core, right, dims=1).reshape(core.shape[0], -1)
        rest = u[:, :rank] * s[:rank]
    return (rest.reshape(shape[0], -1) @ right).reshape(shape)


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach()))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cut_is_the_dense_weighted_tt_svd(dtype, gauge, device):
    cores = random_cores(SHAPE, RANKS, seed=1, dtype=dtype)
    metric = [positive(6, dtype=dtype), None, positive(5, seed=1, dtype=dtype), positive(7, dtype=dtype)]
    there = [core.to(device) for core in cores]
    cut = rounding_cut(there, TARGETS, gauge=gauge, norm=norm_of(metric, there))
    assert ranks_of(cut.cores)[1:-1] == TARGETS
    assert all(core.dtype == dtype for core in cut.cores)
    weighted = weigh(metric, contract(cores))
    best = dense_tt_svd(weighted, TARGETS)
    found = weigh(metric, contract([core.cpu() for core in cut.cores]))
    assert norm(found - best) < tolerance(dtype) * norm(weighted)
    error = norm(found - weighted)
    assert math.sqrt(sum(cut.discarded_weight)) == pytest.approx(error, rel=tolerance(dtype))
    plain = rounding_cut(cores, TARGETS)
    assert error < 0.9 * norm(weigh(metric, contract(plain.cores)) - weighted)
    assert norm(contract([c.cpu() for c in cut.cores]) - contract(cores)) > norm(
        contract(plain.cores) - contract(cores)
    )


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_cores_are_cut_optimally(dtype, gauge):
    cores = random_cores((8, 9), 7, seed=2, dtype=dtype)
    metric = [positive(8, dtype=dtype), positive(9, dtype=dtype, seed=3)]
    cut = rounding_cut(cores, (3,), gauge=gauge, norm=norm_of(metric, cores))
    whole = weigh(metric, contract(cores))
    best = norm(torch.linalg.svdvals(whole)[3:])
    assert norm(weigh(metric, contract(cut.cores)) - whole) == pytest.approx(best, rel=tolerance(dtype))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_is_the_plain_cut(dtype, gauge):
    cores = random_cores(SHAPE, RANKS, seed=3, dtype=dtype)
    eye = [torch.eye(n, dtype=dtype) for n in SHAPE]
    plain = rounding_cut(cores, TARGETS, gauge=gauge)
    cut = rounding_cut(cores, TARGETS, gauge=gauge, norm=norm_of(eye, cores))
    accuracy = 1e-5 if dtype in (torch.float32, torch.complex64) else 1e-10
    torch.testing.assert_close(contract(cut.cores), contract(plain.cores), rtol=accuracy, atol=accuracy)
    assert cut.discarded_weight == pytest.approx(plain.discarded_weight, rel=1e-10)
    if gauge == "nearest":
        for new, old in zip(cut.maps.left + cut.maps.right, plain.maps.left + plain.maps.right, strict=True):
            torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)


def test_none_everywhere_is_the_frobenius_norm():
    cores = random_cores(SHAPE, RANKS, seed=3)
    assert norm_of([None] * 4, cores) == norm_of(None, cores) == Norm()
    assert Norm().name == "frobenius"
    assert norm_of([None, torch.eye(4), None, None], cores).name == "metric"
    assert all(a is b for a, b in zip(Norm().weighted(cores), cores, strict=True))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_a_singular_metric_works(dtype, gauge):
    cores = random_cores(SHAPE, RANKS, seed=4, dtype=dtype)
    metric = [positive(6, rank=4, dtype=dtype), None, None, positive(7, rank=5, dtype=dtype)]
    cut = rounding_cut(cores, TARGETS, gauge=gauge, norm=norm_of(metric, cores))
    assert ranks_of(cut.cores)[1:-1] == TARGETS
    assert all(bool(torch.isfinite(torch.view_as_real(c) if c.is_complex() else c).all()) for c in cut.cores)
    weighted = weigh(metric, contract(cores))
    error = norm(weigh(metric, contract(cut.cores)) - weighted)
    best = norm(dense_tt_svd(weighted, TARGETS) - weighted)
    assert error == pytest.approx(best, rel=10 * tolerance(dtype))


def test_roundoff_of_single_precision_is_no_negative_eigenvalue():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    metric = [x.T @ x, None]
    assert float(torch.linalg.eigvalsh(metric[0].double()).min()) < 0
    cores = random_cores((64, 8), 6, seed=0, dtype=torch.float64)
    cut = rounding_cut(cores, (4,), norm=norm_of(metric, cores))
    whole = x.double() @ contract(cores)
    best = norm(torch.linalg.svdvals(whole)[4:])
    assert norm(x.double() @ contract(cut.cores) - whole) == pytest.approx(best, rel=1e-3)


def test_targets_that_a_metric_does_not_fill_keep_old_directions():
    """The metric sees one direction of the first mode: the bond still gets its three, alive, at no error."""
    cores = random_cores((6, 4, 5), (5, 5), seed=5, dtype=torch.float64)
    metric = [positive(6, rank=1), None, None]
    cut = rounding_cut(cores, (3, 5), norm=norm_of(metric, cores))
    assert ranks_of(cut.cores)[1:-1] == (3, 5)
    assert norm(weigh(metric, contract(cut.cores) - contract(cores))) < 1e-6
    left = cut.cores[0].reshape(6, 3)
    assert float(torch.linalg.svdvals(left)[-1]) > 1e-2
    assert not bool(cut.cores[1][1:].any())


def test_a_metric_that_sees_nothing_is_left_aside():
    first = torch.zeros(1, 6, 3, dtype=torch.float64)
    first[0, :3] = torch.randn(3, 3, dtype=torch.float64)
    cores = (first, torch.randn(3, 5, 1, dtype=torch.float64))
    metric = [torch.diag(torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64)), None]
    assert norm_of(metric, cores) == Norm()
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    turned = (torch.einsum("mn,lnr->lmr", turn, first), cores[1])
    # Here roundoff is seen, and nothing else; and a train of zeros says nothing about the metric.
    assert norm_of([turn @ metric[0] @ turn.T, None], turned) == Norm()
    assert norm_of(metric, [torch.zeros_like(core) for core in cores]).name == "metric"
    assert norm_of([turn @ metric[0] @ turn.T, None], cores).name == "metric"


def test_a_sweep_whose_metric_sees_nothing_is_a_plain_one():
    """Were its errors measured in the metric, all of them would be zero, and everything would be cut."""
    found = []
    blind = torch.diag(torch.tensor([0.0] * 6 + [1.0] * 2, dtype=torch.float64))
    for metric in (None, [blind, None, None]):
        parameter = TTParameter(random_cores((8, 3, 7), 6, seed=0, dtype=torch.float64))
        with torch.no_grad():
            parameter.core_parameters()[0][:, 6:] = 0
        optimizer = torch.optim.SGD(parameter.parameters())
        rule = AdaptiveRanks(max_error=0.3, max_cut=6)
        report = DMRGScheduler(optimizer, parameter, ranks=rule, metric=metric).step()
        assert report.norm == "frobenius"
        found.append((report.ranks_after, report.relative_error, report.discarded_weight))
    assert found[0] == found[1]
    assert 0 < found[0][1] <= 0.3


@pytest.mark.parametrize("targets", [(6, 5), (4, 6)])
@pytest.mark.parametrize("rank", [3, 8])
def test_no_gauge_changes_what_is_cut(targets, rank):
    cores = random_cores((8, 5, 7), 6, seed=2, dtype=torch.float64)
    metric = [positive(8, rank=rank), None, None]
    norm_ = norm_of(metric, cores)
    cuts = [rounding_cut(cores, targets, gauge=gauge, norm=norm_) for gauge in GAUGES]
    for cut in cuts[1:]:
        torch.testing.assert_close(contract(cut.cores), contract(cuts[0].cores), rtol=1e-10, atol=1e-10)
        assert cut.discarded_weight == pytest.approx(cuts[0].discarded_weight, rel=1e-10, abs=1e-12)
    # A bond that is not cut keeps what the metric does not see of it.
    cut = rounding_cut(cores, (6, 6), gauge="balanced", norm=norm_)
    torch.testing.assert_close(contract(cut.cores), contract(cores), rtol=1e-10, atol=1e-10)


def test_whole_numbers_and_half_precision_are_metrics():
    cores = {"a": random_cores((3, 4), 2, seed=0)}
    for dtype in (torch.int64, torch.bool, torch.float16, torch.bfloat16):
        found = norms_now([torch.eye(3).to(dtype), None], cores, ["a"])["a"].roots[0]
        torch.testing.assert_close(found, torch.eye(3, dtype=found.dtype))


def test_uncut_bonds_keep_every_bit():
    cores = random_cores((4, 5, 3, 6, 4), (4, 6, 6, 4), seed=7)
    norm_ = norm_of([positive(4), None, positive(3), None, positive(4)], cores)
    cut = rounding_cut(cores, (4, 6, 6, 2), norm=norm_)
    assert all(torch.equal(cut.cores[k], cores[k]) for k in range(3))
    nothing = rounding_cut(cores, (4, 6, 6, 4), norm=norm_)
    assert all(torch.equal(a, b) for a, b in zip(nothing.cores, cores, strict=True))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_maps_lead_to_the_cores_and_the_gauges_are_plain(dtype, gauge):
    cores = random_cores(SHAPE, RANKS, seed=8, dtype=dtype)
    metric = [positive(6, dtype=dtype), None, None, positive(7, dtype=dtype)]
    cut = rounding_cut(cores, TARGETS, gauge=gauge, norm=norm_of(metric, cores))
    for new, old in zip(cut.maps.apply(cores), cut.cores, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)
    for x, y in zip(cut.maps.left, cut.maps.right, strict=True):
        torch.testing.assert_close(y @ x, torch.eye(len(y), dtype=dtype), rtol=0, atol=1e-9)
        if gauge == "nearest":
            torch.testing.assert_close(x.mH @ x, y @ y.mH, rtol=0, atol=1e-9)
    if gauge == "canonical":
        for core in cut.cores[1:]:
            rows = core.reshape(core.shape[0], -1)
            torch.testing.assert_close(rows @ rows.mH, torch.eye(len(rows), dtype=dtype), rtol=0, atol=1e-10)
    if gauge == "balanced":
        left = cut.cores[0].reshape(6, -1)
        s = torch.linalg.svdvals(contract(cut.cores).reshape(6, -1))[:3].to(dtype)
        torch.testing.assert_close(left.mH @ left, torch.diag(s), rtol=0, atol=1e-9)


# The scheduler ---------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Outputs x dW of a train, for inputs some of whose directions are rare."""

    def __init__(self, rank: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.cores = TTParameter(random_cores((8, 3, 7), rank, seed=0, dtype=dtype))
        scales = torch.logspace(0, -3, 8, dtype=dtype)
        turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=dtype))[0]
        self.x = (torch.randn(256, 8, generator=generator, dtype=dtype) * scales) @ turn
        self.y = torch.randn(256, 3, 7, generator=generator, dtype=dtype)

    def outputs(self) -> Tensor:
        return torch.tensordot(self.x, contract(self.cores.cores), dims=1)

    def forward(self) -> Tensor:
        return (self.outputs() - self.y).square().mean()

    def metric(self) -> list[Tensor | None]:
        return [self.x.T @ self.x / len(self.x), None, None]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net().backward()
        optimizer.step()
    optimizer.zero_grad()


def swept(metric: Any = None, *, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Net, Any, Any]:
    net = Net(dtype=dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    options.setdefault("ranks", {0: 6, 1: 3})
    metric = metric(net) if metric else None
    scheduler = DMRGScheduler(optimizer, net.cores, metric=metric, **options)
    train(net, optimizer)
    return net, optimizer, scheduler


@pytest.mark.parametrize("source", [Net.metric, lambda net: net.metric], ids=["fixed", "callable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scheduled_cut_keeps_the_outputs(source, dtype):
    errors = {}
    for name, metric in (("plain", None), ("weighted", source)):
        net, _, scheduler = swept(metric, dtype=dtype)
        before = net.outputs().detach()
        report = scheduler.step()
        errors[name] = norm(net.outputs().detach() - before) / norm(before)
        assert report.ranks_after == (3, 3)
        assert report.norm == {"plain": "frobenius", "weighted": "metric"}[name]
    assert errors["weighted"] < 0.7 * errors["plain"]
    # The weighted norm is that of the outputs: the report says what happened to them.
    assert report.relative_error == pytest.approx(errors["weighted"], rel=1e-3)
    assert math.sqrt(sum(report.discarded_weight) * 256) == pytest.approx(
        errors["weighted"] * norm(before), rel=1e-3
    )
    assert sum(s * s for s in report.spectra[1][3:]) == pytest.approx(report.discarded_weight[1], rel=1e-3)


def test_the_moments_follow_the_maps():
    """At unchanged tensor a carried first moment is the gradient in the new gauge, in the metric as well."""
    net = Net(rank=3)
    x = torch.randn(6, 3, dtype=torch.float64)
    cores = list(net.cores.core_parameters())
    wide = [cores[0] @ x.T, torch.tensordot(torch.linalg.pinv(x.T), cores[1], dims=1), cores[2]]
    net.cores.assign([core.detach() for core in wide])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    scheduler = DMRGScheduler(optimizer, net.cores, ranks={0: 6, 1: 3}, metric=net.metric())
    assert net.cores.ranks == (1, 6, 3, 1)
    train(net, optimizer, 1)
    before = net.outputs().detach()
    report = scheduler.step()
    assert report.ranks_after == (3, 3)
    torch.testing.assert_close(net.outputs().detach(), before)
    net().backward()
    for core in net.cores.core_parameters():
        torch.testing.assert_close(optimizer.state[core]["momentum_buffer"], core.grad, rtol=1e-8, atol=1e-8)


def test_the_callable_is_asked_at_sweeps_alone():
    calls: list[int] = []
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def metric() -> list[Tensor | None]:
        calls.append(scheduler.epoch)
        return net.metric()

    scheduler = DMRGScheduler(optimizer, net.cores, ranks={0: 6, 2: 4, 3: 2}, metric=metric)
    for _ in range(4):
        train(net, optimizer, 1)
        scheduler.step()
    assert calls == [1, 2]


def test_adaptive_ranks_decide_in_the_metric():
    rules = AdaptiveRanks(max_error=0.05, max_cut=6)
    net, _, scheduler = swept(None, ranks=rules)
    plain = scheduler.step()
    net, _, scheduler = swept(Net.metric, ranks=rules)
    before = net.outputs().detach()
    report = scheduler.step()
    error = norm(net.outputs().detach() - before) / norm(before)
    assert report.relative_error == pytest.approx(error, rel=1e-6)
    assert error <= 0.05
    assert sum(report.ranks_after) < (sum(plain.ranks_after) if plain else 12)


def test_a_measure_is_given_weighted_trains():
    def measure(before: Any, after: Any) -> dict[str, float]:
        slices = before.full(), after.full()
        return {str(k): norm(slices[0][:, k] - slices[1][:, k]) / norm(slices[0][:, k]) for k in range(3)}

    net, _, scheduler = swept(Net.metric, measure=measure)
    before = net.outputs().detach()
    report = scheduler.step()
    after = net.outputs().detach()
    for k in range(3):
        expected = norm(after[:, k] - before[:, k]) / norm(before[:, k])
        assert report.matrix_errors[str(k)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("keep_shapes", [False, True])
def test_kept_shapes_hold_the_same_train(keep_shapes):
    net, optimizer, scheduler = swept(Net.metric, keep_shapes=keep_shapes)
    expected = rounding_cut(net.cores.cores, (3, 3), norm=norm_of(net.metric(), net.cores.cores))
    scheduler.step()
    torch.testing.assert_close(contract(net.cores.cores).detach(), contract(expected.cores))
    assert net.cores.ranks[1:-1] == ((6, 6) if keep_shapes else (3, 3))
    train(net, optimizer)
    scheduler.compact()
    assert net.cores.ranks[1:-1] == (3, 3)


def test_several_trains_have_metrics_by_name():
    nets = nn.ModuleDict({"a": Net(), "b": Net()})
    optimizer = torch.optim.Adam(nets.parameters(), lr=1e-2)
    trains = {name: net.cores for name, net in nets.items()}
    metric = {"a": nets["a"].metric}
    scheduler = DMRGScheduler(optimizer, trains, ranks={0: 6, 1: 3}, metric=metric)
    reports = scheduler.step()
    assert {name: report.norm for name, report in reports.items()} == {"a": "metric", "b": "frobenius"}
    whole = contract(Net().cores.cores)
    assert norm(contract(trains["b"].cores) - whole) < norm(contract(trains["a"].cores) - whole)
    with pytest.raises(
        ConfigError, match=r"metric: expected names of trains among \['a', 'b'\], got \['c'\]"
    ):
        DMRGScheduler(optimizer, trains, ranks={0: 6, 1: 3}, metric={"c": nets["a"].metric})


@pytest.mark.parametrize("mode", ["paper", "two-site"])
def test_modes_that_cut_in_no_norm_refuse_a_metric(mode):
    with pytest.raises(ConfigError, match=f"metric: expected None, since mode '{mode}'.*use mode='truncate'"):
        swept(Net.metric, mode=mode)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        ([None, None], ShapeError, "metric: expected one matrix or None for each of 3 modes, got 2"),
        ([torch.eye(7), None, None], ShapeError, r"metric: expected shape \(8, 8\) for mode 0, got \(7, 7\)"),
        (torch.eye(8), ConfigError, "metric: expected a matrix or None for each mode.*got Tensor"),
        ([1.0, None, None], ConfigError, "metric: expected a matrix or None for each mode.*got list"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_metric_is_refused(metric, error, message, late):
    if not late:
        with pytest.raises(error, match=message):
            swept(lambda _: metric)
        return
    net, _, scheduler = swept(lambda _: lambda: metric)
    before = [core.detach().clone() for core in net.cores.core_parameters()]
    with pytest.raises(error, match=message):
        scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.cores.core_parameters(), strict=True))
    assert scheduler.epoch == 0


def test_a_matrix_with_a_negative_eigenvalue_changes_nothing():
    bad = torch.diag(torch.tensor([1.0, -1, 1, 1, 1, 1, 1, 1], dtype=torch.float64))
    net, _, scheduler = swept(lambda _: [bad, None, None])
    before = contract(net.cores.cores).detach().clone()
    with pytest.raises(ConfigError, match="no negative eigenvalue for mode 0"):
        scheduler.step()
    assert torch.equal(contract(net.cores.cores), before)


def test_a_metric_that_failed_elsewhere_stops_here(monkeypatch):
    """What this process does where another one reports a failure, and where the metrics do not match."""
    cores = {"a": random_cores((3, 4), 2, seed=0)}
    monkeypatch.setattr(norms_module, "is_distributed", lambda: True)
    monkeypatch.setattr(norms_module, "gather", lambda value: [value, None])
    with pytest.raises(StateError, match="metric: failed in 1 of 2 processes"):
        norms_now([torch.eye(3), None], cores, ["a"])
    monkeypatch.setattr(norms_module, "gather", lambda value: [value, [None]])
    with pytest.raises(ConfigError, match="metric: expected the same modes"):
        norms_now([torch.eye(3), None], cores, ["a"])

    def broken() -> list[Tensor | None]:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        norms_now(broken, cores, ["a"])


def test_the_cores_of_truncate_and_of_a_cut_agree():
    cores = random_cores(SHAPE, RANKS, seed=9, dtype=torch.float64)
    metric = [positive(6), positive(4), None, positive(7)]
    found = contract(rounding_cut(cores, TARGETS, norm=norm_of(metric, cores)).cores)
    expected = contract(truncate(cores, Truncation(max_rank=TARGETS), metric=metric)[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
