"""Energies: quadratic forms and Rayleigh quotients of matrix product operators, with cached environments."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ttnet.cores import absorb_left, absorb_right, extend_left, extend_right, merge_bond
from ttnet.errors import ShapeError
from ttnet.optim.environments import Environments
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import Operator, real_dot
from ttnet.optim.problems.channels import Channels, LocalOperator, Site, extend, read_sites
from ttnet.tensor_train import TensorTrain
from ttnet.tt_matrix import TTMatrix


class OperatorEnvironments:
    """Environments of <train| H |train> for one operator.

    Args:
        operator: The operator.
    """

    def __init__(self, operator: TTMatrix) -> None:
        self._sites: list[Site] = []
        self._mirrored: list[Site] = []
        self._cores = operator.cores
        self._environments: Environments[Channels] = Environments(
            (Channels(), Channels()),
            lambda environment, k, core: extend(environment, self._sites[k], core),
            lambda environment, k, core: extend(environment, self._mirrored[k], core.transpose(0, 2)),
        )

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalOperator:
        """The operator on the block of `visit`."""
        if len(cores) != len(self._cores):
            raise ShapeError(
                f"operator: expected {len(cores)} cores as the train has, got {len(self._cores)}"
            )
        like = cores[0]
        if (
            not self._sites
            or self._sites[0].core.dtype != like.dtype
            or self._sites[0].core.device != like.device
        ):
            dtype = torch.promote_types(like.dtype, self._cores[0].dtype)
            if dtype.is_complex and not like.is_complex():
                raise ShapeError(
                    "train: expected complex cores for a complex operator; use train.to(torch.complex128)"
                )
            factors = [core.to(like.device, like.dtype) for core in self._cores]
            self._sites = read_sites(factors)
            self._mirrored = read_sites([factor.permute(3, 1, 2, 0) for factor in factors])
        first, last = cores[visit.site], cores[visit.last]
        shape = (first.shape[0], first.shape[1], last.shape[2])
        if visit.sites == 2:
            shape = (first.shape[0], first.shape[1], last.shape[1], last.shape[2])
        return LocalOperator(
            self._environments.left(cores, visit.site),
            self._sites[visit.site],
            self._sites[visit.last] if visit.sites == 2 else None,
            self._environments.right(cores, visit.last),
            shape,
        )


class OverlapEnvironments:
    """Environments of <train| other>: the gradient of an overlap with respect to a block.

    Args:
        other: The other train.
    """

    def __init__(self, other: TensorTrain) -> None:
        self._other = other
        one = other.cores[0].new_ones(1, 1)
        self._environments: Environments[Tensor] = Environments(
            (one, one),
            lambda environment, k, core: extend_left(environment, core, self._at(k, core)),
            lambda environment, k, core: extend_right(environment, core, self._at(k, core)),
        )

    def _at(self, k: int, like: Tensor) -> Tensor:
        return self._other.cores[k].to(like.device, like.dtype)

    def local(self, cores: Sequence[Tensor], visit: Visit) -> Tensor:
        """The block b with <train, other> = <block, b>."""
        left = self._environments.left(cores, visit.site).to(cores[0].device, cores[0].dtype)
        right = self._environments.right(cores, visit.last).to(cores[0].device, cores[0].dtype)
        block = absorb_left(left, self._at(visit.site, cores[0]))
        if visit.sites == 2:
            block = merge_bond(block, self._at(visit.last, cores[0]))
        return absorb_right(block.flatten(1, -2), right.mT).reshape(*block.shape[:-1], -1)


class QuadraticForm:
    """The quadratic form x^H H x / 2 - Re b^H x of a train x.

    Args:
        operator: Hermitian, one TTMatrix or several whose sum is meant.
        vector: b; by default 0.
    """

    def __init__(self, operator: TTMatrix | Sequence[TTMatrix], vector: TensorTrain | None = None) -> None:
        self._operators = [OperatorEnvironments(each) for each in _several(operator)]
        self._vector = None if vector is None else OverlapEnvironments(vector)

    def local(self, cores: Sequence[Tensor], visit: Visit) -> "LocalQuadratic":
        """See `Problem.local`."""
        operators = [each.local(cores, visit) for each in self._operators]
        vector = None if self._vector is None else self._vector.local(cores, visit)
        return LocalQuadratic(operators, vector)


class LocalQuadratic:
    """x^H H x / 2 - Re b^H x of one block."""

    is_quadratic = True

    def __init__(self, operators: Sequence[LocalOperator], vector: Tensor | None) -> None:
        self.operators = operators
        self.vector = vector

    def as_matrix(self) -> Tensor:
        """H as a matrix on flattened blocks."""
        matrices = [operator.as_matrix() for operator in self.operators]
        return sum(matrices[1:], matrices[0])

    def multiply(self, block: Tensor) -> Tensor:
        """H times a block."""
        image = self.operators[0](block)
        for operator in self.operators[1:]:
            image = image + operator(block)
        return image

    def value(self, block: Tensor) -> float:
        """The form at a block."""
        return self.value_and_gradient(block)[0]

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The form and H x - b."""
        image = self.multiply(block)
        value = 0.5 * real_dot(block, image)
        if self.vector is None:
            return value, image
        return value - real_dot(self.vector, block), image - self.vector

    def curvature(self, block: Tensor) -> Operator:
        """H itself."""
        del block
        return self.multiply


