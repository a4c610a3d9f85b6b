"""`attach` a new adapter to a model, `load` a saved one."""

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ttnet.adapters import files
from ttnet.adapters.adapter import NAME, TTAdapter
from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.coordinates import Coordinates
from ttnet.adapters.coordinates import coordinates as default_coordinates
from ttnet.adapters.head_dim import head_dim_of
from ttnet.adapters.initialization import initial_train
from ttnet.adapters.layout import make_layout
from ttnet.adapters.linear import linear_widths
from ttnet.adapters.quantized import device_of, is_dense
from ttnet.adapters.structure import Layout, Site
from ttnet.adapters.targets import find_saved_modules, find_sites
from ttnet.adapters.tasks import run_time_axis
from ttnet.errors import ConfigError, DeviceError, FormatError, StateError
from ttnet.tensor_train import TensorTrain


def attach(model: nn.Module, config: TTAdapterConfig, coordinates: Coordinates | None = None) -> TTAdapter:
    """Put one tensor train behind the chosen matrices of a model.

    The model is frozen; the cores, and the classifier or what else `modules_to_save` names, are trainable.

    Args:
        model: Any model made of `nn.Linear` or GPT-2's `Conv1D`; changed in place.
        config: The options, for instance `MetaTT("4d", rank=8, target_modules=["query", "value"])`.
        coordinates: A function (name, module) -> {axis: label} that says where a matrix stands; by default
            `ttnet.adapters.coordinates`.

    Returns:
        The adapter, registered in the model as `tt_adapter`.

    Raises:
        ConfigError: A target that matches nothing, or another option that does not fit the model.
        PatternError: Axes in an order that makes no sense, or an axis on which a module has no label.
        RankError: A list of ranks that the bonds cannot have.
        ShapeError: A width that the `head` axis cannot split.
        StateError: The model has an adapter already.

    Examples:
        >>> import torch
        >>> from ttnet.adapters import MetaTT, attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> adapter = attach(model, MetaTT("4d", rank=2, target_modules="all-linear"))
        >>> adapter.cores.shape, adapter.num_parameters
        ((24, 2, 1, 20), 100)
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, TTAdapterConfig):
        raise ConfigError(
            f"config: expected a TTAdapterConfig, such as MetaTT('4d'), got {type(config).__name__}"
        )
    _check_free(model)
    config.parsed.check_order()
    saved = find_saved_modules(model, config.modules_to_save)
    sites = find_sites(model, config, saved, coordinates)
    head_dim = (config.head_dim or head_dim_of(model, sites)) if config.parsed.has_head else None
    layout = make_layout(
        config.parsed,
        sites,
        declared=tuple(config.axes),
        head_dim=head_dim,
        factors=config.factors,  # pyright: ignore[reportArgumentType]
    )
    if config.heads_by is not None:
        run_time_axis(layout, config.heads_by)
    train = initial_train(layout, config)
    scale = config.alpha / train.ranks[1] if config.alpha_scaling else config.alpha
    return _install(model, config, layout, train, scale, saved)


def load(model: nn.Module, directory: str | Path) -> TTAdapter:
    """Put a saved adapter on a model of the kind it was made on.

    Args:
        model: The base model, without an adapter; changed in place.
        directory: Where `TTAdapter.save` wrote.

    Returns:
        The adapter, with the same bits.

    Raises:
        FormatError: A file that is missing, damaged or foreign, or an adapter made on another model.
        ShapeError: A core, or a module trained whole, that does not fit the model.
        DeviceError: A model on the meta device.
        StateError: The model has an adapter already.
    """
    saved = files.read(directory)
    _check_free(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise DeviceError(
            "model: it has parameters on the meta device, which hold no values; load the weights first"
        )
    modules = dict(model.named_modules())
    widths = {name: linear_widths(module) for name, module in modules.items()}
    missing = [site.module for site in saved.layout.sites if widths.get(site.module) is None]
    if missing:
        raise FormatError(
            f"{directory}: made on {files.describe(saved.base)}, and this {type(model).__name__} has no "
            f"linear module {missing[0]!r}; load it on the model it was made on"
        )
    sites = tuple(_resized(saved.layout, site, widths[site.module] or (0, 0)) for site in saved.layout.sites)
    layout = replace(saved.layout, sites=sites)
    files.check_layout(saved, layout)
    _check_base(model, saved, directory)
    names = saved.module_names
    absent = [name for name in names if name not in modules]
    if absent:
        raise FormatError(
            f"modules_to_save: {directory} holds the module {absent[0]!r}, which this {type(model).__name__} "
            f"does not have; load it on {files.describe(saved.base)}"
        )
    state = files.check_modules(saved, _expected_state(model, saved))
    _warn_of_other_weights(model, saved, directory)
    adapter = _install(model, saved.config, layout, saved.train, saved.scale, names)
    adapter.load_modules(state)
    return adapter


def _resized(layout: Layout, site: Site, widths: tuple[int, int]) -> Site:
    """A saved site with the widths its module has in the model at hand."""
    members = layout.modules[site.module]
    saved = sum(layout.sites[k].out_features for k in members)
    out = site.out_features if widths[1] == saved else widths[1] // len(members)
    return replace(site, in_features=widths[0], out_features=out)


def _expected_state(model: nn.Module, saved: files.SavedAdapter) -> dict[str, Tensor]:
    """The tensors of the modules trained whole by the names they have in a file."""
    axis = saved.config.heads_by
    copies = [""] if axis is None else [f"places.{k}." for k in range(saved.layout.sizes[axis])]
    return {
        f"{name}.{own}{key}": value
        for name in saved.module_names
        for own in copies
        for key, value in model.get_submodule(name).state_dict().items()
    }


def _install(
    model: nn.Module,
    config: TTAdapterConfig,
    layout: Layout,
    train: TensorTrain,
    scale: float,
    saved: tuple[str, ...],
) -> TTAdapter:
    devices = {device_of(model.get_submodule(site.module)) for site in layout.sites}
    if len(devices) > 1:
        raise DeviceError(
            f"model: its matrices are on several devices, {sorted(map(str, devices))}; put it on one, "
            "or shard it after attach"
        )
    base = _describe_base(model, layout)
    return TTAdapter(
        model, config, layout, train.to(devices.pop()), scale=scale, saved_modules=saved, base=base
    )


def _check_free(model: nn.Module) -> None:
    if hasattr(model, NAME):
        raise StateError(f"model: it has an adapter already; call model.{NAME}.detach() first")


def _describe_base(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """What a loader compares: the widths of all linear modules in layers, and a few weights."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    ends = (layout.sites[0].module, layout.sites[-1].module)
    return {
        "class": type(model).__name__,
        "name": str(name) if name else None,
        "linear_widths": _count_widths(model),
        "sample": {site: _sample(model.get_submodule(site)) for site in ends},
    }


