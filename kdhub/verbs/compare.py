"""`kdhub.compare`: several methods on equal terms, from one store of teacher outputs, over seeds."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any

import yaml

from kdhub.comparison.comparison import Budget, Cell, Comparison, Result, cell_folder, read_comparison, values_of
from kdhub.errors import KdhubError, RecipeError, RunError, UsageError
from kdhub.evaluation.report import STUDENT, Report
from kdhub.files import atomic_write, write_json
from kdhub.method import TrainingOptions
from kdhub.plain_yaml import plain_yaml
from kdhub.recipes import chain
from kdhub.recipes.layers import recipe_layer
from kdhub.recipes.recipe import Layer, Recipe, build, combine, merge, parse_set, parse_sets, read_yaml
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run, environment
from kdhub.secrets import Formatter
from kdhub.training.execute import execute, unchained

logger = logging.getLogger("kdhub")

PLAN, RESULT = "comparison.yaml", "comparison.json"
PROBE_STEPS = 24
CURVE = 12
"""How often a student is measured while it learns."""
WORKER_BYTES = 2 * 2**30
"""Memory assumed for each worker."""


def compare(
    comparison: str | Path | Mapping[str, Any] | None = None,
    *,
    methods: Sequence[str] | str | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] | None = None,
    budget: str | None = None,
    metric: str | None = None,
    reference: str | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    jobs: int | None = None,
    record: str | Path | None = None,
    page: bool = False,
    resolver: Resolver | None = None,
) -> Result:
    """Run several methods on equal terms: start, order of rows, updates and arithmetic are the same under one seed.

    Args:
        comparison: a catalogue name, a YAML file, or a mapping; or `methods` and `recipe`.
        methods: names, as a list or with commas; the baseline method is added where the data have labels.
        recipe: what they share; its teacher, student, data, evaluation and training options.
        seeds: a list, or how many from 0.
        budget: of each training: `300steps`, `20000examples` or `60s`, the last by the speed of a short probe.
        metric: what is compared; the task's first one by default.
        reference: the arm others are compared with; the baseline, else the first.
        set: recipe keys for all arms.
        out: a folder, new or empty; `comparisons/<name>-<date>` by default.
        resume: the folder of a comparison that was interrupted or had failures: finished cells are kept.
        jobs: processes; by default one a core, without a GPU, as far as memory reaches.
        page: also write `page.html`, one file with tables and plots that needs no network (`kdhub[page]`).
        record: a ledger's folder, where what came out of the comparison's claims is written.

    Returns:
        What came out; `comparison.json`, table and plots are in the folder.

    Raises:
        RecipeError, UnknownNameError, CompatibilityError: of any arm, before anything is run.
        RunError: the folder is in use or holds something else.
    """
    resolver = resolver or Resolver()
    told = {"methods": methods, "recipe": recipe, "seeds": seeds, "budget": budget, "metric": metric}
    told |= {"reference": reference, "set": set}
    if resume is not None:
        if comparison or out or any(told.values()):
            raise UsageError("--resume takes everything from the folder; leave out the other options")
        folder = Path(resume)
        plan, before = _kept(folder, jobs)
    else:
        before = {}
        plan = resolve_comparison(comparison, resolver=resolver, **told)
        folder = Path(out) if out else Path("comparisons") / f"{plan.name or 'methods'}-{datetime.now():%Y%m%d-%H%M%S}"
    recipes = cell_recipes(plan, resolver)
    with _locked(folder, new=resume is None):
        result = _run(plan, recipes, folder, {"jobs": jobs or _jobs(len(recipes)), **before}, resolver)
    if page:
        from kdhub.comparison.page import write_page

        write_page(result, folder)
    if record is not None:
        from kdhub.comparison import evidence

        evidence.record(result, Path(record))
    return result


def resolve_comparison(
    comparison: str | Path | Mapping[str, Any] | None = None,
    *,
    methods: Sequence[str] | str | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    resolver: Resolver | None = None,
    **changes: Any,
) -> Comparison:
    """The comparison that `compare` would run, its recipe read; `changes` are seeds, budget, metric and reference."""
    resolver = resolver or Resolver()
    plan = _plan(comparison, methods, recipe, resolver)
    values = plan.model_dump(by_alias=True) | {k: v for k, v in changes.items() if v is not None}
    plan = read_comparison(values, "comparison")
    plan.recipe = _shared(plan.recipe, set, resolver)
    return plan


def _plan(comparison: Any, methods: Any, recipe: Any, resolver: Resolver) -> Comparison:
    if (comparison is None) == (methods is None):
        raise UsageError(
            "name a comparison, or methods and a recipe",
            hint="kdhub compare --methods NAME,NAME --recipe NAME; kdhub list comparisons shows those there are",
        )
    if comparison is not None:
        if recipe is not None:
            raise UsageError("a comparison has its own recipe", hint="change keys of it with --set")
        if isinstance(comparison, Mapping):
            return read_comparison(comparison, "comparison")
        path = Path(comparison)
        if path.suffix not in (".yaml", ".yml") and "/" not in str(comparison):
            path = resolver.catalog.path("comparisons", str(comparison))
        return read_comparison({"name": path.stem, **read_yaml(path)}, str(path))
    if recipe is None:
        raise UsageError("methods need a recipe to share", hint="--recipe NAME; kdhub list recipes shows what there is")
    names = methods.split(",") if isinstance(methods, str) else list(methods)
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    shared = _shared(recipe, (), resolver)
    baseline = _baseline(shared, resolver)
    if baseline and baseline not in names and _has_labels(shared, baseline, resolver):
        names.append(baseline)
    return read_comparison({"name": shared.get("name", ""), "recipe": shared, "arms": names}, "--methods")


def _baseline(shared: Mapping[str, Any], resolver: Resolver) -> str | None:
    """The method of the task that trains without a teacher and without more than that (`MethodSpec.baseline`)."""
    return next((e.name for e in resolver.registry.all("method", shared.get("task")) if e.spec.baseline), None)


def _has_labels(shared: Mapping[str, Any], baseline: str, resolver: Resolver) -> bool:
    recipe = build([Layer("recipe", {"method": baseline, **shared})])
    refs = recipe.data.get("train", [])
    if not refs:
        return False
    opened = [(resolver.data(ref, recipe.on_bad_rows), ref.split) for ref in refs]
    task = resolver.task(recipe.task)
    return task.labelled(task.training_table([(data, data.pick(split or "train")) for data, split in opened]))


def _shared(recipe: Any, set: Sequence[str] | Mapping[str, Any], resolver: Resolver) -> dict[str, Any]:
    """The keys of the recipe that all arms share."""
    return combine([recipe_layer(recipe, resolver), *parse_sets(set)])


# -- cells ----------------------------------------------------------------------------------------------------


def cell_recipes(plan: Comparison, resolver: Resolver | None = None) -> dict[tuple[str, int], Recipe]:
    """The recipe of each arm and seed, checked.

    An arm of another method than the shared recipe's gets the training options of that one (batch size, epochs,
    learning rate, ...) as far as it has them, and its own defaults for the rest.

    Raises:
        RecipeError: all problems of all arms. UnknownNameError, CompatibilityError: of the first arm that has one.
    """
    resolver = resolver or Resolver()
    recipes, problems = {}, []
    for name, change in plan.arms.items():
        try:
            for seed in plan.seeds:
                recipes[name, seed] = _cell_recipe(plan, name, change, seed, resolver)
        except RecipeError as error:
            problems += [p if p.startswith(f"arm {name}") else f"arm {name}: {p}" for p in error.problems]
    if problems:
        raise RecipeError(problems)
    return recipes


def _cell_recipe(plan: Comparison, name: str, change: Mapping[str, Any], seed: int, resolver: Resolver) -> Recipe:
    shared = dict(plan.recipe)
    shared.pop("summary", None)
    method = change.get("method") or shared.get("method")
    if method is None:
        raise RecipeError(["neither the arm nor the recipe names a method"])
    if method != shared.get("method"):
        shared["options"] = _training_options(shared, str(method), resolver)
        shared["method"] = method
    values = merge(shared, {**change, "seed": seed, "name": f"{plan.name or 'comparison'}-{name}"})
    evaluation = {"cost": False, "curve": CURVE, **values.get("evaluation", {})}
    layers = [Layer(f"arm {name}", {**values, "evaluation": evaluation})]
    layers += [parse_set(f"{key}={seed}") for key in plan.seeded]
    if plan.budget:
        budget, options = Budget.parse(plan.budget), values.get("options", {})
        method_options = resolver.method(build(layers)).options
        if not isinstance(method_options, TrainingOptions):
            raise RecipeError([f"{method} has no optimiser steps that a budget could count"])
        if budget.unit != "s":
            steps = budget.steps(method_options.batch_size)
            layers.append(Layer("budget", {"options": {**options, "max_steps": steps}}))
    recipe = resolver.with_roles(build(layers), others=method != plan.recipe.get("method", method))
    resolver.check(recipe, layers)
    chain.check(recipe, resolver)
    return resolver.completed(recipe)


def _training_options(shared: Mapping[str, Any], method: str, resolver: Resolver) -> dict[str, Any]:
    """What another method than the recipe's takes over from it: how long and how fast, not what is its own."""
    given = dict(shared.get("options") or {})
    common = TrainingOptions.model_fields
    if "method" in shared:
        given = resolver.method(build([Layer("recipe", {"student": "-", **shared})])).options.model_dump()
    entry = resolver.registry.find("method", method, shared.get("task"))
    fields = resolver.registry.load(entry).Options.model_fields
    return {key: value for key, value in given.items() if key in common and key in fields}


