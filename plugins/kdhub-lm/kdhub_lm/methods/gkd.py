"""GKD: generalised knowledge distillation on the student's own samples (arXiv:2306.13649).

    each batch: with probability lmbda the responses are samples of the student, else those of the data
    L = mean over positions of JSD_beta(p, q),   beta the teacher's weight in the mixture

There is no gradient through sampling. `temperature` is that of the loss, `sampling_temperature` that of the samples:
public code has a temperature for samples only, and the loss at 1. With `seq_kd` the data's responses are the teacher's.

An untrained student writes noise, on which the teacher has nothing to teach: start from one that `supervised` or `kd`
has trained (`student: recipe:NAME`), or delay sampling by a share of the steps (`sample_after`). The prompt of a plain
text is its begin token; `continuations:DATA` makes prompts of texts.

A teacher behind a server is asked in each step about what the student has just written: `openai:MODEL` with the option
`tokenizer` and `signals: {keep: top-K}`, where the server has `prompt_logprobs`. The divergence is that of K + 1 cells
then (`kdhub_tasks.sparse`): equal to the whole one where K is the vocabulary, else below it. For 0 < beta < 1 and
temperature 1 by at most ln 2 (beta p_rest + (1 - beta) q_rest), whose mean over a step is logged as `bias_bound`; for
KL there is no bound. `estimator` needs the sampled tokens' log-probabilities alone, so K = 1 is enough. Samples are the
student's, drawn in this process: a server draws none, and weights are sent to none.

Departure: the sample of a row depends on the seed and the row only, so the number of ranks does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import positions_in
from pydantic import Field, model_validator

from kdhub.method import Progress
from kdhub_lm.on_policy import OnPolicy, OnPolicyOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals


class Gkd(OnPolicy):
    class Options(OnPolicyOptions):
        beta: float = Field(
            0.5, ge=0, le=1, description="the teacher's weight in the mixture: 0 is KL(p||q), 1 is KL(q||p)"
        )
        temperature: float = Field(1.0, gt=0, description="temperature of both sides' logits in the loss")
        scale_t2: bool = Field(True, description="multiply the divergence by the squared temperature")
        estimator: Literal["k1", "k3"] | None = Field(
            None, description="estimate KL(q||p) from the sampled tokens alone; unset takes the divergence of all"
        )

        @model_validator(mode="after")
        def _fits(self) -> Any:
            exact = {"lmbda": 1.0, "sample_after": 0.0, "sampling_temperature": 1.0, "top_p": 1.0, "temperature": 1.0}
            other = {name: getattr(self, name) for name, value in exact.items() if getattr(self, name) != value}
            if self.estimator and other:
                name, value = next(iter(other.items()))
                raise ValueError(
                    f"{name} must be {exact[name]:g} where the student's own samples are to estimate the divergence "
                    f"(estimator={self.estimator}, {name}={value:g})"
                )
            return self

    options: Options

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self._bound = [0.0, 0]  # of the step under way: sum over positions, and how many
        self.bias_bound: float | None = None

    @property
    def partial_signals(self) -> tuple[str, ...]:
        return ("top",)

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import jensen_shannon
        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import Top, divergence

        from kdhub_lm.log_probs import label_log_probs

        o, t = self.options, self.options.temperature
        apart, weight = partial(jensen_shannon, beta=o.beta), (t * t if o.scale_t2 else 1) / positions_in(batch)
        if o.estimator:
            log_q = label_log_probs(student, batch["labels"])
            log_p = label_log_probs(teacher, batch["labels"])
            return {"teacher": weight * estimated(o.estimator, log_q, log_p).sum()}

        def sums(s: Tensor, z: Any) -> dict[str, Tensor]:
            if isinstance(z, Top) and t == 1 and 0 < o.beta < 1:
                self._bound[0] += float(z.left_out(s.detach(), o.beta).sum()) * math.log(2)
                self._bound[1] += len(z)
            return {"teacher": weight * divergence(apart, s, z, t).sum()}

        return over_positions(sums, student, teacher)

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        super().stepped(terms, progress)
        total, many = self._bound
        self.bias_bound, self._bound = (total / many if many else None), [0.0, 0]

    def state(self) -> dict[str, Any]:
        bound = {} if self.bias_bound is None else {"bias_bound": self.bias_bound}
        return {**super().state(), **bound}


def estimated(estimator: str, log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q||p) from tokens that were drawn from q, nats, an unbiased value for each: k1 is log q/p, k3 is
    p/q - 1 - log p/q, which is >= 0 and spreads less.

    The gradient of k1 is that of the mean over what is drawn, k1 grad log q, so on average that of KL(q||p) at each
    position. That of k3 is its own, (1 - p/q) grad log q: on average that of KL(p||q), whose values it does not have.

    Args:
        log_q, log_p: (positions,) of the drawn tokens, of student and teacher.
    """
    far = log_q - log_p
    if estimator == "k3":
        return (-far).exp() - 1 + far
    scored = far.detach() * log_q
    return far.detach() + scored - scored.detach()
