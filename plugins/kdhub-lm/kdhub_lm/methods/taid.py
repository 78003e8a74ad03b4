"""TAID: temporally adaptive interpolated distillation, a target that moves from student to teacher (arXiv:2501.16937).

    p_t = softmax((1 - t) sg(s) + t z)                         the target, with the student's logits detached
    L   = - sum p_t log softmax(s)                             mean over positions
    t  <- min(t_end, max(t_linear, t + alpha sigmoid(m) (1 - t)))

where m is the running mean of the loss's relative decrease: the curriculum is never slower than a straight line to
t_end and accelerates while the loss falls. In practice sigmoid(m) stays near 1/2, so "adaptive" is mostly an
exponential approach: 1 - t is about exp(-alpha n / 2).

Departures: t moves once per optimiser step, by the mean over accumulated batches and ranks; public code moves it once
per micro-batch, on each rank separately. `mix_space: prob` and `alpha: auto` are additions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, cross_entropies, labelled_in, positions_in
from pydantic import Field, model_validator

from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals

logger = logging.getLogger("kdhub")

AUTO = 6.0
"""`alpha: auto` is this over the number of steps: t is ahead of the straight line by about 0.2 at most."""


class Taid(ObjectiveMethod):
    """The target moves step by step from the student's own distribution to the teacher's."""

    class Options(ClassifierOptions):
        t_start: float = Field(0.4, ge=0, lt=1, description="the teacher's weight at the start; 0.2 for a small gap")
        t_end: float = Field(1.0, gt=0, le=1, description="the teacher's weight at the end")
        alpha: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
            5e-4, description="how far the curriculum may get ahead of a straight line; auto is 6 over the steps"
        )
        beta: float = Field(0.99, ge=0, lt=1, description="decay of the running mean of the loss's decrease")
        adaptive: bool = Field(True, description="let the curriculum get ahead of the straight line")
        distil_ratio: float = Field(1.0, ge=0, le=1, description="weight of the teacher; the rest goes to the labels")
        temperature: float = Field(1.0, gt=0, description="temperature of both sides' logits; no squared factor")
        mix_space: Literal["logit", "prob"] = Field("logit", description="what is mixed: logits, or probabilities")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.t_start >= self.t_end:
                raise ValueError(f"t_start must be below t_end (t_start={self.t_start:g}, t_end={self.t_end:g})")
            return self

    options: Options

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self.curriculum = Curriculum(options.t_start)

    @property
    def partial_signals(self) -> tuple[str, ...]:
        return ("top",)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from functools import partial

        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import divergence

        o, labels = self.options, batch["labels"]
        target, labelled = partial(interpolated, t=self.curriculum.t, space=o.mix_space), labelled_in(batch)

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            terms = {"teacher": o.distil_ratio * divergence(target, s, z, o.temperature).sum() / positions_in(batch)}
            if o.distil_ratio < 1:
                terms["labels"] = (1 - o.distil_ratio) * cross_entropies(s, y).sum() / labelled
            return terms

        return over_positions(sums, student, teacher, labels)

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        o = self.options
        alpha = AUTO / progress.steps if o.alpha == "auto" else o.alpha
        if progress.step == 0 and o.adaptive and alpha * progress.steps < 2:
            logger.warning(
                "taid: alpha=%g is too small to get ahead of a straight line in %d steps; set alpha: auto",
                alpha, progress.steps,
            )  # fmt: skip
        if o.distil_ratio:
            loss = terms["teacher"] / o.distil_ratio
            line = o.t_start + (o.t_end - o.t_start) * progress.step / progress.steps
            self.curriculum.update(loss, line, alpha=alpha if o.adaptive else 0.0, beta=o.beta, t_end=o.t_end)

    def state(self) -> dict[str, Any]:
        return asdict(self.curriculum)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.curriculum = Curriculum(**state)


@dataclass
class Curriculum:
    """Attributes:
    t: the teacher's weight, never decreasing.
    loss: of the previous step, None at first.
    momentum: running mean of its relative decrease, from 0.
    """

    t: float
    loss: float | None = None
    momentum: float = 0.0

    def update(self, loss: float, line: float, *, alpha: float, beta: float, t_end: float = 1.0) -> None:
        """After a step.

        Args:
            loss: mean cross-entropy of the step, >= 0; as in public code not the KL, which may be 0 at first.
            line: t on the straight line, after the steps before this one.
        """
        if self.loss is not None:
            fall = (self.loss - loss) / (self.loss + 1e-15)
            self.momentum = beta * self.momentum + (1 - beta) * fall
            # tanh does not overflow
            lead = alpha * 0.5 * (1 + math.tanh(self.momentum / 2)) * (1 - self.t)
            self.t = min(t_end, max(line, self.t + lead))
        self.loss = loss


def interpolated(student: Tensor, teacher: Tensor, t: float, space: str = "logit") -> Tensor:
    """Cross-entropy of the student to the target between both.

    Args:
        student, teacher: logits (..., classes); a class that is -inf on both sides is ignored.
        t: the teacher's weight in [0, 1]; at 0 the gradient is 0, at 1 that of KL(teacher || student).
        space: "logit" mixes logits, the normalised geometric mean; "prob" mixes probabilities.

    Returns:
        (...,) >= 0, the entropy of the target where both agree.

    Source: section 3 of arXiv:2501.16937 and its public code.
    """
    import torch
    from kdhub_tasks.divergences import log_probabilities

    log_q = log_probabilities(student)
    with torch.no_grad():
        s, z = student.to(log_q.dtype), teacher.to(log_q.dtype)
        if space == "prob":
            target = (1 - t) * log_q.exp() + t * torch.softmax(z, -1)
        else:
            # 0 times -inf is NaN
            target = torch.softmax(s if t == 0 else z if t == 1 else (1 - t) * s + t * z, -1)
    return -(target * log_q.masked_fill(target == 0, 0)).sum(-1)
