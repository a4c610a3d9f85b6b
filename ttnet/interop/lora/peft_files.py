"""The files of a LoRA adapter, as peft writes and reads them."""

import json
import pickle
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ttnet.adapters.files import CONFIG_NAME, FORMAT, WEIGHTS_NAME
from ttnet.errors import ConfigError, FormatError

_UNREADABLE = "unreadable"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<name>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_UNSUPPORTED = {
    "use_dora": "DoRA rescales the columns of the merged weight",
    "use_qalora": "QA-LoRA pools its inputs",
    "lora_bias": "its factors have biases",
    "layer_replication": "it repeats layers",
    "target_parameters": "it adapts parameters that are no linear module",
    "alora_invocation_tokens": "it is active on some tokens alone",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA has singular values of its own",
    "monteclora_config": "it is random",
    "velora_config": "VeLoRA changes its inputs",
}


_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initializations by which peft subtracts the first factors from the weights of the base."""


@dataclass(frozen=True, kw_only=True)
class LoraFiles:
    """What the files of a LoRA say.

    Attributes:
        factors: For each adapted module lora_A (r, in) and lora_B (out, r).
        scales: For each the factor of lora_B lora_A.
        modules: The tensors of modules saved whole, by full name.
        module_names: Those modules.
        base_model: Name of the base model, if it is known.
        base_class: Class of the base model, if it is known.
        base_copies: Frozen weights of adapted modules that peft wrote beside their factors, as it does for
            embeddings and output layers; they are not read.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]
    modules: Mapping[str, Tensor] = field(default_factory=dict)
    module_names: tuple[str, ...] = ()
    base_model: str | None = None
    base_class: str | None = None
    base_copies: tuple[str, ...] = ()


