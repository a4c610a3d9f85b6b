"""The local problem of gathered entries, whose Hessian is one small matrix for each pair of indices.

For points that are indices the output of sample b is left_b^T X[:, i_b, j_b, :] right_b: samples of
different (i, j) share no unknown. The Gauss-Newton matrix is block diagonal, with blocks of size l r, and
its inverse is a batch of small Cholesky factorizations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ttnet.optim.local.problem import Operator

LARGEST_BLOCK = 512
"""Largest l r for which the blocks of the Hessian are formed."""


class SampleLoss(Protocol):
    """A loss of outputs (batch, 1), one for each sample."""

    def evaluate(self, outputs: Tensor) -> Tensor:
        """The loss, a scalar tensor."""
        ...

    def slope(self, outputs: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        ...

    def sample_curvature(self, outputs: Tensor) -> Tensor:
        """Second derivative with respect to each output, real, shape (batch, 1)."""
        ...

    def bend(self, outputs: Tensor) -> Operator:
        """The Hessian as a real-linear map of outputs."""
        ...


@dataclass(frozen=True)
class Groups:
    """Samples sorted by the pair of indices that they read, in rows of one width: each row has one pair.

    Attributes:
        slots: Shape (rows, width), the samples of each row, padded with the batch size.
        owner: Shape (rows,), the pair i n + j of each row; None where row p has pair p.
        pairs: Number of pairs.
        place: Shape (batch,), where the flattened slots hold each sample.
    """

    slots: Tensor
    owner: Tensor | None
    pairs: int
    place: Tensor

    @classmethod
    def sort(cls, first: Tensor, second: Tensor | None, sizes: tuple[int, int]) -> "Groups":
        """Sort samples by their indices in one or two modes of these sizes.

        A pair with many more samples than the others takes several rows, so that little is padded.
        """
        key = first if second is None else first * sizes[1] + second
        pairs = sizes[0] * sizes[1]
        order = torch.argsort(key, stable=True)
        counts = torch.bincount(key, minlength=pairs)
        width = min(int(counts.max()), 2 * -(-len(key) // int((counts > 0).sum())))
        rows_of = ((counts + width - 1) // width).clamp_min(1)
        owner = torch.repeat_interleave(torch.arange(pairs, device=key.device), rows_of)
        within = torch.arange(len(owner), device=key.device) - (torch.cumsum(rows_of, 0) - rows_of)[owner]
        start = (torch.cumsum(counts, 0) - counts)[owner] + within * width
        ahead = torch.arange(width, device=key.device)
        filled = (within * width).unsqueeze(1) + ahead < counts[owner].unsqueeze(1)
        sample = order[(start.unsqueeze(1) + ahead).clamp_max(len(key) - 1)]
        slots = torch.where(filled, sample, len(key))
        place = torch.empty_like(order)
        place[slots[filled]] = filled.flatten().nonzero()[:, 0]
        return cls(slots, None if len(owner) == pairs else owner, pairs, place)

    def padded(self, samples: Tensor) -> Tensor:
        """Samples (batch, n) in their slots, shape (rows, width, n); zeros where there are none."""
        return torch.cat([samples, samples.new_zeros(1, samples.shape[1])])[self.slots]

    def rows(self, table: Tensor) -> Tensor:
        """A table (pairs, ...) with the entry of its pair for each row."""
        return table if self.owner is None else table[self.owner]

    def summed(self, rows: Tensor) -> Tensor:
        """The sum over the rows (rows, ...) of each pair."""
        if self.owner is None:
            return rows
        return rows.new_zeros(self.pairs, *rows.shape[1:]).index_add_(0, self.owner, rows)


class LocalEntries:
    """The loss of one block X (l, m, n, r) at indexed entries.

    Args:
        left: Left environments, shape (batch, l).
        right: Right environments, shape (batch, r).
        groups: The samples sorted by pair.
        loss: Of the outputs, in the order of the samples.
        is_quadratic: Whether it is quadratic in the outputs.
        l2: Weight of |X|^2 / 2.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        groups: Groups,
        loss: SampleLoss,
        *,
        is_quadratic: bool,
        l2: float,
    ) -> None:
        self._groups = groups
        # One row of the Jacobian for each sample, (rows, width, l r).
        self._jacobian = (groups.padded(left).unsqueeze(3) * groups.padded(right).unsqueeze(2)).flatten(2)
        self._loss = loss
        self._l2 = l2
        self.is_quadratic = is_quadratic
        self._factor: Tensor | None = None
        self._sloped: tuple[Tensor, Tensor] | None = None

    def outputs(self, block: Tensor) -> Tensor:
        """Values at the points, shape (batch, 1)."""
        table = self._groups.rows(_by_pair(block)).unsqueeze(2)
        return torch.bmm(self._jacobian, table).reshape(-1, 1)[self._groups.place]

    def pull_back(self, weights: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of `outputs`: weights (batch, 1) to a block."""
        rows = torch.bmm(self._groups.padded(weights).mT, self._jacobian.conj())[:, 0]
        return _from_pairs(self._groups.summed(rows), shape)

    def value(self, block: Tensor) -> float:
        """The loss."""
        with torch.no_grad():
            return float(self._loss.evaluate(self.outputs(block))) + self._penalty(block)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        loss, slope = self._loss.slope(self.outputs(block))
        gradient = self.pull_back(slope, block.shape)
        return loss + self._penalty(block), gradient + self._l2 * block if self._l2 else gradient

    def curvature(self, block: Tensor) -> Operator:
        """J^H H J + l2, H the diagonal Hessian of a loss that is a sum over samples."""
        outputs = self.outputs(block)
        weights = self._loss.sample_curvature(outputs)
        self._factor = self._factorize(weights)
        # A complex output has two second derivatives, which need not agree.
        bend = self._loss.bend(outputs) if outputs.is_complex() else weights.mul

        def apply(direction: Tensor) -> Tensor:
            image = self.pull_back(bend(self.outputs(direction)), direction.shape)
            return image + self._l2 * direction if self._l2 else image

        return apply

    def precondition(self, block: Tensor) -> Tensor:
        """The inverse of the Hessian that `curvature` has seen, where its blocks are small enough."""
        if self._factor is None:
            return block
        table = _by_pair(block).unsqueeze(2)
        return _from_pairs(torch.cholesky_solve(table, self._factor).squeeze(2), block.shape)

    def sign_flipped_gradient(self, block: Tensor, generator: torch.Generator) -> Tensor:
        """The gradient with a random sign for each sample's residual."""
        if self._sloped is None or self._sloped[0] is not block:
            self._sloped = block, self._loss.slope(self.outputs(block))[1]
        slope = self._sloped[1]
        signs = torch.randint(0, 2, (len(slope), 1), generator=generator).to(slope) * 2 - 1
        return self.pull_back(slope * signs, block.shape)

    def _factorize(self, weights: Tensor) -> Tensor | None:
        """Cholesky factors (pairs, l r, l r) of the blocks of the Hessian, with a small ridge."""
        if self._jacobian.shape[2] > LARGEST_BLOCK:
            return None
        weighted = self._jacobian * self._groups.padded(weights.clamp_min(0))
        blocks = self._groups.summed(torch.bmm(weighted.mH, self._jacobian))
        diagonal = torch.diagonal(blocks, dim1=1, dim2=2)
        diagonal += self._l2 + 1e-11 * float(diagonal.real.amax()) + torch.finfo(blocks.dtype).tiny
        factor, failed = torch.linalg.cholesky_ex(blocks)
        return None if bool(failed.any()) else factor

    def _penalty(self, block: Tensor) -> float:
        return 0.5 * self._l2 * float(torch.linalg.vector_norm(block)) ** 2 if self._l2 else 0.0


def _by_pair(block: Tensor) -> Tensor:
    """Block (l, m, n, r) or (l, m, r) as a table (m n, l r)."""
    rows, columns = block.shape[0], block.shape[-1]
    return block.reshape(rows, -1, columns).transpose(0, 1).reshape(-1, rows * columns)


def _from_pairs(table: Tensor, shape: Sequence[int]) -> Tensor:
    rows, columns = shape[0], shape[-1]
    return table.reshape(-1, rows, columns).transpose(0, 1).reshape(*shape)
