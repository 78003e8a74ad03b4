"""`space:...`: a student that is still to be found. A method that searches reads `student.space`; to any other it is
the smallest of the space."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UnknownNameError
from kdhub.student import BuildContext, Student
from kdhub_search.spaces.space import NAMED, Space


class SpaceOptions(BaseModel):
    """Of a space."""

    model_config = ConfigDict(extra="forbid")
    choices: dict[str, list[Any]] = Field(
        default_factory=dict, description="values of each {name} of the template, or other values of a named space's"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="further options of the students, in which {name} may stand as well"
    )


def space(argument: str, context: BuildContext) -> Student:
    """`space:residual`, or `space:vit:patch=2,width={width},layers={layers},heads=4` with `choices`.

    Raises:
        UsageError: an empty space, or choices that do not match the template. UnknownNameError: no space of this name.
        CompatibilityError: the builder takes none of its students.
    """
    from kdhub import open_student

    given, template, defaults = context.options.get("choices") or {}, argument, {}
    if "{" not in argument:
        if argument not in NAMED:
            raise UnknownNameError("space", argument, NAMED)
        template, defaults = NAMED[argument]

    def opened(source: dict[str, Any], seed: int) -> Student:
        return open_student(source, context.task.name, teacher=context.teacher, seed=seed, facts=context.facts)

    found = Space(template, {**defaults, **given}, opened, context.options.get("settings"))
    student = found.build(found.smallest(), context.seed)
    student.space = found
    student.start["how"] = f"the smallest of the space {argument}"
    return student


space.Options = SpaceOptions
