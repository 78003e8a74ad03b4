"""Installing and removing plugins: pip in the environment that kdhub runs in, and what came of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdhub.errors import KdhubError, PluginError, UnknownNameError, UsageError
from kdhub.plugins.discovery import canonical

logger = logging.getLogger("kdhub")

WARNING = "a plugin is code: it runs with your rights when it is installed and whenever kdhub uses it"


def install(packages: Sequence[str], *, editable: bool = False, upgrade: bool = False) -> dict[str, Any]:
    """Install distributions with pip, and say what they provide.

    Args:
        packages: what pip takes: a name, a folder, a wheel, `git+https://...`.
        editable: `-e`, for a folder that you work on.
        upgrade: a newer one in place of what is there.

    Returns:
        `installed`: the records of plugins that are new or other than before, as `kdhub plugins --json` has them.
        kdhub itself stays at its version: a plugin that was made for another one is refused by pip.

    Raises:
        UsageError: pip may not be used in this environment; the hint is what to type.
        KdhubError: pip failed; its last words are in the message.
        PluginError: it was installed and does not load.
    """
    if not packages:
        raise UsageError("name a package to install", hint="PACKAGE, a folder, a wheel or git+https:...")
    _check_environment("install", packages)
    before = _records()
    logger.warning(WARNING)
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "constraints.txt"
        pinned.write_text(f"kdhub=={version('kdhub')}\n")
        options = ["--upgrade"] if upgrade else []
        wanted = [part for package in packages for part in (["-e", package] if editable else [package])]
        _pip(["install", "--constraint", str(pinned), *options, *wanted], "installing " + ", ".join(packages))
    known = {_identity(record) for record in before}
    new = [record for record in _records() if editable or _identity(record) not in known]
    named = {canonical(package) for package in packages}
    mine = [r for r in new if _identity(r) not in known or canonical(r["distribution"]) in named]
    for record in mine:
        if record["status"] in ("failed", "incompatible"):
            raise PluginError(
                f"{record['distribution']} {record['version']} is installed and {record['status']}: {record['cause']}",
                hint=f"remove it: kdhub plugins uninstall {record['distribution']}",
            )
    return {"installed": mine}


def uninstall(packages: Sequence[str]) -> dict[str, Any]:
    """Remove plugins' distributions with pip.

    Returns:
        `removed`: the records that are gone.

    Raises:
        UsageError: kdhub itself, or pip may not be used here.
        UnknownNameError: no plugin is called so.
        KdhubError: pip failed.
    """
    before = _records()
    installed = {canonical(r["distribution"]): r["distribution"] for r in before}
    for package in packages:
        if canonical(package) == "kdhub":
            raise UsageError("kdhub does not remove itself", hint=f"{sys.executable} -m pip uninstall kdhub")
        if canonical(package) not in installed:
            names = [name for name in installed.values() if name != "kdhub"]
            raise UnknownNameError("plugin", package, names, how_to_list="kdhub plugins")
    _check_environment("uninstall", packages)
    _pip(["uninstall", "--yes", *packages], "removing " + ", ".join(packages))
    left = {_identity(record) for record in _records()}
    return {"removed": [record for record in before if _identity(record) not in left]}


def _check_environment(doing: str, packages: Sequence[str]) -> None:
    """Refuse where pip is not how this environment is changed, with the command that is.

    Raises:
        UsageError: pipx, uv without pip, no pip at all, or a system's own Python.
    """
    names, prefix = " ".join(packages), Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        verb = "inject" if doing == "install" else "uninject"
        raise UsageError("kdhub was installed with pipx", hint=f"pipx {verb} {prefix.name} {names}")
    if find_spec("pip") is None:
        config = prefix / "pyvenv.cfg"
        if config.is_file() and any(line.startswith("uv ") for line in config.read_text().splitlines()):
            hint = f"uv pip {doing} --python {sys.executable} {names}"
            raise UsageError("this environment is managed by uv and has no pip", hint=hint)
        raise UsageError("this environment has no pip", hint=f"{sys.executable} -m ensurepip, then the same again")
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and managed.is_file():
        raise UsageError(
            "this Python belongs to the operating system, which does not let pip change it",
            hint="use a virtual environment: python -m venv .venv, then .venv/bin/pip install kdhub",
        )


def _pip(arguments: Sequence[str], doing: str) -> None:
    """Run pip. What it says is shown when it failed, or when kdhub is to be verbose; its errors are in ours."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    logger.info("%s", doing)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = done.stdout.splitlines()
    if done.returncode or logger.isEnabledFor(logging.DEBUG):
        print(*said[-30:], sep="\n", file=sys.stderr)
    if done.returncode:
        errors = [line for line in said if line.startswith("ERROR")] or said[-3:]
        clash = [line.strip() for line in said if "depends on kdhub" in line]
        hint = f"it requires another version of kdhub; this is {version('kdhub')}" if clash else None
        raise KdhubError(f"{doing} failed: " + " ".join([*clash, *errors]), hint=hint)


def _records() -> list[dict[str, Any]]:
    """The plugins as a fresh process sees them: this one has imported what was there before."""
    done = subprocess.run([sys.executable, "-m", "kdhub", "plugins", "--json"], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise KdhubError(f"kdhub no longer starts: {done.stderr.strip()[-400:]}") from error


def _identity(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(json.dumps(record[key], sort_keys=True) for key in ("name", "distribution", "version", "status"))
