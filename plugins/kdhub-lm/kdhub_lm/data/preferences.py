"""Preferences made from another data set: responses to its prompts, and a score for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdhub_tasks.language.generation import Generation, fault_in, sampled
from kdhub_tasks.language.verify import verified

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow
from kdhub.errors import CompatibilityError, DataError, UsageError

if TYPE_CHECKING:
    import datasets

    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

BATCH = 32


def preferences(
    argument: str,
    *,
    writer: str | Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    samples: int = 4,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`preferences:DATA`: each split of prompts and responses, as rankings.

    | `writer` | the responses to a prompt |
    | --- | --- |
    | unset | the row's own, and that of another row |
    | a model | its distinct answers of `samples` |

    | `teacher` | their scores |
    | --- | --- |
    | unset | 1 if a response has the same final answer as the row's own, else 0 |
    | a model | its mean log-probability of a token, nats |

    Prompts whose responses all have the same score are dropped, and counted.

    Args:
        argument: the data set, as `--data` takes it.
        writer: a teacher that gives text, as `teacher` in a recipe: `{source: recipe:NAME}`.
        teacher: one with local weights, or behind a server with `prompt_logprobs` (option `tokenizer`).
        samples, max_new_tokens, temperature: settings of the writer's generation.
        options: of the other data set.
    """
    if samples < 2:
        raise UsageError(f"preferences:{argument} needs samples of at least 2 (samples={samples})")
    how = Generation(max_new_tokens=max_new_tokens, temperature=temperature)
    data = open_data(argument, options=options)
    splits = [name for name in data.splits if data.form(name) == "responses"]
    if not splits:
        raise DataError(
            f"preferences:{argument}: none of its splits {', '.join(data.splits)} has prompts and responses"
        )
    author, scorer = (None if ref is None else open_teacher(ref, "causal-lm") for ref in (writer, teacher))
    if scorer is not None and scorer.module is None and getattr(scorer, "tokenizer", None) is None:
        raise CompatibilityError(
            f"preferences:{argument}: {scorer.argument} gives no probabilities of given responses",
            hint="a server that has prompt_logprobs does, with the teacher's option tokenizer",
        )

    def rows(split: str) -> Iterator[dict[str, Any] | BadRow]:
        table, equal = data.split(split), 0
        own = table["response"]
        written = own_and_another(own) if author is None else distinct_answers(author, table, how, samples)
        for number, (row, texts) in enumerate(zip(table, written), 1):
            if isinstance(texts, BadRow):
                yield replace(texts, row=number)
                continue
            if scorer is None:
                scores = [float(verified(text, row["response"])) for text in texts]
            else:
                scores = mean_log_probs(scorer, row["prompt"], texts) if len(texts) > 1 else [0.0]
            if len(set(scores)) < 2:
                equal += 1
                continue
            yield {"prompt": row["prompt"], "responses": texts, "scores": scores}
        if equal:
            what = f"{equal} of {len(table)} prompts of {argument} have responses with the same score"
            if equal == len(table):
                raise DataError(what, hint="use more samples, a higher temperature, or a teacher's scores")
            logger.info("%s and were dropped", what)

    key = {
        "writer": None if author is None else {**author.identity_of(how.kind), "how": how.kind, "samples": samples},
        "teacher": None if scorer is None else dict(scorer.identity),
        "version": 1,
    }
    return data.remade(f"preferences:{argument}", rows, splits, key=key)


def own_and_another(responses: Sequence[str]) -> Iterator[list[str]]:
    """Each response and the next different one."""
    for n, own in enumerate(responses):
        others = (responses[(n + step) % len(responses)] for step in range(1, len(responses)))
        yield [own, next((other for other in others if other != own), own)]


def distinct_answers(
    writer: Teacher, table: datasets.Dataset, how: Generation, samples: int
) -> Iterator[list[str] | BadRow]:
    """The distinct answers to each prompt, without empty ones, in order; a bad row where it cannot be answered."""
    for answers in sampled(writer, table.select_columns(["prompt"]), how, samples, faults=True):
        fault = fault_in(answers)
        yield BadRow(fault) if fault else list(dict.fromkeys(text for text, _ in answers if text.strip()))


def mean_log_probs(teacher: Teacher, prompt: str, responses: Sequence[str]) -> list[float]:
    """A model's mean log-probability of a token of each response to a prompt, nats."""
    import torch

    from kdhub.ranks import device
    from kdhub_lm.log_probs import label_log_probs, per_row

    task = teacher.task
    examples = task.preparer(None, teacher)([{"prompt": prompt, "response": text} for text in responses])
    if teacher.module is None:
        return [float(each.mean()) if len(each) else 0.0 for each in teacher.label_log_probs(examples)]
    found: list[float] = []
    where = device()
    teacher.module.to(where)
    for start in range(0, len(examples), BATCH):
        batch = task.collate(examples[start : start + BATCH], teacher.model)
        batch = {name: value.to(where) for name, value in batch.items()}
        with torch.no_grad():
            each = label_log_probs(teacher.module(batch), batch["labels"])
        found += per_row(each, batch["counts"], mean=True).tolist()
    return found
