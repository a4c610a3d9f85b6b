import itertools
import logging
import math

import pytest
import torch
from torch import nn

from tests.optim.problems import HEISENBERG, SPIN_ONE, entries, ising_energy, xx_energy
from ttnet import TensorTrain, Truncation, TTParameter, operators, random_train, tt_svd
from ttnet.errors import ConfigError, FormatError, NonFiniteError, ShapeError
from ttnet.optim import (
    Closure,
    Composite,
    GatherLoss,
    LeastSquares,
    LinearSystem,
    QuadraticForm,
    RayleighQuotient,
    Status,
    TwoSiteDMRG,
    dmrg,
    fit,
    solve,
)
from ttnet.optim.geometry import Visit, there_and_back
from ttnet.optim.problems.energy import is_hermitian

F64 = torch.float64


def start(shape, rank, *, seed=0, dtype=F64):
    return random_train(shape, rank, seed=seed, dtype=dtype)


# Geometry and problems ----------------------------------------------------------------------------------


def test_a_sweep_visits_every_bond_on_both_ways():
    bonds = [(visit.site, visit.forward) for visit in there_and_back(4, 2)]
    assert bonds == [(0, True), (1, True), (2, False), (1, False), (0, False)]
    assert there_and_back(1, 2) == (Visit(0, 1, forward=False),)


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("kind", ["rayleigh", "quadratic", "system"])
def test_cached_environments_give_the_gradient_of_the_dense_loss(dtype, sites, kind):
    H = operators.heisenberg(5, field=0.3, dtype=dtype)
    vector = start((2,) * 5, 3, seed=3, dtype=dtype)
    dense, target = H.full(), vector.full().reshape(-1)

    def loss(x):
        image = torch.vdot(x, dense @ x).real
        if kind == "rayleigh":
            return image / torch.vdot(x, x).real
        return 0.5 * image - torch.vdot(target, x).real

    problem = {
        "rayleigh": lambda: RayleighQuotient(H),
        "quadratic": lambda: QuadraticForm(H, vector),
        "system": lambda: LinearSystem(H, vector),
    }[kind]()
    train = start((2,) * 5, 4, dtype=dtype)
    for visit in there_and_back(5, sites):
        cores = list(train.orthogonalize(visit.site).cores)
        parameter = TTParameter(cores)
        twin = Closure(lambda p=parameter: loss(p().full().reshape(-1)), parameter)
        block = cores[visit.site] if sites == 1 else torch.tensordot(cores[visit.site], cores[visit.last], 1)
        value, gradient = problem.local(cores, visit).value_and_gradient(block)
        expected, slope = twin.local(cores, visit).value_and_gradient(block)
        assert value == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(gradient, slope)
        bent = problem.local(cores, visit).curvature(block)(slope)
        torch.testing.assert_close(bent, twin.local(cores, visit).curvature(block)(slope))


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("label", [None, 0, 2, 4])
@pytest.mark.parametrize("features", [False, True])
def test_gather_loss_agrees_with_its_closure(sites, label, features):
    shape = (3, 2, 4, 2, 3)
    generator = torch.Generator().manual_seed(0)
    sizes = [n for k, n in enumerate(shape) if k != label]
    indices = torch.stack([torch.randint(0, n, (40,), generator=generator) for n in sizes], 1)
    points = (
        [torch.randn(40, n, generator=generator, dtype=F64) for n in sizes]
        if features
        else [nn.functional.one_hot(column, n).to(F64) for column, n in zip(indices.T, sizes, strict=True)]
    )
    targets = (
        torch.randn(40, generator=generator, dtype=F64)
        if label is None
        else torch.randint(0, shape[label], (40,), generator=generator)
    )
    loss = (
        (lambda o, t: ((o - t) ** 2).mean() + (o - t).cosh().mean())
        if label is None
        else nn.functional.cross_entropy
    )
    problem = GatherLoss(points if features else indices, targets, loss, label_mode=label, l2=0.1)
    letters = "abcde"
    terms = [f"z{letter}" for k, letter in enumerate(letters) if k != label]
    equation = f"{letters},{','.join(terms)}->z{'' if label is None else letters[label]}"
    train = start(shape, 3)
    for visit in there_and_back(5, sites):
        cores = list(train.orthogonalize(visit.site).cores)
        parameter = TTParameter(cores)

        def twin(p=parameter):
            full = p().full()
            return loss(torch.einsum(equation, full, *points), targets) + 0.05 * full.square().sum()

        block = cores[visit.site] if sites == 1 else torch.tensordot(cores[visit.site], cores[visit.last], 1)
        own, other = problem.local(cores, visit), Closure(twin, parameter).local(cores, visit)
        value, gradient = own.value_and_gradient(block)
        expected, slope = other.value_and_gradient(block)
        assert value == pytest.approx(expected, rel=1e-12)
        assert own.value(block) == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(gradient, slope)
        torch.testing.assert_close(own.curvature(block)(slope), other.curvature(block)(slope))


