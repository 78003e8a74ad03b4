"""Metrics of instruction tuning, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kdhub_tasks.language import skills


def written(answers, references):
    """Outputs with several answers to each row."""
    texts = SimpleNamespace(answers=[a[0] for a in answers], all_answers=answers, samples=len(answers[0]),
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


def test_several_answers_are_drawn_and_the_first_is_the_one_that_other_metrics_read(tiny):
    import datasets
    from kdhub_tasks.language import task
    from kdhub_tasks.language.generation import Generation
    from kdhub_tasks.language.outputs import Outputs

    from kdhub.evaluation.evaluator import encoder_of

    rows = datasets.Dataset.from_list([{"prompt": "ab", "response": "c"}, {"prompt": "d", "response": "e"}])
    out = Outputs(encoder_of(tiny, task.CausalLanguage().preparer(tiny, None)), rows)
    out = out.writing(Generation(max_new_tokens=6, temperature=1.0), 2, samples=4)
    assert [a[0] for a in out.texts.all_answers] == out.texts.answers and all(
        len(set(a)) > 1 for a in out.texts.all_answers
    )
    assert skills.pass_at_1(out) == 0 and skills.pass_at_10(out) is None


def test_f1_by_hand():
    assert skills.overlap("The cat sat.", "a cat sat DOWN") == pytest.approx(0.8)
    assert skills.overlap("cat cat", "cat") == pytest.approx(2 / 3), "a word counts as often as both have it"
    assert skills.overlap("the", "a!") == 1 and skills.overlap("", "cat") == 0
    assert skills.f1(written([["the cat sat"], ["dog"]], ["cat sat down", "cat"])) == pytest.approx(0.4)
    assert skills.unique_words(written([["a b a"], ["c"]], ["", ""])) == 1.5
    assert skills.f1(SimpleNamespace(texts=None)) is None and skills.unique_words(SimpleNamespace(texts=None)) is None
