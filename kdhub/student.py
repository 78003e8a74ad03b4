"""The student contract: what distillation makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from kdhub.rows import Example


class Student(ABC):
    """What distillation makes: usually a small model, for some methods a data set, a graph, a scene.

    A task has its own subclass. A *builder* (`StudentSpec`) makes the start: `build(argument, context) -> Student`.

    Attributes:
        task: name of the task it serves.
        module: the network the engine trains; None for students that are not trained by gradient.
        kind: what it is on a hub: `model`, or `dataset` for a student that is rows.
        start: where it came from, for the card (`base_model`, `revision`, `licence`, how it was cut).
        layers: shapes of a row of the layers that a method uses (`layer:NAME`), measured before training.
    """

    task: str
    module: nn.Module | None = None
    kind: str = "model"
    layers: Mapping[str, tuple[int | None, ...]] = {}

    def __init__(self, start: Mapping[str, Any] | None = None):
        self.start: dict[str, Any] = dict(start or {})

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write it in its ecosystem's own format into an empty folder; weights as safetensors."""

    def signals(self, examples: Sequence[Example], kind: str) -> dict[str, np.ndarray]:
        """Like `Teacher.signals`, so that evaluation asks both the same way. In eval mode, without gradient."""
        raise TypeError(f"a {type(self).__name__} gives no {kind!r}")

    def describe(self) -> dict[str, Any]:
        """What must be known of it as a teacher before it is asked for anything, as JSON values.

        `widths`: signal -> the shape of one row of it, None in front where rows have several.
        """
        return {}

    def usage(self) -> str:
        """Two or three lines of Python that use it without kdhub; `{path}` stands for folder or repository."""
        return 'import kdhub\nstudent = kdhub.load("{path}")'

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
