"""`kdhub new plugin`: a complete distribution to start from."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template

from kdhub.errors import UnknownNameError, UsageError
from kdhub.specs import SPECS

TEMPLATES = Path(__file__).parents[1] / "templates" / "plugin"


def new_plugin(name: str, *, kind: str = "method", parent: str | Path = ".") -> Path:
    """Write a plugin that works: one piece of the given kind, a README, tests with the conformance kit, a CI file.

    Args:
        name: lower-case with hyphens, `similarity` or `kdhub-similarity`; the distribution is `kdhub-similarity`.
        kind: "method", "teacher", "student", "dataset", "task", "sampler" or "metric".
        parent: the folder that its folder is made in.

    Returns:
        The new folder.

    Raises:
        UsageError: a name that packages cannot have, or a folder that exists.
        UnknownNameError: no such kind.
    """
    if kind not in SPECS:
        raise UnknownNameError("kind of plugin", kind, SPECS, how_to_list=", ".join(SPECS))
    short = name.removeprefix("kdhub-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", short) or keyword.iskeyword(short):
        raise UsageError(f"{name!r} is not a valid plugin name", hint="lower-case letters, digits and single hyphens")
    distribution, package = f"kdhub-{short}", f"kdhub_{short.replace('-', '_')}"
    try:
        version(distribution)
        raise UsageError(f"{distribution} is installed already", hint="choose another name")
    except PackageNotFoundError:
        pass
    folder = Path(parent) / distribution
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="choose another name, or remove it first")
    mine = ".".join(version("kdhub").split(".")[:2])
    major, minor = mine.split(".")
    values = {
        "name": short,
        "title": short.replace("-", " ").capitalize(),
        "distribution": distribution,
        "package": package,
        "cls": "".join(part.capitalize() for part in short.split("-")),
        "function": short.replace("-", "_"),
        "kind": kind,
        "version": mine,
        "next": f"{major}.{int(minor) + 1}",
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        ".github/workflows/tests.yml": "tests.yml",
        "tests/test_conformance.py": "test_conformance.py",
        f"{package}/plugin.py": f"{kind}/plugin.py",
        f"{package}/{kind}.py": f"{kind}/{kind}.py",
    }
    if (TEMPLATES / kind / "recipe.yaml.txt").is_file():
        files[f"{package}/registry/recipes/{short}.yaml"] = f"{kind}/recipe.yaml"
    rendered = {
        path: _Template((TEMPLATES / f"{source}.txt").read_text(encoding="utf-8")).substitute(values)
        for path, source in files.items()
    }
    rendered[f"{package}/__init__.py"] = ""
    for path, text in rendered.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


class _Template(Template):
    """`%name` stands for a value: dollars and braces mean something in the files themselves."""

    delimiter = "%"
