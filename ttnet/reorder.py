"""Other orders and other groupings of the modes: permute, reshape, quantics."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import modes_of
from ttnet.cores import absorb_left, left_unfold, merge_bond, ranks_of, shape_of
from ttnet.errors import ConfigError, ShapeError
from ttnet.gauge import move_center, orthogonalize
from ttnet.matrix_cores import check_modes, split_modes
from ttnet.random import check_shape
from ttnet.rounding import check_caps, truncate
from ttnet.truncation import Truncation, TruncationReport, select_rank, tail_weights

_LARGEST_CORE = 2**24  # entries of a core that a reshape may pass through


def permute(
    cores: CoresLike, dims: Sequence[int], truncation: Truncation | None = None
) -> tuple[Cores, TruncationReport]:
    """Reorder the modes, as `torch.permute`, by swaps of neighbors with an SVD each.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        dims: For each new mode the old one that becomes it.
        truncation: Which singular values are kept, at every swap and, where no swap has come by a bond, in
            the end; by default all above roundoff. It holds for all bonds of the result. `rtol` and `atol`
            bound its error: each cut gets its share.

    Returns:
        The cores, in the canonical gauge with center 0 (without a truncation the order and its reverse are
        exact, and left in the gauge they are in), and the report. Errors of several swaps of a bond may add
        up: `error_estimate` is the root of the summed weights, `error_bound` the sum of the errors of all
        cuts.

    Raises:
        ShapeError: `dims` is no permutation of the modes.
        RankError: `truncation.max_rank` is a list that the bonds of the result cannot have.
        ConfigError: `truncation` is none.
    """
    count = len(cores)
    order = [d + count if isinstance(d, int) and d < 0 else d for d in dims]
    if sorted(order) != list(range(count)):
        raise ShapeError(f"dims: expected a permutation of 0 to {count - 1}, got {tuple(dims)}")
    _check_wish(truncation, [cores[k].shape[1] for k in order])
    if order == list(range(count)):
        return _only_round(cores, truncation)
    if order == list(reversed(range(count))):
        return _only_round([core.permute(2, 1, 0) for core in reversed(cores)], truncation)
    place = [order.index(k) for k in range(count)]
    swaps = _bubble(place)
    left = [] if truncation is None else sorted(set(range(count - 1)) - set(swaps))
    cutter = _Cutter(cores, truncation, len(swaps) + len(left), count - 1)
    work, center = list(orthogonalize(cores, swaps[0])), swaps[0]
    for bond in swaps:
        # The center goes to the nearer of the two cores that swap.
        target = bond if center <= bond else bond + 1
        work, center = list(move_center(work, center, target)), target
        block = merge_bond(work[bond].to(cutter.dtype), work[bond + 1].to(cutter.dtype)).transpose(1, 2)
        work[bond], work[bond + 1] = cutter.split(block, bond)
        center = bond + 1
    for bond in left:
        work, center = list(move_center(work, center, bond)), bond + 1
        work[bond], work[center] = cutter.cut(work[bond], work[center], bond)
    permuted = move_center(work, center, 0)
    return permuted, cutter.report(cores, permuted)


def _bubble(place: list[int]) -> list[int]:
    """Bonds whose swaps sort `place`, in the order of an insertion sort, which moves the center little."""
    place, swaps = list(place), []
    for end in range(1, len(place)):
        k = end
        while k > 0 and place[k - 1] > place[k]:
            place[k - 1], place[k] = place[k], place[k - 1]
            swaps.append(k - 1)
            k -= 1
    return swaps


def reshape(
    cores: CoresLike, shape: Sequence[int], truncation: Truncation | None = None
) -> tuple[Cores, TruncationReport]:
    """Split and merge modes, in row-major order as `torch.reshape`.

    Where a boundary between new modes lies at none between old ones, the modes around it are merged first and
    then split; that core must not be too large.

    The gradient is projected on the directions that are kept, so that null directions, which are dropped by
    default, have none; with ``Truncation()`` they are kept.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        shape: New mode sizes, of the same product; one of them may be -1, which stands for what is left.
        truncation: Which singular values are kept, at all bonds of the result; by default all above roundoff
            where a mode is split, and merging is exact.

    Returns:
        The cores and the report, whose ranks before are those of the new bonds without truncation.

    Raises:
        ShapeError: The product differs, or a core in between would be too large.
        RankError: `truncation.max_rank` is a list that the bonds of the result cannot have.
        ConfigError: `truncation` is none.
    """
    old = shape_of(cores)
    new = _resolve_shape(shape, math.prod(old))
    if math.prod(old) != math.prod(new):
        raise ShapeError(
            f"shape: expected {math.prod(old)} entries as in {old}, got {math.prod(new)} in {new}"
        )
    _check_wish(truncation, new)
    groups = align([(n,) for n in old], [(n,) for n in new])
    merged = []
    for olds, _ in groups:
        size = cores[olds[0]].shape[0] * math.prod(old[k] for k in olds) * cores[olds[-1]].shape[2]
        if len(olds) > 1:
            check_size(size, olds)
        block = reduce(lambda a, b: merge_bond(a, b).flatten(1, 2), [cores[k] for k in olds])
        merged.append(block)
    splits = sum(len(news) - 1 for _, news in groups)
    if not splits:
        return _only_round(merged, truncation)
    cuts = splits if truncation is None else len(new) - 1
    cutter = _Cutter(cores, truncation, cuts, len(new) - 1)
    work, done = list(orthogonalize(merged, 0)), []
    for at, (_, news) in enumerate(groups):
        center = work[at].to(cutter.dtype)
        for k in news[:-1]:
            block = center.reshape(center.shape[0], new[k], -1, center.shape[2])
            core, center = cutter.split(block, k)
            done.append(core)
            center = center.to(cutter.dtype)
        done.append(center)
        if at + 1 == len(work):
            break
        following = work[at + 1].to(cutter.dtype)
        if truncation is None:
            q, r = linalg.positive_qr(left_unfold(center))
            done[-1], work[at + 1] = q.reshape(*center.shape[:2], -1), absorb_left(r, following)
        else:
            done[-1], work[at + 1] = cutter.cut(center, following, news[-1])
    done = [core.to(cores[0].dtype) for core in done]
    return tuple(done), cutter.report(done, done)


def reshape_matrix(
    cores: CoresLike, rows: Sequence[int], columns: Sequence[int], truncation: Truncation | None = None
) -> tuple[Cores, TruncationReport]:
    """Split and merge the modes of a TT-matrix, rows and columns each in row-major order.

    Args:
        cores: Core k of shape (r_k, m_k, n_k, r_{k+1}).
        rows: New row modes, of the same product.
        columns: New column modes, of the same product, as many.
        truncation: As for `reshape`.

    Returns:
        The cores and the report.

    Raises:
        ShapeError: A product differs, or the counts do, or a core in between would be too large.
        RankError: `truncation.max_rank` is a list that the bonds of the result cannot have.
    """
    old, new = modes_of(cores), tuple(zip(*check_modes(rows, columns), strict=True))
    for name, before, after in zip(
        ("rows", "columns"), zip(*old, strict=True), zip(*new, strict=True), strict=True
    ):
        if math.prod(before) != math.prod(after):
            raise ShapeError(f"{name}: expected a product of {math.prod(before)} as of {before}, got {after}")
    merged = []
    for olds, news in align(old, new):
        size = math.prod(n for k in olds for n in old[k]) * cores[olds[0]].shape[0] * cores[olds[-1]].shape[3]
        if len(olds) > 1:
            check_size(size, olds)
        block = reduce(_merge_pairs, [cores[k] for k in olds])
        sides = [[new[k][side] for k in news] for side in (0, 1)]
        # (l, m m' ..., n n' ..., r) -> (l, m n m' n' ..., r)
        split = block.reshape(block.shape[0], *sides[0], *sides[1], block.shape[3])
        order = [1 + k + side * len(news) for k in range(len(news)) for side in (0, 1)]
        merged.append(split.permute(0, *order, split.ndim - 1).reshape(block.shape[0], -1, block.shape[3]))
    reshaped, report = reshape(merged, [m * n for m, n in new], truncation)
    return split_modes(reshaped, rows, columns), report


def _merge_pairs(left: Tensor, right: Tensor) -> Tensor:
    """Two cores of a TT-matrix as one, rows before columns."""
    block = torch.tensordot(left, right, 1)  # (l, m, n, m', n', r)
    return block.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _resolve_shape(shape: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Mode sizes with the number that a -1 stands for."""
    sizes: list[int] = [shape] if isinstance(shape, int) else list(shape)
    if sizes.count(-1) == 1:
        known = math.prod(n for n in sizes if n != -1)
        if known > 0 and count % known == 0:
            sizes[sizes.index(-1)] = count // known
    return check_shape(sizes)


