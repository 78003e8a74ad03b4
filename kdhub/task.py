"""The task contract: what a model is for, how rows become batches, how a model is run and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from kdhub.errors import CompatibilityError, KdhubError, UntrustedError
from kdhub.hub.trust import check_configuration
from kdhub.hub.weights import built_within
from kdhub.rows import Example, Prepare, Signals
from kdhub.teachers.saved import SavedTeacher

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn

    from kdhub.data.dataset import Data
    from kdhub.findings import Finding
    from kdhub.pictures import Picture
    from kdhub.student import BuildContext, Student


class NoOptions(BaseModel):
    """Options of what takes none."""

    model_config = ConfigDict(extra="forbid")


class Encoder(Protocol):
    """What evaluation hands a task: signals of table rows for one subject, from store or model. Further arguments
    (`prompts=32`) are put into each row before it is prepared.

    Attributes:
        prepare: plain rows -> examples, as this subject sees them.
        model: the student, or None where signals come through the store.
        folder: where the student is saved; None before it is.
        faults: number and cause of each row, from 1, that was read since and could not be.
    """

    prepare: Prepare
    model: Any
    folder: Path | None
    faults: dict[int, str]

    def __call__(self, table: Any, kind: str, **how: Any) -> dict[str, Any]: ...

    def reader(self, table: Any, kind: str, **how: Any) -> Callable[[int, int], dict[str, Any]]:
        """A function (start, stop) -> signals of these rows, for signals that cannot be held all at once."""
        ...


@dataclass
class View:
    """One way of looking at outputs: as they are, truncated to 96 dimensions, stored in int8, ...

    Attributes:
        variant: what is written into each measure, empty for the plain view (`{"dims": 96}`).
        apply: outputs -> outputs.
        metrics: those that are measured so; None: all of the plain view, else the primary one.
    """

    variant: dict[str, Any] = field(default_factory=dict)
    apply: Callable[[Any], Any] = lambda outputs: outputs
    metrics: tuple[str, ...] | None = None


def _refusing(method: Callable[..., Student]) -> Callable[..., Student]:
    """A method that opens a folder: nothing in it asks for code, or for more than its weights can be, and whatever a
    library makes of files that are none of a student is said in a sentence."""

    @wraps(method)
    def refusing(self: Task, folder: Path, *args: Any, **more: Any) -> Student:
        called = more.get("name") or str(folder)
        try:
            check_configuration(Path(folder), name=called)
            with built_within(Path(folder), called):
                return method(self, folder, *args, **more)
        except KdhubError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:300]
            raise UntrustedError(
                f"{called} cannot be opened as a student for {self.name} ({said})",
                hint="its files are damaged, or of another kind of model than they say",
            ) from error

    return refusing


class Task(ABC):
    """What a model is for: how one is opened, what is measured of it, and what it is tried on.

    A task of networks that are trained in batches is a `NetworkTask`. One whose students are a data set, a graph of
    facts, a scene or a family of models implements this class alone: its `outputs` get the subject itself, as
    `encode.model`.

    Attributes:
        name: as registered.
        primary: form of data -> the metric that stands for quality there.
        pipeline_tag: what the Hub calls this task.
        EvaluationOptions: what a recipe may set under `evaluation.options` (truncations, precisions, ...).
        StudentOptions: what a recipe may set next to the source of every student (see `configure`).
        Teacher: what a saved model of this task is as a teacher (`path:`, `hf:`).
        aside: splits that say what the rows of others are about (the items that users choose from): read in training
            and evaluation alike by `Data.whole`, and never rows to learn from or to score.
        RenderOptions: what `render` takes (which seeds, which camera), each with a default, a range and a description.
        drawn: how many rows of the first evaluation data set `draw` shows, always the first ones; 0: it draws nothing.
    """

    name: ClassVar[str]
    primary: ClassVar[Mapping[str, str]]
    pipeline_tag: ClassVar[str] = ""
    EvaluationOptions: ClassVar[type[BaseModel]] = NoOptions
    StudentOptions: ClassVar[type[BaseModel]] = NoOptions
    RenderOptions: ClassVar[type[BaseModel]] = NoOptions
    Teacher: ClassVar[type[SavedTeacher]] = SavedTeacher
    aside: ClassVar[tuple[str, ...]] = ()
    drawn: ClassVar[int] = 0

    # -- rows -------------------------------------------------------------------------------------------------

    def training_table(self, parts: Sequence[tuple[Data, str]]) -> datasets.Dataset:
        """The plain rows to train on: of one split, or of several one after the other; on disk, never in memory.

        Raises:
            DataError: a split cannot be trained on, with the columns it has and those that are needed.
        """
        from datasets import concatenate_datasets

        tables = [self.training_rows(data, split) for data, split in parts]
        return tables[0] if len(tables) == 1 else concatenate_datasets(tables)

    def training_rows(self, data: Data, split: str) -> datasets.Dataset:
        """Those of one split, with the columns that the task reads.

        Raises:
            DataError: as `training_table`.
        """
        return data.split(split)

    def labelled(self, table: datasets.Dataset) -> bool:
        """Whether such rows can be learnt from without a teacher."""
        return False

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """What a fresh model must know of the training rows (classes, the shape of an input), as JSON values. A student
        builder finds it at `context.facts`."""
        return {}

    # -- models -----------------------------------------------------------------------------------------------

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        for name in {"load", "open"} & {*vars(cls)}:
            setattr(cls, name, _refusing(getattr(cls, name)))

    @abstractmethod
    def load(self, folder: Path, *, name: str | None = None) -> Student:
        """A student from its folder. Safetensors only, no code from the folder.

        Args:
            name: what messages call it; the folder if None.
        """

    def open(
        self, folder: Path, context: BuildContext, start: Mapping[str, Any], *, name: str | None = None
    ) -> Student:
        """A model's folder as a start: as it is, unless the task can do more, such as put a fresh head on an encoder.

        Args:
            start: what the card says of it.
        """
        student = self.load(folder, name=name)
        student.start = dict(start)
        return student

    def configure(self, student: Student, context: BuildContext) -> Student:
        """Apply the options that students of this task take whatever builds them (`StudentOptions`)."""
        return student

    def mismatch(self, student: Any, teacher: Any) -> str:
        """Why the teacher's outputs mean nothing to this student (other classes); empty where they do. Such a teacher
        is not measured on the student's data; it may still teach by its states."""
        return ""

    def compare(self, student: Student, teacher: Any, thorough: bool = False) -> list[Finding]:
        """What the two share and where they differ, of all that may spoil learning: prompts, normalisation, tokens,
        classes. Nothing by default.

        Args:
            student: as the method adapted it.
            thorough: also what can only be known of a teacher that is loaded.
        """
        return []

    # -- evaluation -------------------------------------------------------------------------------------------

    @abstractmethod
    def outputs(self, encode: Encoder, data: Data, split: str) -> Any:
        """Run one subject over an evaluation split and collect what metrics read.

        Raises:
            DataError: the data set has no such split or a form this task cannot score.
        """

    def views(self, outputs: Any, options: Any, subject: str) -> Iterator[View]:
        """The ways to look at a subject's outputs; plain first."""
        yield View()

    def mixed(self, student: Any, teacher: Any) -> Any | None:
        """Student and teacher used together (student queries, teacher documents), where that means something."""
        return None

    @abstractmethod
    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        """`n` plain rows to measure cost on."""

    # -- pictures ---------------------------------------------------------------------------------------------

    def to_draw(self, outputs: Any, n: int) -> Mapping[str, np.ndarray]:
        """What `draw` needs of a subject's outputs of the first `n` rows: arrays of numbers or texts, by name. They are
        kept in the run folder until the run ends, so that the start is drawn beside the student that it became.

        Args:
            outputs: what `outputs` collected, of all rows.
        """
        return {}

    def draw(self, data: Data, split: str, given: Mapping[str, Mapping[str, np.ndarray]]) -> Iterable[Picture]:
        """Pictures of what the subjects gave on the same rows; the limits are those of `kdhub.pictures`.

        Args:
            given: subject -> what `to_draw` took of its outputs: `teacher`, `student-before` and `student`, without
                those that were not measured.
        """
        return ()

    def render(self, student: Student, options: Any) -> Picture:
        """A picture or an animation of what a student makes, for `kdhub render`: of any size, the same every time.

        Args:
            options: checked `RenderOptions`.

        Raises:
            CompatibilityError: students of this task make nothing that can be looked at.
        """
        raise CompatibilityError(f"students for {self.name} make nothing that could be rendered")

    # -- trying methods ---------------------------------------------------------------------------------------

    def tiny_recipe(self, folder: Path) -> dict[str, Any] | None:
        """A recipe without a method that trains in a second and needs no network, for the conformance kit.

        Args:
            folder: empty; for the files that it names.

        Returns:
            teacher, student, data and evaluation; the same every time. None: methods for this task cannot be tried.
        """
        return None


