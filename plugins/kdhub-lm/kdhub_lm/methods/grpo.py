"""GRPO: reinforcement learning on a student's own answers, relative to their group (arXiv:2402.03300, 2503.14476).

For each prompt G answers are sampled from the policy and rewarded, here by a rule that knows the right answer:

    R_i     = w_acc [the answer is right] + w_fmt [the format is right]
    A_i     = (R_i - mean R) / (std R + 1e-6)                       over the group; std divides by G
    rho_i,t = pi(y_t) / pi_old(y_t)                                 at the sampling temperature
    L       = - mean min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A)  +  beta_kl mean (exp(d) - d - 1)

with d = log ref(y_t) - log pi(y_t) and ref the start. There is no teacher: the right answers are the rows' responses.

From arXiv:2503.14476: no KL by default, the mean over all tokens of a batch, the wider upper bound, and no loss on
groups with equal rewards and on truncated answers, which are never right. Groups with equal rewards are left out of the
mean, not sampled again. Groups are of one prompt, so they are the same in any micro-batch, and the mean is over the
whole optimiser step. An answer is used once. With `policy_steps` above 1 the sampling policy lags behind, as if answers
were sampled for several steps together; only then does clipping have an effect.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from kdhub.method import ObjectiveMethod, Progress, TrainingOptions, step_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.method import RunContext
    from kdhub.rows import Example, Rows, Signals
    from kdhub.student import Student

logger = logging.getLogger("kdhub")

RECENT = 0.9
"""Decay of the running means in the log."""


class PolicyOptions(TrainingOptions):
    """Options of every policy gradient on a student's own answers."""

    lr: float = Field(1e-6, gt=0, description="peak learning rate of AdamW; 1e-4 and more for small models")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="learning rate after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, not on biases and norms")
    batch_size: int = Field(32, ge=1, description="prompts of one optimiser step, over all ranks and accumulations")
    group_size: int = Field(8, ge=2, description="answers to each prompt")
    temperature: float = Field(1.0, gt=0, description="temperature of sampling, and of the probabilities in the loss")
    max_new_tokens: int = Field(128, ge=1, description="most tokens of an answer; a longer one is truncated")
    eps_low: float = Field(0.2, gt=0, lt=1, description="ratios are clipped to at least 1 minus this")
    eps_high: float = Field(0.28, gt=0, lt=1, description="ratios are clipped to at most 1 plus this")
    beta_kl: float = Field(0.0, ge=0, description="weight of the KL to the start")
    loss_agg: Literal["token", "sequence"] = Field(
        "token", description="mean over all tokens of a step, or within each answer and then over answers"
    )
    dynamic_sampling: bool = Field(True, description="leave groups with equal rewards out of the mean")
    policy_steps: int = Field(
        1, ge=1, description="optimiser steps between updates of the sampling policy; above 1 it is a copy"
    )


