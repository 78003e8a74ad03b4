"""Sets of items: how rows are read, what experts are asked, and runs from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
from kdhub_knowledge.sets.experts import NO_ANSWER, word_of
from kdhub_knowledge.sets.students import Belief, matrix
from kdhub_knowledge.sets.task import items_of
from kdhub_knowledge.substitution import Table, key_of
from kdhub_tasks.language.openai import OpenAI

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.testing.server import serving


@pytest.mark.parametrize("value", ["b|a", "a; b", "b,a,", "b a", '["b", "a", "a"]', ["a", "b"]])
def test_items_are_a_list_or_a_text(value):
    assert items_of(value) == ["a", "b"]


@pytest.mark.parametrize(
    "value, says", [("", "without items"), ([], "without items"), (3.5, "3.5"), ([["a"]], "names")]
)
def test_what_is_no_set_is_refused(value, says):
    with pytest.raises(DataError, match=says):
        items_of(value)


def recipe(**changes):
    return {
        "task": "item-sets", "method": "evidence-fusion", "student": "belief", "teacher": "experts:families",
        "data": {"train": "families"},
        "evaluation": {"data": ["families"], "metrics": ["auroc", "macro-f1", "ignorance"], "cost": False},
        **changes,
    }  # fmt: skip


def scores(run):
    return {m["metric"]: m["value"] for m in run.report["measures"] if m["subject"] == "student"}


def test_sources_together_say_more_than_each_and_the_saved_student_says_the_same(tmp_path):
    runs = {
        which: kdhub.distill(recipe(), out=tmp_path / which, set=[f"options.sources={sources}"])
        for which, sources in {"both": "[]", "data": "[data]", "experts": "[experts]"}.items()
    }
    auc = {which: scores(run)["auroc"] for which, run in runs.items()}
    assert auc["both"] > max(auc["data"], auc["experts"]) + 0.01, auc
    student = kdhub.load(runs["both"].student_folder)
    assert list(student.trust) == ["data", "careful", "hasty", "wild"]
    assert student.trust["careful"] > student.trust["wild"], "an expert that errs more is trusted less"
    assert runs["both"].report["measures"] and runs["both"].provenance["teacher"]["experts"] == [
        "careful",
        "hasty",
        "wild",
    ]
    rows = [["a1", "b1", "c1", "d1"], ["a2", "a3", "b1", "b2"]]
    masses = student.belief(rows)
    np.testing.assert_allclose(masses.sum(1), 1)
    (first, *_) = student.explain(rows[0])
    pieces = student.explain(rows[0], 10_000)
    assert first["for"] == max(piece["for"] for piece in pieces) and set(first["sources"]) == set(student.trust)
    for piece in pieces:
        assert set(rows[0]) - set(piece["instead"]) == set(piece["like"]) - set(piece["of"])


def test_other_versions_and_given_trust(tmp_path):
    found = {}
    for version in ("v1", "v2", "v3"):
        settings = [f"options.version={version}", "options.trust=[1.0]", "options.sources=[data]"]
        run = kdhub.distill(recipe(), out=tmp_path / version, set=settings)
        assert set(kdhub.load(run.student_folder).trust.values()) == {1.0}
        found[version] = scores(run)
    assert found["v1"]["ignorance"] < found["v2"]["ignorance"] < found["v3"]["ignorance"] < 1
    assert min(one["auroc"] for one in found.values()) > 0.8, found


def test_few_sets_are_left_out_one_by_one():
    """Three sets: {a, x} and {b, x} are High, {c, d} is Low; a and b are known to be alike."""
    from kdhub_knowledge.methods.evidence_fusion import _folds

    assert [held.tolist() for held in _folds(3, 10)] == np.eye(3, dtype=bool).tolist()
    assert [held.sum() for held in _folds(25, 10)] == [3] * 5 + [2] * 5


# -- what is wrong ----------------------------------------------------------------------------------------------------


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"path:{path}"


def test_one_label_three_labels_and_other_students_are_refused(tmp_path):
    one = rows_file(tmp_path / "one.jsonl", [{"items": ["a", "b"], "label": "x"}, {"items": ["b", "c"], "label": "x"}])
    three = rows_file(tmp_path / "three.jsonl", [{"items": ["a", n], "label": n} for n in "xyz"])
    with pytest.raises(CompatibilityError, match="about two labels, the rows have 1: x"):
        kdhub.distill(recipe(data={"train": one}), out=tmp_path / "1")
    with pytest.raises(CompatibilityError, match="about two labels, the rows have 3: x, y, z"):
        kdhub.distill(recipe(data={"train": three}), out=tmp_path / "3")
    with pytest.raises(CompatibilityError, match="makes a model of belief"):
        kdhub.distill(recipe(student="bag:"), out=tmp_path / "bag")
    with pytest.raises(UsageError, match=r"sources must be among data, careful.*\(sources=\['nobody'\]\)"):
        kdhub.distill(recipe(), out=tmp_path / "s", set=["options.sources=[nobody]"])
    with pytest.raises(UsageError, match=r"one for each of data, careful.*\(trust=\[0.5, 0.5\]\)"):
        kdhub.distill(recipe(), out=tmp_path / "t", set=["options.trust=[0.5,0.5]"])
    with pytest.raises(UsageError, match=r"no sets have the item \(item=zinc\)"):
        kdhub.open_data({"source": "left-out:families", "options": {"item": "zinc"}}).split("train")


@pytest.mark.parametrize(
    "row, says",
    [
        ({"a": "x", "b": "y", "expert": "e"}, "row 2, has no answer"),
        ({"a": "x", "b": "x", "expert": "e", "answer": "high"}, "row 2.*an item by itself"),
        ({"a": "y", "b": "x", "expert": "e", "answer": "low"}, "row 2.*x and y twice"),
        ({"a": "x", "b": "z", "expert": "e", "answer": "perhaps"}, "row 2: the answer is 'perhaps', not high"),
    ],
)
def test_wrong_answers_name_their_row(tmp_path, row, says):
    rows_file(tmp_path / "said.jsonl", [{"a": "x", "b": "y", "expert": "e", "answer": "Q2High"}, row])
    teacher = kdhub.open_teacher(f"experts:{tmp_path / 'said.jsonl'}", "item-sets")
    with pytest.raises(DataError, match=says):
        teacher.members  # noqa: B018
    with pytest.raises(UsageError, match="there is no file"):
        kdhub.open_teacher("experts:nowhere.tsv", "item-sets").identity  # noqa: B018
    with pytest.raises(UsageError, match="need a model and who it shall be"):
        kdhub.open_teacher("prompted-experts", "item-sets").identity  # noqa: B018


def test_missing_answers_are_unknown(tmp_path):
    said = [
        {"a": "a1", "b": "a2", "expert": "e", "answer": "high"},
        {"a": "a1", "b": "b1", "expert": "e", "answer": "no"},
    ]
    rows_file(tmp_path / "said.jsonl", said)
    run = kdhub.distill(recipe(teacher=f"experts:{tmp_path / 'said.jsonl'}"), out=tmp_path / "run")
    table = kdhub.load(run.student_folder).sources["e"]
    assert (table.masses[:, 2] < 1).sum() == 1, "one pair of 190 has an answer that says anything"
    np.testing.assert_allclose(table.masses[table.masses[:, 2] < 1], [[1 / 3, 0, 2 / 3]])


def test_sources_that_know_for_certain_and_contradict_each_other_leave_nothing_to_choose_by():
    """{a, x} is High, {b, x} Low, and d replaces each of them for certain; then only one of them."""
    student = Belief(list("abdx"), ["High", "Low"])
    student.sets, student.labels = matrix([["a", "x"], ["b", "x"]], student.items), np.array([0, 1])
    keys = np.sort([key_of([n], [2], student.width) for n in (0, 1)])
    student.fused = Table(keys, np.tile([1.0, 0, 0], (2, 1)))
    np.testing.assert_allclose(student.belief([["d", "x"]]), [[0.5, 0.5, 0]], atol=1e-9)
    student.fused = Table(keys[:1], np.array([[1.0, 0, 0]]))
    np.testing.assert_allclose(student.belief([["d", "x"]]), [[1, 0, 0]], atol=1e-9)
    assert np.isfinite(student.signals([{"items": ["d", "x"]}], "logits")["logits"]).all()
    with pytest.raises(TypeError, match="gives no 'features'"):
        student.signals([{"items": ["a"]}], "features")


# -- a language model in the role of experts --------------------------------------------------------------------------


def test_experts_are_asked_two_questions_once(tmp_path, monkeypatch):
    """The chemist knows about everything; the cook knows nothing, or does not say."""

    def said(path, body):
        prompt = body["messages"][-1]["content"]
        if "chemist" in prompt:
            high = len(set(prompt.split("can ")[1].split(" ")[0:3:2])) == 2 and "a1 and a2" in prompt
            reply = "Yes." if "enough" in prompt else "High" if high else "low, I think"
        else:
            reply = "yes and no" if "a1 and a2" in prompt else "No"
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        return {"choices": [{"finish_reason": "stop", "message": {"content": reply}}], "usage": usage}

    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        teacher = {
            "source": "prompted-experts", "model": "openai:toy", "subject": "a soup",
            "experts": {"chemist": "You are a chemist.", "cook": "You are a cook."},
        }  # fmt: skip
        small = {"source": "families", "options": {"sets": 8, "size": 2}}
        made = recipe(teacher=teacher, data={"train": small})
        run = kdhub.distill(made, out=tmp_path / "one")
        student = kdhub.load(run.student_folder)
        pairs = len(student.items) * (len(student.items) - 1) // 2
        assert len(server.bodies) == 3 * pairs, "the cook is not asked how well: he does not know"
        assert all("a soup" in body["messages"][-1]["content"] for body in server.bodies)
        assert (student.sources["cook"].masses == [0, 0, 1]).all()
        w = 1 / 6
        assert {tuple(np.round(m, 6)) for m in student.sources["chemist"].masses} <= {
            tuple(np.round((w, 0, 1 - w), 6)), tuple(np.round((0, w, 1 - w), 6)),
        }  # fmt: skip
        again = kdhub.distill(made, out=tmp_path / "two")
        assert len(server.bodies) == 3 * pairs, "no pair is asked about twice"
        assert again.provenance["teacher"]["members"][0]["expert"] == "chemist"


def test_a_reply_counts_only_if_it_is_one_word_of_those():
    assert word_of("High.", ("low", "high")) == "high" and word_of("highly unlikely", ("low", "high")) is None
    assert word_of("low or high", ("low", "high")) is None and NO_ANSWER == 255
