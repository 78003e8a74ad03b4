"""Long-context students: converted to efficient attention, then distilled (arXiv:2311.13657).

Convert, train further, distil, fine-tune: each is a recipe of its own, and recipes can be chained in the paper's order
or in another.

* Convert: the student `efficient:KIND` (`kdhub_text.students.efficient`).
* Distil: a student of half the layers, every second of the teacher's, with the same attention. As in DistilBERT, from
  which the paper takes the names of its three terms,

      L = a_ce tau^2 mean KL(p_T^tau || p_S^tau)  +  a_mlm mean CE  +  a_cos mean (1 - cos(h_S, h_T))

  over positions, positions with a label, and real tokens; h are the last states. In masked language modelling positions
  are all real tokens, as in DistilBERT's code, and the masked ones have labels. In classification of texts or words
  both are those of the rows, in question answering the first and last token of an answer.

The paper's body was not available. Weights are DistilBERT's (tau 2, 5, 2, 1). What it does not state is our choice: how
positions are tiled, which layers are kept, and the share of long documents, which the recipe's data set (the sampler
`mixture`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, cross_entropies, labelled_in, positions_in, tokens_in
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class EfficientAttention(ObjectiveMethod):
    """Soft targets, labels, and the direction of the last states (arXiv:2311.13657)."""

    class Options(ClassifierOptions):
        tau: float = Field(2.0, gt=0, description="temperature of the soft targets")
        a_ce: float = Field(5.0, ge=0, description="weight of the soft targets")
        a_mlm: float = Field(2.0, ge=0, description="weight of the labels: masked tokens, or classes")
        a_cos: float = Field(1.0, ge=0, description="weight of the cosine of last states")
        positions: Literal["all", "masked"] = Field("all", description="fill-mask: tokens of the soft targets")

    options: Options
    partial_signals = ("top", "renormalised")

    def settings(self) -> dict[str, Any]:
        """A setting of fill-mask; other tasks ignore it."""
        return {"whole": self.options.positions == "all"}

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        if not self.options.a_cos:
            return ("logits",)
        layers = teacher.layout("hidden_states")["hidden_states"][-2]
        return ("logits", f"hidden_states:{layers}")

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """Raises: CompatibilityError: the last states have different widths."""
        if self.options.a_cos:
            mine, theirs = student.width("hidden_states")[-1], teacher.layout("hidden_states")["hidden_states"][-1]
            if mine != theirs:
                raise CompatibilityError(
                    f"a_cos needs states of one width: the student's have {mine} dimensions, the teacher's {theirs}",
                    hint="a student of the same width (half-layers:alternate), or a_cos: 0",
                )

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import forward_kl
        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import divergence

        o, labelled = self.options, labelled_in(batch)

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            soft = divergence(forward_kl, s, z, o.tau).sum()
            return {
                "teacher": o.a_ce * o.tau**2 * soft / positions_in(batch),
                "labels": o.a_mlm * cross_entropies(s, y).sum() / labelled,
            }

        terms = over_positions(sums, student, teacher, batch["labels"])
        if o.a_cos:
            apart = cosine_loss(student["hidden_states"][:, -1], teacher["hidden_states"].float()[:, -1])
            terms["cosine"] = o.a_cos * apart.sum() / tokens_in(batch, len(apart))
        return terms


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(h_S, h_T) of each token, (tokens,), in [0, 2]; the scale of either has no effect."""
    from kdhub_tasks.distances import feature_distance

    if student.shape != teacher.shape:
        raise CompatibilityError(
            f"the student has states {tuple(student.shape)}, the teacher {tuple(teacher.shape)}",
            hint="states are compared token by token: both need the same tokenizer and width",
        )
    return feature_distance(student, teacher, "cosine")
