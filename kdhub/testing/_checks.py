"""What a check is, which ones a plugin meets, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from unittest import SkipTest

from kdhub.errors import UnknownNameError
from kdhub.plugins.discovery import PluginRecord, canonical
from kdhub.plugins.registry import Entry, Registry
from kdhub.specs import SPECS
from kdhub.testing._bench import Bench, Group
from kdhub.testing._register import _CHECKS

Expected = Mapping[str, Mapping[str, str]]
"""Name of what is checked -> name of the check -> why it is expected to fail."""


@dataclass(frozen=True)
class Check:
    """One check of one thing a plugin provides; call it to run it.

    Attributes:
        name: of the check ("resume_is_exact").
        subject: kind and name of what is checked ("method similarity").
        expected_failure: why it is known to fail; "" when it must pass.
    """

    name: str
    subject: str
    function: Callable[[Bench], None]
    bench: Bench
    expected_failure: str = ""

    def __call__(self) -> None:
        """Run it.

        Raises:
            AssertionError: the contract is not kept; the message says how.
            unittest.SkipTest: there is nothing to check, and why. Pytest takes it for a skip.
        """
        self.bench.run_check(self.function)

    def __str__(self) -> str:
        return f"{self.subject}: {self.name}"


@dataclass(frozen=True)
class Result:
    """How a check went.

    Attributes:
        outcome: "passed", "failed", "skipped", "expected" (it failed as was said) or "surprise" (it passed although a
            failure was expected, which counts as a failure: the expectation is out of date).
        message: what was wrong, or why it was skipped or expected.
    """

    check: str
    subject: str
    outcome: str
    message: str = ""

    @property
    def bad(self) -> bool:
        return self.outcome in ("failed", "surprise")

    def to_dict(self) -> dict[str, str]:
        return {"subject": self.subject, "check": self.check, "outcome": self.outcome, "message": self.message}


def checks_of(
    plugin: str, *, kind: str | None = None, name: str | None = None, expected_failures: Expected | None = None
) -> list[Check]:
    """The checks of everything a distribution provides, in the order they should run.

    Args:
        plugin: its distribution, or the name of its entry point.
        kind, name: only these.
        expected_failures: {"similarity": {"resume_is_exact": "reason"}}.

    Raises:
        UnknownNameError: no such plugin, or it provides nothing of that kind and name.
        PluginError: it is there and did not load; the cause is its own error.
        ValueError: an expected failure without a reason, or of a check that does not exist.
    """
    # They register themselves.
    from kdhub.testing import method_checks, model_checks, part_checks, task_checks  # noqa: F401

    registry = Registry()
    records = _records(registry, plugin)
    mine = {canonical(record.distribution) for record in records}
    entries = [
        entry
        for k in SPECS
        for entry in registry.all(k)
        if canonical(entry.distribution) in mine and kind in (None, k) and name in (None, entry.name)
    ]
    if not entries:
        provided = [spec.name for record in records for spec in record.specs]
        raise UnknownNameError(kind or "plugin", name or plugin, provided, how_to_list="kdhub plugins")
    group = Group(entries, registry, {canonical(r.distribution): r for r in records})

    def of(kind: str, subject: str, entry: Entry) -> list[Check]:
        return [Check(f.__name__, f"{kind} {subject}", f, group.bench(entry)) for f in _CHECKS[kind]]

    whole = [] if kind or name else of("plugin", entries[0].distribution, entries[0])
    checks = [*whole, *(one for entry in entries for one in of(entry.spec.kind, entry.name, entry))]
    return _with_expected(checks, expected_failures or {})


def run_checks(checks: Iterable[Check]) -> Iterator[Result]:
    """Run checks one after the other; none stops the others."""
    for one in checks:
        try:
            one()
        except SkipTest as reason:
            yield Result(one.name, one.subject, "skipped", str(reason))
        except Exception as error:
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            if one.expected_failure:
                yield Result(one.name, one.subject, "expected", one.expected_failure)
            else:
                yield Result(one.name, one.subject, "failed", said)
        else:
            if one.expected_failure:
                said = f"it passes now; it was expected to fail: {one.expected_failure}"
                yield Result(one.name, one.subject, "surprise", said)
            else:
                yield Result(one.name, one.subject, "passed")


def check_plugin(plugin: str, *, expected_failures: Expected | None = None) -> list[Result]:
    """Run every check of everything a distribution provides.

    Raises:
        AssertionError: some failed; all of them are in the message. Otherwise as `checks_of`.
    """
    return _raised(list(run_checks(checks_of(plugin, expected_failures=expected_failures))))


def check_method(name: str, *, expected_failures: Mapping[str, str] | None = None) -> list[Result]:
    """Run every check of one method, by its name (`similarity` or `similarity@kdhub-similarity`).

    Raises:
        AssertionError: some failed; all of them are in the message. Otherwise as `checks_of`.
    """
    entry = Registry().find("method", name)
    expected = {entry.name: dict(expected_failures or {})}
    checks = checks_of(entry.distribution, kind="method", name=entry.name, expected_failures=expected)
    return _raised(list(run_checks(checks)))


def summary(results: Sequence[Result]) -> str:
    """`31 checks: 28 passed, 2 skipped, 1 failed as expected`."""
    words = {
        "passed": "passed",
        "failed": "failed",
        "skipped": "skipped",
        "expected": "failed as expected",
        "surprise": "passed against expectation",
    }
    counts = [(sum(r.outcome == outcome for r in results), said) for outcome, said in words.items()]
    return f"{len(results)} checks: " + ", ".join(f"{n} {said}" for n, said in counts if n)


def _raised(results: list[Result]) -> list[Result]:
    bad = [f"{r.subject}: {r.check}: {r.message}" for r in results if r.bad]
    if bad:
        raise AssertionError("\n".join([summary(results), *bad]))
    return results


def _records(registry: Registry, plugin: str) -> list[PluginRecord]:
    from kdhub.errors import PluginError

    records = [r for r in registry.plugins.records if r.answers_to(plugin)]
    if not records:
        known = [r.distribution for r in registry.plugins.records]
        raise UnknownNameError("plugin", plugin, known, how_to_list="kdhub plugins")
    for record in records:
        if not record.usable:
            raise PluginError(f"{record.provider} is {record.status}: {record.cause}", hint=record.remedy) from (
                record.exception
            )
    return records


def _with_expected(checks: list[Check], expected: Expected) -> list[Check]:
    wanted = {(name, check): reason for name, reasons in expected.items() for check, reason in reasons.items()}
    known = {(c.subject.partition(" ")[2], c.name) for c in checks}
    for (name, check_name), reason in wanted.items():
        if not str(reason).strip():
            raise ValueError(f"the expected failure of {name}, {check_name}, has no reason")
        if (name, check_name) not in known:
            raise ValueError(f"{name} has no check {check_name!r} that could be expected to fail")
    return [replace(c, expected_failure=wanted.get((c.subject.partition(" ")[2], c.name), "")) for c in checks]
