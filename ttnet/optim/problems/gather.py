"""Losses of entries of a train: regression, classification and completion, with cached environments.

The outputs are linear in a block, so that the Hessian of a convex loss is the Gauss-Newton matrix J^T H J,
and a product with it costs two passes over the samples.
"""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from ttnet.errors import ConfigError, DTypeError, ShapeError
from ttnet.optim.environments import Environments
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import Operator
from ttnet.optim.problems.closure import check_loss, difference_operator, second_derivative
from ttnet.optim.problems.entries import Groups, LocalEntries

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs (batch,) or (batch, labels) and targets to a real scalar tensor."""


class GatherLoss:
    """A loss of the values of a train at given points.

        (label mode, if any, stays open)
        value(b) = sum over modes of features_0[b, i_0] ... features_{d-1}[b, i_{d-1}] train[i_0, ...,
        i_{d-1}]

    Args:
        points: Indices from 0, an integer tensor (batch, d), which gather entries; or features, one tensor
            (batch, n_k) for each mode (or one tensor (batch, d, n)), which may be complex where the train is.
            With a `label_mode` that mode has no column.
        targets: Shape (batch,), passed to the loss as it is.
        loss: Maps outputs, (batch,) or (batch, labels), and targets to a scalar, for instance
            `torch.nn.functional.cross_entropy`.
        label_mode: The mode that is left open, or None.
        l2: Weight of |train|^2 / 2, added to the loss.

    Raises:
        ShapeError: Points and targets of different lengths, no points, or points of a shape that is neither
            of the two.
        DTypeError: Points that are neither integers nor features.
        ConfigError: `label_mode` is no mode.
    """

    is_quadratic = False

    def __init__(
        self,
        points: Tensor | Sequence[Tensor],
        targets: Tensor,
        loss: Loss,
        *,
        label_mode: int | None = None,
        l2: float = 0.0,
    ) -> None:
        self._targets = targets
        self._loss = loss
        self._l2 = l2
        self._modes = _read_points(points, label_mode)
        self._label = label_mode
        self._largest = [int(mode.max()) if _is_index(mode) else None for mode in self._modes]
        self._fitting: tuple[object, ...] | None = None
        self._alike: list[Tensor] = []
        count = len(next(mode for mode in self._modes if mode is not None))
        if len(targets) != count:
            raise ShapeError(f"targets: expected {count} of them, one for each point, got {len(targets)}")
        self._sorted: dict[tuple[int, int], Groups] = {}
        one = torch.ones(count, 1, 1)
        self._environments: Environments[Tensor] = Environments(
            (one, one), self._extend_left, self._extend_right
        )

    def local(self, cores: Sequence[Tensor], visit: Visit) -> "LocalGather | LocalEntries":
        """See `Problem.local`."""
        self._check(cores)
        left = self._environments.left(cores, visit.site).to(cores[0])
        right = self._environments.right(cores, visit.last).to(cores[0])
        indices = self._modes[visit.site], self._modes[visit.last]
        if self._label is None and all(map(_is_index, indices)):
            return LocalEntries(
                left[:, 0],
                right[:, 0],
                self._groups(visit, (cores[visit.site].shape[1], cores[visit.last].shape[1])),
                self,
                is_quadratic=self.is_quadratic,
                l2=self._l2,
            )
        # A one-site block is a two-site one whose second mode has size 1.
        left = _absorb_mode(left, self._modes[visit.site], cores[visit.site].shape[1])
        if visit.sites == 2:
            right = _absorb_mode(right, self._modes[visit.last], cores[visit.last].shape[1], leading=True)
        return LocalGather(left, right, self)

    def _check(self, cores: Sequence[Tensor]) -> None:
        """Refuse a train that the points do not fit; once for each shape and dtype."""
        sizes, dtype = tuple(core.shape[1] for core in cores), cores[0].dtype
        if (sizes, dtype) == self._fitting:
            return
        if len(cores) != len(self._modes):
            raise ShapeError(f"points: expected {len(cores)} modes as the train has, got {len(self._modes)}")
        for k, (mode, largest, size) in enumerate(zip(self._modes, self._largest, sizes, strict=True)):
            if largest is not None and largest >= size:
                raise ShapeError(f"points: expected indices below {size} in mode {k}, got {largest}")
            if mode is not None and largest is None and mode.shape[1] != size:
                raise ShapeError(f"points: expected {size} features in mode {k}, got {mode.shape[1]}")
        wide = [mode for mode in self._modes if mode is not None]
        if not dtype.is_complex and any(each.is_complex() for each in wide + self._alike):
            raise DTypeError(
                f"train: expected complex cores for complex points or targets, got {dtype}; use "
                f"train.to(torch.complex128)"
            )
        self._fitting = sizes, dtype

    def _groups(self, visit: Visit, sizes: tuple[int, int]) -> Groups:
        """The samples sorted by the indices at a visit, kept: they do not change with the train."""
        key = visit.site, visit.sites
        if key not in self._sorted:
            first, second = self._modes[visit.site], self._modes[visit.last] if visit.sites == 2 else None
            if first is None:
                raise ShapeError(f"points: expected indices for mode {visit.site}, got an open mode")
            self._sorted[key] = Groups.sort(first, second, (sizes[0], sizes[1] if visit.sites == 2 else 1))
        return self._sorted[key]

    def evaluate(self, outputs: Tensor) -> Tensor:
        """The loss of outputs (batch, labels), without the l2 term."""
        found = outputs if self._label is not None else outputs[:, 0]
        return check_loss(self._loss(found, self._targets.to(outputs.device)))

    def slope(self, outputs: Tensor) -> tuple[float, Tensor]:
        """The loss of outputs (batch, labels) and its gradient."""
        with torch.enable_grad():
            free = outputs.detach().requires_grad_()
            loss = self.evaluate(free)
            if not loss.requires_grad:
                raise ConfigError("loss: expected a function of the outputs that keeps its graph, got none")
            (slope,) = torch.autograd.grad(loss, free)
        return float(loss.detach()), slope

    def bend(self, outputs: Tensor) -> Operator:
        """The Hessian of the loss as a real-linear map of outputs (batch, labels).

        By differences of the slope where a kernel has no second derivative.
        """
        try:
            with torch.enable_grad():
                free = outputs.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.evaluate(free), free, create_graph=True)
            second_derivative(slope, free, torch.zeros_like(free))
        except RuntimeError:
            return difference_operator(self.slope, outputs.detach())
        return lambda direction: second_derivative(slope, free, direction)

    def sample_curvature(self, outputs: Tensor) -> Tensor:
        """Second derivatives of a loss that is a sum over samples with one output each, shape (batch, 1).

        Real; for a complex output the mean of those along the real and the imaginary axis.
        """
        bend, ones = self.bend(outputs), torch.ones_like(outputs)
        if not outputs.is_complex():
            return bend(ones)
        return (bend(ones).real + bend(1j * ones).imag) / 2

    @property
    def l2(self) -> float:
        """Weight of |train|^2 / 2."""
        return self._l2

    def _extend_left(self, environment: Tensor, k: int, core: Tensor) -> Tensor:
        """(batch, labels, l) -> (batch, labels, r)."""
        environment = environment.to(core)
        mode = self._modes[k]
        if _is_index(mode):
            return _gathered(environment, core, mode)
        return _absorb_mode(environment, mode, core.shape[1]) @ core.reshape(-1, core.shape[2])

    def _extend_right(self, environment: Tensor, k: int, core: Tensor) -> Tensor:
        """(batch, labels, r) -> (batch, labels, l)."""
        environment = environment.to(core)
        mode = self._modes[k]
        if _is_index(mode):
            return _gathered(environment, core.permute(2, 1, 0), mode)
        return (
            _absorb_mode(environment, mode, core.shape[1], leading=True) @ core.reshape(core.shape[0], -1).mT
        )


class LeastSquares(GatherLoss):
    """Half the mean squared error of the values of a train at given points: a quadratic problem.

    Args:
        points: As for `GatherLoss`.
        targets: Shape (batch,), or (batch, labels) with a `label_mode`.
        label_mode: The mode that is left open, or None.
        l2: Weight of |train|^2 / 2, added to the loss.

    Raises:
        ShapeError: Points and targets of different lengths, no points, or points of a shape that is neither
            of the two.
        DTypeError: Points that are neither integers nor features.
        ConfigError: `label_mode` is no mode.
    """

    is_quadratic = True

    def __init__(
        self,
        points: Tensor | Sequence[Tensor],
        targets: Tensor,
        *,
        label_mode: int | None = None,
        l2: float = 0.0,
    ) -> None:
        super().__init__(points, targets, _half_mean_square, label_mode=label_mode, l2=l2)
        self._alike = [targets]
        inner = targets.shape[1:]
        if (label_mode is None and inner.numel() != 1) or (label_mode is not None and len(inner) != 1):
            raise ShapeError(
                f"targets: expected {'(batch,)' if label_mode is None else '(batch, labels)'}, got "
                f"{tuple(targets.shape)}"
            )

    def slope(self, outputs: Tensor) -> tuple[float, Tensor]:
        """Half the mean square and the residuals over their number, without autograd."""
        residuals = outputs.detach() - self._targets.to(outputs).reshape(outputs.shape)
        return 0.5 * float(_squares(residuals).mean()), residuals / residuals.numel()

    def bend(self, outputs: Tensor) -> Operator:
        """Division by the number of residuals."""
        count = outputs.numel()
        return lambda direction: direction / count

    def sample_curvature(self, outputs: Tensor) -> Tensor:
        """One over the number of residuals."""
        return torch.full_like(outputs.real, 1 / outputs.numel())


class LocalGather:
    """The loss of one block X (l m, n r): output[b, c] = left[b, c] X right[b, c]^T.

    Args:
        left: Shape (batch, 1 or labels, l m).
        right: Shape (batch, labels or 1, n r).
        problem: The loss.
    """

    def __init__(self, left: Tensor, right: Tensor, problem: GatherLoss) -> None:
        self._left = left
        self._right = right
        self._problem = problem
        self._sloped: tuple[Tensor, Tensor] | None = None
        self.is_quadratic = problem.is_quadratic

    def outputs(self, block: Tensor) -> Tensor:
        """Values at the points, shape (batch, labels)."""
        matrix = block.reshape(self._left.shape[2], self._right.shape[2])
        return ((self._left @ matrix) * self._right).sum(2)

    def pull_back(self, weights: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of `outputs`: weights (batch, labels) to a block."""
        weighted = weights.unsqueeze(2)
        if self._left.shape[1] == 1:
            matrix = self._left[:, 0].mH @ (weighted * self._right.conj()).sum(1)
        else:
            matrix = (self._left.conj() * weighted).sum(1).mT @ self._right[:, 0].conj()
        return matrix.reshape(*shape)

    def value(self, block: Tensor) -> float:
        """The loss."""
        with torch.no_grad():
            return float(self._problem.evaluate(self.outputs(block))) + self._penalty(block)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        loss, slope = self._problem.slope(self.outputs(block))
        gradient = self.pull_back(slope, block.shape)
        if self._problem.l2:
            gradient = gradient + self._problem.l2 * block
        return loss + self._penalty(block), gradient

    def curvature(self, block: Tensor) -> Operator:
        """J^H H J + l2."""
        bend = self._problem.bend(self.outputs(block))

        def apply(direction: Tensor) -> Tensor:
            image = self.pull_back(bend(self.outputs(direction)), direction.shape)
            return image + self._problem.l2 * direction if self._problem.l2 else image

        return apply

    def sign_flipped_gradient(self, block: Tensor, generator: torch.Generator) -> Tensor:
        """The gradient with a random sign for each sample's residual."""
        if self._sloped is None or self._sloped[0] is not block:
            self._sloped = block, self._problem.slope(self.outputs(block))[1]
        slope = self._sloped[1]
        signs = torch.randint(0, 2, (len(slope), 1), generator=generator).to(slope) * 2 - 1
        return self.pull_back(slope * signs, block.shape)

    def _penalty(self, block: Tensor) -> float:
        return (
            0.5 * self._problem.l2 * float(torch.linalg.vector_norm(block)) ** 2 if self._problem.l2 else 0.0
        )


