"""Module-to-module distillation (`m2mkd`, arXiv:2402.16918): modules of a student learn apart from each other.

A teacher and a student are cut into M modules, and a small meta model has one block for each (`kdhub_vision.modules`).
For each i, in any order and in as many processes as there are, `m2mkd-module` trains module s_i alone, in the place of
block i of the frozen meta model, to give what it gives with the teacher's module there:

    (1 - alpha) CE(y, y_S)  +  alpha tau^2 sum_{b,k} p_T (log p_T - log p_S) / N

with p the softmax over logits divided by tau. N is all numbers of y_S (`kd_norm: numel`, as in the authors' code: K
times smaller than a mean over rows, and next to nothing beside CE where K is 1,000), or the rows (`batch`). Then the
modules are assembled without their stitches, and `m2mkd` trains the whole by its labels alone: it is another function
at first, so its first steps look bad.

Left of the paper: drop-path, Mixup and CutMix (a stored teacher has seen no mixed image), Deep Incubation's phase MT (a
teacher that was trained as usual takes its place), and read-in and read-out modules of NAC.

Students with experts log the share of choices that each expert has, as `state`, and it stands in the report; `balance`
adds the loss of Switch transformers against their collapse. The paper has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, cross_entropies, label_losses, labelled_in, positions_in
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress
from kdhub.metric import Measure

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Signals
    from kdhub.student import Student

USAGE = "expert-usage"
"""The measure: share of all choices that an expert has; even is 1 over the experts."""
MEASURED = 1024
"""Training rows that it is measured on, at most."""


class PhaseOptions(ClassifierOptions):
    lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW, for a batch of 512")
    batch_size: int = Field(512, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
    epochs: float = Field(100.0, gt=0, description="passes over the training rows")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay, not on biases and norms")
    min_lr: float = Field(1e-5, ge=0, description="learning rate that the schedule ends at")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    balance: float = Field(0.0, ge=0, description="weight of the loss that spreads tokens over experts; 0 in the paper")


class _Phase(ObjectiveMethod):
    """What both phases share: the schedule, and what is known of experts."""

    Options = PhaseOptions
    options: PhaseOptions

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self._shares: dict[str, float] = {}

    @property
    def batchwise(self) -> str:
        return "how evenly experts are used is a matter of the batch" if self.options.balance else ""

    def learning_rate(self, step: int, steps: int) -> float:
        least = min(1.0, self.options.min_lr / self.options.lr)
        factor = super().learning_rate(step, steps)
        return factor if step < round(self.options.warmup * steps) else least + (1 - least) * factor

    def _balanced(self, student: Signals) -> dict[str, torch.Tensor]:
        """Notes the usage of experts, and gives the loss for it where there is one."""
        from kdhub_vision.modules.experts import GATES, USAGE, balance_loss

        if USAGE not in student:
            return {}
        for layer, shares in enumerate(student[USAGE].mean(0).tolist(), 1):
            self._shares |= {f"expert {layer}.{n}": round(share, 6) for n, share in enumerate(shares, 1)}
        if not self.options.balance:
            return {}
        return {"balance": self.options.balance * balance_loss(student[USAGE], student[GATES])}

    def state(self) -> dict[str, Any]:
        return dict(self._shares)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._shares = dict(state)

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Also the usage of each expert, on up to 1,024 training rows."""
        from kdhub_vision.modules import experts

        report = run.evaluate(student)
        if experts.USAGE not in student.kinds:
            return report
        rows = run.rows("train")
        some = rows.some(MEASURED)
        shares = student.signals(rows[some], experts.USAGE)[experts.USAGE].mean(0)
        report.measures += [
            Measure(
                metric=USAGE, value=float(share), subject="student", dataset="training rows", examples=len(some),
                variant={"layer": layer, "expert": n},
            )
            for layer, each in enumerate(shares, 1)
            for n, share in enumerate(each, 1)
        ]  # fmt: skip
        least, most = shares.min(-1).min(), shares.max(-1).max()
        report.notes.append(
            f"of the tokens' choices one expert has {least:.1%} to {most:.1%} in {len(shares)} layers; even would be "
            f"{1 / shares.shape[-1]:.1%}"
        )
        return report


class M2mkdModule(_Phase):
    """One module, in the place of the teacher's."""

    class Options(PhaseOptions):
        alpha_teacher: float = Field(0.5, ge=0, le=1, description="weight of the teacher; the rest is the labels'")
        tau: float = Field(1.0, gt=0, description="both sides' logits are divided by it")
        distillation_type: Literal["soft", "hard"] = Field(
            "soft", description="the teacher's probabilities, or its most probable class"
        )
        kd_norm: Literal["numel", "batch"] = Field(
            "numel", description="what the divergence is divided by: rows x classes, as the authors' code, or rows"
        )
        warmup: float = Field(0.2, ge=0, le=1, description="share of the steps with rising learning rate")

    options: Options
    tiny_recipe = {
        "teacher": {
            "source": "spliced", "module": 1,
            **{
                role: {
                    "source": "recipe:m2mkd-meta",
                    "set": {
                        "student.source": "vit:patch=4,width=8,layers=3,heads=2", "data.train.0.limit": 64,
                        "options.max_steps": 1, "evaluation.data": [],
                    },
                }
                for role in ("of", "meta")
            },
        },
        "student": {"source": "module:moe-vit:patch=4,width=4,layers=3,heads=2,experts=3"},
    }  # fmt: skip

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o, mine, theirs = self.options, student.logits.float(), teacher.logits.float()
        if o.distillation_type == "hard":
            apart = cross_entropies(mine, theirs.argmax(-1)).sum()
        else:
            apart = divergence(mine, theirs, o.tau) / (mine.shape[-1] if o.kd_norm == "numel" else 1)
        terms = {"teacher": o.alpha_teacher * apart / positions_in(batch)}
        if o.alpha_teacher < 1:
            labels = label_losses(mine, batch["labels"], o.label_smoothing).sum() / labelled_in(batch)
            terms["labels"] = (1 - o.alpha_teacher) * labels
        return terms | self._balanced(student)


class M2mkd(_Phase):
    """The assembled student, by its labels."""

    tiny_recipe = {"student": "moe-vit:patch=4,width=8,layers=1,heads=2,experts=3"}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        labels = label_losses(student.logits, batch["labels"], self.options.label_smoothing).sum()
        return {"labels": labels / labelled_in(batch)} | self._balanced(student)


def divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 sum over all rows of KL(p_T || p_S), p at temperature tau; logits (rows, classes)."""
    from kdhub_tasks.divergences import forward_kl

    return tau**2 * forward_kl(student / tau, teacher / tau).sum()
