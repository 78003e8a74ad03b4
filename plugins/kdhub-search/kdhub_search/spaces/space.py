"""A space of students: what can be chosen of a student builder's source, and what each choice costs.

A candidate is one value for each choice. It becomes a student by writing its values into a template, the source of any
student (`residual:width={width},stage1={stage1}`), so whatever builds students can be searched as it is. Candidates
that the builder refuses, or that are over the budget, never leave a space; what one costs is counted on the student
itself (`kdhub.count_costs`), never taken from a formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import inf, prod
from string import Formatter
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError, KdhubError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from kdhub.student import Student

Candidate = dict[str, Any]
"""Name of a choice -> the value chosen."""

NAMED: dict[str, tuple[str, dict[str, list[Any]]]] = {
    "residual": (
        "residual:width={width},stage1={stage1},stage2={stage2},stage3={stage3}",
        {"width": [4, 8, 16, 24, 32], "stage1": [1, 2, 3, 5], "stage2": [1, 2, 3, 5], "stage3": [1, 2, 3, 5]},
    ),
    "vit": (
        "vit:patch={patch},width={width},layers={layers},heads={heads}",
        {"patch": [2, 4], "width": [16, 32, 48, 64, 96], "layers": [1, 2, 3, 4, 6], "heads": [1, 2, 4]},
    ),
    "mlp": ("mlp:{first},{second}", {"first": [8, 16, 32, 64, 128, 256], "second": [8, 16, 32, 64, 128]}),
    "encoder": (
        "words:layers={layers},width={width},heads={heads}",
        {"layers": [1, 2, 3, 4, 6], "width": [32, 64, 128, 192, 256], "heads": [1, 2, 4, 8]},
    ),
}
"""Spaces that have a name: a template, and the choices where none are given."""

TRIES = 4096
"""Candidates that are looked at for one that fits, before a space is called empty."""


@dataclass(frozen=True)
class Budget:
    """The most that a candidate may cost; None for any."""

    parameters: int | None = None
    flops: int | None = None

    def allows(self, cost: Mapping[str, int]) -> bool:
        limits = {"parameters": self.parameters, "flops": self.flops}
        return all(limit is None or cost.get(name, 0) <= limit for name, limit in limits.items())

    def __str__(self) -> str:
        limits = {"parameters": self.parameters, "FLOPs": self.flops}
        return " and ".join(f"{limit:,} {name}" for name, limit in limits.items() if limit is not None)


class Space:
    """Students that differ in some settings of their builder.

    Args:
        template: the source of a student, with `{name}` where the value of a choice stands.
        choices: name -> the values to choose from.
        opened: source and options of a student -> that student, fresh (`seed` given by keyword).
        settings: further options of the student, whose texts may hold `{name}` as well; a text that is nothing but
            `{name}` becomes the value itself.

    Attributes:
        budget: what candidates may cost; none until `within` sets one.

    Raises:
        UsageError: a choice without values, or names that do not match the template.
    """

    def __init__(
        self,
        template: str,
        choices: Mapping[str, Sequence[Any]],
        opened: Callable[..., Student],
        settings: Mapping[str, Any] | None = None,
    ):
        self.template, self.settings, self._open = template, dict(settings or {}), opened
        self.choices = {
            name: [value for i, value in enumerate(values) if value not in values[:i]]
            for name, values in choices.items()
        }
        used = {name for text in (template, *map(str, self.settings.values())) for name in _names(text)}
        if not used or any(not values for values in self.choices.values()):
            empty = ", ".join(name for name, values in self.choices.items() if not values)
            raise UsageError(
                f"the space {template} is empty: "
                + (f"there is no value for {empty}" if empty else "nothing to choose"),
                hint="write {width} where a value stands, and the values below it: choices: {width: [8, 16]}",
            )
        if used != set(self.choices):
            lacking, idle = sorted(used - set(self.choices)), sorted(set(self.choices) - used)
            told = [f"no values for {', '.join(lacking)}"] * bool(lacking)
            told += [f"{', '.join(idle)} not in it"] * bool(idle)
            raise UsageError(
                f"choices and template of the space {template} do not match: {'; '.join(told)}",
                hint=f"the template names {', '.join(sorted(used))}",
            )
        self.budget, self.row = Budget(), None
        self._costs: dict[str, dict[str, int] | KdhubError] = {}

    def __len__(self) -> int:
        """How many candidates there are, whether they fit or not."""
        return prod(map(len, self.choices.values()))

    def within(self, budget: Budget, row: Mapping[str, Any] | None = None) -> None:
        """Set what candidates may cost; FLOPs are those of a pass for a plain row.

        Raises:
            UsageError: no candidate is within the budget; the smallest is named.
        """
        self.budget = budget
        if row is not None and self.row is None:
            self.row, self._costs = row, {}
        measure = "flops" if budget.flops is not None and budget.parameters is None else "parameters"
        least = self.smallest(measure)
        if not self.fits(least) and not any(map(self.fits, self._some())):
            cost = self.cost(least)
            told = f"{cost['parameters']:,} parameters" + (f" and {cost['flops']:,} FLOPs" if "flops" in cost else "")
            raise UsageError(
                f"no student of the space {self.template} is within {budget}; the smallest, {self.name(least)}, has "
                f"{told}",
                hint="raise the budget (max_params, max_flops), or give the space smaller choices",
            )

    # -- candidates -------------------------------------------------------------------------------------------

    def name(self, candidate: Mapping[str, Any]) -> str:
        """Its source, `residual:width=8,stage1=1,...`, and its options where the space has some."""
        own = self._options(candidate)
        return self.template.format(**candidate) + (f" {json.dumps(own)}" if own else "")

    def build(self, candidate: Mapping[str, Any], seed: int = 0) -> Student:
        """The student of a candidate, fresh.

        Raises:
            KdhubError: its builder refuses it.
        """
        return self._open({"source": self.template.format(**candidate), **self._options(candidate)}, seed=seed)

    def cost(self, candidate: Mapping[str, Any]) -> dict[str, int]:
        """Its `parameters`, and `flops` where there is a row to run.

        Raises:
            KdhubError: its builder refuses it, in the builder's words.
        """
        key = self.name(candidate)
        if key not in self._costs:
            from kdhub import count_costs

            try:
                self._costs[key] = count_costs(self.build(candidate), self.row)
            except KdhubError as error:
                self._costs[key] = error
        found = self._costs[key]
        if isinstance(found, KdhubError):
            raise found
        return found

    def valid(self, candidate: Mapping[str, Any]) -> bool:
        """Whether its builder takes it."""
        try:
            return bool(self.cost(candidate))
        except KdhubError:
            return False

    def fits(self, candidate: Mapping[str, Any]) -> bool:
        """Whether its builder takes it and it is within the budget."""
        return self.valid(candidate) and self.budget.allows(self.cost(candidate))

    def sample(self, rng: np.random.Generator) -> Candidate:
        """One at random, each that fits as likely as any other where half of a space or more does.

        Raises:
            UsageError: none was found that fits.
        """
        for _ in range(TRIES):
            candidate = {name: values[rng.integers(len(values))] for name, values in self.choices.items()}
            if self.fits(candidate):
                return candidate
        for candidate in self._some():  # where few fit
            if self.fits(candidate):
                return candidate
        raise UsageError(f"no student of the space {self.template} fits", hint="give it more choices")

    def mutate(self, candidate: Mapping[str, Any], rng: np.random.Generator) -> Candidate:
        """The same with one choice made otherwise, at random among those that fit; a random one where none does."""
        others = [
            (name, value) for name, values in self.choices.items() for value in values if value != candidate[name]
        ]
        names = rng.permutation(list(self.choices)).tolist()  # each choice as likely, however many values it has
        for name in names:
            values = [value for which, value in others if which == name]
            for i in rng.permutation(len(values)):
                changed = {**candidate, name: values[i]}
                if self.fits(changed):
                    return changed
        return self.sample(rng)

    def smallest(self, measure: str = "parameters") -> Candidate:
        """The one with the fewest parameters (or FLOPs), whatever the budget: from a first that its builder takes, each
        choice in turn at its cheapest, until nothing gets cheaper.

        Raises:
            CompatibilityError: the builder takes none; in its words.
        """
        found = next(filter(self.valid, self._some()), None)
        if found is None:
            first = next(self._some())
            try:
                self.cost(first)
            except KdhubError as error:
                raise CompatibilityError(
                    f"the space {self.template} has no student that its builder takes; of {self.name(first)} it says: "
                    f"{error}",
                    hint=error.hint,
                ) from error
            raise CompatibilityError(f"students of the space {self.template} have no network to be counted")

        def price(candidate: Mapping[str, Any]) -> float:
            return self.cost(candidate).get(measure, inf) if self.valid(candidate) else inf

        before = inf
        while price(found) < before:
            before = price(found)
            for name, values in self.choices.items():
                found = min(({**found, name: value} for value in values), key=price)
        return found

    def _options(self, candidate: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _filled(value, candidate) for key, value in self.settings.items()}

    def _some(self) -> Iterator[Candidate]:
        """The first candidates in the order of the choices, at most `TRIES`."""
        made = (dict(zip(self.choices, values)) for values in product(*self.choices.values()))
        return islice(made, TRIES)


def _names(text: str) -> set[str]:
    """The `{name}` in a text.

    Raises:
        UsageError: braces that do not close, or hold nothing.
    """
    try:
        found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UsageError(f"the space {text}: {error}", hint="a choice stands in braces: {width}") from error
    if not all(name.isidentifier() for name in found):
        raise UsageError(f"the space {text}: a choice needs a name", hint="a choice stands in braces: {width}")
    return found


def _filled(value: Any, candidate: Mapping[str, Any]) -> Any:
    """An option with the candidate's values in it."""
    if not isinstance(value, str):
        return value
    alone = value[1:-1] if value.startswith("{") and value.endswith("}") else None
    return candidate[alone] if alone in candidate else value.format(**candidate)
