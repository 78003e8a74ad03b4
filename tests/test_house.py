"""The house: who may import whom, what the core must not know, and what the pages say of the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "kdhub", *sorted(path.parent for path in ROOT.glob("plugins/*/kdhub_*/__init__.py"))]
FILES = {
    ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in package.rglob("*.py")
}
FAMILIES = {package.name for package in PACKAGES} - {"kdhub", "kdhub_tasks"}
PLAIN = {"rank", "feature"}
"""Names of methods that are words of their own."""


def imported(name: str, text: str) -> set[str]:
    """The modules of ours that a module's text imports, in whatever place."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in FILES else node.module for one in inside}
    return {one for one in found if one in FILES} - {name}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            todo += (new := graph[todo.pop()] - seen)
            seen |= new
        reached[start] = seen
    found = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return [set(one) for one in found]


def test_no_modules_import_each_other():
    """Imports inside functions and for type checkers count as well."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    assert imported("kdhub.task", "def f():\n    from kdhub import student\n") == {"kdhub.student"}
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    graph = {name: imported(name, path.read_text(encoding="utf-8")) - packages for name, path in FILES.items()}
    assert circles(graph) == []


def test_imports_stand_in_layers():
    """`.importlinter`: the core's rooms, core < tasks < families, and families that do not know each other."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = (ROOT / ".importlinter").read_text(encoding="utf-8")
    independent = text[text.index("families are independent") :].split("modules =")[1].split()
    assert set(independent) == FAMILIES


def test_the_core_knows_no_task_and_no_method_by_name():
    from kdhub.plugins.registry import Registry

    registry, own = Registry(), re.compile(r"kdhub-(tasks|text|logits|lm)")
    specs = [e for kind in ("task", "method") for e in registry.all(kind) if own.match(e.distribution)]
    names = set(chain.from_iterable((e.name, *e.spec.aliases) for e in specs)) - PLAIN
    assert len(names) > 40
    named = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?![\w-])")
    assert named.search('the method "kd" is') and not named.search("kdhub.task")
    found = [
        f"{name}: {match[1]}"
        for name, path in FILES.items()
        if name.startswith("kdhub.")
        for match in named.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_errors_of_option_checks_state_the_requirement_and_the_value():
    """ "t_start must be below t_end (t_start=0.9, t_end=0.5)", in every check that options of a plugin have."""
    stated, found = re.compile(r"\bmust\b.*\(\w+="), []
    assert stated.search("f't_max must be at least t_min (t_min={self.t_min:g})'") and not stated.search("'bad t_max'")
    for name, path in FILES.items():
        for check in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if not name.startswith("kdhub.") else ():
            decorators = [ast.unparse(one) for one in getattr(check, "decorator_list", ())]
            if any("validator" in one for one in decorators):
                raised = [node.exc for node in ast.walk(check) if isinstance(node, ast.Raise) and node.exc]
                found += [(name, ast.unparse(one)) for one in raised]
    assert len(found) >= 8
    assert [one for one in found if not stated.search(one[1])] == []


def test_names_at_their_old_place_still_resolve(monkeypatch):
    from kdhub.plugins import registry

    said = []
    registry._report_move.cache_clear()
    monkeypatch.setattr(registry.logger, "warning", lambda text, *values: said.append(text % values))
    for _ in range(2):
        entry = registry.Registry().find("method", "supervised@kdhub-logits")
        assert entry.qualified == "supervised@kdhub-tasks"
    assert said == ["method supervised@kdhub-logits now comes with kdhub-tasks"]


def test_the_core_has_no_entry_of_a_family():
    assert [path.name for path in (ROOT / "registry").rglob("*") if path.is_file()] == ["README.md"]


def test_the_page_for_those_who_add_something_counts_right():
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\d+)\b.*? \| .+? \| `(.+?)` \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for what, said, example in rows:
        path = ROOT / example
        if path.is_file():
            files = [path]
        elif what == "a family":  # its methods, data and catalogue are counted one by one
            (package,) = path.glob("kdhub_*/__init__.py")
            files = [path / "pyproject.toml", package, package.with_name("plugin.py")]
        else:
            files = [p for p in path.rglob("*") if p.suffix in (".py", ".toml") and "build" not in p.parts]
        assert all(one.is_file() for one in files) and len(files) == int(said), what
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE))
    assert listed == {p.name for p in (ROOT / "tests/thirdparty/kdhub-series/kdhub_series").glob("*.py")}


def test_every_method_is_in_the_guide_once():
    from kdhub.plugins.registry import Registry

    guide = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("## All of them")[0]
    listed = re.findall(r"^\| `([\w-]+)` \|", guide, re.MULTILINE)
    own = [e.name for e in Registry().all("method") if e.distribution.startswith("kdhub-")]
    assert sorted(listed) == sorted(own)


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_paths_that_pages_name_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    missing = [
        found
        for found in re.findall(r"`((?:kdhub|plugins|tests|docs|benchmarks|registry)/[\w./-]+)`", text)
        if not (ROOT / found).exists()
    ]
    assert missing == []
