"""Counting: how many people, cells, things are in an image, by a density map whose sum is the count.

image     an array, or an image file (see `kdhub_tasks.classification.images`), of any size
points    where they are: [[x, y], ...], pixels from the upper left corner
density   a map of any size that sums to the count
count     a number

One of the last three is enough; where there are several, the first of them counts. A row with a count alone is scored
and taught by a teacher, and has no map to learn from.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from kdhub_tasks.classification.images import as_bytes, fault_of, held, seen
from pydantic import Field

from kdhub.data.prepare import iterate
from kdhub.errors import DataError
from kdhub.fields import Field as Stored
from kdhub.method import MethodOptions
from kdhub.rows import Example, Fault, Prepare, Signals, all_readable, plain_rows
from kdhub.task import Encoder, NetworkTask, View
from kdhub.teachers.saved import SavedTeacher
from kdhub_vision.counting import targets
from kdhub_vision.counting.metrics import Counts, ranges
from kdhub_vision.counting.targets import STRIDE

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture
    from kdhub.student import BuildContext
    from kdhub_vision.counting.model import Counter

NAME = "counting"
TRUTHS = ("points", "density", "count")
SHOWN = 6
"""Images that are drawn with their maps; of `drawn` the counts are."""


class CounterTeacher(SavedTeacher):
    """A saved counter. Its maps are stored in float32: a count is a sum over thousands of cells."""

    def layout(self, kind: str) -> dict[str, Any]:
        given = super().layout(kind)
        return {n: Stored(n, "float32", (), ragged=True) if shape == (None,) else shape for n, shape in given.items()}


class CounterOptions(MethodOptions):
    """What every student of the task takes, whatever builds it."""

    scale: float | None = Field(
        None, gt=0, description="the network gives so many times the density; saved with the model, 1 if unset"
    )
    tile: int | None = Field(
        None, ge=64, description="pixels of a side over which an image is cut into tiles; saved, 1024 if unset"
    )


class CountingOptions(MethodOptions):
    ranges: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="borders of ranges of the true count to measure apart; if unset, three of equally many images"
    )


class Counting(NetworkTask):
    """A batch has `image`, `sizes`, and `target`, the density (rows, height, width) in cells, NaN for rows without one;
    `keys`, a number that a row's content gives. Settings of the preparer: `sigma` of the points (no target without
    it), and the `least` cells that a side of a map must have."""

    name = NAME
    primary = {"rows": "mae"}
    primary_signal = "density"
    drawn = 64
    Teacher = CounterTeacher
    StudentOptions = CounterOptions
    EvaluationOptions = CountingOptions

    # -- rows -------------------------------------------------------------------------------------------------

    def training_rows(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if "image" not in table.column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has no column 'image', only {', '.join(table.column_names)}",
                hint="map it: columns: {image: THEIRS, points: THEIRS}; a folder of images: points:FOLDER",
            )
        table = table.select_columns([c for c in ("image", *TRUTHS) if c in table.column_names])
        return as_bytes(table, "image", data, split)

    def labelled(self, table: datasets.Dataset) -> bool:
        return "points" in table.column_names or "density" in table.column_names

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        sigma, least = settings.get("sigma"), settings.get("least", 1)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            return all_readable([self._prepared(row, sigma, least) for row in rows])

        return prepare

    def _prepared(self, row: Mapping[str, Any], sigma: targets.Sigma | None, least: int) -> Example:
        one: Example = {"image": np.zeros((STRIDE, STRIDE), np.uint8), "target": None, "length": 0, "cut": False}
        try:
            image, content = seen(row["image"])
        except DataError as error:
            return {**one, "content": b"", "fault": fault_of(error, row["image"])}
        high, wide = image.shape[-2:]
        name = row["image"].get("path") if isinstance(row["image"], Mapping) else None
        size, where = f"{wide} x {high} pixels", f"{name}: " if name else ""
        try:
            truth = Truth.of(row)
            if truth.points is not None and (wrong := targets.outside(truth.points, high, wide)) is not None:
                at = ", ".join(f"{c:g}" for c in truth.points[wrong])
                raise DataError(f"a point outside its image: point {wrong + 1} at ({at}), and the image has {size}")
            if min(high, wide) <= (least - 1) * STRIDE:
                raise DataError(f"a map smaller than {least} x {least} cells: the image has {size}")
        except DataError as error:
            cause, _, detail = error.message.partition(": ")
            return {**one, "content": content, "fault": Fault(cause, where + detail)}
        target = None if sigma is None else truth.map(high, wide, sigma)
        cells = -(-high // STRIDE) * -(-wide // STRIDE)
        return {**one, "image": image, "target": target, "content": content, "length": cells}

    # -- batches ----------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example], student: Counter) -> dict[str, torch.Tensor]:
        import torch

        batch = student.collate([e["image"] for e in examples])
        height, width = (-(-n // STRIDE) for n in batch["image"].shape[2:])
        target = torch.full((len(examples), height, width), torch.nan)
        for row, example in zip(target, examples):
            if example["target"] is not None:
                high, wide = example["target"].shape
                row[:high, :wide] = torch.from_numpy(example["target"])
        return {**batch, "target": target, "keys": torch.tensor([zlib.crc32(e["content"]) for e in examples])}

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return Signals({name: value.float() for name, value in module(inputs).items()})

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> Counter:
        from kdhub_vision.counting.model import load

        return load(Path(folder), name=name)

    def configure(self, student: Counter, context: BuildContext) -> Counter:
        student.settle(scale=context.options.get("scale"), tile=context.options.get("tile"))
        return student

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Counts:
        table = self.training_rows(data, split)
        if not set(TRUTHS) & set(table.column_names):
            raise DataError(
                f"{data.name}, split {split!r}, has none of the columns {', '.join(TRUTHS)} to score against",
                hint="a count of every image is enough: columns: {count: THEIRS}; of a single one: counter.count(FILE)",
            )
        maps, out = encode(table, "density")["density"], Counts()
        for number, (row, cells) in enumerate(zip(iterate(table), maps), 1):
            if number not in encode.faults:
                truth, (high, wide) = Truth.of(row), held(row["image"]).shape[-2:]
                if truth.empty:
                    raise DataError(f"{data.name}, split {split!r}: row {number} has no count", rows=[number])
                density = np.asarray(cells).reshape(-(-high // STRIDE), -(-wide // STRIDE))
                out.add(number - 1, density, truth.count, truth.regions(high, wide), high, wide)
        return out.done()

    def views(self, outputs: Counts, options: Any, subject: str) -> Iterator[View]:
        yield View()
        for name, rows in ranges(outputs.true, options.ranges):
            yield View({"count": name}, partial(Counts.some, rows=rows), ("mae", "nae", "count-bias"))

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self.training_rows(data, split)
        return list(iterate(table.select_columns(["image"]).select(range(min(n, len(table))))))

    def to_draw(self, outputs: Counts, n: int) -> dict[str, np.ndarray]:
        few = outputs.maps[:SHOWN]
        size = np.max([one.shape for one in few], axis=0)
        maps = np.stack([np.pad(one, [(0, have - has) for have, has in zip(size, one.shape)]) for one in few])
        return {"row": outputs.rows[:n], "true": outputs.true[:n], "predicted": outputs.predicted[:n], "map": maps}

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_vision.counting.drawing import against, overlays

        numbers = next(iter(given.values()))["row"][:SHOWN]
        rows = plain_rows(self.training_rows(data, split), numbers.tolist())
        yield overlays([held(row["image"]) for row in rows], [Truth.of(row).points for row in rows], given)
        yield against(given)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        import torch

        from kdhub_vision.counting.students import csrnet

        class Fresh:
            seed, options = 3, {}

        made = folder / "teacher"
        made.mkdir(exist_ok=True)
        torch.manual_seed(3)
        csrnet("16", Fresh()).save(made)
        options = {"canvas": 32, "most": 4, "train": 24, "validation": 8, "test": 12}
        return {
            "teacher": {"source": f"path:{made}"},
            "student": "csrnet:32",
            "data": {"train": [{"source": "pasted-digits", "split": "train", "options": options}]},
            "evaluation": {"data": [{"source": "pasted-digits", "split": "test", "options": options}], "cost": False},
        }


class Truth:
    """What a row says of its count.

    Attributes:
        points: (n, 2), or None; density: (height, width), or None; count: their sum, NaN where a row says nothing.
    """

    def __init__(self, points: np.ndarray | None = None, density: np.ndarray | None = None, count: float = np.nan):
        self.points, self.density, self.count = points, density, count

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Truth:
        """
        Raises:
            DataError: points that are no pairs, a map that is none, a count below 0.
        """
        if row.get("points") is not None:
            points = targets.points_of(row["points"])
            return cls(points, None, float(len(points)))
        if row.get("density") is not None:
            try:
                density = np.asarray(row["density"], np.float64)
            except (TypeError, ValueError):
                density = np.zeros(0)
            if density.ndim != 2 or not density.size or not np.isfinite(density).all() or density.min() < 0:
                raise DataError("a density is height x width of finite numbers from 0")
            return cls(None, density, float(density.sum()))
        if (count := row.get("count")) is None:
            return cls()
        if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < np.inf:
            raise DataError(f"a count is a number from 0, not {count!r}")
        return cls(None, None, float(count))

    @property
    def empty(self) -> bool:
        return bool(np.isnan(self.count))

    def map(self, height: int, width: int, sigma: targets.Sigma) -> np.ndarray | None:
        """The density in cells of the network, or None where only the count is known."""
        if self.points is not None:
            return targets.density_of(self.points, height, width, sigma)
        return None if self.density is None else targets.resized_density(self.density, height, width)

    def regions(self, height: int, width: int) -> np.ndarray | None:
        """How many are in each of 8 x 8 regions, or None where only the count is known."""
        if self.points is not None:
            return targets.points_in_regions(self.points, height, width)
        return None if self.density is None else targets.density_in_regions(self.density, height, width)
