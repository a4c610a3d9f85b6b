"""The two files of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

Both are written under temporary names and renamed, and the config holds a digest of the weights: a reader
never takes half of one save for an adapter.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.file_checks import check_values
from ttnet.adapters.structure import Layout
from ttnet.errors import FormatError, ShapeError, TTNetError
from ttnet.tensor_train import TensorTrain

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FORMAT = "ttnet-adapter"
FORMAT_VERSION = 1

_MODULES = "modules_to_save."


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """What the files of an adapter say, without a model.

    Attributes:
        config: The options it was made with.
        layout: What each matrix reads of the cores.
        train: The cores.
        scale: The factor of dW.
        base: The model it was made on: class, name, widths and a few of its weights.
        modules: The tensors of the modules trained whole, by full name.
        module_names: Those modules.
    """

    config: TTAdapterConfig
    layout: Layout
    train: TensorTrain
    scale: float
    base: Mapping[str, Any]
    modules: Mapping[str, Tensor] = field(default_factory=dict)
    module_names: tuple[str, ...] = ()


def write(
    directory: str | Path,
    *,
    config: TTAdapterConfig,
    layout: Layout,
    train: TensorTrain,
    scale: float,
    base: Mapping[str, Any],
    modules: Mapping[str, Tensor],
    module_names: tuple[str, ...],
) -> None:
    """Write both files into a directory, which is created where it is missing.

    Args:
        directory: Where to write; other files in it stay.
        config: The options.
        layout: What each matrix reads of the cores.
        train: The cores.
        scale: The factor of dW.
        base: What is known of the model.
        modules: The tensors of the modules trained whole, by full name.
        module_names: Those modules.
    """
    tensors = {f"core_{k}": core for k, core in enumerate(train.cores)}
    tensors |= {f"{_MODULES}{name}": value for name, value in modules.items()}
    # Tied tensors share memory, which the format refuses.
    weights = safetensors.torch.save(
        {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
        {"format": FORMAT},
    )
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": config.to_dict(),
        "layout": layout.to_dict(),
        "ranks": list(train.ranks),
        "scale": scale,
        "base_model": dict(base),
        "modules_to_save": list(module_names),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2) + "\n"
    staged = [
        (_stage(target, WEIGHTS_NAME, weights), target / WEIGHTS_NAME),
        (_stage(target, CONFIG_NAME, text.encode()), target / CONFIG_NAME),
    ]
    for temporary, final in staged:
        temporary.replace(final)


def read(directory: str | Path) -> SavedAdapter:
    """Read an adapter's files without a model.

    Args:
        directory: Where `save` wrote.

    Returns:
        The adapter's config, layout, train and modules.

    Raises:
        FormatError: A file that is missing, damaged, foreign, or of another version.
        ShapeError: A core whose shape is not the one the config says.
    """
    source = Path(directory)
    values = _read_config(source / CONFIG_NAME)
    raw = _read_bytes(source / WEIGHTS_NAME)
    try:
        tensors = safetensors.torch.load(raw)
    except safetensors.SafetensorError as error:
        raise FormatError(
            f"{source / WEIGHTS_NAME}: not a safetensors file ({error}); save the adapter again"
        ) from None
    try:
        config = TTAdapterConfig.from_dict(values["config"])
        layout = Layout.from_dict(values["layout"])
        check_values(values, config, layout)
        ranks, scale, base = tuple(values["ranks"]), float(values["scale"]), values["base_model"]
        names, digest = tuple(values["modules_to_save"]), values["weights_sha256"]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, TTNetError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"{source / CONFIG_NAME}: damaged ({reason}); save the adapter again") from None
    cores = _read_cores(source / WEIGHTS_NAME, tensors, layout, ranks)
    modules = {
        name.removeprefix(_MODULES): value for name, value in tensors.items() if name.startswith(_MODULES)
    }
    if hashlib.sha256(raw).hexdigest() != digest:
        raise FormatError(
            f"{source}: {WEIGHTS_NAME} is not the one {CONFIG_NAME} was written with; save the adapter again"
        )
    return SavedAdapter(
        config=config,
        layout=layout,
        train=TensorTrain(cores),
        scale=scale,
        base=base,
        modules=modules,
        module_names=names,
    )


def check_layout(saved: SavedAdapter, layout: Layout) -> None:
    """Check that a saved adapter has the layout of one that is attached, or would be.

    Args:
        saved: What was read.
        layout: The layout its matrices have in the model at hand.

    Raises:
        ShapeError: A core whose modes differ.
        FormatError: Other matrices, or other labels on an axis, or the same in another order.
    """
    present = {site.name: (site.in_features, site.out_features) for site in layout.sites}
    if saved.layout.pattern != layout.pattern:
        raise FormatError(
            f"the saved adapter has the pattern {saved.layout.pattern.text!r}, the model's is "
            f"{layout.pattern.text!r}; attach one of the same pattern, or use load(model, directory)"
        )
    for k, (found, expected) in enumerate(zip(saved.layout.shape, layout.shape, strict=True)):
        if found != expected:
            ranks = saved.train.ranks[k : k + 2]
            raise ShapeError(
                f"core_{k}: expected shape {(ranks[0], expected, ranks[1])} for this model's matrices, found "
                f"{(ranks[0], found, ranks[1])} in the file; it was made on {describe(saved.base)}"
            )
    for site in saved.layout.sites:
        widths = (site.in_features, site.out_features)
        if present.get(site.name, widths) != widths:
            raise ShapeError(
                f"{site.name!r}: expected a matrix of shape {widths}, found {present[site.name]} in the "
                f"model; the adapter was made on {describe(saved.base)}"
            )
    names = sorted({site.name for site in saved.layout.sites} ^ set(present))
    if names:
        raise FormatError(
            f"the saved adapter is for other matrices than the model's, first {names[:3]}; it was made on "
            f"{describe(saved.base)}; use load(model, directory) on a model without adapter"
        )
    for found, expected in zip(saved.layout.axes, layout.axes, strict=True):
        if found != expected:
            raise FormatError(
                f"axis {found.name!r}: the saved adapter has the places {found.labels}, the model's "
                f"{expected.labels}; attach one with the same labels in the same order, or use "
                "load(model, directory)"
            )
    if saved.layout != layout:
        raise FormatError(
            "the saved adapter reads its cores otherwise, by coordinates, order of matrices, splits, "
            "head_dim or factors; use load(model, directory)"
        )


def check_modules(saved: SavedAdapter, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of the modules trained whole, checked against those of the model.

    Args:
        saved: What was read.
        state: The model's tensors by full name.

    Returns:
        The saved tensors.

    Raises:
        FormatError: Other names.
        ShapeError: Other shapes, for instance another number of labels.
    """
    if set(saved.modules) != set(state):
        names = sorted(set(saved.modules) ^ set(state))
        raise FormatError(
            f"modules_to_save: file and model differ in {names[:4]}; load it on {describe(saved.base)}"
        )
    for name, present in state.items():
        value = saved.modules[name]
        if value.shape != present.shape:
            raise ShapeError(
                f"{name}: expected shape {tuple(present.shape)} for this model, found "
                f"{tuple(value.shape)} in the file; build the model with the same number of labels"
            )
    return saved.modules


