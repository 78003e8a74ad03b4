"""The evidence ledger: for each method what was expected of it, and what was measured. One JSON file a method.

An entry is one comparison: its claims with means, deviations, paired differences and how they came out, and all that
is needed to run it again. A comparison that is run again replaces its entry; the others stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdhub.catalogue.catalog import Catalog
from kdhub.comparison.comparison import SCHEMA, Result, claim_table
from kdhub.errors import RunError
from kdhub.evaluation.report import Table
from kdhub.files import write_json
from kdhub.plain_json import read_json

SECTION = "evidence"


def record(result: Result, folder: Path) -> list[Path]:
    """Write what a comparison says of each method it has claims for into `<folder>/<method>.json`.

    Raises:
        RunError: a file there is no evidence, or a claim could not be measured.
    """
    claims = result.claims()
    if missing := [claim["text"] for claim in claims if "difference" not in claim]:
        raise RunError(f"not measured: {'; '.join(missing)}", hint="kdhub compare --resume tries failed cells again")
    written = []
    for method in dict.fromkeys(claim["method"] for claim in claims):
        path = folder / f"{method}.json"
        entries = [e for e in read(path) if e["comparison"] != result.name] if path.exists() else []
        own = [{k: v for k, v in claim.items() if k != "method"} for claim in claims if claim["method"] == method]
        entries.append(_entry(result, own))
        folder.mkdir(parents=True, exist_ok=True)
        entries.sort(key=lambda entry: entry["comparison"])
        write_json(path, {"schema": SCHEMA, "method": method, "entries": entries})
        written.append(path)
    return written


def _entry(result: Result, claims: list[dict[str, Any]]) -> dict[str, Any]:
    env = result.environment
    hardware = env.get("hardware", {})
    values = {arm: dict(sorted(result.of(arm).items())) for arm in result.arms}
    return {
        "comparison": result.name,
        "command": f"kdhub compare {result.name}",
        "summary": result.plan.get("summary", ""),
        "date": env["started"][:10],
        "versions": env["versions"],
        "machine": f"{hardware.get('processor')}, {hardware.get('cores')} cores",
        "threads": env.get("threads_each"),
        "metric": result.metric,
        "data": result.data,
        "values": values,
        "claims": claims,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of one file.

    Raises:
        RunError: it is no evidence, or of another schema.
    """
    try:
        value = read_json(path)
        if value["schema"] != SCHEMA:
            raise RunError(f"{path} has schema {value['schema']!r}, this kdhub reads {SCHEMA}")
        return list(value["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not evidence: {error}") from error


def of_method(method: str, catalog: Catalog) -> list[dict[str, Any]]:
    """What the catalogue has about a method; of two entries for one comparison the first folder's holds."""
    found: dict[str, dict[str, Any]] = {}
    for folder in catalog.folders:
        if (path := folder / SECTION / f"{method}.json").is_file():
            for entry in read(path):
                found.setdefault(entry["comparison"], entry)
    return list(found.values())


def methods(catalog: Catalog) -> list[str]:
    """Those that the catalogue has evidence about."""
    return sorted({path.stem for folder in catalog.folders for path in (folder / SECTION).glob("*.json")})


def table(entries: Iterable[Mapping[str, Any]], title: str = "Evidence") -> Table:
    """A row a claim."""
    return claim_table((claim for entry in entries for claim in entry["claims"]), title)
