"""Data sets for guards: one with few rows of one class, and rows that a guard labels."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from kdhub_tasks.classes import class_name, classes_of
from kdhub_tasks.language.prompting import fingerprints
from kdhub_tasks.language.replies import Tally, made

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import DataError, UsageError
from kdhub.teacher import ANSWERED, Teacher

SIDES = ("text", "text_pair")
"""Prompt and response, by names that text-classification and text-pairs read."""
NAMES = (SIDES, ("sentence1", "sentence2"), ("prompt", "response"))
BATCH = 8192
SPLITS = ("train", "teacher", "others", "unlabelled", "edited", "validation", "test")
EDITS = ("swap", "out", "in")


def sides_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and response of a row, in this order; no response is an empty text."""
    first, second = next((pair for pair in NAMES if row.get(pair[0]) is not None), NAMES[0])
    if row.get(first) is None:
        raise DataError(f"a row has no prompt, only {', '.join(row)}", hint="map its columns: columns: {text: THEIRS}")
    return row[first], row.get(second) or ""


def two_classes(what: str, classes: Sequence[str]) -> tuple[str, str]:
    """
    Raises:
        DataError: there are not two.
    """
    if len(classes) != 2:
        raise DataError(
            f"{what} needs two classes, the second of which is the harmful or rare one; there are {len(classes)}"
            f"{': ' * bool(classes)}{', '.join(classes[:6])}"
        )
    return classes[0], classes[1]


