"""The scores of GLUE, from predictions and labels given as arrays."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from ttnet.errors import ConfigError, ShapeError

Array = npt.NDArray[np.floating] | npt.NDArray[np.integer]


def _pair(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Array, Array]:
    left, right = np.asarray(predictions), np.asarray(labels)
    if left.ndim != 1 or left.shape != right.shape or left.size == 0:
        raise ShapeError(
            f"predictions, labels: expected two vectors of one length, got {left.shape} and {right.shape}"
        )
    return left, right


def accuracy(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of predictions that equal their label.

    Args:
        predictions: Shape (n,).
        labels: Shape (n,).

    Returns:
        A number between 0 and 1.

    Raises:
        ShapeError: The two are not vectors of one length.
    """
    predictions, labels = _pair(predictions, labels)
    return float(np.mean(predictions == labels))


def f1(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Harmonic mean of precision and recall of class 1, or 0 where neither predictions nor labels hold it.

    Args:
        predictions: Shape (n,), class indices.
        labels: Shape (n,), class indices.

    Returns:
        A number between 0 and 1.

    Raises:
        ShapeError: The two are not vectors of one length.
    """
    predictions, labels = _pair(predictions, labels)
    hits = np.sum((predictions == 1) & (labels == 1))
    marked = np.sum(predictions == 1) + np.sum(labels == 1)
    return float(2 * hits / marked) if marked else 0.0


def matthews(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Matthews correlation of classes, of any number of classes; 0 where either side is constant.

    Args:
        predictions: Shape (n,), class indices.
        labels: Shape (n,), class indices.

    Returns:
        A number between -1 and 1.

    Raises:
        ShapeError: The two are not vectors of one length.

    References:
        Gorodkin, Comput. Biol. Chem. 28, 367 (2004): the correlation of the one-hot matrices.
    """
    predictions, labels = _pair(predictions, labels)
    classes = np.union1d(predictions, labels)
    found = (predictions[:, None] == classes).astype(np.float64)
    given = (labels[:, None] == classes).astype(np.float64)
    found -= found.mean(axis=0)
    given -= given.mean(axis=0)
    scale = np.sqrt(np.sum(found**2) * np.sum(given**2))
    return float(np.sum(found * given) / scale) if scale > 0 else 0.0


def pearson(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Linear correlation; 0 where either side is constant, so that an untrained model has a score.

    Args:
        predictions: Shape (n,).
        labels: Shape (n,).

    Returns:
        A number between -1 and 1.

    Raises:
        ShapeError: The two are not vectors of one length.
    """
    predictions, labels = _pair(predictions, labels)
    left = predictions.astype(np.float64) - np.mean(predictions, dtype=np.float64)
    right = labels.astype(np.float64) - np.mean(labels, dtype=np.float64)
    scale = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / scale) if scale > 0 else 0.0


def spearman(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Linear correlation of the ranks, ties sharing their mean rank.

    Args:
        predictions: Shape (n,).
        labels: Shape (n,).

    Returns:
        A number between -1 and 1.

    Raises:
        ShapeError: The two are not vectors of one length.
    """
    predictions, labels = _pair(predictions, labels)
    return pearson(stats.rankdata(predictions), stats.rankdata(labels))


METRICS: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
REGRESSION_METRICS = frozenset({"pearson", "spearman"})


def score(names: Sequence[str], outputs: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """Every named metric of a model's outputs.

    Args:
        names: Keys of `METRICS`.
        outputs: Shape (n, classes), the logits; or (n, 1), or (n,), the values of a regression.
        labels: Shape (n,).

    Returns:
        Metric by name, in the order given.

    Raises:
        ConfigError: A name is no metric.
        ShapeError: `outputs` does not fit `labels`.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ConfigError(f"metric {unknown[0]!r} is unknown; choose from {', '.join(METRICS)}")
    array = np.asarray(outputs)
    if array.ndim == 2:
        array = array[:, 0] if array.shape[1] == 1 else array.argmax(axis=1)
    return {name: METRICS[name](array, labels) for name in names}
