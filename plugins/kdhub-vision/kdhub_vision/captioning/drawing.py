"""Filmstrips: frames of a clip, the snapshot of them, what was reconstructed, and captions, true and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kdhub.evaluation.plots import INK, STYLE, new_figure, png
from kdhub.evaluation.report import WHO
from kdhub.pictures import Picture

SHOWN = 8
"""Frames of a clip that are drawn at most, evenly spaced."""
SIDE = 0.85
"""Inches of a frame."""


def filmstrips(
    frames: Sequence[np.ndarray | None], true: Sequence[str], given: Mapping[str, Mapping[str, np.ndarray]]
) -> Picture:
    """A line for each clip: frames, the snapshot, captions beside them; a right one is green, a wrong one red.

    Args:
        frames: (T, height, width) in [0, 1] of each, where they are known.
        true: a reference of each. given: subject -> `text`, and of captioners `measurement`, of some also `frames`.
    """
    import matplotlib

    of = list(given.values())
    measured = next((one["measurement"] for one in reversed(of) if "measurement" in one), None)
    made = next((one["frames"] for one in reversed(of) if "frames" in one), None)
    many = max([SHOWN if x is None else min(SHOWN, len(x)) for x in frames], default=1)
    per = 1 + (made is not None)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(SIDE * (many + 1) + 3.6, (SIDE + 0.1) * per * len(true) + 0.3)
        axes = figure.subplots(
            per * len(true), many + 2, squeeze=False, width_ratios=[1] * (many + 1) + [3.6 / SIDE],
            gridspec_kw={"wspace": 0.05, "hspace": 0.08},
        )  # fmt: skip
        for axis in axes.ravel():
            axis.set_axis_off()
        for n, said in enumerate(true):
            line = axes[per * n]
            for at, strip in ((line, frames[n]), (axes[per * n + per - 1], None if made is None else made[n])):
                if strip is not None:
                    for axis, k in zip(at, np.linspace(0, len(strip) - 1, many).round().astype(int)):
                        axis.imshow(strip[k], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if measured is not None:
                line[many].imshow(measured[n], cmap="magma", vmin=0, interpolation="nearest")
            if n == 0:
                line[0].set_title("frames", fontsize=9, color=INK, loc="left", pad=3)
                line[many].set_title("snapshot", fontsize=9, color=INK, pad=3)
            texts = [(said, INK), *((one["text"][n], None) for one in of)]
            for place, (who, (text, colour)) in enumerate(zip(("true", *map(WHO.get, given)), texts)):
                right = text == said
                colour = colour or ("#1b7837" if right else "#b2182b")
                line[many + 1].text(
                    0.02, 0.95 - 0.25 * place, f"{who}: {text or '-'}"[:60], fontsize=8.5, color=colour, va="top",
                    transform=line[many + 1].transAxes,
                )  # fmt: skip
        more = ", below them the frames that were reconstructed of it" if made is not None else ""
        sentence = f"Frames, the snapshot of them{more}, and captions: green where every word is right, red elsewhere."
        return Picture("captions.png", sentence, png(figure))
