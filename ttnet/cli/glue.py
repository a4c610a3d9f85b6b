"""The tasks of GLUE as data: columns on the hub, names of the classes, metrics."""

import dataclasses
import re

HUB_NAME = "nyu-mll/glue"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
    """What sets one task of GLUE apart.

    Args:
        columns: Text columns of the hub's copy, one or two.
        classes: Names of the classes in the order of their index; none for a regression.
        metrics: Names in `ttnet.cli.metrics.METRICS`, the first chooses the best checkpoint.
        dev: Split of the hub's copy that is the dev split.
        test: Split of the hub's copy that is the test split.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    dev: str = "validation"
    test: str = "test"


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        columns=("sentence",), classes=("unacceptable", "acceptable"), metrics=("matthews", "accuracy")
    ),
    "sst2": GlueTask(columns=("sentence",), classes=("negative", "positive")),
    "mrpc": GlueTask(
        columns=("sentence1", "sentence2"),
        classes=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
    ),
    "qqp": GlueTask(
        columns=("question1", "question2"), classes=("not_duplicate", "duplicate"), metrics=("accuracy", "f1")
    ),
    "stsb": GlueTask(columns=("sentence1", "sentence2"), classes=(), metrics=("pearson", "spearman")),
    "mnli": GlueTask(
        columns=("premise", "hypothesis"),
        classes=("entailment", "neutral", "contradiction"),
        dev="validation_matched",
        test="test_matched",
    ),
    "qnli": GlueTask(columns=("question", "sentence"), classes=("entailment", "not_entailment")),
    "rte": GlueTask(columns=("sentence1", "sentence2"), classes=("entailment", "not_entailment")),
    "wnli": GlueTask(columns=("sentence1", "sentence2"), classes=("not_entailment", "entailment")),
}


def normalized(name: str) -> str:
    """A task's name without case and punctuation, so that STS-B, sts_b and stsb are one.

    Args:
        name: What was typed, or the name of a directory.

    Returns:
        Lower-case letters and digits.
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())
