"""What is saved is what was trained, and what is measured is what was saved."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdhub
from kdhub.errors import TrainingError, UsageError
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
    import toy

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
    import toy

    def load(task, folder, *, name=None):
        student = toy.NetStudent(toy.Net(6).eval())
        student.module.load_state_dict(load_file(folder / "model.safetensors"))
        student.module.further = torch.nn.Linear(2, 2)
        return student

    monkeypatch.setattr(toy.Vectors, "load", load)
    with pytest.raises(TrainingError, match="2 of 4 weights are in what is opened alone .further.bias, further.weight"):
        kdhub.distill(RECIPE, out=tmp_path / "run")


def test_what_outputs_depend_on_beside_the_weights_must_be_saved(toys, tmp_path, monkeypatch):
    import toy

    forward = toy.Net.forward
    monkeypatch.setattr(toy.Net, "forward", lambda net, x: forward(net, x * getattr(net, "scale", 1.0)))
    monkeypatch.setattr(toy.Plain, "adapt", lambda self, student, teacher: setattr(student.module, "scale", 1.001))
    with pytest.raises(TrainingError, match="its outputs differ by .* of the largest"):
        kdhub.distill(RECIPE, out=tmp_path / "run")


def test_the_opened_student_is_measured(toys, tmp_path, monkeypatch):
    """By the time of evaluation only what was opened is there, the start's story included."""
    import toy

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
    import toy

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
