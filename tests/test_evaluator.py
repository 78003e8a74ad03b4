"""The evaluator by itself: which data, split, metric and view a number is of, and outputs in batches."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kdhub import MetricSpec, hookimpl
from kdhub.data.dataset import Data
from kdhub.errors import UnavailableError
from kdhub.evaluation import evaluator as ev
from kdhub.recipes.recipe import Evaluation
from kdhub.recipes.resolve import Resolver
from kdhub.rows import BadRows
from kdhub.task import View

ROWS = {
    split: [{"x": [float(n), 0, 0, 0], "y": [0.0, 0.0, 0.0]} for n in at]
    for split, at in {"test": (1, 2), "validation": (3,), "dev": (3,), "train": (4,)}.items()
}


def data(name, *splits, **about):
    return Data.from_rows(name, {s: lambda s=s: iter(ROWS[s]) for s in splits}, key={"splits": splits}, **about)


def gives(value):
    """A subject whose vectors are all `value`."""

    def encode(table, kind):
        return {kind: np.full((len(table), 3), value)}

    encode.model, encode.folder, encode.faults = None, None, {}
    return encode


def absent(*_, **__):
    raise UnavailableError("not here\n - one\n - two")


@pytest.fixture
def evaluator(toys, monkeypatch):
    """`evaluator(data, ..., task=, options=, **plan)`; a task's views and mixture can be set on it."""
    import toy

    def make(*sets, options=None, refs=None, **plan):
        resolver, opened = Resolver(), {d.name: d for d in sets}

        def data(ref, on_bad_rows):
            make.on_bad_rows.append(on_bad_rows)
            return opened[ref.source] if ref.source in opened else absent()

        monkeypatch.setattr(resolver, "data", data)
        more = {"on_bad_rows": plan.pop("on_bad_rows")} if "on_bad_rows" in plan else {}
        plan = Evaluation.model_validate({"data": refs or list(opened), **plan})
        return ev.Evaluator(toy.Vectors(), resolver, plan, options, **more)

    make.on_bad_rows = []

    return make


def short(measures):
    return [(m.metric, m.subject, m.dataset, m.split, m.variant, m.value) for m in measures]


def test_each_number_says_what_it_is_of(evaluator):
    judge = evaluator(data("a", "train", "validation", "test"), data("b", "train", "dev"), data("c", "train"))
    found = judge.measure("student", gives(2.0), gives(1.0))
    assert short(found) == [
        (metric, "student", name, split, {}, value)
        for name, split in (("a", "test"), ("b", "dev"), ("c", "train"))
        for metric, value in (("toy-error", 4.0), ("toy-distance", 1.0))
    ]
    assert [m.examples for m in found] == [2, 2, 1, 1, 1, 1]
    assert [m.higher_is_better for m in found] == [False] * 6
    assert [m.metric for m in judge.measure("teacher", gives(1.0))] == ["toy-error"] * 3, "no fidelity with nobody"
    assert judge.primary == {"rows": "toy-error"} and judge.glance(gives(3.0)) == ("toy-error", 9.0)
    assert [(u["use"], u["name"], u["split"], u["rows"]) for u in judge.used] == [
        ("evaluation", "a", "test", 2), ("evaluation", "b", "dev", 1), ("evaluation", "c", "train", 1),
    ]  # fmt: skip
    assert judge.data is judge.data and len(judge.used) == 3, "opened once"
    assert len(evaluator(data("a", "test"), on_bad_rows="skip").data) == 1
    assert evaluator.on_bad_rows == ["stop"] * 3 + ["skip"]


def test_the_metrics_that_are_asked_for_primary_ones_first(evaluator):
    judge = evaluator(data("a", "test"), metrics=["toy-distance"])
    assert [m.metric for m in judge.measure("student", gives(2.0), gives(1.0))] == ["toy-distance"]
    assert judge.glance(gives(1.0)) is None
    assert evaluator().glance(gives(1.0)) is None, "no data"


def test_optional_data_that_is_not_here_is_noted_and_the_rest_is_measured(evaluator):
    refs = [{"source": "gone", "optional": True}, {"source": "a"}]
    judge = evaluator(data("a", "test"), refs=refs)
    assert [m.dataset for m in judge.measure("student", gives(1.0))] == ["a"]
    assert judge.notes == ["gone was left out: not here one; two"] and len(judge.used) == 1
    with pytest.raises(UnavailableError):
        evaluator(data("a", "test"), refs=["gone"]).measure("student", gives(1.0))