def scarce(
    argument: str,
    *,
    positives: int = 40,
    negatives: int = 1000,
    others: int = 1500,
    validation: Sequence[int] = (200, 800),
    test: Sequence[int] = (1000, 4000),
    seed: int = 0,
    split_seed: int = 0,
    copies: int = 24,
    labeller: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`scarce:DATA`: all rows of a data set of two classes in other splits, to study a class with few labels.

    | split | rows |
    | --- | --- |
    | `test`, `validation` | so many of the second class and of the first |
    | `teacher` | all others |
    | `others` | of those, so many of the second class: a domain's texts, of which nobody labelled any |
    | `train` | of the rest, few of the second class and some of the first, drawn by `seed` |
    | `unlabelled` | what is left of the second class, without labels, or with those of the `labeller` |
    | `edited` | copies of the second class in `train` with edited words |

    Edits swap a tenth of the words, leave them out, or put in words of the others (arXiv:1901.11196 without its
    thesaurus).

    A text that stands there twice is taken once; one with both labels is left out.

    Args:
        validation, test: rows of the second class, and of the first.
        split_seed: of all splits but `train`, `unlabelled` and `edited`.
        copies: of each text in `edited`.
        labeller: see `Labeller`.

    Raises:
        DataError: the data set has too few rows of a class, or not two classes.
    """
    data = open_data({"source": argument, "options": dict(options or {})})
    guard = Labeller(f"scarce:{argument}", labeller, 0.5) if labeller is not None else None
    wanted = {"positives": positives, "negatives": negatives, "others": others}
    if (
        min(positives, negatives, copies, *validation, *test) < 1
        or others < 0
        or len(validation) != 2
        or len(test) != 2
    ):
        raise UsageError(
            f"scarce:{argument} needs at least one row of each class in each split "
            f"({positives=}, {negatives=}, validation={list(validation)}, test={list(test)})"
        )

    @cache
    def parts() -> dict[str, list[tuple[str, str | None]]]:
        labels: dict[str, set[str]] = {}
        for split in data.splits:
            for row in named_rows(data.split(split).select_columns(["text", "label"])):
                labels.setdefault(row["text"], set()).add(class_name(row["label"]) or "")
        names = two_classes(f"scarce:{argument}", classes_of(set().union(*labels.values()) - {""}))
        draw, drawn = np.random.default_rng(split_seed), np.random.default_rng([split_seed, seed])
        made: dict[str, list[tuple[str, str | None]]] = {}
        for at, name in enumerate(names):
            texts = sorted(text for text, found in labels.items() if found == {name})
            sizes = [test[1 - at], validation[1 - at], others if at else 0]
            labelled, need = (positives, negatives)[1 - at], sum(sizes) + (positives, negatives)[1 - at]
            if len(texts) < need:
                raise DataError(f"scarce:{argument} has {len(texts)} texts of {name}, and {need} are needed ({wanted})")
            order = [texts[i] for i in draw.permutation(len(texts))]
            ends = np.cumsum(sizes).tolist()
            rest = [order[ends[2] :][i] for i in drawn.permutation(len(texts) - ends[2])]
            cut = {"test": order[: ends[0]], "validation": order[ends[0] : ends[1]], "teacher": order[ends[1] :]}
            cut |= {"others": order[ends[1] : ends[2]], "train": rest[:labelled]}
            for split, some in cut.items():
                made[split] = made.get(split, []) + [(text, name) for text in some]
        # of the second class, which comes last
        made["unlabelled"] = [(text, None) for text in rest[labelled:]]
        edits, few = random.Random(seed), rest[:labelled]
        pool = [word for text in few for word in text.split()]
        made["edited"] = [
            (_edited(text.split(), EDITS[n % 3], pool, edits), name) for text in few for n in range(copies)
        ]
        return made

    def rows(split: str) -> Iterator[dict[str, Any]]:
        made = [dict(zip(SIDES, (text, ""))) | ({"label": label} if label else {}) for text, label in parts()[split]]
        yield from labelled(made, guard if split == "unlabelled" else None, Tally(), np.zeros(10, int))

    key = {"of": fingerprints(data), **wanted, "validation": list(validation), "test": list(test), "seed": seed}
    key |= {"split_seed": split_seed, "copies": copies, "version": 1} | (guard.key if guard else {})
    splits = {s: lambda s=s: rows(s) for s in SPLITS}
    return Data.from_rows(f"scarce:{argument}", splits, key=key, licence=data.licence)


def _edited(given: list[str], how: str, pool: Sequence[str], draw: random.Random) -> str:
    for _ in range(max(1, round(0.1 * len(given)))):
        if how == "swap" and len(given) > 1:
            a, b = draw.sample(range(len(given)), 2)
            given[a], given[b] = given[b], given[a]
        elif how == "out" and len(given) > 1:
            del given[draw.randrange(len(given))]
        elif how == "in":
            given.insert(draw.randrange(len(given) + 1), draw.choice(pool))
    return " ".join(given)


# -- labels by a guard ------------------------------------------------------------------------------------------------


class Labeller:
    """A guard that labels pairs of prompt and response.

    Args:
        what: the data set, for messages.
        ref: the guard as a recipe names a teacher; its key `task` names its task, text-pairs if unset.
        threshold: the second class from this probability on, exclusively.
    """

    def __init__(self, what: str, ref: Any, threshold: float):
        if not 0 < threshold < 1:
            raise UsageError(f"{what}: threshold must be between 0 and 1 (threshold={threshold})")
        ref = {"source": ref} if isinstance(ref, str) else dict(ref)
        self.what, self.threshold = what, threshold
        self.teacher: Teacher = open_teacher(ref, ref.pop("task", "text-pairs"))

    @property
    def key(self) -> dict[str, Any]:
        return {"labeller": dict(self.teacher.identity), "threshold": self.threshold}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, float] | None]:
        """The class of each pair and the probability of the second class; None where the guard has no answer."""
        import datasets

        from kdhub.rows import Rows
        from kdhub.signals.store import row_key
        from kdhub.signals.stored import stored_signals

        if not pairs:
            return []
        teacher = self.teacher
        names = two_classes(f"{self.what}: the labeller", teacher.classes)
        columns = dict(zip((*SIDES, *NAMES[1]), 2 * tuple(map(list, zip(*pairs)))))
        table, prepare = datasets.Dataset.from_dict(columns), teacher.task.preparer(None, teacher)
        rows = Rows.build(table, prepare, row_key).readable(f"{self.what}, as the labeller reads it,")
        given = stored_signals(teacher, rows, "logits")[np.arange(len(rows))]
        logits = np.asarray(given["logits"], np.float64)
        unsafe = 1 / (1 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -700, 700)))
        able = np.asarray(given.get(ANSWERED, np.ones(len(rows))), bool)
        return [(names[int(p > self.threshold)], float(p)) if ok else None for p, ok in zip(unsafe, able)]


def labelled(
    rows: Sequence[dict[str, Any]], labeller: Labeller | None, tally: Tally, seen: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Rows with the guard's `label` and the `probability` that it gives the second class; those without its answer are
    dropped and counted.

    Args:
        seen: (10,) counts of the probabilities' tenths, added to.
    """
    if labeller is None:
        yield from rows
        return
    for row, found in zip(rows, labeller([sides_of(row) for row in rows])):
        if found is None:
            tally["without an answer of the labeller"] += 1
        else:
            seen[min(9, int(found[1] * 10))] += 1
            yield {**row, "label": found[0], "probability": found[1]}


def judged(
    argument: str,
    *,
    labeller: Any = None,
    threshold: float = 0.5,
    limit: int | None = None,
    split: str = "train",
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`judged:DATA`: the texts or pairs of another data set with the labels of a guard in place of any of theirs.

    Args:
        labeller, threshold: see `Labeller`.
        limit: the first rows only; split: of the other data set.
    """
    name = f"judged:{argument}"
    if labeller is None:
        raise UsageError(f"{name} needs a guard (labeller=None)", hint="options: {labeller: {source: recipe:NAME}}")
    guard = Labeller(name, labeller, threshold)
    data = open_data({"source": argument, "limit": limit, "options": dict(options or {})})

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        table, seen = data.split(split), np.zeros(10, int)
        for start in range(0, len(table), BATCH):
            some = named_rows(table.select(range(start, min(start + BATCH, len(table)))))
            plain = [dict(zip(SIDES, sides_of(row))) for row in some]
            yield from labelled(plain, guard, tally, seen)
        tell(name, seen)

    key = {"of": data.fingerprint(split), **guard.key}
    return made(name, {"train": rows}, key, licence=data.licence, withheld=data.withheld)


def tell(name: str, seen: np.ndarray) -> None:
    """Log the histogram of what a guard said: soft labels of texts that it does not know can hurt."""
    import logging

    if seen.any():
        logging.getLogger("kdhub").info(
            "%s: probability of the second class, by tenths from 0 to 1: %s", name, " ".join(map(str, seen))
        )
