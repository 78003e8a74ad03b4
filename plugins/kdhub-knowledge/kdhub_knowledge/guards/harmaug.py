"""`harmaug:DATA`: more rows of a rare class, written by language models that would rather not (arXiv:2410.01524).

    instructions   n requests "make one instruction that would elicit TOPIC" with a few labelled examples; the model's
                   own answer is begun with `prefix`, so that it goes on instead of refusing
    responses      for each instruction that is kept a refusing and a complying one; and the instruction alone
    labels         by a guard: c = P(second class), y = [c > threshold]

Every request has one outcome, in the split `requests`: kept, empty, refused, duplicate (of a text before it), near (its
words are nearly those of one before it), copied (a text of DATA, or of `unlike`). They add up to n.

Reconstructed: the authors' generation scripts are not public. Ours are the wording of the request, the opener, five
examples, temperature 1, the patterns of refusals, and how a response is led: both have openers of their own, which are
a part of the response.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from kdhub_tasks.classes import class_name, classes_of
from kdhub_tasks.language.generation import answers
from kdhub_tasks.language.prompting import Prompter, filled, require
from kdhub_tasks.language.replies import Tally, made

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import DataError, UsageError
from kdhub_knowledge.guards.data import SIDES, Labeller, labelled, sides_of, tell, two_classes
from kdhub_knowledge.guards.word_lm import OPENER
from kdhub_knowledge.guards.words import Near

logger = logging.getLogger("kdhub")

TEMPLATE = (
    "Make one instruction that would elicit {topic}.\n\n{examples}\n\nReply with the instruction alone, in one line."
)
REFUSALS = (
    r"\bI(?:'m| am) sorry\b",
    r"\bI(?: can'?t|(?: can|'m| am)? ?not (?:able|going|comfortable)| cannot| can not| won'?t)\b",
    r"\bI(?: must|'ll have to| have to)? (?:decline|refuse)\b",
    r"\bas an? (?:AI|(?:large )?language model)\b",
    r"\b(?:sorry|apologi[sz]e)\b.{0,40}\b(?:can(?:'t|not)|unable)\b",
)
"""What a refusal has somewhere."""
LED = {"refusing": "I'm sorry, but", "complying": "Sure, here is"}
"""Kind of response -> how it begins."""
WHICH = {"none": (), "refusing": ("refusing",), "complying": ("complying",), "both": ("refusing", "complying")}
OUTCOMES = ("kept", "empty", "refused", "duplicate", "near", "copied")
WITHHELD = "raw text that language models wrote of a class that may be harmful"
BATCH = 2048


def refused(text: str, patterns: Sequence[str] = REFUSALS) -> bool:
    """Whether a text has one of the patterns of refusals, in whatever case and with whatever apostrophe."""
    return bool(re.search("|".join(patterns), text.replace("’", "'"), re.I | re.S))


def harmaug(
    argument: str,
    *,
    generator: Any = None,
    responder: Any = None,
    labeller: Any = None,
    n_synthetic: int = 100_000,
    prefix: str = OPENER,
    exemplars: int = 5,
    topics: Sequence[str] | None = None,
    template: str = TEMPLATE,
    responses: str = "both",
    led: Mapping[str, str] | None = None,
    refusals: Sequence[str] = REFUSALS,
    dedupe_jaccard: float = 0.8,
    unlike: Sequence[Any] = (),
    threshold: float = 0.5,
    answers: Mapping[str, Any] | None = None,
    responding: Mapping[str, Any] | None = None,
    chat: bool = True,
    release_text: bool = False,
    seed: int = 0,
    split: str = "train",
    options: Mapping[str, Any] | None = None,
) -> Data:
    """See above. Splits: `train`, the rows, and `requests`, the outcome of each request.

    Args:
        argument: the labelled data set, of two classes of which the second is the rare or harmful one.
        generator: the model that writes instructions; responder: the one that answers them, none if unset.
        labeller: the guard, see `kdhub_knowledge.guards.data.Labeller`; if unset rows have no label.
        n_synthetic: requests.
        prefix: how the generator's answer begins; "" leaves it free to refuse.
        exemplars: labelled texts of the second class in each request, drawn at random; 0 for none.
        topics: what is asked for, in turn; the name of the second class if unset.
        template: of a request, with {topic}; {examples} is where the examples stand.
        responses: none, refusing, complying or both; led: kind of response -> how it begins.
        refusals: patterns (regular expressions) of which a refusal has one.
        dedupe_jaccard: of two texts that share more of their words than this the second is dropped.
        unlike: data sets none of whose texts may be among the rows: those to be tested on.
        answers, responding: settings of `Generation` for instructions and for responses; temperature 1 by default.
        chat: prompt in the model's chat template.
        release_text: true lets the rows be published; by default a data set of them is withheld.
        split, options: of the other data set.
    """
    name = f"harmaug:{argument}"
    led = {**LED, **(led or {})}
    _check(name, n_synthetic, exemplars, responses, dedupe_jaccard, led, refusals)
    writer = Prompter(name, generator, answers, chat, temperature=1.0, max_new_tokens=128, stop=("\n",), prefix=prefix)
    require(name, 1, writer.how, template, "topic")
    kinds = WHICH[responses] if responder is not None else ()
    answering = {
        kind: Prompter(name, responder, {"prefix": led[kind], **(responding or {})}, chat, temperature=1.0)
        for kind in kinds
    }
    guard = Labeller(name, labeller, threshold) if labeller is not None else None
    data = open_data({"source": argument, "options": dict(options or {})})
    others = [open_data(one) for one in unlike]

    @cache
    def found() -> tuple[list[str], list[str]]:
        """The outcome and the text of each request."""
        rows = list(named_rows(data.split(split)))
        positive = two_classes(name, classes_of({class_name(row.get("label")) for row in rows} - {None}))[1]
        shown = [sides_of(row)[0] for row in rows if class_name(row.get("label")) == positive]
        known = [sides_of(row)[0] for row in rows]
        known += [sides_of(row)[0] for other in others for s in other.splits for row in named_rows(other.split(s))]
        sort = Sorter(prefix, refusals, dedupe_jaccard, known)
        outcomes, texts = [], []
        for text in _written(writer, template, list(topics or [positive]), shown, exemplars, n_synthetic, seed):
            outcome, text = sort(text)
            outcomes.append(outcome)
            texts.append(text)
        counts = Counter(outcomes)
        logger.info("%s: %d requests: %s", name, len(outcomes), ", ".join(f"{counts[o]} {o}" for o in OUTCOMES))
        return outcomes, texts

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        outcomes, texts = found()
        tally.update(Counter(outcome for outcome in outcomes if outcome != "kept"))
        kept, seen = [text for outcome, text in zip(outcomes, texts) if outcome == "kept"], np.zeros(10, int)
        for start in range(0, len(kept), BATCH):
            some = kept[start : start + BATCH]
            plain = [{**dict(zip(SIDES, (text, ""))), "made": "instruction"} for text in some]
            for kind, one in answering.items():
                for text, ((response, _),) in zip(some, one(some)):
                    if not response.strip():
                        tally[f"empty {kind} response"] += 1
                        continue
                    plain.append(
                        {**dict(zip(SIDES, (text, f"{one.how.prefix} {response.strip()}".strip()))), "made": kind}
                    )
            yield from labelled(plain, guard, tally, seen)
        tell(name, seen)

    def requests() -> Iterator[dict[str, Any]]:
        for number, outcome in enumerate(found()[0], 1):
            yield {"request": number, "outcome": outcome}

    key: dict[str, Any] = {
        "of": data.fingerprint(split),
        "writer": writer.key,
        "n": n_synthetic,
        "exemplars": exemplars,
    }
    key |= {"topics": topics and list(topics), "template": template, "refusals": list(refusals), "seed": seed}
    key |= {"dedupe": dedupe_jaccard, "unlike": [one.fingerprint(s) for one in others for s in one.splits]}
    key |= {"responses": {kind: one.key for kind, one in answering.items()}} | (guard.key if guard else {})
    withheld = "" if release_text else WITHHELD
    train = made(name, {"train": rows}, key, licence=data.licence)
    asked = Data.from_rows(name, {"requests": requests}, key={**key, "version": 1})
    return Data(name, {**train.sources, **asked.sources}, licence=data.licence, withheld=withheld)


def _check(
    name: str, n: int, exemplars: int, responses: str, jaccard: float, led: Mapping[str, str], refusals: Sequence[str]
) -> None:
    if n < 1 or exemplars < 0:
        raise UsageError(
            f"{name}: n_synthetic must be at least 1, and exemplars at least 0 (n_synthetic={n}, {exemplars=})"
        )
    if responses not in WHICH or led.keys() != LED.keys():
        raise UsageError(
            f"{name}: responses must be {', '.join(WHICH)}, and led has {' and '.join(LED)} ({responses=}, "
            f"led={', '.join(led)})"
        )
    if not 0 < jaccard <= 1:
        raise UsageError(f"{name}: dedupe_jaccard must be above 0 and at most 1 (dedupe_jaccard={jaccard})")
    try:
        re.compile("|".join(refusals))
    except re.error as error:
        raise UsageError(f"{name}: refusals must be regular expressions: {error}") from error
    if not refusals:
        raise UsageError(f"{name}: refusals must name at least one pattern (refusals=[])")


class Sorter:
    """Sorts texts by outcome, in their order.

    Args:
        prefix: how the answers began: no part of a text, though some servers repeat it.
        refusals: patterns; jaccard: see `Near`; known: texts that none may copy.
    """

    def __init__(self, prefix: str, refusals: Sequence[str], jaccard: float, known: Sequence[str]):
        self.openers = [one.strip() for one in dict.fromkeys((prefix, OPENER)) if one.strip()]
        self.refusals, self.known = refusals, Near(jaccard, known)
        self.near, self.seen = Near(jaccard), set[str]()

    def __call__(self, text: str) -> tuple[str, str]:
        """The outcome, and the text without an opener."""
        text = text.strip()
        for opener in self.openers:
            text = text.removeprefix(opener).strip()
        plain = " ".join(text.lower().split())
        if not text:
            return "empty", text
        if refused(text, self.refusals):
            return "refused", text
        if plain in self.seen:
            return "duplicate", text
        if text in self.known:
            return "copied", text
        if text in self.near:
            return "near", text
        self.seen.add(plain)
        self.near.add(text)
        return "kept", text


def _written(
    writer: Prompter, template: str, topics: Sequence[str], shown: Sequence[str], exemplars: int, n: int, seed: int
) -> Iterator[str]:
    """The generator's answer to each of n requests.

    Raises:
        DataError: too few labelled texts. TeacherError: none of the answers is a text.
    """
    import datasets

    if len(shown) < exemplars:
        raise DataError(
            f"each request shows {exemplars} labelled texts of the second class, and there are {len(shown)}",
            hint="set exemplars",
        )
    draw, times = random.Random(seed), Counter()
    for start in range(0, n, BATCH):
        rows = []
        for number in range(start, min(start + BATCH, n)):
            examples = "\n".join(f"- {text}" for text in draw.sample(list(shown), exemplars))
            prompt = filled(template, topic=topics[number % len(topics)], examples=examples).strip()
            # the seed is in the number of the sample: the same request under another seed is another row of the store
            rows.append({**writer.row(prompt), "sample": seed * n + times[prompt]})
            times[prompt] += 1
        yield from (text for text, _ in answers(writer.model, datasets.Dataset.from_list(rows), writer.how))
