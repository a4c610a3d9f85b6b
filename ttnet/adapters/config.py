"""`TTAdapterConfig`: every option of an adapter, with peft's names; `MetaTT`: presets of it."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ttnet.adapters.axes import Axis, Pattern, parse_pattern, plain_number, side_of
from ttnet.adapters.split import read_splits
from ttnet.errors import ConfigError, PatternError, RankError

INITS = ("zero", "identity", "normal")
"""Initializations of a core; the first two letters of each name are understood too."""

PRESETS = {
    "4d": "in layer matrix out",
    "5d": "in layer matrix head out",
    "4+1d": "in layer task matrix out",
}
"""The trains of the MetaTT paper."""

_OTHER_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "alpha_scaling",
    "init_lora_weights": "init",
    "init_weights": "init",
}
"""What peft calls options that are named after what they are here."""

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
        init: Initialization of the cores from left to right, "zero", "identity" or "normal", as a sequence,
            as "ze-id-id-id", or by axis as {"out": "zero", "in": "normal"}, the others identity; one name
            stands for all cores. None: the first zero, the others identity.
        init_std: Standard deviation of "normal"; None keeps the scale of an identity.
        seed: Seed of "normal".
        dtype: Dtype of the cores.
        dropout: Probability with which an entry of x is left out of x dW in training; matrices that read the
            same x leave out the same.
        factors: For a pattern that factorizes the features, the factors of each width by side, such as
            ``{"in": (24, 32), "out": (24, 32)}``, or a list of tuples where widths differ.
        split: Fused modules whose parts count as matrices of their own: a `Split`, a number of parts or their
            names, by suffix of the module's name, such as ``{"c_attn": ("query", "key", "value")}``; "auto"
            for those of the families that are known.
        frozen: Axes whose cores are not trained.
        diagonal: Structural or `head` axes whose cores have diagonal slices, as in a CP decomposition.
        heads_by: Axis selected at run time, such as "task", on which each place has its own copy of the
            modules in `modules_to_save`.

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
    init: str | Sequence[str] | Mapping[str, str] | None = None
    init_std: float | None = None
    seed: int = 0
    dtype: str = "float32"
    dropout: float = 0.0
    factors: Mapping[str, Any] | None = None
    split: str | Mapping[str, Any] | None = None
    frozen: Sequence[str] = ()
    diagonal: Sequence[str] = ()
    heads_by: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dtype, torch.dtype):
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        for name in ("rank", "alpha", "init_std", "seed", "head_dim", "dropout", "layers_to_transform"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        if isinstance(self.layers_to_transform, int):
            object.__setattr__(self, "layers_to_transform", (self.layers_to_transform,))
        for name in ("modules_to_save", "layers_pattern", "frozen", "diagonal"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        for name in (*_NAMES, "layers_to_transform", "axes", "rank", "frozen", "diagonal"):
            value = getattr(self, name)
            if isinstance(value, Sequence | set | range) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(map(plain_number, value)))
        object.__setattr__(self, "factors", _read_factors(self.factors))
        object.__setattr__(self, "split", read_splits(self.split))
        self._check_rank()
        self._check_names()
        self._check_numbers()
        self._check_cores()
        object.__setattr__(self, "init", _read_init(self.init, self.parsed))

    @property
    def parsed(self) -> Pattern:
        """The pattern, parsed."""
        return parse_pattern(self.pattern, tuple(self.axes))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the cores."""
        return getattr(torch, self.dtype)

    def modes_of(self, axes: Sequence[str]) -> tuple[int, ...]:
        """Indices of the cores that hold the axes.

        Raises:
            PatternError: The pattern has no such axis.
        """
        return tuple(sorted({self.parsed.find(axis) for axis in axes}))

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
        check_options(values)
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

    def _check_cores(self) -> None:
        self.modes_of(self.frozen)
        for axis in self.diagonal:
            mode = self.parsed.modes[self.parsed.find(axis)]
            inner = 0 < self.parsed.find(axis) < len(self.parsed.modes) - 1
            if not inner or (side_of(mode[0]) is not None and mode != ("head",)):
                raise ConfigError(
                    f"diagonal: {axis!r} is no inner structural axis of {self.pattern!r}; only slices of "
                    "those, "
                    "and of 'head', can be diagonal"
                )
        if self.heads_by is not None and self.heads_by not in self.parsed.structural:
            raise ConfigError(f"heads_by: {self.heads_by!r} is no structural axis of {self.pattern!r}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected a number from 0 to below 1, got {self.dropout!r}")

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
        for axis in self.axes:
            if [other.name for other in self.axes].count(axis.name) > 1:
                raise ConfigError(f"axes: {axis.name!r} is declared twice; give one Axis for it")
            if axis.name not in self.parsed.axes:
                raise ConfigError(f"axes: {axis.name!r} is no axis of pattern {self.pattern!r}")
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


