"""Pictures of a run for its card: loss, what was kept against size and latency, and cut vectors.

Everything is read from the run folder. Colours are Okabe and Ito's, and every subject has its own marker and dash, so
that the pictures read without colour too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.evaluation.report import ASYMMETRIC, BEFORE, STUDENT, TEACHER, Line, Report, label, number, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GRID = "#222222", "#666666", "#e3e3e3"
LOOKS: dict[str, dict[str, Any]] = {
    TEACHER: {"label": "teacher", "color": "#333333", "marker": "s", "linestyle": "-"},
    STUDENT: {"label": "student", "color": "#0072b2", "marker": "o", "linestyle": "-"},
    BEFORE: {"label": "before training", "color": "#e69f00", "marker": "^", "linestyle": ":"},
    ASYMMETRIC: {"label": "asymmetric", "color": "#009e73", "marker": "D", "linestyle": "--"},
}
TERMS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = {
    "font.size": 12,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2.2,
    "lines.markersize": 8,
}
_PANELS = 4
_POINTS = 400


def plot_run(run: Any, **more: Callable[[Report], Figure | None]) -> list[Path]:
    """Draw what the run folder has numbers for into `plots/`.

    Args:
        run: a `kdhub.Run`; `metrics()`, `report` and `folder` are used.
        more: name -> further figures of its report.

    Returns:
        The files written, whole each.
    """
    import matplotlib

    report = Report.from_dict(run.report) if run.report else Report()
    folder = Path(run.folder) / "plots"
    files = []
    with matplotlib.rc_context(STYLE):
        figures = {
            "loss": loss_curve(list(run.metrics())),
            "retention": retention(report),
            "truncation": truncation(report),
            **{name: draw(report) for name, draw in more.items()},
        }
        for name, figure in figures.items():
            if figure is not None:
                files.append(save_figure(figure, folder / f"{name}.png"))
    return files


def loss_curve(records: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Each loss term over the steps, and the learning rate below. None when fewer than two steps were logged."""
    records = [r for r in records if isinstance(r.get("terms"), Mapping) and "step" in r]
    if len(records) < 2:
        return None
    trainings: dict[int, list[Mapping[str, Any]]] = {}  # of the run, which follow one another
    for r in records:
        trainings.setdefault(r.get("fit", 1), []).append(r)
    begins, end = {}, 0
    for fit, own in sorted(trainings.items()):
        begins[fit], end = end, end + max(r["step"] for r in own)
    names = list(dict.fromkeys(name for r in records for name in r["terms"]))

    def series(of: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        whole = {"loss": [_number(r.get("loss")) for r in of]} if len(names) > 1 else {}
        return whole | {name: [_number(r["terms"].get(name)) for r in of] for name in names}

    with_rate = any(not math.isnan(_number(r.get("lr"))) for r in records)

    figure = new_figure(7.6, 4.4 if with_rate else 3.4)
    upper, *lower = figure.subplots(
        2 if with_rate else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1] if with_rate else [1]
    )[:, 0]
    for fit, own in sorted(trainings.items()):
        steps = [r["step"] + begins[fit] for r in own]
        for i, (name, values) in enumerate(series(own).items()):
            colour = INK if name == "loss" and len(names) > 1 else TERMS[(i - (len(names) > 1)) % len(TERMS)]
            smooth = _smooth(values)
            if smooth is not values:
                upper.plot(*_thin(steps, values), color=colour, alpha=0.25, linewidth=1)
            upper.plot(*_thin(steps, smooth), color=colour, label=None if begins[fit] else printable(name))
    finite = [v for values in series(records).values() for v in values if v > 0 and math.isfinite(v)]
    everything = [v for values in series(records).values() for v in values if math.isfinite(v)]
    if finite and len(finite) == len(everything) and max(finite) > 20 * min(finite):
        upper.set_yscale("log")
        upper.yaxis.set_major_formatter(lambda y, _: f"{y:g}")  # the library's own are formulas, which STYLE turns off
        upper.yaxis.set_minor_formatter(lambda *_: "")
    else:
        upper.set_ylim(bottom=0 if everything and min(everything) >= 0 else None)
    for fit, own in trainings.items() if len(trainings) > 1 else ():
        upper.axvline(begins[fit], color=GREY, linewidth=0.8, linestyle=":")
        upper.annotate(
            printable(own[0].get("training", "")), (begins[fit], 0), xycoords=("data", "axes fraction"),
            xytext=(3, 4), textcoords="offset points", rotation=90, color=GREY, size=9,
        )  # fmt: skip
    upper.set_title("Training loss", loc="left")
    upper.set_ylabel("loss")
    upper.legend(loc="upper right")
    for axes in lower:
        for fit, own in trainings.items():
            steps, rates = [r["step"] + begins[fit] for r in own], [_number(r.get("lr")) for r in own]
            axes.plot(*_thin(steps, rates), color=GREY, linewidth=1.6)
        axes.set_ylabel("learning\nrate")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=False)
        axes.yaxis.get_offset_text().set_size(10)
    (lower[-1] if lower else upper).set_xlabel("optimiser step")
    return figure


