"""`kdhub.distill`: from a recipe to a student with its report, plots and card."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kdhub._ranks import of_first, rank
from kdhub.errors import UnknownNameError, UsageError
from kdhub.recipe import Layer, Recipe, build, combine, parse_set, read_yaml
from kdhub.resolve import Resolver
from kdhub.run import Run, environment
from kdhub.verbs import chain

logger = logging.getLogger("kdhub")

COST_ROWS = 256
"""Rows that cost is measured on."""

FLAGS = ("method", "teacher", "student", "data", "seed")


def distill(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    resolver: Resolver | None = None,
    **overrides: Any,
) -> Run:
    """Distil a student.

    Args:
        recipe: a catalogue name, a YAML file, a mapping, or a `Recipe`; with `method=` alone, the method's own recipe.
        out: the run folder, new or empty; `runs/<name>-<date>` by default.
        resume: an interrupted run's folder, instead of everything else.
        set: `["options.lr=1e-4"]` or `{"options.lr": 1e-4}`.
        overrides: method, teacher, student, data, seed.

    Returns:
        The finished run: `run.student_folder`, `run.report`.

    Raises:
        RecipeError, UnknownNameError, CompatibilityError: before anything is created.
        RunError: the folder is in use or cannot be written.
    """
    resolver = resolver or Resolver()
    if resume is not None:
        if recipe is not None or overrides or set:
            raise UsageError("--resume takes its recipe from the run; leave out the other options")
        run = Run.open(resume)
        resolver.check(run.recipe)
        run.lock()
    else:
        resolved = resolve_recipe(recipe, set=set, resolver=resolver, **overrides)
        # The ranks of one job read different clocks, and the default name has the time in it.
        run = Run.create(Path(out) if out else of_first(default_folder(resolved)), resolved)
    return execute(run, resolver)


def resolve_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    set: Sequence[str] | Mapping[str, Any] = (),
    resolver: Resolver | None = None,
    **overrides: Any,
) -> Recipe:
    """The recipe that `distill` would run: method's default, then `recipe`, then flags, then `set`; fully checked."""
    resolver = resolver or Resolver()
    layers = recipe_layers(recipe, set, resolver, overrides)
    resolved = build(layers)
    resolver.check(resolved, layers)
    chain.check(resolved, resolver)
    return resolved


def recipe_layers(
    recipe: Any, set: Sequence[str] | Mapping[str, Any], resolver: Resolver, overrides: Mapping[str, Any]
) -> list[Layer]:
    unknown = [k for k in overrides if k not in FLAGS]
    if unknown:
        raise UnknownNameError("override", unknown[0], FLAGS)
    flags = [
        Layer(f"--{key}", {"data": {"train": value}} if key == "data" else {key: value})
        for key, value in overrides.items()
        if value is not None
    ]
    texts = [f"{k}={v}" for k, v in set.items()] if isinstance(set, Mapping) else list(set)
    given = [] if recipe is None else [recipe_layer(recipe, resolver)]
    sets = [parse_set(text) for text in texts]
    method = combine([*given, *flags, *sets]).get("method")
    if method is None:
        raise UsageError(
            "neither a method nor a recipe is given",
            hint="kdhub distill --method leaf, or kdhub distill --recipe FILE; kdhub list methods shows all",
        )
    base = []
    if isinstance(method, str):
        spec = resolver.registry.find("method", method).spec
        name = spec.recipe
        if name and not isinstance(recipe, Recipe):
            base = [_catalogue_layer(name, resolver)]
        elif not given:
            raise UsageError(f"method {method} has no recipe of its own", hint="give one with --recipe")
    return [*base, *given, *flags, *[_shorthand(layer, resolver, method) for layer in sets]]


def _shorthand(layer: Layer, resolver: Resolver, method: Any) -> Layer:
    """`--set lr=1e-4` means `--set options.lr=1e-4`: a bare key that no recipe has is an option of the method."""
    (key, value), *_ = layer.values.items()
    keys = {f.alias or n for n, f in Recipe.model_fields.items()}
    if key in keys or isinstance(value, Mapping) or not isinstance(method, str):
        return layer
    return Layer(layer.label, {"options": layer.values})


def recipe_layer(recipe: Any, resolver: Resolver) -> Layer:
    """The keys of a recipe: a `Recipe`, a mapping, a file, or a name of the catalogue."""
    if isinstance(recipe, Recipe):
        return Layer("recipe", recipe.model_dump(by_alias=True, exclude_unset=True))
    if isinstance(recipe, Mapping):
        return Layer("recipe", dict(recipe))
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or "/" in str(recipe):
        return Layer(str(path), read_yaml(path))
    return _catalogue_layer(str(recipe), resolver)


