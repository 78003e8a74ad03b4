"""Metrics of classification, by scikit-learn. All read `tasks.Predictions`.

What is meant for one class a row gives None for any number of labels and for values, and the other way round.

Only `nll` is written here: scikit-learn clips probabilities, which lets models off that are very sure and wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from kdhub_tasks.classes import MULTI_LABEL, REGRESSION
from kdhub_tasks.classification.task import Predictions


def of(*problems: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A metric of models whose outputs are these (`kdhub_tasks.classes`); None for others."""

    def decorate(metric: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(metric)
        def measured(out: Predictions, *others: Any, **how: Any) -> float | None:
            return metric(out, *others, **how) if out.problem in problems else None

        return measured

    return decorate


one_class, labels_alike, values = of(""), of(MULTI_LABEL), of(REGRESSION)


@one_class
def accuracy(out: Predictions) -> float:
    """Share of rows whose most probable class is the true one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(out.labels, out.chosen))


@one_class
def top_5(out: Predictions) -> float | None:
    """Share of rows whose true class is among the five most probable; None with five classes or fewer."""
    if out.logits.shape[1] <= 5:
        return None
    from sklearn.metrics import top_k_accuracy_score

    return float(top_k_accuracy_score(out.labels, out.logits, k=5, labels=_positions(out)))


@of("", MULTI_LABEL)
def macro_f1(out: Predictions) -> float:
    """F1 of each class that occurs or is chosen, of each label that does, unweighted mean."""
    from sklearn.metrics import f1_score

    used = None
    if out.problem:
        used = np.flatnonzero(out.labels.any(0) | out.chosen.any(0))
        if not len(used):
            return 0.0
    return float(f1_score(out.labels, out.chosen, labels=used, average="macro", zero_division=0))


@labels_alike
def micro_f1(out: Predictions) -> float:
    """F1 of all decisions together, a label of a row each; a label is chosen where its logit is above 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(out.labels, out.chosen, average="micro", zero_division=0))


@labels_alike
def subset_accuracy(out: Predictions) -> float:
    """Share of rows all of whose labels are right."""
    return float((out.chosen == out.labels).all(1).mean())


@labels_alike
def average_precision(out: Predictions) -> float | None:
    """Average precision of each label that some rows have and some do not, unweighted mean; None without any."""
    from sklearn.metrics import average_precision_score

    mixed = [c for c in range(len(out.labels[0])) if np.ptp(out.labels[:, c])]
    found = [average_precision_score(out.labels[:, c], out.logits[:, c]) for c in mixed]
    return float(np.mean(found)) if found else None


@values
def pearson(out: Predictions) -> float | None:
    """Linear correlation of predicted and true values, -1 to 1, mean over values; 0 where all predictions are equal,
    None where all truths are."""
    from scipy.stats import pearsonr

    return correlation(pearsonr, out.logits, out.labels)


@values
def spearman(out: Predictions) -> float | None:
    """Rank correlation; otherwise as `pearson`."""
    from scipy.stats import spearmanr

    return correlation(spearmanr, out.logits, out.labels)


@values
def rmse(out: Predictions) -> float:
    """Root of the mean squared error, over rows and values."""
    return float(np.sqrt(np.square(out.logits.astype(np.float64) - columns(out.labels)).mean()))


@values
def score_rmse(out: Predictions, teacher: Predictions) -> float:
    """Root of the mean squared difference of student's and teacher's values."""
    return float(np.sqrt(np.square(out.logits.astype(np.float64) - teacher.logits).mean()))


def columns(x: np.ndarray) -> np.ndarray:
    """(n,) or (n, values) as (n, values)."""
    return x.reshape(len(x), -1)


def correlation(function: Callable[..., Any], predicted: np.ndarray, truth: np.ndarray) -> float | None:
    """A correlation of (n, values) with (n,) or (n, values), mean over values whose truths differ; None where none do,
    and 0 of one whose predictions are all equal."""
    pairs = [(p.astype(np.float64), t) for p, t in zip(columns(predicted).T, columns(truth).T) if np.ptp(t)]
    return float(np.mean([function(p, t).statistic if np.ptp(p) else 0.0 for p, t in pairs])) if pairs else None


@one_class
def entity_f1(out: Predictions) -> float | None:
    """F1 of whole entities, right in both ends and kind (CoNLL-2003, by seqeval); None unless classes are BIO."""
    if out.lengths is None or not any(name.startswith("B-") for name in out.classes):
        return None
    from seqeval.metrics import f1_score

    names, ends = np.array(out.classes), np.cumsum(out.lengths)[:-1]
    rows = [[part.tolist() for part in np.split(names[of], ends)] for of in (out.labels, out.chosen)]
    return float(f1_score(*rows, zero_division=0))


@one_class
def nll(out: Predictions) -> float:
    """Mean -log p(true class), in nats."""
    return float(-out.log_probabilities[np.arange(len(out.labels)), out.labels].mean())


@one_class
def brier(out: Predictions) -> float | None:
    """Mean over rows of sum over classes (p - 1[true])^2, in [0, 2]; None with one class."""
    from sklearn.metrics import brier_score_loss

    if out.logits.shape[1] == 1:
        return None
    return float(brier_score_loss(out.labels, out.probabilities, labels=_positions(out), scale_by_half=False))


