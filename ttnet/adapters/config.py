"""`TTAdapterConfig`: every option of an adapter, with peft's names; `MetaTT`: presets of it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ttnet.adapters.axes import Axis, Pattern, parse_pattern
from ttnet.errors import ConfigError, PatternError, RankError

INITS = ("zero", "identity", "normal")
"""Initializations of a core; the first two letters of each name are understood too."""

PRESETS = {
    "4d": "in layer matrix out",
    "5d": "in layer matrix head out",
    "4+1d": "in layer task matrix out",
}
"""The trains of the MetaTT paper."""

_NAMES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
_DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class TTAdapterConfig:
    """The options of an adapter.

    Args:
        pattern: Which axis is which mode of the train, see `ttnet.adapters.axes`.
        rank: Rank of all bonds, clipped to what each allows, or one rank for each of the d - 1 bonds.
        alpha: Factor of dW. It is not divided by the rank unless `alpha_scaling` is on.
        alpha_scaling: Whether alpha is divided by the rank the first bond has at the start (and keeps when
            ranks change).
        target_modules: Suffixes of module names, a regular expression for the whole name, "all-linear" for
            every linear module of a layer, or None for query and value by the names they usually have.
        exclude_modules: Suffixes or a regular expression of modules that are left out.
        layers_to_transform: Indices of the layers that are adapted; None for all.
        layers_pattern: Name (or names) of the list of layers, such as "layers"; None takes the first number
            in a module's name as its layer.
        modules_to_save: Suffixes of modules that are trained whole and saved beside the train; None finds the
            classifier, () takes none.
        axes: Axes of the user's own that the pattern uses.
        head_dim: Width of a chunk of the `head` axis; None reads it from the model's configuration.
        init: Initialization of the cores from left to right, "zero", "identity" or "normal", as a sequence or
            as "ze-id-id-id"; one name stands for all cores. None: the first zero, the others identity.
        init_std: Standard deviation of "normal"; None keeps the scale of an identity.
        seed: Seed of "normal".
        dtype: Dtype of the cores.

    Raises:
        PatternError: `pattern` cannot be read.
        RankError: `rank` is below 1.
        ConfigError: Another option has a value it cannot have.
    """

    pattern: str = PRESETS["4d"]
    rank: int | Sequence[int] = 8
    alpha: float = 1.0
    alpha_scaling: bool = False
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    axes: Sequence[Axis] = ()
    head_dim: int | None = None
    init: str | Sequence[str] | None = None
    init_std: float | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.dtype, torch.dtype):
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        if isinstance(self.layers_to_transform, int):
            object.__setattr__(self, "layers_to_transform", (self.layers_to_transform,))
        for name in ("modules_to_save", "layers_pattern"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        for name in (*_NAMES, "layers_to_transform", "axes", "rank"):
            value = getattr(self, name)
            if isinstance(value, Sequence | set | range) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        self._check_rank()
        self._check_names()
        self._check_numbers()
        object.__setattr__(self, "init", _read_init(self.init, len(self.parsed.modes)))

    @property
    def parsed(self) -> Pattern:
        """The pattern, parsed."""
        return parse_pattern(self.pattern, tuple(self.axes))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the cores."""
        return getattr(torch, self.dtype)

    @property
    def core_inits(self) -> tuple[str, ...]:
        """The initialization of each core."""
        if self.init is None:
            return ("zero", *["identity"] * (len(self.parsed.modes) - 1))
        return tuple(self.init)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values, which `from_dict` reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TTAdapterConfig":
        """The config that `to_dict` wrote.

        Raises:
            ConfigError: An option that does not exist.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"config: unknown options {unknown}; known are {sorted(known)}")
        axes = tuple(
            Axis(axis["name"], axis.get("size"), axis.get("labels")) for axis in values.get("axes") or ()
        )
        return cls(**{**values, "axes": axes})

    def _check_rank(self) -> None:
        if isinstance(self.rank, tuple):
            expected = len(self.parsed.modes) - 1
            if len(self.rank) != expected:
                raise RankError(
                    f"rank: pattern {self.pattern!r} has {expected} bonds, got {len(self.rank)} ranks; "
                    "give one for each bond, or one number for all"
                )
        for rank in self.rank if isinstance(self.rank, tuple) else (self.rank,):
            if isinstance(rank, bool) or not isinstance(rank, int):
                raise RankError(f"rank: expected an integer or one for each bond, got {self.rank!r}")
            if rank < 1:
                raise RankError(f"rank: expected at least 1, got {self.rank!r}")

    def _check_names(self) -> None:
        for name in _NAMES:
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                continue
            if not isinstance(value, tuple) or any(
                not isinstance(entry, str) or not entry for entry in value
            ):
                raise ConfigError(f"{name}: expected names of modules, got {value!r}")
        if self.target_modules in ((), ""):
            raise ConfigError("target_modules: expected at least one name; None takes query and value")
        if any(not isinstance(axis, Axis) for axis in self.axes):
            raise ConfigError(f"axes: expected Axis objects, got {self.axes!r}")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype: expected one of {', '.join(_DTYPES)}, got {self.dtype!r}")

    def _check_numbers(self) -> None:
        for name in ("alpha", "init_std"):
            value = getattr(self, name)
            if value is None and name == "init_std":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
                raise ConfigError(f"{name}: expected a finite number, got {value!r}")
        if self.init_std is not None and self.init_std < 0:
            raise ConfigError(f"init_std: expected at least 0, got {self.init_std}")
        if not isinstance(self.alpha_scaling, bool):
            raise ConfigError(f"alpha_scaling: expected True or False, got {self.alpha_scaling!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed: expected an integer, got {self.seed!r}")
        if self.head_dim is not None and (not isinstance(self.head_dim, int) or self.head_dim < 1):
            raise ConfigError(f"head_dim: expected an integer of at least 1, got {self.head_dim!r}")
        layers = self.layers_to_transform
        if layers is not None and any(isinstance(k, bool) or not isinstance(k, int) or k < 0 for k in layers):  # pyright: ignore[reportGeneralTypeIssues]
            raise ConfigError(f"layers_to_transform: expected layer indices from 0, got {layers!r}")


def MetaTT(variant: str = "4d", *, rank: int | Sequence[int] = 8, **options: Any) -> TTAdapterConfig:  # noqa: N802
    """The config of a MetaTT adapter.

    Args:
        variant: "4d", "5d" or "4+1d", or any pattern.
        rank: Rank of all bonds, or one for each.
        options: The other options of `TTAdapterConfig`.

    Returns:
        A `TTAdapterConfig`.

    Raises:
        PatternError: `variant` is neither a preset nor a pattern.

    References:
        MetaTT: A Global Tensor-Train Adapter for Parameter-Efficient Fine-Tuning, arXiv 2506.09105.

    Examples:
        >>> MetaTT("5d", rank=4, target_modules=["query", "value"]).pattern
        'in layer matrix head out'
    """
    pattern = PRESETS.get(variant.lower(), variant)
    if pattern is variant and not variant.split()[1:]:
        raise PatternError(f"MetaTT: expected one of {', '.join(PRESETS)} or a pattern, got {variant!r}")
    return TTAdapterConfig(pattern=pattern, rank=rank, **options)


def _read_init(init: str | Sequence[str] | None, num_cores: int) -> tuple[str, ...] | None:
    if init is None:
        return None
    short = {name[:2]: name for name in INITS}
    given = init.split("-") if isinstance(init, str) else list(init)
    names = [short.get(name, name) for name in given]
    if any(name not in INITS for name in names):
        raise ConfigError(f"init: expected {', '.join(INITS)} for each core, got {init!r}")
    if len(names) == 1:
        names *= num_cores
    if len(names) != num_cores:
        raise ConfigError(f"init: expected one name for each of the {num_cores} cores, got {init!r}")
    return tuple(names)
