"""From cores to the two factors of each adapted matrix, as functions of the cores.

    in      layer     matrix     (head)   out
    [0]--r1--[1]--r2--[2]-- ... --[d-2]--[d-1]
     A   |   `------------- alpha, B -------'

The chain is cut right of `in`: A (in, r) is shared by all matrices with that input width, and B (r, out) is
the rest, with alpha folded in, so that dW = A B has rank r at most.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ttnet._typing import CoresLike
from ttnet.adapters.layout import Layout
from ttnet.linalg import working_dtype


@dataclass(frozen=True)
class Factors:
    """The factors of all adapted matrices.

    Attributes:
        left: For each input width A, shape (in, r).
        right: For each output width the B of its group of sites, shape (sites, r, out), alpha folded in.
    """

    left: dict[int, Tensor]
    right: dict[int, Tensor]

    def to(self, dtype: torch.dtype) -> "Factors":
        """The same in another dtype."""
        return Factors(
            {width: factor.to(dtype) for width, factor in self.left.items()},
            {width: factor.to(dtype) for width, factor in self.right.items()},
        )

    def pairs(self, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        """For each site A (in, r) and B (r, out)."""
        right = {
            site: factor
            for width, members in layout.groups.items()
            for site, factor in zip(members, self.right[width].unbind(0), strict=True)
        }
        return [(self.left[site.in_features], right[k]) for k, site in enumerate(layout.sites)]


def build_factors(cores: CoresLike, layout: Layout, scale: float) -> Factors:
    """The factors of all adapted matrices: one batched product for each distinct output width.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        layout: What each matrix reads of them.
        scale: The factor of dW.

    Returns:
        Factors in float32 or better.
    """
    middle, tail = _middle(cores, layout, scale), right_tail(cores, layout)
    count, rank, inner = middle.shape
    right: dict[int, Tensor] = {}
    first = 0
    for width, members in layout.groups.items():
        own = middle[first : first + len(members)] if len(members) < count else middle
        columns = _columns(tail, layout, width)
        right[width] = torch.mm(own.reshape(-1, inner), columns).view(-1, rank, width)
        first += len(members)
    return Factors(left_factors(cores, layout), right)


def site_factors(cores: CoresLike, layout: Layout, scale: float, site: int) -> tuple[Tensor, Tensor]:
    """The factors A (in, r) and B (r, out) of one adapted matrix, in float32 or better."""
    own = layout.sites[site]
    start, end = layout.in_blocks[own.in_features]
    left = _worked(cores[0])[0, start:end]
    chosen = [_worked(core)[:, places[site]] for core, places in zip(cores[1:], layout.slices, strict=False)]
    right = _columns(right_tail(cores, layout), layout, own.out_features)
    if chosen:
        right = torch.mm(reduce(torch.mm, chosen), right)
    return left, right if scale == 1 else right * scale


def left_factors(cores: CoresLike, layout: Layout) -> dict[int, Tensor]:
    """For each input width A, shape (in, r)."""
    first = _worked(cores[0])[0]
    if len(layout.in_blocks) == 1:
        return dict.fromkeys(layout.in_blocks, first)
    return {width: first[start:end] for width, (start, end) in layout.in_blocks.items()}


def right_tail(cores: CoresLike, layout: Layout) -> Tensor:
    """`out`, with `head` contracted into it, shape (r, columns)."""
    last = _worked(cores[-1])[:, :, 0]
    if layout.head_dim is None:
        return last
    head = _worked(cores[-2])
    left, heads, right = head.shape
    return torch.mm(head.reshape(-1, right), last).view(left, heads * layout.head_dim)


def relative_errors(before: CoresLike, after: CoresLike, layout: Layout) -> dict[str, float]:
    """The relative Frobenius error of every adapted matrix that replacing `before` by `after` makes.

    The difference of two matrices A M T (with A and T shared between matrices) is A' M' T' with
    A' = [A_b, A_a], M' = diag(M_b, -M_a), T' = [T_b; T_a]. The norm is that of R_A M' R_T^T, where R_A and
    R_T come from the QR of A' and of T'^T: no dense matrix is formed.

    Args:
        before: The cores that are the truth.
        after: Cores of the same mode sizes, of any ranks.
        layout: What each matrix reads of them.

    Returns:
        For each adapted matrix |dW_before - dW_after| / |dW_before|; 0 where both vanish, infinity where only
        `before` does.
    """
    pair = [[core.detach().double() for core in cores] for cores in (before, after)]
    lefts = [left_factors(cores, layout) for cores in pair]
    tails = [right_tail(cores, layout) for cores in pair]
    middles = [_middle(cores, layout, 1.0) for cores in pair]
    left_r = {w: _r_factor(torch.cat([lefts[0][w], lefts[1][w]], 1)) for w in layout.in_blocks}
    right_r = {
        w: _r_factor(torch.cat([_columns(tail, layout, w) for tail in tails]).T) for w in layout.out_blocks
    }
    rows, columns = middles[0].shape[1:]
    errors = {}
    for k, site in enumerate(layout.sites[i] for i in layout.order):
        own, other = left_r[site.in_features], right_r[site.out_features]
        whole = own[:, :rows] @ middles[0][k] @ other[:, :columns].T
        change = whole - own[:, rows:] @ middles[1][k] @ other[:, columns:].T
        norm, error = float(whole.norm()), float(change.norm())
        errors[site.name] = error / norm if norm else (float("inf") if error else 0.0)
    return {site.name: errors[site.name] for site in layout.sites}


def _middle(cores: CoresLike, layout: Layout, scale: float) -> Tensor:
    """The structural part of each site's chain times `scale`, shape (sites, r, s), in the layout's order."""
    chain: Tensor | None = None
    for core, index in zip(cores[1:], layout.slice_indices(cores[0].device), strict=False):
        chosen = _worked(core).index_select(1, index).transpose(0, 1)
        chain = chosen if chain is None else torch.bmm(chain, chosen)
    if chain is None:
        eye = torch.eye(cores[0].shape[2], dtype=working_dtype(cores[0].dtype), device=cores[0].device)
        chain = eye.expand(len(layout.sites), -1, -1)
    return chain if scale == 1 else chain * scale


def _columns(tail: Tensor, layout: Layout, width: int) -> Tensor:
    start, end = layout.out_blocks[width]
    return tail if (start, end) == (0, tail.shape[1]) else tail[:, start:end]


def _worked(core: Tensor) -> Tensor:
    return core.to(working_dtype(core.dtype))


def _r_factor(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix, mode="r")[1]
