"""Weights that several modules of a model share, such as those of an embedding and an output head."""

import copy
from collections.abc import Hashable, Iterable, Mapping

from torch import nn


def weight_owners(model: nn.Module) -> dict[Hashable, list[str]]:
    """The names of the modules that hold each parameter; one module under several names counts once.

    Args:
        model: The model.

    Returns:
        Names by the `address` of the parameter.
    """
    found: dict[Hashable, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(address(parameter), []).append(name.removesuffix(".base"))
    return found


def address(parameter: nn.Parameter) -> Hashable:
    """A value that is equal for parameters that hold the same memory."""
    if type(parameter) is not nn.Parameter or parameter.is_meta or not parameter.data_ptr():
        return id(parameter)
    return parameter.device, parameter.data_ptr()


def are_tied_outside(model: nn.Module, modules: Iterable[nn.Module]) -> bool:
    """Whether some modules share a parameter with a module of the model that is none of theirs.

    Args:
        model: The model.
        modules: Some of its modules.
    """
    inside = {part for module in modules for part in module.modules()}
    own = {address(parameter) for part in inside for parameter in part.parameters(recurse=False)}
    others = (part for part in model.modules() if part not in inside)
    return any(address(parameter) in own for part in others for parameter in part.parameters(recurse=False))


def copy_together(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of modules, which share among each other what the modules share.

    Args:
        modules: The modules by name.
    """
    memo: dict[int, object] = {}
    return {name: copy.deepcopy(module, memo) for name, module in modules.items()}
