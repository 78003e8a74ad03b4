"""Finding plugins, and living with broken ones.

A plugin is an entry point in the group `kdhub` that names a light module with hooks (see `hookspecs`). Each is
loaded inside its own guard and has a `PluginRecord` that says how it went. Nothing about a plugin is silent (one line
on stderr for each that is not well, with the command that removes it) and nothing is fatal: everything else works.
A plugin is used as a whole or not at all, so a failed one provides nothing; what it had yielded before it failed stays
in its record, for `registry` to say whose fault a missing name is.

Switches:
    KDHUB_PLUGINS=a,b   only these plugins, by entry point or distribution; empty means none. kdhub's own always load.
    --no-plugins        `discover(third_party=False)`: kdhub's own and nothing else. The first-party families come
                        through the same door as everyone's, so they stay out too.
    KDHUB_STRICT=1      raise at the first fault or clash, for authors and for tests.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pluggy

from kdhub import hookspecs
from kdhub.errors import PluginError, UnknownNameError, close_matches
from kdhub.specs import API_VERSION, MAIN, SPECS, FolderFormat, MethodSpec, Role, RowForm, Spec, TaskSpec

GROUP = "kdhub"
CORE = "kdhub"
"""The distribution whose plugins no switch turns off."""

SLOW = 0.5
"""Seconds of loading from which a plugin is named: every command waits for all of them."""

Status = Literal["ok", "failed", "disabled", "incompatible", "conflict"]

# SystemExit too: a plugin that calls `sys.exit` must not end kdhub. KeyboardInterrupt is the user's, and passes.
_GUARDED = (Exception, SystemExit)
_KIND_OF_HOOK = {f"kdhub_{kind}s": kind for kind in SPECS}
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_METRIC_NAME = re.compile(_NAME.pattern + r"(@[0-9]+)?")  # ndcg@10, as everybody writes it
_ITEMS = {"formats": FolderFormat, "forms": RowForm, "reads": tuple, "roles": Role}
"""What a tuple of a spec holds, where it is not text."""
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass
class PluginRecord:
    """One plugin and how it fared.

    Attributes:
        name: of the entry point.
        distribution: what pip calls the package it came in.
        version: of the distribution; "" when unknown.
        target: the module (or "module:object") that has the hooks.
        status: "ok"; "failed" (raised, or yielded what it must not); "incompatible" (made for another kdhub);
            "disabled" (a switch, never loaded); "conflict" (works, but shares a name with another distribution).
        cause: one line for any status but "ok".
        exception: what was raised, for "failed" and "incompatible".
        declared: what it yielded, as it yielded it; of a broken one, what it yielded until then.
        named: the same by kind and name.
        specs: the same, with the tasks that traits stand for among `tasks`.
        catalogs: folders laid out like `registry/`.
        seconds: how long it took to load.
    """

    name: str
    distribution: str
    version: str
    target: str
    status: Status = "ok"
    cause: str = ""
    exception: BaseException | None = None
    declared: list[Spec] = field(default_factory=list)
    named: dict[tuple[str, str], list[Spec]] = field(default_factory=dict)
    specs: list[Spec] = field(default_factory=list)
    catalogs: list[Path] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        return self.status in ("ok", "conflict")

    @property
    def broken(self) -> bool:
        return self.status in ("failed", "incompatible")

    @property
    def provider(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()

    @property
    def remedy(self) -> str:
        """The command that takes it away."""
        if self.distribution == CORE:
            return "reinstall kdhub: pip install --force-reinstall kdhub"
        return f"remove it: kdhub plugins uninstall {self.distribution}"

    def answers_to(self, name: str) -> bool:
        """Whether `name` is its entry point or its distribution, the latter in any spelling pip accepts."""
        return name == self.name or canonical(name) == canonical(self.distribution)

    def to_dict(self) -> dict[str, Any]:
        """The record as one JSON object, for `kdhub plugins --json`."""
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("exception", "declared", "named", "specs", "catalogs")
        }
        provides: dict[str, list[str]] = {}
        for spec in self.specs if self.usable else ():
            provides.setdefault(spec.kind, []).append(spec.name)
        return {**plain, "provides": provides, "catalogs": [str(folder) for folder in self.catalogs]}


class Plugins:
    """A set of loaded plugins. Empty when made; `discover` makes one with what is installed.

    Attributes:
        records: every plugin, also those that are not well, in the order they were loaded.
    """

    def __init__(self) -> None:
        self.records: list[PluginRecord] = []
        self._strict = os.environ.get("KDHUB_STRICT", "") not in ("", "0")
        self._hooks = _Hooks("kdhub")
        self._hooks.add_hookspecs(hookspecs)
        self._reported: set[object] = set()
        self.index: Any = None
        """What `registry` made of the specs to look names up; dropped when they change."""

    def specs(self, kind: str) -> list[Spec]:
        """All specs of one kind, in the order they were yielded."""
        return [spec for record in self.records if record.usable for spec in record.specs if spec.kind == kind]

    def catalogs(self) -> list[Path]:
        """The plugins' catalogue folders."""
        return [folder for record in self.records if record.usable for folder in record.catalogs]

    def call(self, hook: str, **arguments: Any) -> None:
        """Call a life-cycle hook on every plugin that has it, each inside its own guard, last loaded first.

        A plugin that raises is reported once on stderr and the run goes on.

        Raises:
            PluginError: a plugin raised, and KDHUB_STRICT is set.
        """
        for implementation in reversed(getattr(self._hooks.hook, hook).get_hookimpls()):
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except _GUARDED as error:
                record = next(r for r in self.records if _key(r) == implementation.plugin_name)
                self._report(record, f"{hook} raised {_describe(error)}", error)

    def register(
        self, plugin: object, distribution: str = "tests", version: str = "0", name: str | None = None
    ) -> PluginRecord:
        """Add a module or object with hooks, as tests and notebooks do.

        Raises:
            PluginError: it is broken or incompatible; whoever calls this wants to know at once.
        """
        target = getattr(plugin, "__name__", type(plugin).__name__)
        record = PluginRecord(name or target.rpartition(".")[2], distribution, version, target)
        self._load(record, lambda: plugin)
        if record.broken:
            raise PluginError(f"{record.provider}: {record.cause}") from record.exception
        self.records.append(record)
        self._settle()
        return record

    def _add(self, record: PluginRecord, load: Callable[[], object], requires: Iterable[str] = ()) -> None:
        """Load a plugin that was found, whatever becomes of it."""
        began = time.perf_counter()
        self._load(record, load, requires)
        record.seconds = round(time.perf_counter() - began, 3)
        self.records.append(record)
        if record.seconds > SLOW and record.distribution != CORE:
            said = f"takes {record.seconds:.1f} s to load, which every command waits for"
            print(f"kdhub: plugin {record.name} ({record.provider}): {said}", file=sys.stderr)
        if record.broken:
            self._report(record, record.cause, record.exception)

    def _load(self, record: PluginRecord, load: Callable[[], object], requires: Iterable[str] = ()) -> None:
        """Import one plugin and read its specs; never raises, the record says how it went."""
        doing, plugin = "", None
        try:
            _check_requirements(requires)
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the one document of --json
                doing = f"cannot import {record.target}: "
                plugin = load()
                doing = ""
                self._check_new(plugin, record)
                self._hooks.register(plugin, name=_key(record))
                for hook, implementation in list(self._implementations(plugin)):
                    doing = f"{hook}: "
                    self._read(hook, implementation, record)
        except _GUARDED as error:
            record.status = "incompatible" if isinstance(error, _Incompatible) else "failed"
            record.cause, record.exception = doing + _describe(error), error
            if plugin is not None and self._hooks.get_plugin(_key(record)) is plugin:
                self._hooks.unregister(plugin)

    def _check_new(self, plugin: object, record: PluginRecord) -> None:
        if name := self._hooks.get_name(plugin):
            raise PluginError(f"{record.target} is loaded already, as {name}")
        if self._hooks.has_plugin(_key(record)):
            raise PluginError(f"there is a plugin {_key(record)} already")

    def _implementations(self, plugin: object) -> Iterator[tuple[str, pluggy.HookImpl]]:
        """The plugin's own hook functions, each with the name of its hook."""
        callers = self._hooks.get_hookcallers(plugin)
        if not callers:
            raise PluginError("has no function marked @kdhub.hookimpl")
        for caller in callers:
            # From the end: this plugin was registered last.
            implementation = next(i for i in reversed(caller.get_hookimpls()) if i.plugin is plugin)
            if not caller.has_spec():
                if implementation.optionalhook:
                    continue
                known = [name for name in vars(hookspecs) if name.startswith("kdhub_")]
                matches = close_matches(caller.name, known)
                raise PluginError(f"no hook named {caller.name!r}" + (f", {matches[0]!r} is one" if matches else ""))
            if implementation.wrapper or implementation.hookwrapper:
                raise PluginError(f"{caller.name}: wrapper hooks are not supported")
            yield caller.name, implementation

    def _read(self, hook: str, implementation: pluggy.HookImpl, record: PluginRecord) -> None:
        """Run a hook that yields, to its end: a generator fails only when it is read."""
        if kind := _KIND_OF_HOOK.get(hook):
            for spec in implementation.function() or ():
                _check_spec(spec, kind)
                self._check_once(spec, record)
                record.declared.append(spec)
                record.named.setdefault((kind, spec.name), []).append(spec)
                if spec.api_version != API_VERSION:
                    raise _Incompatible(
                        f"{spec.name!r} is made for plugin API {spec.api_version}, this kdhub has {API_VERSION}"
                    )
        elif hook == "kdhub_catalogs":
            for folder in implementation.function() or ():
                if not Path(folder).is_dir():
                    raise PluginError(f"no folder {folder}")
                record.catalogs.append(Path(folder))

    def _check_once(self, spec: Spec, record: PluginRecord) -> None:
        """One distribution may not claim a name twice: the qualified form could not tell the two apart."""
        for other in [record, *(r for r in self.records if r.usable and r.distribution == record.distribution)]:
            if any(overlap(one, spec) for one in other.named.get((spec.kind, spec.name), ())):
                raise PluginError(f"{spec.kind} {spec.name!r} is yielded twice for the same task")

    def _settle(self) -> None:
        """What follows from all plugins together: which tasks have which traits, and who shares a name."""
        usable = [record for record in self.records if record.usable]
        tasks = [spec for record in usable for spec in record.declared if isinstance(spec, TaskSpec)]
        for record in self.records:
            record.specs = [_with_tasks(spec, tasks) for spec in record.declared]
        self._note_conflicts()
        self.index = None

    def _note_conflicts(self) -> None:
        """Mark the plugins that share a name; it becomes an error when somebody uses the bare name."""
        usable = [record for record in self.records if record.usable]
        claims: dict[tuple[str, str], list[tuple[PluginRecord, Spec]]] = {}
        for record in usable:
            for spec in record.specs:
                claims.setdefault((spec.kind, spec.name), []).append((record, spec))
        claims = {key: claimants for key, claimants in claims.items() if len(claimants) > 1}
        for index, record in enumerate(usable if claims else ()):
            shared: dict[str, list[tuple[str, str]]] = {}  # other plugin -> kind and name
            for spec in record.specs:
                for other, others in claims.get((spec.kind, spec.name), ()):
                    if other.distribution != record.distribution and overlap(spec, others):
                        shared.setdefault(other.provider, []).append((spec.kind, spec.name))
            if not shared:
                continue
            phrases = [
                f"{', '.join(f'{kind} {name!r}' for kind, name in names)} with {provider}"
                for provider, names in shared.items()
            ]
            example = next(iter(shared.values()))[0][1]
            record.status = "conflict"
            record.cause = f"shares {'; '.join(phrases)} (write {example}@{record.distribution} for this one's)"
            if any(other.provider in shared for other in usable[:index]):  # one line for two that clash
                self._report(record, record.cause, None)

    def _report(self, record: PluginRecord, cause: str, error: BaseException | None) -> None:
        """One line on stderr, once; an exception instead when KDHUB_STRICT is set."""
        message = f"plugin {record.name} ({record.provider}): {cause}"
        if self._strict:
            raise PluginError(message, hint=record.remedy) from error
        if message not in self._reported:
            self._reported.add(message)
            print(f"kdhub: {message}; {record.remedy}", file=sys.stderr)


