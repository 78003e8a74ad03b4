"""What a relation is between, as data: `profiles.yaml` has those that come with kdhub; a file of the same keys is
another."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kdhub.errors import UnknownNameError, UsageError
from kdhub.files import given_or_shared
from kdhub.plain_yaml import plain_yaml
from kdhub_knowledge.relations.spans import Span, longest, pairs_of

STOP = (
    "in with after during following due by from for to and or but was were is are has have had been be that which who "
    "whom whose when while on at of as than then because since although after before under despite without induced "
    "caused associated occurred occurring developed occurs appeared resolved may can could should must we our this "
    "these"
)
LEAD = (
    "a an the of case cases report reports two three four five one first rare some this these our his her "
    "its their patient patients with possible potential probable new unusual another several further "
    "developed developing experienced had presented showed reported observed describe described"
)


class Demonstration(BaseModel):
    """A sentence and its pairs, for a prompt."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, description="a sentence")
    pairs: list[list[str]] = Field(default_factory=list, description="its pairs, head and tail")

    @field_validator("pairs")
    @classmethod
    def _two(cls, value: Any) -> Any:
        return [list(pair) for pair in pairs_of(value)]


class Profile(BaseModel):
    """See `profiles.yaml`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    head: str = Field(min_length=1, description="what heads are called in a prompt")
    tail: str = Field(min_length=1, description="what tails are called")
    task: str = Field(min_length=1, description="the instruction of a prompt")
    notice: str = Field("", description="what a card says of its limits")
    demonstrations: list[Demonstration] = Field(default_factory=list, description="sentences with their pairs")
    mention: str = Field("", description="regular expression of a head")
    not_: str = Field("", alias="not", description="words that are none, though the expression fits")
    head_first: list[str] = Field(default_factory=list, description="expressions between a head and its tail")
    tail_first: list[str] = Field(default_factory=list, description="expressions between a tail and its head")
    stop: str = Field(STOP, description="words that end a tail")
    lead: str = Field(LEAD, description="words that a tail does not begin with")
    most_words: int = Field(6, ge=1, description="words of a tail that a cue finds, at most")

    @field_validator("mention", "head_first", "tail_first")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        for one in [value] if isinstance(value, str) else value:
            try:
                re.compile(one)
            except re.error as error:
                raise ValueError(f"it must be a regular expression (expression={one[:60]!r}): {error}") from None
        return value

    @cached_property
    def _mention(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\s*\n\s*", "", self.mention))

    def heads(self, text: str) -> list[Span]:
        """Where heads are, by their form alone."""
        if not self.mention:
            return []
        strange = set(self.not_.lower().split())
        found = (match for match in self._mention.finditer(text) if match.group().lower() not in strange)
        return longest(match.span() for match in found)


@lru_cache
def known() -> dict[str, Any]:
    return plain_yaml((Path(__file__).parent / "profiles.yaml").read_bytes())


@lru_cache
def profile(name: str) -> Profile:
    """The profile of a name, or in a YAML file.

    Raises:
        UnknownNameError: there is none. UsageError: the file cannot be read as one.
    """
    if name in known():
        return Profile.model_validate(known()[name])
    file = given_or_shared(name) if name.endswith((".yaml", ".yml")) else None
    if file is None:
        raise UnknownNameError("profile", name, known(), how_to_list=f"one of {', '.join(known())}, or a YAML file")
    try:
        return Profile.model_validate(plain_yaml(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"profile {name} cannot be read: {error}", hint="it has the keys of the one called ade"
        ) from error
