"""A picture of a family of sizes: what each member scores against its size, the front, and the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdhub.evaluation.plots import GREY, LOOKS, new_figure, tick
from kdhub.evaluation.report import STUDENT, TEACHER, Report, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = "parameters"
NAMED = 12
"""Members whose name stands beside their mark; of more, those on the front."""


def figure(report: Report) -> Figure | None:
    """Score against parameters: each member, the front, the family and the teacher. None without members or scores."""
    sizes = report.sizes
    points = {n: (s.costs[SIZE], s.score) for n, s in sizes.members.items() if SIZE in s.costs and s.score is not None}
    if len(points) < 2:
        return None
    made = new_figure(7.0, 4.2)
    axes = made.subplots()
    look = {key: LOOKS[STUDENT][key] for key in ("color", "marker")}
    axes.plot(*zip(*points.values()), **look, linestyle="", alpha=0.45, label="member")
    front = sizes.front(SIZE)
    best = zip(*(points[name] for name in front))
    axes.plot(*best, **look, drawstyle="steps-post", linewidth=1.6, label="best of its size")
    teacher = report.get(sizes.metric, TEACHER, sizes.dataset, sizes.split)
    large = next((m for m in report.measures if (m.metric, m.subject) == (SIZE, TEACHER) and m.value), None)
    if teacher is not None and teacher.value is not None:
        axes.axhline(teacher.value, color=LOOKS[TEACHER]["color"], linewidth=1, linestyle=(0, (4, 3)))
        if large is not None:
            looks = {key: LOOKS[TEACHER][key] for key in ("color", "marker", "label")}
            axes.plot([large.value], [teacher.value], **looks, linestyle="")
        else:
            axes.annotate("teacher", (1, teacher.value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          fontsize=10, color=GREY)  # fmt: skip
    known = [x for x, _ in points.values()] + ([large.value] if large is not None else [])
    if max(known) > 12 * min(known):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.margins(0.12, 0.16)
    axes.xaxis.set_major_formatter(lambda x, _: "0" if x == 0 else tick(x, SIZE))
    axes.set_xlabel("parameters")
    axes.set_ylabel(printable(f"{sizes.metric} on {sizes.dataset} {sizes.split or ''}"))
    axes.set_title(f"{len(points)} members of one training", loc="left")
    axes.legend(loc="best")
    _name(axes, points, [*front, *(name for name in points if len(points) <= NAMED and name not in front)])
    return made


def _name(axes: Axes, points: Mapping[str, tuple[float, float]], names: Sequence[str]) -> None:
    """Names beside marks, the most important first; one that would lie on others is left to the table."""
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # where things are is known from here on
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(list(points.values()))]
    for name in names:
        for x, y in ((-7, 7), (7, -7), (7, 7), (-7, -7)):  # first where the front's line is not
            text = axes.annotate(
                printable(name), points[name], xytext=(x, y), textcoords="offset points", fontsize=10,
                ha="right" if x < 0 else "left", va="bottom" if y > 0 else "top",
            )  # fmt: skip
            box = text.get_window_extent()
            if not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()
