"""Training on a data set whose labels are made on the spot (`hello`, arXiv:2408.08201, step 6).

Each image of a batch is cut anew (and mixed with another one, CutMix), and a live teacher labels what the student
sees. With phi the student, f the teacher and y the mixed classes,

    w MSE(phi(x'), f(x'))  +  beta CE(phi(x'), y)

the former of logits, mean over elements. Without a teacher it is the cross-entropy alone: hard labels, the control of
every such data set, and how the classifiers and encoders for `hello` learn what small crops look like. Any teacher of
the same classes can stand there: the distilled set itself (`recipe:hello`), or the classifier that others store labels
of.
Crops go down to 1 / factor^2 of the image, so that some show one tile alone, as in RDED (arXiv:2312.03526).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub_tasks.losses import ClassifierOptions
from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress

if TYPE_CHECKING:
    import torch

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class ViewOptions(ClassifierOptions):
    least_area: float = Field(0.25, gt=0, le=1, description="smallest crop of an image, as a share of its area")
    flip: bool = Field(False, description="turn half of the views from left to right; digits must not be")
    cutmix: float = Field(0.0, ge=0, le=1, description="probability that the images of a batch are mixed")


class Views(ObjectiveMethod):
    """Crops of a batch, of which teacher and student see the same."""

    Options = ViewOptions
    options: ViewOptions

    @property
    def batchwise(self) -> str:
        return "views are drawn for each part of a step, and its images are mixed with each other"

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """
        Raises:
            CompatibilityError: a row has any number of classes, or values.
        """
        if problem := getattr(student, "problem", ""):
            raise CompatibilityError(f"views of images need rows of one class each (problem_type={problem})")
        self._classes = len(student.classes)

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Also `targets`, (rows, classes): the classes, mixed as the images are; 0 for a row without a label."""
        import numpy as np
        import torch
        from torch.nn.functional import one_hot

        from kdhub_vision.condensed import patches

        o, x, labels = self.options, batch["x"], batch["labels"]
        drawn, keys = torch.randint(2**62, (1,), generator=generator).item(), batch["keys"].tolist()
        targets = one_hot(labels.clamp_min(0), self._classes).to(x.dtype) * (labels >= 0).unsqueeze(-1)
        rngs = [np.random.default_rng([drawn, key]) for key in keys]  # a row's view is its own
        x = patches.crops(x, torch.cat([patches.random_boxes(1, o.least_area, rng) for rng in rngs]))
        if o.flip:
            turned = torch.tensor([rng.random() < 0.5 for rng in rngs], device=x.device)
            x = torch.where(turned.reshape(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
        rng = np.random.default_rng([drawn, *keys])
        if o.cutmix and rng.random() < o.cutmix:
            x, targets = patches.cut_mix(x, targets, rng)
        return {**batch, "x": x, "targets": targets}


class HelloTrain(Views):
    class Options(ViewOptions):
        label_weight: float = Field(1.0, ge=0, description="weight of the teacher's logits; 0 for the classes alone")
        beta_ce: float = Field(0.1, ge=0, description="weight of the classes beside a teacher")
        cutmix: float = Field(0.5, ge=0, le=1, description="probability that the images of a batch are mixed")
        epochs: float = Field(300.0, gt=0, description="passes over the training rows")

    options: Options
    tiny_recipe = {
        "teacher": {
            "source": "recipe:hello-weak",
            "set": {
                "student.source": "mlp:8", "data.train": [{"source": "digits", "split": "train", "limit": 64}],
                "options.max_steps": 1, "evaluation.data": [],
            },
        }
    }  # fmt: skip

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_vision.condensed.projector import label_terms

        given, o = teacher.of("labels").get("logits"), self.options  # none without a teacher
        return label_terms(student.logits, given, batch["targets"], o.beta_ce, o.label_weight)