class RayleighQuotient:
    """The energy x^H H x / x^H x of a train x, whose minimum is the lowest eigenvalue of H.

    Args:
        operator: Hermitian, one TTMatrix or several whose sum is meant (they are not added).
        orthogonal_to: Trains that x is kept orthogonal to, of any norm.
        penalty: None: each block is optimized in the complement of its overlaps with them, exactly. A number:
            energy that an overlap of 1 costs; it has to exceed the gap, and the loss contains it.
    """

    def __init__(
        self,
        operator: TTMatrix | Sequence[TTMatrix],
        *,
        orthogonal_to: Sequence[TensorTrain] = (),
        penalty: float | None = None,
    ) -> None:
        self._operators = [OperatorEnvironments(each) for each in _several(operator)]
        self._others = [OverlapEnvironments(each / each.norm()) for each in orthogonal_to]
        self._penalty = penalty

    def local(self, cores: Sequence[Tensor], visit: Visit) -> "LocalRayleigh":
        """See `Problem.local`."""
        operators: list[Operator] = [each.local(cores, visit) for each in self._operators]
        overlaps = [each.local(cores, visit).reshape(-1) for each in self._others]
        if self._penalty is not None:
            return LocalRayleigh(operators + [_penalty(each, self._penalty) for each in overlaps])
        if not overlaps:
            return LocalRayleigh(operators)
        return ProjectedRayleigh(operators, torch.stack(overlaps, 1))


class LocalRayleigh:
    """x^H H x / x^H x of one block."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self._operators = operators

    def apply(self, block: Tensor) -> Tensor:
        """H times a block."""
        image = self._operators[0](block)
        for operator in self._operators[1:]:
            image = image + operator(block)
        return image

    def value(self, block: Tensor) -> float:
        """The quotient."""
        return real_dot(block, self.apply(block)) / real_dot(block, block)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The quotient E and 2 (H x - E x) / |x|^2."""
        image = self.apply(block)
        norm = real_dot(block, block)
        energy = real_dot(block, image) / norm
        return energy, (image - energy * block) * (2 / norm)

    def curvature(self, block: Tensor) -> Operator:
        """Hessian of the quotient at `block`."""
        energy, slope = self.value_and_gradient(block)
        norm = real_dot(block, block)

        def apply(direction: Tensor) -> Tensor:
            image = (self.apply(direction) - energy * direction) * (2 / norm)
            along = real_dot(block, direction) * 2 / norm
            return image - along * slope - (real_dot(slope, direction) * 2 / norm) * block

        return apply


class ProjectedRayleigh(LocalRayleigh):
    """The quotient of P x, where P = 1 - Q Q^H removes what overlaps with other states.

    Args:
        operators: Their sum is H.
        overlaps: The overlap blocks as columns, shape (block entries, states).
    """

    def __init__(self, operators: Sequence[Operator], overlaps: Tensor) -> None:
        super().__init__(operators)
        u, s, _ = torch.linalg.svd(overlaps, full_matrices=False)
        # A block that hardly meets a state has no need to avoid it, and one entry has to be free.
        floor = torch.finfo(overlaps.dtype).eps ** 0.5
        self._basis = u[:, : min(int((s > floor).sum()), len(u) - 1)]

    def _project(self, block: Tensor) -> Tensor:
        flat = block.reshape(-1)
        return (flat - self._basis @ (self._basis.mH @ flat)).reshape(block.shape)

    def feasible(self, block: Tensor) -> Tensor:
        """P x; a fixed random vector of the complement where nothing of x lies in it."""
        projected = self._project(self._project(block))
        norm = torch.linalg.vector_norm(block)
        if torch.linalg.vector_norm(projected) > torch.finfo(block.dtype).eps ** 0.5 * norm:
            return projected
        noise = torch.randn(block.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        projected = self._project(noise.to(block))
        return projected * (norm / torch.linalg.vector_norm(projected))

    def apply(self, block: Tensor) -> Tensor:
        """P H P times a block."""
        return self._project(super().apply(self._project(block)))

    def value(self, block: Tensor) -> float:
        """The quotient of P x."""
        return super().value(self._project(block))

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The quotient and its gradient, which lies in the complement."""
        return super().value_and_gradient(self._project(block))


def _penalty(flat: Tensor, weight: float) -> Operator:
    def apply(block: Tensor) -> Tensor:
        return (weight * torch.vdot(flat, block.reshape(-1)) * flat).reshape(block.shape)

    return apply


def is_hermitian(operator: TTMatrix | Sequence[TTMatrix], tolerance: float) -> bool:
    """Whether an operator, or the sum of several, equals its adjoint.

    Args:
        operator: Square or not, of any norm.
        tolerance: Largest norm of the difference, relative to that of the operator.
    """
    whole = reduce(add, _several(operator))
    if whole.rows != whole.columns:
        return False
    return bool((whole - whole.mH).log_norm() <= whole.log_norm() + math.log(tolerance))


def _several(operator: Any) -> Sequence[TTMatrix]:
    return [operator] if isinstance(operator, TTMatrix) else list(operator)
