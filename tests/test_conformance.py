"""The conformance kit: it lets good plugins pass, and each rule has a plugin that breaks it and is caught."""

from __future__ import annotations

import json
import os
import sys
from unittest import SkipTest

import pytest

from kdhub.errors import PluginError, UnknownNameError
from kdhub.testing import check_method, check_plugin, checks_of, parametrize_with_checks, run_checks, summary

TEETH = [
    # plugin, the check meant for it, what it says
    ("no-paper", "says_what_it_is", "names no paper"),
    ("needs-nothing", "distils", "no signal 'vector'"),
    ("undocumented", "options_are_documented", "strength has no description"),
    ("undocumented", "options_are_documented", "strength is a number without a range"),
    ("wrong-defaults", "options_are_documented", "defaults for classes: 1 validation error"),
    ("moves-teacher", "teacher_is_untouched", "the teacher's weights were changed: map.weight"),
    ("forgets-its-head", "resume_is_exact", "a resumed run differs"),
    ("undeclared-module", "trains_the_student_and_its_extras_only", "self.projection.weight"),
    ("unseeded", "equal_seeds_give_equal_students", "differ in model.safetensors"),
    ("one-seed-only", "another_seed_gives_another_student", "the seed is ignored"),
    ("mean-of-means", "a_batch_in_parts_is_the_same_batch", "loss term 'match' is"),
    ("ignores-teacher", "uses_the_signals_it_asks_for", "needs vector and does not use it"),
    ("trains-on-test", "trains_on_training_rows_only", "reads toy-points test"),
    ("follows-evaluation", "trains_on_training_rows_only", "test rows were used"),
    ("reports-the-teacher", "evaluation_is_complete_and_true", "the saved student gives"),
    ("reports-little", "evaluation_is_complete_and_true", "no score of student-before"),
    ("silent-rows", "evaluation_is_complete_and_true", "no measure of the student"),
    ("miscounts-rows", "rows_open_without_kdhub", "load_dataset finds the rows {'train': 40}"),
    ("saves-another", "saves_and_loads_to_the_same_output", "of the loaded student is"),
    ("leaks-a-file", "leaves_no_files_behind", "kdhub-wrong-"),
    ("asks-nobody", "asks_a_teacher_that_runs_in_training", "must say live=True"),
    ("swallows-everything", "resume_is_exact", "swallows"),
    ("own-loop", "a_nan_stops_it", "trains on with NaN or infinite values"),
    ("restless", "identity_is_stable", "the identity changes"),
    ("noisy", "equal_examples_get_equal_signals", "differs between calls"),
    ("narrow", "gives_what_it_declares", "its layout says (4,)"),
    ("masked", "members_give_what_the_family_gives", "from the family with that member chosen"),
    ("shared", "members_give_what_the_family_gives", "member h2 shares weights with the family"),
    ("unsorted", "members_give_what_the_family_gives", "not listed from the smallest to the largest: [43, 19]"),
    ("stuck", "members_give_what_the_family_gives", "choose(None) does not undo a choice"),
    ("cousin", "exposes_what_it_declares", "relation to the base model is 'cousin'"),
    ("forgetful", "sampler_state_comes_back", "the order is another"),
    ("blind", "order_follows_the_columns_it_asks_for", "asks for label and does not use them"),
    ("ragged", "gives_whole_batches_of_rows", "not whole batches"),
    ("moving", "rows_are_there_and_stay_the_same", "other rows each time"),
    ("unnamed", "what_rows_share_is_named_and_opened_once", "no row of it names"),
    ("nan", "scores_are_numbers", "it gives nan"),
    ("nan-cost", "scores_are_numbers", "it gives nan"),
]


@pytest.fixture
def wrong(toys):
    import wrong

    toys.register(wrong, "kdhub-wrong")
    yield wrong
    wrong.ELSEWHERE.unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "check", "says"), TEETH, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(TEETH)])
def test_what_breaks_a_rule_is_caught_by_the_check_meant_for_it(wrong, name, check, says):
    (one,) = [c for c in checks_of("kdhub-wrong", name=name) if c.name == check]
    with pytest.raises(AssertionError) as caught:
        one()
    assert says in str(caught.value)


