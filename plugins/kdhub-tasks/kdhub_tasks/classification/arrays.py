"""Classification of images and of feature tables: inputs that are arrays of one shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdhub.errors import DataError
from kdhub.rows import Example, Prepare, UnreadableRows, plain_rows
from kdhub_tasks.classes import listed
from kdhub_tasks.classification.task import SUBCLASS, Classification, Predictions

if TYPE_CHECKING:
    import datasets

    from kdhub.data.dataset import Data
    from kdhub.pictures import Picture

SURVEYED = 5000
"""Rows that mean and standard deviation of the inputs are taken from, evenly over the split."""
HELD = 2**27
"""Bytes of these that are held in memory; where there are more, they are read again."""


class ArrayClassification(Classification):
    """Inputs that are arrays of one shape."""

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        targets, blank = self._known(student, teacher), np.zeros((1, 1), np.uint8)

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            nonlocal blank
            made = []
            for row, label in zip(rows, targets(rows)):
                x, content, faults = blank, b"", {}
                try:
                    x, content = self.seen(row[self.column])
                except DataError as error:
                    faults = {"fault": self.fault(error, row[self.column])}
                one = {"x": x, "label": label, "subclass": row.get(SUBCLASS), **faults}
                made.append({**one, "content": content, "length": 0 if faults else 1, "cut": False})
            if bad := [e for e in made if "fault" in e]:  # a network is given something of the others' shape
                blank = next((np.zeros(e["x"].shape, np.uint8) for e in made if "fault" not in e), blank)
                for e in bad:
                    e["x"] = blank
                raise UnreadableRows(made)
            blank = np.zeros(made[-1]["x"].shape, np.uint8) if made else blank
            return made

        return prepare

    def read(self, value: Any) -> np.ndarray:
        """One input as an array.

        Raises:
            DataError: it is none.
        """
        raise NotImplementedError

    def seen(self, value: Any) -> tuple[Any, bytes]:
        """An input as it stands in an example, and its content."""
        x = self.read(value)
        return x, x.tobytes()

    def fault(self, error: DataError, value: Any) -> str:
        """What is wrong with an input that is none."""
        return error.message

    def to_draw(self, outputs: Predictions, n: int) -> dict[str, np.ndarray]:
        if outputs.problem:  # several answers, or none of a list, do not fit below an image
            return {}
        names, chosen = np.asarray(outputs.classes), outputs.chosen[:n]
        sure = outputs.probabilities[np.arange(len(chosen)), chosen]
        return {"label": names[outputs.labels[:n]], "chosen": names[chosen], "probability": sure}

    def _read_all(self, rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """The inputs of rows that can be read; which cannot is found when rows are prepared."""
        found = []
        for row in rows:
            with suppress(DataError):
                found.append(self.read(row[self.column]))
        return found

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`, the `shape` of an input, and `mean` and `std` of channels or features; `sizes` and how many rows
        have each, in place of these, where there are several."""
        facts = super().survey(parts)
        if not parts:
            return facts
        table = self.training_table(parts)
        some = np.unique(np.linspace(0, len(table) - 1, min(SURVEYED, len(table))).astype(int))
        parts = np.array_split(some, -(-len(some) // 100))  # as floats, thousands of images are large
        sizes: Counter[tuple[int, ...]] = Counter()
        held: list[list[np.ndarray]] | None = []

        def read(number: int) -> list[np.ndarray]:
            if held is not None and number < len(held):
                return held[number]
            return self._read_all(plain_rows(table, parts[number].tolist()))

        for number in range(len(parts)):
            given = read(number)
            sizes.update(one.shape for one in given)
            if held is not None:
                held = [*held, given] if number * sum(one.nbytes for one in given) < HELD else None
        if len(shapes := _in_colours(sizes)) != 1:
            counted = {shape_text(size): many for size, many in shapes.most_common()}
            return {**facts, "sizes": counted} if counted else facts
        (shape,) = shapes
        # by feature, whole image, channel, channel of all frames
        over = {1: (0,), 2: (0, 1, 2), 3: (0, 2, 3), 4: (0, 1, 3, 4)}[len(shape)]

        def mean_of(what: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            total: Any = 0
            for given in filter(None, map(read, range(len(parts)))):
                x = np.stack([np.broadcast_to(one, shape) for one in given])
                x = x / 255 if x.dtype == np.uint8 else x.astype(np.float64)
                total = total + what(x).mean(over, keepdims=len(shape) >= 3) * len(given)
            return total / shapes.total()

        mean = mean_of(lambda x: x)
        std = np.sqrt(mean_of(lambda x: (x - mean) ** 2))
        if len(shape) >= 3:
            mean, std = mean[0], std[0]
        return {**facts, "shape": list(shape), "mean": mean.tolist(), "std": std.tolist()}


def _in_colours(sizes: Counter[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    """Shapes of inputs, where grey images among ones in colours have the latter's."""
    found = Counter(sizes)
    for grey in [shape for shape in sizes if len(shape) == 2]:
        if colours := next((shape for shape in sizes if len(shape) == 3 and shape[1:] == grey), None):
            found[colours] += found.pop(grey)
    return found


class ImageClassification(ArrayClassification):
    """Images as `image`; networks see 0 to 1, channels first.

    A row has an array of height x width, with its channels last or first; or an image file, as bytes or as the Hub has
    them (`{"bytes": ..., "path": ...}`; see `images`). Whole numbers are 0 to 255; fractions 0 to 1, unless those of
    the whole split reach higher: then 0 to 255.
    """

    name = "image-classification"
    column = "image"
    drawn = 16
    pipeline_tag = "image-classification"

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        from kdhub_tasks.classification.images import as_bytes

        table = super()._columns(data, split)
        if getattr(table.features[self.column], "dtype", "") in ("string", "large_string"):
            raise DataError(
                f"{data.name}, split {split!r}, has texts in {self.column!r}, such as "
                f"{table[0][self.column]!r}, and no images",
                hint=f"names of files are read with options: {{files: {self.column}}}, by the column's own name",
            )
        return as_bytes(table, self.column, data, split)

    def read(self, value: Any) -> np.ndarray:
        from kdhub_tasks.classification.images import held

        return held(value)

    def seen(self, value: Any) -> tuple[Any, bytes]:
        from kdhub_tasks.classification.images import seen

        return seen(value)

    def fault(self, error: DataError, value: Any) -> str:
        from kdhub_tasks.classification.images import fault_of

        return fault_of(error, value)

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Picture]:
        from kdhub_tasks.classification.drawing import answers

        given = {subject: arrays for subject, arrays in given.items() if arrays}
        if given:
            drawn = range(len(next(iter(given.values()))["label"]))
            rows = plain_rows(self._columns(data, split), drawn)
            yield answers([self.read(row[self.column]) for row in rows], given)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        network = {"network": "vit", "shape": [8, 8], "patch": 4, "width": 8, "layers": 1, "heads": 2}
        return {
            "teacher": {"source": f"path:{tiny_teacher(self, folder, network)}"},
            "student": "mlp:8",
            "data": {"train": [{"source": "digits", "split": "train", "limit": 64}]},
            "evaluation": {"data": [{"source": "digits", "split": "test", "limit": 64}], "cost": False},
        }


class TabularClassification(ArrayClassification):
    """Rows of numbers as `features`."""

    name = "tabular-classification"
    column = "features"
    pipeline_tag = "tabular-classification"

    def read(self, value: Any) -> np.ndarray:
        try:
            x = np.asarray(listed(value), np.float32)
        except (TypeError, ValueError):
            x = np.zeros(())
        if x.ndim != 1 or not np.isfinite(x).all():
            raise DataError(f"features are a list of finite numbers, not {str(value)[:40]}")
        return x

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        network = {"network": "mlp", "shape": [64], "hidden": [16]}
        return {
            "teacher": {"source": f"path:{tiny_teacher(self, folder, network)}"},
            "student": "mlp:8",
            "data": {"train": [{"source": "digits", "split": "train", "limit": 64, "options": {"form": "features"}}]},
            "evaluation": {
                "data": [{"source": "digits", "split": "test", "limit": 64, "options": {"form": "features"}}],
                "cost": False,
            },
        }


def shape_text(shape: Sequence[int]) -> str:
    """`28 x 28`, in the order of the axes."""
    return " x ".join(map(str, shape))


def tiny_teacher(task: Classification, folder: Path, network: dict[str, Any]) -> Path:
    """A network of random weights, saved."""
    import torch

    from kdhub_tasks.classification.model import NetworkClassifier

    torch.manual_seed(3)
    made = folder / "teacher"
    made.mkdir(exist_ok=True)
    NetworkClassifier(task.name, {**network, "classes": [str(i) for i in range(10)]}).save(made)
    return made
