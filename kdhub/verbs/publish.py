"""`kdhub.publish`: a finished run's student on a hub, with its card, report and manifest, as one commit."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from kdhub.errors import PublishError, RunError, UntrustedError, UsageError
from kdhub.evaluation.card import UNSTATED, forbids_derivatives, front_matter
from kdhub.evaluation.card_check import check_card
from kdhub.evaluation.report import STUDENT, Report
from kdhub.exporting.exporter import EXPORTS, stale
from kdhub.files import atomic_write, config_home
from kdhub.hub import manifest
from kdhub.hub.client import Hub
from kdhub.hub.fetch import parse_repo
from kdhub.hub.files import (
    CARD,
    LARGEST_TEXT,
    MANIFEST,
    MEDIA,
    SIGNATURE,
    digests,
    kind_problem,
    name_problem,
    size_problem,
    walk,
)
from kdhub.hub.manifest import RECIPE, RECORD, REPORT
from kdhub.hub.publish import signature_on, upload
from kdhub.hub.trust import check_configuration, split_card
from kdhub.pictures import FORMATS
from kdhub.recipes.chain import models_of
from kdhub.recipes.recipe import Recipe
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.secrets import find
from kdhub.training.execute import page
from kdhub.training.members import run_of_member
from kdhub.verbs.search import COSTS_OF
from kdhub.verbs.usage import fault
from kdhub.verbs.verify import read_report

logger = logging.getLogger("kdhub")

RESULTS_FILE = ".eval_results/kdhub.yaml"
_STAGING = ".kdhub-publish-"


@dataclass
class Publication:
    """What was published, or with `dry_run` would be.

    Attributes:
        repo, kind, endpoint: where; kind is `model` or `dataset`.
        files: name -> bytes.
        card: its whole text.
        warnings: what a person should look at, and what does not stop it.
        commit: that holds exactly these files; None on a dry run.
        changed: whether a commit was made; the same content again makes none.
        pull_request: its address.
        registered: the catalogue file that was written.
    """

    repo: str
    kind: str
    endpoint: str
    files: dict[str, int]
    card: str
    warnings: list[str] = field(default_factory=list)
    commit: str | None = None
    changed: bool = False
    pull_request: str | None = None
    registered: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "bytes": sum(self.files.values())}


def publish(
    source: str | Path,
    repo: str,
    *,
    member: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    replace: bool = False,
    licence: str | None = None,
    tags: Sequence[str] = (),
    sign: str | Path | None = None,
    register: bool = False,
    despite: Sequence[str] = (),
    allow_secrets: Collection[str] = (),
    endpoint: str | None = None,
    resolver: Resolver | None = None,
) -> Publication:
    """Publish a student.

    Args:
        source: a finished run, or a student that `pull` brought here (to put it on another hub).
        repo: `org/name`.
        member: of a run whose student is a family of sizes: this one, as a student of its own.
        private: make a new repository private.
        create_pr: propose it, and leave the repository as it is.
        dry_run: check everything, upload nothing.
        replace: also when the repository holds files that kdhub did not put there.
        licence: of the student; by default that of teacher and start, where they have one and the same.
        tags: names for the commit (`v1`).
        sign: a private key; `model.sig` is made with it.
        despite: the reasons that the student gives against being published (`Student.withheld`), word for word.
        allow_secrets: `PATH:LINE` of what looks like a secret and is none.
        register: write an entry into the user's catalogue (`kdhub list published`).
        endpoint: the hub.

    Raises:
        PublishError: everything that stands against it, at once.
        HubError: the hub refused or cannot be reached; it has its old head or the new one.
    """
    resolver, hub = resolver or Resolver(), Hub(endpoint)
    name, revision = parse_repo(repo)
    if revision or "/" not in name:
        raise UsageError(f"{repo!r} is not the name of a repository to publish to", hint="expected org/name")
    folder = Path(source).expanduser()
    with _staging_folder(folder) as staging:
        if (folder / MANIFEST).is_file():
            kind, warnings = _again(folder, staging, licence, member, despite, allow_secrets)
        else:
            with run_of_member(_run(folder), member, resolver) as run:
                kind, warnings = _assemble(run, staging, name, resolver, licence, despite, allow_secrets)
        if sign is not None:
            _sign(staging, Path(sign).expanduser(), None if dry_run else partial(signature_on, hub, name, kind))
        done = Publication(
            repo=name,
            kind=kind,
            endpoint=hub.endpoint,
            files={n: path.stat().st_size for n, path in walk(staging)},
            card=_card(staging),
            warnings=warnings,
        )
        for warning in warnings:
            logger.warning("%s", warning)
        if dry_run:
            return done
        uploaded = upload(
            hub,
            name,
            kind,
            staging,
            message=f"Publish {split_card(done.card)[0]['kdhub']['name']} with kdhub",
            private=private,
            create_pr=create_pr,
            replace=replace,
            tags=tags,
        )
        done.commit, done.changed, done.pull_request = uploaded.commit, uploaded.changed, uploaded.pull_request
        if register:
            done.registered = _register(done, staging)
    return done


def _sign(staging: Path, key: Path, published: Callable[[], bytes | None] | None) -> None:
    """Sign, or keep the signature that is published when it still holds."""
    from kdhub.hub import signing

    (staging / SIGNATURE).unlink(missing_ok=True)  # of a pulled student: it may be that very file, under a second name
    signing.sign(staging, key)
    if published is not None and (older := published()) is not None:
        signing.still_good(staging, older, key)


@contextmanager
def _staging_folder(folder: Path) -> Iterator[Path]:
    """An empty folder on the disk of another, where large files need no copy; else the system's temporary one."""
    where = folder.absolute().parent
    for left in where.glob(f"{_STAGING}*"):  # of a publish that was killed
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
    writable = os.access(where, os.W_OK)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=where if writable else None) as temporary:
        yield Path(temporary)


