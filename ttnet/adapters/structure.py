"""Which rows, slices and columns of the cores each adapted matrix reads.

The `in` mode is the disjoint union of the distinct input widths, the `out` mode of the output widths, and a
matrix reads the rows and columns of its own widths; where a side is factorized, so is each of its modes. With
a `head` axis the output features are chunks of `head_dim`: the `out` mode has that size, the `head` mode
counts the chunks of the widest matrix, and a matrix reads the first of them. Axes on which no matrix has a
label, such as tasks, are selected when the model runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from ttnet.adapters.axes import Axis, Label, Pattern, parse_pattern, side_of
from ttnet.errors import ShapeError

Block = tuple[int, int]
"""Start and end of a range of indices of a mode."""

Key = tuple[int, tuple[int, ...]]
"""A width, and the slices of the structural modes of that part of the chain."""

Combo = tuple[int, ...]
"""A place on each axis that is selected when the model runs."""


@dataclass(frozen=True)
class Site:
    """One adapted matrix.

    Attributes:
        name: Its name: that of its module in the model, or of a part of a fused one.
        in_features: Input width.
        out_features: Output width.
        coordinates: Its label on each structural axis of the pattern that is not selected at run time.
        module: Name of its module; "" stands for `name`.
        groups: In how many groups of its columns the parts of a fused module alternate.
    """

    name: str
    in_features: int
    out_features: int
    coordinates: Mapping[str, Label]
    module: str = ""
    groups: int = 1

    def __post_init__(self) -> None:
        """Fill in the module's name."""
        object.__setattr__(self, "module", self.module or self.name)


