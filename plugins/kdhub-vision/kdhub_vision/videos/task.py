"""Classification of clips: some frames of a video to one class, and whole videos by the mean of their clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.classification.arrays import ArrayClassification, tiny_teacher
from kdhub_tasks.classification.task import Predictions

from kdhub.data.prepare import values_of
from kdhub.rows import plain_rows
from kdhub.task import Encoder, View
from kdhub_vision.videos import clips

if TYPE_CHECKING:
    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture

MOST = 10
"""Clips of a video whose mean is its prediction, evenly spaced where it has more."""
VIDEO = {"per": "video"}
"""The variant of measures that are of videos, not of clips."""


@dataclass
class ClipPredictions(Predictions):
    """What metrics read.

    Attributes:
        videos: (n,) names of the videos that clips are of; None where rows do not say.
    """

    videos: np.ndarray | None = None

    @cached_property
    def of_videos(self) -> Predictions:
        """Videos in the order of their first clips: log of the mean probability of up to ten clips. Videos whose clips
        have several labels are left out."""
        rows: dict[Any, list[int]] = {}
        for n, name in enumerate(self.videos):
            rows.setdefault(name, []).append(n)
        given, labels = [], []
        for own in rows.values():
            if len(set(self.labels[own].tolist())) == 1:
                some = [own[i] for i in np.linspace(0, len(own) - 1, min(MOST, len(own))).round().astype(int)]
                given.append(np.log(self.probabilities[some].mean(0) + 1e-30))
                labels.append(self.labels[own[0]])
        shape = (len(given), len(self.classes))
        return Predictions(np.asarray(given, np.float32).reshape(shape), np.asarray(labels, int), self.classes)


class VideoClassification(ArrayClassification):
    """Clips as `clip` (`kdhub_vision.videos.clips`), with the name of their `video`; networks see 0 to 1, as
    (rows, frames, channels, height, width)."""

    name = "video-classification"
    column = "clip"
    drawn = 16
    pipeline_tag = "video-classification"

    def read(self, value: Any) -> np.ndarray:
        return clips.read(value)

    def seen(self, value: Any) -> tuple[np.ndarray, bytes]:
        x = clips.read(value)
        return x, x.tobytes() + repr(x.shape).encode()

    def outputs(self, encode: Encoder, data: Data, split: str) -> ClipPredictions:
        made, table = super().outputs(encode, data, split), data.split(split)
        videos = None
        if "video" in table.column_names:
            videos = np.asarray(list(values_of(table, "video")))
            videos = np.delete(videos, np.asarray(list(encode.faults or ()), int) - 1)
        known = {field.name: getattr(made, field.name) for field in fields(Predictions)}
        return ClipPredictions(**known, videos=videos)

    def views(self, outputs: ClipPredictions, options: Any, subject: str) -> Iterator[View]:
        yield from super().views(outputs, options, subject)
        if outputs.videos is not None and outputs.of_videos.examples:
            yield View(VIDEO, lambda out: out.of_videos)

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_tasks.classification.drawing import answers

        from kdhub.pictures import Picture

        drawn = range(len(next(iter(given.values()))["label"]))
        rows = plain_rows(self._columns(data, split), drawn)
        found = answers([montage(self.read(row[self.column])) for row in rows], given)
        sentence = "Four frames of each clip, in lines" + found.sentence.removeprefix("Images with their label")
        sentence = sentence.replace("in lines;", "in lines, with its label;")
        yield Picture("clips.png", sentence, found.content)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        network = {"network": "mlp", "shape": [4, 1, 12, 12], "hidden": [16]}
        data = {"source": "query-videos", "options": {"form": "clip", "videos": 10}}
        return {
            "teacher": {"source": f"path:{tiny_teacher(self, folder, network)}"},
            "student": "mlp:8",
            "data": {"train": [{**data, "split": "train", "limit": 60}]},
            "evaluation": {"data": [{**data, "split": "test", "limit": 64}], "cost": False},
        }


def montage(clip: np.ndarray) -> np.ndarray:
    """Four evenly spaced frames as one image of twice the height and width: the first two above the others.

    Args:
        clip: frames x channels x height x width.
    """
    a, b, c, d = clip[np.linspace(0, len(clip) - 1, 4).round().astype(int)]
    image = np.concatenate([np.concatenate([a, b], -1), np.concatenate([c, d], -1)], -2)
    return image[0] if len(image) == 1 else image
