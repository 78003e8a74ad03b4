"""The student contract: what distillation makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdhub import notebook
from kdhub.errors import CompatibilityError, UsageError
from kdhub.plain_json import read_json

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from kdhub.pictures import Picture
    from kdhub.rows import Example


ENCLOSED = "enclosed"
"""Folder with what methods leave beside the weights."""
RELATIONS = ("finetune", "adapter", "quantized", "merge")
"""What a model may be to the one it was made from, as hubs know it."""


class SavedOptions(BaseModel):
    """What a recipe may set next to the source of every student."""

    model_config = ConfigDict(extra="forbid")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="precision of the saved weights; if unset that of the start"
    )
    withheld: str = Field(
        "",
        max_length=200,
        description="why it should not be published, in a line; `publish` refuses until it is repeated",
    )
    about: dict[str, Any] = Field({}, description="further keys of its card's front matter: {reconstructed: true}")
    limits: list[str] = Field(default_factory=list, description="sentences that its card says among its limits")


class Student(ABC):
    """What distillation makes: usually a small model, for some methods a data set, a graph, a scene.

    A task has its own subclass. A *builder* (`StudentSpec`) makes the start: `build(argument, context) -> Student`.

    Attributes:
        task: name of the task it serves.
        module: the network the engine trains; None for students that are not trained by gradient.
        kind: what it is on a hub: `model`, or `dataset` for a student that is rows.
        problem: which form of its task it is for, where there are several (any number of labels a row, values); "" is
            the usual one, which every method of the task takes. Others are for methods that say so (`MethodSpec`).
        start: where it came from, for the card: `base_model` (an id on a hub, or a list of them), `relation` to it (one
            of `RELATIONS`, `finetune` unless the builder says otherwise), `revision`, `licence`, `how` it was made.
        precision: in which its weights are saved: that in which they were opened, or what the recipe names.
        withheld: why it should not be published, in one line (raw harmful text); "" where nothing stands against it.
            `publish` refuses until somebody repeats it. What contains this student says it too.
        limits: sentences that its card says among its limits: what was assumed, what is reconstructed.
        layers: shapes of a row of the layers that a method uses (`layer:NAME`), measured before training.
        enclosed: name -> JSON values that a method leaves beside the weights, `enclosed/NAME.json` (a map of labels).
            They are published, and students that start from this one have them too.
    """

    task: str
    module: nn.Module | None = None
    kind: str = "model"
    problem: str = ""
    precision: str = "float32"
    withheld: str = ""
    limits: Sequence[str] = ()
    layers: Mapping[str, tuple[int | None, ...]] = {}
    enclosed: Mapping[str, Any] = {}

    def __init__(self, start: Mapping[str, Any] | None = None):
        self.start: dict[str, Any] = dict(start or {})

    def __repr__(self) -> str:
        what = [f"{sum(p.numel() for p in self.module.parameters()):,} parameters"] if self.module is not None else []
        what += [f"{len(self.members)} members"] if self.members else []
        return f"<{type(self).__name__} of {self.task}: {', '.join(what) or self.kind}>"

    def _repr_html_(self) -> str:
        rows = [("task", self.task), ("class", type(self).__name__)]
        if self.module is not None:
            rows.append(("parameters", f"{sum(p.numel() for p in self.module.parameters()):,}"))
        rows += [("members", ", ".join(self.members))] if self.members else []
        return notebook.table("Student", (), [*rows, *self.start.items()])

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write it in its ecosystem's own format into an empty folder; weights as safetensors."""

    def finalise(self) -> None:
        """Make permanent what training kept apart from the weights, such as an adapter. Called once, before it is
        saved; it gives the same afterwards, and `module` has the weights by the names that they have when the folder
        is opened."""

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        """Like `Teacher.signals`, so that evaluation asks both the same way. In eval mode, without gradient."""
        raise TypeError(f"a {type(self).__name__} gives no {kind!r}")

    def describe(self) -> dict[str, Any]:
        """What must be known of it as a teacher before it is asked for anything, as JSON values.

        `widths`: signal -> the shape of one row of it, None in front where rows have several.
        """
        return {}

    @property
    def answers(self) -> bool:
        """Whether it can be asked for signals of examples; rows, a graph or a scene are measured by their files."""
        return type(self).signals is not Student.signals

    def costs(self, folder: Path) -> dict[str, float]:
        """What it costs when it does not answer, so that no run of it can be timed: metric -> number, by the metrics
        of `kdhub.evaluation.report.COSTS`.

        Args:
            folder: where it is saved.
        """
        return {"disk": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}

    @property
    def exported(self) -> nn.Module:
        """The network that another format holds and a runtime runs in its place: all of `module`, or the part that the
        ecosystem keeps in such files (the transformer of a text encoder).

        Raises:
            CompatibilityError: it has no such network.
        """
        if self.module is None:
            raise CompatibilityError(f"a {self.kind} of {self.task} has no network that could be exported")
        return self.module

    # -- families of sizes ------------------------------------------------------------------------------------

    @property
    def members(self) -> Mapping[str, Mapping[str, Any]]:
        """The students of other sizes that a family holds, by name, from the fewest parameters to the most: how each is
        cut out, as JSON values (`{"width": 0.5}`). Empty for a student that is one."""
        return {}

    def choose(self, name: str | None) -> None:
        """Have `module` run as a member from here on; None: as the family itself, which gives what stands for it,
        usually the largest."""
        raise TypeError(f"a {type(self).__name__} has no members")

    def cut(self, name: str) -> Student:
        """A member as a student of its own, with weights of its own: it gives, bit for bit, what the family gives with
        that member chosen, and is saved and opened like any student."""
        raise TypeError(f"a {type(self).__name__} has no members")

    # -- for its card -----------------------------------------------------------------------------------------

    def pictures(self) -> Iterable[Picture]:
        """What it looks like (images of a data set, a scene), for report and card beside those that its task draws; the
        limits are those of `kdhub.pictures`."""
        return ()

    def front_matter(self) -> dict[str, Any]:
        """What its card says to a hub beyond what all cards say, as JSON values."""
        return {}

    def usage(self) -> str:
        """Two or three lines of Python that use it without kdhub; `{path}` stands for folder or repository."""
        lines = ["import kdhub", 'student = kdhub.load("{path}")']
        lines += [f'smallest = kdhub.load("{{path}}", member={name!r})' for name in list(self.members)[:1]]
        return "\n".join(lines)

    @property
    def library(self) -> str:
        """The Hub's `library_name` of its format."""
        return "kdhub"


