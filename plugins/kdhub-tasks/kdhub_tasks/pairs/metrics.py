"""Metrics of pairs, besides those of classification. All read `kdhub_tasks.classification.task.Predictions`.

Values are compared as they are, classes by the scores of their logits (`pairs.scores`).
"""

from __future__ import annotations

import numpy as np

from kdhub_tasks.classification.metrics import accuracy, correlation
from kdhub_tasks.classification.task import Predictions
from kdhub_tasks.pairs.scores import scores


def pearson(out: Predictions) -> float | None:
    """Linear correlation of predicted and human values, -1 to 1; 0 where all predictions are equal."""
    from scipy.stats import pearsonr

    return correlation(pearsonr, out.logits[:, :1], out.labels)


def spearman(out: Predictions) -> float | None:
    """Rank correlation; otherwise as `pearson`."""
    from scipy.stats import spearmanr

    return correlation(spearmanr, out.logits[:, :1], out.labels)


def f1(out: Predictions) -> float | None:
    """F1 of the second of two classes; None unless there are two."""
    from sklearn.metrics import f1_score

    if out.logits.shape[1] != 2:
        return None
    return float(f1_score(out.labels, out.chosen, pos_label=1, zero_division=0))


def score_rmse(out: Predictions, teacher: Predictions) -> float:
    """Root of the mean squared difference of student's and teacher's scores, over rows and scores."""
    mine, theirs = (scores(x.logits.astype(np.float64)) for x in (out, teacher))
    return float(np.sqrt(np.square(mine - theirs).mean()))


def degradation(out: Predictions, teacher: Predictions) -> float | None:
    """100 (teacher - student) / teacher, %, of Pearson's correlation of values or the accuracy of classes; None where
    the teacher's is not above 0."""
    measure = pearson if out.logits.shape[1] == 1 else accuracy
    mine, theirs = measure(out), measure(teacher)
    return 100 * (theirs - mine) / theirs if theirs > 0 else None
