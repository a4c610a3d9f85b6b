"""Where a matrix stands in a model: from the name of a module to a label on each structural axis."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ttnet.adapters.axes import Label
from ttnet.adapters.linear import linear_widths

Coordinates = Callable[[str, nn.Module], Mapping[str, Label]]
"""A function (name, module) -> {axis: label}."""

_NUMBERED = re.compile(r"(?:(?P<name>\w+)_)?(?P<number>\d+)")
_LAYER = r"(?P<layer>\d+)(?:\.(?P<matrix>.+))?"
_FIRST_NUMBER = re.compile(rf"(?:(?P<stack>.*?)\.)??{_LAYER}")


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


def model_coordinates(model: nn.Module) -> Coordinates:
    """The default coordinates, with what only the model itself tells of its lists of layers.

    - A list of stages, whose items hold lists of blocks of one class: the layer counts the blocks of all
      stages, and a module between two stages belongs to the block before it. A list inside a layer, of
      experts or of the parts of a T5 block, is none: such a layer has other linear modules beside it, or
      the items are of several classes.
    - A list whose items have names such as "encoder_layer_0" instead of numbers.

    Args:
        model: The model.

    Returns:
        A function (name, module) -> {axis: label}.

    Examples:
        >>> stage = lambda: nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)))
        >>> where = model_coordinates(nn.Sequential(stage(), stage()))
        >>> where("1.0.0", nn.Identity())
        {'stack': '', 'layer': 2, 'matrix': '0'}
    """
    tree = _Tree(model)
    places: dict[str, str] = {}
    for name in tree.modules:
        if any(part.isdigit() for part in name.split(".")) or _start(name, places) is not None:
            continue
        items = tree.items(name)
        if items is None:
            continue
        base, starts, count = f"{name}." if name else "", tree.stages(items), 0
        for number, item in items.items():
            if starts is None:
                if not item.removeprefix(base).isdigit():
                    places[item] = f"{base}{number}"
                continue
            for block in starts[number]:
                places[block] = f"{base}{count}"
                count += 1
            places[item] = f"{base}{count - 1}"

    def read(name: str, module: nn.Module) -> dict[str, Label]:
        start = _start(name, places)
        return coordinates(name if start is None else places[start] + name[len(start) :], module)

    return read


def _start(name: str, places: Mapping[str, str]) -> str | None:
    """The longest of the names in `places` that `name` is, or stands under."""
    parts = name.split(".")
    starts = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
    return next((start for start in starts if start in places), None)


class _Tree:
    """The modules of a model by name, and which of them hold linear modules."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.linear = [name for name, module in self.modules.items() if linear_widths(module)]
        self.holding = {
            ".".join(parts[:k]) for parts in map(_parts, self.linear) for k in range(1, len(parts))
        }
        self.children: dict[str, list[str]] = {}
        for name in self.modules:
            if name:
                self.children.setdefault(name.rpartition(".")[0], []).append(name)

    def items(self, name: str) -> dict[int, str] | None:
        """By number the names of the items of a list of layers; None for a module that is none."""
        children = self.children.get(name, [])
        matches = {child: _NUMBERED.fullmatch(_parts(child)[-1]) for child in children}
        found = {child: match for child, match in matches.items() if match is not None}
        if not found or len(found) < len(matches) or len({match["name"] for match in found.values()}) > 1:
            return None
        if all(match["name"] for match in found.values()) and not (
            len(found) > 1 and all(child in self.holding for child in found)
        ):
            return None
        return {int(match["number"]): child for child, match in found.items()}

    def stages(self, items: Mapping[int, str]) -> dict[int, list[str]] | None:
        """For each stage the names of its blocks; None where the items are no stages."""
        found: dict[int, list[str]] = {}
        alone = False
        for number, item in items.items():
            lists = [own for name in (item, *self.children.get(item, [])) if (own := self.blocks(name))]
            if len(lists) != 1:
                return None
            found[number] = lists[0]
            inside = tuple(f"{block}." for block in lists[0])
            alone |= all(name.startswith(inside) for name in self.linear if name.startswith(f"{item}."))
        classes = {type(self.modules[block]) for own in found.values() for block in own}
        return found if alone and len(classes) == 1 else None

    def blocks(self, name: str) -> list[str] | None:
        """The items of a list of blocks: each holds linear modules, and is none."""
        items = self.items(name)
        return list(items.values()) if items and all(x in self.holding for x in items.values()) else None


def _parts(name: str) -> list[str]:
    return name.split(".")


def _read(expression: re.Pattern[str], name: str) -> dict[str, Label]:
    match = expression.fullmatch(name)
    if match is None:
        return {"matrix": name}
    return {
        "stack": match["stack"] or "",
        "layer": int(match["layer"]),
        "matrix": match["matrix"] or "weight",
    }
