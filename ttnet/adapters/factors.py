"""From cores to the two factors of each adapted module, as functions of the cores.

    in      layer     matrix     (head)   out
    [0]--r1--[1]--r2--[2]-- ... --[d-2]--[d-1]
     A   |   `--- middle ---'    `-- tail ---'

The chain is cut right of the last `in` axis: A (in, r) is shared by all matrices that read the same rows (and
slices, where structural axes stand left of the cut), and B (r, out) = alpha middle tail is the rest, so that
dW = A B has rank r at most. Where samples of a batch read different slices, the middle is kept apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ttnet._typing import CoresLike
from ttnet.adapters.axes import side_of
from ttnet.adapters.structure import Block, Combo, Key, Layout
from ttnet.linalg import working_dtype


@dataclass(frozen=True)
class Mixture:
    """The right factor of one module where each sample reads its own slices of the middle.

    Attributes:
        parts: For each part of the module its middle (combos, r, s), scale folded in, and its tail (s, out).
        groups: In how many groups of columns the parts alternate.
        rows: For each sample the index of its combo, shape (batch,).
    """

    parts: tuple[tuple[Tensor, Tensor], ...]
    groups: int
    rows: Tensor

    def to(self, dtype: torch.dtype) -> "Mixture":
        """The same in another dtype."""
        parts = tuple((middle.to(dtype), tail.to(dtype)) for middle, tail in self.parts)
        return Mixture(parts, self.groups, self.rows)

    def apply(self, hidden: Tensor) -> Tensor:
        """Multiply x A by the right factor of each sample.

        Args:
            hidden: x A, the rows of one sample after those of another, shape (n, r).

        Returns:
            Shape (n, out).
        """
        grouped = hidden.view(len(self.rows), -1, hidden.shape[1])
        outs = []
        for middle, tail in self.parts:
            inner = torch.bmm(grouped, middle.index_select(0, self.rows))
            outs.append(torch.mm(inner.view(len(hidden), -1), tail))
        return fuse(outs, self.groups)


Pair = tuple[Tensor, Tensor | Mixture]
"""The factor A (in, r) of one module, and B (r, out) or a mixture of them."""


@dataclass(frozen=True)
class Factors:
    """The factors of all adapted modules.

    Attributes:
        left: For each of the layout's left keys A, shape (in, r).
        right: For each right key the B of its group of sites, shape (sites, r, out), alpha folded in; empty
            for a batch of mixed samples.
        middle: For such a batch, for each right key the middle of its group, shape (sites, combos, r, s).
        tail: For such a batch, for each right key its tail (s, out).
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...] = ()
    middle: tuple[Tensor, ...] = ()
    tail: tuple[Tensor, ...] = ()

    def to(self, dtype: torch.dtype) -> "Factors":
        """The same in another dtype."""
        fields = (self.left, self.right, self.middle, self.tail)
        return Factors(*(tuple(factor.to(dtype) for factor in each) for each in fields))

    def pairs(self, layout: Layout, rows: Tensor | None = None) -> list[Pair]:
        """For each module A and B.

        Args:
            layout: The layout they were built for.
            rows: For a batch of mixed samples the index of each one's combo.
        """
        right: list[Tensor | tuple[Tensor, Tensor]] = [self.left[0]] * len(layout.sites)
        for key, members in enumerate(layout.groups):
            own = (self.right or self.middle)[key].unbind(0)
            for site, factor in zip(members, own, strict=True):
                right[site] = factor if rows is None else (factor, self.tail[key])
        found: list[Pair] = []
        for members in layout.modules.values():
            groups = layout.sites[members[0]].groups
            parts = [right[k] for k in members]
            joined = fuse(parts, groups) if rows is None else Mixture(tuple(parts), groups, rows)  # pyright: ignore[reportArgumentType]
            found.append((self.left[layout.left_of[members[0]]], joined))
        return found


def build_factors(
    cores: CoresLike, layout: Layout, scale: float, combos: tuple[Combo, ...] = ((),), *, mixed: bool = False
) -> Factors:
    """The factors of all adapted modules: one batched product for each distinct right end.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        layout: What each matrix reads of them.
        scale: The factor of dW.
        combos: Places on the run-time axes; only one unless `mixed`.
        mixed: Whether samples read different combos, so that middle and tail stay apart.

    Returns:
        Factors in float32 or better.
    """
    middle, tails = _middle(cores, layout, scale, combos), right_ends(cores, layout)
    count, rank, inner = middle.shape
    pieces = []
    first = 0
    for members in layout.groups:
        size = len(members) * len(combos)
        pieces.append(middle[first : first + size] if size < count else middle)
        first += size
    # With A stored by columns the gradient of x A is (dh^T x)^T, up to four times faster than x^T dh.
    lefts = tuple(left.t().contiguous().t() for left in left_ends(cores, layout))
    if mixed:
        kept = tuple(piece.view(-1, len(combos), rank, inner) for piece in pieces)
        return Factors(lefts, middle=kept, tail=tails)
    right = (
        torch.mm(piece.reshape(-1, inner), tail).view(-1, rank, tail.shape[1])
        for piece, tail in zip(pieces, tails, strict=True)
    )
    return Factors(lefts, tuple(right))


