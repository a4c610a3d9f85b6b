"""Optimizer state through cuts: what is exact, what is a rule of thumb, and what is left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ttnet.cores import absorb_left, contract
from ttnet.gauge import GaugeMaps
from ttnet.optim.cuts import Cut, grow, paper_cut, rounding_cut
from ttnet.optim.transport import carry_state, state_tensors, unwrap
from ttnet.parameter import TTParameter
from ttnet.random import random_cores

SHAPE, RANKS = (4, 5, 3, 6), (4, 6, 5)
KINDS = ("nearest", "canonical", "balanced", "paper")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": lambda p, **kw: torch.optim.AdamW(p, weight_decay=0.1, **kw),
    "amsgrad": lambda p, **kw: torch.optim.AdamW(p, amsgrad=True, **kw),
    "adam-foreach": lambda p, **kw: torch.optim.Adam(p, foreach=True, **kw),
    "adam-fused": lambda p, **kw: torch.optim.Adam(p, fused=True, **kw),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "sgd-momentum": lambda p, **kw: torch.optim.SGD(p, momentum=0.9, **kw),
    "sgd": torch.optim.SGD,
}


def make_cut(kind: str, cores: tuple[Tensor, ...], ranks: tuple[int, ...]) -> Cut:
    return paper_cut(cores, ranks) if kind == "paper" else rounding_cut(cores, ranks, gauge=kind)


def gradients(cores: tuple[Tensor, ...], loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    leaves = [core.detach().clone().requires_grad_() for core in cores]
    return list(torch.autograd.grad(loss(contract(leaves)), leaves))


def carried(
    old: tuple[Tensor, ...], cut: Cut, moments: list[Tensor], name: str, rule: str = "transport"
) -> list[Tensor]:
    """Moments after `carry_state`, without any optimizer's own arithmetic."""
    parameter = TTParameter(old)
    optimizer = torch.optim.Adam(parameter.parameters())
    for core, moment in zip(parameter.core_parameters(), moments, strict=True):
        optimizer.state[core] = {name: moment.clone()}
    parameter.assign(cut.cores)
    carry_state(optimizer, parameter, cut.maps, rule)
    return [optimizer.state[core][name] for core in parameter.core_parameters()]


