"""denoise, boot and rollout."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from kdhub_generative.images.model import NetworkModel
from kdhub_generative.images.process import Process
from kdhub_generative.methods.averaged import drawn_anew, row_mean
from kdhub_generative.methods.boot import Boot, clipped

import kdhub
from kdhub.errors import CompatibilityError, DataError, RecipeError
from kdhub.rows import Signals


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A diffusion of 2 x 2 pictures that are black or white, which it was told, in a folder."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = {"network": "denoiser-mlp", "settings": {"width": 32, "blocks": 2}, "shape": [1, 2, 2]}
    model = NetworkModel({**config, "prediction": "v", "classes": ["black", "white"], "has_null": True})
    optimiser, process = torch.optim.Adam(model.module.parameters(), 3e-3), model.process
    for _ in range(400):
        label, t, e = torch.randint(2, (64,)), torch.rand(64) * 0.99, torch.randn(64, 1, 2, 2)
        picture = (label * 1.6 - 0.8).reshape(-1, 1, 1, 1) + 0.1 * torch.randn(64, 1, 2, 2)
        condition = torch.where(torch.rand(64) < 0.2, 2, label)
        given = model.module({"x": process.noised(picture, e, t), "t": t, "condition": condition})
        loss = (given.output - process.target("v", picture, e, t)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save(folder)
    return folder


def recipe(teacher, method="boot", options=None, **more):
    few = {"max_steps": 6, "batch_size": 8, **(options or {})}
    base = {
        "task": "image-generation", "method": method, "teacher": f"path:{teacher}", "student": "signal",
        "data": {"train": {"source": "noise:32", "options": {"conditions": ["black", "white"]}}},
        "evaluation": {"data": [], "cost": False}, "options": few,
    }  # fmt: skip
    return {**base, **more}


class Fixed:
    """A model whose predictions are numbers."""

    process, shape = Process([0.64, 0.36]), (1,)

    def __init__(self, y):
        self.module = lambda inputs: Signals(x0=torch.full_like(inputs["x"], y))


def asked(options, y=0.5, f=0.9):
    """What `ask` gives for one row that steps from alpha .6 to alpha .8 with the noise -1, and the calls it made."""
    method = Boot(Boot.Options(t_max=0.999, **options))
    method._model = Fixed(y)
    t, s, calls = torch.tensor([1.0]), torch.tensor([0.5]), []

    def teacher(inputs):
        calls.append((inputs["x"].item(), inputs["t"].item()))
        return Signals(x0=torch.full_like(inputs["x"], f))

    batch = {"one": {"e": torch.tensor([[-1.0]]), "then": t, "s": s}, "ratio": Fixed.process.ratio(t, s)}
    return method, batch, method.ask(Signals(), batch, teacher), calls


def test_the_target_and_the_loss_by_hand():
    method, batch, given, calls = asked({"boundary_weight": 0.0})
    assert calls == [(pytest.approx(-0.5), 1.0)] and given.target.item() == pytest.approx(0.675, 1e-6)
    student = Signals(x0=torch.tensor([[0.7]], requires_grad=True))
    terms = method.objective(student, given, batch, None)
    assert terms["bootstrap"].item() == pytest.approx(0.000625, 1e-4)
    method, batch, given, _ = asked({"boundary_weight": 0.0, "loss_weighting": "inverse_step"})
    weighted = method.objective(student, given, batch, None)["bootstrap"].item()
    assert (
        weighted
        == pytest.approx(0.003265, 1e-3)
        == pytest.approx(((0.7 - 0.5) / (1 - 0.5625) - (0.9 - 0.5)) ** 2, 1e-3)
    )


@pytest.mark.parametrize("options, calls", [({"boundary_weight": 0.0}, 1), ({}, 2), ({"target_solver": "heun"}, 3)])
def test_one_call_a_step_one_for_the_boundary_one_for_heun(diffusion, tmp_path, options, calls):
    """No data is opened but seeds; guidance is in the same calls, of twice the rows."""
    assert len(asked(options)[3]) == calls
    run = kdhub.distill(recipe(diffusion, options={**options, "guidance_scale": 2.0}), out=tmp_path / "run")
    training = run.provenance["training"]
    assert training["live_teacher_calls"] == 6 * calls and training["live_teacher_rows"] == 6 * calls * 16
    assert [one["source"] for one in run.provenance["data"]["use"]] == ["noise:32"]


def test_heun_takes_the_mean_of_both_ends():
    _, _, given, calls = asked({"boundary_weight": 0.0, "target_solver": "heun"})
    assert calls[1] == (pytest.approx(-0.06, abs=1e-6), 0.5), "the second call is where the first step leads"
    assert given.target.item() == pytest.approx(0.675, 1e-6), "both ends see the same picture here"


def test_no_gradient_reaches_the_students_own_target(diffusion):
    """Nor the teacher; with the readout of the noise end the boundary begins at 0."""
    teacher = kdhub.load(diffusion)
    student, method = teacher.as_one_call(0.99), Boot(Boot.Options())
    method.adapt(student, None)
    names = ["black", "white"] * 3
    batch = {"seed": torch.arange(6), **student.conditions(names)}
    batch = method.prepare_batch(batch, torch.Generator().manual_seed(0))
    outputs = student.module(batch)
    given = method.ask(outputs, batch, teacher.module)
    assert not given.target.requires_grad and not given.boundary.requires_grad
    terms = method.objective(outputs, given, batch, None)
    assert terms["boundary"].item() == pytest.approx(0, abs=1e-9) and terms["bootstrap"].item() > 1e-4
    sum(terms.values()).backward()
    assert all(p.grad is None for p in teacher.module.parameters())
    assert batch["t"][:6].max() <= 0.95 and (batch["t"][6:] == 0.99).all() and batch["x"].shape == (12, 1, 2, 2)
    assert torch.equal(batch["x"][:6], batch["x"][6:]), "the network's input is the noise, whatever t"


def test_noise_is_drawn_anew_in_each_step_by_row():
    seeds, generator = torch.arange(8), torch.Generator().manual_seed(0)
    one, e = drawn_anew(seeds, (2,), generator)
    again = torch.Generator().manual_seed(0)
    assert torch.equal(drawn_anew(seeds[4:], (2,), again)[1], e[4:]), "a row's noise is its own"
    assert not torch.equal(drawn_anew(seeds, (2,), generator)[1], e), "another step, another noise"
    assert 0 <= one.min() and one.max() < 1
    assert row_mean(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([1.0, 0.5])).item() == pytest.approx(2.5)


def test_clipping():
    x = torch.cat([torch.linspace(-0.5, 0.5, 199), torch.tensor([4.0])])[None]
    assert clipped(x, "none") is x and clipped(x, "range").max() == 1
    assert clipped(x, "dynamic").abs().max() == 1 and torch.allclose(
        clipped(x, "dynamic")[:, :199], x[:, :199], atol=1e-6
    )
    wide = 3 * torch.randn(1, 500)
    assert clipped(wide, "dynamic").abs().max() == pytest.approx(1, abs=1e-6) and clipped(wide, "dynamic").std() > 0.3


def test_options_that_do_not_fit_are_refused_by_their_values(diffusion):
    for options, says in (
        ({"t_min": 0.05}, r"t_min must be below step_size.*t_min=0.05, step_size=0.04"),
        ({"guidance_scale": [3, 1]}, "the smaller number first"),
        ({"step_size": 0.5}, "step_size"),
    ):
        with pytest.raises(RecipeError, match=says):
            kdhub.distill(recipe(diffusion, options=options))


def test_students_and_teachers_that_do_not_fit_are_refused(diffusion, tmp_path):
    unconditional = NetworkModel(
        {"network": "denoiser-mlp", "settings": {"width": 8, "blocks": 1}, "shape": [1, 2, 2], "prediction": "v"}
    )
    plain, once = tmp_path / "plain", tmp_path / "once"
    for folder, model in ((plain, unconditional), (once, unconditional.as_one_call(0.99))):
        folder.mkdir()
        model.save(folder)
    seeds = {"data": {"train": "noise:8"}}
    cases = (
        (recipe(diffusion, student=f"path:{diffusion}"), "student draws in steps"),
        (recipe(once, **seeds), "made from a teacher that draws in many steps"),
        (recipe(plain, options={"guidance_scale": 3.0}, **seeds), "needs a teacher that knows conditions"),
        (recipe(diffusion, student=f"path:{once}", **seeds), "other conditions|has no condition"),
        (
            {**recipe(plain, method="denoise", student=f"path:{plain}", **seeds), "teacher": None},
            "training rows are seeds",
        ),
    )
    for n, (given, says) in enumerate(cases):
        with pytest.raises((CompatibilityError, DataError), match=says):
            kdhub.distill({k: v for k, v in given.items() if v is not None}, out=tmp_path / f"run-{n}")


def test_a_prediction_of_another_kind_than_it_says_is_seen_in_its_pictures(diffusion, tmp_path):
    """Of a network that predicts v, and of the same one that is said to predict the noise: what `doctor` looks at."""
    shutil.copytree(diffusion, wrong := tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "prediction": "epsilon"}))
    task = kdhub.open_task("image-generation")
    for folder, status in ((diffusion, "ok"), (wrong, "warn")):
        teacher = kdhub.open_teacher(f"path:{folder}", "image-generation")
        found = task.compare(teacher.model, teacher, thorough=True)
        assert [one.status for one in found] == ["ok", status], found
    assert "prediction_type" in found[-1].do


def test_one_call_comes_close_to_many(diffusion, tmp_path):
    """Of either kind of picture, which the noise decides; one call of the teacher gives the mean of both."""
    given = recipe(
        diffusion, options={"max_steps": 200, "batch_size": 32, "lr": 2e-3}, data={"train": "noise:64"},
        evaluation={"data": [{"source": "noise:64", "split": "test"}], "cost": False},
    )  # fmt: skip
    found = kdhub.distill(given, out=tmp_path / "run").report["measures"]
    measured = {(m["subject"], m["metric"], json.dumps(m.get("variant", {}))): m["value"] for m in found}
    error, once = measured["student", "paired-error", "{}"], measured["teacher", "own-error", '{"steps": 1}']
    assert error < 0.5 * once and error < 0.5 * measured["student-before", "paired-error", "{}"]
    assert measured["teacher", "own-error", "{}"] < 0.1 * once, "the teacher's own error stands beside it"


def test_guidance_that_was_drawn_is_asked_for_when_drawing(diffusion, tmp_path):
    run = kdhub.distill(recipe(diffusion, options={"guidance_scale": [1, 3], "lr": 1e-2}), out=tmp_path / "run")
    student, task = kdhub.load(run.student_folder), kdhub.open_task("image-generation")
    rows = [{"seed": n, "condition": "black"} for n in range(16)]
    assert student.guidance == (1, 3) and student.one_call
    assert not np.array_equal(task.pictures(student, rows, guidance=3), task.pictures(student, rows, guidance=1))
    with pytest.raises(CompatibilityError, match=r"1 to 3 \(guidance=4\)"):
        task.pictures(student, rows, guidance=4)
