"""Why users chose what they chose, as texts: data sets whose rows have `rationales`.

    rationales:DATA     n candidates for each row, by a template or by a language model (the prompted teacher's door)
    refined:DATA        the same, expanded by further prompts and scored by a student: the best stay

The next item of a row is held out: no prompt shows an item with its title, and a reply that names it is dropped and
counted (`catalogue.names`). The model's replies go through the signal store. Prompts and template are ours: the paper's
are not public.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from kdhub_tasks.classes import listed
from kdhub_tasks.language.prompting import Prompter, batches, filled, fingerprints, require
from kdhub_tasks.language.replies import Tally, distinct, made

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.rows import prepared
from kdhub_knowledge.items.catalogue import ITEMS, Catalogue, held_out, names, shown
from kdhub_knowledge.items.spec import NAME
from kdhub_knowledge.items.task import prepare_for

logger = logging.getLogger("kdhub")

TEMPLATE = "template"
"""The teacher that is none: sentences from the tags of a history."""
PROMPT = (
    "Someone chose these, the earliest first:\n\n{history}\n\nIn one or two sentences: why did they choose them, and "
    "what are they looking for next? Do not name any title.\n"
)
EXPAND = {
    "refine": "Make it more precise: what exactly do these choices have in common?",
    "contrast": "Say also what they are not looking for.",
    "generalise": "Say it more generally: which lasting preference is behind these choices?",
}
AGAIN = (
    "Someone chose these, the earliest first:\n\n{history}\n\nA guess why: {rationale}\n\n{how} Reply with the new "
    "guess alone, in one or two sentences, without naming any title.\n"
)
FRAMES = (
    "They keep coming back to {a}, {a} above all, with some {b}.",
    "It is {a} they want, {a} again, and {b} now and then.",
    "Mostly {a}: next they look for {a}, perhaps {b}.",
    "A taste for {a} and more {a}, then {b}.",
)
LOOKED_AT = 6
"""Items of a history that the template looks at for one candidate."""


class Sentences:
    """The template: the two commonest tags of six random items of a history; of the wrong candidates two tags that are
    drawn from all."""

    def __init__(self, known: Catalogue, seed: int):
        self.known, self.seed = known, seed
        self.tags = sorted({tag for n in range(len(known.items)) for tag in known.known(n)})

    def write(self, row: Mapping[str, Any], history: Sequence[int], n: int, wrong: int) -> tuple[list[str], int]:
        """n candidates in random order, and where the first wrong one is, -1 for nowhere."""
        draw = self._draw(row, "write")
        pairs = [
            self._commonest(draw.choice(history, min(LOOKED_AT, len(history)), replace=False)) for _ in range(n - wrong)
        ]
        pairs += [tuple(draw.choice(self.tags, min(2, len(self.tags)), replace=False)) for _ in range(wrong)]
        order, frames = draw.permutation(n), draw.permutation(n)
        texts = [self._said(pairs[at], FRAMES[frames[place] % len(FRAMES)]) for place, at in enumerate(order)]
        return texts, int(np.flatnonzero(order >= n - wrong)[0]) if wrong else -1

    def expand(self, row: Mapping[str, Any], history: Sequence[int], rationale: str, how: str) -> str:
        """A rationale again: by all items of the history, by what it is not, by the commonest tag alone."""
        a, b = (*self._commonest(history), "")[:2]
        if how == "refine":
            return self._said((a, b or a), FRAMES[0])
        if how == "contrast":
            seen = {tag for n in history for tag in self.known.known(n)}
            others = [tag for tag in self.tags if tag not in seen] or self.tags
            return f"{rationale} Hardly ever {self._draw(row, how).choice(others)}."
        return f"In the end it is always {a}."

    def _said(self, pair: Sequence[str], frame: str) -> str:
        return filled(frame, a=str(pair[0]), b=str(pair[-1]))

    def _commonest(self, items: Sequence[int]) -> tuple[str, ...]:
        counts = Counter(tag for n in items for tag in self.known.known(int(n)))
        return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag))[:2]) or ("something",)

    def _draw(self, row: Mapping[str, Any], what: str) -> np.random.Generator:
        said = repr([self.seed, what, str(row.get("user")), [str(item) for item in listed(row["history"])]]).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(said).digest()[:8], "big"))


class Guard:
    """What may be shown and said about a row whose next item is held out."""

    def __init__(self, known: Catalogue, history_len: int):
        self.known, self.history_len, self.rows = known, history_len, Counter()

    def report(self, what: str) -> None:
        for why, many in self.rows.items():
            logger.warning("%s: %d rows %s", what, many, why)

    def history(self, row: Mapping[str, Any]) -> list[int]:
        """The items to show, by number; those of the held-out title are left out and counted.

        Raises:
            DataError: none is left, or an item that is not among the items.
        """
        try:
            history = shown(row, self.known, self.history_len)
        except KeyError as error:
            raise DataError(
                f"user {row.get('user')}: item {error} is not among the {len(self.known.items)} items"
            ) from None
        if len(history) < min(len(listed(row["history"])), self.history_len):
            self.rows["show no item of the held-out title, which is in their history"] += 1
        if not history:
            raise DataError(f"user {row.get('user')} has no history to write about")
        return history

    def lines(self, history: Sequence[int]) -> str:
        known = self.known
        tags = [f" ({', '.join(known.tags[n])})" if known.tags[n] else "" for n in history]
        return "\n".join(
            f"- {known.titles[n] or known.texts[n] or known.items[n]}{more}" for n, more in zip(history, tags)
        )

    def leaks(self, text: str, row: Mapping[str, Any], history: Sequence[int]) -> bool:
        """Whether a text names the held-out title, and not as a part of one that was shown."""
        return names(text, held_out(row, self.known), [self.known.titles[n] for n in history])


def rationales(
    argument: str,
    *,
    teacher: Any = TEMPLATE,
    n: int = 4,
    wrong: int = 1,
    history_len: int = 20,
    template: str = PROMPT,
    seed: int = 0,
    limit: int | None = None,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`rationales:DATA`: candidates why each user chose the items of the history.

    Args:
        argument: the data set, as `--data` takes it; of the task `sequential-recommendation`.
        teacher: `template`, or a language model as a recipe names a teacher.
        n: candidates for each row; empty, repeated and leaking replies are dropped.
        wrong: candidates of the template that are about random tags; `noise` says where the first is.
        history_len: items that are shown, the last ones.
        template: what the model is sent, with {history} in it.
        seed: of the template.
        limit: the first rows of each split only.
        chat: use the model's chat template; answers: settings of its `Generation`, temperature 0.8 unless they say so.
        options: of the other data set.

    Raises:
        UsageError: numbers that do not fit each other, or a template without {history}.
    """
    name = f"rationales:{argument}"
    if n < 1 or history_len < 1:
        raise UsageError(f"{name}: n and history_len must be at least 1 (n={n}, history_len={history_len})")
    by_template = teacher == TEMPLATE
    if by_template and not 0 <= wrong < n:
        raise UsageError(f"{name}: wrong must be from 0 to below n (wrong={wrong}, n={n})")
    if by_template and (answers or chat):
        raise UsageError(f"{name}: answers and chat are settings of a language model", hint="teacher: openai:MODEL")
    prompter = None if by_template else _prompter(name, teacher, answers, chat, n, template)
    data = open_data(argument, limit=limit, options=options)
    key = {"of": fingerprints(data), "n": n, "history_len": history_len}
    key |= {"seed": seed, "wrong": wrong} if by_template else {"asked": prompter.key, "template": template}

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any]]:
        known = Catalogue.of(data)
        guard, sentences = Guard(known, history_len), Sentences(known, seed)
        for batch in batches(data.split(split)):
            histories = [guard.history(row) for row in batch]
            if by_template:
                found = [sentences.write(row, history, n, wrong) for row, history in zip(batch, histories)]
            else:
                prompts = [filled(template, history=guard.lines(history)) for history in histories]
                found = [([r.text.strip() for _, r in distinct(some, tally)], -1) for some in prompter(prompts, n)]
            for row, history, (texts, noise) in zip(batch, histories, found):
                leaking = [guard.leaks(text, row, history) for text in texts]
                tally.update(["naming the held-out title"] * sum(leaking))
                kept = [text for text, leaks in zip(texts, leaking) if not leaks]
                guard.rows.update([] if kept else ["are without a rationale"])
                noise = -1 if noise < 0 or leaking[noise] else noise - sum(leaking[:noise])
                yield {**row, "rationales": kept, "noise": noise}
        guard.report(f"{name}, split {split!r}")

    return _like(data, name, rows, key)


