"""`from_delta`: what fine-tuning changed in a model, compressed into one train."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters import TTAdapterConfig
from ttnet.adapters.config import PRESETS
from ttnet.adapters.coordinates import Coordinates
from ttnet.adapters.head_dim import head_dim_of
from ttnet.adapters.layout import make_layout
from ttnet.adapters.linear import is_conv1d, linear_widths
from ttnet.adapters.targets import find_saved_modules, find_sites
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.interop.lora.compression import (
    RANK_8,
    Compression,
    Source,
    check_pattern,
    compress,
    split_columns,
)
from ttnet.interop.lora.low_rank import relative
from ttnet.truncation import Truncation

_NOT_TAKEN = ("rank", "alpha", "alpha_scaling", "init", "init_std", "seed", "frozen", "diagonal")
"""Options of an adapter that is made anew."""


@torch.no_grad()
def from_delta(
    base: nn.Module,
    tuned: nn.Module,
    *,
    pattern: str = "4d",
    truncation: Truncation = RANK_8,
    max_error: float | None = None,
    sweeps: int = 20,
    coordinates: Coordinates | None = None,
    **options: Any,
) -> Compression:
    """Compress what fine-tuning changed into one train over the targeted matrices.

    Args:
        base: The model before; neither model is changed.
        tuned: The model after, of the same kind.
        pattern: The pattern, or "4d", "5d".
        truncation: Ranks, or an accuracy (`rtol`: that of all matrices together).
        max_error: Largest relative error of any matrix; `truncation` is made stricter until it is met.
        sweeps: Most sweeps of least squares; 0 leaves the TT-SVD as it is.
        coordinates: A function (name, module) -> {axis: label}.
        options: Options of `TTAdapterConfig`: `target_modules`, `exclude_modules`, `layers_to_transform`,
            `modules_to_save` (taken from `tuned` whole, by default the classifier), `axes`, `head_dim`, ...
            Those of an adapter that is made anew (`rank`, `alpha`, `init`, `frozen`, `diagonal`) are not
            taken: `truncation` says the ranks, and the cores stand for dW itself.

    Returns:
        The adapter for `base`, with the error of each matrix, and in `left_out` what else differs.

    Raises:
        ConfigError: A target that matches nothing, models of different kinds, or an option that is not taken.
        PatternError: A pattern that does not fit, or an axis on which a module has no label.
        ShapeError: A module of another shape in `tuned`.
        DTypeError: A weight that is quantized.
        NonFiniteError: A weight that is not finite.
        RankError: A list of ranks that does not fit, or `max_error` is out of reach of `max_rank`.
    """
    refused = [name for name in _NOT_TAKEN if name in options]
    if refused:
        raise ConfigError(
            f"{refused[0]}: from_delta does not take it; the cores follow from the matrices, and their ranks "
            "from truncation=Truncation(max_rank=...)"
        )
    text = PRESETS.get(pattern.lower(), pattern)
    config = TTAdapterConfig(pattern=text, **options)
    check_pattern(config.parsed)
    names = find_saved_modules(base, config.modules_to_save)
    sites = find_sites(base, config, names, coordinates)
    head_dim = (config.head_dim or head_dim_of(base, sites)) if config.parsed.has_head else None
    layout = make_layout(config.parsed, sites, declared=tuple(config.axes), head_dim=head_dim)
    if layout.runtime:
        axis = layout.runtime[0].name
        raise config.parsed.error(axis, "a single model says nothing of an axis that is selected at run time")
    others = dict(tuned.named_modules())
    sources = []
    for module, members in layout.modules.items():
        own = [layout.sites[k] for k in members]
        parts = split_columns(_change(base, others, module), own)
        sources += [
            Source(key=s.name, site=s.name, left=None, right=part) for s, part in zip(own, parts, strict=True)
        ]
    modules = _saved_modules(base, others, names)
    fitted = compress(sources, layout, config, truncation, max_error, sweeps)
    known = {*modules, *(f"{module}.weight" for module in layout.modules)}
    saved = replace(
        fitted.saved,
        base={
            "class": type(base).__name__,
            "name": getattr(getattr(base, "config", None), "_name_or_path", None),
        },
        modules=modules,
        module_names=names,
    )
    return replace(fitted, saved=saved, left_out=_other_changes(base, tuned, known))


def _saved_modules(
    base: nn.Module, others: Mapping[str, nn.Module], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors of the tuned model's modules that are taken whole."""
    found: dict[str, Tensor] = {}
    for name in names:
        if name not in others:
            raise ConfigError(f"modules_to_save: tuned has no module {name!r}; give models of one kind")
        before = base.get_submodule(name).state_dict()
        for key, value in others[name].state_dict().items():
            if key not in before or before[key].shape != value.shape:
                shape = tuple(before[key].shape) if key in before else None
                raise ConfigError(
                    f"modules_to_save: '{name}.{key}' has the shape {tuple(value.shape)} in tuned, in base "
                    f"{shape}; build the base with the same number of labels, or leave it out"
                )
            found[f"{name}.{key}"] = value.detach().clone()
    return found


def _change(base: nn.Module, others: Mapping[str, nn.Module], name: str) -> Tensor:
    """DW (in, out) of one module."""
    old, new = base.get_submodule(name), others.get(name)
    widths = None if new is None else linear_widths(new)
    if new is None or widths is None:
        raise ConfigError(
            f"tuned: it has no linear module {name!r}; give models of one kind, without adapters"
        )
    if widths != linear_widths(old):
        raise ShapeError(f"tuned: {name!r} has the shape {widths}, in base {linear_widths(old)}")
    weights = []
    for module in (old, new):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise DTypeError(f"the weight of {name!r} is quantized; dequantize the model first")
        weights.append(weight.detach())
    wide = torch.promote_types(torch.promote_types(weights[0].dtype, weights[1].dtype), torch.float32)
    change = weights[1].to(weights[0].device, wide) - weights[0].to(wide)
    if not bool(change.isfinite().all()):
        raise NonFiniteError(f"the change of {name!r} is not finite; check the weights of both models")
    return change if is_conv1d(old) else change.T


def _other_changes(base: nn.Module, tuned: nn.Module, known: set[str]) -> dict[str, float]:
    """Relative change of every tensor that the adapter does not hold."""
    before, found = base.state_dict(), {}
    for name, value in tuned.state_dict().items():
        old = before.get(name)
        if name in known or not value.is_floating_point():
            continue
        if old is None or old.shape != value.shape:
            found[name] = float("inf")
        elif not torch.equal(old, value.to(old)):
            found[name] = relative(
                float((value.to(old.device).double() - old.double()).norm()), float(old.double().norm())
            )
    return found
