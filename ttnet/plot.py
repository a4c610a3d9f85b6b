"""Figures of ranks and spectra, from plain numbers; needs matplotlib (extra `plot`).

Figures are made without pyplot, so that no global state and no display is touched: save them by
`figure.savefig(path)`, a notebook shows them as they are.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ttnet.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spectra = Sequence[Sequence[float]]


def plot_spectra(
    spectra: Spectra, labels: Sequence[str] | None = None, *, axes: "Axes | None" = None
) -> "Figure":
    """Singular values of every bond, each relative to its largest, on a logarithmic axis.

    Args:
        spectra: For each bond its singular values, largest first; a bond of zeros is left out.
        labels: Name of each bond; their numbers by default.
        axes: Where to draw; a new figure by default.

    Returns:
        The figure.

    Raises:
        ShapeError: There are more or fewer labels than bonds.
    """
    from matplotlib.figure import Figure

    names = [f"bond {bond}" for bond in range(len(spectra))] if labels is None else list(labels)
    if len(names) != len(spectra):
        raise ShapeError(f"labels: expected one for each of {len(spectra)} bonds, got {len(names)}")
    if axes is None:
        axes = Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
    for name, spectrum in zip(names, spectra, strict=True):
        values = np.asarray(spectrum, dtype=np.float64)
        if values.size and values[0] > 0:
            kept = values[values > 0]
            axes.semilogy(np.arange(1, kept.size + 1), kept / kept[0], marker="o", markersize=3, label=name)
    axes.set_xlabel("index")
    axes.set_ylabel("singular value / largest")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    return _figure_of(axes)


def plot_ranks(history: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None) -> "Figure":
    """Ranks of all bonds over the epochs, and below them the spectrum of each bond as it changed.

    Args:
        history: One mapping for each epoch: `epoch`, `ranks` (all d + 1 of them) and, where known, `spectra`
            (for each bond its singular values).
        labels: Name of each bond; their numbers by default.

    Returns:
        The figure.

    Raises:
        ShapeError: The history is empty, or its trains have no bond.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if not history or len(history[0]["ranks"]) < 3:
        raise ShapeError("history: expected at least one epoch of a train with at least one bond")
    bonds = len(history[0]["ranks"]) - 2
    names = [f"bond {bond}" for bond in range(bonds)] if labels is None else list(labels)
    figure = Figure(figsize=(max(6.0, 2.8 * bonds), 6), layout="constrained")
    grid = figure.add_gridspec(2, bonds)
    top = figure.add_subplot(grid[0, :])
    epochs = [record["epoch"] for record in history]
    for bond, name in enumerate(names):
        # Lines of equal rank are drawn side by side, or only the last would be seen.
        shift = 0.06 * (bond - (bonds - 1) / 2)
        top.step(epochs, [record["ranks"][bond + 1] + shift for record in history], where="mid", label=name)
    top.set(xlabel="epoch", ylabel="rank", xticks=epochs, ylim=(0, None))
    top.legend(frameon=False, fontsize="small", ncols=bonds)
    known = [record for record in history if record.get("spectra")]
    for bond, name in enumerate(names):
        below = figure.add_subplot(grid[1, bond])
        for position, record in enumerate(known):
            values = np.asarray(record["spectra"][bond], dtype=np.float64)
            kept = values[values > 0]
            if kept.size:
                color = colormaps["viridis"](position / max(1, len(known) - 1))
                label = f"epoch {record['epoch']:g}" if bond == 0 else None
                below.semilogy(np.arange(1, kept.size + 1), kept / kept[0], ".-", color=color, label=label)
        below.set(xlabel="index", title=name)
        if bond == 0:
            below.set_ylabel("singular value / largest")
            if below.get_legend_handles_labels()[0]:
                below.legend(frameon=False, fontsize="x-small")
    return figure


def _figure_of(axes: "Axes") -> "Figure":
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ShapeError("axes: expected axes that belong to a figure")
    return figure
