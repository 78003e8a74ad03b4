"""The contract of exporters, and `exports.json`, the list of what was exported of a student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdhub.errors import KdhubError, RunError, UnknownNameError, UsageError
from kdhub.files import changed, sealed, write_json
from kdhub.hub.files import path_problem
from kdhub.plain_json import read_json
from kdhub.plugins.registry import Entry, Registry

if TYPE_CHECKING:
    from kdhub.rows import Example
    from kdhub.student import Student

EXPORTS = "exports.json"
SCHEMA = 1


class ExportError(KdhubError):
    """An export could not be written, or what was written is not the student."""


class Exporter(ABC):
    """Writes a student in one format, and has a student run by what was written.

    Args:
        quantize: the precision of the weights, of those that its spec lists; None for that of the student.

    Attributes:
        tolerance: precision -> how far outputs may be from those of torch: the norm of the difference over that of
            torch's outputs, over all rows that are tried.
    """

    tolerance: ClassVar[Mapping[str | None, float]]

    def __init__(self, quantize: str | None = None):
        self.quantize = quantize

    @abstractmethod
    def file(self, student: Student) -> str:
        """The name of the file by which it is opened, below the student's folder, as hubs know it."""

    @abstractmethod
    def write(self, student: Student, examples: Sequence[Example], signal: str, folder: Path) -> None:
        """Write it below a student's folder.

        Args:
            examples: prepared rows, at least two, of different lengths where rows have lengths.
            signal: what the student gives when it is used (`NetworkTask.primary_signal`).

        Raises:
            CompatibilityError: this student cannot be written so, with what stands against it.
            OSError: as the system gave it.
        """

    @abstractmethod
    def attach(self, student: Student, path: Path) -> None:
        """Have a student that was just loaded answer from the exported file from here on."""

    @abstractmethod
    def usage(self, student: Student) -> str:
        """Lines of Python that use the file without kdhub; `{path}` stands for the student's folder."""


def find(name: str, quantize: str | None, task: str | None, registry: Registry | None = None) -> tuple[Entry, Exporter]:
    """An exporter by name, ready to work.

    Raises:
        UnknownNameError: no such format or precision; with close matches.
        CompatibilityError: not for this task.
        UsageError: what it needs is not installed; says what to install.
    """
    registry = registry or Registry()
    entry = registry.find("exporter", name, task)
    spec = entry.spec
    if quantize is not None and quantize not in spec.quantize:
        listed = ", ".join(spec.quantize) or "none"
        error = UnknownNameError("precision", quantize, spec.quantize, where=f"exporter {spec.name}")
        error.hint = " ".join(filter(None, (error.hint, f"It has: {listed}")))
        raise error
    if missing := [module for module in spec.requires if find_spec(module) is None]:
        raise UsageError(f"exporter {spec.name} needs {', '.join(missing)}", hint=f"pip install '{spec.extra}'")
    return entry, registry.load(entry)(quantize)


def name_of(exporter: str, quantize: str | None) -> str:
    """What an export is called in tables: `onnx`, `onnx-int8`."""
    return "-".join(filter(None, (exporter, quantize)))


def exports(folder: Path) -> dict[str, dict[str, Any]]:
    """What was exported of the student in a folder, by name; empty where nothing was.

    Raises:
        RunError: the list cannot be read, or is of another version.
    """
    path = folder / EXPORTS
    if not path.exists():
        return {}
    try:
        value = read_json(path, dict[str, Any])
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", hint="delete it, and export again") from error
    listed = value.get("exports")
    whole = isinstance(listed, dict) and all(map(_whole, listed.values()))
    if value.get("schema") != SCHEMA or not whole:
        raise RunError(f"{path} is not a list of exports of schema {SCHEMA}", hint="delete it, and export again")
    return listed


def _whole(one: Any) -> bool:
    files = one.get("files") if isinstance(one, dict) else None
    return isinstance(files, dict) and one.get("file") in files and not any(map(path_problem, files))


def note(folder: Path, name: str, facts: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
    """Put an export into the list, with size and digest of its files; what is returned stands there."""
    one = {**facts, "files": sealed(folder, files)}
    write_json(folder / EXPORTS, {"schema": SCHEMA, "exports": {**exports(folder), name: one}})
    return one


def stale(folder: Path) -> list[str]:
    """The files of exports that are not what was noted of them."""
    return [file for one in exports(folder).values() for file in changed(folder, one["files"])]


def attached(student: Student, folder: Path, name: str, registry: Registry | None = None) -> Student:
    """A student of a folder that answers from one of its exports.

    Raises:
        UnknownNameError: nothing of that name was exported.
    """
    listed = exports(folder)
    if name not in listed:
        raise UnknownNameError("export", name, listed, where=str(folder / EXPORTS))
    _, exporter = find(listed[name]["format"], listed[name].get("quantize"), student.task, registry)
    exporter.attach(student, folder / listed[name]["file"])
    return student
