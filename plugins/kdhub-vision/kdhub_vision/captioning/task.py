"""Video captioning: what happens in a clip, in a sentence; also of a clip that is only known by a compressive snapshot.

frames        (T, height, width) of bytes, or of numbers in [0, 1]; colours, (T, 3, ...) or (..., 3), become grey
measurement   (height, width), what a snapshot camera gave: the sum of B masked frames in [0, 1]
caption       a sentence; or `captions`, several: all are references, the first is learnt
video         a name for messages

One of the first two is enough: of `frames` a snapshot is simulated with the masks of the model, of which the first B
frames are a clip's. Teachers and stage 1 need the frames.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from kdhub.data.prepare import iterate
from kdhub.errors import CompatibilityError, DataError
from kdhub.fields import Field as Stored
from kdhub.method import MethodOptions
from kdhub.rows import Example, Prepare, Signals, all_readable, plain_rows
from kdhub.student import BuildContext
from kdhub.task import Encoder, NetworkTask
from kdhub.teachers.saved import SavedTeacher
from kdhub_vision.captioning.metrics import Captions
from kdhub_vision.captioning.rows import Reader, grey, references, size_of
from kdhub_vision.captioning.words import words_in

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture
    from kdhub_vision.captioning.model import VideoModel

NAME = "video-captioning"
CLIPS = ("frames", "measurement")
SAID = ("caption", "captions")
CHOSEN = 5000
"""Captions of the training rows that a `frame-clip` may choose from, at most."""


class ClipTeacher(SavedTeacher):
    """A saved model. Its captions are stored as bytes."""

    def layout(self, kind: str) -> dict[str, Any]:
        given = super().layout(kind)
        return {"text": Stored("text", "uint8", (), ragged=True)} if kind == "text" else given


class CaptioningOptions(MethodOptions):
    """What every student of the task takes, whatever builds it."""

    beam: int | None = Field(None, ge=1, le=5, description="captions that are followed at once; saved, 1 if unset")


class VideoCaptioning(NetworkTask):
    """A batch has `frames`, `words` and, of models that read them, `measurement`; `keys`, a number that a row's content
    gives. Settings of the preparer: `captions` and `frames` say what every row must have."""

    name = NAME
    primary = {"rows": "exact-match"}
    primary_signal = "text"
    drawn = 6
    Teacher = ClipTeacher
    StudentOptions = CaptioningOptions

    # -- rows -------------------------------------------------------------------------------------------------

    def training_rows(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if not set(CLIPS) & set(table.column_names):
            raise DataError(
                f"{data.name}, split {split!r}, has no column 'frames' or 'measurement', only "
                f"{', '.join(table.column_names)}",
                hint="map it: columns: {frames: THEIRS, caption: THEIRS}",
            )
        return table.select_columns([c for c in (*CLIPS, *SAID, "video") if c in table.column_names])

    def labelled(self, table: datasets.Dataset) -> bool:
        return bool(set(SAID) & set(table.column_names))

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        captions, size = [], None
        for data, split in parts:
            table = self.training_rows(data, split)
            if size is None and len(table):
                size = next(filter(None, map(size_of, plain_rows(table, range(min(len(table), 8))))), None)
            if self.labelled(table):
                said = table.select_columns([c for c in SAID if c in table.column_names])
                captions += [given[0] for row in iterate(said) if (given := references(row))]
        texts = [" ".join(words_in(caption)) for caption in captions]
        return {
            "size": size, "words": sorted({word for text in texts for word in text.split()}),
            "captions": list(dict.fromkeys(filter(None, texts)))[:CHOSEN],
            "longest": max((len(text.split()) for text in texts), default=0),
        }  # fmt: skip

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        mine = student.shape if student is not None else None
        theirs = teacher.facts.get("shape") if teacher is not None else None
        if mine and theirs and tuple(mine) != tuple(theirs):
            own, other = (" x ".join(map(str, shape)) for shape in (mine, theirs))
            raise CompatibilityError(
                f"the student reads clips of {own} (frames, height, width), and the teacher clips of {other}",
                hint="frames of a frame-clip and compression_ratio of a captioner must be equal",
            )
        reader = Reader(mine or (tuple(theirs) if theirs else None), student, settings)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            return all_readable([reader(row) for row in rows])

        return prepare

    # -- batches ----------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example], student: VideoModel) -> dict[str, torch.Tensor]:
        import torch

        return {**student.collate(examples), "keys": torch.tensor([zlib.crc32(e["content"]) for e in examples])}

    def counts(self, batch: Mapping[str, Any]) -> Mapping[str, int]:
        return {"words": int((batch["words"][:, 1:] >= 0).sum())}

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        given = module(inputs)
        return Signals({name: value if name == "text" else value.float() for name, value in given.items()})

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> VideoModel:
        from kdhub_vision.captioning.model import load

        return load(Path(folder), name=name)

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> VideoModel:
        """A model as it is; one whose training rows had no captions gets a fresh decoder for the words of these."""
        student = super().open(folder, context, start, name=name)
        facts = context.facts
        if student.reads_snapshots and not student.words and facts.get("words"):
            student = student.with_words(facts["words"], facts["longest"], context.seed)
        return student

    def configure(self, student: VideoModel, context: BuildContext) -> VideoModel:
        if (beam := context.options.get("beam")) is not None and student.reads_snapshots:
            student.set_beam(beam)
        return student

    def mismatch(self, student: Any, teacher: Any) -> str:
        return "" if "text" in teacher.facts.get("widths", {}) else "the teacher writes no captions"

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Captions:
        table = self.training_rows(data, split)
        if not self.labelled(table):
            raise DataError(
                f"{data.name}, split {split!r}, has no column 'caption' to score against",
                hint="map it: columns: {caption: THEIRS}; of a single clip: model.caption(frames)",
            )
        kinds = getattr(encode.model, "kinds", ("text", "embedding"))
        texts = encode(table, "text")["text"]
        said = table.select_columns([c for c in SAID if c in table.column_names])
        out = Captions([], [], [])
        for number, (row, text) in enumerate(zip(iterate(said), texts), 1):
            if number not in encode.faults:
                if not (true := references(row)):
                    raise DataError(f"{data.name}, split {split!r}: row {number} has no caption", rows=[number])
                out.rows.append(number - 1)
                out.texts.append(np.asarray(text, np.uint8).tobytes().decode())
                out.references.append(true)
        if "embedding" in kinds:
            out.embedding = np.asarray(encode(table, "embedding")["embedding"], np.float32)[out.rows]
        if getattr(encode.model, "reads_snapshots", False):
            first = encode.prepare(plain_rows(table, out.rows[: self.drawn]))
            out.measurement = encode.model.collate(first)["measurement"].numpy()
        if "frames" in kinds and "frames" in table.column_names:
            made = encode(table, "frames")["frames"]
            out.frames = np.asarray(made)[out.rows[: self.drawn]]
            wrong = [np.square(np.asarray(made[n]) - e["frames"]).mean() for n, e in _examples(encode, table, out.rows)]
            out.error = float(np.mean(wrong)) if wrong else None
        return out

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self.training_rows(data, split)
        named = [c for c in CLIPS if c in table.column_names]
        return list(iterate(table.select_columns(named).select(range(min(n, len(table))))))

    def to_draw(self, outputs: Captions, n: int) -> dict[str, np.ndarray]:
        taken = {"row": np.array(outputs.rows[:n]), "text": np.array(outputs.texts[:n], dtype=str)}
        more = {"measurement": outputs.measurement, "frames": outputs.frames}
        return taken | {name: values[:n] for name, values in more.items() if values is not None}

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_vision.captioning.drawing import filmstrips

        rows = plain_rows(self.training_rows(data, split), next(iter(given.values()))["row"].tolist())
        frames = [grey(row["frames"]) if row.get("frames") is not None else None for row in rows]
        yield filmstrips(frames, [references(row)[0] for row in rows], given)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_vision.captioning.data import moving_digits
        from kdhub_vision.captioning.students import frame_clip

        options = {"canvas": 16, "scale": 1, "digits": 3, "directions": 4, "pairs": 0.0}
        options |= {"train": 24, "validation": 8, "test": 12}

        facts = self.survey([(moving_digits(**options), "train")])
        made = folder / "teacher"
        made.mkdir(exist_ok=True)
        fresh = BuildContext(self, None, 3, facts=facts)
        frame_clip("width=16,channels=8", fresh).save(made)
        return {
            "teacher": {"source": f"path:{made}"},
            "student": "snapshot-captioner:width=16,channels=8,layers=1,heads=2",
            "data": {"train": [{"source": "moving-digits", "split": "train", "options": options}]},
            "evaluation": {
                "data": [{"source": "moving-digits", "split": "test", "options": options}], "cost": False,
            },
        }  # fmt: skip


def _examples(encode: Encoder, table: Any, rows: Sequence[int], many: int = 64) -> Iterator[tuple[int, Example]]:
    """Rows that have frames, with their numbers."""
    for start in range(0, len(rows), many):
        some = list(rows[start : start + many])
        for n, example in zip(some, encode.prepare(plain_rows(table, some))):
            if example["frames"] is not None:
                yield n, example
