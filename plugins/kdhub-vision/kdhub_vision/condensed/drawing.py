"""The images of a distilled set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from kdhub_tasks.classification.images import read

from kdhub.evaluation.plots import INK, STYLE, new_figure, png
from kdhub.pictures import Picture
from kdhub.rows import plain_rows

MOST, CLASSES = 10, 20
"""Images of a class, and classes, that are shown."""


def grid(table: Any, classes: Sequence[str]) -> Picture:
    """A row of images for each class.

    Args:
        table: rows with `image` and `label`.
    """
    import matplotlib

    labels = np.asarray(table["label"])
    shown = [np.flatnonzero(labels == c)[:MOST] for c in range(min(len(classes), CLASSES))]
    columns = max(map(len, shown))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(0.62 * columns + 1.2, 0.62 * len(shown))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.9, columns), ylim=(len(shown), 0))
        axes.set_axis_off()
        for row, rows in enumerate(shown):
            axes.text(-0.15, row + 0.5, classes[row][:14], ha="right", va="center", fontsize=9, color=INK)
            for column, one in enumerate(plain_rows(table, rows.tolist())):
                image = read(one["image"])
                image = image if image.ndim == 2 else image.transpose(1, 2, 0)
                extent = (column + 0.04, column + 0.96, row + 0.96, row + 0.04)
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto")
        axes.set(xlim=(-1.9, columns), ylim=(len(shown), 0))
        what = "all" if columns * len(classes) == len(labels) else f"the first {columns} of each class of"
        sentence = f"The images of the data set, a row for each class: {what} {len(labels)} of them."
        return Picture("images.png", sentence, png(figure))
