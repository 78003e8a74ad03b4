"""Sequential recommendation: the next item of a user's history, ranked among all items of the data set.

    train, validation, test     `user`, `history` (a list of items, the earliest first), `item`: the one that came next;
                                perhaps `rationales`, why the user chose these, and `noise`, which of them is wrong
    items                       see `kdhub_knowledge.items.catalogue`

The protocol: an item is ranked among all items but those of the whole history; of equal scores the item that is first
in the catalogue counts as the higher one, and how often that decides is measured (`tied-rows`). With
`evaluation.options.negatives` each measure is given as well for so many others drawn at random, in expectation, so that
it is the same draw for every model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.classes import listed
from kdhub_tasks.classification.task import Classification, Outputs
from pydantic import BaseModel, ConfigDict, Field

from kdhub.data.prepare import iterate
from kdhub.errors import DataError
from kdhub.rows import Example, Fault, Prepare, Signals, all_readable, plain_rows, prepared
from kdhub.task import Encoder, View
from kdhub_knowledge.items.catalogue import ITEMS, Catalogue
from kdhub_knowledge.items.metrics import Ranks
from kdhub_knowledge.items.students import Ranker, load

if TYPE_CHECKING:
    import datasets
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext

logger = logging.getLogger("kdhub")

COLUMNS = ("user", "history", "item", "rationales", "noise")
BATCH = 1024
"""Rows whose scores are held at once."""
RANKING = ("ndcg@10", "ndcg@5", "hr@10", "hr@5", "hr@1", "mrr", "candidates")


class NextItem(Classification):
    name = "sequential-recommendation"
    column, target = "history", "item"
    problems = ()
    primary = {"rows": "ndcg@10"}
    aside = (ITEMS,)

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")
        negatives: int | None = Field(
            None, ge=1, description="also among so many other items drawn at random, in expectation; none if unset"
        )

    # -- rows -------------------------------------------------------------------------------------------------

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        super()._columns(data, split)
        table = data.split(split)
        return table.select_columns([name for name in COLUMNS if name in table.column_names])

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`items` with their `texts`, and `counts`: how many users took each in the training rows; of several rows of
        one user the longest history counts."""
        if not parts:
            return {}
        known = Catalogue.of(*(data for data, _ in parts))
        longest: dict[Any, set[str]] = {}
        for number, row in enumerate(iterate(self.training_table(parts))):
            taken = {str(item) for item in [*listed(row["history"]), row.get("item")] if item is not None}
            user = row.get("user", number)
            longest[user] = max(longest.get(user, set()), taken, key=len)
        counts = np.zeros(len(known.items), int)
        for taken in longest.values():
            counts[[known.at[item] for item in taken if item in known.at]] += 1
        return {"items": known.items, "texts": known.texts, "counts": counts.tolist()}

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        self.classes = (student or teacher).classes
        return prepare_for(self.classes)

    # -- models -----------------------------------------------------------------------------------------------

    def forward(self, module: nn.Module, inputs: Mapping[str, Any]) -> Signals:
        given = module(inputs)
        return Outputs({name: value for name, value in given.items() if value is not None and name != "chosen"})

    def load(self, folder: Path, *, name: str | None = None) -> Ranker:
        return load(Path(folder), name or str(folder))

    def open(self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None) -> Ranker:
        """With the items of the training rows; of those that it does not know it has the texts."""
        student = self.load(folder, name=name)
        if items := context.facts.get("items"):
            texts = context.facts["texts"]
            student = student.of(Catalogue(items, texts, texts, [[] for _ in items]))
        student.start = dict(start)
        return student

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> Ranks:
        """
        Raises:
            DataError: rows without a next item, or items that a teacher does not know.
        """
        table, known = self._columns(data, split), Catalogue.of(data)
        if self.target not in table.column_names:
            raise DataError(f"{data.name}, split {split!r}, has no column 'item' to score against")
        logger.info(
            "%s %s: the next item among all %d items but those of the history; of equal scores the first in the "
            "catalogue", data.name, split, len(known.items),
        )  # fmt: skip
        found = (self._of_model if encode.model is not None else self._of_store)(encode, table, known)
        parts = list(found)
        if not parts:
            raise DataError(f"{data.name}, split {split!r}: no row has a history and a next item that can be read")
        right = np.concatenate([part.right for part in parts])
        return Ranks(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ranks", "candidates", "tied")),
            right=right[right >= 0].astype(bool) if (right >= 0).any() else None,
        )

    def _of_model(self, encode: Encoder, table: Any, known: Catalogue) -> Iterator[Ranks]:
        model = encode.model.of(known)
        strange = len(set(known.items) - set(encode.model.classes))
        if strange:
            logger.warning(
                "%d of %d items are new to the student, which knows their texts at most", strange, len(known.items)
            )
        prepare = prepare_for(known.items)
        for start in range(0, len(table), BATCH):
            examples = prepared(prepare, plain_rows(table, range(start, min(start + BATCH, len(table)))))
            encode.faults.update({n: e["fault"] for n, e in enumerate(examples, start + 1) if "fault" in e})
            if able := [e for e in examples if "fault" not in e]:
                yield ranked(model, able)

    def _of_store(self, encode: Encoder, table: Any, known: Catalogue) -> Iterator[Ranks]:
        at = {item: n for n, item in enumerate(self.classes)}
        if unknown := [item for item in known.items if item not in at]:
            raise DataError(
                f"the teacher does not know {len(unknown)} of {len(known.items)} items, the first is {unknown[0]!r}",
                hint="evaluate it as a student (kdhub evaluate), which reads the texts of new items",
            )
        columns, read, prepare = (
            [at[item] for item in known.items],
            encode.reader(table, "logits"),
            prepare_for(known.items),
        )
        for start in range(0, len(table), BATCH):
            stop = min(start + BATCH, len(table))
            examples = prepared(prepare, plain_rows(table, range(start, stop)))
            able = [n for n, e in enumerate(examples) if "fault" not in e]
            if able:
                yield rank(read(start, stop)["logits"][able][:, columns], [examples[n] for n in able])

    def views(self, outputs: Ranks, options: Any, subject: str) -> Iterator[View]:
        yield View()
        if options.negatives:
            among = {"negatives": options.negatives}
            yield View(among, partial(replace, **among), RANKING)

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        seen = [name for name in ("history", "rationales") if name in table.column_names]
        return list(iterate(table.select_columns(seen).select(range(min(n, len(table))))))

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub import open_data, open_student

        def part(split: str) -> list[dict[str, Any]]:
            options = {"options": {"users": 24, "items": 30, "genres": 3, "taken": 7}}
            return [{"source": "rationales:tastes", "split": split, "options": {"n": 2, **options}}]

        data = open_data(part("train")[0])
        (folder / "teacher").mkdir(exist_ok=True)
        facts, teacher = self.survey([(data, "train")]), {"source": "thought-space", "dim": 4}
        open_student(teacher, task=self.name, seed=3, facts=facts).save(folder / "teacher")
        return {
            "teacher": {"source": f"path:{folder / 'teacher'}"},
            "student": {"source": "thought-space", "dim": 4, "encoder": "mean"},
            "data": {"train": part("train")},
            "evaluation": {"data": part("test"), "cost": False},
        }


