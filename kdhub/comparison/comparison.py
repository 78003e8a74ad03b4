"""Several ways to make one student, on equal terms: what is compared, and what came out.

A comparison is a recipe and named changes to it, its arms, run under the same seeds. Claims say what a paper or a
specification expects of two arms; what came out of them is the evidence that `registry/evidence` keeps.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdhub import notebook
from kdhub.comparison.differences import LEVEL, Difference, holm, paired, spread, verdict
from kdhub.errors import RecipeError, UsageError
from kdhub.evaluation.report import BEFORE, STUDENT, TEACHER, Report, Table, describe, number
from kdhub.recipes.recipe import Layer, explain

SCHEMA = 1
START = "untrained"
"""What tables call the student before training."""

SUBJECTS = ((BEFORE, START), (TEACHER, TEACHER))
"""What stands beside the arms, and what tables call it."""

MEAN, WORST = "mean ", "worst "
"""Before the name of a metric: its mean over the data sets that it is measured on, or its value where it is worst."""

OUTCOMES = ("as expected", "a tie", "otherwise")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def _named(value: Any) -> Any:
    """`[a, b]` and `{mine: a}` name methods."""
    if isinstance(value, list):
        value = {name: name for name in value}
    if isinstance(value, Mapping):
        return {name: {"method": arm} if isinstance(arm, str) else arm for name, arm in value.items()}
    return value


def _seeds(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class Claim(_Model):
    """What is expected of two arms: of the mean difference of their values, pair by pair, in the metric's good
    direction."""

    method: str = Field(min_length=1, description="whose evidence it is")
    arm: str = Field(min_length=1, description="NAME, or NAME@SUBJECT for another subject than the student")
    against: str = Field(min_length=1, description="the arm it is compared with, likewise")
    metric: str | None = Field(None, description="another one than the comparison's")
    expected: Literal["above", "not-below", "within"] = Field(
        "above", description="difference above `by`, not below -`by`, or within both"
    )
    by: float = Field(0.0, ge=0, description="in units of the metric")
    text: str = Field(min_length=1, description="the claim in words")
    source: str = Field("", description="who expects it")
    assertable: bool = Field(True, description="whether a test may insist on its direction")


class Comparison(_Model):
    """A comparison as its file says it. See `docs/compare.md` for each key."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema", description="version of this format")
    name: str = Field("", description="of the folder and the catalogue entry")
    summary: str = Field("", description="one line for lists")
    recipe: str | dict[str, Any] = Field(description="what all arms share: a recipe's name, file, or keys")
    arms: Annotated[dict[str, dict[str, Any]], BeforeValidator(_named)] = Field(
        min_length=1, description="name: changes to the recipe; a text is a method's name"
    )
    seeds: Annotated[list[int], BeforeValidator(_seeds)] = Field(
        default=[0, 1, 2], min_length=1, description="a list, or how many from 0"
    )
    seeded: list[str] = Field(default_factory=list, description="recipe keys that get the seed as well")
    metric: str | None = Field(None, description="what is compared; the task's first metric when left out")
    reference: str | None = Field(
        None, description="the arm others are compared with; the baseline method, else the first"
    )
    claims: list[Claim] = Field(default_factory=list, description="what is expected")
    budget: str | None = Field(None, description="of each training: 300steps, 20000examples or 60s")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what says nothing."""
        found = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        return {key: value for key, value in found.items() if value not in ("", [])}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)


def read_comparison(values: Mapping[str, Any], where: str) -> Comparison:
    """Checked keys.

    Raises:
        RecipeError: every wrong key, type and range at once, and claims or references to arms that are not there.
    """
    try:
        made = Comparison.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, Comparison, [Layer(where, dict(values))])) from error
    named = [(f"claims.{i}.{key}", getattr(claim, key)) for i, claim in enumerate(made.claims) for key in _SIDES]
    named += [("reference", made.reference)] if made.reference else []
    problems = [
        f"{where}: {key!r} is {text!r}: expected one of the arms {', '.join(made.arms)}"
        for key, text in named
        if text.partition("@")[0] not in made.arms
    ]
    problems += [f"{where}: the arm {name!r} needs a name like first or t-4" for name in made.arms if not _NAME(name)]
    if problems:
        raise RecipeError(problems)
    return made


_SIDES = ("arm", "against")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*").fullmatch


@dataclass(frozen=True)
class Budget:
    """How much training each arm gets: `amount` of `unit`, one of steps, examples, s."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`300steps`, `20000examples`, `60s`.

        Raises:
            UsageError: anything else.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps?|examples?|seconds?|s)", text.strip())
        if not found or not float(found[1]):
            raise UsageError(f"the budget is {text!r}", hint="expected 300steps, 20000examples or 60s")
        unit = "s" if found[2] in ("s", "second", "seconds") else found[2].rstrip("s") + "s"
        return cls(float(found[1]), unit)

    def steps(self, batch_size: int, seconds_a_step: float | None = None) -> int:
        """Optimiser steps, at least one."""
        if self.unit == "steps":
            return max(1, round(self.amount))
        if self.unit == "examples":
            return max(1, math.ceil(self.amount / batch_size))
        return max(1, round(self.amount / seconds_a_step))


