"""The local problem of gathered entries, whose Hessian is one small matrix for each pair of indices.

For points that are indices the output of sample b is left_b^T X[:, i_b, j_b, :] right_b: samples of
different (i, j) share no unknown. The Gauss-Newton matrix is block diagonal, with blocks of size l r, and
its inverse is a batch of small Cholesky factorizations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet.optim.local.problem import Operator

LARGEST_BLOCK = 512
"""Largest l r for which the blocks of the Hessian are formed."""


@dataclass(frozen=True)
class Groups:
    """Samples sorted by the pair of indices that they read.

    Attributes:
        order: Shape (batch,), the samples, those of one pair beside each other.
        pair: Shape (batch,), the pair i n + j of each of them.
        slots: Shape (pairs, most), positions in `order` of each pair's samples, padded with the batch size.
    """

    order: Tensor
    pair: Tensor
    slots: Tensor

    @classmethod
    def sort(cls, first: Tensor, second: Tensor | None, sizes: tuple[int, int]) -> "Groups":
        """Sort samples by their indices in one or two modes of these sizes."""
        key = first if second is None else first * sizes[1] + second
        order = torch.argsort(key, stable=True)
        pair = key[order]
        counts = torch.bincount(pair, minlength=sizes[0] * sizes[1])
        offsets = torch.cumsum(counts, 0) - counts
        place = torch.arange(int(counts.max()), device=key.device)
        slots = torch.where(place < counts.unsqueeze(1), offsets.unsqueeze(1) + place, len(key))
        return cls(order, pair, slots)


class LocalEntries:
    """The loss of one block X (l, m, n, r) at indexed entries.

    Args:
        left: Left environments, shape (batch, l).
        right: Right environments, shape (batch, r).
        groups: The samples sorted by pair.
        evaluate: Loss of outputs (batch, 1), in the order of the samples.
        is_quadratic: Whether it is quadratic in the outputs.
        l2: Weight of |X|^2 / 2.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        groups: Groups,
        evaluate: Callable[[Tensor], Tensor],
        *,
        is_quadratic: bool,
        l2: float,
    ) -> None:
        self._groups = groups
        self._rows = (left[groups.order].unsqueeze(2) * right[groups.order].unsqueeze(1)).flatten(1)
        self._evaluate = evaluate
        self._l2 = l2
        self.is_quadratic = is_quadratic
        self._factor: Tensor | None = None

    def outputs(self, block: Tensor) -> Tensor:
        """Values at the points, shape (batch, 1)."""
        table = _by_pair(block)
        values = (self._rows * table[self._groups.pair]).sum(1)
        return torch.empty_like(values).index_copy(0, self._groups.order, values).unsqueeze(1)

    def pull_back(self, weights: Tensor, shape: Sequence[int]) -> Tensor:
        """The adjoint of `outputs`: weights (batch, 1) to a block."""
        weighted = self._rows * weights[self._groups.order]
        table = weighted.new_zeros(len(self._groups.slots), weighted.shape[1])
        table.index_add_(0, self._groups.pair, weighted)
        return _from_pairs(table, shape)

    def value(self, block: Tensor) -> float:
        """The loss."""
        with torch.no_grad():
            return float(self._evaluate(self.outputs(block))) + self._penalty(block)

    def value_and_gradient(self, block: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        loss, slope = self._slope(self.outputs(block))
        gradient = self.pull_back(slope, block.shape)
        return loss + self._penalty(block), gradient + self._l2 * block if self._l2 else gradient

    def curvature(self, block: Tensor) -> Operator:
        """J^T H J + l2, H the diagonal Hessian of a loss that is a sum over samples."""
        weights = self._sample_curvature(block)
        self._factor = self._factorize(weights)

        def apply(direction: Tensor) -> Tensor:
            image = self.pull_back(weights * self.outputs(direction), direction.shape)
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
        _, slope = self._slope(self.outputs(block))
        signs = torch.randint(0, 2, (len(slope), 1), generator=generator).to(slope) * 2 - 1
        return self.pull_back(slope * signs, block.shape)

    def _slope(self, outputs: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            free = outputs.detach().requires_grad_()
            loss = self._evaluate(free)
            (slope,) = torch.autograd.grad(loss, free)
        return float(loss.detach()), slope

    def _sample_curvature(self, block: Tensor) -> Tensor:
        with torch.enable_grad():
            free = self.outputs(block).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._evaluate(free), free, create_graph=True)
            (weights,) = torch.autograd.grad(slope.sum(), free)
        return weights

    def _factorize(self, weights: Tensor) -> Tensor | None:
        """Cholesky factors (pairs, l r, l r) of the blocks of the Hessian, with a small ridge."""
        size = self._rows.shape[1]
        if size > LARGEST_BLOCK:
            return None
        padded = torch.cat([self._rows, self._rows.new_zeros(1, size)])[self._groups.slots]
        weighted = torch.cat([weights[self._groups.order], weights.new_zeros(1, 1)])[self._groups.slots]
        blocks = (padded * weighted.clamp_min(0)).mT @ padded
        diagonal = torch.diagonal(blocks, dim1=1, dim2=2)
        ridge = self._l2 + 1e-11 * float(diagonal.amax()) + torch.finfo(blocks.dtype).tiny
        diagonal += ridge
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
