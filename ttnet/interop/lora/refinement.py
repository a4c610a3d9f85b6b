"""Alternating least squares on the error of the matrices that a train stands for."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ttnet.cores import left_unfold
from ttnet.interop.lora.least_squares import solve_slices, solve_symmetric
from ttnet.interop.lora.shared_train import SharedTrain, Term, distinct

_RIDGE = 1e-2  # penalty of the norm of the whole train, as a part of the error


class Refinement:
    """Alternating least squares on sum_k |X_k - A M_k T|^2 + ridge |train|^2, one core after another.

    Entries that no matrix reads are free and would grow until they cancel each other. The ridge holds them;
    it falls with the error. The core that is updated is the center of the gauge, where all its norm is.

    Args:
        terms: The matrices.
        shared: The train, changed in place.
        loss: Its squared error.
    """

    def __init__(self, terms: Sequence[Term], shared: SharedTrain, loss: float) -> None:
        self.terms, self.shared, self.loss = terms, shared, loss
        device = terms[0].right.device
        self.places = [
            torch.tensor([t.places[j] for t in terms], device=device) for j in range(len(shared.inner))
        ]
        self.total = math.fsum(term.norm**2 for term in terms)
        self._orthogonalize_right()
        for j in range(len(shared.inner) - 1, -1, -1):
            self._shift_left(j)

    def sweep(self) -> float:
        """Update each core, the inner ones twice; returns the squared error."""
        norm = sum(float(left.square().sum()) for left in self.shared.left.values())
        ridge = _RIDGE * self.loss / norm if norm else 0.0
        self._update_left(ridge)
        self._update_inner(range(len(self.shared.inner)), ridge, forward=True)
        self._update_right(ridge)
        self.loss = self._update_inner(range(len(self.shared.inner) - 1, -1, -1), ridge, forward=False)
        return self.loss

    def _update_left(self, ridge: float) -> None:
        shared = self.shared
        tails = {own: shared.tail(own) for own in distinct(self.terms, "columns")}
        for rows in shared.left:
            own = [term for term in self.terms if term.rows == rows]
            chains = [shared.middle(term.places) @ tails[term.columns] for term in own]
            gram = torch.stack([chain @ chain.T for chain in chains]).sum(0)
            right = torch.stack([t.times(chain.T) for t, chain in zip(own, chains, strict=True)]).sum(0)
            shared.left[rows] = solve_symmetric(gram, right.T, ridge).T
        basis, triangle = torch.linalg.qr(torch.cat(list(shared.left.values())))
        sizes = [block.shape[0] for block in shared.left.values()]
        shared.left = dict(zip(shared.left, basis.split(sizes), strict=True))
        self._absorb(0, triangle)

    def _absorb(self, j: int, triangle: Tensor) -> None:
        """Multiply inner core j, or the tail behind the last, by a matrix from the left."""
        shared = self.shared
        if j < len(shared.inner):
            shared.inner[j] = torch.tensordot(triangle, shared.inner[j], 1)
        elif shared.head is not None:
            shared.head = torch.tensordot(triangle, shared.head, 1)
        else:
            shared.right = {own: triangle @ basis for own, basis in shared.right.items()}

    def _absorb_from_right(self, j: int, triangle: Tensor) -> None:
        """Multiply inner core j, or `left` before the first, by a matrix from the right."""
        shared = self.shared
        if j >= 0:
            shared.inner[j] = shared.inner[j] @ triangle
        else:
            shared.left = {rows: basis @ triangle for rows, basis in shared.left.items()}

    def _shift_left(self, j: int) -> None:
        core = self.shared.inner[j]
        basis, triangle = torch.linalg.qr(core.reshape(core.shape[0], -1).T)
        self.shared.inner[j] = basis.T.reshape(-1, *core.shape[1:])
        self._absorb_from_right(j - 1, triangle.T)

    def _orthogonalize_right(self) -> None:
        shared = self.shared
        basis, triangle = torch.linalg.qr(torch.cat(list(shared.right.values()), 1).T)
        sizes = [block.shape[1] for block in shared.right.values()]
        shared.right = dict(zip(shared.right, basis.T.split(sizes, 1), strict=True))
        if shared.head is not None:
            head = shared.head @ triangle.T
            basis, triangle = torch.linalg.qr(head.reshape(head.shape[0], -1).T)
            shared.head = basis.T.reshape(-1, *head.shape[1:])
        self._absorb_from_right(len(shared.inner) - 1, triangle.T)

    def _update_right(self, ridge: float) -> None:
        shared = self.shared
        factors = [shared.left[term.rows] @ shared.middle(term.places) for term in self.terms]
        grams = [factor.T @ factor for factor in factors]
        products = [t.project(factor) @ t.right for t, factor in zip(self.terms, factors, strict=True)]
        if shared.head is not None:
            self._update_heads(shared.head, grams, products, ridge)
        else:
            for columns in shared.right:
                own = [k for k, term in enumerate(self.terms) if term.columns == columns]
                gram = torch.stack([grams[k] for k in own]).sum(0)
                right = torch.stack([products[k] for k in own]).sum(0)
                shared.right[columns] = solve_symmetric(gram, right, ridge)
        self._orthogonalize_right()

    def _update_heads(self, head: Tensor, grams: list[Tensor], products: list[Tensor], ridge: float) -> None:
        """Each slice of `head`, then `out` for all chunks together."""
        shared = self.shared
        ((whole, last),) = shared.right.items()
        width = last.shape[1]
        counts = [product.shape[1] // width for product in products]
        chunks = [product.reshape(product.shape[0], -1, width) for product in products]
        new = []
        for h in range(head.shape[1]):
            own = [k for k, count in enumerate(counts) if count > h]
            gram = torch.stack([grams[k] for k in own]).sum(0)
            right = torch.stack([chunks[k][:, h] for k in own]).sum(0) @ last.T
            new.append(solve_symmetric(gram, right, ridge))
        head = torch.stack(new, 1)
        head = torch.linalg.qr(left_unfold(head))[0].reshape(head.shape[0], head.shape[1], -1)
        gram = last.new_zeros(head.shape[2], head.shape[2])
        right = last.new_zeros(head.shape[2], width)
        for own, count, chunk in zip(grams, counts, chunks, strict=True):
            used = head[:, :count]
            gram += torch.einsum("rhs,rq,qht->st", used, own, used)
            right += torch.einsum("rhs,rhd->sd", used, chunk)
        shared.head, shared.right = head, {whole: solve_symmetric(gram, right, ridge)}

    def _update_inner(self, order: Iterable[int], ridge: float, *, forward: bool) -> float:
        """The inner cores while both ends stand; returns the squared error."""
        shared, terms = self.shared, self.terms
        lefts = {rows: basis.T @ basis for rows, basis in shared.left.items()}
        tails = {own: shared.tail(own) for own in distinct(terms, "columns")}
        rights = {own: tail @ tail.T for own, tail in tails.items()}
        left = torch.stack([lefts[term.rows] for term in terms])
        right = torch.stack([rights[term.columns] for term in terms])
        target = torch.stack([t.project(shared.left[t.rows]) @ (t.right @ tails[t.columns].T) for t in terms])
        order = list(order)
        for j in order:
            before, after = self._chain(range(j)), self._chain(range(j + 1, len(shared.inner)))
            wanted, a, b = target, left, right
            if before is not None:
                wanted, a = before.mT @ wanted, before.mT @ a @ before
            if after is not None:
                wanted, b = wanted @ after.mT, after @ b @ after.mT
            core = shared.inner[j].movedim(1, 0)
            shared.inner[j] = solve_slices(a, b, wanted, self.places[j], core, ridge).movedim(0, 1)
            if j != order[-1]:
                self._shift(j, forward)
        middle = self._chain(range(len(shared.inner)))
        if middle is None:
            middle = torch.eye(left.shape[1], dtype=left.dtype, device=left.device).expand_as(left)
        change = float((middle * (left @ middle @ right - 2 * target)).sum())
        if order:
            self._shift(order[-1], forward)
        return max(self.total + change, 0.0)

    def _shift(self, j: int, forward: bool) -> None:
        if not forward:
            self._shift_left(j)
            return
        core = self.shared.inner[j]
        basis, triangle = torch.linalg.qr(left_unfold(core))
        self.shared.inner[j] = basis.reshape(core.shape[0], core.shape[1], -1)
        self._absorb(j + 1, triangle)

    def _chain(self, which: Iterable[int]) -> Tensor | None:
        """For each term the product of its slices of some inner cores."""
        chain: Tensor | None = None
        for j in which:
            chosen = self.shared.inner[j].movedim(1, 0)[self.places[j]]
            chain = chosen if chain is None else chain @ chosen
        return chain
