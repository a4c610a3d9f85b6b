"""Whether the entries of a saved config are what `save` writes: kinds, ranges, and that they fit together."""

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.structure import Layout


def check_values(values: Mapping[str, Any], config: TTAdapterConfig, layout: Layout) -> None:
    """Check what the types of `TTAdapterConfig` and `Layout` do not check themselves.

    Args:
        values: The file's entries.
        config: The options, as read from them.
        layout: The layout, as read from them.

    Raises:
        ValueError: An entry of another kind, out of range, or that contradicts another.
    """
    _require(_is_number(values["scale"]), "scale is no finite number")
    _require(all(map(_is_count, values["ranks"])), "ranks are no positive integers")
    names = values["modules_to_save"]
    _require(
        isinstance(names, list) and all(isinstance(name, str) for name in names), "modules_to_save is no list"
    )
    _check_sites(config, layout)
    _check_features(layout)
    _require(list(layout.shape) == values["layout"]["shape"], "the shape is not that of the matrices")
    base = values["base_model"]
    _require(isinstance(base, dict), "base_model is no mapping")
    sample = base.get("sample") or {}
    _require(isinstance(sample, dict) and set(sample) <= set(layout.modules), "sample names other modules")
    numbers = [value for own in sample.values() for value in own or ()]
    _require(all(map(_is_number, numbers)), "sample holds something else than numbers")


def _check_sites(config: TTAdapterConfig, layout: Layout) -> None:
    sites, axes = layout.sites, [axis.name for axis in layout.axes]
    _require(bool(sites), "there are no matrices")
    _require(axes == list(layout.pattern.structural), "the axes are not those of the pattern")
    for site in sites:
        _require(isinstance(site.name, str) and isinstance(site.module, str), "a matrix has no name")
        sizes = (site.in_features, site.out_features, site.groups)
        _require(all(map(_is_count, sizes)), f"{site.name!r} has the widths and groups {sizes}")
        _require(not site.out_features % site.groups, f"{site.name!r} cannot be split into its groups")
        _require(set(site.coordinates) == set(sites[0].coordinates) <= set(axes), f"labels of {site.name!r}")
    declared = {axis.name for axis in config.axes}
    between = {axis for mode in layout.pattern.middle_modes for axis in mode}
    selected = {axis.name for axis in layout.runtime}
    _require(selected <= declared & between, "the matrices have no labels on an axis")


def _check_features(layout: Layout) -> None:
    dim, has_head = layout.head_dim, layout.pattern.has_head
    widths = {
        "in": {site.in_features for site in layout.sites},
        "out": {site.out_features for site in layout.sites},
    }
    _require(_is_count(dim) if has_head else dim is None, f"head_dim is {dim!r}")
    _require(
        not has_head or not any(width % (dim or 1) for width in widths["out"]), "head_dim divides no width"
    )
    for side, own in widths.items():
        axes = layout.pattern.feature_axes(side)
        factors = layout.factors.get(side, {})
        wanted = own if axes[-1] != side else set()
        _require(set(factors) == wanted, f"factors of {side!r} are for the widths {sorted(factors)}")
        for width, sizes in factors.items():
            fits = all(map(_is_count, sizes)) and len(sizes) == len(axes) and prod(sizes) == width
            _require(fits, f"factors of {side!r}: {sizes} for {width}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)
