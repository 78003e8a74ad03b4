"""Metrics of classification, by scikit-learn. All read `tasks.Predictions`.

Only `nll` is written here: scikit-learn clips probabilities, which lets models off that are very sure and wrong.
"""

from __future__ import annotations

import numpy as np

from kdhub_tasks.classification.task import Predictions


def accuracy(out: Predictions) -> float:
    """Share of rows whose most probable class is the true one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(out.labels, out.chosen))


def top_5(out: Predictions) -> float | None:
    """Share of rows whose true class is among the five most probable; None with five classes or fewer."""
    if out.logits.shape[1] <= 5:
        return None
    from sklearn.metrics import top_k_accuracy_score

    return float(top_k_accuracy_score(out.labels, out.logits, k=5, labels=_positions(out)))


def macro_f1(out: Predictions) -> float:
    """F1 of each class that occurs or is chosen, unweighted mean."""
    from sklearn.metrics import f1_score

    return float(f1_score(out.labels, out.chosen, average="macro", zero_division=0))


def entity_f1(out: Predictions) -> float | None:
    """F1 of whole entities, right in both ends and kind (CoNLL-2003, by seqeval); None unless classes are BIO."""
    if out.lengths is None or not any(name.startswith("B-") for name in out.classes):
        return None
    from seqeval.metrics import f1_score

    names, ends = np.array(out.classes), np.cumsum(out.lengths)[:-1]
    rows = [[part.tolist() for part in np.split(names[of], ends)] for of in (out.labels, out.chosen)]
    return float(f1_score(*rows, zero_division=0))


def nll(out: Predictions) -> float:
    """Mean -log p(true class), in nats."""
    return float(-out.log_probabilities[np.arange(len(out.labels)), out.labels].mean())


def brier(out: Predictions) -> float | None:
    """Mean over rows of sum over classes (p - 1[true])^2, in [0, 2]; None with one class."""
    from sklearn.metrics import brier_score_loss

    if out.logits.shape[1] == 1:
        return None
    return float(brier_score_loss(out.labels, out.probabilities, labels=_positions(out), scale_by_half=False))


def calibration_error(out: Predictions, bins: int = 15) -> float:
    """ECE: sum over 15 equal bins of confidence of (share of rows) |accuracy - mean confidence| (arXiv:1706.04599)."""
    from sklearn.calibration import calibration_curve

    sure, right = out.probabilities.max(axis=1).clip(0, 1), out.chosen == out.labels
    accuracies, confidences = calibration_curve(right, sure, n_bins=bins)
    # It gives the bins that have rows; how many those are, by its own edges.
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure))
    return float((rows[rows > 0] * abs(accuracies - confidences)).sum() / len(sure))


def auroc(out: Predictions) -> float | None:
    """Area under the ROC curve of the second of two classes; None unless there are two, both among the rows."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(out.labels, _margin(out))) if _binary(out) else None


def auprc(out: Predictions) -> float | None:
    """Average precision of the second of two classes; None as for `auroc`."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(out.labels, _margin(out))) if _binary(out) else None


def agreement(out: Predictions, teacher: Predictions) -> float:
    """Label loyalty: share of rows where both choose one class (arXiv:2109.03228)."""
    return float((out.chosen == teacher.chosen).mean())


def divergence(out: Predictions, teacher: Predictions) -> float:
    """Mean KL(teacher || student), in nats."""
    p = teacher.probabilities
    return float((p * (teacher.log_probabilities - out.log_probabilities)).sum(axis=1).mean())


def probability_loyalty(out: Predictions, teacher: Predictions, base: float = 2) -> float:
    """Mean of 1 - sqrt(JS(teacher, student)) with logarithms to base 2, in [0, 1] (arXiv:2109.03228)."""
    from scipy.special import rel_entr

    p, q = teacher.probabilities, out.probabilities
    apart = (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum(axis=1) / (2 * np.log(base))
    # Of two that are all but equal, rounding may leave a sum below 0; scipy's own root of it is not a number.
    return float(1 - np.sqrt(np.maximum(apart, 0)).mean())


def natural_loyalty(out: Predictions, teacher: Predictions) -> float:
    """`probability_loyalty` with natural logarithms, as it was published: at least 1 - sqrt(ln 2) = .167."""
    return probability_loyalty(out, teacher, np.e)


def regression_loyalty(out: Predictions, teacher: Predictions) -> float | None:
    """Pearson's correlation of student's and teacher's scores over rows, mean over classes (arXiv:2112.12650).

    A class's score is its logit less the row's mean, so that constants in the logits say nothing; with two classes it
    is the correlation of the margins; a single logit is the score itself. Blind to a scale and a constant. None where a
    side gives all rows the same.
    """
    from scipy.stats import pearsonr

    mine, theirs = (x.logits - (x.logits.shape[1] > 1) * x.logits.mean(axis=1, keepdims=True) for x in (out, teacher))
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
