"""What methods here must see of a teacher's network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdhub.errors import CompatibilityError

if TYPE_CHECKING:
    from kdhub.student import Student
    from kdhub.teacher import Teacher


def network_of(teacher: Teacher | None) -> Student:
    """The model behind a teacher.

    Raises:
        CompatibilityError: it has none, as an API or an ensemble.
    """
    model = getattr(teacher, "model", None)
    if getattr(model, "module", None) is None:
        raise CompatibilityError(
            "the teacher is not one saved network, whose layers can be seen",
            hint="take a saved model: path:FOLDER, hf:org/name, recipe:NAME",
        )
    return model


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer.

    Attributes:
        names: of each, as a module.
        attention: the name of the attention inside each.
        positions, width: of what each gives.
    """

    names: list[str]
    attention: str
    positions: int
    width: int


def blocks_of(model: Student, whose: str) -> Blocks:
    """Of a built-in `vit`, or of a vision transformer of the transformers library whose layers are all of one width.

    Args:
        whose: teacher or student, for the error.

    Raises:
        CompatibilityError: it is no such network.
    """
    from torch import nn

    states = model.width("hidden_states") if "hidden_states" in model.kinds else ()
    for name, part in model.module.named_modules():
        if isinstance(part, nn.ModuleList) and states[1:2] == (len(part),):
            if attention := next((child for child, _ in part[0].named_children() if "att" in child), None):
                return Blocks([f"{name}.{i}" for i in range(len(part))], attention, states[0], states[2])
    raise CompatibilityError(
        f"the {whose} is no chain of blocks of one width with attention, but a {type(model.trunk).__name__}",
        hint="vit:patch=N,width=N,layers=N,heads=N, or as a teacher also a ViT of transformers (hf:, path:)",
    )
