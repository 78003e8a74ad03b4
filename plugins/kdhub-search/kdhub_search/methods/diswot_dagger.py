"""Soft targets with DisWOT's two distances (arXiv:2303.15678): what a found student learns by, and any other may.

    L = ce_weight CE(y, z_S) + kd_weight T^2 KL(softmax(z_T / T) || softmax(z_S / T))
      + semantic_weight ||G_T - G_S||_F / K^2 + relation_weight ||R_T - R_S||_F / B^2

with the matrices of `kdhub_search.scores`, of the trained teacher and the student in training. Weights 0.1 and 0.9 and
T = 4 are those of the authors' scripts; whether the paper squares the two norms is open, as its code does:
`reduction: squared`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, label_losses, labelled_in, positions_in
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress
from kdhub_search.networks import network_of

if TYPE_CHECKING:
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class SoftTargetOptions(ClassifierOptions):
    temperature: float = Field(4.0, gt=0, description="both sides' logits are divided by it")
    ce_weight: float = Field(0.1, ge=0, description="weight of the labels")
    kd_weight: float = Field(0.9, ge=0, description="weight of the teacher's soft targets")
    semantic_weight: float = Field(1.0, ge=0, description="weight of the distance of class maps (diswot-dagger)")
    relation_weight: float = Field(1.0, ge=0, description="weight of the distance of relations (diswot-dagger)")
    reduction: Literal["norm", "squared"] = Field(
        "norm", description="distances are norms, as in the paper, or squares over the size, as in its code"
    )


def soft_targets(o: SoftTargetOptions, student: Signals, teacher: Signals, labels: Tensor, batch: Any) -> dict:
    """The two terms of plain distillation."""
    from kdhub_tasks.divergences import forward_kl

    z, t = student.logits.float(), teacher.logits.float()
    apart = forward_kl(z / o.temperature, t / o.temperature)
    terms = {"teacher": o.kd_weight * o.temperature**2 * apart.sum() / positions_in(batch)}
    if o.ce_weight:
        terms["labels"] = o.ce_weight * label_losses(z, labels).sum() / labelled_in(batch)
    return terms


class DiswotDagger(ObjectiveMethod):
    """Soft targets and both distances."""

    class Options(SoftTargetOptions):
        pass

    options: Options

    @property
    def batchwise(self) -> str:
        return "the images of a batch are compared with each other"

    def check(self, student: Student, teacher: Teacher | None) -> None:
        self._of_teacher = map_of(network_of(teacher))
        self._of_student = map_of(student)
        self._weights = self._of_teacher.weight(network_of(teacher).module).detach()

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        self._classifier = student.module.get_submodule(self._of_student.classifier)

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return ("logits", self._of_teacher.layer)

    def uses(self, student: Student) -> tuple[str, ...]:
        return (self._of_student.layer,)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        from kdhub_search.scores import class_maps, distance, relations, semantics

        o, labels = self.options, batch["labels"]
        theirs, own = _channels_first(teacher[self._of_teacher.layer]), _channels_first(student[self._of_student.layer])
        terms = soft_targets(o, student, teacher, labels, batch)
        if o.semantic_weight:
            classes = len(self._weights)
            of_teacher = semantics(class_maps(theirs, self._weights.to(theirs.device)))
            apart = distance(of_teacher, semantics(class_maps(own, self._classifier.weight)), o.reduction, classes**2)
            terms["semantic"] = o.semantic_weight * apart / (classes**2 if o.reduction == "norm" else 1)
        if o.relation_weight:
            rows = len(own)
            apart = distance(relations(theirs), relations(own), o.reduction, rows**2)
            terms["relation"] = o.relation_weight * apart / (rows**2 if o.reduction == "norm" else 1)
        return terms


def map_of(model: Student) -> Any:
    """The last map of a classifier, found by a pass for blank images (`kdhub_search.scores.LastMap`).

    Raises:
        CompatibilityError: it has none.
    """
    from kdhub_search.scores import last_map

    blank = {name: value.expand(2, *value.shape[1:]).to(model.device) for name, value in model.blank().items()}
    return last_map(model.module, blank, len(model.classes))


def _channels_first(signal: Tensor) -> Tensor:
    """(B, C, P) of a layer's signal: positions (B, P, C), or one vector (B, C)."""
    return signal.float().mT if signal.dim() == 3 else signal.float().unsqueeze(2)
