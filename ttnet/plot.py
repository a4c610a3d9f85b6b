"""Figures of trains: diagram, spectra, ranks and entropies, parameters against metric; needs matplotlib.

Figures are made without pyplot, so that no global state and no display is touched: save them by
`figure.savefig(path)`, a notebook shows them as they are. Matplotlib comes with the extra `plot`.

Labels are names of cores or bonds, or the pattern of an adapter, such as "in layer matrix out", whose bonds
are called "in|layer", "layer|matrix", ...
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from ttnet.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spectra = Sequence[Sequence[float] | Tensor]
Labels = Sequence[str] | str


class HasRanks(Protocol):
    """What has the shape of a train: a `TensorTrain`, a `TTParameter`, the `cores` of an adapter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes."""
        ...

    @property
    def ranks(self) -> tuple[int, ...]:
        """All d + 1 ranks."""
        ...


def plot_train(train: HasRanks, labels: Labels | None = None, *, axes: "Axes | None" = None) -> "Figure":
    """The train as a diagram: cores in a row, their modes below them, the rank written on every bond.

        O---8---O===32===O--4--O
        |       |        |     |
        in    layer   matrix  out
        64      12       2     64

    A bond is the thicker the larger its rank, by 1 + log2(rank) points, so that diagrams compare. The center,
    where the train has one, is filled.

    Args:
        train: Anything with the `shape` and the `ranks` of a train.
        labels: Name of each mode, or a pattern; only sizes are written by default.
        axes: Where to draw; a new figure by default.

    Returns:
        The figure.

    Raises:
        ShapeError: There are more or fewer labels than cores, or the ranks are not those of a train.
    """
    from matplotlib.figure import Figure

    shape, ranks = tuple(getattr(train, "shape", ())), tuple(getattr(train, "ranks", ()))
    if not shape or len(ranks) != len(shape) + 1:
        raise ShapeError(
            f"train: expected the shape and the ranks of a train, got {len(shape)} mode sizes and "
            f"{len(ranks)} ranks from a {type(train).__name__}; of an adapter pass `adapter.cores`"
        )
    names = [""] * len(shape) if labels is None else _mode_names(labels)
    if len(names) != len(shape):
        raise ShapeError(
            f"labels: expected one for each of {len(shape)} cores, got {len(names)} from {labels!r}; of an "
            f"adapter pass `adapter.layout.pattern`"
        )
    if axes is None:
        size = (min(24.0, max(3.0, 1.2 * len(shape))), 1.9)
        axes = Figure(figsize=size, layout="constrained").add_subplot()
    center = getattr(train, "center", None)
    small: dict[str, Any] = {"ha": "center", "fontsize": "small"}
    for bond, rank in enumerate(ranks):
        if 0 < bond < len(shape) or rank > 1:
            axes.plot([bond - 1, bond], [0, 0], color="C0", linewidth=1 + math.log2(max(1, rank)), zorder=1)
            axes.text(bond - 0.5, 0.14, str(rank), va="bottom", **small)
    for k, (name, mode) in enumerate(zip(names, shape, strict=True)):
        axes.plot([k, k], [0, -0.45], color="0.35", linewidth=1.2, zorder=1)
        axes.text(k, -0.5, f"{name}\n{mode}".strip(), va="top", **small)
    filled = ["C0" if k == center else "white" for k in range(len(shape))]
    axes.scatter(
        range(len(shape)), [0.0] * len(shape), s=260, c=filled, edgecolors="C0", linewidths=1.6, zorder=2
    )
    axes.set(xlim=(-0.9, len(shape) - 0.1), ylim=(-1.15, 0.5))
    axes.set_axis_off()
    return _figure_of(axes)


def plot_spectra(spectra: Spectra, labels: Labels | None = None, *, axes: "Axes | None" = None) -> "Figure":
    """Singular values of every bond, each relative to its largest, on a logarithmic axis.

    Args:
        spectra: For each bond its singular values, largest first; a bond of zeros is left out.
        labels: Name of each bond, or a pattern; their numbers by default.
        axes: Where to draw; a new figure by default.

    Returns:
        The figure.

    Raises:
        ShapeError: There are more or fewer labels than bonds.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = _bond_names(labels, len(spectra))
    if axes is None:
        axes = Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
    for name, spectrum in zip(names, spectra, strict=True):
        values = _numbers(spectrum)
        if values.size and values[0] > 0:
            kept = values[values > 0]
            axes.semilogy(np.arange(1, kept.size + 1), kept / kept[0], marker="o", markersize=3, label=name)
    axes.set_xlabel("index")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("singular value / largest")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    return _figure_of(axes)


