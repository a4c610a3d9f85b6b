"""Any torch loss: a closure that is evaluated with a block in the place of its cores.

Nothing is cached, so that a local gradient costs a full evaluation; in return the closure may do anything.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ttnet._typing import Cores
from ttnet.errors import ConfigError
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import LocalProblem, Operator
from ttnet.parameter import TTParameter, stand_ins

RandomState: TypeAlias = list[Tensor]
"""States of torch's generators: that of the CPU and, where the train is on a GPU, that of the GPU."""


def random_state(device: torch.device) -> RandomState:
    """The present state of the global generators.

    Args:
        device: Where the train is.
    """
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


class Replayed:
    """A problem that replays one random state at each evaluation.

    Args:
        parameter: The train.
    """

    def __init__(self, parameter: TTParameter) -> None:
        self._evaluator = Evaluator(parameter)

    def random_state(self) -> RandomState:
        """The state that is replayed."""
        return list(self._evaluator.state)

    def set_random_state(self, state: RandomState) -> None:
        """Replay another one."""
        self._evaluator.state = list(state)


class Closure(Replayed):
    """The loss that a closure returns, with its graph; it must not call backward.

    Gradients are taken with `torch.autograd.grad` with respect to the block alone: the `.grad` of every
    parameter stays as it is. The random state is replayed at each evaluation, so that dropout is the same
    function each time.

    Args:
        function: Returns a real scalar tensor that depends on `parameter`.
        parameter: The train.

    Examples:
        >>> import torch, ttnet
        >>> from ttnet.optim import Closure, TwoSiteDMRG
        >>> target = torch.rand(4, 4, 4, dtype=torch.float64)
        >>> parameter = ttnet.TTParameter(ttnet.random_train((4, 4, 4), 2, seed=0, dtype=torch.float64))
        >>> problem = Closure(lambda: (parameter().full() - target).square().sum(), parameter)
        >>> report = TwoSiteDMRG(parameter, truncation=ttnet.Truncation(max_rank=2)).sweep(problem)
        >>> report.loss_after < report.loss_before
        True
    """

    def __init__(self, function: Callable[[], Tensor], parameter: TTParameter) -> None:
        super().__init__(parameter)
        self._function = function

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        """See `Problem.local`."""
        return _ClosureLocal(self._function, self._evaluator, cores, visit)


class Composite(Replayed):
    """A loss of a network's outputs: the sweep sees the outputs as well.

    That gives the generalized Gauss-Newton matrix J^H (Hessian of the loss) J, which stays positive where
    the loss is convex in the outputs, and the noise floor that `growth="test"` asks for.

    Args:
        outputs: Returns the outputs, samples along the first axis; depends on `parameter`.
        loss: Maps the outputs to a real scalar tensor.
        parameter: The train.
    """

    def __init__(
        self, *, outputs: Callable[[], Tensor], loss: Callable[[Tensor], Tensor], parameter: TTParameter
    ) -> None:
        super().__init__(parameter)
        self._outputs = outputs
        self._loss = loss

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        """See `Problem.local`."""
        return _CompositeLocal(self._outputs, self._loss, self._evaluator, cores, visit)


class Evaluator:
    """Evaluates functions of a `TTParameter` with a block in the place of cores, randomness replayed."""

    def __init__(self, parameter: TTParameter) -> None:
        self._parameter = parameter
        device = parameter.core_parameters()[0].device
        self._devices = [device] if device.type == "cuda" else []
        self.state = random_state(device)
        self.is_used = False

    @contextmanager
    def block_in_place(self, cores: Sequence[Tensor], visit: Visit, block: Tensor) -> Iterator[None]:
        """The parameter has `cores` with `block` at `visit`, the random state is that of the beginning."""
        inside: Cores = stand_ins(block)() if visit.sites == 2 else (block,)
        whole = (*cores[: visit.site], *inside, *cores[visit.last + 1 :])
        dtype = self._parameter.core_parameters()[0].dtype
        if dtype != block.dtype:
            whole = tuple(core.to(dtype) for core in whole)
        with self._replayed(), self._parameter.substituted(whole):
            yield

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self.state[0])
            for device, state in zip(self._devices, self.state[1:], strict=False):
                torch.cuda.set_rng_state(state, device)
            yield

    def check_use(self, function: Callable[[], Tensor], cores: Sequence[Tensor]) -> None:
        """Check, where a loss does not depend on a block, that it depends on the train at all.

        Raises:
            ConfigError: It does not.
        """
        if self.is_used:
            return
        dtype = self._parameter.core_parameters()[0].dtype
        leaves = [core.detach().to(dtype).requires_grad_() for core in cores]
        with torch.enable_grad(), self._replayed(), self._parameter.substituted(tuple(leaves)):
            loss = check_loss(function())
        found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else ()
        if all(each is None for each in found):
            raise ConfigError(
                "problem: expected a loss with a graph that leads to the parameter, got one without; compute "
                "it from the parameter, without detach(), item() or no_grad()"
            )
        self.is_used = True


