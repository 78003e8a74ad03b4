"""Classification of the words of a text."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from kdhub.errors import DataError
from kdhub.rows import Example, Prepare, plain_rows
from kdhub.task import Encoder, View
from kdhub_tasks.classes import listed
from kdhub_tasks.classification.task import Classification, Predictions

if TYPE_CHECKING:
    import torch

    from kdhub.data.dataset import Data
    from kdhub_tasks.models import Classifier


class TokenClassification(Classification):
    """Rows of words as `tokens`, and a class for each of them as `tags` (numbers or names; missing: null or -1). A word
    that a tokenizer leaves nothing of, such as a variation selector, is left out; it counts as of the class O.

    Signals and labels are those of words, one row after the other: a loss over rows is here one over words. A batch
    also has `counts`, words of each row, `keys`, a number that a row's content gives, and, where asked for, `private`.
    """

    name = "token-classification"
    column = "tokens"
    target = "tags"
    problems = ()
    primary = {"rows": "entity-f1"}
    pipeline_tag = "token-classification"

    class EvaluationOptions(BaseModel):
        model_config = ConfigDict(extra="forbid")

    def views(self, outputs: Any, options: Any, subject: str) -> Iterator[View]:
        yield View()

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """Settings: max_length, tokens at most, beside the models' own limits; private, a scorer of words (see
        `privacy`). A row ends with the last word that every model sees."""
        limit, scorer, targets = settings.get("max_length"), settings.get("private"), self._known(student, teacher)
        models = [] if student is None else [student]
        if teacher is not None:
            models += [one.reads for one in teacher.members or [teacher]]

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            words = [words_of(row["tokens"]) for row in rows]
            seen = [model.encode_words(words, limit) for model in models]
            made = []
            for n, row in enumerate(rows):
                firsts = [firsts[n] for _, firsts in seen]
                end = min(map(len, firsts))
                kept = [i for i in range(end) if all(row[i] is not None for row in firsts)]
                given = tags_of(row.get("tags"), words[n])
                labels = [-1] * len(kept) if given is None else targets.positions([given[i] for i in kept])
                own = [words[n][i] for i in kept]
                ends = np.cumsum([len(word) + 1 for word in own]).tolist()
                spans = [(end - len(word) - 1, end - 1) for word, end in zip(own, ends)]
                private = {"private": scorer([" ".join(own)], [spans])[0]} if scorer else {}
                made.append(
                    {
                        "words": own,
                        "kept": kept,
                        "labels": labels,
                        "content": "\x1f".join(own).encode(),
                        "length": len(seen[0][0][n]) if kept else 0,
                        "cut": end < len(words[n]),
                        **private,
                    }
                )
            return made

        return prepare

    @staticmethod
    def with_head(facts: Mapping[str, Any], *how: Any) -> Classifier:
        from kdhub_tasks.classification.model import TokenClassifier

        return TokenClassifier.with_head(*how)

    def collate(self, examples: Sequence[Example], student: Classifier) -> dict[str, torch.Tensor]:
        import torch

        labels = [label for e in examples for label in e["labels"]]
        batch = {**student.collate(examples), "labels": torch.tensor(labels, dtype=torch.long)}
        batch["counts"] = torch.tensor([len(e["labels"]) for e in examples])
        batch["keys"] = torch.tensor([zlib.crc32(e["content"]) for e in examples])
        if "private" in examples[0]:
            batch["private"] = torch.tensor([p for e in examples for p in e["private"]], dtype=torch.float32)
        return batch

    def outputs(self, encode: Encoder, data: Data, split: str) -> Predictions:
        """Words that a model did not see count as of the class O, else as of the first."""
        table = self._columns(data, split)
        if "tags" not in table.column_names:
            raise DataError(f"{data.name}, split {split!r}, has no column 'tags' to score against")
        given = encode(table, "logits")["logits"]
        tags = [tags_of(row["tags"], words_of(row["tokens"])) or [] for row in plain_rows(table, range(len(table)))]
        lengths = np.array([len(row) for row in tags])
        unseen = np.full(len(self.classes), -30.0, np.float32)
        unseen[self.classes.index("O") if "O" in self.classes else 0] = 0.0
        logits = [np.tile(unseen, (n, 1)) for n in lengths]
        for number, (row, whole) in enumerate(zip(given, logits)):
            at = range(len(whole))
            if len(row) < len(whole):
                (example,) = encode.prepare(plain_rows(table, [number]))
                at = example["kept"]
            whole[at] = row
        labels = np.array(self.targets.positions([v for row in tags for v in row]))
        if (labels < 0).any():
            raise DataError(f"{data.name}, split {split!r}: a word has no tag to score against")
        return Predictions(np.concatenate(logits), labels, self.classes, lengths)

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.classification import tiny

        return tiny.token_recipe(folder)


def words_of(value: Any) -> list[str]:
    """A row's words.

    Raises:
        DataError: a text, which would be read letter by letter.
    """
    words = listed(value)
    if not isinstance(words, list):
        raise DataError(f"tokens must be a list of words (tokens={str(value)[:60]!r})", hint="split texts into words")
    return [str(word) for word in words]


def tags_of(value: Any, words: Sequence[str]) -> list[Any] | None:
    """A row's tags, None where it has none.

    Raises:
        DataError: not one for each word.
    """
    tags = None if value == "" else listed(value)
    if tags is not None and (not isinstance(tags, list) or len(tags) != len(words)):
        many = len(tags) if isinstance(tags, list) else f"no list of ({str(value)[:40]!r})"
        raise DataError(f"a row has {len(words)} tokens and {many} tags: {' '.join(words[:8])}")
    return tags
