"""The teacher contract: a frozen model that gives signals."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from kdhub.files import canonical_json, home, read_sealed, write_sealed

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from kdhub.fields import Field
    from kdhub.rows import Example


def facts_path(identity: Mapping[str, Any]) -> Path:
    """The file with what is known of a teacher: its `name` for lists, and its `facts`."""
    digest = hashlib.sha256(canonical_json(identity)).hexdigest()[:32]
    return home() / "teachers" / f"{digest}.json"


ANSWERED = "answered"
"""The field that the signals of a teacher have which is not `complete`: 1 where it has a signal of a row, else 0."""


class Teacher(ABC):
    """A frozen model, local or behind an API, that gives signals.

    A subclass is built as `cls(argument, options, task=task)` by its `TeacherSpec`, cheaply: weights are loaded when a
    signal is asked for, so that a run whose signals are all stored never loads the teacher.

    Attributes:
        task: what it is asked for; the same teacher may serve several tasks.
        Options: what a recipe may set next to the source (`teacher: {source: ..., concurrency: 8}`).
        group_rows: how many rows are computed and committed together. Small for slow teachers (little is lost
            when killed), larger for fast ones (longer batches of equal length).
        concurrent_groups: how many groups are computed at once, each in a thread of its own. More than one only where
            `signals` may be called from many threads and mostly waits, as behind an API.
        module: the network, for methods that run the teacher inside training; None behind an API.
        members: the teachers that it is made of; empty for one that is itself. Their signals are stored as if each were
            alone (`parts`), and what they give together (`joined`) is not.
        terms: what the terms of its provider say against publishing what was made with it, in one line; "" where they
            say nothing. A student of such a teacher is withheld (`kdhub.student.Student.withheld`).
        complete: whether it has a signal of every row. One that may have none says so in the field `answered` (uint8)
            of its signals: such rows are bad rows, which stop a run or are left out as its `on_bad_rows` says.
        on_bad_rows: what that is, "stop" or "skip", for a teacher that can give text without a row that it refuses.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")

    group_rows: ClassVar[int] = 1024
    concurrent_groups: ClassVar[int] = 1
    module: nn.Module | None = None
    members: Sequence[Teacher] = ()
    complete: bool = True
    on_bad_rows: str = "stop"
    terms: str = ""

    def __init__(self, argument: str, options: BaseModel | None = None, *, task: Any = None):
        self.argument, self.task = argument, task
        self.options = options if options is not None else self.Options()

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Options that the conformance kit tries it with, where it needs any; `recipe` is the task's tiny one."""
        return {}

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What makes its outputs its own: file digests, or model name and endpoint. Part of the store's key."""

    def identity_of(self, kind: str) -> Mapping[str, Any]:
        """What makes one kind of its outputs its own, where that is more than `identity`: what texts depend on beside
        the weights. Stored signals are found by it."""
        return self.identity

    @abstractmethod
    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        """One kind of signal for each example, in order, as named fields (`{"embedding": (n, width)}`).

        Raises:
            TeacherError: the teacher gave the wrong number of rows or failed.
            HubError: it could not be reached.
        """

    def batch_signals(self, inputs: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
        """One kind of signal for a batch as the student's network takes it, of a teacher that is asked inside training
        and has no `module` (`TeacherSpec.remote`). Tensors, or what the task's losses take in their place.

        Raises:
            TeacherError, HubError: as `signals`; a checkpoint is written then, so that the run can go on later.
        """
        raise NotImplementedError

    @abstractmethod
    def layout(self, kind: str) -> dict[str, tuple[int | None, ...] | Field]:
        """Fields of one row of a signal and their shapes (`{"embedding": (384,)}`); a leading None is a ragged one. A
        `kdhub.fields.Field` where the storage is its own. A kind is a signal's name; `logits:top-32` when a recipe
        asks for a part of it (`signals.keep`), which a teacher may refuse."""

    def stored_in(self, kind: str) -> str:
        """The signal that is computed and stored where a kind is asked for, and read out of (`part`): the kind itself,
        or one that has all that a single pass gives, so that nobody asks for that pass a second time."""
        return kind

    def part(self, kind: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """A kind of signal of some rows, out of theirs of `stored_in(kind)`."""
        return given

    def parts(self, kind: str) -> Sequence[tuple[Teacher, str]]:
        """Of a teacher with `members`: who is asked for a kind of signal, and for which of their own."""
        return [(member, kind) for member in self.members]

    def joined(self, kind: str, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Of a teacher with `members`: a kind of signal of some rows, from what each of `parts` gave for them."""
        raise NotImplementedError

    def probe(self) -> Mapping[str, Any]:
        """Facts that cost a call, such as the width of its vectors. See `facts`."""
        return {}

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """`probe`, measured once for each identity and kept on disk, so that a second run calls nothing."""
        path = facts_path(self.identity)
        with suppress(OSError, ValueError, KeyError):  # not there, or damaged: asked again
            return read_sealed(path)["facts"]
        facts = dict(self.probe())
        self._keep_facts(facts)
        return facts

    def _keep_facts(self, facts: Mapping[str, Any]) -> None:
        path = facts_path(self.identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = self.provenance.get("id") or self.argument
        write_sealed(path, {"schema": 1, "name": name, "identity": self.identity, "facts": facts})

    def look(self, kind: str, examples: Sequence[Example]) -> None:
        """Shown an example before `layout` of a signal whose shape only running it tells (`layer:NAME`)."""

    @property
    def spent(self) -> Mapping[str, float]:
        """What this object has asked of somebody else's server so far (`requests`, tokens, `cost`); empty for a model
        at hand."""
        return {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What a card and `provenance.json` say of it: name, revision, licence, digests."""
        return dict(self.identity)
