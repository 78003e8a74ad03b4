"""What to learn after reinforcement learning: a model's own traces where it is unsure, an expert's where it fails.

Each prompt of another data set is answered K times by the model; acc is the share of right answers:

| acc | origin | traces |
| --- | --- | --- |
| 0 | expert | the expert's, if one of `tries` is right; else none |
| between `self_lo` and `self_hi` | self | `per_prompt` of the model's own right ones |
| 1 | replay | likewise, for a share `mastered_keep` of these prompts |
| else | none | none |

So every learnt trace has the right answer (arXiv:2506.13056; the split is that of its abstract, thresholds and
selection are ours). A small K misses rare successes: P(no hit in 8 at 10 %) is 0.43.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kdhub_tasks.language.generation import Answer, Generation, answers, fault_in, sampled
from kdhub_tasks.language.spec import SHOWN
from kdhub_tasks.language.verify import verified

from kdhub import open_data, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow, RowSource
from kdhub.errors import DataError, RecipeError

if TYPE_CHECKING:
    import datasets

    from kdhub.teacher import Teacher

logger = logging.getLogger("kdhub")

SELF, EXPERT, REPLAY, NONE = "self", "expert", "replay", "none"
BLOCK = 1024
"""Prompts processed together."""
Trace = tuple[str, bool]
"""A text, and whether it was ended."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Attributes:
    k: answers of the model to each prompt.
    self_lo, self_hi: a prompt is learnt from the model's own traces between these shares of right answers.
    per_prompt, pick: how many distinct traces of a prompt, and which: the shortest, or random ones.
    mastered_keep: share of the prompts that are always answered correctly to learn again.
    tries: answers requested from the expert until one is right; the first is its most probable.
    format: regular expression that a whole trace must match.
    """

    k: int = 8
    self_lo: float = 0.0
    self_hi: float = 1.0
    per_prompt: int = 1
    pick: Literal["shortest", "random"] = "shortest"
    mastered_keep: float = 0.0
    tries: int = 4
    format: str | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be {rule} ({name}={getattr(self, name)!r})"
            for name, fits, rule in (
                ("k", self.k >= 2, "at least 2"),
                ("self_lo", 0 <= self.self_lo < self.self_hi, "from 0 and below self_hi"),
                ("self_hi", self.self_hi <= 1, "at most 1"),
                ("per_prompt", self.per_prompt >= 1, "at least 1"),
                ("pick", self.pick in ("shortest", "random"), "shortest or random"),
                ("mastered_keep", 0 <= self.mastered_keep <= 1, "from 0 to 1"),
                ("tries", self.tries >= 1, "at least 1"),
            )
            if not fits
        ]
        if wrong:
            raise RecipeError([f"triage: {problem}" for problem in wrong])

    def right(self, trace: Trace, gold: str) -> bool:
        """Whether it was ended, has the right answer, and matches the format."""
        text, ended = trace
        fits = self.format is None or re.fullmatch(self.format, text, re.DOTALL) is not None
        return ended and fits and verified(text, gold)

    def picked(self, texts: Sequence[str], prompt: str) -> list[str]:
        """Distinct traces among right ones."""
        different = sorted(set(texts), key=lambda text: (len(text), text))
        if self.pick == "random":
            different.sort(key=lambda text: _number(f"{prompt}\0{text}"))
        return different[: self.per_prompt]

    def decide(self, prompt: str, gold: str, traces: Sequence[Trace]) -> dict[str, Any]:
        """What becomes of a prompt: `acc`, `origin`, `traces`, without those of the expert."""
        hits = [text for text, ended in traces if self.right((text, ended), gold)]
        acc, origin = len(hits) / len(traces), NONE
        if acc == 0:
            origin = EXPERT
        elif self.self_lo < acc < self.self_hi:
            origin = SELF
        elif acc == 1 and _number(prompt) < self.mastered_keep:
            origin = REPLAY
        return {"acc": acc, "origin": origin, "traces": self.picked(hits, prompt) if origin in (SELF, REPLAY) else []}


def triaged(
    rows: Sequence[Mapping[str, str]],
    model: Callable[[Sequence[int], int], list[list[Answer]]],
    expert: Callable[[Sequence[int], int], list[Trace]] | None,
    rules: Rules,
) -> Iterator[dict[str, Any] | BadRow]:
    """What becomes of each prompt, and the traces to learn.

    Args:
        rows: `prompt` and `response`, which has the right answer.
        model: (numbers of rows, k) -> k answers to each.
        expert: (numbers of rows, number of the try) -> an answer to each; None without an expert.

    Yields:
        prompt, acc, origin, traces, and `tries`: how often the expert was asked; a bad row where the model cannot be
        asked.
    """
    everyone = range(len(rows))
    found = model(everyone, rules.k)
    faults = [fault_in(traces) for traces in found]
    fates = [rules.decide(row["prompt"], row["response"], traces) for row, traces in zip(rows, found)]
    unsolved, tried = [n for n in everyone if fates[n]["origin"] == EXPERT and not faults[n]], Counter()
    for number in range(rules.tries if expert else 0):
        tried.update(unsolved)
        for n, trace in zip(unsolved, expert(unsolved, number) if unsolved else ()):
            if rules.right(trace, rows[n]["response"]):
                fates[n]["traces"] = [trace[0]]
        unsolved = [n for n in unsolved if not fates[n]["traces"]]
    for n, (row, fate, fault) in enumerate(zip(rows, fates, faults)):
        yield BadRow(fault, n + 1) if fault else {"prompt": row["prompt"], **shown_in(row), **fate, "tries": tried[n]}


def shown_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row shows beside the text of its prompt."""
    return {name: row[name] for name in SHOWN if name in row}


