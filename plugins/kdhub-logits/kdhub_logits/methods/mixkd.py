"""Mixup inside distillation, with each row's own temperature (MIX-KD, arXiv:2211.03946).

The teacher sees the same mixed inputs as the student, so it runs inside training. With lambda_i ~ Beta(a, a) and two
permutations u, v of the batch,

    x_i = lambda_i x[u_i] + (1 - lambda_i) x[v_i]      Y_i likewise of the one-hot labels
    L = gamma mean CE(Y, q) + alpha mean KL(p || q)    p, q = softmax(z / std(z)), teacher's and student's

where std is that of one row's logits over the classes. Only a share of the rows is mixed; the others are clean.

Departures from the public code, which is not followed where its text and its doing differ: `mix_fraction` is the share
that is mixed, and rows are chosen without replacement; mixed inputs always meet mixed labels. Rows are mixed with those
of their own micro-batch; the means are over the whole optimiser step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kdhub_tasks.losses import ClassifierOptions, positions_in
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress, step_count

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class MixKd(ObjectiveMethod):
    """Soft targets on partly mixed batches; the temperature of a row is the deviation of its logits."""

    class Options(ClassifierOptions):
        beta_a: float = Field(1.0, gt=0, description="lambda is drawn from Beta(a, a)")
        mode: Literal["pmu", "fmu", "none"] = Field("pmu", description="mix a share of the rows, all of them, or none")
        mix_fraction: float = Field(0.1, ge=0, le=1, description="share of a batch that is mixed (mode pmu)")
        temperature: Annotated[float, Field(gt=0)] | Literal["std"] = Field(
            "std", description="temperature of both sides; std: each row's own"
        )
        gamma: float = Field(0.1, ge=0, description="weight of the labels")
        alpha: float = Field(0.9, ge=0, description="weight of the teacher")
        legacy_sampling: bool = Field(False, description="choose clean rows with replacement, as public code does")

    options: Options

    @property
    def batchwise(self) -> str:
        return "" if self.options.mode == "none" else "rows are mixed with others of their batch"

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        """With `std`, the student's logits are divided by their deviation from here on, also when it is used.

        Raises:
            CompatibilityError: two classes, where logits divided by their deviation are all alike.
        """
        self.classes = len(student.classes)
        if self.options.temperature == "std":
            if self.classes == 2:
                raise CompatibilityError(
                    "with two classes every row's logits divided by their deviation are the same",
                    hint="--set temperature=4",
                )
            student.wrap("rescaled")

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import numpy as np
        import torch
        from torch.nn.functional import one_hot

        o, x, labels = self.options, batch["x"], batch["labels"]
        targets = one_hot(labels.clamp_min(0), self.classes).to(x.dtype) * (labels >= 0).unsqueeze(-1)
        if o.mode == "none":
            return {**batch, "targets": targets}
        drawn = torch.randint(2**62, (1,), generator=generator).item()
        # Accumulated batches are given one state of the generator, and should not be mixed alike.
        rng = np.random.default_rng([drawn, *batch["keys"].tolist()] if o.accumulate > 1 else drawn)
        first, second, share = draw(
            len(x), o.beta_a, 1.0 if o.mode == "fmu" else o.mix_fraction, rng, o.legacy_sampling
        )
        share = torch.as_tensor(share, dtype=x.dtype, device=x.device)
        first, second = (torch.as_tensor(i, device=x.device) for i in (first, second))
        return {**batch, "x": mix(x, first, second, share), "targets": mix(targets, first, second, share)}

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> dict[str, int]:
        """`targets`, rows that have one from labels."""
        return {"targets": int((batch["targets"].sum(-1) > 0).sum())}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o = self.options
        counts = step_count(batch, "targets"), positions_in(batch)
        labels, apart = mixed_loss(student.logits, teacher.logits.float(), batch["targets"], o.temperature, *counts)
        return {"labels": o.gamma * labels, "teacher": o.alpha * apart}


def draw(
    n: int, a: float, fraction: float, rng: np.random.Generator, with_replacement: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two permutations of a batch, and the share of the first in each row: 1 for clean rows, Beta(a, a) for the others.

    Args:
        fraction: of the rows that is mixed, exactly round(fraction n).
        with_replacement: clean rows are drawn int((1 - fraction) n) times with replacement: fewer are clean.
    """
    import numpy as np

    share = rng.beta(a, a, n)
    if with_replacement:
        share[rng.integers(0, n, int((1 - fraction) * n))] = 1.0
    else:
        share[rng.permutation(n)[round(fraction * n) :]] = 1.0
    return rng.permutation(n), rng.permutation(n), np.asarray(share)


def mix(x: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """share x[first] + (1 - share) x[second], row by row."""
    share = share.reshape(-1, *[1] * (x.dim() - 1))
    return share * x[first] + (1 - share) * x[second]


def mixed_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    temperature: float | str = "std",
    labelled: float | None = None,
    rows: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy with soft targets, and the mean KL of teacher and student.

    With `std` both are of rescaled logits, and no factor stands before the KL; with a number the cross-entropy is at
    temperature 1 and the KL is multiplied by the number's square. Rows whose targets are all 0 have no label. Means are
    over `labelled` and `rows`, those here if None.
    """
    from kdhub_tasks.divergences import forward_kl, log_probabilities

    from kdhub_logits.wrappers import rescaled

    if temperature == "std":
        s, factor = rescaled(student.float()), 1.0
        apart = forward_kl(s, rescaled(teacher.float()))
    else:
        s, factor = student, float(temperature) ** 2
        apart = forward_kl(student / temperature, teacher / temperature)
    each = -(targets * log_probabilities(s)).sum(-1)
    known = (targets.sum(-1) > 0).sum().clamp_min(1)  # of the others the targets, and so the values, are 0
    return each.sum() / (labelled or known), factor * apart.sum() / (rows or len(apart))
