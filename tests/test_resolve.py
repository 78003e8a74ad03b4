"""Whether method, teacher, student and data fit: known before anything is loaded or made, with both sides named."""

from __future__ import annotations

import numpy as np
import pytest

from kdhub import DatasetSpec, MethodSpec, MetricSpec, SamplerSpec, StudentSpec, TaskSpec, TeacherSpec, hookimpl
from kdhub.catalogue.catalog import Catalog
from kdhub.data.dataset import Data, DataOptions
from kdhub.errors import CompatibilityError, ExitCode, RecipeError, UnknownNameError, UsageError
from kdhub.recipes.chain import resolve_recipe
from kdhub.recipes.recipe import DataRef, Layer, Recipe, Ref
from kdhub.recipes.resolve import Resolver
from kdhub.student import BuildContext
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
    assert error.hint == "students that fit: hf, member, mlp, path, sizes"


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


# -- the resolver by itself -----------------------------------------------------------------------------------


class NoCheck:
    """A kind's target that takes whatever it is given."""

    def __init__(self, argument="", options=None, *, task=None):
        self.argument, self.options, self.task = argument, options, task


CALLS = []


def numbers(argument, **options):
    CALLS.append((argument, options))
    return Data.from_rows("numbers", {"train": lambda: ({"x": n} for n in range(9))}, key={"a": argument, **options})


def plain():
    return numbers("", plain=True)


def choose(pool, labelled, n, generator):
    return np.arange(n)


class More:
    """Beside the toys: kinds without an argument, with the teacher's weights, with options, a rule that selects."""

    @hookimpl
    def kdhub_teachers(self):
        yield TeacherSpec(name="still", target=f"{__name__}:NoCheck", tasks=("toy-vectors",), gives=("vector",))
        yield TeacherSpec(
            name="rich", target="toy:Linear", tasks=("toy-vectors",), gives=("vector", "attentions"), argument="SEED"
        )

        for name in ("linear", "still"):  # of two tasks: which is meant, the recipe's task says
            yield TeacherSpec(name=name, target="toy:Linear", tasks=("other",), gives=())
        yield TeacherSpec(name="everything", target="toy:Linear", tasks=("toy-vectors",), gives=None, argument="SEED")
        yield TeacherSpec(
            name="abroad", target="toy:Linear", tasks=("other",), gives=("vector", "attentions"), argument="SEED"
        )

    @hookimpl
    def kdhub_students(self):
        yield StudentSpec(
            name="foreign", target="toy:mlp", tasks=("other",), exposes=("vector", "hidden"), argument="N"
        )
        yield StudentSpec(name="mlp", target="toy:mlp", tasks=("other",), exposes=())
        yield StudentSpec(name="fixed", target="toy:mlp", tasks=("other",), exposes=())
        told = {"tasks": ("toy-vectors",), "target": "toy:mlp"}
        yield StudentSpec(name="whole", argument="N", **told)
        yield StudentSpec(name="half", exposes=("vector", "hidden"), argument="N", from_teacher=True, **told)
        yield StudentSpec(name="fixed", exposes=("vector", "hidden"), **told)

    @hookimpl
    def kdhub_datasets(self):
        yield DatasetSpec(name="numbers", target=f"{__name__}:numbers", argument="N", tags=("counted",))
        yield DatasetSpec(name="plain", target=f"{__name__}:plain")

    @hookimpl
    def kdhub_samplers(self):
        yield SamplerSpec(name="toy-curious", target="toy:Curious", tasks=("other",))
        yield SamplerSpec(name="foreign-rule", target=f"{__name__}:choose", tasks=("other",), selects=True)
        yield SamplerSpec(name="toy-rule", target=f"{__name__}:choose", tasks=("toy-vectors",), selects=True)

    @hookimpl
    def kdhub_methods(self):
        told = {"target": "toy:Plain", "tasks": ("toy-vectors",)}
        yield MethodSpec(name="toy-hint", target="toy:Plain", tasks=("other",))
        yield MethodSpec(name="foreign-plain", target="toy:Plain", tasks=("other",))
        yield MethodSpec(name="toy-both", needs=("vector", "attentions"), **told)

    @hookimpl
    def kdhub_metrics(self):
        yield MetricSpec(name="other-error", target="toy:error", tasks=("other",))

    @hookimpl
    def kdhub_tasks(self):
        yield TaskSpec(name="other", target="toy:Vectors")


