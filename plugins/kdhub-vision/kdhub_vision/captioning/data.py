"""`moving-digits`: clips with captions that need no file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kdhub.data.dataset import Data
from kdhub.errors import UsageError
from kdhub_vision.counting.generated import DIGIT, SOURCES

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
    "up right": (1, -1), "down left": (-1, 1), "up left": (-1, -1), "down right": (1, 1),
}  # fmt: skip


def moving_digits(
    canvas: int = 32,
    frames: int = 8,
    scale: int = 2,
    digits: int = 10,
    directions: int = 8,
    pairs: float = 0.3,
    train: int = 1500,
    validation: int = 200,
    test: int = 300,
    seed: int = 0,
) -> Data:
    """Clips of handwritten digits (UCI, as scikit-learn has them) that move at 1 or 2 pixels a frame and stay inside:
    "a three moves up left", "a one and a nine move right". Where two overlap, the brighter pixel is seen. A digit's
    image is in one split only. Rows: `frames` (frames, canvas, canvas) of bytes, and `caption`.

    Args:
        canvas: pixels of a side; scale: pixels for each of a digit's 8 x 8. digits: the first so many of the ten;
            directions: the first so many of right, left, up, down and the diagonals; pairs: share of clips with two.
        train, validation, test: clips of each split; seed: of all that is drawn.

    Raises:
        UsageError: digits would leave the canvas, or a number is out of its range.
    """
    many = {"train": train, "validation": validation, "test": test}
    room = canvas - DIGIT * scale
    if room < frames - 1 or frames < 2 or scale < 1 or min(many.values()) < 1:
        raise UsageError(
            f"moving-digits: digits of {DIGIT * scale} pixels need a canvas from {DIGIT * scale + frames - 1} to move "
            f"over {frames} frames, and each split a clip ({canvas=}, {scale=}, {frames=}, {train=}, {validation=}, "
            f"{test=})"
        )
    if not (1 <= digits <= len(NAMES) and 1 <= directions <= len(DIRECTIONS) and 0 <= pairs <= 1):
        raise UsageError(
            f"moving-digits takes 1 to 10 digits, 1 to 8 directions and a share of pairs ({digits=}, {directions=}, "
            f"{pairs=})"
        )
    fastest = 2 if room >= 2 * (frames - 1) else 1

    def rows(split: str) -> Iterator[dict[str, Any]]:
        from sklearn.datasets import load_digits

        (first, end), given = SOURCES[split], load_digits()
        order = np.random.default_rng(0).permutation(len(given.images))[first:end]
        order = order[given.target[order] < digits]
        draw = np.random.default_rng([seed, first])
        for _ in range(many[split]):
            name = list(DIRECTIONS)[draw.integers(directions)]
            which = draw.choice(order, 2 if draw.random() < pairs else 1)
            step = np.array(DIRECTIONS[name]) * draw.integers(1, fastest + 1)
            clip = np.zeros((frames, canvas, canvas))
            for one in which:
                image = given.images[one].repeat(scale, 0).repeat(scale, 1) * 15.9375
                low = np.maximum(0, -step * (frames - 1))
                corner = draw.integers(low, np.minimum(room, room - step * (frames - 1)) + 1)
                for n in range(frames):
                    x, y = corner + n * step
                    at = clip[n, y : y + DIGIT * scale, x : x + DIGIT * scale]
                    np.maximum(at, image, out=at)
            said = [NAMES[given.target[one]] for one in which]
            verb = "move" if len(said) > 1 else "moves"
            yield {"frames": clip.astype(np.uint8), "caption": f"a {' and a '.join(said)} {verb} {name}"}

    key = {
        "canvas": canvas, "frames": frames, "scale": scale, "digits": digits, "directions": directions,
        "pairs": pairs, **many, "seed": seed, "version": 1,
    }  # fmt: skip
    splits = {split: (lambda split=split: rows(split)) for split in many}
    return Data.from_rows("moving-digits", splits, key=key, licence="cc-by-4.0")
