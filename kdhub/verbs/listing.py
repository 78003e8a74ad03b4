"""`kdhub list` and `kdhub show`: what plugins and catalogues hold, without importing any of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kdhub.errors import PluginError, UnknownNameError
from kdhub.plugins.registry import Entry, Registry
from kdhub.specs import SPECS

KINDS = {f"{kind}s": kind for kind in SPECS}
SECTIONS = ("recipes", "comparisons", "published")
ALL = (*KINDS, *SECTIONS)

COLUMNS = {
    "methods": ("name", "tasks", "needs", "paper", "summary"),
    "teachers": ("name", "gives", "summary"),
    "students": ("name", "summary"),
    "datasets": ("name", "form", "splits", "summary"),
    "tasks": ("name", "signals", "summary"),
    "samplers": ("name", "tasks", "summary"),
    "metrics": ("name", "tasks", "form", "unit", "summary"),
    "networks": ("name", "wraps", "summary"),
    "exporters": ("name", "tasks", "quantize", "summary"),
    "recipes": ("name", "method", "summary"),
    "comparisons": ("name", "arms", "summary"),
    "published": ("name", "repo", "task", "method", "teacher", "summary"),
}


def plural(what: str) -> str:
    """The name of a list; "method", "data" and the like are understood too."""
    lists = {"data": "datasets"} | {name.removesuffix("s"): name for name in (*KINDS, "recipes", "comparisons")}
    return lists.get(what, what)


def tasks_in_short(names: Sequence[str]) -> str:
    """Task names in one line; the end that several share is said once."""
    ending = "-classification"
    several = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    others = [name for name in names if not name.endswith(ending)]
    if len(several) < 2:
        return ", ".join(names)
    return "; ".join([f"classification of {', '.join(several)}", *others])


def rows(what: str, *, task: str | None = None, teacher: str | None = None) -> list[dict[str, Any]]:
    """One record an entry: plugins first, then the catalogue's.

    Raises:
        UnknownNameError: no such kind of thing.
    """
    what = plural(what)
    if what not in ALL:
        raise UnknownNameError("list", what, ALL, how_to_list=", ".join(ALL))
    found: list[dict[str, Any]] = []
    registry = Registry()
    if task is not None:
        registry.find("task", task)
    if what in KINDS:
        kind = KINDS[what]
        entries = registry.all(kind, task)
        if teacher is not None and kind == "method":
            gives = _gives(registry, teacher, task)
            entries = [e for e in entries if any({*role.needs} <= gives for role in e.spec.teachers.values())]
        found += [_entry(e) for e in entries]
    if what != "methods":
        found += _catalogued(what, task)
    if what == "teachers":
        for record in found:
            if "source" in record and not record.get("gives"):
                with suppress(UnknownNameError, PluginError):  # its kind comes with a plugin that is not here
                    record["gives"] = sorted(_gives(registry, record["source"], record.get("task")))
    return found


def _gives(registry: Registry, teacher: str, task: str | None) -> set[str]:
    """The signals of a teacher for a task, or for any."""
    from kdhub.catalogue.catalog import default_catalog

    catalog = default_catalog()
    if teacher in catalog.names("teachers"):
        entry = catalog.get("teachers", teacher)
        teacher, task = entry["source"], task or entry.get("task")
    kind = teacher.partition(":")[0] if ":" in teacher else "hf"
    if teacher.startswith((".", "/", "~")):
        kind = "path"
    gives: set[str] = set()
    fitting = [e for e in registry.all("teacher") if kind in (e.name, *e.spec.aliases)]
    if not fitting:
        registry.find("teacher", kind)
    for entry in fitting:
        for name in (task,) if task else entry.spec.tasks or [e.name for e in registry.all("task")]:
            gives |= entry.spec.signals_for(registry.find("task", name).spec)
    return gives


def _entry(entry: Entry) -> dict[str, Any]:
    spec = entry.spec
    record = {k: v for k, v in vars(spec).items() if k not in ("api_version", "target")}
    if argument := record.get("argument"):
        record["name"] = f"{spec.name}:{argument}"
    return {"kind": spec.kind, **record, "distribution": entry.distribution, "version": entry.version}


def _catalogued(what: str, task: str | None) -> list[dict[str, Any]]:
    from kdhub.catalogue.catalog import INDEXED, default_catalog

    catalog = default_catalog()
    entries = catalog.entries(what)[0] if what in INDEXED else {n: catalog.get(what, n) for n in catalog.names(what)}
    return [_record(what, name, v) for name, v in entries.items() if task is None or v.get("task") in (None, task)]


def _record(what: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
    record = {"kind": what.removesuffix("s"), "name": name, **value}
    if what == "datasets":
        record = {**record, "form": value.get("format"), "splits": list(value.get("splits") or ())}
    return record


def show(name: str) -> list[dict[str, Any]]:
    """Everything a name means, of every kind; options of methods included.

    Raises:
        UnknownNameError: it means nothing.
    """
    from kdhub.catalogue.catalog import default_catalog

    registry, catalog, found = Registry(), default_catalog(), []
    bare, _, distribution = name.partition("@")
    for kind in SPECS:
        for entry in registry.all(kind):
            if name == entry.name or (bare == entry.name and (not distribution or entry.comes_from(distribution))):
                found.append(_entry(entry) | {"options": _options(registry, entry)} | _evidence(entry))
    sections = [section for section in ALL if section != "methods"]
    found += [_record(s, name, catalog.get(s, name)) for s in sections if (s, name) in catalog]
    if not found:
        known = [e.name for kind in SPECS for e in registry.all(kind)]
        known += [near for section in sections for near in catalog.near(section, name)]
        raise UnknownNameError("entry", name, known, how_to_list=f"kdhub list WHAT, with WHAT one of {', '.join(ALL)}")
    return found


def _evidence(entry: Entry) -> dict[str, Any]:
    """What was measured of a method's claims."""
    from kdhub.catalogue.catalog import default_catalog

    if entry.spec.kind != "method":
        return {}
    from kdhub.comparison import evidence

    found = evidence.of_method(entry.name, default_catalog())
    return {"evidence": found} if found else {}


