"""Checks of methods."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import SkipTest
from zlib import crc32

import numpy as np

from kdhub.errors import CompatibilityError, KdhubError, RecipeError, RunError
from kdhub.evaluation.cost import MADE
from kdhub.method import ObjectiveMethod, TrainingOptions
from kdhub.plugins.registry import Entry, Registry
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.recipe import ROLES
from kdhub.specs import MAIN, TeacherSpec
from kdhub.testing._bench import (
    KILLED_AT,
    Bench,
    Killed,
    Trial,
    Watch,
    failed,
    module_state,
    reversed_signals,
)
from kdhub.testing._register import check, describe_options, flat
from kdhub.training.saved import in_float32

MOST_TASKS = 3
"""Other tasks that a method which names traits is tried on."""


@check("method")
def says_what_it_is(bench: Bench) -> None:
    """A summary, the paper or another citation, and a default recipe that can be resolved."""
    spec = bench.spec
    assert spec.summary.strip(), "the spec has no summary"
    assert spec.paper.strip(), "the spec names no paper: a card must say whom to cite"
    if spec.recipe:
        resolve_recipe(method=bench.entry.qualified)


@check("method")
def options_are_documented(bench: Bench) -> None:
    """Every option has a type, a default, a description, and a range where it is a number; others are refused. So are
    the defaults for some tasks, where they do not fit."""
    problems = describe_options(bench.target.Options)
    assert not problems, "; ".join(problems)
    for trait, own in bench.target.defaults_for.items():
        try:
            bench.target.Options(**own)
        except ValueError as error:
            raise AssertionError(f"defaults for {trait}: {error}") from error


@check("method")
def distils(bench: Bench) -> None:
    """The tiny recipe of its task ends with a student, a report and finite losses; the student changed in training."""
    trial = _ran(bench, bench.plain)
    assert (trial.run.folder / "report.json").is_file(), "there is no report"
    assert trial.files, "the student's folder is empty"
    for line in trial.run.metrics():
        assert math.isfinite(line.get("loss", 0.0)), f"step {line.get('step')}: the loss is {line['loss']}"
    if _objective(bench):
        assert list(trial.run.metrics()), "nothing was logged"
        start = module_state(trial.watch.session.build_student().module)[0]
        trained = trial.watch.result.module.state_dict()
        same = [n for n, value in trained.items() if n in start and _equal(value, start[n])]
        assert len(same) < len(trained), "no weight of the student changed"


@check("method")
def asks_a_teacher_that_runs_in_training(bench: Bench) -> None:
    """A method that says itself what its teacher is asked (`ask`) has a live one, and asks it."""
    if not _objective(bench) or bench.target.ask is ObjectiveMethod.ask:
        raise SkipTest("its teacher, if it has one, is asked about the batch")
    assert any(role.live for role in bench.spec.teachers.values()), (
        "it overrides `ask`, which stored signals never call: its spec must say live=True"
    )
    calls = _ran(bench, bench.plain).run.provenance["training"]["live_teacher_calls"]
    assert calls, "it never asks its teacher"


@check("method")
def works_for_every_task_it_names(bench: Bench) -> None:
    """So do the tiny recipes of its other tasks: all where it names them, and where traits stand for them some, which
    are others for another method, so that each task is tried with several."""
    bench.base  # noqa: B018
    others = [t for t in bench.task_names if t != bench.task]
    if bench.spec.traits and len(others) > MOST_TASKS:
        first = crc32(bench.spec.name.encode()) % len(others)
        others = [others[(first + n) % len(others)] for n in range(MOST_TASKS)]
    others = [t for t in others if bench.tiny(t) is not None]
    if not others:
        raise SkipTest("it is for one task")
    for task in others:
        recipe = bench.recipe_for(task)
        bench.trial(f"task-{task}", **{k: recipe[k] for k in recipe if k != "method"})
        _ran(bench, bench.trial(f"task-{task}"), f"task {task}")


@check("method")
def unfit_input_is_refused_first(bench: Bench) -> None:
    """A teacher without the signals it needs, and an unknown option, are refused before a model is built."""
    bench.base  # noqa: B018
    try:
        resolve_recipe({**bench.recipe, "options": {"no_such_option": 1}}, resolver=Watch(bench.registry))
    except RecipeError:
        pass
    else:
        raise AssertionError("an unknown option is accepted")
    for role, asked in bench.spec.teachers.items():
        if not asked.needs or (role != MAIN and not _by_role(bench)):
            continue
        given = bench.recipe["teacher"]
        recipe = {**bench.recipe, "teacher": {**given, role: "kdhub-mute:x"} if _by_role(bench) else "kdhub-mute:x"}
        try:
            resolve_recipe(recipe, resolver=Watch(_WithMute(bench.registry.plugins)))
        except CompatibilityError:
            continue
        raise AssertionError(f"a {role} without {', '.join(asked.needs)} is accepted")


@check("method")
def teachers_are_known_by_their_roles(bench: Bench) -> None:
    """A recipe that lacks a role, or has one that the method does not know, is refused by its name; each teacher stands
    in the provenance with its role and what it is."""
    if not _by_role(bench):
        raise SkipTest("it is tried with one teacher")
    given = bench.recipe["teacher"]
    roles = [name for name in given if name != "source"]
    wrong = {f"{name}x": {**given, f"{name}x": given[name]} for name in roles[:1]}
    wrong |= {n: {k: v for k, v in given.items() if k != n} for n in roles if not bench.spec.teachers[n].optional}
    for name, teacher in wrong.items():
        try:
            resolve_recipe({**bench.recipe, "teacher": teacher}, resolver=Watch(bench.registry))
        except CompatibilityError as error:
            assert name == MAIN or repr(name) in error.message, f"the error does not name the role {name}: {error}"
        else:
            raise AssertionError(f"teachers {', '.join(teacher)} are accepted, and {name} is missing or unknown")
    members = {one["role"]: one for one in bench.base.run.provenance["teacher"]["members"]}
    for name in roles:
        assert members.get(name, {}).keys() - {"role"}, f"the provenance does not say what the teacher {name} is"


@check("method")
def teacher_is_untouched(bench: Bench) -> None:
    """The teacher's weights, mode and gradients are as they were."""
    found = [(t, before) for t, before in bench.base.watch.teachers if before is not None]
    if not found:
        raise SkipTest("it has no teacher, or one that is not a network")
    for teacher, (weights, training, trainable) in found:
        now = teacher.module.state_dict()
        moved = [name for name, value in weights.items() if not _equal(value, now[name])]
        assert not moved, f"the teacher's weights were changed: {', '.join(moved[:3])}"
        assert teacher.module.training == training, "the teacher's mode was changed"
        parameters = dict(teacher.module.named_parameters())
        left = [name for name, p in parameters.items() if p.grad is not None]
        assert not left, f"gradients reached the teacher: {', '.join(left[:3])}"
        assert {n: p.requires_grad for n, p in parameters.items()} == trainable, "requires_grad was changed"


