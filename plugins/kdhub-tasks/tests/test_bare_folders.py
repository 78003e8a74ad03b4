"""`kdhub evaluate path:FOLDER`: models that other libraries saved are opened by the task that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kdhub
from kdhub.errors import UsageError

PRIMARY = {
    "text-classification": "accuracy",
    "token-classification": "entity-f1",
    "fill-mask": "masked-accuracy",
    "question-answering": "answer-f1",
    "causal-lm": "perplexity",
    "text-embedding": "spearman",
    "text-pairs": "pearson",
}


def saved(task: str, folder: Path) -> tuple[Path, list[str]]:
    """The folder of a tiny model as its library saves it, and data to score it on."""
    recipe = kdhub.open_task(task).tiny_recipe(folder)
    data = [one if isinstance(one, str) else one["source"] for one in recipe["evaluation"]["data"]]
    return Path(recipe["teacher"]["source"].removeprefix("path:")), data


@pytest.mark.parametrize("task", PRIMARY)
def test_its_task_is_recognised(task, tmp_path):
    folder, data = saved(task, tmp_path)
    report = kdhub.evaluate(f"path:{folder}", data=data, cost=False)
    assert PRIMARY[task] in {measure.metric for measure in report.measures}


def test_an_image_classifier_is_recognised(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=3, num_labels=10))
    model.config.id2label = {i: str(i) for i in range(10)}
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    report = kdhub.evaluate(f"path:{tmp_path}", data="digits:test", cost=False)
    assert {"accuracy", "brier"} <= {measure.metric for measure in report.measures}


def test_a_cross_encoder_that_its_library_saved_is_recognised(tmp_path):
    from sentence_transformers import CrossEncoder

    folder, data = saved("text-pairs", tmp_path)
    CrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    report = kdhub.evaluate(f"path:{tmp_path / 'saved'}", data=data, cost=False)
    assert PRIMARY["text-pairs"] in {measure.metric for measure in report.measures}


def test_a_folder_that_says_nothing_is_asked_about(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    with pytest.raises(UsageError) as asked:
        kdhub.evaluate(f"path:{tmp_path}", data="digits:test", cost=False)
    assert "--task" in asked.value.hint
