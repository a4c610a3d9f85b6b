"""Labels of every kind that files hold."""

import math

import pytest

from ttnet.cli.labels import label_space
from ttnet.errors import FormatError


def encode(train, raw=None, classes=(), regression=None):
    space = label_space(train, classes, regression, "train")
    return space, space.encode(train if raw is None else raw, "split")


def test_whole_numbers_are_classes_in_numeric_order():
    space, found = encode([10, 2, 2, 7])
    assert space.names == ("2", "7", "10")
    assert found == [2, 0, 0, 1]


def test_strings_are_classes_in_alphabetic_order():
    space, found = encode(["spam", "ham", "spam"])
    assert space.names == ("ham", "spam")
    assert found == [1, 0, 1]


def test_numbers_that_csv_gives_as_text_are_numbers():
    assert encode(["1", "0", "1"])[1] == [1, 0, 1]
    assert encode([1.0, 0.0])[1] == [1, 0]
    space, found = encode(["0.5", "2", "3.25"])
    assert space.regression
    assert found == [0.5, 2.0, 3.25]


def test_mixed_text_and_numbers_are_text():
    assert encode(["1", "x", 1])[1] == [0, 1, 0]


def test_minus_one_can_be_a_class():
    assert encode([-1, 1, -1])[1] == [0, 1, 0]


def test_known_classes_keep_their_order():
    classes = ("entailment", "not_entailment")
    assert encode(["not_entailment", "entailment"], classes=classes)[1] == [1, 0]
    assert encode([1, 1, 0], classes=classes)[0].names == classes
    # A training subset may miss a class of the task.
    assert encode([0, 0], classes=classes)[0].names == classes


def test_missing_labels_are_none():
    _, found = encode([0, 1, 0], raw=[1, None, "", math.nan, -1])
    assert found == [1, None, None, None, None]


@pytest.mark.parametrize("raw", [[-1, -1], ["-1", "-1"], [-1.0, -1.0], [None, -1]])
def test_a_split_of_minus_ones_has_no_labels(raw):
    assert encode([0.5, 4.0], raw=raw)[1] == [None, None]
    assert encode([0, 1], raw=raw)[1] == [None, None]


def test_minus_one_is_a_value_of_a_regression():
    assert encode([0.5, -1.0], regression=True)[1] == [0.5, -1.0]


def test_a_regression_by_name_takes_whole_numbers():
    space, found = encode([5, 3, 0], regression=True)
    assert space.regression
    assert found == [5.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("train", "raw", "text"),
    [
        ([0, 1], [2], r"label '2' is none of the classes \['0', '1'\]"),
        ([0.5, 1.5], ["high"], r"label 'high' is no number"),
        ([1, 1], None, "every label is 1; at least two classes"),
        ([None, None], None, "has no labels"),
    ],
)
def test_bad_labels_are_named(train, raw, text):
    with pytest.raises(FormatError, match=text):
        encode(train, raw)
