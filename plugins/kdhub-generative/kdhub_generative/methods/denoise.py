"""A diffusion, trained on pictures (arXiv:2006.11239; predictions of v arXiv:2202.00512): the teachers of this family,
and the baseline without one.

    L = E |net(alpha_t x_0 + sigma_t e, t) - target|^2        e ~ N(0, 1), t ~ U(0, 1) up to the start of sampling

with the target that the network predicts: e, x_0, or v = alpha_t e - sigma_t x_0. Squares are averaged over pixels and
rows, without a weight. A model with conditions is shown nothing in place of one in a tenth of the rows, for guidance
(arXiv:2207.12598). The student is the moving average of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.errors import CompatibilityError, DataError
from kdhub.method import Progress
from kdhub_generative.methods.averaged import Averaged, DrawingOptions, drawn_anew, row_mean

if TYPE_CHECKING:
    import torch

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class Denoise(Averaged):
    """A network learns to predict what noise hid."""

    class Options(DrawingOptions):
        drop_condition: float = Field(
            0.1,
            ge=0,
            lt=1,
            description="share of rows whose condition is hidden, where the model knows that of nothing",
        )

    options: Options
    tiny_recipe = {
        "student": "denoiser:width=16,blocks=1",
        "data": {"train": [{"source": "digits", "split": "train", "limit": 64}]},
    }

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if student.one_call:
            raise CompatibilityError(
                "denoise trains models that draw in many steps, and the student is a one-call model",
                hint="take a fresh one, --student denoiser: or --student unet:",
            )

    def rows(self, run: RunContext) -> Rows:
        """
        Raises:
            DataError: they are seeds.
        """
        rows = super().rows(run)
        if "image" not in rows.table.column_names:
            raise DataError("denoise learns from pictures, and the training rows are seeds", hint="--data digits")
        return rows

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        process, picture = self._model.process, batch["picture"]
        draws, e = drawn_anew(batch["seed"], tuple(picture.shape[1:]), generator, 2)
        t = draws[:, 0] * process.start
        batch |= {"x": process.noised(picture, e, t), "t": t, "noise": e}
        if "null" in batch:
            hidden = (draws[:, 1] < self.options.drop_condition).reshape(-1, *[1] * (batch["null"].dim() - 1))
            batch["condition"] = torch.where(hidden, batch["null"], batch["condition"])
        return batch

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        model = self._model
        target = model.process.target(model.module.prediction, batch["picture"], batch["noise"], batch["t"])
        return {"denoising": row_mean((student.output - target).square())}
