"""Environments of a matrix product operator, channel by channel.

    bra  --[A*]--            An environment has one matrix (bra, ket) for each value k of the operator's bond.
           |                 In the canonical gauge many of them are multiples of the identity, for instance
           "no
    k   --[ W ]--            operator has acted yet" or "all has been done": those are kept as numbers, and
    blocks
           |                 of W that are zero are skipped. For a nearest-neighbor chain this leaves two
           products
    ket --[ A ]--            of matrices where the dense contraction has two that are five times as large.

A channel is a number (that multiple of the identity, 0 for nothing) or a matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet.cores import left_unfold, right_unfold

Channel = complex | Tensor
"""A multiple of the identity, or a matrix (bra, ket)."""

Channels = tuple[Channel, ...]


@dataclass(frozen=True)
class Site:
    """An operator core, read once: which blocks are zero, which are multiples of the identity.

    Attributes:
        core: Shape (k, row, column, k').
        blocks: For (k, k') with a nonzero block the block (row, column).
        scalars: For (k, k') whose block is a multiple of the identity that multiple.
    """

    core: Tensor
    blocks: dict[tuple[int, int], Tensor]
    scalars: dict[tuple[int, int], complex]

    @classmethod
    def read(cls, core: Tensor) -> "Site":
        """Sort the blocks of an operator core (k, row, column, k')."""
        blocks, scalars = {}, {}
        used = core.abs().sum((1, 2)).nonzero().tolist()
        square = core.shape[1] == core.shape[2]
        for left, right in used:
            block = core[left, :, :, right].contiguous()
            blocks[left, right] = block
            if square:
                first = block[0, 0]
                if bool(
                    (block == first * torch.eye(len(block), dtype=block.dtype, device=block.device)).all()
                ):
                    scalars[left, right] = first.item()
        return cls(core=core, blocks=blocks, scalars=scalars)


def extend_left(channels: Channels, site: Site, core: Tensor) -> Channels:
    """Take a left-orthogonal core (l, n, r) into a left environment."""
    right = site.core.shape[3]
    images: list[Tensor | None] = [None] * right
    identity: list[complex] = [0.0] * right
    for k, channel in enumerate(channels):
        moved: Tensor | None = None
        for (left, to), block in site.blocks.items():
            if left != k or _is_zero(channel):
                continue
            if not isinstance(channel, Tensor) and (left, to) in site.scalars:
                identity[to] = identity[to] + channel * site.scalars[left, to]
                continue
            if moved is None:
                moved = _times(channel, core)
            term = moved * site.scalars[left, to] if (left, to) in site.scalars else _on_mode(block, moved)
            known = images[to]
            images[to] = term if known is None else known + term
    bra = left_unfold(core).mH
    return tuple(
        _close(None if image is None else bra @ left_unfold(image), number)
        for image, number in zip(images, identity, strict=True)
    )


def extend_right(channels: Channels, site: Site, core: Tensor) -> Channels:
    """Take a right-orthogonal core (l, n, r) into a right environment; its matrices are (bra, ket) too."""
    left = site.core.shape[0]
    images: list[Tensor | None] = [None] * left
    identity: list[complex] = [0.0] * left
    for k, channel in enumerate(channels):
        moved: Tensor | None = None
        for (to, right), block in site.blocks.items():
            if right != k or _is_zero(channel):
                continue
            if not isinstance(channel, Tensor) and (to, right) in site.scalars:
                identity[to] = identity[to] + channel * site.scalars[to, right]
                continue
            if moved is None:
                moved = _times_right(core, channel)
            term = moved * site.scalars[to, right] if (to, right) in site.scalars else _on_mode(block, moved)
            known = images[to]
            images[to] = term if known is None else known + term
    bra = right_unfold(core).conj()
    return tuple(
        _close(None if image is None else bra @ right_unfold(image).mT, number)
        for image, number in zip(images, identity, strict=True)
    )


def _is_zero(channel: Channel) -> bool:
    return not isinstance(channel, Tensor) and channel == 0


def _times(channel: Channel, core: Tensor) -> Tensor:
    if not isinstance(channel, Tensor):
        return core * channel
    return (channel @ right_unfold(core)).reshape(-1, *core.shape[1:])


def _times_right(core: Tensor, channel: Channel) -> Tensor:
    if not isinstance(channel, Tensor):
        return core * channel
    return (left_unfold(core) @ channel.mT).reshape(core.shape[0], core.shape[1], -1)


def _on_mode(block: Tensor, core: Tensor) -> Tensor:
    """Block (row, column) on the mode of a core (l, column, r)."""
    return torch.matmul(block, core)


def _close(matrix: Tensor | None, number: complex) -> Channel:
    if matrix is None:
        return number
    if number:
        matrix = matrix + number * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix


class LocalOperator:
    """The operator on one block: environments and the operator cores between them.

    A block (l, m, n, r) is seen as the matrix X (l m, n r). Each value k of the operator's inner bond gives
    one term P_k X Q_k^T, where P_k acts on (l, m) and Q_k on (n, r). Each factor is heavy (a matrix) or
    light (the identity on the bond, a small matrix on the mode); light ones are applied to the modes alone.

    Args:
        left: Left environment.
        first: Operator core of the first site.
        second: Operator core of the second site; None for a block of one site (l, m, r).
        right: Right environment.
        shape: Shape of the block.
    """

    def __init__(
        self,
        left: Channels,
        first: Site,
        second: Site | None,
        right: Channels,
        shape: Sequence[int],
        like: Tensor,
    ) -> None:
        left_rank, m, right_rank = shape[0], shape[1], shape[-1]
        n = 1 if second is None else shape[2]
        self._sizes = (left_rank, m, n, right_rank)
        row_first, row_second = first.core.shape[1], 1 if second is None else second.core.shape[1]
        if second is None:
            one = torch.ones(1, 1, dtype=like.dtype, device=like.device)
            bond = range(len(right))
            second_blocks = {(k, k): one for k in bond}
        else:
            bond = range(second.core.shape[0])
            second_blocks = second.blocks
        pair = torch.zeros(row_first * row_second, m * n, dtype=like.dtype, device=like.device)
        self._on_left: Tensor | None = None
        self._on_right: Tensor | None = None
        self._terms: list[tuple[Tensor, Tensor]] = []
        self._left_light: list[tuple[Tensor, Tensor]] = []
        self._right_light: list[tuple[Tensor, Tensor]] = []
        has_pair = False
        for k in bond:
            heavy_p, light_p = _dress(
                left, {a: b for (a, c), b in first.blocks.items() if c == k}, leading=True
            )
            heavy_q, light_q = _dress(
                right, {c: b for (a, c), b in second_blocks.items() if a == k}, leading=False
            )
            if (heavy_p is None and light_p is None) or (heavy_q is None and light_q is None):
                continue
            if heavy_p is None and heavy_q is None:
                pair += torch.kron(light_p, light_q)  # pyright: ignore[reportArgumentType]
                has_pair = True
            elif heavy_q is None:
                scalar = _as_scalar(light_q)
                if scalar is None:
                    self._left_light.append((heavy_p, light_q))  # pyright: ignore[reportArgumentType]
                else:
                    self._on_left = _plus(self._on_left, heavy_p * scalar)  # pyright: ignore[reportOptionalOperand]
            elif heavy_p is None:
                scalar = _as_scalar(light_p)
                if scalar is None:
                    self._right_light.append((light_p, heavy_q))  # pyright: ignore[reportArgumentType]
                else:
                    self._on_right = _plus(self._on_right, heavy_q * scalar)
            else:
                self._terms.append((heavy_p, heavy_q))
        self._pair = pair if has_pair else None

    def __call__(self, block: Tensor) -> Tensor:
        """The operator times a block."""
        left, m, n, right = self._sizes
        shape = (left * m, n * right)
        matrix = block.reshape(shape)
        result: Tensor | None = None
        if self._on_left is not None:
            result = self._on_left @ matrix
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
        if self._pair is not None:
            small = torch.matmul(self._pair, matrix.reshape(left, m * n, right)).reshape(shape)
            result = _plus(result, small)
        return torch.zeros_like(block) if result is None else result.reshape(block.shape)


def _dress(
    channels: Channels, blocks: dict[int, Tensor], *, leading: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Sum over k of channel k times its block: (heavy, None), (None, light), or (None, None) for nothing."""
    light: Tensor | None = None
    heavy: Tensor | None = None
    size = 0
    for k, block in blocks.items():
        channel = channels[k]
        if isinstance(channel, Tensor):
            size = len(channel)
            heavy = _plus(heavy, torch.kron(channel, block) if leading else torch.kron(block, channel))
        elif channel != 0:
            light = _plus(light, block * channel)
    if heavy is None:
        return None, light
    if light is not None:
        eye = torch.eye(size, dtype=heavy.dtype, device=heavy.device)
        heavy = heavy + (torch.kron(eye, light) if leading else torch.kron(light, eye))
    return heavy, None


def _as_scalar(matrix: Tensor | None) -> complex | None:
    """The number c where `matrix` is c times the identity."""
    if matrix is None or matrix.shape[0] != matrix.shape[1]:
        return None
    first = matrix[0, 0]
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return first.item() if bool((matrix == first * eye).all()) else None


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _addmm(result: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if result is None else torch.addmm(result, a, b)
