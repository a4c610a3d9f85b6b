"""Tasks from directories, files and the installed package."""

import csv
import gzip
import json

import pytest

from tests.cli.samples import documents, write_jsonl
from ttnet.cli.options import FinetuneOptions
from ttnet.cli.tasks import load_task
from ttnet.errors import ConfigError, FormatError


def load(**options):
    return load_task(FinetuneOptions(model="minilm", output="out", **options))


def test_a_directory_of_json_lines(data_dir):
    task = load(task="praise", data_dir=str(data_dir))
    assert (len(task.train), len(task.dev), len(task.test)) == (48, 16, 16)
    assert task.metrics == ("accuracy",)
    assert task.notes == ()


def test_names_of_directories_and_tasks_ignore_case_and_dashes(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "label": value} for value in (5.0, 0, 2.5, 4)]
    write_jsonl(tmp_path / "STS-B" / "train.jsonl", rows)
    write_jsonl(tmp_path / "STS-B" / "dev.jsonl", [{"sentence1": "a", "sentence2": "b", "label": "3.8"}])
    write_jsonl(tmp_path / "STS-B" / "test.jsonl", [{"sentence1": "a", "sentence2": "b", "label": -1.0}])
    task = load(task="stsb", data_dir=str(tmp_path))
    assert task.space.regression
    assert task.metrics == ("pearson", "spearman")
    assert task.train.labels == [5.0, 0.0, 2.5, 4.0]
    assert task.dev.labels == [3.8]
    assert task.test.labels is None
    assert "not scored" in task.notes[0]


def test_whole_numbered_scores_of_stsb_are_a_regression(tmp_path):
    write_jsonl(
        tmp_path / "stsb" / "train.jsonl", [{"sentence1": "a", "label": value} for value in (5, 0)] * 10
    )
    assert load(task="stsb", data_dir=str(tmp_path)).space.regression


@pytest.mark.parametrize(
    ("task", "labels", "metrics", "classes"),
    [
        ("cola", [0, 1], ("matthews", "accuracy"), 2),
        ("mnli", [0, 1, 2], ("accuracy",), 3),
        ("mnli", ["neutral", "contradiction", "entailment"], ("accuracy",), 3),
        ("qqp", [0, 1], ("accuracy", "f1"), 2),
        ("qnli", ["entailment", "not_entailment"], ("accuracy",), 2),
        ("wnli", [1, 0], ("accuracy",), 2),
    ],
)
def test_glue_tasks_have_their_metrics(tmp_path, task, labels, metrics, classes):
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in labels] * 10
    write_jsonl(tmp_path / task / "train.jsonl", rows)
    write_jsonl(tmp_path / task / "validation_matched.jsonl", rows)
    loaded = load(task=task, data_dir=str(tmp_path))
    assert (loaded.metrics, len(loaded.space.names), len(loaded.dev)) == (metrics, classes, len(rows))
    if isinstance(labels[0], str):
        assert loaded.train.labels[:3] != sorted(loaded.train.labels[:3]) or task == "qnli"


def test_positive_class_of_named_labels_is_one(tmp_path):
    rows = [
        {"sentence1": "a", "sentence2": "b", "label": name} for name in ("equivalent", "not_equivalent")
    ] * 10
    write_jsonl(tmp_path / "mrpc" / "train.jsonl", rows)
    task = load(task="mrpc", data_dir=str(tmp_path))
    assert task.space.names == ("not_equivalent", "equivalent")


def test_native_columns_of_glue_are_understood(tmp_path):
    rows = [{"question": "q", "sentence": "s", "label": label} for label in (0, 1)] * 10
    write_jsonl(tmp_path / "qnli" / "train.jsonl", rows)
    assert load(task="qnli", data_dir=str(tmp_path)).train.texts[0] == ("q", "s")


def test_files_with_named_columns(tmp_path):
    rows = [{"head": "x", "body": f"y, {n}", "kind": "spam" if n % 2 else "ham"} for n in range(20)]
    with gzip.open(tmp_path / "mail.csv.gz", "wt", newline="") as stream:
        writer = csv.DictWriter(stream, ["head", "body", "kind"])
        writer.writeheader()
        writer.writerows(rows)
    task = load(train_file=str(tmp_path / "mail.csv.gz"), text_columns=("head", "body"), label_column="kind")
    assert task.name == "mail"
    assert task.space.names == ("ham", "spam")
    assert (len(task.train), len(task.dev), task.test) == (18, 2, None)
    assert "10 %" in task.notes[0]
    assert task.train.texts[0][1].startswith("y, ")


