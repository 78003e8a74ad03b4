"""Checks of tasks, and of what their models do with rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import numpy as np

from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.dataset_student import DatasetStudent
from kdhub.evaluation.evaluator import Evaluator, student_encoder
from kdhub.evaluation.report import BEFORE, STUDENT, TEACHER
from kdhub.pictures import problems
from kdhub.ranks import device
from kdhub.recipes.folders import tasks_of
from kdhub.recipes.recipe import Ref
from kdhub.task import NetworkTask, Task
from kdhub.testing._bench import Bench
from kdhub.testing._register import check, describe_options
from kdhub.testing._tried import (
    context_of,
    examples_of,
    same_alone,
    same_in_a_batch,
    start_of,
    world_of,
)


@check("task")
def task_is_whole(bench: Bench) -> None:
    """Its name is the spec's, and each primary metric is registered for it."""
    assert bench.target.name == bench.entry.name, f"the class calls itself {bench.target.name!r}"
    known = {e.name for e in bench.registry.all("metric", bench.entry.name)}
    missing = set(bench.target.primary.values()) - known
    assert not missing, f"no metric is called {', '.join(sorted(missing))}"
    if issubclass(bench.target, NetworkTask):
        assert bench.target.primary_signal in bench.spec.signals, "its primary signal is not among those of its spec"


@check("task")
def traits_are_true(bench: Bench) -> None:
    """With the trait `classes`, the training loss of any soft target can be computed: a batch has `labels`, `logits`
    have a row for each of them, and `counts` says how many there are. With the trait `rows`, students are rows."""
    if not {"classes", "rows"} & set(bench.spec.traits):
        raise SkipTest("it has neither the trait classes nor the trait rows")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    student = start_of(resolver, task, recipe, parts)
    if "rows" in bench.spec.traits:
        assert isinstance(student, DatasetStudent), f"its student is a {type(student).__name__}, not a DatasetStudent"
        return
    batch = task.collate(examples_of(task, parts, student, None), student)
    where = device()
    moved = {name: value.to(where) if hasattr(value, "to") else value for name, value in batch.items()}
    logits = task.forward(student.module.to(where), moved).logits
    assert len(batch["labels"]) == len(logits), f"{len(batch['labels'])} labels for {len(logits)} rows of logits"
    counts = task.counts(batch)
    assert counts.get("positions") == len(logits), f"counts says {counts.get('positions')} positions, not {len(logits)}"
    labelled = int((batch["labels"] >= 0).sum())
    assert counts.get("labels") == labelled, f"counts says {counts.get('labels')} labels, not {labelled}"


@check("task")
def models_do_not_see_the_batch(bench: Bench) -> None:
    """So do the student and the teacher of its tiny recipe."""
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    if not isinstance(task, NetworkTask):
        raise SkipTest("its models are not networks")
    student = start_of(resolver, task, recipe, parts)
    rows = examples_of(task, parts, student, None)
    same_alone(student, rows, task.primary_signal)
    same_in_a_batch(task, student, rows)
    if recipe.teacher is not None:
        teacher = resolver.teacher(recipe.teacher, task.name)
        same_alone(teacher, examples_of(task, parts, None, teacher), task.primary_signal)


@check("task")
def texts_end_where_the_model_says(bench: Bench) -> None:
    """Where models write texts: one more end token in a teacher's `generation_config.json` ends them, and is no part of
    them."""
    if "text" not in bench.spec.writes:
        raise SkipTest("its models write no texts")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    folder = bench.empty_folder() / "teacher"
    shutil.copytree(resolver.teacher(recipe.teacher, task.name).folder, folder)

    def written() -> tuple[Any, list[tuple[str, bool]]]:
        teacher = resolver.teacher(Ref(source=f"path:{folder}"), task.name)
        return teacher.tokenizer, _texts(task, parts, teacher)[0]

    tokenizer, before = written()
    tokens = {c: tokenizer(c, add_special_tokens=False)["input_ids"] for text, _ in before for c in text if c.isalnum()}
    letter, (end,) = next((c, ids) for c, ids in tokens.items() if len(ids) == 1)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    ends = np.atleast_1d(settings.get("eos_token_id") or []).astype(int).tolist()
    file.write_text(json.dumps({**settings, "eos_token_id": [*ends, end]}))
    for (whole, _), (text, ended) in zip(before, written()[1]):
        if letter in whole:
            assert (text, ended) == (whole.partition(letter)[0], True), f"{whole!r} goes on after its end {letter!r}"


