"""Commonsense graphs: the numbers of the method, what is asked and read, and the chain on a closed world."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from kdhub_knowledge.commonsense import comet, critic, writing
from kdhub_knowledge.commonsense.language import HERE, Language, open_language
from kdhub_knowledge.commonsense.rows import cleaned, fault_of, plain_tail, split_by_event
from kdhub_knowledge.commonsense.world import is_valid, labelled_rows, valid_tails, world
from kdhub_knowledge.methods.critic import Critic, precision_at
from kdhub_knowledge.methods.critic_filter import CriticFilter
from kdhub_tasks.language.generation import Answer
from kdhub_tasks.language.replies import Tally

import kdhub
from kdhub.errors import AwaitingError, DataError, PublishError, RecipeError, TeacherError, UsageError
from kdhub.method import Progress
from kdhub.recipes.chain import resolve_recipe, resolved
from kdhub.recipes.resolve import Resolver
from kdhub.testing.server import serving

ROOT = Path(__file__).parents[3]
LABELS, SCORES = [True] * 4 + [False] * 2, [0.9, 0.8, 0.6, 0.3, 0.7, 0.2]
RELATIONS = list(world().frames)


@pytest.fixture
def jsonl(tmp_path):
    def write(rows, name="rows.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"jsonl:{tmp_path / name}"

    return write


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_the_prior_is_a_bias():
    assert critic.bias_of(0.77) == pytest.approx(1.208311, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "recall", "limit", "left"),
    [
        ("recall_at_most", 0.8, 0.6, {0.9, 0.8, 0.7}),
        ("recall_at_most", 0.5, 0.7, {0.9, 0.8}),
        ("recall_at_least", 0.8, 0.3, {0.9, 0.8, 0.6, 0.3, 0.7}),
        ("recall_at_least", 0.5, 0.8, {0.9, 0.8}),
    ],
)
def test_thresholds_of_the_validation_curve(rule, recall, limit, left):
    found = critic.threshold(np.array(LABELS), np.array(SCORES), recall, rule)
    passes = critic.kept(np.array(SCORES), found, rule)
    assert found == limit and set(np.array(SCORES)[passes]) == left


def test_thresholds_on_any_curve():
    """A higher recall keeps a superset; what is reached is never above, or never below, the recall asked for."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels, scores = rng.random(20) < 0.6, rng.integers(0, 12, 20) / 12
        labels[scores.argmax()] = False
        if not labels.any():
            continue
        for rule in ("recall_at_most", "recall_at_least"):
            kept = [critic.kept(scores, critic.threshold(labels, scores, r, rule), rule) for r in (0.5, 0.6, 0.8, 0.9)]
            assert all((a <= b).all() for a, b in zip(kept, kept[1:]))
            reached = [k[labels].mean() for k in kept]
            good = [a <= r if rule == "recall_at_most" else a >= r for a, r in zip(reached, (0.5, 0.6, 0.8, 0.9))]
            assert all(good), (rule, reached)


def test_thresholds_that_are_none():
    with pytest.raises(DataError, match=r"3 of 3 valid rows share the top score 0.5"):
        critic.threshold([True, True, True, False], [0.5] * 4, 0.8)
    with pytest.raises(DataError, match="none of the 2 validation rows is valid"):
        critic.threshold([False, False], [0.1, 0.2], 0.8)
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        critic.threshold([True, False], [np.nan, 0.2], 0.8)
    assert critic.threshold([True, True, False], [0.5] * 3, 0.8, "recall_at_least") == 0.5


def test_intervals_of_a_share():
    """Wilson's, of 8 of 10, as in any table; never beyond 0 and 1, where Wald's is a point."""
    assert critic.interval(8, 10) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))
    assert critic.interval(0, 20) == (0.0, pytest.approx(0.161125, abs=1e-6))
    assert critic.interval(20, 20) == (pytest.approx(0.838875, abs=1e-6), 1.0) and critic.interval(0, 0) == (0, 1)


def test_areas_and_precision():
    assert critic.area(LABELS, SCORES) == 6.0 / 8 and critic.area([True], [0.1]) is None
    assert precision_at(np.array(LABELS), np.array(SCORES), 0.5) == 1.0
    assert precision_at(np.array(LABELS), np.array(SCORES), 0.8) == 0.8


