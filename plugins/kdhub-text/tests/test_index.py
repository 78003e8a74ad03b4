"""Stored vectors of candidates."""

from __future__ import annotations

import numpy as np
import pytest
from kdhub_tasks.pairs.heads import Shape
from kdhub_tasks.pairs.tiny import recipe
from kdhub_tasks.tiny import random_texts
from kdhub_text import index
from kdhub_text.index import EmbeddingIndex

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    recipe(made)
    return made


def towers(folder, classes=("no", "yes"), shape=None):
    facts = {"classes": list(classes)}
    student = kdhub.open_student(f"towers:path:{folder / 'encoder'}", "text-pairs", facts=facts)
    if shape:
        student.stand(shape)
    return student


def test_stored_vectors_rank_as_pairs_do(folder, tmp_path, monkeypatch):
    student, texts = towers(folder, ("score",)), random_texts(30, seed=5)
    monkeypatch.setattr(index, "BLOCK", 7)
    stored = EmbeddingIndex.write(student, texts, tmp_path)
    positions, best = stored.rank(texts[:2], 5)
    whole = student.matrix(student.embed(texts[:2]), student.embed(texts))
    assert np.array_equal(positions, np.argsort(-whole, axis=1, kind="stable")[:, :5])
    assert np.allclose(best, -np.sort(-whole, axis=1)[:, :5], atol=1e-6)
    with pytest.raises(CompatibilityError, match="another student"):
        EmbeddingIndex(towers(folder, ("score",), Shape("cls")), tmp_path)
    with pytest.raises(DataError, match="no stored vectors"):
        EmbeddingIndex(student, tmp_path / "other")
    with pytest.raises(UsageError, match="needs one score"):
        EmbeddingIndex.write(towers(folder, ("a", "b", "c")), texts, tmp_path).rank(texts)
