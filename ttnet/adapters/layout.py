"""`make_layout`: from matrices and what is known of where they stand to the modes of a train."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import gcd, prod

from ttnet.adapters.axes import Axis, Label, Pattern, side_of
from ttnet.adapters.structure import Block, Layout, Site
from ttnet.errors import ConfigError, PatternError, ShapeError

__all__ = ["Block", "Layout", "Site", "make_layout"]

Factors = Mapping[str, tuple[tuple[int, ...], ...]]
"""For each factorized side, "in" or "out", the factors of each width, which is their product."""


def make_layout(
    pattern: Pattern,
    sites: Sequence[Site],
    *,
    declared: Sequence[Axis] = (),
    head_dim: int | None = None,
    factors: Factors | None = None,
) -> Layout:
    """The layout of adapted matrices whose `coordinates` hold whatever the coordinates function said.

    Args:
        pattern: The pattern.
        sites: The adapted matrices.
        declared: Axes of the user's own; given labels are kept, in their order.
            An axis that is declared and on which no site has a label is selected when the model runs.
        head_dim: Width of a chunk, needed where the pattern has a `head` axis.
        factors: Factors of the widths, for the sides that the pattern factorizes.

    Returns:
        The layout; its sites keep the labels on the pattern's axes alone.

    Raises:
        PatternError: Axes in an order that makes no sense, an axis on which a module has no label, or two
            modules with the same coordinates.
        ConfigError: `factors` for a side that is not factorized, or none for one that is.
        ShapeError: An output width that `head_dim` does not divide, or a width without factors.
    """
    pattern.check_order()
    sites = _separate_stacks(pattern, sites)
    given = {axis.name: axis for axis in declared}
    runtime = [axis for axis in pattern.structural if _is_runtime(axis, given.get(axis), sites)]
    _check_runtime(pattern, runtime, given)
    _check_parts(pattern, sites)
    own_axes = [axis for axis in pattern.structural if axis not in runtime]
    for axis in own_axes:
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
    kept = tuple(replace(s, coordinates={a: s.coordinates[a] for a in own_axes}) for s in sites)
    axes = tuple(
        _places(given[name]) if name in runtime else _axis(pattern, name, given.get(name), kept)
        for name in pattern.structural
    )
    by_side = _factors(pattern, kept, factors or {})
    if not pattern.has_head:
        return Layout(pattern, axes, kept, factors=by_side)
    if head_dim is None:
        raise pattern.error("head", "the model's configuration names no head size; give head_dim=...")
    for site in kept:
        if site.out_features % head_dim:
            common = gcd(*(each.out_features for each in kept))
            other = f"give head_dim={common}, which divides all widths, or " if common > 1 else ""
            raise ShapeError(
                f"head_dim: {head_dim} does not divide the output width {site.out_features} of {site.name!r}"
                f"; {other}leave it out with exclude_modules=[{_ending(site.module)!r}], pattern "
                f"{pattern.text!r}"
            )
    return Layout(pattern, axes, kept, head_dim, by_side)


def _ending(name: str) -> str:
    """The last part of a module's name, with the one before where it is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _is_runtime(axis: str, declared: Axis | None, sites: Sequence[Site]) -> bool:
    return declared is not None and not any(axis in site.coordinates for site in sites)


def _places(axis: Axis) -> Axis:
    return axis if axis.labels is not None else Axis(axis.name, labels=tuple(range(axis.size or 1)))


def _check_runtime(pattern: Pattern, runtime: Sequence[str], declared: Mapping[str, Axis]) -> None:
    between = {axis for mode in pattern.middle_modes for axis in mode}
    for axis in runtime:
        if declared[axis].size is None and declared[axis].labels is None:
            raise pattern.error(
                axis, f"no matrix has a label on it; give Axis({axis!r}, size=...) or labels, or coordinates"
            )
        if axis not in between:
            raise pattern.error(
                axis,
                "an axis that is selected when the model runs stands between the last 'in' axis and the "
                "first "
                "'out' or 'head' axis; move it there",
            )


def _check_parts(pattern: Pattern, sites: Sequence[Site]) -> None:
    left = [axis for mode in pattern.left_modes for axis in mode if side_of(axis) is None]
    if "matrix" in left and any(site.module != site.name for site in sites):
        raise pattern.error(
            "matrix",
            "the parts of a split module read the same x A: put 'matrix' right of 'in', or drop split",
        )


def _factors(
    pattern: Pattern, sites: Sequence[Site], given: Factors
) -> dict[str, dict[int, tuple[int, ...]]]:
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for side in ("in", "out"):
        axes = pattern.feature_axes(side)
        if axes[-1] == side:
            if side in given:
                raise ConfigError(
                    f"factors: pattern {pattern.text!r} has one axis {side!r}; write {side}1 {side}2 ..., or "
                    f"give no factors for it"
                )
            continue
        if side not in given:
            example = ", ".join("..." for _ in axes)
            raise ConfigError(
                f"factors: pattern {pattern.text!r} factorizes {side!r}; give "
                f"factors={{{side!r}: ({example})}}"
            )
        widths = [site.in_features if side == "in" else site.out_features for site in sites]
        found[side] = {
            width: _own_factors(side, len(axes), width, given[side]) for width in dict.fromkeys(widths)
        }
    return found


def _own_factors(side: str, count: int, width: int, given: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    own = [sizes for sizes in given if prod(sizes) == width]
    if not own:
        raise ShapeError(
            f"factors: none of those of {side!r}, {list(given)}, multiply to the width {width}; add some "
            f"that do (factors={{{side!r}: [..., ...]}} takes one tuple for each width), or exclude modules "
            "of that width"
        )
    if len(own[0]) != count:
        raise ShapeError(f"factors: expected {count} factors of {side!r}, as the pattern has, got {own[0]}")
    return own[0]


def _separate_stacks(pattern: Pattern, sites: Sequence[Site]) -> Sequence[Site]:
    """Let the label of a matrix name its stack too where stacks would collide, as in an encoder-decoder."""
    axes = pattern.structural
    if "matrix" not in axes or "stack" in axes or any("stack" not in site.coordinates for site in sites):
        return sites
    labels = {tuple(site.coordinates.get(axis) for axis in axes) for site in sites}
    if len(labels) == len(sites) or len({site.coordinates["stack"] for site in sites}) == 1:
        return sites
    return [
        replace(
            s, coordinates={**s.coordinates, "matrix": f"{s.coordinates['stack']}:{s.coordinates['matrix']}"}
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
        "has one; an axis that is selected when the model runs is declared, "
        f"as tasks=[...] or axes=[Axis({axis!r}, size=...)]"
    )