def describe(base: Mapping[str, Any]) -> str:
    """Class and name of a base model, for messages."""
    return f"a {base.get('class', 'model')} ({base.get('name') or 'unnamed'})"


def _stage(directory: Path, name: str, content: bytes) -> Path:
    handle, path = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(path).chmod(0o644)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}); give the directory an adapter was saved in"
        ) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not a JSON file ({error}); save the adapter again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        kind = values.get("peft_type") if isinstance(values, dict) else None
        found = f"a peft adapter of type {kind}" if kind else "another program's file"
        raise FormatError(f"{path}: expected an adapter written by ttnet, found {found}")
    if values.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path}: expected format version {FORMAT_VERSION}, found {values.get('format_version')!r}; "
            "update ttnet, or save the adapter again"
        )
    return values


def _read_cores(
    path: Path, tensors: Mapping[str, Tensor], layout: Layout, ranks: tuple[int, ...]
) -> list[Tensor]:
    cores = []
    for k, size in enumerate(layout.shape):
        core = tensors.get(f"core_{k}")
        if core is None:
            raise FormatError(
                f"{path}: core_{k} is missing; pattern {layout.pattern.text!r} has {len(layout.shape)} cores"
            )
        expected = (ranks[k], size, ranks[k + 1]) if k + 1 < len(ranks) else None
        if tuple(core.shape) != expected:
            raise ShapeError(
                f"{path}: core_{k}: expected shape {expected} as {CONFIG_NAME} says, found "
                f"{tuple(core.shape)}; the two files are not of the same adapter"
            )
        cores.append(core)
    foreign = [
        n for n in tensors if not n.startswith(_MODULES) and n not in {f"core_{k}" for k in range(len(cores))}
    ]
    if foreign:
        raise FormatError(f"{path}: unexpected tensors {foreign[:4]}; it was not written by ttnet")
    return cores
