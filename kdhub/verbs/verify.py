"""`kdhub.verify`: is a published student the one that was published, and does it score what its card says?

Three questions, each cheaper than the next: do the files have their digests (and the signature), does the card show
the report's figures, and does an evaluation on the same rows give them again. The recipe that names these rows comes
from the repository and is not trusted: only data sets that anybody can have are opened, and a teacher only on request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kdhub.data.prepare import names_of
from kdhub.errors import KdhubError, RecipeError, RunError, UntrustedError
from kdhub.evaluation.card import TOGETHER
from kdhub.evaluation.card_check import read_card
from kdhub.evaluation.counting import count_costs
from kdhub.evaluation.evaluator import Evaluator, student_encoder, teacher_encoder
from kdhub.evaluation.report import ASYMMETRIC, OWN_FILES, OWN_ROWS, STUDENT, Report, printable
from kdhub.families import MEMBER, member_in
from kdhub.hub import manifest
from kdhub.hub.files import CARD, LARGEST_TEXT, MANIFEST, short
from kdhub.hub.manifest import RECIPE, REPORT, Manifest
from kdhub.hub.trust import split_card
from kdhub.metric import Measure
from kdhub.plain_json import read_json
from kdhub.plain_yaml import kind_of, plain_yaml
from kdhub.recipes import strangers
from kdhub.recipes.folders import published_task
from kdhub.recipes.recipe import Layer, Recipe, build
from kdhub.recipes.resolve import Resolver
from kdhub.signals.stored import measured_signals
from kdhub.specs import MAIN

RELATIVE, ABSOLUTE = 0.01, 0.002
"""How far a figure may be from the card's, whichever is more: other hardware rounds otherwise, and one row that falls
to the other side of a threshold moves a score of some hundred rows by as much."""

OK, DIFFERS, OPEN = "ok", "differs", "not checked"
WITHOUT = "needs the teacher: --with-teacher"
TRAINING = "a method's own, measured while it trained"


@dataclass
class Figure:
    """One figure of a card.

    Attributes:
        card, report, now: what the card shows, the report holds, and an evaluation gives now; None when unknown.
        verdict: `ok`, `differs`, or `not checked`.
        note: why.
        member: of a family, that it is a figure of.
    """

    dataset: str
    split: str | None
    metric: str
    subject: str
    card: float
    report: float | None = None
    now: float | None = None
    verdict: str = OPEN
    note: str = ""
    member: str | None = None

    @property
    def difference(self) -> float | None:
        return None if self.now is None else self.now - self.card


@dataclass
class Verification:
    """What was found.

    Attributes:
        status: `verified`, `differs`, or `not-checkable` (nothing speaks against it, and not all could be asked).
        problems: of files and signature, one sentence each.
        figures: of the card.
        tolerance: relative and absolute.
        signed: by the key that was given; None without a key.
    """

    target: str
    commit: str | None
    status: str = ""
    problems: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tolerance: tuple[float, float] = (RELATIVE, ABSOLUTE)
    signed: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "figures": [{**asdict(f), "difference": f.difference} for f in self.figures]}


def verify(
    target: str | Path,
    *,
    member: str | None = None,
    key: str | Path | None = None,
    with_teacher: bool = False,
    trust_recipe: bool = False,
    tolerance: float = RELATIVE,
    endpoint: str | None = None,
    resolver: Resolver | None = None,
) -> Verification:
    """Check a published student.

    Args:
        target: what `kdhub.pull` takes, or a pulled folder.
        member: of a family of sizes: the figures of this one alone.
        key: public key of its signature.
        with_teacher: also the figures that need the teacher, which is loaded for it.
        trust_recipe: whatever the recipe in the repository names is opened and asked: files of this machine, models of
            other repositories, endpoints that cost money (`kdhub.recipes.strangers`).
        tolerance: relative; the absolute one is 0.002.

    Raises:
        UntrustedError: the folder was not published by kdhub, or its manifest or card cannot be read.
        HubError: it cannot be had.
    """
    from kdhub.hub import pull as hub
    from kdhub.verbs.pull import pull

    resolver = resolver or Resolver()
    folder = Path(target).expanduser()
    if not folder.is_dir():
        folder = pull(str(target), endpoint=endpoint, catalog=resolver.catalog).folder
    name = str(target)
    record = hub.read_record(folder) or {}
    if not (folder / MANIFEST).is_file():
        raise UntrustedError(f"{name} has no {MANIFEST}: kdhub did not publish it, so there is nothing to verify")
    found = Verification(name, record.get("commit"), tolerance=(tolerance, ABSOLUTE))
    found.problems = hub.check_folder(folder, name)
    if key is not None:
        found.problems += _unsigned(folder, Path(key), name)
        found.signed = not found.problems
    facts = manifest.read(folder / MANIFEST, name)
    report, recipe = read_report(folder, name), _recipe(folder, name)
    found.figures = [f for f in _figures(folder, name, report) if member in (None, f.member)]
    if not found.problems:  # what was changed is not run
        student = published_task(folder, None, resolver).load(folder)  # its manifest is what it is held against
        if member is not None:
            member_in(student, folder, member, name)
        found.problems += [*_other_files(folder, student), *_other_members(folder, student)]
        _evaluate(found, recipe, facts, student, folder, with_teacher, trust_recipe, resolver)
    found.problems += _other_costs(folder, report, member)
    _judge(found)
    return found


def _unsigned(folder: Path, key: Path, name: str) -> list[str]:
    from kdhub.hub import signing

    try:
        signing.check(folder, key, name)
    except UntrustedError as error:
        return [error.message]
    return []


# -- what the card says ---------------------------------------------------------------------------------------


def read_report(folder: Path, name: str) -> Report:
    """The report beside a published student.

    Raises:
        UntrustedError: it cannot be read; says why.
    """
    try:
        return Report.from_dict(read_json(folder / REPORT), f"{name}/{REPORT}")
    except (OSError, ValueError, RunError) as error:
        raise UntrustedError(f"{name}: {REPORT} cannot be read: {error}") from error


def _recipe(folder: Path, name: str) -> Recipe:
    try:
        values = plain_yaml(_text(folder / RECIPE), stranger=True)
        if not isinstance(values, dict):
            raise ValueError(f"it is {kind_of(values)}, not a mapping")
        return build([Layer(f"{name}/{RECIPE}", values)])
    except (OSError, ValueError, RecipeError) as error:
        raise UntrustedError(f"{name}: {RECIPE} cannot be read: {error}") from error


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError("too large")
    return path.read_text(encoding="utf-8")


def _figures(folder: Path, name: str, report: Report) -> list[Figure]:
    """Every result of the card's front matter, beside the report's."""
    try:
        front, _ = read_card(_text(folder / CARD))
        if not front.get("model-index"):
            raise ValueError("front matter: model-index is missing")
        found = [
            _figure(result["dataset"], metric) for model in front["model-index"] for result in model["results"]
            for metric in result["metrics"]
        ]  # fmt: skip
    except (OSError, ValueError) as error:
        raise UntrustedError(f"{name}: the results in {CARD} cannot be read ({error})") from error
    known = _by_place(report.measures)
    for figure in found:
        figure.report = known[of].value if (of := _place(figure)) in known else None
    return found


def _other_files(folder: Path, student: Any) -> list[str]:
    """People may better a card, and by its `configs` anybody's `load_dataset` finds the rows."""
    shown = split_card(_text(folder / CARD))[0].get("configs")
    if shown == (own := student.front_matter().get("configs")):
        return []
    return [f"{CARD}: its configs are {shown}, the student's files are {own}"]