def test_codes_of_people():
    assert [critic.is_valid(code) for code in (2, "1", -1, "-2", -9, "valid", "invalid", "3", "")] == [
        True, True, False, False, False, True, False, None, None,
    ]  # fmt: skip


# -- names and tails --------------------------------------------------------------------------------------------------


def test_names_go_in_and_come_out_as_whole_words():
    en = open_language("en")
    text = "PersonX gives PersonY PersonX's hat, says PersonXavier"
    assert en.with_names(text, ("Alex", "Chris")) == "Alex gives Chris Alex's hat, says PersonXavier"
    assert en.without_names("Alex meets Alexander and Christine, not Chris", ("Alex", "Chris")) == (
        "PersonX meets Alexander and Christine, not PersonY"
    )
    for n in range(200):
        names = en.drawn_names(random.Random(n), text)
        assert names[0] != names[1] and en.without_names(en.with_names(text, names), names) == text
    assert en.free_names("PersonX calls Alex") == ("Chris", "Avery"), "a name in the event is nobody else's"


def test_tails_are_cleaned_and_dropped_by_reason():
    en, tally = open_language("en"), Tally()
    assert [plain_tail(t, en, ("Alex", "Chris")) for t in (" to sleep.", "hug Chris", " a. b.")] == [
        "to sleep", "hug PersonY", "a. b",
    ]  # fmt: skip
    faults = {"": "empty", "None": "nothing", "I'm sorry, but I can't": "refusals", '{"tail": "to': "not a phrase"}
    assert {text: fault_of(text, en) for text in (*faults, "ok", "fun")} == {**faults, "ok": "too short", "fun": None}
    head = {"head": "PersonX eats", "relation": "xWant"}
    rows = [{**head, "tail": "sleep."}, {**head, "tail": " sleep"}, {**head, "tail": "none"}]
    assert list(cleaned(rows, en, tally)) == [{**head, "tail": "sleep"}] and tally == {"repeated": 1, "nothing": 1}


def test_no_event_is_in_two_splits():
    heads = [f"event {n}" for n in range(50)]
    where = split_by_event([*heads, *heads], (0.8, 0.1, 0.1), 0)
    assert Counter(where.values()) == {"train": 40, "validation": 5, "test": 5}
    assert where == split_by_event(heads[::-1], (0.8, 0.1, 0.1), 0) != split_by_event(heads, (0.8, 0.1, 0.1), 1)
    with pytest.raises(UsageError, match=r"shares must be .* \(shares=\[0.8, 0.1, 0.2\]\)"):
        split_by_event(heads, (0.8, 0.1, 0.2), 0)


# -- prompts ----------------------------------------------------------------------------------------------------------


class Replies:
    """In place of a `Prompter`: the same replies to every prompt, and the prompts."""

    def __init__(self, *texts, ended=True):
        self.replies, self.asked = [Answer(text, ended) for text in texts], []

    def __call__(self, prompts, samples=1):
        self.asked += prompts
        return [self.replies for _ in prompts]


def test_events_are_asked_for_by_a_list_and_read(tmp_path):
    en, tally = open_language("en"), Tally()
    replies = Replies(" PersonX rows a boat", " The weather is fine", "", " PersonX rows a boat", " PersonX eats → all")
    given = writing.events(replies, en, tally, seeds=en.events.seeds, prompts=2, samples=5, shown=10)
    assert list(given) == [{"head": "PersonX rows a boat"}]
    assert tally == {"repeated": 4, "not an event": 2, "empty": 2, "odd characters": 1}
    assert replies.asked[0] != replies.asked[1] and replies.asked[0].endswith("\n\n11. Event:")
    assert all(
        line.startswith(f"{n}. Event: PersonX ") for n, line in enumerate(replies.asked[0].split("\n\n")[:10], 1)
    )
    unfinished = Tally()
    assert not list(
        writing.events(Replies(" PersonX is", ended=False), en, unfinished, seeds=["a"], prompts=1, samples=1)
    )
    assert unfinished == {"unfinished": 1}


