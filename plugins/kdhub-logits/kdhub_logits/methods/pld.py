"""PLD: distillation by the Plackett-Luce model of rankings (arXiv:2506.12542).

The student is led to choose classes one after the other as the teacher ranks them, the true class first. With pi the
true class and then the others by falling teacher logit, and a_k = softmax(teacher / temperature)[pi_k],

    L = sum_k a_k (logsumexp(s[pi_k], ..., s[pi_C]) - s[pi_k])

and nothing else: no cross-entropy (the step k = 1 is q_y times it), no KL, no T^2. The student's logits are not
softened. Convex in s, and blind to a constant added to s or to the teacher's logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.distances import LOWEST
from kdhub_tasks.losses import ClassifierOptions, labelled_in, positions_in
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals


class Pld(ObjectiveMethod):
    """The teacher's ranking of the classes, true class first, each step weighted by the teacher's probability."""

    class Options(ClassifierOptions):
        teacher_temperature: float = Field(
            1.0, gt=0, description="temperature of the weights of the steps, of nothing else"
        )
        weighting: Literal["teacher", "uniform", "position", "onehot"] = Field(
            "teacher",
            description="weights of the steps; uniform is ListMLE / C, position 2^(C-k) - 1, onehot cross-entropy",
        )
        force_label_first: bool = Field(True, description="false: the teacher's ranking as it is, for unlabelled rows")
        topk: int | None = Field(None, ge=1, description="only the first steps of the ranking; all if unset")

    options: Options

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o, labels = self.options, batch["labels"]
        given = teacher.logits.float()
        if o.force_label_first:
            labelled = labels >= 0
            logits, given, labels = student.logits[labelled], given[labelled], labels[labelled]
        else:
            logits, labels = student.logits, None
        each = plackett_luce(
            logits, given, labels, temperature=o.teacher_temperature, weighting=o.weighting, topk=o.topk
        )
        counted = labelled_in(batch) if o.force_label_first else positions_in(batch)
        return {"ranking": each.sum() / counted}


def plackett_luce(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    *,
    temperature: float = 1.0,
    weighting: str = "teacher",
    topk: int | None = None,
) -> Tensor:
    """The loss of each row.

    Args:
        student, teacher: logits (n, classes), of any float type; one of -inf on both sides comes last and counts
            nothing.
        labels: (n,), ranked first whatever the teacher says; None takes the teacher's ranking as it is, which is not
            the paper's method.
        temperature: of the teacher's probabilities, which are the weights.
        weighting: "teacher"; "uniform" 1/C; "position" (2^(C-k) - 1) over their sum; "onehot" (1, 0, ..., 0).
        topk: drop the steps after these; the weights are not made to sum to 1 again.

    Returns:
        (n,) >= 0.

    Source: eqs. 5 to 9 of arXiv:2506.12542, mirrored: sorted downwards with the label first.
    """
    import torch

    classes, teacher = teacher.shape[-1], teacher.float()
    ranked = teacher if labels is None else teacher.scatter(-1, labels.unsqueeze(-1), torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    s = student.float().clamp_min(LOWEST).gather(-1, order)
    remaining = s.flip(-1).logcumsumexp(-1).flip(-1)  # over the classes not chosen yet
    if weighting == "teacher":
        weights = torch.softmax(teacher / temperature, -1).gather(-1, order)
    else:
        k = torch.arange(1, classes + 1, dtype=torch.float64, device=s.device)
        weights = {
            "uniform": torch.full_like(k, 1 / classes),
            "position": (2**-k - 2.0**-classes) / (1 - (classes + 1) * 2.0**-classes) if classes > 1 else k,
            "onehot": (k == 1).to(k.dtype),
        }[weighting].to(s.dtype)
    steps = weights * (remaining - s)
    return steps[..., :topk].sum(-1)