@check("method")
def trains_the_student_and_its_extras_only(bench: Bench) -> None:
    """What gradients reach is the student or a declared extra: anything else is neither trained nor checkpointed."""
    if not _objective(bench):
        raise SkipTest("it is not trained by the engine")
    watch = bench.base.watch
    known = {id(p) for p in watch.result.module.parameters()}
    known |= {id(p) for module in watch.extras.values() for p in module.parameters()}
    known |= {id(p) for t, state in watch.teachers if state for p in t.module.parameters()}
    for name, parameter in _held(watch.used):
        if id(parameter) not in known:
            assert parameter.grad is None, (
                f"gradients reach {name}, which is neither the student's nor an extra; return it from extras()"
            )


@check("method")
def equal_seeds_give_equal_students(bench: Bench) -> None:
    """A second run under the same seed gives the same files, whatever the global random states were before."""
    alone = _ran(bench, bench.unscored)
    if not bench.base.difference(alone):
        return  # two runs under one seed are there already; only where they differ a third one tells why
    again = _ran(bench, bench.trial("again", evaluation={"data": []}))
    different = alone.difference(again)
    assert not different, f"two runs under one seed differ in {different}"


@check("method")
def another_seed_gives_another_student(bench: Bench) -> None:
    """The seed reaches the order of the rows and whatever is random."""
    if not _objective(bench):
        raise SkipTest("it is not trained by the engine, and may have nothing random")
    other = _ran(bench, bench.trial("other-seed", evaluation={"data": []}, seed=bench.recipe.get("seed", 0) + 1))
    assert bench.unscored.difference(other), "another seed gives the same student: the seed is ignored"


