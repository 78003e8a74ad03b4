"""The card of a student: the README.md made from its run folder.

    front matter    what a hub indexes: licence, start, tags, results, and a `kdhub` key with method and teacher
    body            sections (title -> Markdown) that add-ons may change through the hook `kdhub_card`

Names and texts that come from models, data sets and plugins are data: they are escaped, never trusted as Markdown.
"""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdhub.evaluation.report import (
    ASYMMETRIC,
    BEFORE,
    COSTS,
    STUDENT,
    TEACHER,
    Line,
    Report,
    Table,
    gain,
    markdown,
    number,
    percent,
    printable,
)
from kdhub.exporting.exporter import exports
from kdhub.families import MEMBER
from kdhub.recipes.chain import models_of, rows_of, writers_in
from kdhub.student import RELATIONS

SCHEMA = 1
DATASET = "dataset"
ABOUT, RESULTS, USAGE, MADE = "About", "Results", "Usage", "How it was made"
EXPORTED = "Exports"
LIMITS, LICENCE, CITATION, VERSIONS = "Limits", "Licence", "Citation", "Versions and hardware"
REQUIRED = (ABOUT, RESULTS, USAGE, MADE, LIMITS, LICENCE)

UNSTATED = "see-card"
"""The licence name where none could be stated."""

LICENCES = frozenset(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 "
    "cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 "
    "lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openmdw-1.0 openrail openrail++ osl-3.0 "
    "postgresql ofl-1.1 ncsa unlicense zlib pddl bigscience-openrail-m bigscience-bloom-rail-1.0 "
    "creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 llama2 llama3 llama3.1 llama3.2 llama3.3 "
    "llama4 gemma deepfloyd-if-license intel-research apple-amlr apple-ascl h-research "
    "fair-noncommercial-research-license".split()
)
"""Licence identifiers that hubs know; anything else is `other` with a name."""

TOGETHER = "(student queries, teacher documents)"
"""What stands behind the name of a metric that student and teacher got together."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_ARXIV = re.compile(r"(?:arXiv:)?(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", re.IGNORECASE)
_SAVINGS = {"parameters": "parameters", "latency-p50": "on one example", "throughput": "in batches of 32"}
_PLOTS = {
    "family.png": "What each member scores, against its size; the line joins the best of their size",
    "retention.png": "What was kept of the teacher's score, against size and latency",
    "truncation.png": "The score when vectors are cut to their first dimensions",
    "loss.png": "Loss and learning rate during training",
}


def render_card(run: Any, path: str = "student", licence: str | None = None, despite: Sequence[str] = ()) -> str:
    """The whole card of a run.

    Args:
        run: a `kdhub.Run`; only its folder's files are read.
        path: what the usage lines load: the folder beside the card, or the repository it is published to.
        licence: what its publisher says; by default that of teacher and start, where they have one and the same.
        despite: the reasons against publishing it that its publisher repeated.
    """
    return assemble(front_matter(run, licence, despite), sections(run, path, licence, despite))


def assemble(front: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """Front matter and sections as one text. `About` stands under the title without a heading; empty ones are out."""
    name = (front.get("kdhub") or {}).get("name") or "student"
    head = yaml.dump(dict(front), Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True, width=100)
    parts = [f"# {text(name)}"]
    for title, body in sections.items():
        if body and body.strip():
            parts.append(body.strip() if title == ABOUT else f"## {text(title)}\n\n{body.strip()}")
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


class _WithoutAliases(yaml.SafeDumper):
    """A list that stands in two places is written twice: what strangers read has no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# -- front matter ---------------------------------------------------------------------------------------------


