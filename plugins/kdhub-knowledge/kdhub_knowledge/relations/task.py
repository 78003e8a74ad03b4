"""Relations in sentences: which pairs of a head and a tail (a drug and an adverse event) a sentence names.

text      a sentence
pairs     the right ones: [[head, tail], ...], objects with `head` and `tail`, or such as JSON in a text; both as
          the sentence has them. Not needed where a teacher labels
entities  its heads, for students that take them as given (`drug_source: gold`); read for nothing else
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.classes import listed
from kdhub_tasks.classification.task import Outputs

from kdhub.data.prepare import iterate
from kdhub.errors import DataError
from kdhub.fields import Field
from kdhub.rows import Example, Fault, Prepare, Signals, all_readable
from kdhub.task import Encoder, NetworkTask
from kdhub.teachers.saved import SavedTeacher
from kdhub_knowledge.relations.data import generated
from kdhub_knowledge.relations.metrics import Relations
from kdhub_knowledge.relations.spans import as_texts, covered, pairs_of, words

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_knowledge.relations.students import Extractor

COLUMNS = ("text", "pairs", "entities")
SENTENCE, MARKED, CANDIDATE = 0, 1, 2
"""What an example of training is: a sentence; one with a head marked; one with head and tail marked."""
KNOWN_WORDS, SEEN = 20_000, 2
"""Words that a fresh network knows, at most, and how often each is in the training rows, at least."""


class ExtractorTeacher(SavedTeacher):
    """A saved student of this task: it gives `pairs`, in whole numbers."""

    nested = True

    def layout(self, kind: str) -> dict[str, Any]:
        return {name: Field(name, "int32", shape[1:], ragged=True) for name, shape in super().layout(kind).items()}


class RelationExtraction(NetworkTask):
    """In a forward pass `pairs` are the logits that pairs are read from, (tokens, 2), one row after the other."""

    name = "relation-extraction"
    primary = {"rows": "lenient-f1", "texts": "lenient-f1"}
    primary_signal = "pairs"
    pipeline_tag = "token-classification"
    Teacher = ExtractorTeacher

    # -- rows -------------------------------------------------------------------------------------------------

    def training_table(self, parts: Sequence[tuple[Data, str]]) -> datasets.Dataset:
        from datasets import concatenate_datasets

        tables = [self._columns(data, split) for data, split in parts]
        shared = [c for c in COLUMNS if all(c in table.column_names for table in tables)]
        tables = [table.select_columns(shared) for table in tables]
        return tables[0] if len(tables) == 1 else concatenate_datasets(tables)

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        if "text" not in table.column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has no column 'text', only {', '.join(table.column_names)}",
                hint="map it: columns: {text: THEIRS, pairs: THEIRS}; rows of one pair each: relation-corpus:DATA",
            )
        return table.select_columns([c for c in COLUMNS if c in table.column_names])

    def labelled(self, table: datasets.Dataset) -> bool:
        return "pairs" in table.column_names

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`words`, in lower case, and `letters` of the training rows, the most frequent first."""
        if not parts:
            return {}
        many, letters = Counter(), Counter()
        for row in iterate(self.training_table(parts).select_columns(["text"])):
            text = row["text"] if isinstance(row["text"], str) else ""
            many.update(text[a:b].lower() for a, b in words(text))
            letters.update(text)
        seen = sorted((w for w, n in many.items() if n >= SEEN), key=lambda w: (-many[w], w))
        return {"words": seen[:KNOWN_WORDS], "letters": sorted(letters, key=lambda c: (-letters[c], c))[:500]}

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """No model's tokens are in an example: they are made where they are needed."""

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            made = []
            for row in rows:
                text, entities = row.get("text"), listed(row.get("entities"))
                one: Example = {"text": text, "gold": None, "entities": entities, "length": 0, "cut": False}
                if not isinstance(text, str) or not words(text):
                    one |= {"text": "", "fault": Fault("without a text")}
                try:
                    one["gold"] = pairs_of(row["pairs"]) if row.get("pairs") is not None else None
                except DataError as error:
                    one["fault"] = Fault("with pairs that cannot be read", error.message)
                given = "" if entities is None else "\x1f" + json.dumps(entities, ensure_ascii=False)
                one["content"] = (one["text"] + given).encode()
                made.append(one | {"length": 0 if "fault" in one else len(words(text))})
            return all_readable(made)

        return prepare

    # -- batches ----------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example], student: Extractor) -> dict[str, torch.Tensor]:
        """Also `labels`, (tokens, 2): whether a token is of a head, of a tail; -1 where that is not asked. `kind` of
        each row, and `related`, whether the marked pair is one."""
        import torch

        labels = []
        for example in examples:
            grid = student.parts(example)[1]
            both = np.full((len(grid), 2), -1.0, np.float32)
            for column, side in enumerate(("heads", "tails")):
                if example.get(side) is not None:
                    both[:, column] = 0
                    both[covered(grid, example[side]), column] = 1
            labels.append(both)
        return {
            **student.collate(examples),
            "labels": torch.from_numpy(np.concatenate(labels)),
            "kind": torch.tensor([e.get("kind", SENTENCE) for e in examples]),
            "related": torch.tensor([float(e.get("related", -1)) for e in examples]),
        }

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """Rows of each kind, over which the means of the loss are."""
        kinds = {"sentences": SENTENCE, "marked": MARKED, "candidates": CANDIDATE}
        return {name: int((batch["kind"] == kind).sum()) for name, kind in kinds.items()}

    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        return Outputs(module(inputs))

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> Extractor:
        from kdhub_knowledge.relations import students

        return students.load(Path(folder), name=name)

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> Extractor:
        """A student of this task as it is; another encoder gets fresh heads."""
        from kdhub_knowledge.relations import students

        if students.config_of(Path(folder)) is not None:
            return super().open(folder, context, start, name=name)
        students.check_model_folder(Path(folder), name=name)
        start = {**start, "how": f"{start.get('how', 'as it is')}, with fresh heads"}
        return students.with_heads(Path(folder), context.seed, start)

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Relations:
        table = self._columns(data, split)
        if not self.labelled(table):
            raise DataError(f"{data.name}, split {split!r}, has no column 'pairs' to score against")
        given, out = encode(table, "pairs")["pairs"], Relations([], [], [])
        for number, (row, found) in enumerate(zip(iterate(table), given), 1):
            if number not in encode.faults:
                out.texts.append(row["text"])
                out.gold.append(pairs_of(row["pairs"]))
                out.predicted.append(as_texts(row["text"], found))
        return out

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        columns = [c for c in ("text", "entities") if c in table.column_names]
        return list(iterate(table.select_columns(columns).select(range(min(n, len(table))))))

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        for split, some in (("train", generated(48, seed=1)), ("test", generated(24, seed=2))):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        return {
            "teacher": {"source": "cues"},
            "student": "relations-lstm:width=8,words=8,chars=4",
            "data": {"train": [{"source": f"path:{folder / 'train.jsonl'}"}]},
            "evaluation": {"data": [{"source": f"path:{folder / 'test.jsonl'}"}], "cost": False},
        }