def test_subsets_and_dev_splits_are_seeded(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": str(n), "label": n % 2} for n in range(100)])
    first, again, other = (load(train_file=str(file), train_samples=30, data_seed=seed) for seed in (1, 1, 2))
    assert first.train.texts == again.train.texts != other.train.texts
    assert first.dev.texts == again.dev.texts != other.dev.texts
    assert not set(first.train.texts) & set(first.dev.texts)
    assert "subset: 30 of 90" in first.notes[1]


def test_empty_second_sentences_are_no_pair(tmp_path):
    rows = [
        {"sentence1": "a", "sentence2": None, "label": 0},
        {"sentence1": "b", "sentence2": "", "label": 1},
    ] * 9
    write_jsonl(tmp_path / "x" / "train.jsonl", rows)
    assert set(map(len, load(task="x", data_dir=str(tmp_path)).train.texts)) == {1}


def test_a_metric_can_be_chosen(data_dir):
    assert load(task="praise", data_dir=str(data_dir), metric="f1").metrics == ("f1", "accuracy")
    with pytest.raises(
        ConfigError, match="--metric 'pearson' is no metric of a classification; choose from accuracy"
    ):
        load(task="praise", data_dir=str(data_dir), metric="pearson")


def test_reuters_has_its_standard_splits():
    try:
        task = load(task="reuters-r8")
    except ConfigError as error:
        pytest.skip(str(error))
    assert (len(task.train), len(task.dev), len(task.test)) == (1600, 548, 2189)
    assert len(task.space.names) == 8
    assert "subset: 1600 of 4937" in task.notes[1]
    assert len(load(task="reuters-r8", full=True).train) == 4937


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "mrcp"}, "--task 'mrcp' is unknown; did you mean mrpc"),
        ({"task": "reuters"}, "did you mean reuters-r8"),
        ({"task": "prais"}, r"has no such directory; did you mean praise\?"),
        ({"train_file": "none.jsonl"}, r"none\.jsonl: no such file"),
        ({"train_file": "none.parquet"}, "cannot tell its kind"),
    ],
)
def test_bad_names_get_a_suggestion(data_dir, options, text):
    if options.get("task") == "prais":
        options = {**options, "data_dir": str(data_dir)}
    with pytest.raises((ConfigError, FormatError), match=text):
        load(**options)


@pytest.mark.parametrize(
    ("name", "content", "options", "text"),
    [
        ("a.jsonl", b'{"sentence1": "a", "label": 1}\n{"sentence1"\n', {}, "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", {}, "line 1: expected an object"),
        ("a.jsonl", b"\n", {}, "has no rows"),
        ("a.jsonl", b"\xff\xfe\x00", {}, "cannot be read"),
        ("a.jsonl.gz", b"no gzip", {}, "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"sentence1": "a"}\n' * 99, mtime=0)[:40], {}, "cannot be read"),
        ("a.csv", b"sentence1,label\na,1,2\n", {}, "3 fields, the first line has 2"),
        ("a.jsonl", b'{"text": "a", "y": 1}\n', {}, r"--label-column label: there is no column 'label'"),
        (
            "a.jsonl",
            b'{"body": "a", "label": 1}\n',
            {},
            r"there is no column 'sentence1'; the file has \['body'",
        ),
        ("a.jsonl", b'{"a": "a", "label": 1}\n', {"text_columns": ("a", "b")}, "there is no column 'b'"),
        (
            "a.jsonl",
            b'{"text": 3, "label": 1}\n{"text": "x", "label": 0}\n',
            {},
            "row 1: 'text' is 3, expected a text",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, options, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=text):
        load(train_file=str(tmp_path / name), **options)


def test_an_unknown_label_in_test_is_named(data_dir):
    rows = [{**row, "label": 7} for row in documents(4, 3)]
    (data_dir / "praise" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FormatError, match=r"test\.jsonl: label '7' is none of the classes"):
        load(task="praise", data_dir=str(data_dir))
