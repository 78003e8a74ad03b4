"""What a language file says of typed heads (`typed`), and what is done by it alone: `zh` has it, any language may.

    person, aliases      how rows write a lone person; what models write in its place at the beginning of a head
    shortest, longest    characters of a head
    negation             see `negation`
    types                name -> `positive` and `negative`, each with `task` (what such a head is), `seeds`, `relations`
    categories           topics of daily life
    prompts              `heads` with {task}, {category}, {seeds}, {many}; `judge` with {examples} and {head};
                         `example` with {head} and {answer}, one of these examples; `tails` with {task}, {examples},
                         {sentence} and {many}; `check` with {sentence}, which asks whether a triple is right
    affirms, denies      how replies to `judge` and `check` begin
    anchors              judged heads, `valid` and `invalid`, by polarity

The wording of all prompts is a reconstruction: of arXiv:2306.10241 the abstract and the beginning could be read.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdhub.errors import DataError, UsageError, close_matches
from kdhub.files import canonical_json
from kdhub_knowledge.commonsense.language import Language, open_language
from kdhub_knowledge.commonsense.negation import Negation

Text = Annotated[str, Field(min_length=1)]
POLARITIES = ("positive", "negative")
PLACEHOLDERS = {
    "heads": ("task", "category", "seeds", "many"),
    "judge": ("examples", "head"),
    "example": ("head", "answer"),
    "tails": ("task", "examples", "sentence", "many"),
    "check": ("sentence",),
}
_MARKS = " " + "".join(c for c in map(chr, range(0x3100)) if unicodedata.category(c)[0] in "PS")
_LINE = re.compile(r"^\s*(?:[(（]?\d+[)）.、:：．]|[-*•·])\s*(.+?)\s*$", re.M)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(_Part):
    """One polarity of a type."""

    task: Text
    seeds: tuple[Text, ...] = Field(min_length=1)
    relations: tuple[Text, ...] = Field(min_length=1)


class Anchors(_Part):
    valid: tuple[Text, ...] = Field(min_length=1)
    invalid: tuple[Text, ...] = Field(min_length=1)


class Typed(_Part):
    person: Text
    aliases: tuple[Text, ...] = ()
    shortest: int = Field(3, ge=1)
    longest: int = Field(20, ge=1)
    negation: Negation
    types: dict[str, dict[str, Kind]] = Field(min_length=1)
    categories: tuple[Text, ...] = Field(min_length=1)
    prompts: dict[str, Text]
    affirms: tuple[Text, ...] = Field(min_length=1)
    denies: tuple[Text, ...] = Field(min_length=1)
    anchors: dict[str, Anchors] = {}

    @model_validator(mode="after")
    def _fits(self) -> Typed:
        for name, needed in PLACEHOLDERS.items():
            missing = [one for one in needed if f"{{{one}}}" not in self.prompts.get(name, "")]
            if missing:
                prompt = self.prompts.get(name, "")
                raise ValueError(f"prompts.{name} must contain {{{missing[0]}}} (prompt={prompt[:60]!r})")
        strange = {polarity for kinds in (*self.types.values(), self.anchors) for polarity in kinds} - {*POLARITIES}
        if strange:
            raise ValueError(f"types and anchors must be positive or negative (polarity={sorted(strange)})")
        return self


class Head(NamedTuple):
    """A head, or why it is none."""

    text: str
    fault: str | None


class TypedLanguage:
    """A language and what it says of typed heads."""

    def __init__(self, language: Language, typed: Typed):
        self.language, self.typed = language, typed
        self.spaces = language.spaces

    @cached_property
    def digest(self) -> str:
        """Of all that the file says."""
        return hashlib.sha256(canonical_json(self.language.model_dump(mode="json"))).hexdigest()

    @cached_property
    def _persons(self) -> tuple[str, ...]:
        return (*self.language.persons, self.typed.person)

    @cached_property
    def negation(self) -> Negation:
        own = {"subjects": tuple(sorted(self._persons, key=len, reverse=True)), "spaces": self.spaces}
        return self.typed.negation.model_copy(update=own)

    def kinds(self, types: list[str] | None = None) -> dict[tuple[str, str], Kind]:
        """(type, polarity) -> what such heads are; types are `event` or one polarity of it, `event/negative`.

        Raises:
            UsageError: the file has no such type.
        """
        known = {(name, p): kinds[p] for name, kinds in self.typed.types.items() for p in POLARITIES if p in kinds}
        for one in types or ():
            if one not in {name for name, _ in known} | {"/".join(pair) for pair in known}:
                close = close_matches(one, {name for name, _ in known})
                raise UsageError(
                    f"the language file {self.language.language!r} has no type {one!r} of heads (types={types})",
                    hint=f"Did you mean {close[0]!r}?" if close else f"it has {', '.join(map('/'.join, known))}",
                )
        return {pair: k for pair, k in known.items() if not types or pair[0] in types or "/".join(pair) in types}

    def polarity(self, row: Mapping[str, Any]) -> str:
        """That which a row states, else that of its head."""
        return POLARITIES[
            bool(row["negative"] if row.get("negative") is not None else self.negation.holds(row["head"]))
        ]

    def relations_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The relations that fit the type of a head; none for a type that the file does not know."""
        kind = self.typed.types.get(row["head_type"], {}).get(polarity_of(row))
        return kind.relations if kind else ()

    def sentence(self, relation: str, head: str, tail: str | None = None) -> str:
        """The sentence of a triple, open without a tail, with persons as rows have them."""
        persons = self.language.persons
        names = persons if persons[0] in head else (self.typed.person, *persons[1:])
        return self.language.sentence(relation, head, names, tail)

    def plain(self, text: str) -> str:
        """A head as rows have it: NFKC, without punctuation at its ends and spaces that mean nothing, a lone person as
        `person`, two as the first and the second of `persons`."""
        text = unicodedata.normalize("NFKC", text)
        text = re.sub(r"\s+", " " if self.spaces else "", text).strip()
        text = text.strip(_MARKS)
        for alias in sorted(self.typed.aliases, key=len, reverse=True):
            if text.startswith(alias) and not text.startswith(self._persons):
                text = self.typed.person + text[len(alias) :]
        first, *others = self.language.persons
        if text.startswith(first) and not any(other in text for other in others):
            text = self.typed.person + text[len(first) :]
        return text

    def head(self, text: str, negative: bool) -> Head:
        """A line of a reply as a head, with the reason where it is dropped."""
        if self.refuses(text):
            return Head(text, "refusals")
        made = self.plain(text)
        if not self.typed.shortest <= len(made) <= self.typed.longest:
            return Head(made, "empty" if not made else "too short or too long")
        if self.negation.holds(made) != negative:
            return Head(made, "negated against their type" if not negative else "not negated against their type")
        return Head(made, None)

    @cached_property
    def bare(self) -> Callable[[str], str]:
        """A head without its persons and negators, which many heads share."""
        persons = re.compile("|".join(map(re.escape, sorted(self._persons, key=len, reverse=True))))
        return lru_cache(maxsize=100_000)(lambda head: persons.sub("", self.negation.without(head)))

    def refuses(self, text: str) -> bool:
        """Whether a text speaks of the model instead of answering."""
        return any(one in text.lower() for one in self.language.refusals)

    def verdict(self, reply: str) -> bool | None:
        """What a reply says; None where it begins with neither word."""
        text = re.sub(r"^.{0,8}[:：]", "", reply.strip().split("\n")[0]).strip().lower()
        text = text.lstrip("\"'“”‘’「」『』*# ")
        for words, value in ((self.typed.denies, False), (self.typed.affirms, True)):  # 不是 and no begin like no other
            if text.startswith(words):
                return value
        return None


def polarity_of(row: Mapping[str, Any]) -> str:
    return POLARITIES[bool(row["negative"])]


def lines_of(reply: str) -> list[str]:
    """The items of a numbered list or a list with bullets; what is beside it is left out."""
    return _LINE.findall(reply)


@lru_cache
def open_typed(name: str) -> TypedLanguage:
    """A language by name or file, with its typed heads.

    Raises:
        UsageError: it has none. DataError: they cannot be read; says which key is wrong.
    """
    language = open_language(name)
    given = getattr(language, "typed", None)
    if not isinstance(given, Mapping):
        raise UsageError(
            f"the language file {name!r} has no key `typed`", hint="zh has: its types of heads, negators and prompts"
        )
    try:
        return TypedLanguage(language, Typed.model_validate(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("typed", *first["loc"])))
        raise DataError(f"language file {name}: {where}: {first['msg']} ({error.error_count()} in all)") from error