def front_matter(run: Any, licence: str | None = None, despite: Sequence[str] = ()) -> dict[str, Any]:
    """What a hub indexes, as plain values."""
    facts = _Facts(run, licence, despite)
    student, teacher, method = facts.student, facts.teacher, facts.method
    front: dict[str, Any] = {} if facts.is_rows else {"library_name": student.get("library") or "kdhub"}
    if student.get("pipeline_tag") and not facts.is_rows:
        front["pipeline_tag"] = student["pipeline_tag"]
    if facts.languages:
        front["language"] = facts.languages
    front.update(_licence(facts)[0])
    front["tags"] = facts.tags
    if facts.base_model and not facts.is_rows:
        front["base_model"] = facts.base_model
        front["base_model_relation"] = (student.get("start") or {}).get("relation") or RELATIONS[0]
    if datasets := _unique(_hub_id(d) for d in facts.data(but="evaluation")):
        front["source_datasets" if facts.is_rows else "datasets"] = datasets
    if facts.is_rows and (facts.writers or facts.teacher):
        front["language_creators" if facts.writers else "annotations_creators"] = ["machine-generated"]
    front.update(student.get("front_matter") or {})
    if results := _results(facts):
        front["model-index"] = [{"name": facts.name, "results": results}]
    front["kdhub"] = _pruned(
        {
            "schema": SCHEMA,
            "name": facts.name,
            "kind": facts.kind if facts.is_rows else None,
            "task": facts.recipe.get("task"),
            "method": {k: method.get(k) for k in ("name", "distribution", "version", "paper")},
            "teacher": {k: teacher.get(k) for k in ("source", "id", "revision")},
            "roles": {one["role"]: {k: one.get(k) for k in ("source", "id", "revision")} for one in facts.roles},
            "writers": facts.writers if facts.is_rows else None,
            "start": {k: (student.get("start") or {}).get(k) for k in ("source", "base_model", "revision", "how")},
            "withheld": facts.withheld,
            "published_despite": facts.despite,
            "seed": facts.seed,
            "recipe_sha256": facts.recipe_digest,
            "cost": {line.metric: line.value(STUDENT) for line in facts.report.costs()},
            "members": {
                name: {"cut": (student.get("members") or {}).get(name), **size.costs}
                for name, size in facts.report.sizes.members.items()
            },
            "member": facts.student.get("member"),
            "versions": (facts.environment.get("versions") or {}),
        }
    )
    return front


def _results(facts: _Facts) -> list[dict[str, Any]]:
    """The student's plain measures in the form of the Hub's `model-index`."""
    entries: dict[tuple, dict[str, Any]] = {}
    known = {d.get("name") or d.get("source"): _hub_id(d) for d in facts.data()}
    kind = facts.student.get("pipeline_tag") or facts.recipe.get("task") or "other"
    sizes = facts.report.sizes
    for m in facts.report.measures:
        if m.dataset is None or m.value is None or not math.isfinite(m.value):
            continue
        # Of a family each member has the metric that its members are compared by.
        of_size = (m.metric, m.dataset, m.split) == (sizes.metric, sizes.dataset, sizes.split)
        member = m.variant.get(MEMBER) if len(m.variant) == 1 and of_size else None
        if m.variant and member is None:
            continue
        if m.subject not in (STUDENT, ASYMMETRIC):
            continue
        entry = entries.setdefault(
            (m.dataset, m.split),
            {
                "task": {"type": kind, "name": str(facts.recipe.get("task") or kind)},
                "dataset": _pruned(
                    {"type": known.get(m.dataset) or _slug(m.dataset), "name": printable(m.dataset), "split": m.split}
                ),
                "metrics": [],
            },
        )
        named = m.metric if m.subject == STUDENT else f"{m.metric} {TOGETHER}"
        value = {"type": m.metric, "value": round(float(m.value), 6), "name": named}
        if member is not None:
            value |= {"name": f"{named}, member {printable(member)}", "args": {MEMBER: member}}
        entry["metrics"].append(value)
    return list(entries.values())


