"""`history.jsonl`: one line an epoch, and files that are whole or absent."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttnet.errors import FormatError

Record = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that a kill leaves the old one or the new one.

    Args:
        path: Where it shall stand.
        text: Its contents.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON; numbers that JSON does not have become null.

    Args:
        path: Where it shall stand.
        value: Plain data.
    """
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """Plain data with None in the place of NaN and infinities, and lists in the place of tuples.

    Args:
        value: Nested dicts, lists, tuples, numbers, strings.

    Returns:
        The same, fit for strict JSON.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


class History:
    """The records of a run, on disk after each epoch.

    Args:
        path: The `history.jsonl`.
        until_step: Records of later steps are dropped: a resumed run writes them again.

    Raises:
        FormatError: The file on disk is damaged.
    """

    def __init__(self, path: Path, until_step: int = 0) -> None:
        """Take over the records up to a step."""
        self.path = path
        self.records: list[Record] = []
        if path.is_file() and until_step > 0:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
                self.records = [record for record in map(json.loads, lines) if record["step"] <= until_step]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise FormatError(f"{path} is damaged ({error}); start again with --overwrite") from None

    def append(self, record: Record) -> None:
        """Add one epoch and write the file.

        Args:
            record: Plain data with at least `epoch` and `step`.
        """
        self.records.append(finite(record))
        write_text(self.path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.records))

    @property
    def seconds(self) -> float:
        """Seconds of all epochs, over every part of a run that was resumed."""
        return sum(record["seconds"] for record in self.records)
