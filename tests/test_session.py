"""What a session works out itself, without a run: notes, digests, what a sampler is told."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from kdhub.errors import CompatibilityError, UsageError
from kdhub.metric import Measure
from kdhub.recipes.resolve import Resolver
from kdhub.rows import Rows, Signals
from kdhub.sampler import Probe
from kdhub.signals.store import FillReport
from kdhub.specs import MAIN
from kdhub.training.session import Session, cost_subjects, in_order, parameters, weights_digest


class Notes:
    """A run that keeps what it is told."""

    def __init__(self, **provenance):
        self.provenance, self.inputs = provenance, []

    def add_provenance(self, **facts):
        for name, fact in facts.items():
            self.provenance[name] = {**self.provenance.get(name, {}), **fact}

    def same(self, what, now):
        self.inputs.append((what, dict(now)))


def session(chained=None, **given):
    made, resolver = object.__new__(Session), object.__new__(Resolver)
    resolver.chained = chained or {}
    vars(made).update({"run": Notes(), "seed": 3, "_writers": [], "_wrote": {}, "resolver": resolver, **given})
    return made


def measure(value, metric="accuracy", dataset="d", higher=True, **more):
    return Measure(
        subject="teacher", metric=metric, value=value, dataset=dataset, split="test", higher_is_better=higher, **more
    )


def network(*values):
    module = torch.nn.Module()
    for name, value in zip("abc", values):
        setattr(module, name, torch.nn.Parameter(torch.tensor(value)))
    return SimpleNamespace(module=module)


def test_a_digest_of_weights_is_of_their_names_and_bytes():
    one = network([1.0, 2.0], [3.0])
    by_hand = hashlib.sha256(b"a" + np.array([1, 2], "<f4").tobytes() + b"b" + np.array([3], "<f4").tobytes())
    assert weights_digest(one) == by_hand.hexdigest() and parameters(one) == 3
    assert weights_digest(network([1.0, 2.0], [4.0])) != weights_digest(one)
    assert weights_digest(SimpleNamespace()) is None is parameters(SimpleNamespace(module=None))


def test_what_is_measured_for_cost():
    refs = {MAIN: SimpleNamespace(source="a", options={"batch": 2}, task=None)}
    refs |= {"view": SimpleNamespace(source="b", options={}, task=None)}
    refs |= {"judge": SimpleNamespace(source="c", options={}, task="causal-lm")}
    assert cost_subjects(SimpleNamespace(teachers=refs), "f") == [
        {"subject": "teacher", "source": "a", "batch": 2}, {"subject": "teacher view", "source": "b"},
        {"subject": "student", "folder": "f"},
    ]  # fmt: skip


def test_teacher_and_start_are_compared_by_the_first_thing_that_both_were_measured_by():
    teacher = [measure(9.0, "loss"), measure(0.9), measure(0.1, dataset="e")]
    start = [measure(0.5), measure(0.9, dataset="e"), measure(0.7)]
    (found,) = in_order(teacher, start)
    assert found.status == "ok" and found.found == "accuracy on d test: teacher 0.9, start 0.5"
    assert found.check == "teacher above start"
    (found,) = in_order([measure(0.9, variant={"dims": 2}), measure(0.4)], start)
    assert found.status == "warn" and found.found.endswith("teacher 0.4, start 0.5") and "little to learn" in found.do
    assert found.check == "teacher above start" and len(in_order([measure(0.9), measure(0.8)], start)) == 1
    (found,) = in_order([measure(0.5, higher=False)], [measure(0.5, higher=False)])
    assert found.status == "ok", "a tie"
    assert in_order([measure(0.4, higher=False)], [measure(0.5, higher=False)])[0].status == "ok"
    assert in_order([measure(0.6)], [measure(0.5, variant={"dims": 2})]) == []


def test_a_student_of_another_problem_names_the_methods_that_are_for_it():
    entries = [SimpleNamespace(name=n, spec=SimpleNamespace(problems=p)) for n, p in (("a", ("x",)), ("b", ()))]
    asked = []
    registry = SimpleNamespace(all=lambda kind, task: asked.append((kind, task)) or entries)
    made = session(
        recipe=SimpleNamespace(task="t", method="b"),
        method=SimpleNamespace(spec=SimpleNamespace(problems=("y",))),
        resolver=SimpleNamespace(registry=registry),
    )
    for problem in ("", "y"):
        made._fits_problem(SimpleNamespace(problem=problem))
    with pytest.raises(CompatibilityError, match="method b is not for x, and the student is") as caught:
        made._fits_problem(SimpleNamespace(problem="x"))
    assert caught.value.hint == "methods that are: a" and asked == [("method", "t")]


def test_what_was_spent_is_the_sum_over_processes():
    made = session(
        _wrote={"requests": 2.0}, _writers=[SimpleNamespace(spent={"requests": 3}), SimpleNamespace(spent={})]
    )
    made._note_written()
    assert made.run.provenance["spent"] == {"data": {"requests": 5.0}}
    fresh = session(_writers=[SimpleNamespace(spent={"cost": 0.123456789})])
    fresh._note_written()
    assert fresh.run.provenance["spent"] == {"data": {"cost": 0.123457}}
    fresh = session()
    fresh._note_spent("text", SimpleNamespace(spent={"requests": 2}), {"requests": 1})
    assert fresh.run.provenance["spent"] == {"text": {"requests": 1}}
    teacher = SimpleNamespace(spent={"requests": 7, "cost": 0.12345678})
    for _ in range(2):
        made._note_spent("text", teacher, {"requests": 4, "cost": 0.0})
    assert made.run.provenance["spent"]["text"] == {"requests": 6, "cost": 0.246914}
    made._note_spent("none", teacher, teacher.spent)
    assert "none" not in made.run.provenance["spent"]
    nothing = session()
    nothing._note_written()
    assert nothing.run.provenance == {}


def test_signals_of_several_fills_add_up():
    made = session()
    store = type("Store", (), {"name": "s", "item_bytes": 4, "__len__": lambda self: 9})()
    for _ in range(2):
        made._note_signals("logits", store, FillReport(computed=3, found=2, calls=1, seconds=0.256))
    assert made.run.provenance["signals"]["logits"] == {
        "computed": 6, "found": 4, "calls": 2, "seconds": 0.52, "store": "s", "rows": 9, "item_bytes": 4,
    }  # fmt: skip


def test_data_is_noted_once_for_each_use_and_kept_the_same():
    made = session(run=Notes(data={"use": [{"use": "train", "source": "a", "split": "train", "old": 1},
                                           {"use": "evaluation", "source": "a", "split": "train"}]}))  # fmt: skip
    part = {"use": "train", "source": "a", "split": "train", "rows": 4, "fingerprint": "f", "more": 1}
    made._note_data([part, {**part, "rows": 5}])
    known = {"rows": 4, "fingerprint": "f"}
    assert made.run.inputs == [("train data a train", known), ("train data a train (2)", {**known, "rows": 5})]
    assert made.run.provenance["data"]["use"] == [
        {"use": "evaluation", "source": "a", "split": "train"},
        part,
        {**part, "rows": 5},
    ]


def test_a_chained_folder_is_told_by_the_recipe_that_made_it():
    made = session(chained={"path:/runs/x/student": "recipe:base"})
    told = made.resolver.made_by
    assert told("path:/runs/x/student") == "recipe:base"
    assert told("layers:2 of path:/runs/x/student") == "layers:2 of recipe:base"
    assert told("path:/runs/y/student") is None is session().resolver.made_by("a")
    made._note_data([{"use": "train", "source": "path:/runs/x/student", "split": "s", "rows": 1, "fingerprint": "f"}])
    assert made.run.provenance["data"]["use"][0]["source"] == "recipe:base"


def test_facts_of_a_report_of_little(monkeypatch):
    evaluator = SimpleNamespace(primary=None, unanswered={})
    made = session(evaluator=evaluator, teachers={MAIN: SimpleNamespace(width=16)})
    nothing = {"primary": None, "truncated": {}, "skipped": {}, "unanswered": {}}
    assert made._facts(SimpleNamespace()) == {**nothing, "width": {"teacher": 16}}
    made.run.provenance["data"] = {"use": [{"name": "d", "split": "s"}]}
    made.run.provenance["rows"] = {"train": {}}
    made.teachers = {}
    assert made._facts(SimpleNamespace(width=None)) == {**nothing, "width": {}}


def test_facts_of_a_report():
    rows = {"train": {"truncated": 3, "unanswered": 2}, "validation": {"truncated": 0}}
    used = [{"name": "d", "split": "s", "skipped": {"x": 2, "y": 3}}, {"name": "e", "split": "s", "skipped": {}}]
    evaluator = SimpleNamespace(primary=("accuracy", "d"), unanswered={"evaluation d": 1})
    made = session(run=Notes(rows=rows, data={"use": used}), evaluator=evaluator,
                   teachers={})  # fmt: skip
    assert made._facts(SimpleNamespace(width=8)) == {
        "primary": ("accuracy", "d"), "width": {"student": 8}, "truncated": {"train": 3}, "skipped": {"d s": 5},
        "unanswered": {"data.train": 2, "evaluation d": 1},
    }  # fmt: skip


# -- samplers ---------------------------------------------------------------------------------------------------------


def parted(*sizes, kept=None, **columns):
    """A session whose training data are data sets of these sizes."""
    tables = []
    for n, size in enumerate(sizes):
        more = {name: [f"{name}{n}{i}" for i in range(size)] for name in columns}
        tables.append(datasets.Dataset.from_dict({"id": [10 * n + i for i in range(size)], **more}))
    data = [
        (SimpleNamespace(name=f"d{n}", split=lambda split, t=t: {"train": t}[split]), "train")
        for n, t in enumerate(tables)
    ]
    task = SimpleNamespace(
        training_table=lambda parts: datasets.concatenate_datasets([d.split(s) for d, s in parts]).select_columns(
            ["id"]
        )
    )
    refs = [SimpleNamespace(source=f"s{n}") for n in range(len(sizes))]
    made = session(task=task, training_data={"train": data})
    made.recipe = SimpleNamespace(sampler=SimpleNamespace(source="mine"), task="t", data={"train": refs})
    spec = SimpleNamespace(columns=("other",) if columns else ())
    made.resolver = SimpleNamespace(
        sampler=lambda ref, task: {("mine", "t"): ((lambda *given, **more: (given, more)), {"alpha": 1})}[
            ref.source, task
        ],
        target=lambda *of: {("sampler", "mine", "t"): SimpleNamespace(entry=SimpleNamespace(spec=spec))}[of],
    )
    table = task.training_table(data)
    if kept is not None:
        table = table.select(kept)
    rows = Rows(table, None, np.zeros((len(table), 12), np.uint8), np.arange(len(table)), kept=kept)
    return made, rows


METHOD = SimpleNamespace(options=SimpleNamespace(batch_size=4))


def test_a_sampler_is_told_its_parts():
    made, rows = parted(3, 2)
    (lengths, batch, seed), more = made._sampler(rows, METHOD)
    assert lengths is rows.lengths and (batch, seed) == (4, 3)
    assert more == {"alpha": 1, "parts": [("s0", 3), ("s1", 2)]}
    made, rows = parted(3, 2, kept=np.array([0, 2, 4]))
    assert made._sampler(rows, METHOD)[1]["parts"] == [("s0", 2), ("s1", 1)], "without the rows that are left out"
    made.recipe.sampler = None
    assert made._sampler(rows, METHOD) is None


def test_a_sampler_is_told_columns_of_the_rows_or_of_the_data_they_are_of():
    made, rows = parted(3, 2, other=True)
    assert made._sampler(rows, METHOD)[1]["columns"] == {
        "other": ["other00", "other01", "other02", "other10", "other11"]
    }
    made, rows = parted(3, 2, kept=np.array([1, 4]), other=True)
    assert made._column(rows, "other") == ["other01", "other11"] and made._column(rows, "id") == [1, 11]
    with pytest.raises(
        CompatibilityError, match="'missing', which the rows of d0, d1 do not have; there are id, other"
    ):
        made._column(rows, "missing")
    rows.kept = np.array([1, 5])  # of other rows than the data's
    with pytest.raises(CompatibilityError, match="'other', which the rows of this method do not have"):
        made._column(rows, "other")
    rows.kept = np.array([1, 4])
    made.task.training_table = lambda parts: datasets.Dataset.from_dict({"id": [1, 2]})  # no longer one for one
    with pytest.raises(CompatibilityError, match="the rows of this method do not have; there are id$"):
        made._column(rows, "other")


def test_what_is_compared_is_the_mean_loss_of_each_data_sets_first_validation_rows(monkeypatch):
    """The teacher's once; the student's as it stands, out of training mode, and without gradient."""
    made, _ = parted(50, 40)
    made.training_data["validation"] = made.training_data["train"]
    student = SimpleNamespace(module=torch.nn.Linear(1, 1))
    torch.nn.init.constant_(student.module.weight, 2.0), torch.nn.init.zeros_(student.module.bias)
    modes, sizes = [], []

    def forward(module, batch):
        modes.append((module.training, torch.is_grad_enabled()))
        return Signals(logits=module(batch["x"]))

    def losses(signals, batch):
        sizes.append(len(batch["x"]))
        return (signals.logits - batch["x"])[:, 0]

    def prepare(rows):
        return [{"content": str(r["id"]).encode(), "length": 1, "cut": False, "x": [float(r["id"])]} for r in rows]

    settings, collated = [], []
    vars(made.task).update(
        primary_signal="logits", forward=forward, label_losses=losses,
        preparer=lambda s, t, **how: settings.append((s, t, how)) or prepare,
        collate=lambda examples, s: collated.append(s) or {"x": torch.tensor([e["x"] for e in examples])},
    )  # fmt: skip
    made.recipe.on_bad_rows, made.teachers, readable, asked = "skip", {"main": object()}, Rows.readable, []
    monkeypatch.setattr(Rows, "readable", lambda self, *how: asked.append(how) or readable(self, *how))
    monkeypatch.setattr(Session, "teacher", SimpleNamespace())
    stored = []

    def given(rows, kind):
        stored.append((len(rows), kind))
        return Given(rows)

    class Given:
        def __init__(self, rows):
            self.rows = rows

        def __getitem__(self, some):
            return {"logits": np.array([[e["x"][0] + 0.5] for e in self.rows[some]], np.float32)}

    made.measured_signals = given
    method = SimpleNamespace(settings=lambda: {"max_length": 3})
    student.module.train()
    now = made._prober(method, student, Probe(5, 40))
    found = now()
    assert asked == [("validation rows of d0", "skip"), ("validation rows of d1", "skip")]
    assert (
        settings == [(student, made.teacher, {"max_length": 3})]
        and {*map(id, collated)} == {id(student)}
        and stored == [(40, "logits"), (40, "logits")]
    )
    ids = np.arange(40)
    assert found["teacher:0"] == found["teacher:1"] == pytest.approx(0.5)
    assert found["student:0"] == pytest.approx(ids.mean()) and found["student:1"] == pytest.approx(10 + ids.mean())
    assert modes == [(False, False)] * 4 and student.module.training and sizes[-2:] == [32, 8]
    student.module.eval()
    now()
    assert not student.module.training


def test_what_is_compared_needs_a_teacher_and_validation_data_of_each(monkeypatch):
    made, _ = parted(3, 2)
    monkeypatch.setattr(Session, "teacher", None)
    with pytest.raises(UsageError, match="data.train has 2, data.validation 0, and there is no teacher"):
        made._prober(METHOD, None, Probe(5, 4))
    monkeypatch.setattr(Session, "teacher", SimpleNamespace())
    made.training_data["validation"] = made.training_data["train"][:1]
    with pytest.raises(UsageError, match="data.train has 2, data.validation 1$"):
        made._prober(METHOD, None, Probe(5, 4))


def test_weights_that_are_trained_are_widened_unless_the_recipe_says_otherwise(caplog):
    made = session(method=SimpleNamespace(options=SimpleNamespace()))
    module = torch.nn.Linear(1, 1).bfloat16()
    with caplog.at_level("INFO", "kdhub"):
        made._widen(None), made._widen(module, "bfloat16")
    assert module.weight.dtype == torch.float32 and "saved in bfloat16" in caplog.text
    made.method.options.master_weights = False
    narrow = torch.nn.Linear(1, 1).bfloat16()
    made._widen(narrow)
    assert narrow.weight.dtype == torch.bfloat16
