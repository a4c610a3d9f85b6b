"""Which rows, slices and columns of the cores each adapted matrix reads.

The `in` mode is the disjoint union of the distinct input widths, the `out` mode of the output widths, and a
matrix reads the rows and columns of its own widths. With a `head` axis the output features are chunks of
`head_dim`: the `out` mode has that size, the `head` mode counts the chunks of the widest matrix, and a matrix
reads the first of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from ttnet.adapters.axes import Axis, Label, Pattern, parse_pattern
from ttnet.errors import PatternError, ShapeError

Block = tuple[int, int]
"""Start and end of a range of indices of a mode."""


@dataclass(frozen=True)
class Site:
    """One adapted matrix.

    Attributes:
        name: Name of its module in the model.
        in_features: Input width.
        out_features: Output width.
        coordinates: Its label on each structural axis of the pattern.
    """

    name: str
    in_features: int
    out_features: int
    coordinates: Mapping[str, Label]


@dataclass(frozen=True)
class Layout:
    """The modes of a train and what each adapted matrix reads of them.

    Attributes:
        pattern: The pattern.
        axes: The structural axes in the pattern's order, with all their labels.
        sites: The adapted matrices.
        head_dim: Width of a chunk of the `head` axis, None without one.
    """

    pattern: Pattern
    axes: tuple[Axis, ...]
    sites: tuple[Site, ...]
    head_dim: int | None = None

    @cached_property
    def in_blocks(self) -> dict[int, Block]:
        """For each distinct input width its rows of the `in` mode."""
        return _blocks(site.in_features for site in self.sites)

    @cached_property
    def out_blocks(self) -> dict[int, Block]:
        """For each distinct output width its columns of `out`, or of `head` and `out` taken as one mode."""
        widths = [site.out_features for site in self.sites]
        if self.head_dim is None:
            return _blocks(widths)
        return {width: (0, width) for width in dict.fromkeys(widths)}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode of the train."""
        sizes = {axis.name: len(axis.labels or ()) for axis in self.axes}
        sizes["in"] = max(end for _, end in self.in_blocks.values())
        sizes["out"] = max(end for _, end in self.out_blocks.values())
        if self.head_dim is not None:
            sizes["head"], sizes["out"] = sizes["out"] // self.head_dim, self.head_dim
        return tuple(prod(sizes[axis] for axis in mode) for mode in self.pattern.modes)

    @cached_property
    def slices(self) -> tuple[tuple[int, ...], ...]:
        """For each structural mode, the slice of its core that each site reads."""
        places = {axis.name: {label: k for k, label in enumerate(axis.labels or ())} for axis in self.axes}
        return tuple(
            tuple(
                _ravel([(places[a][site.coordinates[a]], len(places[a])) for a in mode])
                for site in self.sites
            )
            for mode in self.pattern.structural_modes
        )

    @cached_property
    def groups(self) -> dict[int, tuple[int, ...]]:
        """For each distinct output width the indices of its sites."""
        return {
            width: tuple(k for k, site in enumerate(self.sites) if site.out_features == width)
            for width in self.out_blocks
        }

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The sites, those of one group beside each other."""
        return tuple(site for members in self.groups.values() for site in members)

    def slice_indices(self, device: torch.device) -> tuple[Tensor, ...]:
        """For each structural mode, `slices` in the order of `order`, as index tensors."""
        if torch.compiler.is_compiling():
            return self._make_indices(device)
        if device not in self._indices:
            with torch.inference_mode(False):  # they are saved for the backward pass later on
                self._indices[device] = self._make_indices(device)
        return self._indices[device]

    @cached_property
    def _indices(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    def _make_indices(self, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([places[k] for k in self.order], device=device) for places in self.slices)

    @property
    def presence(self) -> tuple[tuple[Label, ...], ...]:
        """The labels of each site in the order of `axes`: the used places of the structural axes."""
        return tuple(tuple(site.coordinates[axis.name] for axis in self.axes) for site in self.sites)

    def lora_parameters(self, rank: int) -> int:
        """Number of parameters of a LoRA of this rank on the same matrices."""
        return sum(rank * (site.in_features + site.out_features) for site in self.sites)

    def index(self, name: str) -> int:
        """Index of the site with a module's name.

        Raises:
            ShapeError: No adapted matrix has this name.
        """
        for k, site in enumerate(self.sites):
            if site.name == name:
                return k
        raise ShapeError(f"name: {name!r} is not an adapted matrix; they are {[s.name for s in self.sites]}")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values, which `from_dict` reads."""
        return {
            "pattern": self.pattern.text,
            "axes": [{"name": a.name, "size": a.size, "labels": list(a.labels or ())} for a in self.axes],
            "in_widths": list(self.in_blocks),
            "out_widths": list(self.out_blocks),
            "head_dim": self.head_dim,
            "shape": list(self.shape),
            "matrices": [
                {
                    "name": site.name,
                    "in": site.in_features,
                    "out": site.out_features,
                    "coordinates": dict(site.coordinates),
                }
                for site in self.sites
            ],
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
        pattern.check_built()
        sites = tuple(Site(m["name"], m["in"], m["out"], m["coordinates"]) for m in values["matrices"])
        for axis in axes:
            for site in sites:
                if site.coordinates[axis.name] not in (axis.labels or ()):
                    raise pattern.error(axis.name, f"{site.name!r} has a label that the axis does not have")
        return cls(pattern, axes, sites, values["head_dim"])


def make_layout(
    pattern: Pattern, sites: Sequence[Site], *, declared: Sequence[Axis] = (), head_dim: int | None = None
) -> Layout:
    """The layout of adapted matrices whose `coordinates` hold whatever the coordinates function said.

    Args:
        pattern: The pattern.
        sites: The adapted matrices.
        declared: Axes of the user's own; given labels are kept, in their order.
        head_dim: Width of a chunk, needed where the pattern has a `head` axis.

    Returns:
        The layout; its sites keep the labels on the pattern's axes alone.

    Raises:
        PatternError: A pattern that is not built, an axis on which a module has no label, or two modules with
            the same coordinates.
        ShapeError: An output width that `head_dim` does not divide.
    """
    pattern.check_built()
    sites = _separate_stacks(pattern, sites)
    for axis in pattern.structural:
        for site in sites:
            if axis not in site.coordinates:
                raise pattern.error(axis, _no_label(axis, site))
            label = site.coordinates[axis]
            if isinstance(label, bool) or not isinstance(label, int | str):
                raise pattern.error(axis, f"{site.name!r} has the label {label!r}; use an integer or a text")
    seen: dict[tuple[tuple[str, Label], ...], str] = {}
    for site in sites:
        key = tuple(sorted(site.coordinates.items()))
        if key in seen:
            raise PatternError(
                f"coordinates: {seen[key]!r} and {site.name!r} have the same labels {dict(key)}; "
                "give matrices that share no slice different labels"
            )
        seen[key] = site.name
    kept = tuple(
        Site(s.name, s.in_features, s.out_features, {a: s.coordinates[a] for a in pattern.structural})
        for s in sites
    )
    given = {axis.name: axis for axis in declared}
    axes = tuple(_axis(pattern, name, given.get(name), kept) for name in pattern.structural)
    if not pattern.has_head:
        return Layout(pattern, axes, kept)
    if head_dim is None:
        raise pattern.error("head", "the model's configuration names no head size; give head_dim=...")
    for site in kept:
        if site.out_features % head_dim:
            raise ShapeError(
                f"head_dim: {head_dim} does not divide the output width {site.out_features} of {site.name!r}"
                f"; give another head_dim, or exclude the module, pattern {pattern.text!r}"
            )
    return Layout(pattern, axes, kept, head_dim)


def _separate_stacks(pattern: Pattern, sites: Sequence[Site]) -> Sequence[Site]:
    """Let the label of a matrix name its stack too where stacks would collide, as in an encoder-decoder."""
    axes = pattern.structural
    if "matrix" not in axes or "stack" in axes or any("stack" not in site.coordinates for site in sites):
        return sites
    labels = {tuple(site.coordinates.get(axis) for axis in axes) for site in sites}
    if len(labels) == len(sites) or len({site.coordinates["stack"] for site in sites}) == 1:
        return sites
    return [
        Site(
            s.name,
            s.in_features,
            s.out_features,
            {**s.coordinates, "matrix": f"{s.coordinates['stack']}:{s.coordinates['matrix']}"},
        )
        for s in sites
    ]


def _axis(pattern: Pattern, name: str, declared: Axis | None, sites: Sequence[Site]) -> Axis:
    labels: list[Label] = list(dict.fromkeys(site.coordinates[name] for site in sites))
    if all(isinstance(label, int) for label in labels):
        labels.sort()
    if declared is None:
        return Axis(name, labels=tuple(labels))
    if declared.labels is not None:
        missing = [label for label in labels if label not in declared.labels]
        if missing:
            raise pattern.error(name, f"labels {missing} are used, but the axis has {declared.labels}")
        return declared
    if declared.size is not None and declared.size != len(labels):
        raise pattern.error(name, f"its size is {declared.size}, but {len(labels)} labels are used: {labels}")
    return Axis(name, labels=tuple(labels))


def _no_label(axis: str, site: Site) -> str:
    if axis == "layer":
        return (
            f"module {site.name!r} stands in no layer; leave it out with exclude_modules=[{site.name!r}], "
            "or say where it stands with coordinates=..."
        )
    return (
        f"module {site.name!r} has no label on it, only {dict(site.coordinates)}; give coordinates=... that "
        "has one (axes selected when the model runs, such as a task, are not built yet)"
    )


def _blocks(widths: Any) -> dict[int, Block]:
    distinct = list(dict.fromkeys(widths))
    ends = list(accumulate(distinct))
    return {width: (end - width, end) for width, end in zip(distinct, ends, strict=True)}


def _ravel(places: Sequence[tuple[int, int]]) -> int:
    index = 0
    for place, size in places:
        index = index * size + place
    return index
