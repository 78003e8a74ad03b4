"""GKD: generalised knowledge distillation on the student's own samples (arXiv:2306.13649).

    each batch: with probability lmbda the responses are samples of the student, else those of the data
    L = mean over positions of JSD_beta(p, q),   beta the teacher's weight in the mixture

There is no gradient through sampling. `temperature` is that of the loss, `sampling_temperature` that of the samples:
public code has a temperature for samples only, and the loss at 1. With `seq_kd` the data's responses are the teacher's.

An untrained student writes noise, on which the teacher has nothing to teach: start from one that `supervised` or `kd`
has trained (`student: recipe:NAME`), or delay sampling by a share of the steps (`sample_after`). The prompt of a plain
text is its begin token; `continuations:DATA` makes prompts of texts.

Departure: the sample of a row depends on the seed and the row only, so the number of ranks does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kdhub_tasks.losses import positions_in
from pydantic import Field

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

    options: Options

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.divergences import jensen_shannon
        from kdhub_tasks.positions import over_positions
        from kdhub_tasks.sparse import divergence

        o, t = self.options, self.options.temperature
        apart, weight = partial(jensen_shannon, beta=o.beta), (t * t if o.scale_t2 else 1) / positions_in(batch)

        def sums(s: Tensor, z: Tensor) -> dict[str, Tensor]:
            return {"teacher": weight * divergence(apart, s, z, t).sum()}

        return over_positions(sums, student, teacher)