def _run(folder: Path) -> Run:
    """The finished run that a folder is, or whose student it is.

    Raises:
        UsageError, RunError: it is none, or not finished.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="give a run folder")
    inside = not (folder / RECIPE).is_file() and (folder.parent / RECIPE).is_file()
    run = Run.open(folder.parent if inside else folder)
    if not run.finished("done") or run.report is None or not run.student_folder.is_dir():
        raise RunError(f"{run.folder} is not finished", hint=f"kdhub distill --resume {run.folder}")
    run.whole_student(told=True)
    return run


# -- what is published ----------------------------------------------------------------------------------------


def _assemble(
    run: Run,
    staging: Path,
    repo: str,
    resolver: Resolver,
    licence: str | None,
    despite: Sequence[str],
    allowed: Collection[str],
) -> tuple[str, list[str]]:
    """Put everything into a folder as it will stand on the hub.

    Returns:
        (kind, warnings).

    Raises:
        PublishError: everything that stands against publishing.
    """
    problems: list[str] = []
    _take_all(run.student_folder, staging, problems)
    own = {RECIPE: run.folder / RECIPE, REPORT: run.folder / REPORT}
    own |= {f"plots/{path.name}": path for path in sorted((run.folder / "plots").glob("*.*")) if path.suffix in FORMATS}
    for name, path in own.items():
        if (staging / name).exists():
            problems.append(f"{name}: the student has a file of that name, and kdhub writes its own")
        else:
            _take(path, staging / name)
    report = Report.from_dict(run.report, str(run.folder / REPORT))
    student = run.provenance.get("student") or {}
    kind = student.get("kind") or "model"
    reasons = front_matter(run)["kdhub"].get("withheld", [])
    problems += _withheld_problems(reasons, despite)
    problems += [f"{name}: it is not what {EXPORTS} says; export it again" for name in stale(run.student_folder)]
    card = page(run, resolver, repo, licence, reasons if despite else ())
    results = _eval_results(run, report)
    if results:
        _write(staging / RESULTS_FILE, yaml.safe_dump(results, sort_keys=False))
    _write(staging / CARD, card)
    _write(staging / MANIFEST, manifest.make(_facts(run, resolver, kind), {n: digests(p) for n, p in walk(staging)}))
    problems += _card_problems(card, report)
    problems += _file_problems(staging, allowed)
    if not problems:  # it runs the student, which must be fit for that
        problems += _usage_problems(run, staging, resolver)
    if problems:
        raise PublishError(str(run.folder), problems)
    return kind, [*(f"it is published despite this: {one}" for one in reasons), *_warnings(run)]


def _again(
    folder: Path,
    staging: Path,
    licence: str | None,
    member: str | None,
    despite: Sequence[str],
    allowed: Collection[str],
) -> tuple[str, list[str]]:
    """A pulled student as it is: nothing in it is rendered or run again."""
    from kdhub.hub.pull import check_folder

    if member is not None:
        raise UsageError(
            "a member is published from the run that made its family",
            hint=f"or make a run that starts from it: student: {{source: member:{folder}, name: {member}}}",
        )
    if licence is not None:
        raise UsageError("the licence of a pulled student stands in its card", hint="leave out --license")
    name = str(folder)
    problems: list[str] = check_folder(folder, name)
    _take_all(folder, staging, problems)
    (staging / RECORD).unlink(missing_ok=True)
    card = _card(staging)
    report = read_report(staging, name)
    problems += [*_card_problems(card, report), *_file_problems(staging, allowed)]
    facts = manifest.read(staging / MANIFEST, name)
    reasons = listed if isinstance(listed := facts.get("withheld"), list) else []
    problems += _withheld_problems(reasons, despite)
    if problems:
        raise PublishError(name, problems)
    return facts.kind, [f"it is published despite this: {one}" for one in reasons]


def _card(staging: Path) -> str:
    """The card's text; "" where there is none."""
    try:
        return (staging / CARD).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise UntrustedError(f"{CARD} is not UTF-8 at byte {error.start}") from error