def test_other_views_have_the_primary_metric_and_what_they_name(evaluator, monkeypatch, toys):
    class Plugin:
        @hookimpl
        def kdhub_metrics(self):
            yield MetricSpec(name="a-second", target="toy:error", tasks=("toy-vectors",))

    toys.register(Plugin(), "kdhub-second")
    judge = evaluator(data("a", "test"), options=SimpleNamespace(asymmetric=True))
    seen = []

    def views(outputs, options, subject):
        seen.append((options, subject, outputs.examples))
        half = lambda out: SimpleNamespace(vectors=out.vectors / 2, labels=out.labels, examples=7)  # noqa: E731
        yield View()
        yield View({"half": 1}, half)
        yield View({"half": 2}, half, ("toy-distance", "toy-error"))
        yield View(metrics=())

    monkeypatch.setattr(judge.task, "views", views)
    monkeypatch.setattr(judge.task, "mixed", lambda mine, theirs: mine if theirs.vectors[0, 0] == 1 else None)
    found = judge.measure("student", gives(4.0), gives(1.0))
    numbers = [(m.metric, m.subject, m.variant, m.value, m.examples) for m in found]
    assert numbers == [
        ("toy-error", "student", {}, 16.0, 2),
        ("a-second", "student", {}, 16.0, 2),
        ("toy-distance", "student", {}, 9.0, 2),
        ("toy-error", "student", {"half": 1}, 4.0, 7),
        ("toy-error", "student", {"half": 2}, 4.0, 7),
        ("toy-error", "asymmetric", {}, 16.0, 2),
        ("a-second", "asymmetric", {}, 16.0, 2),
        ("toy-error", "asymmetric", {"half": 1}, 4.0, 7),
        ("toy-error", "asymmetric", {"half": 2}, 4.0, 7),
    ]
    assert seen == [(judge.options, "student", 2), (judge.options, "asymmetric", 2)]
    assert {m.subject for m in judge.measure("student", gives(4.0), gives(2.0))} == {"student"}, "nothing to mix"
    assert {m.subject for m in judge.measure("student", gives(4.0))} == {"student"}
    assert {m.subject for m in judge.measure("student-before", gives(4.0), gives(1.0))} == {"student-before"}
    plain = evaluator(data("a", "test"))
    monkeypatch.setattr(plain.task, "mixed", lambda mine, theirs: mine)
    assert {m.subject for m in plain.measure("student", gives(4.0), gives(1.0))} == {"student"}, "not asked for"


def test_numbers_that_cannot_be(evaluator, monkeypatch):
    """A fidelity that cannot be is a fact about the pair; None means nothing for these rows; other errors stop."""
    import toy

    from kdhub.errors import ShapeError

    def wide(*_):
        raise ShapeError("other widths")

    monkeypatch.setattr(toy, "distance", wide)
    judge = evaluator(data("a", "test"))
    found = judge.measure("student", gives(1.0), gives(1.0))
    assert [(m.metric, m.value, m.note) for m in found] == [
        ("toy-error", 1.0, None), ("toy-distance", None, "other widths"),
    ]  # fmt: skip
    monkeypatch.setattr(toy, "error", lambda out: None)
    assert evaluator(data("a", "test")).measure("student", gives(1.0)) == []
    monkeypatch.setattr(toy, "error", wide)
    with pytest.raises(ShapeError):
        evaluator(data("a", "test")).measure("student", gives(1.0))


def own_outputs(encode, table):
    return SimpleNamespace(examples=len(table), value=encode(table, "vector")["vector"].sum() + table[0]["z"])


def own(out) -> float:
    return out.value


def test_rows_that_one_metric_understands_are_its_alone(evaluator, toys):
    class Plugin:
        @hookimpl
        def kdhub_metrics(self):
            yield MetricSpec(
                name="own", target=f"{__name__}:own", tasks=("toy-vectors",), rows=("x", "z"),
                outputs=f"{__name__}:own_outputs", unit="%",
            )  # fmt: skip
            yield MetricSpec(
                name="foreign",
                target=f"{__name__}:own",
                tasks=("other",),
                rows=("x",),
                outputs=f"{__name__}:own_outputs",
            )
            yield MetricSpec(name="abroad", target=f"{__name__}:own", tasks=("other",))
            yield MetricSpec(name="elsewhere", target=f"{__name__}:own", tasks=("toy-vectors",), form="texts")

    toys.register(Plugin(), "kdhub-own")
    special = Data.from_rows("s", {"test": lambda: iter([{"x": [0.0] * 4, "z": 1}])}, key={"s": 1})
    judge = evaluator(special, data("a", "test"))
    found = judge.measure("student", gives(2.0))
    assert [(m.metric, m.dataset, m.value, m.unit) for m in found] == [
        ("own", "s", 7.0, "%"),
        ("toy-error", "a", 4.0, ""),
    ]
    assert judge.glance(gives(2.0)) == ("own", 7.0)