def cell_folder(folder: Path, arm: str, seed: int) -> Path:
    """The run folder of an arm and a seed, in the folder of a comparison."""
    return folder / "cells" / arm / f"seed-{seed}"


# -- what came out --------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """One arm under one seed.

    Attributes:
        status: done or failed.
        error: of a failed one: what was wrong, and what to do.
        values: subject -> metric -> value, on the comparison's data.
        facts: `train_seconds`, `step_seconds`, `steps`, `parameters`, `peak_memory_bytes`, `teacher_rows` (the
            teacher's forward passes, in rows: newly stored ones and those of a live teacher), `start` (digest of the
            student's weights before training).
        curve: (step, value of the metric) while it learned.
    """

    arm: str
    seed: int
    status: str
    error: str | None = None
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)

    def value(self, metric: str, subject: str = STUDENT) -> float | None:
        return self.values.get(subject, {}).get(metric)


_COSTS = {
    "training": ("train_seconds", "s"),
    "steps": ("steps", "items"),
    "parameters": ("parameters", "parameters"),
    "memory": ("peak_memory_bytes", "bytes"),
    "teacher rows": ("teacher_rows", "items"),
}
"""Heading -> fact of a cell, and its unit."""

_KEPT = ("plan", "metric", "data", "directions", "reference", "environment")


@dataclass
class Result:
    """A comparison and its cells.

    Attributes:
        plan: the comparison, its recipe and arms resolved.
        metric, data: what is compared, and on what (`NAME SPLIT`).
        directions: metric -> whether higher is better.
        reference: the arm others are compared with.
        environment: versions, machine, command.
        folder: where its cells are, when they are here.
    """

    plan: dict[str, Any]
    metric: str
    data: str
    directions: dict[str, bool]
    reference: str
    cells: list[Cell]
    environment: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def arms(self) -> list[str]:
        return list(self.plan["arms"])

    @property
    def higher_is_better(self) -> bool:
        return self.directions[self.metric]

    @property
    def name(self) -> str:
        return self.plan.get("name") or "comparison"

    def of(self, arm: str, metric: str | None = None) -> dict[int, float]:
        """Seed -> value of `ARM` or `ARM@SUBJECT`, where there is one."""
        name, _, subject = arm.partition("@")
        found = {c.seed: c.value(metric or self.metric, subject or STUDENT) for c in self.cells if c.arm == name}
        return {seed: value for seed, value in found.items() if value is not None}

    def of_subject(self, subject: str) -> dict[int, float]:
        """Seed -> value of what is no arm's own: the teacher, the untrained student."""
        return {c.seed: v for c in self.cells if (v := c.value(self.metric, subject)) is not None}

    def curve(self, arm: str) -> list[tuple[int, float]]:
        """(step, mean over seeds) while an arm learned, at the steps that all its cells measured; [] below two."""
        # A run that was interrupted may have measured twice, or at other steps.
        curves = [dict(map(tuple, c.curve)) for c in self.cells if c.arm == arm and len(c.curve) > 1]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        return [(step, spread([each[step] for each in curves])[0]) for step in steps] if len(steps) > 1 else []

    def difference(self, arm: str, against: str, metric: str | None = None) -> Difference | None:
        """Over the seeds that both have; None when there is none."""
        a, b = self.of(arm, metric), self.of(against, metric)
        both = sorted(set(a) & set(b))
        return paired([a[s] for s in both], [b[s] for s in both]) if both else None

    def verdicts(self) -> dict[str, dict[str, Any]]:
        """Each arm against the reference: the difference, p corrected for the number of arms, and the verdict."""
        found = {arm: self.difference(arm, self.reference) for arm in self.arms if arm != self.reference}
        tested = [arm for arm, each in found.items() if each and each.p is not None]
        corrected = dict(zip(tested, holm([found[arm].p for arm in tested])))
        return {
            arm: {
                **asdict(each),
                "p_corrected": corrected.get(arm),
                "verdict": verdict(each, corrected.get(arm), self.higher_is_better),
            }
            for arm, each in found.items()
            if each
        }

    def fact(self, arm: str, name: str) -> list[float]:
        """One fact of an arm's finished cells."""
        found = [c.facts.get(name) for c in self.cells if c.arm == arm and c.status == "done"]
        return [value for value in found if value is not None]

    def best(self) -> tuple[str, int] | None:
        """Arm and seed of the best student."""
        found = [(value, arm, seed) for arm in self.arms for seed, value in self.of(arm).items()]
        if not found:
            return None
        _, arm, seed = (max if self.higher_is_better else min)(found, key=lambda each: each[0])
        return arm, seed

    def notes(self) -> list[str]:
        """What a reader must know: starts that differ, failures, too few seeds."""
        notes = []
        for seed in dict.fromkeys(cell.seed for cell in self.cells):
            starts = {c.arm: c.facts.get("start") for c in self.cells if c.seed == seed and c.facts.get("start")}
            if len(set(starts.values())) > 1:
                groups = [[arm for arm in starts if starts[arm] == start] for start in dict.fromkeys(starts.values())]
                told = " and ".join(", ".join(group) for group in groups)
                notes.append(f"not all arms began from the same weights: {told}")
                break
        notes += [f"{c.arm}, seed {c.seed}, failed: {c.error}" for c in self.cells if c.status == "failed"]
        if len(self.plan["seeds"]) < 3:
            notes.append("fewer than three seeds say little about chance")
        return notes

    @property
    def teacher_rows(self) -> int:
        """The teacher's forward passes in all cells, in rows."""
        return sum(c.facts.get("teacher_rows", 0) for c in self.cells)

    def claims(self) -> list[dict[str, Any]]:
        """Each claim with what was measured of it."""
        return [judge(Claim(**claim), self) for claim in self.plan.get("claims", [])]

    def _repr_html_(self) -> str:
        said = "".join(f"<p>note: {html.escape(note)}</p>" for note in self.notes())
        return "".join(notebook.table(t.title, t.columns, t.rows, t.left) for t in self.tables()) + said

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `arms`, `verdicts` and `claims` follow from the cells."""
        arms = {}
        for arm in self.arms:
            values = self.of(arm)
            mean, std = spread(list(values.values())) if values else (None, None)
            arms[arm] = {"n": len(values), "mean": mean, "std": std, **self._costs(arm)}
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in _KEPT},
            "arms": arms,
            "verdicts": self.verdicts(),
            "claims": self.claims(),
            "teacher_rows": self.teacher_rows,
            "notes": self.notes(),
            "cells": [asdict(cell) for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], source: str = "comparison.json") -> Result:
        """What `to_dict` gave.

        Raises:
            UsageError: another schema, or no comparison.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("cells"), list):
            raise UsageError(f"{source} is not a comparison: it has no list of cells")
        if value.get("schema") != SCHEMA:
            raise UsageError(f"{source} has schema {value.get('schema')!r}, this kdhub reads {SCHEMA}")
        return cls(**{key: value[key] for key in _KEPT}, cells=[Cell(**cell) for cell in value["cells"]])

    # -- tables -----------------------------------------------------------------------------------------------

    def _costs(self, arm: str) -> dict[str, float | None]:
        mean = lambda name: spread(found)[0] if (found := self.fact(arm, name)) else None  # noqa: E731
        costs = {name: mean(name) for name, _ in _COSTS.values()}
        return costs | {"teacher_rows": sum(self.fact(arm, "teacher_rows"))}

    def _by_data(self, arms: Sequence[str]) -> list[Table]:
        """Where the compared metric is over data sets: its value on each, whether an arm helps or hurts there against
        the untrained student, and the means of the recipe's other metrics."""
        plain = self.metric.removeprefix(MEAN).removeprefix(WORST)
        if plain == self.metric:
            return []
        spots = [name for name in self.directions if name.startswith(f"{plain} on ")]
        others = [name for name in self.directions if name.startswith(MEAN) and name != self.metric]
        columns = [*spots, self.metric, *others]

        def cell(arm: str, name: str) -> str:
            if not (values := list(self.of(arm, name).values())):
                return "–"
            moved = self.difference(arm, f"{arm}@{BEFORE}", name) if name in spots and "@" not in arm else None
            told = verdict(moved, moved.p, self.directions[name]) if moved else ""
            return number(spread(values)[0]) + {"better": " helps", "worse": " hurts"}.get(told, "")

        beside = [(f"{arms[0]}@{subject}", title) for subject, title in SUBJECTS]
        named = [(arm, arm) for arm in arms] + [(arm, title) for arm, title in beside if self.of(arm)]
        rows = [[title, *(cell(arm, name) for name in columns)] for arm, title in named]
        heads = [name.removeprefix(f"{plain} on ") for name in columns]
        return [Table(f"{plain} on each data set; helps and hurts: against {START}, at 5 %", ["arm", *heads], rows)]

    def tables(self) -> list[Table]:
        """Quality, one row an arm, the best first; what each cost; claims, where there are some."""
        verdicts = self.verdicts()
        measured = {arm: list(self.of(arm).values()) for arm in self.arms}
        sign = -1 if self.higher_is_better else 1
        ranked = sorted(self.arms, key=lambda a: sign * spread(measured[a])[0] if measured[a] else math.inf)
        quality, cost = [], []
        for arm in ranked:
            told = verdicts.get(arm, {})
            failed = sum(c.status == "failed" for c in self.cells if c.arm == arm)
            quality.append(
                [
                    arm,
                    plus_minus(*spread(measured[arm])) if measured[arm] else "–",
                    f"{len(measured[arm])}" + (f", {failed} failed" if failed else ""),
                    f"{told['mean']:+.4f}" if told else "",
                    between(told.get("low"), told.get("high")),
                    "reference" if arm == self.reference else told.get("verdict", ""),
                ]
            )
            costs = self._costs(arm)
            cost.append([arm, *(number(costs[name], unit) for name, unit in _COSTS.values())])
        for subject, title in SUBJECTS:
            if found := list(self.of_subject(subject).values()):
                quality.append([title, plus_minus(*spread(found)), *[""] * 4])
        columns = ["arm", self.metric, "seeds", f"against {self.reference}", "95 % interval", "verdict"]
        tables = [
            Table(f"{self.metric} on {self.data}", columns, quality),
            *self._by_data(ranked),
            Table("Cost of a training, mean over seeds; teacher rows in all", ["arm", *_COSTS], cost),
        ]
        if self.plan.get("claims"):
            tables.append(claim_table(self.claims(), "Claims", of_methods=True))
        return tables