@contextmanager
def _locked(folder: Path, *, new: bool) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [p.name for p in folder.iterdir() if p.name != ".lock"]
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
    if new and taken:
        go_on = f"continue it: kdhub compare --resume {folder}" if (folder / PLAN).exists() else "choose another --out"
        raise RunError(f"{folder} is not empty", hint=go_on)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"{folder} is in use by another kdhub job") from None


def _kept(folder: Path, jobs: int | None) -> tuple[Comparison, dict[str, Any]]:
    """The plan of a folder, and how it was begun: `jobs`, as another number of threads is another arithmetic, and
    `timed`, the steps that a budget of seconds came to.

    Raises:
        RunError: there is none. UsageError: other processes are asked for.
    """
    if not (folder / PLAN).is_file():
        raise RunError(f"{folder} holds no comparison: it has no {PLAN}")
    values = read_yaml(folder / PLAN)
    before = {key: values.pop(key) for key in ("jobs", "timed") if key in values}
    if jobs is not None and jobs != before.get("jobs", jobs):
        begun = before["jobs"]
        raise UsageError(f"{folder} was started with {begun} processes", hint=f"--jobs {begun}, or leave it out")
    return read_comparison(values, str(folder / PLAN)), before


def _run(
    plan: Comparison,
    recipes: Mapping[tuple[str, int], Recipe],
    folder: Path,
    begun: dict[str, Any],
    resolver: Resolver,
) -> Result:
    def keep() -> None:
        text = yaml.safe_dump({**plan.to_dict(), **begun}, sort_keys=False, allow_unicode=True, width=100)
        atomic_write(folder / PLAN, text)

    keep()
    began = time.monotonic()
    for recipe in recipes.values():  # what they stand on is made here, before several want it at once
        unchained(recipe, resolver)
    workers = _Workers(begun["jobs"])
    if plan.budget and Budget.parse(plan.budget).unit == "s":
        if "timed" not in begun:
            begun["timed"] = _steps_in_time(plan, recipes, folder, workers)
            keep()
        recipes = {key: _with_steps(recipe, begun["timed"][key[0]]) for key, recipe in recipes.items()}
    # Seed after seed, so that a comparison that is stopped early has compared something.
    todo = sorted(recipes, key=lambda key: plan.seeds.index(key[1]))
    told = _all_cells(workers, {key: (recipes[key].to_yaml(), str(cell_folder(folder, *key))) for key in todo})
    result = _result(plan, {key: told[key] for key in recipes}, recipes, folder, _baseline(plan.recipe, resolver))
    result.environment |= {
        "wall_seconds": round(time.monotonic() - began, 1),
        "jobs": workers.jobs,
        "threads_each": workers.threads,
    }
    write_json(folder / RESULT, result.to_dict())
    from kdhub.comparison.plots import plot_comparison

    plot_comparison(result, folder)
    return result