def _take_all(folder: Path, staging: Path, problems: list[str]) -> None:
    try:
        for name, path in walk(folder):
            problem = name_problem(name) or kind_problem(name) or size_problem(name, path.stat().st_size)
            if name != RECORD and problem:
                problems.append(f"{name!r} {problem}")
            else:
                _take(path, staging / name)
    except UntrustedError as error:
        problems.append(error.message)


def _take(path: Path, to: Path) -> None:
    """The file itself under a second name where the disk allows it, else a copy."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


_OF_CARD = ("withheld", "method", "teacher", "start", "seed", "recipe_sha256", "versions", "members", "member")


def _facts(run: Run, resolver: Resolver, kind: str) -> dict[str, Any]:
    """What the manifest says besides files. The card's front matter holds the same, for hubs."""
    provenance = run.provenance
    front = front_matter(run)["kdhub"]
    task = resolver.registry.find("task", run.recipe.task)
    data = (provenance.get("data") or {}).get("use") or []
    told = ("use", "source", "name", "split", "rows", "fingerprint")
    return {
        "name": front["name"],
        "kind": kind,
        "task": run.recipe.task,
        "provided_by": {"distribution": task.distribution, "version": task.version},
        **{key: front[key] for key in _OF_CARD if key in front},
        "recipe": RECIPE,
        "report": REPORT,
        "data": [{key: d.get(key) for key in told} for d in data],
    }


def _eval_results(run: Run, report: Report) -> list[dict[str, Any]]:
    """The primary number on each data set of the Hub, in the form of the Hub's `.eval_results`."""
    used = {d.get("name"): d.get("from") for d in (run.provenance.get("data") or {}).get("use") or []}
    entries = []
    for line in report.headline():
        origin = used.get(line.dataset)
        if not isinstance(origin, Mapping) or origin.get("kind") != "hub" or line.value(STUDENT) is None:
            continue
        dataset = {"id": origin["repo"], "task_id": origin.get("config") or "default"}
        if revision := origin.get("revision"):
            dataset["revision"] = revision
        entries.append(
            {
                "dataset": dataset,
                "value": round(line.value(STUDENT), 6),
                "notes": f"{line.metric}, split {line.split}, measured by kdhub",
            }
        )
    return entries


# -- what stands against it -----------------------------------------------------------------------------------


def _withheld_problems(reasons: Sequence[str], despite: Sequence[str]) -> list[str]:
    """Reasons that nobody repeated, and what was repeated and is none of them."""
    repeated, given = [_alike(one) for one in despite], [_alike(one) for one in reasons]
    unknown = [one for one in despite if _alike(one) not in given]
    said = f"the student says {', '.join(map(repr, reasons))}" if reasons else "nothing stands against publishing it"
    return [
        *(f"it should not be published: {one}; to publish it nevertheless, repeat this: --despite {quote(one)}"
          for one in reasons if _alike(one) not in repeated),
        *(f"--despite {quote(one)} repeats no reason; {said}" for one in unknown),
    ]  # fmt: skip


def _alike(reason: str) -> str:
    """A reason without what gets lost when it is repeated."""
    return " ".join(str(reason).split()).rstrip(".").casefold()


def _card_problems(card: str, report: Report) -> list[str]:
    problems = [f"{CARD}: {problem}" for problem in check_card(card, report)]
    try:
        front, _ = split_card(card)
    except ValueError:
        return problems
    if front.get("license_name") == UNSTATED:
        problems.append(f"{CARD}: no licence can be stated for the student: say which with --license")
    return problems


def _file_problems(staging: Path, allowed: Collection[str]) -> list[str]:
    problems = []
    if not any(name not in (CARD, MANIFEST, RECIPE, REPORT, RESULTS_FILE, SIGNATURE) for name, _ in walk(staging)):
        problems.append("there is no student: its folder is empty")
    try:
        check_configuration(staging, name="the student")
    except UntrustedError as error:
        problems.append(error.message)
    return problems + _secrets(staging, allowed)


