"""Entries of a train, many at a time, and their derivatives of any order.

The vectors of `ttnet.entries` do the work, chunk by chunk. The backward pass recomputes them, so that memory
is bounded by the chunk. It is a differentiable function itself: the derivative of an entry along tangents is
an entry of a train of twice the ranks, so every further derivative is a gather or the gradient of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.cores import check, ranks_of, shape_of
from ttnet.entries import Chain, Layout, meet, packed
from ttnet.errors import ConfigError, DeviceError, DTypeError, ShapeError


def gather(
    cores: CoresLike, indices: Tensor | Sequence[Sequence[int]], *, chunk_size: int | None = None
) -> Tensor:
    """Entries of a train.

    Differentiable in the cores to any order, in reverse and in forward mode; `torch.vmap` maps over cores,
    indices or both. `torch.compile` takes it as one opaque operator, without a graph break, which can be
    differentiated once.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).
        indices: Shape (batch, d), integers; repeated, unsorted and negative ones (from the end) are fine.
        chunk_size: Entries that are worked on at a time; chosen from the shapes where it is None. Memory
            beyond the values and the gradients grows with the chunk, not with the batch.

    Returns:
        Shape (batch,), in the dtype of the cores.

    Raises:
        ShapeError: `indices` is not (batch, d), or an index is out of range.
        DTypeError: `indices` are no integers.
        DeviceError: `indices` are on another device than the cores.
        ConfigError: `chunk_size` is below 1.
    """
    cores = check(cores)
    rows = torch.as_tensor(indices, device=None if isinstance(indices, Tensor) else cores[0].device)
    _check_indices(rows, cores)
    if chunk_size is not None and (
        isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1
    ):
        raise ConfigError(f"chunk_size: expected an integer of at least 1 or None, got {chunk_size!r}")
    if torch.compiler.is_compiling():
        return _gather_operator(list(cores), rows, chunk_size)
    return _gather(cores, rows, chunk_size)


def _gather(cores: Sequence[Tensor], indices: Tensor, chunk_size: int | None) -> Tensor:
    working = linalg.working_dtype(cores[0].dtype)
    layout = Layout.choose(shape_of(cores), ranks_of(cores), indices.shape[0], working.itemsize, chunk_size)
    fused = layout.fuse([core.to(working) for core in cores])
    return _Gather.apply(layout, indices, *fused).to(cores[0].dtype)


def _check_indices(indices: Tensor, cores: Cores) -> None:
    if indices.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise DTypeError(f"indices: expected integers, got {indices.dtype}; convert them with .long()")
    if indices.ndim != 2 or indices.shape[1] != len(cores):
        raise ShapeError(f"indices: expected shape (batch, {len(cores)}), got {tuple(indices.shape)}")
    if indices.device != cores[0].device:
        raise DeviceError(
            f"indices: expected the device of the cores, {cores[0].device}, got {indices.device}"
        )


class _Gather(torch.autograd.Function):
    """Entries of fused cores; at least two of them, boundary ranks 1."""

    @staticmethod
    def forward(layout: Layout, indices: Tensor, *cores: Tensor) -> Tensor:
        """Values (batch,)."""
        contiguous = packed(cores)
        left_chain, right_chain = Chain(contiguous, is_left=True), Chain(contiguous, is_left=False)
        values = cores[0].new_empty(indices.shape[0])
        sizes = [core.shape[1] for core in cores]
        for first in range(0, indices.shape[0], layout.chunk):
            codes = layout.codes(indices[first : first + layout.chunk])
            left, right = meet(codes, sizes)
            x, y = left_chain.vectors(left), right_chain.vectors(right)
            values[first : first + layout.chunk] = x.mul_(y).sum(1)
        return values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep the cores; vectors are recomputed."""
        ctx.layout = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the cores, by a function that can be differentiated itself."""
        indices, *cores = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[2:])
        found = iter(_Pull.apply(ctx.layout, needed, indices, gradients[0], *(core.conj() for core in cores)))
        return None, None, *(next(found) if wanted else None for wanted in needed)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Directional derivative: the entries of the tangent train."""
        indices, *cores = ctx.saved_tensors
        return _Gather.apply(ctx.layout, indices, *_tangent_train(cores, tangents[2:]))

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[int | None, ...], layout: Layout, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        """Batched indices become one batch; batched cores are taken one after another."""
        dims = in_dims[1:]
        if dims[0] is not None and all(dim is None for dim in dims[1:]):
            indices = tensors[0].movedim(dims[0], 0)
            values = _Gather.apply(layout, indices.flatten(0, 1), *tensors[1:])
            return values.reshape(indices.shape[:2]), 0
        results = [_Gather.apply(layout, *_member(tensors, dims, i)) for i in range(info.batch_size)]
        return torch.stack(results), 0


