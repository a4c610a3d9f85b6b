"""Linear systems A x = b in train format."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ttnet.errors import ConfigError, ShapeError
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import LocalProblem, Operator
from ttnet.optim.problems.energy import LocalQuadratic, QuadraticForm
from ttnet.tensor_train import TensorTrain
from ttnet.tt_matrix import TTMatrix

Kind = Literal["symmetric", "normal", "galerkin"]
KINDS = ("symmetric", "normal", "galerkin")

Preconditioner = Callable[[Tensor, Visit], Tensor]
"""Maps a block and its visit to an approximate solution of the local system for it."""


class LinearSystem:
    """The system A x = b as something to minimize, or to solve block by block.

    "symmetric": A is Hermitian and positive; the energy x^H A x / 2 - Re b^H x has its minimum at the
    solution. "normal": the residual |A x - b|^2 / 2 for any A, up to a constant; the condition number is
    squared. "galerkin": any square A; each block solves the projected system. Its loss is the relative
    residual of that, which is no bound of the residual of x: watch it (`solve` does), and use the solver
    "gmres" with `accept=None`.

    Args:
        A: The operator.
        b: The right-hand side. With one mode more than A has rows, its last mode counts right-hand sides,
            which are solved for together.
        kind: See above.
        preconditioner: For the conjugate gradients of "symmetric" and "normal".

    Raises:
        ShapeError: `A` and `b` do not fit.
        ConfigError: An unknown `kind`, or one that takes no rectangular A.
    """

    def __init__(
        self,
        A: TTMatrix,
        b: TensorTrain,
        *,
        kind: Kind = "symmetric",
        preconditioner: Preconditioner | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"kind: expected one of {KINDS}, got {kind!r}")
        if kind != "normal" and A.rows != A.columns:
            raise ConfigError(
                f"kind: expected 'normal' for a rectangular A of rows {A.rows} and columns {A.columns}, got "
                f"{kind!r}"
            )
        if b.ndim == len(A.cores) + 1:
            A = _with_identity(A, b.shape[-1])
        if A.rows != b.shape:
            raise ShapeError(
                f"b: expected the row modes of A, {A.rows} (or those and one more mode that counts "
                f"right-hand sides), got {b.shape}"
            )
        self.A, self.b, self.kind = A, b, kind
        self._preconditioner = preconditioner
        if kind == "normal":
            self._form = QuadraticForm(A.mH @ A, A.mH @ b)
        else:
            self._form = QuadraticForm(A, b)

    def local(self, cores: Sequence[Tensor], visit: Visit) -> LocalProblem:
        """See `Problem.local`."""
        form = self._form.local(cores, visit)
        if self.kind == "galerkin":
            return LocalGalerkin(form)
        if self._preconditioner is not None:
            return _Preconditioned(form, self._preconditioner, visit)
        return form


class LocalGalerkin:
    """The projected system of one block; its loss is |A x - b| / |b| there."""

    def __init__(self, form: LocalQuadratic) -> None:
        if form.vector is None:
            raise ConfigError("b: expected a right-hand side, got None")
        self.multiply: Operator = form.multiply
        self.as_matrix: Callable[[], Tensor] = form.as_matrix
        self.vector: Tensor = form.vector
        self._size = float(torch.linalg.vector_norm(self.vector)) or 1.0

    def value(self, block: Tensor) -> float:
        """Relative residual of the projected system."""
        return float(torch.linalg.vector_norm(self.multiply(block) - self.vector)) / self._size

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """Relative residual, and the residual itself in the place of a gradient."""
        residual = self.multiply(block) - self.vector
        return float(torch.linalg.vector_norm(residual)) / self._size, residual

    def curvature(self, block: Tensor) -> Operator:
        """The operator: with the residual as gradient, a Newton step is a step towards the solution."""
        del block
        return self.multiply


class _Preconditioned(LocalQuadratic):
    def __init__(self, form: LocalQuadratic, preconditioner: Preconditioner, visit: Visit) -> None:
        super().__init__(form.operators, form.vector)
        self._preconditioner = preconditioner
        self._visit = visit

    def precondition(self, block: Tensor) -> Tensor:
        return self._preconditioner(block, self._visit)


def _with_identity(A: TTMatrix, size: int) -> TTMatrix:
    like = A.cores[0]
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return TTMatrix([*A.cores, eye.reshape(1, size, size, 1)])