def between(low: float | None, high: float | None) -> str:
    """An interval in words."""
    return "" if low is None else f"{low:+.4f} to {high:+.4f}"


def judge(claim: Claim, result: Result) -> dict[str, Any]:
    """A claim with means, deviations, the paired difference with interval and p, and how it came out.

    Differences count in the metric's good direction. `as expected` needs the paired t test at 5 % for the claim's
    bound; `otherwise` needs the test for the contrary; between them is a tie.
    """
    metric = claim.metric or result.metric
    a, b = result.of(claim.arm, metric), result.of(claim.against, metric)
    both = sorted(set(a) & set(b))
    told = claim.model_dump() | {"metric": metric, "seeds": both}
    if not both:
        return told | {"outcome": "not measured"}
    sides = [[each[s] for s in both] for each in (a, b)]
    (mean, std), (other, other_std) = map(spread, sides)
    good = sides if result.directions[metric] else sides[::-1]
    difference = paired(*good)
    return told | {
        "mean": mean,
        "std": std,
        "mean_against": other,
        "std_against": other_std,
        "difference": asdict(difference),
        "holds": _holds(claim, difference.mean),
        "outcome": _outcome(claim, good),
    }


def _holds(claim: Claim, mean: float) -> bool:
    """Whether the mean alone is where the claim wants it."""
    if claim.expected == "above":
        return mean > claim.by
    return abs(mean) <= claim.by if claim.expected == "within" else mean >= -claim.by


