"""Whether method, teacher, student and data fit: known before anything is loaded or made, with both sides named."""

from __future__ import annotations

import pytest

from kdhub.errors import CompatibilityError, ExitCode, RecipeError, UnknownNameError
from kdhub.recipes.chain import resolve_recipe
from kdhub.verbs import listing
from kdhub.verbs.distill import distill

GOOD = {
    "task": "toy-vectors",
    "method": "toy-hint",
    "teacher": "linear:1",
    "student": "mlp:6",
    "data": {"train": "toy-points"},
    "evaluation": {"data": "toy-points", "cost": False},
}


@pytest.fixture
def refused(toys, tmp_path, monkeypatch):
    """`refused(Error, key=value)`: the error of the good recipe with keys changed; no model is built, nothing made."""
    import toy

    def no(*_, **__):
        raise AssertionError("a model was built before the check")

    monkeypatch.setattr(toy.Matrix, "__init__", no)
    monkeypatch.setattr(toy.Net, "__init__", no)

    def refuse(error, **keys):
        with pytest.raises(error) as caught:
            distill({**GOOD, **keys}, out=tmp_path / "run")
        assert caught.value.exit_code == ExitCode.USAGE
        assert not (tmp_path / "run").exists()
        return caught.value

    return refuse


def test_the_good_recipe_is_good(toys):
    resolve_recipe(GOOD)


def test_a_teacher_that_lacks_a_signal(refused):
    error = refused(CompatibilityError, method="toy-attention")
    assert "method toy-attention needs attentions" in error.message
    assert "teacher linear:1 gives vector: attentions is missing" in error.message
    assert error.hint == "teachers that fit: none"


def test_a_student_that_lacks_a_signal(refused):
    error = refused(CompatibilityError, student="narrow:6")
    assert "method toy-hint uses hidden, vector of the student" in error.message
    assert "narrow:6 exposes vector: hidden is missing" in error.message
    assert error.hint == "students that fit: hf, mlp, path"


def test_a_teacher_that_cannot_run_inside_training(refused):
    error = refused(CompatibilityError, method="toy-mix", teacher="far:1")
    assert "toy-mix runs the teacher inside training, and far:1 cannot be" in error.message


def test_a_method_that_needs_a_teacher(refused):
    error = refused(CompatibilityError, method="toy-mix", teacher=None)
    assert "method toy-mix needs a teacher that gives vector, the recipe has none" in error.message
    assert "--teacher" in error.hint


def test_a_method_of_another_task(refused, toys):
    from kdhub import MethodSpec, TaskSpec, hookimpl

    class Other:
        @hookimpl
        def kdhub_methods(self):
            yield MethodSpec(name="texty", target="x:y", tasks=("text",))

        @hookimpl
        def kdhub_tasks(self):
            yield TaskSpec(name="text", target="x:y")

    toys.register(Other(), "kdhub-other")
    error = refused(CompatibilityError, method="texty")
    assert "method 'texty' works for text, not for toy-vectors" in error.message
    assert "toy-hint" in error.hint


@pytest.mark.parametrize(
    "keys, kind, match",
    [
        ({"task": "toy-vector"}, "task", "toy-vectors"),
        ({"method": "toy-hnt"}, "method", "toy-hint"),
        ({"teacher": "linaer:1"}, "teacher", "linear"),
        ({"student": "mpl:6"}, "student", "mlp"),
        ({"student": "tabel"}, "student", "table"),
        ({"data": {"train": "toy-point"}}, "data set", "toy-points"),
        ({"data": {"train": "jsnol:x"}}, "data", "jsonl"),
        ({"evaluation": {"data": "toy-pionts"}}, "data set", "toy-points"),
        ({"evaluation": {"metrics": ["toy-eror"], "data": "toy-points"}}, "metric", "toy-error"),
        ({"sampler": "toy-curius"}, "sampler", "toy-curious"),
    ],
)
def test_an_unknown_name_has_close_matches_and_says_how_to_list(refused, keys, kind, match):
    error = refused(UnknownNameError, **keys)
    assert error.message.startswith(f"no {kind}")
    assert len(error.matches) <= 3 and match in error.matches[0]
    assert "kdhub list" in error.hint


def test_an_unknown_option_has_a_close_match(refused):
    error = refused(RecipeError, options={"learning_rat": 1, "hint_wight": 1})
    assert "unknown key 'options.hint_wight'; did you mean 'hint_weight'?" in str(error)


def test_a_bad_option_is_not_hidden_by_a_bad_metric(refused):
    """What is wrong with options and with names of one recipe comes at once."""
    error = refused(RecipeError, options={"lr": -1}, teacher={"source": "linear:1", "gian": 1})
    assert len(error.problems) == 2


def test_list_shows_what_fits_a_teacher(toys):
    names = {row["name"] for row in listing.rows("methods", task="toy-vectors", teacher="linear:1")}
    assert names == {"toy-hint", "toy-label", "toy-mix", "toy-plain"}
    with pytest.raises(UnknownNameError):
        listing.rows("methods", teacher="linaer:1")
    with pytest.raises(UnknownNameError, match="no list named 'metods'") as error:
        listing.rows("metods")
    assert "'methods'" in error.value.hint


def test_an_empty_list_of_methods_for_a_task_nobody_has(toys):
    with pytest.raises(UnknownNameError, match="no task named 'toy-vector'"):
        listing.rows("methods", task="toy-vector")
