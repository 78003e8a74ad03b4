"""Scoring of language models: numbers by hand, in chunks, compared with teachers, and of generated texts."""

from __future__ import annotations

import json
import math
import types

import datasets
import numpy as np
import pytest
from kdhub_tasks.language import logits, metrics, task
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.judge import Ratings, rating, read_rating
from kdhub_tasks.language.outputs import Outputs, Tokens

import kdhub
from kdhub.errors import CompatibilityError, ShapeError
from kdhub.evaluation.evaluator import encoder_of

LOG = np.log


class Rows:
    """An encoder of given logits, whose rows have single letters as tokens."""

    def __init__(self, logits, letters="ab"):
        self.logits, self.model, self.sizes = logits, None, []
        vocabulary = {letter: n for n, letter in enumerate(letters)}

        class Tokenizer(dict):
            def get_vocab(self):
                return dict(self)

        self.prepare = lambda rows: [
            {"labels": [vocabulary[c] for c in row["text"]], "bytes": len(row["text"])} for row in rows
        ]
        self.prepare.tokenizer = Tokenizer(vocabulary)

    def reader(self, table, kind, **how):
        def read(start, stop):
            self.sizes.append(stop - start)
            return {"logits": self.logits[start:stop]}

        return read


def of(logits, texts, letters="ab"):
    encode = Rows([np.asarray(row, np.float32) for row in logits], letters)
    return Outputs(encode, datasets.Dataset.from_dict({"text": texts}))


def test_tokens_by_hand():
    out = of([LOG([[0.5, 0.5]]), LOG([[0.25, 0.75]])], ["a", "a"])
    assert metrics.perplexity(out) == pytest.approx(math.sqrt(8)) and metrics.nll(out) == pytest.approx(1.5 * LOG(2))
    assert metrics.bits_per_byte(out) == pytest.approx(1.5) and metrics.accuracy(out) == 0.5 and out.examples == 2
    out.tokens = Tokens(out.tokens.log_p, out.tokens.hits, None)
    assert metrics.bits_per_byte(out) is None, "something was cut"
    with pytest.raises(ShapeError, match="NaN"):
        metrics.nll(of([[[np.nan, 0.0]]], ["a"]))


def test_fidelity_by_hand():
    """Two positions of one row, where the teacher's row is longer: what both see is compared."""
    q, p = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]), np.array([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [1 / 3] * 3])
    student, teacher = of([LOG(q)], ["ab"], "abc"), of([LOG(p)], ["abc"], "abc")
    expected = (p[:2] * LOG(p[:2] / q)).sum() / 2
    assert metrics.kl(student, teacher) == pytest.approx(expected, abs=1e-6)
    assert metrics.agreement(student, teacher) == 0.5
    assert metrics.perplexity_ratio(student, teacher) == pytest.approx(math.sqrt(0.1 * 0.3 / (0.2 * 0.1)))
    assert metrics.kl(teacher, teacher) == 0 and metrics.perplexity_ratio(teacher, teacher) == 1
    # a class without probability on the teacher's side has no part
    sure = of([[[0.0, -np.inf]]], ["a"])
    assert metrics.kl(of([LOG([[0.5, 0.5]])], ["a"]), sure) == pytest.approx(LOG(2))
    assert metrics.kl(sure, of([LOG([[0.5, 0.5]])], ["a"])) == np.inf


def test_a_draft_is_taken_as_far_as_the_two_overlap():
    """Overlaps of 0.8, 0.5, 1, 0.5, 0.9: rounds of four begin at two places."""
    overlap = [0.8, 0.5, 1.0, 0.5, 0.9]
    student = of([LOG([[1 - x / 2, x / 2] for x in overlap])], ["aaaaa"])
    teacher = of([LOG([[x / 2, 1 - x / 2] for x in overlap])], ["aaaaa"])
    assert metrics.draft_acceptance(student, teacher) == pytest.approx(np.mean(overlap))
    first, second = 0.8 + 0.4 + 0.4 + 0.2, 0.5 + 0.5 + 0.25 + 0.225
    assert metrics.draft_tokens(student, teacher) == pytest.approx((first + second) / 2)
    assert metrics.draft_tokens(teacher, teacher) == pytest.approx(4)
    short = of([LOG([[0.5, 0.5]])], ["a"])
    assert metrics.draft_tokens(short, short) is None and metrics.draft_acceptance(short, short) == pytest.approx(1)


