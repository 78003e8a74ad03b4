"""Several teachers of one method by role, one of another task among them, with a family on top of the toy's."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import toy

import kdhub
from kdhub import MethodSpec, Role, TaskSpec, TeacherSpec, hookimpl
from kdhub.errors import CompatibilityError, PluginError, RecipeError, RunError
from kdhub.method import ObjectiveMethod
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.recipe import Layer, build
from kdhub.recipes.resolve import Resolver
from kdhub.testing import checks_of, run_checks
from kdhub.verbs.distill import distill

ROLES = (
    Role(name="near", summary="vectors like the student's", needs=("vector",)),
    Role(name="sums", tasks=("toy-sums", "toy-other"), needs=("total",)),
    Role(name="helper", needs=("vector",), live=True, optional=True),
)


class Sums(toy.Vectors):
    """Another task, which reads the same column in its own way: halves, of which it knows the sum."""

    name = "toy-sums"
    primary_signal = "total"

    def preparer(self, student, teacher, **settings):
        def prepare(rows):
            halves = [np.asarray(row["x"], "<f4") / 2 for row in rows]
            return [{"half": h, "content": b"half" + h.tobytes(), "length": 1, "cut": 0} for h in halves]

        return prepare

    def tiny_recipe(self, folder):
        return {"teacher": "adder:1"}


class Other(Sums):
    name = "toy-other"


class Adder(toy.Linear):
    asked_of = []

    @property
    def provenance(self):
        return {**self.identity, "licence": "cc-by-nd-4.0"}

    def layout(self, kind):
        return {kind: (1,)}

    def signals(self, examples, kind):
        Adder.asked_of.append(sorted(examples[0]))
        return {kind: np.asarray([[e["half"].sum()] for e in examples], np.float32)}


class Two(ObjectiveMethod):
    """By what it is told: `near` leads the vector, `sums` the sum of its parts, `helper` is asked live."""

    def objective(self, student, teacher, batch, progress):
        terms = {"near": (student.vector - teacher.of("near").vector).square().mean()}
        terms["sums"] = (student.vector.sum(-1, keepdim=True) - teacher.of("sums").total).square().mean()
        if helper := teacher.of("helper"):
            terms["helper"] = (student.vector - helper.vector).square().mean()
        return terms


class Plugin:
    @hookimpl
    def kdhub_tasks(self):
        for name, cls, column in (("toy-sums", "Sums", "x"), ("toy-other", "Other", "y")):
            spec = {"signals": ("total",), "reads": ((column,),), "summary": "halves to a sum"}
            yield TaskSpec(name=name, target=f"{__name__}:{cls}", **spec)

    @hookimpl
    def kdhub_teachers(self):
        yield TeacherSpec(
            name="adder", target=f"{__name__}:Adder", tasks=("toy-sums", "toy-other"), gives=("total",), live=True
        )

    @hookimpl
    def kdhub_methods(self):
        method = MethodSpec.shorthand(f"{__name__}:", tasks=toy.TASK, paper="a toy", uses=("vector",))
        yield method("toy-two", "Two", "two teachers", roles=ROLES)
        yield method("toy-sum", "One", "a teacher of another task", roles=ROLES[1:2])


class One(ObjectiveMethod):
    def objective(self, student, teacher, batch, progress):
        sums = student.vector.sum(-1, keepdim=True)
        return {"sums": (sums - teacher.of("sums").total).square().mean()}


@pytest.fixture
def roles(toys, monkeypatch):
    monkeypatch.setattr(Adder, "asked_of", [])
    toys.register(Plugin(), "kdhub-roles")
    return toys


NAMED = {"source": "roles", "near": {"source": "linear:1", "gain": 2.0}, "sums": "adder:3"}


def recipe(teacher=NAMED, method="toy-two", **changes):
    options = {"batch_size": 8, "epochs": 2, "precision": "float32", "lr": 0.01, "checkpoint_steps": 2}
    base = {"task": "toy-vectors", "method": method, "teacher": teacher, "student": "mlp:6", "options": options}
    test = {"source": "toy-points", "split": "test"}
    return {**base, "data": {"train": "toy-points"}, "evaluation": {"cost": False, "data": [test]}, **changes}


def student(run):
    return (run.student_folder / "model.safetensors").read_bytes()


def test_each_is_stored_measured_and_named(roles, tmp_path):
    run = distill(recipe(), out=tmp_path / "run")
    losses = [record["terms"] for record in run.metrics()]
    assert set(losses[0]) == {"near", "sums"} and losses[-1]["sums"] < losses[0]["sums"]
    assert Adder.asked_of and all(names == ["content", "cut", "half", "length"] for names in Adder.asked_of)

    facts = run.provenance
    assert {one["role"]: (one["kind"], one.get("task")) for one in facts["teacher"]["members"]} == {
        "near": ("linear", None),
        "sums": ("linear", "toy-sums"),
    }
    assert {kind: one["computed"] for kind, one in facts["signals"].items()} == {"near/vector": 40, "sums/total": 40}
    measured = {(m["subject"], m["variant"]["teacher"]) for m in run.report["measures"] if m.get("variant")}
    assert measured == {("teacher", "near"), ("student", "near")}, "fidelity to it as well"
    assert "teacher sums is for toy-sums: it was not measured" in run.report["notes"]

    card = (run.folder / "README.md").read_text()
    assert "distilled from `linear:1` (near) and `adder:3` (sums)" in card
    assert "teacher near: unknown; teacher sums: `cc-by-nd-4.0`" in card
    assert "kdhub-teacher:linear:1" in card and "kdhub-teacher:adder:3" in card

    Adder.asked_of.clear()
    made = kdhub.label(recipe(NAMED | {"sums": "adder:4"}))
    assert {(one.signal, one.of): (one.rows, one.found) for one in made.labels} == {
        ("near/vector", "training"): (40, 40),
        ("sums/total", "training"): (40, 0),
        ("near/vector", "evaluation"): (16, 16),
    }
    again = distill(recipe(), out=tmp_path / "again")
    assert again.provenance["signals"]["sums/total"]["computed"] == 0, "stored for whoever needs it next"
    assert student(again) == student(run)


def test_a_live_one_beside_stored_ones(roles, tmp_path, monkeypatch):
    run = distill(recipe({**NAMED, "helper": "linear:5"}), out=tmp_path / "run")
    assert set(next(run.metrics())["terms"]) == {"near", "sums", "helper"}
    assert run.provenance["training"]["live_teacher_calls"] == 10
    assert "helper/vector" not in run.provenance["signals"], "nothing of a live teacher is stored"


def test_a_single_teacher_of_another_task_needs_no_role_in_the_recipe(roles, tmp_path):
    resolved = resolve_recipe(recipe("adder:3", "toy-sum"))
    assert resolved.to_dict()["teacher"] == {"source": "roles", "sums": {"source": "adder:3", "task": "toy-sums"}}
    assert resolve_recipe(resolved.to_dict()).to_dict() == resolved.to_dict()
    run = distill(recipe("adder:3", "toy-sum"), out=tmp_path / "run")
    losses = [record["loss"] for record in run.metrics()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (None, "needs a teacher with the role 'near' that gives vector, the recipe has none: vectors like the student"),
        ({"source": "roles", "near": "linear:1"}, "with the role 'sums' that gives total, the recipe has none"),
        ({**NAMED, "sum": "adder:1"}, "no teacher with the role 'sum'; it has near, sums, helper.*did you mean sums"),
        ({**NAMED, "sums": {"source": "adder:3", "task": "toy-vectors"}}, "must be toy-sums or toy-other for toy-two"),
        ({**NAMED, "near": {"source": "adder:1"}}, "works for toy-other, toy-sums, not for toy-vectors"),
        ({**NAMED, "helper": "far:1"}, "runs the teacher inside training, and far:1 cannot be"),
    ],
)
def test_roles_that_are_missing_unknown_or_of_another_task(roles, teacher, said):
    with pytest.raises(CompatibilityError) as error:
        resolve_recipe(recipe(teacher))
    assert re.search(said, f"{error.value.message} {error.value.hint}")


@pytest.mark.parametrize(("teacher", "said"), [
    ({**NAMED, "near": 3}, "role near must be a source, or a mapping with source and options"),
    ({**NAMED, "near": {"source": "linear:1", "gian": 2}}, "unknown key 'teacher.gian'; did you mean 'gain'"),
])  # fmt: skip
def test_what_stands_below_a_role_is_checked(roles, teacher, said):
    with pytest.raises(RecipeError, match=said):
        resolve_recipe(recipe(teacher))


def test_a_plain_method_has_no_roles(roles):
    with pytest.raises(CompatibilityError, match="toy-hint has no teacher with the role 'near'; it has teacher"):
        resolve_recipe(recipe(NAMED, "toy-hint"))
    one = resolve_recipe(recipe({"source": "roles", "teacher": "linear:1"}, "toy-hint"))
    assert one.to_dict()["teacher"] == "linear:1", "the same recipe as without the word"


def test_a_role_is_replaced_by_set_with_its_options(roles):
    resolved = resolve_recipe(recipe(), set=["teacher.near=linear:2", "teacher.sums.task=toy-other"])
    assert resolved.teachers["near"].options == {} and resolved.teachers["near"].source == "linear:2"
    assert resolved.teachers["sums"].task == "toy-other"


def test_links_below_roles_are_checked_made_and_have_a_place_in_the_lineage(roles, tmp_path, monkeypatch):
    folder = tmp_path / "catalogue" / "recipes"
    folder.mkdir(parents=True)
    own = recipe("linear:1", "toy-hint", name="first")
    (folder / "first.yaml").write_text(json.dumps({"schema": 1, "summary": "a start", **own}))
    monkeypatch.setenv("KDHUB_CATALOG", str(folder.parent))
    linked = {"source": "recipe:first", "set": {"options.epochs": 1}}
    with pytest.raises(CompatibilityError, match="makes a student for toy-vectors, not for toy-sums"):
        resolve_recipe(recipe({**NAMED, "sums": "recipe:first"}))
    run = distill(recipe({**NAMED, "near": linked}), out=tmp_path / "run")
    (chained,) = run.provenance["chained"]
    assert chained == 'recipe:first?{"options.epochs":1}'
    assert [one["source"] for one in run.provenance["teacher"]["members"]] == [chained, "adder:3"]
    assert [(one["as"], one["source"]) for one in run.provenance["lineage"]] == [("teacher", "linear:1")]
    assert f"distilled from `{chained}` (near)" in (run.folder / "README.md").read_text()


def test_a_run_goes_on_with_the_teachers_it_began_with(roles, tmp_path, monkeypatch):
    whole = distill(recipe(), out=tmp_path / "whole")
    own = Two.objective

    def stop(self, student, teacher, batch, progress):
        if progress.step == 5:
            raise KeyboardInterrupt
        return own(self, student, teacher, batch, progress)

    monkeypatch.setattr(Two, "objective", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(recipe(), out=tmp_path / "cut")
    monkeypatch.setattr(Two, "objective", own)
    with monkeypatch.context() as other:
        other.setattr(Adder, "identity", property(lambda self: {"kind": "linear", "seed": 9}))
        with pytest.raises(RunError, match="began with another teacher sums: .*seed was 3, now 9"):
            distill(resume=tmp_path / "cut")
    resumed = distill(resume=tmp_path / "cut")
    assert student(resumed) == student(whole)


def test_rows_without_the_columns_of_the_other_task(roles, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"x": [i, 1.0, 2.0, 3.0]}) + "\n" for i in range(8)))
    with pytest.raises(CompatibilityError, match="teacher sums is for toy-other, which reads y; the rows have x"):
        teacher = {**NAMED, "sums": {"source": "adder:3", "task": "toy-other"}}
        distill(recipe(teacher, data={"train": f"jsonl:{file}"}, evaluation={"cost": False}), out=tmp_path / "run")


def test_another_arm_of_a_comparison_has_the_roles_that_its_method_knows(roles):
    given = build([Layer("arm", recipe({**NAMED, "teacher": "linear:1"}, "toy-hint"))])
    assert Resolver().with_roles(given, others=True).to_dict()["teacher"] == "linear:1"
    alone = build([Layer("arm", recipe(NAMED, "toy-plain"))])
    assert Resolver().with_roles(alone, others=True).teacher is None


def test_the_main_teacher_may_be_of_another_task(roles):
    """Where its role says so; a role of that name beside `needs` would say it twice."""
    spec = MethodSpec(name="start", target="x:y", roles=(Role(name="teacher", tasks=("toy-other",)),))
    assert spec.teachers["teacher"].tasks == ("toy-other",) and len(spec.teachers) == 1


@pytest.mark.parametrize("role", ["source", "teacher", "Near"])
def test_a_name_that_no_role_can_have(toys, role):
    class Wrong:
        @hookimpl
        def kdhub_methods(self):
            wrong = MethodSpec(name="wrong", target=f"{__name__}:One", tasks=toy.TASK, roles=(Role(name=role),))
            yield replace(wrong, needs=("vector",))

    with pytest.raises(PluginError, match=f"'{role}' of 'wrong' is not a name for a role"):
        toys.register(Wrong(), "kdhub-wrong-role")


def test_the_kit_tries_a_method_by_its_roles(roles):
    kept = ("distils", "teachers_are_known_by_their_roles", "unfit_input_is_refused_first", "uses_the_signals")
    checks = [c for c in checks_of("kdhub-roles", kind="method", name="toy-two") if any(n in c.name for n in kept)]
    assert {r.outcome for r in run_checks(checks)} == {"passed"} and len(checks) == 4
