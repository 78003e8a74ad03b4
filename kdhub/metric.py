"""The metric contract, and the one record every number becomes.

A metric is a plain function named by a `MetricSpec`:

    quality    f(outputs) -> float
    fidelity   f(outputs, teacher_outputs) -> float
    files      f(folder) -> float, {split: float}, or a list of `Part`
    cost       f(costed) -> float

where `outputs` is what its task's `outputs` returns for the form named in the spec. Where a metric means nothing (an
area under the curve of ten classes) it gives None and is left out of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A number that a metric of files gives for a part of them.

    Attributes:
        split: of the files; None for all of them.
        variant: what else tells the part from others (`{"relation": "xWant"}`), written into the measure.
    """

    value: float | None
    split: str | None = None
    variant: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Costed:
    """A model whose cost is being measured, as a metric of cost gets it (`MetricSpec.cost`).

    Attributes:
        model: a student, or a teacher at hand.
        folder: where its files are, if they are in one.
        answer: n -> what it gives for n plain rows of the evaluation data, as named fields; None for a student that is
            not run.
    """

    model: Any
    folder: Path | None = None
    answer: Callable[[int], Mapping[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number about one subject.

    Attributes:
        metric: its name; `unit` is "" for a plain ratio or correlation.
        value: None when it could not be measured; `note` then says why, else what there is to say of it.
        subject: teacher, student, student-before, asymmetric, or baseline:<name>.
        dataset, split, examples: what it was measured on; None for costs that need no data.
        higher_is_better: its direction.
        variant: how the outputs were looked at (`{"dims": 96}`), empty for as they are.
        seeds, std: how many runs `value` is the mean of, and their standard deviation.
        low, high: of a time, its range over the rounds it was measured in.
        ratio: of a student's time, its share of the teacher's, the median over rounds in which both took turns.
    """

    metric: str
    value: float | None
    subject: str
    unit: str = ""
    dataset: str | None = None
    split: str | None = None
    examples: int | None = None
    higher_is_better: bool = True
    variant: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1
    std: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None or k == "value"}