def test_each_check_of_a_method_has_something_that_it_catches(wrong):
    names = {c.name for c in checks_of("kdhub-wrong", name="right")}
    elsewhere = {
        "works_under_two_processes",  # below
        "works_for_every_task_it_names",
        "target_can_be_loaded",
        "unfit_input_is_refused_first",  # the core does the refusing; a method can hardly prevent it
        "resume_is_refused_after_a_change",  # the same
        "card_is_complete",
        "teachers_are_known_by_their_roles",  # tests/test_roles.py
    }
    assert names - elsewhere == {check for _, check, _ in TEETH} & names


def test_a_right_method_passes_every_check(wrong):
    checks = [c for c in checks_of("kdhub-wrong", kind="method", name="right") if "two_processes" not in c.name]
    results = list(run_checks(checks))
    assert [r for r in results if r.bad] == []
    # it is for one task, its only teacher is asked about the batch, and its student is a model
    assert summary(results) == f"{len(results)} checks: {len(results) - 4} passed, 4 skipped"


def test_a_method_without_a_model_and_one_with_a_live_teacher_pass(toys):
    known = {"says_what_it_is": "toys have no paper"}
    for name in ("toy-label", "toy-mix", "toy-hint"):
        checks = checks_of("kdhub-toy", kind="method", name=name, expected_failures={name: known})
        results = list(run_checks(c for c in checks if "two_processes" not in c.name))  # toys are not installed
        assert [r for r in results if r.bad] == []
        assert sum(r.outcome == "passed" for r in results) >= 10
        assert {r.check for r in results if r.outcome == "expected"} == set(known)


PLUGIN = """
from kdhub import MethodSpec, hookimpl
{heavy}

@hookimpl
def kdhub_methods():
    yield MethodSpec(name="two", target="two_method:Two", tasks=("text-embedding",), needs=("embedding",),
                     paper="arXiv:1503.02531", summary="s")
"""

