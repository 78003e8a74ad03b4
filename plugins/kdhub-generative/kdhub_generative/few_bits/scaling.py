"""Quality against bits: which students are the best of their size.

    from kdhub_generative.few_bits import scaling

    points = scaling.points(["runs/three-bits", "runs/two-bits", "runs/rounded"], metric="kl")
    scaling.plot(points, "bits.png")

Bits are those of all weights in the files of a student, scales and zeros included (section 4e of `topkld`): "one level
better" is a student of b bits on or above the front of the next higher precision.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from kdhub.errors import UsageError
from kdhub.hub.weights import read_header

_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16}


@dataclass(frozen=True)
class Point:
    """Attributes:
    name: of the run's folder.
    bits: of all weights.
    value: of the metric; `best`: whether no smaller or equally large student has a better one.
    """

    name: str
    bits: int
    value: float
    best: bool = False


def weight_bits(folder: Path) -> int:
    """Bits of all weights in a student's folder, without headers and the shapes of packed weights."""
    return sum(
        _BITS.get(kind, 8) * prod(shape)
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, (kind, shape) in read_header(file).tensors.items()
        if not name.endswith(".weight_shape")
    )


def points(runs: Sequence[str | Path], metric: str = "kl") -> list[Point]:
    """The students of some run folders, the smallest first.

    Raises:
        UsageError: a folder is no finished run, or was not measured by the metric.
    """
    found, lower = [], True
    for run in map(Path, runs):
        try:
            measures = json.loads((run / "report.json").read_text())["measures"]
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{run} is not a finished run: it has no readable report.json") from error
        of = [m for m in measures if (m["metric"], m["subject"]) == (metric, "student") and m["value"] is not None]
        if not of:
            raise UsageError(f"{run} was not measured by {metric!r}", hint="name one of its report")
        lower = not of[0].get("higher_is_better", True)
        found.append(Point(run.name, weight_bits(run / "student"), of[0]["value"]))
    found.sort(key=lambda p: (p.bits, p.value if lower else -p.value))
    best: float | None = None
    marked = []
    for point in found:
        wins = best is None or (point.value < best if lower else point.value > best)
        best = point.value if wins else best
        marked.append(Point(point.name, point.bits, point.value, wins))
    return marked


def plot(given: Sequence[Point], file: str | Path, label: str = "quality") -> None:
    """Quality against total bits as a PNG, with the front."""
    from kdhub.evaluation.plots import new_figure, save_figure

    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    axes.plot([p.bits for p in given], [p.value for p in given], marker="o", linestyle="", alpha=0.5)
    front = [p for p in given if p.best]
    axes.plot(
        [p.bits for p in front], [p.value for p in front], marker="o", drawstyle="steps-post", label="best of its size"
    )
    for p in given:
        axes.annotate(p.name, (p.bits, p.value), xytext=(4, 4), textcoords="offset points", fontsize=9)
    axes.set_xlabel("bits of all weights, scales included")
    axes.set_ylabel(label)
    axes.set_title("Quality against bits", loc="left")
    axes.legend(loc="best")
    save_figure(figure, Path(file))
