"""`from_lora`: LoRA adapters, as peft saved them, compressed into one train."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters import TTAdapterConfig
from ttnet.adapters.axes import Axis, Label, parse_pattern
from ttnet.adapters.config import PRESETS
from ttnet.adapters.coordinates import Coordinates
from ttnet.adapters.coordinates import coordinates as default_coordinates
from ttnet.adapters.layout import make_layout
from ttnet.adapters.split import find_split
from ttnet.adapters.structure import Combo, Site
from ttnet.errors import ConfigError, ShapeError
from ttnet.interop.lora.compression import (
    RANK_8,
    TASK,
    Compression,
    Source,
    check_pattern,
    compress,
    split_columns,
)
from ttnet.interop.lora.peft_files import LoraFiles, read_lora
from ttnet.truncation import Truncation


@torch.no_grad()
def from_lora(
    directories: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    pattern: str | None = None,
    truncation: Truncation = RANK_8,
    max_error: float | None = None,
    sweeps: int = 20,
    axes: Sequence[Axis] = (),
    coordinates: Coordinates | None = None,
    exclude_modules: str | Sequence[str] = (),
    split: Mapping[str, Any] | None = None,
    head_dim: int | None = None,
    dtype: str = "float32",
) -> Compression:
    """Compress one or several LoRA adapters, as peft saved them, into one train; no model is needed.

    The factors are compressed as they are: neither a dW nor the tensor of all of them is formed. A TT-SVD
    gives ranks and first values, alternating least squares then lowers the error of the matrices themselves.
    Of several adapters, one that lacks a matrix of another has a zero there, which is fitted and reported.

    Args:
        directories: One directory; or several, for an axis `task`, whose labels are the names of the
            directories, or the keys of a mapping.
        pattern: The pattern, or "4d", "5d", "4+1d"; by default 4d, and 4+1d for several directories.
        truncation: Ranks, or an accuracy (`rtol`: that of all matrices together).
        max_error: Largest relative error of any matrix; `truncation` is made stricter until it is met.
        sweeps: Most sweeps of least squares; 0 leaves the TT-SVD as it is.
        axes: Axes of the user's own that the pattern uses.
        coordinates: A function (name, module) -> {axis: label}, called with an empty module.
        exclude_modules: Endings of names of modules that are left out, or a regular expression for the whole
            name.
        split: Fused modules whose parts count as matrices of their own, by ending of their name, such as
            ``{"c_attn": ("query", "key", "value")}`` or with a `Split`.
        head_dim: Width of a chunk of the `head` axis.
        dtype: Dtype of the cores.

    Returns:
        The adapter to save or to attach, with the error of each matrix.

    Raises:
        FormatError: A directory without a LoRA that can be compressed.
        PatternError: A pattern that does not fit, or an axis on which a module has no label.
        ShapeError: Adapters of different models, or a width that the `head` axis cannot split.
        RankError: A list of ranks that does not fit, or `max_error` is out of reach of `max_rank`.
        ConfigError: Another option has a value it cannot have.

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011); Holtz, Rohwedder, Schneider, SIAM J. Sci. Comput. 34,
        A683 (2012), for the sweeps.
    """
    given = _by_task(directories)
    loras = {task: read_lora(path) for task, path in given.items()}
    several = len(given) > 1
    text = PRESETS.get((pattern or "").lower(), pattern) or PRESETS["4+1d" if several else "4d"]
    parsed = parse_pattern(text, tuple(axes))
    if several and TASK not in parsed.axes:
        raise parsed.error(
            "out", f"{len(given)} adapters need the axis {TASK!r}, such as in 'in layer task matrix out'"
        )
    check_pattern(parsed)
    by_task = (*axes, Axis(TASK, labels=tuple(given))) if TASK in parsed.axes else tuple(axes)
    config = TTAdapterConfig(
        pattern=text,
        axes=by_task,
        head_dim=head_dim,
        dtype=dtype,
        split=split,
    )
    if config.split == "auto":
        raise ConfigError(
            "split: 'auto' needs the model, which is not here; give names, such as {'c_attn': "
            "('query', 'key', 'value')}, or a Split where they alternate"
        )
    widths = _widths(loras, exclude_modules)
    where = coordinates or default_coordinates
    sites = {
        name: _sites(name, pair, dict(where(name, nn.Identity())), config) for name, pair in widths.items()
    }
    unused = [ending for ending in config.split or {} if not any(_ends(name, ending) for name in widths)]
    if unused:
        raise ConfigError(
            f"split: no module is called {unused[0]!r}; there are {', '.join(list(widths)[:8])}"
        )
    sources = [
        source
        for k, (task, lora) in enumerate(loras.items())
        for source in _sources(
            lora, sites, f"{task}/" if several else "", (k,) if TASK in parsed.axes else ()
        )
    ]
    layout = make_layout(
        parsed, [site for own in sites.values() for site in own], declared=by_task, head_dim=head_dim
    )
    others = [axis.name for axis in layout.runtime if axis.name != TASK]
    if others:
        raise parsed.error(others[0], "no adapter says where it stands on it; give coordinates=...")
    modules, names, left_out = _whole_modules(loras, several)
    left_out |= {
        f"{task}/{name}" if several else name: float("inf")
        for task, lora in loras.items()
        for name in lora.base_copies
    }
    config = replace(
        config,
        target_modules=tuple(widths),
        modules_to_save=names,
        heads_by=TASK if several and names else None,
    )
    fitted = compress(sources, layout, config, truncation, max_error, sweeps)
    first = next(iter(loras.values()))
    base = {"class": first.base_class or "model", "name": first.base_model}
    saved = replace(fitted.saved, base=base, modules=modules, module_names=names)
    return replace(fitted, saved=saved, left_out=left_out)


def _by_task(
    directories: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
) -> dict[str, str | Path]:
    if isinstance(directories, str | Path):
        return {Path(directories).resolve().name or "default": directories}
    if isinstance(directories, Mapping):
        found = dict(directories)
    else:
        names = [Path(path).resolve().name for path in directories]
        if len(set(names)) < len(names):  # such as runs/a/lora, runs/b/lora
            names = [str(path) for path in directories]
        found = dict(zip(names, directories, strict=True))
        if len(found) < len(names):
            raise ConfigError(f"directories: one is given twice, {names}")
    if not found:
        raise ConfigError("directories: expected at least one directory that peft saved a LoRA in, got none")
    return found


def _widths(loras: Mapping[str, LoraFiles], exclude: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """Input and output width of every module that is compressed."""
    widths: dict[str, tuple[int, int]] = {}
    excluded = _excluded(list(dict.fromkeys(n for lora in loras.values() for n in lora.factors)), exclude)
    for task, lora in loras.items():
        for name, (a, b) in lora.factors.items():
            if name in excluded:
                continue
            pair = (a.shape[1], b.shape[0])
            if widths.setdefault(name, pair) != pair:
                raise ShapeError(
                    f"directories: '{task}/{name}' has the shape {pair}, in another adapter {widths[name]}; "
                    "compress adapters of one model together"
                )
    if not widths:
        raise ConfigError(f"exclude_modules: {exclude!r} leaves no matrix; exclude fewer")
    return widths


def _excluded(names: Sequence[str], exclude: str | Sequence[str]) -> set[str]:
    """The modules that `exclude_modules` means."""
    found: set[str] = set()
    for wanted in [exclude] if isinstance(exclude, str) else exclude:
        if isinstance(exclude, str):
            try:
                matching = {name for name in names if re.fullmatch(exclude, name)}
            except re.error as error:
                raise ConfigError(f"exclude_modules: {exclude!r} is no regular expression: {error}") from None
        else:
            matching = {name for name in names if _ends(name, wanted)}
        if not matching:
            remedy = f"; for an ending give a list, [{exclude!r}]" if isinstance(exclude, str) else ""
            raise ConfigError(
                f"exclude_modules: {wanted!r} matches no module{remedy}; there are {', '.join(names[:8])}"
            )
        found |= matching
    return found


def _sites(
    name: str, widths: tuple[int, int], labels: dict[str, Label], config: TTAdapterConfig
) -> list[Site]:
    """A module as one matrix, or as its parts."""
    split = find_split(config.split or {}, name)  # pyright: ignore[reportArgumentType]
    if split is None:
        return [Site(name, *widths, labels)]
    return [
        Site(
            f"{name}.{part}",
            widths[0],
            width,
            {**labels, "matrix": f"{labels.get('matrix', name)}.{part}"},
            name,
            split.groups,
        )
        for part, width in zip(split.parts, split.widths(name, widths[1]), strict=True)
    ]


def _sources(lora: LoraFiles, sites: Mapping[str, Sequence[Site]], prefix: str, combo: Combo) -> list[Source]:
    """One adapter's matrices, those that only others have as zeros."""
    found = []
    for name, own in sites.items():
        absent = name not in lora.factors
        if absent:
            left = torch.zeros(own[0].in_features, 1)
            right = torch.zeros(1, sum(site.out_features for site in own))
        else:
            left, right = lora.factors[name][0].T, _right(lora, name)
        found += [
            Source(
                key=f"{prefix}{site.name}",
                site=site.name,
                left=left,
                right=part,
                combo=combo,
                absent=absent,
            )
            for site, part in zip(own, split_columns(right, own), strict=True)
        ]
    return found


def _right(lora: LoraFiles, name: str) -> Tensor:
    """The scaled lora_B^T (r, out)."""
    b = lora.factors[name][1]
    return lora.scales[name] * b.T.to(torch.promote_types(b.dtype, torch.float32))


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _whole_modules(
    loras: Mapping[str, LoraFiles], several: bool
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, float]]:
    """Modules saved whole: each task keeps its own where all have the same, of the same shapes."""
    first = next(iter(loras.values()))
    shapes = [{key: value.shape for key, value in lora.modules.items()} for lora in loras.values()]
    if any(own != shapes[0] for own in shapes):
        left_out = {f"{task}/{key}": float("inf") for task, lora in loras.items() for key in lora.modules}
        return {}, (), left_out
    if not several:
        return dict(first.modules), first.module_names, {}
    found = {
        f"{name}.places.{k}{key.removeprefix(name)}": value
        for k, lora in enumerate(loras.values())
        for key, value in lora.modules.items()
        for name in first.module_names
        if key.startswith(f"{name}.")
    }
    return found, first.module_names, {}
