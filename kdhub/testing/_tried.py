"""What checks of parts are tried on: teachers, students, rows and samplers, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import SkipTest

import numpy as np

from kdhub.data.dataset import Data, DataOptions
from kdhub.errors import TeacherError
from kdhub.evaluation.evaluator import Evaluator, student_encoder
from kdhub.metric import Costed
from kdhub.ranks import device
from kdhub.recipes.recipe import Recipe, Ref
from kdhub.recipes.resolve import Resolver
from kdhub.sampler import Sampler
from kdhub.student import BuildContext
from kdhub.task import NetworkTask
from kdhub.testing._bench import Bench
from kdhub.testing._register import describe_options

LENGTHS = np.asarray([3 + (7 * i) % 11 for i in range(40)], np.int32)
VALUES = ["a" if i % 8 else "b" for i in range(40)]
"""Of the columns that a sampler asks for."""


def options_documented(bench: Bench) -> None:
    problems = describe_options(bench.target.Options) if hasattr(bench.target, "Options") else []
    assert not problems, "; ".join(problems)


def source_of(bench: Bench, key: str, task: str) -> dict[str, Any]:
    """What to build: the spec's example, or what the tiny recipe has when it is of this kind."""
    if bench.spec.example:
        return {"source": f"{bench.entry.name}:{bench.spec.example}"}
    if not bench.spec.argument:
        own = getattr(bench.target, "tiny_options", None)
        return {"source": bench.entry.name, **(own(bench.tiny(task)) if own else {})}
    for given in map(bench.tiny(task).get, (key, "teacher")):  # a folder that is a teacher is a start as well
        given = {"source": given} if isinstance(given, str) else given
        if given and given["source"].partition(":")[0] == bench.entry.name:
            return given if key == "teacher" else {"source": given["source"]}
    raise SkipTest(f"its spec gives no example of {bench.spec.argument}, and the tiny recipe has none")


def same_alone(model: Any, rows: list[Any], kind: str) -> None:
    """Signals of all rows together, the longest first, and of each alone."""
    rows = sorted(rows, key=lambda row: -row["length"])
    for name, values in model.signals(rows, kind).items():
        for row, value in zip(rows, values):
            equal_apart(value, model.signals([row], kind)[name][0], f"{kind}: {name}")


def same_in_a_batch(task: Any, student: Any, rows: list[Any]) -> None:
    """A forward pass of all rows, and of each alone: one row after the other, where rows have several outputs. The rows
    stay as they were: a later epoch has them again."""
    import torch
    from accelerate.utils import send_to_device

    module, kind = student.module.to(device()).eval(), task.primary_signal

    def given(some: list[Any]) -> Any:
        with torch.no_grad():
            return task.forward(module, send_to_device(task.collate(some, student), device()))[kind].float().cpu()

    before = [dict(row) for row in rows]
    equal_apart(given(rows).numpy(), torch.cat([given([row]) for row in rows]).numpy(), f"{kind} of a forward pass")
    for row, was in zip(rows, before):
        changed = [name for name in {**row, **was} if row.get(name) is not was.get(name)]
        assert not changed, f"collate changes {', '.join(changed)} of its examples, which a later epoch has again"


def equal_apart(beside: Any, alone: Any, what: str) -> None:
    if isinstance(alone, str):
        assert beside == alone, f"{what} of an example depends on the examples beside it"
        return
    beside, alone = np.asarray(beside, np.float64), np.asarray(alone, np.float64)
    assert beside.shape == alone.shape, f"{what} has the shape {alone.shape} alone and {beside.shape} beside others"
    most = np.abs(alone).max(initial=0.0)  # arithmetic may be bfloat16
    worst = np.abs(beside - alone).max(initial=0.0)
    assert worst <= 1e-2 * most + 1e-6, f"{what} of an example depends on the examples beside it, by {worst:.2g}"


def parts_of(task: Any, recipe: Recipe, resolver: Resolver) -> list[tuple[Data, str]]:
    parts = []
    for ref in recipe.data["train"]:
        data = resolver.data(ref)
        parts.append((data, data.pick("train")))
    return parts


def world_of(bench: Bench, task_name: str) -> tuple[Resolver, Any, Recipe, list[tuple[Data, str]]]:
    """Resolver, task, the tiny recipe and its training data."""
    resolver = Resolver(bench.registry)
    task = resolver.task(task_name)
    recipe = Recipe.model_validate({**bench.tiny(task_name), "task": task_name, "method": "none"})
    return resolver, task, recipe, parts_of(task, recipe, resolver)


def examples_of(task: Any, parts: list[tuple[Data, str]], student: Any, teacher: Any, **settings: Any) -> list[Any]:
    """Rows as a network of the task takes them; none of a task without networks, or of a student that answers none."""
    if not isinstance(task, NetworkTask) or (student is not None and not student.answers):
        return []
    table = task.training_table(parts)
    columns = table[: min(8, len(table))]
    return task.preparer(student, teacher, **settings)(
        [dict(zip(columns, values)) for values in zip(*columns.values())]
    )