def test_the_preconditioner_of_entries_inverts_their_hessian():
    _, indices, values = entries(seed=0)
    cores = list(start((4,) * 5, 2).orthogonalize(1).cores)
    local = LeastSquares(indices, values, l2=1e-3).local(cores, Visit(1, 2, forward=True))
    block = torch.tensordot(cores[1], cores[2], 1)
    operator = local.curvature(block)
    torch.testing.assert_close(local.precondition(operator(block)), block, rtol=1e-6, atol=1e-9)


# Energies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 8, 12])
def test_heisenberg_energies(length):
    result = dmrg(operators.heisenberg(length, dtype=F64), start((2,) * length, 4), max_rank=40)
    assert result.loss == pytest.approx(HEISENBERG[length], rel=1e-9)
    assert result.certificate == pytest.approx(0.0, abs=1e-7)
    assert result.converged
    assert float(result.tensor_train.norm()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("operator", "shape", "energy", "rank"),
    [
        (operators.heisenberg(6, spin=1, dtype=F64), (3,) * 6, SPIN_ONE[6], 27),
        (operators.ising(10, dtype=F64), (2,) * 10, ising_energy(10), 16),
        (operators.xx(10, dtype=F64), (2,) * 10, xx_energy(10), 32),
        (operators.aklt(8, dtype=F64), (3,) * 8, -14 / 3, 4),
        (operators.majumdar_ghosh(8, dtype=F64), (2,) * 8, -3.0, 2),
    ],
)
def test_exact_energies_and_ranks(operator, shape, energy, rank):
    result = dmrg(operator, start(shape, 4), max_rank=40, cutoff=1e-13)
    assert result.loss == pytest.approx(energy, rel=1e-9)
    assert max(result.tensor_train.ranks) <= rank


