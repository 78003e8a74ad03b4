"""Builders of captioners of snapshots and of a small CLIP of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UsageError
from kdhub.student import BuildContext, sizes
from kdhub_vision.captioning.model import VideoModel
from kdhub_vision.captioning.snapshot import MOST, draw_masks, read_masks


class CaptionerOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    compression_ratio: int = Field(8, ge=2, le=MOST, description="frames in a snapshot, where masks are drawn")
    mask_density: float = Field(0.5, ge=0.1, le=0.9, description="share of a drawn mask that is open")
    masks: str | None = Field(None, description="a file with the masks of a camera (.npy, or .npz), saved along")
    length: int | None = Field(None, ge=1, description="words of a caption at most; the longest of the rows if unset")


class ClipOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    frames: int = Field(8, ge=2, le=MOST, description="frames of a clip")


def snapshot_captioner(argument: str, context: BuildContext) -> VideoModel:
    """`snapshot-captioner:width=64,channels=32`: a fresh captioner, whose masks are drawn by the run's seed.

    Raises:
        UsageError: an unknown setting. DataError: masks that do not fit.
    """
    return _captioner("snapshot-captioner", argument, context, {})


def after_reconstruction(argument: str, context: BuildContext) -> VideoModel:
    """`after-reconstruction:width=64,channels=32`: a fresh reconstructor and captioner; the CLIP between them is that
    of the method's teacher.

    Raises:
        UsageError: an unknown setting. DataError: masks that do not fit.
    """
    return _captioner("after-reconstruction", argument, context, {"clip": True})


snapshot_captioner.Options = after_reconstruction.Options = CaptionerOptions


def frame_clip(argument: str, context: BuildContext) -> VideoModel:
    """`frame-clip:width=64,channels=32`: a fresh encoder of clips and captions.

    Raises:
        UsageError: an unknown setting, or nothing is known of the rows.
    """
    settings = sizes("frame-clip", argument, width=64, channels=32)
    height, width = _size(context, "frame-clip")
    frames = own(ClipOptions, context).frames
    known = {"words": context.facts["words"], "captions": context.facts["captions"]}
    torch.manual_seed(context.seed)
    config = {"network": "frame-clip", "shape": [frames, height, width], **known, **settings}
    return VideoModel(config, {"how": f"fresh frame-clip:{argument}"})


frame_clip.Options = ClipOptions


def _captioner(kind: str, argument: str, context: BuildContext, more: dict[str, Any]) -> VideoModel:
    settings = sizes(kind, argument, width=64, channels=32, layers=2, heads=4)
    if settings["width"] % settings["heads"]:
        raise UsageError(f"student {kind}:{argument}: width must be a multiple of heads ({settings})")
    options, (height, width) = own(CaptionerOptions, context), _size(context, kind)
    if options.masks:
        masks = read_masks(Path(options.masks).expanduser(), height, width)
    else:
        masks = draw_masks(options.compression_ratio, height, width, options.mask_density, context.seed)
    shape = list(masks.shape)
    if more:
        more = {"clip": {"shape": shape, "words": [], "captions": [], "width": 16, "channels": 4}}
    words, length = context.facts["words"], options.length or max(1, context.facts["longest"])
    torch.manual_seed(context.seed)
    config = {"network": kind, "shape": shape, "words": words, "length": length, "beam": 1, **settings, **more}
    student = VideoModel(config, {"how": f"fresh {kind}:{argument}"})
    student.module.masks.copy_(torch.from_numpy(masks))
    return student


def own(options: type[BaseModel], context: BuildContext) -> Any:
    """A builder's own options, without those that the task applies."""
    given = {name: value for name, value in context.options.items() if name in options.model_fields}
    return options.model_validate(given)


def _size(context: BuildContext, kind: str) -> tuple[int, int]:
    if not (size := context.facts.get("size")):
        raise UsageError(f"student {kind} is made for the frames of the training rows, and there are none")
    return size[0], size[1]
