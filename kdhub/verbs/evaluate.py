"""`kdhub.evaluate`: score a run, a student folder, or any model, with the run's data or other data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdhub.data.dataset import parse_source
from kdhub.errors import HubError, UsageError
from kdhub.evaluation.evaluator import Evaluator, student_encoder, teacher_encoder
from kdhub.evaluation.report import Report
from kdhub.families import member_in
from kdhub.files import write_json
from kdhub.recipes.folders import guess_task
from kdhub.recipes.recipe import DataRef, Layer, Recipe, build, parse_sets
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.signals.stored import measured_signals
from kdhub.specs import MAIN
from kdhub.student import BuildContext, Student
from kdhub.training.execute import COST_ROWS, cost_again, unchained
from kdhub.training.session import cost_subjects


def evaluate(
    subject: str | Path,
    *,
    member: str | None = None,
    teacher: str | None = None,
    data: str | Sequence[str] | None = None,
    task: str | None = None,
    cost: bool = False,
    update: bool = False,
    set: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    resolver: Resolver | None = None,
) -> Report:
    """Score a student again.

    Args:
        subject: a run folder, a student folder, a student that was pulled or is in `kdhub list published`, or a
            student source (`hf:org/name`, `org/name`, `path:...`).
        member: of a family of sizes: this one alone, as a student of its own.
        teacher: to compare with; a run brings its own.
        data: names of data sets, `name` or `name:split`; a run brings its own.
        task: when neither the subject nor the columns of the data say.
        cost: measure size, speed and memory as well.
        update: of a finished run, with `cost` and nothing else: what it costs is measured again, and its report and
            card have the new figures.
        set: recipe keys, as in `distill` (`evaluation.options.noise=[0.9]`).
        out: write `report.json` here as well.

    Raises:
        UsageError: no data to score on, and the student's own files say nothing.
    """
    resolver = resolver or Resolver()
    if update:
        if not cost or member or teacher or data or task or set or out:
            raise UsageError(
                "--update measures the cost of a run again, and nothing else",
                hint=f"kdhub evaluate {subject} --cost --update",
            )
        return cost_again(Run.open(Path(subject).expanduser()), resolver)
    data = [data] if isinstance(data, str) else list(data or ())
    recipe, student, folder = subject_of(subject, task, data, resolver)
    recipe = adjusted(recipe, teacher, data, set)
    recipe, _ = unchained(recipe, resolver)
    task_object = resolver.task(recipe.task)
    options = resolver.evaluation_options(task_object, recipe)
    evaluator = Evaluator(task_object, resolver, recipe.evaluation, options, recipe.on_bad_rows)
    nothing = UsageError(
        "there is nothing to score on",
        hint="name a data set with --data, --data NAME; kdhub list data shows those there are",
    )
    if not recipe.evaluation.data and not evaluator.reads_files:
        raise nothing
    report, against = Report(), None
    ref = recipe.teachers.get(MAIN)
    model = resolver.teacher(ref, ref.task or recipe.task) if ref is not None else None
    loaded = student(model)
    if member is not None:
        loaded, folder = loaded.cut(member_in(loaded, folder or Path(), member, str(subject))), None
    if model is not None and not task_object.mismatch(loaded, model):
        signals = partial(measured_signals, model, dtype=recipe.signals.dtype)
        if not model.complete:
            evaluator.only_answered(model, signals)
        against = teacher_encoder(task_object, model, signals)
        report.measures += evaluator.measure("teacher", against)
    report.measures += evaluator.measure("student", student_encoder(task_object, loaded, folder), against)
    if not recipe.evaluation.data and not report.measures:  # metrics of files, and none of them for such a student
        raise nothing
    report.notes += evaluator.notes
    report.facts = {"primary": evaluator.primary, "unanswered": evaluator.unanswered}
    if cost and (evaluator.data or not loaded.answers):
        report.add_costs(_cost(recipe, task_object, evaluator, loaded))
    if out is not None:
        write_json(Path(out), report.to_dict())
    return report


def subject_of(
    subject: str | Path, task: str | None, data: Sequence[str], resolver: Resolver
) -> tuple[Recipe, Callable[[Any], Student], Path | None]:
    """The recipe to score by, a function teacher -> student, and the folder with its files, if it is saved."""
    from kdhub.hub.fetch import fetch_model
    from kdhub.hub.files import MANIFEST
    from kdhub.recipes.folders import published_task
    from kdhub.verbs.load import load

    text, name = str(subject), None
    folder = _here(subject, resolver)
    if (folder / MANIFEST).is_file():
        # Its recipe is a stranger's: the task is all that is taken from it.
        own = published_task(folder, None, resolver)
        return _bare(own.name, f"path:{folder}"), lambda teacher: own.load(folder), folder
    kind, argument = parse_source(text)
    if folder.is_dir():
        run_folder = next((f for f in (folder, folder.parent) if (f / "recipe.yaml").is_file()), None)
        if run_folder is not None:
            run = Run.open(run_folder)
            files = run.student_folder if folder == run_folder else folder
            return run.recipe, lambda teacher: load(folder, resolver=resolver), files
    elif kind == "path":
        folder = Path(argument).expanduser()
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is not a folder", hint="give a run folder, a model folder, or org/name on a hub"
            )
    elif kind == "hf":
        try:
            folder, name, _ = fetch_model(argument)
        except HubError as error:
            if not text.startswith("hf:"):
                error.hint = f"{text} is not a folder here either" + (f"; {error.hint}" if error.hint else "")
            raise
    else:
        task = task or _task_of_start(text, resolver)
        context = BuildContext(resolver.task(task), None, 0)
        bare = _bare(task, text)
        return bare, lambda teacher: resolver.student(bare.student, context), None
    task = task or guess_task(folder, resolver.registry, _columns(data, resolver))
    return _bare(task, f"path:{folder}"), lambda teacher: resolver.task(task).load(folder, name=name), folder


def _bare(task: str, source: str) -> Recipe:
    return Recipe(task=task, method="none", student={"source": source})


def _columns(data: Sequence[str], resolver: Resolver) -> Iterator[list[str]]:
    """The columns of each data set that is scored on."""
    for text in data:
        opened = resolver.data(DataRef.model_validate(_data_ref(text)))
        yield opened.split(opened.pick("test", "validation", "train")).column_names


def _task_of_start(text: str, resolver: Resolver) -> str:
    """The task of a student that is named by catalogue or kind.

    Raises:
        UsageError: there are several, or none.
    """
    if ("students", text) in resolver.catalog and (task := resolver.catalog.get("students", text).get("task")):
        return task
    kind = parse_source(text)[0] or text
    tasks = {task for entry in resolver.registry.all("student") if entry.name == kind for task in entry.spec.tasks}
    if len(tasks) == 1:
        return tasks.pop()
    if not any(entry.name == kind for entry in resolver.registry.all("student")):
        raise UsageError(
            f"{text} does not exist: there is no such folder, and no student of that name",
            hint="give a run folder, a model folder, or org/name on a hub; kdhub list students",
        )
    raise UsageError(f"the task of {text} is unknown", hint="name it with --task; kdhub list tasks")


def _here(subject: str | Path, resolver: Resolver) -> Path:
    """The folder of a subject; one of `kdhub list published`, or that was pulled, is the folder it was pulled to."""
    from kdhub.hub.pull import cached
    from kdhub.verbs.pull import pull

    folder, name = Path(subject).expanduser(), str(subject)
    if not folder.exists() and ("published", name) in resolver.catalog:
        return pull(name, catalog=resolver.catalog).folder
    repo, _, revision = name.partition("@")
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and (found := cached(repo, revision or None)):
        return found.folder
    return folder


def adjusted(recipe: Recipe, teacher: str | None, data: Sequence[str], set: Any) -> Recipe:
    """The recipe with another teacher, other data, and `--set` keys."""
    layers = [Layer("recipe", recipe.model_dump(by_alias=True, exclude_unset=True))]
    if teacher is not None:
        layers.append(Layer("--teacher", {"teacher": teacher}))
    if data:
        layers.append(Layer("--data", {"evaluation": {"data": [_data_ref(d) for d in data]}}))
    return build([*layers, *parse_sets(set)])


def _data_ref(text: str) -> dict[str, Any]:
    """`stsb` or `stsb:validation`; a kind with its argument (`jsonl:FILE`) is left as it is."""
    name, colon, split = text.partition(":")
    plain = colon and not name.startswith((".", "/", "~")) and "/" not in split and "." not in split
    from kdhub.plugins.registry import Registry

    if plain and name not in {e.name for e in Registry().all("dataset") if e.spec.argument}:
        return {"source": name, "split": split}
    return {"source": text}


def _cost(recipe: Recipe, task: Any, evaluator: Evaluator, student: Any) -> list[Any]:
    """Costs of a loaded student need a folder: it is saved to a temporary one."""
    import tempfile

    from kdhub.evaluation import cost
    from kdhub.training import members

    with tempfile.TemporaryDirectory() as folder:
        student.save(Path(folder))
        if not student.answers:
            return cost.of_files(student, Path(folder), {})
        data, split = evaluator.data[0]
        rows = task.sample(data, split, COST_ROWS)
        subjects = [*cost_subjects(recipe, Path(folder)), *members.subjects(student, Path(folder))]
        timed = members.by_the_clock(cost.measure(recipe.task, subjects, rows))
        return [*members.counted(task, student, rows, None), *timed]