def test_excited_states_and_sums_of_operators():
    H = operators.heisenberg(8, field=0.1, dtype=F64)
    levels = torch.linalg.eigvalsh(H.full())
    states = []
    for level in levels[:3]:
        guess = start((2,) * 8, 8, seed=len(states) + 5)
        states.append(dmrg(H, guess, orthogonal_to=[r.tensor_train for r in states], sweeps=20))
        assert states[-1].loss == pytest.approx(float(level), abs=1e-7)
    parts = [operators.xx(8, dtype=F64), H - operators.xx(8, dtype=F64)]
    assert dmrg(parts, start((2,) * 8, 4)).loss == pytest.approx(float(levels[0]), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_energies_in_other_dtypes(dtype):
    result = dmrg(operators.heisenberg(8, dtype=dtype), start((2,) * 8, 4, dtype=dtype), tol=1e-6)
    assert result.loss == pytest.approx(HEISENBERG[8], rel=1e-5 if dtype == torch.float32 else 1e-9)


def test_one_site_sweeps_expand_the_subspace():
    result = dmrg(
        operators.heisenberg(8, dtype=F64), start((2,) * 8, 1, seed=1), sites=1, sweeps=20, max_rank=16
    )
    assert result.loss == pytest.approx(HEISENBERG[8], rel=1e-8)


def test_two_site_then_one_site():
    observed = []
    result = dmrg(
        operators.heisenberg(10, dtype=F64),
        start((2,) * 10, 4),
        max_rank=12,
        sweeps=3,
        one_site_sweeps=2,
        observer=lambda report, _: observed.append(report),
    )
    assert len(observed) >= 4
    assert observed[-1].discarded_weight == (0.0,) * 9
    assert result.loss < observed[2].loss_after + 1e-9


def test_schedules_by_sweep_and_noise():
    result = dmrg(
        operators.heisenberg(10, dtype=F64),
        start((2,) * 10, 2),
        max_rank=[4, 8, 32],
        cutoff=[1e-6, 1e-12],
        noise=[1e-2, 1e-3, 0.0],
        sweeps=8,
    )
    assert result.trajectory[0].max_rank == 4
    assert result.trajectory[1].max_rank == 8
    assert result.loss == pytest.approx(HEISENBERG[10], rel=1e-9)


# Any loss -----------------------------------------------------------------------------------------------


def robust_loss(parameter, target):
    return lambda: nn.functional.huber_loss(torch.tanh(parameter().full()), target, delta=0.1)


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs", "cg", "adam", "gradient"])
@pytest.mark.parametrize("sites", [1, 2])
def test_sweeps_at_fixed_rank_never_raise_the_loss(solver, sites):
    target = torch.rand(3, 4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    parameter = TTParameter(start((3, 4, 2, 3), 2))
    problem = robust_loss(parameter, target)
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2), solver=solver, sites=sites)
    losses = [float(problem().detach())]
    for _ in range(6):
        report = optimizer.sweep(problem)
        losses.append(float(problem().detach()))
        assert report.loss_after == pytest.approx(losses[-1], rel=1e-10)
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0]
    assert max(parameter.ranks) == 2


def test_two_cores_and_least_squares_give_the_truncated_svd():
    target = torch.randn(8, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    parameter = TTParameter(start((8, 9), 3))
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=3), accept=None)
    optimizer.minimize(lambda: 0.5 * (parameter().full() - target).square().sum(), sweeps=4)
    best = tt_svd(target, Truncation(max_rank=3)).full()
    torch.testing.assert_close(parameter().full().detach(), best, rtol=1e-6, atol=1e-6)


def test_a_closure_leaves_gradients_alone_and_replays_randomness():
    torch.manual_seed(0)
    model = nn.Linear(4, 4, dtype=F64)
    model(torch.ones(4, dtype=F64)).sum().backward()
    kept = model.weight.grad.clone()
    parameter = TTParameter(start((4, 4), 2))
    seen = []

    def problem():
        noise = torch.rand(4, dtype=F64)
        seen.append(noise)
        return (model(parameter().full() + noise) ** 2).mean()

    state = torch.get_rng_state()
    TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2)).sweep(problem)
    assert torch.equal(model.weight.grad, kept)
    assert parameter.core_0.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(noise, seen[0]) for noise in seen)
    assert len(seen) > 3


