"""Evidence fusion (arXiv:2502.14631; RSC Digital Discovery 2026, d5dd00400d): which items can replace each other, from
labelled sets and from experts, as belief masses of one table, and the label of a new set from known ones that differ
from it by a substitution. Nothing is trained by gradient; what is not known stays unknown.

    data        p pairs of sets agree on a substitution and q do not: a = 1 - (1 - alpha)^p, b = 1 - (1 - alpha)^q,
                similar a (1 - b) / (1 - ab), dissimilar b (1 - a) / (1 - ab); the whole is then discounted once
    an expert   high (w, 0, 1 - w), medium (w/2, w/2, 1 - w), low (0, w, 1 - w), does not know (0, 0, 1)
    trust       macro-F1 of each source alone, by cross-validation on the training sets; leave-one-out accuracy at 10
                sets or fewer
    fusion      each source discounted by its trust, all by Dempster's rule
    prediction  see `kdhub_knowledge.substitution.judged`

Versions: v1 predicts by similarity alone (the default of the authors' configurations), v2 also by dissimilarity and
weighs both by `alpha`, v3 also by how alike the sets are.

Departures: the authors' code has two paths; one discounts the data after every piece of evidence, which makes the
result depend on their number. Here, as in the other, once. It draws 999 samples for a probability; here the unknown
mass is shared in halves. The experts of one language model are not independent, as the rule takes them to be: small
weights make up for that in part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import Method, MethodOptions, RunContext
from kdhub.rows import Rows
from kdhub.signals.store import row_key
from kdhub_knowledge.sets.experts import KIND, LEVELS, NO_ANSWER
from kdhub_knowledge.sets.students import Belief, matrix
from kdhub_knowledge.substitution import Pairs, Table, from_labels, fuse, judged, key_of, substitutions

logger = logging.getLogger("kdhub")

DATA = "data"
"""The name of the labelled sets as a source."""
FEW = 10
"""Sets at which trust is the accuracy of leaving each out in turn."""


class EvidenceFusion(Method):
    class Options(MethodOptions):
        version: Literal["v1", "v2", "v3"] = Field(
            "v1", description="what a known set says: by similarity, also by dissimilarity, also weighed by likeness"
        )
        alpha: float = Field(0.01, ge=0, lt=1, description="weight of one piece of evidence; small saturates slowly")
        n_gram: int = Field(2, ge=1, le=2, description="items that a substitution replaces, or puts in, at most")
        data_discount: float = Field(2 / 3, ge=0, le=1, description="how far the labelled sets are trusted as a whole")
        expert_discount: float | None = Field(
            None, ge=0, le=1, description="weight of an expert's answer; 1 / (3 experts) if unset"
        )
        trust: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
            None, description="of each source in their order, or one for all; if unset, macro-F1 on the training sets"
        )
        folds: int = Field(10, ge=2, description="parts of the cross-validation that measures it")
        sources: list[str] = Field(
            default_factory=list, description="data, experts, or an expert's name; all when left out"
        )

    options: Options
    tiny_recipe = {"student": "belief", "options": {"folds": 3}}

    def distill(self, run: RunContext) -> Belief:
        """
        Raises:
            CompatibilityError: the student is not one of belief. DataError: the training sets have one label.
            UsageError: `sources` names none of those that there are, or a list of trusts is not one for each.
        """
        student, o = run.student, self.options
        if not isinstance(student, Belief):
            raise CompatibilityError("evidence-fusion makes a model of belief", hint="student: belief")
        student.options = {"version": o.version, "alpha": o.alpha, "n_gram": o.n_gram}
        run.mark_start(student)
        rows = run.rows()
        examples = [example for example in rows[np.arange(len(rows))] if example["label"] >= 0]
        sets, labels = matrix([e["items"] for e in examples], student.items), np.array([e["label"] for e in examples])
        if len(set(labels)) < 2:
            raise DataError(f"the {len(labels)} labelled training sets have one label: there is nothing to tell apart")
        pairs = substitutions(sets, sets, o.n_gram)
        experts = self._experts(run, student) if run.teacher is not None else {}
        made: dict[str, Callable[[Pairs, np.ndarray], Table]] = {DATA: self._of_data}
        made |= {name: (lambda pairs, labels, table=table: table) for name, table in experts.items()}
        made = {name: make for name, make in made.items() if self._wanted(name, made)}
        weight = {name: o.alpha if name == DATA else self._weight(experts) for name in made}
        trust = run.stage("trust", lambda: self._trusts(made, weight, pairs, labels))
        student.trust = {name: trust[name] for name in made}
        student.sources = {name: make(pairs, labels) for name, make in made.items()}
        student.fused = fuse([table.trusted(student.trust[name]) for name, table in student.sources.items()])
        student.sets, student.labels = sets, labels.astype(np.uint8)
        return student

    def _wanted(self, name: str, known: Sequence[str]) -> bool:
        chosen = self.options.sources
        if strange := [s for s in chosen if s not in (*known, "experts")]:
            raise UsageError(f"sources must be among {', '.join([*known, 'experts'])} (sources={strange})")
        return not chosen or name in chosen or (name != DATA and "experts" in chosen)

    def _of_data(self, pairs: Pairs, labels: np.ndarray) -> Table:
        o = self.options
        return from_labels(pairs, labels, alpha=o.alpha, likeness=o.version == "v3").trusted(o.data_discount)

    def _weight(self, experts: Any) -> float:
        given = self.options.expert_discount
        return 1 / (3 * len(experts)) if given is None else given

    def _experts(self, run: RunContext, student: Belief) -> dict[str, Table]:
        """Each expert's table: of all pairs of items, whether or not they occur."""
        import datasets

        named = [(a, b) for n, a in enumerate(student.items) for b in student.items[n + 1 :]]
        table = datasets.Dataset.from_list([{"items": list(pair)} for pair in named])
        given = run.signals(Rows.build(table, run.task.preparer(None, None), row_key), KIND)[np.arange(len(named))][
            KIND
        ]
        names = [getattr(member, "name", str(n)) for n, member in enumerate(run.teacher.members, 1)]
        at = {item: n for n, item in enumerate(student.items)}
        keys = np.array([key_of([at[a]], [at[b]], student.width) for a, b in named], np.int64)
        order, w, found = np.argsort(keys), self._weight(names), {}
        masses = np.tile([0.0, 0.0, 1.0], (NO_ANSWER + 1, 1))
        masses[list(LEVELS.values())] = [(0, w, 1 - w), (w / 2, w / 2, 1 - w), (w, 0, 1 - w)]
        for name, levels in zip(names, np.asarray(given).T):
            if missing := int((levels == NO_ANSWER).sum()):
                logger.warning("expert %s has no answer about %d of %d pairs of items", name, missing, len(levels))
            found[name] = Table(keys[order], masses[levels.astype(int)][order])
        return found

    def _trusts(
        self, made: dict[str, Any], weight: dict[str, float], pairs: Pairs, labels: np.ndarray
    ) -> dict[str, float]:
        given = self.options.trust
        if given is None:
            folds = _folds(len(labels), self.options.folds)
            return {name: self._trust(make, weight[name], pairs, labels, folds) for name, make in made.items()}
        if len(given) not in (1, len(made)):
            raise UsageError(f"trust must be one number, or one for each of {', '.join(made)} (trust={given})")
        return dict(zip(made, given * len(made) if len(given) == 1 else given))

    def _trust(self, make: Any, weight: float, pairs: Pairs, labels: np.ndarray, folds: Sequence[np.ndarray]) -> float:
        """How well one source alone predicts held-out training sets."""
        from sklearn.metrics import f1_score

        scores = []
        for held in folds:
            inner = pairs.where(~held[pairs.left] & ~held[pairs.right])
            outer = pairs.where(held[pairs.left] & ~held[pairs.right])
            masses = judged(
                make(inner, labels), outer, labels, len(labels), version=self.options.version, alpha=weight
            )[held]
            chosen = np.where(masses[:, 0] > masses[:, 1], 0, 1)
            few = len(labels) <= FEW
            scores.append((chosen == labels[held]).mean() if few else f1_score(labels[held], chosen, average="macro"))
        return float(np.mean(scores))


def _folds(rows: int, parts: int) -> list[np.ndarray]:
    """Which rows each part of a cross-validation holds out, (rows,) bool each."""
    from sklearn.model_selection import KFold, LeaveOneOut

    rule = LeaveOneOut() if rows <= FEW else KFold(min(parts, rows), shuffle=True, random_state=0)
    return [np.isin(np.arange(rows), held) for _, held in rule.split(np.zeros(rows))]
