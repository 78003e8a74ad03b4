"""BOOT: a diffusion to one call, from noise alone (arXiv:2306.05544).

The student g(e, t) is given pure noise e and t, and learns where the teacher's deterministic trajectory from that noise
is at t, as the signal y_t = (x_t - sigma_t e) / alpha_t, the trajectory without the noise that is known. Each
prediction is taught by one step of the teacher from the student's own prediction at a noisier time:

    t ~ U(t_min, t_max)    s = max(t - delta, 0)    y = sg g(e, t)    x = alpha_t y + sigma_t e
    target = sg [y + (1 - r) (f(x, t) - y)]         r = sigma_s alpha_t / (alpha_s sigma_t)
    L = E w_t |g(e, s) - target|^2 + beta E |g(e, t_max) - sg f(e, t_max)|^2        squares averaged over pixels

f is the teacher's picture. g(e, 0) is the student's, in one call. No data is opened, and no trajectory is run: the
teacher is asked once a step, once more for the boundary (`boundary_weight`), and once more for `target_solver: heun`,
which takes the mean of the pictures at both ends. With guidance f is f(0) + w (f(c) - f(0)), in one call of twice the
rows.

Noise is drawn anew in each step for each row, by the row's seed and the step; the rows of `data` say no more than
which conditions there are. t is uniform over the whole range from the first step to the last.

The student is the teacher's network (`student: signal`), initialised with its weights, and read at the constants of
t_max, whatever t it is asked at: of a v-prediction g(e, t) = alpha(t_max) e - sigma(t_max) v(e, t), so that the
boundary term begins at 0. Read at t itself, g(e, 0) would be e whatever the weights. A network that predicts epsilon
gets a last layer of its own for pictures, since 1 / alpha(t_max) would amplify its errors.

Reconstructed, as the paper's full text was not available: `step_size`, `boundary_weight`, uniform weights as the
default (`inverse_step`, 1 / (1 - r)^2, is the other reading), the readout of v and epsilon networks, and how guidance
is drawn. The average of the weights is for drawing alone, never for targets. Calling a student again on its own noised
picture is not defined, and not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from kdhub.errors import CompatibilityError
from kdhub.method import Progress
from kdhub_generative.methods.averaged import Averaged, DrawingOptions, drawn_anew, row_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

Scale = Annotated[float, Field(ge=0, le=100)]
KEPT = 0.995
"""Share of a picture's numbers that dynamic clipping leaves in range (arXiv:2205.11487)."""