def test_composite_is_gauss_newton_and_knows_its_noise_floor():
    teacher, indices, values = entries(seed=1, noise=0.01)
    del teacher
    train = start((4,) * 5, 2)
    cores = list(train.orthogonalize(2).cores)
    parameter = TTParameter(cores)

    def outputs():
        return parameter().full()[tuple(indices.T)]

    composite = Composite(
        outputs=outputs, loss=lambda o: 0.5 * (o - values).square().mean(), parameter=parameter
    )
    visit = Visit(2, 2, forward=True)
    block = torch.tensordot(cores[2], cores[3], 1)
    own, cached = composite.local(cores, visit), LeastSquares(indices, values).local(cores, visit)
    vector = torch.randn(block.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(own.curvature(block)(vector), cached.curvature(block)(vector))
    flips = [each.sign_flipped_gradient(block, torch.Generator().manual_seed(3)) for each in (own, cached)]
    torch.testing.assert_close(*flips)


def test_a_kernel_without_second_derivative_falls_back_to_differences():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    target = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    cores = list(start((3, 3, 3), 2).orthogonalize(0).cores)
    parameter = TTParameter(cores)
    visit, block = Visit(0, 2, forward=True), torch.tensordot(cores[0], cores[1], 1)
    plain = Closure(lambda: (parameter().full().sin() - target).square().sum(), parameter)
    once = Closure(lambda: (Once.apply(parameter().full()) - target).square().sum(), parameter)
    vector = torch.ones_like(block)
    expected = plain.local(cores, visit).curvature(block)(vector)
    torch.testing.assert_close(
        once.local(cores, visit).curvature(block)(vector), expected, rtol=1e-6, atol=1e-6
    )


def test_attention_has_its_curvature_too():
    torch.manual_seed(0)
    data = torch.randn(2, 6, 4, dtype=F64)
    cores = list(start((4, 4), 2).orthogonalize(0).cores)
    parameter = TTParameter(cores)

    def problem():
        q = data @ parameter().full()
        return nn.functional.scaled_dot_product_attention(q, data, data).square().mean()

    visit, block = Visit(0, 2, forward=False), torch.tensordot(cores[0], cores[1], 1)
    local = Closure(problem, parameter).local(cores, visit)
    vector = torch.randn_like(block)
    ahead = local.value_and_gradient(block + 1e-5 * vector)[1]
    behind = local.value_and_gradient(block - 1e-5 * vector)[1]
    torch.testing.assert_close(local.curvature(block)(vector), (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-8)


def test_growth_by_test_stops_at_the_rank_of_the_teacher():
    _, indices, values = entries(seed=0, noise=0.05)
    parameter = TTParameter(start((4,) * 5, 1))
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=12, cutoff=1e-4), growth="test")
    optimizer.minimize(LeastSquares(indices, values), sweeps=8)
    assert max(parameter.ranks) <= 5
    assert parameter.ranks[2] >= 3
    free = TTParameter(start((4,) * 5, 1))
    TwoSiteDMRG(free, truncation=Truncation(max_rank=12, cutoff=1e-4)).minimize(
        LeastSquares(indices, values), sweeps=8
    )
    assert max(free.ranks) > max(parameter.ranks)


def test_growth_none_and_a_budget():
    target = torch.rand(4, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    fixed = TTParameter(start((4,) * 4, 2))
    TwoSiteDMRG(fixed, growth=None).sweep(lambda: (fixed().full() - target).square().sum())
    assert max(fixed.ranks) == 2
    bounded = TTParameter(start((4,) * 4, 1))
    optimizer = TwoSiteDMRG(bounded, max_parameters=90)
    for _ in range(3):
        optimizer.sweep(lambda: (bounded().full() - target).square().sum())
    assert sum(core.numel() for core in bounded.cores) <= 90
    assert max(bounded.ranks) > 2


def test_directions_that_fit_noise_are_dropped_where_the_loss_may_rise():
    _, indices, values = entries(seed=0, noise=0.05)
    ranks = {}
    for max_rise in (0.0, 0.05):
        parameter = TTParameter(start((4,) * 5, 3, seed=1))
        optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=4, cutoff=1e-12))
        problem = LeastSquares(indices, values)
        for _ in range(4):
            optimizer.sweep(problem)
        before = optimizer.sweep(problem).loss_after
        optimizer.truncation = (Truncation(max_rank=4, cutoff=1e-3),)
        optimizer.max_rise = max_rise
        report = optimizer.sweep(problem)
        ranks[max_rise] = sum(parameter.ranks)
        dropped = sum(report.ranks_before) - sum(report.ranks_after)
        assert report.loss_after <= before * (1 + max_rise) ** max(dropped, 0) + 1e-12
    assert ranks[0.05] < ranks[0.0]


