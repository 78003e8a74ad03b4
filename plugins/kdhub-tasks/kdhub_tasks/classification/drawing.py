"""Images with their true class and what teacher, start and student say they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kdhub.evaluation.plots import GREY, INK, STYLE, new_figure, png
from kdhub.evaluation.report import WHO, printable
from kdhub.pictures import Picture

COLUMNS = 8
PIXELS = 400
"""Of an image's longer side, roughly; larger ones are thinned."""
WIDTH, LINE = 1.45, 0.13
"""Inches of a column; height of a line of text, in columns."""
WRONG = "#d55e00"
_LONGEST = 14


def answers(images: Sequence[np.ndarray], given: Mapping[str, Mapping[str, np.ndarray]]) -> Picture:
    """A grid of images; below each its label, and each subject's class with its probability, in colour where it is
    wrong.

    Args:
        images: height x width, or channels x height x width, bytes.
        given: subject -> `label`, `chosen` (names, one an image) and `probability`.
    """
    import matplotlib

    labels = next(iter(given.values()))["label"]
    columns, lines = min(COLUMNS, len(images)), len(given) + 1
    rows, high = -(-len(images) // columns), 1.15 + LINE * lines
    with matplotlib.rc_context(STYLE):
        figure = new_figure(WIDTH * columns, WIDTH * high * rows)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(high * rows, 0))  # one is drawn faster than many
        axes.set_axis_off()
        for n, image in enumerate(images):
            left, top = n % columns, n // columns * high
            image = image if image.ndim == 2 else image.transpose(1, 2, 0)
            shown = image if image.shape[2:] in ((), (3,), (4,)) else image[..., 0]
            shown = shown[:: (step := 1 + max(shown.shape[:2]) // PIXELS), ::step]
            tall, wide = (size / max(shown.shape[:2]) for size in shown.shape[:2])
            x, y = left + 0.5, top + 0.55
            extent = (x - 0.45 * wide, x + 0.45 * wide, y + 0.45 * tall, y - 0.45 * tall)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto")
            said = [(_short(labels[n]), INK)]
            for name, of in given.items():
                text = f"{WHO[name]} {_short(of['chosen'][n])} {of['probability'][n]:.2f}"
                said.append((text, GREY if of["chosen"][n] == labels[n] else WRONG))
            for i, (text, colour) in enumerate(said):
                axes.text(x, top + 1.02 + LINE * (i + 0.5), text, ha="center", va="center", fontsize=9, color=colour)
        axes.set(xlim=(0, columns), ylim=(high * rows, 0))
        who = ", ".join(WHO[name] for name in given)
        sentence = f"Images with their label; below it the answers and their probability ({who}), orange where wrong."
        return Picture("answers.png", sentence, png(figure))


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
