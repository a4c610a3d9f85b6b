import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import dense, matrices
from ttnet import Truncation, TTMatrix, TTParameter, random_train
from ttnet.errors import DTypeError, RankError, ShapeError, StateError
from ttnet.nn import TTLinear, linear, paths
from ttnet.optim import DMRGScheduler, TwoSiteDMRG

BATCHES = [(), (1,), (5,), (2, 3), (70,), (0,), (2, 0, 3)]
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.complex64: 1e-5,
    torch.complex128: 1e-13,
}


def layer(device="cpu", dtype=torch.float64, **options):
    return TTLinear((2, 3, 4), (3, 2, 5), 4, seed=0, dtype=dtype, device=device, **options)


def inputs(*shape, device="cpu", dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, device=device)


def twin(ours):
    """The dense layer of the same weight."""
    result = nn.Linear(ours.in_features, ours.out_features, ours.bias is not None)
    result.weight = nn.Parameter(ours.weight.detach())
    if ours.bias is not None:
        result.bias = nn.Parameter(ours.bias.detach().clone())
    return result


def weight_array(ours):
    """The weight from the cores, without the library."""
    cores = [
        core.reshape(core.shape[0], m, n, core.shape[2])
        for core, m, n in zip(ours.cores.core_parameters(), ours.out_modes, ours.in_modes, strict=True)
    ]
    return matrices.full(cores)


# Values and gradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_that_of_the_dense_layer(bias, dtype, device):
    ours = layer(device, dtype, bias=bias)
    for batch in BATCHES:
        x = inputs(*batch, ours.in_features, device=device, dtype=dtype)
        y = ours(x)
        assert y.shape == (*batch, ours.out_features)
        assert y.dtype == dtype
        assert y.is_contiguous()
        expected = dense.array(x) @ weight_array(ours).T + (dense.array(ours.bias) if bias else 0)
        assert dense.distance(dense.array(y), expected) <= TOLERANCE[dtype] * (1 + dense.norm(expected))


@pytest.mark.parametrize("batch", [(), (1,), (3, 4), (300,)])
def test_gradients_are_those_of_the_dense_layer(batch, device):
    ours = layer(device)
    x = inputs(*batch, ours.in_features, device=device).requires_grad_()
    wanted = (x, ours.bias, *ours.cores.core_parameters())
    gradients = torch.autograd.grad((ours(x) ** 3).sum(), wanted)
    expected = torch.autograd.grad((F.linear(x, ours.weight, ours.bias) ** 3).sum(), wanted)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_chunks_give_the_same_output(device, monkeypatch):
    ours = layer(device)
    x = inputs(3, 7, ours.in_features, device=device)
    expected = ours(x).detach()
    sizes = []
    original = paths.run
    monkeypatch.setattr(
        linear, "run", lambda *args, **kw: sizes.append(len(args[2])) or original(*args, **kw)
    )
    monkeypatch.setattr(linear, "chunk_for", lambda *_: 4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)
    assert sizes == [4, 4, 4, 4, 4, 1]
    ours(x)
    assert sizes[-1] == 21


def test_gradcheck(device):
    ours = TTLinear((2, 2), (2, 1), 2, seed=0, dtype=torch.float64, device=device)
    names = list(dict(ours.named_parameters()))
    x = inputs(3, 4, device=device).requires_grad_()

    def function(x, *values):
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in ours.parameters()]
    assert torch.autograd.gradcheck(function, (x, *values))
    assert torch.autograd.gradgradcheck(function, (x, *values))


def test_weight_and_snapshot(device):
    ours = layer(device)
    assert dense.distance(dense.array(ours.weight), weight_array(ours)) <= 1e-13
    matrix = ours.tt_matrix()
    assert isinstance(matrix, TTMatrix)
    assert matrix.shape == (ours.out_features, ours.in_features)
    torch.testing.assert_close(matrix.full(), ours.weight.detach())
    assert not matrix.cores[0].requires_grad
    with torch.no_grad():
        ours.cores.cores[0].zero_()
    assert matrix.norm() > 0
    assert ours.num_parameters == sum(p.numel() for p in ours.parameters())


