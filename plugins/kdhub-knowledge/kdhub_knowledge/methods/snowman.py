"""Snowman (arXiv:2306.10241): heads of a commonsense graph, filtered by the model that wrote them. Pilot judgements say
which types of heads are unreliable (in the paper the negated ones), and only those are filtered, by a model that is
taught by judged examples and by its own unanimous verdicts.

    pilot    some triples of each type and polarity, judged by people, or by a model in their place; filtered is what
             is accepted by more than `pilot_margin` less than all of them
    filter   `kdhub_knowledge.commonsense.pool`: votes with examples drawn anew, a pool that grows and stays balanced

The student is rows: each split of the data with the heads that are kept, and `rejected`, those that are not, with their
votes. Splits in which nothing is filtered are what they were, byte for byte.

Reconstructed: of the paper the abstract and the beginning of the introduction could be read. That negative heads are
filtered by a self-instruct filter is the paper's; types, prompts, votes, pool and thresholds are not.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from kdhub_tasks.language.prompting import Prompter, filled
from kdhub_tasks.language.replies import Tally
from pydantic import Field, model_validator

from kdhub.data.prepare import iterate
from kdhub.dataset_student import DatasetStudent
from kdhub.errors import CompatibilityError, DataError, TeacherError
from kdhub.method import Method, MethodOptions, RunContext
from kdhub_knowledge.commonsense.critic import interval
from kdhub_knowledge.commonsense.heads import COLUMNS
from kdhub_knowledge.commonsense.pool import UNREADABLE, Example, Filter, Pool, accepted
from kdhub_knowledge.commonsense.typed import TypedLanguage, open_typed, polarity_of
from kdhub_knowledge.commonsense.typed_tails import SETTINGS, tails

logger = logging.getLogger("kdhub")

JUDGE, ANNOTATOR = "judge", "annotator"
ANCHORS = "anchors"
"""The use of data that holds judged heads, in place of those of the language file."""
VOTES, REJECTED = "filter_votes", "rejected"
PILOT = "pilot.csv"
AT_ONCE = 1000
"""Heads that are judged in one stage of a run."""
LABELS = ("valid", "invalid")
RECONSTRUCTED = (
    "Parts of the method are reconstructed: of arXiv:2306.10241 only the abstract and the beginning of the "
    "introduction could be read.",
    "That the judge is right more often than not is assumed: nobody compared its verdicts with people's, beyond the "
    "anchors that it was shown.",
)

Kind = tuple[str, str]
"""Type and polarity."""


class Snowman(Method):
    class Options(MethodOptions):
        language: str = Field("zh", description="a language file with typed heads, by name or path")
        filter_types: Literal["auto", "negative", "all", "none"] = Field(
            "auto", description="which heads are filtered; auto: those of types that the pilot finds unreliable"
        )
        votes: int = Field(3, ge=1, description="verdicts about each head, odd; most of them decide")
        shots: int = Field(8, ge=4, description="judged examples in a prompt, even: half valid, half invalid")
        pool_max: int = Field(200, ge=20, description="judged examples at most; the anchors are never dropped")
        self_instruct: bool = Field(True, description="unanimous verdicts become examples; false: the anchors alone")
        rouge_max: float = Field(
            0.7, gt=0, le=1, description="examples of the pool are less similar than this (ROUGE-L)"
        )
        together: int = Field(1, ge=1, description="heads that are judged before the pool grows; more are faster")
        pilot_triples: int = Field(100, ge=1, description="triples of each type that are judged in the pilot")
        pilot_margin: float = Field(0.05, ge=0, lt=1, description="acceptance below that of all which is unreliable")
        answers: dict[str, Any] = Field({}, description="settings of verdicts: temperature, max_new_tokens, ...")
        chat: bool = Field(False, description="use a local model's chat template; API models always have theirs")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if not self.votes % 2 or self.shots % 2:
                raise ValueError(f"votes must be odd and shots even (votes={self.votes}, shots={self.shots})")
            return self

    options: Options
    tiny_recipe = {
        "teacher": {"source": "roles", JUDGE: "closed-world-zh", ANNOTATOR: "closed-world-zh"},
        "data": {
            "train": {
                "source": "typed-heads:zh",
                "split": "negative",
                "options": {"teacher": "closed-world-zh", "types": ["event"], "categories": ["饮食"], "rounds": 1},
            },
            ANCHORS: "closed-world-zh",
        },
        "options": {"filter_types": "negative", "pool_max": 22},
    }

    def distill(self, run: RunContext) -> DatasetStudent:
        """
        Raises:
            CompatibilityError: the student is not rows. DataError: heads that cannot be read, anchors that are not
            balanced. AwaitingError: the pilot waits for people. TeacherError: the judge accepts no head.
        """
        student, typed = run.student, open_typed(self.options.language)
        if not isinstance(student, DatasetStudent):
            raise CompatibilityError("snowman keeps heads, and the student must be rows", hint="student: rows")
        tables = {use: _with_votes(run.table(use)) for use in run.data_uses if use != ANCHORS}
        heads = [(use, n, row) for use, table in tables.items() for n, row in enumerate(_heads(table, use))]
        chosen = self._chosen(run, typed, [row for *_, row in heads])
        judged = [(use, n, row) for use, n, row in heads if (row["head_type"], polarity_of(row)) in chosen]
        votes = dict(zip([(use, n) for use, n, _ in judged], self._votes(run, typed, [row for *_, row in judged])))
        rejected = []
        for use, table in tables.items():
            mine = {n: given for (of, n), given in votes.items() if of == use}
            kept = [n for n in range(len(table)) if n not in mine or accepted(mine[n])]
            if not kept:
                unread = sum(UNREADABLE in given for given in mine.values())
                raise TeacherError(
                    f"the judge accepts none of the {len(table)} heads of {use!r}; {unread} have an unreadable vote",
                    hint="does it understand the prompt (prompts.judge of the language file)? Try one by hand",
                )
            student.splits[use] = _voted(table, kept, mine) if mine else table
            if gone := [n for n in mine if not accepted(mine[n])]:
                rejected.append(_voted(table, gone, mine))
        if rejected:
            import datasets

            student.splits[REJECTED] = datasets.concatenate_datasets(rejected)
        student.about |= {"reconstructed": True}
        student.limits = RECONSTRUCTED
        return student

    # -- pilot ------------------------------------------------------------------------------------------------

    def _chosen(self, run: RunContext, typed: TypedLanguage, heads: Sequence[Mapping[str, Any]]) -> set[Kind]:
        """What is filtered."""
        o = self.options
        kinds = list(dict.fromkeys((row["head_type"], polarity_of(row)) for row in heads))
        if o.filter_types == "auto":
            found = self._pilot(run, typed, heads, kinds)
            return {kind for kind, share in found.items() if share < self._mean - o.pilot_margin}
        return {kind for kind in kinds if o.filter_types == "all" or kind[1] == o.filter_types}

    def _pilot(
        self, run: RunContext, typed: TypedLanguage, heads: Sequence[Mapping[str, Any]], kinds: Sequence[Kind]
    ) -> dict[Kind, float]:
        """The share of triples of each kind that is accepted."""
        triples = run.stage("pilot triples", lambda: self._triples(run, typed, heads, kinds))
        labels = self._labels(run, typed, triples)
        found, report = {}, {}
        for kind in kinds:
            mine = [label == LABELS[0] for label, row in zip(labels, triples) if (row["type"], row["polarity"]) == kind]
            if mine:
                low, high = interval(sum(mine), len(mine))
                found[kind] = sum(mine) / len(mine)
                report["/".join(kind)] = {"accepted": found[kind], "low": low, "high": high, "triples": len(mine)}
        self._mean = sum(label == LABELS[0] for label in labels) / max(1, len(labels))
        for name, one in report.items():
            logger.info("pilot: %s, %.1f %% of %d triples accepted (%.1f to %.1f)", name, 100 * one["accepted"],
                        one["triples"], 100 * one["low"], 100 * one["high"])  # fmt: skip
        run.stage("pilot", lambda: run.log(pilot=report))
        run.student.about["pilot"] = {name: round(one["accepted"], 4) for name, one in report.items()}
        return found

    def _triples(
        self, run: RunContext, typed: TypedLanguage, heads: Sequence[Mapping[str, Any]], kinds: Sequence[Kind]
    ) -> list[dict[str, str]]:
        """One triple of some heads of each kind, with a relation that fits."""
        o, found = self.options, []
        ask = self._asks(run, JUDGE, {**SETTINGS, **{k: v for k, v in o.answers.items() if k != "max_new_tokens"}})
        for kind in kinds:
            mine = [row for row in heads if (row["head_type"], polarity_of(row)) == kind and typed.relations_of(row)]
            draw = random.Random(f"{run.seed} pilot {kind}")
            some = draw.sample(mine, min(len(mine), o.pilot_triples))
            by_relation: dict[str, list[Mapping[str, Any]]] = {}
            for row in some:
                by_relation.setdefault(draw.choice(typed.relations_of(row)), []).append(row)
            for relation, rows in by_relation.items():
                for row in _first(tails(ask, typed, rows, Tally(), relations=[relation], seed=run.seed)):
                    triple = {name: row[name] for name in ("head", "relation", "tail")}
                    found.append({**triple, "type": kind[0], "polarity": kind[1]})
        if not found:
            raise TeacherError("the pilot has no triple: the judge wrote no tail that can be read")
        return found

    def _labels(self, run: RunContext, typed: TypedLanguage, triples: Sequence[Mapping[str, str]]) -> list[str]:
        shown = [{**row, "sentence": typed.sentence(row["relation"], row["head"], row["tail"])} for row in triples]
        if ANNOTATOR not in run.teachers:
            told = run.ask_people(PILOT, dict(enumerate(shown)), LABELS)
            return [told[n] for n in range(len(shown))]
        ask = self._asks(run, ANNOTATOR, {"max_new_tokens": 32, **self.options.answers})
        said = ask([filled(typed.typed.prompts["check"], sentence=row["sentence"]) for row in shown])
        return [LABELS[not typed.verdict(reply)] for reply in said]

    # -- filter -----------------------------------------------------------------------------------------------

    def _votes(self, run: RunContext, typed: TypedLanguage, heads: Sequence[Mapping[str, Any]]) -> list[str]:
        """The votes about each head, in order; heads of one polarity share a pool."""
        o, found = self.options, [""] * len(heads)
        ask = self._asks(run, JUDGE, {"temperature": 0.0, "max_new_tokens": 64, **o.answers})
        for polarity in dict.fromkeys(map(polarity_of, heads)):
            pool = Pool(self._anchors(run, typed, polarity), o.pool_max, o.rouge_max, typed.spaces, typed.bare)
            judge = Filter(typed, ask, pool, o.self_instruct, o.votes, o.shots, o.together, run.seed)
            places = [n for n, row in enumerate(heads) if polarity_of(row) == polarity]
            random.Random(f"{run.seed} order {polarity}").shuffle(places)
            for start in range(0, len(places), AT_ONCE):
                some = places[start : start + AT_ONCE]
                texts = [heads[n]["head"] for n in some]
                work = partial(self._judged, run, judge, polarity, start, texts)
                done = run.stage(f"{polarity} heads from {start}", work)
                pool.load(done["pool"])
                for n, votes in zip(some, done["votes"]):
                    found[n] = votes
        return found

    @staticmethod
    def _judged(run: RunContext, judge: Filter, polarity: str, start: int, heads: Sequence[str]) -> dict[str, Any]:
        votes, size = [], 0
        for given in judge(heads):
            votes.append(given)
            if len(judge.pool.members) != size:  # the growth curve
                size = len(judge.pool.members)
                run.log(polarity=polarity, judged=start + len(votes), pool=size)
        return {"votes": votes, "pool": judge.pool.state}

    def _anchors(self, run: RunContext, typed: TypedLanguage, polarity: str) -> list[Example]:
        """
        Raises:
            DataError: there are none.
        """
        if not run.has_rows(ANCHORS):
            given = typed.typed.anchors.get(polarity)
            found = [Example(head, valid) for valid in (True, False) for head in getattr(given, LABELS[not valid], ())]
        else:
            rows = list(iterate(run.table(ANCHORS)))
            if bad := [n for n, row in enumerate(rows, 1) if not (row.get("head") and "valid" in row)]:
                raise DataError("data.anchors has rows without head and valid", rows=bad[:5])
            found = [Example(row["head"], bool(row["valid"])) for row in rows if typed.polarity(row) == polarity]
        if not found:
            raise DataError(
                f"no judged heads are {polarity}: the filter has nothing to learn from",
                hint=f"add them to typed.anchors.{polarity} of the language file, or to data.anchors",
            )
        return found

    def _asks(self, run: RunContext, role: str, settings: Mapping[str, Any]) -> Any:
        """Prompts -> replies of a teacher, through the store."""
        prompter = Prompter("snowman", run.teachers[role], settings, self.options.chat)
        prompter.signals = partial(run.signals, role=role, read=True)
        return lambda prompts: [reply.text for (reply,) in prompter(prompts)]


def _heads(table: Any, use: str) -> list[dict[str, Any]]:
    """
    Raises:
        DataError: a column is missing, or a head is there twice or empty; says which rows.
    """
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise DataError(
            f"the heads of {use!r} have no column {missing[0]!r}; they have {', '.join(table.column_names)}",
            hint="typed-heads makes them; or map columns: {head: THEIRS, head_type: THEIRS, negative: THEIRS}",
        )
    rows, seen = list(iterate(table.select_columns(list(COLUMNS)))), set()
    for n, row in enumerate(rows, 1):
        if not row["head"] or row["head"] in seen:
            raise DataError(
                f"the heads of {use!r}: {row['head']!r} is {'there twice' if row['head'] else 'empty'}", rows=[n]
            )
        seen.add(row["head"])
    return rows


def _with_votes(table: Any) -> Any:
    """The table with a column of votes, empty where nobody voted."""
    return table if VOTES in table.column_names else table.add_column(VOTES, [""] * len(table))


def _voted(table: Any, rows: Sequence[int], votes: Mapping[int, str]) -> Any:
    """Some rows of a table with their votes."""
    given = [votes.get(n, old) for n, old in enumerate(table[VOTES])]
    return table.remove_columns(VOTES).add_column(VOTES, given).select(rows)


def _first(rows: Any) -> list[Mapping[str, Any]]:
    """The first row of each head."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        found.setdefault(row["head"], row)
    return list(found.values())
