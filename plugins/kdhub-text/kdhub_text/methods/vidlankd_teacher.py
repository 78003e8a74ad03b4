"""The teacher of VidLanKD: a language model that saw video (arXiv:2107.02681, stage 1).

A language encoder is trained on captioned clips, by masked language modelling and by contrast with a video encoder,
which is then thrown away. With x_il the unit state of token l of caption i, v_i the unit vector of its clip, and neg(i)
a clip of the other half of the micro-batch:

    L = CE_MLM + (1 / #tokens) sum_il max(0, m - x_il v_i + x_il v_neg(i)),   m = 1

The paper's tables could not be read. Departures: a clip's vector is pooled by a mean over frames, which have positions
but no type embeddings; schedules and Adam's eps (1e-8, not 1e-6) are the engine's; the language encoder has no dropout
unless `dropout` is set, the video encoder only that of its head.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kdhub.errors import DataError, UsageError
from kdhub.method import ObjectiveMethod, Progress, TrainingOptions
from kdhub.recipes.recipe import DataRef
from kdhub_text.token_losses import masked_loss, padded_states

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdhub.rows import Signals
    from kdhub.student import Student
    from kdhub.teacher import Teacher


class TeacherOptions(TrainingOptions):
    lr: float = Field(5e-5, gt=0, description="peak learning rate of AdamW")
    epochs: float = Field(20.0, gt=0, description="passes over the captions")
    teacher_objectives: tuple[Literal["mlm", "contrast"], ...] = Field(
        ("mlm", "contrast"), min_length=1, description="what it learns from"
    )
    mlm_prob: float = Field(0.15, gt=0, lt=1, description="share of the tokens that is masked")
    margin: float = Field(1.0, ge=0, description="margin of the contrast")
    clips: Annotated[
        DataRef | None, Field(description="captioned clips, `text` and `frames`, as an entry of data.train")
    ] = None
    video_layers: int = Field(2, ge=1, description="layers of the video encoder")
    video_heads: int = Field(4, ge=1, description="its attention heads; they divide the language model's width")
    video_dropout: float = Field(0.3, ge=0, lt=1, description="dropout in the head of the video encoder")


class VidLanKdTeacher(ObjectiveMethod):
    """A language encoder from captions and their clips."""

    Options = TeacherOptions
    options: TeacherOptions
    tiny_recipe = {"options": {"teacher_objectives": ["mlm"]}}  # its rows are not captions of clips

    @property
    def batchwise(self) -> str:
        return (
            "captions are contrasted with clips of their batch" if "contrast" in self.options.teacher_objectives else ""
        )

    def settings(self) -> dict[str, Any]:
        return {"mlm_prob": self.options.mlm_prob}

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        o = self.options
        if "contrast" not in o.teacher_objectives:
            return {}
        self._clips = Clips(o.clips)
        frames, pixels = self._clips.shape
        width = student.width("hidden_states")[-1]
        if width % o.video_heads:
            raise UsageError(
                f"video_heads must divide the language model's width of {width} (video_heads={o.video_heads})"
            )
        return {"video": video_encoder(frames, pixels, width, o.video_layers, o.video_heads, o.video_dropout)}

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A clip for each caption, drawn from those with the same caption."""
        import torch

        if "contrast" not in self.options.teacher_objectives:
            return batch
        chosen = []
        for key in batch["keys"].tolist():
            rows = self._clips.rows(key)
            if not rows:
                raise DataError(
                    "a training row is not a caption of the clips", hint="data.train must be the data set of the clips"
                )
            chosen.append(rows[int(torch.randint(len(rows), (), generator=generator))])
        return {**batch, "frames": self._clips.frames(chosen).to(batch["input_ids"].device)}

    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> dict[str, torch.Tensor]:
        from kdhub_tasks.losses import tokens_in
        from torch.nn.functional import normalize

        o, terms = self.options, {}
        if "mlm" in o.teacher_objectives:
            terms["labels"] = masked_loss(student, batch)
        if "contrast" in o.teacher_objectives:
            states, mask = padded_states(student, batch["attention_mask"])
            clips, tokens = self.modules["video"](batch["frames"]), tokens_in(batch, int(mask.sum()))
            terms["contrast"] = contrast_loss(normalize(states, dim=-1), mask, clips, o.margin, tokens)
        return terms