def _other_costs(folder: Path, report: Report, member: str | None) -> list[str]:
    """What the card's front matter says of the members of a family, where the report says otherwise."""
    said, sizes, told = _members_in(folder), report.sizes.members, []
    for name in [name for name in {**said, **sizes} if member in (None, name)]:
        mine, its = said.get(name), sizes[name].costs if name in sizes else None
        if mine is None or its is None:
            told.append(f"{CARD}: member {short(name)} is not in the {'card' if mine is None else 'report'}")
            continue
        for metric in {**mine, **its}.keys() - {"cut"}:
            if mine.get(metric) != its.get(metric):
                at = f"has {metric} {short(mine.get(metric))}, the report has {short(its.get(metric))}"
                told.append(f"{CARD}: member {short(name)} {at}")
    return told


def _other_members(folder: Path, student: Any) -> list[str]:
    """Members that the files do not hold as the card says, by name and by parameters counted."""
    said = _members_in(folder)
    if said.keys() != student.members.keys():
        return [f"{CARD}: its members are {names_of(said)}, the student's are {names_of(student.members)}"]
    told = []
    for name, costs in said.items():
        now = {"parameters": count_costs(student.cut(name)).get("parameters"), "cut": dict(student.members[name])}
        told += [
            f"{CARD}: member {short(name)} has {key} {short(costs.get(key))}, the student's has {short(value)}"
            for key, value in now.items()
            if costs.get(key) != value
        ]
    return told


def _members_in(folder: Path) -> dict[str, dict[str, Any]]:
    own = split_card(_text(folder / CARD))[0].get("kdhub")
    said = own.get("members") if isinstance(own, Mapping) else None
    listed = said.items() if isinstance(said, Mapping) else ()
    return {str(name): dict(costs) for name, costs in listed if isinstance(costs, Mapping)}


def _figure(dataset: Mapping[str, Any], metric: Mapping[str, Any]) -> Figure:
    value = metric["value"]
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    subject = ASYMMETRIC if (metric.get("name") or "").endswith(TOGETHER) else STUDENT
    member = (metric.get("args") or {}).get(MEMBER)
    return Figure(
        dataset["name"], dataset.get("split"), metric["type"], subject, float(value),
        member=None if member is None else str(member),
    )  # fmt: skip


def _place(figure: Figure) -> tuple[Any, ...]:
    return figure.dataset, figure.split, figure.metric, figure.subject, figure.member


