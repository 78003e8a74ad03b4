"""What may stand in a catalogue entry; imported when one is validated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdhub.errors import RecipeError, close_matches

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


def _known_form(value: str) -> str:
    from kdhub.data import forms

    if value not in (known := forms.names()):
        raise ValueError(f"should be one of {', '.join(known)}")
    return value


Format = Annotated[str, AfterValidator(_known_form)]
"""A form of rows that an installed task declares."""


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DataSource(Model):
    """One place the rows of a split can be had from: a file, the Hub, or a generator."""

    file: str | None = Field(None, description="path below KDHUB_DATA, with forward slashes")
    sha256: Sha256 | None = Field(None, description="of the file")
    hub: str | None = Field(None, description="org/name of a data set on the Hub")
    revision: str | None = Field(None, description="commit, tag or branch on the Hub")
    config: str | None = Field(None, description="configuration of the Hub data set")
    split: str | None = Field(None, description="split there, when its name differs")
    generator: str | None = Field(None, description="a kind of data set that makes the rows")
    argument: str | None = Field(None, description="of the generator")
    options: dict[str, Any] | None = Field(None, description="of the generator")
    columns: dict[str, str] | None = Field(None, description="our column name: theirs, or a template, here")
    checked: bool = Field(True, description="false: these rows were never compared with the stated fingerprint")

    @model_validator(mode="after")
    def _one_kind(self) -> DataSource:
        kinds = [k for k in ("file", "hub", "generator") if getattr(self, k)]
        if len(kinds) != 1:
            raise ValueError("a source is one of file, hub and generator")
        kind = kinds[0]
        if kind == "file" and not self.sha256:
            raise ValueError("a file has its sha256")
        if kind == "file" and (self.file.startswith(("/", "~")) or ".." in self.file.split("/")):
            raise ValueError("a file is a path below KDHUB_DATA")
        own = {
            "file": {"sha256"},
            "hub": {"revision", "config", "split"},
            "generator": {"argument", "options", "split"},
        }
        stray = [
            k
            for k in ("sha256", "revision", "config", "split", "argument", "options")
            if getattr(self, k) is not None and k not in own[kind]
        ]
        if stray:
            raise ValueError(f"{', '.join(stray)} says nothing about a {kind}")
        return self


class DataSplit(Model):
    sources: list[DataSource] = Field(min_length=1, description="tried in this order")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our column name: theirs, or a Jinja template of theirs; no others are read"
    )
    fingerprint: Sha256 | None = Field(None, description="of the rows, whichever source they come from")
    format: Format | None = None


class CatalogEntry(Model):
    name: Name | None = Field(None, description="the file's name; may be left out")
    summary: str = Field(min_length=1, description="one line")
    licence: str = ""


class DatasetEntry(CatalogEntry):
    format: Format | None = None
    language: str | None = None
    citation: str | None = None
    splits: dict[str, DataSplit] = Field(min_length=1)


class TeacherEntry(CatalogEntry):
    source: str = Field(min_length=1, description="kind:argument, org/name")
    task: str = Field(min_length=1)
    width: int | None = Field(None, ge=1, description="dimensions of its vectors")
    revision: str | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="options of its kind")


class StudentEntry(TeacherEntry):
    pass


class PublishedEntry(CatalogEntry):
    repo: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", description="org/name on a hub")
    kind: Literal["model", "dataset"] = "model"
    commit: str = Field(
        pattern=r"^[0-9a-f]{40}$", description="names can be registered again by others; commits cannot"
    )
    endpoint: str | None = Field(
        None, pattern=r"^https?://[^@\s]+$", description="the hub, when it is not the usual one"
    )
    task: str = Field(min_length=1)
    method: str = Field(min_length=1)
    teacher: str | None = None
    results: dict[str, float] = Field(default_factory=dict, description="`metric on data split`: value")
    parameters: int | None = Field(None, ge=0, description="of the student")
    size: int | None = Field(None, ge=0, description="bytes on disk")
    latency: float | None = Field(None, ge=0, description="ms for one example, where its maker measured it")
    updated: str | None = Field(None, description="when it was published, in ISO 8601")


MODELS: dict[str, type[CatalogEntry]] = {
    "datasets": DatasetEntry,
    "teachers": TeacherEntry,
    "students": StudentEntry,
    "published": PublishedEntry,
}


def validate(section: str, name: str, values: Mapping[str, Any], where: str) -> CatalogEntry:
    """An entry as its model.

    Raises:
        RecipeError: all problems, each with file, key and the nearest valid key.
    """
    model = MODELS[section]
    try:
        entry = model.model_validate(values)
    except ValidationError as error:
        raise RecipeError([f"{where}: {_sentence(item, model)}" for item in error.errors()]) from error
    if entry.name not in (None, name):
        raise RecipeError([f"{where}: 'name' is {entry.name!r}, the file is named {name!r}"])
    return entry.model_copy(update={"name": name})


def _sentence(item: Mapping[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        valid = _keys(model, item["loc"][:-1])
        near = close_matches(str(item["loc"][-1]), valid)
        return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}")
    if item["type"] == "missing":
        return f"{key!r} is missing"
    message = re.sub(r"^Value error, ", "", item["msg"])
    shown = repr(item["input"])
    return f"{key!r} is {shown if len(shown) <= 60 else shown[:57] + '...'}: {message[0].lower()}{message[1:]}"


def _keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Valid keys at a place of a nested model; indices and names of splits are passed over."""
    for part in location:
        if part in model.model_fields:
            model = {"splits": DataSplit, "sources": DataSource}.get(str(part), model)
    return list(model.model_fields)
