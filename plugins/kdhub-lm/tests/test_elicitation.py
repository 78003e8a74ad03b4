"""Data sets that a teacher writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import datasets
import pytest
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.prompting import filled
from kdhub_tasks.language.replies import read_order, read_pairs, read_score

import kdhub
from kdhub.errors import DataError, TeacherError, UsageError
from kdhub.hub.trust import split_card
from kdhub.testing.server import failing, serving

# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7), (" 7.5\n", 7.5), ("7/10", 7), ("I give it 8 out of 10, for 2 faults.", 8), ("**Score:** 3", 3),
        ("Rating: 10", 10), ("10", 10), ("The 3 steps are right. Score: 9.", 9), ("7 and again 7", 7),
        ("", None), ("good", None), ("11", None), ("0", None), ("-7", None), ("on a scale of 1-10 it is 7", None),
        ("Rating (1-10): 8", None), ("between 6 and 8", None), ("1.2.3", None),
    ],
)  # fmt: skip
def test_scores(text, score):
    assert read_score(text, 1, 10) == score


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("2 > 1 > 3", [1, 0, 2]), ("[3] > [1] > [2]", [2, 0, 1]), ("Order: 1, 3, 2", [0, 2, 1]),
        ("First 3 > 2 > 1.\nNo: 1 > 2 > 3", [0, 1, 2]), ("1>2>3\nThese are my 2 cents", [0, 1, 2]),
        ("", None), ("2 > 1", None), ("2 > 2 > 1", None), ("4 > 1 > 2", None), ("1 is worse than 2 and 3", None),
    ],
)  # fmt: skip
def test_orders(text, order):
    assert read_order(text, 3) == order


def test_pairs():
    assert read_pairs("Input: a\nb\nOutput: c") == [("a\nb", "c")]
    several = " go on\nOutput: there\n\nInput: two\nOutput: #### 2\nInput: cut"
    assert read_pairs(several) == [("go on", "there"), ("two", "#### 2")]
    assert read_pairs("Sure!\n\n**Input:** x\n**Output:** y") == [("x", "y")]
    assert read_pairs("no such thing") == read_pairs("Input: a\nOutput:") == read_pairs("") == []


def test_braces_in_texts_mean_nothing():
    assert filled("{a}{b} {c}", a="{b}", b="2") == "{b}2 {c}"


# -- a teacher behind a server ------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """Two models: `teacher`, who answers by rules of its own, and `student`, who says a word and its seed."""
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def good(path, body):
        said = body["messages"][-1]["content"]
        text = server.says[body["model"]](said, body.get("seed"))
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    with serving(good) as server:
        server.says = {"teacher": lambda said, seed: f"answer to {said}", "student": lambda said, seed: f"word {seed}"}
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"task {i}", "response": f"#### {i}", "domain": "x"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"path:{path}"


def rows_of(text, split="train", **options):
    return list(kdhub.open_data(text, options=options).split(split))


def test_labelling(server, prompts):
    rows = rows_of(f"labelling:{prompts}", teacher="openai:teacher", template="Be kind. {prompt}")
    assert len(rows) == len(server.bodies) == 6
    assert re.fullmatch("teacher [0-9a-f]{12}", rows[0].pop("teacher"))
    assert rows[0] == {
        "prompt": "task 0", "response": "answer to Be kind. task 0", "ended": True, "sample": 0, "domain": "x",
        "elicitation": "labelling",
    }  # fmt: skip
    again = rows_of(f"labelling:{prompts}", teacher="openai:teacher", template="Be kind. {prompt}")
    assert len(again) == 6 and len(server.bodies) == 6
    server.says["teacher"] = lambda said, seed: f"{said} {seed % 2}"
    rows = rows_of(f"labelling:{prompts}", teacher={"source": "openai:teacher", "revision": "2"}, samples=8)
    assert {row["prompt"]: 0 for row in rows} == {f"task {i}": 0 for i in range(6)}
    assert len(rows) == len({row["response"] for row in rows}) == 12, "equal answers to a prompt are one"


def test_improbable_answers_are_dropped(server, prompts, caplog):
    """By the sum over their tokens; nothing is asked twice for it."""

    def good(path, body):
        said = body["messages"][-1]["content"]
        probable = {"content": [{"logprob": -float(said[-1])}, {"logprob": -1.0}]} if body.get("logprobs") else None
        choice = {"message": {"content": f"answer to {said}"}, "finish_reason": "stop", "logprobs": probable}
        return {"choices": [choice]}

    server.good = good
    rows = rows_of(f"labelling:{prompts}", teacher="openai:teacher", drop_unlikely=0.5)
    assert {row["prompt"]: row["log_prob"] for row in rows} == {f"task {i}": -1.0 - i for i in range(3)}
    assert len(server.bodies) == 6 and "3 improbable" in caplog.text
    all_of_them = rows_of(f"labelling:{prompts}", teacher="openai:teacher", answers={"log_probs": True})
    assert len(all_of_them) == 6 == len(server.bodies) and all_of_them[5]["log_prob"] == -6.0
    assert "log_prob" not in rows_of(f"labelling:{prompts}", teacher="openai:teacher")[0]
    with pytest.raises(UsageError, match=r"drop_unlikely must be a share.*\(drop_unlikely=1\)"):
        rows_of(f"labelling:{prompts}", teacher="openai:teacher", drop_unlikely=1)


def test_made_up_tasks_are_begun_and_stopped(server, prompts):
    """The reply is the rest of `Input:`, and ends before a second task."""

    def good(path, body):
        assert body["stop"] == ["Input:"] and body["prompt"].endswith("Input:")
        number = body["seed"] % 1000
        text = f" make {number}\nOutput: {number}\n\nInput: another\nOutput: x"
        return {"choices": [{"text": text, "finish_reason": "stop", "logprobs": {"token_logprobs": [-number, 0]}}]}

    server.good = good
    options = {"teacher": {"source": "openai:teacher", "api": "completions"}, "asks": 4, "most_alike": 1}
    options |= {"answers": {"prefix": "Input:", "stop": ["Input:"]}}
    rows = rows_of(f"expansion:{prompts}", **options)
    assert len(rows) == 4 and all(row["prompt"] == f"make {row['response']}" for row in rows)
    kept = rows_of(f"expansion:{prompts}", drop_unlikely=0.25, **options)
    numbers = sorted(int(row["response"]) for row in rows)
    assert sorted(-row["log_prob"] for row in kept) == numbers[:3]


def test_labelling_of_conversations_asks_by_messages(server, tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "and?"), ("assistant", "old")]
    path.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    (row,) = rows_of(f"labelling:path:{path}", teacher="openai:teacher", template="<{prompt}>")
    (body,) = server.bodies
    assert [m["content"] for m in body["messages"]] == ["hi", "yo", "<and?>"]
    assert [m["content"] for m in row["messages"]] == ["hi", "yo", "and?", "answer to <and?>"]


def test_expansion_keeps_what_is_new_and_can_be_read(server, prompts, caplog):
    replies = iter(
        ["Input: name a bird of the sea\nOutput: gull", "Input: name a bird of the sea!\nOutput: tern", "I will not."]
        + ["", "Input: task 3\nOutput: as given", "Input: spell sun\nOutput: s-u-n\n\nInput: spell ox\nOutput: o-x"]
    )
    server.says["teacher"] = lambda said, seed: next(replies)
    rows = rows_of(f"expansion:{prompts}", teacher={"source": "openai:teacher", "concurrency": 1}, asks=6, examples=2)
    assert {row["prompt"] for row in rows} >= {"spell sun", "spell ox"}
    assert len(rows) == 3 and all(len(row["examples"]) == 2 for row in rows)
    assert "1 too similar to another" not in caplog.text and "2 too similar to another" in caplog.text
    assert "1 unreadable" in caplog.text and "1 empty" in caplog.text
    asked = [body["messages"][-1]["content"] for body in server.bodies]
    assert len(set(asked)) > 1 and all(text.count("Input: task") == 2 for text in asked)


def test_curation_asks_for_each_condition_and_filters_by_score(server):
    def teacher(said, seed):
        if "How good" in said:
            return "9" if "moon" in said else "4/10"
        topic, level = re.search(r"one (\w+) task about (\w+)", said).groups()[::-1]
        return f"Input: {topic} {level} {seed}\nOutput: {seed}"

    server.says["teacher"] = teacher
    options = {"teacher": "openai:teacher", "topics": ["sea"], "difficulties": ["easy", "hard"], "most_alike": 1}
    rows = rows_of("curation:moon", samples=3, **options)
    assert len(rows) == 12 and {(r["topic"], r["difficulty"]) for r in rows} == {
        ("moon", "easy"), ("moon", "hard"), ("sea", "easy"), ("sea", "hard")
    }  # fmt: skip
    kept = rows_of("curation:moon", samples=3, least_score=8, **options)
    assert [r["prompt"] for r in kept] == [r["prompt"] for r in rows if r["topic"] == "moon"]
    assert {r["score"] for r in kept} == {9.0} and {r["elicitation"] for r in kept} == {"curation"}


FEEDBACK = {"teacher": "openai:teacher", "student": "openai:student"}


def test_feedback_by_scores(server, prompts, caplog):
    def teacher(said, seed):  # the larger number is better; its reply to task 5 cannot be read
        word = re.search(r"word (\d+)", said)[1]
        return "well" if "task 5" in said else "5" if "task 4" in said else word

    server.says["teacher"] = teacher
    rows = rows_of(f"feedback:{prompts}", samples=3, scale=[0, 2**31], **FEEDBACK)
    assert [row["prompt"] for row in rows] == [f"task {i}" for i in range(4)]
    for row in rows:
        assert row["scores"] == [int(text.split()[1]) for text in row["responses"]]
        assert row["student"].startswith("student ") and row["elicitation"] == "feedback"
    assert "3 unreadable" in caplog.text and "3 all equally good" in caplog.text


def test_feedback_by_order_undoes_the_order_shown(server, prompts):
    shown = []

    def teacher(said, seed):
        words = [int(n) for n in re.findall(r"\[\d\] word (\d+)", said)]
        shown.append(words)
        return " > ".join(str(words.index(word) + 1) for word in sorted(words, reverse=True))

    server.says["teacher"] = teacher
    rows = rows_of(f"feedback:{prompts}", how="rank", samples=4, **FEEDBACK)
    assert len(rows) == 6
    for row in rows:
        words = [int(text.split()[1]) for text in row["responses"]]
        assert row["scores"] == [float(sorted(words).index(word)) for word in words]
    given = [[int(text.split()[1]) for text in row["responses"]] for row in rows]
    assert sorted(map(sorted, given)) == sorted(map(sorted, shown)) and any(words not in given for words in shown)


def test_feedback_by_correction(server, prompts, caplog):
    server.says["student"] = lambda said, seed: "seven" if said == "task 0" else "two"
    server.says["teacher"] = lambda said, seed: "two "
    (row,) = rows_of(f"feedback:{prompts}", how="correct", **FEEDBACK)
    assert (row["chosen"], row["rejected"], row["prompt"]) == ("two ", "seven", "task 0")
    assert "5 unchanged" in caplog.text


def test_self_knowledge(server, prompts):
    def student(said, seed):
        if "How good" in said:
            return "10" if "Answer: 3" in said and "task 5" not in said else "1"
        return str(int(said.split()[1]) // 3 * 3 if said != "task 5" else seed)

    server.says["teacher"] = student
    kept = rows_of(f"self-knowledge:{prompts}", teacher="openai:teacher", samples=3)
    assert [(row["prompt"], row["response"]) for row in kept] == [("task 0", "0"), ("task 3", "3")]
    kept = rows_of(f"self-knowledge:{prompts}", teacher="openai:teacher", samples=3, keep="majority")
    assert [row["response"] for row in kept] == ["0", "0", "0", "3", "3"], "task 5 has three answers"
    kept = rows_of(f"self-knowledge:{prompts}", teacher="openai:teacher", samples=3, keep="scored")
    assert [(row["prompt"], row["score"]) for row in kept] == [("task 3", 10.0), ("task 4", 10.0)]


def test_replies_that_cannot_be_read_are_an_error(server, prompts):
    with pytest.raises(TeacherError, match="feedback:.*0 rows, 12 replies dropped: 12 unreadable"):
        rows_of(f"feedback:{prompts}", samples=2, **FEEDBACK)
    server.says["teacher"] = lambda said, seed: "no idea"
    with pytest.raises(TeacherError, match="6 unreadable"):
        rows_of(f"expansion:{prompts}", teacher="openai:teacher", asks=6)
    server.says["teacher"] = lambda said, seed: " "
    with pytest.raises(TeacherError, match="6 empty"):
        rows_of(f"labelling:{prompts}", teacher={"source": "openai:teacher", "revision": "2"})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("labelling:{}", {}, "needs a model to prompt"),
        ("labelling:{}", {"teacher": "openai:teacher", "template": "x"}, "must contain {prompt}"),
        (
            "labelling:{}",
            {"teacher": "openai:teacher", "samples": 2, "answers": {"temperature": 0}},
            "samples=2, temperature=0",
        ),
        ("labelling:{}", {"teacher": "openai:teacher", "answers": {"max_tokens": 3}}, "answers.max_tokens"),
        ("labelling:{}", {"teacher": "openai:teacher", "no_such": 3}, "no_such"),
        ("expansion:{}", {"teacher": "openai:teacher", "asks": 0}, "asks=0"),
        ("curation:,", {"teacher": "openai:teacher"}, "needs topics"),
        ("feedback:{}", {"teacher": "openai:teacher"}, "needs a model"),
        ("feedback:{}", {**FEEDBACK, "how": "sing"}, "score, rank or correct"),
        ("feedback:{}", {**FEEDBACK, "samples": 1}, "samples of at least 2"),
        ("feedback:{}", {**FEEDBACK, "scale": [3]}, "scale=[3]"),
        ("self-knowledge:{}", {"teacher": "openai:teacher", "keep": "all"}, "verified, majority or scored"),
    ],
)
def test_wrong_options(server, prompts, text, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        rows_of(text.format(prompts), **options)
    assert not server.bodies


def test_data_without_prompts(server, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="needs the column prompt or text or messages; it has question"):
        rows_of(f"labelling:path:{path}", teacher="openai:teacher")


def label(data):
    return rows_of(f"labelling:{data}", teacher={"source": "openai:teacher", "concurrency": 2})


def test_killed_in_the_middle_it_asks_only_for_the_rest(server, tmp_path):
    path, n = tmp_path / "many.jsonl", 40
    path.write_text("".join(json.dumps({"prompt": f"task {i}"}) + "\n" for i in range(n)))
    server.delay = 0.04
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['label'](sys.argv[2])"
    child = subprocess.Popen([sys.executable, "-c", code, __file__, f"path:{path}"], stderr=subprocess.PIPE, text=True)
    while len(server.answered) < 12:
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.kill()
    child.communicate()
    before, server.delay = len(server.bodies), 0.0
    assert before < n
    rows = label(f"path:{path}")
    assert [row["response"] for row in rows] == [f"answer to task {i}" for i in range(n)]
    assert n <= len(server.bodies) <= n + 2, "at most what was in flight is requested again"
    server.always = failing(500)
    assert label(f"path:{path}") == rows


# -- tags, and a run with local models ----------------------------------------------------------------------------


def test_the_card_says_how_knowledge_was_elicited(server, prompts, tmp_path):
    recipe = {
        "task": "causal-lm", "method": "supervised", "student": "llama:width=16,layers=1,heads=2,length=64",
        "data": {"train": [{"source": f"labelling:{prompts}", "options": {"teacher": {"source": "openai:teacher"}}}]},
        "options": {"max_steps": 2, "precision": "float32"},
        "evaluation": {"data": [prompts], "metrics": ["perplexity"], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "- kdhub-elicitation:labelling" in card and "- kdhub-algorithm:supervised" in card
    (used,) = [d for d in run.provenance["data"]["use"] if d["use"] == "train"]
    assert used["from"]["asked"]["model"]["model"] == "teacher" and used["tags"] == ["elicitation:labelling"]


def test_what_a_teacher_wrote_is_published_without_code(server, prompts, tmp_path, monkeypatch):
    data = [{"source": f"labelling:{prompts}", "options": {"teacher": {"source": "openai:teacher"}}}]
    said = {"student.language": ["en"], "student.task_categories": ["text-generation"]}
    run = kdhub.distill(method="as-data", data=data, set=said, out=tmp_path / "run")
    rows = datasets.load_dataset(str(run.student_folder), cache_dir=str(tmp_path / "hf"))["train"]
    assert rows.to_list() == list(kdhub.open_data(data[0]).split("train"))
    found = {m["metric"]: m["value"] for m in run.report["measures"]}
    assert found["distinct-rows"] == 1 and found["rows"] == 6 and found["making"] > 0
    assert found["distinct-2"] == pytest.approx(8 / 24), "'task N' of both columns, 'answer to', 'to task'"
    done = kdhub.publish(run.folder, "me/answers", licence="mit", dry_run=True)
    front, body = split_card(done.card)
    assert done.kind == "dataset" and front["language"] == ["en"] and front["task_categories"] == ["text-generation"]
    assert front["language_creators"] == ["machine-generated"] and front["kdhub"]["writers"] == ["teacher"]
    assert {"synthetic", "kdhub-elicitation:labelling"} <= set(front["tags"])
    assert "Text in it was written by `teacher`: it is synthetic." in body
    # Rows that another recipe leaves are no less synthetic.
    monkeypatch.setenv("KDHUB_CATALOG", str(tmp_path / "own"))
    (tmp_path / "own" / "recipes").mkdir(parents=True)
    shutil.copy(run.folder / "recipe.yaml", tmp_path / "own" / "recipes" / "answers.yaml")
    taken = kdhub.distill(method="as-data", data="recipe:answers", out=tmp_path / "taken")
    front, _ = split_card((taken.folder / "README.md").read_text())
    assert front["kdhub"]["writers"] == ["teacher"] and "synthetic" in front["tags"]
    chat = kdhub.distill(method="as-data", data="chat:recipe:answers", out=tmp_path / "chat")
    front, _ = split_card((chat.folder / "README.md").read_text())
    assert front["kdhub"]["writers"] == ["teacher"], "nor are they as the argument of a kind"


LETTERS = "abcdefgh"


@pytest.fixture
def letters(tmp_path):
    """Two local models, of which one has learnt the next letter and one has not, and the prompts."""
    path = tmp_path / "letters.jsonl"
    rows = [{"prompt": f"{c}>", "response": chr(ord(c) + 1)} for c in LETTERS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}
    for name, steps in (("able", 120), ("weak", 25)):
        made[name] = kdhub.distill(
            {"task": "causal-lm", "method": "supervised", "student": "llama:width=32,layers=1,heads=2,length=64",
             "data": {"train": [f"path:{path}"]}, "evaluation": {"data": [f"path:{path}"], "cost": False},
             "options": {"max_steps": steps, "batch_size": 8, "lr": 0.01, "precision": "float32"}},
            out=tmp_path / name)  # fmt: skip
    return f"path:{path}", f"path:{made['able'].student_folder}", f"path:{made['weak'].student_folder}"


@pytest.mark.parametrize("kind, options", [
    ("labelling", {"teacher": "openai:teacher"}),
    ("self-knowledge", {"teacher": "openai:teacher", "keep": "verified", "samples": 2}),
    ("feedback", {"teacher": "openai:teacher", "student": "openai:student", "how": "correct"}),
    ("preferences", {"writer": "openai:teacher", "samples": 2}),
    ("triage", {"model": "openai:teacher", "k": 2}),
    ("self-data", {"teacher": "openai:teacher"}),
])  # fmt: skip
def test_rows_that_a_model_refuses_are_bad_rows(server, prompts, kind, options):
    """They stop by default; left out where bad rows are, counted, and stored as refused: nothing is asked again."""

    def good(path, body):
        said = body["messages"][-1]["content"]
        text = f"#### {said[-1]}" if body["model"] == "teacher" and body.get("seed", 1) % 2 else f"#### {body['model']}"
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    refusing = failing(400, "against our policy")
    server.good = good
    server.always = lambda handler, body: refusing(handler, body) if "task 3" in str(body["messages"]) else None
    if kind == "self-data":
        options = {**options, "template": "{prompt}", "selection": "none"}
    for key in ("teacher", "student", "writer", "model"):
        if key in options:
            options[key] = {"source": options[key], "revision": kind}
    with pytest.raises(TeacherError, match="refused text 1 .'task 3'") as caught:
        rows_of(f"{kind}:{prompts}", **options)
    assert "on_bad_rows: skip" in caught.value.hint
    data = kdhub.open_data(f"{kind}:{prompts}", options=options, on_bad_rows="skip")
    rows = list(data.split("train"))
    assert {row["prompt"] for row in rows} <= {f"task {i}" for i in (0, 1, 2, 4, 5)} and rows
    assert data.skipped["train"] == {"that the model refused to answer": 1}
    asked = len(server.bodies)
    with pytest.raises(DataError, match=r"1 that the model refused to answer \(row 4\)"):
        rows_of(f"{kind}:{prompts}", **options)
    assert len(server.bodies) == asked


def test_rows_that_a_template_refuses_are_bad_rows(letters, tmp_path):
    """As are bad rows of the data set itself."""
    _, able, _ = letters
    says = lambda *roles: json.dumps({"messages": [{"role": r, "content": "a>"} for r in roles]})  # noqa: E731
    good, odd = says("user", "assistant"), says("assistant", "user", "assistant")
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{good}\n{odd}\nno JSON\n{good}\n")
    folder = tmp_path / "strict"
    shutil.copytree(able.removeprefix("path:"), folder)
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    options = {"teacher": f"path:{folder}", "answers": {"max_new_tokens": 3}}
    kinds = {"labelling": {}, "self-data": {}}
    for kind, own in kinds.items():
        data = kdhub.open_data(f"{kind}:path:{path}", options=options | own, on_bad_rows="skip")
        assert len(data.split("train")) >= 2, kind
        why = data.skipped["train"]
        assert why.pop("not valid JSON") == 1 and sum(why.values()) == 1 and "begin with the user" in str(why), kind
    path.write_text(f"{good}\n{odd}\n{good}\n")
    for kind, own in kinds.items():
        with pytest.raises(DataError, match=r"begin with the user \(row 2\)"):
            rows_of(f"{kind}:path:{path}", **options, **own)


def test_local_models_make_data(letters, tmp_path):
    data, able, weak = letters
    short = {"max_new_tokens": 3}
    rows = rows_of(f"labelling:{data}", teacher=able, answers=short)
    assert [row["response"] for row in rows] == [chr(ord(c) + 1) for c in LETTERS] and all(row["ended"] for row in rows)
    own = rows_of(f"self-knowledge:{data}", teacher=weak, samples=16, answers=short)
    assert 0 < len(own) and {row["response"] for row in own} <= {chr(ord(c) + 1) for c in LETTERS}
    feedback = {"how": "correct", "template": "{prompt}", "teacher": able, "student": weak}
    feedback |= {"answers": {**short, "temperature": 1.0}, "judging": short}
    pairs = rows_of(f"feedback:{data}", **feedback)
    assert pairs and all(row["chosen"] == chr(ord(row["prompt"][0]) + 1) != row["rejected"] for row in pairs)
    run = kdhub.distill(
        {"task": "causal-lm", "method": "dpo", "student": weak,
         "data": {"train": [{"source": f"feedback:{data}", "options": feedback}]},
         "options": {"max_steps": 2, "batch_size": 8, "precision": "float32"},
         "evaluation": {"data": [data], "metrics": ["accuracy"], "cost": False}},
        out=tmp_path / "dpo")  # fmt: skip
    (used,) = [d for d in run.provenance["data"]["use"] if d["use"] == "train"]
    assert used["rows"] == len(pairs) and used["from"]["teacher"] != used["from"]["student"]
    card = (tmp_path / "dpo" / "README.md").read_text()
    assert "- kdhub-elicitation:feedback" in card and "- kdhub-algorithm:rank-optimisation" in card