@pytest.fixture
def resolver(toys, tmp_path):
    """With `More`, and a catalogue of two models and a data set; `.recipe(**keys)` is the good recipe with changes."""
    toys.register(More(), "kdhub-more")
    for path, text in {
        "teachers/known.yaml": "source: linear:5\noptions: {gain: 2.0}\n",
        "teachers/bare.yaml": "source: still\n",
        "students/small.yaml": "source: mlp:3\n",
        "recipes/mine.yaml": "task: toy-vectors\nmethod: toy-plain\nstudent: mlp:2\n",
        "datasets/nine.yaml": "summary: nine\nsplits: {train: {sources: [{generator: numbers, argument: '9'}]}}\n",
    }.items():
        (tmp_path / "catalog" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "catalog" / path).write_text(text)
    made = Resolver(catalog=Catalog([tmp_path / "catalog"]))
    made.recipe = lambda **keys: Recipe.model_validate({**GOOD, **keys})
    return made


def test_what_a_text_means(resolver):
    def means(kind, text):
        target = resolver.target(kind, text, "toy-vectors")
        return target.entry.name, target.argument, target.text

    assert means("teacher", "linear:7") == ("linear", "7", "linear:7")
    assert means("teacher", "known") == ("linear", "5", "linear:5"), "the catalogue's own"
    assert means("teacher", "still") == ("still", "", "still") and means("student", "small") == ("mlp", "3", "mlp:3")
    assert resolver.target("teacher", "still", "toy-vectors").entry.spec.gives == ("vector",)
    assert means("student", "fixed")[0] == "fixed"
    assert means("teacher", "./some/folder")[:2] == ("path", "./some/folder")
    assert means("student", "recipe:mine") == ("path", "mine", "recipe:mine")
    assert means("student", "recipe:mine@3") == ("path", "mine@3", "recipe:mine@3")
    assert means("sampler", "toy-curious") == ("toy-curious", "", "toy-curious")
    for kind, text in (("teacher", "abroad:1"), ("student", "foreign:1")):
        with pytest.raises(CompatibilityError, match="works for other, not for toy-vectors"):
            means(kind, text)
    for wrong in ("linear", "knwon"):  # a kind that takes an argument, without one; nothing of that name
        with pytest.raises(UnknownNameError) as caught:
            means("teacher", wrong)
        assert caught.value.matches[0] in ("linear:SEED", "known") and "kdhub list teachers" in caught.value.hint
    with pytest.raises(UnknownNameError, match="no recipe named 'mien'"):
        means("student", "recipe:mien")


def test_options_of_models_are_the_catalogues_then_the_recipes(resolver):
    def gain(**ref):
        return resolver.model_options("teacher", Ref.model_validate(ref), "toy-vectors").gain

    assert gain(source="linear:1") == 1 and gain(source="known") == 2 and gain(source="known", gain=3) == 3
    teacher = resolver.teacher(Ref.model_validate({"source": "known"}), "toy-vectors")
    assert (teacher.argument, teacher.options.gain, teacher.task.name) == ("5", 2.0, "toy-vectors")
    saved = resolver.target("teacher", "./folder", "toy-vectors").entry
    assert resolver.options_model(saved, "toy-vectors") is resolver.task("toy-vectors").Teacher.Options
    with pytest.raises(RecipeError, match="teacher.gian.*did you mean 'gain'"):
        gain(source="known", gian=3)


def test_options_of_students_are_their_own_and_the_tasks(resolver, monkeypatch):
    import toy
    from pydantic import BaseModel, ConfigDict

    class Own(BaseModel):
        model_config = ConfigDict(extra="forbid")
        width: int = 1

    class Shared(BaseModel):
        model_config = ConfigDict(extra="forbid")
        wrap: int = 2

    class Both(Shared):
        width: int = 3

    entry = resolver.target("student", "mlp:3", "toy-vectors").entry

    def options(own, shared):
        monkeypatch.setattr(toy.mlp, "Options", own, raising=False)
        monkeypatch.setattr(toy.Vectors, "StudentOptions", shared)
        return resolver.options_model(entry, "toy-vectors")

    nothing = toy.Vectors.StudentOptions
    for own, shared, expected in (
        (None, Shared, {"wrap": 2}), (Shared, Shared, {"wrap": 2}), (Shared, Both, {"wrap": 2, "width": 3}),
        (Own, nothing, {"width": 1}), (Both, Shared, {"wrap": 2, "width": 3}), (Own, Shared, {"wrap": 2, "width": 1}),
    ):  # fmt: skip
        common = {
            "dtype": None,
            "withheld": "",
            "about": {},
            "limits": [],
        }  # the precision it is saved in, and why it should not be published
        assert options(own, shared)().model_dump() == {**expected, **common}
    seen = []
    monkeypatch.setattr(
        toy.Vectors, "configure", lambda self, student, context: seen.append(context.options) or student
    )
    student = resolver.student(
        Ref.model_validate({"source": "small", "wrap": 5}), BuildContext(resolver.task("toy-vectors"), None, 3)
    )
    assert student.module.inner.out_features == 3 and seen == [{"wrap": 5, "width": 1}]