class _Pull(torch.autograd.Function):
    """Sum over entries b of weight_b times the derivative of value_b: one tensor for each core that needs it.

    Linear in the weights, and a polynomial of the cores: nothing is conjugated here.
    """

    @staticmethod
    def forward(
        layout: Layout, needed: tuple[bool, ...], indices: Tensor, weights: Tensor, *cores: Tensor
    ) -> tuple[Tensor, ...]:
        """Derivatives, each of the shape of its core."""
        contiguous = packed(cores)
        left_chain, right_chain = Chain(contiguous, is_left=True), Chain(contiguous, is_left=False)
        found = [
            torch.zeros_like(c) if wanted else None for c, wanted in zip(contiguous, needed, strict=True)
        ]
        left_found = [None if g is None else g.permute(1, 0, 2) for g in found]
        right_found = [None if g is None else g.permute(1, 2, 0) for g in found]
        sizes = [core.shape[1] for core in cores]
        for first in range(0, indices.shape[0], layout.chunk):
            codes = layout.codes(indices[first : first + layout.chunk])
            left, right = meet(codes, sizes)
            left_inputs, x = left_chain.grow(left)
            right_inputs, y = right_chain.grow(right)
            weight = weights[first : first + layout.chunk].unsqueeze(1)
            from_right = y.index_select(0, right.position).mul_(weight)
            from_left = x.index_select(0, left.position).mul_(weight)
            to_left = torch.zeros_like(x).index_add_(0, left.position, from_right)
            to_right = torch.zeros_like(y).index_add_(0, right.position, from_left)
            left_chain.pull(left, left_inputs, to_left, left_found)
            right_chain.pull(right, right_inputs, to_right, right_found)
        return tuple(g for g in found if g is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        """Keep weights and cores."""
        ctx.layout, ctx.needed = inputs[:2]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """What is asked for is a derivative along `gradients`: entries, and pulls, of the tangent train."""
        indices, weights, *cores = ctx.saved_tensors
        conjugate = [core.conj() for core in cores]
        train = _tangent_train(conjugate, _spread(gradients, ctx.needed))
        to_weights = _Gather.apply(ctx.layout, indices, *train) if ctx.needs_input_grad[3] else None
        to_cores = _to_base(_pull_all(ctx.layout, indices, weights.conj(), train), conjugate)
        return None, None, None, to_weights, *to_cores

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        """Derivative of the pull along weights and cores."""
        indices, weights, *cores = ctx.saved_tensors
        along_weights, along_cores = tangents[3], tangents[4:]
        moved = _to_base(_pull_all(ctx.layout, indices, weights, _tangent_train(cores, along_cores)), cores)
        if along_weights is not None:
            pulled = _pull_all(ctx.layout, indices, along_weights, cores)
            moved = [a + b for a, b in zip(moved, pulled, strict=True)]
        return tuple(g for g, wanted in zip(moved, ctx.needed, strict=True) if wanted)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], layout: Layout, needed: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Members of the batch one after another."""
        results = [
            _Pull.apply(layout, needed, *_member(tensors, in_dims[2:], i)) for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)


def _pull_all(
    layout: Layout, indices: Tensor, weights: Tensor, cores: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return _Pull.apply(layout, (True,) * len(cores), indices, weights, *cores)


def _member(tensors: Sequence[Tensor], dims: Sequence[int | None], i: int) -> list[Tensor]:
    return [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)]


def _spread(found: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    entries = iter(found)
    return [next(entries) if wanted else None for wanted in needed]


def _tangent_train(cores: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Train of twice the ranks whose entries are the derivatives of the entries of `cores` along `tangents`.

    First core [G, T], inner cores [[G, T], [0, G]], last core [T; G].
    """
    train, last = [], len(cores) - 1
    for k, (core, tangent) in enumerate(zip(cores, tangents, strict=True)):
        along = torch.zeros_like(core) if tangent is None else tangent
        upper = along if k == last else torch.cat([core, along], 2)
        lower = core if k == last else torch.cat([torch.zeros_like(core), core], 2)
        train.append(upper if k == 0 else torch.cat([upper, lower], 0))
    return train


def _to_base(derivatives: Sequence[Tensor], cores: Sequence[Tensor]) -> list[Tensor]:
    """From derivatives in the cores of a tangent train to those in its base cores."""
    found, last = [], len(cores) - 1
    for k, (derivative, core) in enumerate(zip(derivatives, cores, strict=True)):
        left, _, right = core.shape
        upper, lower = derivative[:left, :, :right], derivative[-left:, :, -right:]
        found.append(upper if k == 0 else lower if k == last else upper + lower)
    return found


@torch.library.custom_op("ttnet::gather", mutates_args=())
def _gather_operator(cores: list[Tensor], indices: Tensor, chunk_size: int | None) -> Tensor:
    return _gather(cores, indices, chunk_size)


@torch.library.custom_op("ttnet::gather_pull", mutates_args=())
def _pull_operator(
    weights: Tensor, cores: list[Tensor], indices: Tensor, chunk_size: int | None
) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [core.detach().requires_grad_() for core in cores]
        found = torch.autograd.grad(_gather(leaves, indices, chunk_size), leaves, weights)
    return [gradient.contiguous() for gradient in found]


@_gather_operator.register_fake
def _(cores: list[Tensor], indices: Tensor, chunk_size: int | None) -> Tensor:  # noqa: ARG001
    return cores[0].new_empty(indices.shape[0])


@_pull_operator.register_fake
def _(
    weights: Tensor,  # noqa: ARG001
    cores: list[Tensor],
    indices: Tensor,  # noqa: ARG001
    chunk_size: int | None,  # noqa: ARG001
) -> list[Tensor]:
    return [torch.empty_like(core, memory_format=torch.contiguous_format) for core in cores]


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    cores, indices, ctx.chunk_size = inputs
    ctx.save_for_backward(indices, *cores)


def _pull_back(ctx: Any, gradient: Tensor) -> tuple[list[Tensor], None, None]:
    indices, *cores = ctx.saved_tensors
    return _pull_operator(gradient, cores, indices, ctx.chunk_size), None, None


_gather_operator.register_autograd(_pull_back, setup_context=_keep_inputs)
