"""Where a matrix stands in a model: from the name of a module to a label on each structural axis."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ttnet.adapters.axes import Label

Coordinates = Callable[[str, nn.Module], Mapping[str, Label]]
"""A function (name, module) -> {axis: label}."""

_LAYER = r"(?P<layer>\d+)(?:\.(?P<matrix>.+))?"
_FIRST_NUMBER = re.compile(rf"(?:(?P<stack>.*?)\.)?{_LAYER}")


def coordinates(name: str, module: nn.Module) -> dict[str, Label]:  # noqa: ARG001 other functions look at the module
    """The default coordinates: the first number of the name is the layer, what follows is the matrix.

    Args:
        name: Name of the module, such as "bert.encoder.layer.3.attention.self.query".
        module: The module itself, for functions that need it.

    Returns:
        `stack` (the path before the layer), `layer` and `matrix` (the path after it, "weight" where the
        module is the layer); a module outside every layer has a `matrix` alone.

    Examples:
        >>> coordinates("bert.encoder.layer.3.attention.self.query", nn.Identity())
        {'stack': 'bert.encoder.layer', 'layer': 3, 'matrix': 'attention.self.query'}
    """
    return _read(_FIRST_NUMBER, name)


def layer_lists(names: Sequence[str]) -> Coordinates:
    """Coordinates whose layer is the number behind one of the given names.

    Args:
        names: Names of lists of layers, such as "layers" or "h".

    Returns:
        A function (name, module) -> {axis: label}.
    """
    either = "|".join(re.escape(name) for name in names)
    expression = re.compile(rf"(?P<stack>(?:.*?\.)?(?:{either}))\.{_LAYER}")

    def read(name: str, module: nn.Module) -> dict[str, Label]:  # noqa: ARG001
        return _read(expression, name)

    return read


def _read(expression: re.Pattern[str], name: str) -> dict[str, Label]:
    match = expression.fullmatch(name)
    if match is None:
        return {"matrix": name}
    return {
        "stack": match["stack"] or "",
        "layer": int(match["layer"]),
        "matrix": match["matrix"] or "weight",
    }
