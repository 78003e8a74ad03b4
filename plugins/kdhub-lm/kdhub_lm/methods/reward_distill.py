"""A reward model from a teacher's preferences, and a policy trained with it: feedback and reinforcement learning in the
taxonomy of arXiv:2402.13116.

    -log sigmoid(r(y+) - r(y-))       Bradley-Terry, mean over pairs: the reward head r, fitted before training
    L = GRPO's with R_i = r(y_i)      on the student's own answers to the prompts of the rows, see `grpo`

The head is a small network on the start's states along a response; the start is frozen, so the student cannot change
the reward. It is fitted once, on the preferences of up to 1,024 prompts. Its value for very different answers is
unreliable, so the student is kept close to the start (`beta_kl`). The teacher's feedback is in the rows: any
preferences, or those of `preferences:DATA`, where a teacher scores responses by their probability.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub_lm.methods.dpo import groups_of
from kdhub_lm.methods.grpo import Answers, PolicyGradient, PolicyOptions
from kdhub_lm.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student

logger = logging.getLogger("kdhub")

BATCH = 64
"""Sequences whose states are computed at once."""
STEPS = 200
"""Most steps of L-BFGS."""


class RewardDistill(PolicyGradient):
    class Options(PolicyOptions):
        beta_kl: float = Field(0.1, ge=0, description="weight of the KL to the start")
        head_width: int = Field(64, ge=1, description="hidden units of the reward head")
        head_decay: float = Field(1e-4, ge=0, description="weight decay of the reward head; larger for few preferences")

    options: Options
    tiny_recipe = {
        "student": "recipe:metis-rise-base",
        "data": {"train": [{"source": "preferences:arithmetic:add,larger", "limit": 24}]},
        "options": {"max_new_tokens": 4, "group_size": 4, "lr": 1e-3},
    }

    def rows(self, run: RunContext) -> Rows:
        return groups_of(run, self)

    def adapt(self, student: Any, teacher: Any) -> None:
        from torch import nn

        super().adapt(student, teacher)
        self.reference = Reference(student)
        (width,) = student.width("features")
        self.head = nn.Sequential(
            nn.Linear(width, self.options.head_width), nn.Tanh(), nn.Linear(self.options.head_width, 1)
        )

    def initialise(self, student: Any, inputs: Mapping[str, Tensor], teacher: Signals) -> None:
        from kdhub_tasks.language.groups import pairs

        states = mean_states(self.reference, inputs)
        better, worse = pairs(inputs["groups"], inputs["scores"])
        before, after = fit(self.head.to(states.device), states, better, worse, self.options.head_decay)
        logger.info(
            "the reward head ranks %.0f %% of pairs like the teacher (before: %.0f %%)", 100 * after, 100 * before
        )

    def extras(self, student: Student, teacher: Any) -> Mapping[str, nn.Module]:
        return {**super().extras(student, teacher), "reward": self.head.requires_grad_(False)}

    def prompts(self, batch: Mapping[str, Any]) -> tuple[list[list[int]], list[int]]:
        import torch
        from kdhub_tasks.language.packing import mask_of

        counts, groups = batch["counts"], batch["groups"]
        lengths = mask_of(batch).sum(-1) - counts
        first = torch.ones_like(groups, dtype=torch.bool)
        first[1:] = groups[1:] != groups[:-1]
        numbers = first.nonzero().flatten().tolist()
        return [batch["input_ids"][n, : lengths[n]].tolist() for n in numbers], batch["keys"][first].tolist()

    def rewards(self, answers: Answers, batch: Mapping[str, Any]) -> Tensor:
        import torch

        made = {name: value.to(batch["input_ids"].device) for name, value in answers.batch(self.student).items()}
        with torch.no_grad():
            rewards = self.modules["reward"](mean_states(self.reference, made)).squeeze(-1).float()
        # The head has seen whole responses only: a truncated one gets the lowest reward of a whole one in its group.
        groups = rewards.reshape(-1, self.options.group_size)
        whole = torch.tensor(answers.ended, device=rewards.device).reshape(groups.shape)
        least = groups.masked_fill(~whole, torch.inf).amin(-1, keepdim=True)
        least = torch.where(least.isinf(), 0.0, least)
        return torch.where(whole, groups, least).flatten()


def bradley_terry(rewards: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Mean -log sigmoid(better - worse), nats; ln 2 where all rewards are equal.

    Args:
        rewards: (responses,); better, worse: indices of the responses of each pair, (pairs,).
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(rewards[better] - rewards[worse]).mean()


def fit(head: nn.Module, states: Tensor, better: Tensor, worse: Tensor, decay: float = 1e-4) -> tuple[float, float]:
    """Fit a reward head to preferences: Bradley-Terry with weight decay, by L-BFGS, deterministic.

    Args:
        states: (responses, width), constant; better, worse: (pairs,).

    Returns:
        The share of pairs ranked correctly, before and after.
    """
    import torch

    def ranked() -> float:
        with torch.no_grad():
            rewards = head(states).squeeze(-1)
            return (rewards[better] > rewards[worse]).float().mean().item()

    before, weights = ranked(), list(head.parameters())
    solver = torch.optim.LBFGS(weights, max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = bradley_terry(head(states).squeeze(-1), better, worse)
        value = value + decay / 2 * sum(weight.square().sum() for weight in weights)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    solver.zero_grad()
    return before, ranked()


def mean_states(reference: Reference, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean of the start's last states from which the tokens of each response are predicted, (responses, width) float32.
    The state at the end would be simpler, but the start was never trained to predict anything there."""
    import torch

    ids, mask, at, counts = (batch[name] for name in ("input_ids", "attention_mask", "at", "counts"))
    ends, made = counts.cumsum(0).tolist(), []
    for start in range(0, len(ids), BATCH):
        stop = min(start + BATCH, len(ids))
        some = at[ends[start - 1] if start else 0 : ends[stop - 1]] - start * ids.shape[1]
        states = reference({"input_ids": ids[start:stop], "attention_mask": mask[start:stop], "at": some}).features
        sums = states.new_zeros(stop - start, states.shape[-1], dtype=torch.float32)
        sums.index_add_(0, torch.repeat_interleave(counts[start:stop]), states.float())
        made.append(sums / counts[start:stop, None].clamp_min(1))
    return torch.cat(made)
