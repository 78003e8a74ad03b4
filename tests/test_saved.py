"""What is saved is what was trained, and what is measured is what was saved."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import toy
from safetensors.torch import load_file, save_file

import kdhub
from kdhub.errors import TrainingError, UsageError
from kdhub.rows import UnreadableRows
from kdhub.student import Student
from kdhub.training import saved

RECIPE = {
    "task": "toy-vectors",
    "method": "toy-plain",
    "student": "mlp:6",
    "data": {"train": "toy-points"},
    "evaluation": {"cost": False, "data": [{"source": "toy-points", "split": "test"}]},
    "options": {"batch_size": 8, "max_steps": 4, "precision": "float32", "lr": 0.1},
}


def student_error(run) -> float:
    (value,) = [m["value"] for m in run.report["measures"] if m["subject"] == "student" and m["metric"] == "toy-error"]
    return value


@pytest.mark.parametrize(
    ("loss", "said"),
    (
        (
            lambda state: state["outer.bias"].add_(0.25),
            "1 of 4 weights have other values when it is opened .outer.bias",
        ),
        (lambda state: state.pop("outer.bias"), "1 of 4 weights have other values"),
    ),
)
def test_a_save_that_loses_weights_is_an_error(toys, tmp_path, monkeypatch, loss, said):
    def save(student, folder):
        state = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
        loss(state)
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text('{"hidden": 6}')

    def load(task, folder, *, name=None):
        net = toy.Net(6)
        net.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        return toy.NetStudent(net.eval())

    monkeypatch.setattr(toy.NetStudent, "save", save)
    monkeypatch.setattr(toy.Vectors, "load", load)
    with pytest.raises(TrainingError, match=said):
        kdhub.distill(RECIPE, out=tmp_path / "run")
    assert not (tmp_path / "run" / "student").exists() and not (tmp_path / "run" / "report.json").exists()
    assert (tmp_path / "run" / ".student" / "model.safetensors").exists(), "what was trained is not thrown away"


def test_weights_of_another_network_are_an_error(toys, tmp_path, monkeypatch):
    def load(task, folder, *, name=None):
        student = toy.NetStudent(toy.Net(6).eval())
        student.module.load_state_dict(load_file(folder / "model.safetensors"))
        student.module.further = torch.nn.Linear(2, 2)
        return student

    monkeypatch.setattr(toy.Vectors, "load", load)
    with pytest.raises(TrainingError, match="2 of 4 weights are in what is opened alone .further.bias, further.weight"):
        kdhub.distill(RECIPE, out=tmp_path / "run")


def test_what_outputs_depend_on_beside_the_weights_must_be_saved(toys, tmp_path, monkeypatch):
    forward = toy.Net.forward
    monkeypatch.setattr(toy.Net, "forward", lambda net, x: forward(net, x * getattr(net, "scale", 1.0)))
    monkeypatch.setattr(toy.Plain, "adapt", lambda self, student, teacher: setattr(student.module, "scale", 1.001))
    with pytest.raises(TrainingError, match="its outputs differ by .* of the largest"):
        kdhub.distill(RECIPE, out=tmp_path / "run")


def test_the_opened_student_is_measured(toys, tmp_path, monkeypatch):
    """By the time of evaluation only what was opened is there, the start's story included."""
    asked = []
    evaluate = toy.Plain.evaluate
    monkeypatch.setattr(
        toy.Plain,
        "evaluate",
        lambda self, run, student: asked.append((run.student, student)) or evaluate(self, run, student),
    )
    opened = []
    load = toy.Vectors.load
    monkeypatch.setattr(toy.Vectors, "load", lambda *given, **how: opened.append(load(*given, **how)) or opened[-1])
    run = kdhub.distill(RECIPE, out=tmp_path / "run")
    ((held, measured),) = asked
    assert len(opened) == 1 and held is measured is opened[0] and measured.start == {"hidden": 6}
    found = [m.value for m in kdhub.evaluate(run.folder).measures if m.metric == "toy-error" and m.subject == "student"]
    assert found == [student_error(run)]


