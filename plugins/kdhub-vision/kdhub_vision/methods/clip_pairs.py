"""CLIP's loss on clips and captions (arXiv:2103.00020): how the small teacher of `snapcap` is made.

    logits_ij = s cos(v_i, t_j)         loss = (CE over j of each i + CE over i of each j) / 2

v_i is the vector of a clip, t_j that of a caption of the batch. Rows of a batch whose captions are equal are right for
each other: the target is spread evenly over them, where CLIP takes the diagonal alone. s is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdhub.errors import CompatibilityError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class ClipPairsOptions(TrainingOptions):
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(64, ge=2, description="rows of one optimiser step, over all ranks and accumulations")
    epochs: float = Field(20.0, gt=0, description="passes over the training rows")
    scale: float = Field(20.0, gt=0, description="s, what cosines are multiplied by")


class ClipPairs(ObjectiveMethod):
    Options = ClipPairsOptions
    options: ClipPairsOptions
    tiny_recipe = {"student": "frame-clip:width=16,channels=8"}

    @property
    def batchwise(self) -> str:
        return "each clip is contrasted with the captions of its batch"

    def settings(self) -> dict[str, Any]:
        return {"captions": True, "frames": True}

    def check(self, student: Student, teacher: Teacher | None) -> None:
        if not hasattr(student.module, "of_texts"):
            raise CompatibilityError(
                f"{self.spec.name} trains encoders of clips and captions, and the student reads no captions",
                hint="student: frame-clip:width=64",
            )

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, Tensor]:
        return {"pairs": pair_loss(student.embedding, student.captions, batch["words"], self.options.scale)}


def pair_loss(clips: Tensor, texts: Tensor, words: Tensor, scale: float) -> Tensor:
    """Args: clips, texts: (rows, width). words: (rows, n), equal where captions are."""
    from torch.nn.functional import log_softmax, normalize

    logits = scale * normalize(clips, dim=-1) @ normalize(texts, dim=-1).T
    same = (words[:, None] == words[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return -(target * (log_softmax(logits, 1) + log_softmax(logits.T, 1))).sum(1).mean() / 2
