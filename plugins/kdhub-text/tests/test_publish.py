"""A LEAF student on a hub: pulled on another machine, it is a plain SentenceTransformer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import kdhub

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from fake_hub import talked_to  # noqa: E402


@pytest.fixture
def hub(monkeypatch):
    with talked_to(monkeypatch) as hub:
        yield hub


def test_round_trip(tiny, hub, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    texts = tiny.texts(60)
    pairs = [{"sentence1": a, "sentence2": b, "score": i % 5} for i, (a, b) in enumerate(zip(texts[:20], texts[20:]))]
    train, test = tiny.jsonl(tmp_path / "train.jsonl", texts), tiny.jsonl(tmp_path / "pairs.jsonl", pairs)
    recipe = tiny.recipe(tiny.encoder(), "layers:2", train, [{"source": f"path:{test}"}])
    run = kdhub.distill(recipe, out=tmp_path / "run")
    done = kdhub.publish(run.folder, "me/leaf", licence="apache-2.0")  # runs the usage lines of its card
    assert any("others cannot reproduce it" in warning for warning in done.warnings)
    assert 'SentenceTransformer("me/leaf")' in done.card and "library_name: sentence-transformers" in done.card

    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
    pulled = kdhub.pull("me/leaf")
    wanted = SentenceTransformer(str(run.student_folder), device="cpu").encode(texts)
    plain = SentenceTransformer(str(pulled.folder), device="cpu").encode(texts)
    loaded = kdhub.load("me/leaf").module.encode(texts)
    np.testing.assert_allclose(plain, wanted, atol=1e-6)
    np.testing.assert_allclose(loaded, wanted, atol=1e-6)

    found = kdhub.verify("me/leaf")
    assert found.status == "not-checkable" and not found.problems, "its rows are a file of its maker"
    assert {"exists only on its maker's machine" in f.note for f in found.figures} == {True}


def test_towers_round_trip(hub, tmp_path, monkeypatch):
    from kdhub_tasks.pairs.tiny import recipe as pair_recipe
    from kdhub_tasks.tiny import random_texts
    from sentence_transformers import SentenceTransformer

    options = {"top_layers": 1, "include_cls": True, "fc_dims": [8], "max_steps": 2, "precision": "float32"}
    recipe = {"schema": 1, "task": "text-pairs", "method": "dse", "options": options, **pair_recipe(tmp_path)}
    run = kdhub.distill(recipe, out=tmp_path / "run")
    kdhub.publish(run.folder, "me/towers", licence="apache-2.0")  # runs the usage lines of its card

    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
    texts, pulled = random_texts(5, seed=3), kdhub.pull("me/towers")
    student, wanted = kdhub.load("me/towers"), kdhub.load(run.folder)
    np.testing.assert_allclose(student.embed(texts), wanted.embed(texts), atol=1e-6)
    plain = SentenceTransformer(str(pulled.folder / "encoder"), device="cpu").encode(texts)
    np.testing.assert_allclose(plain, wanted.embed(texts), atol=1e-5)
    measured = {(m.subject, m.metric): m.value for m in kdhub.evaluate(run.folder).measures}
    assert {m["metric"] for m in run.report["measures"]} >= {"pearson", "spearman", "score-rmse", "degradation"}
    reported = {(m["subject"], m["metric"]): m["value"] for m in run.report["measures"]}
    assert measured["student", "pearson"] == pytest.approx(reported["student", "pearson"], abs=1e-4)
