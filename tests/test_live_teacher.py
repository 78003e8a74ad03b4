"""What a live teacher is asked is the method's to say, and is counted."""

from __future__ import annotations

import pytest
import torch

import kdhub


@pytest.fixture
def curious(toys, tmp_path, monkeypatch):
    """A method that asks its teacher about two points that the student's output leads to."""
    import toy

    asked = []

    def ask(self, student, batch, teacher):
        points = torch.cat([student.vector.detach(), batch["x"][:, 3:]], 1)
        asked.append(points)
        if len(asked) == self.fail_at:
            raise KeyboardInterrupt
        given = teacher({"x": points})
        teacher({"x": points[:1]})
        return given

    monkeypatch.setattr(toy.Mix, "ask", ask)
    monkeypatch.setattr(toy.Mix, "fail_at", None, raising=False)
    recipe = {**toy.Vectors().tiny_recipe(tmp_path), "task": "toy-vectors", "method": "toy-mix"}
    return {**recipe, "options": {"batch_size": 10, "epochs": 2, "checkpoint_steps": 3, "precision": "float32"}}


def test_it_is_asked_what_the_student_makes(curious, tmp_path):
    run = kdhub.distill(curious, out=tmp_path / "run")
    training = run.provenance["training"]
    assert training["steps"] == 8
    assert (training["live_teacher_calls"], training["live_teacher_rows"]) == (16, 8 * 11)
    assert "on 88 rows in 16 calls" in (run.folder / "README.md").read_text()


def test_a_resumed_run_counts_as_an_undisturbed_one(curious, tmp_path, monkeypatch):
    import toy

    whole = kdhub.distill(curious, out=tmp_path / "whole")
    monkeypatch.setattr(toy.Mix, "fail_at", 8 + 6)
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(curious, out=tmp_path / "run")
    monkeypatch.setattr(toy.Mix, "fail_at", None)
    run = kdhub.distill(resume=tmp_path / "run")
    for name in ("live_teacher_calls", "live_teacher_rows", "steps"):
        assert run.provenance["training"][name] == whole.provenance["training"][name]
    files = [(one.folder / "student" / "model.safetensors").read_bytes() for one in (run, whole)]
    assert files[0] == files[1]


def test_gradients_flow_through_it_to_what_it_is_asked_where_a_method_says_so(curious, tmp_path, monkeypatch):
    import toy

    reached = []

    def ask(self, student, batch, teacher):
        points = torch.cat([student.vector, batch["x"][:, 3:]], 1)
        plain, through = teacher({"x": points}), teacher({"x": points}, gradient=True)
        (slope,) = torch.autograd.grad(through.vector.square().sum(), student.vector, retain_graph=True)
        reached.append(
            (plain.vector.requires_grad, slope.abs().sum().item(), torch.equal(plain.vector, through.vector))
        )
        return through

    monkeypatch.setattr(toy.Mix, "ask", ask)
    kdhub.distill({**curious, "options": {**curious["options"], "max_steps": 1}}, out=tmp_path / "run")
    ((without, size, same),) = reached
    assert not without and size > 0 and same
