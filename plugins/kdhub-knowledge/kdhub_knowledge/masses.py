"""Belief on two alternatives by the theory of Dempster and Shafer, in closed form.

A mass function is (first, second, unknown), each in [0, 1], together 1: what speaks for one alternative, for the other,
and what is not known. Pieces of evidence that each speak for one alternative alone are kept as sums of logarithms of
what they leave open, log(1 - weight): adding them up is Dempster's rule, in any order and without loss near 1.

    a = 1 - exp(sum over the first), b = 1 - exp(sum over the second), Z = 1 - a b
    (a (1 - b), b (1 - a), (1 - a)(1 - b)) / Z

A function that speaks for both is first taken apart into two such pieces (its canonical decomposition): that of s for
the first and d for the second leaves open u / (1 - d) of the first and u / (1 - s) of the second.
"""

from __future__ import annotations

import numpy as np

FLOOR = 1e-12
"""The least that is unknown: with nothing unknown two sources can contradict each other wholly, which has no result."""


def from_logs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mass functions (..., 3) from sums of log(1 - weight), each of shape (...)."""
    open_first, open_second = np.exp(first), np.exp(second)
    for_first = -np.expm1(first) * open_second
    for_second = -np.expm1(second) * open_first
    parts = np.stack([for_first, for_second, open_first * open_second], axis=-1)
    return parts / parts.sum(-1, keepdims=True)


def logs(masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of logarithms, (...) each, from mass functions (..., 3); `from_logs` gives them back."""
    unknown = np.maximum(masses[..., 2], FLOOR)
    return np.log(unknown / (unknown + masses[..., 0])), np.log(unknown / (unknown + masses[..., 1]))


def combine(*sources: np.ndarray) -> np.ndarray:
    """Dempster's rule: mass functions (..., 3) of independent sources as one."""
    first, second = zip(*map(logs, sources))
    return from_logs(sum(first), sum(second))


def discount(masses: np.ndarray, trust: float) -> np.ndarray:
    """Mass functions of a source that is trusted so far, 0 to 1; the rest becomes unknown."""
    known = masses[..., :2] * trust
    return np.concatenate([known, 1 - known.sum(-1, keepdims=True)], axis=-1)


def pignistic(masses: np.ndarray) -> np.ndarray:
    """Probabilities (..., 2): what is unknown is shared in halves."""
    return masses[..., :2] + masses[..., 2:] / 2