def site_factors(
    cores: CoresLike, layout: Layout, scale: float, site: int, combo: Combo = ()
) -> tuple[Tensor, Tensor]:
    """The factors A (in, r) and B (r, out) of one adapted matrix, in float32 or better."""
    left = _one_left(cores, layout, layout.left_keys[layout.left_of[site]])
    right = _one_right(cores, layout, site)
    middle = _site_middle(cores, layout, site, combo)
    if middle is not None:
        right = torch.mm(middle, right)
    return left, right if scale == 1 else right * scale


def module_factors(
    cores: CoresLike, layout: Layout, scale: float, members: Sequence[int], combo: Combo = ()
) -> tuple[Tensor, Tensor]:
    """The factors A (in, r) and B (r, out) of the sites that make one module, in float32 or better.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        layout: What each matrix reads of them.
        scale: The factor of dW.
        members: Indices of the sites, one of `layout.modules.values()`.
        combo: Places on the run-time axes.
    """
    pairs = [site_factors(cores, layout, scale, site, combo) for site in members]
    return pairs[0][0], fuse([right for _, right in pairs], layout.sites[members[0]].groups)


def site_mixture(
    cores: CoresLike, layout: Layout, scale: float, site: int, combos: Sequence[Combo]
) -> tuple[Tensor, Tensor]:
    """The middle (combos, r, s), scale folded in, and the tail (s, out) of one adapted matrix."""
    middles = [_site_middle(cores, layout, site, combo) for combo in combos]
    middle = torch.stack([each for each in middles if each is not None])
    return middle if scale == 1 else middle * scale, _one_right(cores, layout, site)


def fuse(parts: Sequence[Tensor], groups: int) -> Tensor:
    """The columns of a fused module from those of its parts, which alternate in groups.

    Args:
        parts: Tensors (..., out_p).
        groups: Number of groups; each holds out_p / groups columns of each part in turn.

    Returns:
        Shape (..., sum of out_p).
    """
    if len(parts) == 1:
        return parts[0]
    if groups == 1:
        return torch.cat(list(parts), -1)
    return torch.cat([part.unflatten(-1, (groups, -1)) for part in parts], -1).flatten(-2)


def left_ends(cores: CoresLike, layout: Layout) -> tuple[Tensor, ...]:
    """For each of the layout's left keys A, shape (in, r)."""
    return tuple(_one_left(cores, layout, key) for key in layout.left_keys)


