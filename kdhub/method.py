"""The method contract: `distill` and `evaluate`, and the shape most methods share.

A method's options are a pydantic model: the command line's help, the docs, the recipe check and the card all come
from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kdhub.specs import MAIN

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

    from kdhub.pictures import Picture
    from kdhub.rows import Rows, Signals
    from kdhub.sampler import Select
    from kdhub.student import Student
    from kdhub.task import Task
    from kdhub.teacher import Teacher


class MethodOptions(BaseModel):
    """Base of every method's options. Each field has a type, a default, a range and a description."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def _dotted(values: Any, before: str = "") -> Any:
    """Nested mappings as one with dots in its keys, as `--set options.rates.encoder.layer=0` has them."""
    if not isinstance(values, Mapping):
        return values
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _dotted(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingOptions(MethodOptions):
    """Options of everything trained by gradient. A method overrides defaults by declaring a field again."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(32, ge=1, description="rows of one optimiser step, over all ranks and accumulations")
    epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    rates: Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_dotted)] = Field(
        default_factory=dict, description="factors on lr for named parts of the student or extras; 0 freezes a part"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay, not on biases and norms")
    adam_betas: tuple[Share, Share] = Field((0.9, 0.999), description="decay of AdamW's means of gradient and square")
    adam_eps: float = Field(1e-8, gt=0, description="what AdamW adds to the root of the mean square")
    warmup: float = Field(0.0, ge=0, le=1, description="share of the steps with rising learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate after warm-up")
    grad_clip: float = Field(1.0, ge=0, description="clip the gradient norm here; 0 for never")
    accumulate: int = Field(1, ge=1, description="micro-batches of one optimiser step")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="arithmetic of forward and backward; auto is bfloat16 where the hardware has it"
    )
    master_weights: bool = Field(
        True, description="train weights in float32, whatever they are saved in; false: as they were opened"
    )
    dropout: float | None = Field(0.0, ge=0, lt=1, description="dropout of the student in training; null keeps its own")
    group_by_length: bool = Field(True, description="batches of rows of like length, less padding")
    checkpoint_minutes: float = Field(2.0, gt=0, description="time between checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints, instead of minutes")


@dataclass(frozen=True)
class Progress:
    """Where training stands when an objective is computed.

    Attributes:
        step: optimiser steps done, from 0.
        steps: optimiser steps in all.
        epoch: passes over the rows done, a fraction.
    """

    step: int
    steps: int
    epoch: float

    @property
    def share(self) -> float:
        """From 0 at the first step to 1 after the last."""
        return self.step / max(1, self.steps)


def step_count(batch: Mapping[str, Any], unit: str) -> float | None:
    """What a sum over one batch is divided by for a mean over the whole optimiser step, however its rows are shared out
    among accumulated batches and ranks: how many of `unit` such a batch has on average.

    Args:
        unit: what the mean is over: something that `NetworkTask.counts` or `ObjectiveMethod.counts` counts.

    Returns:
        None outside training: the batch is all there is, and the mean is over what it has.

    Raises:
        UsageError: nobody counts them.
    """
    counted = batch.get("mean_counts")
    if counted is None:
        return None
    if unit not in counted:
        from kdhub.errors import UsageError

        raise UsageError(
            f"a loss term is a mean over {unit!r}, which are not counted; there are {', '.join(counted) or 'none'}",
            hint="the method counts its own: def counts(self, batch, teacher)",
        )
    return counted[unit]


class StoredSignals(Protocol):
    """Teacher outputs of some rows, computed or found, read by row number."""

    def __len__(self) -> int: ...
    def __getitem__(self, indices: Any) -> Mapping[str, Any]: ...


class RunContext(Protocol):
    """What a method is given as `run`: one execution of a recipe. Everything that needs the layers above comes through
    it.

    Attributes:
        folder: the run folder, for files of the method's own.
        seed: of everything random.
        task, teacher: opened; the teacher is None for methods without one.
        teachers: all of them by role; `teacher` is the one that has none.
        student: the start, built on first use.
        data_uses: the keys below `data` in the recipe, in their order.
    """

    folder: Path
    seed: int
    data_uses: tuple[str, ...]
    task: Task
    teacher: Teacher | None
    teachers: Mapping[str, Teacher]
    student: Student

    def has_rows(self, use: str) -> bool:
        """Whether the recipe has data for a use ("train", "validation", ...)."""

    def rows(self, use: str = "train", **settings: Any) -> Rows:
        """The rows of one use of data, prepared for teacher and student; `settings` go to the task's `preparer`."""

    def table(self, use: str) -> Any:
        """The plain rows of one use of data (`datasets.Dataset`)."""

    def signals(self, rows: Rows, kind: str, role: str = MAIN, *, read: bool = False) -> StoredSignals:
        """A teacher's signals of some rows, through the store. One of another task reads the rows as its task does;
        `read`: they are prepared for it already, such as prompts of the method's own."""

    def fit(self, method: ObjectiveMethod, student: Student, name: str | None = None) -> Student:
        """Train a student by an objective, to the end. Each call of a run has steps and checkpoints of its own; a
        resumed run finds them by the name, which log and plot show, else by the order of the calls in each `stage` and
        outside of stages. A name that another training of the run has is refused (`RunError`)."""

    def mark_start(self, student: Student) -> None:
        """Measure the student as it stands before training, once in the life of the run; `fit` does it."""

    def evaluate(self, student: Student) -> Any:
        """Measure teacher, start and student: a report."""

    def select(self, name: str) -> Select:
        """A rule of active learning, by the name of its sampler."""

    def ask_people(self, name: str, rows: Mapping[int, Mapping[str, Any]], labels: Collection[str]) -> dict[int, str]:
        """The labels that people give rows: number of a row -> label.

        The first call writes them into a CSV of the run folder and ends the run, with exit code 5; resumed, it goes on
        when all have a label. A later call of the same `name` adds its rows to the file. Labels that were read once
        stay: another one is refused.

        Args:
            name: of the file ("queries.csv").
            rows: number of a row -> what people are shown of it, as texts; the same whenever the run is resumed.
            labels: what they may be.

        Raises:
            AwaitingError: there are none yet, or not for all rows.
            DataError: rows that were changed, are gone or new, or labels that are none, with their numbers.
        """

    def log(self, **record: Any) -> None:
        """Add a line to `metrics.jsonl`."""

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` once in the life of the run and keep what it gave (JSON values); a resumed run finds it."""


class Method(ABC):
    """An algorithm: options in, `distill` and `evaluate` out.

    Subclass this when the method makes data, searches, or edits a scene; most methods are an `ObjectiveMethod`.

    Attributes:
        Options: the model of its options.
        defaults_for: trait of a task -> defaults of options that are others for such tasks.
        tiny_recipe: what the conformance kit changes in the task's tiny recipe to try this method.
        tiny_recipe_for: task -> what it changes for that task, in place of `tiny_recipe`.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    defaults_for: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    tiny_recipe: ClassVar[Mapping[str, Any]] = {}
    tiny_recipe_for: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, options: MethodOptions, spec: Any = None):
        self.options = options
        self.spec = spec

    @abstractmethod
    def distill(self, run: RunContext) -> Student:
        """Make the student."""

    def evaluate(self, run: RunContext, student: Student) -> Any:
        """Measure it: by default the task's own evaluation of teacher, start and student, fidelity and cost."""
        return run.evaluate(student)

    def pictures(self, student: Student) -> Iterable[Picture]:
        """Pictures of the saved student itself, `student-NAME` in report and card: by default its own
        (`Student.pictures`). A method draws what it left in `student.enclosed`."""
        return student.pictures()


class ObjectiveMethod(Method):
    """A method that is an objective: signals in, named loss terms out; the engine does the rest."""

    Options: ClassVar[type[TrainingOptions]] = TrainingOptions
    options: TrainingOptions
    teachers: Mapping[str, Teacher] = {}
    """By role, once a run has begun."""

    @property
    def partial_signals(self) -> tuple[str, ...]:
        """Forms of stored signals in part that it can learn from (`signals.keep`): the names before the number."""
        return ()

    def settings(self) -> dict[str, Any]:
        """How rows are prepared (`max_length`, prompts, ...), passed to the task's `preparer`."""
        return {}

    def rows(self, run: RunContext) -> Rows:
        """The rows it trains on: those of `data.train`, unless it has some of its own made."""
        return run.rows("train", **self.settings())

    def needs(self, teacher: Teacher | None) -> tuple[str, ...]:
        """The stored signals this run trains on; by default those of the method's spec."""
        return self.spec.needs

    def needs_of(self, role: str, teacher: Teacher) -> tuple[str, ...]:
        """The signals of the teacher with a role; by default those of its `Role`. In `objective` they have the role in
        front (`teacher.of(role)`)."""
        return self.needs(teacher) if role == MAIN else self.spec.teachers[role].needs

    def uses(self, student: Student) -> tuple[str, ...]:
        """Layers of the student that the objective reads (`layer:NAME`, see `kdhub.named_layers`): they are signals of
        a forward pass then, and their shapes are at `student.layers`. What any pass gives need not be named."""
        return ()

    def check(self, student: Student, teacher: Teacher | None) -> None:
        """Whether student, teacher and options fit each other, before the teacher is asked for anything.

        Raises:
            CompatibilityError, UsageError: they do not.
        """

    def adapt(self, student: Student, teacher: Teacher | None) -> None:
        """Change the student itself before training: saved, published, used at inference."""

    def initialise(self, student: Student, inputs: Mapping[str, torch.Tensor], teacher: Signals) -> None:
        """A closed-form start from one large batch with the teacher's signals, after `adapt` and without gradient: up
        to 1,024 rows, evenly spaced over those of training.

        All of them, and a live teacher, are on the device that trains; modules that are made here have to be put there.
        """

    def extras(self, student: Student, teacher: Teacher | None) -> Mapping[str, nn.Module]:
        """Modules trained along but not published (a hint projection, a memory bank): in the optimiser and the
        checkpoints, never in the student. They are at `self.modules[name]` when `objective` is called."""
        return {}

    across_ranks: ClassVar[bool] = False
    """Whether a loss of batches is of the rows of all ranks (`kdhub.ranks.gathered`), so that their number changes
    nothing."""

    @property
    def batchwise(self) -> str:
        """Why the loss is of batches and not a mean over independent rows (they are contrasted with each other, or
        mixed): then the same rows in more and smaller batches have another loss, and a run that does so says why. Empty
        where `accumulate` and the number of ranks change nothing but rounding."""
        return ""

    def counts(self, batch: Mapping[str, Any], teacher: Signals) -> Mapping[str, int]:
        """How many there are in a batch of what this method's means are over, beside what the task counts (pairs,
        answers): see `step_count`. After `prepare_batch`; `teacher` is empty where the teacher is live."""
        return {}

    @abstractmethod
    def objective(
        self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Progress
    ) -> Mapping[str, torch.Tensor]:
        """Named loss terms of one batch, scalars; the loss is their sum, so weights are already in them.

        A mean over rows is `values.mean()`: all batches of an optimiser step have equally many. A mean over anything
        else (tokens, labels, pairs) is `values.sum() / step_count(batch, unit)`: the mean of the batches' means is
        another loss.

        Args:
            student: the student's outputs; gradient flows.
            teacher: the teacher's, constant; empty for methods without one.
            batch: what the task collated, labels included.
            progress: where training stands.
        """

    def learning_rate(self, step: int, steps: int) -> float:
        """Factor on `options.lr` at optimiser step `step` of `steps`, before the step is taken."""
        from math import cos, pi

        o = self.options
        warm = round(o.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        share = (step - warm) / max(1, steps - warm)
        return {"linear": 1 - share, "cosine": 0.5 * (1 + cos(pi * share)), "constant": 1.0}[o.schedule]

    def prepare_batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Change a batch before a live teacher and the student see it (mixup, crops, responses of the student's own).
        All batches of an optimiser step are changed before the first of them is seen, each with the generator in the
        same state: what is drawn for a step is alike in all of them, what is drawn for a row needs its `keys`."""
        return batch

    def members(self, student: Student, rng: np.random.Generator) -> Sequence[str]:
        """Of a family of sizes: the members that learn in an optimiser step. The network is run as each of them and the
        loss is the mean of their losses. By default the smallest, the largest and two others (the sandwich rule,
        arXiv:1903.05134); none: the network is run once, as the family itself.

        Args:
            student: with its `members`, from the smallest to the largest.
            rng: of the run's seed and the step: alike on all ranks and when a run is resumed.
        """
        names = list(student.members)
        drawn = sorted(rng.permutation(len(names) - 2)[:2] + 1) if len(names) > 2 else []
        return [*names[:1], *(names[i] for i in drawn), *names[1:][-1:]]

    def ask(self, student: Signals, batch: Mapping[str, Any], teacher: Callable[..., Signals]) -> Signals:
        """What live teachers give for a batch: their signals of the batch itself, unless a method has something else to
        ask, such as points that the student's own output leads to.

        Args:
            student: the student's outputs for the batch; gradient flows, unless they are detached.
            teacher: runs all live teachers on a batch like that of `collate`, without gradient; `teacher(batch, role)`
                one of them, whose signals then have no role in front; with `gradient=True` it flows through the
                teacher, whose weights stay what they are, to what it is asked. Each call is counted, with the rows of
                its first tensor.
        """
        return teacher(batch)

    def stepped(self, terms: Mapping[str, float], progress: Progress) -> None:
        """Told after each optimiser step: the means of its terms over accumulated batches and ranks, alike on all
        ranks. Schedules that follow the loss move here; `progress` is that of the step, so its first `step` is 0."""

    def state(self) -> dict[str, Any]:
        """State of schedules and estimates that a checkpoint must keep, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""

    def distill(self, run: RunContext) -> Student:
        return run.fit(self, run.student)