def plot_ranks(history: Sequence[Mapping[str, Any]], labels: Labels | None = None) -> "Figure":
    """Ranks of all bonds over the epochs, and below them the spectrum of each bond as it changed.

    Args:
        history: One mapping for each epoch: `epoch`, `ranks` (all d + 1 of them) and, where known, `spectra`
            (for each bond its singular values).
        labels: Name of each bond, or a pattern; their numbers by default.

    Returns:
        The figure.

    Raises:
        ShapeError: The history is empty, its trains have no bond or not the same number of them, ranks or
            spectra are not those of all bonds, or there are more or fewer labels than bonds.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    _check_history(history)
    if not history or len(history[0]["ranks"]) < 3:
        raise ShapeError("history: expected at least one epoch of a train with at least one bond")
    bonds = len(history[0]["ranks"]) - 2
    for record in history:
        ranks = tuple(record["ranks"])
        if len(ranks) != bonds + 2 or ranks[0] != 1 or ranks[-1] != 1:
            raise ShapeError(
                f"history: expected all {bonds + 2} ranks of a train of {bonds} bonds in each epoch, from 1 "
                f"to 1, got {ranks}; of a sweep pass (1, *report.ranks_after, 1)"
            )
        _check_bonds(record, "spectra", bonds)
    names = _bond_names(labels, bonds)
    figure = Figure(figsize=(max(6.0, 2.8 * bonds), 6), layout="constrained")
    grid = figure.add_gridspec(2, bonds)
    top = figure.add_subplot(grid[0, :])
    epochs = [record["epoch"] for record in history]
    for bond, name in enumerate(names):
        # Lines of equal rank are drawn side by side, or only the last would be seen.
        shift = 0.06 * (bond - (bonds - 1) / 2)
        top.step(epochs, [record["ranks"][bond + 1] + shift for record in history], where="mid", label=name)
    largest = max(max(record["ranks"]) for record in history)
    top.set(xlabel="epoch", ylabel="rank", xticks=epochs, ylim=(0, 1.2 * largest))
    top.legend(frameon=False, fontsize="small", ncols=bonds)
    known = [record for record in history if _has(record, "spectra")]
    for bond, name in enumerate(names):
        below = figure.add_subplot(grid[1, bond])
        for position, record in enumerate(known):
            values = _numbers(record["spectra"][bond])
            kept = values[values > 0]
            if kept.size:
                color = colormaps["viridis"](position / max(1, len(known) - 1))
                label = f"epoch {record['epoch']:g}" if bond == 0 else None
                below.semilogy(np.arange(1, kept.size + 1), kept / kept[0], ".-", color=color, label=label)
        below.set(xlabel="index", title=name)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        if bond == 0:
            below.set_ylabel("singular value / largest")
            handles = below.get_legend_handles_labels()[0]
            if handles:
                # All bonds share the colors, and a legend inside would hide the curves.
                figure.legend(
                    handles=handles, loc="outside lower center", ncols=8, fontsize="x-small", frameon=False
                )
    return figure


def plot_entropies(
    history: Sequence[Mapping[str, Any]], labels: Labels | None = None, *, axes: "Axes | None" = None
) -> "Figure":
    """Entropy of every bond over the epochs, in nats: exp(entropy) directions of equal weight would have it.

    Args:
        history: One mapping for each epoch: `epoch`, and `entropies` (one for each bond) or `spectra` (for
            each bond its singular values), from which they are computed. Epochs without either are left out.
        labels: Name of each bond, or a pattern; their numbers by default.
        axes: Where to draw; a new figure by default.

    Returns:
        The figure.

    Raises:
        ShapeError: No epoch has entropies or spectra, epochs have those of different numbers of bonds, or
            there are more or fewer labels than bonds.
    """
    from matplotlib.figure import Figure

    _check_history(history)
    known = [record for record in history if _has(record, "entropies") or _has(record, "spectra")]
    if not known:
        raise ShapeError("history: expected at least one epoch with `entropies` or `spectra`")
    values = [
        _numbers(record["entropies"])
        if _has(record, "entropies")
        else [_entropy(each) for each in record["spectra"]]
        for record in known
    ]
    for record in known:
        _check_bonds(record, "entropies" if _has(record, "entropies") else "spectra", len(values[0]))
    names = _bond_names(labels, len(values[0]))
    if axes is None:
        axes = Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
    for bond, name in enumerate(names):
        axes.plot(
            [record["epoch"] for record in known],
            [each[bond] for each in values],
            marker="o",
            markersize=3,
            label=name,
        )
    axes.set(xlabel="epoch", ylabel="entropy (nats)", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")
    return _figure_of(axes)


def plot_tradeoff(
    results: Mapping[str, Mapping[int, float | Sequence[float]]],
    *,
    reference: Mapping[str, float] | None = None,
    metric: str = "metric",
    axes: "Axes | None" = None,
) -> "Figure":
    """Parameters against metric: a line for each method, its mean and the standard deviation over seeds.

    Args:
        results: For each method, by number of parameters, the metric: one number, or one for each seed.
            The bars are the sample standard deviation; a single value has none.
        reference: Horizontal lines by name, such as the metric of a model that was trained whole.
        metric: Name of the metric, for the axis.
        axes: Where to draw; a new figure by default.

    Returns:
        The figure.

    Raises:
        ShapeError: There is no method, or one without a value.

    Examples:
        >>> figure = plot_tradeoff({"4D": {480: [0.71, 0.75], 960: [0.80, 0.82]}, "LoRA": {1536: 0.81}})
        >>> figure.axes[0].get_xscale()
        'log'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if not results:
        raise ShapeError("results: expected at least one method, got none")
    if axes is None:
        axes = Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
    for name, points in results.items():
        samples = {count: np.atleast_1d(np.asarray(values, float)) for count, values in points.items()}
        if not samples or any(count < 1 or each.size == 0 for count, each in samples.items()):
            raise ShapeError(
                f"results: expected numbers of parameters of at least 1, each with at least one value, "
                f"got {dict(points)!r} for {name!r}"
            )
        counts = sorted(samples)
        means = [samples[count].mean() for count in counts]
        spreads = [samples[count].std(ddof=1) if samples[count].size > 1 else 0.0 for count in counts]
        axes.errorbar(counts, means, yerr=spreads, marker="o", markersize=4, capsize=3, label=name)
    for k, (name, value) in enumerate((reference or {}).items()):
        axes.axhline(value, color="0.4", linestyle=("--", ":", "-.")[k % 3], linewidth=1, label=name)
    axes.set(xscale="log", xlabel="trainable parameters", ylabel=metric)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize="small")
    return _figure_of(axes)


