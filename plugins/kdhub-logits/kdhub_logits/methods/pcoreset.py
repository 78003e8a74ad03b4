"""PCoreSet and ActiveKD: which rows to have labelled next, when a teacher already knows a little (arXiv:2506.00910).

In every round a student with two heads is trained: one head on the labelled rows, the other on the teacher's soft
targets for all rows. It is a fresh one, unless `reinit` is false, and takes as many steps as 200 passes over the
labelled rows. Then rows are chosen whose predicted probabilities lie farthest from those of the labelled rows.

    L = ce_weight CE(z_labels(x_l), y) + kd_weight [KD(z_teacher(x_l)) + KD(z_teacher(x_u))]
    KD = T^2 KL(softmax(t / T) || softmax(z / T)), mean over a batch
    p  = (1 - head_mix) softmax(z_labels) + head_mix softmax(z_teacher / head_beta)

The rules are samplers: pcoreset, and random, entropy, coreset, badge, class-balanced beside it. Labels come from the
data set (a simulated oracle), or from a file that people fill in. What is chosen is kept from round to round: a run
that stops, or waits for labels, goes on with --resume.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError, TrainingError
from kdhub.kept import keep, kept
from kdhub.method import Method, MethodOptions, RunContext
from kdhub.metric import Measure
from kdhub.ranks import device
from kdhub.rows import plain_rows

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from kdhub.rows import Example, Rows
    from kdhub.student import Student

QUERIES = "queries.csv"
"""In the run folder: row numbers from 0, files of pictures, and the labels that people give them."""
ROUNDS = "rounds"
"""In the run folder: weights of the last two rounds, where a student goes on from round to round."""


class PCoreSet(Method):
    """Active learning with a teacher: label, train, choose, and again."""

    class Options(MethodOptions):
        rounds: int = Field(15, ge=0, description="rounds of choosing rows; a last student is trained after them")
        queries_per_round: int | None = Field(
            None, ge=1, description="rows to label in each round; the number of classes if unset"
        )
        start_per_class: int = Field(1, ge=1, description="labelled rows of each class at the start")
        strategy: str = Field("pcoreset", description="sampler that chooses rows (kdhub list samplers)")
        oracle: Literal["data", "file"] = Field(
            "data", description="labels from the data set, or from queries.csv in the run folder, to be filled in"
        )
        kd_temperature: float = Field(2.0, gt=0, description="of the teacher's soft targets")
        ce_weight: float = Field(0.5, ge=0, description="weight of the labels")
        kd_weight: float = Field(0.5, ge=0, description="weight of the teacher")
        head_mix: float = Field(0.5, ge=0, le=1, description="share of the teacher's head in predictions")
        head_beta: float = Field(1.0, gt=0, description="temperature of the teacher's head in predictions")
        max_pool: int | None = Field(
            None, ge=1, description="unlabelled rows considered in a round, drawn again each time; all if unset"
        )
        teacher_refresh: bool = Field(
            False, description="fit a few-shot teacher (prototypes) to the labels of each round, for the next one"
        )
        reinit: bool = Field(True, description="a fresh student in each round; false: the one of the round before")
        epochs: float = Field(200.0, gt=0, description="passes over the labelled rows in each round")
        steps: int | None = Field(None, ge=1, description="optimiser steps of each round, whatever `epochs` says")
        batch_size: int = Field(64, ge=1, description="labelled rows of a step, with as many unlabelled ones")
        lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
        weight_decay: float = Field(0.01, ge=0, description="of AdamW")
        warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising learning rate, then linear")

    options: Options
    _validation: list[Example] | None = None
    _inputs: dict[str, Tensor] | None = None
    _over_rounds: list[float] = []
    tiny_recipe = {
        "data": {"validation": []},
        "options": {"rounds": 1, "steps": 3, "queries_per_round": 2, "batch_size": 4},
    }

    def distill(self, run: RunContext) -> Student:
        from kdhub_tasks.classification.model import NetworkClassifier

        o = self.options
        self._select = run.select(o.strategy)
        if not isinstance(run.student, NetworkClassifier):
            raise CompatibilityError("pcoreset gives the student a second head, which only our own networks can have")
        if o.teacher_refresh and not hasattr(run.teacher, "fitted"):
            raise CompatibilityError(
                "teacher_refresh fits prototypes to labels, and the teacher has none",
                hint="--teacher prototypes:DATA, or without teacher_refresh",
            )
        rows = run.rows("train")
        known = np.array([e["label"] for e in rows[np.arange(len(rows))]])
        given = run.signals(rows, "logits")[np.arange(len(rows))]["logits"]
        if not np.isfinite(given).all():
            raise TrainingError("the teacher's logits are not all numbers")
        labels = self._first_labels(run, known)
        pool = np.arange(len(rows)) if o.oracle == "file" else np.flatnonzero(known >= 0)
        run.mark_start(self._fresh(run, 0))
        self._over_rounds = []
        asked, last = o.queries_per_round or len(run.student.classes), None
        for number in range(o.rounds):
            chosen = run.stage(
                f"round-{number}", lambda n=number, t=given: self._choose(run, rows, t, labels, pool, asked, n)
            )
            last = number
            self._note(run, number, len(labels), chosen["facts"])
            if not chosen["rows"]:
                break
            labels.update(self._ask(run, rows, chosen["rows"], known))
            if o.teacher_refresh:
                given = run.teacher.fitted(rows[np.arange(len(rows))], labels)
        student = self._train(run, rows, given, labels, o.rounds, last)
        self._note(run, o.rounds, len(labels), self._facts(run, student))
        return student

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also `accuracy-over-rounds`: the mean on validation rows after each round's labels, the start left out."""
        report = run.evaluate(student)
        if over := self._over_rounds[1:]:
            report.measures.append(
                Measure(
                    metric="accuracy-over-rounds",
                    value=float(np.mean(over)),
                    subject="student",
                    dataset="validation rows",
                    examples=len(self._seen_by_none(run)),
                )
            )
        return report

    def _note(self, run: RunContext, number: int, labels: int, facts: dict[str, float]) -> None:
        run.log(step=number, labels=labels, **facts)
        self._over_rounds += facts.values()

    # -- rounds -----------------------------------------------------------------------------------------------

    def _first_labels(self, run: RunContext, known: np.ndarray) -> dict[int, int]:
        """Row -> class: all labels that the data set has, or, simulated, as many of each class as asked for."""
        if self.options.oracle == "file":
            found = np.flatnonzero(known >= 0)
        else:
            rng, found = np.random.default_rng([run.seed, 0]), []
            for c in np.unique(known[known >= 0]):
                found += rng.permutation(np.flatnonzero(known == c))[: self.options.start_per_class].tolist()
        missing = sorted(set(range(len(run.student.classes))) - set(known[found].tolist()))
        if missing:
            names = ", ".join(run.student.classes[c] for c in missing[:5])
            raise DataError(f"no labelled row of the class {names}", hint="active learning begins with one of each")
        return {int(i): int(known[i]) for i in found}

    def _choose(
        self,
        run: RunContext,
        rows: Rows,
        given: np.ndarray,
        labels: dict[int, int],
        pool: np.ndarray,
        asked: int,
        number: int,
    ) -> dict[str, Any]:
        o = self.options
        student = self._train(run, rows, given, labels, number, number - 1 if number else None)
        if not o.reinit:
            save_weights(student, run.folder / ROUNDS, number)
        rng = np.random.default_rng([run.seed, 1, number])
        open_ = np.array([i for i in pool if i not in labels])
        if o.max_pool is not None and len(open_) > o.max_pool:
            open_ = np.sort(rng.choice(open_, o.max_pool, replace=False))
        facts = self._facts(run, student)
        if not len(open_):
            return {"rows": [], "facts": facts}
        have = np.array(sorted(labels))
        here = replace(self._seen(student, rows, have), labels=np.array([labels[i] for i in have.tolist()]))
        picked = self._select(self._seen(student, rows, open_), here, min(asked, len(open_)), rng)
        return {"rows": open_[picked].tolist(), "facts": facts}

    def _ask(self, run: RunContext, rows: Rows, wanted: list[int], known: np.ndarray) -> dict[int, int]:
        """The labels of chosen rows, from the data set or from people (`RunContext.ask_people`)."""
        if self.options.oracle == "data":
            return {i: int(known[i]) for i in wanted}
        from kdhub_tasks.classes import label_index

        classes = run.student.classes
        shown = {i: shown_of(row) for i, row in zip(wanted, plain_rows(rows.table, wanted))}
        return {i: label_index(label, classes) for i, label in run.ask_people(QUERIES, shown, classes).items()}

    # -- students ---------------------------------------------------------------------------------------------

    def steps(self, labelled: int) -> int:
        """Of a round with so many labelled rows."""
        o = self.options
        return o.steps or ceil(o.epochs * labelled / o.batch_size)

    def _start(self, run: RunContext, number: int, after: int | None) -> Student:
        """What a round trains: the start with new heads, or what the round `after` which it comes has left."""
        student = self._fresh(run, number)
        if after is not None and not self.options.reinit:
            student.module.load_state_dict(kept(run.folder / ROUNDS / f"{after}.safetensors"))
        return student

    def _fresh(self, run: RunContext, number: int) -> Student:
        """The start again, with new heads."""
        import torch

        student = copy.deepcopy(run.student)
        torch.manual_seed(run.seed * 1009 + number)
        student.wrap("two-heads", mix=self.options.head_mix, beta=self.options.head_beta)
        return student

    def _train(
        self,
        run: RunContext,
        rows: Rows,
        given: np.ndarray,
        labels: dict[int, int],
        number: int,
        after: int | None = None,
    ) -> Student:
        import torch

        o, student, steps = self.options, self._start(run, number, after), self.steps(len(labels))
        labelled = np.array(sorted(labels))
        others = np.setdiff1d(np.arange(len(rows)), labelled)
        rng = np.random.default_rng([run.seed, 2, number])
        where = device()
        module = student.module.to(where)
        optimiser = torch.optim.AdamW(module.parameters(), lr=o.lr, weight_decay=o.weight_decay)
        warm = max(1, round(o.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )
        if self._inputs is None:  # the pool stays the same in every round
            self._inputs = {k: v.to(where) for k, v in student.collate(rows[np.arange(len(rows))]).items()}
        inputs = self._inputs
        targets = torch.from_numpy(np.asarray(given, np.float32)).to(where)
        truth = torch.tensor([labels.get(i, -1) for i in range(len(rows))], device=where)
        module.train()
        for first, second in _batches(labelled, others, o.batch_size, steps, rng):
            both = np.concatenate([first, second])
            out = module({k: v[both] for k, v in inputs.items()})
            loss = two_head_loss(
                out["of_labels"][: len(first)], out["of_teacher"], truth[first], targets[both], len(first),
                temperature=o.kd_temperature, ce_weight=o.ce_weight, kd_weight=o.kd_weight,
            )  # fmt: skip
            if not torch.isfinite(loss):
                raise TrainingError(f"round {number}: the loss is {loss.item()}", hint="a lower --set lr=...")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        module.eval()
        return student

    def _seen(self, student: Student, rows: Rows, which: np.ndarray) -> Any:
        from kdhub.sampler import Seen

        examples = rows[which]
        probabilities = np.exp(student.signals(examples, "logits")["logits"].astype(np.float64))
        return Seen(probabilities, student.signals(examples, "features")["features"].astype(np.float64))

    def _facts(self, run: RunContext, student: Student) -> dict[str, float]:
        """Accuracy on validation rows, where the recipe has some."""
        if not (examples := self._seen_by_none(run)):
            return {}
        right = student.signals(examples, "logits")["logits"].argmax(1) == [e["label"] for e in examples]
        return {"validation_accuracy": float(right.mean())}

    def _seen_by_none(self, run: RunContext) -> list[Example]:
        if self._validation is None:
            rows = run.rows("validation") if run.has_rows("validation") else []
            self._validation = rows[np.arange(len(rows))] if len(rows) else []
        return self._validation


def shown_of(row: Mapping[str, Any]) -> dict[str, str]:
    """What people see of a row beside its number: the names of the files that it holds, as arrays say nothing."""
    return {name: value["path"] for name, value in row.items() if isinstance(value, Mapping) and value.get("path")}


def save_weights(student: Student, folder: Path, number: int) -> None:
    """Of a round, for the next one. Those of the round before stay, from which a run that is stopped begins again."""
    keep(student.module.state_dict(), folder / f"{number}.safetensors")
    (folder / f"{number - 2}.safetensors").unlink(missing_ok=True)


def _batches(
    labelled: np.ndarray, others: np.ndarray, size: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labelled rows with replacement, and as many others."""
    for _ in range(steps):
        first = rng.choice(labelled, size)
        yield first, rng.choice(others, size) if len(others) else others


def two_head_loss(
    of_labels: Tensor,
    of_teacher: Tensor,
    labels: Tensor,
    teacher: Tensor,
    labelled: int,
    *,
    temperature: float = 2.0,
    ce_weight: float = 0.5,
    kd_weight: float = 0.5,
) -> Tensor:
    """The loss of one step.

    Args:
        of_labels: (labelled, classes), logits of the labels' head for labelled rows.
        of_teacher: (all, classes), logits of the teacher's head, labelled rows first.
        labels: (labelled,).
        teacher: (all, classes), the teacher's logits.
        labelled: how many rows are; the two parts of the teacher's term are means of their own.
    """
    from kdhub_tasks.divergences import forward_kl
    from torch.nn.functional import cross_entropy

    apart = temperature**2 * forward_kl(of_teacher / temperature, teacher / temperature)
    parts = [part.mean() for part in (apart[:labelled], apart[labelled:]) if len(part)]
    return ce_weight * cross_entropy(of_labels.float(), labels) + kd_weight * sum(parts)
