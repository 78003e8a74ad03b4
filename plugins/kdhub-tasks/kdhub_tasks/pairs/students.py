"""Student builders of pairs of texts."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError
from kdhub.student import BuildContext
from kdhub_tasks.classes import classes_for

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from kdhub_tasks.pairs.towers import TwoTowerStudent


class TowerOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    of: str = Field("packaged:all-minilm-l6-v2", description="the text encoder that layers: and config: start from")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the student that becomes the encoder")


def towers(argument: str, context: BuildContext) -> TwoTowerStudent:
    """`towers:ENCODER`: any student for text embedding (`layers:2`, `hf:org/name`, `config:layers=2,hidden_size=64`) as
    both towers, with a fresh head; `towers:teacher`: the encoder of the cross-encoder that teaches.

    Raises:
        CompatibilityError: a token table; a teacher without an encoder.
    """
    import torch

    from kdhub import open_student
    from kdhub.recipes.doors import is_made_from_teacher
    from kdhub_tasks.pairs.heads import Shape
    from kdhub_tasks.pairs.towers import TwoTowerStudent

    if argument == "teacher":
        model, start = _of_teacher(context), {"how": "two towers of the teacher's encoder, fresh head"}
    else:
        options, task = TowerOptions.model_validate(context.options), "text-embedding"
        of = options.of if is_made_from_teacher(argument, task) else None
        inner = open_student({"source": argument, **options.options}, task, teacher=of, seed=context.seed)
        how = f"two towers, {inner.start.get('how', argument)}, fresh head"
        model, start = inner.module, {**inner.start, "how": how}
    torch.manual_seed(context.seed)
    layers = getattr(getattr(model[0], "auto_model", None), "config", None)
    top = min(Shape.top_layers, layers.num_hidden_layers) if layers is not None else 1
    return TwoTowerStudent(model, classes_for(context), Shape(top_layers=top), start)


towers.Options = TowerOptions


def _of_teacher(context: BuildContext) -> SentenceTransformer:
    from kdhub_tasks.embedding import encoder

    given = getattr(context.teacher, "model", None)
    network = getattr(getattr(given, "module", None), "model", None)
    if network is None or not hasattr(network, "base_model"):
        raise CompatibilityError("student towers:teacher is made from a cross-encoder, and this teacher is not one")
    body = copy.deepcopy(network.base_model)
    with tempfile.TemporaryDirectory() as folder:  # a SentenceTransformer is made from one
        body.save_pretrained(folder)
        given.tokenizer.save_pretrained(folder)
        return encoder.load(Path(folder))
