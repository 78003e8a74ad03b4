"""A language model behind a template and a parser as the teacher of another task, over a real server of our own."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from kdhub_tasks.classification import tiny
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.prompted import Prompted, read_class, read_probabilities, read_verdict
from pydantic import ValidationError

import kdhub
from kdhub.errors import TeacherError, UsageError
from kdhub.rows import Rows
from kdhub.signals.store import SignalStore, row_key, row_keys
from kdhub.signals.stored import stored_signals
from kdhub.testing.server import serving

CONCURRENCY = 4
TEMPLATE = "good or bad? {text}"
GOOD = set(tiny.WORDS["good"])


def said(path, body) -> dict:
    """It knows the words of the tiny texts; asked about a text with `quite`, it does not say."""
    prompt = body["messages"][-1]["content"]
    text = prompt.removeprefix("good or bad? ").split()
    reply = "Hard to say." if "quite" in text else "Good." if GOOD & set(text) else "It is bad"
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return {"choices": [{"finish_reason": "stop", "message": {"content": reply}}], "usage": usage}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def recipe_teacher() -> dict:
    model = {"source": "openai:toy", "input_price": 1.0, "output_price": 10.0, "concurrency": CONCURRENCY}
    return {"source": "prompted", "model": model, "template": TEMPLATE, "classes": ["bad", "good"]}


def recipe(folder: Path, **changes) -> dict:
    made = tiny.text_recipe(folder)
    options = {"epochs": 2, "lr": 1e-2, "alpha": 1.0, "precision": "float32"}
    more = {"method": "kd", "task": "text-classification", "on_bad_rows": "skip", "options": options}
    return {**made, **more, "teacher": {**recipe_teacher(), **changes}}


# -- replies ------------------------------------------------------------------------------------------------------


def test_a_reply_counts_only_if_it_names_one_class():
    words = ["safe", "not safe"]
    assert [read_class(text, words) for text in ("Safe.", "It is NOT SAFE", "unsafe", "safe or not safe", "")] == [
        0, 1, None, None, None,
    ]  # fmt: skip
    assert read_probabilities('{"safe": 0.2, "unsafe": 0.8}', ["safe", "unsafe"]).tolist() == [0.2, 0.8]
    assert read_probabilities("safe: 25%\nunsafe: 75%", ["safe", "unsafe"]).tolist() == [0.25, 0.75]
    for text in ("safe: 0.2", "safe: 0.9, unsafe: 0.9", "safe 0.1 or safe 0.2, unsafe 0.8"):
        assert read_probabilities(text, ["safe", "unsafe"]) is None


def test_replies_become_the_tasks_own_signal():
    def read(*replies, **options):
        return Prompted("", Prompted.Options(**options)).read(replies)

    classes = ["bad", "good"]
    np.testing.assert_allclose(np.exp(read("good", classes=classes)), [0.05 / 1.1, 1.05 / 1.1])
    np.testing.assert_allclose(np.exp(read("good", "bad", "?", "good", classes=classes)), [1.05 / 3.1, 2.05 / 3.1])
    np.testing.assert_allclose(np.exp(read("+", classes=classes, words=["-", "+"], smoothing=1)), [1 / 3, 2 / 3])
    given = read("bad 0.3, good 0.7", "bad: 0.1 good: 0.9", classes=classes, read="probabilities")
    np.testing.assert_allclose(np.exp(given), [0.2, 0.8])
    assert read("4/5", "3", "very", scale=[0, 5]).tolist() == [3.5] and read("7", scale=[0, 5]) is None
    for wrong in ({"classes": ["a"]}, {"classes": ["a", "b"], "words": ["a"]}, {"scale": [1, 1]}):
        with pytest.raises(ValidationError, match=r"must be .*=\["):
            Prompted.Options(**wrong)


def test_what_is_missing_is_said(server, tmp_path):
    with pytest.raises(UsageError, match="needs a model"):
        _ = kdhub.open_teacher("prompted", "text-classification").prompter
    teacher = kdhub.open_teacher({"source": "prompted", "model": "openai:a", "template": "good?"}, "text-pairs")
    with pytest.raises(
        UsageError, match=r"must contain one of \{input\}, \{sentence1\}, \{sentence2\} \(template='good"
    ):
        teacher.signals([{"pair": ("a", "b")}], "logits")
    other = kdhub.open_teacher({"source": "prompted", "model": "openai:a"}, "text-pairs")
    other.signals([{"pair": ("a {low}", "b")}], "logits")
    prompt = server.bodies[-1]["messages"][-1]["content"]
    assert prompt.startswith("Sentence1: a {low}\n\nSentence2: b\n\nHow similar") and "from 0 (not" in prompt


# -- runs ---------------------------------------------------------------------------------------------------------


def test_a_black_box_is_measured_as_its_student_on_the_rows_that_it_answers(server, tmp_path):
    made = recipe(tmp_path)
    rows = {name: [json.loads(x) for x in (tmp_path / f"{name}.jsonl").open()] for name in ("train", "test")}
    unread = {name: sum("quite" in row["text"].split() for row in some) for name, some in rows.items()}
    assert all(unread.values())
    run = kdhub.distill(made, out=tmp_path / "run")
    accuracy = {m["subject"]: m for m in run.report["measures"] if m["metric"] == "accuracy"}
    assert accuracy["teacher"]["value"] == 1.0 and set(accuracy) == {"teacher", "student-before", "student"}
    assert {m["examples"] for m in accuracy.values()} == {32 - unread["test"]}, "all subjects on the same rows"
    assert run.provenance["rows"]["train"]["rows"] == 64 - unread["train"]
    assert run.report["facts"]["unanswered"] == {"data.train": unread["train"], "test.jsonl train": unread["test"]}
    spent = run.provenance["spent"]["logits"]
    assert spent == {
        "requests": 96, "answers": 96, "prompt_tokens": 960, "completion_tokens": 192, "cost": 0.00288
    }  # fmt: skip
    card = (run.folder / "README.md").read_text()
    assert "distilled from `toy`" in card and "960 prompt tokens" in card and "no readable answer" in card
    assert run.provenance["teacher"]["prompted"]["template"] == TEMPLATE
    kdhub.distill({**made, "seed": 1}, out=tmp_path / "again")
    assert len(server.bodies) == 96, "nothing is asked twice"


def test_an_answer_that_cannot_be_read_stops_a_run_unless_it_says_otherwise(server, tmp_path):
    with pytest.raises(
        TeacherError, match=r"data\.train: .* no readable answer for \d+ of 64 rows \(row \d+\)"
    ) as caught:
        kdhub.distill({**recipe(tmp_path), "on_bad_rows": "stop"}, out=tmp_path / "run")
    assert "on_bad_rows: skip" in caught.value.hint and len(server.bodies) == 64
    with pytest.raises(TeacherError, match="64 of 64"):
        kdhub.distill(recipe(tmp_path, words=["no", "yes"]), out=tmp_path / "other")


def test_a_student_folder_is_measured_against_it_on_the_same_rows(server, tmp_path):
    made = recipe(tmp_path)
    (tmp_path / "r.yaml").write_text(json.dumps({**made, "options": {**made["options"], "max_steps": 1}}))
    run = kdhub.distill(tmp_path / "r.yaml", out=tmp_path / "run")
    report = kdhub.evaluate(run.folder)
    assert {m.examples for m in report.measures if m.metric == "accuracy"} == {
        m["examples"] for m in run.report["measures"] if m["metric"] == "accuracy"
    }


def texts(n: int) -> list[str]:
    return [f"row {i} {'fine' if i % 3 else 'poor'}" for i in range(n)]


def fill(n: int) -> dict[str, list]:
    """The signals of a prompted teacher for some texts, through the store."""
    teacher = kdhub.open_teacher(recipe_teacher(), "text-classification")
    table = datasets.Dataset.from_dict({"text": texts(n)})
    stored = stored_signals(teacher, Rows.build(table, teacher.task.preparer(None, teacher), row_key), "logits")
    return {name: values.tolist() for name, values in stored[np.arange(n)].items()}


def stores(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes() for path in sorted((home / "signals").rglob("*.safetensors"))
    }


def prompt_of(text: str) -> str:
    return f"good or bad? {text}"


def answered(home: Path, n: int) -> set[str]:
    """The prompts whose answers are in the store."""
    prompts = [prompt_of(text) for text in texts(n)]
    found = set()
    for folder in (home / "signals").glob("*"):
        if (store := SignalStore.load(folder)).key["signal"].startswith("text:"):
            at = store.locate(row_keys(f"{prompt}\0{0}".encode() for prompt in prompts))
            found |= {prompt for prompt, position in zip(prompts, at) if position >= 0}
    return found


def killed_and_resumed(server, folder: Path, monkeypatch, n: int, times: int, how: int = signal.SIGKILL) -> None:
    """Stopped so often while it asks: the bytes of an undisturbed store, and no prompt is asked again whose answer was
    stored. What is lost with a kill are the requests under way, and answers that came but were not stored yet: no more
    than are in flight at once. An interrupt (Ctrl-C) waits for them, so that nothing is lost."""
    home, asked = folder / "killed", []
    monkeypatch.setenv("KDHUB_HOME", str(home))
    # where tests run in the background, children ignore interrupts
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_path(sys.argv[1])['fill'](int(sys.argv[2]))"
    server.delay, rng, known, lost = 0.01, random.Random(0), set(), 0
    paid = 0  # of those lost, by how many the server had answered in full before the kill

    def settled() -> list[str]:
        """The prompts of this stage, none of whose answers were stored before."""
        seen = -1
        while server.now or seen < len(server.bodies):  # a request of a child that is gone may still come
            seen = len(server.bodies)
            time.sleep(0.05)
        new = [body["messages"][-1]["content"] for body in server.bodies[len(asked) :]]
        asked.extend(new)
        assert len(set(new)) == len(new) and not known & set(new), "asked again"
        return new

    for number in sorted(rng.sample(range(1, n - CONCURRENCY), times)):
        child = subprocess.Popen([sys.executable, "-c", code, __file__, str(n)], stderr=subprocess.PIPE, text=True)
        while len(server.answered) < number:
            assert child.poll() is None, child.communicate()
            time.sleep(0.002)
        done = {body["messages"][-1]["content"] for body in server.answered}
        child.send_signal(how)
        child.communicate()
        new, before = settled(), known
        known = answered(home, n)
        assert before <= known and known - before <= set(new) and len(new) - len(known - before) <= CONCURRENCY
        lost += len(new) - len(known - before)
        paid += len((done & set(new)) - known)
    server.delay = 0.0
    given = fill(n)
    assert sorted(settled()) == sorted({prompt_of(text) for text in texts(n)} - known), "exactly what was missing"
    assert not lost or how == signal.SIGKILL
    assert len(asked) == n + lost and answered(home, n) == set(asked)
    print(f"{n} prompts, {times} kills: {len(asked)} requests, {lost} lost with the kills, {paid} of them answered")
    killed = stores(home)
    monkeypatch.setenv("KDHUB_HOME", str(folder / "undisturbed"))
    assert fill(n) == given and stores(folder / "undisturbed") == killed and len(killed) > n


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_stopped_while_asking_it_asks_only_for_the_rest_and_gives_the_same_bytes(server, tmp_path, monkeypatch, how):
    killed_and_resumed(server, tmp_path, monkeypatch, n=40, times=1, how=how)


@pytest.mark.slow
def test_two_thousand_prompts_killed_at_twenty_moments(server, tmp_path, monkeypatch):
    killed_and_resumed(server, tmp_path, monkeypatch, n=2000, times=20)


def test_a_verdict_is_the_softmax_of_the_words_first_tokens():
    words = ["safe", "unsafe"]
    p = np.exp(read_verdict({" Safe": -1.0, "safe": -2.0, "un": -0.5, "s": -4.0, "the": -3.0}, words))
    mass = np.array([np.exp(-1.0) + np.exp(-2.0) + np.exp(-4.0), np.exp(-0.5)])
    assert p == pytest.approx(mass / mass.sum())
    lone = np.exp(read_verdict({"safe": -0.1, "the": -5.0}, words))
    assert lone[1] == pytest.approx(np.exp(-5.0) / (np.exp(-5.0) + np.exp(-0.1))), "at most the least probable token"
    assert read_verdict({"the": -0.1, " ": -0.2}, words) is read_verdict({}, words) is None
    with pytest.raises(ValidationError, match="for read=verdict classes must be named"):
        Prompted.Options(read="verdict")
