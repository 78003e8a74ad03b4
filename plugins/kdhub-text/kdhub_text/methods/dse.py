"""DSE: a cross-encoder's scores of pairs, distilled into two towers that read each text separately (arXiv:1908.05161).

    L = (1 - alpha) task(s, y)  +  alpha mean_b sum_c (s_bc - z_bc)^2

with s the towers' scores, z the teacher's logits without temperature or softmax, and `task` the loss of the task:
cross-entropy of classes, squared error of values. Two classes have one score and one target, the second logit minus the
first, and their cross-entropy is the logistic loss of that score. The students are two towers
(`kdhub_tasks.pairs.towers`).

As in the authors' code: pooling of the last four layers without [CLS], head, alpha, rates, batch of 2 x 16, no decay
of biases and norms, dropout of the pooled vectors before a projection (and in the encoder). Departures: the schedule
counts optimiser steps, as the paper means; the code counts mini-batches, and with two a step ends half way down
(`schedule_units: batches`). The last weights are kept, not those of the best epoch. The head `dot` has no layers after
the product, where the code has two that would spoil an inner-product index. `cls` is the first token's last state, as
sentence encoders pool it; the code's is BERT's pooler, a layer that other encoders lack and sentence encoders do not
run. Ours are `symmetric`, that a head of values starts at their mean, and that a first token is pooled if it is a word,
or all that a text has. The start from the teacher's encoder, an ablation, is the student `towers:teacher`.

With alpha = 0 these are plain Siamese towers. A student that reads both texts together would be ordinary distillation;
it is refused, because it gives no `embeddings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from kdhub.method import ObjectiveMethod, Progress, TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals

Pooler = Literal[
    "cls", "concat_top_mean", "concat_top_sqrt_mean", "concat_top_max",
    "average_top_mean", "average_top_sqrt_mean", "average_top_max",
]  # fmt: skip


SOME = 64
"""Rows from which the start of the head is computed."""


class Dse(ObjectiveMethod):
    """A cross-encoder's pair logits into two towers (arXiv:1908.05161)."""

    class Options(TrainingOptions):
        alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher's scores; 1 - alpha is that of labels")
        pooler: Pooler = Field(
            "concat_top_mean", description="how states become one vector; cls: the first token's last"
        )
        include_cls: bool = Field(False, description="include a special first token, such as [CLS], in pooling")
        top_layers: int = Field(4, ge=1, description="last layers that are pooled")
        embed_dim: int = Field(-1, ge=-1, description="width of a linear layer behind pooling; -1 for none")
        head: Literal["concat", "dot"] = Field(
            "concat", description="a small network on both vectors, or their inner product"
        )
        fc_dims: list[Annotated[int, Field(ge=1)]] = Field([512], description="hidden widths of the head concat")
        symmetric: bool = Field(False, description="the head's mean over both orders of the texts")
        freeze_encoder: bool = Field(False, description="train only pooling and head")
        max_length: int = Field(128, ge=4, description="tokens of each text at most")
        schedule_units: Literal["steps", "batches"] = Field(
            "steps", description="what the schedule counts: optimiser steps, or the authors' mini-batches"
        )
        lr: float = Field(2e-5, gt=0, description="peak learning rate of AdamW")
        batch_size: int = Field(32, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
        accumulate: int = Field(2, ge=1, description="micro-batches of one optimiser step")
        epochs: float = Field(5.0, gt=0, description="passes over the training rows")
        warmup: float = Field(0.1, ge=0, le=1, description="share of the steps with rising learning rate")
        dropout: float | None = Field(None, ge=0, lt=1, description="in training; null keeps the student's own, 0.1")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.embed_dim == 0:
                raise ValueError("embed_dim must be 1 or more, or -1 for no layer (embed_dim=0)")
            if self.freeze_encoder and self.head == "dot" and self.embed_dim < 0:
                raise ValueError(
                    f"embed_dim must be 1 or more with freeze_encoder and head=dot, or nothing is trained "
                    f"(embed_dim={self.embed_dim})"
                )
            return self

    options: Options
    tiny_recipe = {"options": {"top_layers": 1, "fc_dims": [8], "accumulate": 1}}

    def settings(self) -> dict[str, Any]:
        return {"max_length": self.options.max_length}

    def adapt(self, student: Any, teacher: Any) -> None:
        from kdhub_tasks.pairs.heads import Shape

        o = self.options
        student.limit(o.max_length)
        dims = tuple(o.fc_dims) if o.head == "concat" else ()
        symmetric = o.symmetric and o.head == "concat"  # a scalar product is symmetric anyway
        student.stand(Shape(o.pooler, o.include_cls, o.top_layers, o.embed_dim, o.head, dims, symmetric))
        if o.freeze_encoder:
            student.encoder.requires_grad_(False)

    def initialise(self, student: Any, inputs: Mapping[str, Tensor], teacher: Signals) -> None:
        """A head of values starts at the mean of the teacher's scores: otherwise the first steps only raise the score,
        and leave an encoder that gives one vector for all texts."""
        if len(student.classes) == 1 and self.options.head == "concat":
            some = {name: value[:SOME] for name, value in inputs.items()}
            student.module.eval()
            given = student.module(some)["logits"]
            student.module.head.lift(teacher.logits.float().mean() - given.mean())

    def learning_rate(self, step: int, steps: int) -> float:
        return super().learning_rate(step, steps * (self.options.accumulate if self._in_batches else 1))

    @property
    def _in_batches(self) -> bool:
        return self.options.schedule_units == "batches"

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.losses import label_loss, positions_in

        alpha, terms = self.options.alpha, {}
        if alpha:
            terms["teacher"] = alpha * score_distances(student.logits, teacher.logits).sum() / positions_in(batch)
        if alpha < 1:
            terms["labels"] = (1 - alpha) * label_loss(student.logits, batch)
        return terms


def score_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """(n,) squared distances between the scores (`pairs.scores`) of two logits (n, classes), summed over scores."""
    from kdhub_tasks.pairs.scores import scores

    return (scores(student.float()) - scores(teacher.float())).square().sum(1)