def _catalogue_layer(name: str, resolver: Resolver) -> Layer:
    names = resolver.catalog.names("recipes")
    if name not in names:
        raise UnknownNameError("recipe", name, names, how_to_list="kdhub list recipes")
    path = resolver.catalog.path("recipes", name)
    return Layer(f"recipe {name}", {"name": name, **read_yaml(path)})


def default_folder(recipe: Recipe) -> Path:
    name = recipe.name or recipe.method
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def execute(run: Run, resolver: Resolver, *, page: bool = True) -> Run:
    """Run or continue a run folder; what is finished is found and not done again.

    Args:
        page: draw the plots and write the card.
    """
    from kdhub.cost import peak_memory
    from kdhub.verbs.session import Session, running

    if run.finished("done") and run.report is not None:
        logger.info("%s is finished already", run.folder)
        run.unlock()
        return run
    began = time.monotonic()
    with running(run, resolver.registry.plugins):
        run.recipe, chained = chain.unchained(run.recipe, resolver)
        session = Session(run, resolver)
        _first_provenance(run, session, chained)
        distilling = time.monotonic()
        student = session.method.distill(session)
        run.add_provenance(
            distilled={"seconds": round(time.monotonic() - distilling, 2), "peak_memory_bytes": peak_memory()}
        )
        if rank() != 0:
            return run
        _save_student(run, session, student)
        report = session.method.evaluate(session, student)
        _add_costs(run, session, report)
        run.write_json("report.json", report.to_dict())
        seconds = time.monotonic() - began
        run.add_provenance(wall_seconds=round(run.provenance.get("wall_seconds", 0.0) + seconds, 1))
        if page:
            write_page(run, resolver)
        run.stage("done", lambda: True)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return run


def write_page(run: Run, resolver: Resolver) -> None:
    """Plots and card, from what stands in the run folder."""
    from kdhub import plots

    plots.plot_run(run)
    written = Run.open(run.folder)  # the recipe as it was given: folders of a chain say nothing to anybody else
    run._write("README.md", page(written, resolver))


def page(run: Run, resolver: Resolver, path: str = "student", licence: str | None = None) -> str:
    """The card of a run, add-ons heard (see `card.render_card`)."""
    from kdhub import card

    sections = card.sections(run, path, licence)
    resolver.registry.plugins.call("kdhub_card", run=run, sections=sections)
    return card.assemble(card.front_matter(run, licence), sections)


def _first_provenance(run: Run, session: Any, chained: Mapping[str, str]) -> None:
    """Everything known before work starts; a resumed run keeps when it first began and counts that it went on."""
    entry = session.resolver.registry.find("method", run.recipe.method, run.recipe.task)
    before = run.provenance
    now = environment()
    if "environment" in before:
        run.add_provenance(resumed=[*before.get("resumed", []), now["started"]])
        return
    import hashlib

    from kdhub._files import canonical_json

    run.add_provenance(
        schema=1,
        seed=run.recipe.seed,
        recipe_sha256=hashlib.sha256(canonical_json(run.recipe.to_dict())).hexdigest(),
        method={
            "name": entry.name,
            "distribution": entry.distribution,
            "version": entry.version,
            "paper": entry.spec.paper,
            "summary": entry.spec.summary,
            "tags": list(entry.spec.tags),
        },
        environment=now,
        chained=dict(chained),
        plugins=[
            {"distribution": r.distribution, "version": r.version, "status": r.status} for r in session.plugins.records
        ],
    )


def _save_student(run: Run, session: Any, student: Any) -> None:
    """Write the student beside its place and move it there, so that a student folder is always whole."""
    from kdhub.verbs.session import parameters

    staging = run.folder / ".student"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    student.save(staging)
    shutil.rmtree(run.student_folder, ignore_errors=True)
    staging.rename(run.student_folder)
    run.add_provenance(
        student={
            "parameters": parameters(student),
            "usage": student.usage(),
            "library": student.library,
            "kind": student.kind,
            "pipeline_tag": session.task.pipeline_tag,
        }
    )


def _add_costs(run: Run, session: Any, report: Any) -> None:
    from kdhub import cost
    from kdhub.verbs.session import cost_subjects

    if not run.recipe.evaluation.cost or not session.evaluator.data:
        return
    data, split = session.evaluator.data[0]
    subjects = cost_subjects(run.recipe, run.student_folder)
    logger.info("measuring cost, each subject in a process of its own")
    rows = session.task.sample(data, split, COST_ROWS)
    report.measures += cost.measure(run.recipe.task, session.task.primary_signal, subjects, rows)