def triage(
    argument: str,
    *,
    model: str | Mapping[str, Any],
    expert: str | Mapping[str, Any] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    task: str = "causal-lm",
    options: Mapping[str, Any] | None = None,
    **rules: Any,
) -> Data:
    """`triage:DATA`: the training rows of a data set of prompts and responses, as split `train` with the traces to
    learn: prompt, response, origin and acc. Split `prompts` says what became of each prompt and how often the expert
    was asked.

    Args:
        argument: the data set, as `--data` takes it.
        model: the model trained by reinforcement: `{source: recipe:NAME}`.
        expert: a teacher that gives text; `{column: NAME}`, a column with worked answers; or none.
        max_new_tokens, temperature: settings of generation for both.
        task: of both; `image-text-to-text` where prompts show images, which stay in the rows.
        options: of the other data set.
        rules: see `Rules`.

    Raises:
        RecipeError: a rule out of range.
        DataError: no trace is left.
    """
    try:
        how_to_choose = Rules(**rules)
    except TypeError as error:
        raise RecipeError([f"triage:{argument}: {str(error).rpartition('() ')[2]}"]) from error
    data = open_data(argument, options=options)
    data.expect("train", "responses")
    column = expert.get("column") if isinstance(expert, Mapping) else None
    author = open_teacher(model, task)
    master = open_teacher(expert, task) if expert is not None and column is None else None
    how = Generation(max_new_tokens=max_new_tokens, temperature=temperature)

    def fates() -> Iterator[dict[str, Any] | BadRow]:
        table, summaries = data.split("train"), []
        for start in range(0, len(table), BLOCK):
            part = table.select(range(start, min(start + BLOCK, len(table))))
            for fate in triaged(part.to_list(), *askers(part), how_to_choose):
                if isinstance(fate, BadRow):
                    yield replace(fate, row=start + fate.row)
                    continue
                summaries.append(_summary(fate))
                yield fate
        logger.info("triage of %s: %s", argument, counts := counted(summaries))
        if summaries and not sum(traces for _, traces, _ in summaries):
            raise DataError(f"triage:{argument}: no trace is left: {counts}")

    def askers(table: datasets.Dataset) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
        prompts = table.select_columns([name for name in ("prompt", *SHOWN) if name in table.column_names])

        def ask(teacher: Teacher, rows: Sequence[int], sample: int, how: Generation) -> list[Trace]:
            numbered = prompts.select(rows).add_column("sample", [sample] * len(rows))
            return list(answers(teacher, numbered, how))

        def by_expert(rows: Sequence[int], number: int) -> list[Trace]:
            if column is not None:
                return [(table[n][column], True) for n in rows]
            return ask(master, rows, number, how if number else how.model_copy(update={"temperature": 0.0}))

        by_model = lambda rows, k: sampled(author, prompts.select(rows), how, k, faults=True)  # noqa: E731
        return by_model, None if expert is None else by_expert

    known = {
        "of": data.fingerprint("train"),
        "model": dict(author.identity_of(how.kind)),
        "expert": dict(master.identity_of(how.kind)) if master is not None else column,
        "how": how.kind,
        "rules": vars(how_to_choose),
        "version": 1,
    }
    name = f"triage:{argument}"
    prompts = Data.from_rows(name, {"prompts": fates}, key=known).with_options(on_bad_rows=author.on_bad_rows)

    def traces() -> Iterator[dict[str, Any] | BadRow]:
        for fate in prompts.split("prompts"):
            for text in fate["traces"]:
                about = {"origin": fate["origin"], "acc": fate["acc"]}
                yield {"prompt": fate["prompt"], "response": text, **shown_in(fate), **about}
        for cause, count in prompts.skipped.get("prompts", {}).items():
            yield from [BadRow(cause)] * count

    sources = {"train": _Counted(traces, {"name": name, **known}, f"{name}, split train", prompts), **prompts.sources}
    return Data(name, sources, licence=data.licence)


class _Counted(RowSource):
    """Rows whose record, for provenance, includes the counts."""

    def __init__(self, rows: Any, key: Mapping[str, Any], label: str, prompts: Data):
        super().__init__(rows, key, label)
        self.prompts = prompts

    def key(self) -> Mapping[str, Any]:
        return super().record()

    def record(self) -> dict[str, Any]:
        return {**super().record(), "counts": counted(map(_summary, self.prompts.split("prompts")))}


def _summary(fate: Mapping[str, Any]) -> tuple[str, int, int]:
    return fate["origin"], len(fate["traces"]), fate["tries"]


def counted(fates: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    """How many prompts and traces there are of each origin, and how often the expert was asked.

    Args:
        fates: of each prompt its origin, the number of its traces, and how often the expert was asked.
    """
    prompts, traces = Counter(), Counter()
    asked = failed = 0
    for origin, number, tries in fates:
        prompts[origin] += 1
        traces[origin] += number
        asked += tries
        failed += origin == EXPERT and not number
    return {
        "prompts": sum(prompts.values()),
        **{f"prompts_{origin}": prompts[origin] for origin in (SELF, EXPERT, REPLAY, NONE)},
        **{f"traces_{origin}": traces[origin] for origin in (SELF, EXPERT, REPLAY)},
        "expert_calls": asked,
        "expert_failed": failed,
    }


def _number(text: str) -> float:
    """A number from 0 to below 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
