"""One train for many matrices in low-rank form; no tensor of all of them is ever made.

First a TT-SVD from both ends: a basis A for each input width, T for each output width, and the small tensor
(r, layer, matrix, ..., r) of what is left between them. Then sweeps of alternating least squares on the error
of the matrices themselves: entries of the train that no matrix reads are free, and the sweeps use that.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ttnet import linalg
from ttnet.adapters.structure import Block
from ttnet.decompose import tt_svd
from ttnet.errors import RankError
from ttnet.interop.lora.refinement import Refinement
from ttnet.interop.lora.shared_train import SharedTrain, Term, distinct
from ttnet.truncation import Truncation, select_rank

_LARGEST = 2**28  # entries of the tensor between the two bases
_DENSE = 1024  # below this side bases are computed by a full SVD
_OVERSAMPLING, _ITERATIONS = 32, 6
_RESOLVED = 1e-13  # squared relative error below which the sums of a sweep resolve no progress
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
    shared = _two_sided_svd(terms, sizes, truncation, head_dim)
    total = math.fsum(term.norm**2 for term in terms)
    last = math.fsum(error**2 for error in shared.errors(terms))
    if sweeps and last > _RESOLVED * total:
        refinement = Refinement(terms, shared, last)
        for _ in range(sweeps):
            loss = refinement.sweep()
            if loss <= _RESOLVED * total or last - loss <= _PROGRESS * last:
                break
            last = loss
    return shared


def _two_sided_svd(
    terms: Sequence[Term], sizes: Sequence[int], truncation: Truncation, head_dim: int | None
) -> SharedTrain:
    budget = _Budget(terms, truncation, len(sizes) + 1 + (head_dim is not None))
    left = budget.bases(
        0, {rows: [t.column_space().T for t in terms if t.rows == rows] for rows in distinct(terms, "rows")}
    )
    projected = [term.project(left[term.rows]) for term in terms]
    pieces = [
        (torch.linalg.qr(a, mode="r")[1] if a.shape[0] > a.shape[1] else a) @ term.right
        for a, term in zip(projected, terms, strict=True)
    ]
    columns, head = distinct(terms, "columns"), None
    right: dict[Block, Tensor]
    if head_dim is None:
        found = budget.bases(
            budget.bonds - 1,
            {own: [p for p, t in zip(pieces, terms, strict=True) if t.columns == own] for own in columns},
        )
        right = {own: basis.T for own, basis in found.items()}
    else:
        whole: Block = (0, head_dim)
        last = budget.bases(budget.bonds - 1, {whole: [p.reshape(-1, head_dim) for p in pieces]})[whole]
        heads = max(own[1] for own in columns) // head_dim
        rows = [(p.reshape(-1, head_dim) @ last).reshape(p.shape[0], -1) for p in pieces]
        width = heads * last.shape[1]
        padded = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
        basis = budget.bases(budget.bonds - 2, {(0, width): padded})[(0, width)]
        right = {whole: last.T}
        head = basis.T.reshape(-1, heads, last.shape[1])
    shared = SharedTrain(left, [], head, right)
    _insert_inner(shared, terms, projected, sizes, budget)
    return shared


def _insert_inner(
    shared: SharedTrain,
    terms: Sequence[Term],
    projected: Sequence[Tensor],
    sizes: Sequence[int],
    budget: "_Budget",
) -> None:
    """TT-SVD of the small tensor between the bases, whose outer cores go into them."""
    ranks = (projected[0].shape[0], shared.tail(terms[0].columns).shape[0])
    shape = (ranks[0], *sizes, ranks[1])
    if math.prod(shape) > _LARGEST:
        raise RankError(
            f"truncation: without a lower cap the ranks at both ends are {ranks}, and the tensor between "
            f"them has the shape {shape}; give max_rank, or a larger tolerance"
        )
    like = projected[0]
    middle = like.new_zeros(math.prod(sizes), ranks[0], ranks[1])
    counts = like.new_zeros(math.prod(sizes), 1, 1)
    for term, own in zip(terms, projected, strict=True):
        index = 0
        for place, size in zip(term.places, sizes, strict=True):
            index = index * size + place
        middle[index] += own @ (term.right @ shared.tail(term.columns).T)
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

    def _cap(self, bond: int) -> int | None:
        cap = self.truncation.at_bond(bond, self.bonds).max_rank
        return cap if isinstance(cap, int) else None

    def bases(self, bond: int, stacks: dict[Block, list[Tensor]]) -> dict[Block, Tensor]:
        """For each block of widths the orthonormal basis (width, r) of the rows of its stack."""
        truncation = self.truncation.at_bond(bond, self.bonds)
        cap = self._cap(bond)
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

    def inner_truncation(self, shape: tuple[int, ...]) -> Truncation:
        """The truncation of the tensor between the bases, whose outer bonds are cut already."""
        bonds = len(shape) - 1
        caps = []
        for bond in range(bonds):
            cap = self._cap(bond)
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
