"""Which modules of a model are adapted, and which are trained whole."""

import difflib
import re
from collections.abc import Sequence

from torch import nn

from ttnet.adapters.axes import Label
from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.coordinates import Coordinates, coordinates, layer_lists, model_coordinates
from ttnet.adapters.linear import is_router, linear_widths
from ttnet.adapters.split import find_split, known_splits
from ttnet.adapters.structure import Site
from ttnet.errors import ConfigError

HEADS = (
    "classifier",
    "score",
    "classification_head",
    "pre_classifier",
    "qa_outputs",
    "logits_proj",
    "cls_classifier",
    "distillation_classifier",
)
"""Names of the modules that a task adds to a pretrained model."""

_PLAIN_HEADS = ("head", "heads.head", "head.fc")
_BESIDE_HEADS = ("pooler", "projector")
"""What the model of a task puts between the pretrained model and its head, at its own root."""

QUERY_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("q_head", "v_head"),
    ("q_proj", "kv_b_proj"),
    ("q_b_proj", "kv_b_proj"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("qkv",),
    ("attention.self.in_proj",),
)
"""What query and value are called in the families of models; where they are fused, the module of both."""

Names = str | Sequence[str]


def find_saved_modules(model: nn.Module, names: Sequence[str] | None) -> tuple[str, ...]:
    """Full names of the modules that are trained whole.

    Args:
        model: The model.
        names: Suffixes of their names; None for the classifier, if there is one.

    Returns:
        Full names, none inside another.

    Raises:
        ConfigError: A name that no module has.
    """
    found: list[str] = []
    for suffix in HEADS if names is None else names:
        matching = [name for name, _ in model.named_modules() if name and _has_suffix(name, suffix)]
        if names is None:
            # A part of a layer may have such a name too: what stands in a named list of layers is no head.
            matching = [name for name in matching if not coordinates(name, model).get("stack")]
        if not matching and names is not None:
            children = [name for name, _ in model.named_modules() if name]
            raise ConfigError(f"modules_to_save: no module is called {suffix!r}; {_close(suffix, children)}")
        found += matching
    if names is None:
        found += _plain_heads(model)
        found += [name for name, _ in model.named_children() if found and name in _BESIDE_HEADS]
        found = [name for name in found if any(True for _ in model.get_submodule(name).parameters())]
    found = list(dict.fromkeys(found))
    return tuple(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def _plain_heads(model: nn.Module) -> list[str]:
    """The linear head of a model as in timm and torchvision, unless an embedding shares its weight."""
    if hasattr(getattr(model, "config", None), "model_type"):
        return []  # in transformers it is a part of the pretrained model
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    modules = {name: module for name, module in model.named_modules() if name in _PLAIN_HEADS}
    return [name for name, m in modules.items() if linear_widths(m) and id(m.weight) not in tied]


def find_sites(
    model: nn.Module, config: TTAdapterConfig, saved: Sequence[str], where: Coordinates | None = None
) -> list[Site]:
    """The matrices that `config` asks for, with all the labels the coordinates give them.

    Args:
        model: The model.
        config: Targets, exclusions and layers.
        saved: Full names of modules that are trained whole, where nothing is adapted.
        where: Coordinates of a module; None for the default.

    Returns:
        Sites in the model's order.

    Raises:
        ConfigError: A target that matches nothing, or options that leave nothing.
    """
    lists = config.layers_pattern
    by_name = (
        model_coordinates(model)
        if lists is None
        else layer_lists((lists,) if isinstance(lists, str) else lists)
    )
    linear = {
        name: module
        for name, module in model.named_modules()
        if name and linear_widths(module) and not any(_inside(name, other) for other in saved)
    }
    plain = [name for name, module in linear.items() if not is_router(module)]
    layered = [name for name in plain if "layer" in by_name(name, linear[name])]
    chosen = _targets(model, config.target_modules, list(linear), layered or plain)
    if config.exclude_modules is not None:
        excluded = set(_matching(config.exclude_modules, list(linear)))
        chosen = [name for name in chosen if name not in excluded]
        if not chosen:
            raise ConfigError(
                f"exclude_modules: {config.exclude_modules!r} leaves no target module; exclude fewer"
            )
    labels: dict[str, dict[str, Label]] = {
        name: dict((where or by_name)(name, linear[name])) for name in chosen
    }
    layers = config.layers_to_transform
    if layers is not None:
        wanted = (layers,) if isinstance(layers, int) else tuple(layers)
        present = sorted(
            {int(labels[name]["layer"]) for name in chosen if isinstance(labels[name].get("layer"), int)}
        )
        missing = [layer for layer in wanted if layer not in present]
        if missing or not wanted:
            raise ConfigError(
                f"layers_to_transform: no target in layers {missing}; there are layers {present}"
            )
        chosen = [name for name in chosen if labels[name].get("layer") in wanted]
    splits = known_splits(model, chosen) if config.split == "auto" else config.split or {}
    sites: list[Site] = []
    for name in chosen:
        rows, columns = linear_widths(linear[name]) or (0, 0)
        if not rows or not columns:
            lazy = isinstance(linear[name], nn.LazyLinear)
            remedy = "call the model once first" if lazy else f"exclude_modules=[{name!r}]"
            raise ConfigError(f"target_modules: {name!r} has the widths {rows} and {columns}; {remedy}")
        split = find_split(splits, name)  # pyright: ignore[reportArgumentType]
        if split is None:
            sites.append(Site(name, rows, columns, labels[name]))
            continue
        for part, width in zip(split.parts, split.widths(name, columns), strict=True):
            own = {**labels[name], "matrix": f"{labels[name].get('matrix', name)}.{part}"}
            sites.append(Site(f"{name}.{part}", rows, width, own, name, split.groups))
    unused = [suffix for suffix in splits if not any(find_split({suffix: splits[suffix]}, n) for n in chosen)]  # pyright: ignore[reportArgumentType, reportCallIssue]
    if unused and config.split != "auto":
        raise ConfigError(f"split: no target module is called {unused[0]!r}; {_close(unused[0], chosen)}")
    return sites


def _targets(model: nn.Module, targets: Names | None, names: list[str], layered: list[str]) -> list[str]:
    """The linear modules called `names` that are meant; `layered` are those that stand in a layer."""
    if not names:
        raise ConfigError(
            f"target_modules: {type(model).__name__} has no linear module; adapters adapt Linear and Conv1D"
        )
    if targets == "all-linear":
        return layered or names
    if targets is None:
        for group in QUERY_VALUE:
            matches = [_matching((suffix,), layered or names) for suffix in group]
            if all(matches):
                return [name for name in names if any(name in match for match in matches)]
        reason = "query and value are called otherwise here"
        if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
            reason = "nn.MultiheadAttention holds query and value in one parameter and calls no linear module"
        raise ConfigError(
            f"target_modules: {reason}; name other modules, or 'all-linear'; {_close('', layered or names)}"
        )
    if isinstance(targets, str):
        chosen = _matching(targets, names)
        if not chosen:
            raise ConfigError(
                f"target_modules: the regular expression {targets!r} matches no linear module's whole name; "
                f"for suffixes give a list, [{targets!r}]; {_close(targets, names)}"
            )
        return chosen
    for target in targets:
        if _matching((target,), names):
            continue
        others = {type(m).__name__ for name, m in model.named_modules() if name and _has_suffix(name, target)}
        if others:
            raise ConfigError(
                f"target_modules: {target!r} is {', '.join(sorted(others))} here, or trained whole; "
                f"adapters adapt Linear and Conv1D; {_close(target, names)}"
            )
        shapes = {tuple(p.shape) for name, p in model.named_parameters() if _has_suffix(name, target)}
        if shapes:
            raise ConfigError(
                f"target_modules: {target!r} is no module here but a parameter of shape {min(shapes)}, as "
                f"experts are; adapters adapt Linear and Conv1D; {_close(target, names)}"
            )
        raise ConfigError(f"target_modules: no module is called {target!r}; {_close(target, names)}")
    return _matching(targets, names)


def _matching(wanted: Names, names: Sequence[str]) -> list[str]:
    if isinstance(wanted, str):
        try:
            expression = re.compile(wanted)
        except re.error as error:
            raise ConfigError(
                f"target_modules, exclude_modules: {wanted!r} is no regular expression: {error}"
            ) from None
        return [name for name in names if expression.fullmatch(name)]
    return [name for name in names if any(_has_suffix(name, suffix) for suffix in wanted)]


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _inside(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _close(wanted: str, names: Sequence[str]) -> str:
    """A hint at the names a user may have meant."""
    short = sorted({name.rsplit(".", 1)[-1] for name in names})
    close = difflib.get_close_matches(wanted.rsplit(".", 1)[-1], short, n=3, cutoff=0.5)
    shown = ", ".join(repr(name) for name in short[:20])
    hint = f"did you mean {' or '.join(repr(name) for name in close)}? " if close else ""
    return f"{hint}The model has {shown}{', ...' if len(short) > 20 else ''}"
