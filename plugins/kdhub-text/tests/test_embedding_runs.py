"""Runs of text embedding: what is scored of teacher, start and student, and what is asked of the teacher."""

from __future__ import annotations

import json
import shutil

import pytest
from kdhub_tasks.embedding import encoder
from kdhub_tasks.embedding.teachers import EncoderTeacher
from sentence_transformers import SentenceTransformer

import kdhub
from kdhub.errors import DataError, RecipeError, UsageError
from kdhub.verbs.evaluate import evaluate

PROMPTS = {"query": "kabel dan: ", "document": ""}


@pytest.fixture
def scored(tiny, tmp_path):
    """(retrieval folder, sts file): a query is the document that answers it, without its last word."""
    documents = tiny.texts(40, seed=4, shortest=6)
    folder = tmp_path / "tinyset"
    folder.mkdir()
    tiny.jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(documents)])
    queries = [{"_id": f"q{i}", "text": " ".join(documents[i].split()[:-1])} for i in range(12)]
    tiny.jsonl(folder / "queries.jsonl", queries)
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(12))]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    rows = [
        {"sentence1": a, "sentence2": b, "score": float(i % 6)}
        for i, (a, b) in enumerate(zip(tiny.texts(30, seed=5), tiny.texts(30, seed=6)))
    ]
    return folder, tiny.jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def run(tiny, tmp_path, scored, monkeypatch):
    monkeypatch.setattr(encoder, "resolve_precision", lambda *_: "float32")
    train = tiny.jsonl(tmp_path / "train.jsonl", tiny.texts(200, seed=7))
    on = [{"source": f"path:{scored[0]}", "split": "test"}, {"source": f"path:{scored[1]}"}]
    recipe = tiny.recipe(tiny.encoder(hidden=64, prompts=PROMPTS), "layers:2", train, on, max_steps=4)
    return kdhub.distill(recipe, out=tmp_path / "run")


def values(report) -> dict[tuple, float]:
    """(dataset, metric, subject, variant) -> value."""
    measures = report["measures"] if isinstance(report, dict) else [m.to_dict() for m in report.measures]
    return {
        (m["dataset"], m["metric"], m["subject"], json.dumps(m.get("variant") or {}, sort_keys=True)): m["value"]
        for m in measures
    }


def test_a_run_scores_teacher_start_student_and_both_together(run, scored):
    from kdhub_tasks.embedding import metrics
    from kdhub_tasks.embedding.outputs import RetrievalOutputs

    found = values(run.report)
    for subject in ("teacher", "student-before", "student", "asymmetric"):
        for metric in ("ndcg@10", "recall@10", "mrr@10"):
            assert 0 <= found["tinyset", metric, subject, "{}"] <= 1
    assert found["tinyset", "cosine", "student", "{}"] > found["tinyset", "cosine", "student-before", "{}"]
    for subject in ("teacher", "student-before", "student"):
        assert -1 <= found["pairs.jsonl", "spearman", subject, "{}"] <= 1
        for variant in ('{"dims": 32}', '{"precision": "int8"}', '{"precision": "binary"}'):
            assert ("tinyset", "ndcg@10", subject, variant) in found

    # The same numbers from the saved student and the teacher, by sentence-transformers' own encode.
    folder = scored[0]
    read = lambda name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]  # noqa: E731
    corpus, queries = read("corpus"), read("queries")
    student = SentenceTransformer(str(run.student_folder), device="cpu")
    teacher = SentenceTransformer(run.recipe.teacher.source.removeprefix("path:"), device="cpu")
    pairs = {"teacher": (teacher, teacher), "student": (student, student), "asymmetric": (student, teacher)}
    for subject, (q, d) in pairs.items():
        outputs = RetrievalOutputs(
            [r["_id"] for r in queries],
            [r["_id"] for r in corpus],
            q.encode_query([r["text"] for r in queries]),
            d.encode_document([r["text"] for r in corpus]),
            {f"q{i}": {f"d{i}": 1} for i in range(12)},
        )
        assert found["tinyset", "mrr@10", subject, "{}"] == pytest.approx(metrics.mrr_at_10(outputs), abs=0.02)


def test_evaluate_scores_a_run_again_a_student_folder_and_other_data(run, scored, tmp_path):
    again, first = values(evaluate(run.folder)), values(run.report)
    assert again == {k: v for k, v in first.items() if k[2] != "student-before"}
    bare = shutil.copytree(run.student_folder, tmp_path / "bare")  # outside its run
    other = values(evaluate(bare, data=f"path:{scored[1]}", set=["evaluation.options.truncate=off"]))
    assert {k[:3] for k in other} == {("pairs.jsonl", m, "student") for m in ("spearman", "pearson")}
    assert other["pairs.jsonl", "spearman", "student", "{}"] == first["pairs.jsonl", "spearman", "student", "{}"]
    with_teacher = values(evaluate(bare, data=f"path:{scored[1]}", teacher=run.recipe.teacher.source))
    assert with_teacher["pairs.jsonl", "cosine", "student", "{}"] == pytest.approx(
        first["pairs.jsonl", "cosine", "student", "{}"], abs=5e-3
    )


def test_evaluate_says_what_it_cannot_score(run, tiny, tmp_path):
    with pytest.raises(UsageError, match="nothing to score on"):
        evaluate(shutil.copytree(run.student_folder, tmp_path / "bare"))
    words = tiny.jsonl(tmp_path / "words.jsonl", tiny.texts(5))
    with pytest.raises(DataError, match="'texts'"):
        evaluate(run.folder, data=f"path:{words}")
    with pytest.raises(RecipeError, match="truncat"):
        evaluate(run.folder, set=["evaluation.options.truncated=[8]"])


def test_a_second_run_on_the_same_texts_calls_no_teacher(run, tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderTeacher, "signals", lambda *_: pytest.fail("the teacher was asked again"))
    again = kdhub.distill(run.recipe, out=tmp_path / "again", seed=5)
    assert again.provenance["signals"]["embedding"]["calls"] == 0


def test_a_mix_of_sources_is_labelled_by_content_once(tiny, tmp_path, monkeypatch):
    """The same text twice in one file, in two files, and under both roles."""
    asked: list[str] = []
    signals = EncoderTeacher.signals

    def noted(self, examples, kind):
        asked.extend(e["text"] for e in examples)
        return signals(self, examples, kind)

    monkeypatch.setattr(EncoderTeacher, "signals", noted)
    texts = tiny.texts(30)
    one = tiny.jsonl(tmp_path / "one.jsonl", texts[:20] + texts[:5])
    two = tiny.jsonl(tmp_path / "two.jsonl", texts[10:])
    recipe = tiny.recipe(tiny.encoder(prompts=PROMPTS), "layers:1", one, max_steps=2)
    recipe["data"]["train"] += [{"source": f"path:{two}"}, {"source": f"path:{two}", "role": "query"}]
    result = kdhub.distill(recipe, out=tmp_path / "run")
    assert sorted(asked) == sorted([*texts, *(PROMPTS["query"] + t for t in texts[10:])])
    assert result.provenance["rows"]["train"]["rows"] == 65
