"""RRHF: responses ranked by their probability as the teacher ranks them (arXiv:2304.05302).

    l_i = 1/n sum_t log pi(y_t | prompt, y_<t)                                 mean log-probability of a token
    L   = sum over pairs with r_i < r_j of relu(l_i - l_j)  +  CE of the best  eq. 3 and 4, mean over prompts

Departure: responses that are equally best are all learnt, each token of them counting alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.method import Progress
from kdhub_lm.dpo import PreferenceOptions, Preferences

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.task import Signals


class Rrhf(Preferences):
    class Options(PreferenceOptions):
        rank_weight: float = Field(1.0, ge=0, description="weight of the ranking")
        ce_weight: float = Field(1.0, ge=0, description="weight of the best response as a label")

    options: Options

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        import torch

        from kdhub_lm.log_probs import label_log_probs, per_row

        o, groups, scores, counts = self.options, batch["groups"], batch["scores"], batch["counts"]
        each = label_log_probs(student, batch["labels"])
        size = int(groups[-1]) + 1
        highest = scores.new_full((size,), -torch.inf).scatter_reduce(0, groups, scores, "amax")
        best = torch.repeat_interleave(scores == highest[groups], counts)
        return {
            "ranking": o.rank_weight * ranking_loss(per_row(each, counts, mean=True), groups, scores) / size,
            "labels": -o.ce_weight * each[best].mean(),
        }


def ranking_loss(mean_log_probs: Tensor, groups: Tensor, scores: Tensor) -> Tensor:
    """Sum over pairs of relu(what the worse one is ahead by), nats; 0 where probabilities are in the scores' order."""
    from kdhub_lm.preferences import pairs

    better, worse = pairs(groups, scores)
    return (mean_log_probs[worse] - mean_log_probs[better]).relu().sum()
