"""Every error kdhub raises on purpose.

    KdhubError                  the work failed (exit 1)
     |- UsageError              wrong usage or recipe (exit 2)
     |   |- UnknownNameError    a name nobody provides
     |   |- RecipeError         wrong keys, types or ranges in a recipe or catalogue file
     |   '- CompatibilityError  method, teacher, student and data do not fit together
     |- PluginError             a plugin's fault (exit 3)
     |- HubError                the hub, the network, or an untrusted repository (exit 4)
     |   |- UnreachableError    no hub answers, or the network is switched off
     |   |- NotFoundError       no such repository, revision or file there, or none for this token
     |   '- UntrustedError      a repository that would run code or write where it must not
     |- PublishError            what is to be published is not fit for it
     |- DataError               empty or malformed data
     |   '- UnavailableError    no source of it can be had here
     |- ShapeError              two arrays that do not fit
     |- TeacherError            the teacher gave NaN, a wrong shape, or nothing
     |- TrainingError           the loss is NaN, or training cannot go on
     |- RunError                a run folder in use, damaged, or not a run
     |- AwaitingError           a run waits for what people have to give it (exit 5)
     '- StoreError              the signal store is damaged, full or not writable

Libraries raise; only `kdhub.cli` prints. A message says what was wrong and where, with both sides;
`hint` says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum

from kdhub.secrets import redact


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PLUGIN = 3
    HUB = 4
    AWAITING = 5


class KdhubError(Exception):
    """Base of all errors kdhub raises on purpose.

    Args:
        message: what was wrong and where, one sentence.
        hint: what to do next, or None.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str | None = None):
        self.message = redact(message)
        self.hint = hint and redact(hint)
        super().__init__(self.message)

    def to_dict(self) -> dict:
        """The error as one JSON object, for `--json`."""
        return {"error": type(self).__name__, "message": self.message, "hint": self.hint}


class UsageError(KdhubError):
    exit_code = ExitCode.USAGE


class UnknownNameError(UsageError):
    """A name nobody provides. Carries up to three close matches.

    Args:
        kind: what was looked for: "method", "teacher", "option", ...
        name: the name as it was given.
        known: every valid name.
        how_to_list: the command that lists all of them.
        where: file and key, when the name stands in a file.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str],
        *,
        how_to_list: str | None = None,
        where: str | None = None,
    ):
        self.kind, self.name = kind, name
        self.matches = close_matches(name, known)
        place = f" ({where})" if where else ""
        parts = []
        if self.matches:
            parts.append("Did you mean " + _or_list(self.matches) + "?")
        if how_to_list:
            parts.append(f"All of them: {how_to_list}")
        super().__init__(f"no {kind} named {name!r}{place}", hint=" ".join(parts) or None)


class RecipeError(UsageError):
    """One or more faults of a recipe or catalogue file, all shown at once.

    Args:
        problems: one sentence each, already holding file and key.
    """

    def __init__(self, problems: Sequence[str], *, hint: str | None = None):
        self.problems = list(problems)
        head = self.problems[0] if len(self.problems) == 1 else f"{len(self.problems)} errors in the recipe:"
        body = "" if len(self.problems) == 1 else "\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(head + body, hint=hint)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "problems": self.problems}


class CompatibilityError(UsageError):
    """Method, teacher, student and data do not fit; raised before anything is loaded."""


class PluginError(KdhubError):
    """A plugin is broken, incompatible, or clashes with another. `__cause__` is the original error."""

    exit_code = ExitCode.PLUGIN


class HubError(KdhubError):
    exit_code = ExitCode.HUB


class UnreachableError(HubError):
    pass


class NotFoundError(HubError):
    pass


class UntrustedError(HubError):
    """A repository or folder that would run code, or holds what a student may not hold."""


class PublishError(KdhubError):
    """What is to be published is not fit for it.

    Args:
        what: the run or folder.
        problems: one sentence each, all that were found.
    """

    def __init__(self, what: str, problems: Sequence[str], *, hint: str | None = None):
        self.problems = list(problems)
        listed = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{what} cannot be published:{listed}", hint=hint)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "problems": self.problems}


class DataError(KdhubError):
    """Empty or malformed data. `rows` are the numbers of the first bad rows, counted from 1."""

    def __init__(self, message: str, *, rows: Sequence[int] = (), hint: str | None = None):
        self.rows = list(rows)
        super().__init__(message, hint=hint)


class UnavailableError(DataError):
    """A data set none of whose sources can be had here; an evaluation may be told to do without it."""


class ShapeError(KdhubError):
    pass


class TeacherError(KdhubError):
    pass


class TrainingError(KdhubError):
    pass


class RunError(KdhubError):
    pass


class InUseError(RunError):
    """Another job works in the run folder."""


class AwaitingError(KdhubError):
    """A run stops until people have given it something (labels), and goes on with --resume."""

    exit_code = ExitCode.AWAITING


class StoreError(KdhubError):
    pass


def close_matches(name: str, known: Iterable[str]) -> list[str]:
    """At most three names like `name`, best first."""
    known = sorted(set(known))
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    # A prefix is what people type when they remember half of a name; difflib scores it low.
    found += [k for k in known if k.startswith(name) and k not in found]
    return found[:3]


def _or_list(names: Sequence[str]) -> str:
    quoted = [repr(n) for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
