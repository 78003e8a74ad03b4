"""Data sets that a teacher makes: how its knowledge is drawn out, by the words of arXiv:2402.13116, section 3.

| kind | what is asked | rows |
| --- | --- | --- |
| `labelling:DATA` | answers to given prompts | prompt, response |
| `expansion:DATA` | new tasks like a few given ones, and their answers | prompt, response |
| `curation:TOPICS` | tasks of stated topics and difficulties, and their answers | prompt, response |
| `feedback:DATA` | scores, an order or a correction of what the student writes | see `feedback` |
| `self-knowledge:DATA` | answers of the student itself, of which those that pass a filter are kept | prompt, response |
| `feature` | logits and hidden states: no data set, for this is what the signal store keeps of any teacher | |

Each answer goes through the store (`kdhub_lm.generation`), so a data set that was broken off is continued row by row,
and what was asked before is not asked again. Each row says how it was made: the columns `elicitation` and `teacher`,
its name and the beginning of the digest of its identity. Answers that are empty or that nobody can read are counted,
left out and reported; a data set without a row is an error.

A teacher is a text or a mapping as in a recipe; the student of another recipe is `teacher: {source: recipe:NAME}`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdhub.data import Data
from kdhub.errors import DataError, UsageError
from kdhub_lm.asked import (
    SCORE,
    Asked,
    Judge,
    Tally,
    blocks,
    distinct,
    filled,
    in_order,
    made,
    prints,
    prompt_in,
    read_pairs,
    require,
    said_in,
    source,
)
from kdhub_lm.rouge import Seen
from kdhub_lm.rows import with_answer
from kdhub_lm.verify import extract, verified

PAIR = "Write it as one line that begins with Input: and the answer after it, on a line that begins with Output:."
EXPANSION = (
    "Here are some tasks with their answers. Make up one new task of the same kind, unlike these, and answer it.\n"
    f"{PAIR}\n\n{{examples}}\n\n"
)
CURATION = f"Make up one {{difficulty}} task about {{topic}}, and answer it.\n{PAIR}\n"
RANK = (
    "Which of these answers to the task is the best, which comes next, and so on?\n\n"
    "Task: {prompt}\n\n{responses}\n\nReply with their numbers alone, the best first, as in 2 > 1 > 3.\n"
)
CORRECT = (
    "Correct the answer to this task. Reply with the corrected answer alone, or repeat it if it is right.\n\n"
    "Task: {prompt}\n\nAnswer: {response}\n"
)


def labelling(
    argument: str,
    *,
    teacher: Any = None,
    samples: int = 1,
    template: str = "{prompt}",
    limit: int | None = None,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`labelling:DATA`: a teacher's answers to the prompts (or texts) of each split; what stood there is left out.

    Args:
        argument: the data set, as `--data` takes it.
        samples: answers to each prompt, equal ones once.
        template: what the teacher is asked, with {prompt} in it; the student learns from the prompt alone.
        limit: the first prompts of each split alone.
        chat: ask by the teacher's chat template.
        answers: how it is asked (`kdhub_lm.generation.Generation`); several samples have temperature 0.7.
        options: of the other data set.
    """
    name = f"labelling:{argument}"
    asked = Asked(name, teacher, answers, chat, temperature=0.0 if samples == 1 else 0.7)
    require(name, samples, asked.how, template, "prompt")
    data = source(name, argument, options, limit=limit)
    told = {"elicitation": "labelling", "teacher": asked.name}

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any]]:
        for block in blocks(data.split(split)):
            for row, given in zip(block, asked([prompt_in(row, template) for row in block], samples)):
                for n, (text, ended) in distinct(given, tally):
                    yield {**with_answer(row, text), "ended": ended, "sample": n, **told}

    key = {"of": prints(data), "asked": asked.key, "samples": samples, "template": template}
    return made(name, {s: lambda t, s=s: rows(s, t) for s in data.splits}, key, licence=data.licence)


