"""`kdhub.evaluate`: score a run, a student folder, or any model, with the run's data or other data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdhub._files import write_json
from kdhub.errors import UsageError
from kdhub.evaluation import Evaluator, encoder_of, stored_encoder
from kdhub.recipe import Layer, Recipe, build, parse_set
from kdhub.report import Report
from kdhub.resolve import Resolver
from kdhub.run import Run
from kdhub.stored import measured_signals
from kdhub.verbs.chain import unchained
from kdhub.verbs.distill import COST_ROWS
from kdhub.verbs.session import cost_subjects


def evaluate(
    subject: str | Path,
    *,
    teacher: str | None = None,
    data: str | Sequence[str] | None = None,
    task: str | None = None,
    cost: bool = False,
    set: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    resolver: Resolver | None = None,
) -> Report:
    """Score a student again.

    Args:
        subject: a run folder, a student folder, a student that was pulled or is in `kdhub list published`, or a
            student source (`hf:org/name`, `org/name`, `path:...`).
        teacher: to compare with; a run brings its own.
        data: names of data sets, `name` or `name:split`; a run brings its own.
        task: when the subject does not say (text-embedding by the folder's format).
        cost: measure size, speed and memory as well.
        set: recipe keys, as in `distill` (`evaluation.options.noise=[0.9]`).
        out: write `report.json` here as well.

    Raises:
        UsageError: neither a run nor data to score on.
    """
    resolver = resolver or Resolver()
    recipe, student = _subject(subject, task, resolver)
    recipe = _with(recipe, teacher, [data] if isinstance(data, str) else data, set)
    recipe, _ = unchained(recipe, resolver)
    task_object = resolver.task(recipe.task)
    options = resolver.evaluation_options(task_object, recipe)
    evaluator = Evaluator(task_object, resolver, recipe.evaluation, options, recipe.on_bad_rows)
    report, against = Report(), None
    model = resolver.teacher(recipe.teacher, recipe.task) if recipe.teacher is not None else None
    loaded = student(model)
    if model is not None and not task_object.mismatch(loaded, model):
        against = stored_encoder(
            partial(measured_signals, model, dtype=recipe.signals.dtype), task_object.preparer(None, model)
        )
        report.measures += evaluator.measure("teacher", against)
    report.measures += evaluator.measure("student", encoder_of(loaded, task_object.preparer(loaded, None)), against)
    report.notes += evaluator.notes
    report.facts = {"primary": dict(task_object.primary)}
    if cost and evaluator.data:
        report.measures += _cost(recipe, task_object, evaluator, loaded)
    if out is not None:
        write_json(Path(out), report.to_dict())
    return report


def _subject(subject: str | Path, task: str | None, resolver: Resolver) -> tuple[Recipe, Any]:
    """The recipe to score by, and a function teacher -> student."""
    from kdhub.hub import manifest
    from kdhub.hub.files import MANIFEST
    from kdhub.student import BuildContext
    from kdhub.verbs.load import guess_task, load

    folder = _here(subject, resolver)
    if (folder / MANIFEST).is_file():
        # Its recipe is a stranger's: the task is all that is taken from it.
        name = manifest.read(folder / MANIFEST, str(subject)).task
        bare = Recipe(task=name, method="none", student={"source": f"path:{folder}"})
        return bare, lambda teacher: load(folder, resolver=resolver)
    if folder.is_dir() and not str(subject).startswith("path:"):
        run_folder = next((f for f in (folder, folder.parent) if (f / "recipe.yaml").is_file()), None)
        if run_folder is not None:
            run = Run.open(run_folder)
            return run.recipe, lambda teacher: load(folder, resolver=resolver)
        name = task or guess_task(folder)
        bare = Recipe(task=name, method="none", student={"source": f"path:{folder}"})
        return bare, lambda teacher: resolver.task(name).load(folder)
    name = task or "text-embedding"
    bare = Recipe(task=name, method="none", student={"source": str(subject)})
    context = lambda teacher: BuildContext(resolver.task(name), None, 0)  # noqa: E731
    return bare, lambda teacher: resolver.student(bare.student, context(teacher))


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


def _with(recipe: Recipe, teacher: str | None, data: Sequence[str] | None, set: Any) -> Recipe:
    """The recipe with another teacher, other data, and `--set` keys."""
    layers = [Layer("recipe", recipe.model_dump(by_alias=True, exclude_unset=True))]
    if teacher is not None:
        layers.append(Layer("--teacher", {"teacher": teacher}))
    if data:
        layers.append(Layer("--data", {"evaluation": {"data": [_data_ref(d) for d in data]}}))
    texts = [f"{k}={v}" for k, v in set.items()] if isinstance(set, Mapping) else set
    recipe = build([*layers, *(parse_set(text) for text in texts)])
    if not recipe.evaluation.data:
        raise UsageError("there is nothing to score on", hint="name a data set with --data, e.g. --data stsb")
    return recipe


def _data_ref(text: str) -> dict[str, Any]:
    """`stsb` or `stsb:validation`; a kind with its argument (`jsonl:FILE`) is left as it is."""
    name, colon, split = text.partition(":")
    plain = colon and not name.startswith((".", "/", "~")) and "/" not in split and "." not in split
    from kdhub.registry import Registry

    if plain and name not in {e.name for e in Registry().all("dataset") if e.spec.argument}:
        return {"source": name, "split": split}
    return {"source": text}


def _cost(recipe: Recipe, task: Any, evaluator: Evaluator, student: Any) -> list[Any]:
    """Costs of a loaded student need a folder: it is saved to a temporary one."""
    import tempfile

    from kdhub import cost

    data, split = evaluator.data[0]
    with tempfile.TemporaryDirectory() as folder:
        student.save(Path(folder))
        subjects = cost_subjects(recipe, Path(folder))
        return cost.measure(recipe.task, task.primary_signal, subjects, task.sample(data, split, COST_ROWS))