@check("method")
def resume_is_exact(bench: Bench) -> None:
    """A run that is broken off and resumed ends with the same student: extras, states and optimiser came back."""
    undisturbed, (broken, _) = bench.unscored, _broken(bench)
    resumed = _ran(bench, bench.resumed(broken), "resumed")
    if _objective(bench):
        steps = [(line.get("fit", 1), line["step"]) for line in resumed.run.metrics()]  # of each training
        assert steps == sorted(set(steps)), f"steps stand twice in metrics.jsonl: {steps}"
    different = undisturbed.difference(resumed)
    assert not different, f"a resumed run differs from an undisturbed one in {different}: is there state or a module "\
        "that a checkpoint does not keep (state(), extras())?"  # fmt: skip


@check("method")
def resume_is_refused_after_a_change(bench: Bench) -> None:
    """A broken-off run does not go on with another recipe than it began with, and says what is another."""
    _, folder = _broken(bench)
    path = folder / "recipe.yaml"
    path.write_text(re.sub(r"(?m)^seed:.*\n", "", path.read_text()) + "seed: 4321\n")
    watch = Watch(bench.registry)
    error = bench.resumed_at(folder, watch).error
    assert isinstance(error, RunError) and "seed" in str(error), f"with another seed it goes on or fails of {error}"
    assert watch.used is None, "the method was run before the change was seen"


@check("method")
def a_batch_in_parts_is_the_same_batch(bench: Bench) -> None:
    """Four accumulated batches of 2 rows of unequal length have the losses of one of 8: means are over the optimiser
    step (`step_count`). Not asked of a method that says why its loss is of batches (`batchwise`)."""
    if not _objective(bench):
        raise SkipTest("it is not trained by the engine")
    if why := bench.base.watch.used.batchwise:
        raise SkipTest(f"its loss is of batches: {why}")
    of_words = [e.name for e in bench.registry.all("task") if "words" in e.spec.traits and e.name in bench.task_names]
    recipe = bench.recipe_for(next((t for t in of_words if bench.tiny(t) is not None), bench.task))
    del recipe["method"]
    settings = {"batch_size": 8, "max_steps": 3, "group_by_length": False, "dropout": 0.0, "grad_clip": 0.0}
    losses = {}
    for parts in (1, 4):
        options = {**recipe["options"], **settings, "accumulate": parts}
        trial = bench.trial(f"in-{parts}", **{**recipe, "evaluation": {"data": []}, "options": options})
        losses[parts] = [line["terms"] for line in _ran(bench, trial).run.metrics() if "terms" in line]
    for step, (whole, parts) in enumerate(zip(losses[1], losses[4]), 1):
        for name, value in whole.items():
            assert math.isclose(value, parts[name], rel_tol=2e-4, abs_tol=2e-6), (
                f"step {step}: loss term {name!r} is {value:.6g} for a batch of 8 rows, {parts[name]:.6g} for the same "
                "in four: a mean over what batches have not alike is values.sum() / step_count(batch, unit)"
            )


