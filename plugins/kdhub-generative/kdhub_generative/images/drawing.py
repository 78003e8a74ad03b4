"""The sheet of a run: the same seeds, always the first ones, drawn by teacher, start and student."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from kdhub.evaluation.report import WHO
from kdhub.pictures import Picture

PIXELS = 64
"""Of a picture's longer side, at least; small ones are enlarged by whole numbers, without smoothing."""
GAP, LABEL = 4, 132


def sheet(given: Mapping[str, Mapping[str, np.ndarray]]) -> Picture:
    """
    Args:
        given: subject -> calls as text -> bytes (n, channels, height, width).
    """
    rows = [
        (f"{WHO[subject]}, {calls} call{'s' * (calls != '1')}", images)
        for subject, of in given.items()
        for calls, images in sorted(of.items(), key=lambda one: int(one[0]))
    ]
    sentence = "The same seeds in each row, not chosen: " + "; ".join(name for name, _ in rows) + "."
    return Picture("samples.png", sentence, grid(rows))


def grid(rows: Sequence[tuple[str, np.ndarray]], label: int = LABEL) -> bytes:
    """A PNG: for each row its name, in so many pixels, and its pictures, bytes (n, channels, height, width)."""
    from PIL import Image, ImageDraw

    height, width = rows[0][1].shape[2:]
    times = max(1, PIXELS // max(height, width))
    tall, wide, many = height * times + GAP, width * times + GAP, max(len(images) for _, images in rows)
    page = Image.new("RGB", (label + many * wide, len(rows) * tall + GAP), "white")
    pen = ImageDraw.Draw(page)
    for n, (name, images) in enumerate(rows):
        pen.text((4, n * tall + tall // 2 - 5), name, fill="#222222")
        for at, image in enumerate(images):
            colours = np.repeat(image, 3, 0) if len(image) == 1 else image[:3]
            shown = colours.transpose(1, 2, 0).repeat(times, 0).repeat(times, 1)
            page.paste(Image.fromarray(np.ascontiguousarray(shown)), (label + at * wide, n * tall + GAP))
    content = io.BytesIO()
    page.save(content, "PNG", optimize=True)
    return content.getvalue()