def trained(
    make: Callable[..., torch.optim.Optimizer], *, steps: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[TTParameter, nn.Linear, torch.optim.Optimizer, Callable[[], Tensor]]:
    parameter = TTParameter(random_cores(SHAPE, RANKS, seed=0, dtype=dtype))
    other = nn.Linear(6, 2).to(torch.float64)
    optimizer = make([*parameter.parameters(), *other.parameters()], lr=1e-2)
    target = torch.randn(SHAPE, dtype=dtype)

    def loss() -> Tensor:
        full = contract(parameter.cores)
        return (full - target).abs().square().mean() + other(full.abs()).square().mean()

    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.zero_grad()
    return parameter, other, optimizer, loss


def sweep(parameter: TTParameter, optimizer: torch.optim.Optimizer, rule: str = "transport") -> GaugeMaps:
    cut = rounding_cut(parameter.core_parameters(), (2, 3, 2))
    parameter.assign(cut.cores)
    carry_state(optimizer, parameter, cut.maps, rule)
    return cut.maps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_first_moment_is_a_recomputed_gradient_after_a_change_of_gauge(dtype, kind):
    cores = random_cores(SHAPE, RANKS, seed=1, dtype=dtype)
    target = torch.randn(SHAPE, dtype=dtype)

    def loss(full: Tensor) -> Tensor:
        return (full - target).abs().square().sum() + full.abs().cos().sum()

    if kind == "nearest":  # which does not move where nothing is cut
        moves = [torch.randn(r, r, dtype=dtype) for r in RANKS]
        maps = GaugeMaps(left=tuple(moves), right=tuple(torch.linalg.inv(m) for m in moves))
        cut = Cut(cores=maps.apply(cores), maps=maps, discarded_weight=(0.0,) * 3)
    else:
        cut = make_cut(kind, cores, RANKS)
    assert not torch.allclose(cut.cores[1], cores[1])
    got = carried(cores, cut, gradients(cores, loss), "exp_avg")
    for a, b in zip(got, gradients(cut.cores, loss), strict=True):
        assert float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_first_moment_is_a_recomputed_gradient_after_a_cut_that_discards_nothing(dtype, kind):
    cores = list(random_cores(SHAPE, RANKS, seed=2, dtype=dtype))
    for k in (1, 2, 3):  # rank 3 at every bond, in the guise of more
        r = cores[k].shape[0]
        low = torch.randn(r, 3, dtype=dtype) @ torch.randn(3, r, dtype=dtype)
        cores[k] = absorb_left(low, cores[k])
    target = torch.randn(SHAPE, dtype=dtype)

    def loss(full: Tensor) -> Tensor:
        return (full - target).abs().square().sum()

    for ranks in ((3, 3, 3), (4, 4, 3)):  # the second leaves directions to fill
        cut = make_cut(kind, tuple(cores), ranks)
        got = carried(tuple(cores), cut, gradients(tuple(cores), loss), "momentum_buffer")
        for a, b in zip(got, gradients(cut.cores, loss), strict=True):
            assert float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
def test_first_moment_is_exact_for_both_cores_of_the_only_cut_bond(kind):
    """With a loss that is linear in the train: its gradient there does not move with the train."""
    cores = random_cores(SHAPE, RANKS, seed=3, dtype=torch.float64)
    slope = torch.randn(SHAPE, dtype=torch.float64)

    def loss(full: Tensor) -> Tensor:
        return (full * slope).sum()

    cut = make_cut(kind, cores, (4, 3, 5))
    got = carried(cores, cut, gradients(cores, loss), "exp_avg")
    expected = gradients(cut.cores, loss)
    for k in (1, 2):
        error = torch.linalg.vector_norm(got[k] - expected[k]) / torch.linalg.vector_norm(expected[k])
        assert float(error) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_second_moment_goes_with_squared_maps(dtype, name, kind):
    cores = random_cores(SHAPE, RANKS, seed=4, dtype=dtype)
    cut = make_cut(kind, cores, (3, 4, 2))
    moments = [torch.rand(core.shape, dtype=torch.float64).to(dtype) for core in cores]
    got = carried(cores, cut, moments, name)
    one = [torch.ones(1, 1)]
    lefts, rights = one + [x.abs() ** 2 for x in cut.maps.left], [y.abs() ** 2 for y in cut.maps.right] + one
    for moment, x, y, after in zip(moments, lefts, rights, got, strict=True):
        expected = torch.einsum("ax,anb,yb->xny", x.to(dtype), moment, y.to(dtype))
        torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-12)
        assert bool((torch.view_as_real(after) if after.is_complex() else after).ge(0).all())


def test_grown_directions_start_without_moments():
    cores = random_cores(SHAPE, (2, 3, 2), seed=5, dtype=torch.float64)
    cut = grow(cores, (3, 3, 4))
    got = carried(cores, cut, list(cores), "exp_avg")
    ranks = (1, 2, 3, 2, 1)
    for k, (old, new) in enumerate(zip(cores, got, strict=True)):
        torch.testing.assert_close(new[: ranks[k], :, : ranks[k + 1]], old)
        assert float(new.abs().sum()) == pytest.approx(float(old.abs().sum()))


