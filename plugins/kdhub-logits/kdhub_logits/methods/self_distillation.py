"""Self-distillation with ground-truth targets (Borup and Andersen, arXiv:2102.13088).

One and the same model class is fitted again and again; step tau trains on alpha times the true targets and 1 - alpha
times the predictions of step tau - 1.

    krr   kernel ridge regression: every step, the limit of infinitely many, and the alpha that is best on validation
          rows come in closed form from one eigendecomposition. No teacher.
    nn    a network, one step a run: the teacher is the student of the run before (`teacher: recipe:...`), and without
          a teacher it is the first step.
          alpha MSE(softmax(s), onehot) + (1 - alpha) MSE(softmax(s), softmax(t)) + reg_coef sum over weights of |w|_2

Steps are counted from 1, the first fit; alpha means nothing there. lambda is not multiplied by the number of rows.
Targets are one-hot minus 1/C, which is added again to the scores: shrinkage must not favour a class. The best alpha is
that of arXiv:2102.13088's abstract, derived anew; for networks it is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from kdhub_tasks.losses import ClassifierOptions, labelled_in, positions_in
from pydantic import Field

from kdhub.errors import CompatibilityError, UsageError
from kdhub.method import ObjectiveMethod, Progress, RunContext

if TYPE_CHECKING:
    import torch

    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

ROWS_LIMIT = 20_000
"""Rows of a kernel matrix that is decomposed: 3.2 GB, and minutes."""

Share = Annotated[float, Field(ge=0, le=1)]


class SelfDistillation(ObjectiveMethod):
    """A model of the same kind again and again, on true targets and on its predecessor's predictions."""

    class Options(ClassifierOptions):
        backend: Literal["krr", "nn"] = Field("krr", description="kernel ridge regression, or a network")
        steps: Annotated[int, Field(ge=1)] | Literal["inf"] = Field(
            5, description="fits in all; inf with one alpha above 0 (krr)"
        )
        alpha: Share | list[Share] | Literal["optimal"] = Field(
            "optimal",
            description="weight of the true targets: one, a list from step 2 on, or the best on validation",
        )
        clip_alpha: bool = Field(True, description="keep the best alpha between 0 and 1")
        lam: float = Field(0.1, gt=0, description="lambda, the ridge (krr)")
        kernel: Literal["rbf", "linear"] = Field("rbf", description="rbf is exp(-gamma squared distance) (krr)")
        gamma: float | None = Field(None, gt=0, description="of the RBF kernel; 1 / number of features if unset (krr)")
        reg_coef: float = Field(1e-4, ge=0, description="weight of the norms of the network's weights (nn)")

    options: Options
    tiny_recipe = {"options": {"backend": "nn", "alpha": 0.5}}

    def distill(self, run: RunContext) -> Student:
        if self.options.backend == "nn":
            if isinstance(self.options.alpha, str | list):
                raise UsageError(
                    "with backend nn each run is one step, and alpha is one number", hint="--set alpha=0.35"
                )
            return run.fit(self, run.student)
        return self._kernel(run)

    # -- kernel ridge regression ------------------------------------------------------------------------------

    def _kernel(self, run: RunContext) -> Student:
        """Fit all steps. The first one is measured as the start.

        Raises:
            UsageError: options that do not fit together, or no validation rows for the best alpha.
            CompatibilityError: a student that is no kernel machine.
        """
        import torch
        from kdhub_tasks.classification.model import NetworkClassifier

        from kdhub_logits.kernel import KernelRidge

        o = self.options
        steps = check_steps(o.steps, o.alpha)
        if not isinstance(getattr(run.student, "module", None), KernelRidge):
            raise CompatibilityError("backend krr makes a kernel machine", hint="--student kernel, or --set backend=nn")
        x, y = self._arrays(run, run.rows("train"))
        validation = None
        if o.alpha == "optimal" and steps > 1:
            if not run.has_rows("validation"):
                raise UsageError(
                    "the best alpha is that of validation rows, and the recipe has none",
                    hint="data.validation in the recipe, or a number: --set alpha=0.35",
                )
            validation = self._arrays(run, run.rows("validation"))
        start = run.student
        config = start.config | {"rows": len(x), "kernel": o.kernel, "gamma": o.gamma or 1 / x.shape[1]}

        def machine(coefficients: np.ndarray) -> NetworkClassifier:
            made = NetworkClassifier(start.task, config, start.start)
            made.module.support.copy_(torch.from_numpy(x))
            with torch.no_grad():
                made.module.coefficients.copy_(torch.from_numpy(coefficients))
            made.module.eval()
            return made

        with torch.no_grad():
            empty = machine(np.zeros_like(y))
            kernel = empty.module.similarity(torch.from_numpy(x)).numpy()
            ridge = KernelSteps(kernel, y, o.lam)
            if validation is not None:
                against = empty.module.similarity(torch.from_numpy(validation[0])).numpy()
                validation = against, validation[1]
        if o.steps == "inf":
            fits = [ridge.step(1, 0.0), ridge.limit(o.alpha)]
        else:
            fits = ridge.fit(steps, o.alpha, validation, clip=o.clip_alpha)
        for fit in fits:
            run.log(
                step=fit.step, alpha=fit.alpha, best_alpha=fit.best, train_mse=float(np.square(fit.fitted - y).mean())
            )
        run.mark_start(machine(fits[0].coefficients))
        return machine(fits[-1].coefficients)

    def _arrays(self, run: RunContext, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (n, d) and centred one-hot targets (n, classes) of the rows that have a label."""
        examples = [e for e in rows[np.arange(len(rows))] if e["label"] >= 0]
        if not examples:
            raise UsageError("no row has a label")
        if len(examples) > ROWS_LIMIT:
            raise UsageError(
                f"{len(examples)} rows are too many for a kernel matrix; {ROWS_LIMIT} are the most",
                hint="limit the rows, or use backend nn",
            )
        x = run.student.collate(examples)["x"].flatten(1).double().numpy()
        classes = len(run.student.classes)
        return x, np.eye(classes)[[e["label"] for e in examples]] - 1 / classes

    # -- networks ---------------------------------------------------------------------------------------------

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        return ("logits",) if teacher is not None else ()

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        self._weights = list(student.module.parameters())

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.functional import one_hot

        o, labels = self.options, batch["labels"]
        p = torch.softmax(student.logits.float(), -1)
        truth = (p - one_hot(labels.clamp_min(0), p.shape[-1])).square().mean(-1)
        alpha = o.alpha if "logits" in teacher else 1.0
        terms = {"labels": alpha * truth.masked_fill(labels < 0, 0).sum() / labelled_in(batch)}
        if "logits" in teacher:
            apart = (p - torch.softmax(teacher.logits.float(), -1)).square().mean(-1)
            terms["teacher"] = (1 - alpha) * apart.sum() / positions_in(batch)
        if o.reg_coef:
            terms["weights"] = o.reg_coef * sum(w.norm() for w in self._weights)
        return terms


def check_steps(steps: int | str, alpha: float | Sequence[float] | str) -> int:
    """The number of fits, 2 for the limit.

    Raises:
        UsageError: options that mean nothing.
    """
    numbers = [alpha] if isinstance(alpha, int | float) else [] if alpha == "optimal" else list(alpha)
    if any(not 0 <= a <= 1 for a in numbers):
        raise UsageError(f"alpha is from 0 to 1, not {alpha}")
    if steps == "inf":
        if not isinstance(alpha, int | float) or alpha == 0:
            raise UsageError(
                "infinitely many steps need one alpha above 0; without true targets they end in the zero function",
                hint="--set alpha=0.35",
            )
        return 2
    if steps < 1:
        raise UsageError(f"steps is at least 1, not {steps}")
    if isinstance(alpha, list) and len(alpha) != steps - 1:
        raise UsageError(f"{steps} steps need {steps - 1} values of alpha, for steps 2 to {steps}, not {len(alpha)}")
    return steps


@dataclass(frozen=True)
class Fit:
    """One step.

    Attributes:
        step: from 1.
        alpha: weight of the true targets; 1 at the first step.
        best: the best alpha before it was clipped, where it was asked for.
        coefficients: (n, m); predictions are k(x) @ coefficients.
        fitted: (n, m), predictions of the training rows.
    """

    step: int
    alpha: float
    best: float | None
    coefficients: np.ndarray
    fitted: np.ndarray


class KernelSteps:
    """All steps of one kernel ridge problem, in the eigenbasis of its kernel.

    Args:
        kernel: K, (n, n), symmetric and positive semi-definite.
        targets: y, (n, m).
        lam: lambda > 0; a fit is K (K + lambda I)^-1 z.
    """

    def __init__(self, kernel: np.ndarray, targets: np.ndarray, lam: float):
        values, self.basis = np.linalg.eigh((kernel + kernel.T) / 2)
        self.values, self.lam = values.clip(0), lam
        self.shrinkage = self.values / (self.values + lam)
        self.targets = self.basis.T @ targets

    def _fit(self, step: int, alpha: float, mixed: np.ndarray, best: float | None = None) -> Fit:
        """From the mixed targets of a step, in the eigenbasis."""
        coefficients = self.basis @ (mixed / (self.values + self.lam)[:, None])
        return Fit(step, alpha, best, coefficients, self.basis @ (self.shrinkage[:, None] * mixed))

    def step(self, tau: int, alpha: float) -> Fit:
        """Step tau with one alpha throughout, without the steps before it:
        f(x) = k(x) R [alpha sum_{i < tau - 1} (1 - alpha)^i A^i + (1 - alpha)^(tau - 1) A^(tau - 1)] y."""
        r = (1 - alpha) * self.shrinkage
        last = r ** (tau - 1)
        mixed = (alpha * (1 - last) / (1 - r) + last)[:, None] * self.targets
        return self._fit(tau, alpha if tau > 1 else 1.0, mixed)

    def limit(self, alpha: float) -> Fit:
        """Infinitely many steps: the first problem with lambda / alpha in place of lambda; alpha > 0."""
        mixed = ((self.values + self.lam) / (self.values + self.lam / alpha))[:, None] * self.targets
        return self._fit(-1, alpha, mixed)

    def fit(
        self,
        steps: int,
        alpha: float | Sequence[float] | str,
        validation: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        clip: bool = True,
    ) -> list[Fit]:
        """Steps 1 to `steps`.

        Args:
            alpha: one for all, one for each step from 2 on, or "optimal".
            validation: (kernel against the training rows (v, n), targets (v, m)), for "optimal".
            clip: keep the best alpha in [0, 1].
        """
        if isinstance(alpha, int | float):
            return [self.step(tau, alpha) for tau in range(1, steps + 1)]
        fits = [self._fit(1, 1.0, self.targets)]
        fitted = self.shrinkage[:, None] * self.targets  # of the step before, in the eigenbasis
        best = None
        for tau in range(2, steps + 1):
            if alpha == "optimal":
                best = self._best(fitted, validation, best)
                a = float(np.clip(best, 0, 1)) if clip else best
            else:
                a = alpha[tau - 2]
            mixed = a * self.targets + (1 - a) * fitted
            fits.append(self._fit(tau, a, mixed, best))
            fitted = self.shrinkage[:, None] * mixed
        return fits

    def _best(self, fitted: np.ndarray, validation: tuple[np.ndarray, np.ndarray], before: float | None) -> float:
        """<D, y_v - h> / <D, D>, where g and h are the fits to the true targets and to the predictions, D = g - h."""
        against = validation[0] @ self.basis / (self.values + self.lam)
        g, h = against @ self.targets, against @ fitted
        d = g - h
        size = float((d * d).sum())
        if size <= 1e-24 * max(1.0, float((g * g).sum())):
            return 1.0 if before is None else before
        return float((d * (validation[1] - h)).sum()) / size
