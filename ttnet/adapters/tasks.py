"""Places on run-time axes: adding one to a trained adapter, and training one while the others stay."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ttnet.adapters.axes import Axis, Label
from ttnet.adapters.confinement import Confinement
from ttnet.adapters.cores import diagonals
from ttnet.adapters.initialization import new_slice
from ttnet.adapters.selection import check_axes
from ttnet.adapters.structure import Layout
from ttnet.errors import ConfigError, StateError

if TYPE_CHECKING:
    from ttnet.adapters.run_time import RunTimeAxes


def run_time_axis(layout: Layout, name: str | None) -> Axis:
    """The run-time axis with a name, or the only one.

    Raises:
        ConfigError: There is none, there are several and no name was given, or none has the name.
    """
    if name is not None:
        check_axes(layout, {name: None})
        return next(axis for axis in layout.runtime if axis.name == name)
    if len(layout.runtime) != 1:
        names = [axis.name for axis in layout.runtime]
        raise ConfigError(
            f"axis: pattern {layout.pattern.text!r} has the axes {names} that are selected when the model "
            "runs; " + ("name one" if names else "declare one, as MetaTT('4+1d', tasks=[...]) does")
        )
    return layout.runtime[0]


def check_label(axis: Axis, label: Any, argument: str) -> Label:
    """A label that the axis has.

    Raises:
        ConfigError: It has not.
    """
    if isinstance(label, bool) or label not in (axis.labels or ()):
        raise ConfigError(f"{argument}: expected one of {axis.labels} on axis {axis.name!r}, got {label!r}")
    return label


def slices_of(layout: Layout, axis: str, label: Label) -> tuple[int, list[int]]:
    """The core that holds an axis, and its slices at one label (several where axes are merged)."""
    k = layout.pattern.find(axis)
    mode = layout.pattern.modes[k]
    sizes = [layout.sizes[name] for name in mode]
    own = mode.index(axis)
    place = place_of(layout, axis, label)
    grid = torch.arange(layout.shape[k]).view(sizes)
    return k, grid.select(own, place).reshape(-1).tolist()


def add_place(
    adapter: "RunTimeAxes",
    axis: Axis,
    label: Label,
    like: Label | None,
    init: str | None,
    optimizer: Optimizer | None,
) -> None:
    """Grow an axis by one place at its end; what the other places compute keeps every bit."""
    layout = adapter.layout
    if isinstance(label, bool) or not isinstance(label, int | str) or label in (axis.labels or ()):
        raise ConfigError(f"add_task: expected a new label beside {axis.labels}, got {label!r}")
    if like is not None and init is not None:
        raise ConfigError("add_task: like copies a place and init makes a new one; give one of them")
    if like is not None:
        check_label(axis, like, "like")
    if adapter.merged:
        raise StateError("add_task: the adapter is merged; call unmerge() first")
    if adapter.trained_only is not None:
        raise StateError("add_task: train_only is on; call train_all() first")
    k = layout.pattern.find(axis.name)
    mode, core = layout.pattern.modes[k], adapter.cores.cores[k].detach()
    at = 1 + mode.index(axis.name)
    whole = core.reshape(core.shape[0], *(layout.sizes[name] for name in mode), core.shape[2])
    if like is not None:
        added = whole.narrow(at, (axis.labels or ()).index(like), 1)
    else:
        kind = init or adapter.config.core_inits[k]
        diagonal = k in adapter.cores.diagonal
        added = new_slice(
            kind, whole.narrow(at, 0, 1), adapter.config, seed=layout.sizes[axis.name], diagonal=diagonal
        )
    grown = torch.cat([whole, added], at).reshape(core.shape[0], -1, core.shape[2])
    parameter = adapter.cores.core_parameters()[k]
    diagonal = k in adapter.cores.diagonal
    old_shape = tuple(parameter.shape)
    adapter.cores.replace(k, diagonals(grown) if diagonal else grown)
    if optimizer is not None:
        _grow_state(getattr(optimizer, "optimizer", optimizer), parameter, old_shape, mode, at - 1, layout)
    labels = (*(axis.labels or ()), label)
    others = tuple(a for a in adapter.config.axes if a.name != axis.name)
    adapter.adopt(
        layout.grown(axis.name, label),
        replace(adapter.config, axes=(*others, Axis(axis.name, labels=labels))),
    )


def join_group(optimizer: Optimizer, trained: nn.Module, added: nn.Module) -> None:
    """Let an optimizer train a new module with the settings of one that it trains already.

    Args:
        optimizer: The optimizer.
        trained: A module, some of whose parameters it may have.
        added: The new module.
    """
    own = {id(parameter) for parameter in trained.parameters()}
    for group in getattr(optimizer, "optimizer", optimizer).param_groups:
        if any(id(parameter) in own for parameter in group["params"]):
            group["params"].extend(added.parameters())
            return


def place_of(layout: Layout, axis: str, label: Label) -> int:
    """The index of a label on an axis."""
    return next(a.labels or () for a in layout.axes if a.name == axis).index(label)


def _own_slices(layout: Layout, places: Mapping[str, Label]) -> dict[int, set[int]]:
    """For each core that holds one of the axes, the slices of the places."""
    own: dict[int, set[int]] = {}
    for axis, label in places.items():
        k, slices = slices_of(layout, axis, label)
        own[k] = own[k] & set(slices) if k in own else set(slices)
    return own


def check_confinable(adapter: "RunTimeAxes", places: Mapping[str, Label]) -> None:
    """Check that training the slices of some places alone could change something.

    Raises:
        StateError: A shared core is zero, or a core of the places is frozen.
    """
    own = _own_slices(adapter.layout, places)
    frozen = adapter.config.modes_of(adapter.config.frozen)
    for k, parameter in enumerate(adapter.cores.core_parameters()):
        core = f"core {k} (axis {' '.join(adapter.layout.pattern.modes[k])!r})"
        if k in own and k in frozen:
            raise StateError(f"train_only: {core} is frozen by the config; attach without it in `frozen`")
        if k not in own and not bool(parameter.detach().any()):
            raise StateError(
                f"train_only: {core} is shared and still zero, so that dW would stay zero; train jointly "
                "first, or choose another init"
            )


def confine(adapter: "RunTimeAxes", places: Mapping[str, Label]) -> Confinement:
    """Freeze what is shared and confine the cores of the given axes to the slices of their places."""
    own = _own_slices(adapter.layout, places)
    parameters = adapter.cores.core_parameters()
    for k, parameter in enumerate(parameters):
        if k not in own:
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer steps on what has one, zeros included
    device = parameters[0].device
    return Confinement({parameters[k]: torch.tensor(sorted(s), device=device) for k, s in own.items()})


def _grow_state(
    optimizer: Optimizer,
    parameter: Tensor,
    old_shape: tuple[int, ...],
    mode: Sequence[str],
    at: int,
    layout: Layout,
) -> None:
    """Give the moments of a core zero entries for the new slices."""
    state = optimizer.state.get(parameter, {})  # pyright: ignore[reportArgumentType, reportCallIssue]
    for name, value in state.items():
        if isinstance(value, Tensor) and tuple(value.shape) == old_shape:
            sizes = [layout.sizes[axis] for axis in mode]
            whole = value.reshape(old_shape[0], *sizes, *old_shape[2:])
            zeros = torch.zeros_like(whole.narrow(1 + at, 0, 1))
            state[name] = torch.cat([whole, zeros], 1 + at).reshape(old_shape[0], -1, *old_shape[2:])