def _licence(facts: _Facts) -> tuple[dict[str, Any], str]:
    """Front-matter keys, and the sentences that go with them.

    A student inherits from the weights it started with and from the teacher whose outputs it was fitted to; rows from
    the rows they were made of as well. Only when all of them are known and the same is that licence the student's; else
    a person has to look.
    """
    start = facts.student.get("start") or {}
    sources = {}
    made = {one["via"][0] for one in facts.lineage if one.get("via")}
    for one in facts.taught_by:
        if one.get("source") not in made:
            sources[" ".join(filter(None, ("teacher", one.get("role"))))] = one.get("licence")
    if start.get("base_model"):
        sources["start"] = start.get("licence")
    if facts.is_rows:
        sources |= {str(d.get("source")): d.get("licence") for d in facts.data(but="evaluation")}
    sources |= {_part(one): one.get("licence") for one in facts.lineage}
    told = "; ".join(f"{who}: {code(lic) if lic else 'unknown'}" for who, lic in sources.items())
    forbidding = [f"{who} ({code(lic)})" for who, lic in sources.items() if forbids_derivatives(lic)]
    ids = {str(lic).strip().lower() if lic else None for lic in sources.values()}
    sentences = [f"Licences of what it was made from: {told}."] if told else []
    if facts.licence:
        known = facts.licence.lower() in LICENCES
        keys = {"license": facts.licence.lower()} if known else _other_licence(facts.licence)
        sentences.insert(0, f"Its publisher states {code(facts.licence)}.")
    elif len(ids) == 1 and (only := next(iter(ids))) in LICENCES:
        keys = {"license": only}
        sentences.insert(0, f"This student carries over {code(only)}.")
    else:
        single = next(iter(ids)) if len(ids) == 1 else None
        keys = _other_licence(single)
        why = (
            "at least one of them is not known"
            if None in ids
            else "nothing says which"
            if not ids
            else "they differ"
            if len(ids) > 1
            else "it is not one of the standard ones"
        )
        sentences.append(f"No standard licence can be stated, because {why}: check before you use or share it.")
    if forbidding:
        sentences.append(f"The licence of the {_and(forbidding)} forbids derivatives, and a student may be one.")
    data = [f"{code(d.get('source', '?'))} ({code(d['licence']) if d.get('licence') else 'unknown'})"
            for d in _once(facts.data(but="evaluation"))]  # fmt: skip
    if data:
        sentences.append(f"Training data: {', '.join(data)}.")
    return keys, " ".join(sentences)


def _part(one: Mapping[str, Any]) -> str:
    """A model of the lineage, by what it was."""
    through = f" through {_and([code(link) for link in one['via']])}" if one.get("via") else ""
    what = {"data": "model that data names"}.get(str(one.get("as")), text(one.get("as") or "model"))
    return f"{what} {code(one.get('id') or one.get('source'))}{through}"


def forbids_derivatives(licence: Any) -> bool:
    """Whether a licence is one of those that allow copies and nothing made from them."""
    return bool(re.search(r"(?:^|-)nd(?:-|$)", str(licence or "").lower()))


def _other_licence(name: str | None) -> dict[str, str]:
    return {"license": "other", "license_name": _slug(name) if name else UNSTATED}


# -- sections -------------------------------------------------------------------------------------------------


def sections(
    run: Any, path: str = "student", licence: str | None = None, despite: Sequence[str] = ()
) -> dict[str, str]:
    """The body: title -> Markdown, in the order they are printed."""
    facts = _Facts(run, licence, despite)
    return {
        ABOUT: _about(facts),
        RESULTS: _results_section(facts),
        USAGE: _usage(facts, path),
        EXPORTED: _exported(facts, path),
        MADE: _made(facts),
        LIMITS: _limits(facts),
        LICENCE: _licence(facts)[1],
        CITATION: _citation(facts),
        VERSIONS: _versions(facts),
    }


