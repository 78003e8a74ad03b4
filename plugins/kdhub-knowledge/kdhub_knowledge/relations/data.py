"""Data sets of relations: a corpus of one pair a row, grouped by sentence and split; what a teacher says of sentences,
as rows; and a small generated set."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdhub import open_data, open_task, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import iterate
from kdhub.errors import DataError, TeacherError, UsageError
from kdhub.rows import Rows
from kdhub_knowledge.relations.spans import as_texts, normal, pairs_of

logger = logging.getLogger("kdhub")
NAME = "relation-extraction"


def corpus(
    argument: str,
    *,
    test: int = 800,
    validation: int = 0,
    negatives: str | None = None,
    train_negatives: int = 2000,
    test_negatives: int = 0,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    entities: bool = False,
    without: Sequence[str] = (),
) -> Data:
    """Sentences with all of their pairs, split into `train`, `test` and, where asked for, `validation`. Sentences are
    grouped before they are split, by their normalised text: no sentence is in two splits.

    Args:
        argument: the data set, as `--data` takes it: rows of `text`, `head` and `tail`, or of `text` and `pairs`.
        test, validation: sentences with a pair that these have.
        negatives: a data set of sentences without a pair (`text`). train_negatives, test_negatives: how many of them.
        seed: of the order.
        split: the one that is divided. columns: our column name -> the data set's, also of the negatives.
        entities: also write the right heads, as `entities`. Students that are to find heads must not see them.
        without: data sets whose sentences shall be in no split.

    Raises:
        DataError: rows without these columns. UsageError: fewer sentences than asked for.
    """
    data = open_data({"source": argument, "columns": dict(columns or {})})
    other = open_data({"source": negatives, "columns": dict(columns or {})}) if negatives else None
    barred = [open_data(one) for one in without]
    asked = {"test": test, "validation": validation, "train_negatives": train_negatives}
    if bad := {name: n for name, n in (asked | {"test_negatives": test_negatives}).items() if n < 0}:
        raise UsageError(f"relation-corpus:{argument}: {next(iter(bad))} must be 0 or more ({_said(bad)})")
    made: dict[str, list[dict[str, Any]]] = {}

    def parts() -> dict[str, list[dict[str, Any]]]:
        if not made:
            closed = {normal(row["text"]) for one in barred for s in one.splits for row in iterate(one.split(s))}
            found = grouped(iterate(data.split(split)), f"{data.name}, split {split!r}")
            right = [row for row in found if row["pairs"] and normal(row["text"]) not in closed]
            if test + validation >= len(right):
                raise UsageError(
                    f"relation-corpus:{argument}: test and validation must leave some of the {len(right)} sentences "
                    f"with a pair (test={test}, validation={validation})"
                )
            rng = np.random.default_rng(seed)
            right = [right[n] for n in rng.permutation(len(right))]
            taken = closed | {normal(row["text"]) for row in found}
            rows = grouped(iterate(other.split(other.pick("train"))), other.name) if other else []
            plain = [row for row in rows if normal(row["text"]) not in taken and not row["pairs"]]
            plain = [plain[n] for n in rng.permutation(len(plain))]
            made["test"] = right[:test] + plain[:test_negatives]
            made["validation"] = right[test : test + validation]
            learnt = right[test + validation :] + plain[test_negatives : test_negatives + train_negatives]
            made["train"] = [learnt[n] for n in rng.permutation(len(learnt))]
        return made

    def rows(name: str) -> Iterator[dict[str, Any]]:
        for row in parts()[name]:
            heads = {"entities": [head for head, _ in row["pairs"]]} if entities else {}
            yield {"text": row["text"], "pairs": [list(pair) for pair in row["pairs"]], **heads}

    named = ["train", *(["validation"] if validation else []), *(["test"] if test else [])]
    key = {
        "of": data.fingerprint(split), "negatives": other and other.fingerprint(other.pick("train")),
        **asked, "test_negatives": test_negatives, "seed": seed, "entities": entities,
        "without": [one.fingerprint(s) for one in barred for s in one.splits], "version": 1,
    }  # fmt: skip
    return Data.from_rows(
        f"relation-corpus:{argument}", {s: lambda s=s: rows(s) for s in named}, key=key, licence=data.licence
    )


def _said(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def grouped(rows: Any, where: str) -> list[dict[str, Any]]:
    """Each sentence once, with all of its pairs; the first text of those that are normalised alike.

    Raises:
        DataError: a row that has no text, or one side of a pair alone, by its number.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        text, sides = row.get("text"), [row.get("head"), row.get("tail")]
        if not isinstance(text, str) or not normal(text):
            raise DataError(
                f"{where}: row {number} has no text; it has the columns {', '.join(row)}",
                hint="map them: options: {columns: {text: THEIRS, head: THEIRS, tail: THEIRS}}",
            )
        if any(sides) != all(sides):
            raise DataError(f"{where}: row {number} has a {'head' if sides[0] else 'tail'} alone: {text[:60]!r}")
        pairs = found.setdefault(normal(text), {"text": text, "pairs": []})["pairs"]
        given = pairs_of(row.get("pairs")) + ([(str(sides[0]), str(sides[1]))] if all(sides) else [])
        known = {(normal(head), normal(tail)) for head, tail in pairs}
        for head, tail in given:
            if (normal(head), normal(tail)) not in known:
                pairs.append((head, tail))
                known.add((normal(head), normal(tail)))
    return list(found.values())


