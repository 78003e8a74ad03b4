"""What plugins open by name: data sets, teachers and students of other kinds than their own.

Public as `kdhub.open_data`, `kdhub.open_teacher`, `kdhub.open_student` and `kdhub.open_task`. They take what a recipe
takes in the same place: a text (`stsb`, `path:./model`, `org/name`), or a mapping with `source` and options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdhub.errors import RecipeError
from kdhub.recipes.recipe import DataRef, Ref, explain
from kdhub.recipes.resolve import OPENING, Resolver
from kdhub.student import BuildContext

if TYPE_CHECKING:
    from kdhub.data.dataset import Data
    from kdhub.student import Student
    from kdhub.task import Task
    from kdhub.teacher import Teacher


_noted: ContextVar[list[Teacher] | None] = ContextVar("noted_teachers", default=None)


def open_data(source: str | Mapping[str, Any] | DataRef, *, on_bad_rows: str | None = None, **keys: Any) -> Data:
    """A data set.

    Args:
        source: as `--data` takes it, or as an entry of `data.train` in a recipe.
        on_bad_rows: "stop" or "skip"; None for what holds for the data set whose kind asks, else "stop".
        keys: further keys of such an entry: `split`, `columns`, `where`, `limit`, `options` (of the data set's kind).

    Raises:
        UnknownNameError: nobody provides it. RecipeError: a key that an entry does not have. DataError, UsageError: it
            cannot be had.
    """
    if not isinstance(source, DataRef):
        source = _ref(DataRef, source, {k: v for k, v in keys.items() if v is not None})
    whole = OPENING.get(None)
    data = Resolver().data(source, on_bad_rows or (whole.on_bad_rows if whole else "stop"))
    if whole:
        whole.parts.append(data)
    return data


def open_teacher(source: str | Mapping[str, Any] | Ref, task: str) -> Teacher:
    """A teacher of a task, by name. Weights are loaded when it is asked for a signal."""
    teacher = Resolver().teacher(_ref(Ref, source), task)
    if (noted := _noted.get()) is not None:
        noted.append(teacher)
    if whole := OPENING.get(None):
        teacher.on_bad_rows = whole.on_bad_rows
    return teacher


@contextmanager
def noting_teachers() -> Iterator[list[Teacher]]:
    """The teachers that are opened by name inside: of data sets, those that have a part in their rows."""
    noted: list[Teacher] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def open_student(
    source: str | Mapping[str, Any] | Ref,
    task: str,
    *,
    teacher: Teacher | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Student:
    """A student's start, by name.

    Args:
        teacher: what it is made from, where its kind is made from one (`layers:2`).
        seed: of fresh weights.
        facts: of the training rows (`Task.survey`).
    """
    resolver = Resolver()
    if isinstance(teacher, str | Mapping):
        teacher = resolver.teacher(_ref(Ref, teacher), task)
    return resolver.student(
        _ref(Ref, source), BuildContext(resolver.task(task), teacher, seed, facts=dict(facts or {}))
    )


def open_task(name: str) -> Task:
    """A task, by name."""
    return Resolver().task(name)


def is_made_from_teacher(source: str, task: str) -> bool:
    """Whether a kind of student is made from a teacher's weights or tokenizer."""
    return Resolver().target("student", source, task).entry.spec.from_teacher


def _ref(model: type[Any], source: Any, keys: Mapping[str, Any] | None = None) -> Any:
    if isinstance(source, model):
        return source
    given = {"source": source} if isinstance(source, str) else dict(source)
    try:
        return model.model_validate({**given, **(keys or {})})
    except ValidationError as error:
        raise RecipeError(explain(error, model)) from error
