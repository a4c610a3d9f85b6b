"""`MetaTTConfig`: the options of an adapter as peft keeps and saves them."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from peft.config import PeftConfig

from ttnet.adapters.axes import Axis
from ttnet.adapters.config import PRESETS, MetaTT, TTAdapterConfig
from ttnet.adapters.structure import Layout
from ttnet.errors import ConfigError
from ttnet.random import possible_ranks, resolve_ranks


class _Method(str, Enum):  # noqa: UP042 peft reads the member's name after the point in str(...)
    # peft's own enum is closed; parts of peft and transformers read `.value`, so a bare text will not do.
    METATT = "METATT"


METHOD = _Method.METATT
"""What `peft_type` is in a config of this method and in its file."""


@dataclass
class MetaTTConfig(PeftConfig):
    """The options of a MetaTT adapter in peft; all but the last are those of `TTAdapterConfig`.

    Values are kept as plain ones, as a file holds them.

    Args:
        pattern: Which axis is which mode of the train, or "4d", "5d" or "4+1d".
        rank: Rank of all bonds at the start, or one for each.
        alpha: Factor of dW.
        alpha_scaling: Whether alpha is divided by the first bond's rank at the start.
        target_modules: Suffixes of module names, a regular expression for the whole name, "all-linear" for
            every linear module of a layer, or None for query and value. Injection puts the names that were
            found in the place of the last two, as peft does for its own methods.
        exclude_modules: Suffixes or a regular expression of modules that are left out.
        layers_to_transform: Indices of the layers that are adapted.
        layers_pattern: Name or names of the list of layers.
        modules_to_save: Suffixes of modules that peft trains whole and saves. None takes the classifier where
            `task_type` is one of classification, and nothing elsewhere, as for every method of peft.
        axes: Axes of the user's own, `Axis` objects or their fields.
        head_dim: Width of a chunk of the `head` axis.
        init: Initialization of the cores.
        init_std: Standard deviation of "normal".
        seed: Seed of "normal".
        dtype: Dtype of the cores.
        dropout: Probability with which an entry of x is left out of x dW in training.
        factors: Factors of each width where the pattern factorizes the features.
        split: Fused modules whose parts count as matrices of their own.
        frozen: Axes whose cores are not trained.
        diagonal: Axes whose cores have diagonal slices.
        heads_by: Must be None: peft looks after the modules that are trained whole.
        bond_ranks: The ranks that the bonds have; saving writes them, since sweeps change ranks.
        tasks: Names of the tasks, for a pattern with the axis `task`; kept as one of `axes`.

    Raises:
        ConfigError: `heads_by` is given, `tasks` do not go with the pattern, or an option has a value it
            cannot have.
        PatternError: `pattern` cannot be read.
        RankError: `rank` is below 1.
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
    axes: Sequence[Any] = ()
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
    bond_ranks: Sequence[int] | None = None
    tasks: InitVar[Sequence[str] | None] = None

    def __post_init__(self, tasks: Sequence[str] | None) -> None:
        """Check every option where it enters, and keep plain values."""
        super().__post_init__()
        self.peft_type = METHOD  # pyright: ignore[reportAttributeAccessIssue]
        if self.heads_by is not None:
            raise ConfigError(
                f"heads_by: peft trains one copy of each module, got {self.heads_by!r}; add one adapter for "
                "each task, or use ttnet.adapters.attach"
            )
        if not str(self.pattern).split()[1:]:
            self.pattern = MetaTT(str(self.pattern)).pattern
        if tasks is not None:
            self.axes = [*self.axes, *MetaTT("4+1d", tasks=tasks).axes]
        self.axes = [asdict(axis) if isinstance(axis, Axis) else axis for axis in self.axes]
        for name, value in self.options.to_dict().items():
            setattr(self, name, value)

    @classmethod
    def from_options(cls, options: TTAdapterConfig, **values: Any) -> "MetaTTConfig":
        """The config of an adapter that is described for `ttnet.adapters`.

        Args:
            options: Such as ``MetaTT("5d", rank=8)``.
            values: What peft adds, such as ``task_type="SEQ_CLS"``.

        Examples:
            >>> from ttnet.adapters import MetaTT
            >>> MetaTTConfig.from_options(MetaTT("5d", rank=4), task_type="SEQ_CLS").pattern
            'in layer matrix head out'
        """
        return cls(**{**options.to_dict(), **values})

    @property
    def options(self) -> TTAdapterConfig:
        """The same options for `ttnet.adapters`."""
        return TTAdapterConfig.from_dict({field.name: getattr(self, field.name) for field in _OPTIONS})

    def resolved(self, layout: Layout) -> tuple[TTAdapterConfig, float]:
        """The options with the ranks that the bonds have, and the factor of dW.

        Args:
            layout: Modes of the train.

        Raises:
            RankError: Ranks that the bonds cannot have.
        """
        options = self.options
        start = resolve_ranks(layout.shape, options.rank)
        scale = options.alpha / start[0] if options.alpha_scaling else options.alpha
        if self.bond_ranks is not None:
            # A train may have been given larger ranks than it needs; loading adopts those of the file.
            limits = possible_ranks(layout.shape)
            start = tuple(min(rank, limit) for rank, limit in zip(self.bond_ranks, limits, strict=True))
        return replace(options, rank=start), scale


_OPTIONS = [field for field in fields(TTAdapterConfig) if field.name in MetaTTConfig.__annotations__]
