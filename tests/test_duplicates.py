"""Rows that stand in two sets: every near pair of texts is found, arrays by distance."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kdhub.data.duplicates import _plain, _runs, shared_rows, value_of
from kdhub.findings import shared_tokens


def test_exact_and_near_texts():
    train = ["The cat sat on the mat and looked at the dog for a while.", "Another text.", "one more"]
    held = [
        "the  cat sat on the MAT and looked at the dog for a while.",  # the same but for case and spaces
        "The cat sat on the mat and looked at the dog for a while!",  # one letter: 53 of 56 runs
        "The cat sat on a chair and slept.",
        "Nothing of the kind",
    ]
    found = shared_rows(held, train)
    assert found.exact == {0: 0} and found.near == {1: 0}


def test_no_near_pair_of_texts_is_missed_and_none_is_made_up():
    """Against all pairs, over texts with many changes around the threshold."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(60)]
    train = [" ".join(rng.choices(words, k=rng.randint(3, 30))) for _ in range(80)]
    held = []
    for text in rng.choices(train, k=200):
        parts = text.split()
        for _ in range(rng.randint(0, 4)):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        held.append(" ".join(parts))
    sets = [_runs(_plain(t)) for t in train]
    exact, near = set(), set()
    for i, text in enumerate(held):
        mine = _runs(_plain(text))
        if _plain(text) in map(_plain, train):
            exact.add(i)
        elif any(len(mine & s) >= 0.8 * len(mine | s) for s in sets):
            near.add(i)
    found = shared_rows(held, train)
    assert (set(found.exact), set(found.near)) == (exact, near)
    assert len(exact) > 20 and len(near) > 20 and len(exact | near) < 190


@pytest.mark.parametrize("shape", [(6,), (16, 16, 3)])
def test_arrays_by_distance(shape):
    rng = np.random.default_rng(0)
    train = list(rng.integers(0, 256, (300, *shape)).astype(np.uint8))
    noisy = train[7].astype(float) + rng.normal(0, 0.02 * np.std(train[7]), shape)
    far = train[9].astype(float) + rng.normal(0, 0.3 * np.std(train[9]), shape)
    found = shared_rows([train[3].astype(int), noisy, far, rng.random(shape) * 255, np.zeros((2, 2))], train)
    assert found.exact == {0: 3} and found.near == {1: 7}


def test_what_a_row_shows_a_model():
    assert value_of({"prompt": "a", "response": "b", "label": 1}, ["prompt", "response"]) == "a\nb"
    assert value_of({"tokens": ["a", "b"]}, ["tokens"]) == "['a', 'b']"
    assert np.array_equal(value_of({"image": [[1, 2], [3, 4]]}, ["image"]), [[1, 2], [3, 4]])


def test_shared_tokens():
    class Tokens(dict):
        def get_vocab(self):
            return dict(self)

    assert shared_tokens(Tokens(a=0), None) is None
    assert shared_tokens(Tokens(a=0, b=1), Tokens(a=0, b=1)).status == "ok"
    found = shared_tokens(Tokens(a=0, b=1, c=2), Tokens(b=1, a=5, d=7))
    assert found.status == "note" and found.found.startswith(
        "2 of the student's 3 and the teacher's 3 are shared, 1 by"
    )
