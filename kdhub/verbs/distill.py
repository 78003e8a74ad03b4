"""`kdhub.distill`: from a recipe to a student with its report, plots and card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kdhub.errors import ExitCode, KdhubError, UsageError
from kdhub.ranks import of_first
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.recipe import Recipe
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.training import tracking
from kdhub.training.execute import execute

logger = logging.getLogger("kdhub")


def distill(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    page: bool = True,
    resolver: Resolver | None = None,
    **overrides: Any,
) -> Run:
    """Distil a student.

    Args:
        recipe: a catalogue name, a YAML file, a mapping, or a `Recipe`; with `method=` alone, the method's own recipe.
        out: the run folder, new or empty; `runs/<name>-<date>` by default.
        resume: an interrupted run's folder, instead of everything else.
        set: `["options.lr=1e-4"]` or `{"options.lr": 1e-4}`.
        page: draw the plots and write the card, which takes as long as a few steps of a small student.
        overrides: method, teacher, student, data, seed, tracking.

    Returns:
        The finished run: `run.student_folder`, `run.report`.

    Raises:
        RecipeError, UnknownNameError, CompatibilityError: before anything is created.
        RunError: the folder is in use or cannot be written.
        KdhubError: what came up later. Of a recipe that cannot be, no new folder stays in which nothing was done.
    """
    resolver = resolver or Resolver()
    if resume is not None:
        if recipe is not None or overrides or set:
            raise UsageError("--resume takes its recipe from the run; leave out the other options")
        run = Run.open(resume)
        resolver.check(run.recipe)
        tracking.check(run.recipe.tracking)
        run.lock()
    else:
        resolved = resolve_recipe(recipe, set=set, resolver=resolver, **overrides)
        tracking.check(resolved.tracking)
        # The ranks of one job read different clocks, and the default name has the time in it.
        run = Run.create(Path(out) if out else of_first(default_folder(resolved)), resolved)
    try:
        return execute(run, resolver, page=page)
    except KdhubError as error:
        if resume is None and error.exit_code == ExitCode.USAGE:
            run.discard_unbegun()
        raise


def default_folder(recipe: Recipe) -> Path:
    name = recipe.name or recipe.method
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
