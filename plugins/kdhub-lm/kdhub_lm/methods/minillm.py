"""MiniLLM: reverse KL of whole responses, by policy gradient (arXiv:2306.08543).

    r_t = log p(y_t) - log q(y_t)            for a response sampled from the student q, p the teacher
    R_t = the reward after token t: the mean of r_{t+1}, ..., r_T, discounted by gamma
    L   = mean over tokens of  single_weight w_t KL(q_t || p_t)  -  policy_weight w_t R_t log q(y_t)

With gamma = 1, and sums instead of means, the gradient of KL(q || p) over responses is that of these two terms: the
cost of a token itself is exact, that of what it leads to is estimated from the sample. Length normalisation, on by
default, keeps long responses from counting more.

Tokens are drawn from (1 - teacher_share) q + teacher_share p, so that a weak student does not see its own noise only,
and w_t = q(y_t) / that mixture, at most 1 / (1 - teacher_share). Like the paper we omit the weights of earlier tokens:
exact for one token, less variance and some bias for more. With teacher_share = 0, w is 1.

TRL's form is `gamma: 0, immediate: true, normalised: false, teacher_share: 0`: R_t is r_t alone, whose gradient the
single step has exactly. Departures from the paper: one optimiser step per sample, so a clipped ratio would always be 1;
no pre-training term. Start from a trained student.

A teacher behind a server (`openai:` with `signals: {keep: top-K}`, see `gkd`) gives log p(y_t) exactly and the KL by
its K most probable tokens and the rest; it cannot be drawn from token by token, so `teacher_share` must be 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub_tasks.language.generation import Generation
from kdhub_tasks.losses import ClassifierOptions, cross_entropies, positions_in
from pydantic import Field

from kdhub.errors import UsageError
from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class MiniLlm(ObjectiveMethod):
    class Options(ClassifierOptions):
        epochs: float = Field(3.0, gt=0, description="passes over the training rows")
        policy_weight: float = Field(1.0, ge=0, description="weight of the long-range term (a1)")
        single_weight: float = Field(1.0, ge=0, description="weight of the single-step term, KL(q||p) (a2)")
        gamma: float = Field(1.0, ge=0, le=1, description="discount of later tokens")
        normalised: bool = Field(True, description="length normalisation: the mean of later rewards instead of the sum")
        immediate: bool = Field(False, description="include a token's own reward in R_t")
        teacher_share: float = Field(0.2, ge=0, lt=1, description="the teacher's share of the sampling mixture")
        max_new_tokens: int = Field(128, ge=1, description="most tokens of a sample")

    options: Options
    tiny_recipe = {"options": {"max_new_tokens": 4}}

    @property
    def partial_signals(self) -> tuple[str, ...]:
        return ("top",)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if teacher.module is None and self.options.teacher_share:
            raise UsageError(
                "minillm draws tokens from a mixture with its teacher, which a server cannot "
                f"(teacher_share={self.options.teacher_share:g})",
                hint="set teacher_share: 0",
            )

    def adapt(self, student: Any, teacher: Any) -> None:
        self.student, self.teacher = student, teacher

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        from kdhub_lm.on_policy import responded

        o, seed = self.options, torch.randint(2**62, (), generator=generator).item()
        how = Generation(max_new_tokens=o.max_new_tokens, temperature=1.0)
        return responded(batch, self.student, how, seed, (self.teacher, o.teacher_share) if o.teacher_share else None)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        import torch
        from kdhub_tasks.divergences import reverse_kl
        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import divergence

        from kdhub_lm.log_probs import label_log_probs

        o, labels, each = self.options, batch["labels"], 1 / positions_in(batch)
        with torch.no_grad():
            log_q, log_p = label_log_probs(student, labels), label_log_probs(teacher, labels)
            ahead = rewards_to_go(log_p - log_q, batch["counts"], o.gamma, o.normalised, o.immediate)
            weights = each * importance(log_q, log_p, o.teacher_share)

        def sums(s: Tensor, z: Tensor, y: Tensor, weights: Tensor, ahead: Tensor) -> dict[str, Tensor]:
            return {
                "single": o.single_weight * (weights * divergence(reverse_kl, s, z)).sum(),
                "policy": o.policy_weight * (weights * ahead * cross_entropies(s, y)).sum(),
            }

        return over_positions(sums, student, teacher, labels, weights, ahead)


def rewards_to_go(
    rewards: Tensor, counts: Tensor, gamma: float = 1.0, normalised: bool = True, immediate: bool = False
) -> Tensor:
    """R_t = sum_{t'} gamma^(t' - first) r_{t'} over the tokens t' from `first` to the end of a response.

    Args:
        rewards: (positions,), one response after the other; counts: (responses,) positions of each.
        normalised: divide by the sum of the discounts (a mean).
        immediate: `first` is t; otherwise t + 1, and the last token of a response gets 0.

    Returns:
        (positions,).
    """
    import torch

    longest = int(counts.max()) if len(counts) else 0
    real = torch.arange(longest, device=rewards.device) < counts[:, None]
    table = rewards.new_zeros(real.shape).masked_scatter(real, rewards)
    sums, weights = torch.zeros_like(table), torch.zeros_like(table)
    ahead = discounts = rewards.new_zeros(len(counts))
    for t in reversed(range(longest)):
        here = (table[:, t] + gamma * ahead, (1 + gamma * discounts) * real[:, t])
        sums[:, t], weights[:, t] = here if immediate else (ahead, discounts)
        ahead, discounts = here
    return (sums / weights.clamp_min(1) if normalised else sums)[real]


def importance(log_q: Tensor, log_p: Tensor, share: float) -> Tensor:
    """q / ((1 - share) q + share p) of each token, in (0, 1 / (1 - share)]; log-probabilities (positions,)."""
    return 1 / (1 - share + share * (log_p - log_q).exp())
