"""Labels as they stand in a file, turned into class indices or numbers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ttnet.errors import FormatError

Label = int | float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """The values a label can take.

    Args:
        names: What each class is called in the files, by class index; empty for a regression.
        numbered: Whether the files may also say the index of a class.
    """

    names: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def regression(self) -> bool:
        """Whether labels are numbers, not classes."""
        return not self.names

    def encode(self, raw: Sequence[Any], where: str) -> list[Label]:
        """Class index or number of every label, None where there is none.

        Args:
            raw: Labels of one split, as read.
            where: Name of the split or file, for messages.

        Returns:
            One entry for each label.

        Raises:
            FormatError: A label is no class of the training split, or no number.
        """
        if self.regression:
            return [None if label is None else _number(label, where) for label in _cleaned(raw)]
        index = {name: position for position, name in enumerate(self.names)}
        if self.numbered:
            index |= {str(position): position for position in range(len(self.names))}
        found = [None if label is None else str(_canonical(label)) for label in _cleaned(raw)]
        # GLUE marks a missing label by -1.
        unknown = [label for label in found if label is not None and label not in index and label != "-1"]
        if unknown:
            raise FormatError(
                f"{where}: label {unknown[0]!r} is none of the classes {list(self.names)} of the training "
                "data; correct the file, or say --problem regression if labels are numbers"
            )
        return [None if label is None else index.get(label) for label in found]


def label_space(
    raw: Sequence[Any], classes: Sequence[str], regression: bool | None, where: str
) -> LabelSpace:
    """Find out from the training labels whether they are classes, and which.

    Args:
        raw: Training labels as read.
        classes: Names of the classes in the order of their index where the task is known, or none.
        regression: True or False decides; None asks the labels: a fraction among them makes it a regression.
        where: Name of the split or file, for messages.

    Returns:
        The space that every split is encoded with.

    Raises:
        FormatError: There is no label, or a single class.
    """
    found = [_canonical(label) for label in _cleaned(raw)]
    present = [label for label in found if label is not None]
    if not present:
        raise FormatError(f"{where}: has no labels to train on")
    if regression or (regression is None and any(isinstance(label, float) for label in present)):
        return LabelSpace()
    distinct = set(present)
    if classes:
        distinct.discard(-1)
        if distinct <= {*range(len(classes)), *classes}:
            return LabelSpace(names=tuple(classes), numbered=True)
    if len(distinct) < 2:
        raise FormatError(f"{where}: every label is {present[0]!r}; at least two classes are needed")
    numbers = [label for label in distinct if isinstance(label, int)]
    names = tuple(map(str, sorted(numbers) if len(numbers) == len(distinct) else sorted(map(str, distinct))))
    return LabelSpace(names=names)


def _cleaned(raw: Sequence[Any]) -> list[Any]:
    """Labels with None for what is missing; a split that holds -1 alone has none at all."""
    labels = [None if _absent(label) else label for label in raw]
    if all(label is None or _canonical(label) == -1 for label in labels):
        return [None] * len(labels)
    return labels


def _absent(label: Any) -> bool:
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def _canonical(label: Any) -> int | float | str | None:
    """An int where the label is whole, a float where it is another number, else the text."""
    if label is None:
        return None
    try:
        number = float(label)
    except (TypeError, ValueError):
        return str(label)
    if not math.isfinite(number):
        return str(label)
    return int(number) if number.is_integer() else number


def _number(label: Any, where: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise FormatError(f"{where}: label {label!r} is no number, and the task is a regression")
    return number
