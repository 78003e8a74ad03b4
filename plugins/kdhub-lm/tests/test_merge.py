"""Merges: the numbers of the specification, and students that are two others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from kdhub_lm.students.merge import MergeOptions, merge, mixed
from kdhub_tasks.language import task
from kdhub_tasks.language.students import llama

import kdhub
from kdhub.errors import CompatibilityError, TrainingError, UsageError
from kdhub.student import BuildContext


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_numbers_of_the_specification():
    x, y = row(1, 0), row(0, 1)
    assert mixed(x, y, 0.5).tolist() == pytest.approx([0.707107, 0.707107], abs=1e-6)
    assert mixed(x, y, 0.5, "linear").tolist() == [0.5, 0.5]
    assert mixed(x, y, 0.25).tolist() == pytest.approx([0.923880, 0.382683], abs=1e-6)
    long = mixed(row(3, 0), row(0, 4), 0.5)
    assert long.tolist() == pytest.approx([2.121320, 2.828427], abs=1e-6)
    assert long.norm().item() == pytest.approx(3.535534, abs=1e-6)


def test_where_there_is_no_angle_the_mix_is_linear():
    assert mixed(row(2, 4), row(1, 2), 0.5).tolist() == [1.5, 3.0]
    assert mixed(row(0, 0), row(1, 3), 0.25).tolist() == [0.25, 0.75]
    assert mixed(row(1, 2), row(-1, -2), 0.5).tolist() == [0.0, 0.0]
    count = torch.tensor([7])
    assert mixed(count, torch.tensor([9]), 0.5).tolist() == [7], "no weights"


@given(
    some.lists(some.floats(-5, 5), min_size=6, max_size=6), some.floats(0, 1), some.sampled_from(["slerp", "linear"])
)
def test_it_begins_at_one_and_ends_at_the_other(numbers, t, how):
    a, b = row(*numbers[:3]), row(*numbers[3:])
    assert torch.allclose(mixed(a, b, 0.0, how), a, atol=1e-9) and torch.allclose(mixed(a, b, 1.0, how), b, atol=1e-9)
    assert torch.allclose(mixed(a, a, t, how), a, atol=1e-9)
    assert torch.allclose(mixed(a, b, t, how), mixed(b, a, 1 - t, how), atol=1e-9)


@pytest.fixture
def two(tmp_path):
    """Folders of two students."""
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, seed)).save(tmp_path / str(seed))
    return [{"source": f"path:{tmp_path / str(seed)}"} for seed in (1, 2)]


def test_a_merge_is_a_run_of_its_own(two, tmp_path):
    """By `as-is`: measured, saved, with a card that says what it is of; nothing is trained."""
    made = task.CausalLanguage().tiny_recipe(tmp_path)
    recipe = {"task": "causal-lm", "method": "as-is", "student": {"source": "merge", "of": two, "t": 0.25}}
    run = kdhub.distill({**recipe, "evaluation": made["evaluation"]}, out=tmp_path / "run")
    a, b, c = (kdhub.load(p).module.model.state_dict() for p in (tmp_path / "1", tmp_path / "2", run.student_folder))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(c[name], mixed(a[name], b[name], 0.25), atol=1e-6) and not torch.equal(c[name], a[name])
    values = {m["subject"]: m["value"] for m in run.report["measures"] if m["metric"] == "perplexity"}
    assert values["student"] == pytest.approx(values["student-before"])
    start = run.provenance["student"]["start"]
    assert f"slerp of {two[0]['source']} and" in start["how"] and start["relation"] == "merge"


@pytest.mark.parametrize(
    ("bases", "says"), [(["a/b", "a/b"], "a/b"), (["a/b", "a/c"], ["a/b", "a/c"]), (["a/b", None], None)]
)
def test_a_merge_names_the_models_that_it_is_of(two, monkeypatch, bases, says):
    made = [llama("width=16,layers=1,heads=2,length=64", BuildContext(None, None, seed)) for seed in (1, 2)]
    for student, base in zip(made, bases):
        student.start = {"base_model": base}
    monkeypatch.setattr("kdhub_lm.students.merge.open_student", lambda *a, **k: made.pop(0))
    context = BuildContext(task.CausalLanguage(), None, 0, MergeOptions(of=two).model_dump())
    assert merge("", context).start["base_model"] == says


def test_what_does_not_fit_is_refused(two, tmp_path):
    context = BuildContext(task.CausalLanguage(), None, 0, MergeOptions(of=two[:1]).model_dump())
    with pytest.raises(UsageError, match="needs two students, got 1"):
        merge("", context)
    (tmp_path / "3").mkdir()
    llama("width=24,layers=1,heads=2,length=64", BuildContext(None, None, 0)).save(tmp_path / "3")
    context.options["of"] = [two[0], {"source": f"path:{tmp_path / '3'}"}]
    with pytest.raises(CompatibilityError, match=r"differ in \d+ tensors"):
        merge("", context)


def test_weights_with_nan_are_refused(two, tmp_path):
    from kdhub_tasks.language import model as models

    folder = tmp_path / "1"
    broken = models.load(folder)
    with torch.no_grad():
        broken.module.model.model.norm.weight[0] = torch.nan
    broken.save(folder)
    recipe = {"task": "causal-lm", "method": "as-is", "student": f"path:{folder}"}
    with pytest.raises(TrainingError, match="norm.weight holds NaN or infinite values"):
        kdhub.distill(recipe, out=tmp_path / "run")