@check("method")
def uses_the_signals_it_asks_for(bench: Bench) -> None:
    """With other teacher signals of each kind it needs, another student comes out."""
    roles = bench.spec.teachers
    named = [n for n in bench.recipe["teacher"] if n != "source"] if _by_role(bench) else [MAIN]
    asked = [(role, kind) for role in named if role in roles for kind in roles[role].needs]
    if not asked:
        raise SkipTest("it needs no signals")
    for role, kind in asked:
        watch, of = Watch(bench.registry), "" if role == MAIN else f" of its {role}"

        def reverse(teacher: Any, role: str = role, kind: str = kind, watch: Watch = watch) -> None:
            if len(watch.teachers) == named.index(role):  # they are made in the order of the recipe
                reversed_signals(teacher, kind)

        watch.changes["teacher"] = reverse
        other = bench.trial(f"reversed-{role}-{kind}", watch=watch, evaluation={"data": []})
        if other.error is None:
            assert bench.unscored.difference(other), f"it needs {kind}{of} and does not use it"


@check("method")
def trains_on_training_rows_only(bench: Bench) -> None:
    """The student does not depend on evaluation data, and no split is read in training but those the recipe names."""
    alone, base = _ran(bench, bench.unscored), bench.base
    different = base.difference(alone)
    assert not different, f"without evaluation data another student comes out ({different}): test rows were used"
    read = _splits_read(alone)
    assert not read, f"it reads {', '.join(read)}, which the recipe does not train on"


@check("method")
def evaluation_is_complete_and_true(bench: Bench) -> None:
    """The report has teacher, start and student, and the scores of teacher and student are found again from the saved
    student. One that is not run, as rows are, has a measure of its own files and a cost."""
    from kdhub.evaluation.report import Report
    from kdhub.verbs.evaluate import evaluate

    trial = bench.base
    report = Report.from_dict(trial.run.report)
    session, student = trial.watch.session, trial.watch.result
    primary = set(session.task.primary.values())
    scores = {(m.subject, m.dataset, m.split, m.metric): m.value for m in report.measures if not m.variant}
    again = evaluate(trial.run.folder, resolver=Watch(bench.registry))
    if not student.answers:
        of_student = {k for k, value in scores.items() if k[0] == "student" and k[1] is not None and value is not None}
        assert of_student, "the report has no measure of the student (MetricSpec.files)"
        lost = of_student - {(m.subject, m.dataset, m.split, m.metric) for m in again.measures}
        assert not lost, f"the saved student gives no {', '.join(sorted(key[3] for key in lost))}"
        costs = student.costs(trial.run.student_folder)
        assert costs and costs.keys() <= MADE.keys(), f"its costs are {sorted(costs)}, known are {sorted(MADE)}"
    else:
        measured = MAIN in session.recipe.teachers and not session.task.mismatch(student, session.teacher)
        subjects = {"student", "student-before", *(["teacher"] if measured else [])}
        for subject in sorted(subjects):
            assert any(key[0] == subject and key[3] in primary for key in scores), (
                f"the report has no score of {subject}"
            )
    for m in again.measures:
        key = (m.subject, m.dataset, m.split, m.metric)
        if m.value is None or not math.isfinite(m.value) or m.variant or key not in scores:
            continue
        reported = scores[key]
        assert reported is not None and math.isclose(reported, m.value, rel_tol=1e-5, abs_tol=1e-6), (
            f"the report says {m.metric} of {m.subject} is {reported}; the saved student gives {m.value:.4g}"
        )


@check("method")
def saves_and_loads_to_the_same_output(bench: Bench) -> None:
    """The loaded student gives what the trained one gave; one that is no model saves to the same files again."""
    trial = bench.base
    task, student = trial.watch.session.task, trial.watch.result
    loaded = task.load(trial.run.student_folder)
    if student.module is None:
        again = bench.empty_folder()
        loaded.save(again)
        now = {str(p.relative_to(again)): p.read_bytes() for p in sorted(again.rglob("*")) if p.is_file()}
        assert now == trial.files, "saved, loaded and saved again, the student is another"
        return
    rows = trial.watch.session.rows("train", **_settings(trial))
    some = rows[np.arange(min(len(rows), 8))]
    kind = task.primary_signal
    with in_float32(student.module), in_float32(loaded.module):  # one that was saved in half precision is in it
        mine, theirs = (one.signals(some, kind) for one in (student, loaded))
    for name, values in mine.items():
        worst = float(np.abs(flat(values) - flat(theirs[name])).max())
        assert worst < 1e-5, f"{name} of the loaded student is {worst:.2g} from the trained one's"


