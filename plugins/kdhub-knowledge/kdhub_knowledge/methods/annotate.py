"""Annotation: a random sample of a graph's triples with labels, from people (a CSV in the run folder), from the
closed world's oracle, or from a column of the data (arXiv:2110.07178, section 3.3). What it leaves trains and tests a
critic, and says with an interval how many triples of the graph are valid.

    code     2 always or often true, 1 sometimes true, -1 unlikely, -2 never, -9 cannot be judged
    label    valid where the code is above 0

Only triples of training events are drawn: a critic that has seen test events makes the student's test worthless.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import DataError
from kdhub.method import Method, MethodOptions
from kdhub_knowledge.commonsense.critic import CODES, INVALID, VALID, is_valid
from kdhub_knowledge.commonsense.language import open_language
from kdhub_knowledge.commonsense.rows import COLUMNS, SPLITS, column, require_columns, split_by_event
from kdhub_knowledge.commonsense.world import is_valid as oracle

if TYPE_CHECKING:
    from kdhub.method import RunContext
    from kdhub.student import Student

FILE = "annotations.csv"


class Annotate(Method):
    class Options(MethodOptions):
        sample: int = Field(1500, ge=2, description="triples to annotate, drawn at random; all where there are fewer")
        oracle: Literal["people", "closed-world", "data"] = Field(
            "people", description="who labels: people in annotations.csv, the closed world, or the column `label`"
        )
        splits: list[Literal["train", "validation", "test"]] = Field(
            ["train"], min_length=1, description="splits of the graph from which triples are drawn"
        )
        shares: list[Annotated[float, Field(ge=0, le=1)]] = Field(
            [0.8, 0.1, 0.1], description="of the annotated events in train, validation and test of the critic"
        )
        language: str = Field("en", description="language file, for the sentence that people read")

    options: Options
    tiny_recipe = {"options": {"oracle": "data", "shares": [0.5, 0.25, 0.25]}}

    def distill(self, run: RunContext) -> Student:
        """
        Raises:
            DataError: rows without head, relation or tail, none in these splits, unknown codes, or one class only.
        """
        o, table = self.options, run.table("train")
        require_columns(table, *COLUMNS, *(["label"] if o.oracle == "data" else []))
        pool = np.arange(len(table))
        if "split" in table.column_names:
            pool = np.flatnonzero(np.isin(column(table, "split"), o.splits))
        if not len(pool):
            raise DataError(f"no triple is in the splits {', '.join(o.splits)} of the graph (splits={o.splits})")
        chosen = np.sort(np.random.default_rng(run.seed).permutation(pool)[: o.sample])
        rows = {int(n): dict(row) for n, row in zip(chosen, table.select(chosen))}
        codes = self._codes(run, rows)
        where = split_by_event((row["head"] for row in rows.values()), o.shares, run.seed)
        parts: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        for n, row in rows.items():
            label = VALID if is_valid(codes[n]) else INVALID
            made = {**{name: row[name] for name in COLUMNS}, "code": codes[n], "label": label}
            parts[where[row["head"]]].append(made)
        found = Counter(row["label"] for part in parts.values() for row in part)
        if len(found) < 2:
            raise DataError(
                f"all {len(rows)} annotated triples are {next(iter(found))}: a critic learns from both kinds",
                hint="annotate more triples (sample), or check how codes were given",
            )
        student = run.student
        import datasets

        student.splits = {name: datasets.Dataset.from_list(part) for name, part in parts.items() if part}
        return student

    def _codes(self, run: RunContext, rows: dict[int, dict[str, Any]]) -> dict[int, str]:
        """Row -> code."""
        o = self.options
        if o.oracle == "people":
            wording = open_language(o.language)
            shown = {
                n: {**{name: row[name] for name in COLUMNS}, "reads": _reads(row, wording)} for n, row in rows.items()
            }
            return run.ask_people(FILE, shown, CODES)
        given = {n: oracle(row) if o.oracle == "closed-world" else is_valid(row["label"]) for n, row in rows.items()}
        if strange := [n for n, valid in given.items() if valid is None]:
            row = rows[strange[0]]
            what = (
                f"the closed world does not know {row['head']!r} or {row['relation']!r}"
                if o.oracle == "closed-world"
                else f"the label is {row['label']!r}, expected valid, invalid or one of {', '.join(CODES)}"
            )
            raise DataError(f"{len(strange)} of {len(rows)} triples have no label: {what}", rows=strange[:5])
        if o.oracle == "data":
            plain = {VALID: "1", INVALID: "-1"}
            return {n: plain.get(str(row["label"]), str(row["label"])) for n, row in rows.items()}
        return {n: "1" if valid else "-1" for n, valid in given.items()}


def _reads(row: dict[str, Any], language: Any) -> str:
    """The triple as a sentence, where its relation has a template."""
    if row["relation"] not in language.relations:
        return ""
    return language.sentence(row["relation"], row["head"], language.persons, row["tail"])
