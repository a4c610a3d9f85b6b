"""What is learned: a task's three splits, its classes and its metrics, from the hub, a package or files."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttnet.cli.files import SUFFIXES, Row, column_names, read_rows
from ttnet.cli.glue import GLUE, HUB_NAME, GlueTask, normalized
from ttnet.cli.labels import Label, LabelSpace, label_space
from ttnet.cli.metrics import METRICS, REGRESSION_METRICS
from ttnet.cli.options import FinetuneOptions
from ttnet.cli.reuters import read_reuters
from ttnet.errors import ConfigError, FormatError

BUILT_IN = ("reuters-r8",)
SUBSET = {"reuters-r8": 1600}
SPLITS = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val", "dev_matched", "validation_matched"),
    "test": ("test", "test_matched"),
}
DEV_SHARE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Documents of one split.

    Args:
        texts: One or two texts for each document.
        labels: Class index or number of each document; None where the split is not labeled.
    """

    texts: list[tuple[str, ...]]
    labels: list[int | float] | None

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.texts)

    def take(self, chosen: Sequence[int]) -> "Split":
        """Some of the documents.

        Args:
            chosen: Their positions.

        Returns:
            A split of these, in this order.
        """
        labels = None if self.labels is None else [self.labels[position] for position in chosen]
        return Split(texts=[self.texts[position] for position in chosen], labels=labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task that is ready to be tokenized.

    Args:
        name: What it is called in reports.
        train: Training documents.
        dev: The documents that choose the checkpoint.
        test: Documents that are scored once, at the end, where there are any.
        space: What the labels mean.
        metrics: Names of metrics, the first is the main one.
        notes: What the user should know about the data: subsets, splits made here, labels that were missing.
    """

    name: str
    train: Split
    dev: Split
    test: Split | None
    space: LabelSpace
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_task(options: FinetuneOptions) -> Task:
    """Read the data that the options name.

    Args:
        options: Options of the run.

    Returns:
        The task, with its dev split and its seeded subset made.

    Raises:
        ConfigError: The task is unknown, or options about it do not fit.
        FormatError: A file is missing or damaged, or a column is not in it.
    """
    known = GLUE.get(normalized(options.task or ""))
    if options.train_file is not None:
        name = options.task or Path(options.train_file).name.split(".")[0]
        files = {"train": options.train_file, "dev": options.dev_file, "test": options.test_file}
        tables = {split: (file, read_rows(Path(file))) for split, file in files.items() if file is not None}
    elif options.data_dir is not None:
        name = str(options.task)
        tables = _directory_tables(Path(options.data_dir), name)
    elif options.task in BUILT_IN:
        name = options.task
        tables = {split: (f"{name} {split}", read_reuters(split)) for split in ("train", "test")}
    else:
        name = str(options.task)
        tables = _hub_tables(name, known)
    return _assemble(options, name, known, tables)


def _assemble(options: FinetuneOptions, name: str, known: GlueTask | None, tables: dict[str, Any]) -> Task:
    notes: list[str] = []
    columns = _text_columns(options, known, *tables["train"])
    where, rows = tables["train"]
    space = label_space(
        _labels(rows, options.label_column, where),
        known.classes if known else (),
        _regression(options, known),
        where,
    )
    splits = {
        split: _split(rows, where, columns, options, space, notes) for split, (where, rows) in tables.items()
    }
    train, dev, test = splits["train"], splits.get("dev"), splits.get("test")
    if train.labels is None:
        raise FormatError(f"{where}: has no labels to train on")
    order = np.random.default_rng(options.data_seed)
    if dev is None or dev.labels is None:
        chosen = order.permutation(len(train))
        held = max(1, round(DEV_SHARE * len(train)))
        dev, train = train.take(sorted(chosen[:held])), train.take(sorted(chosen[held:]))
        notes.append(f"no dev split: {held} training documents (10 %, data seed {options.data_seed}) are it")
    wanted = options.train_samples or (None if options.full else SUBSET.get(name))
    if wanted is not None and wanted < len(train):
        hint = "" if options.train_samples else "; --full trains on all"
        notes.append(
            f"trains on a subset: {wanted} of {len(train)} documents (data seed {options.data_seed}){hint}"
        )
        train = train.take(sorted(order.permutation(len(train))[:wanted]))
    if not len(train):
        raise FormatError(f"{where}: no training documents are left beside the dev split; give more")
    if test is not None and test.labels is None:
        notes.append("the test split has no labels: it is not scored")
    metrics = _metrics(options, known, space)
    return Task(name=name, train=train, dev=dev, test=test, space=space, metrics=metrics, notes=tuple(notes))


def _regression(options: FinetuneOptions, known: GlueTask | None) -> bool | None:
    if options.problem != "auto":
        return options.problem == "regression"
    return None if known is None else not known.classes


def _metrics(options: FinetuneOptions, known: GlueTask | None, space: LabelSpace) -> tuple[str, ...]:
    if known is not None and space.regression == (not known.classes):
        names = known.metrics
    else:
        names = ("pearson", "spearman") if space.regression else ("accuracy",)
    if options.metric is None:
        return names
    fitting = [name for name in METRICS if (name in REGRESSION_METRICS) == space.regression]
    if options.metric not in fitting:
        kind = "regression" if space.regression else "classification"
        raise ConfigError(
            f"--metric {options.metric!r} is no metric of a {kind}; choose from {', '.join(fitting)}"
        )
    return (options.metric, *(name for name in names if name != options.metric))


def _text_columns(
    options: FinetuneOptions, known: GlueTask | None, where: str, rows: list[Row]
) -> tuple[str, ...]:
    present = column_names(rows)
    if options.text_columns is not None:
        wanted = options.text_columns
    elif "sentence1" in present:
        wanted = ("sentence1", "sentence2") if "sentence2" in present else ("sentence1",)
    elif known is not None and set(known.columns) <= set(present):
        wanted = known.columns
    else:
        wanted = tuple(name for name in ("sentence", "text") if name in present)[:1] or ("sentence1",)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise FormatError(
            f"{where}: --text-columns {','.join(wanted)}: there is no column {missing[0]!r}; "
            f"the file has {present}"
        )
    if len(wanted) > 2:
        raise ConfigError(
            f"--text-columns {','.join(wanted)}: expected one or two columns, got {len(wanted)}"
        )
    return wanted


def _labels(rows: list[Row], column: str, where: str) -> list[Any]:
    present = column_names(rows)
    if column not in present:
        raise FormatError(
            f"{where}: --label-column {column}: there is no column {column!r}; the file has {present}"
        )
    return [row.get(column) for row in rows]


def _split(
    rows: list[Row],
    where: str,
    columns: tuple[str, ...],
    options: FinetuneOptions,
    space: LabelSpace,
    notes: list[str],
) -> Split:
    texts = [_texts(row, columns, where, number) for number, row in enumerate(rows, start=1)]
    if options.label_column not in column_names(rows):
        return Split(texts=texts, labels=None)
    encoded: list[Label] = space.encode([row.get(options.label_column) for row in rows], where)
    labeled = [position for position, label in enumerate(encoded) if label is not None]
    if not labeled:
        return Split(texts=texts, labels=None)
    if len(labeled) < len(rows):
        notes.append(f"{where}: {len(rows) - len(labeled)} rows without a label are left out")
    labels = [label for label in encoded if label is not None]
    return Split(texts=[texts[position] for position in labeled], labels=labels)


def _texts(row: Row, columns: tuple[str, ...], where: str, number: int) -> tuple[str, ...]:
    texts = tuple(row.get(name) for name in columns)
    if not isinstance(texts[0], str):
        raise FormatError(f"{where}, row {number}: {columns[0]!r} is {texts[0]!r}, expected a text")
    # A column that is empty in a row, as sentence2 of a single-sentence task, is no second text.
    return tuple(text for text in texts if isinstance(text, str) and (text or text is texts[0]))


def _directory_tables(data_dir: Path, name: str) -> dict[str, tuple[str, list[Row]]]:
    if not data_dir.is_dir():
        raise ConfigError(f"--data-dir {data_dir}: no such directory")
    present = sorted(entry.name for entry in data_dir.iterdir() if entry.is_dir())
    matches = [entry for entry in present if normalized(entry) == normalized(name)]
    if not matches:
        raise ConfigError(f"--task {name!r}: {data_dir} has no such directory{_suggestion(name, present)}")
    folder = data_dir / (name if name in matches else matches[0])
    tables: dict[str, tuple[str, list[Row]]] = {}
    for split, stems in SPLITS.items():
        candidates = [
            folder / f"{stem}{kind}{gz}" for stem in stems for kind in SUFFIXES for gz in ("", ".gz")
        ]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is not None:
            tables[split] = (str(path), read_rows(path))
    if "train" not in tables:
        raise FormatError(f"{folder}: has no train.jsonl or train.jsonl.gz")
    return tables


def _hub_tables(name: str, known: GlueTask | None) -> dict[str, tuple[str, list[Row]]]:
    if known is None:
        raise ConfigError(
            f"--task {name!r} is unknown{_suggestion(name, [*GLUE, *BUILT_IN])}; "
            "your own data comes in by --data-dir or --train-file"
        )
    import datasets

    try:
        table = datasets.load_dataset(HUB_NAME, normalized(name))
    except Exception as error:  # The hub fails in many ways, none of them the user's traceback.
        raise ConfigError(
            f"--task {name}: {HUB_NAME} did not load from the hub ({type(error).__name__}: {error}); "
            "give --data-dir with local files"
        ) from None
    splits = {"train": "train", "dev": known.dev, "test": known.test}
    return {
        split: (f"{name} {hub}", [dict(row) for row in table[hub]])
        for split, hub in splits.items()
        if hub in table
    }


def _suggestion(name: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), choices, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; choose from {', '.join(choices)}" if choices else ""
