"""A critic: a classifier of pairs that tells valid triples from invalid ones (arXiv:2110.07178, section 3.3).

    BCE(sigmoid(s), label),   s = W2 gelu(W1 dropout(h) + b1) + b2,   b2 begins at ln(p / (1 - p)),  p = .77

A cross-encoder gets this head on the mean of its last states; two towers have a head of the same width on both vectors,
and only its bias begins so. Cross-entropy over the logits 0 and s is the binary cross-entropy of s.

The learning rate falls to a tenth whenever the precision at 80 % recall on `data.validation` has not risen for five
epochs, and to 0 after ten: the rest of the training then changes nothing. Without validation rows it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.methods.supervised import Supervised
from pydantic import Field

from kdhub.errors import CompatibilityError, DataError
from kdhub.method import Progress
from kdhub_knowledge.commonsense.critic import INVALID, VALID, bias_of

if TYPE_CHECKING:
    from kdhub.method import RunContext
    from kdhub.rows import Rows
    from kdhub.student import Student

HEAD = "critic-head"
CLASSES = [INVALID, VALID]
WATCHED = 0.8
"""Recall at which precision is watched."""


class Critic(Supervised):
    class Options(Supervised.Options):
        prior: float = Field(0.77, gt=0, lt=1, description="share of valid triples at which the scores begin")
        hidden: int = Field(512, ge=1, description="width of the head of a cross-encoder")
        lr: float = Field(5e-6, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(128, ge=1, description="pairs of one optimiser step")
        epochs: float = Field(100.0, gt=0, description="passes over the annotated triples, at most")
        warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")
        schedule: str = Field(
            "constant", pattern="^(linear|cosine|constant)$", description="learning rate after warm-up"
        )
        dropout: float | None = Field(0.1, ge=0, lt=1, description="dropout in training; null keeps the student's own")
        weight_decay: float = Field(0.0, ge=0, description="of AdamW")
        plateau: int = Field(
            5, ge=1, description="epochs without a better validation precision until lr falls to a tenth"
        )
        patience: int = Field(10, ge=1, description="epochs without one until nothing more is learnt")

    options: Options
    tiny_recipe = {
        "data": {"train": [{"source": "closed-world", "options": {"pairs": True}}], "validation": []},
        "evaluation": {"data": [{"source": "closed-world", "options": {"pairs": True}}], "metrics": None},
    }

    def check(self, student: Student, teacher: Any) -> None:
        if list(student.classes) != CLASSES:
            raise CompatibilityError(
                f"a critic tells {VALID} from {INVALID}, and the labels are {', '.join(student.classes[:5])}",
                hint="train it on critic-pairs:TRIPLES, of annotated triples",
            )

    def adapt(self, student: Student, teacher: Any) -> None:
        prior = self.options.prior
        if "features" in student.kinds:
            student.wrap(HEAD, hidden=self.options.hidden, prior=prior)
        elif hasattr(head := getattr(student.module, "head", None), "lift"):
            import torch

            last = head.layers[-1].bias
            head.lift(torch.full_like(last, bias_of(prior)) - last.detach())
        else:
            raise CompatibilityError("a critic is a cross-encoder or two towers with a concat head")

    # -- the learning rate ------------------------------------------------------------------------------------

    def rows(self, run: RunContext) -> Rows:
        self._student, self._epoch, self._best, self._stale, self._factor = run.student, 0, -1.0, 0, 1.0
        self._held = None
        if run.has_rows("validation"):
            held = run.rows("validation", **self.settings())
            self._held = held[np.arange(len(held))]
            labels = np.array([example["label"] for example in self._held])
            if len(set(labels[labels >= 0])) < 2:
                raise DataError(f"the {len(labels)} validation pairs have one class: no precision can be watched")
        return super().rows(run)

    def learning_rate(self, step: int, steps: int) -> float:
        return self._factor * super().learning_rate(step, steps)

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        epoch = int(progress.epoch)
        if self._held is None or epoch <= self._epoch or not self._factor:
            return
        self._epoch = epoch
        logits = np.asarray(self._student.signals(self._held, "logits")["logits"], np.float64)
        labels = np.array([example["label"] for example in self._held]) == CLASSES.index(VALID)
        found = precision_at(labels, logits[:, 1] - logits[:, 0], WATCHED)
        if found > self._best:
            self._best, self._stale = found, 0
            return
        self._stale += 1
        if self._stale >= self.options.patience:
            self._factor = 0.0
        elif self._stale % self.options.plateau == 0:
            self._factor *= 0.1

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "best": self._best, "stale": self._stale, "factor": self._factor}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._best = state["epoch"], state["best"]
        self._stale, self._factor = state["stale"], state["factor"]


def precision_at(labels: np.ndarray, scores: np.ndarray, recall: float) -> float:
    """Precision of the highest threshold whose recall (scores from it on) is at least `recall`."""
    from kdhub_knowledge.commonsense.critic import kept, threshold

    passes = kept(scores, threshold(labels, scores, recall, "recall_at_least"), "recall_at_least")
    return float(labels[passes].mean())
