"""Pictures of a comparison: every seed of every arm, quality against training time, and how each arm learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdhub.comparison.comparison import SUBJECTS, Result
from kdhub.comparison.differences import paired
from kdhub.evaluation.plots import GREY, INK, STYLE, TERMS, new_figure, save_figure, tick
from kdhub.evaluation.report import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dvp"
DASHES = ("-", "--", "-.", ":")


def plot_comparison(result: Result, folder: Path) -> list[Path]:
    """Draw what there are numbers for into `plots/`. Returns the files, whole each."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figures = {"seeds": seeds(result), "cost": cost(result), "learning": learning(result)}
        return [save_figure(figure, folder / "plots" / f"{name}.png") for name, figure in figures.items() if figure]


def ranked(result: Result) -> list[str]:
    """Arms that were measured, the best first."""
    means = {arm: float(np.mean(list(found.values()))) for arm in result.arms if (found := result.of(arm))}
    return sorted(means, key=means.get, reverse=result.higher_is_better)


def look(result: Result, arm: str) -> dict[str, str]:
    """Colour, marker and dash of an arm: the same in every picture, and different without colour too."""
    i = result.arms.index(arm)
    return {
        "color": TERMS[i % len(TERMS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i // len(TERMS) % len(DASHES)],
    }


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean, as `differences.paired` has it."""
    found = paired(values, [0.0] * len(values))
    return None if found.low is None else (found.low, found.high)


def seeds(result: Result) -> Figure | None:
    """A row an arm: a dot a seed, the mean, its interval. Teacher and untrained student are lines."""
    arms = ranked(result)
    if not arms:
        return None
    figure = new_figure(7.6, 1.6 + 0.42 * len(arms))
    axes = figure.subplots()
    for y, arm in enumerate(reversed(arms)):
        values, own = list(result.of(arm).values()), look(result, arm)
        axes.plot(values, [y] * len(values), color=own["color"], marker="o", linestyle="", markersize=6, alpha=0.45)
        if bounds := interval(values):
            axes.plot(bounds, [y, y], color=own["color"], linewidth=2.2)
        axes.plot([np.mean(values)], [y], color=INK, marker="|", markersize=16, markeredgewidth=2.2)
    low, high = axes.get_xlim()
    for subject, title in SUBJECTS:
        found = list(result.of_subject(subject).values())
        # A line far away would press the arms together.
        if found and low - (high - low) < np.mean(found) < high + (high - low):
            axes.axvline(np.mean(found), color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(title, (np.mean(found), 1), xycoords=("data", "axes fraction"), fontsize=10, color=GREY,
                          xytext=(3, -11), textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(arms)), [printable(arm) for arm in reversed(arms)])
    axes.set_ylim(-0.6, len(arms) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{printable(result.metric)} on {printable(result.data)}")
    better = "right" if result.higher_is_better else "left"
    axes.set_title(f"Each seed, mean and 95 % interval (better to the {better})", loc="left")
    return figure


def cost(result: Result) -> Figure | None:
    """Mean quality against mean training time, with the interval of the quality."""
    points = []
    for arm in ranked(result):
        if seconds := result.fact(arm, "train_seconds"):
            points.append((arm, float(np.mean(seconds)), list(result.of(arm).values())))
    if len(points) < 2:
        return None
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    for arm, seconds, values in points:
        own, mean = look(result, arm), float(np.mean(values))
        if bounds := interval(values):
            axes.plot([seconds] * 2, bounds, color=own["color"], linewidth=2, alpha=0.6)
        axes.plot([seconds], [mean], color=own["color"], marker=own["marker"], markersize=10, linestyle="",
                  label=printable(arm))  # fmt: skip
    axes.set_xlim(0, 1.08 * max(seconds for _, seconds, _ in points))
    axes.xaxis.set_major_formatter(lambda x, _: tick(x, "s") if x else "0")
    axes.set_xlabel("training time, mean over seeds")
    axes.set_ylabel(printable(result.metric))
    axes.set_title("Quality against training time, with 95 % intervals", loc="left")
    figure.legend(loc="outside right center")
    return figure


def learning(result: Result) -> Figure | None:
    """The metric while each arm learned, mean over seeds."""
    figure = new_figure(7.6, 4.2)
    axes, drawn = figure.subplots(), 0
    for arm in ranked(result):
        if curve := result.curve(arm):
            axes.plot(*zip(*curve), **look(result, arm), markersize=5, label=printable(arm))
            drawn += 1
    if not drawn:
        return None
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"{printable(result.metric)} on {printable(result.data)}")
    axes.set_title("Learning, mean over seeds", loc="left")
    figure.legend(loc="outside right center")
    return figure
