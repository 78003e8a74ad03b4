"""Distillation by soft targets: the teacher's probabilities, beside the labels or instead of them.

With p and q the teacher's and student's probabilities at temperature T, the loss of one batch is

    (1 - alpha) mean CE(y, q at T = 1)  +  alpha T^2 mean D(p, q)

where the first mean is over rows with a label and the second over all rows. T^2 keeps the size of the gradient
(arXiv:1503.02531); it is used for every divergence alike. Language models have defaults of their own, the teacher alone
at T = 1 (`defaults_for`). Where rows have any number of labels, D is the sum over labels of that of yes and no, and CE
the sum of theirs; where they have values, D of `kd` and CE are squared errors, without a temperature
(`divergences.suited`). Each method is one divergence D of `divergences`. A new one
takes a function there and a `MethodSpec` of its name for `SoftTargets`; a class here, where it has options of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdhub_tasks.losses import ClassifierOptions, cross_entropies, label_losses, labelled_in, positions_in
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals


class SoftTargetOptions(ClassifierOptions):
    temperature: float = Field(2.0, gt=0, description="both sides' logits are divided by it")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher; 1 - alpha is that of the labels")
    scale_t2: bool = Field(True, description="multiply the divergence by the temperature's square")


class SoftTargets(ObjectiveMethod):
    """Soft targets by one divergence, and what the methods of this file share.

    Attributes:
        function: the name of the divergence in `divergences`; the method's own if empty.
        passes: the options that it takes.
    """

    Options: ClassVar[type[SoftTargetOptions]] = SoftTargetOptions
    options: SoftTargetOptions
    defaults_for = {"next-token": {"alpha": 1.0, "temperature": 1.0}}
    function: ClassVar[str] = ""
    passes: ClassVar[tuple[str, ...]] = ()

    @property
    def partial_signals(self) -> tuple[str, ...]:
        return ("top", "renormalised")

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks import divergences
        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import divergence

        o, labels = self.options, batch["labels"]
        t, settings = o.temperature, {name: getattr(o, name) for name in self.passes}
        function = partial(getattr(divergences, self.function or self.spec.name.replace("-", "_")), **settings)
        apart = divergences.suited(function, labels)
        t = 1.0 if labels.is_floating_point() else t  # values have none
        weight, labelled = o.alpha * (t * t if o.scale_t2 else 1), labelled_in(batch)

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            terms = {"teacher": weight * divergence(apart, s, z, t).sum() / positions_in(batch)}
            if o.alpha < 1:
                terms["labels"] = (1 - o.alpha) * label_losses(s, y).sum() / labelled
            return terms

        return over_positions(sums, student, teacher, labels)


class Kd(SoftTargets):
    """Hinton's distillation: D = KL(p || q) (arXiv:1503.02531). Public code often leaves out the teacher's entropy: the
    same gradient, another value."""

    function = "forward_kl"

    @property
    def partial_signals(self) -> tuple[str, ...]:
        return (*super().partial_signals, *(("sampled",) if self.options.temperature == 1 else ()))


class ReverseKl(SoftTargets):
    """D = KL(q || p): the student keeps to what the teacher finds most probable (arXiv:2306.08543)."""

    function = "reverse_kl"


class Sym(SoftTargets):
    """D = (1 - reverse) KL(p || q) + reverse KL(q || p), a baseline of DistiLLM (arXiv:2402.03898)."""

    class Options(SoftTargetOptions):
        reverse: float = Field(0.9, ge=0, le=1, description="weight of KL(q || p); the rest is that of KL(p || q)")

    function = "symmetric_kl"
    passes = ("reverse",)


class Jsd(SoftTargets):
    """D = the generalised Jensen-Shannon divergence (arXiv:2306.13649)."""

    class Options(SoftTargetOptions):
        beta: float = Field(0.5, ge=0, le=1, description="the teacher's weight in the mixture; 0 is KL(p||q)")

    function = "jensen_shannon"
    passes = ("beta",)


class Tvd(SoftTargets):
    """D = the total variation distance, sum |p - q| / 2 (arXiv:2307.15190)."""

    function = "total_variation"


class SkewKl(SoftTargets):
    """D = KL against a mixture that holds a share of the other side (DistiLLM, arXiv:2402.03898)."""

    class Options(SoftTargetOptions):
        skew: float = Field(0.1, ge=0, le=1, description="share of the other side in the mixture; 0 is the plain KL")
        direction: Literal["forward", "reverse"] = Field("forward", description="KL(p || .) or KL(q || .)")

    function = "skew_kl"
    passes = ("skew", "direction")


class Akl(SoftTargets):
    """D = forward and reverse KL, weighted by where the two sides differ (arXiv:2404.02657)."""

    class Options(SoftTargetOptions):
        head: float = Field(
            0.5,
            ge=0,
            le=1,
            description="share of the teacher's mass that its most probable classes, the head, have at most",
        )

    function = "adaptive_kl"
    passes = ("head",)


class Dkd(ObjectiveMethod):
    """Decoupled distillation: target class and the others apart (arXiv:2203.08679).

        ce_weight CE(y, q) + min(epoch / warmup_epochs, 1) T^2 (target_weight TCKD + others_weight NCKD)

    Epochs count from 1, as in the authors' code, so that the weight rises by steps from 1 / warmup_epochs. Rows without
    a label are led by the teacher's own choice in place of y. Defaults for language models are those of TAID's baseline
    (arXiv:2501.16937): no labels, no warm-up, T = 1.
    """

    class Options(ClassifierOptions):
        temperature: float = Field(4.0, gt=0, description="both sides' logits are divided by it")
        target_weight: float = Field(1.0, ge=0, description="weight of the target class against the rest (alpha)")
        others_weight: float = Field(8.0, ge=0, description="weight among the other classes (beta)")
        ce_weight: float = Field(1.0, ge=0, description="weight of the labels")
        warmup_epochs: float = Field(
            20.0, ge=0, description="epochs over which the divergence's weight rises step by step"
        )
        scale_t2: bool = Field(True, description="multiply the divergence by the temperature's square")

    options: Options
    defaults_for = {
        "next-token": {"temperature": 1.0, "others_weight": 0.5, "ce_weight": 0.0, "warmup_epochs": 0.0},
    }

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import decoupled_kd
        from kdhub_tasks.positions import over_positions

        o, labels, t = self.options, batch["labels"], self.options.temperature
        share = min((int(progress.epoch) + 1) / o.warmup_epochs, 1.0) if o.warmup_epochs else 1.0
        weight, labelled = share * (t * t if o.scale_t2 else 1), labelled_in(batch)

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            target = y.where(y >= 0, z.argmax(-1))
            apart = decoupled_kd(s / t, z.float() / t, target, o.target_weight, o.others_weight)
            return {
                "labels": o.ce_weight * cross_entropies(s, y).sum() / labelled,
                "teacher": weight * apart.sum() / positions_in(batch),
            }

        return over_positions(sums, student, teacher, labels)
