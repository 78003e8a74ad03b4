"""Students that count: a registered network, the scale of its target, and images of any size.

config.json          `counter`: `network` and its settings, `scale`, `tile`
model.safetensors    its weights
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdhub_tasks.classification.images import read
from kdhub_tasks.models import take_weights
from safetensors.torch import save_file

from kdhub import open_network
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.plain_json import read_json
from kdhub.ranks import device
from kdhub.rows import Example
from kdhub.student import Student
from kdhub_vision.counting.networks import alike
from kdhub_vision.counting.targets import STRIDE

NAME = "counting"
TILE = 1024
"""Pixels of a side of a tile, unless a recipe says otherwise."""
PIXELS = 2**20
"""Of the images that are run together."""


class Counter(Student):
    """A network that gives a density map, whose sum is the count.

    Args:
        config: `network`, its settings, `scale` of the target and `tile` in pixels.
    """

    task = NAME
    kinds = ("density",)

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        self.config = {"scale": 1.0, "tile": TILE, **config}
        settings = {k: v for k, v in self.config.items() if k not in ("network", "tile")}
        self.module = open_network(self.config["network"])(**settings)
        if self.module.stride != STRIDE:
            raise CompatibilityError(
                f"a counter's network must have cells of {STRIDE} x {STRIDE} pixels (stride={self.module.stride})"
            )

    def settle(self, *, scale: float | None = None, tile: int | None = None) -> None:
        """Change the scale of the target, or the size of tiles."""
        if scale is not None:
            self.config["scale"] = self.module.target_scale = scale
        if tile is not None:
            self.config["tile"] = tile

    # -- images -----------------------------------------------------------------------------------------------

    def collate(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        """What the network takes of some images (see `kdhub_tasks.classification.images.read`): `image` in three equal
        or own channels, with zeros beyond the smaller ones, and the `sizes` of all."""
        arrays = [_in_three(np.asarray(image)) for image in images]
        sizes = torch.tensor([array.shape[1:] for array in arrays])
        made = torch.zeros(len(arrays), 3, *sizes.amax(0).tolist())
        for row, array in zip(made, arrays):
            row[:, : array.shape[1], : array.shape[2]] = torch.from_numpy(array.astype(np.float32) / 255)
        return {"image": made, "sizes": sizes}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        """`density` of each example, its cells line by line."""
        if kind != "density":
            return super().signals(examples, kind)
        where, was, found = device(), self.module.training, [np.zeros(0, np.float32)] * len(examples)
        self.module.to(where).eval()
        with torch.no_grad():
            for some in _batches(examples, self.config["tile"]):
                if len(some) == 1:
                    found[some[0]] = self._tiled(np.asarray(examples[some[0]]["image"])).ravel()
                else:
                    given = self._run([examples[n]["image"] for n in some])
                    for n, cells in zip(some, given.reshape(len(some), -1)):
                        found[n] = cells
        self.module.train(was)
        return {"density": found}

    def _run(self, images: Sequence[Any]) -> np.ndarray:
        batch = {name: value.to(device()) for name, value in self.collate(images).items()}
        return self.module(batch)["density"].float().cpu().numpy()

    def _tiled(self, image: np.ndarray) -> np.ndarray:
        """The map of an image, cut into tiles where it is larger than one. Each is run with as many pixels around it as
        its cells depend on, so that they have the values, up to rounding, that the whole image gives them."""
        step, high, wide = STRIDE, *image.shape[-2:]
        tile = max(1, self.config["tile"] // step)
        around = -(-self.module.reach // step)
        made = np.zeros((-(-high // step), -(-wide // step)), np.float32)
        for rows in _parts(made.shape[0], tile, around):
            for columns in _parts(made.shape[1], tile, around):
                seen = image[..., rows.seen(step, high), columns.seen(step, wide)]
                given = self._run([seen]).reshape(rows.many, columns.many)
                made[rows.of, columns.of] = given[rows.inside, columns.inside]
        return made

    def density(self, image: Any) -> np.ndarray:
        """The density map of an image: (ceil(height / 8), ceil(width / 8)), how many there are in each cell.

        Args:
            image: an array of height x width (x channels), a picture of Pillow's, bytes of an image file, or its path.

        Raises:
            DataError: it cannot be read.
        """
        x = _opened(image)
        size = (-(-n // STRIDE) for n in x.shape[-2:])
        (cells,) = self.signals([{"image": x}], "density")["density"]
        return cells.reshape(*size)

    def count(self, image: Any) -> float:
        """How many there are in an image (see `density`)."""
        return float(self.density(image).sum())

    # -- files ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {"widths": {"density": [None]}, "scale": self.config["scale"]}

    def save(self, folder: Path) -> None:
        config = {"kdhub": 1, "task": NAME, "counter": self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_file({n: t.contiguous() for n, t in self.module.state_dict().items()}, folder / "model.safetensors")

    def usage(self) -> str:
        return "\n".join(
            (
                "import kdhub",
                "import numpy",
                'counter = kdhub.load("{path}")',
                'print(counter.count(numpy.zeros((64, 64), "uint8")))  # or counter.count("photograph.jpg")',
            )
        )


def load(folder: Path, *, name: str | None = None) -> Counter:
    """A counter from its folder.

    Raises:
        UntrustedError: it is none that kdhub saved, or its weights are not those of its configuration.
    """
    check_model_folder(folder, name=name)
    try:
        config = read_json(folder / "config.json")["counter"]
        student = Counter(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UntrustedError(f"{name or folder} is not a student for {NAME} that kdhub saved") from error
    take_weights(student.module, folder / "model.safetensors", name or str(folder))
    student.module.eval()
    return student


class _Part:
    """Cells of an axis that a tile gives, and those that it is run on: both from, and up to."""

    def __init__(self, first: int, end: int, total: int, around: int):
        self.first, self.last = max(0, first - around), min(total, end + around)
        self.of, self.inside = slice(first, end), slice(first - self.first, end - self.first)
        self.many = self.last - self.first

    def seen(self, step: int, pixels: int) -> slice:
        return slice(self.first * step, min(self.last * step, pixels))


def _parts(total: int, tile: int, around: int) -> Iterator[_Part]:
    for first in range(0, total, tile):
        yield _Part(first, min(first + tile, total), total, around)


def _batches(examples: Sequence[Example], tile: int) -> Iterator[list[int]]:
    """Numbers of examples that are run together: images of one size that are no larger than a tile."""
    for (high, wide), numbers in alike(example["image"].shape[-2:] for example in examples).items():
        many = max(1, PIXELS // (high * wide)) if max(high, wide) <= tile else 1
        yield from (numbers[start : start + many] for start in range(0, len(numbers), many))


def _in_three(image: np.ndarray) -> np.ndarray:
    """An image with three channels; grey ones get three equal ones, and a fourth is left out."""
    if image.ndim == 2 or len(image) in (1, 2):
        image = np.broadcast_to(image if image.ndim == 2 else image[0], (3, *image.shape[-2:]))
    return image[:3]


def _opened(image: Any) -> np.ndarray:
    if not isinstance(image, str | Path):
        return read(image)
    try:
        return read(Path(image).expanduser().read_bytes())
    except OSError as error:
        raise DataError(f"{image}: {error.strerror}") from error
