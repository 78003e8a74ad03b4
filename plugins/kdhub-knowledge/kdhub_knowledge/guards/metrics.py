"""Measures of data sets that `harmaug:` made: of the outcomes of its requests, in the files of the student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdhub.dataset_student import splits_in

OUTCOME = "outcome"


def refusal_rate(folder: Path) -> Mapping[str, float]:
    """Refused requests over requests."""
    return _share(folder, "refused")


def kept_rate(folder: Path) -> Mapping[str, float]:
    """Requests that became an instruction over requests."""
    return _share(folder, "kept")


def _share(folder: Path, outcome: str) -> Mapping[str, float]:
    tables = {name: table for name, table in splits_in(folder).items() if OUTCOME in table.column_names}
    return {name: table[OUTCOME][:].count(outcome) / len(table) for name, table in tables.items()}
