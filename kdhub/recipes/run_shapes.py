"""What the JSON of a run folder must be, as far as anything here reads it; what plugins and newer versions add passes.

A run folder is copied, sent and edited, and disks break: what does not fit is refused by file and key, before a card,
a table or a hook makes something of it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from kdhub.shapes import Number, Shape, Text


class Seal(Shape):
    size: int
    sha256: str


class Seals(Shape):
    files: dict[str, Seal]


class State(Shape):
    stages: dict[str, Any]
    inputs: dict[str, dict[str, Any]] = {}
    fits: list[str] = []


class Method(Shape):
    name: str = ""
    distribution: Text = None
    version: Text = None
    summary: Text = None
    paper: Text = None
    citation: Text = None
    tags: list[str] = []


class Model(Shape):
    """A teacher, one of its members, or a model of the lineage."""

    source: Text = None
    id: Text = None
    role: Text = None
    licence: Text = None
    revision: Text = None
    as_: Text = Field(None, alias="as")
    via: list[str] = []
    terms: str | list[str] | None = None
    members: list[Model] = []


class Start(Shape):
    source: Text = None
    base_model: str | list[str] | None = None
    licence: Text = None
    revision: Text = None
    how: Text = None
    relation: Text = None


class Student(Shape):
    kind: Text = None
    library: Text = None
    pipeline_tag: Text = None
    usage: Text = None
    dtype: Text = None
    parameters: int | None = None
    start: Start | None = None
    start_parameters: int | None = None
    withheld: list[str] | None = None
    limits: list[str] | None = None
    front_matter: dict[str, Any] | None = None
    members: dict[str, dict[str, Any]] | None = None
    member: dict[str, Any] | None = None
    language: str | list[str] | None = None


class Rows(Shape):
    """A data set in use."""

    use: Text = None
    source: Text = None
    name: Text = None
    split: Text = None
    rows: int | None = None
    fingerprint: Text = None
    licence: Text = None
    tags: list[str] = []
    skipped: dict[str, int] = {}


class Data(Shape):
    use: list[Rows] = []


class Signals(Shape):
    rows: int = 0
    computed: int = 0
    found: int = 0
    calls: int = 0
    seconds: Number = None
    store: Text = None


class Training(Shape):
    steps: int = 0
    seconds: Number = None
    rows_per_second: Number = None
    live_teacher_rows: int | None = None
    live_teacher_calls: int | None = None
    precision: Text = None


class Hardware(Shape):
    machine: Text = None
    processor: Text = None
    cores: int | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    gpus: list[str] = []


class Environment(Shape):
    versions: dict[str, str] = {}
    hardware: Hardware = Hardware()
    python: Text = None
    started: Text = None
    command: list[str] | None = None


class Picture(Shape):
    file: str
    sentence: str
    of: str


class Provenance(Shape):
    seed: int = 0
    recipe_sha256: Text = None
    language: str | list[str] | None = None
    method: Method = Method()
    teacher: Model = Model()
    lineage: list[Model] = []
    student: Student = Student()
    data: Data = Data()
    rows: dict[str, dict[str, Any]] = {}
    chained: dict[str, str] = {}
    signals: dict[str, Signals] = {}
    spent: dict[str, dict[str, float | dict[str, int]]] = {}
    not_stored: dict[str, int] = {}
    training: Training = Training()
    distilled: dict[str, Number] = {}
    wall_seconds: Number = None
    environment: Environment = Environment()
    resumed: list[str] = []
    pictures: list[Picture] = []


class Logged(Shape):
    """A line of `metrics.jsonl`."""

    step: int = 0  # what a method with a loop of its own logs may have none
    fit: int = 1
    epoch: Number = None
    loss: Number = None
    terms: dict[str, Number] = {}
    lr: Number = None
    rows_per_second: Number = None
    metric: Text = None
    measured: Number = None


SHAPES: dict[str, type[BaseModel]] = {"provenance.json": Provenance, "state.json": State, "seals.json": Seals}
"""File of a run -> what it must be; a report says for itself (`kdhub.evaluation.report`)."""