def refined(
    argument: str,
    *,
    student: Any = None,
    teacher: Any = TEMPLATE,
    depth: int = 2,
    branch: int = 3,
    beam: int = 2,
    history_len: int = 20,
    seed: int = 0,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`refined:DATA`: the rationales of DATA, expanded and scored by a student that was trained with them.

    The best `beam` of a row are each expanded by `branch` prompts (refine, contrast, generalise); the best of parents
    and children go on, `depth` times. The score is u r + r v of the next item in the split `train`, and u r elsewhere,
    where nobody knows what comes next.

    Args:
        argument: a data set with rationales (`rationales:DATA`).
        student: as a recipe names a teacher: `{source: recipe:pulse}`.
        teacher: `template`, or a language model, as in `rationales`.
        depth: rounds, 0 for none; branch: prompts, the first ones of the three; beam: rationales that stay.
        history_len, seed, chat, answers, options: see `rationales`.

    Raises:
        UsageError: no student, or numbers out of range. CompatibilityError: the student has no space of rationales.
    """
    name = f"refined:{argument}"
    if depth < 0 or beam < 1 or not 1 <= branch <= len(EXPAND):
        raise UsageError(
            f"{name}: depth must be at least 0, beam 1, branch 1 to {len(EXPAND)} ({depth=}, {beam=}, {branch=})"
        )
    if student is None:
        raise UsageError(f"{name} needs a student that scores rationales", hint="student: {source: recipe:NAME}")
    prompter = None if teacher == TEMPLATE else _prompter(name, teacher, answers, chat, 1, AGAIN)
    scorer, data = open_teacher(student, NAME), open_data(argument, options=options)
    key = {"of": fingerprints(data), "student": dict(scorer.identity), "depth": depth, "branch": branch, "beam": beam}
    key |= {"seed": seed, "history_len": history_len, "asked": prompter and prompter.key, "template": AGAIN}

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any]]:
        known = Catalogue.of(data)
        model = scorer.model.of(known)
        if "user" not in model.kinds or model.reads is None or model.config["feature"]:
            raise CompatibilityError(f"{name}: the student has no space of rationales", hint="one of method pulse has")
        guard, sentences, prepare = Guard(known, history_len), Sentences(known, seed), prepare_for(known.items)
        for batch in batches(data.split(split)):
            histories, beams = [guard.history(row) for row in batch], [list(row["rationales"]) for row in batch]

            def best(found: list[list[str]], batch: Any = batch) -> list[list[str]]:
                unique = [list(dict.fromkeys(texts)) for texts in found]
                examples = prepared(prepare, [{**row, "rationales": texts} for row, texts in zip(batch, unique)])
                scores = model.selection(examples, with_target=split == "train")
                return [
                    [texts[i] for i in np.argsort(-s[: len(texts)], kind="stable")[:beam]]
                    for texts, s in zip(unique, scores)
                ]

            beams = best(beams)
            for _ in range(depth):
                asked = [
                    (n, text, how) for n, texts in enumerate(beams) for text in texts for how in list(EXPAND)[:branch]
                ]
                if prompter is None:
                    said = [sentences.expand(batch[n], histories[n], text, how) for n, text, how in asked]
                else:
                    prompts = [
                        filled(AGAIN, history=guard.lines(histories[n]), rationale=text, how=EXPAND[how])
                        for n, text, how in asked
                    ]
                    said = [replies[0].text.strip() for replies in prompter(prompts)]
                for (n, *_), text in zip(asked, said):
                    if not text:
                        tally["empty"] += 1
                    elif guard.leaks(text, batch[n], histories[n]):
                        tally["naming the held-out title"] += 1
                    else:
                        beams[n] = [*beams[n], text]
                beams = best(beams)
            for row, texts in zip(batch, beams):
                yield {**row, "rationales": texts, "noise": -1}
        guard.report(f"{name}, split {split!r}")

    return _like(data, name, rows, key)


def _prompter(name: str, teacher: Any, answers: Any, chat: bool, n: int, template: str) -> Prompter:
    prompter = Prompter(name, teacher, answers, chat, temperature=0.8, max_new_tokens=96)
    require(name, n, prompter.how, template, "history")
    return prompter


def _like(
    data: Data, name: str, rows: Callable[[str, Tally], Iterator[dict[str, Any]]], key: Mapping[str, Any]
) -> Data:
    """The same items, and the rows of each other split made again."""
    splits = {ITEMS: lambda tally: named_rows(data.whole(ITEMS))}
    splits |= {s: lambda tally, s=s: rows(s, tally) for s in data.splits if s != ITEMS}
    return made(name, splits, key, licence=data.licence, format="rows")
