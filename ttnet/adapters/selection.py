"""Which place on its run-time axes (tasks, experts) a batch reads: one for all, or one for each sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ttnet.adapters.axes import Axis, Label
from ttnet.adapters.structure import Combo, Layout
from ttnet.errors import ConfigError, ShapeError, StateError


@dataclass(frozen=True, eq=False)
class Selection:
    """Places on all run-time axes of a layout.

    Attributes:
        combos: The distinct combinations of places that are used.
        rows: For each sample of the batch its index in `combos`, shape (batch,); None where all samples read
            the only one.
        places: The same as indices into all combinations that the layout has, as a tensor (batch,): to a
            compiled model the samples' places are data.
    """

    combos: tuple[Combo, ...] = ((),)
    rows: tuple[int, ...] | None = None
    places: Tensor | None = None

    @property
    def key(self) -> tuple[tuple[Combo, ...], tuple[int, ...] | None]:
        """A hashable value by which two selections are compared."""
        return self.combos, self.rows


def select(layout: Layout, chosen: Mapping[str, Any]) -> Selection:
    """Read what a user has chosen on the run-time axes.

    Args:
        layout: The layout.
        chosen: For each axis a label, a sequence of labels (one for each sample), or a tensor of indices into
            the axis's labels, of shape () or (batch,). An axis with one place needs none.

    Returns:
        The selection.

    Raises:
        StateError: An axis on which nothing was chosen.
        ConfigError: A label that the axis does not have, or a value of another kind.
        ShapeError: Sequences of different lengths, or a tensor of another shape.
    """
    places = {axis.name: _read(axis, chosen.get(axis.name)) for axis in layout.runtime}
    lengths = {name: len(value) for name, value in places.items() if isinstance(value, list)}
    if len(set(lengths.values())) > 1:
        raise ShapeError(
            f"select: expected one place for each sample on every axis, got the lengths {lengths}"
        )
    if not lengths:
        return Selection((tuple(value for value in places.values() if isinstance(value, int)),))
    batch = next(iter(lengths.values()))
    columns = [value if isinstance(value, list) else [value] * batch for value in places.values()]
    samples: list[Combo] = list(zip(*columns, strict=True))
    combos = tuple(sorted(set(samples)))
    index = {combo: k for k, combo in enumerate(combos)}
    every = {combo: k for k, combo in enumerate(layout.combos)}
    places = torch.tensor([every[sample] for sample in samples])
    return Selection(combos, tuple(index[sample] for sample in samples), places)


def check_axes(layout: Layout, chosen: Mapping[str, Any]) -> None:
    """Check that the axes named are run-time axes of the layout.

    Raises:
        ConfigError: One is not.
    """
    known = [axis.name for axis in layout.runtime]
    for name in chosen:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(
                f"select: {name!r} is no axis of pattern {layout.pattern.text!r} that is selected when the "
                f"model runs; {has}; declare one with axes=[Axis({name!r}, labels=...)] and name it in the "
                "pattern"
            )


_MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


def check_batch(selected: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that a model is called with the batch that places were selected for.

    Args:
        selected: Number of samples that places were selected for.
        args: What the model is called with. The first tensor, or among those by name the model's main input,
            has the samples in its first dimension; where there is none of these, any tensor may have them.
        kwargs: The same, by name.

    Raises:
        ShapeError: The batch has another size.
    """
    first = next((value for value in args if isinstance(value, Tensor)), None)
    named = [kwargs.get(name) for name in _MAIN_INPUTS] if first is None else [first]
    main = next((value for value in named if isinstance(value, Tensor)), None)
    found = list(kwargs.values()) if main is None else [main]
    sizes = [value.shape[0] for value in found if isinstance(value, Tensor) and value.dim()]
    if sizes and selected not in sizes:
        raise ShapeError(
            f"select: places were given for {selected} samples, the model got a batch of {sizes[0]}; give "
            "one for each row, samples in the first dimension (for beams: index.repeat_interleave(num_beams))"
        )


def is_routed(name: str) -> bool:
    """Whether a module belongs to one of several experts in a list, so that it may read some tokens only."""
    parts = name.split(".")
    return any(
        part.endswith("experts") and (own.isdigit() or own.startswith("expert"))
        for part, own in pairwise(parts)
    )


def _read(axis: Axis, value: Any) -> int | list[int]:
    labels = axis.labels or ()
    if value is None:
        if len(labels) == 1:
            return 0
        raise StateError(
            f"{axis.name}: nothing is selected; call adapter.select({axis.name}=...) with one of {labels}, "
            "or one "
            "for each sample, before the model runs"
        )
    if not isinstance(value, Tensor) and getattr(value, "ndim", 0):
        raise ConfigError(
            f"{axis.name}: expected a label, a sequence of labels, or a tensor of indices, got "
            f"{type(value).__name__}; write torch.as_tensor(...) of indices, or .tolist() of labels"
        )
    if isinstance(value, Tensor):
        if (
            value.dtype.is_floating_point
            or value.dtype.is_complex
            or value.dtype == torch.bool
            or value.dim() > 1
        ):
            raise ShapeError(
                f"{axis.name}: expected integer indices of shape () or (batch,), got {value.dtype} of shape "
                f"{tuple(value.shape)}"
            )
        indices = value.reshape(-1).tolist()
        wrong = [k for k in indices if not 0 <= k < len(labels)]
        if wrong or not indices:
            raise ConfigError(
                f"{axis.name}: expected indices from 0 to {len(labels) - 1}, got {wrong or indices}"
            )
        return indices if value.dim() else indices[0]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ShapeError(f"{axis.name}: expected a label for each sample, got none")
        return [_place(axis, label) for label in value]
    return _place(axis, value)


def _place(axis: Axis, label: Label) -> int:
    labels = axis.labels or ()
    if isinstance(label, bool) or label not in labels:
        raise ConfigError(f"{axis.name}: expected one of {labels}, got {label!r}")
    return labels.index(label)
