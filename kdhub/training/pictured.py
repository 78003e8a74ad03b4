"""What teacher, start and student gave on the same rows, kept while a run lasts and drawn by its task at the end.

A run goes on without pictures where drawing them fails: they are not worth what was trained.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kdhub import pictures
from kdhub.evaluation.report import BEFORE, STUDENT, TEACHER
from kdhub.files import atomic_write
from kdhub.pictures import Picture
from kdhub.recipes.run import Run
from kdhub.task import Task

logger = logging.getLogger("kdhub")

PREFIX, OWN = "rows-", "student-"
"""Before the names of pictures of what models gave, and of the student itself."""


def keep(run: Run, task: Task, subject: str, outputs: Any) -> None:
    """Keep what is drawn of a subject's outputs. In a stage, so that a resumed run finds both or neither."""
    if task.drawn:
        with _without_failing():
            taken, content = task.to_draw(outputs, task.drawn), io.BytesIO()
            np.savez(content, **{name: np.asarray(values) for name, values in taken.items()})
            _folder(run).mkdir(exist_ok=True)
            atomic_write(_folder(run) / f"{subject}.npz", content.getvalue())


def draw(run: Run, task: Task, evaluated: list[tuple[Any, str]], own: Iterable[Picture] = ()) -> None:
    """Have the task draw what was kept into `plots/`, and the student itself; note each picture in the provenance.

    Args:
        evaluated: the evaluation data sets and their splits.
        own: of the student itself (`Method.pictures`), drawn as they are asked for.
    """
    files = {subject: _folder(run) / f"{subject}.npz" for subject in (TEACHER, BEFORE, STUDENT)}
    with _without_failing():
        given = {subject: dict(np.load(path)) for subject, path in files.items() if path.exists()}
        made = [(OWN, one, "the student itself") for one in own]
        if given:
            data, split = evaluated[0]
            rows = max((len(values) for arrays in given.values() for values in arrays.values()), default=0)
            of = f"{'the first ' if rows > 1 else ''}{rows} {'rows' if rows > 1 else 'row'} of {data.name} {split}"
            made += [(PREFIX, one, of) for one in task.draw(data, split, given)]
        if not made:
            return
        if wrong := pictures.problems([one for _, one, _ in made]):
            raise ValueError("; ".join(wrong))
        (run.folder / "plots").mkdir(exist_ok=True)
        for before, one, _ in made:
            atomic_write(run.folder / "plots" / f"{before}{one.name}", one.content)
        noted = [{"file": f"plots/{before}{one.name}", "sentence": one.sentence, "of": of} for before, one, of in made]
        run.add_provenance(pictures=noted)


def forget(run: Run) -> None:
    """Remove what was kept."""
    shutil.rmtree(_folder(run), ignore_errors=True)


def _folder(run: Run) -> Path:
    return run.folder / "drawn"


@contextmanager
def _without_failing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        logger.warning("no pictures were drawn of what the models gave: %s: %s", type(error).__name__, error)
