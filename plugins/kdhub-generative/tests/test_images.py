"""Drawing pictures: the process, the adapter, seeds, metrics and the sheet."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_generative.images import metrics
from kdhub_generative.images.model import NetworkModel
from kdhub_generative.images.process import Process, ddim, ddim_step, guided, heun_step
from kdhub_generative.images.task import Drawn

import kdhub
from kdhub.errors import CompatibilityError, DataError, UntrustedError, UsageError
from kdhub.signals.settings import own_noise

MU, STD = 1.0, 0.5


def gaussian(process):
    """The exact picture of normal data, f = mu + s^2 / (s^2 + u^2) (x / alpha - mu), u = sigma / alpha."""

    def predict(x, t):
        alpha, sigma = (value.double().reshape(-1, 1) for value in process.at(t))
        return MU + STD**2 / (STD**2 + (sigma / alpha) ** 2) * (x.double() / alpha - MU)

    return predict


def model_of(prediction="v", classes=None, **more):
    torch.manual_seed(0)
    named = {"classes": classes, "has_null": True} if classes else {}
    config = {"network": "denoiser-mlp", "settings": {"width": 16, "blocks": 1}, "shape": [1, 4, 4], **named, **more}
    model = NetworkModel({**config, "prediction": prediction})
    torch.nn.init.normal_(model.module.network.write.weight, std=0.2)
    return model


# -- the process: numbers computed by hand --------------------------------------------------------------------


def test_a_step_of_the_signal_is_ddim_by_hand():
    at = Process([0.8**2, 0.6**2])  # alpha .8 and sigma .6 at t = 1/2, .6 and .8 at t = 1
    t, s = torch.tensor([1.0]), torch.tensor([0.5])
    y, e, f = torch.tensor([[0.5]]), torch.tensor([[-1.0]]), torch.tensor([[0.9]])
    assert at.noised(y, e, t).item() == pytest.approx(-0.5) and at.ratio(t, s).item() == pytest.approx(0.5625)
    y_s = ddim_step(y, f, at.ratio(t, s))
    assert y_s.item() == pytest.approx(0.675, 1e-6) and at.noised(y_s, e, s).item() == pytest.approx(-0.06, abs=1e-6)
    noise = (-0.5 - 0.6 * 0.9) / 0.8  # as DDIM has it
    assert 0.8 * 0.9 + 0.6 * noise == pytest.approx(-0.06)
    assert at.ratio(t, torch.tensor([0.0])).item() == 0.0, "at the picture the step is the prediction itself"


def test_normal_data_have_the_trajectory_in_closed_form():
    kept = 1 / (1 + (4 / 3) ** 2)
    process, e, y = Process([kept]), torch.tensor([[-1.0]]), 1 - ((STD**2 + (4 / 3) ** 2) ** 0.5 - 4 / 3)
    x = process.noised(torch.tensor([[y]]), e, torch.ones(1))
    assert y == pytest.approx(0.909333, abs=1e-6)
    assert gaussian(process)(x, torch.ones(1)).item() == pytest.approx(0.824438, abs=1e-5)


@pytest.mark.parametrize(
    "heun, expected",
    [
        (False, [0.99607, 0.79732, 0.63484, 0.57114, 0.52958, 0.51500, 0.50755]),
        (True, [0.99607, 0.77725, 0.59332, 0.53503, 0.50851, 0.50272, 0.50083]),
    ],
)
def test_rolled_out_on_normal_data_steps_are_of_their_order(heun, expected):
    process, e = Process(), torch.tensor([[-1.0]]).double()
    predict = gaussian(process)
    for steps, value in zip((1, 2, 5, 10, 25, 50, 100), expected):
        grid = torch.linspace(0.99, 0, steps + 1)[:, None]
        y = predict(e, grid[0])
        for t, s in zip(grid, grid[1:]):
            f = predict(process.noised(y, e, t), t)
            y = heun_step(process, y, f, e, t, s, predict) if heun else ddim_step(y, f, process.ratio(t, s))
        assert y.item() == pytest.approx(value, abs=2e-5)


def test_what_a_network_predicts_is_the_same_picture():
    process, t = Process(), torch.tensor([0.3, 0.8])
    picture, e = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    x = process.noised(picture, e, t)
    for prediction in ("v", "epsilon", "x0"):
        given = process.target(prediction, picture, e, t)
        assert torch.allclose(process.x0(prediction, given, x, t), picture, atol=1e-5)


def test_guidance_of_pictures_is_that_of_noise():
    process, t, x = Process(), torch.tensor([0.6]), torch.randn(1, 3)
    without, with_it = torch.randn(1, 3), torch.randn(1, 3)
    seen = process.x0("epsilon", torch.cat([without, with_it]), torch.cat([x, x]), torch.cat([t, t]))
    mine = guided(lambda conditions: seen, torch.ones(1), torch.zeros(1), 2.5)
    noise = without + 2.5 * (with_it - without)
    assert torch.allclose(mine, process.x0("epsilon", noise, x, t), atol=1e-5)


def test_a_discrete_process_lies_between_its_steps():
    process = Process([0.9, 0.5, 0.1])
    alpha, sigma = process.at(torch.tensor([0.0, 1 / 3, 0.5, 1.0]))
    assert alpha.square().tolist() == pytest.approx([1.0, 0.9, 0.7, 0.1]) and torch.allclose(
        alpha**2 + sigma**2, torch.ones(4)
    )
    assert process.network_time(torch.tensor([0.0, 1 / 3, 1.0])).tolist() == pytest.approx([0, 0, 2])
    with pytest.raises(UsageError, match="must fall"):
        Process([0.5, 0.9])


def test_several_steps_end_where_the_trajectory_does():
    process, e = Process(), torch.tensor([[-1.0]]).double()
    assert ddim(process, gaussian(process), e, 200).item() == pytest.approx(0.5, abs=0.01)


# -- models ---------------------------------------------------------------------------------------------------


def test_a_one_call_model_is_read_at_the_noise_end():
    """Read at the t that it is asked at, g(e, 0) would be e whatever the weights."""
    teacher = model_of()
    one = teacher.as_one_call(0.99)
    e, t = torch.randn(5, 1, 4, 4), torch.zeros(5)
    assert torch.equal(teacher.module({"x": e, "t": t}).x0, e), "the wrong readout is no picture at all"
    before = one.module({"x": e, "t": t}).x0
    end = torch.full((5,), 0.99)
    assert torch.allclose(one.module({"x": e, "t": end}).x0, teacher.module({"x": e, "t": end}).x0, atol=1e-6)
    with torch.no_grad():
        one.module.network.write.bias += 1
    assert (one.module({"x": e, "t": t}).x0 - before).abs().mean() > 0.5, "other weights, another picture"
    assert (model_of("epsilon").as_one_call(0.99).module({"x": e, "t": t}).x0 == 0).all(), "a head of its own"


def test_models_are_drawn_by_seed_and_in_so_many_calls(tmp_path):
    model, calls = model_of(classes=["a", "b"]), []
    model.module.register_forward_hook(lambda *_: calls.append(1))
    task = kdhub.open_task("image-generation")
    rows = [{"seed": 3, "condition": "a"}, {"seed": 2**41, "condition": "b"}]
    both = task.pictures(model, rows, steps=5)
    assert both.dtype == np.uint8 and both.shape == (2, 1, 4, 4) and len(calls) == 5
    assert np.array_equal(both[1:], task.pictures(model, rows[1:], steps=5)), "the row alone decides"
    assert not np.array_equal(both, task.pictures(model, rows, steps=5, guidance=4))
    assert len(calls) == 15, "guidance is no further call"
    assert not np.array_equal(both, task.pictures(model, [dict(row, condition=None) for row in rows], steps=5))
    model.save(tmp_path)
    assert np.array_equal(both, task.pictures(kdhub.load(tmp_path), rows, steps=5))


def test_what_a_model_cannot_draw_is_refused_by_name():
    task, plain, one = kdhub.open_task("image-generation"), model_of(), model_of().as_one_call(0.99)
    row = [{"seed": 1}]
    for call, says in (
        (lambda: task.pictures(plain, [{"seed": 1, "condition": "a"}]), "means nothing to a model without conditions"),
        (
            lambda: task.pictures(model_of(classes=["a"]), [{"seed": 1, "condition": "z"}]),
            "does not know the condition 'z'",
        ),
        (lambda: task.pictures(one, row, steps=4), "cannot be drawn in several steps"),
        (lambda: task.pictures(one, row, guidance=3), "guidance of this one-call model is 1"),
        (lambda: task.pictures(plain, row, guidance=3), r"guidance needs a model .*guidance=3"),
        (lambda: task.pictures(plain, row, step=3), "step"),
        (
            lambda: plain.collate([{"seed": 1, "condition": None, "picture": np.zeros((5, 5), np.uint8)}]),
            "1 x 5 x 5 for a",
        ),
    ):
        with pytest.raises((CompatibilityError, DataError, ValueError), match=says):
            call()


# -- seeds, metrics, the sheet --------------------------------------------------------------------------------


def test_seeds_are_apart_and_carry_conditions_and_real_pictures():
    data = kdhub.open_data("noise:6", options={"conditions": 4, "reference": {"source": "digits", "limit": 9}})
    rows = list(data.split("train"))
    assert [row["condition"] for row in rows] == ["0", "1", "2", "3", "0", "1"]
    seeds = {row["seed"] for split in ("train", "validation", "test") for row in data.split(split)}
    assert len(seeds) == 18 and not seeds & {
        row["seed"] for row in kdhub.open_data("noise:6", options={"seed": 1}).split("train")
    }
    from kdhub.data.shared import shared

    assert shared(rows[0]["reference"])["images"].shape == (9, 1, 8, 8)
    for source, options, says in (
        ("noise:none", {}, "whole number from 1"),
        ("noise:2", {"conditions": 2, "prompts": ["a"]}, "not both"),
    ):
        with pytest.raises(UsageError, match=says):
            kdhub.open_data(source, options=options)


def drawn_of(images, reference=None):
    table = [{"seed": n} for n in range(len(images))]
    return Drawn(lambda *_: {"image": images}, table, reference=reference)


def test_distances_by_hand():
    a, b = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    assert metrics.frechet_distance(a, b) == pytest.approx(9 + 2 + 8 - 2 * 4)  # means 0, 3; variances 2, 8
    # kernel (xy + 1)^3: 0 within a; 216 within b; across 8, 216, 0 and -64
    assert metrics.kernel_distance(a, b) == pytest.approx(0 + 216 - 2 * (0 - 64 + 8 + 216) / 4)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3))
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(x, x + 2) == pytest.approx(12)
    line = np.arange(8.0)[:, None]
    assert metrics.covered(line + 0.5, line) == 1.0 and metrics.covered(line + 50, line) == 0.0


def test_metrics_of_pictures_see_copies_and_sameness():
    real = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    copies, same = drawn_of(real, real), drawn_of(np.repeat(real[:1], 40, 0), real)
    assert metrics.nearest(copies) < 1e-6 and metrics.precision(copies) == metrics.recall(copies) == 1.0
    assert metrics.precision(same) == 1.0 and metrics.recall(same) < 0.3
    assert metrics.frechet(copies) == pytest.approx(0, abs=1e-9) and metrics.frechet(same) > 1
    assert metrics.frechet(drawn_of(real)) is None, "nothing to compare with"
    with pytest.raises(CompatibilityError, match="are 1 x 4 x 4, those of the reference 1 x 8 x 8"):
        metrics.frechet(drawn_of(real, np.zeros((3, 1, 8, 8), np.uint8)))


def test_pictures_are_compared_in_the_features_of_a_named_classifier(tmp_path):
    from kdhub_generative.images.task import ImageGeneration
    from kdhub_tasks.classification.model import NetworkClassifier

    torch.manual_seed(0)
    config = {"network": "mlp", "shape": [4, 4], "hidden": [5], "classes": ["a", "b"]}
    NetworkClassifier("image-classification", config).save(tmp_path)
    real = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    task, options = ImageGeneration(), ImageGeneration.EvaluationOptions(feature={"source": f"path:{tmp_path}"})
    plain, named = task.views(drawn_of(255 - real, real), options, "student")
    seen = named.apply(drawn_of(255 - real, real))
    assert named.variant == {"feature": f"path:{tmp_path}"} and "frechet" in named.metrics
    assert metrics.features(seen, real).shape == (40, 5)
    assert metrics.frechet(seen) != pytest.approx(metrics.frechet(drawn_of(255 - real, real)))


def test_the_paired_error_asks_the_teacher_for_many_steps_with_the_students_guidance():
    asked = []

    def teacher(table, kind):
        asked.append(kind)
        return {"image": np.full((3, 1, 2, 2), 255, np.uint8)}

    mine = drawn_of(np.zeros((3, 1, 2, 2), np.uint8))
    mine.guidance = 3.0
    assert metrics.paired_error(mine, Drawn(teacher, mine.table)) == pytest.approx(4.0)
    assert asked == ['image:{"guidance":3.0,"steps":100}']
    by_steps = {'image:{"steps":1}': 55, 'image:{"steps":100}': 255}  # the teacher in one call is .8 of the way off
    teacher = Drawn(lambda _, kind: {"image": np.full((3, 1, 2, 2), by_steps[kind], np.uint8)}, mine.table)
    half = drawn_of(np.full((3, 1, 2, 2), 155, np.uint8))
    assert metrics.paired_share(half, teacher) == pytest.approx(0.25) and metrics.frechet_share(half, teacher) is None


def test_the_sheet_has_every_row_of_every_subject():
    import io

    from kdhub_generative.images.drawing import sheet
    from PIL import Image

    images = np.arange(16 * 3 * 8 * 8, dtype=np.uint8).reshape(16, 3, 8, 8)
    made = sheet({"teacher": {"25": images, "1": images}, "student": {"1": images}})
    page = Image.open(io.BytesIO(made.content))
    assert page.size == (132 + 16 * 68, 3 * 68 + 4)
    assert (
        made.sentence.index("teacher, 1 call;")
        < made.sentence.index("teacher, 25 calls")
        < made.sentence.index("student")
    )
    assert page.getpixel((132, 4)) == tuple(int(v) for v in images[0, :, 0, 0]), "colours stay in their order"


# -- pipelines of diffusers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    from kdhub_generative.images.pipelines import Unet

    from kdhub.student import BuildContext

    def made(**options):
        facts = {"shape": [1, 4, 4], "classes": ["a", "b"]}
        return Unet("width=8,levels=2,layers=1", BuildContext(None, None, 0, options, facts))

    return made


def test_prompts_codes_and_guidance_that_is_told(stable, tmp_path):
    """Of a teacher for prompts: boot makes a student that the library's own pipeline draws with in one call."""
    task, (whole, run) = kdhub.open_task("image-generation"), (tmp_path / "teacher", tmp_path / "run")
    whole.mkdir()
    stable.save(whole)
    rows = [{"seed": n, "condition": word} for n, word in enumerate("ab")]
    drawn = task.pictures(stable, rows, steps=2, guidance=3)
    assert drawn.shape == (2, 3, 8, 8) and np.array_equal(
        drawn, task.pictures(kdhub.load(whole), rows, steps=2, guidance=3)
    )
    assert stable.encode(drawn).shape == (2, 4, 4, 4), "what it is trained on are codes"
    made = kdhub.distill(
        {
            "task": "image-generation", "method": "boot", "teacher": f"path:{whole}", "student": "signal",
            "data": {"train": {"source": "noise:4", "options": {"prompts": ["a", "b c"]}}},
            "options": {"max_steps": 2, "batch_size": 2, "guidance_scale": [1, 5], "lr": 1e-2},
            "evaluation": {"data": [], "cost": False},
        }, out=run,
    )  # fmt: skip
    assert made.provenance["training"]["live_teacher_rows"] == 2 * 2 * 4
    student = kdhub.load(made.student_folder)
    assert student.guidance == (1, 5) and student.module.prediction == "x0", "epsilon has a head of its own"
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(made.student_folder)
    noise = torch.from_numpy(own_noise([0], (4, 4, 4)))
    given = pipeline("a", latents=noise, num_inference_steps=1, guidance_scale=4.0, output_type="pt").images
    mine = task.pictures(student, rows[:1], guidance=4)
    assert np.abs(255 * given[0].float().numpy() - mine[0]).max() < 1.01


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
def test_a_pipeline_is_opened_as_it_was_saved(unet, tmp_path, prediction):
    model, task = unet(conditional=True, prediction=prediction), kdhub.open_task("image-generation")
    model.save(tmp_path)
    loaded = kdhub.load(tmp_path)
    assert loaded.classes == ["a", "b"] and loaded.has_null and loaded.module.prediction == prediction
    rows = [{"seed": 1, "condition": "b"}, {"seed": 2}]
    assert np.array_equal(task.pictures(model, rows, steps=2), task.pictures(loaded, rows, steps=2))


