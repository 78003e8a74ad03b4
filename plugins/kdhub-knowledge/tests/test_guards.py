"""HarmAug: the loss, the accounting of what models write, pairs in order, and what a guard gains."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from kdhub_knowledge.guards.data import sides_of
from kdhub_knowledge.guards.harmaug import OUTCOMES, WITHHELD, Sorter, harmaug, refused
from kdhub_knowledge.guards.word_lm import OPENER
from kdhub_knowledge.guards.words import Near, words
from kdhub_knowledge.methods.harmaug import HarmAug, losses
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.openai import OpenAI

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals
from kdhub.testing.server import serving

FEW = {"positives": 12, "negatives": 60, "others": 120, "validation": [10, 30], "test": [60, 180]}
DATA = {"options": {**FEW, "options": {"rows": 1600}}}
LM = {"source": "word-ngrams:scarce:reports", "split": "others", **DATA}


# -- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_specification():
    s = torch.tensor([[0.2, 1.0]], requires_grad=True)
    y, c = torch.tensor([1]), torch.tensor([0.9])
    ce, kl = losses(s, y, c)
    assert (2 * ce).item() == pytest.approx(0.371101, abs=1e-6) and (2 * kl).item() == pytest.approx(0.126018, abs=1e-6)
    (ce + kl).sum().backward()
    assert (ce + kl).item() == pytest.approx(0.248559, abs=1e-6)
    assert (ce + kl).item() == pytest.approx(0.411101 - 0.162541, abs=2e-6), "CE to the mixed target, less its entropy"
    assert s.grad.tolist()[0] == pytest.approx([0.260026, -0.260026], abs=1e-6)


def test_ends_of_lambda_and_of_the_soft_label():
    s = torch.tensor([[0.2, 1.0], [0.2, 1.0]])
    (ce, none), (other, _) = (
        losses(s, torch.tensor([1, 0]), torch.tensor([0.9, 0.1]), 0.0),
        losses(s, torch.tensor([1, 0]), torch.tensor([0.9, 0.1]), 1.0),
    )
    assert none.tolist() == other.tolist() == [0, 0] and ce[0].item() == pytest.approx(0.371101, abs=1e-6)
    hard = losses(s, torch.tensor([1, 0]), torch.tensor([1.0, 0.0]))
    assert torch.allclose(sum(hard), ce) and torch.isfinite(sum(hard)).all(), "KL is CE where c is 0 or 1"
    without = losses(s, torch.tensor([1, 0]), torch.tensor([float("nan")] * 2))
    assert torch.allclose(without[0], ce) and not without[1].any(), "no soft label: CE alone"


def test_a_row_without_a_label_has_the_teachers():
    method = HarmAug(HarmAug.Options(threshold=0.8))
    s, z = torch.tensor([[0.2, 1.0], [0.5, 0.1]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    at = lambda *labels: method.objective(  # noqa: E731
        Signals(logits=s), Signals(logits=z), {"labels": torch.tensor(labels)}, Progress(0, 1, 0)
    )
    assert at(-1, -1) == at(0, 1), "c is .73 and .88, the threshold .8"
    assert at(-1, -1) != at(1, 1)


def test_the_rate_rises_for_some_steps_and_falls_to_0():
    method = HarmAug(HarmAug.Options(warmup_steps=4))
    rates = [method.learning_rate(step, 12) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1, 1] and rates[12] == 0 and all(a > b for a, b in pairwise(rates[4:]))
    assert method.learning_rate(0, 4) == 0.5, "at most half of the steps"


# -- what models write --------------------------------------------------------------------------------------------


def test_near_is_what_comparing_all_says():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(1, 7))) for _ in range(300)]
    for threshold in (0.5, 0.8, 1.0):
        near, so_far = Near(threshold), []
        for text in texts:
            mine, sets = set(words(text)), [set(words(t)) for t in so_far]
            truth = any(mine == s or len(mine & s) / len(mine | s) > threshold + 1e-12 for s in sets)
            assert (text in near) == truth, (threshold, text)
            near.add(text)
            so_far.append(text)
    assert "a b c d e" not in Near(0.8, ["a b c d"]), "4 of 5 words are not above 0.8"
    assert words("我们走 now!") == ["我", "们", "走", "now"] and words("?!") == ["?!"]


def test_each_text_has_one_outcome():
    sort = Sorter(OPENER, (r"\bI cannot\b",), 0.8, ["a text that people wrote about lamps"])
    given = [
        "  ",
        OPENER,
        f"{OPENER} the lamp broke",
        "The  lamp broke",
        "I cannot help.",
        "the lamp broke, the lamp broke",
        "a text that people wrote about lamps",
        "a kettle sang",
    ]
    found = [sort(text) for text in given]
    outcomes = ["empty", "empty", "kept", "duplicate", "refused", "near", "copied", "kept"]
    assert [outcome for outcome, _ in found] == outcomes and found[2][1] == "the lamp broke", (
        "the opener is no part of it"
    )


def test_refusals_are_recognised_and_other_texts_are_not():
    yes = [
        "I cannot help with that.",
        "I can’t do this",
        "I'm sorry, but no",
        "As an AI language model, I",
        "I am not able to",
        "Unfortunately I must decline.",
        "I won't write that",
    ]
    assert all(map(refused, yes))
    no = ["She said the kettle cannot boil", "Aid workers left", "Write about a sorry sight", "I can see the lamp"]
    assert not any(map(refused, no))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same requests with and without a beginning of the answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDHUB_HOME", str(tmp_path_factory.mktemp("home")))
        yield {
            prefix: harmaug("scarce:reports", generator=LM, n_synthetic=150, prefix=prefix, **DATA)
            for prefix in (OPENER, "")
        }


def test_a_begun_answer_is_not_refused_and_counts_add_up(made):
    rates = {}
    for prefix, data in made.items():
        counts = Counter(data.split("requests")["outcome"])
        assert sum(counts.values()) == 150 and set(counts) <= set(OUTCOMES)
        rows = data.split("train")
        assert len(rows) == counts["kept"] > 0 and set(rows["text_pair"]) == {""}
        assert not any(OPENER in text or refused(text) for text in rows["text"])
        rates[prefix] = counts["refused"] / 150
    assert rates[OPENER] < 0.15 and rates[""] > 0.7


def test_rows_are_withheld_unless_somebody_says_otherwise(made):
    assert made[OPENER].withheld == WITHHELD and made[OPENER].with_options(limit=3).withheld == WITHHELD
    assert harmaug("scarce:reports", generator=LM, release_text=True, **DATA).withheld == ""


def said(path, body) -> dict:
    """It goes on with the answer that was begun; asked for a verdict it has one, unless the text is about rain."""
    last = body["messages"][-1]
    number = Counter(message["content"] for message in body["messages"]).total() + body.get("seed", 0)
    choice = {
        "finish_reason": "stop",
        "message": {"content": f"lamp number {number} fell" if last["role"] == "assistant" else "safe"},
    }
    if body.get("top_logprobs") and "rain" not in last["content"]:
        listed = [{"token": t, "logprob": p} for t, p in ((" Safe", -1.2), ("un", -0.5), ("safe", -2.0), ("the", -3.0))]
        choice["logprobs"] = {"content": [{"token": "un", "logprob": -0.5, "top_logprobs": listed}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@pytest.fixture
def server(monkeypatch, home):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def test_over_a_server_the_beginning_is_the_last_message(server):
    model = {"source": "openai:toy", "prefill": "continue_final_message"}
    data = harmaug("scarce:reports", generator=model, responder=model, n_synthetic=3, **DATA)
    rows = data.split("train")
    assert len(rows) == 9 and Counter(rows["made"]) == {"instruction": 3, "refusing": 3, "complying": 3}
    asked = [body for body in server.bodies if body["messages"][-1]["content"] == OPENER]
    assert len(asked) == 3 and all(body["continue_final_message"] and body["stop"] == ["\n"] for body in asked)
    assert all(r["text_pair"].startswith("I'm sorry, but lamp") for r in rows if r["made"] == "refusing")
    with pytest.raises(CompatibilityError, match=r"openai:toy.*prefix="):
        harmaug("scarce:reports", generator="openai:toy", n_synthetic=1, **DATA).split("train")


def test_a_language_model_guards_by_its_verdict_tokens(server):
    teacher = {
        "source": "prompted",
        "model": "openai:toy",
        "classes": ["0", "1"],
        "words": ["safe", "unsafe"],
        "read": "verdict",
    }
    guard = kdhub.open_teacher(teacher, "text-pairs")
    rows = [{"sentence1": "a lamp", "sentence2": ""}, {"sentence1": "rain", "sentence2": ""}]
    examples = guard.task.preparer(None, guard)(rows)
    logits = guard.signals(examples[:1], "logits")["logits"][0]
    p = np.exp([np.logaddexp(-1.2, -2.0), -0.5])
    assert np.exp(logits) == pytest.approx(p / p.sum(), abs=1e-6), "the softmax of the two verdicts"
    with pytest.raises(kdhub.errors.TeacherError, match="top_logprobs"):
        guard.signals(examples[1:], "logits")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": None}, "needs a model"),
        ({"n_synthetic": 0}, "n_synthetic=0"),
        ({"dedupe_jaccard": 0}, "dedupe_jaccard=0"),
        ({"refusals": ["("]}, "regular expressions"),
        ({"responses": "all"}, "responses='all'"),
        ({"labeller": "path:nowhere", "threshold": 1}, "threshold=1"),
        ({"template": "nothing"}, "{topic}"),
        ({"answers": {"top_p": 0.5}}, "top_p=0.5"),
        ({"exemplars": 13}, "there are 12"),
    ],
)
def test_bad_options_are_named(made, changes, words):
    with pytest.raises((UsageError, DataError, CompatibilityError)) as error:
        harmaug("scarce:reports", **{"generator": LM, "n_synthetic": 5, **DATA, **changes}).split("train")
    assert words in str(error.value)


def test_one_class_and_too_few_rows_are_refused(home, tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text('{"text": "a", "label": "0"}\n{"text": "b", "label": "0"}\n')
    with pytest.raises(DataError, match="two classes.*there are 1: 0"):
        harmaug(f"jsonl:{file}", generator=LM, n_synthetic=1).split("train")
    with pytest.raises(DataError, match="texts of mishap, and 2710 are needed"):
        kdhub.open_data("scarce:reports", options={**FEW, "others": 2628, "options": {"rows": 400}}).split("test")


# -- guards -------------------------------------------------------------------------------------------------------


def test_scarce_splits_share_nothing_and_the_seed_changes_labels_alone(home):
    splits = {seed: kdhub.open_data("scarce:reports", options={**DATA["options"], "seed": seed}) for seed in (0, 1)}
    texts = {s: set(splits[0].split(s)["text"]) for s in ("train", "others", "unlabelled", "validation", "test")}
    assert all(not texts[a] & texts[b] for a in texts for b in texts if a < b)
    assert not texts["test"] & set(splits[0].split("teacher")["text"])
    assert Counter(splits[0].split("train")["label"]) == {"mishap": 12, "fine": 60}
    assert splits[0].fingerprint("test") == splits[1].fingerprint("test")
    assert splits[0].fingerprint("train") != splits[1].fingerprint("train")
    edited = splits[0].split("edited")
    assert len(edited) == 12 * 24 and set(edited["label"]) == {"mishap"}


def test_order_of_prompt_and_response_counts_and_no_response_is_an_empty_text(home, tmp_path):
    assert sides_of({"prompt": "a", "response": None}) == ("a", "") and sides_of({"text": "a", "text_pair": "b"}) == (
        "a",
        "b",
    )
    task = kdhub.open_task("text-pairs")
    guard = kdhub.open_student({"source": "ngrams:2", "buckets": 4096}, "text-pairs", facts={"classes": ["0", "1"]})
    torch.nn.init.normal_(guard.module.table.weight)
    prepare = task.preparer(guard, None)
    rows = [
        {"sentence1": a, "sentence2": b}
        for a, b in (("go on", "stop it"), ("stop it", "go on"), ("go on", ""), ("", ""))
    ]
    given = guard.signals(prepare(rows), "logits")["logits"]
    assert not np.allclose(given[0], given[1]) and not np.allclose(given[0], given[2]) and not given[3].any()
    guard.save(tmp_path)
    assert np.array_equal(task.load(tmp_path).signals(prepare(rows), "logits")["logits"], given)


def test_unknown_settings_are_refused_by_the_counted_model(home):
    model = kdhub.open_teacher(LM, "causal-lm")
    with pytest.raises(CompatibilityError, match=r"log_probs=True.*"):
        model.layout(Generation(log_probs=True).kind)


def test_rows_that_a_model_wrote_help_where_positives_are_scarce(home, tmp_path):
    guard = {
        "source": "recipe:harmaug-guard",
        "set": {"options.max_steps": 60, **{f"data.train.0.options.{k}": v for k, v in FEW.items()}},
    }
    few = {"source": "scarce:reports", **DATA}
    made = {
        "source": "harmaug:scarce:reports",
        "options": {"generator": LM, "labeller": guard, "n_synthetic": 150, **DATA},
    }
    scores = {}
    for name, train in (("kd", [few]), ("harmaug", [few, made])):
        recipe = {
            "task": "text-pairs",
            "method": "harmaug",
            "teacher": guard,
            "student": {"source": "ngrams:1", "buckets": 4096},
            "sampler": "balanced",
            "data": {"train": train},
            "options": {"lr": 0.05, "batch_size": 32, "max_steps": 40, "warmup_steps": 0, "precision": "float32"},
            "evaluation": {"data": [{**few, "split": "test"}], "metrics": ["auprc"], "cost": False, "curve": 0},
        }
        report = kdhub.distill(recipe, out=tmp_path / name).report
        scores[name] = next(m["value"] for m in report["measures"] if m["subject"] == "student")
    assert scores["harmaug"] > scores["kd"] + 0.1