def tasks_tried(bench: Bench, declared: tuple[str, ...] | None) -> list[str]:
    """The tasks to try a kind of model on: one, but all where what it gives is that of the task."""
    if declared is not None:
        return [bench.task]
    return [name for name in bench.task_names if bench.tiny(name) is not None]


def tried(bench: Bench, declared: tuple[str, ...] | None, build: Callable[[str], Any]) -> Iterator[Any]:
    """What `build` gives for each task.

    Raises:
        SkipTest: it cannot be built for any of them.
    """
    reason, built = "no task has a tiny recipe", False
    for name in tasks_tried(bench, declared):
        try:
            made = build(name)
        except SkipTest as skipped:
            reason = str(skipped)
            continue
        built = True
        yield made
    if not built:
        raise SkipTest(reason)


def laid_out(teacher: Any, kind: str) -> bool:
    try:
        return kind in teacher.layout(kind)
    except TeacherError:
        return False


def teachers_of(bench: Bench) -> Iterator[tuple[Any, list[Any], list[str]]]:
    """Teachers of this kind, some rows for each, and the signals that each gives."""

    def build(name: str) -> tuple[Any, list[Any], list[str]]:
        resolver, task, _, parts = world_of(bench, name)
        teacher = resolver.teacher(ref_of(bench, "teacher", name), task.name)
        given = bench.spec.gives
        if given is None:  # what the task's models may give, as far as this one does
            of_task = bench.registry.find("task", name).spec
            given = [kind for kind in of_task.signals if laid_out(teacher, kind)]
            assert task.primary_signal in given, f"a saved model for {name} gives no {task.primary_signal}"
        return teacher, examples_of(task, parts, None, teacher), list(given)

    yield from tried(bench, bench.spec.gives, build)


def students_of(bench: Bench) -> Iterator[tuple[Any, list[Any], Any, list[str]]]:
    """Students of this kind, some rows for each, the task, and the signals that each exposes."""

    def build(name: str) -> tuple[Any, list[Any], Any, list[str]]:
        resolver, task, recipe, parts = world_of(bench, name)
        if bench.spec.from_teacher and recipe.teacher is None:
            raise SkipTest("the tiny recipe has no teacher to make it from")
        context = context_of(resolver, task, recipe, parts)
        student = resolver.student(ref_of(bench, "student", name), context)
        exposed = bench.spec.exposes
        if exposed is None:
            kinds = getattr(student, "kinds", None)
            of_task = bench.registry.find("task", name).spec.signals
            exposed = tuple(kind for kind in of_task if kinds is None or kind in kinds)
        return student, examples_of(task, parts, student, None), task, list(exposed)

    yield from tried(bench, bench.spec.exposes, build)


def context_of(resolver: Resolver, task: Any, recipe: Recipe, parts: Any) -> BuildContext:
    teacher = resolver.teacher(recipe.teacher, task.name) if recipe.teacher else None
    return BuildContext(task, teacher, 0, facts=task.survey(parts))


def start_of(resolver: Resolver, task: Any, recipe: Recipe, parts: Any) -> Any:
    """The student of the tiny recipe."""
    return resolver.student(recipe.student, context_of(resolver, task, recipe, parts))


def ref_of(bench: Bench, key: str, task: str) -> Ref:
    source = source_of(bench, key, task)
    source["source"] = f"{bench.entry.qualified}:{source['source'].partition(':')[2]}".rstrip(":")
    return Ref.model_validate(source)


def data_of(bench: Bench, **options: Any) -> Data:
    if bench.spec.argument and not bench.spec.example:
        raise SkipTest(f"its spec gives no example of {bench.spec.argument}")
    text = f"{bench.entry.name}:{bench.spec.example}" if bench.spec.argument else bench.entry.name
    return Resolver(bench.registry).open_data(text, DataOptions(), options)


def sampler_of(bench: Bench, batch: int, seed: int = 0, values: Sequence[str] = VALUES) -> Sampler:
    """
    Args:
        values: of the columns that it asks for.
    """
    if bench.spec.selects:
        raise SkipTest("it chooses rows to have labelled")
    given = {"columns": dict.fromkeys(bench.spec.columns, values)} if bench.spec.columns else {}
    return bench.target(LENGTHS, batch, seed, **given)


def outputs_of(bench: Bench, task_name: str) -> Iterator[tuple[Any, str]]:
    """What metrics read, for the tiny recipe's untrained student on each of its evaluation sets, and its form."""
    resolver, task, recipe, parts = world_of(bench, task_name)
    evaluator = Evaluator(task, resolver, recipe.evaluation, resolver.evaluation_options(task, recipe))
    student = start_of(resolver, task, recipe, parts)
    for data, split in evaluator.data:
        yield task.outputs(student_encoder(task, student), data, split), data.form(split)


def costed_of(bench: Bench, task_name: str) -> Iterator[Costed]:
    """What metrics of cost are given of the tiny recipe's student, with answers and without."""
    resolver, task, recipe, parts = world_of(bench, task_name)
    student = start_of(resolver, task, recipe, parts)
    if isinstance(task, NetworkTask) and student.answers:
        rows = examples_of(task, parts, student, None)
        yield Costed(student, None, lambda n: student.signals(rows[:n], task.primary_signal))
    yield Costed(student)