class Boot(Averaged):
    """The student learns the teacher's trajectories from its own predictions at noisier times."""

    class Options(DrawingOptions):
        step_size: float = Field(0.04, ge=0.005, le=0.2, description="delta, the length of the teacher's step in t")
        t_min: float | None = Field(None, gt=0, lt=1, description="least t that a step begins at; 0.02 or delta / 2")
        t_max: float = Field(0.99, gt=0, lt=1, description="largest t that a step begins at")
        boundary_weight: float = Field(0.5, ge=0, description="beta, weight of the teacher's picture of pure noise")
        loss_weighting: Literal["uniform", "inverse_step"] = Field(
            "uniform", description="weight of a step: 1, or 1 / (1 - r)^2, which makes it the residual of the equation"
        )
        target_solver: Literal["ddim", "heun"] = Field(
            "ddim", description="the teacher's step: first order, or second with one call more"
        )
        guidance_scale: Scale | tuple[Scale, Scale] = Field(
            1.0, description="guidance of the pictures, from 0; two numbers: drawn between them, and set when drawing"
        )
        clip_signal: Literal["none", "range", "dynamic"] = Field(
            "none", description="the teacher's picture, guided, cut to -1..1, or to its own 99.5 % and scaled back"
        )

        @property
        def least(self) -> float:
            return min(0.02, self.step_size / 2) if self.t_min is None else self.t_min

        @model_validator(mode="after")
        def _fits(self) -> Any:
            if self.least >= self.step_size:
                raise ValueError(
                    "t_min must be below step_size, or t = 0, where pictures are read, is never trained "
                    f"(t_min={self.least:g}, step_size={self.step_size:g})"
                )
            if self.least >= self.t_max:
                raise ValueError(f"t_min must be below t_max (t_min={self.least:g}, t_max={self.t_max:g})")
            scales = self.guidance_scale if isinstance(self.guidance_scale, tuple) else (self.guidance_scale,) * 2
            if scales[0] > scales[1]:
                raise ValueError(
                    f"guidance_scale must have the smaller number first (guidance_scale={self.guidance_scale})"
                )
            return self

        @property
        def guided(self) -> bool:
            return self.guidance_scale != 1

    options: Options
    tiny_recipe = {"student": "signal"}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """
        Raises:
            CompatibilityError: the student is no one-call model, or the teacher is one; they have other pictures, other
                conditions or other noise; guidance without a condition of nothing.
        """
        if not student.one_call:
            raise CompatibilityError(
                "boot trains a one-call model, and the student draws in steps", hint="--student signal"
            )
        model = teacher.model
        if model.one_call:
            raise CompatibilityError("boot needs a teacher that draws in many steps, and this is a one-call model")
        if why := mismatched(student, model):
            raise CompatibilityError(why, hint="--student signal takes the teacher's own")
        if self.options.guided and not model.has_null:
            raise CompatibilityError(
                f"guidance_scale={self.options.guidance_scale} needs a teacher that knows conditions and nothing",
                hint="train it with denoise on rows with labels: student: {source: ..., conditional: true}",
            )
        start = model.process.start
        if self.options.t_max > start:
            raise CompatibilityError(
                f"t_max must be at most the process's start (t_max={self.options.t_max}, {start=})"
            )

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        super().adapt(student, teacher)
        student.module.readout = self.options.t_max
        scale = self.options.guidance_scale
        if isinstance(scale, tuple):
            student.take_guidance(*scale)
        else:
            student.guidance = scale

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Noise, t, s, r; what the student is asked, at s and then, for the boundary, at t_max; `one` has the rows
        once, with the noise as `e`."""
        import torch

        o, process = self.options, self._model.process
        draws, e = drawn_anew(batch["seed"], self._model.shape, generator, 2)
        t = o.least + draws[:, 0] * (o.t_max - o.least)
        s = (t - o.step_size).clamp(min=0)
        one = {name: batch[name] for name in ("condition", "null") if name in batch}
        if isinstance(o.guidance_scale, tuple):
            low, high = o.guidance_scale
            one["guidance"] = low + draws[:, 1] * (high - low)
        asked = {"x": e, "t": s, **{n: one[n] for n in ("condition", "guidance") if n in one}}
        if o.boundary_weight:
            asked = {name: torch.cat([value, value]) for name, value in asked.items()}
            asked["t"][len(t) :] = o.t_max
        return {**asked, "one": {**one, "e": e, "then": t, "s": s}, "ratio": process.ratio(t, s)}

    def ask(self, student: Signals, batch: Mapping[str, Any], teacher: Callable[..., Signals]) -> Signals:
        """`target` of each row, and `boundary`, the teacher's picture of its noise, where that has a weight."""
        import torch

        from kdhub.rows import Signals
        from kdhub_generative.images.model import picture_of
        from kdhub_generative.images.process import ddim_step, heun_step

        o, process, one = self.options, self._model.process, batch["one"]
        e, t, s = one["e"], one["then"], one["s"]
        scale = one.get("guidance", o.guidance_scale)

        def predict(x: Tensor, at: Tensor) -> Tensor:
            return clipped(picture_of(teacher, x, at, one, scale), o.clip_signal)

        with torch.no_grad():
            own = {"x": e, "t": t, **{n: one[n] for n in ("condition", "guidance") if n in one}}
            y = self._model.module(own).x0.float()
            f = predict(process.noised(y, e, t), t)
            if o.target_solver == "heun":
                target = heun_step(process, y, f, e, t, s, predict)
            else:
                target = ddim_step(y, f, batch["ratio"])
            given = Signals(target=target)
            if o.boundary_weight:
                given["boundary"] = predict(e, torch.full_like(t, o.t_max))
        return given

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        o, rows, given = self.options, len(teacher.target), student.x0.float()
        weights = 1.0 if o.loss_weighting == "uniform" else (1 - batch["ratio"]) ** -2
        terms = {"bootstrap": row_mean((given[:rows] - teacher.target).square(), weights)}
        if o.boundary_weight:
            terms["boundary"] = o.boundary_weight * row_mean((given[rows:] - teacher.boundary).square())
        return terms


def mismatched(student: Any, teacher: Any) -> str:
    """Why a student cannot follow a teacher's trajectories; "" where it can."""
    if student.shape != teacher.shape:
        return f"student and teacher have pictures of other shapes ({student.shape} and {teacher.shape})"
    if student.knows != teacher.knows:
        return "student and teacher have other conditions"
    mine, theirs = student.process.kept, teacher.process.kept
    if (mine is None) != (theirs is None) or (
        mine is not None and (mine.shape != theirs.shape or (mine != theirs).any())
    ):
        return "student and teacher have other schedules of noise"
    return ""


def clipped(picture: Tensor, how: str) -> Tensor:
    """A picture cut to its range: -1 to 1, or by its own largest numbers, which are scaled back to that."""
    if how == "none":
        return picture
    if how == "range":
        return picture.clamp(-1, 1)
    import torch

    most = torch.quantile(picture.flatten(1).abs().float(), KEPT, dim=1).clamp(min=1)
    most = most.reshape(-1, *[1] * (picture.dim() - 1))
    return picture.clamp(-most, most) / most