# -- encoders -------------------------------------------------------------------------------------------------


def test_a_table_goes_through_in_batches_and_comes_back_as_one(monkeypatch):
    monkeypatch.setattr(ev, "BATCH", 2)
    spans = []

    class Model:
        def signals(self, examples, kind):
            spans.append([e["n"] for e in examples])
            values = np.array([e["n"] * e["scale"] for e in examples])
            return {kind: values, "ragged": [np.full(e["n"], e["n"]) for e in examples]}

    table = Data.from_rows("t", {"test": lambda: ({"n": n} for n in range(5))}, key={"t": 1}).split("test")
    encode = ev.encoder_of(Model(), lambda rows: rows)
    out = encode(table, "logits", scale=10)
    assert out["logits"].tolist() == [0, 10, 20, 30, 40] and [len(r) for r in out["ragged"]] == [0, 1, 2, 3, 4]
    assert spans == [[0, 1], [2, 3], [4]] and encode.prepare([1]) == [1] and isinstance(encode.model, Model)
    assert encode.reader(table, "logits", scale=2)(1, 3)["logits"].tolist() == [2, 4]


@pytest.mark.usefixtures("isolated")
def test_stored_outputs_come_as_float32_and_whole_numbers_as_they_are(monkeypatch):
    monkeypatch.setattr(ev, "BATCH", 2)
    table = Data.from_rows("t", {"test": lambda: ({"n": n} for n in range(5))}, key={"t": 1}).split("test")
    asked = []

    def prepare(rows):
        return [{"content": str(r).encode(), "length": 1, "cut": 0, **r} for r in rows]

    def signals(rows, kind):
        asked.append((kind, [(e["n"], e["scale"]) for e in rows[np.arange(len(rows))]]))

        class Stored:
            def __getitem__(self, indices):
                return {
                    "logits": indices.astype(np.float16) / 2,
                    "bytes": indices.astype(np.uint8),
                    "ragged": [np.full(2, i, np.float16) for i in indices],
                }

        return Stored()

    encode = ev.stored_encoder(signals, prepare)
    out = encode(table, "logits", scale=3)
    assert asked == [("logits", [(n, 3) for n in range(5)])] and encode.prepare is prepare and encode.model is None
    assert out["logits"].dtype == np.float32 and out["logits"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert out["bytes"].dtype == np.uint8 and out["bytes"].tolist() == [0, 1, 2, 3, 4]
    assert [r.dtype for r in out["ragged"]] == [np.float32] * 5 and out["ragged"][3].tolist() == [3, 3]


def test_who_gives_the_outputs(toys, monkeypatch):
    import toy

    task, other, asked = toy.Vectors(), SimpleNamespace(), []
    monkeypatch.setattr(task, "preparer", lambda *of: asked.append(of) or list)
    student = SimpleNamespace(answers=True)
    encode = ev.student_encoder(task, student)
    assert (encode.model, encode.prepare) == (student, list)
    encode = ev.student_encoder(other, student)
    assert (encode.model, encode.prepare) == (student, None), "a task without networks"
    encode = ev.teacher_encoder(other, "teacher", None)
    assert (encode.model, encode.prepare) == ("teacher", None)
    table = data("a", "test").split("test")
    stored = ev.teacher_encoder(task, "teacher", lambda rows, kind: {kind: rows} and Everything())
    assert (stored.model, stored.prepare, asked) == (None, list, [(student, None), (None, "teacher")])
    monkeypatch.setattr(stored, "prepare", None)
    monkeypatch.setattr(ev.Rows, "build", lambda *_: SimpleNamespace(bad=BadRows()))
    assert stored(table, "vector")["vector"].tolist() == [0, 1], "through the store"


class Everything:
    def __getitem__(self, indices):
        return {"vector": indices.astype(np.float16)}


def test_what_the_provenance_says_of_data(isolated):
    plain, tagged = data("a", "test"), data("b", "test", licence="mit", tags=("made",))
    facts = ev.describe_data(plain, "test", "train")
    assert facts == {
        "use": "train", "source": plain.ref, "name": "a", "split": "test", "rows": 2,
        "fingerprint": plain.fingerprint("test"), "licence": None, "from": plain.source("test"), "skipped": {},
    }  # fmt: skip
    facts = ev.describe_data(tagged, "test", "train")
    assert facts["licence"] == "mit" and facts["tags"] == ["made"]
    tagged.__class__ = type("Skipping", (Data,), {"skipped": {"test": {"empty": 2}}})
    assert ev.describe_data(tagged, "test", "train")["skipped"] == {"empty": 2}
