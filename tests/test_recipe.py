"""Recipes: what wins over what, every fault at once with file and key, secrets kept out, chains of recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import kdhub
from kdhub.dataset_student import splits_in
from kdhub.errors import RecipeError, UnknownNameError, UsageError
from kdhub.recipes.chain import replaced, resolve_recipe
from kdhub.recipes.recipe import DataRef, Layer, Recipe, build, parse_set, read_yaml
from kdhub.recipes.run import Run
from kdhub.verbs.distill import distill

SECRET = "hf_" + "a1B2c3D4e5F6"


@pytest.fixture
def recipe_file(tmp_path):
    """Write a recipe of the toy family with some keys changed: `recipe_file(options={"lr": 1})`."""

    def write(name: str = "mine.yaml", **keys):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"task": "toy-vectors", "method": "toy-hint", "student": "mlp:6", "teacher": "linear:1"}
        path.write_text(yaml.safe_dump({**values, "data": {"train": "toy-points"}, **keys}))
        return path

    return write


def test_later_layers_win(toys, recipe_file):
    """The method's own recipe, then the recipe given, then flags, then --set."""
    alone = resolve_recipe(method="toy-hint")
    assert (alone.options["epochs"], alone.options["lr"], alone.name) == (2, 0.01, "toy-hint")

    path = recipe_file(options={"lr": 0.5, "hint_weight": 3}, seed=4, student="mlp:7")
    given = resolve_recipe(path)
    assert given.options["epochs"] == 2, "keys that the file leaves out stay the method's"
    assert (given.options["lr"], given.seed, given.student.source) == (0.5, 4, "mlp:7")

    flagged = resolve_recipe(path, seed=5, student="mlp:8", set=["options.lr=1e-4", "student.source=mlp:9"])
    assert (flagged.seed, flagged.student.source, flagged.options["lr"]) == (5, "mlp:9", 1e-4)
    assert flagged.options["hint_weight"] == 3

    twice = resolve_recipe(path, set=["lr=0.1", "lr=0.2"])
    assert twice.options["lr"] == 0.2, "the last --set wins, and a bare key is an option of the method"


def test_the_method_of_the_command_line_brings_its_own_defaults(toys, recipe_file):
    path = recipe_file(method="toy-plain", options={})
    assert "epochs" not in resolve_recipe(path).options
    assert resolve_recipe(path, method="toy-hint").options["epochs"] == 2


def test_another_teacher_drops_the_options_of_the_old_one(toys, recipe_file):
    path = recipe_file(teacher={"source": "linear:1", "gain": 2.0})
    assert resolve_recipe(path, teacher="linear:2").teacher.options == {}
    assert resolve_recipe(path, set=["teacher.gain=3"]).teacher.model_dump(exclude_none=True) == {
        "source": "linear:1",
        "gain": 3,
    }


def test_set_reaches_into_lists(toys, recipe_file):
    path = recipe_file(data={"train": ["toy-points", {"source": "toy-points", "limit": 3}]})
    first, second = resolve_recipe(path, set=["data.train.0.limit=5", "data.train.1.split=test"]).data["train"]
    assert (first.source, first.limit) == ("toy-points", 5)
    assert (second.limit, second.split) == (3, "test")
    with pytest.raises(RecipeError, match="--set data.train.2.limit=5"):
        resolve_recipe(path, set=["data.train.2.limit=5"])


