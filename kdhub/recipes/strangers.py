"""What of a recipe that came with somebody else's student is done here without being told to.

Nothing that spends this user's keys, reads this machine's files or asks another repository's model: of sources those
that anybody can have, of options those that hold a number, a switch or a choice from a list. The rest needs a person's
word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kdhub.data.dataset import parse_source
from kdhub.errors import KdhubError
from kdhub.hub.files import short
from kdhub.recipes.recipe import DataRef, Ref
from kdhub.recipes.resolve import Resolver

FLAG = "--trust-recipe"

CODE = "trust_remote_code"
"""The switch by which Python of a repository runs, wherever there is one."""

_MOST = 2**24
"""What the numbers of an evaluation may come to together: rows times tokens times samples of half a day's work."""
_HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,200})?")
_NUMBERS = re.compile(r"[\d.,x-]+")
_WORD = re.compile(r"[\w.-]{1,200}")


def refused_data(ref: DataRef) -> str:
    """Why a data set that the recipe names is not opened; "" when it is."""
    kind, argument = parse_source(ref.source)
    named = short(ref.source)
    if kind not in (None, "hf"):
        return f"{named} exists only on its maker's machine ({FLAG} opens it)"
    if kind == "hf" and not _HUB.fullmatch(argument):
        return f"{named} is not ORG/NAME of a hub"
    told = [
        key
        for key, value in ref.options.items()
        if key == CODE
        or not (all(map(_plain, _items(value))) or (kind == "hf" and key == "config" and _WORD.fullmatch(str(value))))
    ]
    return f"{named} asks for {_names(told)} ({FLAG} does it)" if told else ""


def refused_teacher(ref: Ref, task: str, resolver: Resolver) -> str:
    """Why the teacher is not asked, even where that is wanted; "" when it is."""
    kind, argument = parse_source(ref.source)
    named = short(ref.source)
    if kind == "hf":
        if not _HUB.fullmatch(argument):
            return f"{named} is not ORG/NAME of a hub"
    elif kind is not None:
        try:
            spec = resolver.registry.find("teacher", kind, task).spec
        except KdhubError as error:
            return error.message
        if argument != (spec.example or None) and not _NUMBERS.fullmatch(argument):
            return f"{named} exists only on its maker's machine, or may cost money ({FLAG} asks it)"
    try:
        asked = _asked(resolver.model_options("teacher", ref, task))
        told = [name for name, _ in asked if name in ref.options]  # what the catalogue sets is this user's own
    except KdhubError as error:
        return short(error.message)
    return f"{named} asks for {_names(told)} ({FLAG} does it)" if told else ""


def bounded(options: BaseModel) -> tuple[BaseModel, str]:
    """Options of an evaluation with what a stranger may not ask for as it is by default, and what that was, or ""."""
    told = {name: value for name, value in _asked(options)}
    counts = {name: value for name, value in _numbers(options) if name not in told}
    work = 1.0
    for value in counts.values():
        work *= max(1, abs(value))
    if work > _MOST:
        told |= counts
    if not told:
        return options, ""
    defaults = {name: type(options).model_fields[name].get_default(call_default_factory=True) for name in told}
    shown = ", ".join(f"{name}={short(str(value))}" for name, value in told.items())
    return options.model_copy(update=defaults), f"its recipe asks for {shown} ({FLAG} does it)"


def _asked(options: BaseModel) -> Iterator[tuple[str, Any]]:
    """Options that are set to more than a number, a switch or a choice from a list."""
    for name in sorted(options.model_fields_set):
        value, field = getattr(options, name), type(options).model_fields[name]
        default = field.get_default(call_default_factory=True)
        if default is not PydanticUndefined and value == default:
            continue
        choices = {*_choices(field.annotation)}
        if name == CODE or not all(
            _plain(item) or (isinstance(item, str) and item in choices) for item in _items(value)
        ):
            yield name, value


def _numbers(options: BaseModel) -> Iterator[tuple[str, float]]:
    """Those that say how much is done: whole numbers, seeds apart."""
    for name in sorted(options.model_fields_set):
        value = getattr(options, name)
        if isinstance(value, int) and not isinstance(value, bool) and name != "seed":
            yield name, value


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) and len(value) <= 100 else [value]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    for inner in get_args(annotation):
        yield from _choices(inner)


def _names(keys: list[str]) -> str:
    return ", ".join(map(short, keys))
