"""Metrics of masked language models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdhub.errors import CompatibilityError


@dataclass
class MaskedPredictions:
    """What metrics read of each masked token.

    Attributes:
        log_probability: (n,) of the true token, nats.
        chosen, labels: (n,) the most probable and the true token.
    """

    log_probability: np.ndarray
    chosen: np.ndarray
    labels: np.ndarray

    @property
    def examples(self) -> int:
        return len(self.labels)


def perplexity(out: MaskedPredictions) -> float:
    """exp of the mean -log p of the masked tokens."""
    return float(np.exp(-out.log_probability.mean()))


def accuracy(out: MaskedPredictions) -> float:
    """Share of masked tokens predicted correctly."""
    return float((out.chosen == out.labels).mean())


def agreement(out: MaskedPredictions, teacher: MaskedPredictions) -> float:
    """Share of masked tokens for which both predict the same token.

    Raises:
        CompatibilityError: they use different vocabularies, so different tokens were masked.
    """
    if out.labels.shape != teacher.labels.shape or (out.labels != teacher.labels).any():
        raise CompatibilityError("student and teacher use different vocabularies, so their predictions do not match")
    return float((out.chosen == teacher.chosen).mean())
