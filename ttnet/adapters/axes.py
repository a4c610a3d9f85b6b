"""The grammar of axis patterns: which axis of a model is which mode of the train.

    pattern := mode mode ...        one mode for each core, from left to right
    mode    := axis | "(" axis axis ... ")"

Feature axes are `in` and `out` (or `in1 in2 ...`, `out1 out2 ...` where a width is factorized) and `head`,
which splits the output features into chunks. All others are structural axes: they say which matrix is meant,
or, like a task, are selected when the model runs.
"""

import difflib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from ttnet.errors import PatternError

Label = int | str
"""A place on an axis: a layer index, the name of a matrix, ..."""

STRUCTURAL = ("layer", "matrix", "stack", "task", "expert")
"""Structural axes that need no declaration."""

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<mark>[()])|(?P<bad>\S))")
_FEATURE = re.compile(r"(?P<side>in|out)(?P<number>\d*)|head")


def plain_number(value: Any) -> Any:
    """A number of another library, such as numpy's, as one of Python; everything else as it is."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


@dataclass(frozen=True)
class Axis:
    """One axis of a pattern.

    Args:
        name: A letter or underscore, then letters, digits and underscores.
        size: Number of places; by default the number of labels.
        labels: Names of the places, in their order.

    Raises:
        PatternError: No identifier, a size below 1, repeated labels, or a size that is not their number.
    """

    name: str
    size: int | None = None
    labels: tuple[Label, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z_]\w*", self.name):
            raise PatternError(f"Axis: name must be an identifier such as 'expert', got {self.name!r}")
        object.__setattr__(self, "size", plain_number(self.size))
        if self.labels is not None:
            if isinstance(self.labels, str):
                raise PatternError(f"Axis {self.name!r}: expected a list of labels, got {self.labels!r}")
            labels = tuple(plain_number(label) for label in self.labels)
            if any(isinstance(label, bool) or not isinstance(label, int | str) for label in labels):
                raise PatternError(f"Axis {self.name!r}: labels must be integers or texts, got {labels}")
            object.__setattr__(self, "labels", labels)
            if len(set(labels)) != len(labels):
                raise PatternError(f"Axis {self.name!r}: labels must differ, got {labels}")
            if self.size is None:
                object.__setattr__(self, "size", len(labels))
            elif self.size != len(labels):
                raise PatternError(
                    f"Axis {self.name!r}: size is {self.size}, but there are {len(labels)} labels"
                )
        if self.size is not None and (
            isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1
        ):
            raise PatternError(
                f"Axis {self.name!r}: size must be an integer of at least 1, got {self.size!r}"
            )


@dataclass(frozen=True)
class Pattern:
    """A pattern that was read.

    Attributes:
        text: The pattern as it was typed.
        modes: The axes of each mode; more than one where they are merged.
        positions: Where each axis begins in the text.
    """

    text: str
    modes: tuple[tuple[str, ...], ...]
    positions: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes from left to right."""
        return tuple(axis for mode in self.modes for axis in mode)

    @property
    def structural(self) -> tuple[str, ...]:
        """The axes that say which matrix is meant."""
        return tuple(axis for axis in self.axes if not _FEATURE.fullmatch(axis))

    @property
    def structural_modes(self) -> tuple[tuple[str, ...], ...]:
        """The modes of structural axes, in their order."""
        return tuple(mode for mode in self.modes if not _FEATURE.fullmatch(mode[0]))

    @property
    def has_head(self) -> bool:
        """Whether the output features are split into heads."""
        return "head" in self.axes

    @property
    def left_modes(self) -> tuple[tuple[str, ...], ...]:
        """The modes up to the last `in` axis: they make the factor A."""
        return self.modes[: self._cuts[0]]

    @property
    def middle_modes(self) -> tuple[tuple[str, ...], ...]:
        """The structural modes between the last `in` axis and the first `out` or `head` axis."""
        return self.modes[slice(*self._cuts)]

    @property
    def right_modes(self) -> tuple[tuple[str, ...], ...]:
        """The modes from the first `out` or `head` axis on."""
        return self.modes[self._cuts[1] :]

    @property
    def _cuts(self) -> tuple[int, int]:
        sides = [side_of(mode[0]) for mode in self.modes]
        return len(sides) - sides[::-1].index("in"), sides.index("out")

    def feature_axes(self, side: str) -> tuple[str, ...]:
        """The feature axes of one side, the slowest first: `in1 in2 ...`, or `head out`.

        Args:
            side: "in" or "out".
        """
        own = [axis for axis in self.axes if side_of(axis) == side]
        return tuple(sorted(own, key=lambda axis: -1 if axis == "head" else int(axis[len(side) :] or 0)))

    def find(self, axis: str) -> int:
        """Index of the mode that holds an axis, which may also be a merged mode such as "layer matrix".

        Raises:
            PatternError: No mode holds it.
        """
        wanted = tuple(axis.strip("() ").split())
        for k, mode in enumerate(self.modes):
            if wanted == mode or (len(wanted) == 1 and wanted[0] in mode):
                return k
        raise PatternError(f"pattern {self.text!r} has no axis {axis!r}; it has {', '.join(self.axes)}")

    def error(self, axis: str, problem: str) -> PatternError:
        """The error that an axis causes, with the pattern quoted and its place named."""
        return _error(self.text, self.positions.get(axis, 0), axis, problem)

    def check_order(self) -> None:
        """Check that one cut of the chain has all `in` axes on its left and `out`, `head` on its right.

        Raises:
            PatternError: An order in which dW is no product of two factors of the bond's rank, or `head`
                beside factors of `out`.
        """
        last_in = max(self.axes.index(axis) for axis in self.feature_axes("in"))
        for axis in self.feature_axes("out"):
            if self.axes.index(axis) < last_in:
                raise self.error(
                    axis,
                    f"it stands left of {self.axes[last_in]!r}: no bond separates input from output "
                    "features, and dW = A B would not have the rank of one; put every 'in' axis left of "
                    "every 'out' and 'head' axis",
                )
        if self.has_head and "out" not in self.axes:
            raise self.error("head", "'head' splits 'out' already; leave it out, or do not factorize 'out'")