@check("task")
def texts_keep_to_their_settings(bench: Bench) -> None:
    """Where models write texts: a stop sequence ends a text and is no part of it; log-probabilities are those of its
    tokens, and asking for them changes no text."""
    if "text" not in bench.spec.writes:
        raise SkipTest("its models write no texts")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    teacher = resolver.teacher(recipe.teacher, task.name)
    before, _ = _texts(task, parts, teacher)
    stop = next(c for text, _ in before for c in text[1:] if c.isalnum())
    for (whole, _), (text, ended) in zip(before, _texts(task, parts, teacher, stop=[stop])[0]):
        if stop in whole:
            assert (text, ended) == (whole.partition(stop)[0], True), f"{whole!r} goes on after the stop {stop!r}"
    again, given = _texts(task, parts, teacher, log_probs=True)
    assert again == before, "with log-probabilities there are other texts"
    for (text, _), log_probs in zip(before, given["log_probs"]):
        assert len(log_probs) >= bool(text) and (np.asarray(log_probs) <= 0).all(), f"{text!r} has {log_probs}"


def _texts(task: Any, parts: Any, teacher: Any, **how: Any) -> tuple[list[tuple[str, bool]], dict[str, Any]]:
    """What a teacher writes to the rows of the tiny recipe, with whether it was ended, and the signal itself."""
    settings = {"max_new_tokens": 8, "temperature": 1, **how}
    given = teacher.signals(examples_of(task, parts, None, teacher, prompts=8), f"text:{json.dumps(settings)}")
    texts = [bytes(text).decode(errors="replace") for text in given["text"]]
    return list(zip(texts, map(bool, given["ended"]))), given