# Systems and fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "symmetric", "normal", "galerkin"])
def test_solve_reaches_the_residual(kind):
    A = operators.laplace((6, 5, 4), dtype=F64)
    b = start((6, 5, 4), 2, seed=2)
    result = solve(A, b, kind=kind, tol=1e-8)
    exact = torch.linalg.solve(A.full(), b.full().reshape(-1))
    assert result.converged
    assert result.certificate <= 1e-8
    torch.testing.assert_close(result.tensor_train.full().reshape(-1), exact, rtol=1e-5, atol=1e-5)


def test_solve_not_symmetric_and_several_right_hand_sides():
    A = (
        operators.laplace((5, 5), dtype=F64)
        + operators.TTMatrix.random((5, 5), (5, 5), 1, seed=0, dtype=F64) * 0.3
    )
    b = start((5, 5), 2, seed=2)
    result = solve(A, b)
    assert result.converged
    many = start((5, 5, 3), 3, seed=4)
    result = solve(operators.laplace((5, 5), dtype=F64), many)
    exact = torch.linalg.solve(operators.laplace((5, 5), dtype=F64).full(), many.full().reshape(25, 3))
    torch.testing.assert_close(result.tensor_train.full().reshape(25, 3), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_solve_a_badly_conditioned_system_without_symmetry(seed):
    A = operators.TTMatrix.random((4, 5, 6), (4, 5, 6), 3, seed=seed, dtype=F64)
    exact = start((4, 5, 6), 3, seed=seed + 50)
    result = solve(A, A @ exact, tol=1e-10)
    assert result.converged
    error = (result.tensor_train - exact).norm() / exact.norm()
    assert float(error) < 1e-10 * float(torch.linalg.cond(A.full()))


def test_solve_never_returns_worse_than_zero():
    A = operators.TTMatrix.random((4, 4, 4, 4), (4, 4, 4, 4), 3, seed=0, dtype=F64)
    result = solve(A, start((4, 4, 4, 4), 2), max_rank=1, sweeps=3, kind="galerkin")
    assert result.certificate <= 1.0


def test_solve_the_quantized_laplace_operator():
    A = operators.qtt_laplace((4, 4), dtype=F64)
    b = TensorTrain([torch.ones(1, 2, 1, dtype=F64)] * 8)
    result = solve(A, b, tol=1e-8)
    exact = torch.linalg.solve(A.full(), torch.ones(256, dtype=F64))
    assert result.converged
    torch.testing.assert_close(result.tensor_train.full().reshape(-1), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("name", ["heisenberg", "random"])
def test_the_operator_of_a_block_as_a_matrix(dtype, sites, name):
    H = operators.heisenberg(5, field=0.3, dtype=dtype)
    if name == "random":
        H = operators.TTMatrix.random((2,) * 5, (2,) * 5, 3, seed=1, dtype=dtype)
        H = H + H.mH
    train = start((2,) * 5, 3, dtype=dtype)
    for site in range(6 - sites):
        cores = train.orthogonalize(site).cores
        local = QuadraticForm(H).local(cores, Visit(site, sites, forward=True))
        block = cores[site] if sites == 1 else torch.tensordot(cores[site], cores[site + 1], 1)
        applied = local.multiply(block).reshape(-1)
        torch.testing.assert_close(local.as_matrix() @ block.reshape(-1), applied)


def test_one_site_solve_enriches():
    A = operators.laplace((6, 5, 4), dtype=F64)
    result = solve(A, start((6, 5, 4), 2, seed=2), sites=1, tol=1e-7)
    assert result.converged


def test_fit_completes_a_train():
    teacher, indices, values = entries(seed=3)
    result = fit(indices, values, shape=(4,) * 5, max_rank=3, starts=2)
    error = (result.tensor_train.full() - teacher.full()).norm() / teacher.norm()
    assert result.certificate < 1e-3
    assert float(error) < 1e-2


def test_fit_completes_a_smooth_function():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(6, (2000, 4), generator=generator)
    values = 1 / (1 + indices.double().sum(1) / 5)
    result = fit(indices, values, shape=(6,) * 4, max_rank=4)
    grid = torch.cartesian_prod(*[torch.arange(6)] * 4)
    exact = 1 / (1 + grid.double().sum(1) / 5)
    error = (result.tensor_train.full().reshape(-1) - exact).norm() / exact.norm()
    assert float(error) < 1e-4
    assert result.converged
    assert max(result.tensor_train.ranks) <= 4


@pytest.mark.parametrize("sites", [1, 2])
def test_very_uneven_indices_give_the_gradient_of_the_dense_loss(sites):
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(30, (400, 3), generator=generator)
    indices[:300, 0] = 7
    values = torch.randn(400, generator=generator, dtype=F64)
    train = start((30, 30, 30), 2, seed=1).orthogonalize(0)
    local = LeastSquares(indices, values).local(train.cores, Visit(0, sites, forward=True))
    block = train.cores[0] if sites == 1 else torch.tensordot(train.cores[0], train.cores[1], 1)
    loss, gradient = local.value_and_gradient(block)
    free = block.clone().requires_grad_()
    rest = train.cores[sites:]
    dense = free
    for core in rest:
        dense = torch.tensordot(dense, core, 1)
    expected = 0.5 * (dense.reshape(30, 30, 30)[tuple(indices.unbind(1))] - values).square().mean()
    assert loss == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, free)[0])
    direction = torch.randn(block.shape, generator=generator, dtype=F64)
    curved = local.curvature(block)(direction)
    change = local.value_and_gradient(block + direction)[1] - gradient
    torch.testing.assert_close(curved, change)