@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float32"))
def test_a_recipe_names_the_precision_of_the_saved_weights(toys, tmp_path, dtype):
    run = kdhub.distill({**RECIPE, "student": {"source": "mlp:6", "dtype": dtype}}, out=tmp_path / "run")
    exact = kdhub.distill(RECIPE, out=tmp_path / "exact")
    mine, theirs = (load_file(r.student_folder / "model.safetensors") for r in (run, exact))
    kind = getattr(torch, dtype)
    assert all(mine[n].dtype == kind and torch.equal(mine[n], theirs[n].to(kind)) for n in theirs)
    assert run.provenance["student"]["dtype"] == dtype
    assert (student_error(run) == student_error(exact)) == (dtype == "float32"), "measured as it is saved"
    assert (f"saved in {dtype}" in (run.folder / "README.md").read_text()) == (dtype != "float32")


def test_an_unknown_precision_is_refused(toys, tmp_path):
    with pytest.raises(UsageError, match="dtype"):
        kdhub.distill({**RECIPE, "student": {"source": "mlp:6", "dtype": "int3"}}, out=tmp_path / "run")


def test_weights_in_fewer_bits_train_in_float32(toys, tmp_path, monkeypatch):
    """The same values from a file in bfloat16 and from one in float32 end in the same student, up to the rounding."""
    build, seen = toy.mlp, []

    def start(argument, context):
        student = build("6", context)
        student.module.bfloat16()
        return student if argument == "16" else toy.NetStudent(student.module.float())

    monkeypatch.setattr(toy, "mlp", start)
    monkeypatch.setattr(
        toy.Plain, "adapt", lambda self, student, teacher: seen.append(student.module.inner.weight.dtype)
    )
    options = {**RECIPE["options"], "lr": 1e-4, "max_steps": 40}  # steps below what bfloat16 can tell apart
    runs = [
        kdhub.distill({**RECIPE, "student": f"mlp:{bits}", "options": options}, out=tmp_path / bits)
        for bits in ("16", "32")
    ]
    half, exact = (load_file(run.student_folder / "model.safetensors") for run in runs)
    assert [run.provenance["student"]["dtype"] for run in runs] == ["bfloat16", "float32"]
    assert all(torch.equal(half[n], exact[n].bfloat16()) for n in exact)

    options = {**options, "max_steps": 1, "master_weights": False}
    evaluation = {"cost": False, "data": []}
    with pytest.raises(RuntimeError, match="same dtype"):  # the toy's inputs are float32
        kdhub.distill(
            {**RECIPE, "student": "mlp:16", "options": options, "evaluation": evaluation}, out=tmp_path / "as-is"
        )
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


def test_widening_is_undone():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2).half(), torch.nn.BatchNorm1d(2))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with saved.in_float32(net):
        assert net[0].weight.dtype == torch.float32
    assert all(t.dtype == before[n].dtype and torch.equal(t, before[n]) for n, t in net.state_dict().items())


# -- piece by piece -------------------------------------------------------------------------------------------

ROWS = [{"x": [float(n), 0.5, -1.0, 2.0]} for n in range(3)]


def net(kind=toy.NetStudent):
    torch.manual_seed(0)
    return kind(toy.Net(3).eval(), {"hidden": 3})


def test_how_far_apart_two_outputs_are():
    a, apart = np.array([1.0, -4.0, np.nan], np.float32), saved._apart
    assert apart(None, a) == apart(a, None) == apart(a, a) == apart(a[:0], a[:0]) == 0.0
    assert apart(a, np.array([1.5, -3.0, np.nan])) == 0.25, "of the largest number of the first"
    assert apart(a, a[:2]) == apart(a, np.array([1.0, np.nan, np.nan])) == float("inf")
    assert apart(np.zeros(2), np.array([0.0, 1e-31])) == pytest.approx(0.1)


def test_weights_are_told_apart_by_their_bits():
    one = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2), "n": torch.nn.BatchNorm1d(2)})
    one["b"].weight = one["a"].weight
    found = saved.weights(one)
    assert list(found) == list(one.state_dict()) and found["a.weight"] == found["b.weight"] != found["a.bias"]
    one["a"].weight.data[1, 1] += 1e-6
    again = saved.weights(one)
    assert {n for n in found if found[n] != again[n]} == {"a.weight", "b.weight"}
    whole = torch.arange(4.0)  # two views of one memory
    parts = SimpleNamespace(state_dict=lambda: {"all": whole, "half": whole[:2], "square": whole.reshape(2, 2)})
    found = saved.weights(parts)
    assert found["all"] == found["square"] != found["half"]
    assert saved.raw(torch.tensor([1.0, -2.0], dtype=torch.bfloat16)[::1]).tolist() == [128, 63, 0, 192]


