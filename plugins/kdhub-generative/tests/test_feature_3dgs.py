"""feature-3dgs and its 2D teachers."""

import json

import numpy as np
import pytest
import torch
from kdhub_generative.methods.feature_3dgs import Feature3dgs, grown
from kdhub_generative.scenes.cameras import looking_at
from kdhub_generative.scenes.dense import Segmenter
from kdhub_generative.scenes.fitting import Fitting
from kdhub_generative.scenes.gaussians import Gaussians
from kdhub_generative.scenes.metrics import Views, mean_iou, miou_of_cells, ssim, teacher_agreement_miou

import kdhub
from kdhub.errors import CompatibilityError, DataError

NAMES = ["background", "first", "second", "third"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher")
    Segmenter({"settings": {"classes": 4, "channels": 8, "width": 4}, "names": NAMES}).save(folder)
    return folder


def recipe(teacher, options=None, student="gaussians:"):
    views = {"views": 4, "held_out": 2}
    small = {"iterations": 8, "densify": False, "background_feature": "learned"}
    return {
        "task": "radiance-field", "method": "feature-3dgs", "teacher": f"path:{teacher}",
        "student": {"source": student, "sh_degree": 0}, "options": {**small, **(options or {})},
        "data": {"train": [{"source": "shells", "split": "train", "options": views}]},
        "evaluation": {"data": [{"source": "shells", "split": "test", "options": views}], "cost": False},
    }  # fmt: skip


def measures(run):
    found = json.loads((run.folder / "report.json").read_text())["measures"]
    return {m["metric"]: m["value"] for m in found if m["subject"] == "student" and not m["variant"]}


def test_scores_of_prompts_by_hand():
    cosines = torch.tensor([0.30, 0.20, 0.20, 0.18, 0.15])
    module = Gaussians(1, features=6)
    with torch.no_grad():
        module.features[0] = torch.cat([cosines, (1 - cosines.square().sum()).sqrt()[None]])
    prompts = torch.eye(6)[:5]
    assert module.scores(prompts)[0].tolist() == pytest.approx([0.2194, 0.1985, 0.1985, 0.1946, 0.1889], abs=5e-5)
    sharp = module.scores(prompts, temperature=0.05)[0]
    assert sharp.tolist() == pytest.approx([0.7086, 0.0959, 0.0959, 0.0643, 0.0353], abs=5e-5)
    scores = module.scores(prompts)
    assert module.selected(scores, [0]).item() and module.selected(scores, [0], 1.05).item()  # 0.2194 >= 1.05 / 5
    assert not module.selected(scores, [1], 1.0).item() and module.selected(scores, [0], 1.2, union=True).item()
    assert module.scores(prompts[:1])[0].tolist() == pytest.approx([0.30])


def test_maps_and_figures_by_hand():
    true = np.array([[0, 0, 1, 1]] * 4)
    said = np.array([[0, 1, 1, 1]] * 4)
    assert mean_iou([(said, true)], 3) == pytest.approx((0.5 + 2 / 3) / 2)  # a class in neither counts nothing
    logits = np.eye(3)[[[0, 1], [0, 1]]].astype(np.float32)
    out = Views([np.zeros((4, 4, 3))], [true], logits=[logits])
    assert miou_of_cells(out) == 1 and teacher_agreement_miou(out, out) == 1
    a = torch.rand(16, 16, 3, dtype=torch.float64)
    assert ssim(a, a).item() == pytest.approx(1)
    from skimage.metrics import structural_similarity

    b = (a + 0.2 * torch.rand_like(a)).clamp(0, 1)
    more = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 2}
    _, whole = structural_similarity(a.numpy(), b.numpy(), full=True, **more)
    inner = ssim(torch.nn.functional.pad(a, [0] * 6), b)
    assert inner.item() == pytest.approx(whole.mean(), abs=0.05)  # edges are another's


@pytest.mark.parametrize("joint", [False, True])
def test_where_the_gradient_of_features_goes(joint):
    torch.manual_seed(0)
    module = Gaussians(30, features=3, feature_background=True).double()
    module.take_points(np.random.default_rng(0).uniform(-0.6, 0.6, (30, 3)))
    with torch.no_grad():
        module.features += torch.randn_like(module.features)
        module.opacities += 1
    module.joint, camera = joint, looking_at(20, 15, 4, 12, 12, 14)
    loss = lambda: module.render(camera).features.square().sum()  # noqa: E731
    loss().backward()
    assert module.features.grad.abs().sum() > 0 and module.feature_background.grad.abs().sum() > 0
    geometry = (module.means, module.quats, module.scales, module.opacities)
    assert all((p.grad is not None and bool(p.grad.abs().sum() > 0)) == joint for p in geometry)
    if joint:
        at, step = (int(module.means.grad[:, 0].abs().argmax()), 0), 1e-6
        with torch.no_grad():
            module.means[at] += step
            up = loss()
            module.means[at] -= 2 * step
            down = loss()
        assert module.means.grad[at].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-3)