# Initial values


def test_initial_weight_has_the_variance_of_a_linear_layer():
    for shape in [(96, 128), (60, 30)]:
        weights = torch.stack([TTLinear(*shape, rank=4, seed=seed).weight.detach() for seed in range(200)])
        assert weights.var().item() == pytest.approx(1 / (3 * shape[0]), rel=0.1)
        biases = torch.stack([TTLinear(*shape, rank=4, seed=seed).bias.detach() for seed in range(20)])
        assert biases.abs().max() <= shape[0] ** -0.5
        assert biases.var().item() == pytest.approx(1 / (3 * shape[0]), rel=0.15)


def test_a_seed_fixes_the_initial_values():
    first, second, other = (TTLinear(12, 20, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not torch.equal(first.weight, other.weight)
    other.reset_parameters(seed=1)
    assert torch.equal(first.weight, other.weight)
    assert torch.equal(first.bias, other.bias)


def test_names_and_representation():
    ours = TTLinear(24, 30, rank=[3, 2], bias=False)
    assert list(ours.state_dict()) == ["cores.core_0", "cores.core_1", "cores.core_2"]
    assert isinstance(ours.cores, TTParameter)
    assert ours.bias is None
    assert "in_features=24, out_features=30, in_modes=" in repr(ours)
    assert "rank=3, bias=False" in repr(ours)
    assert TTLinear(24, 30, 2, num_cores=2).cores.num_cores == 2


# Compressing


@pytest.mark.parametrize("rtol", [0.5, 0.1, 1e-3, 1e-12])
def test_error_of_a_compressed_layer_is_within_its_bound(rtol, device):
    linear = nn.Linear(24, 30, dtype=torch.float64, device=device)
    with torch.no_grad():  # a weight with a decaying spectrum
        linear.weight.copy_(TTMatrix.random((5, 6), (4, 6), 8, seed=0, dtype=torch.float64).full())
        linear.weight.add_(torch.randn_like(linear.weight), alpha=0.01)
    ours, report = TTLinear.from_linear(linear, Truncation(rtol=rtol), num_cores=2, return_report=True)
    error = float((ours.weight - linear.weight).detach().norm())
    norm = float(linear.weight.detach().norm())
    assert error <= rtol * norm * (1 + 1e-9) + 1e-12
    assert error <= report.error_bound
    assert error == pytest.approx(report.relative_error * norm, rel=1e-6, abs=1e-11)
    assert torch.equal(ours.bias, linear.bias)
    assert ours.bias is not linear.bias
    x = inputs(5, 24, device=device)
    torch.testing.assert_close(ours(x), F.linear(x, ours.weight, linear.bias))
    norms = [float(core.detach().norm()) for core in ours.cores.cores]
    assert max(norms) == pytest.approx(min(norms))


def test_compressing_keeps_what_a_layer_is(device):
    linear = nn.Linear(12, 8, bias=False, dtype=torch.bfloat16, device=device).eval()
    before = linear.weight.detach().clone()
    ours = TTLinear.from_linear(linear, Truncation(max_rank=3), in_modes=(3, 4), out_modes=(4, 2))
    assert isinstance(ours, TTLinear)
    assert (ours.in_modes, ours.out_modes, ours.bias) == ((3, 4), (4, 2), None)
    assert ours.cores.ranks == (1, 3, 1)
    assert ours.cores.cores[0].dtype == torch.bfloat16
    assert not ours.training
    assert torch.equal(linear.weight, before)


def test_a_matrix_becomes_a_layer(device):
    matrix = TTMatrix.random((2, 3), (4, 2), 3, seed=0, dtype=torch.float64, device=device)
    ours = TTLinear.from_tt_matrix(matrix, bias=torch.ones(6, dtype=torch.float64, device=device))
    torch.testing.assert_close(ours.weight.detach(), matrix.full())
    with pytest.raises(ShapeError, match=r"^bias: expected shape \(6,\), got \(5,\)"):
        TTLinear.from_tt_matrix(matrix, bias=torch.ones(5))


# Errors


def test_what_does_not_fit_is_refused():
    ours = layer()
    with pytest.raises(ShapeError, match=r"^x: expected shape \(\.\.\., 24\), got \(3, 25\)"):
        ours(inputs(3, 25))
    with pytest.raises(ShapeError, match=r"^x: expected shape \(\.\.\., 24\), got \(\)"):
        ours(torch.tensor(1.0))
    with pytest.raises(DTypeError, match=r"^x: expected torch.float64, .*got torch.float32; convert"):
        ours(inputs(3, 24, dtype=torch.float32))
    with pytest.raises(ShapeError, match=r"^out_features, in_features: expected as many modes"):
        TTLinear((2, 3), (2, 3, 4), 2)
    with pytest.raises(RankError, match=r"^rank: expected at least 1, got 0"):
        TTLinear(4, 4, 0)
    with pytest.raises(DTypeError, match=r"^dtype: "):
        TTLinear(4, 4, 2, dtype=torch.int64)
    with pytest.raises(DTypeError, match=r"^linear: expected a torch.nn.Linear, got Conv1d"):
        TTLinear.from_linear(nn.Conv1d(2, 2, 1), Truncation())
    with pytest.raises(ShapeError, match=r"^in_modes: expected modes whose product is 6, got \(2, 2\)"):
        TTLinear.from_linear(nn.Linear(6, 4), Truncation(), in_modes=(2, 2))


# Ranks that change


def test_a_sweep_cuts_the_ranks_of_a_layer_in_training(device):
    torch.manual_seed(0)
    model = nn.Sequential(
        TTLinear((4, 4), (4, 4), 6, seed=0, device=device), nn.Tanh(), nn.Linear(16, 2, device=device)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = DMRGScheduler(optimizer, model[0].cores, ranks={1: 4, 2: 2}, mode="truncate")
    x = inputs(64, 16, dtype=torch.float32, device=device)
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], 1)
    losses = []
    for _ in range(4):
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        before = model[0].weight.detach()
        report = scheduler.step()
        if report is not None:
            distance = (model[0].weight.detach() - before).norm()
            assert distance <= (sum(report.discarded_weight) ** 0.5) * 1.01 + 1e-5
    assert model[0].cores.ranks == (1, 2, 1)
    assert losses[-1] < losses[0]


def test_a_merged_bond_gives_the_same_output_and_its_gradient(device):
    ours = layer(device)
    x = inputs(6, ours.in_features, device=device)
    y = ours(x)
    gradient = torch.autograd.grad((y**2).sum(), ours.cores.core_parameters())
    with ours.cores.merged(1) as block:
        torch.testing.assert_close(ours(x), y)
        (own,) = torch.autograd.grad((ours(x) ** 2).sum(), block)
        right = ours.cores.core_parameters()[2].detach()
        torch.testing.assert_close(torch.einsum("lmnr,knr->lmk", own, right), gradient[1])
        with pytest.raises(StateError, match=r"^assign"):
            ours.reset_parameters()


def test_a_merged_bond_of_half_precision_takes_the_inputs_of_the_layer(device):
    ours = layer(device, torch.bfloat16)
    x = inputs(6, ours.in_features, device=device, dtype=torch.bfloat16)
    y = ours(x)
    with ours.cores.merged(0):
        assert ours(x).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x), y, rtol=0.1, atol=0.05)


