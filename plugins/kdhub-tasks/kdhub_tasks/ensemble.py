"""Several teachers behind one, for any method and any task of classes, values or tokens.

    teacher:
      source: ensemble
      members: [{source: recipe:a}, {source: path:b}]

What each member gives is stored as if it were alone, so a member that has taught before, or will, alone or in another
ensemble, is asked once. `logits` are those of the members together, what every method takes; methods that want each
one's own ask for `each:KIND`, whose fields are told apart by the number of the member (`each`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kdhub import open_teacher
from kdhub.errors import CompatibilityError, TeacherError, UsageError
from kdhub.recipes.recipe import TextRef
from kdhub.rows import Example, Signals
from kdhub.teacher import Teacher
from kdhub_tasks.classes import MULTI_LABEL

if TYPE_CHECKING:
    from torch import nn

EACH = "each:"
"""In front of a kind of signal: that of each member."""
LAST = "hidden_states:last"
"""The states of each member's own last layer, as `each:` has them."""


class Ensemble(Teacher):
    """Teachers of one task with the same classes. Where they are models of tokens, only those that have the tokens of
    the member that `init_from` says give logits together."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        members: list[TextRef] = Field(default_factory=list, description="the teachers, each as a recipe names one")
        weights: list[Annotated[float, Field(ge=0)]] | None = Field(
            None, description="of each in what they give together; alike if unset"
        )
        mean: Literal["probabilities", "logits"] = Field(
            "probabilities", description="what is averaged: probabilities, or logits (their geometric mean)"
        )
        init_from: int = Field(
            1, ge=1, description="the member, from 1, that a student made of the teacher starts from"
        )

    @classmethod
    def tiny_options(cls, recipe: Mapping[str, Any]) -> dict[str, Any]:
        return {"members": [recipe["teacher"], recipe["teacher"]]}

    @cached_property
    def members(self) -> Sequence[Teacher]:
        """Raises:
        UsageError: none are named.
        """
        if not self.options.members:
            raise UsageError(
                "the ensemble has no members", hint="teacher: {source: ensemble, members: [{source: ...}]}"
            )
        return [open_teacher(ref, self.task.name) for ref in self.options.members]

    @property
    def complete(self) -> bool:
        return all(member.complete for member in self.members)

    @cached_property
    def weights(self) -> list[float]:
        """Their sum is 1.

        Raises:
            TeacherError: not one for each member, or none above 0.
        """
        return shares(self.options.weights, len(self.members))

    @property
    def identity(self) -> Mapping[str, Any]:
        how = {"weights": self.weights, "mean": self.options.mean}
        return {"kind": "ensemble", "members": [dict(member.identity) for member in self.members], **how}

    @property
    def provenance(self) -> Mapping[str, Any]:
        licences = dict.fromkeys(str(one) for member in self.members if (one := member.provenance.get("licence")))
        known = {"licence": "; ".join(licences)} if licences else {}
        return {"weights": self.weights, "mean": self.options.mean, **known}

    # -- the member that a student starts from, and that reads rows for all ------------------------------------

    @property
    def first(self) -> Any:
        """The member that `init_from` says.

        Raises:
            TeacherError: there are fewer.
        """
        if self.options.init_from > len(self.members):
            raise TeacherError(f"init_from is {self.options.init_from}, the ensemble has {len(self.members)} members")
        return self.members[self.options.init_from - 1]

    def __getattr__(self, name: str) -> Any:
        """What a task asks of its teachers besides: its tokens, its model, how it reads a text."""
        if name.startswith("_") or "options" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.first, name)

    @property
    def max_length(self) -> int | None:
        """The shortest of the members'."""
        return min((n for member in self.members if (n := member.max_length)), default=None)

    @property
    def classes(self) -> list[str]:
        """Those of all members.

        Raises:
            CompatibilityError: they have others, or another order of them.
        """
        classes = self.members[0].classes
        for n, member in enumerate(self.members[1:], 2):
            if member.classes != classes:
                raise CompatibilityError(
                    f"the first teacher of the ensemble has the classes {', '.join(classes[:6])}, teacher {n} "
                    f"{', '.join(member.classes[:6])}",
                    hint="teachers of one ensemble have the same classes in the same order",
                )
        return classes

    @property
    def problem(self) -> str:
        """What the outputs of all members are (`kdhub_tasks.classes`).

        Raises:
            CompatibilityError: not of all the same.
        """
        found = list(dict.fromkeys(getattr(member, "problem", "") for member in self.members))
        if len(found) > 1:
            raise CompatibilityError(
                f"the outputs of the ensemble's members differ: {' and '.join(p or 'one class a row' for p in found)}"
            )
        return found[0]

    # -- signals ----------------------------------------------------------------------------------------------

    @cached_property
    def _alike(self) -> list[int]:
        """Members whose logits can be taken together: of models of tokens those with the tokens of the first."""
        tokens = [getattr(member, "vocabulary", None) for member in self.members]
        return [n for n, one in enumerate(tokens) if one == tokens[self.members.index(self.first)]]

    def parts(self, kind: str) -> list[tuple[Teacher, str]]:
        if kind.startswith(EACH):
            return [(member, own_kind(member, kind.removeprefix(EACH))) for member in self.members]
        return [(self.members[n], kind) for n in self._alike]

    def layout(self, kind: str) -> dict[str, Any]:
        own = [member.layout(asked) for member, asked in self.parts(kind)]
        if kind.startswith(EACH):
            return {f"{n}/{name}": shape for n, fields in enumerate(own) for name, shape in fields.items()}
        if kind != "logits":
            raise TeacherError(
                f"an ensemble gives the logits of its members together, and {EACH}KIND of each, not {kind!r}",
                hint="methods that learn from states take one teacher, or ask for each (multi-teacher)",
            )
        own = [{"logits": fields["logits"]} for fields in own]
        if any(fields != own[0] for fields in own):
            raise CompatibilityError(
                "the members of the ensemble have logits of different shapes: none are theirs together"
            )
        return own[0]

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, Any]:
        return self.joined(kind, [member.signals(examples, own) for member, own in self.parts(kind)])

    def joined(self, kind: str, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if kind.startswith(EACH):
            return {f"{n}/{name}": values for n, one in enumerate(given) for name, values in one.items()}
        self.layout(kind)
        rows = [one["logits"] for one in given]
        weights = shares([self.weights[n] for n in self._alike], len(rows))
        if isinstance(rows[0], list):
            return {"logits": [average_logits(of, weights, self.options.mean) for of in zip(*rows)]}
        return {"logits": average_logits(rows, weights, self.options.mean, self.problem)}

    @cached_property
    def module(self) -> nn.Module | None:
        """The members' networks as one that gives their logits together; None where one has none."""
        networks = [self.members[n].module for n in self._alike]
        weights = shares([self.weights[n] for n in self._alike], len(networks))
        return None if None in networks else _network(networks, weights, self.options.mean, self.problem)


def shares(weights: Sequence[float] | None, members: int) -> list[float]:
    """Weights that sum to 1; alike where none are given.

    Raises:
        TeacherError: not one for each member, or none above 0.
    """
    given = list(weights) if weights is not None else [1.0] * members
    if len(given) != members or min(given) < 0 or not sum(given):
        raise TeacherError(
            f"weights {given} for {members} teachers", hint="one for each, 0 or more, and not all of them 0"
        )
    return [w / sum(given) for w in given]


def own_kind(teacher: Any, kind: str) -> str:
    """`hidden_states:last` as the number that this teacher's last layer has."""
    if kind != LAST:
        return kind
    return f"hidden_states:{teacher.layout('hidden_states')['hidden_states'][-2]}"


def each(teacher: Signals) -> list[Signals]:
    """The signals of each member, of those of an ensemble that was asked for `each:`; of another teacher its own."""
    found: dict[int, Signals] = {}
    for name, value in teacher.items():
        number, slash, own = name.partition("/")
        found.setdefault(int(number) if slash else 0, Signals())[own if slash else name] = value
    return [found[n] for n in sorted(found)]


def average_logits(
    logits: Sequence[np.ndarray], weights: Sequence[float], mean: str = "probabilities", problem: str = ""
) -> np.ndarray:
    """(n, classes) logits of several teachers as those of one: log of the mean probability, or the mean of the
    logits; of values, or one output, their mean; of any number of labels the logit of each one's mean probability."""
    x = np.stack([np.asarray(one, np.float64) for one in logits])
    w = np.asarray(weights).reshape(-1, *[1] * (x.ndim - 1))
    if problem == MULTI_LABEL and mean != "logits":
        yes, no = ((w * np.exp(-np.logaddexp(0, -z))).sum(0).clip(1e-30) for z in (x, -x))
        return np.log(yes / no).astype(np.float32)
    if mean == "logits" or problem or x.shape[-1] == 1:
        return (w * x).sum(0).astype(np.float32)
    top = x.max(-1, keepdims=True)
    p = np.exp(x - top)
    p /= p.sum(-1, keepdims=True)
    return np.log(np.clip((w * p).sum(0), 1e-30, None)).astype(np.float32)


def _network(networks: Sequence[nn.Module], weights: Sequence[float], mean: str, problem: str) -> nn.Module:
    import torch
    from torch import nn

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(networks)

        def forward(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            logits = torch.stack([network(inputs)["logits"].float() for network in self.networks])
            w = logits.new_tensor(weights).reshape(-1, *[1] * (logits.dim() - 1))
            if problem == MULTI_LABEL and mean != "logits":
                yes, no = ((w * torch.sigmoid(z)).sum(0).clamp_min(1e-30) for z in (logits, -logits))
                return {"logits": (yes / no).log()}
            if mean == "logits" or problem or logits.shape[-1] == 1:
                return {"logits": (w * logits).sum(0)}
            return {"logits": torch.logsumexp(logits.log_softmax(-1) + w.log(), 0)}

    return Together().eval()
