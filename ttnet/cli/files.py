"""Read tables of text: JSON lines, CSV and TSV, plain or gzipped, as lists of rows."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ttnet.errors import FormatError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".csv", ".tsv")
# Some documents are longer than the csv module's 128 KiB.
FIELD_LIMIT = 2**24


def read_rows(path: Path) -> list[Row]:
    """Read a table, its kind told by its suffix.

    Args:
        path: A `.jsonl`, `.csv` or `.tsv` file, or one of these with `.gz` behind it; CSV and TSV begin with
            column names.

    Returns:
        One dict for each row.

    Raises:
        FormatError: The file cannot be read, is damaged, empty, or of another kind.
    """
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in SUFFIXES:
        raise FormatError(
            f"{path}: cannot tell its kind; expected a name that ends in {', '.join(SUFFIXES)} (or .gz)"
        )
    try:
        with _open(path) as stream:
            rows = list(_json_lines(stream, path) if kind == ".jsonl" else _delimited(stream, path, kind))
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise FormatError(f"{path}: cannot be read ({error}); check that it is whole and UTF-8") from None
    if not rows:
        raise FormatError(f"{path}: has no rows")
    return rows


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(stream: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise FormatError(
                f"{path}, line {number}: expected an object with named fields, got {type(row).__name__}"
            )
        yield row


def _delimited(stream: TextIO, path: Path, kind: str) -> Iterator[Row]:
    csv.field_size_limit(FIELD_LIMIT)
    # Tab-separated GLUE files hold lone quotation marks.
    options: Row = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    reader = csv.reader(stream, **options)
    names = next(reader, [])
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(names):
            raise FormatError(
                f"{path}, line {reader.line_num}: {len(fields)} fields, the first line has {len(names)}"
            )
        yield dict(zip(names, fields, strict=True))


def column_names(rows: Sequence[Row]) -> list[str]:
    """The columns that occur in any row, in order of appearance.

    Args:
        rows: Rows of a table.

    Returns:
        Column names.
    """
    return list(dict.fromkeys(name for row in rows for name in row))
