"""Counting by labels alone: the baseline of `skt`, and how its teachers are made.

    labels = ||s (P - D)||^2, summed over the cells of an image, mean over images

P is the density that the student gives, D that of the points, s the scale of the student's target. Rows without a map
count nothing. Crops and flips are drawn for each row (arXiv:2003.10120, dataset.py): sides of U(0.5, 1) of the image's,
one share for both, and a flip with probability 0.2.

Departures: crops begin and end at whole cells, so that their target is exactly what lies in them. Weight decay is
AdamW's. The weights of the last step are saved, where the authors keep those that are best on validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from kdhub.errors import DataError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions
from kdhub_vision.counting.targets import STRIDE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdhub.method import RunContext
    from kdhub.rows import Rows, Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher

Positive = Annotated[float, Field(gt=0)]


class DensityOptions(TrainingOptions):
    """Defaults are those of the authors."""

    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    batch_size: int = Field(1, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
    epochs: float = Field(400.0, gt=0, description="passes over the training rows")
    weight_decay: float = Field(5e-4, ge=0, description="AdamW weight decay, not on biases and norms")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="learning rate after warm-up")
    grad_clip: float = Field(0.0, ge=0, description="clip the gradient norm here; 0 for never")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="arithmetic of forward and backward; a count is a sum over many small numbers"
    )
    sigma: Positive | Literal["adaptive"] = Field(
        4.0,
        description="of the Gaussian that a point becomes, pixels; adaptive: 0.3 of the distance to the next points",
    )
    crop: tuple[Positive, Annotated[float, Field(gt=0, le=1)]] = Field(
        (0.5, 1.0), description="share of an image's sides that is cropped, least and most; [1, 1] for whole images"
    )
    flip: float = Field(0.2, ge=0, le=1, description="probability that a crop is mirrored, left to right")
    hard_weight: float = Field(1.0, ge=0, description="factor on the term of the labels")

    @model_validator(mode="after")
    def _least_first(self) -> DensityOptions:
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"the least share of crop must not be above the most (crop={list(self.crop)})")
        return self


class Density(ObjectiveMethod):
    """
    Attributes:
        least: cells that a side of a map must have.
    """

    Options = DensityOptions
    options: DensityOptions
    least = 1

    def settings(self) -> dict[str, Any]:
        return {"sigma": self.options.sigma, "least": self.least}

    def rows(self, run: RunContext) -> Rows:
        if self.options.hard_weight and not run.task.labelled(run.table("train")):
            raise DataError(
                f"the training rows have no points or densities to learn from (hard_weight={self.options.hard_weight})",
                hint="name them: columns: {points: THEIRS}; a teacher alone teaches skt with hard_weight=0",
            )
        return super().rows(run)

    def check(self, student: Student, teacher: Teacher | None) -> None:
        self.scale = student.config["scale"]

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Crops: the same for teacher and student, which see the batch afterwards."""
        import numpy as np
        import torch

        drawn = int(torch.randint(2**31, (), generator=generator))
        if self.options.crop == (1, 1) and not self.options.flip:
            return batch
        made = []
        for image, target, size, key in zip(
            batch["image"], batch["target"], batch["sizes"].tolist(), batch["keys"].tolist()
        ):
            rng = np.random.default_rng([drawn, key])
            made.append(self._cropped(image, target, size, rng))
        sizes = torch.tensor([image.shape[1:] for image, _ in made], device=batch["sizes"].device)
        high, wide = sizes.amax(0).tolist()
        images = batch["image"].new_zeros(len(made), 3, high, wide)
        targets = batch["target"].new_full((len(made), -(-high // STRIDE), -(-wide // STRIDE)), torch.nan)
        for n, (image, target) in enumerate(made):
            images[n, :, : image.shape[1], : image.shape[2]] = image
            targets[n, : target.shape[0], : target.shape[1]] = target
        return {**batch, "image": images, "target": targets, "sizes": sizes}

    def _cropped(self, image: Tensor, target: Tensor, size: list[int], rng: Any) -> tuple[Tensor, Tensor]:
        """A crop of whole cells, mirrored or not. An image with fewer than `least` whole cells stays as it is."""
        share, step = rng.uniform(*self.options.crop), STRIDE
        within, chosen = [], []
        for pixels, place in zip(size, rng.uniform(size=2)):
            whole = pixels // step
            many = min(whole, max(self.least, 1, int(share * pixels / step + 0.5)))
            first = int(place * (whole - many + 1))
            chosen.append(slice(first, first + many) if whole >= self.least else slice(0, -(-pixels // step)))
            within.append(slice(chosen[-1].start * step, min(chosen[-1].stop * step, pixels)))
        image, target = image[:, within[0], within[1]], target[chosen[0], chosen[1]]
        if rng.uniform() < self.options.flip and image.shape[2] % step == 0:
            return image.flip(2), target.flip(1)
        return image, target

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        target = self.flat(batch["target"], batch)
        known = ~target.isnan()
        wrong = self.scale * (student.density - target.nan_to_num()) * known
        return {"labels": self.options.hard_weight * wrong.square().sum() / len(batch["sizes"])}

    def flat(self, maps: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The cells of maps (rows, height, width), as a network gives its density."""
        from kdhub_vision.counting.networks import flat

        return flat(maps[:, None], -(-batch["sizes"] // STRIDE))
