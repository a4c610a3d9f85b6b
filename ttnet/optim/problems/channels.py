"""Environments of a matrix product operator, channel by channel.

    bra  --[A*]--            An environment has one matrix (bra, ket) for each value k of the operator's bond.
           |                 In the canonical gauge many of them are multiples of the identity, for instance
    k   --[ W ]--            "no operator has acted yet" or "all has been done": those are kept as numbers,
           |                 and zero blocks of W are skipped. For a nearest-neighbor chain this leaves two
    ket --[ A ]--            products of matrices where the dense contraction has two, five times as large.

Which channels are numbers follows from the operator alone, so how a core is taken in, or how an operator acts
on a block, is worked out once and remembered beside the operator's core.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Channels:
    """An environment: channel k is `numbers[k]` times the identity, plus a matrix for each k in `places`.

    Attributes:
        numbers: Multiples of the identity, one for each value of the operator's bond.
        places: Values of the bond that have a matrix as well.
        matrices: Shape (len(places), bra, ket); None where `places` is empty.
    """

    numbers: tuple[complex, ...] = (1.0,)
    places: tuple[int, ...] = ()
    matrices: Tensor | None = None

    @property
    def key(self) -> tuple[tuple[complex, ...], tuple[int, ...]]:
        """What a plan depends on."""
        return self.numbers, self.places


@dataclass(frozen=True, eq=False)  # compared and hashed as an object
class Site:
    """An operator core with the plans that were made for it.

    Attributes:
        core: Shape (k, n, n, k').
        plans: What has been worked out, by the channels it is for.
    """

    core: Tensor
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)


def read_sites(cores: Sequence[Tensor]) -> list[Site]:
    """One site for each operator core (k, n, n, k'); equal neighbors share one."""
    sites: list[Site] = []
    for core in cores:
        same = bool(sites) and sites[-1].core.shape == core.shape and torch.equal(sites[-1].core, core)
        sites.append(sites[-1] if same else Site(core))
    return sites


@dataclass(frozen=True, eq=False)
class _Intake:
    """How a core is taken in: numbers and places afterwards, and a matrix that mixes modes and channels.

    `mix` (places n', (1 + h) n) or (places n', h n) maps the core and its h products with the matrices to the
    images whose overlap with the bra are the new matrices; `with_core` tells whether the core itself counts.
    """

    numbers: tuple[complex, ...]
    places: tuple[int, ...]
    mix: Tensor | None
    with_core: bool


def extend(channels: Channels, site: Site, core: Tensor) -> Channels:
    """Take a left-orthogonal core (l, n, r) into a left environment.

    A right environment is one of the mirrored operator core (k', n, n, k) and train core (r, n, l).
    """
    plan = site.plans.get(channels.key)
    if plan is None:
        plan = site.plans[channels.key] = _plan_intake(channels, site.core)
    if plan.mix is None:
        return Channels(plan.numbers)
    by_mode = core.transpose(0, 1).contiguous()
    left, right = core.shape[0], core.shape[2]
    stack = by_mode.unsqueeze(0)
    if channels.matrices is not None:
        products = torch.matmul(channels.matrices.unsqueeze(1), by_mode)
        stack = torch.cat([stack, products]) if plan.with_core else products
    images = (plan.mix @ stack.reshape(-1, left * right)).reshape(len(plan.places), -1, right)
    return Channels(plan.numbers, plan.places, by_mode.reshape(-1, right).mH @ images)


def _plan_intake(channels: Channels, core: Tensor) -> _Intake:
    modes, count = core.shape[1], core.shape[3]
    numbers: list[complex] = [0.0] * count
    light = core.new_zeros(count, modes, modes)
    for k, number in enumerate(channels.numbers):
        for to in range(count) if number else ():
            scalar = _as_scalar(core[k, :, :, to])
            if scalar is None:
                light[to] += number * core[k, :, :, to]
            else:
                numbers[to] = numbers[to] + number * scalar
    heavy = core[list(channels.places)].permute(3, 0, 1, 2)  # (k', h, n', n)
    mix = torch.cat([light.unsqueeze(1), heavy], 1)
    places = tuple(k for k in range(count) if bool(mix[k].any()))
    if not places:
        return _Intake(tuple(numbers), (), None, with_core=False)
    with_core = bool(light.any()) or not channels.places
    mix = mix[list(places)][:, 0 if with_core else 1 :].transpose(1, 2).reshape(len(places) * modes, -1)
    return _Intake(tuple(numbers), places, mix.contiguous(), with_core)


@dataclass(frozen=True, eq=False)
class _BlockPlan:
    """How an operator acts on a block: small matrices on the modes, by what they are joined with.

    Attributes:
        pair: (m n, m n): what acts on the modes alone.
        on_left: (h, m, m): joined with the left matrices, the identity on the right.
        on_right: (g, n, n): the mirror image.
        left: (h, terms m m): the left factors of all terms, joined with the left matrices.
        right: (g, terms n n): the right factors.
        shifts: For each term what is added to its factors where no matrix acts: (m, m) and (n, n).
        left_light: (n, n) for each left factor that is joined with a small matrix on the right.
        right_light: The mirror image.
    """

    pair: Tensor | None
    on_left: Tensor | None
    on_right: Tensor | None
    left: Tensor | None
    right: Tensor | None
    shifts: list[tuple[Tensor, Tensor]]
    left_light: list[Tensor]
    right_light: list[Tensor]


def _plan_block(left: Channels, first: Tensor, second: Tensor, right: Channels) -> _BlockPlan:
    m, n, bonds = first.shape[1], second.shape[1], second.shape[0]
    light_left = torch.einsum("a,amub->bmu", _as_tensor(left.numbers, first), first)
    light_right = torch.einsum("bnvc,c->bnv", second, _as_tensor(right.numbers, second))
    heavy_left = first[list(left.places)].permute(3, 0, 1, 2)  # (b, h, m, m)
    heavy_right = second[..., list(right.places)].permute(0, 3, 1, 2)  # (b, g, n, n)
    pair = first.new_zeros(m * n, m * n)
    on_left, on_right = torch.zeros_like(heavy_left[0]), torch.zeros_like(heavy_right[0])
    lefts, rights, shifts = [], [], []
    plain_left: list[tuple[Tensor, Tensor]] = []
    plain_right: list[tuple[Tensor, Tensor]] = []
    for b in range(bonds):
        p, q, heavy_p, heavy_q = light_left[b], light_right[b], heavy_left[b], heavy_right[b]
        has_p, has_q = bool(heavy_p.any()), bool(heavy_q.any())
        if has_p and has_q:
            lefts.append(heavy_p)
            rights.append(heavy_q)
            shifts.append((p, q))
            continue
        pair += torch.kron(p, q)
        for has, heavy, light, sums, plain in (
            (has_p, heavy_p, q, on_left, plain_left),
            (has_q, heavy_q, p, on_right, plain_right),
        ):
            scalar = _as_scalar(light)
            if has and scalar is not None:
                sums += heavy * scalar
            elif has:
                plain.append((heavy, light))
    return _BlockPlan(
        pair=pair if bool(pair.any()) else None,
        on_left=on_left if bool(on_left.any()) else None,
        on_right=on_right if bool(on_right.any()) else None,
        left=_columns([*lefts, *(heavy for heavy, _ in plain_left)]),
        right=_columns([*rights, *(heavy for heavy, _ in plain_right)]),
        shifts=shifts,
        left_light=[light for _, light in plain_left],
        right_light=[light for _, light in plain_right],
    )


def _columns(parts: list[Tensor]) -> Tensor | None:
    return torch.stack(parts, 1).flatten(1) if parts else None


class LocalOperator:
    """The operator on one block: environments and the operator cores between them.

    A block (l, m, n, r) is seen as the matrix X (l m, n r). Each value b of the operator's inner bond gives
    one term P_b X Q_b^T, where P_b acts on (l, m) and Q_b on (n, r). Where one of them is the identity on
    its bond, it acts on the mode alone.

    Args:
        left: Left environment.
        first: Operator core of the first site.
        second: Operator core of the second site; None for a block of one site (l, m, r).
        right: Right environment.
        shape: Shape of the block.
    """

    def __init__(
        self, left: Channels, first: Site, second: Site | None, right: Channels, shape: Sequence[int]
    ) -> None:
        key = (left.key, right.key, second)
        plan: _BlockPlan | None = first.plans.get(key)
        if plan is None:
            between = _identity_core(first.core) if second is None else second.core
            plan = first.plans[key] = _plan_block(left, first.core, between, right)
        self._plan = plan
        self._like = first.core
        n = 1 if second is None else shape[2]
        self._sizes = (shape[0], shape[1], n, shape[-1])
        m = shape[1]
        self._on_left = None if plan.on_left is None else _join_left(left, plan.on_left.flatten(1), m)[0]
        self._on_right = None if plan.on_right is None else _join_right(right, plan.on_right.flatten(1), n)[0]
        lefts = () if plan.left is None else _join_left(left, plan.left, m)
        rights = () if plan.right is None else _join_right(right, plan.right, n)
        count = len(plan.shifts)
        self._terms = [
            (_shifted(p, shift_p, shape[0], leading=True), _shifted(q, shift_q, shape[-1], leading=False))
            for p, q, (shift_p, shift_q) in zip(lefts[:count], rights[:count], plan.shifts, strict=True)
        ]
        self._left_light = list(zip(lefts[count:], plan.left_light, strict=True))
        self._right_light = list(zip(plan.right_light, rights[count:], strict=True))

    def __call__(self, block: Tensor) -> Tensor:
        """The operator times a block."""
        left, m, n, right = self._sizes
        shape = (left * m, n * right)
        matrix = block.reshape(shape)
        result: Tensor | None = None
        if self._plan.pair is not None:
            result = torch.matmul(self._plan.pair, matrix.reshape(left, m * n, right)).reshape(shape)
        if self._on_left is not None:
            result = _addmm(result, self._on_left, matrix)
        if self._on_right is not None:
            result = _addmm(result, matrix, self._on_right.mT)
        for heavy, other in self._terms:
            result = _addmm(result, heavy @ matrix, other.mT)
        for heavy, light in self._left_light:
            moved = torch.matmul(light, matrix.reshape(left * m, n, right)).reshape(shape)
            result = _addmm(result, heavy, moved)
        for light, heavy in self._right_light:
            moved = torch.matmul(light, matrix.reshape(left, m, n * right)).reshape(shape)
            result = _addmm(result, moved, heavy.mT)
        return torch.zeros_like(block) if result is None else result.reshape(block.shape)

    def as_matrix(self) -> Tensor:
        """The operator as a matrix on flattened blocks."""
        left, m, n, right = self._sizes
        like = self._like
        eye_left, eye_right = _eye(left, like), _eye(right, like)
        parts = [torch.kron(p, q) for p, q in self._terms]
        parts += [torch.kron(heavy, torch.kron(light, eye_right)) for heavy, light in self._left_light]
        parts += [torch.kron(torch.kron(eye_left, light), heavy) for light, heavy in self._right_light]
        if self._on_left is not None:
            parts.append(torch.kron(self._on_left, _eye(n * right, like)))
        if self._on_right is not None:
            parts.append(torch.kron(_eye(left * m, like), self._on_right))
        if self._plan.pair is not None:
            parts.append(torch.kron(eye_left, torch.kron(self._plan.pair, eye_right)))
        size = left * m * n * right
        return sum(parts[1:], parts[0]) if parts else like.new_zeros(size, size)


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _join_left(channels: Channels, small: Tensor, mode: int) -> Tensor:
    """Sums of matrices (l, l') times small ones (m, m'): (h, terms m m') to (terms, l m, l' m')."""
    joined, rank = _joined(channels, small)
    parts = joined.reshape(rank, rank, -1, mode, mode).permute(2, 0, 3, 1, 4)
    return parts.reshape(-1, rank * mode, rank * mode)


def _join_right(channels: Channels, small: Tensor, mode: int) -> Tensor:
    """Sums of small matrices (n, n') times matrices (r, r'): (g, terms n n') to (terms, n r, n' r')."""
    joined, rank = _joined(channels, small)
    parts = joined.reshape(rank, rank, -1, mode, mode).permute(2, 3, 0, 4, 1)
    return parts.reshape(-1, mode * rank, mode * rank)


def _joined(channels: Channels, small: Tensor) -> tuple[Tensor, int]:
    matrices: Tensor = channels.matrices  # pyright: ignore[reportAssignmentType] - the plan has checked it
    return matrices.flatten(1).mT @ small, matrices.shape[1]


def _shifted(matrix: Tensor, shift: Tensor, rank: int, *, leading: bool) -> Tensor:
    """Add the identity on the bond times `shift` on the mode; `leading` where the bond comes first."""
    mode = len(shift)
    if leading:
        matrix.view(rank, mode, rank, mode).diagonal(dim1=0, dim2=2).add_(shift.unsqueeze(2))
    else:
        matrix.view(mode, rank, mode, rank).diagonal(dim1=1, dim2=3).add_(shift.unsqueeze(2))
    return matrix


def _as_scalar(matrix: Tensor) -> complex | None:
    """The number c where `matrix` is c times the identity."""
    first = matrix[0, 0]
    return first.item() if bool((matrix == first * _eye(len(matrix), matrix)).all()) else None


def _as_tensor(numbers: Sequence[complex], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)


def _identity_core(core: Tensor) -> Tensor:
    """The operator core of a missing second site: the identity on a mode of size 1."""
    bond = core.shape[3]
    return torch.eye(bond, dtype=core.dtype, device=core.device).reshape(bond, 1, 1, bond)


def _addmm(result: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if result is None else torch.addmm(result, a, b)