def test_tails_are_asked_for_by_a_sentence_with_names():
    en, tally = open_language("en"), Tally()
    replies = Replies(" to thank Chris.", " to thank Chris", " None.")
    row = {"head": "PersonX meets PersonY", "by": "us"}
    assert list(writing.tails(replies, en, [row], tally, relations=["xWant"], samples=3, shown=2)) == [
        {**row, "relation": "xWant", "tail": "to thank PersonY"}
    ]
    assert tally == {"repeated": 1, "nothing": 1}
    task, *examples, open_ = replies.asked[0].split("\n")
    assert (
        task == en.relations["xWant"].task and open_ == "Alex meets Chris. Now Alex would like" and len(examples) == 2
    )
    assert all(line.endswith(".") and "Person" not in line for line in examples)
    assert en.pair({**row, "relation": "xWant", "tail": "to go"}, ("Ann", "Bo")) == (
        "Ann meets Bo",
        "so Ann wants to go",
    )


def test_a_language_is_a_file(tmp_path):
    import yaml

    plain = yaml.safe_load((HERE / "en.yaml").read_text())

    def opened(**changes):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump({**plain, **changes}))
        return open_language(str(path))

    without = {"xWant": {k: v for k, v in plain["relations"]["xWant"].items() if k != "sentence"}}
    with pytest.raises(DataError, match=r"relations.xWant.sentence: Field required"):
        opened(relations=without)
    with pytest.raises(UsageError, match="no template of the relation 'xwant'") as refused:
        open_language("en").chosen(["xwant"])
    assert "xWant" in refused.value.hint
    with pytest.raises(UsageError, match="there is no language 'klingon'"):
        open_language("klingon")
    zh = opened(language="zh", spaces=False, persons=["某甲", "某乙"], target=["小明", "小红"], stop="。")
    assert zh.without_names("小明和小红吃饭", zh.target) == "某甲和某乙吃饭", "no spaces around names"
    assert isinstance(zh, Language)


def test_seeds_without_events_and_a_teacher_without_answers_are_refused(jsonl):
    seeds = jsonl([{"head": "the sun rises"}, {"head": "PersonX wakes up"}])
    with pytest.raises(DataError, match="1 of 2 seeds are no events, the first of them 'the sun rises'"):
        kdhub.open_data({"source": "heads:en", "options": {"teacher": "closed-world", "seeds": seeds}})
    with pytest.raises(UsageError, match=r"prompts must be at least 1 \(prompts=0\)"):
        kdhub.open_data({"source": "heads:en", "options": {"teacher": "closed-world", "prompts": 0}})
    heads = jsonl([{"head": "PersonX flies to Mars"}])
    with pytest.raises(TeacherError, match="0 rows, 70 replies dropped: 70 empty"):
        kdhub.open_data({"source": f"triples:{heads}", "options": {"teacher": "closed-world"}}).split("train")


# -- the closed world -------------------------------------------------------------------------------------------------


def test_the_world_is_closed_and_its_teacher_errs_as_often_as_it_says(jsonl):
    assert len(world().events) == 144 and all(len(valid_tails(h, r)) == 6 for h in world().events for r in RELATIONS)
    tails = [t for topic in world().topics for r in RELATIONS for t in world().tails(topic, r)]
    assert len(set(tails)) == 12 * 5 * 6, "no thing is of two topics"
    heads = jsonl([{"head": head, "by": "us"} for head in list(world().events)[:24]])
    for error, low, high in ((0.0, 1, 1), (0.4, 0.4, 0.6), (1.0, 0, 0)):
        options = {"teacher": {"source": "closed-world", "error": error}, "relations": RELATIONS[:2]}
        rows = kdhub.open_data({"source": f"triples:{heads}", "options": options}).split("train")
        assert low <= np.mean([is_valid(row) for row in rows]) <= high and rows[0]["by"] == "us"
        assert len({(r["head"], r["split"]) for r in rows}) == 24
    assert is_valid({"head": "PersonX naps", "relation": "xWant", "tail": ""}) is None


def test_events_of_the_world():
    data = kdhub.open_data({"source": "heads:en", "options": {"teacher": "closed-world", "prompts": 2, "samples": 20}})
    assert 20 < len(set(data.split("train")["head"])) <= 40


# -- the chain --------------------------------------------------------------------------------------------------------


def graph_recipe(rows, jsonl, **options) -> dict:
    source = jsonl(rows)
    return {
        "task": "commonsense-graph",
        "method": "critic-filter",
        "teacher": None,
        "student": "rows",
        "data": {"train": [source], "validation": [{"source": source, "where": {"split": ["train"]}}], "test": []},
        "options": {"scores": "score", **options},
        "evaluation": {"cost": False},
    }


