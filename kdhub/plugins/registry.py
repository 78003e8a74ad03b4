"""From a name to what a plugin provides: bare names, aliases, qualified names, and whose fault it is.

    name                a name or an alias, of whichever distribution has it
    name@distribution   the one of that distribution

Two distributions may provide the same name for different tasks; the task then decides. When they provide it for the
same task, only the bare name is an error; the qualified forms always work.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

from kdhub.errors import CompatibilityError, PluginError, UnknownNameError, UsageError
from kdhub.plugins.discovery import PluginRecord, Plugins, canonical, get_plugins, overlap
from kdhub.specs import SPECS, Spec

logger = logging.getLogger("kdhub")


@dataclass(frozen=True)
class Entry:
    """A spec and who provides it.

    Attributes:
        spec: what the plugin declares.
        distribution: the package it comes from.
        version: of the distribution; "" when unknown.
    """

    spec: Spec
    distribution: str
    version: str

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def qualified(self) -> str:
        """The form no other distribution can claim."""
        return f"{self.spec.name}@{self.distribution}"

    @property
    def provider(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()

    def comes_from(self, distribution: str) -> bool:
        """Whether it comes with a distribution or did before, the name in any spelling pip accepts."""
        return canonical(distribution) in map(canonical, (self.distribution, *self.spec.formerly))


class Registry:
    """What the plugins provide, by kind and name.

    Args:
        plugins: where to look; by default those of the process.
    """

    def __init__(self, plugins: Plugins | None = None):
        self.plugins = get_plugins() if plugins is None else plugins

    @property
    def _index(self) -> tuple[dict[str, list[Entry]], dict[tuple[str, str], list[Entry]]]:
        """Entries by kind, and by kind and name: one index for all registries of the same plugins."""
        if self.plugins.index is None:
            entries: dict[str, list[Entry]] = {kind: [] for kind in SPECS}
            named: dict[tuple[str, str], list[Entry]] = {}
            for record in self.plugins.records:
                for spec in record.specs if record.usable else ():
                    entries[spec.kind].append(Entry(spec, record.distribution, record.version))
            for kind, of_kind in entries.items():
                of_kind.sort(key=lambda entry: (entry.name, canonical(entry.distribution)))
                for entry in of_kind:
                    for name in (entry.name, *entry.spec.aliases):
                        named.setdefault((kind, name), []).append(entry)
            self.plugins.index = entries, named
        return self.plugins.index

    def all(self, kind: str, task: str | None = None) -> list[Entry]:
        """Every entry of a kind ("method", "teacher", ...), sorted by name; with `task`, those that work for it."""
        if kind not in SPECS:
            raise ValueError(f"no kind of plugin named {kind!r}: {', '.join(SPECS)}")
        entries, _ = self._index
        return [entry for entry in entries[kind] if entry.spec.fits_task(task)]

    def find(self, kind: str, name: str, task: str | None = None) -> Entry:
        """The entry a name means.

        Args:
            kind: "method", "teacher", "student", "dataset", "task", "sampler" or "metric".
            name: a name, an alias, or either with "@distribution".
            task: what it must work for; None when that is not known yet.

        Raises:
            UnknownNameError: nobody provides it; carries close matches.
            CompatibilityError: it exists, but not for this task.
            UsageError: it exists for several tasks, and no task was given.
            PluginError: several distributions provide it for one task, or it belongs to a plugin that did not load;
                the plugin's own error is the cause.
        """
        _, named = self._index
        bare, _, distribution = name.partition("@")
        if (kind, name) in named:  # a metric's own name may hold an @: ndcg@10
            bare, distribution = name, ""
        known = named.get((kind, bare), [])
        candidates = [e for e in known if not distribution or canonical(e.distribution) == canonical(distribution)]
        if not candidates and (moved := [e for e in known if e.comes_from(distribution)]):
            _report_move(kind, name, " and ".join(e.distribution for e in moved))
            candidates = moved
        # A name wins over an alias: nobody may take over another's name by calling it an alias.
        own = [entry for entry in candidates if entry.name == bare]
        aliased = [entry for entry in candidates if entry.name != bare]
        for group in (own, aliased):
            fitting = [entry for entry in group if entry.spec.fits_task(task)]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                raise _ambiguous(kind, bare, fitting)
        if record := self._culprit(kind, bare, distribution):
            raise PluginError(
                f"{kind} {name!r} belongs to a plugin that is {record.status}: {record.provider}: {record.cause}",
                hint=f"update {record.distribution}, or {record.remedy}",
            ) from record.exception
        if others := own or aliased:
            tasks = ", ".join(sorted({t for entry in others for t in entry.spec.tasks}))
            fits = ", ".join(entry.name for entry in self.all(kind, task))
            raise CompatibilityError(
                f"{kind} {name!r} works for {tasks}, not for {task}",
                hint=f"{kind}s for {task}: {fits or 'none is installed'}",
            )
        raise self._unknown(kind, name, distribution, task)

    def load(self, entry: Entry) -> Any:
        """Import what the entry's spec points at.

        Raises:
            PluginError: the import failed, or the attribute is not there; the original error is the cause.
        """
        return self.load_target(entry, "target")

    def load_target(self, entry: Entry, field: str) -> Any:
        """Import what another field of the spec points at."""
        target = getattr(entry.spec, field)
        try:
            return resolve_name(target)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{entry.spec.kind} {entry.name!r} of {entry.provider} cannot be loaded from {target}: "
                f"{type(error).__name__}: {error}",
                hint=f"the fault is in {entry.distribution} or in what it needs: "
                f"pip install --force-reinstall {entry.distribution}",
            ) from error

    def _culprit(self, kind: str, name: str, distribution: str) -> PluginRecord | None:
        """The broken plugin that would have provided a name, as far as one can tell."""
        for record in self.plugins.records:
            if not record.broken or (distribution and canonical(record.distribution) != canonical(distribution)):
                continue
            yielded = any(s.kind == kind and name in (s.name, *s.aliases) for s in record.specs)
            if distribution or yielded or record.answers_to(name) or record.answers_to(f"kdhub-{name}"):
                return record
        return None

    def _unknown(self, kind: str, name: str, distribution: str, task: str | None) -> UnknownNameError:
        entries = self.all(kind, task)
        known = [n for entry in entries for n in (entry.name, *entry.spec.aliases)]
        if distribution:
            known = [entry.qualified for entry in entries]
        error = UnknownNameError(kind, name, known, how_to_list=f"kdhub list {kind}s")
        hints = [error.hint]
        # It may be in one of these; nobody can know without loading them.
        if broken := [record.provider for record in self.plugins.records if record.broken]:
            hints.append(f"Not loaded because broken: {', '.join(broken)} (see kdhub plugins).")
        if disabled := [record.provider for record in self.plugins.records if record.status == "disabled"]:
            hints.append(f"Switched off: {', '.join(disabled)}.")
        error.hint = " ".join(hint for hint in hints if hint)
        return error


def open_network(name: str) -> Any:
    """The class of a registered network or wrapper (`NetworkSpec`), by name.

    Raises:
        UnknownNameError: no plugin here provides it.
    """
    registry = Registry()
    return registry.load(registry.find("network", name))


@cache
def _report_move(kind: str, name: str, where: str) -> None:
    """Once in a process, however often the name is looked up."""
    logger.warning("%s %s now comes with %s", kind, name, where)


def _ambiguous(kind: str, name: str, entries: Sequence[Entry]) -> UsageError | PluginError:
    clash = any(overlap(a.spec, b.spec) for i, a in enumerate(entries) for b in entries[i + 1 :])
    if clash:
        providers = " and ".join(entry.provider for entry in entries)
        return PluginError(
            f"{kind} {name!r} is provided by {providers}",
            hint="write " + " or ".join(entry.qualified for entry in entries),
        )
    choices = "; ".join(f"{entry.qualified} for {', '.join(entry.spec.tasks)}" for entry in entries)
    return UsageError(f"{kind} {name!r} means several things and no task is given", hint=choices)
