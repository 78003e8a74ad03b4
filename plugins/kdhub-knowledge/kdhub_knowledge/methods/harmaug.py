"""HarmAug (arXiv:2410.01524): a small guard learns from labels and from a large guard, on real rows and on rows that
language models wrote (`harmaug:DATA`), with both classes drawn equally often (`sampler: balanced`).

    L = (1 - lambda) CE(s, y) + lambda KL([1 - c, c] || q),   q = softmax(s), no temperature on the student

c is the teacher's probability of the second class; y the row's label, or [c > threshold] where it has none. A row
without a teacher's answer has CE alone, with its whole weight.

Departures from the authors' code: batches are divided evenly also where the last one is shorter, so no chunk counts
more; `balanced` shows every row of a class before any comes again, where theirs draws with replacement; either draws
the second class with probability 1/2. Dropout is off unless a recipe sets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub_tasks.losses import has_label
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class HarmAug(ObjectiveMethod):
    class Options(TrainingOptions):
        lr: float = Field(3e-5, gt=0, description="peak learning rate of AdamW")
        weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay, not on biases and norms")
        warmup_steps: int = Field(100, ge=0, description="steps with rising learning rate, at most half of all")
        batch_size: int = Field(256, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
        epochs: float = Field(3.0, gt=0, description="passes over the training rows")
        max_length: int = Field(1024, ge=8, description="tokens at most of prompt and response")
        lambda_kd: float = Field(0.5, ge=0, le=1, description="weight of the teacher; the rest is that of the labels")
        threshold: float = Field(0.5, gt=0, lt=1, description="rows without a label are harmful above it")
        temperature: float = Field(1.0, gt=0, description="the teacher's logits are divided by it")

    options: Options
    tiny_recipe = {
        "student": {"source": "ngrams:1", "buckets": 256},
        "teacher": {"source": "terms", "terms": ["cracked", "melted"], "classes": ["fine", "mishap"]},
        "data": {"train": [{"source": "reports", "options": {"rows": 64}}]},
        "evaluation": {"data": [{"source": "reports", "split": "train", "options": {"rows": 32, "seed": 1}}]},
    }

    def settings(self) -> dict[str, Any]:
        return {"max_length": self.options.max_length}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if len(student.classes) != 2:
            raise CompatibilityError(
                f"harmaug is about two classes, and the student has {len(student.classes)}: "
                f"{', '.join(student.classes[:6])}",
                hint="join classes with labels:DATA",
            )

    def learning_rate(self, step: int, steps: int) -> float:
        warm = min(self.options.warmup_steps, steps // 2)
        if step < warm:
            return (step + 1) / warm
        return super().learning_rate(step - warm, steps - warm)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o = self.options
        c = (teacher.logits.float() / o.temperature).softmax(-1)[:, 1]
        labels = batch["labels"].where(has_label(batch["labels"]), (c > o.threshold).long())
        ce, kl = losses(student.logits, labels, c, o.lambda_kd)
        return {"labels": ce.mean(), "teacher": kl.mean()}


def losses(logits: Tensor, labels: Tensor, c: Tensor, lambda_kd: float = 0.5) -> tuple[Tensor, Tensor]:
    """(1 - lambda) CE and lambda KL of each row, nats, (n,) float32.

    Args:
        logits: (n, 2); labels: (n,), 0 or 1; c: (n,) in [0, 1], NaN where there is none: CE alone.
    """
    import torch

    log_q, known = logits.float().log_softmax(-1), ~c.isnan()
    p = torch.stack([1 - c, c], -1).nan_to_num()
    kl = (torch.special.xlogy(p, p) - p * log_q).sum(-1)
    ce = -log_q.gather(-1, labels[:, None]).squeeze(-1)
    weight = known * lambda_kd
    return (1 - weight) * ce, weight * kl