def _check_base(model: nn.Module, saved: files.SavedAdapter, directory: str | Path) -> None:
    widths = _count_widths(model)
    if saved.base.get("linear_widths", widths) != widths:
        raise FormatError(
            f"{directory}: made on {files.describe(saved.base)} whose layers have the linear modules "
            f"{saved.base['linear_widths']}, this {type(model).__name__} has {widths}; load it on "
            "the model it was made on"
        )


def _warn_of_other_weights(model: nn.Module, saved: files.SavedAdapter, directory: str | Path) -> None:
    for name, numbers in dict(saved.base.get("sample") or {}).items():
        found = _sample(model.get_submodule(name))
        if not numbers or not found:
            continue
        # Half precision rounds at 2^-8; what differs by more are other weights.
        largest = max(map(abs, numbers))
        if max(abs(a - b) for a, b in zip(numbers, found, strict=False)) > 0.02 * largest:
            warnings.warn(
                f"{directory}: the adapter was trained on {files.describe(saved.base)} with other weights in "
                f"{name!r}; its outputs will differ",
                stacklevel=3,
            )
            return


def _count_widths(model: nn.Module) -> dict[str, int]:
    pairs = [
        linear_widths(module)
        for name, module in model.named_modules()
        if "layer" in default_coordinates(name, module)
    ]
    return dict(sorted(Counter(f"{pair[0]}x{pair[1]}" for pair in pairs if pair is not None).items()))


def _sample(module: nn.Module) -> list[float] | None:
    weight = getattr(module, "weight", None)
    if not is_dense(weight) or weight.is_meta:
        return None
    return [round(value, 6) for value in weight.detach().reshape(-1)[:8].float().tolist()]