def measures(run) -> dict:
    return {
        (m["metric"], m.get("dataset"), m.get("split"), m["variant"].get("relation", "")): m["value"]
        for m in run.report["measures"]
    }


def test_a_graph_is_filtered_and_measured_by_relation(jsonl, tmp_path, caplog):
    rows = [row for row in labelled_rows() if row["relation"] in ("xWant", "xAttr")]
    for row in rows:  # one relation is scored far lower, whatever is right
        row["score"] -= 0.5 * (row["relation"] == "xAttr")
    graphs = {}
    for recall in ("none", 0.8, 0.5):
        recipe = graph_recipe(rows, jsonl, critic_recall=recall)
        run = kdhub.distill(recipe, out=tmp_path / f"run-{recall}")
        graphs[recall] = [row for split in kdhub.load(run.folder).splits.values() for row in split]
    assert len(graphs["none"]) == len(rows) > len(graphs[0.8]) > len(graphs[0.5])
    assert all(row in graphs[0.8] for row in graphs[0.5]), "a higher recall keeps a superset"
    assert {"head", "relation", "tail", "split", "score", "label"} == set(graphs[0.5][0])
    assert "the relation xAttr all but vanishes: 0 of 8" in caplog.text
    found = measures(run)
    where = "annotated validation"
    assert found["kept-share", "triples", None, "xAttr"] == 0
    assert found["threshold", where, None, "all"] == 0.31 and found["precision", where, None, "all"] == 3 / 5
    assert found["auroc", where, None, "xWant"] == found["auroc-within-relations", where, None, "all"] == 1.0
    assert found["auroc", where, None, "all"] == pytest.approx(27 / 36), "9 of 36 pairs: xAttr valid, xWant not"
    assert found["unique-heads", "its own files", None, "xWant"] == found["triples", "its own files", None, ""]

    own = kdhub.distill(graph_recipe(rows, jsonl, per_relation=True, drop=False), out=tmp_path / "own")
    everything = [row for split in kdhub.load(own.folder).splits.values() for row in split]
    passed = Counter(row["relation"] for row in everything if row["kept"])
    assert len(everything) == len(rows) and min(passed["xWant"], passed["xAttr"]) > 0
    lot = kdhub.distill(graph_recipe(rows, jsonl, critic_recall=0.8, choose="random"), out=tmp_path / "lot")
    assert sum(map(len, kdhub.load(lot.folder).splits.values())) == len(graphs[0.8])


def test_what_no_graph_is_made_of(jsonl, tmp_path):
    rows = labelled_rows()

    def refused(match, rows=rows, edit=lambda recipe: None, error=DataError, **options):
        recipe = graph_recipe(rows, jsonl, **options)
        edit(recipe)
        with pytest.raises(error, match=match) as caught:
            kdhub.distill(recipe, out=tmp_path / f"no-{random.random()}")
        return caught.value

    leak = refused("8 annotated|of test events", edit=lambda r: r["data"]["validation"][0].pop("where"))
    assert leak.rows
    refused("valid rows share the top score", [{**row, "score": 0.5} for row in rows])
    refused("unknown label '7'", [{**row, "label": "7"} for row in rows])
    refused("critic_recall.* is 1.5", error=RecipeError, critic_recall=1.5)
    refused("no column 'split'", [{k: v for k, v in row.items() if k != "split"} for row in rows])
    test = [{"source": jsonl(rows), "where": {"split": ["test"]}}]
    refused("none of the 30 annotated validation rows is of an event", edit=lambda r: r["data"].update(train=test))


def test_scores_are_means_over_draws_of_names(monkeypatch):
    method = CriticFilter(CriticFilter.Options(name_ensemble=3))
    critic_model = type("Critic", (), {"classes": ["invalid", "valid"]})
    run = type("Run", (), {"teachers": {"critic": critic_model}})
    monkeypatch.setattr(method, "_once", lambda run, table, draw, sign: np.array([draw, sign * 1.0]))
    assert method._scores(run, None).tolist() == [1.0, 1.0]