def labelled(
    argument: str,
    *,
    teacher: str | Mapping[str, Any] = "cues",
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Data:
    """The sentences of a data set with the pairs that a teacher finds in them, to be read, corrected and learnt from
    (`ade` with `labels: rows`). Sentences whose answer cannot be read are left out, and counted.

    Args:
        argument: the data set, as `--data` takes it. teacher: as a recipe names one.
        split: whose sentences. columns: our column name -> the data set's. options: of the other data set.
        limit: the first so many rows.
    """
    from kdhub.signals.store import row_key
    from kdhub.signals.stored import stored_signals

    data = open_data({"source": argument, "columns": dict(columns or {}), "options": dict(options or {})}, limit=limit)
    model, task = open_teacher(teacher, NAME), open_task(NAME)
    table = data.split(split).select_columns(["text"])

    def rows() -> Iterator[dict[str, Any]]:
        read = Rows.build(table, task.preparer(None, model), row_key).readable(data.name)
        given = stored_signals(model, read, "pairs")
        some = given[np.arange(len(read))]
        readable = some.get("readable", np.ones(len(read)))
        for example, pairs, good in zip(read[np.arange(len(read))], some["pairs"], readable):
            if good:
                yield {"text": example["text"], "pairs": [list(pair) for pair in as_texts(example["text"], pairs)]}
        if unread := int(len(read) - np.sum(readable)):
            logger.warning("%d of %d sentences have no answer that can be read, and are left out", unread, len(read))
        if unread == len(read):
            raise TeacherError(
                f"relations:{argument}: none of {unread} answers can be read",
                hint="does this model understand the prompt? Try one by hand, or another model",
            )

    key = {"of": data.fingerprint(split), "teacher": dict(model.identity_of("pairs")), "version": 1}
    return Data.from_rows(f"relations:{argument}", {"train": rows}, key=key, licence=data.licence)


# -- a generated set --------------------------------------------------------------------------------------------

STARTS = ("amo", "bri", "clo", "deno", "fluta", "gano", "lepo", "meta", "novi", "pero", "rifa", "tela", "vano", "zolo")
ENDS = ("cillin", "mycin", "statin", "pril", "olol", "azole", "profen", "oxacin")
KINDS = ("acute", "severe", "chronic", "mild", "reversible", "drug")
EVENTS = (
    "hepatitis", "rash", "pancreatitis", "neutropenia", "seizures", "nephritis", "vasculitis", "hypotension", "tremor",
    "psychosis", "thrombocytopenia", "myopathy",
)  # fmt: skip
VERBS = ("", "", " occurred", " developed", " appeared", " was seen", " began", " emerged", " set in")
CUED = (
    "{e}{v} after {d} in an elderly man.", "{e}{v} during treatment with {d}.", "{e}{v} following a dose of {d}.",
    "{d}-induced {e} is described.", "A case of {e} due to {d} is reported.",
)  # fmt: skip
UNCUED = ("When {d} was stopped, the {e} resolved.", "On {d} she had {e}.")
WITHOUT = (
    "{d} is used for the treatment of {e}.", "Serum levels of {d} were measured in {n} patients.",
    "{d} was well tolerated by {n} patients.", "The patient had {e} and was given {d}.",
)  # fmt: skip


def generated(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences about invented drugs: two thirds with words that cues know, some of them with a second drug that has no
    part in it, a tenth in other words, the rest without a pair. Between an event and its cue may be a verb, by which
    cues miss it or take the verb for a part of it."""
    rng, made = np.random.default_rng(seed), {}

    def one(of: Sequence[str]) -> str:
        return of[int(rng.integers(len(of)))]

    while len(made) < count:
        d, other = (one(STARTS) + one(ENDS) for _ in range(2))
        event = f"{one(KINDS)} {one(EVENTS)}" if rng.random() < 0.5 else one(EVENTS)
        kind = ("cued", "cued", "second", "uncued", "without")[int(rng.choice(5, p=[0.25, 0.2, 0.2, 0.1, 0.25]))]
        text = one({"without": WITHOUT, "uncued": UNCUED}.get(kind, CUED))
        text = text.format(d=d, e=event, v=one(VERBS), n=rng.integers(3, 90))
        if kind == "second" and other != d:
            text = f"{other} was continued, and {text[0].lower()}{text[1:]}"
        text = text[0].upper() + text[1:]
        made[text] = [] if kind == "without" else [[_cased(text, d), _cased(text, event)]]
    return [{"text": text, "pairs": pairs} for text, pairs in made.items()]


def _cased(text: str, phrase: str) -> str:
    at = text.lower().index(phrase.lower())
    return text[at : at + len(phrase)]


def adverse_events(train: int = 400, test: int = 200, seed: int = 0) -> Data:
    """Sentences of a small world of invented drugs and their adverse events (`generated`).

    Args:
        train, test: sentences of each split.
    """
    if train < 1 or test < 1:
        raise UsageError(f"adverse-events: train and test must be 1 or more ({train=}, {test=})")

    def rows(part: slice) -> Iterator[dict[str, Any]]:
        yield from generated(train + test, seed)[part]

    key = {"train": train, "test": test, "seed": seed, "version": 2}
    splits = {"train": lambda: rows(slice(0, train)), "test": lambda: rows(slice(train, None))}
    return Data.from_rows("adverse-events", splits, key=key, licence="cc0-1.0")
