"""Writes the tables of README.md and docs/*.md from the code: `make docs`. A test fails when one is out of date.

A table stands between `<!-- table NAME -->` and `<!-- /table -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdhub.catalogue.catalog import Catalog
from kdhub.comparison.comparison import Claim, Comparison
from kdhub.plugins.registry import Entry, Registry
from kdhub.recipes.recipe import DataRef, Evaluation, Recipe, Ref, SignalOptions
from kdhub.verbs import listing

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"(<!-- table ([a-z:-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def distributions() -> list[str]:
    """kdhub's own: what else is installed here is nothing to the docs."""
    return [tomllib.loads(p.read_text())["project"]["name"] for p in (ROOT / "plugins").glob("*/pyproject.toml")]


def entries(kind: str) -> list[Entry]:
    own = {"kdhub", *distributions()}
    return sorted((e for e in Registry().all(kind) if e.distribution in own), key=lambda e: e.name)


def own_catalog() -> Catalog:
    return Catalog([*sorted((ROOT / "plugins").glob("*/*/registry")), ROOT / "registry"])


def markdown(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *([str(c).replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def paper(text: str) -> str:
    return f"[{text}](https://arxiv.org/abs/{text[6:]})" if text.startswith("arXiv:") else text


def methods() -> str:
    rows = [
        [f"`{e.name}`", listing.tasks_in_short(e.spec.tasks), ", ".join(e.spec.needs), e.spec.summary]
        + [paper(e.spec.paper), f"`{e.distribution}`", _measured(e.name)]
        for e in entries("method")
    ]
    heads = ["method", "task", "needs of the teacher", "what it does", "paper", "comes with", "claims confirmed"]
    return markdown(heads, rows)


def method_options() -> str:
    parts = []
    for entry in entries("method"):
        target = Registry().load(entry)
        recipe = f"Recipe `{entry.spec.recipe}`: `kdhub distill --method {entry.name}`." if entry.spec.recipe else ""
        parts.append(f"### {entry.name}\n\n{recipe}\n\n{keys(target.Options, target.defaults_for)}")
    return "\n" + "\n".join(parts)


def kinds(kind: str) -> str:
    """What may stand in front of the colon, and the options of each where it has some."""
    rows, options = [], []
    for entry in entries(kind):
        argument = entry.spec.argument
        rows.append([f"`{entry.name}:{argument}`" if argument else f"`{entry.name}`", entry.spec.summary])
        if kind == "teacher" and (model := getattr(Registry().load(entry), "Options", None)):
            options.append((entry.name, keys(model)))
    text = markdown(["source", "what it is"], rows)
    for table in dict.fromkeys(table for _, table in options):
        names = ", ".join(f"`{name}`" for name, other in options if other == table)
        text += f"\nOptions of {names}:\n\n{table}"
    return text


def keys(model: Any, defaults_for: Any = None) -> str:
    rows = []
    for field in listing.fields(model, defaults_for):
        annotation = next(f.annotation for n, f in model.model_fields.items() if field["name"] in (n, f.alias))
        kind = field["type"].replace("any", "text or mapping" if _reference(annotation) else "mapping")
        kind = "text or mapping" if annotation is Ref else kind
        limits = f", {field['range']}" if field["range"] else ""
        rows.append([f"`{field['name']}`", kind + limits, _default(model, field), field["description"]])
    return markdown(["key", "type", "default", "meaning"], rows)


def _reference(annotation: Any) -> bool:
    """Whether a key takes what people write as one text too, which its schema does not say."""
    return annotation in (Ref, DataRef) or any(_reference(a) for a in getattr(annotation, "__args__", ()))


def _default(model: Any, field: dict[str, Any]) -> str:
    if any(f.is_required() and (f.alias or n) == field["name"] for n, f in model.model_fields.items()):
        return "required"
    value = field["default"]
    empty = value is None or value in ("", [], {}) or not isinstance(value, (str, int, float, list))
    return "" if empty else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def evaluation_options() -> str:
    return "\n".join(
        f"`{entry.name}`:\n\n" + keys(Registry().load(entry).EvaluationOptions) for entry in entries("task")
    )


def evidence_of_all() -> str:
    """A heading a method, a table a comparison."""
    from kdhub.comparison import evidence
    from kdhub.evaluation import report

    parts, catalog = [], own_catalog()
    for method in evidence.methods(catalog):
        parts.append(f"\n## {method}\n")
        for entry in evidence.of_method(method, catalog):
            table = report.markdown(evidence.table([entry]), lambda cell: cell.replace("|", "\\|"))
            told = f"`{entry['command']}`, {entry['metric']} on {entry['data']}, {entry['date']}"
            parts.append(
                f"{entry['summary'][:1].upper()}{entry['summary'][1:]}. {told}, {entry['machine']}.\n\n{table}\n"
            )
    return "\n".join(parts)


def _measured(method: str) -> str:
    """How many of its claims came out as expected."""
    from kdhub.comparison import evidence

    claims = [c for e in evidence.of_method(method, own_catalog()) for c in e["claims"]]
    good = sum(claim["outcome"] == "as expected" for claim in claims)
    return f"{good} of {len(claims)}" if claims else ""


TABLES = {
    "methods": methods,
    "evidence": evidence_of_all,
    "comparison": lambda: keys(Comparison),
    "claim": lambda: keys(Claim),
    "method-options": method_options,
    "recipe": lambda: keys(Recipe),
    "data": lambda: keys(DataRef),
    "signals": lambda: keys(SignalOptions),
    "evaluation": lambda: keys(Evaluation),
    "evaluation-options": evaluation_options,
    "teachers": lambda: kinds("teacher"),
    "students": lambda: kinds("student"),
    "datasets": lambda: kinds("dataset"),
}


def filled(text: str) -> str:
    """The document with its tables made again."""
    return PLACE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
