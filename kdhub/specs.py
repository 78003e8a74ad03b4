"""Light records that say what a plugin provides: one class a kind, standard library only.

A spec names its code as text (`target="package.module:attribute"`); the code is imported when somebody
asks for it, so that listing forty methods imports nothing heavy. Whatever listing and checking need
stands in the spec itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

API_VERSION = 1
"""Version of the plugin contract. A spec made for another version is refused, and says so."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What all kinds share.

    Attributes:
        name: lower-case with hyphens, as the field names it.
        target: "package.module:attribute", imported on first use.
        summary: one line for lists.
        tasks: the tasks it works for, by name; empty, and without `traits`, means every task.
        traits: it works for every task that has all of these (`TaskSpec.traits`), whoever adds the task.
        aliases: other names it answers to.
        formerly: distributions that provided it before; `name@distribution` with one of these still finds it.
        tags: what it is in a taxonomy, as `family:value`; cards of students made with it have them, `kdhub-` in front.
        api_version: the contract it was written for.
    """

    kind: ClassVar[str]
    name: str
    target: str
    summary: str = ""
    tasks: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    api_version: int = API_VERSION

    @classmethod
    def shorthand(cls, module: str, **shared: Any) -> Callable[..., Self]:
        """A function (name, target, summary, **more) -> spec, for a plugin that declares several of a kind.

        Args:
            module: what their targets begin with, up to the colon or a dot.
            shared: keys that they share; `more` goes before them.
        """

        def declared(name: str, target: str, summary: str, **more: Any) -> Self:
            return cls(**{**shared, "name": name, "target": module + target, "summary": summary, **more})

        return declared

    def fits_task(self, task: str | None) -> bool:
        """Whether it works for a task. The tasks that `traits` stand for are among `tasks` once plugins are loaded."""
        return task is None or self.any_task or task in self.tasks

    @property
    def any_task(self) -> bool:
        """Whether it works for every task."""
        return not self.tasks and not self.traits


MAIN = "teacher"
"""The role of the teacher that a recipe names without a role."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """A teacher that a method knows by name, among others.

    Attributes:
        name: as recipes have it below `teacher`.
        summary: what it is for, in a few words.
        needs: signals of it that are stored for each training row, or that it gives live.
        tasks: the tasks that it may be of, the usual one first; empty for the student's own.
        live: True when it must run inside training.
        optional: True when the method does without it.
    """

    name: str
    summary: str = ""
    needs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    live: bool = False
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """An algorithm; the target is a `kdhub.Method` class.

    Attributes:
        needs: signals the teacher must give; empty for methods without a teacher.
        uses: signals the student must expose; defaults to `needs`.
        labels: True when the data must have labels.
        problems: forms of its tasks besides the usual one that it is right for, as their models name them
            (`Student.problem`); a student of another form is refused.
        live: True when the teacher must run inside training (its input is random, so nothing can be stored).
        roles: further teachers, each with a name of its own. Without `needs` and `live` there is no other teacher, and
            a recipe that names one without a role means the first of these.
        baseline: True for plain training without a teacher, the arm that `kdhub compare` adds and compares others with.
        paper: "arXiv:..." or another citation key.
        recipe: the catalogue recipe that `--method NAME` alone means.
    """

    kind: ClassVar[str] = "method"
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] | None = None
    labels: bool = False
    problems: tuple[str, ...] = ()
    live: bool = False
    roles: tuple[Role, ...] = ()
    baseline: bool = False
    paper: str = ""
    recipe: str | None = None

    @property
    def teachers(self) -> dict[str, Role]:
        """What it asks of each teacher, by role."""
        needed = bool(self.needs or self.live)
        main = Role(name=MAIN, needs=self.needs, live=self.live, optional=not needed)
        return {role.name: role for role in (*([main] if needed or not self.roles else []), *self.roles)}


@dataclass(frozen=True, kw_only=True)
class TeacherSpec(Spec):
    """A kind of teacher (`hf`, `path`, `openai`, ...); the target builds a `kdhub.Teacher` from its argument.

    Attributes:
        gives: the signals it can give; None for what saved models of the task give (`TaskSpec.signals` and `writes`).
        argument: what stands after the colon, for help ("org/name[@revision]"); empty when there is none.
        example: an argument that works at once and offline, for the conformance kit and for help.
        live: True when it can run inside training, gradient-free.
        remote: True when it answers inside training though its network is elsewhere (`Teacher.batch_signals`): a part
            of what it gives, which the method must learn from (`partial_signals`, `signals.keep`).
    """

    kind: ClassVar[str] = "teacher"
    gives: tuple[str, ...] | None = ()
    argument: str = ""
    example: str = ""
    live: bool = False
    remote: bool = False

    def signals_for(self, task: TaskSpec) -> set[str]:
        """The signals it gives for a task."""
        return {*task.signals, *task.writes} if self.gives is None else set(self.gives)


@dataclass(frozen=True, kw_only=True)
class StudentSpec(Spec):
    """A kind of student builder (`layers`, `hf`, `config`, ...); the target builds a `kdhub.Student`.

    Attributes:
        exposes: the signals its output carries during training; None for those of the task (`TaskSpec.signals`);
            empty for what is no network.
        argument: what stands after the colon, for help.
        example: an argument that works at once and offline, for the conformance kit and for help.
        from_teacher: True when the start is made of the teacher's weights or tokenizer: it needs one with `live=True`.
    """

    kind: ClassVar[str] = "student"
    exposes: tuple[str, ...] | None = None
    argument: str = ""
    example: str = ""
    from_teacher: bool = False

    def signals_for(self, task: TaskSpec) -> set[str]:
        """The signals it carries in training for a task."""
        return set(task.signals if self.exposes is None else self.exposes)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A kind of data source (`jsonl`, `hf`, `pydoc`, ...); the target builds a `kdhub.Data` from its argument.

    Attributes:
        argument: what stands after the colon, for help; empty for generators without one.
        example: an argument that works at once and offline, for the conformance kit and for help.
        splits: the splits it always has, when they are known beforehand.
    """

    kind: ClassVar[str] = "dataset"
    argument: str = ""
    example: str = ""
    splits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FolderFormat:
    """A model folder that a task can open, recognised without opening the model.

    Attributes:
        file: a file that must be there; `keys` and `heads` are read from it.
        heads: endings of the names under `architectures` (`ForMaskedLM`), one of which must be there.
        keys: keys that must be there.
        sure: False where models of other tasks have folders that look the same.
    """

    file: str = "config.json"
    heads: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    sure: bool = True


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """A form of rows, recognised by its columns.

    Attributes:
        name: as data sets and metrics call it ("sts", "responses").
        columns: the columns it needs and what each holds: `text`, `number`, or `any`. Of the forms that fit a table,
            the first one counts: those with `early`, then `texts`, then the others in the order of their tasks.
        texts: the columns that a data set of bare texts is made from.
        check: "package.module:function", called with each row after its columns were checked: what is wrong with it,
            or None.
        early: whether a table that also has a column `text` is of this form.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    texts: tuple[str, ...] = ()
    check: str = ""
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class TaskSpec(Spec):
    """What a model is for; the target is a `kdhub.Task` class.

    Attributes:
        traits: what holds for the task, for methods and others that name traits instead of tasks. `classes`: a batch
            has `labels`, and the signal `logits` has a row for each of them; see `docs/plugins.md` for all of them.
        signals: what its models give in a forward pass.
        writes: what its models give as teachers and no network exposes in training ("text").
        formats: the folders it can open.
        forms: the forms of rows that it adds.
        starts: other tasks whose students it can open as a start (`Task.open`), as one more encoder for a fresh head.
        reads: the columns of rows that it is scored on, one group for each form ("text",) or ("sentence1",
            "sentence2"); a folder that several tasks can open is of the one that reads the data.
    """

    kind: ClassVar[str] = "task"
    signals: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    formats: tuple[FolderFormat, ...] = ()
    forms: tuple[RowForm, ...] = ()
    starts: tuple[str, ...] = ()
    reads: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(Spec):
    """Which rows come next; the target is a `kdhub.Sampler` class.

    Attributes:
        selects: True for a rule of active learning, whose target is a function (`kdhub.sampler.Select`): methods that
            ask for labels find it by its name.
        columns: of the training rows, whose values it is given (`Sampler.columns`).
    """

    kind: ClassVar[str] = "sampler"
    selects: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """One number about a student; the target is a function of a task's outputs (see `kdhub.metric`).

    Attributes:
        unit: "" for a plain ratio or correlation, else "ms", "bytes", "%", ...
        higher_is_better: the direction.
        form: the form of data it reads, or several (a task says which it has: "retrieval", "sts", ...); all when empty.
        fidelity: True when it compares with the teacher's outputs on the same rows.
        files: True when it reads the files of a student that is not run (rows, a graph), whatever the evaluation data:
            the target is f(folder) -> a number, {split: number} where there are splits, or a list of
            `kdhub.metric.Part` where there are further parts; None or an empty one where it means nothing.
        cost: True when it is a cost of every model of its tasks, beside what all models cost: the target is
            f(`kdhub.metric.Costed`) -> a number, or None where it means nothing; it is called in the process that
            times the model.
        rows: columns of rows that only this metric understands; they are not given to the task.
        outputs: "package.module:function" (encode, table) -> what the metric reads of such rows.
    """

    kind: ClassVar[str] = "metric"
    unit: str = ""
    higher_is_better: bool = True
    form: str | tuple[str, ...] = ""
    fidelity: bool = False
    files: bool = False
    cost: bool = False
    rows: tuple[str, ...] = ()
    outputs: str = ""

    @property
    def forms(self) -> tuple[str, ...]:
        """`form` as a tuple, empty for all."""
        return (self.form,) if isinstance(self.form, str) and self.form else tuple(self.form)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Spec):
    """A network that students are saved with by its name, never by a module path; the target is an `nn.Module` class.

    Attributes:
        wraps: True for a wrapper, which is built around another network.
    """

    kind: ClassVar[str] = "network"
    wraps: bool = False


@dataclass(frozen=True, kw_only=True)
class ExporterSpec(Spec):
    """A format that a finished student can be written in; the target is a `kdhub.exporting.exporter.Exporter` class.

    Attributes:
        quantize: the smaller precisions that it can write ("int8").
        requires: modules that must be installed for it.
        extra: what installs them, as pip takes it ("kdhub[onnx]").
    """

    kind: ClassVar[str] = "exporter"
    quantize: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    extra: str = ""


SPECS: dict[str, type[Spec]] = {
    cls.kind: cls
    for cls in (
        MethodSpec,
        TeacherSpec,
        StudentSpec,
        DatasetSpec,
        TaskSpec,
        SamplerSpec,
        MetricSpec,
        NetworkSpec,
        ExporterSpec,
    )
}
"""Kind -> spec class, in the order lists show them."""