def _mode_names(labels: Labels) -> list[str]:
    """The modes of a pattern, those in parentheses as one; or the names as they are."""
    return re.findall(r"\([^)]*\)|[^\s()]+", labels) if isinstance(labels, str) else list(labels)


def _bond_names(labels: Labels | None, bonds: int) -> list[str]:
    if labels is None:
        return [f"bond {bond}" for bond in range(bonds)]
    names = _mode_names(labels)
    if isinstance(labels, str):
        names = [f"{left.strip('()')}|{right.strip('()')}" for left, right in itertools.pairwise(names)]
    if len(names) != bonds:
        raise ShapeError(f"labels: expected one for each of {bonds} bonds, got {len(names)} from {labels!r}")
    return names


def _has(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key)
    return value is not None and len(value) > 0


def _check_history(history: Sequence[Mapping[str, Any]]) -> None:
    for record in history:
        if not isinstance(record, Mapping):
            raise ShapeError(
                f"history: expected a mapping for each epoch, got a {type(record).__name__}; of a report "
                f"pass {{'epoch': report.epoch, 'ranks': (1, *report.ranks_after, 1), "
                f"'spectra': report.spectra}}"
            )


def _check_bonds(record: Mapping[str, Any], key: str, bonds: int) -> None:
    if _has(record, key) and len(record[key]) != bonds:
        raise ShapeError(
            f"history: expected {key} of {bonds} bonds in each epoch, got {len(record[key])} in epoch "
            f"{record['epoch']}"
        )


def _numbers(values: Sequence[float] | Tensor) -> np.ndarray:
    """Values of a list or an array, or of a tensor of any device that may require grad."""
    return np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64)


def _entropy(singular_values: Sequence[float] | Tensor) -> float:
    """Von Neumann entropy of a bond in nats, 0 for a zero train."""
    values = _numbers(singular_values)
    largest = values.max(initial=0.0)
    if largest <= 0:
        return 0.0
    weights = (values / largest) ** 2
    weights = weights[weights > 0] / weights.sum()
    return float(-(weights * np.log(weights)).sum())


def _figure_of(axes: "Axes") -> "Figure":
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ShapeError("axes: expected axes that belong to a figure")
    return figure
