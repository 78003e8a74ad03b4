"""Tasks that a teacher makes up, and its answers to them: `expansion:DATA` and `curation:TOPICS` (see
`elicitation`)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdhub_tasks.language.generation import Answer
from kdhub_tasks.language.prompting import Prompter, batches, filled, require, source, with_log_probs
from kdhub_tasks.language.replies import Tally, made, read_pairs
from kdhub_tasks.language.rouge import NovelTexts
from kdhub_tasks.language.scoring import SCORE, Scorer

from kdhub.data.dataset import Data
from kdhub.errors import DataError, UsageError

PAIR = "Write it as one line that begins with Input: and the answer after it, on a line that begins with Output:."
EXPANSION = (
    "Here are some tasks with their answers. Make up one new task of the same kind, unlike these, and answer it.\n"
    f"{PAIR}\n\n{{examples}}\n\n"
)
CURATION = f"Make up one {{difficulty}} task about {{topic}}, and answer it.\n{PAIR}\n"


def expansion(
    argument: str,
    *,
    teacher: Any = None,
    asks: int = 100,
    examples: int = 3,
    split: str = "train",
    template: str = EXPANSION,
    most_alike: float = 0.7,
    drop_unlikely: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`expansion:DATA`: tasks and answers that a teacher makes up after seeing a few of the data set's, drawn for each
    prompt. As Self-Instruct (arXiv:2212.10560), but examples are drawn from the given tasks only, so that no prompt has
    to wait for another.

    Args:
        argument: the data set, with `prompt` and `response`.
        asks: prompts sent to the teacher; a reply may have several tasks.
        examples: given tasks in each prompt.
        split: of the data set.
        template: what the teacher is sent, with {examples} in it.
        most_alike: a task is new if its ROUGE-L to each given and each kept one is below this.
        drop_unlikely: see `labelling`; tasks of one reply are dropped together.
        seed: of the draws.
        chat, answers, options: see `labelling`; the default temperature is 0.7.
    """
    name = f"expansion:{argument}"
    prompter = Prompter(name, teacher, with_log_probs(name, answers, drop_unlikely), chat, temperature=0.7)
    require(name, 1, prompter.how, template, "examples")
    if asks < 1 or examples < 1 or not 0 <= most_alike <= 1:
        raise UsageError(
            f"{name} needs asks and examples of at least 1 and most_alike from 0 to 1 "
            f"(asks={asks}, examples={examples}, most_alike={most_alike})"
        )
    data = source(name, argument, options)
    table = data.split(data.pick(split))
    if not {"prompt", "response"} <= set(table.column_names):
        raise DataError(f"{name} needs the columns prompt and response; it has {', '.join(table.column_names)}")
    origin = {"elicitation": "expansion", "teacher": prompter.name}

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        known = NovelTexts(most_alike)
        for prompt in table["prompt"]:
            known.add(prompt)
        for batch in batches(range(asks)):
            shown = [random.Random(f"{seed} {n}").sample(range(len(table)), min(examples, len(table))) for n in batch]
            prompts = [filled(template, examples="\n\n".join(as_pair(table[i]) for i in some)) for some in shown]
            for some, (reply,) in zip(shown, prompter(prompts)):
                for pair in new_pairs(reply, known, tally):
                    yield {**pair, "examples": some, **origin}

    key = {"of": data.fingerprint(data.pick(split)), "asked": prompter.key, "template": template}
    key |= {"asks": asks, "examples": examples, "most_alike": most_alike, "seed": seed}
    return made(name, {"train": rows}, key, drop_unlikely=drop_unlikely, licence=data.licence)


def curation(
    argument: str,
    *,
    teacher: Any = None,
    topics: Sequence[str] = (),
    difficulties: Sequence[str] = ("easy", "medium", "hard"),
    samples: int = 4,
    template: str = CURATION,
    most_alike: float = 0.7,
    drop_unlikely: float = 0.0,
    least_score: float | None = None,
    score_template: str = SCORE,
    scale: Sequence[float] = (1, 10),
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
) -> Data:
    """`curation:TOPICS`: tasks and answers that a teacher makes up for each topic and each difficulty, without data.

    Args:
        argument: topics, separated by commas; topics: further ones, which may contain commas.
        samples: replies for each topic at each difficulty.
        template: what the teacher is sent, with {topic} and {difficulty} in it.
        most_alike, drop_unlikely: see `expansion`.
        least_score: keep only what the teacher itself scores at least this high, on the scale.
        chat, answers: see `labelling`; the default temperature is 0.7.
    """
    name = f"curation:{argument}"
    topics = list(dict.fromkeys([*filter(None, map(str.strip, argument.split(","))), *topics]))
    prompter = Prompter(name, teacher, with_log_probs(name, answers, drop_unlikely), chat, temperature=0.7)
    require(name, samples, prompter.how, template, "topic", "difficulty")
    scorer = Scorer(name, teacher, score_template, scale, chat) if least_score is not None else None
    if not topics or not difficulties:
        raise UsageError(f"{name} needs topics and difficulties", hint="curation:geometry,history")
    origin = {"elicitation": "curation", "teacher": prompter.name}

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        known = NovelTexts(most_alike)
        conditions = [(topic, difficulty) for topic in topics for difficulty in difficulties]
        for batch in batches(conditions):
            prompts = [filled(template, topic=topic, difficulty=difficulty) for topic, difficulty in batch]
            found = []
            for (topic, difficulty), replies in zip(batch, prompter(prompts, samples)):
                about = {"topic": topic, "difficulty": difficulty, **origin}
                found += [{**pair, **about} for reply in replies for pair in new_pairs(reply, known, tally)]
            yield from found if scorer is None else scorer.kept(found, least_score, tally)

    key = {"asked": prompter.key, "template": template, "topics": topics, "difficulties": list(difficulties)}
    key |= {"samples": samples, "most_alike": most_alike, "judge": scorer and {**scorer.key, "least": least_score}}
    return made(name, {"train": rows}, key, drop_unlikely=drop_unlikely)


def new_pairs(reply: Answer, known: NovelTexts, tally: Tally) -> Iterator[dict[str, Any]]:
    """The tasks in a reply that are not too similar to known ones, with the reply's `log_prob` where it is known."""
    pairs, of_reply = read_pairs(reply.text), {k: v for k, v in reply.about.items() if k == "log_prob"}
    if not pairs:
        tally["unreadable" if reply.text.strip() else "empty"] += 1
    for prompt, response in pairs:
        if known.add(prompt):
            yield {"prompt": prompt, "response": response, **of_reply}
        else:
            tally["too similar to another"] += 1


def as_pair(row: Mapping[str, Any]) -> str:
    return f"Input: {row['prompt']}\nOutput: {row['response']}"
