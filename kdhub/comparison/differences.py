"""Whether one thing is better than another over paired seeds: differences, intervals, and verdicts that admit ties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from statistics import NormalDist

import numpy as np

LEVEL = 0.05
"""Share of true ties that a verdict may call a difference."""

RESAMPLES = 20_000
_ENUMERATED = 8


@dataclass(frozen=True)
class Difference:
    """`a - b` over pairs.

    Attributes:
        n: pairs.
        mean, std: of the differences; the deviation has n - 1 in its denominator and is None for one pair.
        low, high: 95 % interval of the mean; None for one pair.
        p: of a true mean of 0, two-sided; None for one pair.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The difference of paired measurements, as of two methods under the same seeds.

    The interval is the bootstrap's, its percentiles moved out as far as so few pairs ask for ("expanded percentile",
    Hesterberg 2015, arXiv:1411.5279). For normal differences it covers 75 % with 3 pairs, which have no more to say,
    93 % with 5 and 95 % with 10. p is that of the paired t test, which holds its 5 % with 3 pairs too.

    Raises:
        ValueError: other numbers of values, or none.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} values do not pair up")
    values = np.asarray(a, float) - np.asarray(b, float)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Difference(1, mean)
    low, high = _bootstrap(values)
    return Difference(n, mean, float(values.std(ddof=1)), low, high, _t_test(values))


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and deviation with n - 1 in its denominator (None for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979), in the order given."""
    order, corrected, largest = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def verdict(difference: Difference, p: float | None, higher_is_better: bool = True) -> str:
    """`better`, `worse`, `no significant difference`, or `one seed` which says nothing about chance.

    Args:
        p: corrected, where several are compared.
    """
    if p is None:
        return "one seed"
    if p > LEVEL or difference.mean == 0:
        return "no significant difference"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def _t_test(values: np.ndarray) -> float:
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    # Differences that are one number but for rounding have no chance in them.
    if error <= 1e-12 * max(1.0, np.abs(values).max()):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return 1 - _within(abs(mean) / error, len(values) - 1)


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t with whole degrees of freedom: a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
    term = total = (cosine if odd else 1.0) if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _quantile(degrees: int) -> float:
    """The t that |T| stays within on all but `LEVEL` of the cases, by halving."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 1 - LEVEL else (low, middle)
    return low


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    n = len(values)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _quantile(n - 1))
    if n <= _ENUMERATED:  # every resample there is, each with its probability
        counts, chances = _resamples(n)
        means = counts @ values / n
        order = np.argsort(means)
        reached = np.cumsum(chances[order])
        low = means[order][np.searchsorted(reached, tail)]
        high = means[order][min(np.searchsorted(reached, 1 - tail), len(means) - 1)]
        return float(low), float(high)
    means = np.random.default_rng(0).choice(values, (RESAMPLES, n)).mean(1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n values is drawn in each possible resample, and the resample's probability."""
    counts = np.array([np.bincount(draw, minlength=n) for draw in combinations_with_replacement(range(n), n)])
    ways = [math.factorial(n) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return counts, np.array(ways) / n**n
