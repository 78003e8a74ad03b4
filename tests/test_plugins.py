"""Discovery: what is broken stays by itself, says so once, and nothing else suffers.

The broken plugins are real folders (`tests/data/plugins`), found by fresh interpreters the way installed ones are.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdhub import MethodSpec, hookimpl
from kdhub.errors import PluginError
from kdhub.plugins.discovery import Plugins, discover

FOLDERS = Path(__file__).parent / "data" / "plugins"
REPORT = """
import json
from kdhub.plugins.discovery import get_plugins
print(json.dumps([r.to_dict() | {"exception": type(r.exception).__name__, "all_specs": [s.name for s in r.specs]}
                  for r in get_plugins().records]))
"""
STRICT = """
from kdhub.plugins.discovery import PluginError, discover
try:
    discover()
except PluginError as error:
    print(repr(error.__cause__), error.hint)
"""
METHOD = """
from kdhub import MethodSpec, hookimpl
@hookimpl
def kdhub_methods():
    yield MethodSpec(name="{name}", target="nowhere:Method")
"""

BROKEN = {  # folder -> status, what the cause must say, what was raised
    "import_error": ("failed", "No module named 'a_module_that_is_not_installed'", "ModuleNotFoundError"),
    "syntax_error": ("failed", "SyntaxError: ", "SyntaxError"),
    "hook_raises": ("failed", "kdhub_methods: ValueError: the second is not to be had", "ValueError"),
    "wrong_type": ("failed", "kdhub_methods: yields TeacherSpec, not MethodSpec", "PluginError"),
    "bad_name": ("failed", "'Bad_Name' is not a name", "PluginError"),
    "bad_tasks": ("failed", "tasks of 'bad-tasks' is 'text-embedding', not a tuple of strings", "PluginError"),
    "twice": ("failed", "method 'twin' is yielded twice for the same task", "PluginError"),
    "unknown_hook": ("failed", "no hook named 'kdhub_method', 'kdhub_methods' is one", "PluginError"),
    "no_hooks": ("failed", "has no function marked @kdhub.hookimpl", "PluginError"),
    "system_exit": ("failed", "kdhub_methods: SystemExit: no licence key", "SystemExit"),
    "too_new": ("incompatible", "'from-tomorrow' is made for plugin API 99, this kdhub has 1", "_Incompatible"),
    "requires_other": ("incompatible", "needs kdhub<99,>=98.5, this is 98.0", "_Incompatible"),
}


def records_of(result) -> dict[str, dict]:
    assert result.returncode == 0, result.stderr
    return {record["distribution"]: record for record in json.loads(result.stdout)}


def lines_about(result, distribution: str) -> list[str]:
    return [line for line in result.stderr.splitlines() if f"({distribution} " in line]


def test_all_broken_at_once(run_python, make_distribution, tmp_path):
    make_distribution(tmp_path / "kdhub", "kdhub", version="98.0", requires="pluggy")
    folders = [tmp_path / "kdhub", *(FOLDERS / name for name in [*BROKEN, "good"])]
    result = run_python(REPORT, *folders)
    # The good plugin prints while it is imported; `records_of` reads stdout as one JSON document all the same.
    records = records_of(result)
    assert "a plugin that prints" in result.stderr
    for folder, (status, cause, exception) in BROKEN.items():
        distribution = "kdhub-" + folder.replace("_", "-")
        record = records[distribution]
        assert (record["status"], record["exception"]) == (status, exception), record
        assert cause in record["cause"]
        assert record["provides"] == {}
        (line,) = lines_about(result, distribution)
        assert cause in line and line.endswith(f"remove it: kdhub plugins uninstall {distribution}")
    assert records["kdhub-hook-raises"]["all_specs"] == ["half-done"]
    # Its hooks are looked at before any of them runs.
    assert (
        records["kdhub-unknown-hook"]["cause"].startswith("no hook named") and "kdhub_datasets ran" not in result.stderr
    )

    good = records["kdhub-good"]
    assert (good["status"], good["version"], good["target"]) == ("ok", "1.0", "kdhub_good.plugin")
    assert good["provides"] == {"method": ["good", "gone", "needy"]}
    assert good["catalogs"] == [str(FOLDERS / "good" / "kdhub_good")]
    assert not lines_about(result, "kdhub-good")


def test_a_clash_is_noted_once_and_loses_nothing(run_python):
    result = run_python(REPORT, FOLDERS / "clash_b", FOLDERS / "clash_a")
    records = records_of(result)
    for one, other in (("a", "b 2.0"), ("b", "a 1.0")):
        record = records[f"kdhub-clash-{one}"]
        assert record["status"] == "conflict"
        assert f"shares method 'disputed' with kdhub-clash-{other}" in record["cause"]
        assert f"disputed@kdhub-clash-{one}" in record["cause"]
        # The teacher of the same name is for another task: no part of the clash.
        assert record["provides"] == {"method": ["disputed"], "teacher": ["shared"]} and "shared" not in record["cause"]
    assert len([line for line in result.stderr.splitlines() if "disputed" in line]) == 1


@pytest.mark.parametrize("folder", ["import_error", "hook_raises", "too_new", "system_exit"])
def test_strict_raises_at_once(run_python, folder):
    result = run_python(STRICT, FOLDERS / folder, KDHUB_STRICT="1")
    assert result.returncode == 0, result.stderr
    assert BROKEN[folder][2] in result.stdout and "kdhub plugins uninstall kdhub-" in result.stdout


def test_strict_raises_on_a_clash(run_python):
    result = run_python(REPORT, FOLDERS / "clash_a", FOLDERS / "clash_b", KDHUB_STRICT="1")
    assert result.returncode == 1 and "PluginError: plugin clash-b (kdhub-clash-b 2.0): shares" in result.stderr


def test_the_users_interrupt_is_not_swallowed(run_python):
    result = run_python(REPORT, FOLDERS / "interrupted")
    assert result.returncode != 0 and result.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("chosen", "loaded"),
    [
        ("good", {"kdhub-good"}),
        ("Kdhub_Good , clash-a", {"kdhub-good", "kdhub-clash-a"}),
        ("", set()),
        ("kdhub-clash-a", {"kdhub-clash-a"}),
    ],
)
def test_only_the_chosen_are_loaded(run_python, chosen, loaded):
    result = run_python(REPORT, FOLDERS / "good", FOLDERS / "clash_a", FOLDERS / "import_error", KDHUB_PLUGINS=chosen)
    records = records_of(result)
    assert {name for name, record in records.items() if record["status"] == "ok"} - {"kdhub"} == loaded
    assert records["kdhub"]["status"] != "disabled"
    # What is not loaded is not even imported: the broken one is silent.
    assert records["kdhub-import-error"]["status"] == "disabled" and not lines_about(result, "kdhub-import-error")
    assert "KDHUB_PLUGINS" not in result.stderr


def test_a_chosen_name_that_matches_nothing_is_reported(run_python):
    result = run_python(REPORT, FOLDERS / "good", KDHUB_PLUGINS="god,good")
    assert records_of(result)["kdhub-good"]["status"] == "ok"
    (line,) = [line for line in result.stderr.splitlines() if "KDHUB_PLUGINS" in line]
    assert "'god'" in line and "Did you mean 'good'" in line
    strict = run_python(REPORT, FOLDERS / "good", KDHUB_PLUGINS="god,good", KDHUB_STRICT="1")
    assert strict.returncode == 1 and "UnknownNameError" in strict.stderr


def test_no_plugins_leaves_only_our_own(run_python):
    code = REPORT.replace("get_plugins()", "discover(third_party=False)").replace("get_plugins", "discover")
    records = records_of(run_python(code, FOLDERS / "good"))
    assert {name for name, record in records.items() if record["status"] != "disabled"} == {"kdhub"}
    assert records["kdhub-good"]["cause"] == "switched off by --no-plugins"


def test_no_plugins_holds_for_the_processes_of_a_command_too(run_python):
    """Workers of a comparison and measurements of cost are started while the program runs, and discover again."""
    code = """
