"""Names to specs to code, and the right error for each way a name can fail."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdhub import MethodSpec, TeacherSpec, hookimpl
from kdhub.errors import CompatibilityError, PluginError, UnknownNameError, UsageError

FOLDERS = Path(__file__).parent / "data" / "plugins"


@pytest.fixture(autouse=True)
def not_strict(monkeypatch, isolated):
    monkeypatch.setenv("KDHUB_STRICT", "0")


@pytest.fixture
def add(empty_registry):
    def add(distribution: str, *specs, version: str = "1.0"):
        methods = [s for s in specs if s.kind == "method"]
        teachers = [s for s in specs if s.kind == "teacher"]
        plugin = SimpleNamespace(
            methods=hookimpl(specname="kdhub_methods")(lambda: iter(methods)),
            teachers=hookimpl(specname="kdhub_teachers")(lambda: iter(teachers)),
        )
        empty_registry.plugins.register(plugin, distribution, version, name=distribution)

    return add


def method(name: str, *tasks: str, **more) -> MethodSpec:
    return MethodSpec(name=name, target="nowhere:Method", tasks=tasks, **more)


def test_all_is_sorted_and_filtered_by_task(empty_registry, add):
    add("kdhub-b", method("zeta", "text-embedding"), method("alpha", "causal-lm"))
    add("kdhub-a", method("kd"))
    assert [e.qualified for e in empty_registry.all("method")] == ["alpha@kdhub-b", "kd@kdhub-a", "zeta@kdhub-b"]
    assert [e.name for e in empty_registry.all("method", "text-embedding")] == ["kd", "zeta"]
    assert empty_registry.all("teacher") == []
    with pytest.raises(ValueError, match="no kind"):
        empty_registry.all("methods")


def test_names_aliases_and_qualified_names(empty_registry, add):
    add("Kdhub_Text", method("leaf", aliases=("aligned", "kd")), version="2.1")
    add("kdhub-logits", method("kd"))
    find = empty_registry.find
    assert find("method", "leaf").provider == "Kdhub_Text 2.1"
    assert find("method", "aligned").name == "leaf"
    assert find("method", "leaf@kdhub-text").name == find("method", "aligned@kdhub.text").name == "leaf"
    # Nobody takes over another's name by calling it an alias; qualified, it is reachable.
    assert find("method", "kd").distribution == "kdhub-logits"
    assert find("method", "kd@kdhub-text").name == "leaf"


def test_unknown_names(empty_registry, add):
    add("kdhub-text", method("leaf"), method("lelp"))
    with pytest.raises(UnknownNameError) as caught:
        empty_registry.find("method", "leef")
    assert caught.value.matches[0] == "leaf" and "kdhub list methods" in caught.value.hint
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownNameError) as caught:
        empty_registry.find("method", "leaf@kdhub-txt")
    assert caught.value.matches[0] == "leaf@kdhub-text"
    with pytest.raises(UnknownNameError):
        empty_registry.find("teacher", "leaf")


def test_one_name_for_different_tasks_is_no_clash(empty_registry, add):
    def hf(task):
        return TeacherSpec(name="hf", target="nowhere:Teacher", tasks=(task,))

    add("kdhub-text", hf("text-embedding"))
    add("kdhub-logits", hf("image-classification"))
    find = empty_registry.find
    assert {r.status for r in empty_registry.plugins.records} == {"ok"}
    assert find("teacher", "hf", "image-classification").distribution == "kdhub-logits"
    assert find("teacher", "hf@kdhub-text").distribution == "kdhub-text"
    with pytest.raises(UsageError, match="no task is given") as caught:
        find("teacher", "hf")
    assert "hf@kdhub-text for text-embedding" in caught.value.hint
    with pytest.raises(CompatibilityError) as caught:
        find("teacher", "hf", "causal-lm")
    assert caught.value.message == "teacher 'hf' works for image-classification, text-embedding, not for causal-lm"


def test_a_clash_is_an_error_of_the_bare_name_only(empty_registry, add):
    add("kdhub-text", method("leaf", "text-embedding"), method("dse"), version="0.1.0")
    add("kdhub-fork", method("leaf"), version="9.9")
    find = empty_registry.find
    with pytest.raises(PluginError) as caught:
        find("method", "leaf")
    assert caught.value.message == "method 'leaf' is provided by kdhub-fork 9.9 and kdhub-text 0.1.0"
    assert caught.value.hint == "write leaf@kdhub-fork or leaf@kdhub-text" and caught.value.exit_code == 3
    assert find("method", "leaf@kdhub-text").version == "0.1.0"
    assert find("method", "dse").distribution == "kdhub-text"
    # For another task there is only one.
    assert find("method", "leaf", "causal-lm").distribution == "kdhub-fork"


def test_two_aliases_that_clash(empty_registry, add):
    add("kdhub-a", method("one", aliases=("both",)))
    add("kdhub-b", method("two", aliases=("both",)))
    with pytest.raises(PluginError, match="kdhub-a 1.0 and kdhub-b 1.0"):
        empty_registry.find("method", "both")
    assert empty_registry.find("method", "both@kdhub-b").name == "two"


FIND = """
import json, sys
from kdhub.errors import KdhubError
from kdhub.plugins.registry import Registry
registry, answers = Registry(), {}
for name in sys.argv[1:]:
    try:
        registry.load(registry.find("method", name))
        answers[name] = None
    except KdhubError as error:
        cause = type(error.__cause__).__name__
        answers[name] = [int(error.exit_code), cause, error.message, error.hint]
print(json.dumps([answers, [m for m in sys.modules if m.partition(".")[0] in ("numpy", "pydantic", "torch")]]))
"""


def test_whose_fault_a_missing_name_is(run_python):
    folders = [FOLDERS / name for name in ("good", "import_error", "hook_raises", "too_new")]
    names = ["good", "gone", "needy", "half-done", "from-tomorrow", "x@kdhub-import-error", "import-error", "goood"]
    names.append("kdhub-import-error")
    result = run_python(FIND, *folders, args=names)
    assert result.returncode == 0, result.stderr
    answers, heavy = json.loads(result.stdout)
    assert answers.pop("good") is None
    assert heavy == []
    # The plugin is well, its code is not.
    assert answers["gone"][:2] == [3, "AttributeError"] and "kdhub-good 1.0" in answers["gone"][2]
    assert answers["needy"][:2] == [3, "ModuleNotFoundError"] and "kdhub_good.needy:Needy" in answers["needy"][2]
    # The plugin did not load: by what it yielded before it failed, by its distribution, by its own name.
    assert answers["half-done"][:2] == [3, "ValueError"]
    assert "kdhub-hook-raises 1.0: kdhub_methods: ValueError" in answers["half-done"][2]
    assert answers["x@kdhub-import-error"][:2] == answers["import-error"][:2] == [3, "ModuleNotFoundError"]
    assert answers["kdhub-import-error"][0] == 3
    assert answers["from-tomorrow"][0] == 3 and "plugin that is incompatible" in answers["from-tomorrow"][2]
    # What a plugin that was never imported would have provided, nobody can know: a hint.
    code, _, _, hint = answers["goood"]
    assert code == 2 and "Did you mean 'good'" in hint and "kdhub-import-error 1.0" in hint


def test_a_name_of_a_plugin_that_is_switched_off(run_python):
    result = run_python(FIND, FOLDERS / "good", args=("good",), KDHUB_PLUGINS="")
    code, _, _, hint = json.loads(result.stdout)[0]["good"]
    assert code == 2 and "Switched off: " in hint and "kdhub-good 1.0" in hint
