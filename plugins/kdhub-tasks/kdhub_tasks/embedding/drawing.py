"""The cosines of some texts to each other, as teacher, start and student see them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kdhub.evaluation.plots import LOOKS, STYLE, new_figure, png
from kdhub.pictures import Picture


def similarities(given: Mapping[str, Mapping[str, np.ndarray]], sides: tuple[str, str]) -> Picture:
    """A panel for each subject, with one scale for all.

    Args:
        given: subject -> `cosines` (n, m).
        sides: what stands in the rows and in the columns.
    """
    import matplotlib

    tables = {LOOKS[name]["label"]: arrays["cosines"] for name, arrays in given.items()}
    low, high = min(t.min() for t in tables.values()), max(t.max() for t in tables.values())
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = new_figure(3.2 * len(tables) + 0.7, 3.6)
        for (name, table), axes in zip(tables.items(), figure.subplots(1, len(tables), squeeze=False)[0]):
            drawn = axes.imshow(table, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
            axes.set_title(name, loc="left")
            axes.set_xlabel(sides[1])
            axes.set_xticks([])
            axes.set_yticks([])
        figure.axes[0].set_ylabel(sides[0])
        figure.colorbar(drawn, ax=figure.axes, label="cosine")
        sentence = f"Cosines of {sides[0]} (rows) to {sides[1]} (columns), in one colour scale: {', '.join(tables)}."
        return Picture("cosines.png", sentence, png(figure))
