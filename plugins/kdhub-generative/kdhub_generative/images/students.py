"""Builders of models that draw."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext, sizes
from kdhub_generative.images.model import ImageModel, NetworkModel

SPARE = "*"
"""A word that no label has: what one picture is called when a model is tuned on it."""
LARGEST = 4096
"""Numbers of a picture that a perceptron over all of them may have."""


class FreshOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    conditional: bool | Literal["words"] = Field(
        False,
        description="learn the labels of the rows as conditions, and drawing without one; words: those they consist of",
    )
    prediction: str = Field(
        "v",
        pattern="^(v|epsilon|x0)$",
        description="what the network gives: v, epsilon (the noise) or x0 (the picture)",
    )


class Denoiser(NetworkModel):
    """`denoiser:width=256,blocks=4`: a fresh perceptron over all pixels, for pictures of a few hundred."""

    Options = FreshOptions

    def __init__(self, argument: str, context: BuildContext):
        settings = sizes("denoiser", argument, width=256, blocks=4)
        shape, more = of_rows("denoiser", context)
        if prod(shape) > LARGEST:
            raise UsageError(
                f"student denoiser reads all pixels at once, and a picture has {prod(shape):,} numbers of at most "
                f"{LARGEST:,}",
                hint="take a U-Net: --student unet:",
            )
        torch.manual_seed(context.seed)
        config = {"network": "denoiser-mlp", "settings": settings, "shape": shape, **more}
        super().__init__(config, {"how": f"fresh denoiser:{argument}"})


class Signal(ImageModel):
    """`signal`: the teacher's network, with its weights, as a one-call model: it is given the noise alone, and read at
    the constants of the noise end, whatever t is."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        fresh: bool = Field(False, description="random weights in place of the teacher's")

    def __new__(cls, argument: str, context: BuildContext) -> ImageModel:
        teacher = getattr(context.teacher, "model", None)
        if not isinstance(teacher, ImageModel) or teacher.one_call:
            raise CompatibilityError(
                "student signal is made from a teacher that draws in many steps"
                + (", and this one is a one-call model" if isinstance(teacher, ImageModel) else ""),
                hint="name a diffusion as the teacher: path:FOLDER, hf:org/name, recipe:digits-diffusion",
            )
        fresh = context.options.get("fresh", False)
        torch.manual_seed(context.seed)
        student = teacher.as_one_call(min(teacher.process.start, 0.99), fresh)
        student.module.requires_grad_(True)
        known = context.teacher.known
        start = {name: known.get(name) for name in ("revision", "licence")}
        start["base_model"] = known.get("id") if known.get("revision") else None
        start["how"] = "the teacher's network" + (", fresh" if fresh else "")
        student.start = {name: value for name, value in start.items() if value is not None}
        return student


def of_rows(kind: str, context: BuildContext) -> tuple[list[int], dict[str, Any]]:
    """The shape of a picture, and what else the options and the training rows say of a fresh model.

    Raises:
        UsageError: there are no pictures to know it from, or no labels where they are asked for.
    """
    shape, classes = context.facts.get("shape"), context.facts.get("classes")
    if shape is None:
        raise UsageError(
            f"student {kind} needs training rows with pictures to know their size", hint="give --data, such as digits"
        )
    conditional = context.options.get("conditional", False)
    if conditional and not classes:
        raise UsageError(f"student {kind}: the training rows have no labels (conditional=true)")
    more: dict[str, Any] = {"has_null": True} if conditional else {}
    if conditional == "words":
        more["words"] = [*sorted({word for name in classes for word in name.split()}), SPARE]
    elif conditional:
        more["classes"] = list(classes)
    return list(shape), {"prediction": context.options.get("prediction", "v"), **more}
