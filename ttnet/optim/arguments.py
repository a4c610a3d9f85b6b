"""What a `DMRGScheduler` is made with: several spellings, read into one and checked."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from ttnet.errors import ConfigError
from ttnet.optim.ranks import AdaptiveRanks, RankSchedule
from ttnet.optim.transport import unwrap
from ttnet.optim.two_site import TwoSiteOptions
from ttnet.parameter import TTParameter


def named_trains(parameter: object) -> dict[str, TTParameter]:
    """The trains by name.

    Args:
        parameter: A `TTParameter`, a sequence or a mapping of them, or a module that holds some.

    Raises:
        ConfigError: It is something else, or has one train twice.
    """
    if isinstance(parameter, TTParameter):
        named = {"parameter": parameter}
    elif isinstance(parameter, nn.Module):
        named = {name: m for name, m in parameter.named_modules() if isinstance(m, TTParameter)}
    elif isinstance(parameter, Mapping):
        named = {str(name): each for name, each in parameter.items()}
    elif isinstance(parameter, Sequence):
        named = {str(index): each for index, each in enumerate(parameter)}
    else:
        named = {}
    if not named or not all(isinstance(each, TTParameter) for each in named.values()):
        raise ConfigError(
            f"parameter: expected a TTParameter, several of them, or a module that holds some, got "
            f"{type(parameter).__name__}"
        )
    if len({id(each) for each in named.values()}) < len(named):
        raise ConfigError("parameter: expected each train once, got one twice")
    return named


def rank_rules(ranks: object, names: list[str]) -> dict[str, RankSchedule | AdaptiveRanks]:
    """The rule of each train.

    Args:
        ranks: One rule for all trains, a sequence, or a mapping by name; a mapping by epoch is a schedule.
        names: Names of the trains.

    Raises:
        ConfigError: A rule is missing, or is none.
    """
    if isinstance(ranks, Mapping) and ranks and all(key in names for key in ranks):
        if len(ranks) < len(names):
            raise ConfigError(f"ranks: expected a rule for each of {names}, got {list(ranks)}")
        each = {name: ranks[name] for name in names}
    elif isinstance(ranks, Sequence) and not isinstance(ranks, str):
        if len(ranks) != len(names):
            raise ConfigError(f"ranks: expected a rule for each of {names}, got {len(ranks)}")
        each = dict(zip(names, ranks, strict=True))
    else:
        each = dict.fromkeys(names, _rule(ranks))
    return {name: _rule(rule) for name, rule in each.items()}


def _rule(rule: object) -> RankSchedule | AdaptiveRanks:
    if isinstance(rule, RankSchedule | AdaptiveRanks):
        return rule
    if isinstance(rule, Mapping):
        return RankSchedule(rule)
    raise ConfigError(
        f"ranks: expected a RankSchedule, AdaptiveRanks or a mapping such as {{0: 12, 2: 8}}, got "
        f"{type(rule).__name__}"
    )


def check_optimizer(optimizer: Optimizer, named: Mapping[str, TTParameter]) -> None:
    """Refuse an optimizer that does not hold the cores, or whose state cannot follow them.

    Raises:
        ConfigError: It is such a one.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not all(id(core) in held for each in named.values() for core in each.core_parameters()):
        raise ConfigError(
            "optimizer: expected one that holds every core of `parameter`, got one that does not; build "
            "it from parameter.parameters() or model.parameters() after the adapter is attached"
        )
    if isinstance(unwrap(optimizer), torch.optim.LBFGS):
        raise ConfigError(
            "optimizer: expected one that steps each parameter by itself, got LBFGS, whose history "
            "cannot follow a change of rank; use Adam, AdamW or SGD"
        )


def check_options(mode: str, state: str, gauge: str | None, two_site: object, metric: object = None) -> None:
    """Refuse options that a scheduler does not have.

    Raises:
        ConfigError: A value is not among the choices, or two do not go together.
    """
    allowed: dict[str, tuple[object, tuple[object, ...]]] = {
        "mode": (mode, ("truncate", "paper", "two-site")),
        "state": (state, ("transport", "reset")),
        "gauge": (gauge, (None, "nearest", "canonical", "balanced")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ConfigError(f"{name}: expected one of {choices}, got {value!r}")
    if mode == "paper" and gauge not in (None, "canonical"):
        raise ConfigError(
            f"gauge: mode 'paper' ends in the gauge 'canonical', got {gauge!r}; use mode='truncate'"
        )
    if metric is not None and mode != "truncate":
        raise ConfigError(
            f"metric: expected None, since mode {mode!r} does not cut in a norm; use mode='truncate'"
        )
    if two_site is not None and mode != "two-site":
        raise ConfigError(f"two_site: expected None, since mode is {mode!r}; use mode='two-site'")
    if two_site is not None and not isinstance(two_site, TwoSiteOptions):
        raise ConfigError(f"two_site: expected TwoSiteOptions, got {type(two_site).__name__}")