def _secrets(staging: Path, allowed: Collection[str]) -> list[str]:
    """Where something looks like a secret, where those of this very user stand, and where somebody's home is told.

    Args:
        allowed: `PATH:LINE` of false alarms, as people repeat them.
    """
    from huggingface_hub import get_token

    stored, found = get_token(), []
    for name, path in walk(staging):
        for at, line in enumerate(_lines(path), 1):
            secret = find(line)
            if stored and secret is None and stored in line:
                secret = ""
            home = None if secret is not None else _HOME.search(line)
            if (secret is None and home is None) or f"{name}:{at}" in allowed:
                continue
            what = f"tells a home folder ({home[0]})" if home else "looks like a secret"
            shown = f" ({secret[:4]}...)" if secret else ""
            place = "row" if path.suffix == ".parquet" else "line"
            found.append(f"{name}, {place} {at}: this {what}{shown}; if it is none, --allow-secret {quote(name)}:{at}")
            break
    return found


_HOME = re.compile(r"(?:/home/|/Users/|[A-Z]:\\\\?Users\\\\?)[A-Za-z0-9._-]+(?=[/\\])")


def _lines(path: Path) -> Any:
    """Text lines of a file; of weights and media only the head, which may carry notes; of Parquet each row as text."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(1000):
            yield from map(str, batch.to_pylist())
        return
    if path.suffix.lower() in MEDIA:
        with open(path, "rb") as file:
            yield from file.read(2**20).decode(errors="replace").splitlines()
        return
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            yield file.read(min(length, LARGEST_TEXT)).decode(errors="replace")
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from file


def _usage_problems(run: Run, staging: Path, resolver: Resolver) -> list[str]:
    """Run the lines of the card, in a process of their own, on the very files that are about to be published."""
    student = resolver.task(run.recipe.task).load(staging)
    shown = str((run.provenance.get("student") or {}).get("usage") or "")
    if shown and shown != student.usage():
        return [f"{CARD}: the usage lines are not those of this version of {run.recipe.task}: distil again"]
    # Lines of the installed code, never of a file: a run folder may come from anybody.
    code = student.usage().replace("{path}", str(staging))
    logger.info("running the usage lines of the card")
    problem = fault(code)
    return [f"{CARD}: the usage lines {problem}"] if problem else []


def _warnings(run: Run) -> list[str]:
    warnings = []
    provenance = run.provenance
    start = (provenance.get("student") or {}).get("start") or {}
    teachers = [("teacher", one) for one in models_of(provenance.get("teacher") or {})]
    for who, made_from in (*teachers, ("start", start)):
        licence = made_from.get("licence")
        if forbids_derivatives(licence):
            warnings.append(f"the licence of the {who} ({licence}) forbids derivatives; a student may be one")
    local = sorted({ref for ref in _sources(run.recipe) if ref.startswith(("path:", "/", ".", "~"))})
    if local:
        warnings.append(f"others cannot reproduce it: the recipe names {', '.join(local[:3])} on this machine")
    return warnings


def _sources(recipe: Recipe) -> list[str]:
    refs = [
        *recipe.teachers.values(),
        recipe.student,
        *(r for refs in recipe.data.values() for r in refs),
        *recipe.evaluation.data,
    ]
    return [ref.source for ref in refs]


# -- the catalogue --------------------------------------------------------------------------------------------


def _register(done: Publication, staging: Path) -> Path:
    """An entry in the first catalogue of `$KDHUB_CATALOG`, else in the user's own."""
    from kdhub.catalogue.catalog import read
    from kdhub.catalogue.models import validate

    given = os.environ.get("KDHUB_CATALOG", "").split(os.pathsep)[0]
    folder = (Path(given).expanduser() if given else config_home() / "registry") / "published"
    facts = manifest.read(staging / MANIFEST, done.repo)
    report = read_report(staging, done.repo)
    front = split_card(done.card)[0]
    cost = (front.get("kdhub") or {}).get("cost") or {}
    organisation, _, name = re.sub(r"[^a-z0-9./-]", "-", done.repo.lower()).partition("/")
    path = folder / f"{name}.yaml"
    if path.exists() and read(path).get("repo") != done.repo:  # another student of that name
        path = folder / f"{organisation}.{name}.yaml"
    entry = {
        "summary": f"{facts.values['name']}: a student for {facts.task} made with {facts.get('method', 'name')}",
        "licence": front.get("license_name") or front["license"],
        "repo": done.repo,
        "kind": done.kind,
        "commit": done.commit,
        "endpoint": done.endpoint,
        "task": facts.task,
        "method": facts.get("method", "name"),
        "teacher": facts.get("teacher", "id") or facts.get("teacher", "source"),
        "results": {
            f"{line.metric} on {line.where}": round(line.value(STUDENT), 6)
            for line in report.headline()
            if line.value(STUDENT) is not None
        },
        **{name: cost.get(metric) for name, metric in COSTS_OF.items()},
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    entry = {key: value for key, value in entry.items() if value}
    validate("published", path.stem, entry, str(path))
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=100))
    return path