@check("task")
def names_decide_classes(bench: Bench) -> None:
    """With the trait `named-classes`, rows score alike whether their labels are texts, or numbers of a file that lists
    the names in another order than the model."""
    import datasets

    if "named-classes" not in bench.spec.traits:
        raise SkipTest("it does not have the trait named-classes")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    student = start_of(resolver, task, recipe, parts)
    evaluator = Evaluator(task, resolver, recipe.evaluation, resolver.evaluation_options(task, recipe))
    metrics = [
        e for e in bench.registry.all("metric", bench.entry.name) if not (e.spec.fidelity or e.spec.rows or e.spec.cost)
    ]
    for data, split in evaluator.data:
        rows, known, names = list(named_rows(data.split(split))), set(student.classes), student.classes[::-1]
        column = next((c for c in rows[0] if all(_names(row[c]) <= known for row in rows)), None)
        assert column, f"no column of the tiny recipe has labels among the classes {', '.join(student.classes[:6])}"
        kind, found = datasets.ClassLabel(names=names), []
        for of, value in ((datasets.Value("string"), str), (kind, kind.str2int)):
            given = [{**row, column: _each(row[column], lambda label, value=value: value(str(label)))} for row in rows]
            features = data.split(split).features.copy()
            features[column] = datasets.List(of) if isinstance(rows[0][column], list) else of
            made = datasets.Dataset.from_list(given, features=features)
            outputs = task.outputs(student_encoder(task, student), Data.from_dataset("rows", {split: made}), split)
            found.append({entry.name: bench.registry.load(entry)(outputs) for entry in metrics})
        assert found[0] == found[1], f"as texts the rows score {found[0]}, as numbers with names {found[1]}"


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A label, or each of a list, changed."""
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def _names(value: Any) -> set[str]:
    return set(map(str, value)) if isinstance(value, list) else {str(value)}


@check("task")
def saved_students_are_recognised(bench: Bench) -> None:
    """A bare folder of one of its students is opened by its own format, or is one of several that it might be."""
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    if recipe.student is None:
        raise SkipTest("the tiny recipe names no student")
    folder = bench.empty_folder()
    start_of(resolver, task, recipe, parts).save(folder)
    sure, possible = tasks_of(folder, bench.registry)
    if not bench.spec.formats and not sure:
        raise SkipTest("its spec names no formats")
    assert bench.entry.name in (*sure, *possible), f"its student looks like one for {', '.join(sure) or 'no task'}"


@check("task")
def opens_the_starts_that_it_names(bench: Bench) -> None:
    """A student of each task in `starts` is one of its own after `open`."""
    if not bench.spec.starts:
        raise SkipTest("it opens students of its own task alone")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    for name in bench.spec.starts:
        folder = bench.empty_folder()
        start_of(*world_of(bench, name)).save(folder)
        student = task.open(folder, context_of(resolver, task, recipe, parts), {"how": name})
        outputs = task.forward(student.module, task.collate(examples_of(task, parts, student, None), student))
        assert student.task == task.name, f"what it opens of {name} is a student for {student.task}"
        assert task.primary_signal in outputs, f"what it opens of {name} gives no {task.primary_signal}"


@check("task")
def shows_its_examples(bench: Bench) -> None:
    """With the trait `shown`, every example is some texts by name."""
    if "shown" not in bench.spec.traits:
        raise SkipTest("it does not have the trait shown")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    for example in examples_of(task, parts, start_of(resolver, task, recipe, parts), None):
        texts = task.shown(example)
        assert texts and all(isinstance(text, str) and text for text in texts.values()), f"it shows {texts}"


@check("task")
def draws_the_first_rows(bench: Bench) -> None:
    """What it draws is the same each time, whichever subjects were measured, within the limits of `kdhub.pictures`, and
    of no more rows than it says."""
    if not bench.target.drawn:
        raise SkipTest("it draws nothing")
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    evaluator = Evaluator(task, resolver, recipe.evaluation, resolver.evaluation_options(task, recipe))
    data, split = evaluator.data[0]
    outputs = task.outputs(student_encoder(task, start_of(resolver, task, recipe, parts)), data, split)
    taken = {name: np.asarray(values) for name, values in task.to_draw(outputs, task.drawn).items()}
    for name, values in taken.items():
        assert values.dtype.kind in "biufSU", f"to_draw gives {name} as {values.dtype}, not as numbers or texts"
        assert len(values) <= task.drawn, f"to_draw gives {len(values)} rows of {name}, and drawn is {task.drawn}"
    for subjects in ([STUDENT], [BEFORE, STUDENT], [TEACHER, BEFORE, STUDENT]):
        once, again = (list(task.draw(data, split, dict.fromkeys(subjects, taken))) for _ in range(2))
        assert once, f"it draws nothing of {', '.join(subjects)}"
        assert not (wrong := problems(once)), "; ".join(wrong)
        assert once == again, f"{once[0].name} is another one when it is drawn again"


@check("task")
def renders_the_same_each_time(bench: Bench) -> None:
    """What `kdhub render` writes of a student, with the defaults of its options, is a picture of a known format, the
    same each time; all options have descriptions."""
    if bench.target.render is Task.render:
        raise SkipTest("it renders nothing")
    undescribed = describe_options(bench.target.RenderOptions)
    assert not undescribed, "; ".join(undescribed)
    resolver, task, recipe, parts = world_of(bench, bench.entry.name)
    student = start_of(resolver, task, recipe, parts)
    once, again = (task.render(student, task.RenderOptions()) for _ in range(2))
    assert not (wrong := problems([once])), "; ".join(wrong)
    assert once == again, f"{once.name} is another one when it is rendered again"


@check("task")
def evaluation_options_are_documented(bench: Bench) -> None:
    problems = describe_options(bench.target.EvaluationOptions)
    assert not problems, "; ".join(problems)


@check("task")
def has_a_tiny_recipe(bench: Bench) -> None:
    """`tiny_recipe` names a student, training rows and data to score on; methods for this task are tried on it."""
    tiny = bench.tiny(bench.entry.name)
    assert tiny is not None, "it has no tiny_recipe(): methods for this task cannot be checked"
    assert tiny.get("student") and tiny.get("data") and tiny.get("evaluation", {}).get("data"), sorted(tiny)
