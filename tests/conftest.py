"""What all tests share: folders of their own, an empty registry, fresh interpreters, distributions made on the spot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kdhub.evaluation import plots
from kdhub.testing.fixtures import SESSION_HOME
from kdhub.testing.fixtures import home as isolated

ROOT = Path(__file__).parents[1]
PNG = plots.png


@pytest.fixture
def empty_registry():
    """A registry of this process with nothing in it and discovery off; fill it with `.plugins.register(module)`."""
    from kdhub.plugins.discovery import Plugins, set_plugins
    from kdhub.plugins.registry import Registry

    plugins = Plugins()
    set_plugins(plugins)
    return Registry(plugins)


@pytest.fixture
def drawn(isolated, monkeypatch) -> None:
    """Figures are drawn, as in a real run."""
    monkeypatch.setattr(plots, "png", PNG)


@pytest.fixture
def toys(isolated, monkeypatch):
    """kdhub's own plugins and the family of `toy.py`, discovery off. Returns the plugins, to register more."""
    import toy

    from kdhub.plugins import builtin
    from kdhub.plugins.discovery import Plugins, set_plugins

    for cls, name in ((toy.Hint, "fail_at"), (toy.Label, "fail"), (toy.Linear, "last")):
        monkeypatch.setattr(cls, name, getattr(cls, name))  # as they are now, again after the test
    monkeypatch.setattr(toy.Linear, "asked", 0)
    plugins = Plugins()
    set_plugins(plugins)
    plugins.register(builtin, "kdhub")
    plugins.register(toy, "kdhub-toy")
    return plugins


@pytest.fixture
def run_python(tmp_path, isolated) -> Callable[..., subprocess.CompletedProcess]:
    """Run code in a fresh interpreter: `run_python(code, *folders, KDHUB_STRICT="1")`.

    The folders go in front of the module search path, as site-packages folders do; keywords are environment
    variables, all other KDHUB_ ones are unset. Not strict unless asked for.
    """

    def run(code: str, *folders: Path, args: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KDHUB_")}
        environment |= {"KDHUB_HOME": str(isolated), "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}
        return subprocess.run(
            [sys.executable, "-B", "-c", code, *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | variables,
            timeout=120,
        )

    return run


@pytest.fixture
def make_distribution() -> Callable[..., Path]:
    """Install a distribution by hand: `make_distribution(folder, "kdhub-x", plugins={"x": "kdhub_x.plugin"})`."""

    def make(
        folder: Path,
        name: str,
        *,
        version: str = "1.0",
        plugins: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        requires: str = "kdhub",
    ) -> Path:
        # Underscores, as real wheels have them: with a hyphen the name would end there.
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
            "\nVersion: of the text below the headers\n"
        )
        if plugins:
            lines = [f"{key} = {target}" for key, target in plugins.items()]
            (info / "entry_points.txt").write_text("\n".join(["[kdhub]", *lines, ""]))
        for path, text in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return info

    return make


@pytest.fixture(scope="session")
def distil_toys() -> Callable[..., Path]:
    """Distil a recipe with kdhub's own plugins and the toy family alone: `distil_toys(recipe, folder)` -> the run's
    folder. For fixtures that outlive a test; copy what it gives to change it."""
    import toy

    import kdhub
    from kdhub.plugins import builtin
    from kdhub.plugins.discovery import Plugins, set_plugins

    def distil(recipe: dict, folder: Path) -> Path:
        plugins = Plugins()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDHUB_HOME", str(folder / "home"))
            set_plugins(plugins)
            plugins.register(builtin, "kdhub")
            plugins.register(toy, "kdhub-toy")
            kdhub.distill(recipe, out=folder / "run")
            set_plugins(None)
        return folder / "run"

    return distil


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory, distil_toys) -> Path:
    """The folder of a finished run of the toy family; copy it to change it."""
    import toy

    folder = tmp_path_factory.mktemp("toy-run")
    recipe = {"name": "toy-student", "task": "toy-vectors", "method": "toy-hint", **toy.Vectors().tiny_recipe(folder)}
    recipe["options"] = {"batch_size": 8, "epochs": 1, "precision": "float32"}
    return distil_toys(recipe, folder)


_told: list[str] = []
"""Tests whose output held a token."""


def pytest_runtest_logreport(report) -> None:
    from fake_hub import TOKEN

    if TOKEN in report.capstdout + report.capstderr + report.caplog:
        _told.append(report.nodeid)


@pytest.fixture(scope="session")
def no_token_anywhere(tmp_path_factory) -> Iterator[None]:
    """When all tests are done: their token is in no output, and in none of the files that any of them wrote."""
    from fake_hub import TOKEN

    yield
    folders = (tmp_path_factory.getbasetemp(), SESSION_HOME)
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    found = []
    for path in files:
        with suppress(FileNotFoundError):  # a server that ends meanwhile removes its own
            found += [str(path)] if TOKEN.encode() in path.read_bytes() else []
    assert not _told and not found


@pytest.fixture
def hub(monkeypatch, no_token_anywhere):
    """A hub in this process (`fake_hub.Hub`), which the client library and kdhub talk to."""
    from fake_hub import talked_to

    with talked_to(monkeypatch) as hub:
        yield hub