def retention(report: Report) -> Figure | None:
    """What the student and its start kept of the teacher, against size and latency.

    A big mark is the mean over the evaluation sets' headline metrics, a small one each set. The start has the
    student's size and speed. None when nothing can be compared.
    """
    lines = [line for line in report.headline() if line.kept(STUDENT) is not None]
    if not lines:
        return None
    costs = {line.metric: line for line in report.costs() if line.value(STUDENT) is not None}
    size = costs.get("disk") or costs.get("parameters")
    chosen = [line for line in (size, costs.get("latency-p50")) if line is not None]
    if not chosen:
        return None
    figure = new_figure(4.0 * len(chosen) + 0.6, 4.0)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, chosen):
        _retention_panel(axes, lines, cost)
    _room_below(panels[0], lines)
    panels[0].set_ylabel("kept of the teacher's score")
    panels[0].yaxis.set_major_formatter(lambda y, _: f"{y:.0f} %")
    sets = ", ".join(f"{printable(line.metric)} on {printable(line.where)}" for line in lines[:3])
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    figure.suptitle("Quality kept against cost", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(_clip(("mean over " if len(lines) > 1 else "") + sets + more, 96), fontsize=10, color=GREY)
    return figure


def truncation(report: Report) -> Figure | None:
    """The headline metric of each set when vectors are cut to their first dimensions. None without such numbers."""
    cut: dict[tuple, dict[str, dict[int, float]]] = {}
    widths = report.facts.get("width")
    widths = dict(widths) if isinstance(widths, Mapping) else {}
    for subject in (BEFORE, ASYMMETRIC):
        widths.setdefault(subject, widths.get(STUDENT))
    heads = {(line.dataset, line.split, line.metric) for line in report.headline()}
    for line in report.lines():
        place = (line.dataset, line.split, line.metric)
        if place not in heads or set(line.variant) - {"dims"}:
            continue
        for subject, measure in line.measures.items():
            dims = line.variant.get("dims") or widths.get(subject)
            if measure.value is not None and isinstance(dims, int) and dims > 0:
                cut.setdefault(place, {}).setdefault(subject, {})[dims] = measure.value
    cut = {
        place: curves
        for place, curves in cut.items()
        if any(len(values) > 1 for subject, values in curves.items() if subject in LOOKS)
    }
    if not cut:
        return None
    places = list(cut)[:_PANELS]
    columns = min(2, len(places))
    rows = math.ceil(len(places) / columns)
    figure = new_figure(4.4 * columns + (1.2 if columns == 1 else 0), 3.3 * rows + 0.4)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, place in zip(panels, places):
        ticks: set[int] = set()
        for subject in (TEACHER, ASYMMETRIC, STUDENT, BEFORE):
            points = sorted(cut[place].get(subject, {}).items())
            if points:
                axes.plot(*zip(*points), **LOOKS[subject])
                ticks.update(dims for dims, _ in points)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(ticks), [str(t) for t in sorted(ticks)])
        axes.minorticks_off()
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        dataset, split, metric = place
        axes.set_title(_clip(printable(f"{dataset} {split or ''}"), 34), loc="left", fontsize=12)
        axes.set_ylabel(printable(metric))
        axes.set_xlabel("dimensions kept")
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    shown = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels())}
    # Four names side by side are wider than one panel.
    beside = len(shown) if columns > 1 else 2
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=beside)
    figure.suptitle("Vectors cut to their first dimensions", x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


# -- inside ---------------------------------------------------------------------------------------------------


def _retention_panel(axes: Axes, lines: Sequence[Line], cost: Line) -> None:
    places = {TEACHER: cost.value(TEACHER), STUDENT: cost.value(STUDENT)}
    places[BEFORE] = cost.value(BEFORE) or places[STUDENT]
    places[ASYMMETRIC] = None  # two models at once: no one size
    axes.axhline(100, color=LOOKS[TEACHER]["color"], linewidth=1, linestyle=(0, (4, 3)))
    known = [x for x in places.values() if x]
    low, high = min(known), max(known)
    for subject, x in places.items():
        kept = [100.0] if subject == TEACHER else [100 * k for line in lines if (k := line.kept(subject)) is not None]
        if not x or not kept:
            continue
        look = {k: LOOKS[subject][k] for k in ("color", "marker")}
        mean = sum(kept) / len(kept)
        if len(kept) > 1:
            axes.plot([x] * len(kept), kept, **look, linestyle="", markersize=5, alpha=0.35)
        axes.plot([x], [mean], **look, linestyle="", markersize=11)
        # Beside the mark, on the side where there is room; the teacher's below its line.
        left = high > low and x > (low + high) / 2
        below = subject == TEACHER
        axes.annotate(
            LOOKS[subject]["label"] + ("" if below else f"\n{mean:.0f} %"), (x, mean),
            xytext=(0 if below else -12 if left else 12, -16 if below else 0), textcoords="offset points",
            ha="center" if below else "right" if left else "left", va="center", fontsize=11, linespacing=1.1,
        )  # fmt: skip
    if not places[TEACHER]:
        axes.annotate("teacher (cost not measured)", (1, 100), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=10, color=GREY)  # fmt: skip
    if high > 12 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 2.2, high * 2.2)
        axes.xaxis.set_minor_formatter(lambda *_: "")
    else:
        axes.set_xlim(0, high * (1.25 if high > 1.6 * low else 1.9))  # room for the words beside close marks
        axes.locator_params(axis="x", nbins=4)
    unit = cost.any.unit
    axes.xaxis.set_major_formatter(lambda x, _: "0" if x == 0 else tick(x, unit))
    axes.set_xlabel(label(cost))


