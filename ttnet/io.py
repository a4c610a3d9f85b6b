"""Save and load trains and TT-matrices as one safetensors file: the same bits, or one clear refusal.

Each core is a tensor of the file, `core_0`, `core_1`, ... (`name/core_0` for one of several), complex ones as
pairs of reals. The header describes them and holds a digest of description and data. Nothing is unpickled.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ttnet.errors import ConfigError, DTypeError, FormatError, TTNetError
from ttnet.tensor_train import TensorTrain
from ttnet.tt_matrix import TTMatrix

FORMAT = "ttnet-trains"
FORMAT_VERSION = 1

Storable = TensorTrain | TTMatrix
"""What a file can hold, one or several under their names."""

_KINDS: dict[str, type[Storable]] = {"tensor_train": TensorTrain, "tt_matrix": TTMatrix}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.bfloat16,
        torch.float16,
    )
}


def save(
    train: Storable | Mapping[str, Storable],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a train, a TT-matrix, or several under names of their own, into one file.

    The file is written under a temporary name in the same folder and renamed: whoever reads `path`, and
    whatever stops the write, there is the old file or the new one. Cores are detached and moved to the CPU.

    Args:
        train: A `TensorTrain`, a `TTMatrix`, or a dictionary of them.
        path: The file; one that is there is replaced.
        metadata: Anything that JSON can hold, under string keys; `load` returns it where it is asked to.

    Raises:
        DTypeError: `train` is something else.
        ConfigError: `metadata` cannot be written as JSON, a name is no string, or there is no train at all.
        FileNotFoundError: The folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.

    Examples:
        >>> import tempfile, ttnet
        >>> from ttnet import io
        >>> train = ttnet.random_train((4, 5, 6), rank=3, seed=0).orthogonalize(1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     io.save(train, f"{folder}/train.safetensors", metadata={"epoch": 3})
        ...     io.load(f"{folder}/train.safetensors", return_metadata=True)
        (TensorTrain(shape=(4, 5, 6), ranks=(1, 3, 3, 1), dtype=torch.float32, center=1), {'epoch': 3})
    """
    objects = _named(train)
    tensors = {
        _tensor_name(name, k): _to_stored(core)
        for name, value in objects.items()
        for k, core in enumerate(value.cores)
    }
    description = _to_json(
        {
            "objects": [_describe(name, value) for name, value in objects.items()],
            "metadata": _checked_metadata(metadata),
        }
    )
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "description": description,
        "sha256": _digest(description, tensors.values()),
    }
    _write(Path(path), safetensors.torch.save(tensors, header))


@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    return_metadata: Literal[False] = False,
) -> Storable | dict[str, Storable]: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    return_metadata: Literal[True],
) -> tuple[Storable | dict[str, Storable], dict[str, Any]]: ...


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    return_metadata: bool = False,
) -> Storable | dict[str, Storable] | tuple[Storable | dict[str, Storable], dict[str, Any]]:
    """Read what `save` wrote.

    Args:
        path: The file.
        device: Where the cores go; default: the CPU.
        return_metadata: Whether the dictionary given to `save` is returned as well, {} where there was none.

    Returns:
        A train, a TT-matrix or a dictionary of them, as it was saved, with center, dtype and every bit of the
        cores; or the pair of that and the metadata.

    Raises:
        FormatError: A file that is damaged, truncated, foreign, or of another version.
        FileNotFoundError: There is no such file.
        IsADirectoryError: `path` is a folder.
    """
    path = Path(path)
    with path.open("rb"):  # a file that is missing, a folder or not allowed is refused in Python's own words
        pass
    try:
        # The tensors of an open file are views of it: another program could still change them.
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore[reportPrivateImportUsage]
            header = file.metadata() or {}
            names = list(file.keys())
            _check_header(path, header, names)
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except safetensors.SafetensorError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise FormatError(
            f"{path}: not a whole safetensors file ({error}); it is truncated, damaged or of another "
            "program: save the train again"
        ) from None
    text = header.get("description", "")
    try:
        description = json.loads(text)
        metadata = dict(description["metadata"])
        entries = [_read_entry(entry) for entry in description["objects"]]
        if not entries or (len(entries) > 1 and None in (entry[0] for entry in entries)):
            raise FormatError("it names no train")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, TTNetError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else error
        raise FormatError(f"{path}: its description is damaged ({reason}); save the train again") from None
    tensors = _checked_tensors(path, tensors, entries)
    if _digest(text, tensors.values()) != header.get("sha256"):
        raise FormatError(
            f"{path}: the data is not what was saved (its checksum differs); restore the file from a copy, "
            "or save the train again"
        )
    objects: dict[str | None, Storable] = {}
    for name, kind, center, dtype, shapes in entries:
        cores = [_from_stored(tensors[_tensor_name(name, k)], dtype, device) for k in range(len(shapes))]
        try:
            objects[name] = _KINDS[kind](cores, center)
        except TTNetError as error:
            raise FormatError(f"{path}: no {kind} ({error}); save the train again") from None
    loaded: Any = objects[None] if None in objects else objects
    return (loaded, metadata) if return_metadata else loaded


# What is written --------------------------------------------------------------------------------------------

_Entry = tuple[str | None, str, int | None, torch.dtype, list[tuple[int, ...]]]


