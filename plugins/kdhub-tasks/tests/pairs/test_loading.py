"""Which task opens a bare folder, and that models of tokens need no sentence-transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kdhub_tasks.classification import tiny as of_classes
from kdhub_tasks.pairs import tiny as of_pairs
from kdhub_tasks.questions import tiny as of_questions
from kdhub_tasks.tiny import tiny_encoder

from kdhub.plugins.registry import Registry
from kdhub.recipes.folders import guess_task


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Task -> folder of a saved model."""
    made = {}
    for task, recipe in (
        ("text-pairs", of_pairs.recipe),
        ("question-answering", of_questions.recipe),
        ("fill-mask", of_classes.masked_recipe),
    ):
        recipe = recipe(tmp_path_factory.mktemp(task))
        made[task] = Path(recipe["teacher"]["source"].removeprefix("path:"))
    return made


def test_models_of_tokens_open_without_sentence_transformers(folders, tmp_path):
    code = (
        "import json, sys\n"
        "sys.modules['sentence_transformers'] = None\n"
        "import kdhub\n"
        "for task, folder in json.loads(sys.argv[1]).items():\n"
        "    student = kdhub.load(folder, task=task)\n"
        "    assert student.task == task and student.signals\n"
        "assert not any(name.startswith('kdhub_tasks.embedding.') for name in sys.modules if 'spec' not in name)\n"
    )
    environment = {**os.environ, "KDHUB_HOME": str(tmp_path)}
    given = json.dumps({task: str(folder) for task, folder in folders.items()})
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_bare_folder_is_of_its_task(folders, tmp_path):
    registry = Registry()
    for task in ("question-answering", "fill-mask"):
        assert guess_task(folders[task], registry) == task
    assert guess_task(tiny_encoder(tmp_path / "encoder"), registry) == "text-embedding"
    assert guess_task(tiny_encoder(tmp_path / "plain", plain=True), registry) == "text-embedding"


def test_a_cross_encoder_is_told_by_its_files_or_by_the_data(folders, tmp_path):
    """A folder of the transformers library alone may as well be a classifier of texts."""
    from sentence_transformers import CrossEncoder

    registry = Registry()
    plain = folders["text-pairs"]
    assert guess_task(plain, registry, [["sentence1", "sentence2", "score"]]) == "text-pairs"
    assert guess_task(plain, registry, [["text", "label"]]) == "text-classification"
    CrossEncoder(str(plain), device="cpu").save_pretrained(str(tmp_path / "saved"))
    assert guess_task(tmp_path / "saved", registry) == "text-pairs"
    config = json.loads((plain / "config.json").read_text())  # as sentence-transformers 4 and 5 wrote it
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_text(json.dumps({**config, "sentence_transformers": {"version": "5.1.0"}}))
    assert guess_task(older, registry) == "text-pairs"


def test_an_encoder_with_another_models_name_is_an_encoder(tmp_path):
    """As all-mpnet-base-v2, whose configuration is that of the masked language model it was."""
    folder = tiny_encoder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    assert guess_task(folder, Registry()) == "text-embedding"
