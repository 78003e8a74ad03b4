"""`kdhub.render`: a picture or an animation of what a student makes, in a file. The task says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdhub.errors import RecipeError, UsageError
from kdhub.files import atomic_write
from kdhub.pictures import FORMATS, Picture
from kdhub.recipes.recipe import explain, merge, parse_sets
from kdhub.recipes.resolve import Resolver
from kdhub.student import Student
from kdhub.verbs.load import load


def render(
    source: str | Path | Student,
    out: str | Path | None = None,
    *,
    member: str | Mapping[str, Any] | None = None,
    task: str | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    endpoint: str | None = None,
    resolver: Resolver | None = None,
    **options: Any,
) -> Picture:
    """Have a student's task render it, and write the file.

    Args:
        source: a run, a student's folder, or a student on a hub, as `kdhub.load` takes it; or a student.
        out: the file; its ending is that of what the task makes. None: nothing is written.
        task: what to open it as, where that is not what it says.
        set: options as texts, `seed=3`; `options` go before them. Known are those of the task's `RenderOptions`.

    Raises:
        RecipeError: every wrong option at once. UsageError: another ending than the picture has.
        CompatibilityError: the task renders nothing. Whatever `kdhub.load` raises.
    """
    resolver = resolver or Resolver()
    if out is not None and Path(out).suffix.lower() not in FORMATS:
        raise UsageError(f"{out} does not end with {' or '.join(FORMATS)}", hint="name the file so: --out picture.png")
    student = source
    if not isinstance(source, Student):
        student = load(source, member=member, task=task, endpoint=endpoint, resolver=resolver)
    own, layers = resolver.task(student.task), parse_sets(set)
    given = reduce(merge, (layer.values for layer in layers), {})
    try:
        checked = own.RenderOptions.model_validate({**given, **options})
    except ValidationError as error:
        raise RecipeError(explain(error, own.RenderOptions, layers)) from error
    made = own.render(student, checked)
    if out is not None:
        if (ending := Path(made.name).suffix) != Path(out).suffix.lower():
            raise UsageError(f"what is rendered ends with {ending}, and the file with {Path(out).suffix} ({out})")
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(Path(out), made.content)
    return made