import subprocess, sys
from kdhub.cli.app import app
app(["--no-plugins", "list", "methods", "--json"], standalone_mode=False)
sys.stdout.flush()
ask = "from kdhub.plugins.discovery import get_plugins as p; print({r.distribution for r in p().records if r.usable})"
subprocess.run([sys.executable, "-c", ask], check=True)
"""
    assert run_python(code, FOLDERS / "good").stdout.split() == ["[]", "{'kdhub'}"]


def test_repeats_and_shadows_count_once(run_python, make_distribution, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    twice = {"one": "kdhub_repeated.plugin", "two": "kdhub_repeated.plugin"}
    files = {"kdhub_repeated/plugin.py": METHOD.format(name="repeated")}
    make_distribution(first, "kdhub-repeated", plugins=twice, files=files)
    make_distribution(second, "Kdhub.Repeated", version="2.0", plugins=twice, files=files)
    # An earlier folder holds a version without the plugin: that is the one Python imports.
    make_distribution(first, "kdhub-hidden")
    make_distribution(second, "kdhub-hidden", version="2.0", plugins={"hidden": "kdhub_hidden.plugin"})
    result = run_python(REPORT, first, second)
    found = [record for record in json.loads(result.stdout) if "repeated" in record["distribution"].lower()]
    assert [(r["version"], r["status"]) for r in found] == [("1.0", "ok")]
    assert "hidden" not in result.stdout + result.stderr


def test_damaged_entry_points_stay_by_themselves(run_python, make_distribution, tmp_path):
    for name, content, requires in [
        ("kdhub-binary", b"[kdhub]\nx = \xff\xfe\n", "kdhub>=0"),
        ("kdhub-no-equals", b"[kdhub]\nnonsense\n", "kdhub (>=0)"),
        ("kdhub-no-target", b"[kdhub]\nx = not a target\n", "kdhub"),
        ("unrelated", b"[console_scripts]\nx = \xff\xfe\n", "numpy"),
    ]:
        info = make_distribution(tmp_path / "site", name, requires=requires)
        (info / "entry_points.txt").write_bytes(content)
    result = run_python(REPORT, tmp_path / "site", FOLDERS / "good")
    records = records_of(result)
    for name in ("kdhub-binary", "kdhub-no-equals", "kdhub-no-target"):
        assert records[name]["status"] == "failed" and len(lines_about(result, name)) == 1
    assert records["kdhub-good"]["status"] == "ok"
    assert "unrelated" not in result.stdout + result.stderr


@pytest.mark.parametrize("version", ["1.5.2", "1.5.2rc1"])  # a plain version is compared without `packaging`
def test_requirements_of_kdhub(run_python, make_distribution, tmp_path, version):
    cases = {
        "kdhub>=1,<2": "ok",
        "kdhub>=1.5.0": "ok",
        "kdhub<1.10,>1": "ok",
        "kdhub > 1.5.2": "incompatible",
        "kdhub<=1.5": "incompatible",
        "kdhub[demo] (>=1.0)": "ok",
        "KDHUB ~= 1.4": "ok",
        "kdhub==1.5.*": "ok",
        "kdhub>=1.5.2.0": "incompatible" if "rc" in version else "ok",
        "kdhub<1.5": "incompatible",
        "kdhub-text<1": "ok",
        "kdhub<1; python_version < '3'": "ok",
        "kdhub<1; python_version > '3'": "incompatible",
        "kdhub @ https://example.org/kdhub.whl": "ok",
        "kdhub>=one": "failed",
    }
    make_distribution(tmp_path / "kdhub", "kdhub", version=version, requires="pluggy")
    for i, requires in enumerate(cases):
        files = {f"needs_{i}.py": METHOD.format(name=f"needs-{i}")}
        make_distribution(
            tmp_path / "site", f"kdhub-needs-{i}", plugins={"needs": f"needs_{i}"}, files=files, requires=requires
        )
    records = records_of(run_python(REPORT, tmp_path / "kdhub", tmp_path / "site"))
    assert {requires: records[f"kdhub-needs-{i}"]["status"] for i, requires in enumerate(cases)} == cases


def module(name: str = "one", **hooks):
    """A plugin made on the spot."""

    @hookimpl
    def kdhub_methods():
        yield MethodSpec(name=name, target="nowhere:Method")

    return SimpleNamespace(__name__=f"tests.{name}", kdhub_methods=kdhub_methods, **hooks)


def test_an_add_on_that_fails_never_stops_a_run(monkeypatch, capsys):
    monkeypatch.delenv("KDHUB_STRICT")
    steps = []

    @hookimpl(specname="kdhub_step_logged")
    def fails(record):
        raise SystemExit("tracker is gone")

    @hookimpl(specname="kdhub_step_logged")
    def counts(run, record):
        steps.append((run, record["step"]))

    plugins = Plugins()
    plugins.register(module("counts", step=counts))
    plugins.register(module("fails", step=fails))
    for step in range(3):
        plugins.call("kdhub_step_logged", run="run-1", record={"step": step})
    assert steps == [("run-1", 0), ("run-1", 1), ("run-1", 2)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "plugin fails (tests 0): kdhub_step_logged raised SystemExit: tracker is gone" in line

    monkeypatch.setenv("KDHUB_STRICT", "1")
    strict = Plugins()
    strict.register(module("fails", step=fails))
    with pytest.raises(PluginError) as caught:
        strict.call("kdhub_step_logged", run=None, record={})
    assert isinstance(caught.value.__cause__, SystemExit)


def test_the_users_interrupt_passes_through_a_call():
    @hookimpl(specname="kdhub_run_started")
    def stop():
        raise KeyboardInterrupt

    plugins = Plugins()
    plugins.register(module("stop", start=stop))
    with pytest.raises(KeyboardInterrupt):
        plugins.call("kdhub_run_started", run=None)


def test_register_says_at_once_what_is_wrong(empty_registry):
    @hookimpl(specname="kdhub_card")
    def wrong_arguments(run, chapters): ...

    @hookimpl(specname="kdhub_card")
    def left_behind():
        raise AssertionError("called on a plugin that was refused")

    @hookimpl(specname="kdhub_catalogs")
    def no_folder():
        yield "/there/is/no/such/folder"

    @hookimpl(specname="kdhub_card", wrapper=True)
    def wrapped():
        yield

    plugins = empty_registry.plugins
    for name, hook, cause in [
        ("arguments", wrong_arguments, "chapters"),
        ("folder", no_folder, "no folder /there/is/no/such/folder"),
        ("wrapped", wrapped, "wrapper hooks are not supported"),
    ]:
        with pytest.raises(PluginError, match=cause):
            plugins.register(module(name, extra=hook, card=left_behind))
    # Nothing of a refused plugin stays behind.
    assert plugins.records == [] and plugins.specs("method") == []
    plugins.call("kdhub_card", run=None, sections={})
    one = module("one")
    assert plugins.register(one).specs[0].name == "one"
    for again in (one, module("one")):
        with pytest.raises(PluginError):
            plugins.register(again)
    assert [spec.name for spec in plugins.specs("method")] == ["one"]


def test_installed_plugins_are_well():
    """Ours, as installed here; KDHUB_STRICT makes any fault an error."""
    assert {record.status for record in discover().records} == {"ok"}