def side_of(axis: str) -> str | None:
    """The side of a feature axis, "in" or "out" (`head` too), None for a structural one."""
    match = _FEATURE.fullmatch(axis)
    return None if match is None else match["side"] or "out"


@lru_cache(maxsize=256)
def parse_pattern(text: str, axes: tuple[Axis, ...] = ()) -> Pattern:
    """Read a pattern such as ``"in layer matrix out"``; the result is cached.

    Args:
        text: Axes separated by spaces, merged ones in parentheses.
        axes: Axes of the user's own, which the pattern may use beside those of the grammar.

    Returns:
        The pattern.

    Raises:
        PatternError: An unknown or repeated axis, parentheses that do not fit, no `in` or no `out`.

    Examples:
        >>> parse_pattern("in (layer matrix) head out").modes
        (('in',), ('layer', 'matrix'), ('head',), ('out',))
    """
    if not isinstance(text, str):
        raise PatternError(f"pattern: expected a text such as 'in layer matrix out', got {text!r}")
    known = (*STRUCTURAL, *(axis.name for axis in axes))
    modes: list[tuple[str, ...]] = []
    positions: dict[str, int] = {}
    group: list[str] | None = None
    opened = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "bad"
        token, at = match[kind], match.start(kind)
        if kind == "bad":
            raise _error(text, at, token, "expected an axis or a parenthesis; separate axes by spaces")
        if token == "(":
            if group is not None:
                raise _error(text, at, token, "parentheses do not nest; close the first")
            group, opened = [], at
        elif token == ")":
            if group is None:
                raise _error(text, at, token, "nothing is open here; remove it")
            if not group:
                raise _error(text, at, token, "the parentheses are empty; name the axes to merge")
            modes.append(tuple(group))
            group = None
        else:
            if token in positions:
                raise _error(text, at, token, "the axis is repeated; name each axis once")
            if token not in known and not _FEATURE.fullmatch(token):
                raise _error(text, at, token, f"unknown axis; {_suggestion(token, known)}")
            positions[token] = at
            if group is None:
                modes.append((token,))
            elif _FEATURE.fullmatch(token):
                raise _error(text, at, token, "parentheses merge structural axes; leave feature axes outside")
            else:
                group.append(token)
    if group is not None:
        raise _error(text, opened, "(", "the parenthesis is never closed")
    _check_features(text, positions)
    return Pattern(text, tuple(modes), positions)


def _check_features(text: str, positions: dict[str, int]) -> None:
    """Each side is there, whole or in factors numbered from 1 without gaps."""
    for side in ("in", "out"):
        numbers = [axis.removeprefix(side) for axis in positions if re.fullmatch(rf"{side}\d*", axis)]
        if not numbers:
            raise _error(
                text, len(text), "", f"the axis {side!r} is missing; every pattern has 'in' and 'out'"
            )
        expected = [""] if "" in numbers else [str(k + 1) for k in range(len(numbers))]
        if sorted(numbers) != sorted(expected):
            at = positions[side + numbers[-1]]
            remedy = f"write {side!r} alone, or {side}1 {side}2 ... without gaps"
            raise _error(text, at, side + numbers[-1], f"factors of {side!r} do not fit together; {remedy}")


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    candidates = ("in", "out", "head", *known)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    declare = f"declare your own with axes=(Axis({name!r}, size=...),)"
    return (
        f"did you mean {close[0]!r}? Or {declare}"
        if close
        else f"known are {', '.join(candidates)}; {declare}"
    )


def _error(text: str, at: int, token: str, problem: str) -> PatternError:
    where = f"position {at}, {token!r}" if token else f"position {at}"
    return PatternError(f"pattern {text!r}: {where}: {problem}")
