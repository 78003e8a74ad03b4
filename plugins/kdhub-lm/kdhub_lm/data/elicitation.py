"""Data sets that a teacher writes: ways to elicit its knowledge, in the terms of arXiv:2402.13116, section 3.

| kind | what the teacher does | rows |
| --- | --- | --- |
| `labelling:DATA` | answers given prompts | prompt, response |
| `expansion:DATA` | makes up tasks like a few given ones, and answers them | prompt, response |
| `curation:TOPICS` | makes up tasks of stated topics and difficulties, and answers them | prompt, response |
| `feedback:DATA` | scores, ranks or corrects what the student writes | see `feedback` |
| `self-knowledge:DATA` | is the student itself; answers that pass a filter are kept | prompt, response |
| `feature` | gives logits and hidden states: the signal store of any teacher, not a data set | |

Each reply goes through the signal store (`kdhub_tasks.language.generation`), so an interrupted data set continues row
by row, and nothing is requested twice. Each row says how it was made: the columns `elicitation` and `teacher`, its name
and the beginning of its identity's digest. Replies that are empty or cannot be read are counted, dropped and reported;
a data set without a row is an error.

`expansion` and `curation` are in `expansion`, `feedback` in `feedback`. A teacher is a text or a mapping as in a
recipe; the student of another recipe is `teacher: {source: recipe:NAME}`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdhub_tasks.language.generation import fault_in
from kdhub_tasks.language.prompting import (
    Prompter,
    batches,
    fingerprints,
    prompt_in,
    question_and_answer,
    require,
    source,
    with_log_probs,
)
from kdhub_tasks.language.replies import Tally, distinct, made
from kdhub_tasks.language.rows import with_answer
from kdhub_tasks.language.scoring import SCORE, Scorer
from kdhub_tasks.language.verify import extract, verified

from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import UsageError


def labelling(
    argument: str,
    *,
    teacher: Any = None,
    samples: int = 1,
    template: str = "{prompt}",
    drop_unlikely: float = 0.0,
    limit: int | None = None,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`labelling:DATA`: a teacher's answers to the prompts (or texts) of each split, in place of any responses there.

    Args:
        argument: the data set, as `--data` takes it.
        samples: answers to each prompt; repeated ones are dropped.
        template: what the teacher is sent, with {prompt} in it; the student learns from the prompt alone.
        drop_unlikely: the share of each split's answers to drop, those that the teacher found least probable
            (arXiv:2110.07178); not every server says how probable they are.
        limit: the first prompts of each split only.
        chat: use the teacher's chat template.
        answers: settings of its `Generation`; for several samples the default temperature is 0.7.
        options: of the other data set.
    """
    name = f"labelling:{argument}"
    answers = with_log_probs(name, answers, drop_unlikely)
    prompter = Prompter(name, teacher, answers, chat, temperature=0.0 if samples == 1 else 0.7)
    require(name, samples, prompter.how, template, "prompt")
    data = source(name, argument, options, limit=limit)
    origin = {"elicitation": "labelling", "teacher": prompter.name}

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any] | BadRow]:
        numbers = itertools.count(1)
        for batch in batches(data.split(split)):
            prompts = [prompt_in(row, template) for row in batch]
            for row, replies, number in zip(batch, prompter(prompts, samples, faults=True), numbers):
                if fault := fault_in(replies):
                    yield BadRow(fault, number)
                    continue
                for n, reply in distinct(replies, tally):
                    yield {**with_answer(row, reply.text), **reply.about, "sample": n, **origin}

    key = {"of": fingerprints(data), "asked": prompter.key, "samples": samples, "template": template}
    splits = {s: lambda t, s=s: rows(s, t) for s in data.splits}
    return made(name, splits, key, drop_unlikely=drop_unlikely, licence=data.licence)


def self_knowledge(
    argument: str,
    *,
    teacher: Any = None,
    keep: str = "verified",
    samples: int = 4,
    least_share: float = 0.5,
    least_score: float = 8,
    score_template: str = SCORE,
    scale: Sequence[float] = (1, 10),
    limit: int | None = None,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`self-knowledge:DATA`: the student's own answers that pass a filter, to be trained on by `supervised`; the
    student starts from the same model that is the `teacher` here.

    | `keep` | an answer is kept if |
    | --- | --- |
    | `verified` | its final answer is that of the row's own response (arXiv:2203.14465) |
    | `majority` | most samples have its final answer, at least `least_share` of them (arXiv:2210.11610) |
    | `scored` | the model itself scores it `least_score` or more (arXiv:2401.10020) |

    Args:
        argument: the data set of prompts; `verified` needs responses.
        samples: answers to each prompt, without repetitions.
        score_template, scale: for `scored`, see `feedback`.
        limit, chat, answers, options: see `labelling`; the default temperature is 1.
    """
    name = f"self-knowledge:{argument}"
    if keep not in ("verified", "majority", "scored"):
        raise UsageError(f"{name}: keep must be verified, majority or scored (keep={keep!r})")
    if keep == "majority" and samples < 2:
        raise UsageError(f"{name}: keep=majority needs samples of at least 2 (samples={samples})")
    prompter = Prompter(name, teacher, answers, chat, temperature=1.0)
    require(name, samples, prompter.how)
    scorer = Scorer(name, teacher, score_template, scale, chat) if keep == "scored" else None
    data = source(name, argument, options, limit=limit)
    origin = {"elicitation": "self-knowledge", "teacher": prompter.name}

    def filter_of(row: Mapping[str, Any], replies: list[tuple[str, bool]]) -> Callable[[str], bool]:
        """Whether to keep a text, `scored` aside."""
        if keep == "verified":
            return lambda text: verified(text, question_and_answer(row)[1])
        if keep == "scored":
            return lambda text: True
        found = Counter(answer for text, _ in replies if (answer := extract(text)) is not None)
        agreed = [answer for answer, n in found.most_common(1) if n >= max(2, least_share * len(replies))]
        return lambda text: extract(text) in agreed

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any] | BadRow]:
        numbers = itertools.count(1)
        for batch in batches(data.split(split)):
            found = []
            prompts = [prompt_in(row) for row in batch]
            for row, replies, number in zip(batch, prompter(prompts, samples, faults=True), numbers):
                if fault := fault_in(replies):
                    yield BadRow(fault, number)
                    continue
                passes = filter_of(row, replies)
                for n, reply in distinct(replies, tally):
                    if passes(reply.text):
                        found.append({**with_answer(row, reply.text), **reply.about, "sample": n, **origin})
                    else:
                        tally["wrong" if keep == "verified" else "without a majority"] += 1
            yield from found if scorer is None else scorer.kept(found, least_score, tally)

    key = {"of": fingerprints(data), "asked": prompter.key, "samples": samples, "keep": keep}
    key |= {"least_share": least_share, "judge": scorer and {**scorer.key, "least": least_score}}
    return made(name, {s: lambda t, s=s: rows(s, t) for s in data.splits}, key, licence=data.licence)