def test_people_annotate_a_sample(jsonl, tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("label", "score")} for row in labelled_rows()]
    recipe = {
        "task": "commonsense-graph", "method": "annotate", "student": "rows", "data": {"train": [jsonl(rows)]},
        "options": {"oracle": "people", "sample": 12, "shares": [0.5, 0.25, 0.25]}, "evaluation": {"cost": False},
    }  # fmt: skip
    with pytest.raises(AwaitingError, match="12 of 12 rows wait"):
        kdhub.distill(recipe, out=tmp_path / "run")
    path = tmp_path / "run" / "annotations.csv"

    def fill(code):
        with open(path, newline="") as file:
            given = list(csv.DictReader(file))
        for row in given:
            row["label"] = code(row)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(given[0]))
            writer.writeheader()
            writer.writerows(given)
        return given

    fill(lambda row: "5")
    with pytest.raises(DataError, match="unknown labels '5'"):
        kdhub.distill(resume=tmp_path / "run")
    given = fill(lambda row: "2" if is_valid(row) else "-9")
    assert all(row["reads"].startswith(row["head"]) for row in given)
    heads = {row["head"] for row in rows if row["split"] == "train"}
    assert {row["head"] for row in given} <= heads, "no test event is shown to anybody"
    run = kdhub.distill(resume=tmp_path / "run")
    labelled = [row for split in kdhub.load(run.folder).splits.values() for row in split]
    valid = sum(is_valid(row) for row in given)
    found = measures(run)
    assert len(labelled) == 12 and found["accepted", "its own files", None, ""] == valid / 12
    assert found["accepted-low", "its own files", None, ""] == critic.interval(valid, 12)[0]

    data = [{**row, "label": "valid"} for row in rows]
    with pytest.raises(DataError, match="all 12 annotated triples are valid"):
        recipe |= {"data": {"train": [jsonl(data)]}, "options": {**recipe["options"], "oracle": "data"}}
        kdhub.distill(recipe, out=tmp_path / "one")


# -- critic and student -----------------------------------------------------------------------------------------------