# Results, states and errors -----------------------------------------------------------------------------


def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    H = operators.heisenberg(8, dtype=F64)
    options = {"max_rank": [4, 6, 8], "noise": [1e-2, 1e-3, 0.0], "tol": 0.0}
    whole = dmrg(H, start((2,) * 8, 4), sweeps=5, **options)
    file = tmp_path / "run.pt"
    dmrg(H, start((2,) * 8, 4), sweeps=2, checkpoint=file, **options)
    resumed = dmrg(H, start((2,) * 8, 2, seed=9), sweeps=5, checkpoint=file, **options)
    assert len(resumed.trajectory) == 5
    assert resumed.loss == whole.loss
    for a, b in zip(resumed.tensor_train.cores, whole.tensor_train.cores, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FormatError, match="checkpoint: expected one of format 1 and a train of shape"):
        dmrg(operators.heisenberg(4, dtype=F64), start((2,) * 4, 2), checkpoint=file)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(FormatError, match="checkpoint: expected a file that a minimization has written"):
        dmrg(H, start((2,) * 8, 4), checkpoint=file)


def test_progress_is_seen_without_any_logging_set_up(capsys):
    dmrg(operators.heisenberg(4, dtype=F64), start((2,) * 4, 2), sweeps=1, progress=True)
    assert "sweep   1  loss -1.6" in capsys.readouterr().err


def test_resume_in_the_middle_of_a_sweep_gives_the_same_bits(tmp_path):
    def make():
        parameter = TTParameter(start((2,) * 8, 4))
        return parameter, TwoSiteDMRG(
            parameter, truncation=Truncation(max_rank=6), noise=[1e-2, 0.0], solver="lanczos"
        )

    H = operators.heisenberg(8, dtype=F64)
    parameter, optimizer = make()
    for _ in range(20):
        optimizer.step(RayleighQuotient(H))
    other, resumed = make()
    for _ in range(7):
        resumed.step(RayleighQuotient(H))
    torch.save(resumed.state_dict(), tmp_path / "state.pt")
    other, resumed = make()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for _ in range(13):
        resumed.step(RayleighQuotient(H))
    assert all(torch.equal(a, b) for a, b in zip(parameter.cores, other.cores, strict=True))


