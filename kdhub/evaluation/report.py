"""The measured outcome of a run: every number with its subject, and the tables people read.

A `Report` is a list of `Measure`, plus notes and facts. Quality and fidelity have a data set; cost has none. What a
student *kept* is its number over the teacher's (the other way round where lower is better), so 1 means as good.
"""

from __future__ import annotations

import html
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, get_type_hints

from kdhub import notebook
from kdhub.errors import RunError
from kdhub.families import LIMITS, MEMBER, Sizes
from kdhub.metric import Measure
from kdhub.plain_json import fit
from kdhub.plain_yaml import NotPlain

SCHEMA = 1

TEACHER, BEFORE, STUDENT, ASYMMETRIC = "teacher", "student-before", "student", "asymmetric"
WHO = {TEACHER: "teacher", BEFORE: "start", STUDENT: "student"}
"""Subjects as pictures call them."""

OWN_FILES = "its own files"
"""The data set of measures for which nothing is run: a student's files are read (`MetricSpec.files`)."""
OWN_ROWS = ("training rows", "one training batch", "validation rows")
"""Data sets of measures that a method took itself while it trained: no evaluation repeats them."""

COSTS: dict[str, tuple[str, str, str, bool]] = {
    "parameters": ("parameters", "fewer", "more", False),
    "rows": ("rows", "fewer", "more", False),
    "disk": ("size on disk", "smaller", "larger", False),
    "flops": ("FLOPs per example", "fewer", "more", False),
    "latency-p50": ("latency p50, batch 1", "faster", "slower", False),
    "latency-p95": ("latency p95, batch 1", "faster", "slower", False),
    "throughput": ("throughput, batch 32", "faster", "slower", True),
    "memory": ("peak memory of the process", "less", "more", False),
    "gpu-memory": ("peak GPU memory", "less", "more", False),
    "requests": ("requests to a server", "fewer", "more", False),
    "tokens": ("tokens of prompts and answers", "fewer", "more", False),
    "price": ("price of the requests", "cheaper", "dearer", False),
    "making": ("time to make it", "quicker", "slower", False),
}
"""Cost metric -> what tables call it, the words for a better and a worse student, and whether higher is better."""


@dataclass(frozen=True)
class Line:
    """One metric on one split, seen one way: what every subject got.

    Attributes:
        measures: subject -> measure, in the order they were taken.
    """

    metric: str
    dataset: str | None
    split: str | None
    variant: Mapping[str, Any]
    measures: Mapping[str, Measure]

    def value(self, subject: str) -> float | None:
        measure = self.measures.get(subject)
        return measure.value if measure else None

    def kept(self, subject: str) -> float | None:
        """What the subject kept of the teacher's number, 1 for all; None when that means nothing."""
        teacher, own = self.value(TEACHER), self.value(subject)
        if teacher is None or own is None:
            return None
        if not self.measures[TEACHER].higher_is_better:
            teacher, own = own, teacher
        # A ratio to zero or to a negative correlation says nothing about what was kept.
        return own / teacher if teacher > 0 else None

    @property
    def any(self) -> Measure:
        return next(iter(self.measures.values()))

    @property
    def where(self) -> str:
        return " ".join(str(part) for part in (self.dataset, self.split) if part)