def _room_below(axes: Axes, lines: Sequence[Line]) -> None:
    """From a round number under the lowest mark to a little over the highest: the axis need not start at zero, as
    marks, not bars, carry the value."""
    kept = [100 * k for line in lines for s in (BEFORE, STUDENT) if (k := line.kept(s)) is not None]
    low, high = min(kept), max(100.0, *kept)
    axes.set_ylim(10 * math.floor((low - 6) / 10), high + 0.08 * (high - low) + 3)


def tick(value: float, unit: str) -> str:
    """A tick without needless decimals: "25 MB", "2.5 ms"."""
    text = number(value, unit)
    figure, _, rest = text.partition(" ")
    return f"{float(figure.replace(',', '')):g} {rest}".rstrip()


def new_figure(width: float, height: float) -> Figure:
    # Without pyplot: no display is looked for, and nothing stays in a global list of figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    from kdhub.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, png(figure))
    return path


def png(figure: Figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same numbers give the same bytes
    return buffer.getvalue()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _smooth(values: Sequence[float]) -> Sequence[float]:
    """Centred mean over a fortieth of the records to each side, when there are enough to need it."""
    if len(values) < 60:
        return values
    reach = len(values) // 40
    out = []
    for i in range(len(values)):
        side = min(reach, i, len(values) - 1 - i)  # as many on both sides, so that the ends do not lag
        near = [v for v in values[i - side : i + side + 1] if not math.isnan(v)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


def _thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most some hundred points, first and last included."""
    if len(steps) <= _POINTS:
        return list(steps), list(values)
    picked = sorted({round(i * (len(steps) - 1) / (_POINTS - 1)) for i in range(_POINTS)})
    return [steps[i] for i in picked], [values[i] for i in picked]


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