def test_what_differs_is_said():
    student, task = net(), toy.Vectors()
    was = saved.Saved({}, rows=ROWS, weights=saved.weights(student.module), outputs=saved.outputs(task, student, ROWS))
    assert was.outputs.shape == (9,) and saved.difference(task, student, was) == ""
    fewer = {n: d for n, d in was.weights.items() if n != "outer.bias"}
    more = {**was.weights, "c": "", "b": "", "d": "", "a": ""}
    other = {**was.weights, "inner.bias": ""}
    for given, said in (
        (more, "4 of 8 weights are not in what is opened (a, b, c)"),
        (fewer, "1 of 3 weights are in what is opened alone (outer.bias)"),
        (other, "1 of 4 weights have other values when it is opened (inner.bias)"),
    ):
        assert saved.difference(task, student, saved.Saved({}, rows=ROWS, weights=given, outputs=was.outputs)) == said
    outputs, largest = was.outputs, np.abs(was.outputs).max()
    for share, said in ((2e-5, "its outputs differ by 2e-05 of the largest"), (0.5e-5, "")):
        was.outputs = outputs + np.where(np.arange(9) == 2, share * largest, 0).astype(np.float32)
        assert saved.difference(task, student, was) == said


def test_outputs_are_all_that_it_gives_as_one_array():
    class Two(toy.NetStudent):
        def signals(self, examples, kind):
            return {"b": [np.ones((1, 2))], kind: [np.zeros(1)] * len(examples), "a": [[2.0]]}

    given = saved.outputs(toy.Vectors(), net(Two), ROWS)
    assert given.tolist() == [2.0, 1.0, 1.0, 0.0, 0.0, 0.0] and given.dtype == np.float32
    assert saved.outputs(toy.Vectors(), net(Two), []) is None and saved.outputs(object(), net(Two), ROWS) is None


def test_adapters_are_made_permanent_if_that_changes_nothing():
    class Merged(toy.NetStudent):
        by, times = 0.0, 0

        def finalise(self):
            self.times += 1
            self.module.outer.bias.data += self.by

    task, plain = toy.Vectors(), net()
    plain.signals = None  # it is not asked
    saved.finalise(task, plain, ROWS)
    student = net(Merged)
    saved.finalise(task, student, ROWS)
    assert student.times == 1
    student.by = 3e-5 * float(np.abs(saved.outputs(task, student, ROWS)).max())
    saved.finalise(task, student, ROWS)
    student.by *= 30
    with pytest.raises(TrainingError, match="with its adapter merged into the weights its outputs differ by 0.0009 of"):
        saved.finalise(task, student, ROWS)
    student.module.bfloat16()
    student.signals = lambda examples, kind: {kind: student.module.outer.bias.detach().float().numpy()}
    student.by = student.module.outer.bias.abs().max().item() / 60
    saved.finalise(task, student, ROWS)  # two more bits are lost than float32 has


class Reads(toy.Vectors):
    """Rows of the lengths they say, 0 for none; a negative one cannot be read."""

    def preparer(self, student, teacher, **settings):
        def prepare(rows):
            lengths = [row["n"] for row in rows]
            examples = [{"fault": "bad"} if n < 0 else {"length": n} if n else {} for n in lengths]
            if min(lengths) < 0:
                raise UnreadableRows(examples)
            return examples

        return prepare

    def sample(self, data, split, n):
        return [{"n": 50 + i} for i in range(5)] if (data, split, n) == ("data", "test", 32) else None


