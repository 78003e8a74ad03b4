"""Preferences made of another data set: responses to its prompts, and a score for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub.data import Data, DataOptions
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub_lm.generation import Generation, opened, several
from kdhub_lm.verify import verified

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

    | `writer` | the responses of a prompt |
    | --- | --- |
    | left out | the row's own, and that of another row |
    | a model | `samples` answers of it, equal ones once |

    | `teacher` | their scores |
    | --- | --- |
    | left out | 1 where a response comes to the answer that the row's own has, else 0 |
    | a model | its mean log-probability of a token, nats |

    Prompts whose responses all have one score are left out, and counted.

    Args:
        argument: the data set, as `--data` takes it.
        writer: a teacher that gives text, as `teacher` in a recipe: `{source: recipe:NAME}`.
        teacher: one whose weights are at hand.
        samples, max_new_tokens, temperature: how the writer is asked.
        options: of the other data set.
    """
    from kdhub.resolve import Resolver

    if samples < 2:
        raise UsageError(f"preferences:{argument}: {samples} samples, and a preference is between two")
    how = Generation(max_new_tokens=max_new_tokens, temperature=temperature)
    data = Resolver().open_data(argument, DataOptions(), options)
    splits = [name for name in data.splits if data.form(name) == "responses"]
    if not splits:
        raise DataError(
            f"preferences:{argument}: none of its splits {', '.join(data.splits)} has prompts and responses"
        )
    author, judge = (None if ref is None else opened(ref) for ref in (writer, teacher))
    if judge is not None and judge.module is None:
        raise CompatibilityError(f"preferences:{argument}: {judge.argument} gives no probabilities of given responses")

    def rows(split: str) -> Iterator[dict[str, Any]]:
        table, equal = data.split(split), 0
        own = table["response"]
        written = own_and_another(own) if author is None else sampled(author, table, how, samples)
        for row, texts in zip(table, written):
            if judge is None:
                scores = [float(verified(text, row["response"])) for text in texts]
            else:
                scores = mean_log_probs(judge, row["prompt"], texts) if len(texts) > 1 else [0.0]
            if len(set(scores)) < 2:
                equal += 1
                continue
            yield {"prompt": row["prompt"], "responses": texts, "scores": scores}
        if equal:
            what = f"{equal} of {len(table)} prompts of {argument} have responses that are all equally good"
            if equal == len(table):
                raise DataError(what, hint="more samples, a higher temperature, or a teacher's scores")
            logger.info("%s, and are left out", what)

    key = {
        "writer": None if author is None else {**author.identity, "how": how.kind, "samples": samples},
        "teacher": None if judge is None else dict(judge.identity),
        "version": 1,
    }
    return data.remade(f"preferences:{argument}", rows, splits, key=key)


def own_and_another(responses: Sequence[str]) -> Iterator[list[str]]:
    """Each response and the next other one."""
    for n, own in enumerate(responses):
        others = (responses[(n + step) % len(responses)] for step in range(1, len(responses)))
        yield [own, next((other for other in others if other != own), own)]


def sampled(writer: Teacher, table: datasets.Dataset, how: Generation, samples: int) -> Iterator[list[str]]:
    """Different answers to each prompt, empty ones left out, in the order they came."""
    for given in several(writer, table.select_columns(["prompt"]), how, samples):
        yield list(dict.fromkeys(text for text, _ in given if text.strip()))


def mean_log_probs(teacher: Teacher, prompt: str, responses: Sequence[str]) -> list[float]:
    """How probable a model finds each response to a prompt: mean log-probability of a token, nats."""
    import torch

    from kdhub._ranks import device
    from kdhub_lm.log_probs import label_log_probs, per_row
    from kdhub_lm.task import CausalLanguage

    task = CausalLanguage()
    examples = task.preparer(None, teacher)([{"prompt": prompt, "response": text} for text in responses])
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
