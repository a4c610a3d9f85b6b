"""`initialize_from_gradients`: a start whose subspaces are those of the gradient of dW.

    G[in, layer, matrix, out] = sum of dLoss/dW over some batches  ~  TT-SVD at the adapter's ranks

One core stays zero, so that dW = 0; the others take the bases of the truncated TT-SVD around it. Its first
step then moves dW within the subspaces that hold most of the gradient.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttnet.adapters.adapter import TTAdapter
from ttnet.adapters.axes import side_of
from ttnet.adapters.linear import is_conv1d
from ttnet.adapters.structure import Layout, Site
from ttnet.decompose import tt_svd
from ttnet.errors import ConfigError, NonFiniteError, StateError
from ttnet.gauge import orthogonalize
from ttnet.truncation import Truncation

_OVERSAMPLING = 8


@dataclass(frozen=True, kw_only=True)
class GradientStart:
    """What `initialize_from_gradients` found.

    Attributes:
        captured: Norm of the gradient's projection on the subspaces taken, relative to the gradient's norm.
        batches: Number of batches.
        zero_core: Index of the core that is zero.
    """

    captured: float
    batches: int
    zero_core: int


def initialize_from_gradients(
    adapter: TTAdapter, batches: Iterable[Any], loss: Callable[[Any], Tensor], *, seed: int = 0
) -> GradientStart:
    """Start the cores from the gradient of dW, accumulated over some batches.

    The core that `init` lets start at zero (the first where there is none) is zero afterwards, so that
    dW = 0. Slices of an axis that is selected when the model runs become identities. Memory is needed for one
    gradient of every adapted weight.

    Args:
        adapter: An attached adapter; its cores are replaced, at the same ranks.
        batches: What `loss` is called with, a few of them.
        loss: A function of a batch that runs the model and returns a scalar with its graph.
        seed: Seed of the random sketches.

    Returns:
        How much of the gradient the subspaces hold.

    Raises:
        ConfigError: No batch, a structural axis outside the part between `in` and `out`, diagonal cores, or
            weights that cannot be differentiated.
        StateError: The adapter is merged or disabled, or `train_only` is on.
        NonFiniteError: A gradient that is not finite, or all of them zero.
    """
    layout, modes = adapter.layout, adapter.layout.pattern.modes
    inside = {axis for mode in layout.pattern.middle_modes for axis in mode}
    if set(layout.pattern.structural) - inside or adapter.cores.diagonal:
        raise ConfigError(
            f"initialize_from_gradients: pattern {layout.pattern.text!r} must have its structural axes "
            "between 'in' and 'out', and no diagonal cores; start it with init=..."
        )
    if adapter.bypassed:
        raise StateError("initialize_from_gradients: the adapter is merged or disabled; unmerge it first")
    if adapter.trained_only is not None:
        raise StateError(
            "initialize_from_gradients: train_only is on and all cores would change; call train_all() first"
        )
    gradients, count = _accumulate(adapter, batches, loss)
    total = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    if not 0 < total < math.inf:
        raise NonFiniteError(f"loss: the gradients of the adapted weights have the norm {total}")
    generator = torch.Generator().manual_seed(seed)
    cores = _decompose(layout, gradients, adapter.cores.ranks, generator)
    kept = math.sqrt(sum(float(core.square().sum()) for core in orthogonalize(cores, 0)[:1]))
    inits = adapter.config.core_inits
    zero = inits.index("zero") if "zero" in inits else 0
    cores = list(orthogonalize(cores, _position(layout, zero)))
    full = []
    for k, mode in enumerate(modes):
        left, right = adapter.cores.ranks[k : k + 2]
        if _is_selected(layout, mode):
            core = torch.eye(left, right)[:, None].repeat(1, layout.shape[k], 1).to(cores[0])
        else:
            core = cores.pop(0) * math.sqrt(_repeats(layout, k))
        core = _padded(core, left, right, generator)
        full.append(torch.zeros_like(core) if k == zero else core)
    adapter.cores.assign(full)
    # Where an axis selected at run time shares a mode, each of its places holds the same gradient.
    shared = [a.name for a in layout.runtime if not _is_selected(layout, modes[layout.pattern.find(a.name)])]
    total *= math.sqrt(math.prod(layout.sizes[name] for name in shared))
    return GradientStart(captured=min(1.0, kept / total), batches=count, zero_core=zero)


def _accumulate(
    adapter: TTAdapter, batches: Iterable[Any], loss: Callable[[Any], Tensor]
) -> tuple[list[Tensor], int]:
    """The gradient (in, out) of every site's dW, summed over the batches, in float32 or better."""
    names = list(adapter.layout.modules)
    bases = [adapter.adapted(name).base for name in names]
    weights: list[Tensor] = []
    for name, base in zip(names, bases, strict=True):
        weight = getattr(base, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ConfigError(
                f"initialize_from_gradients: the weight of {name!r} is quantized and has no gradient; "
                "dequantize the model first"
            )
        weights.append(weight)
    sums: list[Tensor | None] = [None] * len(weights)
    count = 0
    with _differentiable(weights):
        for batch in batches:
            found = torch.autograd.grad(loss(batch), weights, allow_unused=True)
            count += 1
            for k, each in enumerate(found):
                if each is not None:
                    own = each.to(torch.promote_types(each.dtype, torch.float32))
                    sums[k] = own if sums[k] is None else sums[k].add_(own)  # pyright: ignore[reportOptionalMemberAccess]
    if count == 0:
        raise ConfigError("batches: expected at least one batch, got none")
    gradients: list[Tensor] = []
    for name, base, weight, own in zip(names, bases, weights, sums, strict=True):
        whole = torch.zeros_like(weight, dtype=torch.float32) if own is None else own
        gradients += _parts(adapter.layout, name, whole if is_conv1d(base) else whole.T)
    return gradients, count


@contextmanager
def _differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, had in zip(weights, before, strict=True):
            weight.requires_grad_(had)


def _parts(layout: Layout, name: str, whole: Tensor) -> list[Tensor]:
    """The columns of each part of a module: the inverse of `fuse`."""
    sites = [layout.sites[k] for k in layout.modules[name]]
    indices = torch.arange(whole.shape[1], device=whole.device)
    sizes = [site.out_features // sites[0].groups for site in sites]
    split = indices.view(sites[0].groups, -1).split(sizes, 1)
    return [whole[:, own.reshape(-1)] for own in split]


def _decompose(
    layout: Layout, gradients: Sequence[Tensor], ranks: Sequence[int], generator: torch.Generator
) -> list[Tensor]:
    """Cores of the TT-SVD of the gradient over all modes that are not selected at run time."""
    pattern = layout.pattern
    first, last = len(pattern.left_modes), len(pattern.modes) - len(pattern.right_modes)
    grids = [(layout.shape[:first], "in"), (layout.shape[last:], "out")]
    places = [[_grid(layout, site, side) for site in layout.sites] for _, side in grids]
    bases = []
    for end, ((sizes, _), rank) in enumerate(zip(grids, (ranks[first], ranks[last]), strict=True)):
        sides = [g if end == 0 else g.T for g in gradients]
        bases.append(_range(sides, places[end], math.prod(sizes), rank + _OVERSAMPLING, generator))
    middle = [k for k in range(first, last) if not _is_selected(layout, pattern.modes[k])]
    shape = [layout.shape[k] for k in middle]
    small = gradients[0].new_zeros(bases[0].shape[1], *shape, bases[1].shape[1])
    for site, gradient, rows, columns in zip(layout.sites, gradients, *places, strict=True):
        value = bases[0][rows].T @ gradient @ bases[1][columns]
        for combo in layout.combos:
            index = tuple(layout.place(pattern.modes[k], site, combo) for k in middle)
            small[(slice(None), *index, slice(None))] = value
    noise = torch.randn(small.shape, generator=generator).to(small)  # gives every direction a basis vector
    small += noise * (1e-5 * small.norm() / math.sqrt(small.numel()))
    caps = [ranks[k] for k in (*middle, last)]
    limits = _limits(small.shape, caps)
    inner = list(tt_svd(small, Truncation(max_rank=limits))[0])
    left = (bases[0] @ inner[0][0]).reshape(*grids[0][0], -1)
    right = (inner[-1][:, :, 0] @ bases[1].T).reshape(-1, *grids[1][0])
    ends = _limits(left.shape, [*ranks[1:first], left.shape[-1]])
    start = list(tt_svd(left, Truncation(max_rank=ends))[0])
    start[-2:] = [torch.tensordot(start[-2], start[-1][:, :, 0], 1)]
    ends = _limits(right.shape, [right.shape[0], *ranks[last + 1 : -1]])
    stop = list(tt_svd(right, Truncation(max_rank=ends))[0])
    stop[:2] = [torch.tensordot(stop[0][0], stop[1], 1)]
    return [*start, *inner[1:-1], *stop]


def _range(
    sides: Sequence[Tensor], places: Sequence[Tensor], size: int, rank: int, generator: torch.Generator
) -> Tensor:
    """An orthonormal basis (size, k) of the leading directions of all gradients beside each other."""
    columns = min(size, rank)
    sketch = sides[0].new_zeros(size, columns)
    for side, rows in zip(sides, places, strict=True):
        sketch[rows] += side @ torch.randn(side.shape[1], columns, generator=generator).to(side)
    basis = torch.linalg.qr(sketch)[0]
    for _ in range(2):
        sketch = torch.zeros_like(sketch)
        for side, rows in zip(sides, places, strict=True):
            sketch[rows] += side @ (side.T @ basis[rows])
        basis = torch.linalg.qr(sketch)[0]
    return basis


def _grid(layout: Layout, site: Site, side: str) -> Tensor:
    """Where the features of a site lie in the modes of one side, taken as one in the pattern's order."""
    wanted = layout.pattern.feature_axes(side)
    blocks = layout.feature_blocks[side][site.in_features if side == "in" else site.out_features]
    present = [axis for axis in layout.pattern.axes if side_of(axis) == side]
    index = torch.zeros((), dtype=torch.long)
    for axis in present:
        position = torch.arange(*blocks[axis]).view([-1 if other == axis else 1 for other in wanted])
        index = index * layout.sizes[axis] + position
    return index.reshape(-1)


def _limits(shape: Sequence[int], caps: Sequence[int]) -> list[int]:
    return [min(cap, math.prod(shape[: k + 1]), math.prod(shape[k + 1 :])) for k, cap in enumerate(caps)]


def _is_selected(layout: Layout, mode: Sequence[str]) -> bool:
    names = {axis.name for axis in layout.runtime}
    return all(axis in names for axis in mode)


def _position(layout: Layout, k: int) -> int:
    """Index of core k among those of modes that are not selected at run time."""
    return sum(not _is_selected(layout, mode) for mode in layout.pattern.modes[:k])


def _repeats(layout: Layout, k: int) -> int:
    """How many identities an identity core has, beside the one an orthogonal core is as large as."""
    axis = layout.pattern.modes[k][0]
    side = side_of(axis)
    if side is None or axis == "head":
        return layout.shape[k]
    return len({own[axis] for own in layout.feature_blocks[side].values()})


def _padded(core: Tensor, left: int, right: int, generator: torch.Generator) -> Tensor:
    """The core with small random entries for directions that the gradient does not have."""
    if core.shape[0] == left and core.shape[2] == right:
        return core
    whole = torch.randn(left, core.shape[1], right, generator=generator).to(core) * 1e-3
    whole[: core.shape[0], :, : core.shape[2]] = core
    return whole
