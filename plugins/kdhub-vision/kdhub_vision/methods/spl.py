"""Sub-pseudo labels: pre-training on items that were found by a query (Li et al., AAAI 2022, arXiv:2101.03713).

An item has the weak label w of its query, which holds for its group and often not for itself. A teacher, trained on a
few clean rows, says of each item alone what it looks like, t. A student learns the pair:

    s = map[w, t]                           (kdhub_vision.subconcepts.labels)
    L = CE(H f(x), s)  +  distill_weight KL(g(x) || h f(x))

f are the features before the student's own head h; H is a head of as many outputs as there are labels, which is thrown
away. So the student keeps the classes of its task throughout, and what is published never poses as a classifier of
sub-concepts. Its own head is untrained unless `distill_weight` says otherwise: fine-tune it, or train that head alone
(a linear probe), on the clean rows.

    spl-teacher (supervised)  >  spl  >  spl-probe, spl-finetuned (supervised)

The map is made of the training rows once, and saved and published as `enclosed/label-map.json`. `labels: weak`,
`pseudo` and `agree-only` are the baselines of the paper by the same code. `sub-pseudo:DATA` gives rows with such labels
to any other method.

Departures: see `subconcepts.labels` for what is reconstructed; epochs and learning rate are kdhub's, and the term of
the teacher is from the abstract's remark that the labels go together with self-training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdhub_tasks.losses import ClassifierOptions
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress
from kdhub.metric import Measure
from kdhub_vision.subconcepts.labels import Labelling, LabelMap, labelled

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdhub.method import RunContext
    from kdhub.pictures import Picture
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

MAP = "label-map"
"""What the map is called among what the student has enclosed."""
HEAD = "sub-pseudo"
AT_ONCE = 4096
"""Rows whose predictions are read together."""


class Spl(ObjectiveMethod):
    """Cross-entropy with sub-pseudo labels, through a head that is not published."""

    class Options(ClassifierOptions, Labelling):
        epochs: float = Field(30.0, gt=0, description="passes over the training rows")
        distill_weight: float = Field(
            0.0, ge=0, description="weight of the teacher's probabilities for the student's own head"
        )

    options: Options
    tiny_recipe = {"options": {"min_count": 1}}

    def rows(self, run: RunContext) -> Rows:
        """Those that have a label of the map; it is made here, before training."""
        import numpy as np

        rows = run.rows("train", **self.settings())
        logits = run.signals(rows, "logits")
        parts = np.array_split(np.arange(len(rows)), -(-len(rows) // AT_ONCE))
        weak = np.array([example["label"] for part in parts for example in rows[part]])
        given = np.concatenate([np.asarray(logits[part]["logits"], np.float32) for part in parts])
        how = Labelling(**{name: getattr(self.options, name) for name in Labelling.model_fields})
        self.map, labels = labelled(weak, given, run.student.classes, how)
        return rows.select(np.flatnonzero(labels >= 0))

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        student.enclosed = {**student.enclosed, MAP: self.map.to_dict()}
        if not self.options.distill_weight:
            student.limits = [
                *student.limits,
                "its classifier is not trained: the features before it are; fine-tune it, or train it alone",
            ]

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        import torch
        from torch import nn

        self._cells, self._unsure = (torch.from_numpy(m.copy()) for m in (self.map.cells, self.map.unsure))
        return {HEAD: nn.Linear(student.width("features")[0], len(self.map.names))}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import forward_kl
        from kdhub_tasks.losses import cross_entropies

        labels, logits = self._labels(batch["labels"], teacher.logits.float()), teacher.logits.float()
        terms = {"labels": cross_entropies(self.modules[HEAD](student.features.float()), labels).mean()}
        if weight := self.options.distill_weight:
            terms["teacher"] = weight * forward_kl(student.logits.float(), logits).mean()
        return terms

    def _labels(self, weak: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """(rows,) the label of each row of a batch, by the frozen map."""
        import torch

        probability, predicted = logits.softmax(-1).max(-1)
        cells, unsure = self._cells.to(weak.device), self._unsure.to(weak.device)
        sure = probability >= self.options.teacher_conf_threshold
        return torch.where(sure, cells[weak, predicted], unsure[weak])

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also how many labels there are, and for how many rows teacher and query agree."""
        report, made = run.evaluate(student), LabelMap.from_dict(student.enclosed[MAP])
        kept, every = int(made.sizes.sum()), int(made.counts.sum() + made.unsure_counts.sum())
        agreeing = int(made.counts.trace())
        report.measures += [
            Measure(metric=name, value=value, subject="student", dataset="training rows", examples=every)
            for name, value in (("labels", len(made.names)), ("agreement-of-query", agreeing / every))
        ]
        report.notes.append(
            f"{len(made.names)} labels for {kept} of {every} items; query and teacher agree on {agreeing / every:.1%}; "
            "what counts is the student after a probe or fine-tuning"
        )
        return report

    def pictures(self, student: Student) -> Iterator[Picture]:
        """The confusion matrix of queries and teacher, with the cells that have labels of their own."""
        from kdhub_vision.subconcepts.drawing import matrix

        yield from super().pictures(student)
        yield matrix(LabelMap.from_dict(student.enclosed[MAP]))
