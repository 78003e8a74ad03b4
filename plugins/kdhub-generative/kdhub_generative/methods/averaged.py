"""What methods that train diffusions and one-call models share: options, random numbers, the average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.method import ObjectiveMethod, Progress, TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.method import RunContext
    from kdhub.student import Student
    from kdhub.teacher import Teacher

SHORT = 2000
"""Steps under which an average over hundreds of steps would keep the start."""


class DrawingOptions(TrainingOptions):
    lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(128, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
    max_steps: int | None = Field(4000, ge=1, description="optimiser steps; null: by epochs")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay, not on biases and norms")
    schedule: Literal["late", "linear", "cosine", "constant"] = Field(
        "late", description="learning rate after warm-up; late: linear to 0 over the second half"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="arithmetic of forward and backward; rounding adds up along a trajectory"
    )
    ema: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the average of the weights, which is the student; if unset 0.998, under 2,000 steps 0.99",
    )


class Averaged(ObjectiveMethod):
    """The student is the moving average of the weights that are trained."""

    Options = DrawingOptions
    options: DrawingOptions

    def learning_rate(self, step: int, steps: int) -> float:
        if self.options.schedule != "late":
            return super().learning_rate(step, steps)
        warm = round(self.options.warmup * steps)
        return (step + 1) / warm if step < warm else min(1.0, 2 * (1 - step / steps))

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        self._model = student

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        return {"average": copy.deepcopy(student.module).requires_grad_(False)}

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        import torch

        decay = self.options.ema
        if decay is None:
            decay = 0.99 if progress.steps < SHORT else 0.998
        # In the beginning an average over the steps so far: the start is worth no more than one of them.
        decay = min(decay, (1 + progress.step) / (10 + progress.step))
        with torch.no_grad():
            theirs = self._model.module.state_dict()
            for name, mean in self.modules["average"].state_dict().items():
                if mean.is_floating_point():
                    mean.lerp_(theirs[name].to(mean.dtype), 1 - decay)
                else:
                    mean.copy_(theirs[name])

    def distill(self, run: RunContext) -> Student:
        student = super().distill(run)
        student.module.load_state_dict(self.modules["average"].state_dict())
        return student


def drawn_anew(
    seeds: Tensor, shape: tuple[int, ...], generator: torch.Generator, uniform: int = 1
) -> tuple[Tensor, Tensor]:
    """Numbers for each row of a step, by its seed and the step, so that batches may be cut in any way: `uniform` ones
    of 0 to 1, (rows, uniform), and normal ones, (rows, *shape)."""
    import torch

    step = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    draws = [np.random.Generator(np.random.Philox(key=[step, int(seed) % 2**63])) for seed in seeds]
    first = np.stack([draw.random(uniform, np.float32) for draw in draws])
    noise = np.stack([draw.standard_normal(shape, np.float32) for draw in draws])
    return torch.from_numpy(first).to(seeds.device), torch.from_numpy(noise).to(seeds.device)


def row_mean(values: Tensor, weights: Any = 1.0) -> Tensor:
    """Weighted mean over rows of the mean over each row's numbers."""
    return (weights * values.flatten(1).mean(1)).mean()
