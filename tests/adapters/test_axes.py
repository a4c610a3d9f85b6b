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
        ("in1 in2 layer matrix out1 out2", "'in1': factorized feature axes are not built"),
        ("layer in matrix out", "modes left of 'in' is not built"),
        ("in layer out matrix", "modes right of 'out' is not built"),
        ("in layer head matrix out", "'head' is built directly left of 'out'"),
    ],
)
def test_a_pattern_that_is_not_built_is_refused_by_name(text, message):
    pattern = parse_pattern(text)
    with pytest.raises(PatternError, match=message) as caught:
        pattern.check_built()
    assert repr(text) in str(caught.value)


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
