"""Figures from plain numbers."""

import math

import pytest
import torch

import ttnet
from ttnet.errors import ShapeError
from ttnet.optim import DMRGScheduler
from ttnet.plot import plot_entropies, plot_ranks, plot_spectra, plot_tradeoff, plot_train

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
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["epoch 2"]
    figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000


def test_spectra_are_relative_to_the_largest():
    (axes,) = plot_spectra([[4.0, 2.0, 0.0], [0.0]], ["a", "b"]).axes
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == [1.0, 0.5]
    assert axes.get_yscale() == "log"


def test_a_train_is_drawn_with_its_sizes_and_ranks(tmp_path):
    train = ttnet.random_train((4, 5, 6), (2, 3), seed=0).orthogonalize(1)
    figure = plot_train(train, ["in", "layer", "out"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["2", "3", "in\n4", "layer\n5", "out\n6"]
    bonds = [line for line in axes.get_lines() if line.get_ydata()[1] == 0]
    assert [line.get_linewidth() for line in bonds] == pytest.approx([2.0, 1.0 + math.log2(3)])
    (circles,) = axes.collections
    faces = circles.get_facecolors().tolist()
    assert faces[1] != faces[0] == faces[2]
    figure.savefig(tmp_path / "train.png")
    assert (tmp_path / "train.png").stat().st_size > 1000


def test_a_train_without_center_or_names_and_with_open_ends():
    parameter = ttnet.TTParameter(ttnet.random_train((4, 5), 2, seed=0))
    (axes,) = plot_train(parameter).axes
    assert [text.get_text() for text in axes.texts] == ["2", "4", "5"]
    (circles,) = axes.collections
    assert len({tuple(face) for face in circles.get_facecolors().tolist()}) == 1

    class Open:
        shape, ranks = (4,), (2, 3)

    (axes,) = plot_train(Open()).axes
    assert [text.get_text() for text in axes.texts] == ["2", "3", "4"]


def test_a_pattern_names_cores_and_bonds():
    pattern = "in (layer matrix) out"
    (axes,) = plot_train(ttnet.random_train((4, 6, 5), 2, seed=0), pattern).axes
    assert [text.get_text() for text in axes.texts[2:]] == ["in\n4", "(layer matrix)\n6", "out\n5"]
    (axes,) = plot_spectra([[1.0], [1.0]], pattern).axes
    assert [line.get_label() for line in axes.get_lines()] == ["in|layer matrix", "layer matrix|out"]


def test_entropies_come_from_spectra_or_as_they_are():
    train = ttnet.random_train((4, 5, 6), 3, seed=0)
    spectra = [each.tolist() for each in train.spectra()]
    history = [
        *HISTORY[:1],
        {"epoch": 2, "spectra": spectra},
        {"epoch": 3},
        {"epoch": 4, "entropies": [1, 2]},
    ]
    (axes,) = plot_entropies(history, "a b c").axes
    assert [line.get_label() for line in axes.get_lines()] == ["a|b", "b|c"]
    for line, entropy, last in zip(axes.get_lines(), train.entropies(), (1, 2), strict=True):
        assert line.get_xdata().tolist() == [1, 2, 4]
        assert line.get_ydata().tolist() == pytest.approx([0.0, entropy, last])


def test_entropy_of_equal_directions_is_the_logarithm_of_their_number():
    (axes,) = plot_entropies([{"epoch": 0, "spectra": [[1e-200] * 4]}]).axes
    assert axes.get_lines()[0].get_ydata().tolist() == pytest.approx([math.log(4)])


def test_tradeoff_shows_mean_and_spread_of_every_method(tmp_path):
    results = {"4D": {200: [0.5, 0.7], 100: [0.4, 0.4]}, "LoRA": {400: 0.9}}
    figure = plot_tradeoff(results, reference={"all weights": 0.95}, metric="accuracy")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "accuracy"
    assert axes.get_legend_handles_labels()[1] == ["all weights", "4D", "LoRA"]
    line, _, (bars,) = axes.containers[0]
    assert line.get_xdata().tolist() == [100, 200]
    assert line.get_ydata().tolist() == pytest.approx([0.4, 0.6])
    heights = [float(segment[1, 1] - segment[0, 1]) for segment in bars.get_segments()]
    assert heights == pytest.approx([0.0, 2 * math.sqrt(0.02)])
    figure.savefig(tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").stat().st_size > 1000


def test_figures_are_drawn_where_asked():
    from matplotlib.figure import Figure

    figure = Figure()
    several = figure.subplots(1, 4)
    train = ttnet.random_train((4, 5), 2, seed=0)
    assert plot_train(train, axes=several[0]) is figure
    assert plot_spectra([[1.0]], axes=several[1]) is figure
    assert plot_entropies(HISTORY, axes=several[2]) is figure
    assert plot_tradeoff({"a": {1: 2.0}}, axes=several[3]) is figure
    assert len(figure.axes) == 4


def test_tensors_are_numbers_whether_they_require_grad_or_not():
    spectra = [torch.tensor([4.0, 2.0], requires_grad=True), torch.tensor([1.0], dtype=torch.bfloat16)]
    (axes,) = plot_spectra(spectra).axes
    assert axes.get_lines()[0].get_ydata().tolist() == [1.0, 0.5]
    record = {"epoch": 0, "ranks": (1, 2, 1, 1), "spectra": spectra, "entropies": torch.tensor([1.0, 2.0])}
    assert len(plot_ranks([record]).axes) == 3
    (axes,) = plot_entropies([record]).axes
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[1.0], [2.0]]
    (axes,) = plot_entropies([{"epoch": 0, "spectra": [torch.ones(4, requires_grad=True)]}]).axes
    assert axes.get_lines()[0].get_ydata().tolist() == pytest.approx([math.log(4)])


def test_histories_that_do_not_fit_are_named():
    first = HISTORY[1]
    with pytest.raises(ShapeError, match=r"history: expected all 4 ranks.*got \(1, 2, 1\)"):
        plot_ranks([first, {"epoch": 3, "ranks": (1, 2, 1)}])
    with pytest.raises(ShapeError, match=r"got \(3, 2, 4\); of a sweep pass \(1, \*report.ranks_after, 1\)"):
        plot_ranks([{"epoch": 1, "ranks": (3, 2, 4)}])
    with pytest.raises(ShapeError, match="history: expected spectra of 2 bonds in each epoch, got 1"):
        plot_ranks([first, first | {"epoch": 3, "spectra": [[1.0]]}])
    with pytest.raises(ShapeError, match="history: expected entropies of 2 bonds in each epoch, got 3"):
        plot_entropies([first, {"epoch": 3, "entropies": [1.0, 2.0, 3.0]}])
    parameter = ttnet.TTParameter(ttnet.random_train((4, 5), 2, seed=0))
    optimizer = torch.optim.SGD(parameter.parameters())
    report = DMRGScheduler(optimizer, parameter, ranks={0: 2, 1: 1}).step()
    for draw in (plot_ranks, plot_entropies):
        with pytest.raises(ShapeError, match="history: expected a mapping for each epoch, got a SweepReport"):
            draw([report])
    train = ttnet.random_train((4, 5, 6), 2, seed=0)
    with pytest.raises(ShapeError, match=r"got 1 from '5d'; of an adapter pass `adapter.layout.pattern`"):
        plot_train(train, "5d")


def test_bad_input_is_named():
    train = ttnet.random_train((4, 5), 2, seed=0)
    with pytest.raises(ShapeError, match="labels: expected one for each of 2 bonds, got 1"):
        plot_spectra([[1.0], [1.0]], ["a"])
    with pytest.raises(ShapeError, match="history"):
        plot_ranks([])
    with pytest.raises(ShapeError, match="labels: expected one for each of 2 bonds, got 3"):
        plot_ranks(HISTORY, "in layer matrix out")
    with pytest.raises(ShapeError, match="labels: expected one for each of 2 cores, got 3"):
        plot_train(train, "in layer out")
    with pytest.raises(ShapeError, match=r"train: expected the shape and the ranks.*1 mode sizes"):
        plot_train(train.cores[0].new_zeros(2))
    with pytest.raises(ShapeError, match="history: expected at least one epoch with"):
        plot_entropies([{"epoch": 1}])
    with pytest.raises(ShapeError, match="results: expected at least one method"):
        plot_tradeoff({})
    with pytest.raises(ShapeError, match=r"at least one value, got .* for 'LoRA'"):
        plot_tradeoff({"LoRA": {100: []}})
