"""The metrics against closed examples and scipy."""

import numpy as np
import pytest
from scipy import stats

from ttnet.cli import metrics
from ttnet.errors import ConfigError, ShapeError

# Eight documents: 3 true positives, 1 false positive, 2 false negatives, 2 true negatives.
LABELS = [1, 1, 1, 1, 1, 0, 0, 0]
FOUND = [1, 1, 1, 0, 0, 1, 0, 0]


def test_accuracy_and_f1_of_a_counted_table():
    assert metrics.accuracy(FOUND, LABELS) == pytest.approx(5 / 8)
    assert metrics.f1(FOUND, LABELS) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))


def test_matthews_of_two_classes_is_the_textbook_formula():
    expected = (3 * 2 - 1 * 2) / np.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))
    assert metrics.matthews(FOUND, LABELS) == pytest.approx(expected)


def test_matthews_of_three_classes():
    # Confusion [[2, 1, 0], [0, 2, 1], [1, 0, 3]] by Gorodkin's sums: c = 7, s = 10.
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    found = [0, 0, 1, 1, 1, 2, 0, 2, 2, 2]
    given, marked = np.array([3, 3, 4]), np.array([3, 3, 4])
    expected = (7 * 10 - given @ marked) / np.sqrt((100 - marked @ marked) * (100 - given @ given))
    assert metrics.matthews(found, labels) == pytest.approx(expected)


@pytest.mark.parametrize("constant", [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]])
def test_a_constant_prediction_has_no_correlation(constant):
    assert metrics.matthews(constant, LABELS) == 0.0
    assert metrics.pearson(constant, LABELS) == 0.0
    assert metrics.spearman(constant, LABELS) == 0.0


def test_f1_without_positives_is_zero():
    assert metrics.f1([0, 0], [0, 0]) == 0.0


def test_correlations_agree_with_scipy_on_tied_values():
    generator = np.random.default_rng(0)
    left = np.round(generator.normal(size=50), 1)
    right = np.round(left + generator.normal(size=50), 1)
    assert metrics.pearson(left, right) == pytest.approx(stats.pearsonr(left, right).statistic)
    assert metrics.spearman(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)


def test_score_reads_logits_and_regression_columns():
    logits = np.eye(2)[FOUND]
    assert metrics.score(["accuracy", "f1"], logits, LABELS) == {
        "accuracy": metrics.accuracy(FOUND, LABELS),
        "f1": metrics.f1(FOUND, LABELS),
    }
    assert metrics.score(["pearson"], np.array([[1.0], [2.0], [3.0]]), [2.0, 4.0, 6.0])[
        "pearson"
    ] == pytest.approx(1)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"'recall' is unknown; choose from accuracy"):
        metrics.score(["recall"], [1], [1])
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        metrics.accuracy([1, 2], [1, 2, 3])
