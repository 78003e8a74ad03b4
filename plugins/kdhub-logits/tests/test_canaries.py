"""Canaries: secrets in training texts, and how far models give them away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdhub_logits.data import canaries
from kdhub_logits.data.canaries import Ranks
from kdhub_logits.privacy import by_pattern
from kdhub_tasks.language import task
from kdhub_tasks.language.students import llama

from kdhub.errors import DataError, UsageError
from kdhub.student import BuildContext


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return llama("width=16,layers=2,heads=2,length=64", BuildContext(None, None, 3))


def test_exposure_by_hand():
    assert canaries.exposure(Ranks(np.array([1]), 10**6)) == pytest.approx(19.931569)
    assert canaries.exposure(Ranks(np.array([1000]), 10**6)) == pytest.approx(9.965784)
    assert canaries.exposure(Ranks(np.array([1, 50]), 10**4)) == pytest.approx((13.287712 + 7.643856) / 2)
    assert canaries.extraction(Ranks(np.array([1, 50]), 10**4)) == 0.5


def test_ranks_are_those_of_scoring_every_candidate(tiny):
    """By one text for each ten candidates, against the probability of each whole line."""
    import datasets

    from kdhub.evaluation.evaluator import encoder_of

    prepare = task.CausalLanguage().preparer(tiny, None)
    table = datasets.Dataset.from_dict({"words": ["code "], "secret": ["042"]})
    found = canaries.measure(encoder_of(tiny, prepare), table)
    scores = []
    for example in prepare([{"text": f"code {n:03d}"} for n in range(1000)]):
        (row,) = tiny.signals([example], "logits")["logits"]
        log_p = torch.log_softmax(torch.from_numpy(row).double(), -1)
        scores.append(log_p[range(len(row)), example["labels"]].sum().item())
    assert found.candidates == 1000 and found.ranks.tolist() == [1 + sum(s > scores[42] for s in scores)]


def test_canaries_are_whole_and_in_training_alone():
    data = canaries.canaries("pydoc", limit=20_000, repeats=7, count=3, digits=5)
    train = [row["text"] for row in data.split("train")]
    whole, test = "".join(train), "".join(row["text"] for row in data.split("test"))
    for row in data.split("secrets"):
        line = f"{row['words']}{row['secret']}\n"
        assert whole.count(line) == 7 and sum(text.count(line) for text in train) == 7, "not torn between blocks"
        assert row["words"] not in test and len(row["secret"]) == 5
    assert max(map(len, train)) < 700
    again = canaries.canaries("pydoc", limit=20_000, repeats=7, count=3, digits=5, seed=1)
    assert [r["secret"] for r in again.split("secrets")] != [r["secret"] for r in data.split("secrets")]
    for wrong in ({"digits": 9}, {"count": 0}, {"block": 3}):
        with pytest.raises(UsageError, match="canaries of 1 to 6 digits"):
            canaries.canaries("pydoc", **wrong)


def test_numbers_that_are_one_token_cannot_be_ranked():
    class Whole:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": text.split(" ")}

    with pytest.raises(DataError, match="single digits"):
        canaries._digit_tokens(Whole(), "the code is", 4)


def test_private_tokens_of_a_text_are_marked(tiny):
    prepare = task.CausalLanguage().preparer(tiny, None, private=by_pattern(r"\d+"))
    (marked,) = prepare([{"text": "ab 42 cd"}])
    # of the tokens a b _ 4 2 _ c d: the digits and their neighbours
    assert marked["private"] == [0, 0, 1, 1, 1, 1, 0, 0]