def _about(facts: _Facts) -> str:
    method, start = facts.method, facts.student.get("start") or {}
    task = str(facts.recipe.get("task") or "").replace("-", " ")
    what = "A data set" if facts.is_rows else f"A student for {text(task)}" if task else "A student"
    told = []
    for one in facts.taught_by:
        at = f" at {code(one['revision'])}" if one.get("revision") else ""
        told.append(f"{code(_id(one))}{at}" + (f" ({text(one['role'])})" if one.get("role") else ""))
    what += f", distilled from {_and(told)}" if told else ""
    what += f" with the method {code(method['name'])}"
    what += f" ({text(method['summary']).rstrip('.')})." if method.get("summary") else "."
    more = []
    if facts.recipe.get("summary"):
        summary = text(facts.recipe["summary"]).rstrip(".") + "."
        more.append(summary[0].upper() + summary[1:])
    if start.get("how") or start.get("base_model"):
        of = f" of {_and([code(base) for base in many(start['base_model'])])}" if start.get("base_model") else ""
        how = text(start["how"]) if start.get("how") else "the weights"
        more.append(f"It started as {how}{of}.")
    if parameters := facts.student.get("parameters"):
        kind = facts.student.get("dtype", "float32")
        saved = f", saved in {kind}" if kind in ("bfloat16", "float16") else ""
        more.append(f"It has {number(parameters, 'parameters')} parameters{saved}.")
    if members := list(facts.report.sizes.members):
        named = [code(name) for name in members]
        some = _and(named) if len(named) <= 6 else f"{named[0]} to {named[-1]}"
        more.append(f"It is a family of {len(members)} sizes from one training: {some}.")
    if member := facts.student.get("member"):
        more.append(f"It is the member {code(member.get('name'))} of a family of {member.get('of')} from one training.")
    if facts.is_rows and facts.writers:
        more.append(f"Text in it was written by {_and([code(name) for name in facts.writers])}: it is synthetic.")
    lines = [_headline(line) for line in facts.report.headline() if line.value(STUDENT) is not None]
    costs = {line.metric: gain(line) for line in facts.report.costs()}
    savings = [f"{costs[metric]} {words}" for metric, words in _SAVINGS.items() if costs.get(metric)]
    if savings:
        lines.append(f"Against the teacher: {_and(savings)}.")
    return "\n\n".join([" ".join([what, *more]), "\n".join(f"- {line}" for line in lines)]).strip()


def _headline(line: Line) -> str:
    kept, before = line.kept(STUDENT), line.kept(BEFORE)
    value = number(line.value(STUDENT), line.any.unit)
    if kept is None:
        return f"{code(line.metric)} on {code(line.where)}: **{value}**."
    start = f"; before training it kept {percent(before)}" if before is not None else ""
    return (
        f"**{percent(kept)}** of the teacher's {code(line.metric)} on {code(line.where)} "
        f"({value} of {number(line.value(TEACHER), line.any.unit)}{start})."
    )


def _results_section(facts: _Facts) -> str:
    tables = facts.report.tables()
    if not tables:
        return "Nothing was measured: this student has not been evaluated."
    blocks = []
    for table in tables:
        body = markdown(table, text)
        if len(table.rows) > 12 and blocks:
            blocks.append(f"<details>\n<summary>{text(table.title)}</summary>\n\n{body}\n\n</details>")
        else:
            blocks.append(f"**{text(table.title)}**\n\n{body}")
    if any(line.kept(STUDENT) is not None for line in facts.report.lines()):
        blocks.append("*kept* is the number over the teacher's, *before* the student before training.")
    blocks += [
        f"![{words}](plots/{name})" for name, words in _PLOTS.items() if (facts.folder / "plots" / name).is_file()
    ]
    for one in facts.pictures:
        said = text(one["sentence"])
        blocks.append(f"![{said}]({one['file']})\n\n{said} Shown: {text(one['of'])}.")
    return "\n\n".join(blocks)


def _usage(facts: _Facts, path: str) -> str:
    usage = facts.student.get("usage") or 'import kdhub\nstudent = kdhub.load("{path}")'
    return fence(str(usage).replace("{path}", path.replace("\\", "/").replace('"', "")), "python")


