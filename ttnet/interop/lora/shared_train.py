"""Matrices in low-rank form, and the train that stands for all of them.

X_k = L_k R_k   ~   A[rows of k] . G1[place] . G2[place] ... . T[columns of k]
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.adapters.structure import Block


class Term:
    """One matrix X = left right that the train shall hold.

    Args:
        left: Shape (in, r), or None for the identity.
        right: Shape (r, out), or the dense matrix (in, out) where `left` is None.
        rows: Its rows of the `in` mode.
        columns: Its columns of `out`, or of `head` and `out` taken as one mode.
        places: Its slice of each structural mode.

    Attributes:
        left: Orthonormal columns, or None.
        right: The rest, so that |X| = |right|.
    """

    def __init__(
        self, left: Tensor | None, right: Tensor, *, rows: Block, columns: Block, places: Sequence[int]
    ) -> None:
        self.rows, self.columns, self.places = rows, columns, tuple(places)
        if left is not None and left.shape[1] >= left.shape[0]:
            left, right = None, left @ right
        if left is not None:
            left, triangle = torch.linalg.qr(left)
            right = triangle @ right
        self.left, self.right = left, right

    @cached_property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(torch.linalg.vector_norm(self.right))

    def project(self, basis: Tensor) -> Tensor:
        """basis^T X, for a basis (in, s), as its factor basis^T left of shape (s, r)."""
        return basis.T if self.left is None else basis.T @ self.left

    def times(self, matrix: Tensor) -> Tensor:
        """X matrix, for a matrix (out, s)."""
        product = self.right @ matrix
        return product if self.left is None else self.left @ product

    def column_space(self) -> Tensor:
        """A matrix (in, s) with X X^T = s s^T, of few columns."""
        if self.left is None:
            return self.right
        return self.left @ linalg.positive_lq(self.right)[0]

    def distance(self, a: Tensor, b: Tensor) -> float:
        """|X - a b| in the Frobenius norm, a of shape (in, s), b of shape (s, out)."""
        if self.left is None:
            return float(torch.linalg.vector_norm(self.right - a @ b))
        count = self.left.shape[1]
        left = torch.linalg.qr(torch.cat([self.left, a], 1), mode="r")[1]
        right = torch.linalg.qr(torch.cat([self.right, b]).T, mode="r")[1]
        change = left[:, :count] @ right[:, :count].T - left[:, count:] @ right[:, count:].T
        return float(torch.linalg.vector_norm(change))


@dataclass
class SharedTrain:
    """The train, cut into what widths read.

    Attributes:
        left: For each range of rows A (in, r).
        inner: Cores (r, n, r') of the structural modes.
        head: The core (r, heads, s) of the `head` mode, if there is one.
        right: For each range of columns T (s, out); with a head, one (s, head_dim) for all.
    """

    left: dict[Block, Tensor]
    inner: list[Tensor]
    head: Tensor | None
    right: dict[Block, Tensor]

    def cores(self) -> list[Tensor]:
        """The cores of the train."""
        left = torch.cat(list(self.left.values()))[None]
        last = list(self.right.values())
        right = last[0] if self.head is not None else torch.cat(last, 1)
        return [left, *self.inner, *([] if self.head is None else [self.head]), right[:, :, None]]

    def balanced(self) -> "SharedTrain":
        """The same train with cores of equal norms."""
        norms = [float(torch.linalg.vector_norm(core)) for core in self.cores()]
        if min(norms) == 0:
            return self
        mean = math.exp(math.fsum(map(math.log, norms)) / len(norms))
        factors = iter([mean / norm for norm in norms])
        return self.map(lambda core, factor: core * factor, factors)

    def map(self, change: Callable[..., Tensor], *each: Iterator[float]) -> "SharedTrain":
        """Change every core; widths of one mode are changed alike.

        Args:
            change: A function of a core, and of one value of each further iterator.
            each: Iterators with a value for each core.
        """
        values = [list(one) for one in each]
        count = len(self.cores())
        extra = [[one[k] for one in values] for k in range(count)]
        return SharedTrain(
            {own: change(core, *extra[0]) for own, core in self.left.items()},
            [change(core, *extra[1 + k]) for k, core in enumerate(self.inner)],
            None if self.head is None else change(self.head, *extra[-2]),
            {own: change(core, *extra[-1]) for own, core in self.right.items()},
        )

    def tail(self, columns: Block) -> Tensor:
        """What stands right of the structural modes, shape (r, out)."""
        if self.head is None:
            return self.right[columns]
        (last,) = self.right.values()
        heads = self.head[:, : (columns[1] - columns[0]) // last.shape[1]]
        return (heads.reshape(-1, last.shape[0]) @ last).reshape(heads.shape[0], -1)

    def middle(self, places: Sequence[int]) -> Tensor:
        """The product of one slice of each inner core."""
        basis = next(iter(self.left.values()))
        product = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        for core, place in zip(self.inner, places, strict=True):
            product = product @ core[:, place]
        return product

    def errors(self, terms: Iterable[Term]) -> list[float]:
        """The exact Frobenius error |X - A M T| of each term."""
        return [
            term.distance(self.left[term.rows] @ self.middle(term.places), self.tail(term.columns))
            for term in terms
        ]


def distinct(terms: Sequence[Term], name: str) -> list[Block]:
    """The different `rows`, or `columns`, of some terms."""
    return sorted({getattr(term, name) for term in terms})