def test_samplers_order_rows_and_rules_choose_them(resolver):
    cls, options = resolver.sampler(Ref.model_validate({"source": "mixture", "weights": {"a": 1}}), "toy-vectors")
    assert cls.__name__ == "MixtureSampler" and options == {"weights": {"a": 1.0}}, "what is set and no more"
    with pytest.raises(RecipeError, match="sampler.wights"):
        resolver.sampler(Ref.model_validate({"source": "mixture", "wights": {}}), "toy-vectors")
    with pytest.raises(CompatibilityError, match="sampler toy-rule chooses rows to have labelled"):
        resolver.sampler(Ref(source="toy-rule"), "toy-vectors")
    assert resolver.select("toy-rule", "toy-vectors")(None, None, 3, None).tolist() == [0, 1, 2]
    for wrong in ("toy-curious", "foreign-rule", "toy-rul"):  # a sampler is no rule
        with pytest.raises(UnknownNameError, match=f"no rule of active learning named '{wrong}'") as caught:
            resolver.select(wrong, "toy-vectors")
    assert caught.value.matches == ["toy-rule"] and "kdhub list samplers" in caught.value.hint


def test_data_is_seen_through_the_options_of_its_use(resolver, monkeypatch):
    ref = {
        "source": "numbers:9", "split": "train", "columns": {"y": "x"}, "where": {"y": [1, 2, 3, 4]},
        "exclude": {"y": [2]}, "limit": 2, "sample_seed": 4, "role": "query", "options": {"extra": 1},
    }  # fmt: skip
    data = resolver.data(DataRef.model_validate(ref), "skip")
    told = {name: getattr(data.options, name) for name in ref if name not in ("source", "options")}
    assert told == {name: ref[name] for name in told} and data.options.on_bad_rows == "skip"
    assert data.tags == ("counted",) and CALLS[-1] == ("9", {"extra": 1})
    assert resolver.data(DataRef(source="numbers:9", sample=3)).options.sample == 3
    assert resolver.data(DataRef(source="numbers:9")).options.on_bad_rows == "stop"
    nine = resolver.data(DataRef(source="nine", limit=4))
    assert nine.options.limit == 4 and len(nine.split("train")) == 4
    assert (
        resolver.open_data("plain", DataOptions()).tags == ()
        and len(resolver.data(DataRef(source="plain")).split("train")) == 9
    )
    asked = []
    whole = resolver.catalog.dataset
    monkeypatch.setattr(resolver.catalog, "dataset", lambda *a, fetch, **k: asked.append(fetch) or whole(*a, **k))
    for optional in (False, True):
        resolver.data(DataRef(source="nine", optional=optional))
    resolver.open_data("nine", DataOptions())
    assert asked == [True, False, True], "what is optional is never fetched"
    with pytest.raises(UsageError, match="plain takes nothing after the colon"):
        resolver.open_data("plain:train", DataOptions())
    with pytest.raises(UsageError, match="data set plain has no option 'size'"):
        resolver.open_data("plain", DataOptions(), {"size": 3})
    with pytest.raises(UnknownNameError, match="no data set named 'numbers'"):
        resolver.open_data("numbers", DataOptions())
    for wrong, match in (("plian", "plain"), ("nien", "nine")):
        with pytest.raises(UnknownNameError) as caught:
            resolver.open_data(wrong, DataOptions())
        assert match in caught.value.matches and "kdhub list datasets" in caught.value.hint


def test_what_fits_is_not_refused(resolver):
    for keys in (
        {},
        {"teacher": "known"},
        {"teacher": "far:1"},
        {"student": "half:1"},
        {"student": "fixed"},
        {"student": "whole:1", "teacher": "everything:1"},
        {"sampler": "toy-curious"},
        {"method": "toy-plain", "teacher": None},
        {"method": "toy-mix"},
        {"method": "toy-label", "student": "table"},  # uses nothing of the student
        {"method": "toy-attention", "teacher": "rich:1", "student": "mlp:6"},
        {"data": {"train": ["nine", "plain", "numbers:3"]}},
        {"evaluation": {"data": [], "metrics": ["toy-error", "toy-distance"], "options": {"scale": 2}}},
    ):
        if keys.get("method") == "toy-attention":
            with pytest.raises(CompatibilityError, match="attentions of the student, mlp:6 exposes hidden, vector"):
                resolver.check(resolver.recipe(**keys))
        else:
            resolver.check(resolver.recipe(**keys))


