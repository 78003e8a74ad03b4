"""The grid of images with what each subject says they are."""

from __future__ import annotations

import io

import datasets
import numpy as np
from kdhub_tasks.classes import MULTI_LABEL
from kdhub_tasks.classification.arrays import ImageClassification
from kdhub_tasks.classification.drawing import answers
from kdhub_tasks.classification.task import Predictions
from PIL import Image

from kdhub.data.dataset import Data
from kdhub.pictures import problems

NAMES = ["cat", "a dog of a very long kind"]


def given(task, chosen, problem=""):
    logits = np.array([[2.0, 0.0] if c == 0 else [0.0, 1.0] for c in chosen])
    labels = np.zeros_like(logits) if problem else np.array([0, 1, 0, 1])
    return task.to_draw(Predictions(logits, labels, NAMES, problem=problem), 3)


def test_the_grid_shows_images_labels_and_answers_of_the_first_rows(home):
    task = ImageClassification()
    images = [np.full((2, 3), 40 * i).tolist() for i in range(4)]
    data = Data.from_dataset("d", {"test": datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]})})
    student = given(task, [0, 0, 1, 1])
    assert student["label"].tolist() == ["cat", NAMES[1], "cat"] and student["chosen"].tolist() == [
        "cat",
        "cat",
        NAMES[1],
    ]
    np.testing.assert_allclose(student["probability"], 1 / (1 + np.exp([-2, -2, -1.0])))
    (one,) = task.draw(data, "test", {"teacher": given(task, [0, 1, 0, 1]), "student": student})
    assert problems([one]) == [] and "(teacher, student)" in one.sentence
    colours = [np.zeros(shape, np.uint8) for shape in ((3, 900, 5), (1, 4, 4), (2, 4, 4))]
    assert problems([answers(colours, {"student": student})]) == []
    (other,) = task.draw(data, "test", {"teacher": student, "student": student})
    pixels, others = (np.asarray(Image.open(io.BytesIO(p.content)).convert("RGB")).astype(int) for p in (one, other))
    orange = lambda p: int((abs(p - [0xD5, 0x5E, 0x00]).max(-1) < 30).sum())  # noqa: E731
    assert 0 < orange(pixels) < orange(others), "two wrong answers, and four of them"
    assert len(next(iter(task.draw(data, "test", {"student": student}))).content) < 200_000


def test_answers_that_are_no_class_are_not_drawn(home):
    task = ImageClassification()
    assert given(task, [0, 0, 1, 1], MULTI_LABEL) == {}
    assert list(task.draw(None, "test", {"student": {}})) == []
