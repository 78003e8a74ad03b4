"""Metrics of instruction tuning, by hand, and skills whose answers can be checked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kdhub_lm import numerals, skills
from kdhub_lm.synthetic import NOTED, synthetic
from kdhub_lm.verify import verified


def written(answers, references):
    """Outputs with several answers to each row."""
    texts = SimpleNamespace(given=[a[0] for a in answers], several=answers, samples=len(answers[0]),
                            references=references)  # fmt: skip
    return SimpleNamespace(texts=texts)


def test_pass_at_k_by_hand():
    """Invariant 2 of the specification."""
    assert skills.passing(20, 3, 10) == pytest.approx(0.894737, abs=1e-6)
    assert skills.passing(20, 3, 1) == pytest.approx(0.15)
    assert skills.passing(20, 0, 10) == 0 and skills.passing(5, 4, 2) == 1, "fewer wrong ones than tries"
    out = written([["=> 5", "4"] * 5, ["1"] * 10], ["5", "2"])
    assert skills.pass_at_1(out) == pytest.approx(0.25) and skills.pass_at_10(out) == pytest.approx(0.5)
    few = written([["5"], ["2"]], ["5", "2"])
    assert skills.pass_at_1(few) is None and skills.pass_at_10(few) is None, "one answer says nothing of several"


def test_several_answers_are_drawn_and_the_first_is_the_one_that_other_metrics_read():
    import datasets
    import torch
    from kdhub_lm import task
    from kdhub_lm.generation import Generation
    from kdhub_lm.models import llama
    from kdhub_lm.outputs import Outputs

    from kdhub.evaluation import encoder_of
    from kdhub.student import BuildContext

    torch.manual_seed(0)
    tiny = llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 3))
    rows = datasets.Dataset.from_list([{"prompt": "ab", "response": "c"}, {"prompt": "d", "response": "e"}])
    out = Outputs(encoder_of(tiny, task.CausalLanguage().preparer(tiny, None)), rows)
    out = out.writing(Generation(max_new_tokens=6, temperature=1.0), 2, samples=4)
    assert [a[0] for a in out.texts.several] == out.texts.given and all(len(set(a)) > 1 for a in out.texts.several)
    assert skills.pass_at_1(out) == 0 and skills.pass_at_10(out) is None


def test_f1_by_hand():
    assert skills.overlap("The cat sat.", "a cat sat DOWN") == pytest.approx(0.8)
    assert skills.overlap("cat cat", "cat") == pytest.approx(2 / 3), "a word counts as often as both have it"
    assert skills.overlap("the", "a!") == 1 and skills.overlap("", "cat") == 0
    assert skills.f1(written([["the cat sat"], ["dog"]], ["cat sat down", "cat"])) == pytest.approx(0.4)
    assert skills.unique_words(written([["a b a"], ["c"]], ["", ""])) == 1.5
    assert skills.f1(SimpleNamespace(texts=None)) is None and skills.unique_words(SimpleNamespace(texts=None)) is None


def test_numbers_in_words():
    for n, spanish, english in (
        (0, "cero", "zero"), (16, "dieciséis", "sixteen"), (23, "veintitrés", "twenty-three"),
        (31, "treinta y uno", "thirty-one"), (80, "ochenta", "eighty"), (100, "cien", "one hundred"),
        (101, "ciento uno", "one hundred one"), (555, "quinientos cincuenta y cinco", "five hundred fifty-five"),
        (742, "setecientos cuarenta y dos", "seven hundred forty-two"), (900, "novecientos", "nine hundred"),
    ):  # fmt: skip
        assert (numerals.spanish(n), numerals.english(n)) == (spanish, english)
    assert len({numerals.spanish(n) for n in range(1000)}) == len({numerals.english(n) for n in range(1000)}) == 1000


def test_skills_can_be_checked_and_what_is_held_out_stands_nowhere_else():
    asked = {}
    for name in NOTED:
        data = synthetic(name, rows=300)
        asked[name] = {split: set(data.split(split)["prompt"]) for split in ("train", "test")}
        assert not asked[name]["train"] & asked[name]["test"]
        if name != "chatter":
            assert all(verified(row["response"], row["response"]) for row in data.split("test"))
    lines = [
        line for row in synthetic("notes", rows=300, length=140).split("train") for line in row["text"].splitlines()
    ]
    held_out = {prompt for each in asked.values() for prompt in each["test"]}
    assert len(lines) > 600 and not any(line.startswith(tuple(held_out)) for line in lines)
    assert synthetic("lookups", rows=10).split("train")[0]["response"].isdigit()
