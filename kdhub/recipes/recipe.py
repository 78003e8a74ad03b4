"""The recipe: everything that fixes one distillation, as layers of YAML and as a model; all its errors at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kdhub.catalogue.catalog import read
from kdhub.errors import RecipeError, close_matches
from kdhub.plain_yaml import NotPlain, plain_yaml
from kdhub.secrets import find, redact
from kdhub.specs import MAIN

SCHEMA = 1

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


LINK = "recipe:"
"""In front of the name of a recipe whose student is meant."""

ROLES = "roles"
"""The source of a `teacher` that names several, each under its role."""

_SUMMARISED = {"teacher", "student", "data"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


ALL = "+"
"""After the seed of a link: of all recipes that it stands on as well."""


@dataclass(frozen=True)
class Link:
    """Another recipe's student as a source: `recipe:NAME`, `recipe:NAME@SEED`, and as JSON keys of it that are changed
    (`recipe:NAME?{"options.lr":0.01}`). With `recipe:NAME@SEED+` all that it stands on have the seed as well."""

    name: str
    seed: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Link:
        head, _, changes = text.removeprefix(LINK).partition("?")
        name, _, seed = head.partition("@")
        try:
            return cls(name, seed, json.loads(changes or "{}"))
        except ValueError:
            raise RecipeError([f"{text}: what follows the ? is not JSON; write set: {{key: value}}"]) from None

    @property
    def text(self) -> str:
        changes = json.dumps(self.changes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"{LINK}{self.name}" + (f"@{self.seed}" if self.seed else "") + (f"?{changes}" if self.changes else "")


def linked(values: Any) -> Any:
    """A source that is another recipe's student, or data made of it, with its keys `seed`, `seeds` (of all recipes that
    it stands on as well) and `set` in its text: one text, one student."""
    keys = ("seed", "seeds", "set")
    if not isinstance(values, dict) or not {*keys} & {*values}:
        return values
    before, prefix, name = str(values.get("source")).partition(LINK)
    if not prefix or (before and not before.endswith(":")):
        return values
    link, changes = Link.parse(prefix + name), values.get("set") or {}
    if not isinstance(changes, Mapping):
        raise ValueError(f"set must be a mapping of the recipe's keys (set={changes!r})")
    seed = f"{values['seeds']}{ALL}" if "seeds" in values else str(values.get("seed", link.seed))
    made = Link(link.name, seed, {**link.changes, **changes})
    return {**{k: v for k, v in values.items() if k not in keys}, "source": before + made.text}


class Ref(_Model):
    """A teacher, student or sampler: its text (a catalogue name, `kind:argument`, `org/name`) and its options."""

    model_config = ConfigDict(extra="allow")
    source: str = Field(min_length=1, description="catalogue name, kind:argument, recipe:NAME, or org/name")

    _linked = model_validator(mode="before")(linked)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _as_mapping(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


Values = dict[str, Annotated[list[Any], BeforeValidator(_one_or_more)]]
TextRef = Annotated[Ref, BeforeValidator(_as_mapping)]


class TeacherRef(Ref):
    """A teacher, or several of one method by role: `{source: roles, view: SOURCE, text: {source: ..., ...}}`."""

    task: str | None = Field(None, description="its task, of those that its role may be of; the usual one if unset")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("source") != ROLES:
            return values
        for name, ref in values.items():
            if not isinstance(ref, str) and not (isinstance(ref, dict) and isinstance(ref.get("source"), str)):
                raise ValueError(f"role {name} must be a source, or a mapping with source and options ({name}={ref!r})")
        return {name: ref if name == "source" else linked(_as_mapping(ref)) for name, ref in values.items()}

    @property
    def by_role(self) -> dict[str, TeacherRef]:
        if self.source != ROLES:
            return {MAIN: self}
        return {name: TeacherRef.model_validate(ref) for name, ref in self.options.items()}


class DataRef(_Model):
    """One data set in use: which rows of which split, seen how."""

    _linked = model_validator(mode="before")(linked)
    source: str = Field(min_length=1, description="catalogue name, kind:argument, recipe:NAME, file, or org/name")
    split: str | None = Field(None, description="split to read; train for training and test for evaluation")
    columns: dict[str, str] = Field(default_factory=dict, description="our column name: the data set's")
    where: Values = Field(default_factory=dict, description="keep rows whose column has one of these")
    exclude: Values = Field(default_factory=dict, description="drop rows whose column has one of these")
    limit: int | None = Field(None, ge=1, description="first N rows")
    sample: int | None = Field(None, ge=1, description="N rows drawn with `sample_seed`")
    sample_seed: int = Field(0, description="seed of `sample`; not the run's, so that seeds share rows")
    role: Literal["document", "query"] | None = Field(None, description="role of rows that do not say theirs")
    optional: bool = Field(
        False, description="evaluation only: never downloaded; left out, and noted, unless its files are here"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of the data set's kind")


DataRefs = Annotated[list[Annotated[DataRef, BeforeValidator(_as_mapping)]], BeforeValidator(_as_list)]


class SignalOptions(_Model):
    dtype: Literal["float16", "float32", "int8"] = Field("float16", description="how stored teacher vectors are kept")
    keep: str = Field("all", description="how much of each training signal: all, or what its teacher knows (top-32)")


class Evaluation(_Model):
    data: DataRefs = Field(default_factory=list, description="what teacher, start and student are measured on")
    metrics: list[str] | None = Field(None, description="metric names; all that fit when left out")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the task's evaluation")
    curve: int = Field(0, ge=0, description="measure the student so often while it learns, on the first data set")
    cost: bool = Field(True, description="measure size, speed and memory, each subject in a process of its own")


class Recipe(_Model):
    """Everything of one distillation. See `docs/recipes.md` for each key."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema", description="version of this format")
    name: str = Field("", description="name of the run folder and the catalogue entry")
    summary: str = Field("", description="one line for lists")
    task: str = Field(min_length=1, description="what the student is for; kdhub list tasks")
    method: str = Field(min_length=1, description="how it is taught; kdhub list methods")
    teacher: Annotated[TeacherRef, BeforeValidator(_as_mapping)] | None = Field(
        None, description="source and options, or several by role; none for methods without a teacher"
    )
    student: TextRef = Field(description="where the student starts: source and options")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    data: dict[str, DataRefs] = Field(default_factory=dict, description="rows by use: train, and what a method names")
    sampler: TextRef | None = Field(None, description="which rows come next; shuffled by length when left out")
    signals: SignalOptions = Field(default_factory=SignalOptions, description="how teacher outputs are stored")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="what is measured at the end")
    tracking: Annotated[list[str], BeforeValidator(_one_or_more)] = Field(
        default_factory=list, description="where else it is followed: tensorboard, wandb, mlflow, trackio; nowhere"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    on_bad_rows: Literal["stop", "skip"] = Field("stop", description="skip leaves bad rows out and reports how many")

    @property
    def teachers(self) -> dict[str, TeacherRef]:
        """By role; one that is named without a role is `teacher`."""
        return self.teacher.by_role if self.teacher else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, defaults left out where they say nothing, ready for YAML."""
        value = self.model_dump(by_alias=True, exclude_defaults=True, mode="json")
        for key in ("teacher", "student", "sampler"):
            ref = value.get(key)
            if ref and set(ref) == {"source"}:
                value[key] = ref["source"]
        order = list(type(self).model_fields)
        value = {"schema": SCHEMA, "seed": self.seed, **value}
        return dict(sorted(value.items(), key=lambda kv: order.index("schema_" if kv[0] == "schema" else kv[0])))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)


@dataclass
class Layer:
    """One source of recipe keys; later layers win.

    Attributes:
        label: what an error calls it: a file, "--teacher", "--set options.lr=x".
        values: nested keys.
    """

    label: str
    values: dict[str, Any] = field(default_factory=dict)


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as a mapping.

    Raises:
        RecipeError: it cannot be read, is not YAML, or is no mapping; names file, line and column.
    """
    return read(path, "a recipe")


def parse_set(text: str) -> Layer:
    """One `--set a.b=value`; the value is read as YAML, numbers like 1e-4 included.

    Raises:
        RecipeError: no equals sign, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    parts, label = key.strip().split("."), f"--set {redact(text)}"
    if not equals or not all(parts):
        raise RecipeError([f"{label}: expected key=value, for example --set options.lr=1e-4"])
    try:
        # `plain_yaml` reads 1e-4, which has no point, as text.
        values: Any = float(value) if _NUMBER.fullmatch(value.strip()) else plain_yaml(value)
    except NotPlain as error:
        raise RecipeError([f"{label}: the value is not valid YAML"]) from error
    for part in reversed(parts):
        values = {part: values}
    return Layer(label, values)


def parse_sets(set: Sequence[str] | Mapping[str, Any]) -> list[Layer]:
    """Several: texts `a.b=value`, or a mapping of keys to values.

    Raises:
        RecipeError: see `parse_set`.
    """
    if isinstance(set, Mapping):
        # As `--set` reads it: a text as it is written, what is nested as JSON.
        nested = (Mapping, list, tuple, bool, type(None))
        set = [f"{key}={json.dumps(value) if isinstance(value, nested) else value}" for key, value in set.items()]
    return [parse_set(text) for text in set]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key, everything else is replaced. A new `source` drops the options of the old one.

    A number as key reaches into a list: `data.train.0.sample`.

    Raises:
        IndexError: the list is shorter; the message says where and how long it is.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if key in ("teacher", "student", "sampler") or (result.get("source") == ROLES != value):
            old, value = _as_mapping(old), _as_mapping(value)
            if isinstance(value, dict) and "source" in value:
                old = None
        if isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
            if isinstance(old, str) or (isinstance(old, dict) and "source" in old):
                old = [old]  # one data set, written without its list
        if isinstance(old, list) and isinstance(value, dict) and all(str(k).isdigit() for k in value):
            result[key] = items = [_as_mapping(item) for item in old]
            for at, change in value.items():
                if int(at) >= len(items):
                    raise IndexError(f"{key!r} has no entry {at}: it has {len(items)}, counted from 0")
                items[int(at)] = merge(items[int(at)], change) if isinstance(change, dict) else change
        else:
            result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def combine(layers: Sequence[Layer]) -> dict[str, Any]:
    """The layers as one mapping.

    Of a layer for another method than the one chosen in the end, options, name and summary do not count. A flag that
    changes what a recipe's summary speaks of drops the summary, which ends up in the card.

    Raises:
        RecipeError: a layer reaches into a list where there is nothing.
    """
    chosen = next((layer.values["method"] for layer in reversed(layers) if "method" in layer.values), None)
    values: dict[str, Any] = {}
    for layer in layers:
        given = layer.values
        if given.get("method", chosen) != chosen:
            given = {k: v for k, v in given.items() if k not in ("name", "summary", "options")}
        if layer.label.startswith("--") and not _SUMMARISED.isdisjoint(given):
            values.pop("summary", None)
        try:
            values = merge(values, given)
        except IndexError as error:
            raise RecipeError([f"{layer.label}: {error}"]) from None
    return values


def build(layers: Sequence[Layer]) -> Recipe:
    """The recipe of stacked layers.

    Raises:
        RecipeError: every wrong key, type and range at once, each with the layer that set it. A token is one: recipes
            are written into runs and cards.
    """
    values = combine(layers)
    problems = [
        f"{_who_set(loc, layers)}: {'.'.join(loc)!r} holds what looks like a secret; "
        "put it in an environment variable and name that"
        for loc, text in _texts(values)
        if find(text) is not None
    ]
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(problems + explain(error, Recipe, layers)) from error
    if problems:
        raise RecipeError(problems)
    return recipe


def _texts(value: Any, loc: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in nested values, with the keys that lead to it."""
    if isinstance(value, str):
        yield loc, value
    elif isinstance(value, (Mapping, list)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from ([(loc, key)] if isinstance(key, str) else ())
            yield from _texts(item, (*loc, str(key)))


def explain(
    error: ValidationError, model: type[BaseModel], layers: Sequence[Layer] = (), prefix: Sequence[str] = ()
) -> list[str]:
    """A pydantic error as sentences: where it was set, which key, what was expected, the nearest valid key."""
    problems = []
    for item in error.errors():
        inner = [part for part in item["loc"] if not str(part).startswith("function-")]
        loc = [*prefix, *map(str, inner)]
        where = _who_set(loc, layers)
        key = ".".join(loc)
        if item["type"] == "extra_forbidden":
            valid = _keys_at(model, inner[:-1])
            close = close_matches(loc[-1], valid)
            text = f"unknown key {key!r}" + (
                f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"
            )
        elif item["type"] == "missing":
            text = f"{key!r} is missing"
        else:
            text = f"{key!r} is {_short(item.get('input'))}: {_plain(item)}"
        problems.append(f"{where}: {text}" if where else text)
    return problems


def _plain(item: Mapping[str, Any]) -> str:
    message = item["msg"]
    return message[0].lower() + message[1:]


def _short(value: Any) -> str:
    text = redact(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _who_set(loc: Sequence[str], layers: Sequence[Layer]) -> str:
    """The last layer that holds the key, or for a missing key the last one that is a file."""
    for depth in range(len(loc), 0, -1):
        for layer in reversed(layers):
            at: Any = layer.values
            for part in loc[:depth]:
                if isinstance(at, Mapping) and part in at:
                    at = at[part]
                elif isinstance(at, list) and part.isdigit() and int(part) < len(at):
                    at = at[int(part)]
                else:
                    break
            else:
                return layer.label
    files = [layer.label for layer in layers if not layer.label.startswith("--")]
    return files[-1] if files else (layers[-1].label if layers else "")


def _keys_at(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Valid keys of the model that `loc` leads to, through lists, mappings and unions."""
    at: Any = model
    for part in loc:
        at = _step(at, part)
    found = [kind for kind in _alternatives(at) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [f.alias or n for kind in found for n, f in kind.model_fields.items()]


def _step(annotation: Any, part: Any) -> Any:
    """The type of what stands under one key or index of a value of this type; None when there is no such thing."""
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            named = {f.alias or n: f.annotation for n, f in kind.model_fields.items()}
            if part in named:
                return named[part]
        elif get_origin(kind) in (list, dict):
            return get_args(kind)[-1]
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without their annotations; a plain type is its only one."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]