def test_a_cross_encoder_becomes_a_critic_and_stays_one(jsonl, tmp_path):
    from kdhub_tasks.pairs.model import PairClassifier
    from kdhub_tasks.tiny import tiny_encoder

    rows = jsonl(labelled_rows())
    encoder = tiny_encoder(tmp_path / "encoder", layers=1, hidden=16, plain=True)
    recipe = {
        "task": "text-pairs", "method": "critic", "student": f"path:{encoder}",
        "data": {"train": [f"critic-pairs:{rows}"], "validation": [f"critic-pairs:{rows}"]},
        "options": {"max_steps": 4, "batch_size": 16, "hidden": 8, "lr": 1e-3, "precision": "float32"},
        "evaluation": {"data": [{"source": f"critic-pairs:{rows}"}], "cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    made = PairClassifier.load(run.student_folder)
    assert made.classes == ["invalid", "valid"] and made.module.head[1].out_features == 8
    (logits,) = made.signals([{"pair": ("a", "b"), "length": 2, "by": None}], "logits")["logits"]
    assert logits[0] == 0 and abs(logits[1] - critic.bias_of(0.77)) < 1.0
    (run.student_folder / "wrappers.safetensors").unlink()
    with pytest.raises(kdhub.errors.UntrustedError, match="no weights for its wrappers"):
        PairClassifier.load(run.student_folder)


def test_the_learning_rate_of_a_critic_falls_when_validation_stays():
    """Precision at 80 % recall rises once, then stays: a tenth after `plateau` epochs, nothing after `patience`."""
    method = Critic(Critic.Options(plateau=2, patience=4, lr=1.0, schedule="constant"))
    held = [{"label": 1}, {"label": 1}, {"label": 0}]
    scores = iter([[0.1, 0.2, 0.9], *[[0.8, 0.9, 0.1]] * 9])

    class Student:
        def signals(self, examples, kind):
            return {"logits": np.array([[0.0, s] for s in next(scores)])}

    method._student, method._held = Student(), held
    method._epoch, method._best, method._stale, method._factor = 0, -1.0, 0, 1.0
    found = []
    for epoch in (0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0):
        method.stepped({}, Progress(0, 10, epoch))
        found.append(method.learning_rate(5, 10))
    assert found == [1, 1, 1, 1, 1, pytest.approx(0.1), pytest.approx(0.1), 0, 0]
    again = Critic(method.options)
    again.load_state(method.state())
    assert again.state() == method.state() and method.state()["best"] == 1.0


def test_what_comet_reads_and_writes(jsonl, tmp_path):
    row = {"head": "PersonX eats", "relation": "xWant", "tail": "to sleep"}
    assert comet.as_example(row) == {
        "prompt": "<head> PersonX eats </head> <relation> xWant </relation> [GEN]", "response": " to sleep",
    }  # fmt: skip
    assert comet.tail_of(" to sleep. Then\nmore") == "to sleep"
    recipe = {
        "task": "causal-lm", "method": "symbolic-kd", "student": "comet:width=16,layers=1,heads=2,vocabulary=300",
        "data": {"train": [f"comet:{jsonl(labelled_rows())}"]},
        "options": {"max_steps": 2, "precision": "float32"},
        "evaluation": {
            "data": [{"source": f"comet:{jsonl(labelled_rows())}", "options": {"accepted": True}}], "cost": False,
        },
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    student = kdhub.load(run.folder)
    assert len(student.tokenizer.tokenize(comet.prompt_of(row))[0]) == len("<head>")
    assert "<head> PersonX misses the bus </head>" in student.usage() and not student.module.model.training
    assert 0 <= measures(run)["tails-accepted", recipe["evaluation"]["data"][0]["source"], "train", ""] <= 1


# -- on a hub ---------------------------------------------------------------------------------------------------------

sys.path.insert(0, str(ROOT / "tests"))

from hub import online, served  # noqa: E402, F401  # a hub in a process of its own


def test_a_graph_is_published_pulled_and_verified(hub, tmp_path, monkeypatch):  # noqa: F811
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import load_dataset

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    heads = {"teacher": "closed-world", "prompts": 1, "samples": 20}
    written = {"teacher": "closed-world", "relations": RELATIONS[:2], "shares": [0.7, 0.0, 0.3], "samples": 3}
    recipe = {
        "task": "commonsense-graph", "method": "critic-filter", "teacher": None,
        "student": {"source": "rows", "language": ["en"]}, "options": {"critic_recall": "none"},
        "data": {
            "train": [{"source": "triples:heads:en", "options": {**written, "options": heads}}],
            "validation": [], "test": [],
        },
        "evaluation": {"cost": False},
    }  # fmt: skip
    run = kdhub.distill(recipe, out=tmp_path / "run")
    graph = kdhub.load(run.folder)
    done = kdhub.publish(run.folder, "me/graph", licence="cc0-1.0")
    assert "closed-world" in done.card and "language:\n- en" in done.card
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
    pulled = kdhub.pull("me/graph").folder
    rows = load_dataset(str(pulled), cache_dir=str(tmp_path / "cache"))
    assert {name: rows[name].to_list() for name in rows} == {n: table.to_list() for n, table in graph.splits.items()}
    assert kdhub.verify(str(pulled)).status == "verified"

    file, card = next(pulled.rglob("train*.parquet")), pulled / "README.md"
    was, words = file.read_bytes(), card.read_text()
    table = pq.read_table(file)
    tails = ["something else", *table["tail"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("tail"), "tail", pa.array(tails)), file)
    edited = kdhub.verify(str(pulled))
    assert edited.status == "differs" and any("train" in problem for problem in edited.problems)
    file.write_bytes(was)
    figure = str(sum(map(len, graph.splits.values())))
    assert figure in words
    card.write_text(words.replace(figure, "99999"))
    assert kdhub.verify(str(pulled)).status == "differs"


def test_a_local_language_model_writes_the_same(jsonl, tmp_path):
    """A tiny one with random weights: what it writes is noise, but goes the whole way, with its log-probabilities."""
    from kdhub_tasks.language.students import llama

    from kdhub.student import BuildContext

    (tmp_path / "model").mkdir()
    llama("width=16,layers=1,heads=2,length=1000", BuildContext(None, None, 0)).save(tmp_path / "model")
    heads = jsonl([{"head": f"PersonX does thing {n}"} for n in range(3)])
    options = {
        "teacher": f"path:{tmp_path / 'model'}",
        "relations": ["xWant"],
        "answers": {"log_probs": True, "top_p": 1},
    }
    rows = kdhub.open_data({"source": f"triples:{heads}", "options": options}).split("train").to_list()
    assert rows and all(row["log_prob"] < 0 and row["relation"] == "xWant" for row in rows)


def test_one_seed_for_a_recipe_and_all_that_it_stands_on():
    source = {"source": "comet:recipe:symbolic-kd-graph", "seeds": 3, "set": {"options.critic_recall": 0.8}}
    recipe = resolve_recipe("symbolic-kd", set={"data.train": [source]})
    (ref,) = recipe.data["train"]
    assert ref.source == 'comet:recipe:symbolic-kd-graph@3+?{"options.critic_recall":0.8}'
    graph = resolved(ref.source.removeprefix("comet:"), Resolver())
    assert graph.seed == 3 and graph.options["critic_recall"] == 0.8
    assert graph.teachers["critic"].source == "recipe:symbolic-kd-critic@3+"
    assert resolved("recipe:symbolic-kd-graph@3", Resolver()).teachers["critic"].source == "recipe:symbolic-kd-critic"


# -- behind an API ----------------------------------------------------------------------------------------------------

CONCURRENCY = 4


def said(path, body) -> dict:
    """Some tails, by the prompt alone; a refusal, half a JSON and nothing among them."""
    prompt = body["messages"][-1]["content"]
    number = sum(map(ord, prompt))
    text = ["I'm sorry, I can't say that.", '{"tail": "to', "", "None", f" to see thing {number}."][min(number % 20, 4)]
    usage = {"prompt_tokens": 50, "completion_tokens": 5}
    return {"choices": [{"finish_reason": "stop", "message": {"content": text}}], "usage": usage}


def api_recipe(folder: Path, prompts: int) -> Path:
    """A recipe of a graph that asks so many prompts, in a file."""
    relations = list(open_language("en").relations)[:5]
    heads = [{"head": f"PersonX does the {n}th thing"} for n in range(prompts // 5)]
    (folder / "heads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heads))
    teacher = {"source": "openai:toy", "concurrency": CONCURRENCY, "terms": "nothing that competes"}
    options = {"teacher": teacher, "relations": relations, "samples": 1}
    made = {
        "schema": 1, "task": "commonsense-graph", "method": "as-data", "student": "rows",
        "data": {"train": [{"source": f"triples:jsonl:{folder / 'heads.jsonl'}", "options": options}]},
        "options": {"split_by": "split"}, "evaluation": {"cost": False},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(made))
    return folder / "recipe.yaml"


def parquets(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.mark.parametrize(("prompts", "kills"), [(60, 1), pytest.param(2000, 20, marks=pytest.mark.slow)])
def test_a_graph_from_an_api_killed_and_resumed(tmp_path, monkeypatch, prompts, kills, caplog):
    """The bytes of an undisturbed graph; what the server answers twice are requests that were under way at a kill."""
    recipe = api_recipe(tmp_path, prompts)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "killed"))
        server.delay, run = 0.01, tmp_path / "run"
        moments = sorted(random.Random(0).sample(range(1, prompts - 2 * CONCURRENCY), kills))
        for moment in moments:
            how = (
                ["--resume", str(run)]
                if (run / "state.json").exists()
                else ["--recipe", str(recipe), "--out", str(run)]
            )
            child = subprocess.Popen(
                [sys.executable, "-m", "kdhub", "distill", *how], stderr=subprocess.PIPE, text=True
            )
            while len(server.answered) < moment:
                assert child.poll() is None, child.communicate()
                time.sleep(0.002)
            child.kill()
            child.communicate()
        done = kdhub.distill(resume=run)
        asked = Counter(body["messages"][-1]["content"] for body in server.bodies)
        twice = sum(asked.values()) - len(asked)
        assert len(asked) == prompts and twice <= kills * CONCURRENCY
        print(f"{prompts} prompts, {kills} kills: {twice} asked twice")
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "whole"))
        server.delay = 0.0
        whole = kdhub.distill(recipe, out=tmp_path / "whole-run")
    assert parquets(whole.student_folder) == parquets(done.student_folder) != {}
    card = (whole.folder / "README.md").read_text()
    assert "openai:toy" in card or "toy" in card
    assert "nothing that competes" in card, "the terms of the teacher"
    assert "refusals" in caplog.text and "not a phrase" in caplog.text
    with pytest.raises(PublishError, match="nothing that competes"):
        kdhub.publish(whole.folder, "me/graph", licence="mit")
