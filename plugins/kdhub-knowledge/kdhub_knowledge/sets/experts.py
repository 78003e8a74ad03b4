"""Experts as a teacher: which items can replace each other, by stored answers or by language models.

    teacher: experts:answers.tsv               columns `a`, `b`, `expert`, `answer`: high, medium, low, or unknown
    teacher: experts:families                  those of the closed world `families`

    teacher:
      source: prompted-experts
      model: openai:MODEL
      experts: {metallurgist: You are a metallurgist., chemist: You are a chemist.}
      subject: an alloy

Each expert is a member: its answers are stored as its own and are not asked for twice. Two questions for each pair of
items, as the authors of arXiv:2502.14631 put them: do you know enough to judge, and, if so, how well can one replace
the other. Their wording is not published; what is here was reconstructed from the codes of their answers.

The signal `substitution` of a set of two items is one number: 0 they do not know, 1 low, 2 medium, 3 high; 255 where
there is no answer, or none that can be read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from kdhub_tasks.language.prompting import Prompter, filled
from pydantic import BaseModel, ConfigDict, Field

from kdhub import open_data
from kdhub.data.prepare import iterate
from kdhub.errors import DataError, TeacherError, UsageError
from kdhub.fields import Field as Stored
from kdhub.files import given_or_shared, sha256_file
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example
from kdhub.teacher import Teacher
from kdhub_knowledge.sets.data import family_answers

logger = logging.getLogger("kdhub")

KIND = "substitution"
CLOSED = "families"
"""The argument that stands for the experts of the closed world (`kdhub_knowledge.sets.data`)."""
UNKNOWN, LEVELS, NO_ANSWER = 0, {"low": 1, "medium": 2, "high": 3}, 255
KNOWS = (
    "{persona}\n\nDo you know enough about {a} and {b} to judge whether one of them can replace the other in "
    "{subject}? Reply with yes or no alone.\n"
)
HOW_WELL = (
    "{persona}\n\nHow well can {a} and {b} replace each other in {subject}, so that its kind stays the same? "
    "Reply with high, medium or low alone.\n"
)


class Expert(Teacher):
    """One expert.

    Args:
        name: of the expert; identity: what makes its answers its own.
    """

    def __init__(self, name: str, identity: Mapping[str, Any], task: Any):
        super().__init__(name, task=task)
        self.name, self._identity = name, dict(identity)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "expert", "version": 1, "name": self.name, **self._identity}

    def layout(self, kind: str) -> dict[str, Any]:
        if kind != KIND:
            raise TeacherError(f"experts give {KIND}, not {kind!r}")
        return {KIND: Stored(KIND, "uint8")}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        self.layout(kind)
        pairs = [tuple(example["items"]) for example in examples]
        asked = [pair for pair in pairs if len(pair) == 2]
        said = dict(zip(asked, self.answers(asked)))
        return {KIND: np.array([said.get(pair, NO_ANSWER) for pair in pairs], np.uint8)}

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        raise NotImplementedError


class StoredExpert(Expert):
    """An expert whose answers are in a file.

    Args:
        said: (a, b) with a before b -> answer.
    """

    def __init__(self, name: str, said: Mapping[tuple[str, str], int], identity: Mapping[str, Any], task: Any):
        super().__init__(name, identity, task)
        self.said = said

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        return [self.said.get(pair, NO_ANSWER) for pair in pairs]


class PromptedExpert(Expert):
    """A language model in the role of an expert."""

    def __init__(
        self, name: str, persona: str, subject: str, templates: tuple[str, str], prompter: Prompter, task: Any
    ):
        how = {"persona": persona, "subject": subject, "templates": list(templates)}
        super().__init__(name, {**prompter.key, **how}, task)
        self.persona, self.subject, self.templates, self.prompter = persona, subject, templates, prompter

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.prompter.model.provenance, "expert": self.name, "persona": self.persona}

    @property
    def spent(self) -> Mapping[str, float]:
        return self.prompter.model.spent

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        knows = [word_of(text, ("yes", "no")) for text in self._ask(self.templates[0], pairs)]
        judging = [pair for pair, word in zip(pairs, knows) if word == "yes"]
        levels = iter([word_of(text, LEVELS) for text in self._ask(self.templates[1], judging)])
        said = {"no": UNKNOWN, None: NO_ANSWER}
        found = [LEVELS.get(next(levels), NO_ANSWER) if word == "yes" else said[word] for word in knows]
        if bad := found.count(NO_ANSWER):
            logger.warning("expert %s: %d of %d pairs have no readable answer", self.name, bad, len(found))
        return found

    def _ask(self, template: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
        known = {"persona": self.persona, "subject": self.subject}
        prompts = [filled(template, a=a, b=b, **known) for a, b in pairs]
        return [text for ((text, _),) in self.prompter(prompts)]


class Experts(Teacher):
    """Experts of one kind.

    Attributes:
        members: each of them; items: those that they can only be asked about, empty where they can about any.
    """

    members: Sequence[Expert]
    items: Sequence[str] = ()

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "experts", "members": [dict(member.identity) for member in self.members]}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"kind": "experts", "experts": [member.name for member in self.members]}

    def layout(self, kind: str) -> dict[str, Any]:
        self.members[0].layout(kind)
        return {KIND: Stored(KIND, "uint8", (len(self.members),))}

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        return self.joined(kind, [member.signals(examples, kind) for member in self.members])

    def joined(self, kind: str, given: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """(rows, experts) of answers."""
        return {KIND: np.stack([one[KIND] for one in given], axis=1)}


class StoredExperts(Experts):
    """`experts:FILE`."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        columns: dict[str, str] = Field(
            default_factory=dict,
            description="a, b, expert, answer, and knows (yes or no) where it is apart -> the file's name of it",
        )

    options: Options

    @cached_property
    def members(self) -> Sequence[StoredExpert]:
        """Raises:
        UsageError: there is no such file. DataError: a row of it that cannot be read.
        """
        said: dict[str, dict[tuple[str, str], int]] = {}
        for number, row in enumerate(self._rows(), 1):
            where = f"{self.argument}, row {number}"
            if missing := [name for name in ("a", "b", "expert", "answer") if row.get(name) is None]:
                raise DataError(
                    f"{where}, has no {' and no '.join(missing)}, only {', '.join(row)}",
                    hint="map its columns: teacher: {source: experts:FILE, columns: {a: THEIRS, answer: THEIRS}}",
                )
            pair = tuple(sorted((str(row["a"]), str(row["b"]))))
            answers = said.setdefault(str(row["expert"]), {})
            if pair[0] == pair[1] or pair in answers:
                raise DataError(f"{where}: {row['expert']} answers {' and '.join(pair)} twice, or an item by itself")
            answers[pair] = _level(row, where)
        whose = {"closed world": 1} if self.argument == CLOSED else {"file": sha256_file(self._file)}
        return [StoredExpert(name, answers, whose, self.task) for name, answers in said.items()]

    @property
    def _file(self) -> Path:
        """As it is named, else below `KDHUB_DATA`."""
        file = given_or_shared(self.argument)
        if file is None:
            raise UsageError(
                f"experts: there is no file {self.argument}", hint="also searched below KDHUB_DATA, where that is set"
            )
        return file

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        if self.argument == CLOSED:
            return family_answers()
        data = open_data({"source": f"path:{self._file}", "columns": self.options.columns})
        return iterate(data.split(data.pick("train", "train")))

    @property
    def items(self) -> list[str]:
        """Those that the file has answers about."""
        return sorted({item for one in self.members for pair in one.said for item in pair})

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**super().provenance, "id": self.argument}