@pytest.mark.parametrize(
    ("keys", "says", "hint"),
    [
        (
            {"method": "toy-both"},
            "method toy-both needs attentions, vector, teacher linear:1 gives vector: attentions is missing",
            "teachers that fit: rich",
        ),
        ({"method": "toy-mix", "teacher": "still"}, "and still cannot be", "weights are local"),
        (
            {"student": "half:1", "teacher": "far:1"},
            "student half:1 is made from the teacher's weights, and teacher far:1 has none here",
            "students that fit: fixed, hf, member, mlp, path, sizes",
        ),
        (
            {"student": "half:1", "method": "toy-plain", "teacher": None},
            "and the recipe has no teacher",
            "students that fit: fixed, hf, member, mlp, narrow, path, sizes",
        ),
        (
            {"student": "table"},
            "table exposes nothing: hidden, vector is missing",
            "fixed, half, hf, member, mlp, path, sizes",
        ),
        ({"signals": {"keep": "top-3"}}, "method toy-hint, with these options, does not learn", "it takes all"),
        ({"sampler": "toy-rule"}, "chooses rows to have labelled", "--set strategy=toy-rule"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(resolver, keys, says, hint):
    with pytest.raises(CompatibilityError) as caught:
        resolver.check(resolver.recipe(**keys))
    assert says in caught.value.message and hint in caught.value.hint


def test_what_a_method_may_learn_from_in_part(resolver, monkeypatch):
    import toy

    monkeypatch.setattr(toy.Hint, "partial_signals", ("top",), raising=False)
    resolver.check(resolver.recipe(signals={"keep": "top-3"}))
    with pytest.raises(CompatibilityError) as caught:
        resolver.check(resolver.recipe(signals={"keep": "sampled-3"}))
    assert caught.value.hint == "it takes all, top-N"


def test_wrong_options_are_all_told_at_once(resolver):
    keys = {
        "options": {"lr": -1},
        "teacher": {"source": "linear:1", "gian": 1},
        "student": {"source": "mlp:6", "size": 1},
        "sampler": {"source": "mixture", "wights": 1},
        "evaluation": {"data": [], "options": {"scale": -1}},
    }
    with pytest.raises(RecipeError) as caught:
        resolver.check(resolver.recipe(**keys))
    told = "\n".join(caught.value.problems)
    for name in ("options.lr", "teacher.gian", "student.size", "sampler.wights", "evaluation.options.scale"):
        assert name in told
    assert len(caught.value.problems) == 5


def test_a_wrong_option_names_who_set_it(resolver):
    values = {
        "options": {"lr": -1},
        "teacher": {"source": "linear:1", "gian": 1},
        "student": {"source": "mlp:6", "size": 1},
        "sampler": {"source": "mixture", "wights": 1},
        "evaluation": {"data": [], "options": {"scale": -1}},
    }
    with pytest.raises(RecipeError) as caught:
        resolver.check(resolver.recipe(**values), [Layer("mine.yaml", values)])
    assert [problem.startswith("mine.yaml: ") for problem in caught.value.problems] == [True] * 5


def test_a_method_has_its_own_options_and_declaration(resolver):
    method = resolver.method(resolver.recipe(options={"hint_weight": 0.5}))
    assert method.options.hint_weight == 0.5 and method.spec.name == "toy-hint"
    with pytest.raises(CompatibilityError, match="works for other, not for toy-vectors"):
        resolver.method(resolver.recipe(method="foreign-plain"))
    with pytest.raises(CompatibilityError, match="works for other, not for toy-vectors"):
        resolver.check(resolver.recipe(method="foreign-plain"))


def test_names_in_a_recipe_are_looked_up_for_its_task(resolver):
    for keys, kind in (
        ({"evaluation": {"data": [], "metrics": ["toy-error", "other-error"]}}, "metric"),
        ({"evaluation": {"data": ["nien"]}}, "data set"),
        ({"data": {"train": ["nine", "plian"]}}, "data set"),
    ):
        with pytest.raises(UnknownNameError) as caught:
            resolver.check(resolver.recipe(**keys))
        assert caught.value.kind == kind
        if kind == "metric":
            assert "kdhub list metrics --task toy-vectors" in caught.value.hint