def _half_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * _squares(outputs - targets.to(outputs).reshape(outputs.shape)).mean()


def _squares(values: Tensor) -> Tensor:
    return (values * values.conj()).real if values.is_complex() else values.square()


def _is_index(mode: Tensor | None) -> TypeGuard[Tensor]:
    return mode is not None and not (mode.is_floating_point() or mode.is_complex())


def _read_points(points: Tensor | Sequence[Tensor], label_mode: int | None) -> list[Tensor | None]:
    """One entry for each mode: indices (batch,), features (batch, n), or None for the open mode."""
    if isinstance(points, Tensor):
        if points.ndim not in (2, 3) or (points.ndim == 2) != _is_index(points):
            raise ShapeError(
                f"points: expected integer indices (batch, d) or features (batch, d, n), got "
                f"{points.dtype} of shape {tuple(points.shape)}"
            )
        points = points.unbind(1)
    columns = [_read_column(column, k) for k, column in enumerate(points)]
    if not columns or any(len(column) != len(columns[0]) for column in columns) or not len(columns[0]):
        raise ShapeError(
            f"points: expected the same number of samples in every mode, and at least one, got "
            f"{[len(column) for column in columns]}"
        )
    modes: list[Tensor | None] = list(columns)
    if label_mode is not None:
        if not -len(modes) - 1 <= label_mode <= len(modes):
            raise ConfigError(f"label_mode: expected a mode of {len(modes) + 1}, got {label_mode}")
        modes.insert(label_mode if label_mode >= 0 else len(modes) + 1 + label_mode, None)
    return modes