class PromptedExperts(Experts):
    """`prompted-experts`."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        model: TextRef | None = Field(None, description="the language model, as a recipe names a teacher")
        experts: dict[str, str] = Field(
            default_factory=dict, description="name -> who the model shall be, the first sentence of a prompt"
        )
        subject: str = Field("a set of this kind", description="what the items are part of: an alloy, a recipe")
        knows: str = Field(KNOWS, description="the first question, with {persona}, {subject}, {a} and {b}")
        how_well: str = Field(HOW_WELL, description="the second question")
        answers: dict[str, Any] = Field({}, description="settings of the replies: temperature, max_new_tokens, ...")
        chat: bool = Field(False, description="use a local model's chat template; API models always have theirs")

    options: Options

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        from kdhub import open_task

        folder = Path(recipe["teacher"]["source"].partition(":")[2]).parent / "experts"
        folder.mkdir(exist_ok=True)
        model = open_task("causal-lm").tiny_recipe(folder)["teacher"]
        return {"model": model, "experts": {"one": "You know letters.", "two": "You know numbers."}}

    @cached_property
    def members(self) -> Sequence[PromptedExpert]:
        """Raises:
        UsageError: no model, or nobody that it shall be.
        """
        o = self.options
        if not o.experts:
            raise UsageError(
                f"prompted-experts need a model and who it shall be (experts={o.experts})",
                hint="teacher: {source: prompted-experts, model: openai:MODEL, experts: {chemist: You are a chemist.}}",
            )
        prompter = Prompter("prompted-experts", o.model, o.answers, o.chat, max_new_tokens=16)
        how = (o.subject, (o.knows, o.how_well), prompter, self.task)
        return [PromptedExpert(name, persona, *how) for name, persona in o.experts.items()]

    @property
    def spent(self) -> Mapping[str, float]:
        return self.members[0].spent


def _level(row: Mapping[str, Any], where: str) -> int:
    """An answer as a number. Codes that a file puts in front (`Q2High`) do not count."""
    answer, knows = (re.sub(r"^q\d+", "", str(row.get(name) or "").strip().lower()) for name in ("answer", "knows"))
    if knows == "no" or answer in ("unknown", "none", "no"):
        return UNKNOWN
    if answer not in LEVELS:
        raise DataError(f"{where}: the answer is {row['answer']!r}, not high, medium, low or unknown")
    return LEVELS[answer]


def word_of(text: str, words: Sequence[str]) -> str | None:
    """The one of some words that a reply has; None where it has none, or several."""
    found = set(re.findall(rf"\b(?:{'|'.join(words)})\b", text.lower()))
    return found.pop() if len(found) == 1 else None
