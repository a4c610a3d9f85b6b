"""One train for many matrices in low-rank form; no tensor of all of them is ever made.

First a TT-SVD from both ends: a basis A for each input width, T for each output width, and the small tensor
(r, layer, matrix, ..., r) of what is left between them. Then sweeps of alternating least squares on the error
of the matrices themselves: entries of the train that no matrix reads are free, and the sweeps use that.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.adapters.structure import Block
from ttnet.decompose import tt_svd
from ttnet.errors import RankError
from ttnet.interop.lora.alignment import align
from ttnet.interop.lora.refinement import Refinement
from ttnet.interop.lora.shared_train import SharedTrain, Term, distinct
from ttnet.truncation import Truncation, select_rank

_LARGEST = 2**28  # entries of the tensor between the two bases
_DENSE = 1024  # below this side bases are computed by a full SVD
_OVERSAMPLING, _ITERATIONS = 32, 6
_ABSENT = 1e-6  # directions below this part of a norm are roundoff of factors in float32
_RESOLVED = 1e-13  # squared relative error below which the sums of a sweep resolve no progress
_TRIAL = 3  # sweeps after which the better of two starts goes on
_PLAIN = 0.95  # part of its squared error that counts for the start without alignment
_PROGRESS = 1e-3  # the sweeps end when one lowers the squared error by less than this part


def fit_train(
    terms: Sequence[Term],
    sizes: Sequence[int],
    truncation: Truncation,
    *,
    head_dim: int | None = None,
    sweeps: int = 20,
) -> SharedTrain:
    """The train of given ranks or accuracy that is close to all matrices at once.

    Args:
        terms: The matrices, of one dtype, on the CPU or on one device.
        sizes: Size of each structural mode.
        truncation: Ranks and accuracy; tolerances are relative to the norm of all matrices together.
        head_dim: Width of a chunk where the train has a `head` mode.
        sweeps: Most sweeps of alternating least squares after the TT-SVD.

    Returns:
        The train.

    Raises:
        RankError: `max_rank` is a list of another length than there are bonds, or ranks without a cap are so
            large that the tensor between the bases would not fit.
    """
    total = math.fsum(term.norm**2 for term in terms)
    starts = [
        _Fit(terms, start, total, _best_effort(truncation, total))
        for start in _starts(terms, sizes, truncation, head_dim)
    ]
    if len(starts) > 1 and sweeps and not any(start.resolved for start in starts):
        for start in starts:
            start.improve(min(sweeps, _TRIAL))
    starts[-1].handicap = _PLAIN
    best = min(starts, key=_Fit.rank)
    best.improve(sweeps - best.done)
    return best.shared


class _Fit:
    """A train on its way to the best one of its ranks."""

    def __init__(
        self, terms: Sequence[Term], shared: SharedTrain, total: float, allowed: float | None
    ) -> None:
        self.terms, self.shared, self.total, self.allowed = terms, shared, total, allowed
        self.loss = math.fsum(error**2 for error in shared.errors(terms))
        self.refinement: Refinement | None = None
        self.done, self.stalled = 0, False
        # Where nothing is shared, aligned bases fit as well, by large entries that no matrix reads.
        self.handicap = 1.0

    @property
    def resolved(self) -> bool:
        """Whether sums of squares resolve no progress."""
        return self.loss <= _RESOLVED * self.total

    def rank(self) -> tuple[bool, int, float]:
        """What is compared: an error that is allowed comes first, then fewer entries, then the error."""
        if self.allowed is None:
            return False, 0, self.loss * self.handicap
        met = self.loss <= self.allowed
        size = sum(core.numel() for core in self.shared.cores()) if met else 0
        return not met, size, self.loss * self.handicap

    def improve(self, sweeps: int) -> None:
        """Sweep until there is no progress, at most so many times."""
        for _ in range(sweeps):
            if self.resolved or self.stalled:
                return
            if self.refinement is None:
                self.refinement = Refinement(self.terms, self.shared, self.loss)
            last, self.loss = self.loss, self.refinement.sweep()
            self.done += 1
            self.stalled = last - self.loss <= _PROGRESS * last


def _best_effort(truncation: Truncation, total: float) -> float | None:
    """The squared error that a tolerance allows, None without one."""
    budget = truncation.weight_budget(math.sqrt(total))
    return budget if math.isfinite(budget) else None


def _starts(
    terms: Sequence[Term], sizes: Sequence[int], truncation: Truncation, head_dim: int | None
) -> list[SharedTrain]:
    """Trains by TT-SVD from both ends; the first in the gauge of one width, where there are several."""
    budget = _Budget(terms, truncation, len(sizes) + 1 + (head_dim is not None))
    left = budget.bases(
        0, {rows: [t.column_space().T for t in terms if t.rows == rows] for rows in distinct(terms, "rows")}
    )
    projected = [term.project(left[term.rows]) for term in terms]
    pieces = [
        (torch.linalg.qr(a, mode="r")[1] if a.shape[0] > a.shape[1] else a) @ term.right
        for a, term in zip(projected, terms, strict=True)
    ]
    columns = distinct(terms, "columns")
    starts = []
    for aligned in (True, False) if len(left) > 1 or len(columns) > 1 else (False,):
        own = copy.copy(budget)
        head = None
        if head_dim is None:
            found = own.bases(
                own.bonds - 1,
                {c: [p for p, t in zip(pieces, terms, strict=True) if t.columns == c] for c in columns},
            )
            right: dict[Block, Tensor] = {c: basis.T for c, basis in found.items()}
        else:
            head, last = _head(pieces, head_dim, own, nested=aligned)
            right = {(0, head_dim): last}
        shared = SharedTrain(dict(left), [], head, right)
        inverses = {c: torch.linalg.pinv(shared.tail(c)) for c in columns}
        small = [a @ (t.right @ inverses[t.columns]) for a, t in zip(projected, terms, strict=True)]
        if not aligned or _to_one_gauge(shared, terms, small, own) or head is not None:
            _insert_inner(shared, terms, small, sizes, own)
            starts.append(shared)
    return starts


def _head(
    pieces: Sequence[Tensor], head_dim: int, budget: "_Budget", *, nested: bool
) -> tuple[Tensor, Tensor]:
    """The core (r, heads, s) and the tail (s, head_dim) behind the structural modes."""
    whole: Block = (0, head_dim)
    last = budget.bases(budget.bonds - 1, {whole: [p.reshape(-1, head_dim) for p in pieces]})[whole]
    size = last.shape[1]
    rows = [(p.reshape(-1, head_dim) @ last).reshape(p.shape[0], -1) for p in pieces]
    width = max(row.shape[1] for row in rows)
    if nested:
        # Matrices of fewer heads say nothing of the others: they add what the wider ones have not.
        stacks = {w: [row for row in rows if row.shape[1] == w] for w in {row.shape[1] for row in rows}}
        basis = budget.nested_basis(budget.bonds - 2, stacks)
    else:
        padded = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
        basis = budget.bases(budget.bonds - 2, {(0, width): padded})[(0, width)]
    return basis.T.reshape(-1, width // size, size), last.T


def _to_one_gauge(shared: SharedTrain, terms: Sequence[Term], small: list[Tensor], budget: "_Budget") -> bool:
    """Align the bases of the widths and the matrices between them; whether there was something to align."""
    caps = [budget.cap(bond) for bond in range(budget.bonds)]
    places = [term.places for term in terms]
    inner = len(places[0])
    # A matrix of zeros is met in any gauge, and would pull on that of the others.
    present = [k for k, matrix in enumerate(small) if bool(matrix.any())]
    maps = align(
        [small[k] for k in present],
        [terms[k].rows for k in present],
        [places[k] for k in present],
        caps[1 : inner + 1],
    )
    for rows, own in maps.items():
        shared.left[rows] = shared.left[rows] @ torch.linalg.inv(own)  # pyright: ignore[reportArgumentType]
    other = {}
    if shared.head is None:
        other = align(
            [small[k].T for k in present],
            [terms[k].columns for k in present],
            [places[k][::-1] for k in present],
            caps[:inner][::-1],
        )
    for columns, own in other.items():
        shared.right[columns] = torch.linalg.inv(own).T @ shared.right[columns]  # pyright: ignore[reportArgumentType]
    for k in present:
        if maps:
            small[k] = maps[terms[k].rows] @ small[k]
        if other:
            small[k] = small[k] @ other[terms[k].columns].T
    return bool(maps or other)


def _insert_inner(
    shared: SharedTrain,
    terms: Sequence[Term],
    small: Sequence[Tensor],
    sizes: Sequence[int],
    budget: "_Budget",
) -> None:
    """TT-SVD of the small tensor between the bases, whose outer cores go into them."""
    ranks = tuple(small[0].shape)
    shape = (ranks[0], *sizes, ranks[1])
    if math.prod(shape) > _LARGEST:
        raise RankError(
            f"truncation: without a lower cap the ranks at both ends are {ranks}, and the tensor between "
            f"them has the shape {shape}; give max_rank, or a larger tolerance"
        )
    like = small[0]
    middle = like.new_zeros(math.prod(sizes), ranks[0], ranks[1])
    counts = like.new_zeros(math.prod(sizes), 1, 1)
    for term, own in zip(terms, small, strict=True):
        index = 0
        for place, size in zip(term.places, sizes, strict=True):
            index = index * size + place
        middle[index] += own
        counts[index] += 1
    # Matrices that share a slice are met in their mean.
    tensor = (middle / counts.clamp(min=1)).movedim(0, 1).reshape(shape)
    cores, _ = tt_svd(tensor, budget.inner_truncation(shape))
    first, last = cores[0][0], cores[-1][:, :, 0]
    shared.left = {rows: basis @ first for rows, basis in shared.left.items()}
    shared.inner = list(cores[1:-1])
    if shared.head is not None:
        shared.head = torch.tensordot(last, shared.head, 1)
    else:
        shared.right = {own: last @ basis for own, basis in shared.right.items()}


class _Budget:
    """What the tolerances still allow, as the bonds are cut from both ends."""

    def __init__(self, terms: Sequence[Term], truncation: Truncation, bonds: int) -> None:
        self.truncation, self.bonds, self.uncut = truncation, bonds, bonds
        truncation.at_bond(0, bonds)  # the length of a list of ranks
        self.remaining = truncation.weight_budget(math.sqrt(math.fsum(term.norm**2 for term in terms)))

    def cap(self, bond: int) -> int | None:
        """Largest rank of a bond."""
        cap = self.truncation.at_bond(bond, self.bonds).max_rank
        return cap if isinstance(cap, int) else None

    def bases(self, bond: int, stacks: dict[Block, list[Tensor]]) -> dict[Block, Tensor]:
        """For each block of widths the orthonormal basis (width, r) of the rows of its stack."""
        truncation = self.truncation.at_bond(bond, self.bonds)
        cap = self.cap(bond)
        found = {own: _principal(torch.cat(stack), cap) for own, stack in stacks.items()}
        count = max(values.numel() for values, _ in found.values())
        squares = torch.stack(
            [
                torch.nn.functional.pad(values.square(), (0, count - values.numel()))
                for values, _ in found.values()
            ]
        ).sum(0)
        kept = select_rank(squares.sqrt(), truncation, max_weight=self.remaining / self.uncut)
        self.uncut -= 1
        if math.isfinite(self.remaining):
            self.remaining = max(self.remaining - float(squares[kept:].sum()), 0.0)
        return {
            own: torch.nn.functional.pad(vectors[:, :kept], (0, max(0, kept - vectors.shape[1])))
            for own, (_, vectors) in found.items()
        }

    def nested_basis(self, bond: int, stacks: dict[int, list[Tensor]]) -> Tensor:
        """An orthonormal basis (width, r) for rows of several lengths, of which the short ones are parts."""
        truncation, width = self.truncation.at_bond(bond, self.bonds), max(stacks)
        cap = self.cap(bond)
        allowed = self.remaining / self.uncut / len(stacks)
        basis = next(iter(stacks.values()))[0].new_zeros(0, width)
        for own in sorted(stacks, reverse=True):
            rows = torch.cat(stacks[own])
            total = float(rows.norm())
            if len(basis):
                known = basis[:, :own]
                rows = rows - rows @ torch.linalg.pinv(known) @ known
            room = None if cap is None else cap - len(basis)
            if room == 0:
                break
            values, vectors = _principal(rows, room)
            present = int((values > _ABSENT * total).sum())
            if not present and len(basis):
                continue
            kept = select_rank(
                values[: max(present, 1)], replace(truncation, max_rank=room), max_weight=allowed
            )
            basis = torch.cat([basis, torch.nn.functional.pad(vectors[:, :kept].T, (0, width - own))])
        self.uncut -= 1
        return torch.linalg.qr(basis.T)[0]

    def inner_truncation(self, shape: tuple[int, ...]) -> Truncation:
        """The truncation of the tensor between the bases, whose outer bonds are cut already."""
        bonds = len(shape) - 1
        caps = []
        for bond in range(bonds):
            cap = self.cap(bond)
            possible = min(math.prod(shape[: bond + 1]), math.prod(shape[bond + 1 :]))
            caps.append(possible if cap is None else min(cap, possible))
        atol = max(math.sqrt(self.remaining), 1e-150) if math.isfinite(self.remaining) else None
        floor = min(self.truncation.min_rank, *caps)
        return replace(self.truncation, max_rank=caps, rtol=None, atol=atol, min_rank=floor)


def _principal(stack: Tensor, cap: int | None) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors (width, r) of a stack of rows, all or the leading ones."""
    rows, width = stack.shape
    count = _OVERSAMPLING + (cap or 0)
    if cap is None or min(rows, width) <= _DENSE or 3 * count > min(rows, width):
        if rows > width:
            stack = torch.linalg.qr(stack, mode="r")[1]
        _, values, vectors = linalg.svd(stack)
        return values, vectors.T
    generator = torch.Generator(stack.device).manual_seed(0)
    probe = torch.randn(width, count, generator=generator, dtype=stack.dtype, device=stack.device)
    for _ in range(_ITERATIONS):
        probe = torch.linalg.qr(stack.T @ torch.linalg.qr(stack @ probe)[0])[0]
    _, values, vectors = linalg.svd(stack @ probe)
    rest = (stack.square().sum() - values.square().sum()).clamp(min=0).sqrt()
    # What was not resolved counts as one more value, which the cap discards.
    return torch.cat([values[:cap], torch.hypot(rest, values[cap:].norm())[None]]), probe @ vectors.T[:, :cap]