@dataclass
class BuildContext:
    """What a student builder may look at.

    Attributes:
        task: the task object.
        teacher: None for methods without one.
        seed: for fresh weights.
        options: what the recipe sets next to the source.
        facts: what the task says of the training rows (`Task.survey`); empty where there are none.
    """

    task: Any
    teacher: Any
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def enclosed_in(folder: Path) -> dict[str, Any]:
    """What methods left beside the weights in a student's folder: `Student.enclosed`."""
    return {path.stem: read_json(path) for path in sorted((folder / ENCLOSED).glob("*.json"))}


def precision_of(module: nn.Module | None) -> str:
    """The precision of most of a network's weights: float32, bfloat16 or float16."""
    import torch

    counts = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 0)
    for parameter in module.parameters() if module is not None else ():
        if parameter.dtype in counts:
            counts[parameter.dtype] += parameter.numel()
    return str(max(counts, key=counts.__getitem__)).removeprefix("torch.")


def sizes(kind: str, argument: str, **defaults: int) -> dict[str, int]:
    """The argument of a fresh network's builder, `width=64,layers=2`: whole numbers from 1 by name, all with defaults.

    Raises:
        UsageError: an unknown name, or no such number.
    """
    found = dict(defaults)
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name not in found or not value.isdigit() or not int(value):
            raise UsageError(f"student {kind}:{argument}: {part!r} is not one of {', '.join(f'{k}=N' for k in found)}")
        found[name] = int(value)
    return found
