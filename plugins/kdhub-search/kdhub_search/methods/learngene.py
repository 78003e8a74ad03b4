"""Learngene instances: a shallow transformer that takes after a deep one at some of its blocks (arXiv:2312.05743).

    L = alpha CE(y, z_S) + (1 - alpha) (L_logit + L_rep + L_att)
    L_rep   = sum_p MSE(x_S, M_map x_T)           what a block gives
    L_att   = sum_p MSE(a_S, M_att a_T)           what its attention gives
    L_logit = -mean over batch and classes of softmax(z_T / tau) log softmax(z_S / tau)

The maps lead from the ancestor to the student, one pair for each position p, with biases, and are learned along (one
public version leaves them random). The mean over classes is the authors' code's. `learngene-pool` keeps the maps. Of an
ancestor of the transformers library the tokens before the patches are left out, as a built-in student has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, label_loss
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress
from kdhub_search.networks import blocks_of, network_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

Where = Literal["front-end", "mid-end", "end"]
CLASS_TOKENS = 2
"""At most so many tokens stand in front of the patches (of a class, of distillation); they are not compared."""


class InstanceOptions(ClassifierOptions):
    alpha: float | None = Field(
        None, ge=0, le=1, description="weight of the labels; if unset 0.1 with all terms, 0.5 with fewer, 1 with none"
    )
    tau: float = Field(1.0, gt=0, description="temperature of both sides' logits")
    terms: Literal["all", "logits+rep", "logits", "none"] = Field(
        "all", description="what is learned of the teacher: none is training by labels alone"
    )


class Learngene(ObjectiveMethod):
    """Logits, blocks and attention."""

    class Options(InstanceOptions):
        where: Where = Field(
            "front-end", description="blocks that are compared: three, the last two of them, or the last"
        )

    options: Options
    tiny_recipe = {"student": "vit:patch=4,width=8,layers=1,heads=2", "options": {"where": "end"}}

    @property
    def kinds(self) -> tuple[str, ...]:
        return {"all": ("rep", "att"), "logits+rep": ("rep",)}.get(self.options.terms, ())

    @property
    def alpha(self) -> float:
        defaults = {"all": 0.1, "none": 1.0}
        return defaults.get(self.options.terms, 0.5) if self.options.alpha is None else self.options.alpha

    def check(self, student: Student, teacher: Teacher | None) -> None:
        models = {"teacher": network_of(teacher), "student": student}
        self._of = {whose: blocks_of(model, whose) for whose, model in models.items()}
        self._at = {whose: self._blocks(whose) for whose in models}
        mine, theirs = (self._of[whose].positions for whose in ("student", "teacher"))
        self._first = theirs - mine  # tokens of the teacher that stand for no patch
        if self.kinds and not 0 <= self._first <= CLASS_TOKENS:
            raise CompatibilityError(
                f"blocks are compared position by position, and the student has {mine} of them, the teacher {theirs}",
                hint="give both the same number of patches",
            )

    def _blocks(self, whose: str) -> list[str]:
        """The names of those that are compared."""
        from kdhub_search.families.stitching import positions

        have = len(self._of[whose].names)
        found = positions(self.options.where, have)
        if len(set(found)) < len(found):
            raise CompatibilityError(
                f"where={self.options.where} compares {len(found)} blocks, and the {whose} has {have}",
                hint="--set where=end (narrow_where of learngene-pool), or a deeper network",
            )
        return [self._of[whose].names[n] for n in found]

    def _layers(self, whose: str) -> dict[tuple[str, int], str]:
        """(rep or att, number of the position) -> the layer's signal."""
        return {
            (kind, p): f"layer:{block}{'' if kind == 'rep' else '.' + self._of[whose].attention}:all"
            for kind in self.kinds
            for p, block in enumerate(self._at[whose])
        }

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return () if self.options.terms == "none" else ("logits", *self._layers("teacher").values())

    def uses(self, student: Student) -> tuple[str, ...]:
        return tuple(self._layers("student").values())

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        from torch import nn

        return {
            f"{kind}-{p}": nn.Linear(self._of["teacher"].width, self._of["student"].width)
            for kind, p in self._layers("student")
        }

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        from torch.nn.functional import mse_loss

        terms, alpha = {}, self.alpha
        if alpha:
            terms["labels"] = alpha * label_loss(student.logits, batch)
        if self.options.terms == "none":
            return terms
        terms["logits"] = (1 - alpha) * soft_cross_entropy(student.logits, teacher.logits, self.options.tau)
        theirs = self._layers("teacher")
        for (kind, p), layer in self._layers("student").items():
            given = teacher[theirs[kind, p]][:, self._first :]
            mapped = self.modules[f"{kind}-{p}"](given.float())
            terms[kind] = terms.get(kind, 0) + (1 - alpha) * mse_loss(student[layer].float(), mapped)
        return terms


def soft_cross_entropy(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """-mean over rows and classes of softmax(teacher / tau) log softmax(student / tau)."""
    p, log_q = (teacher.float() / tau).softmax(-1), (student.float() / tau).log_softmax(-1)
    return -(p * log_q).mean()