def _outcome(claim: Claim, sides: Sequence[Sequence[float]]) -> str:
    a, b = sides
    if len(a) == 1:
        return "one seed"

    def sure(bound: float, above: bool) -> bool:
        """Whether the difference lies beyond a bound, by a one-sided test at half the level."""
        moved = paired(a, [y + bound for y in b])
        return moved.p <= LEVEL and (moved.mean > 0) == above

    if claim.expected == "above":
        tests = (sure(0, True) and _holds(claim, paired(a, b).mean), sure(0, False))
    elif claim.expected == "within":
        tests = (sure(-claim.by, True) and sure(claim.by, False), sure(claim.by, True) or sure(-claim.by, False))
    else:
        tests = (sure(-claim.by, True), sure(-claim.by, False))
    return OUTCOMES[0] if tests[0] else OUTCOMES[2] if tests[1] else OUTCOMES[1]


def claim_table(claims: Iterable[Mapping[str, Any]], title: str, *, of_methods: bool = False) -> Table:
    """A row a claim; `of_methods` says whose each is."""
    columns = ["claim", "measured", "against", "difference", "95 % interval", "seeds", "came out"]
    text = lambda claim: f"{claim['method']}: {claim['text']}" if of_methods else claim["text"]  # noqa: E731
    return Table(title, columns, [[text(claim), *_claim_cells(claim)] for claim in claims])