class _Hooks(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        # Most of what a module has is dunder names, and pluggy takes long to look at each.
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


class _Incompatible(PluginError):
    """Made for another kdhub."""


def discover(third_party: bool = True) -> Plugins:
    """Load what is installed: kdhub's own plugins first, then the others by distribution and name.

    Args:
        third_party: False loads kdhub's own only (`--no-plugins`); the others get the status "disabled".

    Raises:
        PluginError: a plugin is broken, incompatible or clashing, and KDHUB_STRICT is set.
        UnknownNameError: KDHUB_PLUGINS names what is not installed, and KDHUB_STRICT is set.
    """
    plugins = Plugins()
    found = _installed()
    chosen = os.environ.get("KDHUB_PLUGINS")
    wanted = None if chosen is None else [name.strip() for name in chosen.split(",") if name.strip()]
    for record, load, requires in found:
        if record.distribution != CORE and not third_party:
            record.status, record.cause = "disabled", "switched off by --no-plugins"
        elif record.distribution != CORE and wanted is not None and not any(map(record.answers_to, wanted)):
            record.status, record.cause = "disabled", "not in KDHUB_PLUGINS"
        if record.status == "disabled":
            plugins.records.append(record)
        else:
            plugins._add(record, load, requires)
    plugins._settle()
    for name in wanted or ():
        if not any(record.answers_to(name) for record in plugins.records):
            known = {n for r in plugins.records for n in (r.name, r.distribution)}
            error = UnknownNameError("plugin", name, known, how_to_list="kdhub plugins", where="KDHUB_PLUGINS")
            if plugins._strict:
                raise error
            print(f"kdhub: {error.message}. {error.hint}", file=sys.stderr)
    return plugins


_process_wide: Plugins | None = None


def get_plugins() -> Plugins:
    """The plugins of this process; the first call discovers them."""
    global _process_wide
    if _process_wide is None:
        _process_wide = discover()
    return _process_wide


def set_plugins(plugins: Plugins | None) -> None:
    """Put other plugins in place for the whole process; None lets the next `get_plugins` discover again."""
    global _process_wide
    _process_wide = plugins


def overlap(one: Spec, other: Spec) -> bool:
    """Whether there is a task that both work for."""
    return one.any_task or other.any_task or not set(one.tasks).isdisjoint(other.tasks)


def _with_tasks(spec: Spec, tasks: Iterable[TaskSpec]) -> Spec:
    """The spec with the tasks that have all its traits, and, of a method, the signals that it needs."""
    if not spec.traits or isinstance(spec, TaskSpec):
        return spec
    fitting = [task.name for task in tasks if set(spec.traits) <= set(task.traits) and _has_signals(task, spec)]
    return replace(spec, tasks=tuple(dict.fromkeys((*spec.tasks, *fitting))))


def _has_signals(task: TaskSpec, spec: Spec) -> bool:
    if not isinstance(spec, MethodSpec):
        return True
    uses = spec.needs if spec.uses is None else spec.uses
    named = [kind for role in spec.roles if not (role.tasks or role.optional) for kind in role.needs]
    return {*spec.needs, *uses, *named} <= {*task.signals, *task.writes}


def canonical(distribution: str) -> str:
    """The one spelling of a distribution's name: `Kdhub_Text` and `kdhub.text` are `kdhub-text`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _key(record: PluginRecord) -> str:
    return f"{record.name}@{record.distribution}"


def _describe(error: BaseException) -> str:
    """An exception as one line; ours without its class, which says nothing new."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _check_spec(spec: object, kind: str) -> None:
    """Refuse what would only fail later, far from the plugin that is to blame."""
    wanted = SPECS[kind]
    if not isinstance(spec, wanted):
        raise PluginError(f"yields {type(spec).__name__}, not {wanted.__name__}")
    pattern = _METRIC_NAME if kind == "metric" else _NAME
    for value in (spec.name, *spec.aliases):
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            raise PluginError(f"{value!r} is not a name (lower-case letters, digits, single hyphens)")
    if not (isinstance(spec.target, str) and _TARGET.fullmatch(spec.target)):
        raise PluginError(f"the target of {spec.name!r} is {spec.target!r}, not 'package.module:attribute'")
    for item in fields(spec):
        value = getattr(spec, item.name)
        # A plain string is the usual slip: ("x") for ("x",). It would be read letter by letter.
        if not str(item.type).startswith("tuple[") or (value is None and "None" in str(item.type)):
            continue
        of = _ITEMS.get(item.name, str)
        if not (isinstance(value, tuple) and all(isinstance(v, of) for v in value)):
            kind = "strings" if of is str else f"{of.__name__}s"
            raise PluginError(f"{item.name} of {spec.name!r} is {value!r}, not a tuple of {kind}")
    for role in getattr(spec, "roles", ()):
        twice = role.name == MAIN and (spec.needs or spec.live)
        if not _NAME.fullmatch(role.name) or role.name in ("source", "task") or twice:
            raise PluginError(f"{role.name!r} of {spec.name!r} is not a name for a role")


def _check_requirements(requires: Iterable[str]) -> None:
    """Compare the `Requires-Dist: kdhub...` lines of a distribution with this kdhub."""
    for requirement in requires:
        match = re.fullmatch(r"kdhub\s*(?:\[.*?\])?\s*\(?([^;@()]*)\)?\s*", requirement.partition(";")[0], re.I)
        specifier = match[1].strip() if match else ""
        if specifier and not _accepts(specifier, requirement.partition(";")[2].strip()):
            raise _Incompatible(f"needs kdhub{specifier}, this is {_kdhub_version()}")


@functools.cache
def _accepts(specifier: str, marker: str) -> bool:
    """Whether a requirement of kdhub is met by this one, or says nothing on this machine."""
    version = _kdhub_version()
    if not version:
        return True
    # Nearly every plugin writes numbers and plain comparisons, and `packaging` takes 16 ms to import.
    clauses = [re.fullmatch(r"\s*(<|<=|>|>=)\s*(\d+(?:\.\d+)*)\s*", clause) for clause in specifier.split(",")]
    if all(clauses) and re.fullmatch(r"\d+(\.\d+)*", version) and not marker:
        return all(_COMPARE[clause[1]](_numbers(version), _numbers(clause[2])) for clause in clauses)
    from packaging.markers import Marker
    from packaging.specifiers import SpecifierSet

    if marker and not Marker(marker).evaluate({"extra": ""}):
        return True
    return SpecifierSet(specifier).contains(version, prereleases=True)


def _numbers(version: str) -> list[int]:
    """1.0 and 1.0.0 are one version: zeros at the end do not count."""
    return [int(n) for n in re.sub(r"(\.0)+$", "", version).split(".")]


@functools.cache
def _kdhub_version() -> str:
    """The version of this kdhub; "" when it runs from a folder that was never installed."""
    from importlib import metadata

    try:
        return _about(metadata.distribution(CORE)).version
    except metadata.PackageNotFoundError:
        return ""


_Found = tuple[PluginRecord, Callable[[], object], list[str]]


def _installed() -> list[_Found]:
    """Every entry point of the group, once: kdhub's own first, then sorted. Nothing is imported yet.

    `importlib.metadata.entry_points` would do it in one call, but parses every distribution's file, and one that is
    malformed takes all the others with it.
    """
    from importlib import import_module, metadata

    # Named here, not found: kdhub without its own kinds of data is of no use, installed properly or not.
    own = PluginRecord("builtin", CORE, _kdhub_version(), "kdhub.plugins.builtin")
    found: dict[tuple[str, str], _Found] = {(CORE, own.target): (own, lambda: import_module(own.target), [])}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if GROUP not in text:
                continue
            about = _about(distribution)
            distribution, about = _first_on_path(distribution, about, text)
            for point in distribution.entry_points.select(group=GROUP):
                record = PluginRecord(point.name, about.name, about.version, point.value)
                # The first counts: an editable install may list the same thing twice.
                found.setdefault((canonical(about.name), point.value), (record, point.load, about.requires))
        except Exception as error:
            # A damaged file. Whose it is shows only in what it requires; others' damage is not our business.
            with contextlib.suppress(Exception):
                about = _about(distribution)
                if about.requires:
                    record = PluginRecord(about.name, about.name, about.version, "entry_points.txt")
                    found[canonical(about.name), record.target] = (record, functools.partial(_raise, error), [])
    return sorted(found.values(), key=lambda f: (f[0].distribution != CORE, canonical(f[0].distribution), f[0].name))


def _raise(error: BaseException) -> None:
    raise error


@dataclass(frozen=True)
class _About:
    name: str
    version: str
    requires: list[str]
    """Its requirements of kdhub, no others."""


def _about(distribution: Any) -> _About:
    """Name, version and requirements of a distribution; `distribution.metadata` takes ten times as long."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    lines = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    first = {key.lower(): value.strip() for key, _, value in reversed(lines)}
    requires = [value.strip() for key, _, value in lines if key.lower() == "requires-dist"]
    requires = [r for r in requires if re.match(r"kdhub(?![\w.-])", r, re.I)]
    return _About(first.get("name", "unknown"), first.get("version", ""), requires)


def _first_on_path(distribution: Any, about: _About, text: str) -> tuple[Any, _About]:
    """The distribution of this name that `import` would take: an earlier one may have no plugin, and hides this one."""
    from importlib import metadata

    try:
        first = metadata.distribution(about.name)
        if first.read_text("entry_points.txt") != text:
            first_about = _about(first)
            # Folders not named as wheels name them (hyphens) can be found under another's name.
            if canonical(first_about.name) == canonical(about.name):
                return first, first_about
    except metadata.PackageNotFoundError:
        pass
    return distribution, about