def _named(train: object) -> dict[str | None, Storable]:
    if isinstance(train, TensorTrain | TTMatrix):
        return {None: train}
    if not isinstance(train, Mapping):
        raise DTypeError(
            f"train: expected a TensorTrain, a TTMatrix or a dictionary of them, got {type(train).__name__}; "
            "of a TTParameter save .tensor_train(), of cores save TensorTrain(cores)"
        )
    if not train:
        raise ConfigError("train: expected at least one TensorTrain or TTMatrix, got an empty dictionary")
    for name, value in train.items():
        if not isinstance(name, str):
            raise ConfigError(f"train: expected strings as names, got {name!r}")
        if not isinstance(value, TensorTrain | TTMatrix):
            raise DTypeError(
                f"train[{name!r}]: expected a TensorTrain or a TTMatrix, got {type(value).__name__}"
            )
    return dict(train)


def _tensor_name(name: str | None, k: int) -> str:
    return f"core_{k}" if name is None else f"{name}/core_{k}"


def _describe(name: str | None, value: Storable) -> dict[str, Any]:
    return {
        "name": name,
        "kind": next(kind for kind, cls in _KINDS.items() if isinstance(value, cls)),
        "center": value.center,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shapes": [list(core.shape) for core in value.cores],
    }


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    values = dict(metadata or {})
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"metadata: expected strings as keys, got {key!r}")
    return values


def _to_json(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"metadata: expected what JSON can hold (numbers, strings, lists, dictionaries), got {error}; "
            "convert it first"
        ) from None


def _to_stored(core: Tensor) -> Tensor:
    # A copy, as cores may share memory, which the format refuses; pairs of reals, as it may know no complex.
    core = core.detach().cpu().resolve_conj().resolve_neg()
    return (torch.view_as_real(core) if core.is_complex() else core).clone(
        memory_format=torch.contiguous_format
    )


def _from_stored(stored: Tensor, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    core = torch.view_as_complex(stored) if dtype.is_complex else stored
    return core.to(device) if device is not None else core


def _stored_as(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]]:
    return (dtype.to_real(), (*shape, 2)) if dtype.is_complex else (dtype, shape)


def _digest(description: str, tensors: Any) -> str:
    digest = hashlib.sha256(description.encode())
    for tensor in tensors:
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file in one step."""
    target = path.resolve()  # a link stays a link
    if target.is_dir():
        raise IsADirectoryError(f"path: expected a file, {path} is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {target.parent} does not exist; create it first")
    staged = target.parent / f".ttnet-{secrets.token_hex(8)}.tmp"
    try:
        with staged.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


# What is read -----------------------------------------------------------------------------------------------


def _check_header(path: Path, header: Mapping[str, str], names: list[str]) -> None:
    found = header.get("format")
    if found == "ttnet-adapter":
        raise FormatError(
            f"{path}: the weights of an adapter; load its folder with ttnet.adapters.load(model, folder)"
        )
    if found != FORMAT:
        raise FormatError(
            f"{path}: expected a file of ttnet.io.save, found another program's safetensors file with "
            f"tensors {sorted(names)[:3]}; read it with safetensors.torch.load_file, then TensorTrain(cores)"
        )
    version = header.get("format_version", "")
    if version != str(FORMAT_VERSION):
        newer = version.isdecimal() and int(version) > FORMAT_VERSION
        remedy = "it is of a newer ttnet: update ttnet" if newer else "save the train again"
        raise FormatError(
            f"{path}: expected format version {FORMAT_VERSION}, found {version or 'none'}; {remedy}"
        )


def _read_entry(entry: Mapping[str, Any]) -> _Entry:
    name, kind, center = entry["name"], entry["kind"], entry["center"]
    if not isinstance(name, str | None):
        raise FormatError(f"name {name!r} is no string")
    if not isinstance(center, int | None):
        raise FormatError(f"center {center!r} is no integer")
    if kind not in _KINDS:
        raise FormatError(f"kind {kind!r} is none of {sorted(_KINDS)}")
    if entry["dtype"] not in _DTYPES:
        raise FormatError(f"dtype {entry['dtype']!r} is none of {sorted(_DTYPES)}")
    shapes = [tuple(int(size) for size in shape) for shape in entry["shapes"]]
    return name, kind, center, _DTYPES[entry["dtype"]], shapes


def _expected(entries: list[_Entry]) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    for name, _, _, dtype, shapes in entries:
        for k, shape in enumerate(shapes):
            yield _tensor_name(name, k), *_stored_as(dtype, shape)


def _checked_tensors(path: Path, found: Mapping[str, Tensor], entries: list[_Entry]) -> dict[str, Tensor]:
    """The tensors in the order of the file's description, each as it says."""
    tensors = {}
    for name, dtype, shape in _expected(entries):
        if name not in found:
            raise FormatError(f"{path}: {name} is missing, of shape {shape}; save the train again")
        core = tensors[name] = found[name]
        if tuple(core.shape) != shape or core.dtype != dtype:
            raise FormatError(
                f"{path}: {name}: expected shape {shape} and {dtype} as the file's description says, found "
                f"{tuple(core.shape)} and {core.dtype}; save the train again"
            )
    if foreign := sorted(set(found) - set(tensors)):
        raise FormatError(f"{path}: unexpected tensors {foreign[:3]}; it was changed after it was saved")
    return tensors
