"""From a run folder with a recipe to a finished run: student, report, plots and card."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import InUseError, RunError
from kdhub.files import canonical_json
from kdhub.ranks import barrier, of_first, rank
from kdhub.recipes.chain import folder_of, lineage, replaced, resolved, withheld_in
from kdhub.recipes.recipe import Recipe, read_yaml
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run, environment

if TYPE_CHECKING:
    from kdhub.evaluation.report import Report

logger = logging.getLogger("kdhub")

COST_ROWS = 256
"""Rows that cost is measured on."""
POLL_SECONDS = 2.0
"""Between looks at a student that another job makes."""


def execute(run: Run, resolver: Resolver, *, page: bool = True) -> Run:
    """Run or continue a run folder; what is finished is found and not done again.

    Args:
        page: draw the plots and write the card.
    """
    from kdhub.evaluation.cost import peak_memory
    from kdhub.training import pictured, tracking
    from kdhub.training import saved as saving
    from kdhub.training.session import Session, running

    if run.finished("done") and run.report is not None:
        logger.info("%s is finished already", run.folder)
        run.unlock()
        return run
    began = time.monotonic()
    with running(run, resolver.registry.plugins), tracking.following(run):
        run.same("recipe", read_yaml(run.folder / "recipe.yaml") if rank() == 0 else {})
        entry = resolver.registry.find("method", run.recipe.method, run.recipe.task)
        run.same("method", {"name": entry.name, "distribution": entry.distribution, "version": entry.version})
        run.recipe, chained = unchained(run.recipe, resolver)
        session = Session(run, resolver)
        _first_provenance(run, session, entry, chained)
        distilling = time.monotonic()
        student = session.method.distill(session)
        run.add_provenance(
            distilled={"seconds": round(time.monotonic() - distilling, 2), "peak_memory_bytes": peak_memory()}
        )
        if rank() != 0:
            return run
        saved = saving.save(run, session, student)
        del student  # what is measured is what anybody will open, and only one has to be in memory
        session.__dict__.pop("student", None)
        student = session.student = saving.reopen(run, session, saved)
        session.saved = run.student_folder
        _note_student(run, session, student, saved)
        report = session.method.evaluate(session, student)
        _add_costs(run, session, student, report, saved.precision)
        pictured.draw(run, session.task, session.evaluator.data, session.method.pictures(student))
        run.write_json("report.json", report.to_dict())
        seconds = time.monotonic() - began
        run.add_provenance(wall_seconds=round(run.provenance.get("wall_seconds", 0.0) + seconds, 1))
        if page:
            write_page(run, resolver)
        run.seal()
        run.stage("done", lambda: True)
        run.read_only = True
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        pictured.forget(run)
    return run


def write_page(run: Run, resolver: Resolver) -> None:
    """Plots and card, from what stands in the run folder."""
    from kdhub.evaluation import families, plots

    plots.plot_run(run, family=families.figure)
    written = Run.open(run.folder)  # the recipe as it was given: folders of a chain say nothing to anybody else
    run._write("README.md", page(written, resolver))


def page(
    run: Run, resolver: Resolver, path: str = "student", licence: str | None = None, despite: Sequence[str] = ()
) -> str:
    """The card of a run, add-ons heard (see `card.render_card`)."""
    from kdhub.evaluation import card

    sections = card.sections(run, path, licence, despite)
    resolver.registry.plugins.call("kdhub_card", run=run, sections=sections)
    return card.assemble(card.front_matter(run, licence, despite), sections)


def _first_provenance(run: Run, session: Any, entry: Any, chained: Mapping[str, str]) -> None:
    """Everything known before work starts; a resumed run keeps when it first began and counts that it went on, and with
    which other versions."""
    before = run.provenance
    now = environment()
    if "environment" in before:
        then = before["environment"].get("versions", {})
        if others := {name: here for name, here in now["versions"].items() if then.get(name) != here}:
            told = ", ".join(f"{name} {then.get(name, 'none')}, now {here}" for name, here in others.items())
            logger.warning("the run goes on with other versions than it began with: %s", told)
            run.add_provenance(resumed_with=others)
        run.add_provenance(resumed=[*before.get("resumed", []), now["started"]])
        return

    before_it, spent = lineage(chained)
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
        lineage=before_it,
        spent=spent,
        plugins=[
            {"distribution": r.distribution, "version": r.version, "status": r.status} for r in session.plugins.records
        ],
    )


def _note_student(run: Run, session: Any, student: Any, saved: Any) -> None:
    from kdhub.training.session import parameters

    provenance, recipe = run.provenance, Run.open(run.folder).recipe  # with the links of a chain
    stated = recipe.student.options.get("withheld") if recipe.student else None
    withheld = [stated, saved.withheld, student.withheld]
    withheld += withheld_in(recipe, student.kind, provenance.get("chained", {}))
    if student.kind == "dataset":
        withheld += [data.withheld for parts in session.training_data.values() for data, _ in parts]
    said = recipe.student.options if recipe.student else {}
    more = {**student.front_matter(), **said.get("about", {})}
    limits = [*said.get("limits", ()), *saved.limits]
    run.add_provenance(
        student={
            "parameters": parameters(student),
            **({"dtype": saved.precision} if saved.precision else {}),
            "usage": student.usage(),
            "library": student.library,
            "kind": student.kind,
            "pipeline_tag": session.task.pipeline_tag,
            **({"front_matter": more} if more else {}),
            **({"limits": limits} if limits else {}),
            **({"members": {name: dict(how) for name, how in student.members.items()}} if student.members else {}),
            **({"withheld": reasons} if (reasons := list(dict.fromkeys(filter(None, withheld)))) else {}),
        }
    )


def _add_costs(run: Run, session: Any, student: Any, report: Any, precision: str | None) -> None:
    from kdhub.evaluation import cost
    from kdhub.training import members
    from kdhub.training.session import cost_subjects

    rows = session.task.sample(*session.evaluator.data[0], COST_ROWS) if session.evaluator.data else []
    if student.members and not rows and "train" in session.data_uses:  # a family may be scored by its method alone
        rows = session.table("train").select(range(min(COST_ROWS, len(session.table("train"))))).to_list()
    report.measures += members.counted(session.task, student, rows, precision)
    if run.recipe.evaluation.cost and not student.answers:
        report.measures += cost.of_files(student, run.student_folder, run.provenance)
    elif run.recipe.evaluation.cost and rows:
        subjects = [*cost_subjects(run.recipe, run.student_folder), *members.subjects(student, run.student_folder)]
        logger.info("measuring cost, each subject in a process of its own")
        report.add_costs(members.by_the_clock(cost.measure(run.recipe.task, subjects, rows)))
        if len(names := members.timed(student)) < len(student.members):
            report.notes.append(f"{len(names)} of {len(student.members)} members were timed: {', '.join(names)}")


def cost_again(run: Run, resolver: Resolver) -> Report:
    """Measure once more what the student of a finished run costs, on a quieter machine say, and write report, plots and
    card with the new figures; scores stay.

    Raises:
        RunError: the run is not finished, or is in use, or its files are not what was saved.
    """
    from kdhub.evaluation.report import Report
    from kdhub.training.session import Session

    if not run.finished("done") or run.report is None:
        raise RunError(f"{run.folder} is not finished", hint=f"kdhub distill --resume {run.folder}")
    folder = run.whole_student(told=True)
    run.lock()
    try:
        run.recipe, _ = unchained(run.recipe, resolver)
        run.recipe.evaluation.cost = True
        session, report = Session(run, resolver), Report.from_dict(run.report)
        old = [m for m in report.measures if m.dataset is None]
        report.notes = [note for note in report.notes if note not in {m.note for m in old}]
        report.measures = [m for m in report.measures if m.dataset is not None]
        student = session.task.load(folder)
        _add_costs(run, session, student, report, (run.provenance.get("student") or {}).get("dtype"))
        run.write_json("report.json", report.to_dict())
        write_page(run, resolver)
        run.seal()
        return report
    finally:
        run.unlock()


def unchained(recipe: Recipe, resolver: Resolver) -> tuple[Recipe, dict[str, str]]:
    """The recipe with the folder of a student in place of each `recipe:NAME`; what is not there yet is made now.

    Returns:
        the recipe, and which folder stands for which name.
    """
    sources: list[str] = []
    replaced(recipe, lambda source: sources.append(source) or source)
    if not sources:
        return recipe, {}
    folders = _made(list(dict.fromkeys(sources)), resolver)
    resolver.chained |= {f"path:{folder}": source for source, folder in folders.items()}
    return Recipe.model_validate(replaced(recipe, lambda source: f"path:{folders[source]}")), folders


def _made(sources: Sequence[str], resolver: Resolver) -> dict[str, str]:
    """The student folders of some recipes. What another job is making is left for last and waited for, so that jobs
    which stand on the same students share the work."""
    folders: dict[str, str] = {}
    while left := [source for source in sources if source not in folders]:
        for source in left:
            if folder := _made_once(source, resolver):
                folders[source] = str(folder)
        if not folders.keys() & {*left}:
            logger.info("waiting for another job, which makes %s", ", ".join(left))
            time.sleep(POLL_SECONDS)
    return {source: folders[source] for source in sources}


def _damage(folder: Path) -> list[str]:
    try:
        run = Run.open(folder)
        run.finished("done")  # reads what it says of its stages
        return run.damage()
    except RunError as error:
        return [error.message]


def _made_once(source: str, resolver: Resolver) -> Path | None:
    """The student folder of a recipe, distilled now if it never was; an interrupted one is continued. None while
    another job is at it."""
    recipe = resolved(source, resolver)
    folder = folder_of(recipe, resolver)
    if rank() == 0 and (folder / "recipe.yaml").exists() and (damage := _damage(folder)):
        logger.warning("%s: %s changed since it was made; made again", source, ", ".join(damage[:3]))
        shutil.rmtree(folder)
    barrier()
    run, busy = None, False
    try:
        if not (folder / "recipe.yaml").exists():
            run = Run.create(folder, recipe)
        elif not (found := Run.open(folder)).finished("done"):
            found.lock()
            run = found
    except RunError as error:
        busy = isinstance(error, InUseError) or (folder / "recipe.yaml").exists()  # written since we looked
        if not busy:
            raise
    if of_first(busy):
        return None
    if run is not None:
        execute(run, resolver)
    barrier()  # the first rank saves the student, all of them open it
    return folder / "student"
