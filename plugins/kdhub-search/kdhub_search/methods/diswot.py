"""DisWOT: find the student that suits a teacher without training any, then distil it (arXiv:2303.15678).

Each candidate of a space is scored on one batch, with a teacher and a candidate of random weights:

    score = -(M_s + M_r)                      higher is better (`kdhub_search.scores`)

the mean over `n_init` pairs of random weights, on the same batch and the same teachers for all. Aging evolution looks
for the best within a budget; the best `rescored` are scored again with three times as many weights, the first of them
learns from the trained teacher: CE + KL, with both distances too (`diswot-dagger`), or not at all, for a chain.

Departures. The authors' search keeps one of the two terms, ours the paper's sum. Theirs draws parents among the worst
of a tournament, starts from one model and does not hold children to the budget: not so here. Rows, not whole matrices,
are normalised, as their code does. Candidates whose features are of norm 0 are rejected.

Each candidate is a file in the run folder (`candidates/0001.json`), written when it was scored: a search that was
stopped goes on from there. The score ranks sizes well and fine differences of depth hardly; what else could have chosen
(the most parameters, as many random candidates, a score without a teacher) stands beside it in `search.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError, KdhubError, UsageError
from kdhub.files import read_sealed, write_json, write_sealed
from kdhub.method import ObjectiveMethod, Progress, RunContext
from kdhub.metric import Measure
from kdhub.ranks import device, of_first, rank
from kdhub.rows import plain_rows
from kdhub_search import evolution
from kdhub_search.evolution import Evaluated
from kdhub_search.methods.diswot_dagger import DiswotDagger, SoftTargetOptions, soft_targets
from kdhub_search.networks import network_of
from kdhub_search.spaces.space import Budget, Candidate, Space

if TYPE_CHECKING:
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student

logger = logging.getLogger("kdhub")

FOLDER = "candidates"
"""In the run folder: one file for each candidate that was scored, numbered from 1 in that order."""
RESULT = "search.json"
BATCH, EVOLUTION, RANDOM, TEACHER, STUDENT = range(5)
"""What random numbers are for, so that none of them depends on another."""


class Diswot(ObjectiveMethod):
    """Search, then distil."""

    class Options(SoftTargetOptions):
        max_params: int | None = Field(None, ge=1, description="the most parameters of a candidate")
        max_flops: int | None = Field(None, ge=1, description="the most FLOPs of a candidate's pass for one image")
        search: Literal["evolution", "random"] = Field("evolution", description="how candidates are proposed")
        rank_by: Literal["diswot", "parameters", "jacobian"] = Field(
            "diswot", description="what is best: the score, the most parameters, or a score without a teacher"
        )
        evaluations: int = Field(200, ge=1, description="candidates that are proposed and scored")
        population: int = Field(20, ge=1, description="candidates alive at a time (evolution)")
        sample: int = Field(5, ge=1, description="of them, how many compete to be the next parent (evolution)")
        rescored: int = Field(5, ge=1, description="the best, which are scored again with three times n_init weights")
        n_init: int = Field(3, ge=1, le=20, description="random weights that a score is the mean over")
        score_rows: int = Field(64, ge=2, le=256, description="images that a score is of")
        semantic: Literal["cam", "grad", "off"] = Field(
            "cam", description="semantic matrices of class maps, of the classifier's gradient (equal widths), or none"
        )
        relation: bool = Field(True, description="whether the relations between images count")
        init: Literal["default", "gaussian"] = Field(
            "default", description="random weights of an architecture's own, or from N(0, 1)"
        )
        teacher_weights: Literal["random", "trained"] = Field("random", description="weights of the teacher in a score")
        baselines: bool = Field(True, description="also what other ways of choosing would have found")
        distiller: Literal["kd", "diswot-dagger", "none"] = Field(
            "kd", description="how the found student learns; none: not at all, for a chain"
        )

    options: Options
    tiny_recipe = {
        "student": {"source": "space:mlp", "choices": {"first": [4, 8], "second": [4]}},
        "options": {"evaluations": 4, "population": 2, "sample": 2, "n_init": 1, "score_rows": 8, "rescored": 1},
    }

    # -- the run ----------------------------------------------------------------------------------------------

    def distill(self, run: RunContext) -> Student:
        found = run.stage("search", lambda: self._search(run))
        student = space_of(run.student).build(of_first(found["found"]["choices"]), run.seed)
        logger.info("found %s: %s parameters", found["found"]["source"], f"{found['found']['parameters']:,}")
        if self.options.distiller == "none":
            run.mark_start(student)
            return student
        return run.fit(self if self.options.distiller == "kd" else self._dagger(), student)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        return soft_targets(self.options, student, teacher, batch["labels"], batch)

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also the score of the student, and of what other ways of choosing found."""
        report, result = run.evaluate(student), run.stage("search", lambda: self._search(run))
        found, others = result["found"], result["baselines"]
        for who, one in {None: found, **others}.items():
            report.measures.append(
                Measure(
                    metric="diswot-score",
                    value=one["score"],
                    subject="student",
                    dataset="one training batch",
                    examples=result["rows"],
                    variant={"chosen by": who} if who else {},
                    note=f"{one['source']}, {one['parameters']:,} parameters",
                )
            )
        report.notes.append(
            f"{found['source']} ({found['parameters']:,} parameters) was found among {result['candidates']} candidates "
            f"of {result['size']:,} in the space{result['within']}, by {result['by']}"
        )
        report.notes += [
            f"{name.replace('-', ' ')} would have chosen {one['source']} ({one['parameters']:,} parameters)"
            for name, one in others.items()
        ]
        return report

    def _dagger(self) -> DiswotDagger:
        from kdhub_search.spaces.spec import METHODS

        known = DiswotDagger.Options.model_fields
        options = DiswotDagger.Options(**{name: getattr(self.options, name) for name in known})
        return DiswotDagger(options, next(spec for spec in METHODS if spec.name == "diswot-dagger"))

    # -- the search -------------------------------------------------------------------------------------------

    def _search(self, run: RunContext) -> dict[str, Any]:
        """What was found, what else could have been, and all that was looked at, as JSON values."""
        o, space = self.options, space_of(run.student)
        if o.semantic == "off" and not o.relation:
            raise UsageError("a score needs something to compare (semantic=off, relation=false)")
        space.within(Budget(o.max_params, o.max_flops), plain_rows(run.table("train"), [0])[0])
        scored = Candidates(run, o, space)
        rank_of = partial(scored.rank, by=o.rank_by)
        rng = np.random.default_rng([run.seed, EVOLUTION])
        sizes = {"population": o.population, "sample": o.sample}
        if o.search == "random":
            history = evolution.at_random(space, rank_of, np.random.default_rng([run.seed, RANDOM]), o.evaluations)
        else:
            history = evolution.evolve(space, rank_of, rng, evaluations=o.evaluations, **sizes)
        if not np.isfinite(max(one.score for one in history)):
            raise CompatibilityError(
                f"no candidate of the space {space.template} can be scored: {scored.refused}",
                hint="check the space, or another score: --set semantic=cam",
            )
        found = self._best(history, scored)
        others = self._baselines(run, space, scored, history) if o.baselines else {}
        result = {
            "by": f"{o.search} with {o.rank_by}",
            "found": found,
            "baselines": others,
            "candidates": len(scored.known),
            "size": len(space),
            "rows": len(scored.examples),
            "within": f" within {space.budget}" if str(space.budget) else "",
            "history": [scored.of(one.candidate)["number"] for one in history],
        }
        if rank() == 0:
            write_json(run.folder / RESULT, result)
        return result

    def _best(self, history: list[Evaluated], scored: Candidates) -> dict[str, Any]:
        """The first of the best, after they were scored again where the score decides."""
        top = [one for one in evolution.best(history, self.options.rescored) if np.isfinite(one.score)]
        if self.options.rank_by != "diswot":
            return scored.of(top[0].candidate)
        return max((scored.again(one.candidate) for one in top), key=lambda one: one["rescored"])

    def _baselines(
        self, run: RunContext, space: Space, scored: Candidates, history: list[Evaluated]
    ) -> dict[str, dict[str, Any]]:
        """What would have been chosen by parameter count, by a score without a teacher, and by random search."""
        rng, many = np.random.default_rng([run.seed, RANDOM]), self.options.evaluations
        drawn = evolution.at_random(space, partial(scored.rank, by="diswot"), rng, many)
        looked_at = [one.candidate for one in (*history, *drawn) if scored.of(one.candidate)["score"] is not None]
        chosen = {"random-search": evolution.best(drawn)[0].candidate}
        for by in ("parameters", "jacobian"):
            chosen[by] = max(looked_at, key=partial(scored.rank, by=by))
        return {name: scored.of(candidate) for name, candidate in chosen.items()}