@pytest.mark.parametrize("rule", ["transport", "reset"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on_and_others_are_left_alone(name, rule):
    parameter, other, optimizer, loss = trained(OPTIMIZERS[name])
    before = {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in optimizer.state[other.weight].items()
    }
    steps = [optimizer.state[core].get("step") for core in parameter.core_parameters()]
    steps = [step if step is None else step.clone() for step in steps]
    momenta = [optimizer.state[core].get("exp_avg") for core in parameter.core_parameters()]
    sweep(parameter, optimizer, rule)
    for key, value in optimizer.state[other.weight].items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
    for core, step, momentum in zip(parameter.core_parameters(), steps, momenta, strict=True):
        state = optimizer.state.get(core, {})
        if rule == "reset":
            assert core not in optimizer.state or not state
        else:
            assert step is None or torch.equal(state["step"], step)
            assert all(v.shape == core.shape for v in state.values() if isinstance(v, Tensor) and v.ndim)
            assert momentum is None or bool(state["exp_avg"].any())
    for _ in range(3):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert bool(torch.isfinite(loss()))
    for core in parameter.core_parameters():
        assert all(
            v.shape == core.shape for v in optimizer.state[core].values() if isinstance(v, Tensor) and v.ndim
        )


def test_sgd_without_a_buffer():
    parameter, _, optimizer, _ = trained(OPTIMIZERS["sgd-momentum"], steps=0)
    for core in parameter.core_parameters():
        optimizer.state[core] = {"momentum_buffer": None}
    sweep(parameter, optimizer)
    assert all(optimizer.state[core] == {"momentum_buffer": None} for core in parameter.core_parameters())


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Adamax,
        torch.optim.Adadelta,
        pytest.param(
            getattr(torch.optim, "Adafactor", None),
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch has it from 2.5"),
        ),
    ],
)
def test_unknown_states_are_reset_with_a_warning(make):
    parameter, other, optimizer, loss = trained(make)
    kept = {k: v.clone() for k, v in optimizer.state[other.weight].items() if isinstance(v, Tensor)}
    with pytest.warns(UserWarning, match=f"{make.__name__} keeps .* state of the cores is reset"):
        sweep(parameter, optimizer)
    assert all(torch.equal(optimizer.state[other.weight][k], v) for k, v in kept.items())
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert bool(torch.isfinite(loss()))


def test_reset_of_an_unknown_state_asked_for_does_not_warn():
    parameter, _, optimizer, _ = trained(torch.optim.RMSprop)
    sweep(parameter, optimizer, "reset")
    assert list(state_tensors(optimizer, parameter)) == []


def test_state_tensors_come_in_one_order_and_without_counters():
    parameter, _, optimizer, _ = trained(OPTIMIZERS["amsgrad"])
    found = list(state_tensors(optimizer, parameter))
    core = parameter.core_parameters()[0]
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    assert all(a is optimizer.state[core][name] for a, name in zip(found, names, strict=False))
    assert len(found) == 3 * 4


def test_float32_and_bfloat16_moments_keep_their_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        cores = random_cores(SHAPE, RANKS, seed=6, dtype=dtype)
        cut = rounding_cut(cores, (2, 3, 2))
        got = carried(cores, cut, list(cores), "exp_avg")
        assert all(a.dtype == dtype and a.shape == b.shape for a, b in zip(got, cut.cores, strict=True))


def test_a_wrapped_optimizer():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    parameter, _, optimizer, loss = trained(OPTIMIZERS["adam"])
    wrapped = accelerator.prepare_optimizer(optimizer)
    assert unwrap(wrapped) is optimizer
    sweep(parameter, wrapped)
    assert [optimizer.state[c]["exp_avg"].shape for c in parameter.core_parameters()] == [
        c.shape for c in parameter.core_parameters()
    ]
    loss().backward()
    wrapped.step()
    wrapped.zero_grad()


def test_transport_keeps_what_adam_knows_of_the_slope():
    """The step after a sweep goes downhill along the carried momentum, also with zero gradient."""
    parameter, _, optimizer, _ = trained(OPTIMIZERS["adam"], steps=20)
    sweep(parameter, optimizer)
    start = [core.detach().clone() for core in parameter.core_parameters()]
    momenta = [optimizer.state[core]["exp_avg"].clone() for core in parameter.core_parameters()]
    for core in parameter.core_parameters():
        core.grad = torch.zeros_like(core)
    optimizer.step()
    for core, old, momentum in zip(parameter.core_parameters(), start, momenta, strict=True):
        assert float(((core.detach() - old) * momentum).sum()) < 0
