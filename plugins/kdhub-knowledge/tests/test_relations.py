"""Relations in sentences: where pairs are, how they are scored, who labels them, and what a student learns from it."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdhub_knowledge.methods.ade import Ade, prepare
from kdhub_knowledge.relations import metrics
from kdhub_knowledge.relations.data import generated, grouped
from kdhub_knowledge.relations.metrics import Relations, overlap, same, scores
from kdhub_knowledge.relations.profiles import profile
from kdhub_knowledge.relations.spans import (
    align,
    as_texts,
    longest,
    normal,
    occurrences,
    pairs_of,
    reached,
    runs,
    words,
)
from kdhub_knowledge.relations.students import RecurrentExtractor
from kdhub_knowledge.relations.task import CANDIDATE, MARKED, SENTENCE, RelationExtraction
from kdhub_knowledge.relations.teachers import Cues, read

import kdhub
from kdhub.data.prepare import iterate
from kdhub.errors import DataError, UnknownNameError, UsageError
from kdhub.files import given_or_shared
from kdhub.rows import Signals, UnreadableRows
from kdhub.testing.server import serving

TWO = "Rash after amoxicillin and tremor after lithium."


def test_a_hyphen_is_a_word_of_its_own_and_a_chinese_character_too():
    assert normal("Azithromycin-induced  Ototoxicity") == "azithromycin - induced ototoxicity"
    assert [text for text in ("服用阿司匹林",) for _ in words(text)] == ["服用阿司匹林"] * 6


def test_a_pair_is_where_both_sides_are_whole_words_the_head_the_nearest():
    text = "Gold: rash; goldfish, or a rash after gold"
    assert occurrences(text, "gold") == [(0, 4), (38, 42)], "not the gold of goldfish"
    found, lost = align(text, [("GOLD", "rash"), ("gold", "fever")])
    assert [text[a:b] + str(a) for (a, b), _ in found] == ["Gold0", "gold38"] and lost == [("gold", "fever")]
    assert align("Rash  after gold", [("gold", "rash"), ("Gold", "Rash")])[0] == [((12, 16), (0, 4))], "once"


def test_the_longest_of_overlapping_spans_wins_and_what_is_lost_by_it_is_counted():
    assert longest([(0, 4), (2, 20), (20, 22), (18, 24)]) == [(2, 20), (20, 22)]
    text = "Severe liver damage after gold."
    pairs = [("gold", "severe liver damage"), ("gold", "liver damage"), ("gold", "severe damage")]
    assert reached(text, pairs) == {("gold", "severe liver damage")}
    assert metrics.unreachable(Relations([text], [pairs], [[]])) == pytest.approx(2 / 3)
    assert runs(text, {0, 1, 4}) == [(0, 12), (26, 30)]


def test_scores_by_hand():
    one = Relations(["s"], [[("a", "x y")]], [[("a", "y z")]])
    assert (metrics.strict_f1(one), metrics.lenient_f1(one)) == (0.0, 1.0)
    gold = [("a", "x"), ("b", "y"), ("c", "z")]
    two = Relations(["s"], [gold], [[("A", "x"), ("b", "y"), ("q", "q")]])
    assert scores(two, same) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    empty = Relations(["s", "t"], [gold, []], [two.predicted[0], []])
    assert scores(empty, same) == scores(two, same), "a sentence without pairs adds nothing to the counts"
    assert (
        metrics.sentence_f1(empty) == pytest.approx((2 / 3 + 1) / 2)
        and metrics.strict_f1(Relations([""], [[]], [[]])) == 1
    )
    assert not overlap(("a - b", "x"), ("c - d", "x")), "a sign is no shared word"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "x y", "y z", "z"])), max_size=4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_lenient_is_never_below_strict_and_a_perfect_answer_has_one(pairs, draw):
    other = [pair for pair in pairs if draw.random() < 0.5] + [("a", "y")]
    out = Relations(["s"], [pairs], [other])
    assert all(a >= b for a, b in zip(scores(out, overlap), scores(out, same)))
    assert scores(Relations(["s"], [pairs], [pairs[::-1]]), same)[2] == 1


@pytest.mark.parametrize(
    "name, text, pairs",
    [
        ("ade", "methotrexate-induced pneumonitis", [("methotrexate", "pneumonitis")]),
        ("ade", "A case of acute hepatitis after a course of flucloxacillin.", [("flucloxacillin", "acute hepatitis")]),
        ("ade", "Cisplatin caused severe deafness in two children.", [("Cisplatin", "severe deafness")]),
        ("ade", "Metformin is given for diabetes.", []),
        ("gene-disease", "Mutations in BRCA1 cause breast cancer.", [("BRCA1", "breast cancer")]),
        ("phi", "Mr. Alder, born on 3 May 1931, was seen.", [("Mr. Alder", "3 May 1931")]),
    ],
)  # fmt: skip
def test_cues_find_a_pair_by_the_words_between(name, text, pairs):
    teacher = Cues("", Cues.Options(profile=name))
    assert as_texts(text, teacher.signals([{"text": text}], "pairs")["pairs"][0]) == pairs


REPLIES = [
    ("drug: gold | adverse event: rash\n- drug: x | adverse event: None", [("gold", "rash")], ""),
    (" None.", [], ""), ("Answer: none", [], ""), ("[]", [], ""),
    ('```json\n[{"drug": "gold", "adverse event": "rash"}]\n```', [("gold", "rash")], ""),
    ("", [], "empty"), ("I'm sorry, I cannot help with that.", [], "refused"),
    ('[{"drug": "gold", "adverse', [], "half a JSON or another one"), ("gold rash", [], "without a pair or None"),
    ("drug gold | rash", [], "without a pair or None"),
]  # fmt: skip


@pytest.mark.parametrize("reply, pairs, why", REPLIES)
def test_a_reply_is_read_or_it_is_said_why_not(reply, pairs, why):
    assert read(reply, profile("ade")) == (pairs, why)


def test_a_language_model_labels_through_the_store_and_what_it_invents_is_dropped(caplog):
    said = {"Rash": "drug: amoxicillin | adverse event: rash\ndrug: gold | adverse event: fever", "Tremor": "I cannot."}

    def answer(path, body):
        asked = body["messages"][-1]["content"]
        text = said.get(asked.splitlines()[-2].split()[1], "None")  # of the last sentence
        assert asked.count("Sentence:") == 3, "two demonstrations and the sentence"
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {}}

    texts = [f"{word} after amoxicillin." for word in ("Rash", "Tremor", "Sleep")]
    table = kdhub.Data.from_rows("three", {"train": lambda: ({"text": t} for t in texts)}, key={"v": 1})
    with serving(answer) as server:
        model = {"source": "openai:some", "base_url": server.url, "api_key_env": None}
        ref = {"source": "prompted-relations", "shots": 2, "model": model}
        teacher = kdhub.open_teacher(ref, "relation-extraction")
        examples = RelationExtraction().preparer(None, teacher)(list(iterate(table.split("train"))))
        with caplog.at_level(logging.WARNING, "kdhub"):
            given = [teacher.signals(examples, "pairs") for _ in range(2)][1]
        assert len(server.answered) == 3, "asked again, the store has all replies"
    assert [as_texts(t, p) for t, p in zip(texts, given["pairs"])] == [[("amoxicillin", "Rash")], [], []]
    assert given["readable"].tolist() == [1, 0, 1]
    assert "1 refused" in caplog.text and "1 pairs that are not in their sentence" in caplog.text


def student(**settings):
    letters = sorted(set(TWO))
    torch.manual_seed(0)
    sizes = {"width": 6, "words": 6, "chars": 4, "dropout": 0.0}
    known = sorted({TWO[a:b].lower() for a, b in words(TWO)})
    return RecurrentExtractor({"network": "lstm", "sizes": sizes, "words": known, "letters": letters, **settings})


def test_the_marker_alone_tells_two_heads_of_a_sentence_apart():
    one = student()
    marked = [
        {"text": TWO, "head": span} for span in (occurrences(TWO, "amoxicillin")[0], occurrences(TWO, "lithium")[0])
    ]
    batch = one.collate(marked)
    assert all(torch.equal(*batch[name]) for name in ("input_ids", "letters", "attention_mask"))
    assert not torch.equal(*batch["marked"])
    a, b = one.run(marked)
    assert np.abs(a["pairs"][:, 1] - b["pairs"][:, 1]).max() > 1e-4


def test_a_text_longer_than_the_network_is_read_to_its_end():
    one = student()
    one.limit = 8
    text = " ".join([TWO] * 3)
    seen = [one.window({"text": text, "first": first}) for first in one.starts(text)]
    assert seen[0][0] == 0 and seen[-1][1] == len(words(text)) and all(b[0] < a[1] for a, b in zip(seen, seen[1:]))
    at = occurrences(text, "lithium")[-1]
    _, spans, marked = one.parts({"text": text, "head": at})
    assert [s for s, m in zip(spans, marked) if m] == [at], "a marked pass reads around its head"
    one.signals([{"text": text, "entities": None}], "pairs")


def made(found, **options):
    return list(Ade(Ade.Options(**options)).made(found, student(), np.random.default_rng(0)))


def test_rows_of_training_are_sentences_marked_heads_and_as_many_without_a_tail():
    found = [(TWO, align(TWO, [("amoxicillin", "rash")])[0]), ("Lithium and amoxicillin were given.", [])]
    rows = made(found)
    kinds = [row["kind"] for row in rows]
    assert kinds.count(SENTENCE) == 2 and kinds.count(MARKED) == 2, "one with tails, one of three without"
    assert [row["tails"] for row in rows if row["kind"] == MARKED] == [[(0, 4)], []]
    assert sum(row["kind"] == MARKED for row in made(found, negatives_per_positive=3.0, drug_source="lexicon")) == 4
    assert all(row["kind"] != SENTENCE for row in made(found, drug_source="lexicon"))
    pairs = made([(TWO, align(TWO, [("amoxicillin", "rash"), ("lithium", "tremor")])[0])], structure="pairwise")
    assert [row["related"] for row in pairs if row["kind"] == CANDIDATE] == [1, 1, 0, 0], "two of four pairs are right"


def test_the_loss_by_hand():
    """Logits of 0, so every term is ln 2: a sentence of two tokens; a marked one of three, a token of a tail counting
    twice; the means over one sentence and one marked sentence."""
    method, logits = Ade(Ade.Options(event_token_weight=2.0)), torch.zeros(5, 2)
    labels = torch.tensor([[1.0, -1], [0, -1], [-1, 1], [-1, 0], [-1, 0]])
    batch = {"labels": labels, "kind": torch.tensor([SENTENCE, MARKED]), "related": torch.tensor([-1.0, 1])}
    terms = method.objective(Signals(pairs=logits), Signals(), batch, None)
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(
        {"tail": 4 * log(2), "head": 2 * log(2)}
    )
    gradient = torch.autograd.grad(
        sum(
            Ade(Ade.Options()).objective(Signals(pairs=(x := logits.requires_grad_())), Signals(), batch, None).values()
        ),
        x,
    )[0]
    assert gradient[0, 1] == 0 and gradient[2, 0] == 0, "what is not asked has no gradient"


def test_the_loss_of_pairs_by_hand():
    """Logits of 0: heads and tails of a sentence of two tokens, and two candidates, one of them a pair."""
    labels = torch.tensor([[1.0, 0], [0, 1], [-1, -1], [-1, -1]])
    batch = {
        "labels": labels,
        "kind": torch.tensor([SENTENCE, CANDIDATE, CANDIDATE]),
        "related": torch.tensor([-1.0, 1, 0]),
    }
    given = Signals(pairs=torch.zeros(4, 2), related=torch.tensor([9.0, 0, 0]))
    terms = Ade(Ade.Options(structure="pairwise")).objective(given, Signals(), batch, None)
    expected = {"tail": 2 * log(2), "head": 2 * log(2), "related": log(2)}
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected)


def corpus(tmp_path, rows, **options):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return kdhub.open_data({"source": f"relation-corpus:{file}", "options": options})


def test_a_corpus_is_grouped_before_it_is_split(tmp_path):
    rows = [{"text": row["text"], "head": h, "tail": t} for row in generated(60) for h, t in row["pairs"]]
    again = [{**row, "text": row["text"].upper() + " ", "tail": "another"} for row in rows[::2]]
    bare = [{"text": row["text"], "head": None, "tail": None} for row in rows[:3]]
    (tmp_path / "bare.jsonl").write_text(
        "".join(json.dumps({"text": r["text"]}) + "\n" for r in [*bare, {"text": "No drug."}])
    )
    data = corpus(tmp_path, [*rows, *again], test=10, validation=5, negatives=f"path:{tmp_path / 'bare.jsonl'}")
    parts = {split: [normal(row["text"]) for row in iterate(data.split(split))] for split in data.splits}
    assert {split: len(texts) for split, texts in parts.items()} == {
        "train": len(rows) - 14,
        "validation": 5,
        "test": 10,
    }
    whole = [text for texts in parts.values() for text in texts]
    assert len(set(whole)) == len(whole), "no sentence is in two splits, and none of a pair is a negative"
    assert sum(len(row["pairs"]) for split in data.splits for row in iterate(data.split(split))) == len(rows) + len(
        again
    )
    assert "entities" not in data.split("test").column_names


@pytest.mark.parametrize(
    "row, says", [({"text": "a b", "head": "a"}, "row 2 has a head alone"), ({"sentence": "a"}, "row 2 has no text")]
)
def test_rows_of_a_corpus_that_cannot_be_read_are_named(row, says):
    with pytest.raises(DataError, match=says):
        grouped([{"text": "x y", "head": "x", "tail": "y"}, row], "corpus")


def test_bad_input_is_refused_with_what_to_do(tmp_path):
    task, rows = RelationExtraction(), [{"text": "gold", "pairs": [["gold"]]}, {"text": " "}, {"text": "gold"}]
    with pytest.raises(UnreadableRows) as error:
        task.preparer(None, None)(rows)
    assert [e.get("fault") for e in error.value.examples] == ["with pairs that cannot be read", "without a text", None]
    assert pairs_of('[["a", "b"]]') == pairs_of([{"head": "a", "tail": "b"}]) == [("a", "b")]
    with pytest.raises(UsageError, match="leave some of the 1 sentences"):
        corpus(tmp_path, [{"text": "x y", "head": "x", "tail": "y"}], test=1).split("test")
    with pytest.raises(UnknownNameError, match="adx"):
        Cues("", Cues.Options(profile="adx")).profile  # noqa: B018
    teacher = kdhub.open_teacher(
        {"source": "prompted-relations", "model": "openai:m", "shots": 6}, "relation-extraction"
    )
    with pytest.raises(UsageError, match=r"at most 5.*shots=6"):
        teacher.shots  # noqa: B018
    with pytest.raises(UsageError, match="lexicon"):
        Ade(Ade.Options(lexicon="no-such-file"))._lexicon()
    nothing = [{"text": "no drug", "entities": None, "gold": None}]
    run = SimpleNamespace(signals=lambda rows, kind: Stored(1))
    with pytest.raises(DataError, match="none of 1 sentences has a pair"):
        Ade(Ade.Options())._labelled(run, Plain(nothing))


class Plain(list):
    def __getitem__(self, numbers):
        return [list.__getitem__(self, int(n)) for n in numbers]


class Stored:
    def __init__(self, rows):
        self.rows = rows

    def __getitem__(self, numbers):
        return {"pairs": [np.zeros((0, 4), np.int32)] * self.rows}


def test_right_heads_are_read_only_where_an_option_says_so():
    row = {"text": TWO, "entities": ["lithium"]}
    for source in ("tagger", "lexicon"):
        one = student(drug_source=source, threshold=0.4)
        (with_them,), (without,) = (one.signals([r], "pairs")["pairs"] for r in (row, {**row, "entities": None}))
        assert np.array_equal(with_them, without)
    one = student(drug_source="gold", threshold=0.4)
    assert {h.lower() for h, _ in one.extract(TWO, ["lithium"])} <= {"lithium"} and one.extract(TWO, ["lithium"])
    with pytest.raises(DataError, match="column 'entities'"):
        one.extract(TWO)


@pytest.mark.skipif(given_or_shared("ade_corpus_v2/drug_ae.tsv.gz") is None, reason="needs KDHUB_DATA")
def test_the_corpus_has_the_sentences_and_pairs_that_its_authors_counted():
    with gzip.open(given_or_shared("ade_corpus_v2/drug_ae.tsv.gz"), "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    named = [{"text": r["sentence"], "head": r["drug"], "tail": r["effect"]} for r in rows]
    assert len(rows) == 6821 and len({(r["text"], r["head"].lower(), r["tail"].lower()) for r in named}) == 6616
    assert len({r["text"] for r in named}) == 4271 and len(grouped(named, "ade")) <= 4271


def test_prepared_rows_differ_by_what_is_marked():
    rows = [{"text": TWO, "kind": MARKED, "head": head, "tails": []} for head in ([11, 22], [40, 47])]
    one, two = prepare(rows)
    assert one["content"] != two["content"] and one["head"] == (11, 22)


def test_an_encoder_gets_markers_that_no_text_can_have_and_is_saved_whole(tmp_path):
    from kdhub_tasks.tiny import tiny_encoder

    task, texts = RelationExtraction(), ["kabel lodan mifos", "kabel lodan mifos nugir [CLS] rapum sebel"]
    context = kdhub.student.BuildContext(task, None, 0)
    one = task.open(tiny_encoder(tmp_path / "encoder", layers=1, hidden=16, plain=True), context, {})
    marked = [{"text": texts[0], "head": head} for head in ((0, 5), (6, 11))]
    ids, scored = (one.collate(marked)[name] for name in ("input_ids", "scored"))
    assert not torch.equal(*ids) and (ids >= one._first).sum(1).tolist() == [2, 2]
    assert [row[s.bool()].tolist() for row, s in zip(ids, scored)] == [one.read(texts[0])[0]] * 2, (
        "without markers equal"
    )
    both = one.collate([{"text": texts[0], "head": (0, 5), "tail": (12, 17)}])["input_ids"][0]
    assert len(set(both[both >= one._first].tolist())) == 4
    one.settle(structure="pairwise", threshold=0.45)
    (tmp_path / "saved").mkdir()
    one.save(tmp_path / "saved")
    again, examples = task.load(tmp_path / "saved"), [{"text": text} for text in texts]
    given = [model.signals(examples, "pairs")["pairs"] for model in (one, again)]
    assert all(np.array_equal(*pairs) for pairs in zip(*given)) and again.config["structure"] == "pairwise"
    with pytest.raises(kdhub.errors.UntrustedError):
        task.load(tmp_path / "encoder")


def test_a_student_of_cues_finds_pairs_that_they_miss_and_its_card_says_what_it_is_not_for(tmp_path):
    """The smallest set on which it holds; whoever learns from the right pairs is above both."""
    found = {}
    for labels in ("teacher", "rows"):
        changes = {
            "options.labels": labels,
            "evaluation.cost": False,
            "options.epochs": 6,
            "student": "relations-lstm:width=24,words=16,chars=8",
        }
        run = kdhub.distill("ade", out=tmp_path / labels, set=changes)
        found |= {(labels, m["subject"], m["metric"]): m["value"] for m in run.report["measures"]}
    student, teacher = (found["teacher", of, "lenient-f1"] for of in ("student", "teacher"))
    assert student > teacher + 0.02 and found["rows", "student", "lenient-f1"] > student + 0.05, found
    assert found["teacher", "student", "lenient-recall"] > found["teacher", "teacher", "lenient-recall"]
    card = (run.folder / "README.md").read_text(encoding="utf-8")
    assert "Not for clinical use" in card and "share a word" in card
    loaded = kdhub.load(run.student_folder)
    assert ("amocillin", "hepatitis") in loaded.extract(
        "The patient had fever, and hepatitis after amocillin in an elderly man."
    )


def test_the_best_epoch_on_labelled_validation_sentences_is_kept(tmp_path, caplog):
    """A rate at which the loss rises again: what is saved is not the last epoch."""
    recipe = RelationExtraction().tiny_recipe(tmp_path)
    more = {"data": {**recipe["data"], "validation": [{**recipe["data"]["train"][0], "limit": 24}]}, "seed": 1}
    options = {
        "lr": 2.0,
        "schedule": "constant",
        "warmup": 0.0,
        "epochs": 3,
        "grad_clip": 0.0,
        "negatives_per_positive": 1.0,
    }
    options["event_token_weight"] = 1.0  # not those of the default recipe
    made = {**recipe, **more, "task": "relation-extraction", "method": "ade", "options": options}
    with caplog.at_level(logging.INFO, "kdhub"):
        run = kdhub.distill({**made, "evaluation": {"data": []}}, out=tmp_path / "run")
    losses = [float(line.rpartition(" ")[2]) for line in caplog.messages if "labelled validation" in line]
    assert len(losses) == 3 and min(losses) < losses[-1], losses
    method = Ade(Ade.Options(**options))
    method._run, method._student = SimpleNamespace(task=RelationExtraction()), kdhub.load(run.student_folder)
    cues, rows = Cues(""), list(iterate(kdhub.open_data(f"path:{tmp_path / 'train.jsonl'}").split("train")))[:24]
    found = [(row["text"], cues.found(row["text"])) for row in rows]
    method._held = prepare(list(method.made(found, method._student, np.random.default_rng([1, 8]))))
    assert method._held_loss() == pytest.approx(min(losses), abs=2e-4)
    assert not (run.folder / "checkpoints").exists()