@dataclass
class Answers:
    """A policy's answers, group after group.

    Attributes:
        prompts, tokens: ids, one list per answer; ended: whether the policy ended it.
        texts: without the end token.
    """

    prompts: list[list[int]]
    tokens: list[list[int]]
    ended: list[bool]
    texts: list[str]

    @classmethod
    def of(
        cls, student: Any, prompts: Sequence[list[int]], keys: Sequence[int], options: PolicyOptions, seed: int
    ) -> Answers:
        """`group_size` answers to each prompt; they depend on seed and key, not on the batch."""
        from kdhub_tasks.language.generation import Generation

        how = Generation(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
        repeated = [prompt for prompt in prompts for _ in range(options.group_size)]
        rows = [key * options.group_size + n for key in keys for n in range(options.group_size)]
        tokens = student.generate(repeated, how, seed, rows, trained=True)
        texts, ended = student.texts(tokens)
        return cls(repeated, tokens, ended, texts)

    def batch(self, student: Any) -> dict[str, Tensor]:
        """As a batch of responses; labels of a truncated one are -1."""
        import torch

        from kdhub_lm.on_policy import written_batch

        made = written_batch(student, self.prompts, self.tokens)
        whole = torch.tensor(self.ended).repeat_interleave(made["counts"])
        return made | {"labels": made["labels"].masked_fill(~whole, -1)}


class PolicyGradient(ObjectiveMethod):
    """Base of methods that learn from rewards of the student's own answers; `rewards` gives them."""

    options: PolicyOptions

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self.seen: dict[str, float] = {}

    def adapt(self, student: Any, teacher: Any) -> None:
        from kdhub_lm.reference import Reference

        self.student = self.policy = student
        self.reference = Reference(student) if self.options.beta_kl else None

    def extras(self, student: Student, teacher: Any) -> Mapping[str, nn.Module]:
        if self.options.policy_steps == 1:
            return {}
        self.policy = copy.copy(student)
        self.policy.module = copy.deepcopy(student.module).eval().requires_grad_(False)
        return {"policy": self.policy.module}

    def prompts(self, batch: Mapping[str, Any]) -> tuple[list[list[int]], list[int]]:
        """Token ids of the prompts of a batch of rows, and a number for each that depends on its content."""
        from kdhub_lm.on_policy import prompts_of

        return prompts_of(batch), batch["keys"].tolist()

    def rewards(self, answers: Answers, batch: Mapping[str, Any]) -> Tensor:
        """(answers,), higher is better. `batch` is that of the rows."""
        raise NotImplementedError

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        from kdhub_lm.on_policy import response_seeds

        device, (prompts, keys) = batch["input_ids"].device, self.prompts(batch)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        answers = Answers.of(self.policy, prompts, response_seeds(keys), self.options, seed)
        rewards = self.rewards(answers, batch).reshape(len(prompts), -1)
        made = {name: value.to(device) for name, value in answers.batch(self.student).items()}
        advantages = advantages_of(rewards).flatten().to(device)
        mixed = rewards.amax(-1) > rewards.amin(-1)
        if self.options.dynamic_sampling:
            left_out = ~mixed.repeat_interleave(self.options.group_size).to(device)
            made["labels"] = made["labels"].masked_fill(left_out.repeat_interleave(made["counts"]), -1)
        self.note(reward=rewards.mean(), ended=sum(answers.ended) / len(answers.ended), mixed=mixed.float().mean())
        if self.policy is not self.student:
            with torch.no_grad():
                made["old"] = self.log_probs(self.policy.module(made), made["labels"])
        return made | {"advantages": advantages}

    def log_probs(self, signals: Signals, labels: Tensor) -> Tensor:
        """Of labels at the sampling temperature, (positions,)."""
        from kdhub_tasks.losses import cross_entropies

        from kdhub_lm.log_probs import each_position

        t = self.options.temperature
        return each_position(lambda logits, labels: -cross_entropies(logits / t, labels), signals, labels)

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """`answers` that have tokens to learn from."""
        from kdhub_lm.log_probs import per_row

        return {"answers": int((per_row((batch["labels"] >= 0).float(), batch["counts"]) > 0).sum())}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o, labels, counts = self.options, batch["labels"], batch["counts"]
        now = self.log_probs(student, labels)
        ratio = (now - batch.get("old", now.detach())).exp()
        advantages = batch["advantages"].repeat_interleave(counts)
        many = step_count(batch, "labels" if o.loss_agg == "token" else "answers")
        mean = partial(aggregated, counts=counts, kept=labels >= 0, how=o.loss_agg, many=many)
        terms = {"policy": mean(policy_losses(ratio, advantages, o.eps_low, o.eps_high))}
        if o.beta_kl:
            start = self.log_probs(self.reference(batch), labels)
            terms["start"] = o.beta_kl * mean(start_distances(now, start))
        return terms

    def note(self, **values: Any) -> None:
        """Running means over batches, which `metrics.jsonl` shows as state."""
        for name, value in values.items():
            self.seen[name] = RECENT * self.seen.get(name, float(value)) + (1 - RECENT) * float(value)

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        if self.policy is not self.student and (progress.step + 1) % self.options.policy_steps == 0:
            self.policy.module.load_state_dict(self.student.module.state_dict())

    def state(self) -> dict[str, Any]:
        return dict(self.seen)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.seen = dict(state)


class Grpo(PolicyGradient):
    class Options(PolicyOptions):
        w_acc: float = Field(1.0, ge=0, description="reward of a right answer")
        w_fmt: float = Field(0.1, ge=0, description="reward of the right format, if `format` is set")
        format: str | None = Field(None, description="regular expression that a whole answer must match")
        probe: int = Field(
            64, ge=0, description="prompts to try before training, which stops if no answer is right; 0 for none"
        )

        @field_validator("format")
        @classmethod
        def _compiles(cls, value: str | None) -> str | None:
            try:
                re.compile(value or "")
            except re.error as error:
                raise ValueError(f"format must be a regular expression (format={value!r}): {error}") from error
            return value

    options: Options
    tiny_recipe = {
        "student": "recipe:metis-rise-base",
        "data": {"train": [{"source": "arithmetic:add,larger", "limit": 24}]},
        "options": {"max_new_tokens": 4, "group_size": 4, "lr": 1e-3, "probe": 8},
    }
    tiny_recipe_for = {"image-text-to-text": {"options": {"max_new_tokens": 4, "group_size": 4, "probe": 0}}}

    def distill(self, run: RunContext) -> Student:
        if self.options.probe:
            run.stage("probe", lambda: self.probed(run))
        return super().distill(run)

    def rows(self, run: RunContext) -> Rows:
        from kdhub.errors import DataError

        rows = run.rows("train", prompts=self.options.max_new_tokens)
        if "response" not in rows.table.column_names:
            raise DataError(
                f"{self.spec.name} needs the right answers in the column response; the rows have "
                f"{', '.join(rows.table.column_names)}",
                hint="map the column of answers: columns: {response: THEIRS}",
            )

        def prepare(plain: list[dict[str, Any]]) -> list[Example]:
            examples = zip(rows.prepare(plain), plain)
            return [{**example, "at": [], "gold": row["response"]} for example, row in examples]

        return replace(rows, prepare=prepare)

    def probed(self, run: RunContext) -> dict[str, float]:
        """The start's share of right answers, and of prompts with both right and wrong ones.

        Raises:
            TrainingError: none is right.
        """
        import numpy as np

        from kdhub.errors import TrainingError

        rows, o = self.rows(run), self.options
        some = rows[np.linspace(0, len(rows) - 1, min(o.probe, len(rows))).astype(int)]
        answers = Answers.of(run.student, [e["ids"] for e in some], range(len(some)), o, run.seed)
        right = np.array(self.right(answers, [e["gold"] for e in some])).reshape(len(some), -1)
        found = {"right": right.mean().item(), "mixed": (right.any(-1) & ~right.all(-1)).mean().item()}
        if not right.any():
            cut = 1 - sum(answers.ended) / len(answers.ended)
            raise TrainingError(
                f"{self.spec.name} learns from right answers, but none of the student's {right.size} answers to "
                f"{len(some)} prompts is right ({cut:.0%} truncated at max_new_tokens={o.max_new_tokens})",
                hint="train it on worked answers first (supervised), or use easier prompts or more tokens",
            )
        logger.info(
            "before training: %.0f %% of answers are right, %.0f %% of prompts have both right and wrong ones",
            100 * found["right"], 100 * found["mixed"],
        )  # fmt: skip
        return found

    def right(self, answers: Answers, gold: Sequence[str]) -> list[bool]:
        """Whether each answer is right; a truncated one is not."""
        from kdhub_tasks.language.verify import verified

        size = self.options.group_size
        ended = zip(answers.texts, answers.ended)
        return [whole and verified(text, gold[n // size]) for n, (text, whole) in enumerate(ended)]

    def rewards(self, answers: Answers, batch: Mapping[str, Any]) -> Tensor:
        import torch

        o, right = self.options, torch.tensor(self.right(answers, batch["gold"]))
        self.note(right=right.float().mean())
        rewards = o.w_acc * right
        if o.format is not None:
            fits = [
                whole and bool(re.fullmatch(o.format, t, re.DOTALL)) for t, whole in zip(answers.texts, answers.ended)
            ]
            rewards = rewards + o.w_fmt * torch.tensor(fits)
        return rewards


def advantages_of(rewards: Tensor) -> Tensor:
    """(prompts, answers) -> the same; 0 where all answers to a prompt have the same reward."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, correction=0, keepdim=True) + 1e-6)


def policy_losses(ratio: Tensor, advantages: Tensor, eps_low: float = 0.2, eps_high: float = 0.28) -> Tensor:
    """- min(rho A, clip(rho) A) of each token; at rho = 1 its gradient is REINFORCE's, - A grad log pi."""
    import torch

    return -torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)


def start_distances(now: Tensor, start: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log ref - log pi of each token: >= 0, an estimate of KL(pi || ref) from pi's samples."""
    apart = start.detach() - now
    return apart.exp() - apart - 1


def aggregated(values: Tensor, counts: Tensor, kept: Tensor, how: str = "token", many: float | None = None) -> Tensor:
    """The mean of token values, 0 if none is kept.

    Args:
        values, kept: (tokens,), answer after answer; counts: (answers,) tokens of each.
        how: "token" over all tokens, "sequence" within each answer and then over answers with kept tokens.
        many: tokens or answers that the mean is over; those here if None.
    """
    from kdhub_lm.log_probs import per_row

    values = values * kept
    if how == "token":
        return values.sum() / (many or kept.sum().clamp_min(1))
    sizes = per_row(kept.to(values.dtype), counts)
    return (per_row(values, counts) / sizes.clamp_min(1)).sum() / (many or (sizes > 0).sum().clamp_min(1))
