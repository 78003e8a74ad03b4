"""A student of one task as the start of another, where the task can open it."""

from __future__ import annotations

import json

import pytest
from kdhub_tasks.classification import tiny

import kdhub
from kdhub.errors import CompatibilityError


def test_an_encoder_that_was_distilled_gets_a_fresh_head(tmp_path, monkeypatch):
    (tmp_path / "registry" / "recipes").mkdir(parents=True)
    monkeypatch.setenv("KDHUB_CATALOG", str(tmp_path / "registry"))
    (tmp_path / "of").mkdir()
    of = tiny.masked_recipe(tmp_path / "of")
    of |= {"task": "fill-mask", "method": "as-is", "teacher": None}
    (tmp_path / "registry/recipes/encoder.yaml").write_text(json.dumps(of))
    made = tiny.text_recipe(tmp_path) | {"task": "text-classification", "method": "supervised", "teacher": None}
    made |= {"student": "recipe:encoder", "options": {"max_steps": 1}}
    run = kdhub.distill(made, out=tmp_path / "run")
    start = run.provenance["student"]["start"]
    assert start["source"] == "recipe:encoder" and "fresh classifier" in start["how"]
    assert kdhub.load(run.folder / "student").classes == ["bad", "good"]

    (tmp_path / "registry/recipes/tags.yaml").write_text(
        json.dumps({**made, "task": "token-classification", "student": f"path:{tmp_path / 'student'}"})
    )
    with pytest.raises(CompatibilityError, match="for token-classification, not for text-classification; a start may"):
        kdhub.distill({**made, "student": "recipe:tags"}, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
