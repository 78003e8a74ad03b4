"""Metrics of classification; those of scikit-learn where it has them. All read `tasks.Predictions`."""

from __future__ import annotations

import numpy as np

from kdhub_logits.tasks import Predictions


def accuracy(out: Predictions) -> float:
    """Share of rows whose most probable class is the true one."""
    return float((out.chosen == out.labels).mean())


def top_5(out: Predictions) -> float | None:
    """Share of rows whose true class is among the five most probable; None with five classes or fewer."""
    if out.logits.shape[1] <= 5:
        return None
    ranked = np.argsort(-out.logits, axis=1, kind="stable")[:, :5]
    return float((ranked == out.labels[:, None]).any(axis=1).mean())


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
    return float(-out.log_probabilities[np.arange(out.examples), out.labels].mean())


def brier(out: Predictions) -> float:
    """Mean over rows of sum over classes (p - 1[true])^2, in [0, 2]."""
    p = out.probabilities.copy()
    p[np.arange(out.examples), out.labels] -= 1
    return float(np.square(p).sum(axis=1).mean())


def calibration_error(out: Predictions, bins: int = 15) -> float:
    """ECE: sum over 15 equal bins of confidence of (share of rows) |accuracy - mean confidence| (arXiv:1706.04599)."""
    sure = out.probabilities.max(axis=1)
    right = out.chosen == out.labels
    which = np.minimum((sure * bins).astype(int), bins - 1)
    total = 0.0
    for b in np.unique(which):
        rows = which == b
        total += rows.mean() * abs(right[rows].mean() - sure[rows].mean())
    return float(total)


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


def probability_loyalty(out: Predictions, teacher: Predictions) -> float:
    """Mean of 1 - sqrt(JS(teacher, student)) with logarithms to base 2, in [0, 1] (arXiv:2109.03228)."""
    from scipy.spatial.distance import jensenshannon

    return float(1 - jensenshannon(teacher.probabilities, out.probabilities, axis=1, base=2).mean())


def _binary(out: Predictions) -> bool:
    return out.logits.shape[1] == 2 and len(np.unique(out.labels)) == 2


def _margin(out: Predictions) -> np.ndarray:
    return out.logits[:, 1] - out.logits[:, 0]
