"""Stored vectors of candidates."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import pairs_folder, towers  # noqa: F401
from kdhub_tasks.pairs.heads import Shape
from kdhub_tasks.tiny import random_texts
from kdhub_text import index
from kdhub_text.index import EmbeddingIndex

from kdhub.errors import CompatibilityError, DataError, UsageError


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