def prepare_for(items: Sequence[str]) -> Callable[[list[dict[str, Any]]], list[Example]]:
    """Plain rows -> examples: `history`, the numbers of items, and `label`, that of the next one, -1 where a row has
    none, of which nothing can be learnt; a model sees history and `rationales`."""
    at = {item: n for n, item in enumerate(items)}

    def example(row: Mapping[str, Any]) -> Example:
        names = [str(item) for item in (listed(row.get("history")) or ())]
        target, rationales = row.get("item"), [str(text) for text in (listed(row.get("rationales")) or ())]
        wanted = names if target is None else [*names, str(target)]
        fault = None if names else Fault("without a history", f"user {row.get('user')}")
        if strange := [item for item in wanted if item not in at]:
            fault = Fault("with an item that is not among the items", repr(strange[0]))
        content = json.dumps([names, rationales], ensure_ascii=False).encode()
        made = {"history": [], "rationales": rationales, "label": -1, "noise": -1, "content": content, "cut": False}
        if fault:
            return {**made, "length": 0, "fault": fault}
        noise = row.get("noise")
        made |= {"history": [at[item] for item in names], "label": -1 if target is None else at[str(target)]}
        return {**made, "noise": -1 if noise is None else int(noise), "length": len(names) if target is not None else 0}

    def prepare(rows: list[dict[str, Any]]) -> list[Example]:
        examples = [example(row) for row in rows]
        return all_readable(examples)

    return prepare


def ranked(student: Ranker, examples: Sequence[Example]) -> Ranks:
    """How a student ranks the next items of some rows, by its own numbers of items."""
    found = rank(student.signals(examples, "logits")["logits"], examples)
    noise = np.array([example["noise"] for example in examples])
    if "user" in student.kinds and (noise >= 0).any():
        chosen = student.signals(examples, "chosen")["chosen"].astype(int)
        found.right = np.where((noise >= 0) & (chosen >= 0), chosen != noise, -1)
    return found


def rank(scores: np.ndarray, examples: Sequence[Example]) -> Ranks:
    """The ranks of the next items: scores (rows, items). The items of a history are left out, unless one comes again.

    Raises:
        DataError: a row has no next item.
    """
    wanted = np.array([example["label"] for example in examples])
    if (wanted < 0).any():
        raise DataError(f"{(wanted < 0).sum()} of {len(wanted)} rows have no next item to score against")
    open_ = np.ones(scores.shape, bool)
    for row, example in zip(open_, examples):
        row[example["history"]] = False
    rows = np.arange(len(wanted))
    open_[rows, wanted] = True
    own = scores[rows, wanted][:, None]
    equal = (scores == own) & open_
    before = ((scores > own) & open_) | (equal & (np.arange(scores.shape[1]) < wanted[:, None]))
    return Ranks(1 + before.sum(1), open_.sum(1), equal.sum(1) > 1, right=np.full(len(wanted), -1))
