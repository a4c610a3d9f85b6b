"""Parameter groups of an adapter: a learning rate for each core."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ttnet.adapters.config import TTAdapterConfig
from ttnet.errors import ConfigError


def parameter_groups(
    cores: Sequence[nn.Parameter],
    config: TTAdapterConfig,
    heads: Sequence[nn.Parameter],
    lr: float,
    core_lr: Mapping[str, float],
    head_lr: float | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups for an optimizer, see `TTAdapter.parameter_groups`.

    Raises:
        PatternError: The pattern has no such axis.
        ConfigError: A rate that is negative or not finite, a frozen core, or two rates for one core.
    """
    for name, rate in [("lr", lr), ("head_lr", head_lr), ("weight_decay", weight_decay), *core_lr.items()]:
        if rate is not None and not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"{name}: expected a finite number of at least 0, got {rate!r}")
    frozen = config.modes_of(config.frozen)
    rates: dict[int, float] = {}
    for axis, rate in core_lr.items():
        k = config.parsed.find(axis)
        if k in frozen:
            raise ConfigError(f"core_lr: the core of {axis!r} is frozen; give no rate for it")
        if k in rates:
            raise ConfigError(f"core_lr: {axis!r} names a core that has a rate already; name each core once")
        rates[k] = rate
    groups: list[dict[str, Any]] = [
        {
            "params": [core],
            "lr": rates.get(k, lr),
            "weight_decay": weight_decay,
            "name": " ".join(config.parsed.modes[k]),
        }
        for k, core in enumerate(cores)
        if k not in frozen
    ]
    if heads:
        rate = lr if head_lr is None else head_lr
        groups.append(
            {"params": list(heads), "lr": rate, "weight_decay": weight_decay, "name": "modules_to_save"}
        )
    return groups