def check_size(size: int, modes: Sequence[int]) -> None:
    """Refuse a core that a reshape would pass through and that is too large.

    Args:
        size: Entries of the core.
        modes: The modes that it merges.

    Raises:
        ShapeError: More entries than a reshape may make.
    """
    if size > _LARGEST_CORE:
        raise ShapeError(
            f"shape: expected boundaries near those between the old modes, but {modes} would become one core "
            f"of {size} entries; keep more of the boundaries"
        )


def align(
    old: Sequence[tuple[int, ...]], new: Sequence[tuple[int, ...]]
) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of old and of new modes with equal products.

    Args:
        old: Sizes of each core, (n_k,) of a train or (m_k, n_k) of a TT-matrix.
        new: The same of the result, of the same products.

    Returns:
        For each run the numbers of the old cores and of the new ones.
    """
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        olds, news, a, b = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if j == len(new) or (i < len(old) and math.prod(a) < math.prod(b)):
                olds.append(i)
                a, i = _times(a, old[i]), i + 1
            else:
                news.append(j)
                b, j = _times(b, new[j]), j + 1
        groups.append((olds, news))
    # Modes of size 1 at the end have no partner.
    olds, news = groups[-1]
    olds.extend(range(i, len(old)))
    news.extend(range(j, len(new)))
    return groups


def _times(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def to_qtt(
    cores: CoresLike, base: int = 2, truncation: Truncation | None = None
) -> tuple[Cores, TruncationReport]:
    """Quantics: split every mode of size base^m into m modes of size `base`, the coarsest first.

    A mode of size 1 stays one mode of size 1.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}), every n_k a power of `base`.
        base: Size of the new modes.
        truncation: Which singular values are kept, at all bonds of the result; by default all above roundoff.

    Returns:
        The cores and the report.

    Raises:
        ConfigError: `base` is below 2.
        ShapeError: A mode that is no power of `base`.
    """
    if isinstance(base, bool) or not isinstance(base, int) or base < 2:
        raise ConfigError(f"base: expected an integer of at least 2, got {base!r}")
    shape: list[int] = []
    for k, n in enumerate(shape_of(cores)):
        power = round(math.log(n, base))
        if base**power != n:
            raise ShapeError(
                f"cores: expected a power of base={base} as size of mode {k}, got {n}; pad the mode"
            )
        shape.extend([base] * power if power else [1])
    return reshape(cores, shape, truncation)


def from_qtt(cores: CoresLike, shape: Sequence[int]) -> Cores:
    """Merge the modes of a quantics train back into modes of sizes `shape`, exactly.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        shape: Sizes of the merged modes, each a product of neighboring n_k.

    Returns:
        The cores.

    Raises:
        ShapeError: The modes cannot be merged into that shape.
    """
    old, new = shape_of(cores), check_shape(shape)
    if math.prod(old) != math.prod(new) or any(
        len(news) > 1 for _, news in align([(n,) for n in old], [(n,) for n in new])
    ):
        raise ShapeError(f"shape: expected products of neighboring modes of {old}, got {new}")
    return reshape(cores, new)[0]


def _check_wish(truncation: Truncation | None, shape: Sequence[int]) -> None:
    if truncation is not None:
        check_caps(truncation, tuple(shape))


class _Cutter:
    """SVDs that share one budget and keep account of what they discard.

    Args:
        cores: The train before.
        truncation: Which singular values are kept; by default all above roundoff.
        cuts: Number of cuts to come.
        bonds: Number of bonds of the result.
    """

    def __init__(self, cores: CoresLike, truncation: Truncation | None, cuts: int, bonds: int) -> None:
        self.dtype = linalg.working_dtype(cores[0].dtype)
        norm = orthogonalize([core.detach().to(self.dtype) for core in cores], 0)[0]
        self.norm = float(linalg.frobenius_norm(norm))
        eps = torch.finfo(cores[0].dtype).eps
        self.truncation = Truncation(rtol=20 * cuts * eps) if truncation is None else truncation
        # Errors of swaps are not orthogonal to each other: the shares add, not their squares.
        self.share = self.truncation.weight_budget(self.norm) / cuts**2
        self.errors: list[float] = []
        self.weights: dict[int, float] = {}
        self.before: dict[int, int] = {}
        self.storage = cores[0].dtype
        self.bonds = bonds

    def split(self, block: Tensor, bond: int) -> tuple[Tensor, Tensor]:
        """Split a block (l, m, n, r) that holds the norm; the right core will hold it."""
        left, m, n, right = block.shape
        u, s, vh = linalg.svd(block.reshape(left * m, n * right))
        at_bond = replace(self.truncation.at_bond(bond, self.bonds), rtol=None, atol=None)
        rank = select_rank(s, at_bond, max_weight=self.share)
        weight = float(tail_weights(s)[rank])
        self.errors.append(math.sqrt(weight))
        self.weights[bond] = self.weights.get(bond, 0.0) + weight
        self.before[bond] = s.numel()
        selected = s[:rank, None] * vh[:rank]
        if linalg.needs_gradient(block):
            # The same matrix, whose gradient also reaches the null directions.
            selected = u[:, :rank].mH @ block.reshape(left * m, n * right)
        a, b = u[:, :rank].reshape(left, m, rank), selected.reshape(rank, n, right)
        return a.to(self.storage), b.to(self.storage)

    def cut(self, core: Tensor, following: Tensor, bond: int) -> tuple[Tensor, Tensor]:
        """Cut the bond between a core that holds the norm and the next one, which will hold it."""
        left, carry = self.split(core.to(self.dtype).unsqueeze(3), bond)
        return left, absorb_left(carry.squeeze(2), following.to(carry.dtype))

    def report(self, before: CoresLike, after: CoresLike) -> TruncationReport:
        """The account, with the sum of all errors as the bound."""
        ranks = ranks_of(after)[1:-1]
        ranks_before = [self.before.get(k, r) for k, r in enumerate(ranks_of(before)[1:-1])]
        weights = [self.weights.get(k, 0.0) for k in range(self.bonds)]
        report = TruncationReport.from_weights(
            ranks_before, ranks, weights, norm=self.norm, dtype=self.storage
        )
        roundoff = (report.error_bound - report.error_estimate) * max(1.0, len(self.errors) / self.bonds)
        return replace(report, error_bound=math.fsum(self.errors) + roundoff)


def _only_round(cores: CoresLike, truncation: Truncation | None) -> tuple[Cores, TruncationReport]:
    """What needs no cut of its own, exactly or rounded."""
    if truncation is not None:
        return truncate(cores, truncation)
    working = linalg.working_dtype(cores[0].dtype)
    center = orthogonalize([core.detach().to(working) for core in cores], 0)[0]
    ranks = ranks_of(cores)[1:-1]
    norm = float(linalg.frobenius_norm(center))
    report = TruncationReport.from_weights(ranks, ranks, [0.0] * len(ranks), norm=norm, dtype=cores[0].dtype)
    return tuple(cores), report