def _by_place(measures: Iterable[Measure]) -> dict[tuple[Any, ...], Measure]:
    """Those that a figure may be of, the first of each place; of views other than the members of a family none is."""
    found: dict[tuple[Any, ...], Measure] = {}
    for m in measures:
        if not m.variant or (m.variant.keys() == {MEMBER} and isinstance(m.variant[MEMBER], str)):
            place = printable(m.dataset), m.split, m.metric, m.subject, m.variant.get(MEMBER)
            found.setdefault(place, m)
    return found


# -- what it scores now ---------------------------------------------------------------------------------------


def _evaluate(
    found: Verification,
    recipe: Recipe,
    facts: Manifest,
    student: Any,
    folder: Path,
    with_teacher: bool,
    trusted: bool,
    resolver: Resolver,
) -> None:
    """Score the student by its own files and on each data set of the recipe that has figures, and note what cannot be
    had."""
    task = resolver.task(facts.task)
    options, unasked = resolver.evaluation_options(task, recipe), ""
    if not trusted:
        options, unasked = strangers.bounded(options)
    encode = student_encoder(task, student, folder)
    against, why = _teacher(recipe, task, student, trusted, resolver) if with_teacher else (None, WITHOUT)
    scored = _fingerprints(facts)
    reasons = []
    _note([f for f in found.figures if f.dataset in OWN_ROWS], TRAINING)
    if own := [f for f in found.figures if f.dataset == OWN_FILES]:
        _compare(own, Evaluator(task, resolver, recipe.evaluation, options).of_files(STUDENT, encode))
    for ref in recipe.evaluation.data:
        if not trusted and (reason := strangers.refused_data(ref)):
            reasons.append(reason)
            continue
        plan = recipe.evaluation.model_copy(update={"data": [ref.model_copy(update={"optional": False})]})
        evaluator = Evaluator(task, resolver, plan, options, recipe.on_bad_rows)
        try:
            used = evaluator.data and evaluator.used[0]
            asked = [f for f in found.figures if (f.dataset, f.split) == (printable(used["name"]), used["split"])]
            if not asked:
                continue
            if scored.get((used["name"], used["split"])) != used["fingerprint"]:
                _note(asked, "this machine has other rows under that name")
                continue
            measures = evaluator.of_data(STUDENT, encode, against) if any(f.member is None for f in asked) else []
            members = [name for name in student.members if any(f.member == name for f in asked)]
            measures += evaluator.of_members(encode, against, members)
        except KdhubError as error:
            reasons.append(f"{ref.source} is not available: {error.message.splitlines()[0]}")
            continue
        _compare(asked, measures, "; ".join(filter(None, (unasked, why))))
    _note(
        [f for f in found.figures if f.now is None and not f.note], "; ".join(reasons) or "the recipe has no such data"
    )


def _compare(figures: list[Figure], measures: list[Measure], why: str = "") -> None:
    """Note what is measured now; `why` it may be missing."""
    known = _by_place(measures)
    for figure in figures:
        now = known.get(_place(figure))
        figure.now = now.value if now else None
        if now is None:
            figure.note = why or "is no longer measured"


def _fingerprints(facts: Manifest) -> dict[tuple[str, str], Any]:
    """(data set, split) -> the fingerprint of the rows that were scored."""
    data = facts.get("data")
    known = [d for d in data if isinstance(d, Mapping)] if isinstance(data, list) else []
    return {(str(d.get("name")), str(d.get("split"))): d.get("fingerprint") for d in known}


def _teacher(recipe: Recipe, task: Any, student: Any, trusted: bool, resolver: Resolver) -> tuple[Any, str]:
    """An encoder of the recipe's teacher, or None and why there is none."""
    if (ref := recipe.teachers.get(MAIN)) is None:
        return None, "the recipe has no teacher"
    if not trusted and (reason := strangers.refused_teacher(ref, ref.task or recipe.task, resolver)):
        return None, reason
    try:
        model = resolver.teacher(ref, ref.task or recipe.task)
    except KdhubError as error:
        return None, f"the teacher is not available: {error.message}"
    if why := task.mismatch(student, model):
        return None, why
    signals = partial(measured_signals, model, dtype=recipe.signals.dtype)
    return teacher_encoder(task, model, signals), ""


def _note(figures: list[Figure], note: str) -> None:
    for figure in figures:
        figure.note = note


def _judge(found: Verification) -> None:
    relative, absolute = found.tolerance
    for figure in found.figures:
        allowed = max(relative * abs(figure.card), absolute)
        if figure.report is None or abs(figure.report - figure.card) > 1e-6:
            told = "no such figure" if figure.report is None else f"{figure.report:.6g}"
            figure.verdict, figure.note = DIFFERS, f"the report has {told}"
        elif figure.now is not None:
            figure.verdict = OK if abs(figure.difference) <= allowed else DIFFERS
    verdicts = {f.verdict for f in found.figures}
    waiting = [f for f in found.figures if f.verdict == OPEN and f.note not in (WITHOUT, TRAINING)]
    if found.problems or DIFFERS in verdicts:
        found.status = DIFFERS
    elif waiting or OK not in verdicts:
        found.status = "not-checkable"
    else:
        found.status = "verified"