def _options(registry: Registry, entry: Entry) -> list[dict[str, Any]]:
    """Options of a method or a teacher, and those by which a task renders: name, type, default, range, description;
    from their pydantic model."""
    if entry.spec.kind not in ("method", "teacher", "task"):
        return []
    target = registry.load(entry)
    model = getattr(target, "RenderOptions" if entry.spec.kind == "task" else "Options", None)
    return [] if model is None else fields(model, getattr(target, "defaults_for", {}))


def fields(model: Any, defaults_for: Mapping[str, Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Fields of a pydantic model: name, type, default, range, description.

    Args:
        defaults_for: see `kdhub.Method`; the descriptions say so.
    """
    schema = model.model_json_schema(by_alias=False)["properties"]
    listed = []
    for name, field in model.model_fields.items():
        limits = {k: schema[name][k] for k in _LIMITS if k in schema[name]}
        for choice in schema[name].get("anyOf", []):
            limits |= {k: choice[k] for k in _LIMITS if k in choice}
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        others = [f"; {own[name]} for {trait} tasks" for trait, own in (defaults_for or {}).items() if name in own]
        listed.append(
            {
                "name": field.alias or name,
                "type": _type(schema[name]),
                "default": default,
                "range": " ".join(f"{_LIMITS[k]} {v}" for k, v in limits.items()),
                "description": (field.description or "") + "".join(others),
            }
        )
    return listed


_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type(s) for s in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "object": "mapping"}.get(
        schema.get("type", ""), schema.get("type", "any")
    )


def describe(item: dict[str, Any]) -> str:
    """One entry for people: one of a plugin as aligned lines, one of the catalogue as the YAML it is."""
    head = f"{item['kind']} {item['name']}"
    if "distribution" not in item:
        import textwrap

        import yaml

        keys = {k: v for k, v in item.items() if k not in ("kind", "name", "schema", "form")}
        if item["kind"] == "dataset":  # `splits` is the list for tables; the entry's own has the sources
            from kdhub.catalogue.catalog import default_catalog

            keys["splits"] = default_catalog().get("datasets", item["name"])["splits"]
        return head + "\n" + textwrap.indent(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=110), "  ")
    lines = [head]
    for key, value in item.items():
        if key in {"kind", "name", "options", "aliases", "evidence"} or value in (None, "", (), [], {}, False):
            continue
        lines.append(f"  {key:<17}{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    if options := item.get("options"):
        set_by = {"method": ", each set with --set options.NAME=VALUE", "task": " of kdhub render, --set NAME=VALUE"}
        lines.append(f"  options{set_by.get(item['kind'], '')}")
        wide = max(len(o["name"]) for o in options)
        for o in options:
            bounds = f", {o['range']}" if o["range"] else ""
            lines.append(f"    {o['name']:<{wide}}  {o['default']!s:<10} {o['description']} ({o['type']}{bounds})")
    for entry in item.get("evidence", ()):
        from kdhub.comparison.evidence import table
        from kdhub.evaluation.report import aligned

        lines.append(f"  evidence of {entry['date']}, {entry['metric']} on {entry['data']}: {entry['command']}")
        lines += [f"    {line}" for line in aligned(table([entry])).splitlines()[1:]]
    return "\n".join(lines)
