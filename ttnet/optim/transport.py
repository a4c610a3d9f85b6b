"""Optimizer state through a change of gauge and rank.

Gradients are covectors: where the new interfaces are old_left @ X and Y @ old_right, the gradient of a new
core is X^H g Y^H, and so is a first moment. A second moment, which knows only squares, goes with |X|^2 and
|Y|^2: that is a heuristic. Null directions of the maps are zero, and so are their moments.
"""

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ttnet.cores import absorb_left, absorb_right
from ttnet.gauge import GaugeMaps
from ttnet.parameter import TTParameter

StateRule = Literal["transport", "reset"]

FIRST_MOMENTS = frozenset({"exp_avg", "momentum_buffer"})
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq"})


def unwrap(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside a wrapper (accelerate's, say), which holds it as `.optimizer`."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrap(inner) if isinstance(inner, Optimizer) else optimizer


def carry_state(
    optimizer: Optimizer, parameter: TTParameter, maps: GaugeMaps, rule: StateRule = "transport"
) -> None:
    """Bring an optimizer's state of the cores to their new gauge and ranks.

    Args:
        optimizer: Any torch optimizer; parameters of others in it are not touched.
        parameter: The train, already changed.
        maps: How its interfaces changed.
        rule: "transport" carries moments, keeping `step`; "reset" deletes the state of the cores, so that the
            optimizer begins anew with them.

    Warns:
        UserWarning: A state is of a kind that cannot be carried (factored or quantized); it is reset.
    """
    states = unwrap(optimizer).state
    foreign: set[str] = set()
    for k, core in enumerate(parameter.core_parameters()):
        state = states.get(core)
        if not state:
            continue
        unknown = _unknown_entries(state)
        if rule == "reset" or unknown:
            foreign.update(unknown)
            del states[core]
            continue
        for name, value in state.items():
            if value is not None and name in FIRST_MOMENTS:
                state[name] = _fit(_carry(value, maps, k, squared=False), core)
            elif value is not None and name in SECOND_MOMENTS:
                state[name] = _fit(_carry(value, maps, k, squared=True), core)
    if foreign and rule == "transport":
        warnings.warn(
            f"state='transport': {type(unwrap(optimizer)).__name__} keeps {sorted(foreign)}, which cannot be "
            f"carried through a change of rank; the state of the cores is reset",
            stacklevel=2,
        )


def state_tensors(optimizer: Optimizer, parameter: TTParameter) -> Iterator[Tensor]:
    """What an optimizer keeps of the cores, in a fixed order, without counters, which no sweep changes."""
    states = unwrap(optimizer).state
    for core in parameter.core_parameters():
        for _, value in sorted(states.get(core, {}).items()):
            if isinstance(value, Tensor) and value.ndim:
                yield value


def _unknown_entries(state: dict[str, object]) -> list[str]:
    known = FIRST_MOMENTS | SECOND_MOMENTS
    return [
        name
        for name, value in state.items()
        if name not in known and isinstance(value, Tensor) and value.ndim
    ]


def _carry(moment: Tensor, maps: GaugeMaps, k: int, *, squared: bool) -> Tensor:
    """X_{k-1}^H m Y_k^H, or the same with the squared moduli of the maps."""

    def weight(matrix: Tensor) -> Tensor:
        matrix = matrix.mH
        return matrix.abs().square() if squared else matrix

    carried = moment
    if maps.left:
        dtype = torch.promote_types(moment.dtype, maps.left[0].dtype)
        carried = moment.to(dtype)
        if k > 0:
            matrix = weight(maps.left[k - 1]).to(dtype)
            carried = absorb_left(matrix, carried[: matrix.shape[1]])
        if k < len(maps.right):
            matrix = weight(maps.right[k]).to(dtype)
            carried = absorb_right(carried[:, :, : matrix.shape[0]], matrix)
    return carried.to(moment.dtype)


def _fit(moment: Tensor, core: Tensor) -> Tensor:
    """Zeros around a moment where the core keeps its shape through a cut."""
    if moment.shape == core.shape:
        return moment.contiguous()
    padded = moment.new_zeros(core.shape)
    padded[: moment.shape[0], :, : moment.shape[2]] = moment
    return padded