METHOD = """
from kdhub import ObjectiveMethod
from kdhub.ranks import rank

class Two(ObjectiveMethod):
    def objective(self, student, teacher, batch, progress):
        if rank() == 1:
            raise ValueError("only one process was thought of")
        return {"match": (student.embedding - teacher.embedding.float()).square().sum(-1).mean()}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch, make_distribution):
    """`installed(heavy=..., requires=...)`: the plugin kdhub-two as an installed distribution."""
    from kdhub.plugins.discovery import set_plugins

    def install(heavy: str = "", requires: str = "kdhub<1") -> str:
        files = {"two_plugin.py": PLUGIN.format(heavy=heavy), "two_method.py": METHOD}
        make_distribution(tmp_path, "kdhub-two", plugins={"two": "two_plugin"}, files=files, requires=requires)
        monkeypatch.syspath_prepend(tmp_path)
        set_plugins(None)
        return "kdhub-two"

    yield install
    for name in ("two_plugin", "two_method"):
        sys.modules.pop(name, None)


def outcome(plugin: str, check: str) -> str:
    (one,) = [c for c in checks_of(plugin) if c.name == check]
    (result,) = run_checks([one])
    return f"{result.outcome}: {result.message}"


def test_a_method_that_fails_in_the_second_process_is_caught(installed):
    said = outcome(installed(), "works_under_two_processes")
    assert said.startswith("failed") and "only one process was thought of" in said


def test_torch_at_declaration_and_a_missing_range_are_caught(installed):
    plugin = installed(heavy="import torch", requires="kdhub")
    assert outcome(plugin, "declares_lightly").startswith("failed: two_plugin imports torch")
    assert outcome(plugin, "states_its_range_of_kdhub") == "failed: 'kdhub' has no upper bound"


def test_a_light_plugin_with_a_range_passes_both(installed):
    plugin = installed()
    assert outcome(plugin, "declares_lightly") == "passed: "
    assert outcome(plugin, "states_its_range_of_kdhub") == "passed: "


# -- how checks are chosen and run ----------------------------------------------------------------------------


def test_expected_failures_need_a_reason_and_must_fail(wrong):
    with pytest.raises(ValueError, match="has no reason"):
        checks_of("kdhub-wrong", expected_failures={"nan": {"scores_are_numbers": " "}})
    with pytest.raises(ValueError, match="no check 'scores_are_letters'"):
        checks_of("kdhub-wrong", expected_failures={"nan": {"scores_are_letters": "x"}})
    known = {"nan": {"scores_are_numbers": "it is meant so", "target_can_be_loaded": "it was once broken"}}
    checks = [c for c in checks_of("kdhub-wrong", name="nan", expected_failures=known)]
    outcomes = {r.check: r.outcome for r in run_checks(checks)}
    assert outcomes == {"target_can_be_loaded": "surprise", "scores_are_numbers": "expected"}


def test_check_method_raises_with_all_that_failed(toys):
    with pytest.raises(AssertionError, match="toy-attention: distils: .*attentions"):
        check_method("toy-attention", expected_failures={"says_what_it_is": "toys have no paper"})


def test_check_plugin_raises_with_all_that_failed(toys):
    toys.register(type("Bad", (), {"kdhub_metrics": staticmethod(_two_metrics)})(), "kdhub-bad")
    with pytest.raises(AssertionError) as caught:
        check_plugin("kdhub-bad")
    lines = str(caught.value).splitlines()
    assert "checks: " in lines[0] and sum("it gives nan" in line for line in lines) == 2


def _two_metrics():
    from kdhub import MetricSpec

    for name in ("nan-one", "nan-two"):
        yield MetricSpec(name=name, target="wrong:nan", tasks=("toy-vectors",), summary="no number")


_two_metrics = __import__("kdhub").hookimpl(_two_metrics)


def test_unknown_and_broken_plugins_are_named(wrong, installed):
    with pytest.raises(UnknownNameError, match="kdhub-wrnog"):
        checks_of("kdhub-wrnog")
    with pytest.raises(UnknownNameError, match="no method named 'rigth'"):
        checks_of("kdhub-wrong", kind="method", name="rigth")
    os.environ["KDHUB_STRICT"] = "0"  # monkeypatched by the fixture `isolated`, which puts it back
    with pytest.raises(PluginError, match="kdhub-two 1.0 is failed: .*no_such_module"):
        checks_of(installed(heavy="import no_such_module"))


def test_as_pytest_items(items):
    names, run = items
    assert names[-1] == f"count-of-{len(names) - 1}"
    assert run("metric-nan-scores_are_numbers") == "xfail"
    assert run("metric-nan-target_can_be_loaded") == "passed"


@pytest.fixture
def items(wrong):
    """The items of a decorated test, and a function that runs one of them."""
    known = {"nan": {"scores_are_numbers": "it is meant so"}}
    mark = parametrize_with_checks("kdhub-wrong", expected_failures=known)
    params = {p.id: p for p in mark.mark.args[1]}

    def run(name: str) -> str:
        param = params[name]
        try:
            param.values[0]()
        except SkipTest:
            return "skipped"
        except AssertionError:
            return "xfail" if any(m.name == "xfail" for m in param.marks) else "failed"
        return "passed"

    return list(params), run


def test_a_run_in_which_everything_was_skipped_is_no_green_one():
    from kdhub.testing._pytest import _count

    with pytest.raises(AssertionError, match="all 2 checks were skipped"):
        _count([False, False])
    _count([False, True])


ORDER = """
from kdhub import Sampler, SamplerSpec, hookimpl

@hookimpl
def kdhub_samplers():
    yield SamplerSpec(name="first", target="order_plugin:First", summary="the first row, again and again")

class First(Sampler):
    def epoch(self, number):
        return [0]
"""


def test_the_command_prints_a_table_and_fails_with_3(make_distribution, run_python, tmp_path):
    files = {"order_plugin.py": ORDER}
    make_distribution(tmp_path, "kdhub-order", plugins={"order": "order_plugin"}, files=files)
    done = run_python(
        "from kdhub.cli.app import run; run()", tmp_path, args=("plugins", "check", "kdhub-order", "--json")
    )
    said = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    results = {(r["subject"], r["check"]): r["outcome"] for r in said["results"]}
    assert results["plugin kdhub-order", "states_its_range_of_kdhub"] == "failed"
    assert results["sampler first", "gives_whole_batches_of_rows"] == "failed"
    assert results["sampler first", "order_follows_the_seed"] == "passed"
    assert said["summary"].startswith(f"{len(results)} checks: ")


@parametrize_with_checks("kdhub")
def test_what_kdhub_itself_provides(check):
    check()
