"""The confusion matrix between queries and teacher."""

from __future__ import annotations

import numpy as np

from kdhub.evaluation.plots import INK, STYLE, new_figure, png
from kdhub.pictures import Picture
from kdhub_vision.subconcepts.labels import DROPPED, LabelMap

NUMBERED, NAMED = 20, 40
"""Classes up to which cells have their numbers, and axes their names."""
OWN = "#d55e00"


def matrix(made: LabelMap) -> Picture:
    """N[w, t] in shades, a row a query. Framed: cells with a label of their own; crossed out: cells without one."""
    import matplotlib
    from matplotlib.patches import Rectangle

    counts, k = made.counts, len(made.classes)
    held = [[int((made.cells == label).sum()) == 1 for label in row] for row in made.cells]
    side = min(10.0, 3.2 + 0.42 * k)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(side + 0.8, side)
        axes = figure.add_subplot()
        axes.grid(False)
        shown = axes.imshow(np.sqrt(counts), cmap="Greys", vmin=0, vmax=1.4 * np.sqrt(max(1, counts.max())))
        for w, t in np.argwhere(counts):
            if k <= NUMBERED:
                light = "white" if shown.norm(np.sqrt(counts[w, t])) > 0.55 else INK
                axes.text(t, w, str(counts[w, t]), ha="center", va="center", fontsize=8, color=light)
            if made.cells[w, t] == DROPPED:
                axes.plot([t - 0.4, t + 0.4], [w - 0.4, w + 0.4], color=INK, linewidth=0.7)
            elif held[w][t]:
                axes.add_patch(Rectangle((t - 0.46, w - 0.46), 0.92, 0.92, fill=False, edgecolor=OWN, linewidth=1.4))
        if k <= NAMED:
            names = [name[:14] for name in made.classes]
            axes.set_xticks(range(k), names, rotation=90 if max(map(len, names)) > 2 else 0)
            axes.set_yticks(range(k), names)
        axes.set_xlabel("what the teacher sees in the item")
        axes.set_ylabel("query of its group")
        sentence = (
            f"Items by query and teacher: {len(made.names)} labels for {made.sizes.sum()} of "
            f"{counts.sum() + made.unsure_counts.sum()} items. Framed: a label of its own. Crossed out: no label."
        )
        return Picture("queries-and-teacher.png", sentence, png(figure))