def test_head_and_tail_are_those_of_the_teachers_rank():
    """Of 20 classes ten are the head, four the tail, whatever the student thinks of them."""
    letters = "abcdefghijklmnopqrst"
    rank = np.random.default_rng(0).permutation(20)
    teacher = of([[-rank.astype(float)]], ["a"], letters)  # class c is the teacher's (rank[c] + 1)-th
    p = np.random.default_rng(1).dirichlet(np.ones(20))
    student = of([LOG(p)[None]], ["a"], letters)
    assert metrics.head_mass(student, teacher) == pytest.approx(p[rank < 10].sum(), abs=1e-6)
    assert metrics.tail_mass(student, teacher) == pytest.approx(p[rank >= 16].sum(), abs=1e-6)
    few = of([LOG([[0.3, 0.7]])], ["a"])
    assert metrics.head_mass(few, few) == pytest.approx(1) and metrics.tail_mass(few, few) == 0


def test_a_different_vocabulary_is_a_note_and_not_a_crash(tiny):
    student = of([LOG([[0.5, 0.5]])], ["a"])
    with pytest.raises(CompatibilityError, match="0 tokens are the same, of 2 and 2"):
        metrics.kl(student, of([LOG([[0.5, 0.5]])], ["a"], "ba"))
    unknown = Outputs(types.SimpleNamespace(prepare=types.SimpleNamespace(tokenizer=None)), student.table)
    with pytest.raises(CompatibilityError, match="behind an API"):
        metrics.kl(student, unknown)
    assert metrics.perplexity(unknown) is metrics.bits_per_byte(unknown) is None and unknown.examples == 1