@check("method")
def rows_open_without_kdhub(bench: Bench) -> None:
    """A student of the kind `dataset` is a folder that `datasets.load_dataset` opens: its splits, with all their rows,
    as its card names them."""
    student, folder = bench.base.watch.result, bench.base.run.student_folder
    if student.kind != "dataset":
        raise SkipTest("its student is a model")
    code = "import datasets, json, sys; rows = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2]); "
    code += "print(json.dumps({name: len(split) for name, split in rows.items()}))"
    done = bench.group.child("-c", code, str(folder), str(bench.empty_folder()))
    assert done.returncode == 0, f"load_dataset does not open it: {done.stderr.strip().splitlines()[-1]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(found.values()) == student.costs(folder).get("rows"), f"load_dataset finds the rows {found}"
    named = [f["split"] for c in student.front_matter().get("configs", ()) for f in c["data_files"]]
    assert sorted(named) == sorted(found), f"the card names the splits {named}, load_dataset finds {sorted(found)}"


@check("method")
def card_is_complete(bench: Bench) -> None:
    """The card passes its own check and cites the paper. (Tiny teachers have no licence; that is for publishing.)"""
    from kdhub.evaluation.card_check import check_card

    trial = bench.base
    text = (trial.run.folder / "README.md").read_text(encoding="utf-8")
    problems = [p for p in check_card(text) if "licen" not in p.lower()]
    assert not problems, "; ".join(problems)
    paper = bench.spec.paper.removeprefix("arXiv:")
    assert paper in text, f"the card does not cite {bench.spec.paper}"


@check("method")
def leaves_no_files_behind(bench: Bench) -> None:
    """What a run writes is in its folder or in kdhub's home."""
    ours = [bench.base.run.folder, bench.group.folder / "home"]
    left = {p for p in (bench.folder / "here").rglob("*") if p.is_file()}
    left |= {p for p in bench.base.written if p.is_file() and not any(p.is_relative_to(o) for o in ours)}
    left = {p for p in left if not _is_cache(p)}
    assert not left, f"it leaves {', '.join(str(p) for p in sorted(left)[:3])}"


@check("method")
def a_nan_stops_it(bench: Bench) -> None:
    """With a loss, or a student, that is not a number the run ends with an error and without a student."""
    spoil = {"method": _poison} if _objective(bench) else {"student": _spoil}
    base = bench.base.watch
    if not _objective(bench) and None in (base.result.module, base.session.build_student().module):
        raise SkipTest("its student is not a network, or does not begin as one")
    trial = bench.trial("nan", watch=Watch(bench.registry, **spoil), evaluation={"data": []})
    assert trial.error is not None, "it trains on with NaN or infinite values"
    assert isinstance(trial.error, KdhubError), f"it fails unclearly: {failed(trial.error)}"
    folder = bench.folder / "nan" / "student"
    assert not folder.exists(), "a student of NaN was saved"


@check("method")
def works_under_two_processes(bench: Bench) -> None:
    """Under `torchrun` with two processes it ends, in as many steps, with finite losses."""
    bench.base  # noqa: B018
    folder = bench.two_processes()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] \
        if (folder / "metrics.jsonl").exists() else []  # fmt: skip
    assert [line.get("step") for line in lines] == [line.get("step") for line in bench.base.run.metrics()]
    assert all(math.isfinite(line.get("loss", 0.0)) for line in lines)


# -- what they share ------------------------------------------------------------------------------------------


class _WithMute(Registry):
    """The registry and a teacher that gives nothing."""

    def find(self, kind: str, name: str, task: str | None = None) -> Entry:
        if (kind, name) != ("teacher", "kdhub-mute"):
            return super().find(kind, name, task)
        spec = TeacherSpec(name=name, target="kdhub.testing._bench:Mute", argument="X", live=True)
        return Entry(spec, "kdhub", "")


