"""TopKLD: a low-bit copy of a model learns from the original, by one divergence on what a sampler can draw and another
on the rest (arXiv:2501.06218).

    distil_ratio T^2 mean D(p, q)  +  (1 - distil_ratio) mean CE(y, q at T = 1)

with D of `kdhub_tasks.divergences.top_k_kl`: reverse KL on the teacher's K most probable classes, forward KL on the
others, both corrected so that their sum is least at q = p. The student is usually `quantized:BITS`, the teacher its own
full-precision start; nothing here depends on that.

Reconstruction: the paper's abstract and reviews say that explicit knowledge (the top K of the sampler) and implicit
knowledge (the rest) are balanced; the equation could not be read. Which divergence stands where, the correction, K and
the weights are ours. `form: naive` is the reading without the correction: it draws probability away from the top K, and
is there to be looked at.

`loss` takes the paper's baselines in the place of D: `fkl` and `rkl`, and BitDistiller's `cakld` (arXiv:2402.10631),
g KL(q || p) + (1 - g) KL(p || q) with g the teacher's mean probability of its first choice. The release reads batches
for g before training, and counts padding; here g is the mean over all real positions of the first `cakld_steps` steps,
1/2 before there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, cross_entropies, labelled_in, positions_in
from pydantic import Field, model_validator

from kdhub.errors import UsageError
from kdhub.method import ObjectiveMethod, Progress, step_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class TopKld(ObjectiveMethod):
    """Reverse KL on the teacher's top K, forward KL on the rest."""

    class Options(ClassifierOptions):
        k: int | None = Field(None, ge=0, description="classes of the top set, the sampler's top-k; .22 of all if none")
        top_p: float | None = Field(
            None, gt=0, le=1, description="instead of k: the fewest classes that have this probability, as top-p draws"
        )
        form: Literal["generalized", "naive", "renormalized"] = Field(
            "generalized", description="naive is not least where both agree, and only there to be looked at"
        )
        assignment: Literal["rev_top", "fwd_top"] = Field(
            "rev_top", description="which KL the top set has; the rest has the other"
        )
        w_explicit: float = Field(1.0, ge=0, description="weight of the top set")
        w_implicit: float = Field(1.0, ge=0, description="weight of the rest")
        loss: Literal["topkld", "fkl", "rkl", "cakld"] = Field("topkld", description="or a baseline in its place")
        cakld_steps: int = Field(10, ge=1, description="steps whose mean confidence of the teacher weighs cakld")
        distil_ratio: float = Field(1.0, ge=0, le=1, description="weight of the teacher; the rest goes to the labels")
        temperature: float = Field(1.0, gt=0, description="both sides' logits are divided by it")
        schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="learning rate after warm-up")

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.form == "renormalized" and self.assignment == "fwd_top":
                raise ValueError("assignment must be rev_top for form: renormalized (assignment=fwd_top)")
            if self.k is not None and self.top_p is not None:
                raise ValueError(f"one of k and top_p must be unset (k={self.k}, top_p={self.top_p:g})")
            if not self.w_explicit + self.w_implicit:
                raise ValueError("w_explicit or w_implicit must be above 0 (w_explicit=0, w_implicit=0)")
            return self

    options: Options

    def __init__(self, options: Any, spec: Any = None):
        super().__init__(options, spec)
        self.confidence = {"sum": 0.0, "positions": 0, "steps": 0}
        self._of_step = [0.0, 0]

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """
        Raises:
            UsageError: k above the number of classes.
        """
        classes, k = student.width("logits")[-1], self.options.k
        if self.options.loss == "topkld" and k is not None and k > classes:
            raise UsageError(
                f"options.k must be at most the number of classes or tokens (k={k}, classes={classes})",
                hint="leave it out for .22 of them, or take what your sampler draws from",
            )

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.positions import over_positions

        o, t, function = self.options, self.options.temperature, self._divergence()
        learns = o.loss == "cakld" and step_count(batch, "positions") and self.confidence["steps"] < o.cakld_steps

        def sums(s: Tensor, z: Tensor, y: Tensor) -> dict[str, Tensor]:
            if learns:
                self._of_step[0] += float(z.detach().float().softmax(-1).amax(-1).sum())
                self._of_step[1] += len(z)
            apart = function(s / t, z.float() / t)
            terms = {"teacher": o.distil_ratio * t * t * apart.sum() / positions_in(batch)}
            if o.distil_ratio < 1:
                terms["labels"] = (1 - o.distil_ratio) * cross_entropies(s, y).sum() / labelled_in(batch)
            return terms

        return over_positions(sums, student, teacher, batch["labels"])

    def _divergence(self) -> Any:
        from kdhub_tasks import divergences

        o, seen = self.options, self.confidence
        if o.loss == "topkld":
            return partial(
                divergences.top_k_kl, k=o.k, top_p=o.top_p, form=o.form, assignment=o.assignment,
                explicit=o.w_explicit, implicit=o.w_implicit,
            )  # fmt: skip
        if o.loss == "cakld":
            share = seen["sum"] / seen["positions"] if seen["positions"] else 0.5
            return partial(divergences.symmetric_kl, reverse=share)
        return divergences.forward_kl if o.loss == "fkl" else divergences.reverse_kl

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        from kdhub.ranks import of_first

        seen = self.confidence
        if self._of_step[1]:
            self._of_step = of_first(self._of_step)  # one share on all ranks
            self.confidence = {
                "sum": seen["sum"] + self._of_step[0],
                "positions": seen["positions"] + self._of_step[1],
                "steps": seen["steps"] + 1,
            }
            self._of_step = [0.0, 0]

    def state(self) -> dict[str, Any]:
        return dict(self.confidence)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.confidence = dict(state)
