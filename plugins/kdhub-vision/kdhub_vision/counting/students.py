"""Builders of counters: CSRNet at any ratio, and any counter with its widths divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext
from kdhub_vision.counting.model import Counter
from kdhub_vision.counting.networks import BACK, FRONT, divided

LIMIT = 64
"""Widths are divided by this at most: 64 becomes 1."""


class CsrnetOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    vgg: str | None = Field(
        None,
        description="a safetensors file with the weights of a VGG-16 (features.N), for the front of csrnet:1",
    )


def csrnet(argument: str, context: BuildContext) -> Counter:
    """`csrnet:4`: a fresh CSRNet with every width divided by 4, which is a sixteenth of its weights.

    Raises:
        UsageError: no such number, or weights of a VGG-16 that do not fit.
    """
    by = ratio("csrnet", argument)
    torch.manual_seed(context.seed)
    sizes = divided({"front": list(FRONT), "back": list(BACK)}, by)
    student = Counter({"network": "csrnet", **sizes}, {"how": f"fresh csrnet:{argument}"})
    if vgg := context.options.get("vgg"):
        _take_front(student, Path(vgg).expanduser())
        student.start["how"] += f", its front from {Path(vgg).name}"
    return student


csrnet.Options = CsrnetOptions


def divided_teacher(argument: str, context: BuildContext) -> Counter:
    """`divided:4`: a fresh network in the shape of the teacher's, with every width divided by 4.

    Raises:
        UsageError: no such number. CompatibilityError: the teacher's network is not known.
    """
    by = ratio("divided", argument)
    model = getattr(context.teacher, "model", None)
    if not isinstance(model, Counter):
        raise CompatibilityError("divided:N needs a teacher for counting that is at hand: path:FOLDER or recipe:NAME")
    torch.manual_seed(context.seed)
    settings = {k: v for k, v in model.config.items() if k != "tile"}
    return Counter(divided(settings, by), {"how": f"fresh, widths of the teacher divided by {argument}"})


def ratio(kind: str, argument: str) -> float:
    """What widths are divided by."""
    try:
        by = float(argument)
    except ValueError:
        by = 0.0
    if not 1 <= by <= LIMIT:
        raise UsageError(
            f"student {kind}:{argument} must have a number of 1 to {LIMIT}, by which widths are divided",
            hint=f"{kind}:4 has a quarter of the widths, and about a sixteenth of the weights",
        )
    return by


def _take_front(student: Counter, file: Path) -> None:
    """The convolutions of a VGG-16, whose layers before the fourth pool the front is."""
    try:
        given = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"vgg={file}: {error}", hint="such as model.safetensors of timm/vgg16.tv_in1k") from error
    front: dict[str, Any] = student.module.front.state_dict()
    wrong = [n for n, t in front.items() if getattr(given.get(f"features.{n}"), "shape", None) != t.shape]
    if wrong:
        raise UsageError(
            f"vgg={file} has no features.{wrong[0]} of shape {list(front[wrong[0]].shape)}",
            hint="it is for csrnet:1, whose front is that of a VGG-16 without batch norm",
        )
    student.module.front.load_state_dict({n: given[f"features.{n}"] for n in front})