def test_rows_to_compare_are_those_of_middle_length():
    """Of the first 32; those that cannot be read are left out, one without a length has 1."""
    lengths = [9, -1, 4, 0, 7, 2, 8, 5, 6, 3]

    def chosen(lengths, task=None, data=(), train=True):
        table = datasets.Dataset.from_dict({"n": lengths})
        session = SimpleNamespace(
            task=task or Reads(), evaluator=SimpleNamespace(data=list(data)),
            has_rows={"train": train}.get, table={"train": table}.get,
        )  # fmt: skip
        return [row["n"] for row in saved._rows(session, None)]

    assert chosen(lengths) == [3, 4, 5, 6]  # of 1, 2, 3, 4, 5, 6, 7, 8, 9
    assert chosen([-1, 5]) == [5] and chosen([5, 3]) == [3, 5] and chosen([5, 3, 4, 2, 1]) == [1, 2, 3, 4]
    assert chosen([*range(1, 33), 1, 1, 1, 1]) == [15, 16, 17, 18]
    assert chosen([], train=False) == [] == chosen([1], task=object())
    assert chosen([], data=[("data", "test"), ("other", "test")]) == [50, 51, 52, 53]


@pytest.fixture
def place(tmp_path):
    """A run with a student of before, and its session."""
    run = SimpleNamespace(folder=tmp_path, student_folder=tmp_path / "student", sealed=[])
    run.seal_student = lambda: run.sealed.append(sorted(f.name for f in run.student_folder.iterdir()))
    for name in ("student", ".student"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    session = SimpleNamespace(
        task=toy.Vectors(), evaluator=SimpleNamespace(data=[]), has_rows={"train": True}.get,
        table={"train": datasets.Dataset.from_list(ROWS)}.get,
    )  # fmt: skip
    return run, session


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_saved_is_kept_in_mind_as_it_is_saved(place, precision):
    (run, session), student = place, net()
    student.precision, student.withheld, student.limits = precision, "why", ["a limit"]
    exact = {name: value.clone() for name, value in student.module.state_dict().items()}
    was = saved.save(run, session, student)
    assert run.sealed == [["config.json", "model.safetensors"]] and not (run.folder / ".student").exists()
    files = load_file(run.student_folder / "model.safetensors")
    kind = getattr(torch, precision)
    assert all(torch.equal(files[n], exact[n].to(kind)) and files[n].dtype == kind for n in exact)
    assert (was.start, was.withheld, was.limits, was.precision) == ({"hidden": 3}, "why", ["a limit"], precision)
    assert sorted(row["x"][0] for row in was.rows) == [0.0, 1.0, 2.0] and student.module.inner.weight.dtype == kind
    like = net()
    like.module.load_state_dict(files)
    assert was.weights == saved.weights(like.module)
    assert np.array_equal(was.outputs, saved.outputs(session.task, like, was.rows))
    again = saved.reopen(run, session, was)
    assert again.start == {"hidden": 3} and torch.equal(again.module.outer.weight, like.module.outer.weight)
    was.weights["inner.bias"] = "other"
    with pytest.raises(TrainingError, match="1 of 4 weights have other values") as caught:
        saved.reopen(run, session, was)
    assert caught.value.hint.startswith(f"{run.folder / '.student'} holds what was saved; NetStudent.save and")
    assert not run.student_folder.exists() and (run.folder / ".student" / "model.safetensors").exists()


def test_a_student_without_a_network_is_its_files(place):
    class Plain(Student):
        module = None

        def save(self, folder):
            (folder / "rows").write_text("rows")

        def signals(self, examples, kind):
            raise AssertionError

        def describe(self):
            return {}

    (run, session), made = place, Plain({"how": "made"})
    for folder in (run.student_folder, run.folder / ".student"):
        shutil.rmtree(folder)  # there was none before
    was = saved.save(run, session, made)
    assert (was.rows, was.outputs, was.weights, was.precision, run.sealed) == ([], None, {}, None, [["rows"]])
    session.task = SimpleNamespace(load=lambda folder: {run.student_folder: Plain()}[folder])
    opened = saved.reopen(run, session, was)
    assert isinstance(opened, Plain) and opened.start == {"how": "made"}


def test_only_what_is_saved_is_rounded():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    net.register_buffer("table", torch.ones(2), persistent=False)
    saved.narrow(net, "float16")
    kinds = {n: t.dtype for n, t in (*net.named_parameters(), *net.named_buffers())}
    assert {n for n, kind in kinds.items() if kind != torch.float16} == {"table", "1.num_batches_tracked"}
    saved.narrow(net, "float32")
    kinds = {n: t.dtype for n, t in (*net.named_parameters(), *net.named_buffers())}
    assert {n for n, kind in kinds.items() if kind != torch.float32} == {"1.num_batches_tracked"}
    assert saved.widen(net) == []
