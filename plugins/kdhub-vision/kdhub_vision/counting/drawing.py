"""Images with the points that are known, the density that each model gives, and all counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kdhub.evaluation.plots import GREY, INK, LOOKS, STYLE, new_figure, png
from kdhub.evaluation.report import BEFORE, WHO
from kdhub.pictures import Picture
from kdhub_vision.counting.targets import STRIDE

PIXELS = 300
"""Of an image's longer side, roughly; larger ones are thinned."""
SIDE = 1.9
"""Inches of an image."""
POINT = "#56b4e9"


def overlays(
    images: Sequence[np.ndarray],
    points: Sequence[np.ndarray | None],
    given: Mapping[str, Mapping[str, np.ndarray]],
) -> Picture:
    """A line for each image: the image with its points and the true count, then over it what each model sees.

    Args:
        images: height x width, or channels x height x width, bytes. points: (n, 2) of each, if they are known.
        given: subject -> `map` (images, height, width) in cells, `true` and `predicted`.
    """
    import matplotlib

    true = next(iter(given.values()))["true"]
    maps = {who: [_cut(m, image) for m, image in zip(of["map"], images)] for who, of in given.items()}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(SIDE * (1 + len(given)), (SIDE + 0.3) * len(images))
        axes = figure.subplots(len(images), 1 + len(given), squeeze=False)
        for n, (line, image) in enumerate(zip(axes, images)):
            high, wide = image.shape[-2:]
            # One scale of colours a line: what one model sees and another does not must show.
            most = max(1e-6, *(float(of[n].max()) for who, of in maps.items() if who != BEFORE))
            for axis in line:
                axis.set_axis_off()
                _show(axis, image)
            if points[n] is not None:
                size = float(np.clip(160 / np.sqrt(len(points[n]) + 1), 4, 40))
                line[0].scatter(*points[n].T, s=size, facecolors="none", edgecolors=POINT, linewidths=1.2)
            line[0].set_title(f"true {true[n]:g}", fontsize=10, color=INK, pad=3)
            for axis, (who, of) in zip(line[1:], given.items()):
                seen = np.clip(maps[who][n] / most, 0, 1)
                high_cells, wide_cells = (STRIDE * many for many in seen.shape)  # the last ones may reach beyond
                look = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.25 + 0.65 * seen}
                axis.imshow(seen, extent=(0, wide_cells, high_cells, 0), interpolation="nearest", **look)
                axis.set(xlim=(0, wide), ylim=(high, 0))
                axis.set_title(f"{WHO[who]} {of['predicted'][n]:.1f}", fontsize=10, color=INK, pad=3)
        who = ", ".join(WHO[name] for name in given)
        sentence = (
            f"Images with their points and the true count; over them the density that each model gives ({who}) and the "
            "count that it sums to, in colours that are the same along a line."
        )
        return Picture("densities.png", sentence, png(figure))


def against(given: Mapping[str, Mapping[str, np.ndarray]]) -> Picture:
    """Predicted against true counts."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.6, 4.6)
        axes = figure.add_subplot(xlabel="true count", ylabel="predicted count")
        most = max(float(max(of["true"].max(), of["predicted"].max())) for who, of in given.items() if who != BEFORE)
        for who, of in given.items():
            if who != BEFORE:
                look = {name: LOOKS[who][name] for name in ("label", "color", "marker")}
                axes.scatter(of["true"], of["predicted"], s=22, alpha=0.7, **look)
        axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--")
        axes.set(xlim=(0, most * 1.05 + 1), ylim=(min(0, axes.get_ylim()[0]), most * 1.05 + 1))
        axes.legend(loc="upper left")
        return Picture("counts.png", "Predicted against true counts; on the dashed line they are equal.", png(figure))


def _cut(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A padded map as that of its image."""
    high, wide = (-(-n // STRIDE) for n in image.shape[-2:])
    return values[:high, :wide]


def _show(axis: object, image: np.ndarray) -> None:
    high, wide = image.shape[-2:]
    shown = image if image.ndim == 2 else image.transpose(1, 2, 0)
    shown = shown if shown.ndim == 2 or shown.shape[2] in (3, 4) else shown[..., 0]
    step = 1 + max(high, wide) // PIXELS
    axis.imshow(
        shown[::step, ::step], cmap="gray", vmin=0, vmax=255, extent=(0, wide, high, 0), interpolation="nearest"
    )