class NetworkTask(Task):
    """A task of networks: rows become batches, and a network gives named signals of them.

    Attributes:
        primary_signal: what its models give when they are used ("embedding", "logits").
    """

    primary_signal: ClassVar[str]

    @abstractmethod
    def preparer(self, student: Student | None, teacher: Any, **settings: Any) -> Prepare:
        """The function that turns plain rows into examples both models see alike."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], student: Student) -> dict[str, torch.Tensor]:
        """A padded batch for `forward`. The examples stay as they are: a later epoch may have them again."""

    def counts(self, batch: Mapping[str, Any]) -> Mapping[str, int]:
        """How many there are in a batch of what losses are means over and batches have not alike (tokens, labels).

        In training an objective finds by `kdhub.method.step_count` what a batch has on average, over all ranks and
        accumulated batches of an optimiser step. Sums divided by that are, all together, the mean over the whole step,
        however its rows are shared out.
        """
        return {}

    def vary(self, batch: Mapping[str, Any], student: Student, epoch: int) -> Mapping[str, Any]:
        """A batch with what is drawn again in each pass over the rows (which tokens are masked), from its content and
        `epoch`; the first, 0, has what `collate` made. Not called where the teacher's outputs are stored: those are of
        what `collate` made."""
        return batch

    @abstractmethod
    def forward(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Signals:
        """Run a student's (or a live teacher's) network on a batch; gradient flows."""

    def flops(self, student: Any, example: Example) -> int | None:
        """Floating-point operations of one forward pass, or None when they cannot be counted."""
        return None

    def label_losses(self, outputs: Signals, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """-log probability of each label of a batch, (labels,); for samplers that follow how far models are.

        Raises:
            CompatibilityError: labels have no probability in this task.
        """
        raise CompatibilityError(f"in task {self.name} labels have no probability that a sampler could follow")