@pytest.mark.parametrize(
    "text, value",
    [
        ("a=1e-4", 1e-4),
        ("a=3", 3),
        ("a=true", True),
        ("a=null", None),
        ("a=[1, 2]", [1, 2]),
        ("a=x=y", "x=y"),
        ("a='1e-4'", "1e-4"),
        ("a=nan", "nan"),
    ],
)
def test_set_reads_yaml_and_numbers(text, value):
    found = parse_set(text).values["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["lr", "=3", " =3", "a=[1", "a..b=1", ".a=1"])
def test_set_refuses_what_is_no_key_and_value(text):
    with pytest.raises(RecipeError) as error:
        parse_set(text)
    assert f"--set {text}" in str(error.value)


def test_all_errors_at_once_each_with_file_key_and_nearest_key(toys, recipe_file):
    path = recipe_file(
        sede=3,
        data={"train": [{"source": "toy-points", "limt": 4}]},
        evaluation={"cost": "perhaps", "metrics": 3},
        on_bad_rows="ignore",
    )
    with pytest.raises(RecipeError) as error:
        resolve_recipe(path, seed=-1, set=["signals.dtype=float64"])
    problems = error.value.problems
    assert len(problems) == 7

    def one(*parts):
        assert len([p for p in problems if all(part in p for part in parts)]) == 1, (parts, problems)

    one(str(path), "'sede'", "did you mean 'seed'")
    one(str(path), "'data.train.0.limt'", "did you mean 'limit'")
    one(str(path), "'evaluation.cost'", "'perhaps'")
    one(str(path), "'evaluation.metrics'", "3")
    one(str(path), "'on_bad_rows'", "'stop' or 'skip'")
    one("--seed", "'seed'", "-1")
    one("--set signals.dtype=float64", "'signals.dtype'", "float16")
    assert all(problem in str(error.value) for problem in problems)


def test_wrong_options_of_method_and_evaluation_come_together(toys, recipe_file):
    path = recipe_file(options={"lr": -1, "hint_wieght": 2}, evaluation={"options": {"scale": 0}, "data": "toy-points"})
    with pytest.raises(RecipeError) as error:
        resolve_recipe(path, set=["options.batch_size=many"])
    problems = error.value.problems
    assert len(problems) == 4
    for parts in (
        (str(path), "'options.lr'", "greater than 0"),
        (str(path), "'options.hint_wieght'", "did you mean 'hint_weight'"),
        (str(path), "'evaluation.options.scale'", "greater than 0"),
        ("--set options.batch_size=many", "'options.batch_size'", "integer"),
    ):
        assert any(all(part in p for part in parts) for p in problems), (parts, problems)


def test_options_of_a_teacher_are_checked_before_anything_is_loaded(toys, recipe_file):
    with pytest.raises(RecipeError) as error:
        resolve_recipe(recipe_file(teacher={"source": "linear:1", "gian": 2}))
    assert "did you mean 'gain'" in str(error.value)


def test_missing_keys_are_blamed_on_the_file(toys, tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("method: toy-plain\n")
    with pytest.raises(RecipeError) as error:
        resolve_recipe(path)
    assert sorted(error.value.problems) == [f"{path}: 'student' is missing", f"{path}: 'task' is missing"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"task: a\nmethod: [b\nseed: 1\n", ", line 3, column 5: not valid YAML"),
        (b"task: a\n\tmethod: b\n", ", line 2, column 1: not valid YAML"),
        (b"- a\n", ": a recipe is a mapping of keys, this is a list"),
        (b"", ": a recipe is a mapping of keys"),
        (b"task: \xff\n", ": not valid YAML"),
        (b"a: !!python/object/apply:os.system [true]\n", ", line 1, column 4: not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_read_names_file_and_line(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        read_yaml(path)
    assert str(path) + expected in str(error.value)


def test_a_recipe_file_that_is_not_there(toys):
    with pytest.raises(RecipeError, match=r"no/such\.yaml: No such file"):
        resolve_recipe("no/such.yaml")
    with pytest.raises(UnknownNameError, match="'toy-hnit'") as error:
        resolve_recipe("toy-hnit")
    assert "'toy-hint'" in error.value.hint and "kdhub list recipes" in error.value.hint


def test_neither_method_nor_recipe_is_usage(toys):
    with pytest.raises(UsageError, match="neither a method nor a recipe"):
        resolve_recipe(seed=1)


def test_a_newer_schema_is_refused_in_one_sentence(toys, recipe_file):
    with pytest.raises(RecipeError) as error:
        resolve_recipe(recipe_file(schema=2))
    assert len(error.value.problems) == 1 and "'schema' is 2" in str(error.value)


@pytest.mark.parametrize("place", ["options.token", "seed", "teacher.gain", "evaluation.cost"])
def test_a_secret_in_a_recipe_is_not_repeated(toys, recipe_file, place):
    """Neither from a file nor from the command line, and not in the document of --json."""
    layer = parse_set(f"{place}={SECRET}")
    for arguments in (
        {"recipe": recipe_file(**_without(layer.values))},
        {"method": "toy-hint", "set": layer_of(place)},
    ):
        with pytest.raises(RecipeError) as error:
            resolve_recipe(**arguments)
        assert SECRET not in str(error.value)
        assert SECRET not in json.dumps(error.value.to_dict())
        assert place in str(error.value)


def layer_of(place):
    return [f"{place}={SECRET}"]


def _without(values):
    return {"teacher": {"source": "linear:1", **values["teacher"]}} if "teacher" in values else values


def test_a_column_may_have_one_value_or_several_and_an_unknown_key_is_named(toys):
    assert DataRef(source="toy-points", where={"split": "train", "n": [1, 2]}).where == {
        "split": ["train"],
        "n": [1, 2],
    }
    with pytest.raises(RecipeError, match="unknown key 'wher'; did you mean 'where'"):
        kdhub.open_data({"source": "toy-points", "wher": {}})


def test_a_recipe_survives_being_written(toys, recipe_file, tmp_path):
    path = recipe_file(
        name="mine",
        seed=7,
        options={"lr": 1e-4, "hint_weight": 0.0},
        data={"train": [{"source": "toy-points", "where": {"x": [1, "ä"]}, "sample": 3}, "toy-points"]},
        evaluation={"data": ["toy-points"], "metrics": ["toy-error"]},
        sampler="toy-curious",
    )
    recipe = resolve_recipe(path)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = build([Layer("again", read_yaml(tmp_path / "again.yaml"))])
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert "lr: 0.0001" in recipe.to_yaml() and "teacher: linear:1\n" in recipe.to_yaml()


def test_python_callers_may_pass_a_mapping_or_a_recipe(toys):
    values = {"task": "toy-vectors", "method": "toy-plain", "student": "mlp:3", "data": {"train": "toy-points"}}
    recipe = resolve_recipe(values, seed=3)
    assert isinstance(recipe, Recipe) and recipe.seed == 3
    assert resolve_recipe(recipe, set={"options.lr": 0.5}).options == {"lr": 0.5}
    with pytest.raises(UnknownNameError, match="no override named 'teachr'") as error:
        resolve_recipe(values, teachr="linear:1")
    assert "'teacher'" in error.value.hint


# -- chains ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(toys, tmp_path, monkeypatch, recipe_file):
    """A user's catalogue; `chain("first", keys...)` writes a recipe into it."""
    monkeypatch.setenv("KDHUB_CATALOG", str(tmp_path / "registry"))
    (tmp_path / "registry" / "recipes").mkdir(parents=True)
    small = {"batch_size": 8, "epochs": 1, "precision": "float32"}

    def write(name, options=(), **keys):
        keys = {"evaluation": {"cost": False}, "options": {**small, **dict(options)}, **keys}
        recipe_file(f"registry/recipes/{name}.yaml", **keys)

    return write


def test_a_chain_is_made_once_and_reused(chain, isolated, tmp_path):
    """A teacher that another recipe trains, on rows that a third one labels: as data, as teacher, as start."""
    chain("labelled", method="toy-label", student="table", options={"keep": 0.5}, evaluation={"cost": False})
    (tmp_path / "registry/recipes/labelled.yaml").write_text(
        "task: toy-vectors\nmethod: toy-label\nteacher: linear:1\nstudent: table\n"
        "data: {train: toy-points}\noptions: {keep: 0.5}\nevaluation: {cost: false}\n"
    )
    chain("assistant", method="toy-plain", teacher=None, data={"train": "recipe:labelled"})
    chain("last", teacher="recipe:assistant", student="recipe:assistant")

    run = distill("last", out=tmp_path / "one")
    made = sorted(p.name for p in (isolated / "recipes").iterdir())
    assert [name.rpartition("-")[0] for name in made] == ["assistant", "labelled"]
    assistant = isolated / "recipes" / made[0]
    assert run.recipe.teacher.source == f"path:{assistant / 'student'}"
    assert run.provenance["chained"] == {"recipe:assistant": str(assistant / "student")}
    rows = splits_in(isolated / "recipes" / made[1] / "student")["train"]
    assert len(rows) == 20, "half of the forty points"

    stamps = {p: p.stat().st_mtime_ns for p in (isolated / "recipes").rglob("student/*")}
    distill("last", out=tmp_path / "two")
    assert {p: p.stat().st_mtime_ns for p in (isolated / "recipes").rglob("student/*")} == stamps, "not made again"

    facts = run.provenance
    assert facts["teacher"]["source"] == facts["teacher"]["id"] == facts["student"]["start"]["source"]
    assert facts["teacher"]["id"] == "recipe:assistant" and str(isolated) not in (run.folder / "README.md").read_text()

    # The folder named in the run's recipe is a fact of this machine; the recipe as written keeps the name.
    assert "recipe:assistant" in (tmp_path / "one" / "recipe.yaml").read_text()

    chain("assistant", method="toy-plain", teacher=None, data={"train": "recipe:labelled"}, seed=9)
    distill("last", out=tmp_path / "three")
    names = sorted(p.name.rpartition("-")[0] for p in (isolated / "recipes").iterdir())
    assert names == ["assistant", "assistant", "labelled"], "a changed recipe is made again, what it stands on is not"


def test_jobs_that_stand_on_the_same_students_share_the_work(chain, isolated, tmp_path, monkeypatch):
    """What another job is making comes last, and is waited for; one that died at it is taken over."""
    from kdhub.recipes.chain import folder_of, resolved
    from kdhub.recipes.resolve import Resolver
    from kdhub.training import execute

    chain("assistant", method="toy-plain", teacher=None)
    chain("beginning", method="toy-plain", teacher=None, seed=4)
    chain("last", teacher="recipe:assistant", student="recipe:beginning")
    resolver = Resolver()
    folders = [folder_of(resolved(f"recipe:{name}", resolver), resolver) for name in ("assistant", "beginning")]
    other = Run.create(folders[0], resolved("recipe:assistant", resolver))
    waited = []

    def sleep(seconds):
        if seconds == execute.POLL_SECONDS:
            waited.append([Run.open(folder).finished("done") for folder in folders])
            other.unlock()

    monkeypatch.setattr(execute.time, "sleep", sleep)
    run = distill("last", out=tmp_path / "one")
    assert waited == [[False, True]] and run.provenance["chained"] == {
        "recipe:assistant": str(folders[0] / "student"), "recipe:beginning": str(folders[1] / "student")
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_made_teacher_that_was_changed_is_made_again(chain, isolated, tmp_path, caplog, suffix):
    chain("assistant", method="toy-plain", teacher=None)
    chain("last", teacher="recipe:assistant")
    distill("last", out=tmp_path / "one")
    damaged = next(p for p in (isolated / "recipes").rglob("student/*") if p.suffix == suffix)
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    distill("last", out=tmp_path / "two")
    assert (
        damaged.read_bytes() == before
        and f"recipe:assistant: student/{damaged.name} changed since it was made" in caplog.text
    )


def test_a_student_of_another_seed_is_another_one(chain, isolated, tmp_path):
    chain("assistant", method="toy-plain", teacher=None, seed=1)
    chain("last", teacher="recipe:assistant")
    found = []
    for teacher in ("recipe:assistant@1", "recipe:assistant", {"source": "recipe:assistant@1", "seed": 2}):
        run = distill("last", out=tmp_path / str(len(found)), teacher=teacher)
        found.append({p.name: p.read_bytes() for p in Path(run.recipe.teacher.source[5:]).glob("*.safetensors")})
    assert found[0] == found[1] != found[2] and found[2]
    assert run.provenance["teacher"]["id"] == "recipe:assistant@2"
    with pytest.raises(RecipeError, match="the seed is 'two', expected a number"):
        distill("last", out=tmp_path / "x", teacher="recipe:assistant@two")


def test_a_link_with_other_keys_is_another_student_with_a_folder_of_its_own(chain, isolated, tmp_path):
    """Wherever a source stands, in a mapping of its own or nested in options; equal keys are one student."""
    chain("assistant", method="toy-plain", teacher=None)
    chain("last", teacher={"source": "recipe:assistant", "set": {"lr": 0.05}, "seed": 2})
    run = distill("last", out=tmp_path / "one")
    made = Run.open(Path(run.recipe.teacher.source[5:]).parent)
    assert (made.recipe.options["lr"], made.recipe.seed) == (0.05, 2) and "set" not in run.recipe.teacher.options
    (link,) = run.provenance["chained"]
    assert link == run.provenance["teacher"]["id"] == 'recipe:assistant@2?{"lr":0.05}'
    for same in ({"options.lr": 0.05, "seed": 2}, {"options": {"lr": 5e-2}, "seed": 2, "on_bad_rows": "stop"}):
        out = tmp_path / f"again{len(same)}"
        again = distill("last", out=out, teacher={"source": "recipe:assistant", "set": same})
        assert again.recipe.teacher.source == run.recipe.teacher.source
    assert len(list((isolated / "recipes").iterdir())) == 1

    nested = {"members": [{"source": "recipe:assistant", "set": {"epochs": 2}}, {"source": "recipe:assistant"}]}
    recipe = Recipe.model_validate({**run.recipe.to_dict(), "options": nested})
    kept = replaced(recipe, lambda text: text)["options"]["members"]
    assert kept == [{"source": 'recipe:assistant?{"epochs":2}'}, {"source": "recipe:assistant"}]


def test_wrong_keys_of_a_link_are_known_before_anything_is_made(chain, isolated, tmp_path):
    chain("assistant", method="toy-plain", teacher=None)
    chain("last")
    for wrong, says in (
        ({"set": {"options.lerning": 1}}, "options.lerning"),
        ({"set": [1]}, "set must be a mapping"),
        ({"source": "recipe:assistant?lr"}, "not JSON; write set:"),
    ):
        with pytest.raises(RecipeError, match=says):
            distill("last", out=tmp_path / "x", teacher={"source": "recipe:assistant", **wrong})
    assert not (isolated / "recipes").exists() and not (tmp_path / "x").exists()


def test_a_recipe_that_leads_back_to_itself(chain, tmp_path):
    chain("a", teacher="recipe:b")
    chain("b", teacher="recipe:a")
    with pytest.raises(RecipeError, match="recipe:a leads back to itself: a > b > a|recipe:b leads back"):
        distill("a", out=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "known before anything is made"


def test_a_chain_names_the_recipe_nobody_has(chain, tmp_path):
    chain("a", teacher="recipe:assitant")
    chain("assistant", method="toy-plain", teacher=None)
    with pytest.raises(UnknownNameError, match="no recipe named 'assitant'") as error:
        distill("a", out=tmp_path / "run")
    assert "'assistant'" in error.value.hint
    assert not (tmp_path / "run").exists()


def test_what_a_chain_changes_under_the_recipe_is_made_anew(chain, isolated, tmp_path):
    """The digest of a made-once student covers the recipes it stands on, not only its own text."""
    chain("base", method="toy-plain", teacher=None)
    chain("middle", teacher="recipe:base")
    chain("top", teacher="recipe:middle")
    distill("top", out=tmp_path / "one")
    chain("base", method="toy-plain", teacher=None, seed=5)
    distill("top", out=tmp_path / "two")
    names = sorted(p.name.rpartition("-")[0] for p in (isolated / "recipes").iterdir())
    assert names == ["base", "base", "middle", "middle"]


@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 10, "sk-" + "proj4" * 8, "https://me:pass" + "word@host/v1"])
def test_a_recipe_that_holds_a_secret_is_refused(toys, recipe_file, tmp_path, secret):
    """Recipes are written into runs and cards, so it must not get that far."""
    path = recipe_file(summary=f"with {secret}")
    with pytest.raises(RecipeError, match="'summary' holds what looks like a secret") as error:
        distill(path, out=tmp_path / "run")
    assert str(path) in str(error.value) and secret not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_option_of_the_student_is_an_error(toys, recipe_file):
    with pytest.raises(RecipeError, match="'student.depth'"):
        resolve_recipe(recipe_file(student={"source": "mlp:6", "depth": 2}))
