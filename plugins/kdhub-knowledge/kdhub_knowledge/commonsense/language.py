"""A language of a commonsense graph: how events, tails and pairs are worded. All of it is data, a YAML file a language;
`en` is English, another language is another file (`language: my/zh.yaml`).

    language, spaces     its code; whether words are separated by spaces (then names are found as whole words only)
    persons              how rows write the persons of an event: [PersonX, PersonY]
    target, names        who they are in a prompt: in the event asked about, and in examples and the critic's pairs
    stop                 what ends a sentence
    nothing, refusals    tails that say nothing; how a model begins where it does not answer, in lower case
    events               `item`, a line of the list that a prompt shows; `starts`, one of which an event begins with;
                         `characters`, the only ones that it has (a class of a regular expression); `seeds`
    relations            name -> `task`, a line on what is asked; `sentence`, an open one that ends before the tail;
                         `phrase`, which makes of head and tail a premise and a hypothesis; `examples` [head, tail]
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdhub.errors import DataError, UsageError, close_matches
from kdhub.plain_yaml import plain_yaml

HERE = Path(__file__).parent
Text = Annotated[str, Field(min_length=1)]


class Relation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    task: Text
    sentence: Text
    phrase: Text
    examples: tuple[tuple[Text, Text], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_head(self) -> Relation:
        if "{head}" not in self.sentence:
            raise ValueError(f"sentence must contain {{head}} (sentence={self.sentence!r})")
        return self


class Events(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    item: Text
    starts: tuple[Text, ...] = Field(min_length=1)
    characters: str = Field("", description="none: all")
    seeds: tuple[Text, ...] = Field(min_length=1)


class Language(BaseModel):
    """What a language file says, and what is done by it alone."""

    model_config = ConfigDict(extra="allow", frozen=True)
    language: Text
    spaces: bool = True
    persons: tuple[Text, ...] = Field(min_length=1)
    target: tuple[Text, ...] = Field(min_length=1)
    names: tuple[Text, ...]
    stop: Text
    nothing: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    events: Events
    relations: dict[str, Relation] = Field(min_length=1)

    @model_validator(mode="after")
    def _enough_names(self) -> Language:
        many, names = len(self.persons), len(set(self.names))
        if len(set(self.target) - set(self.persons)) != many or names < many:
            raise ValueError(
                f"target must be {many} different names, as there are persons, and names at least as many "
                f"(target={list(self.target)}, {names} names)"
            )
        return self

    # -- names ------------------------------------------------------------------------------------------------

    def _whole(self, names: Sequence[str]) -> re.Pattern[str]:
        """Finds these names, as whole words where the language has spaces between words."""
        longest = sorted(names, key=len, reverse=True)
        found = "|".join(map(re.escape, longest))
        return re.compile(rf"\b(?:{found})\b" if self.spaces else found)

    @cached_property
    def _persons(self) -> re.Pattern[str]:
        return self._whole(self.persons)

    def with_names(self, text: str, names: Sequence[str]) -> str:
        """A text with a name for each of `persons`."""
        of = dict(zip(self.persons, names))
        return self._persons.sub(lambda found: of[found[0]], text)

    def without_names(self, text: str, names: Sequence[str]) -> str:
        """The other way round: "Alex" becomes PersonX, "Alexander" stays."""
        of = dict(zip(names, self.persons))
        return self._whole(names).sub(lambda found: of[found[0]], text)

    def free_names(self, text: str) -> tuple[str, ...]:
        """Names for the persons of the event asked about: those of `target`, unless the text has them already.

        Raises:
            DataError: the text has all names that there are.
        """
        free = [name for name in (*self.target, *self.names) if not self._whole([name]).search(text)]
        if len(free) < len(self.persons):
            raise DataError(f"the event {text!r} has all names of the language file {self.language!r} in it")
        return tuple(free[: len(self.persons)])

    def drawn_names(self, draw: random.Random, text: str = "") -> tuple[str, ...]:
        """Different names for the persons, at random, none that the text has."""
        free = [name for name in self.names if name not in text]
        return tuple(draw.sample(free if len(free) >= len(self.persons) else self.names, len(self.persons)))

    # -- sentences --------------------------------------------------------------------------------------------

    def chosen(self, relations: Sequence[str] | None) -> dict[str, Relation]:
        """Some of the relations, in the order of the file; all for none.

        Raises:
            UsageError: the file has no such relation.
        """
        for name in relations or ():
            if name not in self.relations:
                close = close_matches(name, self.relations)
                raise UsageError(
                    f"the language file {self.language!r} has no template of the relation {name!r} "
                    f"(relations={list(relations)})",
                    hint=f"Did you mean {close[0]!r}?"
                    if close
                    else f"it has {', '.join(self.relations)}; add it there",
                )
        return {name: one for name, one in self.relations.items() if not relations or name in relations}

    @property
    def gap(self) -> str:
        """What stands between words."""
        return " " if self.spaces else ""

    def sentence(self, relation: str, head: str, names: Sequence[str], tail: str | None = None) -> str:
        """The sentence of a triple; without a tail it is open."""
        of = dict(zip(("x", "y", "z"), names))
        open_ = _filled(self.relations[relation].sentence, head=self.with_names(head, names), **of)
        return open_ if tail is None else f"{open_}{self.gap}{self.with_names(tail, names)}{self.stop}"

    def pair(self, row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, str]:
        """A triple as premise and hypothesis, what a critic reads."""
        phrase = _filled(self.relations[row["relation"]].phrase, **dict(zip(("x", "y", "z"), names)))
        return self.with_names(row["head"], names), f"{phrase}{self.gap}{self.with_names(row['tail'], names)}"


def _filled(template: str, **values: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


@lru_cache
def open_language(name: str) -> Language:
    """A language by its name (`en`), or by the path of its file.

    Raises:
        UsageError: there is none. DataError: its file cannot be read; says which key is wrong.
    """
    ours = HERE / f"{name}.yaml"
    path = ours if ours.is_file() else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in HERE.glob("*.yaml") if not file.stem.startswith("world")))
        raise UsageError(f"there is no language {name!r}", hint=f"{known}, or the path of a file like en.yaml")
    try:
        return Language.model_validate(plain_yaml(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"language file {path}: {where}: {first['msg']} ({error.error_count()} in all)") from error
    except (OSError, ValueError) as error:
        raise DataError(f"language file {path} cannot be read: {error}") from error
