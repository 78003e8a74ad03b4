"""From the text of a recipe to objects, and whether they fit together before anything is loaded.

minilm-l6            a catalogue name
hf:org/name@rev      a kind with an argument
org/name             the Hub
./folder, /folder    a local path
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from kdhub.catalogue.catalog import Catalog, default_catalog
from kdhub.data.dataset import Data, DataOptions, parse_source
from kdhub.errors import CompatibilityError, RecipeError, UnknownNameError, UsageError, close_matches
from kdhub.method import Method, MethodOptions
from kdhub.plugins.registry import Entry, Registry
from kdhub.recipes.recipe import ROLES, DataRef, Layer, Link, Recipe, Ref, TeacherRef, explain
from kdhub.sampler import Sampler, Select
from kdhub.specs import MAIN, MethodSpec, Role
from kdhub.student import BuildContext, SavedOptions, Student, precision_of
from kdhub.task import Task
from kdhub.teacher import Teacher

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Target:
    """What a text means: a kind of teacher, student or sampler, and its argument. Nothing is imported yet."""

    entry: Entry
    argument: str
    text: str


@dataclass
class Opening:
    """The data set that is being opened by its kind.

    Attributes:
        on_bad_rows: of its rows, and so of the rows and teachers that its kind makes them of.
        parts: the data sets that its kind opens (`kdhub.open_data`).
    """

    on_bad_rows: str = "stop"
    parts: list[Data] = field(default_factory=list)


OPENING: ContextVar[Opening] = ContextVar("opening")


class Resolver:
    """Looks names up in the registry and the catalogue.

    Args:
        registry, catalog: those of the process by default.
    """

    def __init__(self, registry: Registry | None = None, catalog: Catalog | None = None):
        self.registry = registry or Registry()
        self.catalog = catalog or default_catalog()
        self.chained: dict[str, str] = {}  # `path:FOLDER` -> the `recipe:NAME` whose student is there

    def made_by(self, source: str) -> str | None:
        """A source with the `recipe:NAME` in place of its student's folder, which says nothing to anybody else; None
        where it names no such folder."""
        return next(
            (source.removesuffix(path) + name for path, name in self.chained.items() if source.endswith(path)), None
        )

    # -- names ------------------------------------------------------------------------------------------------

    def target(self, kind: str, text: str, task: str | None) -> Target:
        """What a text means for a kind, without importing it.

        Raises:
            UnknownNameError: neither the catalogue nor a plugin knows it.
        """
        section = f"{kind}s"
        word, argument = self._split(text)
        if word is None:
            if text in self.catalog.names(section):
                return self.target(kind, self.catalog.get(section, text)["source"], task)
            # A bare word may be a kind that needs no argument ("static"); anything else is an unknown name.
            kinds = {e.name: e for e in self.registry.all(kind, task)}
            bare = argument.partition("@")[0]
            if bare in kinds and _argument(kinds[bare])[:1] in ("", "["):  # none, or "[one that may be left out]"
                return Target(self.registry.find(kind, argument, task), "", text)
            known = [*self.catalog.names(section), *(f"{n}:{_argument(e)}".rstrip(":") for n, e in kinds.items())]
            raise UnknownNameError(kind, text, known, how_to_list=f"kdhub list {section}")
        return Target(self.registry.find(kind, word, task), argument, text)

    def _split(self, text: str) -> tuple[str | None, str]:
        """Kind and argument. Another recipe's student is a folder by the time it is opened (`kdhub.recipes.chain`)."""
        word, argument = parse_source(text)
        if word != "recipe":
            return word, argument
        self.catalog.path("recipes", Link.parse(text).name)
        return "path", argument

    # -- objects ----------------------------------------------------------------------------------------------

    def task(self, name: str) -> Task:
        return self.registry.load(self.registry.find("task", name))()

    def method(self, recipe: Recipe, layers: Sequence[Layer] = ()) -> Method:
        """The method with its options checked.

        Raises:
            RecipeError: every wrong option at once.
        """
        entry = self.registry.find("method", recipe.method, recipe.task)
        cls = self.registry.load(entry)
        return cls(_options(cls.Options, recipe.options, ("options",), layers), entry.spec)

    def completed(self, recipe: Recipe) -> Recipe:
        """A new recipe with the method's defaults for such tasks among its options (`Method.defaults_for`). They are
        written into the run, so that a run that goes on has those that it began with."""
        cls = self.registry.load(self.registry.find("method", recipe.method, recipe.task))
        traits = self.registry.find("task", recipe.task).spec.traits
        own = {k: v for trait, some in cls.defaults_for.items() if trait in traits for k, v in some.items()}
        return recipe.model_copy(update={"options": {**own, **recipe.options}}) if own else recipe

    def with_roles(self, recipe: Recipe, *, others: bool = False) -> Recipe:
        """A recipe whose teachers stand under the roles, and with the tasks, that its method knows them by.

        Args:
            others: leave out roles that the method does not have: the recipe was written for another.

        Raises:
            CompatibilityError: the method has no such role, or none of its teachers is of such a task.
        """
        if recipe.teacher is None:
            return recipe
        task = self.registry.find("task", recipe.task).name
        method = self.registry.find("method", recipe.method, task).spec
        named, roles = recipe.teachers, method.teachers
        if recipe.teacher.source != ROLES and MAIN not in roles:
            named = {next(iter(roles)): recipe.teacher}
        if others:
            named = {name: ref for name, ref in named.items() if name in roles}
        for name, ref in named.items():
            if name not in roles:
                near = close_matches(name, roles)
                raise CompatibilityError(
                    f"method {method.name} has no teacher with the role {name!r}; it has {', '.join(roles)}",
                    hint=f"did you mean {near[0]}?" if near else None,
                )
            tasks = roles[name].tasks or (recipe.task,)
            if (task := ref.task or tasks[0]) not in tasks:
                raise CompatibilityError(
                    f"teacher {ref.source}: its task must be {' or '.join(tasks)} for {method.name} (task={task})"
                )
            if ref.task != (stated := None if task == recipe.task else task):
                named[name] = ref.model_copy(update={"task": stated})
        if {*named} <= {MAIN}:
            return recipe.model_copy(update={"teacher": named.get(MAIN)})
        refs = {name: ref.model_dump(exclude_defaults=True) for name, ref in named.items()}
        return recipe.model_copy(update={"teacher": TeacherRef.model_validate({"source": ROLES, **refs})})

    def evaluation_options(self, task: Task, recipe: Recipe, layers: Sequence[Layer] = ()) -> Any:
        return _options(task.EvaluationOptions, recipe.evaluation.options, ("evaluation", "options"), layers)

    def teacher(self, ref: Ref, task: str) -> Teacher:
        target = self.target("teacher", ref.source, task)
        options = self.model_options("teacher", ref, task)
        with _argument_of("teacher", ref.source):
            return self.registry.load(target.entry)(target.argument, options, task=self.task(task))

    def model_options(self, kind: str, ref: Ref, task: str, layers: Sequence[Layer] = ()) -> Any:
        """The checked options of a teacher or student: those of its catalogue entry, then the recipe's.

        What builds it says what there is in its attribute `Options`. Saved models take those of their task, and so does
        every student; all students take `kdhub.student.SavedOptions`.

        Raises:
            RecipeError: every wrong option at once.
        """
        model = self.options_model(self.target(kind, ref.source, task).entry, task)
        return _options(model, {**self._defaults(f"{kind}s", ref.source), **ref.options}, (kind,), layers)

    def options_model(self, entry: Entry, task: str) -> type[BaseModel]:
        """What may be set next to the source of a kind of teacher or student, for one task."""
        own = getattr(self.registry.load(entry), "Options", None)
        cls = self.registry.load(self.registry.find("task", task))
        if entry.spec.kind == "teacher":
            return own or cls.Teacher.Options
        shared = cls.StudentOptions
        if own is None or issubclass(shared, own):
            options = shared
        else:
            options = own if issubclass(own, shared) or not shared.model_fields else type("Options", (own, shared), {})
        return options if "dtype" in options.model_fields else type("Options", (options, SavedOptions), {})

    def student(self, ref: Ref, context: BuildContext) -> Student:
        target = self.target("student", ref.source, context.task.name)
        options = self.model_options("student", ref, context.task.name)
        own = SavedOptions.model_fields if isinstance(options, SavedOptions) else ()
        context.options = options.model_dump(exclude=set(own))
        with _argument_of("student", ref.source):
            student = self.registry.load(target.entry)(target.argument, context)
        student = context.task.configure(student, context)
        student.precision = (options.dtype if own else None) or precision_of(student.module)
        if own and options.withheld:
            student.withheld = options.withheld
        return student

    def sampler(self, ref: Ref, task: str, layers: Sequence[Layer] = ()) -> tuple[type[Sampler], dict[str, Any]]:
        """The sampler class and its options.

        Raises:
            RecipeError: every wrong option at once.
            CompatibilityError: it is a rule that chooses rows to have labelled.
        """
        entry = self.target("sampler", ref.source, task).entry
        if entry.spec.selects:
            raise CompatibilityError(
                f"sampler {ref.source} chooses rows to have labelled; it gives no order of training rows",
                hint="methods of active learning take it as an option: --set strategy=" + ref.source,
            )
        cls = self.registry.load(entry)
        return cls, _options(cls.Options, ref.options, ("sampler",), layers).model_dump(exclude_unset=True)

    def select(self, name: str, task: str) -> Select:
        """A rule of active learning, by the name of its sampler.

        Raises:
            UnknownNameError: there is no such rule; known are those that select.
        """
        rules = {entry.name: entry for entry in self.registry.all("sampler", task) if entry.spec.selects}
        if name not in rules:
            raise UnknownNameError("rule of active learning", name, rules, how_to_list="kdhub list samplers")
        return self.registry.load(rules[name])

    def data(self, ref: DataRef, on_bad_rows: str = "stop") -> Data:
        """A data set seen through the options of its use."""
        names = ("columns", "where", "exclude", "limit", "sample", "sample_seed", "role", "split")
        options = DataOptions(**{n: getattr(ref, n) for n in names}, on_bad_rows=on_bad_rows)
        return self.open_data(ref.source, options, ref.options, fetch=not ref.optional)

    def open_data(
        self, text: str, options: DataOptions, own: Mapping[str, Any] | None = None, *, fetch: bool = True
    ) -> Data:
        """A data set by its text, seen through `options`; `own` are those of its kind."""
        token = OPENING.set(opening := Opening(options.on_bad_rows))
        try:
            data = self._open_data(text, options, own, fetch)
        finally:
            OPENING.reset(token)
        data.made_of = (*data.made_of, *opening.parts)
        data.name = self.made_by(text) or data.name
        return data

    def _open_data(self, text: str, options: DataOptions, own: Mapping[str, Any] | None, fetch: bool) -> Data:
        word, argument = parse_source(text)
        if word is None and argument in self.catalog.names("datasets"):
            return self.catalog.dataset(argument, options, build=self._build_data, fetch=fetch)
        entry = self._dataset_kind(word, argument, text)
        if word and argument and not entry.spec.argument:
            raise UsageError(
                f"data set {text!r}: {word} takes nothing after the colon",
                hint=f"for a split write {{source: {word}, split: {argument}}}; to evaluate, --data {text}",
            )
        data = self._build_data(entry.name, "" if word is None else argument, own or {})
        return data.with_options(options)

    def _build_data(self, kind: str, argument: str, options: Mapping[str, Any]) -> Data:
        """A data set of a kind: its target takes the argument, when it has one, and its own options."""
        entry = self.registry.find("dataset", kind)
        build = self.registry.load(entry)
        try:
            made = build(argument, **options) if entry.spec.argument else build(**options)
        except TypeError as error:
            if not (unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error))):
                raise UsageError(
                    f"data set {kind}:{argument} does not take the options {dict(options)}: {error}"
                ) from error
            known = [name for name, p in signature(build).parameters.items() if p.kind is p.KEYWORD_ONLY]
            close = close_matches(unknown[1], known)
            raise UsageError(
                f"data set {kind} has no option {unknown[1]!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
                hint=f"it has {', '.join(known)}" if known else f"kdhub show {kind}",
            ) from error
        made.tags = tuple(dict.fromkeys((*made.tags, *entry.spec.tags)))
        return made

    def _dataset_kind(self, word: str | None, argument: str, text: str) -> Entry:
        if word is not None:
            return self.registry.find("dataset", word)
        kinds = {e.name: e for e in self.registry.all("dataset")}
        if argument in kinds and not kinds[argument].spec.argument:
            return kinds[argument]
        known = [*self.catalog.names("datasets"), *kinds]
        raise UnknownNameError("data set", text, known, how_to_list="kdhub list datasets")

    def _defaults(self, section: str, name: str) -> dict[str, Any]:
        """Options that a catalogue entry sets for its model."""
        if name not in self.catalog.names(section):
            return {}
        return dict(self.catalog.get(section, name).get("options") or {})

    # -- fitting ----------------------------------------------------------------------------------------------

    def check(self, recipe: Recipe, layers: Sequence[Layer] = ()) -> None:
        """Everything that can be known without loading a model, all faults at once where they are recipe faults.

        Raises:
            RecipeError, UnknownNameError, CompatibilityError.
        """
        task = self.registry.find("task", recipe.task)
        method = self.registry.find("method", recipe.method, recipe.task).spec
        problems: list[str] = []
        checks = [lambda: self.method(recipe, layers), lambda: self._evaluation(recipe, layers)]
        for ref in recipe.teachers.values():
            checks.append(partial(self.model_options, "teacher", ref, ref.task or recipe.task, layers))
        checks.append(partial(self.model_options, "student", recipe.student, recipe.task, layers))
        if recipe.sampler is not None:
            checks.append(partial(self.sampler, recipe.sampler, recipe.task, layers))
        for check in checks:
            try:
                check()
            except RecipeError as error:
                problems += error.problems
        if problems:
            raise RecipeError(problems)
        self._check_kept(recipe)
        needs = set(method.needs)
        uses = set(needs if method.uses is None else method.uses)
        for role in method.teachers.values():
            self._check_teacher(recipe, method, role)
        student = self.target("student", recipe.student.source, recipe.task).entry.spec
        exposed = student.signals_for(task.spec)
        if missing := uses - exposed:
            kinds = self.registry.all("student", recipe.task)
            fitting = [e.name for e in kinds if uses <= e.spec.signals_for(task.spec)]
            raise CompatibilityError(
                f"method {method.name} uses {_names(uses)} of the student, {recipe.student.source} exposes "
                f"{_names(exposed)}: {_names(missing)} is missing",
                hint=f"students that fit: {', '.join(fitting) or 'none'}",
            )
        if student.from_teacher and not self._weights_at_hand(recipe):
            kinds = [e for e in self.registry.all("student", recipe.task) if not e.spec.from_teacher]
            fitting = [e.name for e in kinds if uses <= e.spec.signals_for(task.spec)]
            raise CompatibilityError(
                f"student {recipe.student.source} is made from the teacher's weights, and "
                + (f"teacher {recipe.teacher.source} has none here" if recipe.teacher else "the recipe has no teacher"),
                hint=f"students that fit: {', '.join(fitting) or 'none'}",
            )
        for ref in [*(r for refs in recipe.data.values() for r in refs), *recipe.evaluation.data]:
            word, argument = self._split(ref.source)
            if word is not None or argument not in self.catalog.names("datasets"):
                self._dataset_kind(word, argument, ref.source)

    def _evaluation(self, recipe: Recipe, layers: Sequence[Layer]) -> None:
        self.evaluation_options(self.task(recipe.task), recipe, layers)
        known = {e.name for e in self.registry.all("metric", recipe.task)}
        for name in recipe.evaluation.metrics or ():
            if name not in known:
                raise UnknownNameError("metric", name, known, how_to_list=f"kdhub list metrics --task {recipe.task}")

    def _weights_at_hand(self, recipe: Recipe) -> bool:
        teacher = recipe.teachers.get(MAIN)
        return (
            teacher is not None and self.target("teacher", teacher.source, teacher.task or recipe.task).entry.spec.live
        )

    def _check_kept(self, recipe: Recipe) -> None:
        keep = recipe.signals.keep
        takes = ("all", *getattr(self.method(recipe), "partial_signals", ()))
        if keep.partition("-")[0] not in takes:
            raise CompatibilityError(
                f"method {recipe.method}, with these options, does not learn from signals.keep: {keep}",
                hint=f"it takes {', '.join(name if name == 'all' else f'{name}-N' for name in takes)}",
            )

    def _check_teacher(self, recipe: Recipe, method: MethodSpec, role: Role) -> None:
        ref, needs, named = recipe.teachers.get(role.name), set(role.needs), role.name != MAIN
        if ref is None:
            if role.optional:
                return
            task = (role.tasks or (recipe.task,))[0]
            raise CompatibilityError(
                f"method {method.name} needs a teacher {f'with the role {role.name!r} ' if named else ''}"
                f"{f'that gives {_names(needs)}' if needs else 'to start from'}, the recipe has none"
                + (f": {role.summary}" if role.summary else ""),
                hint=(f"teacher: {{source: {ROLES}, {role.name}: SOURCE}}" if named else "name one with --teacher")
                + f"; kdhub list teachers --task {task} shows what there is",
            )
        task = self.registry.find("task", ref.task or recipe.task).spec
        spec = self.target("teacher", ref.source, task.name).entry.spec
        kinds = self.registry.all("teacher", task.name)
        fitting = [e.name for e in kinds if needs <= e.spec.signals_for(task)]
        if missing := needs - (given := spec.signals_for(task)):
            raise CompatibilityError(
                f"method {method.name} needs {_names(needs)}{f' of its {role.name!r}' if named else ''}, teacher "
                f"{ref.source} gives {_names(given)}: {_names(missing)} is missing",
                hint=f"teachers that fit: {', '.join(fitting) or 'none'}",
            )
        if not role.live:
            return
        parts, keep = getattr(self.method(recipe), "partial_signals", ()), recipe.signals.keep
        if spec.live and keep != "all":
            raise CompatibilityError(
                f"method {method.name} runs {ref.source} inside training, and all of what it gives is used "
                f"(signals.keep: {keep})",
                hint="leave out signals.keep, which is for what is stored, and for teachers behind a server",
            )
        if not spec.live and not (spec.remote and parts):
            raise CompatibilityError(
                f"method {method.name} runs the teacher inside training, and {ref.source} cannot be",
                hint="use a teacher whose weights are local",
            )
        if not spec.live and keep == "all":
            raise CompatibilityError(
                f"method {method.name} asks {ref.source} inside training, which gives a part of its {_names(needs)} "
                f"only (signals.keep: {keep})",
                hint=f"set signals: {{keep: {parts[0]}-K}}, with K as large as the server allows",
            )


def _argument(entry: Entry) -> str:
    """What a kind takes after the colon; samplers take nothing."""
    return getattr(entry.spec, "argument", "")


@contextmanager
def _argument_of(kind: str, source: str) -> Iterator[None]:
    """What builds a model takes its argument as a text, and may find that it is none of its own."""
    try:
        yield
    except ValueError as error:
        raise RecipeError([f"{kind} {source!r} cannot be made of what follows the colon: {error}"]) from error


def _options(model: type[MethodOptions], given: dict[str, Any], prefix: Sequence[str], layers: Sequence[Layer] = ()):
    from pydantic import ValidationError

    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RecipeError(explain(error, model, layers, prefix)) from error


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