def write_lora(
    directory: Path,
    lora: LoraFiles,
    *,
    targets: Sequence[str] | str,
    fan_in_fan_out: bool,
    task_type: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a LoRA whose scales are all 1.

    Both files are written whole under other names first and then renamed, the config last.

    Args:
        directory: Where; it is created where it is missing.
        lora: Factors, scales (of 1) and modules.
        targets: peft's `target_modules`.
        fan_in_fan_out: Whether the modules store their weights as (in, out).
        task_type: peft's.
        overwrite: Whether a LoRA that is there is replaced.

    Raises:
        ConfigError: The directory holds another adapter, or cannot be written.
    """
    ranks = {name: a.shape[0] for name, (a, _) in lora.factors.items()}
    largest = max(ranks.values())
    others = {_exact(name, ranks): rank for name, rank in ranks.items() if rank != largest}
    values = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": lora.base_model,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "modules_to_save": list(lora.module_names) or None,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    tensors = {f"{_PREFIX}{name}": value for name, value in lora.modules.items()}
    for name, (a, b) in lora.factors.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
    # Factors are shared between matrices, which the format refuses.
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    check_free(directory, overwrite=overwrite)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".lora.", dir=directory) as folder:
            staged = Path(folder)
            safetensors.torch.save_file(weights, staged / WEIGHTS_NAME, {"format": "pt"})
            (staged / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                (staged / name).replace(directory / name)
    except OSError as error:
        raise ConfigError(f"directory: {directory} cannot be written ({error.strerror})") from None


def check_free(directory: str | Path, *, overwrite: bool) -> None:
    """Check that a LoRA may be written into a directory.

    Args:
        directory: The directory.
        overwrite: Whether a LoRA, or a config that is no JSON, may be replaced.

    Raises:
        ConfigError: It holds an adapter of ttnet or of another method of peft; or a LoRA, which stays.
    """
    kind = _kind(directory)
    if kind in (None, "LORA", _UNREADABLE) and (kind is None or overwrite):
        return
    if kind in ("LORA", _UNREADABLE):
        found = "a LoRA" if kind == "LORA" else f"a damaged {CONFIG_NAME}"
        raise ConfigError(f"directory: {directory} holds {found}; give another, or overwrite=True")
    raise ConfigError(
        f"directory: {directory} holds {_named(kind)}, whose files have the same names; give another"
    )


def check_no_peft_adapter(directory: str | Path) -> None:
    """Check that an adapter of ttnet takes the place of none of peft.

    Args:
        directory: Where it will be written.

    Raises:
        ConfigError: The directory holds an adapter that peft reads.
    """
    kind = _kind(directory)
    if kind not in (None, FORMAT, _UNREADABLE):
        raise ConfigError(
            f"directory: {directory} holds {_named(kind)}, whose files have the same names and would be "
            "lost; give another directory"
        )


def _kind(directory: str | Path) -> str | None:
    """What the config in a directory is of: our format, a method of peft, unreadable; None without one."""
    try:
        values = _present(Path(directory) / CONFIG_NAME)
    except FormatError:
        return _UNREADABLE
    if values is None:
        return None
    return FORMAT if values.get("format") == FORMAT else str(values.get("peft_type") or _UNREADABLE)


def _named(kind: str | None) -> str:
    return "an adapter of ttnet" if kind == FORMAT else f"a peft adapter of type {kind}"


def read_lora(directory: str | Path) -> LoraFiles:
    """Read a LoRA that peft saved.

    Args:
        directory: With `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).

    Returns:
        Factors and scales by module, and the modules saved whole.

    Raises:
        FormatError: A file that is missing, damaged or foreign, an adapter of another kind, or a LoRA that is
            more than a product of two factors for each module.
    """
    source = Path(directory)
    config = _config(source / CONFIG_NAME)
    pairs: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, Tensor] = {}
    for key, value in _tensors(source).items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match:
            pairs.setdefault(match["name"], {})[match["side"]] = value
        elif "lora_" in name:
            raise FormatError(
                f"{source}: {name!r} is no factor of a linear module; embeddings, DoRA and biases of LoRA "
                "cannot be compressed"
            )
        else:
            modules[re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)] = value
    if not pairs:
        raise FormatError(f"{source / WEIGHTS_NAME}: it has no tensor lora_A or lora_B")
    factors = {name: _pair(source, name, pair) for name, pair in pairs.items()}
    wanted = config.get("modules_to_save") or ()
    names = _module_names(modules, wanted)
    copies = [key for key in modules if any(key.startswith(f"{name}.base_layer.") for name in factors)]
    for key in copies:
        del modules[key]
    stray = [key for key in modules if not any(key.startswith(f"{name}.") for name in names)]
    if stray:
        raise FormatError(
            f"{source}: {stray[0]!r} is trained beside the factors and is not in modules_to_save; such a "
            "LoRA (biases, resized embeddings) cannot be compressed"
        )
    mapping = config.get("auto_mapping") or {}
    return LoraFiles(
        factors=factors,
        scales={name: _scale(config, name, a.shape[0]) for name, (a, _) in factors.items()},
        modules=modules,
        module_names=names,
        base_model=config.get("base_model_name_or_path") or None,
        base_class=mapping.get("base_model_class"),
        base_copies=tuple(key.replace(".base_layer.", ".") for key in copies),
    )


def _config(path: Path) -> dict[str, Any]:
    values = _present(path)
    if values is None:
        named = sorted(each.parent.name for each in path.parent.glob(f"*/{CONFIG_NAME}"))
        hint = f"; perhaps one of its subdirectories: {', '.join(named[:4])}" if named else ""
        raise FormatError(f"{path}: cannot be read; give a directory that peft saved a LoRA in{hint}")
    kind = "an adapter of ttnet" if values.get("format") == FORMAT else values.get("peft_type")
    if kind != "LORA":
        raise FormatError(f"{path}: expected a LoRA that peft saved, found {kind or 'another file'}")
    for name, reason in _UNSUPPORTED.items():
        if values.get(name):
            raise FormatError(f"{path}: {name} is set: {reason}; such a LoRA cannot be compressed")
    start = str(values.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise FormatError(
            f"{path}: init_lora_weights is {start!r}, which changed the weights of the base; save it with "
            "peft's path_initial_model_for_weight_conversion, as a LoRA of the model as it was"
        )
    if values.get("bias", "none") != "none":
        raise FormatError(
            f"{path}: bias is {values['bias']!r}; a LoRA with trained biases cannot be compressed"
        )
    return values


def _present(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise FormatError(f"{path}: not a JSON file ({error})") from None
    return values if isinstance(values, dict) else {}


def _tensors(source: Path) -> dict[str, Tensor]:
    path = source / WEIGHTS_NAME
    try:
        if path.is_file():
            return safetensors.torch.load_file(path)
        path = source / _PICKLED
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FormatError(
            f"{source / WEIGHTS_NAME}: no such file; give a directory that peft saved in"
        ) from None
    except (OSError, safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise FormatError(f"{path}: damaged ({error}); save the LoRA again") from None


def _pair(source: Path, name: str, pair: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if set(pair) != {"A", "B"}:
        raise FormatError(f"{source}: of {name!r} only lora_{next(iter(pair))} is there; save the LoRA again")
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise FormatError(
            f"{source}: {name!r}: expected lora_A (r, in) and lora_B (out, r), found {tuple(a.shape)} and "
            f"{tuple(b.shape)}; convolutions cannot be compressed"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise FormatError(f"{source}: {name!r}: expected floating-point factors, found {a.dtype}")
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise FormatError(f"{source}: {name!r} holds a NaN or an infinity")
    return a, b


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            alpha = value
            break
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _module_names(modules: Mapping[str, Tensor], wanted: Sequence[str]) -> tuple[str, ...]:
    """Full names of the modules whose tensors are there, from the endings that peft knows them by."""
    found: list[str] = []
    for key in modules:
        parts = key.split(".")
        prefixes = [".".join(parts[:k]) for k in range(1, len(parts))]
        found += [p for p in prefixes if any(p == w or p.endswith(f".{w}") for w in wanted)][:1]
    return tuple(dict.fromkeys(found))


def _exact(name: str, names: Mapping[str, int]) -> str:
    """A key of peft's patterns that matches this module alone: its name, unless another ends like it."""
    escaped = re.escape(name)
    if sum(bool(re.match(rf"(.*\.)?({name})$", other)) for other in names) > 1:
        return f"^{escaped}"
    return name