def test_chunks_hold_as_many_rows_as_fit(tiny, monkeypatch):
    """Memory stays the same for ten times the rows, and the numbers do not depend on the chunks."""
    import tracemalloc

    texts = ["a film that is " + "very " * (n % 9) + "long" for n in range(400)]
    prepare = task.CausalLanguage().preparer(tiny, None)

    def measured(rows, numbers):
        monkeypatch.setattr(logits, "NUMBERS", numbers)
        out = Outputs(encoder_of(tiny, prepare), datasets.Dataset.from_dict({"text": texts[:rows]}))
        given = []
        monkeypatch.setattr(
            tiny, "signals", lambda e, kind: given.append(sum(len(x["labels"]) for x in e)) or of_all(e)
        )
        tracemalloc.start()
        value = metrics.nll(out), metrics.kl(out, out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value, peak, max(given)

    of_all = lambda examples: type(tiny).signals(tiny, examples, "logits")  # noqa: E731
    few, small, at_once = measured(40, 100_000)
    assert at_once * 258 <= 100_000
    _, large, _ = measured(400, 100_000)
    assert large < 1.5 * small, f"{large} bytes for 400 rows, {small} for 40"
    whole, _, _ = measured(40, 10**9)
    assert few == pytest.approx(whole, rel=1e-6)


def test_heavy_logits_of_rows_to_measure_on_are_not_stored(tmp_path, monkeypatch):
    """With local weights they are computed again; the provenance says so, and the numbers are the same."""
    import kdhub.signals.stored

    recipe = task.CausalLanguage().tiny_recipe(tmp_path)
    recipe["evaluation"]["cost"] = False
    base = {"task": "causal-lm", "method": "supervised", **recipe, "options": {"max_steps": 2, "precision": "float32"}}
    light = kdhub.distill(base, out=tmp_path / "light")
    monkeypatch.setattr(kdhub.signals.stored, "HEAVY", 100)
    heavy = kdhub.distill(base, out=tmp_path / "heavy")
    assert light.provenance["signals"]["logits"]["computed"] and "not_stored" not in light.provenance
    assert "signals" not in heavy.provenance and heavy.provenance["not_stored"]["logits"] > 0
    key = lambda m: (m["metric"], m["subject"], m["dataset"], m["split"])  # noqa: E731
    values = [{key(m): m["value"] for m in run.report["measures"]} for run in (light, heavy)]
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        assert values[1][name] == pytest.approx(value, rel=2e-3), name


def test_bytes_of_responses_are_those_of_what_counts(tiny):
    prepare = task.CausalLanguage().preparer(tiny, None)
    (whole, cut) = prepare([{"prompt": "2+3=", "response": "fünf"}, {"prompt": "x", "response": "y" * 90}])
    assert whole["bytes"] == 5 and len(whole["labels"]) == 6 and cut["bytes"] is None
    (text,) = prepare([{"text": "y" * 90}])
    assert text["bytes"] is None
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo!"}]
    (talk,) = prepare([{"messages": said}])
    assert talk["bytes"] == 3


# -- texts ----------------------------------------------------------------------------------------------------


def answered(tiny, texts, rows):
    out = Outputs(encoder_of(tiny, task.CausalLanguage().preparer(tiny, None)), datasets.Dataset.from_list(rows))
    out = out.writing(Generation(max_new_tokens=4), len(rows))
    out.texts.answers = texts
    return out


def test_metrics_of_texts_by_hand(tiny):
    rows = [{"prompt": "p", "response": "the cat sat. #### 1,200"}, {"prompt": "q", "response": "a b c #### -3"}]
    out = answered(tiny, ["the cat ran, so 1200.0", "a b a b #### 3"], rows)
    assert metrics.exact_match(out) == 0.5, "a sign is kept"
    # the cat (sat 1 200 | ran so 1200 0): 2 of 5 and 6; a b (c 3 | a b 3): 3 of 4 and 5
    assert metrics.rouge_l(out) == pytest.approx((2 * 2 / (5 + 6) + 2 * 3 / (4 + 5)) / 2)
    assert metrics.mean_length(out) == 5.5
    assert metrics.distinct_1(out) == 9 / 11 and metrics.distinct_2(out) == 8 / 9
    assert metrics.distinct(["", "!"], 1) is None and metrics.rouge_l(of([LOG([[0.5, 0.5]])], ["a"])) is None


def test_texts_are_written_when_they_are_asked_for(tmp_path, monkeypatch):
    from kdhub_tasks.language import judge

    monkeypatch.setattr(judge, "HOW", Generation(max_new_tokens=7))
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(3) for b in range(3)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = {"data": [f"path:{path}"], "cost": False}
    made |= {"task": "causal-lm", "method": "supervised", "data": {"train": [f"path:{path}"]}, "evaluation": plan}
    made["options"] = {"max_steps": 1, "precision": "float32"}
    plain = kdhub.distill(made, out=tmp_path / "plain")
    assert not {"rouge-l", "judge"} & {m["metric"] for m in plain.report["measures"]}
    teacher = made["teacher"]["source"] if isinstance(made["teacher"], dict) else made["teacher"]
    made["evaluation"] = {**plan, "options": {"generate": 5, "max_new_tokens": 6, "judge": teacher}}
    run = kdhub.distill(made, out=tmp_path / "run")
    found = {(m["metric"], m["subject"]): m for m in run.report["measures"]}
    assert found["mean-length", "teacher"]["value"] >= 0 and found["exact-match", "student"]["value"] <= 1
    assert found["mean-length", "student"]["examples"] == 5 and found["nll", "student"]["examples"] == 18
    assert run.provenance["signals"]['text:{"max_new_tokens":6}']["rows"] == 5, "the teacher's go through the store"
    assert not any(m["metric"] == "judge" for m in run.report["measures"]), "such a small model rates nothing"


def test_a_judge_is_named_with_its_rating(tiny, monkeypatch):
    from kdhub_tasks.language import judge

    assert [read_rating(t) for t in ("good. #### 7", "8/10? #### 11", "no", "#### 9/10", "1")] == [
        7,
        None,
        None,
        None,
        1,
    ]
    rows = [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "s"}]
    out = answered(tiny, ["one", "two"], rows)
    questions = []

    def answers(teacher, table, how):
        questions.extend(table["prompt"])
        return iter([("fine. #### 8", True), ("hm", True)])

    monkeypatch.setattr(judge, "answers", answers)
    monkeypatch.setattr(judge, "open_teacher", lambda *a: None)
    options = task.CausalLanguage.EvaluationOptions(generate=2, judge="openai:great")
    views = list(task.CausalLanguage().views(out, options, "student"))
    assert [view.variant for view in views] == [{}, {}, {"judge": "openai:great"}] and views[2].metrics == ("judge",)
    judged = Ratings(out.texts, "openai:great")
    assert rating(judged) == 8 and rating(out) is None
    assert all(part in questions[0] for part in ("[Task]\np\n", "answer]\nr\n", "answer]\none\n"))
