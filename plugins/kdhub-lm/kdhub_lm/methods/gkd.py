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

from kdhub_tasks.language.generation import Generation
from kdhub_tasks.losses import ClassifierOptions, positions_in
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals


class Gkd(ObjectiveMethod):
    class Options(ClassifierOptions):
        epochs: float = Field(3.0, gt=0, description="passes over the training rows")
        lmbda: float = Field(0.5, ge=0, le=1, description="probability that a batch has the student's own responses")
        beta: float = Field(
            0.5, ge=0, le=1, description="the teacher's weight in the mixture: 0 is KL(p||q), 1 is KL(q||p)"
        )
        temperature: float = Field(1.0, gt=0, description="temperature of both sides' logits in the loss")
        scale_t2: bool = Field(True, description="multiply the divergence by the squared temperature")
        max_new_tokens: int = Field(128, ge=1, description="most tokens of a sample")
        sampling_temperature: float = Field(0.9, ge=0, description="of samples; 0 takes the most probable token")
        top_p: float = Field(1.0, gt=0, le=1, description="sample from the top tokens with this total probability")
        sample_after: float = Field(0.0, ge=0, lt=1, description="share of the steps before sampling starts")
        seq_kd: bool = Field(False, description="replace the data's responses by the teacher's answers")

    options: Options
    tiny_recipe = {"options": {"max_new_tokens": 4}}

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self.done = 0.0  # share of the steps

    @property
    def samples(self) -> Generation:
        o = self.options
        return Generation(max_new_tokens=o.max_new_tokens, temperature=o.sampling_temperature, top_p=o.top_p)

    def rows(self, run: RunContext) -> Rows:
        from kdhub_lm.methods.seqkd import answered_rows

        return answered_rows(run, self.samples, self.settings()) if self.options.seq_kd else super().rows(run)

    def adapt(self, student: Any, teacher: Any) -> None:
        self.student = student

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        from kdhub_lm.on_policy import responded

        coin = torch.rand((), generator=generator).item()
        seed = torch.randint(2**62, (), generator=generator).item()
        if coin >= self.options.lmbda or self.done < self.options.sample_after:
            return batch
        return responded(batch, self.student, self.samples, seed)

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

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        self.done = (progress.step + 1) / progress.steps

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