class Candidates:
    """The candidates of a search with their scores: each scored once, kept as a file, and found there again.

    Attributes:
        known: by source, as their files have them.
        examples: the training rows that scores are of.
        refused: why the last one was not scored that could not be.
    """

    def __init__(self, run: RunContext, options: Diswot.Options, space: Space):
        self.run, self.options, self.space = run, options, space
        self.folder = run.folder / FOLDER
        self.known: dict[str, dict[str, Any]] = {}
        self.refused = ""
        self._teachers: dict[int, Any] = {}
        self._model = network_of(run.teacher)
        rows = run.rows("train")
        if len(rows) < 2:
            raise DataError(f"a score compares images with each other, and there is {len(rows)}")
        chosen = np.random.default_rng([run.seed, BATCH]).permutation(len(rows))[: options.score_rows]
        self.examples = rows[np.sort(chosen)]
        if options.semantic == "grad" and any(e["label"] < 0 for e in self.examples):
            raise DataError("semantic=grad needs a label of every image", hint="--set semantic=cam")

    def of(self, candidate: Candidate) -> dict[str, Any]:
        """Number, source, choices, costs, scores and distances of a candidate."""
        source = self.space.name(candidate)
        if source not in self.known:
            number = len(self.known) + 1
            kept = self._kept(number)
            if kept is None or kept["source"] != source:
                kept = {"number": number, "source": source, "choices": candidate, **self.space.cost(candidate)}
                kept |= self._scored(candidate, self.options.n_init)
                self._keep(kept)
                if number % 20 == 0:
                    logger.info("%d candidates scored", number)
            self.known[source] = kept
            self.refused = kept.get("refused") or self.refused
        return self.known[source]

    def again(self, candidate: Candidate) -> dict[str, Any]:
        """The same with `rescored`: the score over three times as many random weights."""
        one = self.of(candidate)
        if "rescored" not in one:
            one["rescored"] = self._scored(candidate, 3 * self.options.n_init)["score"]
            self._keep(one)
        return one

    def rank(self, candidate: Candidate, by: str) -> float:
        """What is compared of it, the higher the better; -inf where it was rejected."""
        one = self.of(candidate)
        value = one[{"diswot": "score"}.get(by, by)] if one["score"] is not None else None
        return float("-inf") if value is None else float(value)

    # -- files ------------------------------------------------------------------------------------------------

    def _kept(self, number: int) -> dict[str, Any] | None:
        try:
            return read_sealed(self.folder / f"{number:04}.json")
        except (OSError, ValueError):  # none yet, or one that was damaged: it is scored again
            return None

    def _keep(self, one: Mapping[str, Any]) -> None:
        if rank() == 0:
            self.folder.mkdir(exist_ok=True)
            write_sealed(self.folder / f"{one['number']:04}.json", one)

    # -- scores -----------------------------------------------------------------------------------------------

    def _scored(self, candidate: Candidate, inits: int) -> dict[str, Any]:
        """Score, distances and the score without a teacher; None and the reason where it is rejected."""
        try:
            student = self.space.build(candidate, self.run.seed)
            pairs = [self._distances(student, n) for n in range(inits)]
            semantic, relation = (float(np.mean(values)) for values in zip(*pairs))
            free = self._jacobian(student) if self.options.baselines or self.options.rank_by == "jacobian" else None
        except KdhubError as error:
            return {"score": None, "semantic": None, "relation": None, "jacobian": None, "refused": str(error)}
        return {"score": -(semantic + relation), "semantic": semantic, "relation": relation, "jacobian": free}

    def _jacobian(self, student: Student) -> float | None:
        from kdhub_search.scores import fresh, jacobian_score

        module = fresh(student, self._seed(STUDENT, 0), self.options.init).to(device())
        value = jacobian_score(module, self._inputs(student))
        return value if np.isfinite(value) else None

    def _distances(self, student: Student, n: int) -> tuple[float, float]:
        """M_s and M_r of one pair of random weights; 0 where one is left out."""
        from kdhub_search.scores import distance, fresh

        o = self.options
        theirs = self._teacher_view(n)
        own = self._view(student, fresh(student, self._seed(STUDENT, n), o.init))
        return tuple(
            0.0 if a is None else float(distance(a, b, o.reduction, parts(a)))
            for a, b, parts in (
                (theirs.semantic, own.semantic, self._parts(theirs.semantic, own.semantic)),
                (theirs.relation, own.relation, lambda r: r.shape[-1] ** 2),
            )
        )

    def _parts(self, theirs: Tensor | None, own: Tensor | None) -> Callable[[Tensor], int]:
        if theirs is not None and theirs.shape[1:] != own.shape[1:]:
            raise CompatibilityError(
                f"semantic=grad compares networks of one width, and the teacher has {theirs.shape[-1]} features, the "
                f"candidate {own.shape[-1]}",
                hint="--set semantic=cam",
            )
        return (lambda s: s.shape[-1]) if self.options.semantic == "grad" else (lambda s: s.shape[-1] ** 2)

    def _teacher_view(self, n: int) -> Any:
        from kdhub_search.scores import fresh

        trained = self.options.teacher_weights == "trained"
        n = 0 if trained else n
        if n not in self._teachers:
            model = self._model
            module = model.module if trained else fresh(model, self._seed(TEACHER, n), self.options.init)
            try:
                self._teachers[n] = self._view(model, module)
            except KdhubError as error:
                raise UsageError(f"the teacher cannot be compared with: {error}", hint=error.hint) from error
        return self._teachers[n]

    def _view(self, student: Student, module: Any) -> Any:
        from kdhub_search.scores import view

        o, classes = self.options, len(student.classes)
        return view(module.to(device()), self._inputs(student), classes, o.semantic, o.relation)

    def _inputs(self, student: Student) -> dict[str, Tensor]:
        batch = self.run.task.collate(self.examples, student)
        return {k: v.to(device()) for k, v in batch.items() if k in ("x", "labels")}

    def _seed(self, what: int, n: int) -> int:
        return int(np.random.SeedSequence([self.run.seed, what, n]).generate_state(1)[0])


def space_of(student: Student) -> Space:
    """
    Raises:
        CompatibilityError: the student is one, not a space of them.
    """
    found = getattr(student, "space", None)
    if found is None:
        raise CompatibilityError(
            "diswot searches a space of students, and the recipe names one student",
            hint="--student space:residual, or any student with choices: "
            "{source: 'space:mlp:{width}', choices: {width: [8, 16]}}",
        )
    return found
