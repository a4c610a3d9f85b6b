"""Fused weights: one module that holds several matrices beside each other in its output features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ttnet.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the output features of a fused module are shared out.

        groups = 1:  | query query | key key | value value |
        groups = 2:  | query key value | query key value |       one group for each head

    Args:
        parts: Names of the parts, in their order inside a group.
        groups: Number of groups in which the parts alternate.
        sizes: Relative width of each part inside a group; None for equal widths.

    Raises:
        ConfigError: Fewer than two parts, repeated names, or numbers below 1.
    """

    parts: Sequence[str]
    groups: int = 1
    sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Check every field where it enters."""
        object.__setattr__(self, "parts", tuple(self.parts))
        if len(self.parts) < 2 or len(set(self.parts)) != len(self.parts):
            raise ConfigError(f"split: expected at least two parts of different names, got {self.parts}")
        if any(not isinstance(part, str) or not part.isidentifier() for part in self.parts):
            raise ConfigError(f"split: expected names such as 'query' for the parts, got {self.parts}")
        sizes = tuple(self.sizes) if self.sizes is not None else (1,) * len(self.parts)
        object.__setattr__(self, "sizes", sizes)
        numbers = (self.groups, *sizes)
        if len(sizes) != len(self.parts) or any(
            isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers
        ):
            raise ConfigError(
                f"split: expected groups and one size for each of the {len(self.parts)} parts, integers of "
                "at "
                f"least 1, got groups={self.groups!r}, sizes={self.sizes!r}"
            )

    def widths(self, name: str, out_features: int) -> tuple[int, ...]:
        """Output width of each part.

        Args:
            name: Name of the module, for messages.
            out_features: Output width of the whole module.

        Raises:
            ShapeError: The width cannot be shared out so.
        """
        sizes = self.sizes or ()
        unit, rest = divmod(out_features, self.groups * sum(sizes))
        if rest:
            raise ShapeError(
                f"split: the output width {out_features} of {name!r} is no multiple of groups * sum(sizes) = "
                f"{self.groups} * {sum(sizes)}; correct them"
            )
        return tuple(size * unit * self.groups for size in sizes)


Splits = Mapping[str, Split]
"""A split by suffix of the module's name."""


def read_splits(given: Any) -> str | Splits | None:
    """The option `split` of a config, with a `Split` for each suffix.

    Raises:
        ConfigError: It is nothing of what is expected.
    """
    if given is None or given == "auto":
        return given
    if not isinstance(given, Mapping) or any(not isinstance(name, str) or not name for name in given):
        raise ConfigError(f"split: expected 'auto' or a mapping from suffixes of module names, got {given!r}")
    return {name: _read(name, value) for name, value in given.items()}


def _read(name: str, value: Any) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"parts", "groups", "sizes"})
        if unknown or "parts" not in value:
            raise ConfigError(f"split: expected parts, groups and sizes for {name!r}, got {dict(value)!r}")
        return Split(**value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Split(parts=[f"part{k}" for k in range(value)])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Split(parts=value)
    raise ConfigError(
        f"split: expected a Split, a number of parts or their names for {name!r}, got {value!r}"
    )


_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "attention.self.in_proj")
_QUERY_KEY_VALUE = ("query", "key", "value")
_BESIDE = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "phi3", "modernbert", "mpt")
_BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "deberta", "persimmon")


def known_splits(model: nn.Module, names: Sequence[str]) -> Splits:
    """The splits of the fused modules among some modules, by the model's configuration.

    A name does not tell whether the parts lie beside each other or alternate head by head, so the family
    must be known: GPT-2, GPT-NeoX, Bloom, Falcon, GPT-BigCode, CodeGen, MPT, DeBERTa, ModernBERT, Persimmon
    and Phi-3. A `gate_up_proj` is the same everywhere.

    Args:
        model: A model of transformers; read is its configuration.
        names: Names of the modules that are adapted.

    Returns:
        A split by suffix; empty where nothing is fused.

    Raises:
        ConfigError: A fused module in a family that is not known, or a model without configuration.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    found: dict[str, Split] = {"gate_up_proj": Split(parts=("gate", "up"))}
    if kind == "modernbert":
        found["mlp.Wi"] = Split(parts=("input", "gate"))
    attention = _attention_split(kind, config)
    if attention is not None:
        found |= dict.fromkeys(_FUSED, attention)
    if kind in ("gpt2", "decision_transformer", "imagegpt", "gpt_bigcode"):
        found["crossattention.c_attn"] = Split(parts=("key", "value"))
    fused = [name for name in names if _find(_FUSED, name)]
    if fused and attention is None:
        suffix = fused[0].rpartition(".")[2]
        family = f"models of type {kind!r}" if kind else f"{type(model).__name__}, which has no configuration"
        raise ConfigError(
            f"split: how query, key and value lie in {suffix!r} is not known for {family}; give split="
            f"{{{suffix!r}: ('query', 'key', 'value')}}, or a Split where they alternate or differ in width"
        )
    if kind is None and not any(_find(tuple(found), name) for name in names):
        raise ConfigError(
            f"split: 'auto' reads the configuration of a model of transformers, {type(model).__name__} has "
            "none; give a Split by name"
        )
    used = {_find(tuple(found), name) for name in names}
    return {suffix: split for suffix, split in found.items() if suffix in used}


def _attention_split(kind: str | None, config: Any) -> Split | None:
    """How query, key and value lie in a fused module of a family; None where it is not known."""
    parts = _QUERY_KEY_VALUE
    heads = getattr(config, "num_attention_heads", None) or 1
    if kind in _BESIDE:
        pairs = getattr(config, "num_key_value_heads", None) or heads
        return Split(parts=parts, sizes=(heads, pairs, pairs))
    if kind in _BY_HEAD:
        return Split(parts=parts, groups=heads)
    if kind == "codegen":
        return Split(parts=("query", "value", "key"), groups=4)
    if kind == "falcon" and getattr(config, "new_decoder_architecture", False):
        groups = getattr(config, "num_kv_heads", None) or heads
        return Split(parts=parts, groups=groups, sizes=(heads // groups, 1, 1))
    if kind in ("falcon", "gpt_bigcode"):
        if getattr(config, "multi_query", False):
            return Split(parts=parts, sizes=(heads, 1, 1))
        return Split(parts=parts, groups=heads)
    return None


def find_split(splits: Splits, name: str) -> Split | None:
    """The split of a module by the suffix of its name, the longest suffix first."""
    suffix = _find(tuple(splits), name)
    return None if suffix is None else splits[suffix]


def _find(suffixes: Sequence[str], name: str) -> str | None:
    """The longest of the suffixes that the name of a module has."""
    found = [suffix for suffix in suffixes if name == suffix or name.endswith(f".{suffix}")]
    return max(found, key=len) if found else None
