import pytest
import torch
from torch import Tensor

from ttnet.errors import ConfigError
from ttnet.optim.local import SOLVERS
from ttnet.optim.local.direct import direct
from ttnet.optim.local.problem import LocalResult, Operator, Start, armijo

SHAPE = (3, 2, 2, 3)
SIZE = 36


class Bowl:
    """x^H A x / 2 - Re b^H x with A Hermitian and positive; its minimum is known."""

    is_quadratic = True

    def __init__(self, dtype: torch.dtype = torch.float64, condition: float = 20.0) -> None:
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=dtype))[0]
        self.matrix = (basis * torch.linspace(1, condition, SIZE, dtype=torch.float64).to(dtype)) @ basis.mH
        self.vector = torch.randn(SHAPE, generator=generator, dtype=dtype)
        self.solution = torch.linalg.solve(self.matrix, self.vector.reshape(-1)).reshape(SHAPE)
        self.minimum = self.value(self.solution)

    def multiply(self, block: Tensor) -> Tensor:
        return (self.matrix @ block.reshape(-1)).reshape(SHAPE)

    def value(self, block: Tensor) -> float:
        image = 0.5 * self.multiply(block) - self.vector
        return float(torch.vdot(block.reshape(-1), image.reshape(-1)).real)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        return self.value(block), self.multiply(block) - self.vector

    def curvature(self, block: Tensor) -> Operator:
        del block
        return self.multiply


class Quotient(Bowl):
    """The Rayleigh quotient of the same matrix."""

    is_quadratic = False

    def apply(self, block: Tensor) -> Tensor:
        return self.multiply(block)

    def value(self, block: Tensor) -> float:
        flat = block.reshape(-1)
        return float((torch.vdot(flat, self.matrix @ flat) / torch.vdot(flat, flat)).real)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        energy = self.value(block)
        squared = float(torch.linalg.vector_norm(block)) ** 2
        return energy, 2 * (self.multiply(block) - energy * block) / squared


class Valley(Bowl):
    """Rosenbrock's valley: not convex, minimum 0 at ones."""

    is_quadratic = False

    def _loss(self, block: Tensor) -> Tensor:
        x = block.reshape(-1)
        return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def value(self, block: Tensor) -> float:
        return float(self._loss(block))

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        leaf = block.detach().requires_grad_()
        loss = self._loss(leaf)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]

    def curvature(self, block: Tensor) -> Operator:
        leaf = block.detach().requires_grad_()
        slope = torch.autograd.grad(self._loss(leaf), leaf, create_graph=True)[0]
        return lambda v: torch.autograd.grad(slope, leaf, v, retain_graph=True)[0]


def begin(problem: Bowl, block: Tensor) -> Start:
    loss, gradient = problem.value_and_gradient(block)
    return Start(block=block, loss=loss, gradient=gradient)


def run(name: str, problem: Bowl, block: Tensor, **options: float) -> LocalResult:
    return SOLVERS[name](problem, begin(problem, block), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    ("name", "options", "rest"),
    [
        ("newton-cg", {"steps": 60, "damping": 0.0}, 1e-3),
        ("lbfgs", {"steps": 60}, 1e-8),
        ("cg", {"steps": 80}, 1e-6),
        ("gradient", {"steps": 300}, 1e-6),
        ("gmres", {"steps": 36, "damping": 1e-12}, 1e-10),
    ],
)
def test_solvers_reach_the_minimum_of_a_bowl(name, options, rest, dtype):
    problem = Bowl(dtype)
    result = run(name, problem, torch.ones(SHAPE, dtype=dtype), **options)
    assert problem.value(result.block) - problem.minimum < rest * abs(problem.minimum)
    if name != "gmres":
        assert result.loss == pytest.approx(problem.value(result.block), rel=1e-10)


@pytest.mark.parametrize("name", ["newton-cg", "lbfgs", "cg", "adam", "gradient"])
def test_solvers_descend_where_the_loss_is_not_convex(name):
    problem = Valley()
    start = torch.linspace(-1.5, 1.5, SIZE, dtype=torch.float64).reshape(SHAPE)
    before = problem.value(start)
    result = run(name, problem, start)
    assert result.loss < 0.9 * before
    assert result.loss == pytest.approx(problem.value(result.block), rel=1e-12)


@pytest.mark.parametrize("name", ["newton-cg", "lbfgs", "cg", "adam", "gradient"])
def test_solvers_stay_at_a_stationary_point(name):
    problem = Valley()
    ones = torch.ones(SHAPE, dtype=torch.float64)
    result = run(name, problem, ones)
    assert result.loss == 0.0
    torch.testing.assert_close(result.block, ones)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_lanczos_finds_the_lowest_eigenvector(dtype):
    problem = Quotient(dtype)
    generator = torch.Generator().manual_seed(1)
    result = run(
        "lanczos", problem, torch.randn(SHAPE, generator=generator, dtype=dtype), steps=SIZE, reduction=0.0
    )
    assert result.loss == pytest.approx(1.0, abs=1e-10)
    assert problem.value(result.block) == pytest.approx(1.0, abs=1e-10)
    assert float(torch.linalg.vector_norm(result.block)) == pytest.approx(1.0)


def test_lanczos_ends_when_the_residual_has_fallen_enough():
    start = torch.ones(SHAPE, dtype=torch.float64)
    loose = run("lanczos", Quotient(), start, steps=SIZE, reduction=0.5)
    fine = run("lanczos", Quotient(), start, steps=SIZE, reduction=1e-6)
    assert loose.evaluations < fine.evaluations
    assert fine.loss < loose.loss


def test_lanczos_with_few_vectors_descends():
    problem = Quotient()
    start = torch.ones(SHAPE, dtype=torch.float64)
    result = run("lanczos", problem, start, steps=3)
    assert result.loss < problem.value(start)
    assert result.evaluations == 2


class Plain:
    """A loss that is neither a quotient nor a system."""

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        return float(block.square().sum()), 2 * block


@pytest.mark.parametrize("name", ["lanczos", "gmres"])
def test_special_solvers_refuse_other_losses(name):
    with pytest.raises(ConfigError, match="solver"):
        run(name, Plain(), torch.ones(SHAPE, dtype=torch.float64))


def test_armijo_refuses_a_direction_that_does_not_descend():
    problem = Bowl()
    start = begin(problem, torch.ones(SHAPE, dtype=torch.float64))
    assert armijo(problem, start, start.gradient) is None
    found = armijo(problem, start, -start.gradient)
    assert found is not None
    assert found[1] < start.loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_direct_solves_a_small_block_and_leaves_a_large_one(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator, dtype=dtype)

    class System:
        vector = torch.randn(6, generator=generator, dtype=dtype)

        def as_matrix(self) -> Tensor:
            return matrix

        def value(self, block: Tensor) -> float:
            return float(torch.linalg.vector_norm(matrix @ block.reshape(-1) - self.vector))

    begin = Start(block=torch.zeros(2, 3, dtype=dtype), loss=1.0, gradient=torch.zeros(2, 3, dtype=dtype))
    result = direct(System(), begin)
    torch.testing.assert_close(result.block.reshape(-1), torch.linalg.solve(matrix, System.vector))
    assert result.loss < 1e-12
    monkeypatch.setattr("ttnet.optim.local.direct.LARGEST_BLOCK", 5)
    assert direct(System(), begin) is None
    monkeypatch.undo()
    matrix[:] = 0
    assert direct(System(), begin) is None
