"""Students for sets of items: tables of belief, and networks that see which items are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kdhub_tasks.classes import classes_for
from kdhub_tasks.classification.model import NetworkClassifier
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.rows import Example
from kdhub.student import BuildContext, Student
from kdhub_knowledge.masses import pignistic
from kdhub_knowledge.substitution import Table, judged, sides_of, substitutions, weighed

UNSEEN = 3
"""Columns of a matrix of sets behind those of known items, for items of a set that nobody knows; more are as three, too
many for any substitution."""


def matrix(sets: Sequence[Sequence[str]], items: Sequence[str]) -> np.ndarray:
    """(sets, items + 3) bool: which items are in which set; the last three for one, two, three unknown ones."""
    at = {item: n for n, item in enumerate(items)}
    made = np.zeros((len(sets), len(items) + UNSEEN), bool)
    for row, names in zip(made, sets):
        row[[at[name] for name in names if name in at]] = True
        row[len(items) : len(items) + sum(name not in at for name in names)] = True
    return made


class Belief(Student):
    """Masses of belief about which items can replace each other, and the labelled sets they are applied to.

    A set gets the masses of its two labels and of what is unknown (`belief`). Its `logits` are the logarithms of the
    two probabilities, what is unknown shared in halves; where both masses are equal, the second label is chosen.

        config.json           items, classes, how it judges, and how far each source is trusted
        model.safetensors     known sets and their labels; keys and masses of substitutions, of all sources together
                              (`fused`) and of each

    Args:
        items, classes: their names; two classes.
        options: `version`, `alpha`, `n_gram` (see `kdhub_knowledge.substitution`).

    Attributes:
        sets, labels: (n, items + 3) bool and (n,), 0 or 1; sources: name -> table; trust: name -> 0 to 1; fused: table.
    """

    task = "item-sets"
    kinds = ("logits", "belief")

    def __init__(self, items: Sequence[str], classes: Sequence[str], start: Mapping[str, Any] | None = None):
        super().__init__(start)
        if len(classes) != 2:
            raise CompatibilityError(
                f"belief is about two labels, the rows have {len(classes)}: {', '.join(classes[:6])}",
                hint="join labels (`labels:DATA` has an option), or take another student: bag:",
            )
        self.items, self.classes = list(items), list(classes)
        self.options: dict[str, Any] = {"version": "v1", "alpha": 0.01, "n_gram": 2}
        self.sets, self.labels = matrix([], self.items), np.zeros(0, np.uint8)
        self.sources: dict[str, Table] = {}
        self.trust: dict[str, float] = {}
        self.fused = Table()

    @property
    def width(self) -> int:
        """Columns of a matrix of sets, which keys of substitutions count in."""
        return len(self.items) + UNSEEN

    def belief(self, sets: Sequence[Sequence[str]]) -> np.ndarray:
        """Masses (n, 3) of the first label, the second and what is unknown."""
        pairs = substitutions(matrix(sets, self.items), self.sets, self.options["n_gram"])
        how = {name: self.options[name] for name in ("version", "alpha")}
        return judged(self.fused, pairs, self.labels, len(sets), **how)

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        if kind not in self.kinds:
            return super().signals(examples, kind)
        masses = self.belief([example["items"] for example in examples])
        if kind == "belief":
            return {"belief": masses.astype(np.float32)}
        logits = np.log(np.maximum(pignistic(masses), 1e-12)).astype(np.float32)
        logits[masses[:, 0] == masses[:, 1], 1] += 1e-6
        return {"logits": logits}

    def explain(self, items: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
        """What the belief about one set rests on, the weightiest first.

        Returns:
            for each piece of evidence: the known set `like` which it is, its `label`, what it has `instead` of what of
            that set (`of`), the masses for its label and `against` it, and what each source says of that substitution.
        """
        pairs = substitutions(matrix([items], self.items), self.sets, self.options["n_gram"])
        evidence = weighed(self.fused, pairs, self.options["version"], self.options["alpha"])
        found = []
        for n in np.argsort(-evidence[:, :2].sum(1), kind="stable")[:most]:
            if not evidence[n, :2].any():
                break
            known = [self.items[i] for i in np.flatnonzero(self.sets[pairs.right[n]][: len(self.items)])]
            of = {name: table.at(pairs.key[n : n + 1])[0].tolist() for name, table in self.sources.items()}
            found.append(
                {
                    "like": known,
                    "label": self.classes[self.labels[pairs.right[n]]],
                    "instead": sorted(set(items) - set(known)),
                    "of": sorted(set(known) - set(items)),
                    "for": float(evidence[n, 0]),
                    "against": float(evidence[n, 1]),
                    "sources": of,
                }
            )
        return found

    def describe(self) -> dict[str, Any]:
        return {"classes": self.classes, "widths": {"logits": [2], "belief": [3]}}

    def named(self, key: int) -> tuple[list[str], list[str]]:
        """The items of both sides of a substitution."""
        return tuple([self.items[i] for i in side] for side in sides_of(key, self.width))

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        tables = {"fused": self.fused, **{f"source.{name}": table for name, table in self.sources.items()}}
        arrays = {"sets": self.sets.astype(np.uint8), "labels": self.labels.astype(np.uint8)}
        for name, table in tables.items():
            arrays |= {f"{name}.keys": table.keys, f"{name}.masses": table.masses}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors")
        known = {"kdhub": 1, "task": self.task, "belief": 1, "items": self.items, "classes": self.classes}
        config = {**known, "options": self.options, "sources": list(self.sources), "trust": self.trust}
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any]) -> Belief:
        """
        Raises:
            UntrustedError: the tables are not those that its configuration names.
        """
        from safetensors.numpy import load_file

        student = cls(config["items"], config["classes"])
        arrays = load_file(folder / "model.safetensors")
        try:
            fused, *sources = (
                Table(arrays[f"{name}.keys"], arrays[f"{name}.masses"])
                for name in ("fused", *(f"source.{name}" for name in config["sources"]))
            )
            student.sets, student.labels = arrays["sets"].astype(bool), arrays["labels"]
            student.fused, student.sources = fused, dict(zip(config["sources"], sources))
            student.options, student.trust = config["options"], config["trust"]
        except KeyError as error:
            raise UntrustedError(f"{folder}: model.safetensors has no {error}, which config.json names") from error
        return student

    def usage(self) -> str:
        example = self.items[:2]
        return (
            'import kdhub\nstudent = kdhub.load("{path}")\n'
            f"print(student.classes, student.belief([{example}]))  # mass of each, and what is unknown\n"
            f"print(student.explain({example}))"
        )


class Builder(Belief):
    """`belief`: nothing known yet; the method learns it."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        items: list[str] = Field(
            default_factory=list, description="items besides those of the training rows and of the teacher's answers"
        )

    def __init__(self, argument: str, context: BuildContext):
        names = {*context.facts.get("items", ()), *context.options.get("items", ())}
        names |= set(getattr(context.teacher, "items", ()))
        if not names:
            raise UsageError("belief needs training rows to know the items", hint="give --data")
        classes = context.facts.get("classes", [])
        super().__init__(sorted(names), classes, {"how": "no belief"})


