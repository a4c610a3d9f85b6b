"""The grammar of patterns."""

import pytest

from ttnet.adapters import Axis, parse_pattern
from ttnet.errors import PatternError


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("in layer matrix out", [("in",), ("layer",), ("matrix",), ("out",)]),
        ("in layer matrix head out", [("in",), ("layer",), ("matrix",), ("head",), ("out",)]),
        ("in layer task matrix out", [("in",), ("layer",), ("task",), ("matrix",), ("out",)]),
        ("in (layer matrix) out", [("in",), ("layer", "matrix"), ("out",)]),
        ("  in(layer matrix)out ", [("in",), ("layer", "matrix"), ("out",)]),
        ("in1 in2 layer out2 out1", [("in1",), ("in2",), ("layer",), ("out2",), ("out1",)]),
        ("in layer expert matrix out", [("in",), ("layer",), ("expert",), ("matrix",), ("out",)]),
        ("in out", [("in",), ("out",)]),
    ],
)
def test_patterns_are_read(text, modes):
    assert parse_pattern(text).modes == tuple(modes)


def test_a_pattern_is_parsed_once():
    assert parse_pattern("in layer matrix out") is parse_pattern("in layer matrix out")


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("in layr matrix out", 3, "unknown axis; did you mean 'layer'"),
        ("in foo out", 3, r"unknown axis; .*axes=\(Axis\('foo'"),
        ("in layer layer out", 9, "repeated"),
        ("in out in", 7, "repeated"),
        ("layer matrix out", 16, "'in' is missing"),
        ("in layer", 8, "'out' is missing"),
        ("", 0, "'in' is missing"),
        ("in (layer matrix out", 17, "leave feature axes outside"),
        ("in out (layer", 7, "never closed"),
        ("in ((layer)) out", 4, "do not nest"),
        ("in layer) out", 8, "nothing is open"),
        ("in () out", 4, "empty"),
        ("in layer, matrix out", 8, "separate axes by spaces"),
        ("in in1 layer out", 3, "factors of 'in'"),
        ("in1 in3 layer out", 4, "factors of 'in'"),
    ],
)
def test_a_bad_pattern_is_quoted_with_the_place(text, position, message):
    with pytest.raises(PatternError, match=message) as caught:
        parse_pattern(text)
    assert f"pattern {text!r}: position {position}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out layer in", "'out': it stands left of 'in'"),
        ("in1 out1 in2 out2", "'out1': it stands left of 'in2'"),
        ("in layer head out1 out2", "'head' splits 'out' already"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_by_name(text, message):
    pattern = parse_pattern(text)
    with pytest.raises(PatternError, match=message) as caught:
        pattern.check_order()
    assert repr(text) in str(caught.value)


def test_parts_of_the_chain():
    pattern = parse_pattern("layer in2 in1 (matrix task) stack head out")
    assert pattern.left_modes == (("layer",), ("in2",), ("in1",))
    assert pattern.middle_modes == (("matrix", "task"), ("stack",))
    assert pattern.right_modes == (("head",), ("out",))
    assert pattern.feature_axes("in") == ("in1", "in2")
    assert pattern.feature_axes("out") == ("head", "out")
    assert pattern.find("task") == pattern.find("(matrix task)") == 3
    with pytest.raises(PatternError, match="no axis 'expert'"):
        pattern.find("expert")


def test_axes_of_the_users_own():
    axis = Axis("half", labels=["low", "high"])
    assert axis.size == 2
    assert parse_pattern("in half out", (axis,)).structural == ("half",)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "two words"},
        {"name": "a", "size": 0},
        {"name": "a", "size": 2, "labels": ("x",)},
        {"name": "a", "labels": ("x", "x")},
    ],
)
def test_a_bad_axis_is_refused(options):
    with pytest.raises(PatternError, match="Axis"):
        Axis(**options)