class _ClosureLocal:
    def __init__(
        self, function: Callable[[], Tensor], evaluator: Evaluator, cores: Sequence[Tensor], visit: Visit
    ) -> None:
        self._function = function
        self._evaluator = evaluator
        self._cores = [core.detach() for core in cores]
        self._visit = visit

    def _loss(self, block: Tensor) -> Tensor:
        with self._evaluator.block_in_place(self._cores, self._visit, block):
            return check_loss(self._function())

    def value(self, block: Tensor) -> float:
        with torch.no_grad():
            return float(self._loss(block.detach()))

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = block.detach().requires_grad_()
            loss = self._loss(leaf)
            gradient = _gradient(loss, leaf)
        if gradient is None:
            self._evaluator.check_use(self._function, self._cores)
            gradient = torch.zeros_like(block)
        return float(loss.detach()), gradient

    def curvature(self, block: Tensor) -> Operator:
        """Hessian by double backward; by differences of gradients where a kernel has no second derivative."""
        try:
            return _hessian(self._loss, block)
        except RuntimeError:
            return difference_operator(self.value_and_gradient, block)


class _CompositeLocal(_ClosureLocal):
    def __init__(
        self,
        outputs: Callable[[], Tensor],
        loss: Callable[[Tensor], Tensor],
        evaluator: Evaluator,
        cores: Sequence[Tensor],
        visit: Visit,
    ) -> None:
        super().__init__(lambda: loss(outputs()), evaluator, cores, visit)
        self._outputs = outputs
        self._of_outputs = loss

    def curvature(self, block: Tensor) -> Operator:
        """Generalized Gauss-Newton: J by the vjp of a vjp, the Hessian of the loss between."""
        try:
            return self._gauss_newton(block)
        except RuntimeError:
            return difference_operator(self.value_and_gradient, block)

    def _gauss_newton(self, block: Tensor) -> Operator:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = block.detach().requires_grad_()
            with self._evaluator.block_in_place(self._cores, self._visit, leaf):
                outputs = self._outputs()
            dummy = torch.zeros_like(outputs, requires_grad=True)
            (pulled,) = torch.autograd.grad(outputs, leaf, dummy, create_graph=True)
            free = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(check_loss(self._of_outputs(free)), free, create_graph=True)

        def apply(direction: Tensor) -> Tensor:
            (pushed,) = torch.autograd.grad(pulled, dummy, direction, retain_graph=True)
            bent = second_derivative(slope, free, pushed)
            return torch.autograd.grad(outputs, leaf, bent, retain_graph=True)[0]

        apply(torch.zeros_like(block))  # a kernel without second derivative says so here, not in the solver
        return apply

    def sign_flipped_gradient(self, block: Tensor, generator: torch.Generator) -> Tensor:
        """The gradient with a random sign for each sample's residual."""
        with torch.enable_grad():
            leaf = block.detach().requires_grad_()
            with self._evaluator.block_in_place(self._cores, self._visit, leaf):
                outputs = self._outputs()
            free = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(check_loss(self._of_outputs(free)), free)
            signs = torch.randint(0, 2, outputs.shape[:1], generator=generator).to(slope) * 2 - 1
            signed = slope * signs.reshape(-1, *[1] * (outputs.ndim - 1))
            gradient = _gradient(outputs, leaf, signed)
        return torch.zeros_like(block) if gradient is None else gradient


def _gradient(of: Tensor, leaf: Tensor, weights: Tensor | None = None) -> Tensor | None:
    """The gradient; None where `of` does not depend on the leaf."""
    if not of.requires_grad:
        return None
    return torch.autograd.grad(of, leaf, weights, allow_unused=True)[0]


def check_loss(loss: Tensor) -> Tensor:
    """`loss` if it is a real scalar tensor.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        found = (
            f"shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        )
        raise ConfigError(
            f"problem: expected the closure to return a real scalar tensor with its graph (and not to call "
            f"backward), got {found}"
        )
    return loss.reshape(())


def _hessian(function: Callable[[Tensor], Tensor], block: Tensor) -> Operator:
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = block.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)

    def apply(direction: Tensor) -> Tensor:
        return second_derivative(slope, leaf, direction)

    apply(torch.zeros_like(block))
    return apply


def second_derivative(slope: Tensor, of: Tensor, direction: Tensor) -> Tensor:
    """Derivative of <slope, direction>; zero where the slope is a constant.

    A slope with a graph that does not lead back to `of` comes from a kernel whose backward pass is not
    differentiable: torch raises then, and the caller takes differences.
    """
    if not slope.requires_grad:
        return torch.zeros_like(of)
    return torch.autograd.grad(slope, of, direction, retain_graph=True)[0]


def difference_operator(
    value_and_gradient: Callable[[Tensor], tuple[float, Tensor]], block: Tensor
) -> Operator:
    """Central differences of gradients along a direction: the last resort."""
    size = float(torch.linalg.vector_norm(block)) or 1.0
    root = torch.finfo(block.dtype).eps ** (1 / 3)

    def apply(direction: Tensor) -> Tensor:
        length = float(torch.linalg.vector_norm(direction))
        if length == 0.0:
            return torch.zeros_like(direction)
        step = root * size / length
        _, ahead = value_and_gradient(block + step * direction)
        _, behind = value_and_gradient(block - step * direction)
        return (ahead - behind) / (2 * step)

    return apply