def _objective(bench: Bench) -> bool:
    return issubclass(bench.target, ObjectiveMethod) and issubclass(bench.target.Options, TrainingOptions)


def _by_role(bench: Bench) -> bool:
    """Whether it is tried with teachers that have roles."""
    teacher = bench.recipe.get("teacher")
    return isinstance(teacher, dict) and teacher["source"] == ROLES


def _ran(bench: Bench, trial: Trial, what: str = "") -> Trial:
    if trial.error is not None:
        raise AssertionError(f"{what} {failed(trial.error)}".strip()) from trial.error
    return trial


def _settings(trial: Trial) -> dict[str, Any]:
    return trial.watch.used.settings() if hasattr(trial.watch.used, "settings") else {}


def _broken(bench: Bench) -> tuple[Trial, Path]:
    """A run that was broken off, and a copy of its folder that nobody has resumed."""
    bench.unscored  # noqa: B018 - first: it makes the recipes that this one stands on, or one of them is broken off
    broken = bench.trial("broken", watch=Watch(bench.registry, method=_kill), evaluation={"data": []})
    if broken.error is None and not _objective(bench):
        raise SkipTest("it has no stages: broken off, it begins again")
    assert broken.error is not None, "it swallows what breaks it off"
    assert isinstance(broken.error, Killed), f"broken off, it fails of something else: {failed(broken.error)}"
    copy = bench.folder / "broken-copy"
    if not copy.exists():
        shutil.copytree(broken.run.folder, copy, ignore=shutil.ignore_patterns("checkpoints"))
    return broken, copy


def _kill(method: Any, session: Any) -> None:
    """Break it off: in training at a step, in stages after the first."""
    if isinstance(method, ObjectiveMethod):
        own = method.objective

        def objective(student: Any, teacher: Any, batch: Any, progress: Any) -> Any:
            if progress.step == KILLED_AT:
                raise Killed
            return own(student, teacher, batch, progress)

        method.objective = objective
    stage = session.stage

    def killing(name: str, work: Any) -> Any:
        result = stage(name, work)
        raise Killed(str(result)[:80])

    session.stage = killing


def _poison(method: Any, session: Any) -> None:
    own = method.objective

    def objective(student: Any, teacher: Any, batch: Any, progress: Any) -> Any:
        terms = own(student, teacher, batch, progress)
        return {n: term * math.nan for n, term in terms.items()} if progress.step == 2 else terms

    method.objective = objective


def _spoil(student: Any) -> None:
    import torch

    if student.module is not None:
        with torch.no_grad():
            next(p for p in student.module.parameters() if p.is_floating_point()).fill_(math.nan)


def _splits_read(trial: Trial) -> list[str]:
    """Splits that a run without evaluation data read beyond those of its recipe's `data`."""
    named = {(d["name"], d["split"]) for d in trial.run.provenance["data"]["use"] if d["use"] != "evaluation"}
    return [f"{name} {split}" for name, split in sorted(trial.read - named)]


def _held(method: Any) -> list[tuple[str, Any]]:
    """Parameters that a method object holds, with where."""
    from torch import nn

    found: list[tuple[str, Any]] = []
    for name, value in vars(method).items():
        if isinstance(value, nn.Parameter):
            found.append((f"self.{name}", value))
        modules = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        for module in modules:
            if isinstance(module, nn.Module):
                found += [(f"self.{name}.{inner}", p) for inner, p in module.named_parameters()]
    return found


def _equal(a: Any, b: Any) -> bool:
    import torch

    return torch.equal(a.cpu(), b.cpu())


def _is_cache(path: Any) -> bool:
    """Caches of Python and of libraries, which a first import fills."""
    caches = ("__pycache__", ".cache", "matplotlib", "fontconfig", "torchinductor")
    return any(part.startswith(caches) for part in path.parts)