def _exported(facts: _Facts, path: str) -> str:
    """The student in other formats: files, how far from torch, scores and times as they were measured."""
    blocks, rows, heads = [], [], []
    for name, one in facts.exports.items():
        own = [m for m in one.get("measures") or () if m.get("subject") == name and m.get("value") is not None]
        cells = {" on ".join(filter(None, (m["metric"], m["dataset"]))): m for m in own if m.get("dataset")}
        cells |= {COSTS[m["metric"]][0]: m for m in own if m["metric"] in COSTS}
        heads += [head for head in cells if head not in heads]
        rows.append((one, {head: number(m["value"], m.get("unit", "")) + _times(m) for head, m in cells.items()}))
    for one, cells in rows:
        size = number(sum(file["size"] for file in one["files"].values()), "bytes")
        cells |= {"file": one["file"], "from torch": f"{one['difference']:.2g}", COSTS["disk"][0]: size}
        blocks.append(fence(str(one["usage"]).replace("{path}", path.replace('"', "")), "python"))
    if not rows:
        return ""
    heads = ["file", "from torch", *dict.fromkeys((COSTS["disk"][0], *heads))]
    table = Table("", heads, [[cells.get(head, "") for head in heads] for _, cells in rows])
    said = "*from torch* is the norm of the difference of outputs over that of torch's; `exports.json` has digests."
    return "\n\n".join([markdown(table, text), said, *blocks])


def _times(measure: Mapping[str, Any]) -> str:
    """A time beside that of torch in the same rounds."""
    return f" ({measure['ratio']:.2f} of torch's)" if measure.get("ratio") else ""


def _made(facts: _Facts) -> str:
    command = fence("kdhub distill --recipe recipe.yaml", "bash")
    blocks = [f"Made by `kdhub` with one command, which makes it again:\n\n{command}"]
    rows = []
    for d in facts.data():
        count = f"{d['rows']:,}" if isinstance(d.get("rows"), int) else ""
        rows.append([d.get("use"), d.get("source"), d.get("split"), count, str(d.get("fingerprint") or "")[:12]])
    if rows:
        head = "| use | data | split | rows | fingerprint |\n| :-- | :-- | :-- | --: | :-- |\n"
        blocks.append(head + "\n".join("| " + " | ".join(text(c or "") for c in row) + " |" for row in rows))
    told = []
    for kind, s in (facts.provenance.get("signals") or {}).items():
        counts = [f"{s[k]:,} rows {k}" for k in ("computed", "found") if isinstance(s, Mapping) and s.get(k)]
        if counts:
            told.append(f"{code(kind)} ({', '.join(counts)})")
    training = facts.provenance.get("training") or {}
    sentences = [f"Outputs of the teacher, read from the signal store: {_and(told)}."] if told else []
    for kind, counts in (facts.provenance.get("spent") or {}).items():
        counts = counts if isinstance(counts, Mapping) else {}
        parts = [f"{_count(n)} {text(what.replace('_', ' '))}" for what, n in counts.items() if n]
        sentences += [f"Asked of its server for {code(kind)}: {_and(parts)}."] if parts else []
    if training.get("steps"):
        speed = f", {training['rows_per_second']:,.0f} rows/s" if training.get("rows_per_second") else ""
        took = f" in {_duration(training['seconds'])}" if training.get("seconds") else ""
        if training.get("live_teacher_rows"):
            asked = _count(training["live_teacher_rows"])
            calls = f" in {_count(training['live_teacher_calls'])} calls" if training.get("live_teacher_calls") else ""
            sentences.append(f"The teacher ran inside training, on {asked} rows{calls}.")
        sentences.append(f"{training['steps']:,} optimiser steps{took}{speed}, seed {facts.seed}.")
    else:
        sentences.append(f"Seed {facts.seed}.")
    blocks.append(" ".join(sentences))
    blocks.append(
        f"<details>\n<summary>recipe.yaml (sha256 {facts.recipe_digest[:12]})</summary>\n\n"
        f"{fence(facts.recipe_text, 'yaml')}\n\n</details>"
    )
    return "\n\n".join(blocks)


