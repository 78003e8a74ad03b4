"""What a teacher thinks of the student's answers: `feedback:DATA` (see `elicitation`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdhub_tasks.language.generation import fault_in
from kdhub_tasks.language.prompting import (
    Prompter,
    batches,
    filled,
    fingerprints,
    ranks,
    require,
    source,
)
from kdhub_tasks.language.replies import Tally, distinct, made
from kdhub_tasks.language.scoring import SCORE, Scorer

from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import UsageError

RANK = (
    "Which of these answers to the task is the best, which comes next, and so on?\n\n"
    "Task: {prompt}\n\n{responses}\n\nReply with their numbers alone, the best first, as in 2 > 1 > 3.\n"
)
CORRECT = (
    "Correct the answer to this task. Reply with the corrected answer alone, or repeat it if it is right.\n\n"
    "Task: {prompt}\n\nAnswer: {response}\n"
)


def feedback(
    argument: str,
    *,
    teacher: Any = None,
    student: Any = None,
    how: str = "score",
    samples: int = 4,
    template: str | None = None,
    scale: Sequence[float] = (1, 10),
    limit: int | None = None,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    judging: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`feedback:DATA`: a teacher's opinion of the student's answers.

    | `how` | what the teacher does | rows |
    | --- | --- | --- |
    | `score` | scores each answer on a scale | prompt, responses, scores |
    | `rank` | ranks all answers, shown in random order | prompt, responses, scores (the worst has 0) |
    | `correct` | corrects one answer | prompt, chosen (the correction), rejected |

    `dpo` and `rrhf` learn from each. Prompts whose answers are all equally good, and corrections that change nothing,
    are dropped and counted.

    Args:
        argument: the data set of prompts.
        teacher, student: the models, as a recipe names a teacher.
        samples: answers of the student to each prompt, without repetitions; `correct` takes the first.
        template: what the teacher is sent, with {prompt}, and {response} or {responses} (`rank`) in it.
        scale: lowest and highest score.
        limit: the first prompts of each split only.
        chat: use the teacher's chat template.
        answers: settings of the student's `Generation`; judging: of the teacher's.
        options: of the other data set.
    """
    name = f"feedback:{argument}"
    if how not in ("score", "rank", "correct"):
        raise UsageError(f"{name}: how must be score, rank or correct (how={how!r})")
    if how == "correct":
        samples = 1
    elif samples < 2:
        raise UsageError(f"{name} compares answers and needs samples of at least 2 (samples={samples})")
    writer = Prompter(name, student, answers, temperature=0.0 if samples == 1 else 1.0)
    require(name, samples, writer.how)
    if how == "score":
        critic = Scorer(name, teacher, template or SCORE, scale, chat, judging)
    else:
        critic = Prompter(name, teacher, judging, chat, **({} if how == "correct" else {"max_new_tokens": 32}))
        template = template or {"rank": RANK, "correct": CORRECT}[how]
        require(name, 1, critic.how, template, "prompt", *(["responses"] if how == "rank" else []))
    data = source(name, argument, options, "prompt", limit=limit)
    origin = {"elicitation": "feedback", "teacher": critic.name, "student": writer.name}

    def compared(pairs: list[tuple[str, list[str]]], tally: Tally) -> Iterator[dict[str, Any]]:
        found = critic.of_groups(pairs) if how == "score" else ranks(critic, template, pairs)
        for (prompt, texts), values in zip(pairs, found):
            known = [(text, value) for text, value in zip(texts, values) if value is not None]
            if len(known) < len(texts):
                tally["unreadable"] += len(texts) - len(known)
            if len({value for _, value in known}) > 1:
                responses, scores = map(list, zip(*known))
                yield {"prompt": prompt, "responses": responses, "scores": scores, **origin}
            elif known:
                tally["all equally good"] += len(known)

    def corrected(pairs: list[tuple[str, list[str]]], tally: Tally) -> Iterator[dict[str, Any]]:
        shown = [filled(template, prompt=prompt, response=text) for prompt, (text,) in pairs]
        for (prompt, (text,)), ((better, _),) in zip(pairs, critic(shown)):
            if not better.strip() or better.strip() == text.strip():
                tally["unchanged" if better.strip() else "empty"] += 1
            else:
                yield {"prompt": prompt, "chosen": better, "rejected": text, **origin}

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any] | BadRow]:
        numbers = itertools.count(1)
        for batch in batches(data.split(split)):
            pairs = []
            written = writer([row["prompt"] for row in batch], samples, faults=True)
            for row, replies, number in zip(batch, written, numbers):
                if fault := fault_in(replies):
                    yield BadRow(fault, number)
                    continue
                texts = [text for _, (text, _) in distinct(replies, tally)]
                if len(texts) >= min(samples, 2):
                    pairs.append((row["prompt"], texts))
                elif texts:
                    tally["without another to compare"] += 1
            yield from (corrected if how == "correct" else compared)(pairs, tally)

    key = {"of": fingerprints(data), "student": writer.key, "teacher": critic.key, "how": how, "samples": samples}
    key["template"] = template
    return made(name, {s: lambda t, s=s: rows(s, t) for s in data.splits}, key, licence=data.licence)
