"""Cosines of the first texts, a panel for each subject."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
from kdhub_tasks.embedding.outputs import StsOutputs
from kdhub_tasks.embedding.task import TextEmbedding
from PIL import Image

from kdhub.evaluation import plots
from kdhub.pictures import problems

PNG = plots.png


def test_cosines_of_the_first_rows_have_a_panel_for_each_subject(monkeypatch):
    monkeypatch.setattr(plots, "png", PNG)  # drawn, which other tests are spared
    task, rng = TextEmbedding(), np.random.default_rng(0)
    left, right = rng.normal(size=(2, 9, 4)).astype(np.float32)
    mine = task.to_draw(StsOutputs(left, right, np.zeros(9)), 5)["cosines"]
    assert mine.shape == (5, 5)
    expected = left[1] @ right[2] / np.linalg.norm(left[1]) / np.linalg.norm(right[2])
    np.testing.assert_allclose(mine[1, 2], expected, rtol=1e-5)
    pairs = SimpleNamespace(form=lambda split: "sts")
    one, two = (
        next(task.draw(pairs, "test", {name: {"cosines": mine} for name in names}))
        for names in (["student"], ["teacher", "student"])
    )
    assert problems([one, two][:1]) == problems([two]) == []
    assert two.sentence.endswith("in one colour scale: teacher, student.") and "first sentences" in two.sentence
    wide = [Image.open(io.BytesIO(p.content)).width for p in (one, two)]
    assert wide[1] > 1.5 * wide[0]
