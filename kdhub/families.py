"""Families of sizes: students that hold students (`Student.members`), and which of them is meant.

A supernet, a pool of stitched parts or nested slices is one student, trained, saved and published as a whole. It says
which members it has and how to cut one out; all else follows: each is measured and its cost counted (measures have the
member's name as their variant, see `kdhub.metric`), and any may be opened, published or trained on by name or by what
it may cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UnknownNameError, UsageError
from kdhub.plain_json import read_json

if TYPE_CHECKING:
    from kdhub.student import Student

MEMBER = "member"
"""Key of the variant of a measure of one member."""

LIMITS = {"parameters": "parameters", "flops": "flops", "bytes": "disk", "latency": "latency-p50"}
"""Limit of a budget -> the metric of cost that it is one of."""


class Budget(BaseModel):
    """Which member: by name, or the best of those that cost at most so much, by the report that lies beside it."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(None, description="the member itself; if unset the best within the limits")
    parameters: int | None = Field(None, ge=1, description="most parameters, counted here")
    flops: int | None = Field(None, ge=1, description="most floating-point operations of one example")
    bytes: int | None = Field(None, ge=1, description="most bytes on disk")
    latency: float | None = Field(None, gt=0, description="most ms for one example, of members that were timed")
    metric: str | None = Field(None, description="what the best is best in; if unset the report's first primary metric")


@dataclass
class Size:
    """What a report says of a member.

    Attributes:
        costs: metric -> number.
        score: on the first data set; None where it was not measured.
    """

    costs: dict[str, float] = field(default_factory=dict)
    score: float | None = None


@dataclass(frozen=True)
class Sizes:
    """The members in a report, in its order.

    Attributes:
        metric, dataset, split: what their scores are of; "" where there are none.
    """

    members: dict[str, Size]
    metric: str = ""
    dataset: str = ""
    split: str | None = None
    higher_is_better: bool = True

    @classmethod
    def of(cls, measures: Iterable[Mapping[str, Any]], primary: Iterable[str] = (), metric: str | None = None) -> Sizes:
        """
        Args:
            measures: of a report, as `Measure.to_dict` gives them; those that are none of a member are passed over.
            primary: the metrics that stand for quality.
            metric: what scores are of; the first primary one, else the first that members have, if None.
        """
        own = [m for m in measures if _of_member(m)]
        scored = [m for m in own if m.get("dataset") and (metric is None or m["metric"] == metric)]
        first = next((m for m in scored if m["metric"] in set(primary)), scored[0] if scored else {})
        place = tuple(first.get(key) for key in ("metric", "dataset", "split"))
        members: dict[str, Size] = {}
        for m in own:
            size = members.setdefault(m["variant"][MEMBER], Size())
            if not m.get("dataset"):
                size.costs[m["metric"]] = m["value"]
            elif (m["metric"], m["dataset"], m.get("split")) == place:
                size.score = m["value"]
        if not first:
            return cls(members)
        return cls(members, *place, higher_is_better=first.get("higher_is_better", True))

    def front(self, cost: str) -> list[str]:
        """The members that no other beats at the same or a smaller cost, the cheapest first (the Pareto front)."""
        sign = 1 if self.higher_is_better else -1
        known = [
            (size.costs[cost], -sign * size.score, name)
            for name, size in self.members.items()
            if size.score is not None and cost in size.costs
        ]
        front, best = [], math.inf
        for _, loss, name in sorted(known):
            if loss < best:
                best = loss
                front.append(name)
        return front


def _of_member(measure: Any) -> bool:
    variant = measure.get("variant") if isinstance(measure, Mapping) else None
    value = measure.get("value") if isinstance(variant, Mapping) else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and set(variant) == {MEMBER} and measure.get("subject") == "student"


def member_in(family: Student, folder: Path, wanted: str | Mapping[str, Any], what: str) -> str:
    """The name of the member that is meant.

    Args:
        folder: where the family lies; its report is there, or in the run around it.
        wanted: a name, or a `Budget`.
        what: the family in messages.

    Raises:
        UsageError: it is no family; nothing says which; or none is within the budget (with the least there is).
        UnknownNameError: it has no such member.
    """
    if not family.members:
        raise UsageError(f"{what} is one student, not a family of sizes: it has no members")
    budget = Budget(name=wanted) if isinstance(wanted, str) else Budget.model_validate(dict(wanted))
    limits = {metric: limit for key, metric in LIMITS.items() if (limit := getattr(budget, key)) is not None}
    if budget.name is not None and budget.name not in family.members:
        raise UnknownNameError(f"member of {what}", budget.name, family.members, how_to_list=_listed(family))
    if budget.name is None and not limits:
        some = f"a name ({_listed(family)}), or a limit of {', '.join(LIMITS)}"
        raise UsageError(f"{what} is a family of {len(family.members)}: say which member", hint=f"give {some}")
    if budget.name is not None and not limits:
        return budget.name
    sizes, allowed = sizes_at(folder, budget.metric), [budget.name] if budget.name is not None else list(family.members)
    known = {name: dict(sizes.members.get(name, Size()).costs) for name in allowed}
    for name, costs in known.items():
        if (module := family.cut(name).module) is not None:  # counted, whatever a report says
            costs["parameters"] = sum(p.numel() for p in module.parameters())
    fitting = [n for n in allowed if all(known[n].get(m, math.inf) <= limit for m, limit in limits.items())]
    if not fitting:
        raise UsageError(f"no member of {what} is within the budget: {_least(limits, known)}")
    scored = {n: sizes.members[n].score for n in fitting if n in sizes.members}
    scored = {n: score for n, score in scored.items() if score is not None}
    if not scored and budget.metric is not None:
        raise UsageError(f"{what}: no member within the budget has a score in {budget.metric} (metric={budget.metric})")
    sign = 1 if sizes.higher_is_better else -1
    if not scored:
        return fitting[-1]  # the largest
    return max(scored, key=lambda name: sign * scored[name])  # of equals the first, which is the smallest


def sizes_at(folder: Path, metric: str | None = None) -> Sizes:
    """What the report beside a student says of its members; of none where there is no report."""
    for path in (folder / "report.json", folder.parent / "report.json"):
        try:
            report = read_json(path)
            facts = report.get("facts") or {}
            return Sizes.of(report["measures"], (facts.get("primary") or {}).values(), metric)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return Sizes({})


def _listed(family: Student) -> str:
    return ", ".join([*list(family.members)[:8], *(["..."] if len(family.members) > 8 else [])])


def _least(limits: Mapping[str, float], known: Mapping[str, Mapping[str, float]]) -> str:
    """What each limit asks, and the smallest that there is."""
    told = []
    for metric, limit in limits.items():
        values = {n: costs[metric] for n, costs in known.items() if metric in costs}
        least = min(values, key=values.get) if values else None
        at = f"the least is {values[least]:,.6g}, of {least}" if least else "it is not known of any (no report has it)"
        told.append(f"{metric} of at most {limit:,.6g}: {at}")
    return "; ".join(told)