def test_the_result_tells_what_happened(caplog):
    H = operators.heisenberg(6, dtype=F64)
    with caplog.at_level(logging.INFO, logger="ttnet.optim"):
        result = dmrg(H, start((2,) * 6, 2), sweeps=1, progress=True, tol=0.0)
    assert result.status is Status.MAX_SWEEPS
    assert "more sweeps" in result.message
    assert "sweep   1" in caplog.text
    stopped = dmrg(H, start((2,) * 6, 2), observer=lambda *_: True)
    assert stopped.status is Status.STOPPED
    assert len(stopped.trajectory) == 1
    report = result.trajectory[0]
    assert report.loss_after <= report.loss_before
    assert len(report.entropies) == len(report.discarded_weight) == 5
    assert report.entropies[2] > 0.1
    assert set(report.phases) == {"environments", "solve", "split"}


def test_a_loss_that_is_not_finite_stops_with_the_last_good_train():
    parameter = TTParameter(start((3, 3, 3), 2))
    calls = iter(range(1000))

    def problem():
        loss = parameter().full().square().sum()
        return loss * math.nan if next(calls) > 12 else loss

    result = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2)).minimize(problem)
    assert result.status is Status.NON_FINITE
    assert bool(result.tensor_train.full().isfinite().all())
    with pytest.raises(NonFiniteError, match="problem"):
        TwoSiteDMRG(parameter).step(lambda: parameter().full().sum() * math.inf)


def test_the_parameter_is_taken_anew_after_somebody_changed_it():
    parameter = TTParameter(start((3, 3, 3), 2))
    optimizer = TwoSiteDMRG(parameter, truncation=Truncation(max_rank=2))
    problem = lambda: (parameter().full() - 1).square().sum()  # noqa: E731
    optimizer.sweep(problem)
    parameter.assign(start((3, 3, 3), 2, seed=9))
    report = optimizer.sweep(problem)
    assert report.loss_before == pytest.approx(float((start((3, 3, 3), 2, seed=9).full() - 1).square().sum()))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"solver": "magic"}, "solver"),
        ({"growth": "much"}, "growth"),
        ({"sites": 3}, "sites"),
        ({"accept": "wolfe"}, "accept"),
        ({"local_steps": 0}, "local_steps"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(ConfigError, match=name):
        TwoSiteDMRG(TTParameter(start((2, 2), 1)), **options)


def test_bad_problems_are_named():
    parameter = TTParameter(start((2, 2), 1))
    with pytest.raises(ConfigError, match="closure"):
        TwoSiteDMRG(parameter).step(lambda: parameter().full())
    with pytest.raises(ConfigError, match="problem"):
        TwoSiteDMRG(parameter).step(3)
    with pytest.raises(ConfigError, match="growth"):
        TwoSiteDMRG(parameter, growth="test").step(lambda: parameter().full().square().sum())
    with pytest.raises(ShapeError, match="targets"):
        LeastSquares(torch.zeros(3, 2, dtype=torch.long), torch.zeros(4))
    with pytest.raises(ShapeError, match="points"):
        LeastSquares(torch.zeros(3, dtype=torch.long), torch.zeros(3))
    with pytest.raises(ShapeError, match="b:"):
        LinearSystem(operators.laplace((3, 3), dtype=F64), start((3, 4), 1))


def test_a_real_start_of_a_complex_operator_is_promoted():
    H = operators.heisenberg(6, dtype=torch.complex128)
    result = dmrg(H, start((2,) * 6, 4))
    assert result.tensor_train.dtype == torch.complex128
    assert result.loss == pytest.approx(HEISENBERG[6], rel=1e-9)


def test_an_operator_that_is_not_hermitian_is_refused_and_a_sum_may_have_parts_that_are_not():
    H = operators.heisenberg(6, dtype=F64)
    skew = operators.TTMatrix.random((2,) * 6, (2,) * 6, 2, seed=0, dtype=F64)
    with pytest.raises(ConfigError, match="H: expected a Hermitian operator"):
        dmrg(H + skew, start((2,) * 6, 4))
    assert dmrg([H + skew, -skew], start((2,) * 6, 4)).loss == pytest.approx(HEISENBERG[6], rel=1e-9)


def test_a_long_chain_in_single_precision_is_hermitian():
    H = operators.heisenberg(300, dtype=torch.float32)
    assert is_hermitian(H, math.sqrt(torch.finfo(torch.float32).eps))
