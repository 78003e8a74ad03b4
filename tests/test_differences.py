"""Differences over paired seeds: hand-computed numbers, and how often a verdict is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdhub.comparison.differences import LEVEL, Difference, holm, paired, spread, verdict


def test_hand_computed():
    found = paired([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])  # differences 1, 2, 3: t = 2 / (1 / sqrt 3) with 2 degrees
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    # The t distribution with 2 degrees has the closed form P(|t| > x) = 1 - x / sqrt(2 + x^2).
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert (found.low, found.high) == (1.0, 3.0), "three pairs have no more to say than their range"
    assert spread([1.0, 3.0]) == (2.0, math.sqrt(2)) and spread([5.0]) == (5.0, None)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == holm([0.9, 0.95]) == [1.0, 1.0] and holm([]) == []


def test_students_t_is_that_of_scipy():
    from scipy.stats import t

    from kdhub.comparison.differences import _quantile, _within

    for degrees in (1, 2, 3, 4, 5, 9, 10, 29, 100):
        for x in (0.0, 0.3, 1.0, 2.7764451, 12.0):
            assert _within(x, degrees) == pytest.approx(1 - 2 * t.sf(x, degrees), abs=1e-12)
        assert _quantile(degrees) == pytest.approx(t.isf(LEVEL / 2, degrees), rel=1e-9)


def test_the_bootstrap_is_that_of_every_resample():
    values = np.array([0.1, -0.2, 0.4, 0.3, 0.05])
    found = paired(values, np.zeros(5))
    draws = np.array(np.meshgrid(*[range(5)] * 5)).reshape(5, -1)  # all 5^5
    means = np.sort(values[draws].mean(0))
    tail = 0.5 * math.erfc(math.sqrt(5 / 4) * 2.7764451 / math.sqrt(2))  # t of 4 degrees at 97.5 %
    assert found.low == pytest.approx(means[math.ceil(tail * 5**5) - 1], abs=1e-12)
    assert found.high == pytest.approx(means[math.ceil((1 - tail) * 5**5) - 1], abs=1e-12)
    back = paired(np.zeros(5), values)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.02)
    shuffled = np.array([0.3, 0.9, -0.4, 0.2, 0.75, 0.1, -0.05, 0.6])
    orders = [paired(order, np.zeros(8)) for order in (shuffled, np.sort(shuffled))]
    assert orders[0].low == pytest.approx(orders[1].low, abs=1e-12), "with eight pairs every resample still counts"
    drawn = paired(np.arange(12), np.zeros(12))
    half = 2.200985 * drawn.std / math.sqrt(12)  # of the t distribution with 11 degrees
    assert (drawn.low, drawn.high) == pytest.approx((5.5 - half, 5.5 + half), abs=0.15)
    many = np.sqrt(np.arange(12))
    assert paired(many, np.zeros(12)) == paired(many, np.zeros(12)), "drawn with a fixed seed"


def test_no_chance_and_no_pairs():
    assert paired([0.5], [0.25]) == Difference(1, 0.25)
    assert verdict(paired([0.5], [0.25]), None) == "one seed"
    assert paired([1.1, 2.1, 3.1], [1.0, 2.0, 3.0]).p == 0.0, "the same on each seed: nothing was left to chance"
    equal = paired([1.0, 2.0], [1.0, 2.0])
    assert equal.p == 1.0 and verdict(equal, 1.0) == "no significant difference"
    told = [verdict(Difference(3, mean), p) for mean, p in ((0.1, 0.2), (0.1, LEVEL), (0.0, 0.01), (1.0, 0.01))]
    assert told == ["no significant difference", "better", "no significant difference", "better"]
    better = paired([0.9, 0.91, 0.93], [0.5, 0.52, 0.51])
    assert verdict(better, better.p) == "better" and verdict(better, better.p, higher_is_better=False) == "worse"
    for a, b in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="do not pair up"):
            paired(a, b)


@pytest.mark.parametrize("ledgers", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [3, 5])
def test_ties_are_called_ties_and_differences_found(n, ledgers):
    """Ledgers of five arms against a reference, all equal: one in twenty may have a verdict, whatever the arm. Then one
    arm is six deviations of a seed's difference above: it is found on 9 of 10 ledgers with 5 seeds."""
    rng = np.random.default_rng(7)
    wrong = found = 0
    for _ in range(ledgers):
        seeds = rng.normal(0, 1, n)  # what a seed does to all arms alike, which pairing takes out
        reference = seeds + rng.normal(0, 0.1, n)
        arms = [seeds + rng.normal(0, 0.1, n) for _ in range(5)]
        p = holm([paired(arm, reference).p for arm in arms])
        wrong += min(p) <= LEVEL
        planted = [arms[0] + 6 * 0.1 * math.sqrt(2), *arms[1:]]
        p = holm([paired(arm, reference).p for arm in planted])
        found += verdict(paired(planted[0], reference), p[0]) == "better"
    error = math.sqrt(LEVEL * (1 - LEVEL) / ledgers)
    assert wrong / ledgers <= LEVEL + 3 * error
    assert found / ledgers >= (0.9 if n == 5 else 0.3)
