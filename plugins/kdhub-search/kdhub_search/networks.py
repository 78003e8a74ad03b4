"""What methods here must see of a teacher's network."""

from __future__ import annotations

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
