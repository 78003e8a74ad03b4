"""The start of an edit: a diffusion, and a copy of it that will guide it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError
from kdhub.student import BuildContext
from kdhub_generative.editing.guides import Guide, Lora, attach
from kdhub_generative.editing.model import EditModel
from kdhub_generative.images.model import ImageModel


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    lora: Lora | None = Field(None, description="tune low-rank adapters in place of all weights: {r: 8, alpha: 16}")


def build_guide(argument: str, context: BuildContext) -> EditModel:
    """`guide`: the teacher as the base, with the guides that it may have already, and a copy of it as one more.

    Raises:
        CompatibilityError: the teacher is not a diffusion.
    """
    teacher = getattr(context.teacher, "model", None)
    if not isinstance(teacher, ImageModel) or teacher.one_call:
        raise CompatibilityError(
            "student guide is a copy of a teacher that draws in many steps",
            hint="name a diffusion as the teacher: path:FOLDER, hf:org/name, recipe:coloured-digits",
        )
    base, guides = (teacher.base, teacher.guides) if isinstance(teacher, EditModel) else (teacher, [])
    options: dict[str, Any] = context.options
    lora = Lora(**options["lora"]) if options.get("lora") else None
    copy = base.copied()
    torch.manual_seed(context.seed)
    if lora is not None:
        attach(copy.root, lora)
    known = context.teacher.known
    start = {name: known.get(name) for name in ("revision", "licence")}
    start["base_model"] = known.get("id") if known.get("revision") else None
    start |= {"how": "a copy of the teacher's network", "relation": "finetune" if lora is None else "adapter"}
    start = {name: value for name, value in start.items() if value is not None}
    return EditModel(base, [*guides, Guide(copy, None, weight=0.0, lora=lora)], start=start)


build_guide.Options = Options