def _read_column(column: Tensor, k: int) -> Tensor:
    """The points of one mode, indices as int64."""
    if column.dtype == torch.bool:
        raise DTypeError(f"points: expected integers or features, got booleans in mode {k}; use .long()")
    if column.ndim != (1 if _is_index(column) else 2):
        raise ShapeError(
            f"points: expected integer indices (batch,) or features (batch, n), got {column.dtype} of shape "
            f"{tuple(column.shape)} in mode {k}"
        )
    if not _is_index(column):
        return column
    column = column.long()
    if len(column) and int(column.min()) < 0:
        raise ShapeError(f"points: expected indices from 0 in mode {k}, got {int(column.min())}")
    return column


def _absorb_mode(environment: Tensor, mode: Tensor | None, size: int, *, leading: bool = False) -> Tensor:
    """Environment (batch, labels, r) times features: (batch, labels, r n), or n r if `leading`."""
    if mode is None:
        features = torch.eye(size, dtype=environment.dtype, device=environment.device).unsqueeze(0)
    elif _is_index(mode):
        features = F.one_hot(mode, size).to(environment).unsqueeze(1)
    else:
        features = mode.to(environment).unsqueeze(1)
    pair = (
        (features.unsqueeze(3), environment.unsqueeze(2))
        if leading
        else (
            environment.unsqueeze(3),
            features.unsqueeze(2),
        )
    )
    return (pair[0] * pair[1]).flatten(2)


def _gathered(environment: Tensor, core: Tensor, mode: Tensor) -> Tensor:
    """Environment (batch, labels, l) through the slices core[:, mode[b]]."""
    left, size, right = core.shape
    if size * right <= 256:
        # All slices at once, and the wanted one picked: few large operations.
        images = (environment @ core.reshape(left, -1)).unflatten(2, (size, right))
        return images[torch.arange(len(mode), device=mode.device), :, mode]
    slices = core.permute(1, 0, 2)
    result = environment.new_empty(*environment.shape[:2], right)
    order = torch.argsort(mode, stable=True)
    counts = torch.bincount(mode, minlength=size).tolist()
    for value, members in enumerate(torch.split(order, counts)):
        if len(members):
            result[members] = environment[members] @ slices[value]
    return result