def right_ends(cores: CoresLike, layout: Layout) -> tuple[Tensor, ...]:
    """For each of the layout's right keys the tail (s, out)."""
    modes = layout.pattern.right_modes
    if modes == (("head",), ("out",)):
        # The widths are prefixes of one another: one product serves all.
        whole = _right_chain(cores, layout, max(layout.right_keys))
        return tuple(whole if width == whole.shape[1] else whole[:, :width] for width, _ in layout.right_keys)
    return tuple(_right_chain(cores, layout, key) for key in layout.right_keys)


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
        `before` does. With run-time axes there is one for each combination of places, as "name [task=rte]".
    """
    pair = [[core.detach().double() for core in cores] for cores in (before, after)]
    lefts = [left_ends(cores, layout) for cores in pair]
    tails = [right_ends(cores, layout) for cores in pair]
    middles = [_middle(cores, layout, 1.0, layout.combos) for cores in pair]
    left_r = [_r_factor(torch.cat(both, 1)) for both in zip(*lefts, strict=True)]
    right_r = [_r_factor(torch.cat(both).T) for both in zip(*tails, strict=True)]
    rows, columns = middles[0].shape[1:]
    group_of = {site: k for k, members in enumerate(layout.groups) for site in members}
    errors: dict[tuple[int, int], float] = {}
    chosen = [(site, combo) for site in layout.order for combo in range(len(layout.combos))]
    for k, (site, combo) in enumerate(chosen):
        own, other = left_r[layout.left_of[site]], right_r[group_of[site]]
        whole = own[:, :rows] @ middles[0][k] @ other[:, :columns].T
        change = whole - own[:, rows:] @ middles[1][k] @ other[:, columns:].T
        norm, error = float(whole.norm()), float(change.norm())
        errors[site, combo] = error / norm if norm else (float("inf") if error else 0.0)
    return {
        f"{site.name}{describe_combo(layout, combo)}": errors[k, j]
        for k, site in enumerate(layout.sites)
        for j, combo in enumerate(layout.combos)
    }


def describe_combo(layout: Layout, combo: Combo) -> str:
    """Such as " [task=rte]"; empty without run-time axes."""
    named = (f"{axis.name}={(axis.labels or ())[k]}" for axis, k in zip(layout.runtime, combo, strict=True))
    return f" [{', '.join(named)}]" if combo else ""


def _middle(cores: CoresLike, layout: Layout, scale: float, combos: tuple[Combo, ...]) -> Tensor:
    """The middle of each site's chain times `scale`, shape (sites * combos, r, s), in the layout's order."""
    chain: Tensor | None = None
    first = len(layout.pattern.left_modes)
    for core, index in zip(cores[first:], layout.slice_indices(cores[0].device, combos), strict=False):
        chosen = _worked(core).index_select(1, index).transpose(0, 1)
        chain = chosen if chain is None else torch.bmm(chain, chosen)
    if chain is None:
        rank = cores[first].shape[0]
        eye = torch.eye(rank, dtype=working_dtype(cores[0].dtype), device=cores[0].device)
        chain = eye.expand(len(layout.sites), -1, -1)
    return chain if scale == 1 else chain * scale


def _site_middle(cores: CoresLike, layout: Layout, site: int, combo: Combo) -> Tensor | None:
    first = len(layout.pattern.left_modes)
    chosen = [
        _worked(core)[:, layout.place(mode, layout.sites[site], combo)]
        for mode, core in zip(layout.pattern.middle_modes, cores[first:], strict=False)
    ]
    return reduce(torch.mm, chosen) if chosen else None


def _one_left(cores: CoresLike, layout: Layout, key: Key) -> Tensor:
    width, places = key
    blocks, remaining = layout.feature_blocks["in"][width], iter(places)
    chain: Tensor | None = None
    for mode, core in zip(layout.pattern.left_modes, cores, strict=False):
        part = _part(core, _range(mode, blocks, remaining))
        rank = part.shape[-1]
        chain = part[0] if chain is None else torch.mm(chain, part.reshape(part.shape[0], -1)).view(-1, rank)
    return _in_order(chain, layout, "in", blocks)  # pyright: ignore[reportArgumentType]


def _one_right(cores: CoresLike, layout: Layout, site: int) -> Tensor:
    group = next(k for k, members in enumerate(layout.groups) if site in members)
    return _right_chain(cores, layout, layout.right_keys[group])


def _right_chain(cores: CoresLike, layout: Layout, key: Key) -> Tensor:
    width, places = key
    blocks, remaining = layout.feature_blocks["out"][width], iter(reversed(places))
    modes = layout.pattern.right_modes
    chain: Tensor | None = None
    for mode, core in zip(reversed(modes), reversed(list(cores[-len(modes) :])), strict=True):
        part = _part(core, _range(mode, blocks, remaining))
        rank = part.shape[0]
        chain = part[..., 0] if chain is None else torch.mm(part.reshape(-1, part.shape[-1]), chain)
        chain = chain.reshape(rank, -1)
    return _in_order(chain, layout, "out", blocks)  # pyright: ignore[reportArgumentType]


def _part(core: Tensor, block: Block) -> Tensor:
    core = _worked(core)
    return core if block == (0, core.shape[1]) else core[:, slice(*block)]


def _range(mode: Sequence[str], blocks: Mapping[str, Block], places: Iterator[int]) -> Block:
    """What one matrix reads of a mode: a range of features, or one structural slice."""
    if side_of(mode[0]) is not None:
        return blocks[mode[0]]
    place = next(places)
    return place, place + 1


def _in_order(chain: Tensor, layout: Layout, side: str, blocks: Mapping[str, Block]) -> Tensor:
    """Bring the features of one side, in the pattern's order in `chain`, into the order of their factors."""
    wanted = layout.pattern.feature_axes(side)
    present = [axis for axis in layout.pattern.axes if axis in wanted]
    if tuple(present) == wanted:
        return chain
    sizes = [blocks[axis][1] - blocks[axis][0] for axis in present]
    order = [present.index(axis) for axis in wanted]
    if side == "in":
        return chain.view(*sizes, -1).permute(*order, len(order)).reshape(-1, chain.shape[1])
    return chain.view(-1, *sizes).permute(0, *(k + 1 for k in order)).reshape(chain.shape[0], -1)


def _worked(core: Tensor) -> Tensor:
    return core.to(working_dtype(core.dtype))


def _r_factor(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix, mode="r")[1]