def MetaTT(  # noqa: N802
    variant: str = "4d",
    *,
    rank: int | Sequence[int] = 8,
    tasks: Sequence[str] | None = None,
    **options: Any,
) -> TTAdapterConfig:
    """The config of a MetaTT adapter.

    Args:
        variant: "4d", "5d" or "4+1d", or any pattern.
        rank: Rank of all bonds, or one for each.
        tasks: Names of the tasks, for a pattern with the axis `task`; one is selected when the model runs.
        options: The other options of `TTAdapterConfig`.

    Returns:
        A `TTAdapterConfig`.

    Raises:
        PatternError: `variant` is neither a preset nor a pattern.
        ConfigError: An option that does not exist, or has a value it cannot have.

    References:
        MetaTT: A Global Tensor-Train Adapter for Parameter-Efficient Fine-Tuning, arXiv 2506.09105.

    Examples:
        >>> MetaTT("5d", rank=4, target_modules=["query", "value"]).pattern
        'in layer matrix head out'
    """
    pattern = PRESETS.get(variant.lower(), variant)
    if pattern is variant and not variant.split()[1:]:
        raise PatternError(f"MetaTT: expected one of {', '.join(PRESETS)} or a pattern, got {variant!r}")
    check_options(options)
    if "pattern" in options:
        raise ConfigError("pattern: MetaTT takes it as its first argument, `variant`")
    if tasks is not None:
        if "task" not in pattern.replace("(", " ").replace(")", " ").split():
            raise ConfigError(f"tasks: pattern {pattern!r} has no axis 'task'; '4+1d' has, or add the axis")
        if isinstance(tasks, str):
            raise ConfigError(f"tasks: expected a list of names, got {tasks!r}; write tasks=[{tasks!r}]")
        options["axes"] = (*options.get("axes", ()), Axis("task", labels=tuple(tasks)))
    return TTAdapterConfig(pattern=pattern, rank=rank, **options)


def check_options(options: Iterable[str]) -> None:
    """Refuse names that are no option of `TTAdapterConfig`.

    Args:
        options: Names of options.

    Raises:
        ConfigError: One that does not exist; with the one that was perhaps meant.
    """
    known = [field.name for field in fields(TTAdapterConfig)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            meant = _OTHER_NAMES.get(name, close[0] if close else None)
            hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"{name}: no option of an adapter; {hint}")


def _read_factors(given: Mapping[str, Any] | None) -> dict[str, tuple[tuple[int, ...], ...]] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping) or not set(given) <= {"in", "out"}:
        raise ConfigError(f"factors: expected a mapping with 'in' and 'out', got {given!r}")
    found = {}
    for side, value in given.items():
        several = isinstance(value, Sequence) and value and all(isinstance(each, Sequence) for each in value)
        each = tuple(tuple(sizes) for sizes in (value if several else [value]) if isinstance(sizes, Sequence))
        wrong = [s for sizes in each for s in sizes if isinstance(s, bool) or not isinstance(s, int) or s < 1]
        if wrong or not each or not all(each):
            raise ConfigError(
                f"factors: expected integers of at least 1 for {side!r}, such as (24, 32), or a list of such "
                f"tuples, got {value!r}"
            )
        found[side] = each
    return found


def read_kind(name: str) -> str:
    """The full name of an initialization.

    Raises:
        ConfigError: There is none of this name.
    """
    found = {kind[:2]: kind for kind in INITS}.get(name, name)
    if found not in INITS:
        raise ConfigError(f"init: expected {', '.join(INITS)}, got {name!r}")
    return found


def _read_init(
    init: str | Sequence[str] | Mapping[str, str] | None, pattern: Pattern
) -> tuple[str, ...] | None:
    num_cores = len(pattern.modes)
    if init is None:
        return None
    if isinstance(init, Mapping):
        names = ["identity"] * num_cores
        for axis, name in init.items():
            names[pattern.find(axis)] = read_kind(name)
        return tuple(names)
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
