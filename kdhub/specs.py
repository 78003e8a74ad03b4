"""Light records that say what a plugin provides: one class a kind, standard library only.

A spec names its code as text (`target="package.module:attribute"`); the code is imported when somebody
asks for it, so that listing forty methods imports nothing heavy. Whatever listing and checking need
stands in the spec itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

API_VERSION = 1
"""Version of the plugin contract. A spec made for another version is refused, and says so."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What all kinds share.

    Attributes:
        name: lower-case with hyphens, as the field names it.
        target: "package.module:attribute", imported on first use.
        summary: one line for lists.
        tasks: the tasks it works for; empty means every task.
        aliases: other names it answers to.
        tags: what it is in a taxonomy, as `family:value`; cards of students made with it have them, `kdhub-` in front.
        api_version: the contract it was written for.
    """

    kind: ClassVar[str]
    name: str
    target: str
    summary: str = ""
    tasks: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    api_version: int = API_VERSION

    def fits_task(self, task: str | None) -> bool:
        return task is None or not self.tasks or task in self.tasks


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """An algorithm; the target is a `kdhub.Method` class.

    Attributes:
        needs: signals the teacher must give; empty for methods without a teacher.
        uses: signals the student must expose; defaults to `needs`.
        labels: True when the data must have labels.
        live: True when the teacher must run inside training (its input is random, so nothing can be stored).
        paper: "arXiv:..." or another citation key.
        recipe: the catalogue recipe that `--method NAME` alone means.
    """

    kind: ClassVar[str] = "method"
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] | None = None
    labels: bool = False
    live: bool = False
    paper: str = ""
    recipe: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSpec(Spec):
    """A kind of teacher (`hf`, `path`, `openai`, ...); the target builds a `kdhub.Teacher` from its argument.

    Attributes:
        gives: the signals it can give.
        argument: what stands after the colon, for help ("org/name[@revision]"); empty when there is none.
        example: an argument that works at once and offline, for the conformance kit and for help.
        live: True when it can run inside training, gradient-free.
    """

    kind: ClassVar[str] = "teacher"
    gives: tuple[str, ...] = ()
    argument: str = ""
    example: str = ""
    live: bool = False


@dataclass(frozen=True, kw_only=True)
class StudentSpec(Spec):
    """A kind of student builder (`layers`, `hf`, `config`, ...); the target builds a `kdhub.Student`.

    Attributes:
        exposes: the signals its output carries during training.
        argument: what stands after the colon, for help.
        example: an argument that works at once and offline, for the conformance kit and for help.
        from_teacher: True when the start is made of the teacher's weights or tokenizer: it needs one with `live=True`.
    """

    kind: ClassVar[str] = "student"
    exposes: tuple[str, ...] = ()
    argument: str = ""
    example: str = ""
    from_teacher: bool = False


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
class TaskSpec(Spec):
    """What a model is for; the target is a `kdhub.Task` class.

    Attributes:
        signals: the signals models of this task can carry.
    """

    kind: ClassVar[str] = "task"
    signals: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(Spec):
    """Which rows come next; the target is a `kdhub.Sampler` class.

    Attributes:
        selects: True for a rule of active learning, whose target is a function (`kdhub.sampler.Select`): methods that
            ask for labels find it by its name.
    """

    kind: ClassVar[str] = "sampler"
    selects: bool = False


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """One number about a student; the target is a function of a task's outputs (see `kdhub.metric`).

    Attributes:
        unit: "" for a plain ratio or correlation, else "ms", "bytes", "%", ...
        higher_is_better: the direction.
        form: the form of data it reads, or several (a task says which it has: "retrieval", "sts", ...); all when empty.
        fidelity: True when it compares with the teacher's outputs on the same rows.
    """

    kind: ClassVar[str] = "metric"
    unit: str = ""
    higher_is_better: bool = True
    form: str | tuple[str, ...] = ""
    fidelity: bool = False

    @property
    def forms(self) -> tuple[str, ...]:
        """`form` as a tuple, empty for all."""
        return (self.form,) if isinstance(self.form, str) and self.form else tuple(self.form)


SPECS: dict[str, type[Spec]] = {
    cls.kind: cls for cls in (MethodSpec, TeacherSpec, StudentSpec, DatasetSpec, TaskSpec, SamplerSpec, MetricSpec)
}
"""Kind -> spec class, in the order lists show them."""
