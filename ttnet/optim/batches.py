"""`BatchLoss`: a loss over batches that are held for as long as a sweep needs the loss to be one function."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ttnet.errors import ConfigError, StateError
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import HasResiduals, LocalProblem, Operator
from ttnet.optim.problems.closure import Closure, Composite
from ttnet.optim.problems.problem import Problem
from ttnet.parameter import TTParameter

MIN_FLIPPED = 8
"""Fewest batches whose gradients, with random signs, tell noise from signal."""


class BatchLoss:
    """Mean loss of a few batches, which stay the same until `advance` draws the next ones.

    A line search compares losses, so a sweep must see one function: `DMRGScheduler` calls `advance` once
    before each sweep. The gradient of each batch is taken by itself, so that no more than one batch's graph
    is alive at a time (curvature products of Newton-CG keep all of them). Each batch has random numbers of
    its own, replayed at each evaluation.

    Args:
        loss: Maps a batch to a real scalar tensor with its graph; with `outputs`, maps outputs and batch.
        batches: Where batches come from: a DataLoader, a list, any iterable. One that can be iterated again
            starts anew when it ends.
        hold: Number of batches that are held together.
        outputs: Maps a batch to the network's outputs, samples along the first axis. Newton-CG then uses the
            generalized Gauss-Newton matrix, and `growth="test"` the noise of the samples; without, that of
            the batches, of which it needs at least 8.

    Raises:
        ConfigError: `hold` is below 1.

    Examples:
        >>> import torch, ttnet
        >>> from ttnet.optim import BatchLoss
        >>> parameter = ttnet.TTParameter(ttnet.random_train((4, 5), 2, seed=0))
        >>> data = [torch.rand(4, 5) for _ in range(3)]
        >>> problem = BatchLoss(lambda x: (parameter().full() - x).square().mean(), data, hold=2)
        >>> problem.advance()
        >>> problem().shape
        torch.Size([])
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        batches: Iterable[Any],
        *,
        hold: int = 1,
        outputs: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if hold < 1:
            raise ConfigError(f"hold: expected at least 1, got {hold}")
        self._loss = loss
        self._outputs = outputs
        self._batches = batches
        self._iterator: Iterator[Any] | None = None
        self._held: tuple[Any, ...] = ()
        self._seeds: list[int] = []
        self.hold = hold

    @property
    def held(self) -> tuple[Any, ...]:
        """The batches that are held."""
        return self._held

    def advance(self) -> None:
        """Hold the next batches, with random numbers that follow from the present random state.

        Raises:
            StateError: There are none left, or none at all.
        """
        self._held = ()  # so that no more batches are in memory than asked for
        self._held = tuple(self._next() for _ in range(self.hold))
        with torch.random.fork_rng(devices=[]):
            self._seeds = torch.randint(2**62, (self.hold,)).tolist()

    def __call__(self) -> Tensor:
        """The mean loss of the held batches, with its graph.

        Raises:
            StateError: No batch is held yet.
        """
        losses = []
        for batch, seed in self._check_held():
            with seeded(seed):
                losses.append(self._of(batch))
        return torch.stack(losses).mean()

    def bound(self, parameter: TTParameter) -> Problem:
        """The loss of the held batches as a problem of `TwoSiteDMRG`.

        Args:
            parameter: The train that the loss depends on.

        Returns:
            The problem; it keeps these batches whatever `advance` does later.

        Raises:
            StateError: No batch is held yet.
        """
        parts: list[Problem] = []
        for batch, seed in self._check_held():
            with seeded(seed):  # each part replays the state it is made in
                parts.append(self._part(batch, parameter))
        return MeanProblem(parts)

    def _part(self, batch: Any, parameter: TTParameter) -> Problem:
        outputs, loss = self._outputs, self._loss
        if outputs is None:
            return Closure(lambda: loss(batch), parameter)
        return Composite(
            outputs=lambda: outputs(batch), loss=lambda out: loss(out, batch), parameter=parameter
        )

    def _of(self, batch: Any) -> Tensor:
        return self._loss(batch) if self._outputs is None else self._loss(self._outputs(batch), batch)

    def _check_held(self) -> list[tuple[Any, int]]:
        if not self._held:
            raise StateError("BatchLoss: no batch is held yet; call advance() first, as DMRGScheduler does")
        return list(zip(self._held, self._seeds, strict=True))

    def _next(self) -> Any:
        for fresh in (self._iterator is None, True):
            if fresh:
                self._iterator = iter(self._batches)
            try:
                return next(self._iterator)  # pyright: ignore[reportArgumentType]
            except StopIteration:
                continue
        raise StateError(
            "batches: expected another batch, got the end; pass something that can be iterated again, such "
            "as a DataLoader or a list, instead of an iterator"
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The random state of a seed, on the CPU and every GPU in use; the present one comes back afterwards.

    Args:
        seed: Any integer that `torch.manual_seed` takes.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class MeanProblem:
    """The mean of several problems of one train.

    Args:
        parts: The problems.
    """

    def __init__(self, parts: Sequence[Problem]) -> None:
        self.parts = tuple(parts)

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        """See `Problem.local`."""
        return _MeanLocal([part.local(cores, visit) for part in self.parts])


class _MeanLocal:
    def __init__(self, parts: Sequence[LocalProblem]) -> None:
        self._parts = parts
        self._gradients: tuple[Tensor, list[Tensor]] | None = None
        # Attributes, since solvers ask with hasattr what a problem can do.
        if all(isinstance(part, HasResiduals) for part in parts):
            self.sign_flipped_gradient = self._flip_samples
        elif len(parts) >= MIN_FLIPPED:
            self.sign_flipped_gradient = self._flip_batches

    def value(self, block: Tensor) -> float:
        return sum(part.value(block) for part in self._parts) / len(self._parts)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        total, mean = 0.0, torch.zeros_like(block)
        for part in self._parts:
            loss, gradient = part.value_and_gradient(block)
            total += loss
            mean += gradient / len(self._parts)
        return total / len(self._parts), mean

    def curvature(self, block: Tensor) -> Operator:
        operators = [part.curvature(block) for part in self._parts]

        def apply(direction: Tensor) -> Tensor:
            return torch.stack([operator(direction) for operator in operators]).mean(0)

        return apply

    def _flip_samples(self, block: Tensor, generator: torch.Generator) -> Tensor:
        flipped = [
            part.sign_flipped_gradient(block, generator)
            for part in self._parts
            if isinstance(part, HasResiduals)
        ]
        return torch.stack(flipped).mean(0)

    def _flip_batches(self, block: Tensor, generator: torch.Generator) -> Tensor:
        if self._gradients is None or not torch.equal(self._gradients[0], block):
            self._gradients = block.clone(), [part.value_and_gradient(block)[1] for part in self._parts]
        gradients = torch.stack(self._gradients[1])
        signs = torch.randint(0, 2, (len(gradients),), generator=generator).to(gradients) * 2 - 1
        return (signs.reshape(-1, *[1] * block.ndim) * gradients).mean(0)
