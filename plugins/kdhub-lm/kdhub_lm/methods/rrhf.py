"""RRHF: the probabilities of responses in the order of the teacher's scores (arXiv:2304.05302).

    l_i = 1/n sum_t log pi(y_t | prompt, y_<t)                                 mean log-probability of a token
    L   = sum over pairs with r_i < r_j of relu(l_i - l_j)  +  CE of the best  eq. 3 and 4, mean over prompts and tokens

Departure: if several responses are equally best, all of them are learnt, each token with the same weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.method import Progress, step_count
from kdhub_lm.methods.dpo import PreferenceMethod, PreferenceOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals


class Rrhf(PreferenceMethod):
    class Options(PreferenceOptions):
        rank_weight: float = Field(1.0, ge=0, description="weight of the ranking loss")
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy of the best response")

    options: Options

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """`best`, the tokens of the best responses."""
        return {"best": int(batch["counts"][best_of(batch)].sum())}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        import torch

        from kdhub_lm.log_probs import label_log_probs, per_row

        o, groups, scores, counts = self.options, batch["groups"], batch["scores"], batch["counts"]
        each = label_log_probs(student, batch["labels"])
        best = each[torch.repeat_interleave(best_of(batch), counts)]
        ranking = ranking_loss(per_row(each, counts, mean=True), groups, scores)
        return {
            "ranking": o.rank_weight * ranking / (int(groups[-1]) + 1),
            "labels": -o.ce_weight * best.sum() / (step_count(batch, "best") or len(best)),
        }


def best_of(batch: Mapping[str, Any]) -> Tensor:
    """Which responses of a batch have the highest score of their prompt, (responses,)."""
    groups, scores = batch["groups"], batch["scores"]
    highest = scores.new_full((int(groups[-1]) + 1,), -float("inf")).scatter_reduce(0, groups, scores, "amax")
    return scores == highest[groups]


def ranking_loss(mean_log_probs: Tensor, groups: Tensor, scores: Tensor) -> Tensor:
    """Sum over pairs of relu(worse - better), nats; 0 where probabilities are in the order of the scores."""
    from kdhub_tasks.language.groups import pairs

    better, worse = pairs(groups, scores)
    return (mean_log_probs[worse] - mean_log_probs[better]).relu().sum()