def expansion(
    argument: str,
    *,
    teacher: Any = None,
    asks: int = 100,
    examples: int = 3,
    split: str = "train",
    template: str = EXPANSION,
    most_alike: float = 0.7,
    seed: int = 0,
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Data:
    """`expansion:DATA`: new tasks, and answers to them, that a teacher makes up after a few of the data set's, which
    are drawn anew for each ask; as Self-Instruct (arXiv:2212.10560), but for drawing from the given tasks alone, so
    that no ask has to wait for another.

    Args:
        argument: the data set, with `prompt` and `response`.
        asks: how often the teacher is asked; each answer gives the tasks that can be read in it.
        examples: given tasks in each ask.
        split: of the data set.
        template: what it is asked, with {examples} in it.
        most_alike: a task is new whose ROUGE-L to each given one and each kept one is below this.
        seed: of the draws.
        chat, answers, options: see `labelling`; temperature 0.7.
    """
    name = f"expansion:{argument}"
    asked = Asked(name, teacher, answers, chat, temperature=0.7)
    require(name, 1, asked.how, template, "examples")
    if asks < 1 or examples < 1 or not 0 <= most_alike <= 1:
        raise UsageError(f"{name}: asks {asks} and examples {examples} are from 1, most_alike {most_alike} from 0 to 1")
    data = source(name, argument, options)
    table = data.split(data.pick(split))
    if not {"prompt", "response"} <= set(table.column_names):
        raise DataError(f"{name}: its columns are {', '.join(table.column_names)}, not prompt and response")
    told = {"elicitation": "expansion", "teacher": asked.name}

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        seen = Seen(most_alike)
        for prompt in table["prompt"]:
            seen.add(prompt)
        for block in blocks(range(asks)):
            shown = [random.Random(f"{seed} {n}").sample(range(len(table)), min(examples, len(table))) for n in block]
            prompts = [filled(template, examples="\n\n".join(as_pair(table[i]) for i in some)) for some in shown]
            for some, ((text, _),) in zip(shown, asked(prompts)):
                for prompt, response in new_pairs(text, seen, tally):
                    yield {"prompt": prompt, "response": response, "examples": some, **told}

    key = {"of": data.fingerprint(data.pick(split)), "asked": asked.key, "template": template}
    key |= {"asks": asks, "examples": examples, "most_alike": most_alike, "seed": seed}
    return made(name, {"train": rows}, key, licence=data.licence)


def curation(
    argument: str,
    *,
    teacher: Any = None,
    topics: Sequence[str] = (),
    difficulties: Sequence[str] = ("easy", "medium", "hard"),
    samples: int = 4,
    template: str = CURATION,
    most_alike: float = 0.7,
    least_score: float | None = None,
    score_template: str = SCORE,
    scale: Sequence[float] = (1, 10),
    chat: bool = False,
    answers: Mapping[str, Any] | None = None,
) -> Data:
    """`curation:TOPICS`: tasks and answers that a teacher makes up for each topic and each difficulty, without data.

    Args:
        argument: topics, with commas between them; topics: further ones, which may have commas.
        samples: how often it is asked for each topic at each difficulty.
        template: what it is asked, with {topic} and {difficulty} in it.
        most_alike: see `expansion`.
        least_score: keep only what the teacher itself scores so high, on the scale.
        chat, answers: see `labelling`; temperature 0.7.
    """
    name = f"curation:{argument}"
    topics = list(dict.fromkeys([*filter(None, map(str.strip, argument.split(","))), *topics]))
    asked = Asked(name, teacher, answers, chat, temperature=0.7)
    require(name, samples, asked.how, template, "topic", "difficulty")
    judge = Judge(name, teacher, score_template, scale, chat) if least_score is not None else None
    if not topics or not difficulties:
        raise UsageError(f"{name} needs topics and difficulties", hint="curation:geometry,history")
    told = {"elicitation": "curation", "teacher": asked.name}

    def rows(tally: Tally) -> Iterator[dict[str, Any]]:
        seen = Seen(most_alike)
        conditions = [(topic, difficulty) for topic in topics for difficulty in difficulties]
        for block in blocks(conditions):
            prompts = [filled(template, topic=topic, difficulty=difficulty) for topic, difficulty in block]
            found = []
            for (topic, difficulty), given in zip(block, asked(prompts, samples)):
                about = {"topic": topic, "difficulty": difficulty, **told}
                pairs = (pair for text, _ in given for pair in new_pairs(text, seen, tally))
                found += [{"prompt": prompt, "response": response, **about} for prompt, response in pairs]
            yield from found if judge is None else judge.kept(found, least_score, tally)

    key = {"asked": asked.key, "template": template, "topics": topics, "difficulties": list(difficulties)}
    key |= {"samples": samples, "most_alike": most_alike, "judge": judge and {**judge.key, "least": least_score}}
    return made(name, {"train": rows}, key)


def new_pairs(text: str, seen: Seen, tally: Tally) -> Iterator[tuple[str, str]]:
    """The tasks of an answer that are not too like those seen."""
    pairs = read_pairs(text)
    if not pairs:
        tally["unreadable" if text.strip() else "empty"] += 1
    for prompt, response in pairs:
        if seen.add(prompt):
            yield prompt, response
        else:
            tally["too like another"] += 1


def as_pair(row: Mapping[str, Any]) -> str:
    return f"Input: {row['prompt']}\nOutput: {row['response']}"


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
    """`feedback:DATA`: what a teacher thinks of what the student writes.

    | `how` | what the teacher does | rows |
    | --- | --- | --- |
    | `score` | scores each answer on a scale | prompt, responses, scores |
    | `rank` | puts all answers in order, shown in an order of chance | prompt, responses, scores (the worst has 0) |
    | `correct` | corrects one answer | prompt, chosen (the correction), rejected |

    `dpo` and `rrhf` learn from each. Prompts whose answers are all equally good, and corrections that change nothing,
    are left out and counted.

    Args:
        argument: the data set of prompts.
        teacher, student: the models, as a recipe names a teacher.
        samples: answers of the student to each prompt, equal ones once; `correct` takes the first.
        template: what the teacher is asked, with {prompt}, and {response} or {responses} (`rank`) in it.
        scale: lowest and highest score.
        limit: the first prompts of each split alone.
        chat: ask the teacher by its chat template.
        answers: how the student is asked; judging: how the teacher is.
        options: of the other data set.
    """
    name = f"feedback:{argument}"
    if how not in ("score", "rank", "correct"):
        raise UsageError(f"{name}: how is {how!r}, should be score, rank or correct")
    if how == "correct":
        samples = 1
    elif samples < 2:
        raise UsageError(f"{name}: {samples} samples, and one answer cannot be better than another")
    asked = Asked(name, student, answers, temperature=0.0 if samples == 1 else 1.0)
    require(name, samples, asked.how)
    if how == "score":
        judge = Judge(name, teacher, template or SCORE, scale, chat, judging)
    else:
        judge = Asked(name, teacher, judging, chat, **({} if how == "correct" else {"max_new_tokens": 32}))
        template = template or {"rank": RANK, "correct": CORRECT}[how]
        require(name, 1, judge.how, template, "prompt", *(["responses"] if how == "rank" else []))
    data = source(name, argument, options, "prompt", limit=limit)
    told = {"elicitation": "feedback", "teacher": judge.name, "student": asked.name}

    def judged(pairs: list[tuple[str, list[str]]], tally: Tally) -> Iterator[dict[str, Any]]:
        found = judge.of_all(pairs) if how == "score" else in_order(judge, template, pairs)
        for (prompt, texts), values in zip(pairs, found):
            known = [(text, value) for text, value in zip(texts, values) if value is not None]
            if len(known) < len(texts):
                tally["unreadable"] += len(texts) - len(known)
            if len({value for _, value in known}) > 1:
                responses, scores = map(list, zip(*known))
                yield {"prompt": prompt, "responses": responses, "scores": scores, **told}
            elif known:
                tally["all equally good"] += len(known)

    def corrected(pairs: list[tuple[str, list[str]]], tally: Tally) -> Iterator[dict[str, Any]]:
        shown = [filled(template, prompt=prompt, response=text) for prompt, (text,) in pairs]
        for (prompt, (text,)), ((better, _),) in zip(pairs, judge(shown)):
            if not better.strip() or better.strip() == text.strip():
                tally["unchanged" if better.strip() else "empty"] += 1
            else:
                yield {"prompt": prompt, "chosen": better, "rejected": text, **told}

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any]]:
        for block in blocks(data.split(split)):
            pairs = []
            for row, given in zip(block, asked([row["prompt"] for row in block], samples)):
                texts = [text for _, (text, _) in distinct(given, tally)]
                if len(texts) >= min(samples, 2):
                    pairs.append((row["prompt"], texts))
                elif texts:
                    tally["without another to compare"] += 1
            yield from (corrected if how == "correct" else judged)(pairs, tally)

    key = {"of": prints(data), "student": asked.key, "teacher": judge.key, "how": how, "samples": samples}
    key["template"] = template
    return made(name, {s: lambda t, s=s: rows(s, t) for s in data.splits}, key, licence=data.licence)


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
    """`self-knowledge:DATA`: what the student itself answers, as far as it passes a filter; to be trained on by
    `supervised`, the student starting from the very model that is the `teacher` here.

    | `keep` | an answer is kept |
    | --- | --- |
    | `verified` | whose final answer is that of the row's own response (arXiv:2203.14465) |
    | `majority` | whose final answer most samples have, at least `least_share` of them (arXiv:2210.11610) |
    | `scored` | to which the model itself gives `least_score` or more (arXiv:2401.10020) |

    Args:
        argument: the data set of prompts; `verified` needs responses.
        samples: answers to each prompt, equal ones once.
        score_template, scale: of `scored`, see `feedback`.
        limit, chat, answers, options: see `labelling`; temperature 1.
    """
    name = f"self-knowledge:{argument}"
    if keep not in ("verified", "majority", "scored"):
        raise UsageError(f"{name}: keep is {keep!r}, should be verified, majority or scored")
    if keep == "majority" and samples < 2:
        raise UsageError(f"{name}: a majority of {samples} samples")
    asked = Asked(name, teacher, answers, chat, temperature=1.0)
    require(name, samples, asked.how)
    judge = Judge(name, teacher, score_template, scale, chat) if keep == "scored" else None
    data = source(name, argument, options, limit=limit)
    told = {"elicitation": "self-knowledge", "teacher": asked.name}

    def right(row: Mapping[str, Any], given: list[tuple[str, bool]]) -> Callable[[str], bool]:
        """Whether a text is one to keep, `scored` aside."""
        if keep == "verified":
            return lambda text: verified(text, said_in(row)[1])
        if keep == "scored":
            return lambda text: True
        found = Counter(answer for text, _ in given if (answer := extract(text)) is not None)
        agreed = [answer for answer, n in found.most_common(1) if n >= max(2, least_share * len(given))]
        return lambda text: extract(text) in agreed

    def rows(split: str, tally: Tally) -> Iterator[dict[str, Any]]:
        for block in blocks(data.split(split)):
            found = []
            for row, given in zip(block, asked([prompt_in(row) for row in block], samples)):
                good = right(row, given)
                for n, (text, ended) in distinct(given, tally):
                    if good(text):
                        found.append({**with_answer(row, text), "ended": ended, "sample": n, **told})
                    else:
                        tally["wrong" if keep == "verified" else "without a majority"] += 1
            yield from found if judge is None else judge.kept(found, least_score, tally)

    key = {"of": prints(data), "asked": asked.key, "samples": samples, "keep": keep}
    key |= {"least_share": least_share, "judge": judge and {**judge.key, "least": least_score}}
    return made(name, {s: lambda t, s=s: rows(s, t) for s in data.splits}, key, licence=data.licence)