def _claim_cells(claim: Mapping[str, Any]) -> list[str]:
    """What was measured of it."""
    if "difference" not in claim:
        return ["", "", "", "", "0", claim["outcome"]]
    d = claim["difference"]
    return [
        plus_minus(claim["mean"], claim["std"]),
        plus_minus(claim["mean_against"], claim["std_against"]),
        f"{d['mean']:+.4f}",
        between(d["low"], d["high"]),
        str(len(claim["seeds"])),
        claim["outcome"],
    ]


def plus_minus(mean: float, std: float | None) -> str:
    """A mean with its deviation over seeds."""
    digits = 4 if abs(mean) < 10 else 2
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def values_of(report: Report, data: str) -> tuple[dict[str, dict[str, float]], dict[str, bool], dict[str, str]]:
    """Subject -> metric -> value; by metric, whether higher is better; and where it was measured.

    A metric has its plain name on `data` (`NAME SPLIT`), and where else it is measured once; looked at otherwise, that
    of the view as well: `ndcg@10, dims 96`. One that is measured in several places is `METRIC on NAME SPLIT` in each,
    and, the whole of it, `mean METRIC` and `worst METRIC` over them, of subjects that have all.
    """
    found: dict[str, dict[str, float]] = {}
    directions: dict[str, bool] = {}
    places: dict[str, str] = {}
    lines = [(", ".join(filter(None, (line.metric, describe(line.variant)))), line) for line in report.lines()]
    spots = Counter(metric for metric, _ in lines)
    for metric, line in sorted(lines, key=lambda each: each[1].where != data):
        names = [] if metric in directions else [metric]
        if spots[metric] > 1:
            names.append(f"{metric} on {line.where}")
        for name in names:
            directions[name], places[name] = line.any.higher_is_better, line.where
            for subject, measure in line.measures.items():
                if measure.value is not None:
                    found.setdefault(subject, {})[name] = measure.value
    for metric in dict.fromkeys(line.metric for _, line in lines if not line.variant):
        if (n := spots[metric]) > 1:
            names = [name for name in directions if name.startswith(f"{metric} on ")]
            for over in (MEAN, WORST):
                directions[f"{over}{metric}"], places[f"{over}{metric}"] = directions[metric], f"{n} data sets"
            for values in found.values():
                if all(name in values for name in names):
                    each = [values[name] for name in names]
                    values[f"{MEAN}{metric}"] = sum(each) / n
                    values[f"{WORST}{metric}"] = min(each) if directions[metric] else max(each)
    return found, directions, places