@dataclass(frozen=True)
class Layout:
    """The modes of a train and what each adapted matrix reads of them.

    Attributes:
        pattern: The pattern.
        axes: The structural axes in the pattern's order, with all their labels.
        sites: The adapted matrices.
        head_dim: Width of a chunk of the `head` axis, None without one.
        factors: For a factorized side, "in" or "out", the factors of each width.
    """

    pattern: Pattern
    axes: tuple[Axis, ...]
    sites: tuple[Site, ...]
    head_dim: int | None = None
    factors: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)

    @cached_property
    def in_blocks(self) -> dict[int, Block]:
        """For each distinct input width its place in the disjoint union of the input widths."""
        return _blocks(site.in_features for site in self.sites)

    @cached_property
    def out_blocks(self) -> dict[int, Block]:
        """For each distinct output width its place in their union, or in `head` and `out` as one mode."""
        widths = [site.out_features for site in self.sites]
        if self.head_dim is None:
            return _blocks(widths)
        return {width: (0, width) for width in dict.fromkeys(widths)}

    @cached_property
    def feature_blocks(self) -> dict[str, dict[int, dict[str, Block]]]:
        """For each side and each distinct width of it, what it reads of each of the side's modes."""
        found: dict[str, dict[int, dict[str, Block]]] = {}
        for side, blocks in (("in", self.in_blocks), ("out", self.out_blocks)):
            axes = self.pattern.feature_axes(side)
            if axes == ("head", "out"):
                dim = self.head_dim or 1
                found[side] = {width: {"head": (0, width // dim), "out": (0, dim)} for width in blocks}
            elif side in self.factors:
                starts = dict.fromkeys(axes, 0)
                found[side] = {}
                for width in blocks:
                    ends = {
                        axis: starts[axis] + size
                        for axis, size in zip(axes, self.factors[side][width], strict=True)
                    }
                    found[side][width] = {axis: (starts[axis], ends[axis]) for axis in axes}
                    starts = ends
            else:
                found[side] = {width: {side: block} for width, block in blocks.items()}
        return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of each axis."""
        sizes = {axis.name: len(axis.labels or ()) for axis in self.axes}
        for blocks in self.feature_blocks.values():
            for own in blocks.values():
                for axis, (_, end) in own.items():
                    sizes[axis] = max(sizes.get(axis, 0), end)
        return sizes

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode of the train."""
        return tuple(prod(self.sizes[axis] for axis in mode) for mode in self.pattern.modes)

    @cached_property
    def runtime(self) -> tuple[Axis, ...]:
        """The axes that are selected when the model runs: no matrix has a label on them."""
        return tuple(axis for axis in self.axes if axis.name not in self.sites[0].coordinates)

    @cached_property
    def combos(self) -> tuple[Combo, ...]:
        """All combinations of places on the axes of `runtime`; one empty one without such axes."""
        found: list[Combo] = [()]
        for axis in self.runtime:
            found = [(*combo, k) for combo in found for k in range(len(axis.labels or ()))]
        return tuple(found)

    @cached_property
    def _positions(self) -> dict[str, dict[Label, int]]:
        return {axis.name: {label: k for k, label in enumerate(axis.labels or ())} for axis in self.axes}

    def place(self, mode: Sequence[str], site: Site, combo: Combo = ()) -> int:
        """The slice of a structural mode that a site reads.

        Args:
            mode: Axes of the mode.
            site: The matrix.
            combo: Its places on the axes of `runtime`.
        """
        selected = {axis.name: k for axis, k in zip(self.runtime, combo, strict=False)}
        index = 0
        for axis in mode:
            own = selected[axis] if axis in selected else self._positions[axis][site.coordinates[axis]]
            index = index * self.sizes[axis] + own
        return index

    @cached_property
    def left_keys(self) -> tuple[Key, ...]:
        """The distinct factors A: an input width, and slices of structural modes left of the cut, if any."""
        return tuple(dict.fromkeys(self._key(site, "in") for site in self.sites))

    @cached_property
    def left_of(self) -> tuple[int, ...]:
        """For each site the index of its A in `left_keys`."""
        return tuple(self.left_keys.index(self._key(site, "in")) for site in self.sites)

    @cached_property
    def right_keys(self) -> tuple[Key, ...]:
        """The distinct right ends: an output width, and slices of structural modes right of `out`, if any."""
        return tuple(dict.fromkeys(self._key(site, "out") for site in self.sites))

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """For each right end in `right_keys` the indices of its sites."""
        keys = [self._key(site, "out") for site in self.sites]
        return tuple(tuple(k for k, own in enumerate(keys) if own == key) for key in self.right_keys)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The sites, those of one group beside each other."""
        return tuple(site for members in self.groups for site in members)

    @cached_property
    def modules(self) -> dict[str, tuple[int, ...]]:
        """For each adapted module the indices of its sites: one, or the parts of a fused module in order."""
        found: dict[str, tuple[int, ...]] = {}
        for k, site in enumerate(self.sites):
            found[site.module] = (*found.get(site.module, ()), k)
        return found

    def slice_indices(self, device: torch.device, combos: tuple[Combo, ...] = ((),)) -> tuple[Tensor, ...]:
        """For each middle mode, the slice that each site reads under each of the combos, as index tensors.

        Args:
            device: Where they are needed.
            combos: Places on the axes of `runtime`.

        Returns:
            Index tensors of shape (sites * combos,), the sites in the order of `order`.
        """
        if torch.compiler.is_compiling():
            return self._make_indices(device, combos)
        key = (device, combos)
        if key not in self._indices:
            if len(self._indices) > 64:
                self._indices.clear()
            with torch.inference_mode(False):  # they are saved for the backward pass later on
                self._indices[key] = self._make_indices(device, combos)
        return self._indices[key]

    @cached_property
    def _indices(self) -> dict[tuple[torch.device, tuple[Combo, ...]], tuple[Tensor, ...]]:
        return {}

    def _make_indices(self, device: torch.device, combos: tuple[Combo, ...]) -> tuple[Tensor, ...]:
        return tuple(
            torch.tensor(
                [self.place(mode, self.sites[k], combo) for k in self.order for combo in combos],
                device=device,
            )
            for mode in self.pattern.middle_modes
        )

    def _key(self, site: Site, side: str) -> Key:
        modes = self.pattern.left_modes if side == "in" else self.pattern.right_modes
        places = tuple(self.place(mode, site) for mode in modes if side_of(mode[0]) is None)
        return site.in_features if side == "in" else site.out_features, places

    @property
    def presence(self) -> tuple[tuple[Label, ...], ...]:
        """The labels of each site in the order of `axes`, without those selected at run time."""
        model = [axis.name for axis in self.axes if axis not in self.runtime]
        return tuple(tuple(site.coordinates[name] for name in model) for site in self.sites)

    def prepare(self) -> None:
        """Compute all that is cached, as a compiled model needs it: a trace cannot."""
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                getattr(self, name)

    def lora_parameters(self, rank: int) -> int:
        """Number of parameters of a LoRA of this rank on the same matrices."""
        return sum(rank * (site.in_features + site.out_features) for site in self.sites)

    def index(self, name: str) -> int:
        """Index of the site with a name.

        Raises:
            ShapeError: No adapted matrix has this name.
        """
        for k, site in enumerate(self.sites):
            if site.name == name:
                return k
        raise ShapeError(f"name: {name!r} is not an adapted matrix; they are {[s.name for s in self.sites]}")

    def members(self, name: str) -> tuple[int, ...]:
        """Indices of the sites of an adapted module, or of one site where a part is named.

        Raises:
            ShapeError: No adapted module or matrix has this name.
        """
        return self.modules.get(name) or (self.index(name),)

    def grown(self, axis: str, label: Label) -> "Layout":
        """The layout with one more place at the end of an axis."""
        axes = tuple(
            Axis(a.name, labels=(*(a.labels or ()), label)) if a.name == axis else a for a in self.axes
        )
        return replace(self, axes=axes)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values, which `from_dict` reads."""
        return {
            "pattern": self.pattern.text,
            "axes": [{"name": a.name, "size": a.size, "labels": list(a.labels or ())} for a in self.axes],
            "in_widths": list(self.in_blocks),
            "out_widths": list(self.out_blocks),
            "head_dim": self.head_dim,
            "factors": {
                side: [[width, list(sizes)] for width, sizes in own.items()]
                for side, own in self.factors.items()
            },
            "shape": list(self.shape),
            "matrices": [_site_values(site) for site in self.sites],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Layout":
        """The layout that `to_dict` wrote.

        Raises:
            PatternError: The pattern cannot be read, or a matrix has a label its axis does not have.
            KeyError: An entry is missing.
        """
        axes = tuple(Axis(axis["name"], axis["size"], axis["labels"]) for axis in values["axes"])
        pattern = parse_pattern(values["pattern"], axes)
        pattern.check_order()
        sites = tuple(
            Site(m["name"], m["in"], m["out"], m["coordinates"], m.get("module", ""), m.get("groups", 1))
            for m in values["matrices"]
        )
        factors = {
            side: {width: tuple(sizes) for width, sizes in own}
            for side, own in values.get("factors", {}).items()
        }
        layout = cls(pattern, axes, sites, values["head_dim"], factors)
        selected = {axis.name for axis in layout.runtime}
        for axis in axes:
            for site in sites:
                if axis.name not in selected and site.coordinates[axis.name] not in (axis.labels or ()):
                    raise pattern.error(axis.name, f"{site.name!r} has a label that the axis does not have")
        return layout


def _site_values(site: Site) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": site.name,
        "in": site.in_features,
        "out": site.out_features,
        "coordinates": dict(site.coordinates),
    }
    if site.module != site.name:
        values |= {"module": site.module, "groups": site.groups}
    return values


def _blocks(widths: Any) -> dict[int, Block]:
    distinct = list(dict.fromkeys(widths))
    ends = list(accumulate(distinct))
    return {width: (end - width, end) for width, end in zip(distinct, ends, strict=True)}
