"""Figures from plain numbers."""

import pytest

from ttnet.errors import ShapeError
from ttnet.plot import plot_ranks, plot_spectra

HISTORY = [
    {"epoch": 1, "ranks": [1, 3, 3, 1], "spectra": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]},
    {"epoch": 2, "ranks": [1, 3, 2, 1], "spectra": [[3.0, 2.0, 1.0], [2.0, 1.0]]},
]


def test_ranks_and_spectra_of_every_bond_are_drawn(tmp_path):
    figure = plot_ranks(HISTORY, ["in|layer", "layer|out"])
    top, *below = figure.axes
    assert [line.get_label() for line in top.get_lines()] == ["in|layer", "layer|out"]
    assert [round(value) for value in top.get_lines()[1].get_ydata()] == [3, 2]
    assert [axes.get_title() for axes in below] == ["in|layer", "layer|out"]
    # The zero train of the first epoch has no spectrum to show.
    assert [len(axes.get_lines()) for axes in below] == [1, 1]
    figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000


def test_spectra_are_relative_to_the_largest():
    (axes,) = plot_spectra([[4.0, 2.0, 0.0], [0.0]], ["a", "b"]).axes
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == [1.0, 0.5]
    assert axes.get_yscale() == "log"


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match="labels: expected one for each of 2 bonds, got 1"):
        plot_spectra([[1.0], [1.0]], ["a"])
    with pytest.raises(ShapeError, match="history"):
        plot_ranks([])
