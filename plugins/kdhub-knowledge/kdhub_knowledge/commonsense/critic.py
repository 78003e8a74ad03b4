"""Arithmetic of a critic: its prior, the threshold at a recall, how sure a share of a sample is."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from kdhub.errors import DataError

Rule = Literal["recall_at_most", "recall_at_least"]
Z = 1.959963984540054
"""Standard deviations on either side of 95 % of a normal distribution."""
VALID, INVALID = "valid", "invalid"
CODES = ("2", "1", "-1", "-2", "-9")
"""What people give a triple: always or often true, sometimes; unlikely, never, cannot be judged."""


def bias_of(prior: float) -> float:
    """The logit at which a critic begins: ln(p / (1 - p))."""
    return math.log(prior / (1 - prior))


def is_valid(label: object) -> bool | None:
    """What a label says: `valid` or a code above 0; None where it is neither a code nor one of the two words."""
    text = str(label).strip()
    if text in (VALID, INVALID):
        return text == VALID
    return int(text) > 0 if text in CODES else None


def threshold(labels: np.ndarray, scores: np.ndarray, recall: float, rule: Rule = "recall_at_most") -> float:
    """The threshold of a validation curve. A point is a score s, its recall the share of valid rows with at least s.

    recall_at_most    the lowest point whose recall is at most `recall`; scores above it are kept, so that the recall
                      that is reached is lower still (the authors' rule)
    recall_at_least   the highest point whose recall is at least `recall`; scores from it on are kept

    Args:
        labels: (rows,) bool; scores: (rows,).

    Raises:
        DataError: no valid row, scores that are NaN, or no such point: the top score is that of too many valid rows.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    if not labels.any():
        raise DataError(
            f"none of the {len(labels)} validation rows is valid: there is no recall to choose a threshold by"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite")
    points, valid = np.unique(scores), np.sort(scores[labels])
    reached = len(valid) - np.searchsorted(valid, points)
    wanted = recall * len(valid)
    if rule == "recall_at_least":
        return float(points[np.flatnonzero(reached >= wanted - 1e-9)[-1]])
    found = np.flatnonzero(reached <= wanted + 1e-9)
    if not len(found):
        tied = int(reached[-1])
        raise DataError(
            f"no threshold has a recall of at most {recall:g}: {tied} of {len(valid)} valid rows share the top score "
            f"{points[-1]:.6g}",
            hint="train the critic on more annotations, or for longer; or set threshold_rule: recall_at_least",
        )
    return float(points[found[0]])


def kept(scores: np.ndarray, limit: float | np.ndarray, rule: Rule = "recall_at_most") -> np.ndarray:
    """Which scores pass a threshold, (rows,) bool."""
    return scores >= limit if rule == "recall_at_least" else scores > limit


def interval(valid: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which a sample of `n` has `valid`. It stays within 0 and 1, and holds for
    small samples and shares near either end, where Wald's does not (JASA 22, 209, 1927)."""
    if n < 1:
        return 0.0, 1.0
    share, z2 = valid / n, Z * Z
    middle, half = share + z2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def area(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve, ties by halves; None with one class."""
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    if labels.all() or not labels.any():
        return None
    below = np.sort(scores[~labels])
    wins = np.searchsorted(below, scores[labels]) + np.searchsorted(below, scores[labels], "right")
    return float(wins.mean() / (2 * len(below)))
