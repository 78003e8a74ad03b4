"""The check that every card must pass before it is published, whoever wrote or edited it.

A card is a stranger's text: HTML, links, placeholders, secrets, and figures that are not in the report are named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from kdhub.evaluation.card import ABOUT, DATASET, HUB_ID, LICENCES, REQUIRED, SCHEMA, many
from kdhub.evaluation.report import ASYMMETRIC, STUDENT, Report, printable
from kdhub.families import MEMBER
from kdhub.hub.trust import split_card
from kdhub.plain_json import fit
from kdhub.secrets import SECRET
from kdhub.shapes import Shape, Text
from kdhub.student import RELATIONS


class _Metric(Shape):
    type: str
    value: float
    name: Text = None
    args: dict[str, str | float | bool | None] | None = None


class _Dataset(Shape):
    type: Text = None
    name: str
    split: Text = None


class _Task(Shape):
    type: Text = None


class _Result(Shape):
    task: _Task = _Task()
    dataset: _Dataset
    metrics: list[_Metric]


class _Model(Shape):
    results: list[_Result]


class _Method(Shape):
    name: Text = None


class _Own(Shape):
    name: Text = None
    kind: Text = None
    task: Text = None
    method: _Method | None = None
    recipe_sha256: Text = None
    members: dict[str, dict[str, Any]] = {}
    cost: dict[str, float | None] = {}


class Front(Shape):
    """What the front matter of a card must be, as far as anything here reads it."""

    license: Text = None
    license_name: Text = None
    library_name: Text = None
    pipeline_tag: Text = None
    tags: list[str] = []
    base_model: str | list[str] | None = None
    base_model_relation: Text = None
    models: list[_Model] | None = Field(None, alias="model-index")
    kdhub: _Own | None = None


def read_card(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card.

    Raises:
        ValueError: there is no front matter, or it is not what it must be; names the key.
    """
    front, body = split_card(card)
    try:
        return fit(Front, front), body
    except ValueError as error:
        raise ValueError(f"front matter: {error}") from None


def check_card(card: str, report: Report | None = None) -> list[str]:
    """What is wrong with a card, one sentence each; an empty list when it may be published.

    Args:
        card: its whole text.
        report: when given, every result in the front matter must be one of its numbers.
    """
    try:
        front, body = read_card(card)
    except ValueError as error:
        return [str(error)]
    return [*_check_front(front), *_check_results(front, report), *_check_body(body), *_check_secrets(card)]


def _check_front(front: Mapping[str, Any]) -> Iterable[str]:
    own = front.get("kdhub") or {}
    is_rows = own.get("kind") == DATASET
    for key in (*(("configs", "size_categories") if is_rows else ("library_name",)), "license", "tags", "kdhub"):
        if not front.get(key):
            yield f"front matter: {key!r} is missing"
    tags = front.get("tags") or []
    for wanted in ("kdhub", "knowledge-distillation"):
        if wanted not in tags:
            yield f"front matter: the tag {wanted!r} is missing"
    for prefix in ("kdhub-method:", "kdhub-task:"):
        if not any(tag.startswith(prefix) and len(tag) > len(prefix) for tag in tags):
            yield f"front matter: a tag that begins with {prefix!r} is missing"
    licence = front.get("license")
    if licence and licence != "other" and licence not in LICENCES:
        yield f"front matter: {licence!r} is not a licence identifier; write 'other' and a license_name"
    if licence == "other" and not front.get("license_name"):
        yield "front matter: license 'other' needs a license_name"
    base = front.get("base_model")
    if base is not None:
        for one in many(base):
            if not HUB_ID.fullmatch(one):
                yield f"front matter: base_model {one!r} is not an id on a hub (org/name)"
        if front.get("base_model_relation") not in RELATIONS:
            yield f"front matter: base_model_relation is {front.get('base_model_relation')!r}, not one that hubs know"
    if own:
        if own.get("schema") != SCHEMA:
            yield f"front matter: kdhub.schema is {own.get('schema')!r}, this kdhub reads {SCHEMA}"
        if not (own.get("method") or {}).get("name"):
            yield "front matter: kdhub.method.name is missing"
        if not own.get("recipe_sha256"):
            yield "front matter: kdhub.recipe_sha256 is missing"