class SetClassifier(NetworkClassifier):
    """A multilayer perceptron that sees for each known item whether it is there; others do not count."""

    def __init__(self, task: str, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        super().__init__(task, {k: v for k, v in config.items() if k != "items"}, start)
        self.config["items"] = list(config["items"])

    @classmethod
    def fresh(
        cls, items: Sequence[str], classes: Sequence[str], hidden: Sequence[int], start: Mapping[str, Any]
    ) -> SetClassifier:
        config = {"network": "mlp", "shape": [len(items)], "hidden": list(hidden), "classes": list(classes)}
        return cls("item-sets", {**config, "items": list(items)}, start)

    @property
    def items(self) -> list[str]:
        return self.config["items"]

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        import torch

        sets = matrix([example["items"] for example in examples], self.items)[:, : len(self.items)]
        return {"x": torch.from_numpy(sets.astype(np.float32))}


def bag(argument: str, context: BuildContext) -> SetClassifier:
    """`bag:64,32`: hidden layers of these widths on which items are there; `bag:` with nothing is logistic regression.

    Raises:
        UsageError: no training rows to know the items from, or a width that is not a number.
    """
    import torch

    if not context.facts.get("items"):
        raise UsageError("bag needs training rows to know the items", hint="give --data")
    widths = [part for part in argument.split(",") if part]
    if not all(width.isdigit() and int(width) for width in widths):
        raise UsageError(f"student bag:{argument}: widths are whole numbers from 1, as in bag:64,32")
    torch.manual_seed(context.seed)
    if not hasattr(context.teacher, "classes"):  # experts have no label for a set
        context = replace(context, teacher=None)
    how = {"how": f"fresh bag:{argument}"}
    return SetClassifier.fresh(context.facts["items"], classes_for(context), list(map(int, widths)), how)