@one_class
def calibration_error(out: Predictions, bins: int = 15) -> float:
    """ECE: sum over 15 equal bins of confidence of (share of rows) |accuracy - mean confidence| (arXiv:1706.04599)."""
    from sklearn.calibration import calibration_curve

    sure, right = out.probabilities.max(axis=1).clip(0, 1), out.chosen == out.labels
    accuracies, confidences = calibration_curve(right, sure, n_bins=bins)
    # It gives the bins that have rows; how many those are, by its own edges.
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure))
    return float((rows[rows > 0] * abs(accuracies - confidences)).sum() / len(sure))


@one_class
def auroc(out: Predictions) -> float | None:
    """Area under the ROC curve of the second of two classes; None unless there are two, both among the rows."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(out.labels, _margin(out))) if _binary(out) else None


@one_class
def auprc(out: Predictions) -> float | None:
    """Average precision of the second of two classes; None as for `auroc`."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(out.labels, _margin(out))) if _binary(out) else None


@one_class
def recall_at_1(out: Predictions) -> float | None:
    """Recall of the second of two classes where at most 1 % of the first are taken for it (`operating_point`)."""
    return operating_point(out, 0.01)[0] if _binary(out) else None


@one_class
def recall_at_5(out: Predictions) -> float | None:
    """The same at 5 %."""
    return operating_point(out, 0.05)[0] if _binary(out) else None


@one_class
def threshold_at_1(out: Predictions) -> float | None:
    """The probability from which on rows are taken for the second of two classes there."""
    return operating_point(out, 0.01)[1] if _binary(out) else None


@one_class
def threshold_at_5(out: Predictions) -> float | None:
    """The same at 5 %."""
    return operating_point(out, 0.05)[1] if _binary(out) else None


def operating_point(out: Predictions, rate: float) -> tuple[float, float]:
    """Where a model of two classes is used: the recall of the second and the threshold on its probability that take
    most rows while the share of rows of the first that are taken is at most `rate`. A row is taken when its probability
    is at least the threshold; rows of equal probability are taken together. 1 where none can be taken."""
    order = np.argsort(-_margin(out).astype(np.float64), kind="stable")
    margins, right = _margin(out).astype(np.float64)[order], out.labels[order] == 1
    ends = np.flatnonzero(np.diff(margins, append=-np.inf) < 0)  # the last of each group of equal ones
    wrong, found = (~right).cumsum()[ends] / (~right).sum(), right.cumsum()[ends] / right.sum()
    fits = np.flatnonzero(wrong <= rate)
    if not len(fits):
        return 0.0, 1.0
    return float(found[fits[-1]]), float(1 / (1 + np.exp(-margins[ends[fits[-1]]])))


@of("", MULTI_LABEL)
def agreement(out: Predictions, teacher: Predictions) -> float:
    """Label loyalty: share of rows where both choose one class (arXiv:2109.03228), or of decisions on labels that are
    the same."""
    return float((out.chosen == teacher.chosen).mean())


@of("", MULTI_LABEL)
def divergence(out: Predictions, teacher: Predictions) -> float:
    """Mean KL(teacher || student), in nats; of any number of labels the sum over them of that of yes and no."""
    if out.problem:
        z, s = teacher.logits.astype(np.float64), out.logits.astype(np.float64)
        parts = ((np.logaddexp(0, -a * s) - np.logaddexp(0, -a * z)) / (1 + np.exp(-a * z)) for a in (1, -1))
        return float(sum(parts).sum(axis=1).mean())
    p = teacher.probabilities
    return float((p * (teacher.log_probabilities - out.log_probabilities)).sum(axis=1).mean())


@one_class
def probability_loyalty(out: Predictions, teacher: Predictions, base: float = 2) -> float:
    """Mean of 1 - sqrt(JS(teacher, student)) with logarithms to base 2, in [0, 1] (arXiv:2109.03228)."""
    from scipy.special import rel_entr

    p, q = teacher.probabilities, out.probabilities
    apart = (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum(axis=1) / (2 * np.log(base))
    # Of two that are all but equal, rounding may leave a sum below 0; scipy's own root of it is not a number.
    return float(1 - np.sqrt(np.maximum(apart, 0)).mean())


@one_class
def natural_loyalty(out: Predictions, teacher: Predictions) -> float:
    """`probability_loyalty` with natural logarithms, as it was published: at least 1 - sqrt(ln 2) = .167."""
    return probability_loyalty(out, teacher, np.e)


def regression_loyalty(out: Predictions, teacher: Predictions) -> float | None:
    """Pearson's correlation of student's and teacher's scores over rows, mean over classes (arXiv:2112.12650).

    A class's score is its logit less the row's mean, so that constants in the logits say nothing; with two classes it
    is the correlation of the margins. A single logit is the score itself, and so is each of labels and values. Blind to
    a scale and a constant. None where a side gives all rows the same.
    """
    from scipy.stats import pearsonr

    less = out.logits.shape[1] > 1 and not out.problem
    mine, theirs = (x.logits - less * x.logits.mean(axis=1, keepdims=True) for x in (out, teacher))
    varies = [c for c in range(mine.shape[1]) if np.ptp(mine[:, c]) > 0 and np.ptp(theirs[:, c]) > 0]
    if not varies:
        return None
    return float(np.mean([pearsonr(mine[:, c], theirs[:, c]).statistic for c in varies]))


def _positions(out: Predictions) -> range:
    return range(out.logits.shape[1])


def _binary(out: Predictions) -> bool:
    return out.logits.shape[1] == 2 and len(np.unique(out.labels)) == 2


def _margin(out: Predictions) -> np.ndarray:
    return out.logits[:, 1] - out.logits[:, 0]
