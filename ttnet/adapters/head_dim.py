"""`head_dim_of`: the width of an attention head of a model."""

from collections.abc import Sequence
from math import gcd
from typing import Any

from torch import nn

from ttnet.adapters.structure import Site
from ttnet.errors import ShapeError

_NAMES = ("head_dim", "attention_head_size", "key_value_proj_dim")


def head_dim_of(model: nn.Module, sites: Sequence[Site] | None = None) -> int | None:
    """Width of an attention head, by the attention modules of the adapted layers or the configuration.

    Args:
        model: The model.
        sites: The adapted matrices; None reads the configuration alone.

    Returns:
        The width; where towers or stages differ, the narrowest; None where nothing tells one.

    Raises:
        ShapeError: The adapted layers have heads of widths that the narrowest does not divide.
    """
    found = sorted(_of_modules(model, sites or ()))
    if found and any(width % found[0] for width in found):
        raise ShapeError(
            f"head_dim: the adapted layers have heads of widths {found}; give head_dim={gcd(*found)}, which "
            "divides them all, or adapt layers with heads of one width"
        )
    return found[0] if found else _of_config(model)


def _of_modules(model: nn.Module, sites: Sequence[Site]) -> set[int]:
    """What the attention modules around the adapted matrices say."""
    modules = dict(model.named_modules())
    found = set()
    for name in {site.module.rpartition(".")[0] for site in sites}:
        values = [getattr(modules.get(name), attribute, None) for attribute in _NAMES]
        found |= set([value for value in values if isinstance(value, int) and value > 0][:1])
    return found


def _of_config(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    if isinstance(getattr(config, "head_dim", None), int):
        return config.head_dim
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
