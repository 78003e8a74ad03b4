"""ULD: universal logit distillation, from a teacher with other tokens (arXiv:2402.12030).

    L = label_weight CE(y) + weight mean_t sum_i |p_(i)(t) - q_(i)(t)|

p_(1) >= p_(2) >= ... are the teacher's probabilities at the t-th token of the response, q_(i) the student's at the t-th
of its own; the smaller vocabulary is filled up with zeros. This is the Wasserstein distance where moving probability
from any token to any other costs the same. What a token spells means nothing, and of the longer of the two sequences
the rest is left out. `gold` compares what spells the same.

Rows are cut into tokens by the student's tokenizer, and their texts again by the teacher's, which runs in training
(`kdhub_tasks.language.alignment`). Chats need a template that both have.

Departures: the mean is over the compared tokens of a whole optimiser step, where the paper sums over those of a row;
`lmbda`, `seq_kd` and what belongs to them are those of `gkd`: the paper's responses are the teacher's (`seq_kd: true`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub_tasks.losses import cross_entropies, labelled_in
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import Progress, step_count
from kdhub.rows import Signals
from kdhub_lm.on_policy import OnPolicy, OnPolicyOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.student import Student
    from kdhub.teacher import Teacher


class UldOptions(OnPolicyOptions):
    lmbda: float = Field(0.0, ge=0, le=1, description="probability that a batch has the student's own responses")
    label_weight: float = Field(1.0, ge=0, description="weight of the labels' cross-entropy, not on own responses")
    weight: float = Field(1.5, ge=0, description="weight of the distance to the teacher")
    temperature: float = Field(1.0, gt=0, description="temperature of both sides' logits")


class Uld(OnPolicy):
    Options = UldOptions
    options: UldOptions

    def settings(self) -> dict[str, Any]:
        return {"unlike": True}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        from kdhub_tasks.language.alignment import Alignment

        if student.packing:
            raise CompatibilityError(
                f"{self.spec.name} reads each row by two tokenizers, and packs none (packing=True)",
                hint="leave out the student's option packing",
            )
        self.alignment, self.teacher = Alignment(student.tokenizer, teacher.tokenizer, teacher.max_length), teacher

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        made = super().prepare_batch(batch, generator)
        own = {"own": True} if made is not batch else {}
        return {**made, **own, **self.alignment.translated(made, self.teacher.model.collate)}

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        return {"compared": self.compared(batch)}

    def compared(self, batch: Mapping[str, Any]) -> int:
        """How many tokens of a batch are."""
        return len(in_order(batch["counts"], batch["theirs"]["counts"])[0])

    def ask(self, student: Signals, batch: Mapping[str, Any], teacher: Any) -> Signals:
        return teacher(batch["theirs"])

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.positions import over_positions

        terms = {"teacher": self.options.weight * self.distance(student, teacher, batch)}
        if self.options.label_weight and "own" not in batch:
            w = self.options.label_weight / labelled_in(batch)
            ce = lambda s, _, y: {"labels": w * cross_entropies(s, y).sum()}  # noqa: E731
            terms |= over_positions(ce, student, Signals(), batch["labels"])
        return terms

    def distance(self, student: Signals, teacher: Signals, batch: Mapping[str, Any]) -> Tensor:
        from kdhub_lm.log_probs import each_position

        mine, there = in_order(batch["counts"], batch["theirs"]["counts"])
        theirs, t = logits_of(teacher), self.options.temperature
        apart = lambda s, at: by_rank((s / t).softmax(-1), (theirs[at].float() / t).softmax(-1))  # noqa: E731
        return each_position(apart, positions(student, mine), there).sum() / compared_in(batch, len(mine))


def compared_in(batch: Mapping[str, Any], here: int) -> float:
    """What a sum over what is compared in a batch is divided by."""
    return step_count(batch, "compared") or max(1, here)


def logits_of(signals: Signals) -> Any:
    """Logits of any positions, made when they are asked for where there is a head."""
    return signals["head"] if dict.__contains__(signals, "head") else signals.logits


def positions(signals: Signals, at: Tensor) -> Signals:
    """A model's signals at some positions."""
    from dataclasses import replace

    if (head := signals.get("head")) is not None:
        return Signals(head=replace(head, states=head.states[at]))
    return Signals(logits=signals.logits[at])


def in_order(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of the first, second, ... label of each row on both sides, as many as both have.

    Args:
        mine, theirs: (rows,) labels of each row.
    """
    import torch

    both, device = torch.minimum(mine, theirs), mine.device
    place = torch.arange(int(both.sum()), device=device) - torch.repeat_interleave(both.cumsum(0) - both, both)
    return tuple(torch.repeat_interleave(one.cumsum(0) - one, both) + place for one in (mine, theirs))


def by_rank(q: Tensor, p: Tensor) -> Tensor:
    """sum_i |p_(i) - q_(i)| of probabilities sorted from the largest, (..., classes) and (..., other classes) ->
    (...,), from 0 to the sum of both. Source: eq. 5 of arXiv:2402.12030, uniform cost."""
    from torch.nn.functional import pad

    size = max(q.shape[-1], p.shape[-1])
    q, p = (pad(one, (0, size - one.shape[-1])).sort(-1, descending=True).values for one in (q, p))
    return (p - q).abs().sum(-1)
