"""`kdhub.search`: published students on a hub, by the plain tags that their cards carry, or in the catalogue."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from kdhub.errors import HubError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from kdhub.hub.client import Hub

TAG = "kdhub"
KINDS = ("model", "dataset")
MOST = 10_000
"""Repositories of a hub that are looked at."""

SORTS = {"parameters": False, "size": False, "latency": False, "updated": True, "downloads": True}
"""What students can be sorted by besides metrics, and whether more is better."""

COSTS_OF = {"parameters": "parameters", "size": "disk", "latency": "latency-p50"}
"""The measure each of these is."""


@dataclass
class Found:
    """One published student.

    Attributes:
        name: in the catalogue, where it was found there.
        results: `metric` and `metric on data split` -> value, of the student.
        parameters, size, latency: of the student, as reported by its maker: number, bytes, ms; None when unknown.
    """

    repo: str
    kind: str
    commit: str | None = None
    task: str | None = None
    method: str | None = None
    teacher: str | None = None
    licence: str | None = None
    parameters: float | None = None
    size: float | None = None
    latency: float | None = None
    updated: str | None = None
    downloads: int | None = None
    results: dict[str, float] = field(default_factory=dict)
    name: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def search(
    text: str = "",
    *,
    method: str | None = None,
    task: str | None = None,
    teacher: str | None = None,
    sort: str | None = None,
    limit: int = 20,
    endpoint: str | None = None,
    local: bool = False,
) -> list[Found]:
    """Published students, best first.

    Args:
        text: words that must all be in the name or in what the card says of task, method and teacher.
        method, task, teacher: exactly these.
        sort: a metric (`ndcg@10`, or `ndcg@10 on scifact test`), or one of parameters, size, latency, updated,
            downloads; the newest first by default. What has no such number comes last.
        limit: how many at most.
        local: of the published students of the catalogue, without a network.

    Raises:
        UsageError: both `local` and an endpoint.
        HubError: the hub cannot be reached or does not answer as one.
        UnknownNameError: nothing that was found has the metric.
    """
    wanted = {"method": method, "task": task, "teacher": teacher}
    wanted = {name: value for name, value in wanted.items() if value}
    words = text.lower().split()
    if local:
        if endpoint:
            raise UsageError("--local searches the catalogue, --endpoint a hub", hint="leave out one of them")
        return _local(words, wanted, sort or "updated", limit)
    from kdhub.hub.client import Hub

    hub = Hub(endpoint)
    tags = [TAG, *(f"kdhub-{name}:{value}" for name, value in wanted.items())]
    found = [
        one
        for kind in KINDS
        for row in _rows(hub, kind, tags)
        if (one := parse_row(row, kind, tags)) is not None and _has(one, words)
    ]
    return _sorted(found, sort or "updated")[:limit]


def _local(words: list[str], wanted: dict[str, str], sort: str, limit: int) -> list[Found]:
    """The same from the catalogue's entries. How often they were downloaded is not known there."""
    from kdhub.catalogue.catalog import default_catalog

    index = default_catalog().index("published")
    by = "updated" if sort == "downloads" else sort
    more = SORTS[by] if by in SORTS else _higher_is_better(by.partition(" on ")[0])
    found = index.search(words, wanted, by, more, limit)
    if found and by not in SORTS and found[0]["sorted"] is None and by not in (known := index.metrics()):
        raise UnknownNameError("metric", by, [*known, *SORTS], how_to_list="kdhub search --json shows all results")
    return [Found(**{k: v for k, v in one.items() if k != "sorted"}) for one in found]


def _rows(hub: Hub, kind: str, tags: list[str]) -> Iterator[Any]:
    """Rows of a hub's list. Which ones fit is decided here: some hubs know few filters, and some none."""
    query = [("filter", tag) for tag in tags] + [("full", "true"), ("cardData", "true"), ("limit", "1000")]
    doing, count = f"searching {hub.endpoint}", 0
    for page in hub.pages(f"/api/{kind}s?{urlencode(query)}", doing):
        if not isinstance(page, list):
            raise HubError(f"{doing}: the hub's list is a {type(page).__name__}", hint="is this a hub? see --endpoint")
        yield from page
        count += len(page)
        if count >= MOST:
            return


