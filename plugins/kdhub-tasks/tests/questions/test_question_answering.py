"""Extractive question answering: positions of answers, what is chosen and compared, and that methods distil it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kdhub_tasks.questions import metrics, spans
from kdhub_tasks.questions.tiny import questions
from kdhub_tasks.questions.tiny import recipe as tiny_recipe
from kdhub_tasks.tiny import WORDS, tiny_encoder, write_jsonl

import kdhub
from kdhub.errors import CompatibilityError, DataError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny_recipe(tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def reader(recipe):
    from kdhub_tasks.questions.model import Reader

    return Reader.load(Path(recipe["student"]["source"].removeprefix("path:")))


SPANS = [(0, 0), (0, 0), (0, 0), (0, 3), (4, 7), (8, 11), (0, 0)]  # [CLS] q [SEP] three words of the text [SEP]


def test_where_an_answer_is():
    text = "abc def ghi"
    assert spans.place(text, {"text": ["def"], "answer_start": [4]}, SPANS) == [4, 4]
    assert spans.place(text, ["def ghi"], SPANS) == [4, 5]
    assert spans.place(text, "bc", SPANS) == [3, 3], "a part of a token is that token"
    assert spans.place(text, [], SPANS) == spans.place(text, {"text": [], "answer_start": []}, SPANS) == [0, 0]
    assert spans.place(text, None, SPANS) == [-1, -1]
    assert spans.place(text, ["ghi"], SPANS[:5]) == [0, 0], "it was cut off"
    assert spans.place(text, ["def ghi"], SPANS[:5]) == [0, 0], "so was its end"
    with pytest.raises(DataError, match="'xyz' is not in its text: 'abc"):
        spans.place(text, ["xyz"], SPANS)
    with pytest.raises(DataError, match="'def' is not in its text at character 5"):
        spans.place(text, {"text": ["def"], "answer_start": [5]}, SPANS)


def test_the_best_span_is_the_largest_sum_of_both_ends():
    logits = np.full((2, 7), -9.0)
    logits[0, 5], logits[1, 3] = 5, 5  # the likeliest ends, but the last before the first
    logits[0, 3], logits[1, 5] = 2, 1
    assert spans.best_span(logits, SPANS) == (3, 3)  # 2 + 5 = 7, against 2 + 1 and 5 + 1
    logits[1, 3] = 0
    assert spans.best_span(logits, SPANS) == (5, 5)  # 5 + 1
    assert spans.best_span(logits, SPANS, longest=1) == (5, 5)
    logits[0, 5] = -9
    assert spans.best_span(logits, SPANS) == (3, 5)
    assert spans.best_span(logits, SPANS, longest=2) == (3, 3), "three tokens are too many"
    logits[:, 0] = 4
    assert spans.best_span(logits, SPANS) == (0, 0), "no answer"
    logits[:, 1] = 99
    assert spans.best_span(logits, SPANS) == (0, 0), "the question does not answer itself"


def test_answers_are_compared_as_squad_does():
    assert metrics.plain("The  Cat, a dog!") == "cat dog"
    assert metrics.word_f1("the cat sat", "cat sat down") == pytest.approx(0.8)  # 2 * 2 / (2 + 3)
    assert metrics.word_f1("", "") == 1 and metrics.word_f1("cat", "") == metrics.word_f1("", "cat") == 0
    predicted, truths = ["the cat", "dog", ""], [["Cat."], ["a cat", "big dog"], [""]]
    out = metrics.Answers(np.zeros((6, 4)), np.zeros(6, int), predicted=predicted, truths=truths)
    assert metrics.exact_match(out) == pytest.approx(2 / 3)
    assert metrics.answer_f1(out) == pytest.approx((1 + 2 / 3 + 1) / 3)
    other = metrics.Answers(np.zeros((6, 4)), np.zeros(6, int), predicted=["the cat", "cat", ""], truths=truths)
    assert metrics.answer_agreement(out, other) == pytest.approx(2 / 3)


def test_logits_are_the_models_own_where_a_text_stands_and_nothing_elsewhere(reader):
    from kdhub_tasks.questions.model import NEVER

    asked = [("kabel", "kadan kafos"), ("lobel", "kadan kafos kagir kapum")]
    examples = [{**read, "labels": [0, 0]} for read in reader.encode_questions(asked)]
    given = reader.signals(examples, "logits")["logits"]
    assert [x.shape for x in given] == [(2, reader.max_length)] * 2
    ids, kinds, _ = examples[0]["tokens"]
    kinds = {} if kinds is None else {"token_type_ids": torch.tensor([kinds])}
    with torch.no_grad():
        own = reader.module.model(input_ids=torch.tensor([ids]), **kinds)
    may = [i for i, (a, b) in enumerate(examples[0]["spans"]) if b > a]
    assert len(may) == 2
    for ours, theirs in zip(given[0], (own.start_logits[0], own.end_logits[0])):
        np.testing.assert_allclose(ours[may], theirs[may].numpy(), atol=1e-5)
        np.testing.assert_allclose(ours[0], theirs[0].item(), atol=1e-5)
        rest = np.delete(ours, [0, *may])
        assert (rest == NEVER).all()
    assert reader.signals(examples, "hidden_states")["hidden_states"][0].shape == (len(ids), 1, 16)


def test_a_text_is_cut_at_its_end_and_a_question_never(reader):
    long = " ".join(WORDS * 3)
    (read,) = reader.encode_questions([("kabel lobel", long)], 20)
    assert read["cut"] and read["length"] == 20
    assert [s for s in read["spans"] if s != (0, 0)][-1][1] < len(long)
    with pytest.raises(CompatibilityError, match="a question has 120 tokens .max_length=64"):
        reader.encode_questions([(long, "kabel")])


def test_another_vocabulary_or_length_is_a_mismatch(recipe, reader, tmp_path):
    from kdhub_tasks.questions.model import Reader

    task = kdhub.open_task("question-answering")
    teacher = kdhub.open_teacher(recipe["teacher"], task.name)
    assert task.mismatch(reader, teacher) == ""
    short = "reads 32 tokens, the teacher 64"
    for how, said in (({"words": WORDS[:8]}, "different vocabularies"), ({"max_length": 32}, short)):
        folder = tiny_encoder(tmp_path / said.split()[0], layers=1, hidden=16, plain=True, **how)
        assert said in task.mismatch(Reader.with_head(folder, [], 0, {}), teacher)


def test_kd_brings_a_student_to_its_teacher_from_the_store(recipe, tmp_path):
    """A teacher that learnt the rule, and half of its layers led by what the store keeps of it."""
    common = {
        "task": "question-answering",
        "data": recipe["data"],
        "evaluation": {"data": recipe["data"]["train"], "cost": False},
    }
    options = {"batch_size": 32, "precision": "float32"}
    made = {"method": "supervised", "student": recipe["teacher"], "options": {**options, "lr": 5e-3, "epochs": 60}}
    teacher = kdhub.distill({**common, **made}, out=tmp_path / "teacher")
    assert measured(teacher, "answer-f1") > 0.9
    led = {"method": "kd", "teacher": f"path:{tmp_path / 'teacher/student'}", "student": "layers:1"}
    led |= {"options": {**options, "lr": 5e-3, "epochs": 30, "alpha": 1.0}, "signals": {"dtype": "int8"}}
    run = kdhub.distill({**common, **led}, out=tmp_path / "student")
    assert measured(run, "kl") < 0.5 * measured(run, "kl", "student-before")
    assert measured(run, "answer-agreement") > 0.8


def measured(run, metric, subject="student"):
    (value,) = [m["value"] for m in run.report["measures"] if m["metric"] == metric and m["subject"] == subject]
    return value


def test_an_answer_that_is_not_in_its_text_is_named(recipe, tmp_path):
    rows = questions(4, seed=4)
    rows[2]["answers"] = {"text": ["nowhere"], "answer_start": [0]}
    wrong = write_jsonl(tmp_path / "wrong.jsonl", rows)
    with pytest.raises(DataError, match="'nowhere' is not in its text at character 0"):
        made = {
            "task": "question-answering",
            "method": "supervised",
            "teacher": None,
            "data": {"train": [f"path:{wrong}"]},
        }
        kdhub.distill({**recipe, **made}, out=tmp_path / "run")