def test_two_site_sweeps_fit_a_layer():
    torch.manual_seed(0)
    ours = TTLinear((3, 4), (4, 3), 1, bias=False, seed=1, dtype=torch.float64)
    goal = TTMatrix.random((4, 3), (3, 4), 2, seed=2, dtype=torch.float64)
    x = inputs(40, 12)
    target = x @ goal.full().T
    optimizer = TwoSiteDMRG(ours.cores, truncation=Truncation(max_rank=2), solver="lbfgs")
    result = optimizer.minimize(lambda: F.mse_loss(ours(x), target), sweeps=6)
    assert result.loss < 1e-10
    assert ours.cores.ranks == (1, 2, 1)


def test_files_of_other_ranks_are_loaded(device):
    ours, other = layer(device), TTLinear((2, 3, 4), (3, 2, 5), 2, seed=1, dtype=torch.float64, device=device)
    buffer = io.BytesIO()
    torch.save(other.state_dict(), buffer)
    buffer.seek(0)
    ours.load_state_dict(torch.load(buffer))
    assert torch.equal(ours.weight, other.weight)
    x = inputs(3, ours.in_features, device=device)
    assert torch.equal(ours(x), other(x))


# Ways to run


def test_copies_are_independent(device):
    ours = layer(device, cache=True)
    with torch.no_grad():
        ours(inputs(2, 24, device=device))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other._cached is None
        assert torch.equal(other.weight, ours.weight)
        with torch.no_grad():
            other.cores.cores[0].zero_()
        assert not torch.equal(other.weight, ours.weight)