@dataclass(frozen=True)
class Retention:
    """What one subject kept of the teacher's number, as `Line.kept`."""

    metric: str
    dataset: str | None
    split: str | None
    subject: str
    kept: float
    variant: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """Text cells under a title; the first `left` columns are left-aligned."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: int = 1


@dataclass
class Report:
    """Everything that was measured about one run.

    Attributes:
        measures: in the order they were taken.
        notes: sentences about what was left out or went otherwise than planned.
        facts: further values: `primary` (the metrics that stand for quality, by form of data), `width` ({subject:
            dimensions}), `truncated` and `skipped` ({where: rows}).
    """

    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    # -- reading and writing ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON values. A number that is not finite becomes None with a note, as JSON has none."""
        measures = [_finite(m).to_dict() for m in self.measures]
        return {"schema": SCHEMA, "measures": measures, "notes": list(self.notes), "facts": dict(self.facts)}

    @classmethod
    def from_dict(cls, value: Any, source: str = "report.json") -> Report:
        """What `to_dict` gave. Keys this version does not know are left out.

        Raises:
            RunError: another schema, or no report; one sentence that names `source`.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("measures"), list):
            raise RunError(f"{source} is not a report: it has no list of measures")
        if value.get("schema") != SCHEMA:
            raise RunError(
                f"{source} has schema {value.get('schema')!r}, this kdhub reads {SCHEMA}",
                hint="evaluate again with this version: kdhub evaluate RUN",
            )
        try:
            fit(_shape(), value)
        except NotPlain as error:
            raise RunError(f"{source} is damaged: {error}") from error
        known = {f.name for f in fields(Measure)}
        measures = [{"value": None, **{k: v for k, v in m.items() if k in known}} for m in value["measures"]]
        return cls(
            [_finite(Measure(**m)) for m in measures],
            [str(note) for note in value.get("notes") or []],
            dict(value.get("facts") or {}),
        )

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>note: {html.escape(note)}</p>" for note in self.notes)
        return "".join(notebook.table(t.title, t.columns, t.rows, t.left) for t in self.tables()) + notes

    # -- asking -----------------------------------------------------------------------------------------------

    def get(
        self,
        metric: str,
        subject: str,
        dataset: str | None = None,
        split: str | None = None,
        variant: Mapping[str, Any] | None = None,
    ) -> Measure | None:
        """The first measure that fits; without `dataset` or `split` any will do. The plain view unless told."""
        for m in self.measures:
            if (m.metric, m.subject, m.variant) != (metric, subject, dict(variant or {})):
                continue
            if dataset in (None, m.dataset) and split in (None, m.split):
                return m
        return None

    def lines(self) -> list[Line]:
        """Quality and fidelity: one line for each data set, split, metric and variant."""
        return _group(m for m in self.measures if m.dataset is not None)

    def costs(self) -> list[Line]:
        """Cost: one line for each metric, the known ones first; of members of a family see `sizes`."""
        lines = _group(m for m in self.measures if m.dataset is None and not m.variant)
        order = list(COSTS)
        return sorted(lines, key=lambda line: order.index(line.metric) if line.metric in order else len(order))

    @property
    def retention(self) -> list[Retention]:
        """What every subject but the teacher kept, wherever the teacher was measured too."""
        return [
            Retention(line.metric, line.dataset, line.split, subject, kept, dict(line.variant))
            for line in self.lines()
            for subject in line.measures
            if subject != TEACHER and (kept := line.kept(subject)) is not None
        ]

    def headline(self) -> list[Line]:
        """One line for each data set and split: its primary metric, else the first that the teacher has too."""
        primary = self.facts.get("primary") or ()
        primary = list(primary.values()) if isinstance(primary, Mapping) else [primary]
        best: dict[tuple, Line] = {}
        rank = lambda line: (line.metric in primary, line.kept(STUDENT) is not None)  # noqa: E731
        for line in self.lines():
            place = (line.dataset, line.split)
            if not line.variant and (place not in best or rank(line) > rank(best[place])):
                best[place] = line
        return list(best.values())

    def add_costs(self, measures: Iterable[Measure]) -> None:
        """Add measures of cost, and as notes what there is to say of those with a value (a busy machine)."""
        measures = list(measures)
        self.measures += measures
        self.notes += dict.fromkeys(m.note for m in measures if m.note and m.value is not None)

    @property
    def sizes(self) -> Sizes:
        """The members of a family of sizes: what each costs, and the first primary metric of each."""
        primary = self.facts.get("primary") or ()
        primary = primary.values() if isinstance(primary, Mapping) else (primary,)
        return Sizes.of((m.to_dict() for m in self.measures), primary)

    # -- tables -----------------------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        """Quality; the headline metrics and fidelity seen otherwise (truncated, stored smaller, beside one teacher of
        several); cost. Empty ones are left out."""
        lines = [line for line in self.lines() if MEMBER not in line.variant]
        plain = [line for line in lines if not line.variant]
        measured = any(TEACHER in line.measures for line in plain)
        beside = [line for line in plain if measured and TEACHER not in line.measures]
        seen = {(line.dataset, line.split, line.metric) for line in (*self.headline(), *beside)}
        varied = [line for line in lines if line.variant and (line.dataset, line.split, line.metric) in seen]
        places = list(dict.fromkeys((line.dataset, line.split) for line in varied))
        varied.sort(key=lambda line: places.index((line.dataset, line.split)))
        tables = [_quality("Quality", plain), _quality("Quality, looked at otherwise", varied)]
        tables += [_members(self), _cost(self.costs())]
        return [table for table in tables if table.rows]


def render(report: Report) -> str:
    """The tables and notes as plain text with aligned columns, for a terminal."""
    blocks = [aligned(table) for table in report.tables()]
    if report.notes:
        blocks.append("\n".join("note: " + printable(note) for note in report.notes))
    return "\n\n".join(blocks) + "\n" if blocks else "nothing was measured\n"


def markdown(table: Table, escape: Callable[[str], str]) -> str:
    """A table as GitHub Markdown, without its title; `escape` is applied to every cell."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.columns))]
    rows = [[escape(cell) for cell in row] for row in (table.columns, *table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


# -- numbers as text ------------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "") -> str:
    """A value for people: three decimals for scores, three digits and a unit for the rest, an en dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit in ("bytes", "parameters", "FLOPs", "items"):
        return _scaled(value, "B" if unit == "bytes" else "")
    if unit == "%":
        return f"{value:.1f} %"
    if unit == "":
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 4)}f} {unit}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def gain(line: Line, subject: str = STUDENT) -> str:
    """The student's cost against the teacher's in words: "2.1x faster", "1.2x larger"; "" when unknown. Of times that
    were measured in turns, by the ratio within a turn, which a busy machine changes least."""
    teacher, own = line.value(TEACHER), line.value(subject)
    if not teacher or not own or teacher < 0 or own < 0:
        return ""
    share = line.measures[subject].ratio or own / teacher
    better = share if line.any.higher_is_better else 1 / share
    if 0.995 < better < 1.005:
        return "the same"
    usual = ("more", "less") if line.any.higher_is_better else ("less", "more")
    _, good, bad, _ = COSTS.get(line.metric, ("", *usual, False))
    factor, word = (better, good) if better > 1 else (1 / better, bad)
    return f"{factor:.1f}x {word}" if factor >= 1.05 else f"{factor:.2f}x {word}"


def label(line: Line) -> str:
    """What tables call a cost."""
    return COSTS[line.metric][0] if line.metric in COSTS else line.metric


def describe(variant: Mapping[str, Any]) -> str:
    """A variant in words: "dims 96, precision int8"."""
    return ", ".join(f"{key} {value}" for key, value in variant.items())


def printable(text: Any) -> str:
    """Names from outside on one line and without control characters, which could drive a terminal."""
    kept = "".join(" " if c.isspace() else c for c in str(text) if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())


# -- inside ---------------------------------------------------------------------------------------------------


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            scaled = value / factor
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()


def _finite(measure: Measure) -> Measure:
    if measure.std is not None and not math.isfinite(measure.std):
        measure = replace(measure, std=None)
    if measure.value is None or math.isfinite(measure.value):
        return measure
    return replace(measure, value=None, note=measure.note or f"the measured value was {measure.value}")


@lru_cache
def _shape() -> Any:
    """What a report must be as JSON: measures by the types of `Measure`."""
    from pydantic import create_model

    from kdhub.shapes import Shape

    types = get_type_hints(Measure) | {"variant": dict[str, str | bool | float | None]}
    optional = {f.name: f.default if f.default is not MISSING else {} for f in fields(Measure)}
    needed = dict.fromkeys(("metric", "subject"), ...)
    counted = dict[str, int | dict[str, int]] | None
    measure = create_model(
        "One", __base__=Shape, **{k: (types[k], {**optional, "value": None, **needed}[k]) for k in types}
    )
    facts = create_model(
        "Facts",
        __base__=Shape,
        primary=(str | dict[str, str] | None, None),
        **dict.fromkeys(("truncated", "skipped", "unanswered"), (counted, None)),
    )
    return create_model(
        "ReportShape",
        __base__=Shape,
        measures=(list[measure], ...),
        notes=(list[Any] | None, None),
        facts=(facts | None, None),
    )


def _group(measures: Iterable[Measure]) -> list[Line]:
    groups: dict[tuple, dict[str, Measure]] = {}
    for m in measures:
        key = (m.dataset, m.split, m.metric, json.dumps(m.variant, sort_keys=True, default=str))
        groups.setdefault(key, {})[m.subject] = m  # measured again: the later one holds
    return [Line(k[2], k[0], k[1], next(iter(of.values())).variant, of) for k, of in groups.items()]


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return ""
    text = number(measure.value, measure.unit)
    if measure.std is not None:
        return f"{text} ± {number(measure.std, measure.unit)}"
    if measure.low is None or measure.high is None or measure.high < 1.1 * measure.low:
        return text
    return f"{text} ({number(measure.low, measure.unit)} to {number(measure.high, measure.unit)})"


def _quality(title: str, lines: Sequence[Line]) -> Table:
    subjects = {subject for line in lines for subject in line.measures}
    others = sorted(subjects - {TEACHER, BEFORE, STUDENT, ASYMMETRIC})
    heads = {BEFORE: "before", STUDENT: "student", ASYMMETRIC: "asymmetric"}
    columns, varied = ["data", "metric"], any(line.variant for line in lines)
    columns += ["view"] if varied else []
    left = len(columns)
    columns += ["teacher"] if TEACHER in subjects else []
    shown = [s for s in (BEFORE, STUDENT, ASYMMETRIC, *others) if s in subjects]
    compared = [s for s in shown if TEACHER in subjects]
    for subject in shown:
        columns += [heads.get(subject, subject), *(["kept"] if subject in compared else [])]
    rows = []
    for line in lines:
        row = [line.where, line.metric] + ([describe(line.variant)] if varied else [])
        row += [_cell(line.measures.get(TEACHER))] if TEACHER in subjects else []
        for subject in shown:
            kept = line.kept(subject)
            row += [_cell(line.measures.get(subject))]
            row += [percent(kept) if kept is not None else ""] if subject in compared else []
        rows.append(row)
    return Table(title, columns, rows, left)


def _members(report: Report) -> Table:
    """What each member of a family scores and costs; those that no smaller one beats have a star."""
    sizes = report.sizes
    costs = [name for name in LIMITS.values() if any(name in size.costs for size in sizes.members.values())]
    teacher = report.get(sizes.metric, TEACHER, sizes.dataset, sizes.split) if sizes.metric else None
    whole = Line(sizes.metric, sizes.dataset, sizes.split, {}, {TEACHER: teacher} if teacher else {})
    front, rows = set(sizes.front("parameters")), []
    for name in sizes.members:
        score = report.get(sizes.metric, STUDENT, sizes.dataset, sizes.split, {MEMBER: name})
        kept = replace(whole, measures={**whole.measures, STUDENT: score}).kept(STUDENT) if score and teacher else None
        row = [name + (" *" if name in front else ""), _cell(score), *([percent(kept)] if teacher else [])]
        rows.append([*row, *(_cell(report.get(one, STUDENT, variant={MEMBER: name})) for one in costs)])
    columns = ["member", f"{sizes.metric} on {whole.where}", *(["kept"] if teacher else [])]
    return Table("Members (* the best of its size)", [*columns, *(COSTS[one][0] for one in costs)], rows)


def _cost(lines: Sequence[Line]) -> Table:
    subjects = {subject for line in lines for subject in line.measures}
    shown = [s for s in (TEACHER, BEFORE, STUDENT) if s in subjects]
    shown += sorted(subjects - {TEACHER, BEFORE, STUDENT})
    heads = {BEFORE: "before"}
    compared = TEACHER in subjects and STUDENT in subjects
    columns = ["cost", *(["the student is"] if compared else []), *(heads.get(s, s) for s in shown)]
    rows = [
        [label(line), *([gain(line)] if compared else []), *(_cell(line.measures.get(s)) for s in shown)]
        for line in lines
    ]
    return Table("Cost", columns, rows)


def _width(text: str) -> int:
    """Columns a terminal needs: wide East Asian characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def aligned(table: Table) -> str:
    """A table as plain text, for a terminal."""
    rows = [[printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(_width(row[i]) for row in rows) for i in range(len(table.columns))]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (width - _width(cell)) for cell, width in zip(row, widths)]
        cells = [cell + gap if i < table.left else gap + cell for i, (cell, gap) in enumerate(zip(row, gaps))]
        return "  ".join(cells).rstrip()

    return "\n".join([table.title, line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])])