@pytest.mark.slow
def test_colours_have_the_same_bits_with_features_and_without(teacher, tmp_path, home):
    runs = {w: kdhub.distill(recipe(teacher, {"feature_weight": w}), out=tmp_path / str(w)) for w in (0.0, 1.0)}
    scenes = {w: kdhub.load(run.folder / "student") for w, run in runs.items()}
    camera = scenes[0.0].camera
    assert torch.equal(*(scene.render(camera).image for scene in scenes.values()))
    assert scenes[1.0].module.features.abs().sum() > 0 == scenes[0.0].module.features.abs().sum()
    found = measures(runs[1.0])
    assert {"psnr", "miou", "teacher-agreement-miou", "feature-l1", "feature-cosine"} <= set(found)
    assert scenes[1.0].names == NAMES and scenes[1.0].config["cells"] == [0.5, 0.5]
    with pytest.raises(CompatibilityError, match="does not know the class 'sky'"):
        scenes[1.0].query("sky")


def test_points_behind_every_camera():
    method = Feature3dgs(Feature3dgs.Options())
    cameras = [{"camera": looking_at(20 * n, 0, 4, 8, 8, 9)} for n in range(3)]

    class Behind:
        module = Gaussians(5)

    with torch.no_grad():
        Behind.module.means += torch.tensor([50.0, 0, 0])
    with pytest.raises(DataError, match="all 5 points lie behind each of the 3 cameras"):
        method._checked(Behind, [cameras[0]] * 3)


@pytest.mark.parametrize("second", [(4, 4, 3), (2, 3, 2)])
def test_a_map_of_another_size_or_width_is_refused(second):
    method = Feature3dgs(Feature3dgs.Options())
    method._maps = [0, 1]
    method._map = lambda n: torch.ones(4, 4, 2) if n == 0 else torch.ones(second)

    class Given:
        module, config, teacher = Gaussians(5), {}, None

    examples = [{"image": np.zeros((8, 8, 3), np.uint8)}] * 2
    narrow = Feature3dgs(Feature3dgs.Options(feature_dim=1))
    narrow._maps, narrow._map = [0], lambda n: torch.ones(4, 4, 2)
    with pytest.raises(CompatibilityError, match="at most the teacher's 2, and less only with speed_up"):
        narrow._take_features(Given, Given, examples[:1])
    with pytest.raises(CompatibilityError, match="feature map of view 2 is .* with the first one 4 x 4 x 2"):
        method._take_features(Given, Given, examples)


def test_children_have_their_parents_features():
    torch.manual_seed(0)
    module = Gaussians(4, features=2)
    with torch.no_grad():
        module.features.copy_(torch.randn(4, 2))
        module.means.copy_(torch.randn(4, 3))
    made = grown(
        module, torch.tensor([0, 2]), torch.tensor([2]), torch.tensor([3, 3]), torch.Generator().manual_seed(0)
    )
    assert torch.equal(made["features"], module.features[[0, 2, 2, 3, 3]])
    assert torch.equal(made["means"][:3], module.means[[0, 2, 2]]) and not torch.equal(
        made["means"][3], module.means[3]
    )
    torch.testing.assert_close(made["scales"][3].exp() * 1.6, module.scales[3].exp())


def test_a_killed_fitting_goes_on_to_the_same_end(tmp_path):
    def whole(file, stop=None):
        torch.manual_seed(0)
        module = Gaussians(6, features=2)
        optimiser, counted = torch.optim.Adam(module.parameters(), 0.1, eps=1e-15), {"seen": torch.zeros(6)}

        def step(n):
            if n == stop:
                raise KeyboardInterrupt
            (module.means - n).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
            counted["seen"] += n

        Fitting({"scene": module}, {"scene": optimiser}, counted).run(file, 9, step, every=2)
        return module.means.detach(), counted["seen"]

    straight = whole(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "b", stop=5)
    again = whole(tmp_path / "b")
    assert all(torch.equal(one, other) for one, other in zip(straight, again))


def test_any_vision_model_of_transformers_is_a_teacher(tmp_path, home):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    settings = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **settings), add_pooling_layer=False).save_pretrained(tmp_path)
    teacher = kdhub.open_teacher(f"dense:{tmp_path}", "radiance-field")
    image = np.random.default_rng(0).integers(0, 255, (26, 40, 3)).astype(np.uint8)
    given = teacher.signals([{"image": image}], "features")
    assert given["size"].tolist() == [[3, 5, 8]] and given["features"][0].shape == (120,)
