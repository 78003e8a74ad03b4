"""`feature` between any two modules, named on both sides (`layer:NAME`)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_logits.methods.similarity import Feature
from kdhub_tasks.classification import tiny
from kdhub_tasks.classification.arrays import ImageClassification
from kdhub_tasks.transformer import TextClassifier
from pydantic import ValidationError

import kdhub
from kdhub.errors import CompatibilityError, UnknownNameError
from kdhub.teacher import facts_path

FAST = {"alpha": 1.0, "lr": 1e-2, "epochs": 6, "precision": "float32"}


@pytest.mark.parametrize(
    ("of", "student_of", "shape"),
    [
        ("layer:encoder.layer.1", "layer:encoder.layer.0", (16,)),
        ("layer:encoder.layer.1.intermediate:all", "layer:layer.0.output:input:all", (None, 32)),
    ],
)
def test_a_student_comes_near_a_named_layer_of_its_teacher(tmp_path, of, student_of, shape):
    """Texts of many lengths; stored once."""
    recipe = {**tiny.text_recipe(tmp_path), "task": "text-classification", "method": "feature"}
    options = {"of": of, "student_of": student_of, **FAST}
    run = kdhub.distill({**recipe, "options": options}, out=tmp_path / "run")
    assert run.provenance["signals"][of]["computed"] == 64
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < 0.85 * losses[0]
    teacher = kdhub.open_teacher(recipe["teacher"], "text-classification")
    assert teacher.layout(of) == {of: shape}
    if of.startswith("layer:"):
        kept = json.loads(facts_path(teacher.identity).read_text())["facts"]["layers"]
        assert kept == {of: list(shape)}


def test_a_layer_is_that_of_the_real_tokens_alone(tmp_path):
    """By the library's own forward pass of one text, whatever stands beside it in the batch."""
    folder = tiny.text_classifier(tmp_path / "model")
    teacher = kdhub.open_teacher(f"path:{folder}", "text-classification")
    prepare = teacher.task.preparer(None, teacher)
    rows = prepare([{"text": "a film"}, {"text": "a very very great plot of a film"}])
    model = TextClassifier.load(folder).module.model
    given = model(**teacher.tokenizer("a film", return_tensors="pt"), output_hidden_states=True)
    own = given.hidden_states[1][0].detach().numpy()
    for kind, expected in (("layer:encoder.layer.0", own.mean(0)), ("layer:encoder.layer.0:last", own[-1])):
        teacher.look(kind, rows)
        np.testing.assert_allclose(teacher.signals(rows, kind)[kind][0], expected, atol=1e-5)


def test_maps_of_images_are_compared_position_by_position(tmp_path):
    recipe = {**ImageClassification().tiny_recipe(tmp_path), "task": "image-classification", "method": "feature"}
    options = {"of": "layer:layers.layers.0:all", "student_of": "layer:layers.layers.0:all", **FAST, "epochs": 2}
    student = "vit:patch=4,width=4,layers=1,heads=1"
    run = kdhub.distill({**recipe, "student": student, "options": options}, out=tmp_path / "run")
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < losses[0]
    with pytest.raises(CompatibilityError, match="positions differ"):
        kdhub.distill(
            {**recipe, "student": "vit:patch=2,width=4,layers=1,heads=1", "options": options}, out=tmp_path / "other"
        )


def test_a_wrong_name_is_refused_before_the_teacher_is_asked(tmp_path):
    recipe = {**tiny.text_recipe(tmp_path), "task": "text-classification", "method": "feature"}
    for options in ({"of": "features", "student_of": "layer:encoder.layers.0"}, {"of": "layer:encoder.layers.0"}):
        with pytest.raises(UnknownNameError, match="no module named 'encoder.layers.0'") as caught:
            kdhub.distill({**recipe, "options": options}, out=tmp_path / str(len(options)))
        assert "bert.encoder.layer.0" in caught.value.hint
    for wrong in ({"of": "states"}, {"student_of": "features"}, {"of": "attentions", "student_of": "layer:a"}):
        with pytest.raises(ValidationError, match="must be"):
            Feature.Options(**wrong)


def test_a_text_encoder_gives_its_layers(tmp_path):
    """It reads texts by its own tokens; a mean over them is what its pooling gives."""
    from kdhub_tasks.embedding.task import TextEmbedding

    recipe = TextEmbedding().tiny_recipe(tmp_path)
    teacher = kdhub.open_teacher(recipe["teacher"], "text-embedding")
    rows = TextEmbedding().preparer(None, teacher)([{"text": "a text"}, {"text": "another text, a longer one"}])
    teacher.look("layer:encoder", rows)
    given = teacher.signals(rows, "layer:encoder")["layer:encoder"]
    expected = teacher.signals(rows, "embedding")["embedding"]
    cosine = torch.cosine_similarity(torch.as_tensor(given), torch.as_tensor(expected))
    assert cosine.min() > 0.99