def test_the_kept_matrix_follows_the_cores(device):
    ours = layer(device, cache=True)
    x = inputs(3, 24, device=device)
    expected = ours(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)
        kept = ours._cached
        ours(x)
        assert ours._cached is kept
        ours.cores.assign(random_train(ours.cores.shape, 2, seed=5, dtype=torch.float64))
        torch.testing.assert_close(ours(x), F.linear(x, ours.weight, ours.bias))
    ours(x).sum().backward()
    assert ours.cores.cores[0].grad is not None
    assert "_cached" not in ours.state_dict()


def test_the_kept_matrix_is_that_of_full_precision_under_autocast(device):
    ours = layer(device, torch.float32, cache=True)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        assert ours(inputs(3, 24, device=device, dtype=torch.float32)).dtype == torch.bfloat16
    assert torch.equal(ours._cached[1], ours.weight)


@pytest.mark.parametrize("batch", [1, 64])
def test_autocast(batch, device):
    ours = layer(device, torch.float32)
    x = inputs(batch, 24, device=device, dtype=torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = ours(x)
        ours(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), ours(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert ours.cores.cores[1].grad.dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 300])
def test_torch_compile(batch, device):
    torch.compiler.reset()
    ours = layer(device)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = inputs(batch, 24, device=device)
    torch.testing.assert_close(compiled(x), ours(x))
    compiled(x).sum().backward()
    gradients = [p.grad.clone() for p in ours.parameters()]
    ours.zero_grad()
    ours(x).sum().backward()
    for parameter, gradient in zip(ours.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_torch_compile_with_batches_and_ranks_that_change(device):
    torch.compiler.reset()
    ours = layer(device)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for batch in (3, 5, 40, 41, 300):
        x = inputs(batch, 24, device=device)
        torch.testing.assert_close(compiled(x), ours(x))
    for rank in (2, 3):
        ours.cores.assign(random_train(ours.cores.shape, rank, seed=0, dtype=torch.float64))
        torch.testing.assert_close(compiled(x), ours(x))
    with ours.cores.merged(0) as block:
        (gradient,) = torch.autograd.grad((compiled(x) ** 2).sum(), block)
        (expected,) = torch.autograd.grad((ours(x) ** 2).sum(), block)
    torch.testing.assert_close(gradient, expected)


def test_torch_func(device):
    ours = layer(device)
    x = inputs(4, 5, 24, device=device)
    torch.testing.assert_close(torch.vmap(ours)(x), ours(x))
    torch.testing.assert_close(torch.vmap(torch.vmap(ours))(x), ours(x))
    parameters = dict(ours.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(ours, parameters, (x,)).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[0])
    whole = torch.func.grad(loss)(parameters, x[0])
    for name, gradient in whole.items():
        torch.testing.assert_close(per_sample[name].sum(0), gradient)


def test_meta_and_moves(device):
    assert TTLinear(12, 8, 2, device="meta").cores.cores[0].is_meta
    ours = TTLinear(12, 8, 2, dtype=torch.float64).to(device, torch.float32)
    assert ours(inputs(2, 12, device=device, dtype=torch.float32)).dtype == torch.float32
