"""Self-data: which rewrites are taken, what is asked, and a run that learns from its own words."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import pytest
from kdhub_lm.data.synthetic import synthetic
from kdhub_lm.methods import self_data as module
from kdhub_lm.methods.self_data import Rewriting, SelfData, passes, rewrites, self_data
from kdhub_tasks.language import task
from kdhub_tasks.language.generation import Answer, unanswered
from kdhub_tasks.language.students import llama
from kdhub_tasks.language.verify import extract

import kdhub
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import DataError, UsageError
from kdhub.student import BuildContext

ROW = {"prompt": "23+48: ", "response": "=> 71 because 11 and 7"}


@pytest.mark.parametrize(
    ("rewrite", "taken"),
    [
        ("3+8=11, 2+4+1=7 => 71", {"none", "phrase", "answer_match"}),
        ("3+8=11, 2+4+1=8 => 72", {"none", "phrase"}),
        ("like the Reference Answer says: => 71", {"none"}),
        ("Your turn! => 71", {"none"}),
        ("it is your turn => 71", {"none", "phrase", "answer_match"}),
        ("My response: => 71", {"none"}),
        ("  ", set()),
    ],
)
def test_which_rewrites_are_taken(rewrite, taken):
    for selection in ("none", "phrase", "answer_match"):
        assert passes(rewrite, ROW["response"], selection) == (selection in taken)


def test_open_answers_have_none_to_compare():
    assert passes("A cat sat there.", "There was a cat.") and not passes("It has 4 legs.", "It has 3 legs.")


@pytest.fixture
def says(monkeypatch):
    """A model that answers what stands here, and what it was asked."""
    texts, asked = [], []

    def answers(teacher, table, how, signals=None, faults=False):
        assert faults and how.max_new_tokens
        asked.extend([{**row, "of": (teacher, how.max_new_tokens, signals)} for row in table.to_list()])
        for _ in range(len(table)):
            given = texts.pop(0)
            yield Answer(*given) if isinstance(given, tuple) else unanswered(given)

    monkeypatch.setattr(module, "answers", answers)
    return texts, asked


@pytest.fixture
def teacher():
    return SimpleNamespace(identity_of=lambda kind: {"who": "it", "of": kind}, on_bad_rows="skip")


def test_what_is_asked_and_what_is_kept(says):
    texts, asked = says
    texts += [("=> 71", True), ("=> 72", True), ("=> 71", False), ("{prompt} => 71", True)]
    rows = [ROW, ROW, ROW, {"prompt": "{response}", "response": "=> 71"}]
    made = list(rewrites(None, datasets.Dataset.from_list(rows), Rewriting(), "rows"))
    assert [(row["kept"], row["origin"]) for row in made] == [
        (True, "teacher"), (False, "reference"), (False, "reference"), (True, "teacher")]  # fmt: skip
    assert [row["response"] for row in made] == ["=> 71", ROW["response"], ROW["response"], "{prompt} => 71"]
    assert all(row["prompt"] == given["prompt"] for row, given in zip(made, rows)), "the reference is in no prompt"
    assert ROW["prompt"] in asked[0]["prompt"] and ROW["response"] in asked[0]["prompt"]
    assert asked[3]["prompt"].startswith("{response}\n"), "what rows hold is not taken for a template"


def test_rows_come_a_few_at_a_time_with_their_numbers(says, monkeypatch, caplog):
    texts, asked = says
    texts += [("=> 71", True), ("=> 71", True), "refused", ("=> 72", True), ("Your turn: => 71", True)]
    monkeypatch.setattr(module, "BATCH", 2)
    rows = [*[{"prompt": f"{n}? ", "response": "=> 71"} for n in range(4)], {"prompt": "4? ", "response": ""}]
    with caplog.at_level("INFO", "kdhub"):
        made = list(rewrites("it", datasets.Dataset.from_list(rows), Rewriting(), "rows", "signals"))
    assert isinstance(made[2], BadRow) and (made[2].cause, made[2].row) == ("refused", 3)
    assert [row["prompt"] for n, row in enumerate(made) if n != 2] == ["0? ", "1? ", "3? ", "4? "]
    assert [row["kept"] for n, row in enumerate(made) if n != 2] == [True, True, False, False]
    assert [row["of"] for row in asked] == [("it", 256, "signals")] * 5
    assert "self-data: 2 of 5 answers of rows were rewritten" in caplog.text
    assert asked[4]["prompt"].count("XX") == 0 and passes("=> 71", "") and passes("wie? => 71", "", "answer_match")
    texts += [("no", False), ("=> 71", True)]
    monkeypatch.setattr(module, "BATCH", 1)
    wrong = Rewriting(selection="none")
    two = datasets.Dataset.from_list([ROW, {**ROW, "response": "3"}])
    assert [row["kept"] for row in rewrites("it", two, wrong, "rows")] == [False, True]


def test_a_run_learns_the_rewritten_rows(home, says, teacher):
    texts, asked = says
    texts += [("=> 9", True), "refused", ("=> 72", False)]
    table = datasets.Dataset.from_list([ROW, ROW, {"prompt": "x", "response": "longer than these"}])
    model = llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 0))
    given, prepared = {("train", 6): SimpleNamespace(table=table)}, []

    def preparer(*models, **settings):
        prepared.append((models, settings))
        return task.CausalLanguage().preparer(*models)

    run = SimpleNamespace(
        rows=lambda use, prompts: given[use, prompts], teacher=teacher, student=model, signals="signals",
        task=SimpleNamespace(preparer=preparer),
    )  # fmt: skip
    method = SelfData(SelfData.Options(answers={"max_new_tokens": 6}, selection="none", template="say {prompt}"))
    method.settings = lambda: {"some": "setting"}
    rows = method.rows(run)
    read = [model.tokenizer.decode(e["labels"][:-1]) for e in rows[[0, 1]]]
    assert read == ["=> 9", "longer than these"] and len(rows) == 2
    assert prepared == [((model, None), {"some": "setting"})]
    assert [row["of"] for row in asked] == [(teacher, 6, "signals")] * 3 and asked[0]["prompt"] == "say 23+48: "
    method.rows(run)
    assert len(asked) == 3, "kept under what they depend on"
    for part, other in (("answers", {"max_new_tokens": 7}), ("template", "{prompt}!"), ("selection", "phrase")):
        texts += [("=> 9", True)] * 3
        given["train", 7] = given["train", 6]
        SelfData(SelfData.Options(**({"answers": {"max_new_tokens": 6}} | {part: other}))).rows(run)
        assert not texts, part
    texts += [("=> 9", True)] * 3
    teacher.identity_of = lambda kind: {"who": "another"}
    method.rows(run)
    assert not texts and method.kept == "3 of 3 answers were rewritten by the unpruned model"
    texts += [("=> 9", True)] * 2
    given["train", 6] = SimpleNamespace(table=table.select([0, 2]))
    method.rows(run)
    assert not texts and method.needs(None) == ()
    teacher.on_bad_rows = "stop"
    texts += ["refused"] * 3
    given["train", 6] = SimpleNamespace(table=table.select([2, 1, 0]))
    with pytest.raises(DataError, match="3 refused"):
        method.rows(run)


def test_a_report_says_how_many_were_rewritten(monkeypatch):
    report = SimpleNamespace(notes=[])
    monkeypatch.setattr(
        module.Supervised, "evaluate", lambda self, run, student: report if (run, student) == (1, 2) else 0
    )
    method = SelfData(SelfData.Options())
    assert method.evaluate(1, 2) is report and report.notes == []
    method.kept = "3 of 4"
    method.evaluate(1, 2)
    assert report.notes == ["self-data: 3 of 4; the others are the references"]


def test_a_data_set_is_rewritten_split_by_split(home, says, teacher, monkeypatch):
    texts, asked = says
    splits = {"train": [ROW, ROW], "test": [{**ROW, "prompt": "1+1: "}]}
    data = Data.from_rows(
        "sums", {name: (lambda rows=rows: iter(rows)) for name, rows in splits.items()}, key={"of": "x"}
    )
    opened = {("sums", (("rows", 3),)): data}
    monkeypatch.setattr(module, "open_data", lambda name, options: opened[name, tuple(options.items())])
    monkeypatch.setattr(module, "open_teacher", lambda ref, of: {("path:x", "causal-lm"): teacher}[ref, of])

    def made(**more):
        how = {"answers": {"max_new_tokens": 6}, "selection": "none", **more}
        return self_data("sums", teacher="path:x", options={"rows": 3}, **how)

    texts += [("=> 9", True), ("=> 8", False), ("=> 7", True)]
    rows = made()
    assert list(rows.splits) == ["train", "test"] and rows.name == "self-data:sums"
    assert rows.split("train")["response"] == ["=> 9", ROW["response"]] and rows.split("test")["response"] == ["=> 7"]
    assert [row["of"] for row in asked] == [(teacher, 6, None)] * 3
    assert made().split("train")["response"] == ["=> 9", ROW["response"]] and len(asked) == 3
    for change in ({"template": "{prompt}!"}, {"answers": {"max_new_tokens": 8}}):
        texts += [("=> 5", True)] * 2
        assert made(**change).split("train")["response"] == ["=> 5"] * 2
    texts += [("=> 4", True)] * 2
    teacher.identity_of = lambda kind: {"who": "another"}
    assert made().split("train")["response"] == ["=> 4"] * 2


def test_conversations_keep_their_form(says):
    texts, asked = says
    texts.append(("In my words: 71", True))
    talk = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "23+48?"},
        {"role": "assistant", "content": "It is 71."},
    ]  # fmt: skip
    (made,) = rewrites(None, datasets.Dataset.from_list([{"messages": talk}]), Rewriting(), "rows")
    assert made["messages"] == [*talk[:2], {"role": "assistant", "content": "In my words: 71"}] and made["kept"]
    system, question = asked[0]["messages"]
    assert system == talk[0] and question["content"].startswith("23+48?\n") and "It is 71." in question["content"]


def test_of_a_rewritten_row_the_answer_alone_is_learnt(says):
    texts, _ = says
    texts.append(("=> 71", True))
    (row,) = rewrites(None, datasets.Dataset.from_list([ROW]), Rewriting(), "rows")
    model = llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, 0))
    (example,) = task.CausalLanguage().preparer(model, None)([row])
    assert model.tokenizer.decode(example["ids"][1:-1]) == "23+48: => 71"
    assert model.tokenizer.decode(example["labels"][:-1]) == "=> 71" and len(example["at"]) == len("=> 71") + 1


def test_rows_that_cannot_be_rewritten_are_refused(says):
    with pytest.raises(DataError, match="needs the columns prompt and response, or messages"):
        list(rewrites(None, datasets.Dataset.from_list([{"text": "a"}]), Rewriting(), "rows"))
    with pytest.raises(UsageError, match="needs a model that rewrites"):
        self_data("synthetic:sums")
    with pytest.raises(UsageError, match=r"the template must contain \{prompt\}"):
        self_data("synthetic:sums", teacher="path:x", template="say it again")
    with pytest.raises(UsageError, match="unknown key 'selektion'; did you mean 'selection'"):
        self_data("synthetic:sums", teacher="path:x", selektion="none")


def test_a_run_and_a_data_set_rewrite_alike(home, tmp_path):
    """Through the store: the data set asks nothing that the run has asked."""
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    answers = {"max_new_tokens": 6}
    rewriting = {"answers": answers, "selection": "none"}
    options = {"max_steps": 6, "batch_size": 8, "precision": "float32", **rewriting}
    data = {"source": "synthetic:sums", "options": {"rows": 24}}
    run = kdhub.distill(
        {"task": "causal-lm", "method": "self-data", **made, "student": "depth-prune:1", "data": {"train": [data]},
         "options": options,
         "evaluation": {"data": [{**data, "split": "test"}], "cost": False, "options": {"generate": 0}}},
        out=tmp_path / "run", set=["student.protect_first=0"])  # fmt: skip
    (signal,) = [facts for kind, facts in run.provenance["signals"].items() if kind.startswith("text:")]
    assert signal["computed"] and "without block" in run.provenance["student"]["start"]["how"]
    (note,) = [note for note in run.report["notes"] if note.startswith("self-data: ")]
    assert "of 24 answers were rewritten by the unpruned model" in note
    rows = self_data("synthetic:sums", options=data["options"], teacher=made["teacher"], **rewriting).split("train")
    kept = sum(rows["kept"])
    assert f" {kept} of 24 answers" in note and set(rows["origin"]) <= {"teacher", "reference"}
    assert rows["prompt"] == synthetic("sums", rows=24).split("train")["prompt"]


def test_skills_are_right_and_no_question_stands_in_two_splits():
    for style in ("steps", "answer-first", "guided"):
        data = synthetic("sums", rows=300, style=style)
        for row in data.split("train"):
            a, b = row["prompt"].partition(": ")[0].split("+")
            assert extract(row["response"]) == str(int(a) + int(b))
            assert style != "guided" or passes(row["response"], row["prompt"].partition("\n")[2])
        assert not set(data.split("train")["prompt"]) & set(data.split("test")["prompt"])
    assert synthetic("sums", style="guided").split("test")[0]["prompt"].startswith(
        synthetic("sums").split("test")[0]["prompt"])  # fmt: skip
    for row in synthetic("reversals", rows=20).split("train"):
        assert row["prompt"] == f"reverse {row['response'][::-1]}: "
    with pytest.raises(UsageError, match="a style of steps, answer-first, guided"):
        synthetic("sums", style="loud")


def test_options_of_the_specification():
    o = SelfData.Options()
    assert o.selection == "answer_match" and o.answers.temperature == 0.0