def _limits(facts: _Facts) -> str:
    report, items = facts.report, []
    for reason in facts.withheld:
        said = " Its publisher repeated this, and published it." if reason in facts.despite else ""
        items.append(f"Why it should not be published: {text(reason)}.{said}")
    items += [text(limit) for limit in facts.student.get("limits") or ()]
    examples: dict[str, int] = {}
    for m in report.measures:
        if m.dataset is not None and not m.variant:
            where = " ".join(filter(None, (m.dataset, m.split)))
            examples[where] = max(examples.get(where, 0), m.examples or 0)
    sets = [code(where) + (f" ({n:,} examples)" if n else "") for where, n in examples.items()]
    if facts.is_rows and sets:
        items.append(f"Measured are {_and(sets)}: what a model learns from these rows was not.")
    elif sets:
        items.append(f"Measured on {_and(sets)} and nothing else; other languages, domains and lengths may differ.")
    else:
        items.append("No quality was measured.")
    seeds = max((m.seeds for m in report.measures), default=1)
    if sets and seeds == 1:
        items.append("One run with one seed: differences as small as those between seeds mean nothing.")
    missing: dict[tuple[str, str], list[str]] = {}
    for m in report.measures:
        if m.value is None:
            name = COSTS[m.metric][0] if m.metric in COSTS else m.metric
            missing.setdefault((m.subject, m.note or "no reason was recorded"), []).append(name)
    for (subject, why), names in missing.items():
        items.append(f"Not measured for {code(subject)}: {text(_and(_unique(names)))} ({text(why)}).")
    costs = {line.metric for line in report.costs()}
    if not costs:
        items.append("Size, speed and memory were not measured.")
    for key, what in (
        ("truncated", "longer than the models take and cut"),
        ("skipped", "malformed and left out"),
        ("unanswered", "for which the teacher has no readable answer, left out for all"),
    ):
        counts = report.facts.get(key)
        counts = counts if isinstance(counts, Mapping) else {}
        told = [f"{code(where)} {_count(n)}" for where, n in counts.items() if n]
        if told:
            items.append(f"Rows {what}: {_and(told)}.")
    items += [text(note) for note in report.notes]
    if facts.recipe.get("teacher"):
        items.append("What the teacher gets wrong, the student was taught too.")
    elif facts.is_rows and facts.writers:
        items.append("What a model that wrote rows gets wrong stands in them.")
    return "\n".join(f"- {item}" for item in items)


def _citation(facts: _Facts) -> str:
    method = facts.method
    blocks = []
    if paper := method.get("paper"):
        found = _ARXIV.fullmatch(str(paper).strip())
        link = f"[arXiv:{found[1]}](https://arxiv.org/abs/{found[1]})" if found else text(paper)
        blocks.append(f"Method {code(method['name'])}: {link}.")
    if method.get("citation"):
        blocks.append(fence(str(method["citation"]), "bibtex"))
    return "\n\n".join(blocks)


def _versions(facts: _Facts) -> str:
    environment = facts.environment
    versions, hardware = environment.get("versions") or {}, environment.get("hardware") or {}
    told = [f"{code(k)} {text(v)}" for k, v in versions.items()]
    if environment.get("python"):
        told.insert(0, f"Python {text(environment['python'])}")
    method = facts.method
    if method.get("distribution") and method["distribution"] not in versions:
        told.append(f"{code(method['distribution'])} {text(method.get('version') or '')}".strip())
    machine = [text(hardware[k]) for k in ("processor", "machine") if hardware.get(k)][:1]
    if hardware.get("cores"):
        machine.append(f"{hardware['cores']} cores, {hardware.get('threads', '?')} threads used")
    if isinstance(hardware.get("memory_bytes"), int):
        machine.append(f"{number(hardware['memory_bytes'], 'bytes')} memory")
    machine += [text(gpu) for gpu in hardware.get("gpus") or []]
    lines = [f"{', '.join(told)}."] if told else []
    if isinstance(others := facts.provenance.get("resumed_with"), Mapping):
        lines.append(f"Resumed with {', '.join(f'{code(k)} {text(v)}' for k, v in others.items())}.")
    lines += [f"Trained and measured on: {', '.join(machine)}."] if machine else []
    return "\n\n".join(lines)


