"""Sites: the cores of a train that need not be formed, a plain one, a sum or an entrywise product.

A sweep needs four things of core A of shape (l, n, r), read as a map between its two bonds. A sum has a
block-diagonal core and a product a Kronecker-like one; both do the four without ever being written out.

    absorb_left    (q, l) -> (q n, r)        carry--[A]--
                                                     |
    absorb_right   (r, p) -> (l, n p)             --[A]--carry
                                                     |
    close_left     (l n, c) -> (r, c)        the adjoint of A, which closes an inner product from the left
    close_right    (c, n r) -> (c, l)        the same from the right
"""

from typing import Protocol

import torch
from torch import Tensor


class Site(Protocol):
    """One core of a train, formed or not."""

    left_rank: int
    mode: int
    right_rank: int

    def absorb_left(self, carry: Tensor) -> Tensor:
        """Carry (q, l) times the core: (q n, r)."""
        ...

    def absorb_right(self, carry: Tensor) -> Tensor:
        """The core times carry (r, p): (l, n p)."""
        ...

    def close_left(self, block: Tensor) -> Tensor:
        """The adjoint of the (l n, r) unfolding times `block` (l n, c): (r, c)."""
        ...

    def close_right(self, block: Tensor) -> Tensor:
        """`block` (c, n r) times the adjoint of the (l, n r) unfolding: (c, l)."""
        ...

    def to(self, dtype: torch.dtype) -> "Site":
        """The same site in another dtype."""
        ...


class DenseSite:
    """A core that is there.

    Args:
        core: Shape (l, n, r).
    """

    def __init__(self, core: Tensor) -> None:
        self.left_rank, self.mode, self.right_rank = core.shape
        self.wide = core.reshape(self.left_rank, -1)
        self.tall = core.reshape(-1, self.right_rank)

    def absorb_left(self, carry: Tensor) -> Tensor:
        """Carry (q, l) times the core: (q n, r)."""
        return (carry @ self.wide).view(-1, self.right_rank)

    def absorb_right(self, carry: Tensor) -> Tensor:
        """The core times carry (r, p): (l, n p)."""
        return (self.tall @ carry).view(self.left_rank, -1)

    def close_left(self, block: Tensor) -> Tensor:
        """The adjoint of the (l n, r) unfolding times `block` (l n, c): (r, c)."""
        return self.tall.mH @ block

    def close_right(self, block: Tensor) -> Tensor:
        """`block` (c, n r) times the adjoint of the (l, n r) unfolding: (c, l)."""
        return block @ self.wide.mH

    def to(self, dtype: torch.dtype) -> "DenseSite":
        """The same site in another dtype."""
        return DenseSite(self.wide.to(dtype).view(self.left_rank, self.mode, self.right_rank))


class SumSite:
    """The block-diagonal core of a sum, also at its ends: the boundary vectors add the blocks up.

    Args:
        cores: Core i of shape (l_i, n, r_i), one for each term.
    """

    def __init__(self, cores: list[Tensor]) -> None:
        self.cores = cores
        self.lefts = [core.shape[0] for core in cores]
        self.rights = [core.shape[2] for core in cores]
        self.left_rank, self.mode, self.right_rank = sum(self.lefts), cores[0].shape[1], sum(self.rights)
        same = len(set(self.lefts)) == len(set(self.rights)) == 1
        self.stack = torch.stack(cores) if same else None

    def absorb_left(self, carry: Tensor) -> Tensor:
        """Carry (q, l) times the core: (q n, r)."""
        rows = carry.shape[0]
        if self.stack is not None:
            count, left, mode, right = self.stack.shape
            blocks = carry.view(rows, count, left).transpose(0, 1) @ self.stack.view(count, left, -1)
            return blocks.view(count, rows, mode, right).permute(1, 2, 0, 3).reshape(rows * mode, -1)
        parts = carry.split(self.lefts, 1)
        blocks = [
            (part @ core.reshape(part.shape[1], -1)).view(rows * self.mode, -1)
            for part, core in zip(parts, self.cores, strict=True)
        ]
        return torch.cat(blocks, 1)

    def absorb_right(self, carry: Tensor) -> Tensor:
        """The core times carry (r, p): (l, n p)."""
        if self.stack is not None:
            count, left, mode, right = self.stack.shape
            blocks = self.stack.view(count, left * mode, right) @ carry.reshape(count, right, -1)
            return blocks.view(count * left, -1)
        parts = carry.split(self.rights, 0)
        blocks = [
            (core.reshape(-1, core.shape[2]) @ part).view(core.shape[0], -1)
            for part, core in zip(parts, self.cores, strict=True)
        ]
        return torch.cat(blocks, 0)

    def close_left(self, block: Tensor) -> Tensor:
        """The adjoint of the (l n, r) unfolding times `block` (l n, c): (r, c)."""
        if self.stack is not None:
            count, left, mode, right = self.stack.shape
            blocks = self.stack.view(count, left * mode, right).mH @ block.view(count, left * mode, -1)
            return blocks.view(count * right, -1)
        parts = block.split([left * self.mode for left in self.lefts], 0)
        closed = [
            core.reshape(-1, core.shape[2]).mH @ part for part, core in zip(parts, self.cores, strict=True)
        ]
        return torch.cat(closed, 0)

    def close_right(self, block: Tensor) -> Tensor:
        """`block` (c, n r) times the adjoint of the (l, n r) unfolding: (c, l)."""
        rows = block.shape[0]
        parts = block.view(rows, self.mode, self.right_rank).split(self.rights, 2)
        closed = [
            part.reshape(rows, -1) @ core.reshape(core.shape[0], -1).mH
            for part, core in zip(parts, self.cores, strict=True)
        ]
        return torch.cat(closed, 1)

    def to(self, dtype: torch.dtype) -> "SumSite":
        """The same site in another dtype."""
        return SumSite([core.to(dtype) for core in self.cores])


