"""A sweep of several processes, each with data of its own: process 0 sweeps, the others answer it.

Only process 0 runs the optimizer. It tells the others which block to look at and takes the mean of all
processes' losses, gradients and curvature products; nobody but process 0 decides anything, so that neither
rounding nor different hardware can let the processes drift apart.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ttnet.errors import StateError
from ttnet.optim.distributed import agree, is_distributed
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import HasResiduals, LocalProblem, Operator, Quadratic
from ttnet.optim.problems.problem import Problem

_T = TypeVar("_T")
_Answer = tuple[float, Tensor | None]


def run_together(problem: Problem, run: Callable[[Problem], _T], device: torch.device) -> _T:
    """Let process 0 run something on the mean of all processes' problems.

    Args:
        problem: This process's problem; the same kind in all of them.
        run: Called in process 0 alone (or in the only one) with the mean problem. What it returns is sent to
            the others: tensors in it should be on the CPU.
        device: Where this process computes.

    Returns:
        What process 0 got.

    Raises:
        StateError: Another process failed. A process that fails itself raises its own error.
    """
    if not is_distributed():
        return run(problem)
    if dist.get_rank() != 0:
        return _serve(problem, device)
    try:
        result = run(_Shared(problem))
    except BaseException as error:
        agree(("failed", f"{type(error).__name__}: {error}"))
        raise
    agree(("done", result))
    return result


class _Shared:
    """Process 0's side: each question goes to all processes."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        agree(("local", ([core.cpu() for core in cores], visit)))
        return _SharedLocal(self._problem.local(cores, visit))


class _SharedLocal:
    def __init__(self, own: LocalProblem) -> None:
        self._own = own
        # Attributes, since solvers ask with hasattr what a problem can do.
        if isinstance(own, Quadratic):
            self.is_quadratic = own.is_quadratic
        if isinstance(own, HasResiduals):
            self.sign_flipped_gradient = self._sign_flipped_gradient

    def value(self, block: Tensor) -> float:
        agree(("value", block.cpu()))
        return _mean(lambda: (self._own.value(block), None), block)[0]

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        agree(("gradient", block.cpu()))
        loss, gradient = _mean(lambda: self._own.value_and_gradient(block), block, with_tensor=True)
        return loss, _present(gradient)

    def curvature(self, block: Tensor) -> Operator:
        agree(("curvature", block.cpu()))
        operators: list[Operator] = []

        def build() -> _Answer:
            operators.append(self._own.curvature(block))
            return 0.0, None

        _mean(build, block)

        def apply(direction: Tensor) -> Tensor:
            agree(("apply", direction.cpu()))
            answer = _mean(lambda: (0.0, operators[0](direction)), direction, with_tensor=True)
            return _present(answer[1])

        return apply

    def _sign_flipped_gradient(self, block: Tensor, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        agree(("flip", (block.cpu(), seed)))
        return _present(_mean(lambda: (0.0, _flip(self._own, block, seed)), block, with_tensor=True)[1])


def _serve(problem: Problem, device: torch.device) -> Any:
    """The other processes' side: answer until process 0 has ended."""
    local: LocalProblem | None = None
    operator: Operator | None = None
    failure: Exception | None = None
    while True:
        command, content = _listen()
        if command == "done":
            return content
        if command == "failed":
            raise failure or StateError(f"scheduler.step: process 0 stopped the sweep with {content}")
        if command == "local":
            cores, visit = content
            try:
                local, operator = problem.local([core.to(device) for core in cores], visit), None
            except Exception as error:  # answered at the next question
                failure = failure or error
            continue
        block, seed = content if command == "flip" else (content, 0)
        block = block.to(device)
        try:
            if failure is not None or local is None:
                raise failure or StateError("scheduler.step: asked before a local problem was given")
            if command == "value":
                answer = local.value(block), None
            elif command == "gradient":
                answer = local.value_and_gradient(block)
            elif command == "curvature":
                operator = local.curvature(block)
                answer = 0.0, None
            elif command == "apply" and operator is not None:
                answer = 0.0, operator(block)
            else:
                answer = 0.0, _flip(local, block, seed)
        except Exception as error:
            failure = failure or error
            answer = None
        _exchange(answer, block, with_tensor=command in ("gradient", "apply", "flip"))


def _listen() -> tuple[str, Any]:
    """What process 0 asks next."""
    return agree(("", None))


def _mean(ask: Callable[[], _Answer], like: Tensor, *, with_tensor: bool = False) -> _Answer:
    """The mean of all processes' answers, in process 0; a failure anywhere is an error here."""
    try:
        answer = ask()
    except BaseException:
        _exchange(None, like, with_tensor=with_tensor)
        raise
    failed, loss, tensor = _exchange(answer, like, with_tensor=with_tensor)
    if failed:
        raise StateError(
            f"problem: failed in {failed} of {dist.get_world_size()} processes; their own messages say why"
        )
    return loss, tensor


def _exchange(answer: _Answer | None, like: Tensor, *, with_tensor: bool) -> tuple[int, float, Tensor | None]:
    """Take part in the exchange of one answer; None says that this process failed."""
    loss, own = answer or (0.0, None)
    numbers = torch.tensor([float(answer is None), loss], dtype=torch.float64, device=like.device)
    dist.all_reduce(numbers)
    tensor = None
    if with_tensor:
        tensor = (torch.zeros_like(like) if own is None else own.detach().clone()).contiguous()
        dist.all_reduce(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
        tensor = tensor / dist.get_world_size()
    return int(numbers[0]), float(numbers[1]) / dist.get_world_size(), tensor


def _flip(local: LocalProblem, block: Tensor, seed: int) -> Tensor:
    if not isinstance(local, HasResiduals):
        raise StateError("problem: expected the same kind in every process, got one without residuals")
    generator = torch.Generator().manual_seed(seed + dist.get_rank())
    return local.sign_flipped_gradient(block, generator)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise StateError("problem: a process answered without a gradient")
    return tensor
