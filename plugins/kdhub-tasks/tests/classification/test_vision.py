"""Image classifiers of the transformers library as teachers and students."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdhub_tasks.classification.folders import load
from kdhub_tasks.classification.vision import ImageClassifier

import kdhub
from kdhub.errors import CompatibilityError, UntrustedError

DIGITS = {"train": [{"source": "digits", "split": "train", "limit": 48}]}
EVALUATION = {"data": [{"source": "digits", "split": "test", "limit": 40}], "cost": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny vision transformer for ten classes, and a tiny ResNet for three, as the library saves them."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    made = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    wide = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    vit = ViTForImageClassification(ViTConfig(**wide, image_size=16, patch_size=4, num_labels=10))
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    resnet = ResNetForImageClassification(ResNetConfig(**small, num_labels=3))
    for name, model in (("vit", vit), ("resnet", resnet)):
        model.config.id2label = {i: str(i) for i in range(model.config.num_labels)}
        model.save_pretrained(made / name)
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(made / name)
    return made


def recipe(folders, **changes):
    options = {"max_steps": 3, "batch_size": 8, "precision": "float32"}
    base = {"task": "image-classification", "method": "kd", "teacher": f"path:{folders / 'vit'}", "student": "layers:2"}
    return {**base, "data": DIGITS, "evaluation": EVALUATION, "options": options, **changes}


def test_the_student_is_a_folder_of_the_library(folders, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    run = kdhub.distill(recipe(folders), out=tmp_path / "run")
    model = AutoModelForImageClassification.from_pretrained(run.student_folder)
    assert model.config.num_hidden_layers == 2
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    grey = np.repeat(image[None], 3, 0)
    seen = AutoImageProcessor.from_pretrained(run.student_folder, backend="pil")(
        images=[grey], input_data_format="channels_first", return_tensors="pt"
    )
    ours = kdhub.load(run.folder).signals([{"x": image}], "logits")["logits"]
    np.testing.assert_allclose(model(**seen).logits.detach().numpy(), ours, atol=1e-5)


def test_signals_are_those_of_the_library(folders):
    vit, resnet = (load(folders / name) for name in ("vit", "resnet"))
    assert vit.width("hidden_states") == (17, 3, 16) and vit.width("attentions") == (17 * 17, 3)
    assert resnet.kinds == ("logits", "features") and resnet.width("features") == (16,)
    x = {"x": torch.randn(2, 3, 16, 16)}
    with torch.no_grad():
        given, own = vit.module(x), vit.module.model(pixel_values=x["x"], output_hidden_states=True)
        assert torch.equal(given["hidden_states"][:, :, 1], own.hidden_states[2])
        assert torch.allclose(vit.module.model.classifier(given["features"]), own.logits)
        assert torch.allclose(given["attentions"].reshape(2, 17, 17, 3).sum(2), torch.ones(2, 17, 3), atol=1e-5)


def test_another_architecture_gets_a_classifier_for_the_teachers_classes(folders, tmp_path):
    """A network for three classes learns ten from one that sees images in another size of its own."""
    run = kdhub.distill(recipe(folders, student=f"path:{folders / 'resnet'}"), out=tmp_path / "run")
    student = kdhub.load(run.folder)
    assert isinstance(student, ImageClassifier) and student.classes == [str(i) for i in range(10)]
    assert type(student.module.model).__name__ == "ResNetForImageClassification"


def test_layers_are_led_to_those_of_the_teacher(folders, tmp_path):
    options = {"of": "hidden_states", "max_steps": 3, "batch_size": 8, "precision": "float32"}
    run = kdhub.distill(recipe(folders, method="feature", options=options), out=tmp_path / "run")
    assert all(line["terms"]["teacher"] > 0 for line in run.metrics())


def test_what_does_not_fit(folders, tmp_path):
    import shutil

    with pytest.raises(CompatibilityError, match="this one has no layers of one width"):
        kdhub.distill(recipe(folders, teacher=f"path:{folders / 'resnet'}", student="layers:1"), out=tmp_path / "a")
    shutil.copytree(folders / "vit", tmp_path / "bare")
    (tmp_path / "bare/preprocessor_config.json").unlink()
    with pytest.raises(UntrustedError, match=r"no preprocessor_config\.json"):
        load(tmp_path / "bare")
    with pytest.raises(CompatibilityError, match="2 channels, the network takes 3"):
        load(folders / "vit").collate([{"x": np.zeros((2, 8, 8), np.uint8)}])