# -- escaping -------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """Anything as plain text inside Markdown: one line, no HTML, no links, no table bars, no emphasis."""
    plain = html.escape(printable(value), quote=False)
    plain = re.sub(r"([\\`*_\[\]|~{}])", r"\\\1", plain)
    # Nothing at the start may make a heading, a list, a quote or a rule of it.
    plain = re.sub(r"^([#+=-])", r"\\\1", plain)
    plain = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", plain)
    # A bare address would become a link.
    return re.sub(r"\bwww\.", "www&#46;", plain.replace("://", "&#58;//"), flags=re.IGNORECASE)


def code(value: Any) -> str:
    """A name as code: one line, nothing in it means anything."""
    plain = printable(value) or "?"
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", plain)), default=0) + 1)
    return f"{ticks} {plain} {ticks}" if "`" in plain else f"`{plain}`"


def fence(content: str, language: str = "") -> str:
    """A block of code that its content cannot end."""
    longest = max((len(run) for run in re.findall(r"`{3,}", content)), default=2)
    ticks = "`" * (longest + 1)
    return f"{ticks}{language}\n{content.rstrip()}\n{ticks}"


# -- inside ---------------------------------------------------------------------------------------------------


class _Facts:
    """What the run folder says, with every piece optional."""

    def __init__(self, run: Any, licence: str | None = None, despite: Sequence[str] = ()):
        self.folder, self.licence = Path(run.folder), printable(licence) if licence else None
        self.despite = list(despite)
        self.recipe: dict[str, Any] = run.recipe.to_dict()
        self._links = rows_of(run.recipe)
        self.recipe_text: str = run.recipe.to_yaml()
        self.recipe_digest = hashlib.sha256(self.recipe_text.encode()).hexdigest()
        self.provenance = run.provenance
        self.report = Report.from_dict(run.report) if run.report else Report()
        part = lambda key: value if isinstance(value := self.provenance.get(key), Mapping) else {}  # noqa: E731
        asked = self.recipe.get("teacher")
        asked = {"source": asked["source"] if isinstance(asked, Mapping) else asked} if asked else {}
        self.teacher, self.student = {**asked, **part("teacher")}, part("student")
        self.method = {"name": self.recipe["method"], **part("method")}
        self.environment = part("environment")
        self.seed = self.provenance.get("seed", self.recipe.get("seed", 0))
        self.name = printable(self.recipe.get("name") or f"{self.recipe['task']}-{self.recipe['method']}")

    @property
    def kind(self) -> str:
        """`model` or `dataset`."""
        return str(self.student.get("kind") or "model")

    @property
    def is_rows(self) -> bool:
        return self.kind == DATASET

    @property
    def writers(self) -> list[str]:
        """The models that wrote text in the training rows: the recipe's teacher where its texts were read, and those
        behind the data, also behind the rows that other recipes left."""
        found = writers_in(self.provenance)
        own = [one for one in self.lineage if one.get("as") == "data"]
        found += [one for one in own if not one.get("via") or one["via"][0] in self._links]
        return [printable(name) for name in _unique(map(_id, found))]

    @property
    def withheld(self) -> list[str]:
        """Why it should not be published: what it says itself, and the terms of the models that it was made with."""
        models = [one for one in (*models_of(self.teacher), *self.lineage) if one.get("terms")]
        terms = [f"terms of {_id(one)}: {one['terms']}" for one in models]
        return [printable(one).rstrip(".") for one in _unique((*(self.student.get("withheld") or ()), *terms))]

    @property
    def roles(self) -> list[Mapping[str, Any]]:
        """The teachers of a method that has several by role."""
        members = self.teacher.get("members")
        found = members if isinstance(members, list) else []
        return [one for one in found if isinstance(one, Mapping) and one.get("role") and _id(one)]

    @property
    def taught_by(self) -> list[Mapping[str, Any]]:
        """Its teachers: those with roles, else the one of the recipe, if it has one."""
        return self.roles or ([self.teacher] if _id(self.teacher) else [])

    @property
    def lineage(self) -> list[Mapping[str, Any]]:
        """Models that data sets name, and those that the students of a chain were made with."""
        return [one for one in self.provenance.get("lineage") or () if isinstance(one, Mapping)]

    @property
    def exports(self) -> dict[str, Any]:
        """What was exported of the student, by name."""
        return exports(self.folder / "student")

    @property
    def pictures(self) -> list[Mapping[str, str]]:
        """What the task drew of the first rows, as far as it is there."""
        return [one for one in self.provenance.get("pictures") or () if (self.folder / one["file"]).is_file()]

    def data(self, but: str | None = None) -> list[Mapping[str, Any]]:
        """Data sets in use, training first; without those of one use."""
        entries = (self.provenance.get("data") or {}).get("use") or []
        entries = [d for d in entries if isinstance(d, Mapping) and d.get("use") != but]
        return sorted(entries, key=lambda d: d.get("use") == "evaluation")

    @property
    def base_model(self) -> str | list[str] | None:
        """One or several, all of them on a hub."""
        base = (self.student.get("start") or {}).get("base_model")
        return base if base and all(isinstance(one, str) and HUB_ID.fullmatch(one) for one in many(base)) else None

    @property
    def tags(self) -> list[str]:
        tags = ["kdhub", "knowledge-distillation", f"kdhub-method:{self.method['name']}"]
        tags += [f"kdhub-teacher:{_id(one)}" for one in self.taught_by]
        tags += [f"kdhub-teacher:{one['id']}" for one in self.lineage if one.get("id") and one.get("as") != "start"]
        tags += [f"kdhub-task:{self.recipe['task']}"]
        tags += [str(one["format"]) for one in self.exports.values()]
        tags += ["synthetic"] if self.is_rows and self.writers else []
        kinds = [self.method, *self.data(but="evaluation")]
        return [printable(tag) for tag in _unique((*tags, *(f"kdhub-{t}" for k in kinds for t in k.get("tags") or ())))]

    @property
    def languages(self) -> list[str]:
        value = self.provenance.get("language") or self.student.get("language") or []
        value = [value] if isinstance(value, str) else value
        return [v for v in value if isinstance(v, str) and re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,4})?|multilingual", v)]


def many(value: Any) -> list[Any]:
    """One or several as a list."""
    return value if isinstance(value, list) else [value]


def _id(teacher: Mapping[str, Any]) -> Any:
    return teacher.get("id") or teacher.get("source")


def _hub_id(entry: Mapping[str, Any]) -> str | None:
    """The Hub id of a data set in use, when its rows came from there."""
    origin = entry.get("from")
    repo = origin.get("repo") if isinstance(origin, Mapping) and origin.get("kind") == "hub" else None
    return repo if isinstance(repo, str) and HUB_ID.fullmatch(repo) else None


def _slug(value: Any) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", printable(value).lower()).strip("-.") or "unnamed"


def _pruned(value: Any) -> Any:
    """Without keys that say nothing."""
    if isinstance(value, Mapping):
        kept = {k: _pruned(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in (None, "", {}, [])}
    return value


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(v for v in values if v))


def _once(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({str(d.get("source")): d for d in entries}.values())


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _count(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_count(n)} {text(cause)}" for cause, n in value.items())
    return f"{value:,}" if isinstance(value, int) else text(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
