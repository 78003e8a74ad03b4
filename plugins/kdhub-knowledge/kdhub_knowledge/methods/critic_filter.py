"""The filtered graph: triples that a critic scores above the threshold at a recall (arXiv:2110.07178, section 3.3).

    score      mean probability of `valid` over draws of the persons' names
    threshold  of the annotated validation rows, see `kdhub_knowledge.commonsense.critic.threshold`

Rows keep their columns and get `score`; with `drop: false` all stay, and `kept` says which pass. Kept counts, precision
and recall on annotated rows, and areas under the curve are reported pooled and for each relation: a critic may be
good at no more than telling which relation is often wrong.

Departure: the authors average the thresholds of validation and test rows; here it is of validation rows alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from kdhub_tasks.language.generation import digest_of
from pydantic import Field

from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import Method, MethodOptions
from kdhub.metric import Measure
from kdhub.rows import Rows
from kdhub_knowledge.commonsense.critic import VALID, area, is_valid, kept, threshold
from kdhub_knowledge.commonsense.data import pair_of
from kdhub_knowledge.commonsense.language import open_language
from kdhub_knowledge.commonsense.rows import COLUMNS, SPLITS, column, require_columns

if TYPE_CHECKING:
    import datasets

    from kdhub.method import RunContext
    from kdhub.student import Student

logger = logging.getLogger("kdhub")

CRITIC = "critic"
ALL = "all"
"""Stands for all relations in the figures of this method."""
VANISHES = 0.1
"""A relation of which less than this share of the pooled kept share is kept is warned of."""


class CriticFilter(Method):
    class Options(MethodOptions):
        critic_recall: Annotated[float, Field(gt=0, lt=1)] | Literal["none"] = Field(
            0.5,
            description="recall of valid validation rows at the threshold, between 0 and 1; none: no filter",
        )
        threshold_rule: Literal["recall_at_most", "recall_at_least"] = Field(
            "recall_at_most",
            description="above the first point with at most this recall, or from the last with at least",
        )
        name_ensemble: int = Field(5, ge=1, description="draws of names whose scores are averaged")
        per_relation: bool = Field(False, description="a threshold of its own for each relation")
        scores: str | None = Field(None, description="column with scores that there are, in place of a critic")
        drop: bool = Field(True, description="leave out what does not pass; false: keep it, with `kept` false")
        choose: Literal["critic", "random"] = Field(
            "critic", description="random: as many triples at random as the critic keeps, a baseline"
        )
        language: str = Field("en", description="language file, for names and phrases")

    options: Options
    tiny_recipe = {"teacher": None, "data": {"test": []}, "options": {"scores": "score", "critic_recall": 0.8}}
    _measures: list[Measure] = []

    def distill(self, run: RunContext) -> Student:
        """
        Raises:
            UsageError: no annotated rows. CompatibilityError: no critic, or one of other classes.
            DataError: columns that are missing, annotated rows of test events or of one class, a threshold that nobody
                reaches.
        """
        o, table = self.options, run.table("train")
        require_columns(table, *COLUMNS, "split")
        self._measures = []
        relations = column(table, "relation")
        if o.critic_recall == "none":
            passes, scores = np.ones(len(table), bool), None
        else:
            scores = self._scores(run, table)
            limits = run.stage("threshold", lambda: self._limits(run, table))
            passes = self._passes(scores, relations, limits)
            for use in self._annotated_uses(run, set(column(table, "head"))):
                self._report(run, limits, use)
        if not passes.any():
            raise DataError(
                f"none of the {len(table)} triples passes the threshold (critic_recall={o.critic_recall})",
                hint="do validation rows and triples come from the same teacher? Try a higher critic_recall",
            )
        if o.choose == "random":
            drawn = np.random.default_rng(run.seed).permutation(len(table))[: passes.sum()]
            passes = np.isin(np.arange(len(table)), drawn)
        self._of_relations(relations, passes)
        return self._filled(run, table, scores, passes)

    def _filled(self, run: RunContext, table: Any, scores: np.ndarray | None, passes: np.ndarray) -> Student:
        for name, values in (("score", scores), ("kept", None if self.options.drop else passes)):
            if values is not None:
                table = table.remove_columns([name]) if name in table.column_names else table
                table = table.add_column(name, values)
        where, student = column(table, "split"), run.student
        if strange := sorted(set(where) - set(SPLITS)):
            raise DataError(f"a split of the triples is {strange[0]!r}, expected one of {', '.join(SPLITS)}")
        for name in SPLITS:
            mine = np.flatnonzero((where == name) & (passes if self.options.drop else True))
            if len(mine):
                student.splits[name] = table.select(mine)
            elif name in where:
                logger.warning("no triple of the split %s passes the critic: the graph goes without that split", name)
        return student

    def evaluate(self, run: RunContext, student: Student) -> Any:
        report = run.evaluate(student)
        report.measures += self._measures
        return report

    # -- scores -----------------------------------------------------------------------------------------------

    def _scores(self, run: RunContext, table: datasets.Dataset) -> np.ndarray:
        """(rows,) float64: the critic's mean probability of `valid` over draws of names, or what a column says."""
        if name := self.options.scores:
            require_columns(table, name)
            return np.asarray(column(table, name), np.float64)
        critic = run.teachers.get(CRITIC)
        if critic is None:
            raise CompatibilityError(
                "there is no critic", hint="teacher: {critic: recipe:symbolic-kd-critic}, or scores: COLUMN"
            )
        classes = list(getattr(critic, "classes", None) or ())
        if len(classes) != 2 or VALID not in classes:
            raise CompatibilityError(
                f"the critic tells {', '.join(classes) or 'nothing'} apart, expected {VALID} and another class",
                hint="train one with the method critic",
            )
        sign = 1 if classes.index(VALID) else -1
        return np.mean([self._once(run, table, n, sign) for n in range(self.options.name_ensemble)], 0)

    def _once(self, run: RunContext, table: datasets.Dataset, draw: int, sign: int) -> np.ndarray:
        """Scores with one draw of names."""
        language, seed = open_language(self.options.language), run.seed * 1009 + draw
        key = {"of": digest_of(table), "names": seed, "language": language.model_dump(mode="json"), "version": 1}
        rows = lambda: (pair_of(row, language, seed) for row in iterate(table.select_columns(list(COLUMNS))))  # noqa: E731
        pairs = Data.from_rows(f"names {draw}", {"train": rows}, key=key).split("train")
        n = len(pairs)  # the critic reads the rows by its own task: keys and lengths are made there
        given = run.signals(Rows(pairs, list, np.zeros((n, 12), np.uint8), np.ones(n, np.int32)), "logits", role=CRITIC)
        found = np.empty(n)
        for start in range(0, n, 8192):
            some = np.arange(start, min(start + 8192, n))
            logits = np.asarray(given[some]["logits"], np.float64)
            found[some] = 1 / (1 + np.exp(-sign * (logits[:, 1] - logits[:, 0])))
        return found

    # -- thresholds -------------------------------------------------------------------------------------------

    def _annotated(self, run: RunContext, use: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (bool), scores and relations of annotated rows."""
        table = run.table(use)
        require_columns(table, *COLUMNS, "label")
        found = [is_valid(label) for label in column(table, "label")]
        if strange := [n for n, valid in enumerate(found, 1) if valid is None]:
            label = table[strange[0] - 1]["label"]
            raise DataError(
                f"annotated {use} rows: unknown label {label!r}, expected a code or valid, invalid", rows=strange[:5]
            )
        return np.array(found, bool), self._scores(run, table), column(table, "relation")

    @staticmethod
    def _annotated_uses(run: RunContext, events: set[str]) -> list[str]:
        """The uses of data that have annotated rows.

        Raises:
            DataError: none of them is of an event of the graph: they are those of another one.
        """
        uses = [use for use in ("validation", "test") if run.has_rows(use)]
        for use in uses:
            if events.isdisjoint(heads := column(run.table(use), "head")):
                raise DataError(
                    f"none of the {len(heads)} annotated {use} rows is of an event of the graph",
                    hint=f"data.{use}: [] goes without them; method annotate labels triples of this graph",
                )
        return uses

    def _limits(self, run: RunContext, table: datasets.Dataset) -> dict[str, float]:
        """The threshold of all relations ("") and, where asked for, of each."""
        o = self.options
        if not run.has_rows("validation"):
            raise UsageError(
                "there are no annotated rows to choose a threshold by", hint="name them as data.validation"
            )
        tested = {head for head, split in zip(column(table, "head"), column(table, "split")) if split == "test"}
        seen = column(run.table("validation"), "head")
        if leaked := [n for n, head in enumerate(seen, 1) if head in tested]:
            raise DataError(
                f"{len(leaked)} of {len(seen)} annotated validation rows are of test events of the graph: "
                "threshold and critic would have seen what the student is tested on",
                rows=leaked[:5], hint="annotate triples of training events alone (method annotate does)",
            )  # fmt: skip
        labels, scores, relations = self._annotated(run, "validation")
        limits = {"": threshold(labels, scores, o.critic_recall, o.threshold_rule)}
        for one in np.unique(column(table, "relation")) if o.per_relation else ():
            mine = relations == one
            if labels[mine].any():
                limits[str(one)] = threshold(labels[mine], scores[mine], o.critic_recall, o.threshold_rule)
            else:
                logger.warning("no valid annotated row of the relation %s: it takes the threshold of all", one)
        return limits

    def _passes(self, scores: np.ndarray, relations: np.ndarray, limits: dict[str, float]) -> np.ndarray:
        names = np.unique(relations)
        of = np.array([limits.get(one, limits[""]) for one in names])
        return kept(scores, of[np.searchsorted(names, relations)], self.options.threshold_rule)

    # -- the table --------------------------------------------------------------------------------------------

    def _add(self, metric: str, value: float | None, relation: str = "", **where: Any) -> None:
        if value is not None:
            variant = {"relation": relation or ALL}  # never without: cards have what files alone can be asked for
            self._measures.append(
                Measure(metric=metric, value=float(value), subject="student", variant=variant, **where)
            )

    def _of_relations(self, relations: np.ndarray, passes: np.ndarray) -> None:
        """Kept shares, and a warning where a relation all but vanishes."""
        self._add("kept-share", passes.mean(), dataset="triples", examples=len(passes))
        for one in np.unique(relations):
            mine = passes[relations == one]
            self._add("kept-share", mine.mean(), str(one), dataset="triples", examples=len(mine))
            if mine.mean() < VANISHES * passes.mean():
                logger.warning(
                    "the relation %s all but vanishes: %d of %d triples are kept, %.0f %% of all are; "
                    "per_relation: true keeps a recall of each", one, mine.sum(), len(mine), 100 * passes.mean(),
                )  # fmt: skip

    def _report(self, run: RunContext, limits: dict[str, float], use: str) -> None:
        """Precision and recall at the threshold, and areas under the curve, of annotated rows."""
        if use == "validation":
            for name, limit in limits.items():
                self._add("threshold", limit, name, dataset="annotated validation")
        labels, scores, relations = self._annotated(run, use)
        passes, where = self._passes(scores, relations, limits), f"annotated {use}"
        within = []
        for one in ("", *map(str, np.unique(relations))):
            mine = relations == one if one else np.ones(len(labels), bool)
            hits, n = (labels & passes & mine).sum(), int(mine.sum())
            at = {"dataset": where, "examples": n}
            self._add("precision", hits / (passes & mine).sum() if (passes & mine).any() else None, one, **at)
            self._add("recall", hits / (labels & mine).sum() if (labels & mine).any() else None, one, **at)
            self._add("auroc", found := area(labels[mine], scores[mine]), one, **at)
            within += [(found, n)] if one and found is not None else []
        if within:
            values, weights = zip(*within)
            at = {"dataset": where, "examples": sum(weights)}
            self._add("auroc-within-relations", np.average(values, weights=weights), **at)
