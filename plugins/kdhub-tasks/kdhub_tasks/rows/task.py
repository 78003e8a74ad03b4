"""The task of students that are rows: what is measured is in their files, and whether they hold evaluation rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.dataset_student import DatasetStudent
from kdhub.errors import DataError
from kdhub.student import BuildContext
from kdhub.task import Encoder, Task


class Builder(DatasetStudent):
    """A start without rows, which the method adds."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        language: list[str] = Field(default_factory=list, description="codes of its languages, for its card: [en]")
        task_categories: list[str] = Field(
            default_factory=list, description="what it is for, in the Hub's words: [text-generation]"
        )

    def __init__(self, argument: str, context: BuildContext):
        super().__init__(context.task.name, about=context.options)


@dataclass
class Overlap:
    """Which evaluation rows a data set holds.

    Attributes:
        examples: evaluation rows.
        shared: those that are among its rows, by the columns that both have; None where they have none in common.
    """

    examples: int
    shared: int | None


class DataSet(Task):
    name = "data-set"
    primary = {"rows": "distinct-rows"}

    def training_table(self, parts: Any) -> Any:
        from datasets.exceptions import DatasetGenerationError

        try:
            return super().training_table(parts)
        except (ValueError, DatasetGenerationError) as error:
            names = ", ".join(f"{data.name} {split}" for data, split in parts)
            raise DataError(f"the rows of {names} do not make one table: {error}") from error

    def load(self, folder: Path, *, name: str | None = None) -> DatasetStudent:
        return DatasetStudent.load(folder)

    def outputs(self, encode: Encoder, data: Data, split: str) -> Overlap:
        held = data.split(split)
        shared: set[int] = set()
        comparable = False
        for table in encode.model.splits.values():
            if columns := [name for name in held.column_names if name in table.column_names]:
                comparable = True
                wanted: dict[str, list[int]] = {}
                for number, row in enumerate(iterate(held.select_columns(columns))):
                    wanted.setdefault(key_of(row), []).append(number)
                for row in iterate(table.select_columns(columns)):
                    shared.update(wanted.get(key_of(row), ()))
        return Overlap(len(held), len(shared) if comparable else None)

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        return []

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        for name, texts in (("train", "abcab"), ("test", "bd")):
            rows = [json.dumps({"text": f"{letter} is a letter of the alphabet"}) for letter in texts]
            (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        return {
            "student": "rows",
            "data": {"train": f"jsonl:{folder / 'train.jsonl'}"},
            "evaluation": {"data": [f"jsonl:{folder / 'test.jsonl'}"], "cost": False},
        }


def key_of(row: Mapping[str, Any]) -> str:
    """A row as one text: equal for equal rows."""
    return json.dumps(row, sort_keys=True, default=repr)
