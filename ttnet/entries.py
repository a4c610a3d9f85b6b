"""Vectors of many entries of a train, grown from both ends until they meet.

    1--[0]--[1]--> l (rows, r)      (rows, r) r <--[2]--[3]--1        value = l . r
        |    |                                     |    |

Neighboring cores are fused while the fused core is small against the batch: one product does the work of
several. Entries that share a prefix or a suffix share its vector. The rows of a step are sorted by the index
of its core, so that one matrix product serves all rows of an index. Autograd is the matter of `ttnet.gather`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from ttnet.cores import merge_bond
from ttnet.errors import ShapeError

_WORKSPACE = 64 * 2**20  # bytes that the vectors of one chunk may take
_ROWS_PER_GROUP = 32  # below this a matrix product is mostly overhead


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a batch is worked on: mode sizes, runs of modes that are fused, rows in a chunk."""

    shape: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    chunk: int

    @classmethod
    def choose(
        cls, shape: tuple[int, ...], ranks: tuple[int, ...], batch: int, itemsize: int, chunk: int | None
    ) -> "Layout":
        """Fuse what is small against the batch, then take as many rows as the workspace holds."""
        rows = chunk or _rows(shape, ranks, itemsize)
        last = len(shape)
        # The two ends have a boundary rank of 1: their fused cores are tables of vectors.
        table = min(batch // 2, _WORKSPACE // (8 * itemsize * max(ranks)))
        head = _run(shape, 0, 1, table)
        tail = max(_run(shape, last - 1, -1, table), 1) if head < last else 0
        tail = min(tail, last - head)
        groups = [tuple(range(head))]
        k = head
        while k < last - tail:
            cap = min(batch // (2 * max(ranks)), min(rows, batch) // _ROWS_PER_GROUP)
            length = min(_run(shape, k, 1, cap), last - tail - k)
            groups.append(tuple(range(k, k + length)))
            k += length
        if tail:
            groups.append(tuple(range(last - tail, last)))
        sizes = [_product(shape, group) for group in groups]
        bonds = [1, *(ranks[group[-1] + 1] for group in groups)]
        chunk = chunk or _rows(sizes[1:-1], bonds, itemsize)
        # Chunks of one size: a short last one would have short groups.
        even = -(-batch // max(-(-batch // chunk), 1))
        return cls(shape=shape, groups=tuple(groups), chunk=max(even, 1))

    def fuse(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """The fused cores, at least two of them; differentiable."""
        fused = [reduce(_fuse, [cores[k] for k in group]) for group in self.groups]
        return fused if len(fused) > 1 else [*fused, fused[0].new_ones(1, 1, 1)]

    def codes(self, indices: Tensor) -> list[Tensor]:
        """Index of every fused core, each (rows,), from indices (rows, d) that are checked on the way."""
        columns = indices.T.long().contiguous()
        sizes = torch.tensor(self.shape, device=columns.device)
        low, high = torch.aminmax(columns, dim=1)
        if bool(((low < -sizes) | (high >= sizes)).any()):
            k = int(((low < -sizes) | (high >= sizes)).nonzero()[0])
            bad = int(low[k]) if int(low[k]) < -self.shape[k] else int(high[k])
            raise ShapeError(
                f"indices: expected {-self.shape[k]} to {self.shape[k] - 1} in column {k}, got {bad}"
            )
        if bool((low < 0).any()):
            columns = torch.where(columns < 0, columns + sizes.unsqueeze(1), columns)
        codes = []
        for group in self.groups:
            code = columns[group[0]]
            for k in group[1:]:
                code = torch.add(columns[k], code, alpha=self.shape[k])
            codes.append(code)
        return codes if len(codes) > 1 else [*codes, torch.zeros_like(codes[0])]


def _fuse(left: Tensor, right: Tensor) -> Tensor:
    return merge_bond(left, right).flatten(1, 2)


def _rows(shape: Sequence[int], ranks: Sequence[int], itemsize: int) -> int:
    """Rows whose vectors fit into the workspace, but enough of them to fill the groups of every mode."""
    fitting = _WORKSPACE // (itemsize * max(ranks) * (len(shape) + 4))
    return max(fitting, _ROWS_PER_GROUP * min(max(shape, default=1), 256))


def _run(shape: tuple[int, ...], start: int, step: int, cap: int) -> int:
    """Number of modes from `start` on whose product is at most `cap`; at least one."""
    length, size, k = 1, shape[start], start + step
    while 0 <= k < len(shape) and size * shape[k] <= cap:
        size, length, k = size * shape[k], length + 1, k + step
    return length


def _product(shape: tuple[int, ...], group: tuple[int, ...]) -> int:
    return reduce(lambda size, k: size * shape[k], group, 1)


@dataclass(frozen=True)
class Step:
    """Growth of vectors by one core: which vectors, sorted by the index of the core, and how many of each."""

    core: int
    parents: Tensor
    is_permutation: bool
    indices: list[int]  # of the core, those that occur
    counts: list[int]  # rows of each


class Side:
    """Plan of one side of a chunk: rows of the table of the end core, then one step for each further core."""

    def __init__(self, core: int, code: Tensor, size: int) -> None:
        self.end = core
        self.rows: Tensor | None = None  # of the table, those that occur; None for all
        self.position = code  # of each entry among the vectors
        self.size = size  # number of vectors
        self.steps: list[Step] = []
        if 2 * size > code.numel():
            self.rows, self.position = _unique(code, size)
            self.size = self.rows.numel()
        self.start_size = self.size

    def extend(self, core: int, code: Tensor, mode: int) -> None:
        """Plan one more step; entries with equal vectors so far and an equal index share the new one."""
        entries = code.numel()
        is_permutation = False
        if 2 * self.size <= entries:
            unique, position = _unique(code * self.size + self.position, self.size * mode)
            parents, counts = unique % self.size, torch.bincount(unique // self.size, minlength=mode)
        else:
            # Too many vectors to find shared ones: every entry gets its own.
            order = _order(code, mode)
            parents, counts = self.position.index_select(0, order), torch.bincount(code, minlength=mode)
            is_permutation = self.size == entries
            places = torch.arange(entries, device=order.device)
            position = torch.empty_like(order).index_copy_(0, order, places)
        self.position = position
        self.size = parents.numel()
        present = counts.nonzero().flatten()
        self.steps.append(Step(core, parents, is_permutation, present.tolist(), counts[present].tolist()))


def _order(code: Tensor, bound: int) -> Tensor:
    """Stable order of integers below `bound`."""
    if code.device.type == "cpu" and bound < 2**16:
        # numpy sorts 16-bit integers by radix.
        return torch.from_numpy(np.argsort(code.numpy().astype(np.uint16), kind="stable"))
    return torch.sort(code, stable=True)[1]


def _unique(labels: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Sorted distinct labels, and of each label its place among them."""
    if bound > 32 * labels.numel():
        if labels.device.type != "cpu":
            return torch.unique(labels, return_inverse=True)
        # numpy sorts integers several times faster.
        found, inverse = np.unique(labels.numpy(), return_inverse=True)
        return torch.from_numpy(found), torch.from_numpy(inverse)
    # A table of all possible labels is faster than a sort.
    seen = labels.new_zeros(bound, dtype=torch.bool)
    seen[labels] = True
    unique = seen.nonzero().flatten()
    place = labels.new_empty(bound)
    place[unique] = torch.arange(unique.numel(), device=labels.device)
    return unique, place.index_select(0, labels)


def meet(codes: list[Tensor], sizes: list[int]) -> tuple[Side, Side]:
    """Grow both sides until they meet; the one with fewer vectors grows first, where sharing pays most."""
    left, right = Side(0, codes[0], sizes[0]), Side(len(codes) - 1, codes[-1], sizes[-1])
    low, high = 1, len(codes) - 2
    while low <= high:
        if left.size <= right.size:
            left.extend(low, codes[low], sizes[low])
            low += 1
        else:
            right.extend(high, codes[high], sizes[high])
            high -= 1
    return left, right


class Chain:
    """The matrices of one side: (mode, rank towards the end, rank towards the meeting bond) of every core."""

    def __init__(self, cores: Sequence[Tensor], *, is_left: bool) -> None:
        self.matrices = [core.permute(1, 0, 2) if is_left else core.permute(1, 2, 0) for core in cores]
        self._buffers: dict[int, Tensor] = {}

    def grow(self, side: Side) -> tuple[list[Tensor], Tensor]:
        """The vectors that enter each step, in the order of its rows, and the vectors at the meeting bond."""
        table, inputs = self.matrices[side.end].squeeze(1), []
        vectors = table if side.rows is None else table.index_select(0, side.rows)
        for step in side.steps:
            rows = vectors.index_select(0, step.parents)
            vectors = _grouped(rows, self.matrices[step.core], step)
            inputs.append(rows)
        return inputs, vectors

    def vectors(self, side: Side) -> Tensor:
        """The vector of every entry at the meeting bond, in memory that the next call uses again."""
        table = self.matrices[side.end].squeeze(1)
        vectors = table if side.rows is None else table.index_select(0, side.rows)
        for step in side.steps:
            _, left, right = self.matrices[step.core].shape
            rows = self._buffer(0, step.parents.numel(), left)
            torch.index_select(vectors, 0, step.parents, out=rows)
            out = self._buffer(1, len(rows), right)
            vectors = _grouped(rows, self.matrices[step.core], step, out)
        entries = self._buffer(0, side.position.numel(), vectors.shape[1])
        return torch.index_select(vectors, 0, side.position, out=entries)

    def _buffer(self, which: int, rows: int, columns: int) -> Tensor:
        """Memory that has been touched before: new pages cost as much as the products."""
        if which not in self._buffers or self._buffers[which].numel() < rows * columns:
            self._buffers[which] = self.matrices[0].new_empty(rows * columns)
        return self._buffers[which][: rows * columns].view(rows, columns)

    def pull(self, side: Side, inputs: list[Tensor], gradient: Tensor, into: list[Tensor | None]) -> None:
        """Add to `into`, laid out as the matrices, the gradients of the cores from that of the vectors."""
        for depth in range(len(side.steps) - 1, -1, -1):
            step, rows = side.steps[depth], inputs[depth]
            target = into[step.core]
            if target is not None:
                _add_outer(target, rows, gradient, step)
            outer = [side.end, *(earlier.core for earlier in side.steps[:depth])]
            if all(into[core] is None for core in outer):
                return
            back = _grouped(gradient, self.matrices[step.core].mT, step)
            size = side.steps[depth - 1].parents.numel() if depth else side.start_size
            if step.is_permutation:
                gradient = torch.empty_like(back).index_copy_(0, step.parents, back)
            else:
                gradient = back.new_zeros(size, back.shape[1]).index_add_(0, step.parents, back)
        table = into[side.end]
        if table is not None:
            table = table.squeeze(1)
            table.add_(gradient) if side.rows is None else table.index_add_(0, side.rows, gradient)


def _grouped(rows: Tensor, matrices: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
    """Rows (m, l) times the matrix (l, r) of their index: (m, r)."""
    out = rows.new_empty(rows.shape[0], matrices.shape[2]) if out is None else out
    parts = matrices.unbind()
    for index, x, y in zip(step.indices, rows.split(step.counts), out.split(step.counts), strict=True):
        torch.mm(x, parts[index], out=y)
    return out


def _add_outer(target: Tensor, rows: Tensor, gradient: Tensor, step: Step) -> None:
    """Add to the matrix (l, r) of each index the product of its rows (m, l) and gradients (m, r)."""
    for index, x, y in zip(step.indices, rows.split(step.counts), gradient.split(step.counts), strict=True):
        target[index].addmm_(x.mT, y)


def packed(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same cores, stored by index, so that each of their matrices is contiguous."""
    return [core.resolve_conj().permute(1, 0, 2).contiguous().permute(1, 0, 2) for core in cores]
