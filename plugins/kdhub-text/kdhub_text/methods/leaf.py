"""LEAF: distillation of text embedding models with teacher-aligned representations (arXiv:2509.12539).

The student is trained to give the teacher's final vector of each text. With t the teacher's vector of a text and
y the student's, after mean pooling, a linear head where the widths differ, and unit length where the teacher has it:

    L = (1/B) sum_i ||y_i - t_i||_2^2          (squared distance, summed over dimensions, mean over the batch)

and nothing else: no contrastive term, no KL, no hidden states. The learning rate falls linearly in each of several
equal cycles and restarts at its peak.

From the paper's abstract and the published models: loss, pooling, head, prompts by role, batch 32, three cycles of
ten epochs, AdamW. Reconstructed, because no code was published: peak rate, weight decay, warm-up (first cycle only),
gradient clipping, and a head with bias. Departure: no dropout in training, since the target is one exact vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress, TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdhub.rows import Signals


class Leaf(ObjectiveMethod):
    """The student's vectors in the teacher's own space: one index serves both (arXiv:2509.12539)."""

    class Options(TrainingOptions):
        loss: Literal["sq_l2", "l2", "cosine"] = Field("sq_l2", description="distance to the teacher's vector")
        normalize: Literal["auto"] | bool = Field("auto", description="unit length; auto: as the teacher")
        head_bias: bool = Field(True, description="bias of the linear head")
        head_init: Literal["default", "ridge"] = Field(
            "default", description="ridge: start the head at the least-squares map of the untrained student's states"
        )
        pooling: Literal["mean", "cls"] = Field("mean", description="pooling of the student; cls is an ablation")
        prompts: dict[str, str] | None = Field(None, description="text in front by role; the teacher's own if unset")
        max_length: int = Field(512, ge=4, description="tokens at most; the models' own limits apply too")
        cycles: int = Field(3, ge=1, description="cycles of the learning rate, each starting at its peak")
        epochs_per_cycle: float = Field(10.0, gt=0, description="passes over the rows in one cycle")
        epochs: float | None = Field(None, gt=0, description="passes in all, instead of cycles x epochs_per_cycle")
        lr: float = Field(1e-4, gt=0, description="peak learning rate; 1e-3 for a student from scratch")
        schedule: Literal["linear"] = Field("linear", description="learning rate inside each cycle")
        warmup: float = Field(0.01, ge=0, le=1, description="share of the first cycle with rising learning rate")

        def model_post_init(self, context: Any) -> None:
            if self.epochs is None:
                self.epochs = self.cycles * self.epochs_per_cycle

    options: Options

    def settings(self) -> dict[str, Any]:
        return {"max_length": self.options.max_length, "prompts": self.options.prompts}

    def adapt(self, student: Any, teacher: Any) -> None:
        o = self.options
        student.limit(o.max_length)
        student.prompts = o.prompts if o.prompts is not None else teacher.prompts
        student.set_pooling(o.pooling)
        student.set_normalised(False)
        if student.width != teacher.width:
            student.add_head(teacher.width, bias=o.head_bias)
        student.set_normalised(teacher.normalised if o.normalize == "auto" else o.normalize)

    def initialise(self, student: Any, inputs: Mapping[str, torch.Tensor], teacher: Signals) -> None:
        """`head_init: ridge`: start the head at the least-squares map from the untrained student's pooled states."""
        from kdhub_tasks.embedding.encoder import Dense

        at = next((i for i, part in enumerate(student.module) if isinstance(part, Dense)), None)
        if self.options.head_init == "ridge" and at is not None:
            states = dict(inputs)
            for part in list(student.module)[:at]:
                states = part(states)
            fit_head(student.module[at].linear, states["sentence_embedding"], teacher.embedding)

    def learning_rate(self, step: int, steps: int) -> float:
        """eta_s / eta = 1 - (s mod C)/C in cycles of C steps, times min(1, (s+1)/W) in the first cycle."""
        cycle = ceil(steps / self.options.cycles)
        factor = 1 - (step % cycle) / cycle
        warm = round(self.options.warmup * cycle)
        return factor * min(1.0, (step + 1) / warm) if warm else factor

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        return {"alignment": alignment_loss(student.embedding, teacher.embedding.float(), self.options.loss)}


def alignment_loss(student: torch.Tensor, teacher: torch.Tensor, kind: str = "sq_l2") -> torch.Tensor:
    """Distance of the student's vectors to the teacher's, mean over the batch.

    Args:
        student: (batch, width), gradient flows.
        teacher: (batch, width), constant.
        kind: "sq_l2" ||y - t||^2, summed over dimensions (2 - 2 cos for unit vectors; `torch.nn.MSELoss` is this over
            the width); "l2" ||y - t|| with the norm floored at 1e-12, so that its gradient at 0 is 0; "cosine" 1 - cos.

    Returns:
        Scalar >= 0, no unit.

    Source: section 3 of arXiv:2509.12539; "l2" and "cosine" are our ablations.
    """
    if kind == "cosine":
        from torch.nn.functional import cosine_similarity

        return (1 - cosine_similarity(student, teacher, dim=-1)).mean()
    squared = (student - teacher).square().sum(-1)
    if kind == "l2":
        return squared.clamp_min(1e-24).sqrt().mean()
    return squared.mean()


def fit_head(head: nn.Linear, pooled: torch.Tensor, target: torch.Tensor, ridge: float = 1e-3) -> None:
    """Set a linear head to the ridge solution that maps pooled states to teacher vectors, in place.

    Args:
        head: (d -> D), with or without bias.
        pooled: (n, d) states of the untrained student.
        target: (n, D).
        ridge: share of the mean diagonal of P^T P added to it.
    """
    import torch

    with torch.no_grad():
        p = pooled.double()
        if head.bias is not None:
            p = torch.cat([p, p.new_ones(len(p), 1)], 1)
        gram = p.T @ p
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        solution = torch.linalg.solve(gram, p.T @ target.double()).T
        head.weight.copy_(solution[:, : head.in_features])
        if head.bias is not None:
            head.bias.copy_(solution[:, -1])