def parse_row(row: Any, kind: str, tags: list[str]) -> Found | None:
    """A row as a student; None when it is none, or lacks one of the tags. Everything in it may be missing or wrong."""
    from kdhub.evaluation.report import printable

    if not isinstance(row, Mapping) or not isinstance(repo := row.get("id") or row.get("modelId"), str):
        return None
    card = row.get("cardData") if isinstance(row.get("cardData"), Mapping) else {}
    carried = [
        t for of in (row.get("tags"), card.get("tags")) if isinstance(of, list) for t in of if isinstance(t, str)
    ]
    if not set(tags) <= set(carried):
        return None
    own = card.get("kdhub") if isinstance(card.get("kdhub"), Mapping) else {}
    cost = own.get("cost") if isinstance(own.get("cost"), Mapping) else {}
    said = {
        name: next((t.partition(":")[2] for t in carried if t.startswith(f"kdhub-{name}:")), None) for name in _SAID
    }
    licence = card.get("license_name") or card.get("license")
    return Found(
        repo=printable(repo),
        kind=kind,
        commit=row.get("sha") if isinstance(row.get("sha"), str) else None,
        licence=printable(licence) if isinstance(licence, str) else None,
        **{name: printable(value) if value else None for name, value in said.items()},
        **{name: _number(cost.get(metric)) for name, metric in COSTS_OF.items()},
        updated=row.get("lastModified") if isinstance(row.get("lastModified"), str) else None,
        downloads=row.get("downloads") if isinstance(row.get("downloads"), int) else None,
        results=_results(row.get("model-index") or card.get("model-index")),
    )


_SAID = ("task", "method", "teacher")


def _results(index: Any) -> dict[str, float]:
    """Results of a `model-index`: each once by metric and data, and the first of a metric by its bare name."""
    from kdhub.evaluation.card import TOGETHER
    from kdhub.evaluation.report import printable

    found: dict[str, float] = {}
    for model in index if isinstance(index, list) else []:
        for result in _items(model, "results"):
            data = result.get("dataset") if isinstance(result.get("dataset"), Mapping) else {}
            where = " ".join(str(part) for part in (data.get("name"), data.get("split")) if part)
            for metric in _items(result, "metrics"):
                value = _number(metric.get("value"))
                if value is not None and not str(metric.get("name", "")).endswith(TOGETHER):
                    name = printable(metric.get("type"))
                    found.setdefault(name, value)
                    found.setdefault(printable(f"{name} on {where}"), value)
    return found


def _items(value: Any, key: str) -> list[Mapping[str, Any]]:
    items = value.get(key) if isinstance(value, Mapping) else None
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _number(value: Any) -> float | None:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if right and math.isfinite(value) else None


def _has(found: Found, words: list[str]) -> bool:
    text = " ".join(filter(None, (found.repo, found.task, found.method, found.teacher))).lower()
    return all(word in text for word in words)


def _sorted(found: list[Found], by: str) -> list[Found]:
    if by in SORTS:
        value, most = (lambda f: getattr(f, by)), SORTS[by]
    else:
        known = {name for f in found for name in f.results}
        if found and by not in known:
            raise UnknownNameError("metric", by, [*known, *SORTS], how_to_list="kdhub search --json shows all results")
        value, most = (lambda f: f.results.get(by)), _higher_is_better(by.partition(" on ")[0])
    have = [f for f in found if value(f) is not None]
    return sorted(have, key=value, reverse=most) + [f for f in found if value(f) is None]


def _higher_is_better(metric: str) -> bool:
    """As the plugin that provides it says; a metric that nobody here provides is taken for a score."""
    from kdhub.evaluation.report import COSTS
    from kdhub.plugins.registry import Registry

    if metric in COSTS:
        return COSTS[metric][3]
    specs = [e.spec for e in Registry().all("metric") if e.name == metric]
    return specs[0].higher_is_better if specs else True