class Clips:
    """Captioned clips, read from disk when they are needed; 16 bytes a caption stay in memory.

    Attributes:
        shape: (frames, pixels) of every clip.

    Raises:
        UsageError: there are none. DataError: a column is missing, or the first row has no clip.
    """

    def __init__(self, ref: DataRef | None):
        from kdhub import open_data

        if ref is None:
            raise UsageError("the objective contrast needs the option clips", hint="clips: {source: digit-clips}")
        data = open_data(ref)
        split = data.pick("train")
        table = data.split(split)
        if not {"text", "frames"} <= set(table.column_names):
            raise DataError(f"clips need the columns text and frames; there are {', '.join(table.column_names)}")
        texts = (text for part in table.select_columns(["text"]).iter(1000) for text in part["text"])
        keys = np.fromiter((zlib.crc32(text.encode()) for text in texts), np.int64, len(table))
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._table, self._name = table.select_columns(["frames"]).with_format("arrow"), f"{data.name}, split {split!r}"
        self.shape: tuple[int, ...] = ()
        self.shape = tuple(self.frames([0]).shape[1:])

    def rows(self, key: int) -> list[int]:
        """The rows, in their order, whose caption has this key."""
        first, last = np.searchsorted(self._keys, [key, key + 1])
        return self._order[first:last].tolist()

    def frames(self, rows: Sequence[int]) -> Tensor:
        """Clips of some rows, (rows, frames, pixels).

        Raises:
            DataError: a clip has another shape than the first one, or values that are not finite.
        """
        import torch

        from kdhub.rows import plain_rows

        made = []
        for n, row in zip(rows, plain_rows(self._table, rows)):
            try:
                clip = np.asarray(row["frames"], np.float32)
            except (TypeError, ValueError):  # not numbers, or lists of different lengths
                clip = np.empty(0)
            if clip.ndim != 2 or clip.shape != (self.shape or clip.shape) or not np.isfinite(clip).all():
                size = " x ".join(map(str, self.shape or ("frames", "pixels")))
                raise DataError(f"{self._name}: `frames` of row {n + 1} are not {size} finite numbers", rows=[n + 1])
            made.append(clip)
        return torch.from_numpy(np.stack(made))


def video_encoder(frames: int, pixels: int, width: int, layers: int, heads: int, dropout: float) -> nn.Module:
    """(batch, frames, pixels) -> (batch, width) unit vectors: two linear layers, positions, a transformer, and on the
    mean over frames a head of Linear, ReLU, Dropout, Linear."""
    import torch
    from torch import nn

    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Sequential(nn.Linear(pixels, width), nn.Linear(width, width))
            self.positions = nn.Parameter(0.02 * torch.randn(frames, width))
            self.norm = nn.LayerNorm(width)
            block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True)
            self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))

        def forward(self, frames: Tensor) -> Tensor:
            states = self.blocks(self.norm(self.into(frames) + self.positions))
            return nn.functional.normalize(self.head(states.mean(1)), dim=-1)

    return Video()


def contrast_loss(
    tokens: Tensor, mask: Tensor, clips: Tensor, margin: float = 1.0, many: float | None = None
) -> Tensor:
    """Mean over real tokens of max(0, margin - x v_i + x v_neg(i)): the texts of the first half of the batch and those
    of the second are each other's negatives; an odd batch is completed by its last row.

    Args:
        tokens: (batch, length, width) unit vectors; mask: (batch, length), true for real ones; clips: (batch, width).
        many: tokens that the mean is over; those here if None.
    """
    import torch

    share = mask.sum() / many if many else 1.0
    if len(tokens) % 2:
        tokens, mask, clips = (torch.cat([x, x[-1:]]) for x in (tokens, mask, clips))
    half = len(tokens) // 2
    other = clips.roll(half, 0)
    positive, negative = ((tokens * v[:, None]).sum(-1) for v in (clips, other))
    return share * ((margin - positive + negative).clamp_min(0) * mask).sum() / mask.sum().clamp_min(1)