def test_a_one_call_pipeline_draws_the_same_without_kdhub(unet, tmp_path, monkeypatch):
    """By its usage lines, which name diffusers alone."""
    one, e = unet().as_one_call(0.99), torch.from_numpy(own_noise([1], (1, 4, 4)))
    one.save(tmp_path)
    mine = kdhub.load(tmp_path)
    assert mine.one_call and not mine.knows.any
    with torch.no_grad():
        expected = mine.module({"x": e, "t": torch.zeros(1)}).x0
    assert torch.allclose(expected, one.module({"x": e, "t": torch.zeros(1)}).x0, atol=1e-6)
    lines, found = mine.usage().replace("{path}", str(tmp_path)), {}
    assert "kdhub" not in lines.replace(str(tmp_path), "")
    monkeypatch.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", lambda *_, **__: e)
    exec(lines, found)
    drawn = np.asarray(found["picture"], np.float32) / 255
    assert drawn == pytest.approx((expected[0, 0] / 2 + 0.5).clamp(0, 1).numpy(), abs=0.51 / 255)


def test_a_pipeline_with_classes_draws_the_same_without_kdhub(unet, tmp_path, monkeypatch):
    model, e = unet(conditional=True).as_one_call(0.99), torch.from_numpy(own_noise([1], (1, 4, 4)))
    model.save(tmp_path)
    found = {}
    monkeypatch.setattr("torch.randn", lambda *_, **__: e)
    exec(model.usage().replace("{path}", str(tmp_path)), found)
    with torch.no_grad():
        expected = model.module({"x": e, "t": torch.zeros(1), "condition": torch.zeros(1, dtype=torch.long)}).x0
    assert torch.allclose(found["x"], expected, atol=1e-5)


def test_pipelines_that_cannot_be_read_are_refused_by_name(unet, tmp_path):
    from kdhub_generative.images.pipelines import process_of

    unet().save(tmp_path)
    index, task = json.loads((tmp_path / "model_index.json").read_text()), kdhub.open_task("image-generation")
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    with pytest.raises(CompatibilityError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        process_of(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(CompatibilityError, match="prediction_type='flow'"):
        process_of(DDIMScheduler(prediction_type="flow"))
    for part, name, says in (
        ("unet", "NoSuchNet", "its unet is a NoSuchNet"),
        ("scheduler", "DDIMPipeline", "DDIMPipeline is not a scheduler"),
    ):
        wrong = {**index, part: ["diffusers", name]}
        (tmp_path / "model_index.json").write_text(json.dumps(wrong))
        with pytest.raises(UntrustedError, match=says):
            task.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(UntrustedError, match="only as pickles"):
        task.load(tmp_path)