def _check_results(front: Mapping[str, Any], report: Report | None) -> Iterable[str]:
    measured = None
    if report is not None:
        known = (m for m in report.measures if m.value is not None and m.subject in (STUDENT, ASYMMETRIC))
        measured = {
            (m.metric, m.dataset and printable(m.dataset), m.split, m.variant.get(MEMBER), round(float(m.value), 6))
            for m in known
        }
    count = 0
    for result in [result for model in front.get("model-index") or [] for result in model["results"]]:
        dataset = result["dataset"]
        if not ((result.get("task") or {}).get("type") and dataset.get("type") and dataset["name"]):
            yield "front matter: a result of model-index lacks its task, data set type or data set name"
        for metric in result["metrics"]:
            count += 1
            value, of = metric["value"], (metric.get("args") or {}).get(MEMBER)
            name = f"{metric.get('name') if of else metric['type']} on {dataset['name']}"
            if not math.isfinite(value):
                yield f"front matter: {name} is {value!r}, not a number"
            elif measured is not None:
                if (metric["type"], dataset["name"], dataset.get("split"), of, round(value, 6)) not in measured:
                    yield f"front matter: {name} is {value}, which is not in the report"
    if not count:
        yield "front matter: model-index has no results; evaluate the student first"


def _check_body(body: str) -> Iterable[str]:
    parts = re.split(r"^## (.+)$", _without_fences(body), flags=re.MULTILINE)
    titles = [title.strip() for title in parts[1::2]]
    for title, content in zip(titles, parts[2::2]):
        # A section that holds only code is left blank by _without_fences, so a mark stands there instead.
        if not content.strip():
            yield f"the section {title!r} is empty"
    if not re.match(r"\s*# \S", parts[0]) or len(parts[0].strip().splitlines()) < 2:
        yield "the card needs a title and a paragraph that says what the student is for"
    for title in REQUIRED:
        if title != ABOUT and title not in titles:
            yield f"the section {title!r} is missing"
    prose = _without_code(body)
    for left in ("{path}", "More Information Needed"):
        if left in body:
            yield f"placeholder text: {left}"
    for left in dict.fromkeys(re.findall(r"\b(?:TODO|FIXME|TBD)\b|\{\{.*?\}\}", prose)):
        yield f"placeholder text: {left}"
    for tag in dict.fromkeys(re.findall(r"<(?:!|/?)([A-Za-z][\w:-]*)[^>]*>?", prose)):
        if tag.lower() not in ("details", "summary"):
            yield f"the text holds raw HTML: <{tag}>"
    for opening in re.findall(r"<(?:details|summary)\b([^>]*)>", prose, re.IGNORECASE):
        if opening.strip():
            yield f"the text holds raw HTML with attributes: {opening.strip()}"
    for target in dict.fromkeys(re.findall(r"\]\(\s*<?([^)>\s]*)", prose)):
        if not re.match(r"https?://|#|plots/[\w.-]+$|[\w-][\w./-]*$", target) or ".." in target:
            yield f"a link leads to {target!r}: only https and files beside the card are allowed"


def _check_secrets(card: str) -> Iterable[str]:
    if found := SECRET.search(card):
        yield f"the card holds what looks like a secret: {found[0][:6]}..."


def _without_fences(body: str) -> str:
    """Fenced code replaced by one word a block, so that headings and HTML inside are not taken for the card's."""
    return re.sub(r"^(`{3,})[^`\n]*\n.*?^\1`*[ \t]*$", "(code)", body, flags=re.MULTILINE | re.DOTALL)


def _without_code(body: str) -> str:
    """Text without code and without escaped characters, read from the left as Markdown does. Only code on one line
    counts: what spans blocks is no code to Markdown, and could hide something."""
    prose = _without_fences(body)
    return re.sub(r"\\[^\w\s]|(?<!`)(`+)(?!`)[^\n]+?(?<!`)\1(?!`)", lambda m: "(code)" if m[1] else "", prose)