class ProductSite:
    """The core of an entrywise product, bonds (a, b) merged.

    Args:
        a: Shape (r, n, r').
        b: Shape (s, n, s').
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b
        self.left_rank = a.shape[0] * b.shape[0]
        self.mode = a.shape[1]
        self.right_rank = a.shape[2] * b.shape[2]
        self.slices_a, self.slices_b = a.transpose(0, 1), b.transpose(0, 1)  # (n, r, r'), (n, s, s')

    def absorb_left(self, carry: Tensor) -> Tensor:
        """Carry (q, l) times the core: (q n, r)."""
        (r, n, r_), (s, _, s_) = self.a.shape, self.b.shape
        half = (carry.reshape(-1, s) @ self.b.reshape(s, -1)).view(-1, r, n, s_)
        half = half.permute(2, 0, 3, 1).reshape(n, -1, r) @ self.slices_a  # (n, q s', r')
        return half.view(n, -1, s_, r_).permute(1, 0, 3, 2).reshape(-1, r_ * s_)

    def absorb_right(self, carry: Tensor) -> Tensor:
        """The core times carry (r, p): (l, n p)."""
        (r, n, r_), (s, _, s_) = self.a.shape, self.b.shape
        half = (self.a.reshape(-1, r_) @ carry.reshape(r_, -1)).view(r, n, s_, -1)
        half = self.slices_b @ half.permute(1, 2, 0, 3).reshape(n, s_, -1)  # (n, s, r p)
        return half.view(n, s, r, -1).permute(2, 1, 0, 3).reshape(r * s, -1)

    def close_left(self, block: Tensor) -> Tensor:
        """The adjoint of the (l n, r) unfolding times `block` (l n, c): (r, c)."""
        (r, n, r_), (s, _, s_) = self.a.shape, self.b.shape
        half = self.slices_b.mH @ block.view(r, s, n, -1).permute(2, 1, 0, 3).reshape(n, s, -1)
        half = half.view(n, s_, r, -1).permute(2, 0, 1, 3).reshape(r * n, -1)  # (r n, s' c)
        return (self.a.reshape(-1, r_).mH @ half).view(r_ * s_, -1)

    def close_right(self, block: Tensor) -> Tensor:
        """`block` (c, n r) times the adjoint of the (l, n r) unfolding: (c, l)."""
        (r, n, r_), (s, _, s_) = self.a.shape, self.b.shape
        half = block.view(-1, n, r_, s_).permute(1, 0, 2, 3).reshape(n, -1, s_) @ self.slices_b.mH
        half = half.view(n, -1, r_, s).permute(1, 3, 0, 2).reshape(-1, n * r_)  # (c s, n r')
        return (half @ self.a.reshape(r, -1).mH).view(-1, s, r).transpose(1, 2).reshape(-1, r * s)

    def to(self, dtype: torch.dtype) -> "ProductSite":
        """The same site in another dtype."""
        return ProductSite(self.a.to(dtype), self.b.to(dtype))