def _jobs(cells: int) -> int:
    import psutil
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, min(_cores(), cells, psutil.virtual_memory().available // WORKER_BYTES))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    return Recipe.model_validate(merge(recipe.to_dict(), {"options": {"max_steps": steps}}))


def _steps_in_time(
    plan: Comparison, recipes: Mapping[tuple[str, int], Recipe], folder: Path, workers: _Workers
) -> dict[str, int]:
    """How many steps of each arm fit into the time, by a probe of each."""
    budget, probes = Budget.parse(plan.budget), {}
    for name in plan.arms:
        probe = _with_steps(recipes[name, plan.seeds[0]], PROBE_STEPS).to_dict()
        probe = merge(probe, {"evaluation": {"data": [], "curve": 0}})
        probed = cell_folder(folder, name, plan.seeds[0]).parent / "probe"
        shutil.rmtree(probed, ignore_errors=True)
        probes[name, -1] = (Recipe.model_validate(probe).to_yaml(), str(probed))
    found = _all_cells(workers, probes)
    steps = {}
    for name in plan.arms:
        told = found[name, -1]
        if not (seconds := told.get("facts", {}).get("step_seconds")):
            raise UsageError(f"arm {name} cannot be timed: {told.get('error', 'it trains nothing')}")
        steps[name] = budget.steps(1, seconds)
        logger.info("%s: %d steps in %g s", name, steps[name], budget.amount)
    return steps


# -- processes ------------------------------------------------------------------------------------------------


class _Workers:
    """Processes that stay, so that torch is imported once in each; one that dies is replaced."""

    def __init__(self, jobs: int):
        self.jobs, self.threads = jobs, max(1, _cores() // jobs)

    def each(self, work: Mapping[Any, tuple[Any, ...]], done: Callable[[Any, dict[str, Any]], None]) -> None:
        """Call `run_cell` for each; `done` is told, in this thread, with what it gave."""
        todo, told = SimpleQueue(), SimpleQueue()
        for item in work.items():
            todo.put(item)
        stop = threading.Event()
        slots = [threading.Thread(target=self._slot, args=(todo, told, stop), daemon=True) for _ in range(self.jobs)]
        for slot in slots:
            slot.start()
        try:
            for _ in work:
                done(*told.get())
        except BaseException:
            stop.set()
            raise
        finally:
            for slot in slots:
                slot.join()

    def _slot(self, todo: SimpleQueue, told: SimpleQueue, stop: threading.Event) -> None:
        pool = None
        try:
            while not stop.is_set():
                try:
                    key, arguments = todo.get_nowait()
                except Empty:
                    return
                pool = pool or ProcessPoolExecutor(
                    1, _context(), initializer=_begin, initargs=(self.threads, dict(os.environ))
                )
                try:
                    with _without_main():
                        waiting = pool.submit(run_cell, *arguments)
                    while not stop.is_set():
                        try:
                            told.put((key, waiting.result(timeout=0.5)))
                            break
                        except TimeoutError:
                            continue
                except BrokenProcessPool:
                    pool = None
                    error = "its process died: killed, or out of memory? --resume tries it again"
                    told.put((key, {"status": "failed", "error": error}))
        finally:
            if pool is not None:
                if stop.is_set():
                    for process in list(pool._processes.values()):
                        process.terminate()
                pool.shutdown(cancel_futures=True)


_MAIN = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """While a worker is started: it needs nothing of the program that compares, which would otherwise be run again in
    it, down to its own call of `compare`."""
    with _MAIN:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _context() -> Any:
    """How workers are started: forks of one process that has imported what all of them need; where there are no forks,
    or they are not safe, each imports it."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["datasets", "kdhub.training.engine", "kdhub.training.execute"])
    return context


def _begin(threads: int, variables: Mapping[str, str]) -> None:
    """In a new worker."""
    import torch

    os.environ.clear()  # what it was forked from may have been started under others
    os.environ.update(variables)
    torch.set_num_threads(threads)

    def watch() -> None:
        parent_process().join()
        os._exit(1)  # nobody waits for what this one does

    threading.Thread(target=watch, daemon=True).start()


def run_cell(recipe: str, place: str) -> dict[str, Any]:
    """In a worker: one training and its evaluation, begun, continued, or found. Its log is beside its folder."""
    folder = Path(place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = logging.FileHandler(folder.parent / f"{folder.name}.log", encoding="utf-8")
    log.setFormatter(Formatter("%(asctime)s %(message)s"))
    logger.handlers[:], logger.propagate = [log], False
    logger.setLevel(logging.INFO)
    try:
        from kdhub.evaluation.cost import reset_peak_memory

        reset_peak_memory()
        wanted = build([Layer(place, plain_yaml(recipe))])
        if (folder / "recipe.yaml").is_file():
            run = Run.open(folder)
            if run.recipe.to_dict() != wanted.to_dict():
                raise RunError(f"{folder} holds another recipe", hint="choose another folder with --out")
            run.lock()
        else:
            run = Run.create(folder, wanted)
        run = execute(run, Resolver(), page=False)
        return {"status": "done", **_told(run)}
    except KdhubError as error:
        return {"status": "failed", "error": f"{error.message}{f' ({error.hint})' if error.hint else ''}"}
    except Exception as error:
        logger.exception("failed")
        return {"status": "failed", "error": f"{type(error).__name__}: {error}; see {log.baseFilename}"}
    finally:
        logger.handlers[:] = []
        log.close()


def _told(run: Run) -> dict[str, Any]:
    """What a finished run says for the comparison."""
    run.whole_student(told=True)
    report, known = Report.from_dict(run.report), run.provenance
    head = next(iter(report.headline()), None)
    training, student, signals = (known.get(key, {}) for key in ("training", "student", "signals"))
    training = {**known.get("distilled", {}), **training}  # a method that trains in its own way is timed as a whole
    values, directions, places = values_of(report, head.where if head else "")
    facts = {
        "train_seconds": training.get("seconds"),
        "steps": training.get("steps"),
        "peak_memory_bytes": training.get("peak_memory_bytes"),
        "parameters": student.get("parameters"),
        "start": student.get("start_sha256"),
        "teacher_rows": sum(s.get("computed", 0) for s in signals.values()) + training.get("live_teacher_rows", 0),
    }
    records = list(run.metrics())
    logged = [r for r in records if "measured" in r]
    speeds = [r["rows_per_second"] for r in records if "rows_per_second" in r]
    if speeds:  # the first steps are slower: memory is asked for, caches are filled
        size = Resolver().method(run.recipe).options.batch_size
        facts["step_seconds"] = size / statistics.median(speeds[len(speeds) // 2 :])
    return {
        "values": values,
        "facts": {k: v for k, v in facts.items() if v is not None},
        "curve": [[r["step"], r["measured"]] for r in logged],
        "head": head and {"metric": head.metric, "data": head.where},
        "directions": directions,
        "places": places,
    }


def _all_cells(
    workers: _Workers, work: Mapping[tuple[str, int], tuple[str, str]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """What `run_cell` gave for each, with a line of progress for each."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    began = time.monotonic()

    def done(key: tuple[str, int], told: dict[str, Any]) -> None:
        found[key] = told
        left = (time.monotonic() - began) / len(found) * (len(work) - len(found))
        who = key[0] if key[1] < 0 else f"{key[0]}, seed {key[1]}"
        if told["status"] == "failed":
            logger.warning("%s failed: %s", who, told["error"])
        else:
            head = told["head"]
            got = f"{head['metric']} {told['values'][STUDENT][head['metric']]:.4f}" if head else "timed"
            logger.info("%s: %s  (%d of %d, %.0f s left)", who, got, len(found), len(work), left)

    workers.each(work, done)
    return found


def _result(
    plan: Comparison,
    told: Mapping[tuple[str, int], Mapping[str, Any]],
    recipes: Mapping[tuple[str, int], Recipe],
    folder: Path,
    baseline: str | None,
) -> Result:
    cells = [
        Cell(*key, **{k: v for k, v in each.items() if k not in ("head", "directions", "places")})
        for key, each in told.items()
    ]
    head = next((each["head"] for each in told.values() if each.get("head")), None)
    if head is None:
        errors = [c.error for c in cells if c.error] or ["nothing was measured"]
        raise RunError(
            f"no cell of {folder} could be measured: {errors[0]}", hint=f"kdhub compare --resume {folder} tries again"
        )
    directions = {k: v for each in told.values() for k, v in each.get("directions", {}).items()}
    places = {k: v for each in told.values() for k, v in each.get("places", {}).items()}
    metric = plan.metric or head["metric"]
    if metric not in directions:
        raise UsageError(f"nothing measured {metric!r}", hint=f"measured: {', '.join(directions)}")
    kept = {**plan.to_dict(), "arms": {name: recipes[name, plan.seeds[0]].to_dict() for name in plan.arms}}
    reference = plan.reference or (baseline if baseline in plan.arms else next(iter(plan.arms)))
    return Result(kept, metric, places[metric], directions, reference, cells, environment(), folder)
