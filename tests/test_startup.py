"""Start-up: what kdhub imports before it is asked to do anything. Modules are counted, not seconds."""

from __future__ import annotations

import json

import pytest

HEAVY = {
    "torch", "transformers", "huggingface_hub", "datasets", "sentence_transformers", "accelerate", "safetensors",
    "matplotlib", "scipy", "sklearn", "pyarrow", "pandas", "numpy", "pydantic",
}  # fmt: skip
MAIN = """
import json, runpy, sys
modules, sys.argv = sys.argv[1], ["kdhub", *sys.argv[2:]]
try:
    runpy.run_module("kdhub", run_name="__main__", alter_sys=True)
finally:
    with open(modules, "w") as file:
        json.dump(list(sys.modules), file)
"""
PLUGIN = """
from kdhub import MethodSpec, hookimpl
@hookimpl
def kdhub_methods():
    yield MethodSpec(name="extra-{i}", target="kdhub_extra_{i}.method:Extra", summary="Number {i}.")
"""


@pytest.fixture
def fifty(make_distribution, tmp_path):
    """Fifty plugin distributions on the path."""
    for i in range(50):
        make_distribution(
            tmp_path / "site",
            f"kdhub-extra-{i}",
            plugins={f"extra-{i}": f"kdhub_extra_{i}.plugin"},
            files={
                f"kdhub_extra_{i}/plugin.py": PLUGIN.format(i=i),
                f"kdhub_extra_{i}/method.py": "import torch  # what listing must not do\n",
            },
            requires="kdhub>=0.0.1",
        )
    return tmp_path / "site"


def light(modules) -> None:
    loaded = {name.partition(".")[0] for name in modules}
    assert not loaded & HEAVY
    assert not [name for name in modules if name.startswith("kdhub_extra_") and name.endswith(".method")]


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("list", "methods"), ("plugins",)])
def test_light_commands_import_nothing_heavy(run_python, fifty, tmp_path, arguments):
    result = run_python(MAIN, fifty, args=(str(tmp_path / "modules.json"), *arguments), COLUMNS="200")
    assert result.returncode == 0, result.stderr
    light(json.loads((tmp_path / "modules.json").read_text()))
    if arguments == ("list", "methods"):
        assert all(f"extra-{i}" in result.stdout for i in range(50))
    if arguments == ("plugins",):
        assert all(f"kdhub-extra-{i}" in result.stdout for i in range(50))
    assert "kdhub: plugin" not in result.stderr


def test_discovery_imports_nothing_heavy(run_python, fifty):
    """Also of every first-party plugin module installed here."""
    code = (
        "import json, sys\nfrom kdhub.plugins.registry import Registry\nmethods = Registry().all('method')\n"
        "print(json.dumps([[e.name for e in methods], list(sys.modules)]))"
    )
    result = run_python(code, fifty)
    assert result.returncode == 0, result.stderr
    names, modules = json.loads(result.stdout)
    assert {f"extra-{i}" for i in range(50)} <= set(names)
    light(modules)


def test_importing_kdhub_imports_nothing_else(run_python):
    result = run_python("import sys, kdhub\nprint(*sys.modules)")
    modules = result.stdout.split()
    light(modules)
    # The names a plugin module needs, and what they stand on; the rest on first use.
    assert {m for m in modules if m.startswith("kdhub")} == {"kdhub", "kdhub.hookspecs", "kdhub.specs"}
