"""sine: guidance by a tuned copy, patches with position codes, and edits without training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_generative.editing.data import correlation, least_typical, painted
from kdhub_generative.editing.guides import Guide, composed, mixed, share_of
from kdhub_generative.editing.metrics import colour_disorder, colour_share, shape_disorder, shape_kept
from kdhub_generative.editing.model import EditModel
from kdhub_generative.editing.settings import UNTIL, WEIGHTS, Editing
from kdhub_generative.editing.task import Edited
from kdhub_generative.images.model import NetworkModel
from kdhub_generative.images.positions import placed_codes, position_codes
from kdhub_generative.images.process import Process
from kdhub_generative.methods.sine import Sine, boxes_of, cut, times, within

import kdhub
from kdhub.errors import CompatibilityError, DataError, KdhubError, RecipeError, UsageError

WORDS = ["black", "bright", "dim", "white", "*"]


def network(seed=0, prediction="epsilon", **more):
    torch.manual_seed(seed)
    config = {"network": "denoiser-mlp", "settings": {"width": 16, "blocks": 1}, "shape": [1, 4, 4], "words": WORDS}
    model = NetworkModel({**config, "prediction": prediction, "has_null": True, **more})
    torch.nn.init.normal_(model.module.network.write.weight, std=0.2)
    return model


@pytest.fixture
def base():
    return network()


def counted(model):
    """How often a model's network is called."""
    calls = []
    model.module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def rows(n=4):
    return [{"seed": seed, "condition": "white"} for seed in range(n)]


def pictures(model, **how):
    return kdhub.open_task("image-editing").pictures(model, rows(), **how)


# -- guidance: numbers computed by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale, null, own, guides, expected",
    [
        (7.5, 0.1, 0.3, [(0.3, 0.5)], 2.05),
        (7.5, 0.1, 0.3, [], 1.60),
        (7.5, 0.1, 0.3, [(1.0, 0.5)], 3.10),
        (10.0, 0.1, 0.3, [(0.4, 0.5), (0.5, 0.2)], 2.40),
    ],
)
def test_mixed_guidance_by_hand(scale, null, own, guides, expected):
    assert mixed(null, own, guides, scale) == pytest.approx(expected)
    among = (1 - sum(b for b, _ in guides)) * own + sum(b * e for b, e in guides)
    assert scale * among + (1 - scale) * null == pytest.approx(expected), "both forms"
    shifted = mixed(null + 1, own + 1, [(b, e + 1) for b, e in guides], scale)
    assert shifted == pytest.approx(expected + 1), "the weights add up to 1"


def test_the_mean_of_pictures_is_the_mean_of_noise():
    """At one x and t a picture is linear in the noise, whatever the network gives."""
    process, t = Process([0.9, 0.5, 0.1]), torch.tensor([2 / 3])
    x, null, own, other = (torch.randn(1, 4) for _ in range(4))
    picture = lambda e: process.x0("epsilon", e, x, t)  # noqa: E731
    of_noise = picture(mixed(null, own, [(0.3, other)], 7.5))
    assert torch.allclose(of_noise, mixed(picture(null), picture(own), [(0.3, picture(other))], 7.5), atol=1e-4)


def test_windows_are_diffusion_time(base):
    window = lambda until, since=1.0: Guide(base, None, 0.3, until, since)  # noqa: E731
    hundred = [n / 1000 for n in range(1, 1000, 10)]
    assert len(hundred) == 100 and hundred[-1] == 0.991
    assert sum(map(window(0.4).active, hundred)) == 60
    assert sum(map(window(0.5).active, hundred)) == 50
    assert not Guide(base, None, 0.0, 0.0).active(0.9) and not window(0.4, 0.8).active(0.9)


@pytest.mark.parametrize("kept", [None, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)).tolist()])
def test_at_400_of_1000_and_50_steps_the_guide_is_called_30_times(base, kept):
    guide = base.copied()
    for model in (base, guide):
        model.module.process = Process(kept)
    calls = counted(guide)
    pictures(EditModel(base, [Guide(guide, "* white", 0.3, 0.4)], steps=50))
    assert len(calls) == 30


@pytest.mark.parametrize("weight, until", [(0.0, 0.0), (0.5, 1.0)])
def test_without_weight_or_window_it_is_plain_guidance_bit_for_bit(base, weight, until):
    """v = 1, or K = 1000: the guide is never called."""
    guide = network(1)
    calls = counted(guide)
    edit = EditModel(base, [Guide(guide, "* white", weight, until)], guidance=3.0, steps=5)
    examples = kdhub.open_task("image-editing").preparer(edit, None)(rows())
    batch = edit.collate(examples)
    with torch.no_grad():
        plain = base.draw(batch, base.Settings(guidance=3.0, steps=5))
        assert torch.equal(edit.draw(batch), plain) and not calls
        assert not torch.equal(edit.draw(batch, edit.Settings(guide_weight=0.5, guide_until=0.0)), plain) and calls


def test_a_guide_that_is_the_base_changes_nothing(base):
    plain = pictures(EditModel(base, guidance=3.0, steps=5))
    for weight, until in ((0.3, 0.4), (1.0, 0.0)):
        edit = EditModel(base, [Guide(base.copied(), "white", weight, until)], guidance=3.0, steps=5)
        assert np.abs(pictures(edit).astype(int) - plain).max() <= 1


def test_guides_get_their_own_prompt_and_share_weights_and_windows(base):
    one, two = base.copied(), base.copied()
    edit = EditModel(base, [Guide(one, "dim", 0.2, 0.5), Guide(two, "bright", 0.6, 0.8)], guidance=3.0, steps=10)
    asked = {"one": [], "two": []}
    for name, model in (("one", one), ("two", two)):
        model.module.register_forward_pre_hook(lambda m, given, of=asked[name]: of.append(given[0]["condition"][0, 0]))
    pictures(edit)
    told = [set(map(int, of)) for of in asked.values()]
    assert told == [{WORDS.index("dim")}, {WORDS.index("bright")}]
    assert (len(asked["one"]), len(asked["two"])) == (5, 2)
    assert [g.weight for g in edit._guides(edit.Settings(guide_weight=0.4))] == pytest.approx([0.1, 0.3])


def test_only_the_base_is_asked_without_a_condition(base):
    guide, seen = base.copied(), []
    guide.module.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    batch = {"x": torch.randn(2, 1, 4, 4), **base.conditions(["white", "black"])}
    predict = composed(None, base.module, [Guide(guide, "dim", 0.3, 0.0)], batch, 3.0)
    predict(batch["x"], torch.tensor([0.9, 0.9]))
    (given,) = seen
    assert len(given["x"]) == 2, "in half the rows of the base"


# -- patches --------------------------------------------------------------------------------------------------


def test_position_codes_by_hand():
    codes = position_codes(8, 16)
    assert codes.shape == (8, 16, 16)
    for p, row in ((1, [0.841471, 0.0001, 0.540302, 1.0]), (2, [0.909297, 0.0002, -0.416147, 1.0])):
        assert codes[:4, 5, p - 1].tolist() == pytest.approx(row, abs=1e-6), "from left to right"
        assert codes[4:, p - 1, 5].tolist() == pytest.approx(row, abs=1e-6), "from top to bottom"
    assert codes[:4, 0, 0].tolist() == codes[4:, 0, 0].tolist(), "cell (0, 0) is number 1"
    features = torch.zeros(1, 8, 6, 6)
    assert torch.equal(placed_codes(features, 16, torch.tensor([[0, 0, 16, 16]])), placed_codes(features, 16, None))
    corner = placed_codes(features, 16, torch.tensor([[4, 8, 10, 16]]))
    assert torch.allclose(corner[0, :, 0, 0], codes[:, 4, 8]) and torch.allclose(corner[0, :, -1, -1], codes[:, 9, 15])
    with pytest.raises(CompatibilityError, match="has 6"):
        position_codes(6, 16)


def test_boxes_and_crops():
    options = Sine.Options(patch_training=True, min_crop=0.25, position_grid=16, whole_image_prob=0.1)
    draws = torch.rand(500, 5, generator=torch.Generator().manual_seed(0))
    boxes = boxes_of(draws, options)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() == 4 and boxes.min() == 0 and boxes.max() == 16
    whole = draws[:, 0] < 0.1
    assert (boxes[whole] == torch.tensor([0, 0, 16, 16])).all() and 30 < whole.sum() < 70
    by_hand = boxes_of(torch.tensor([[0.5, 0.5, 0.0, 0.999, 0.0]]), options)
    assert by_hand.tolist() == [[6, 0, 16, 4]], "int(16 (u (1 - .25) + .25)) = 10 and 4 cells"
    picture = torch.arange(32 * 32.0).reshape(1, 32, 32)
    assert torch.equal(cut(picture, by_hand[0], 16)[0], picture[:, 12:32, :8])
    assert options.max_steps == 10_000 and Sine.Options().max_steps == 800
    assert times(torch.tensor([0.0, 0.9999]), Process([0.9, 0.5])).tolist() == [0.5, 1.0]


# -- metrics and data -----------------------------------------------------------------------------------------


def edited(images, reference=None, channel=2, **known):
    out = Edited(None, list(range(len(images))), how=Editing(), reference=reference, channel=channel)
    out.guided = out.varied = bool(known)
    out._known |= {"image": np.asarray(images, np.uint8), **known}
    return out


def test_shape_and_colour_by_hand():
    grey = np.array([[0, 120], [200, 40]], np.uint8)
    red, blue = painted(grey, "red"), painted(grey, "blue")
    out = edited([blue, blue], reference=red[None])
    assert shape_kept(out) == pytest.approx(1, abs=1e-3) and colour_share(out) == pytest.approx(1 / 1.2, abs=1e-3)
    assert colour_share(edited([red], red[None])) == pytest.approx(0.1 / 1.2, abs=1e-3)
    assert shape_kept(edited([255 - blue], red[None])) < 0 and colour_share(edited([red], channel=None)) is None
    assert correlation(np.ones(3), np.arange(3)) == 0
    assert least_typical(np.stack([grey, grey, 255 - grey, grey]))[0] == 2


def test_disorder_is_the_largest_step_the_wrong_way():
    def known(light):  # of blue, over windows and weights
        found = {}
        for n, until in enumerate(UNTIL):
            for m, weight in enumerate(WEIGHTS):
                picture = np.zeros((1, 3, 2, 2), np.uint8)
                picture[0, 0], picture[0, 2] = 100, light(n, m)
                found[Editing(guide_until=until, guide_weight=weight).kind] = picture
        return found

    rising = edited(np.zeros((1, 3, 2, 2)), **known(lambda n, m: 10 * n + 5 * m))
    assert colour_disorder(rising) == 0 and shape_disorder(rising) is None, "there is no source"
    dented = edited(np.zeros((1, 3, 2, 2)), **known(lambda n, m: 10 * n + 5 * m - 40 * (n == 3 and m == 2)))
    assert colour_disorder(dented) == pytest.approx(35 / 135, abs=1e-9), "beside it there is 35 of 135, and here none"
    assert colour_disorder(edited(np.zeros((1, 3, 2, 2)))) == 0.0, "nothing varies without guides"


def test_coloured_pictures_and_one_of_them():
    whole = kdhub.open_data("coloured:digits")
    assert len(whole.split("validation")) == 600
    assert {row.split()[1] for row in whole.split("validation")["label"]} == {"red", "green", "blue"}
    one = [kdhub.open_data("coloured:digits", options={"one": "3 red", "nth": n}).split("test") for n in (0, 1)]
    assert [len(of) for of in one] == [1, 1] and one[0][0]["label"] == "3 red" and one[0][0] != one[1][0]
    for options, says in (({"one": "3 pink"}, "no picture 0 of '3 pink'"), ({"one": "3 red", "nth": 99}, "picture 99")):
        with pytest.raises(UsageError, match=says):
            kdhub.open_data("coloured:digits", options=options).split("test")


# -- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A diffusion of black and white pictures, and a dim one with a dark corner that its guide was tuned on."""
    folder = tmp_path_factory.mktemp("base")
    base = network(prediction="v", settings={"width": 48, "blocks": 2})
    torch.nn.init.zeros_(base.module.network.write.weight)
    optimiser, process = torch.optim.Adam(base.module.parameters(), 3e-3), base.process
    for _ in range(500):
        label, t, e = torch.randint(2, (64,)), torch.rand(64) * 0.99, torch.randn(64, 1, 4, 4)
        picture = (label * 1.6 - 0.8).reshape(-1, 1, 1, 1) + 0.1 * torch.randn(64, 1, 4, 4)
        names = [None if torch.rand(()) < 0.2 else ("black", "white")[n] for n in label]
        given = base.module({"x": process.noised(picture, e, t), "t": t, **base.conditions(names)})
        loss = (given.output - process.target("v", picture, e, t)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    base.save(folder)
    return folder


def picture_file(path, size=4, mode="L"):
    from PIL import Image

    grey = np.full((size, size), 60, np.uint8)
    grey[: size // 2, : size // 2] = 230
    Image.fromarray(grey).convert(mode).save(path / "black.png")
    return path


def recipe(folder, tmp_path, options=None, student="guide", size=4, mode="L", **more):
    (source := tmp_path / "pictures").mkdir(exist_ok=True)
    picture_file(source, size, mode)
    given = {"target_prompt": "white", "guide_prompt": "* black", "lr": 3e-3, "batch_size": 8, "max_steps": 60}
    given |= {"sampler_steps": 10, "guidance_scale": 1.5, "guide_weight": 0.6, "guide_until": 0.0, **(options or {})}
    seeds = {"conditions": ["white"], "reference": f"images:{source}"}
    return {
        "task": "image-editing", "method": "sine", "teacher": f"path:{folder}", "student": student,
        "data": {"train": {"source": f"images:{source}"}}, "options": given,
        "evaluation": {"data": [{"source": "noise:4", "split": "test", "options": seeds}], "cost": False}, **more,
    }  # fmt: skip


def test_the_guide_plants_its_shape_and_the_base_what_was_asked_for(tuned, tmp_path):
    run = kdhub.distill(recipe(tuned, tmp_path), out=tmp_path / "run")
    found = {(m["metric"], json.dumps(m.get("variant", {}))): m["value"] for m in run.report["measures"]
             if m["subject"] == "student"}  # fmt: skip
    shape = {way: found["shape-kept", json.dumps(way and {"only": way} or {})] for way in ("", "base", "guide")}
    assert shape["base"] + 0.2 < shape[""] < shape["guide"] + 0.01 and shape["guide"] > 0.8
    edit = kdhub.load(run.student_folder)
    light = {only: pictures(edit, only=only).mean() for only in ("base", "guide")} | {"edit": pictures(edit).mean()}
    assert light["guide"] < light["edit"] < light["base"]
    assert edit.from_image["sha256"] and edit.source.shape == (1, 4, 4)
    card = (run.folder / "README.md").read_text()
    assert "Its guide was made from one image" in card and "* black" in card
    assert {p.name for p in (run.folder / "plots").glob("*.png")} >= {
        "rows-edits.png", "rows-window-and-weight.png", "student-source.png"
    }  # fmt: skip
    assert run.provenance["training"].get("live_teacher_calls", 0) == 0
    folder = run.student_folder
    assert kdhub.load(folder / "base", task="image-generation").words == WORDS
    alone = kdhub.load(folder / "guide-1", task="image-generation")
    task = kdhub.open_task("image-generation")
    black = task.pictures(alone, [{"seed": n, "condition": "* black"} for n in range(4)], steps=10, guidance=1.5)
    assert np.array_equal(black, pictures(edit, only="guide")), "a guide's folder opens by itself"


def test_edits_without_training_from_python_and_to_a_file(tuned, tmp_path, capsys, monkeypatch):
    from kdhub.cli import app

    run = kdhub.distill(recipe(tuned, tmp_path, {"max_steps": 2}), out=tmp_path / "run")
    kept = kdhub.render(run.folder, tmp_path / "kept.png", count=2)
    guide = {"model": str(run.folder), "weight": 0.6, "until": 0.0}
    how = {"prompt": "white", "guidance": 1.5, "steps": 10, "count": 2}
    made = kdhub.render(tuned, task="image-editing", guides=[guide], **how)
    assert made.content == kept.content, "base, guide and prompts given by hand are the same edit"
    two = [{**guide, "weight": 0.3}] * 2
    assert kdhub.render(tuned, task="image-editing", guides=two, **how).content == kept.content
    sets = [f"guides={json.dumps([guide])}", *(f"{name}={value}" for name, value in how.items())]
    words = ["kdhub", "render", str(tuned), "--task", "image-editing", "--out", str(tmp_path / "cli.png")]
    monkeypatch.setattr("sys.argv", [*words, *(w for one in sets for w in ("--set", one))])
    with pytest.raises(SystemExit):
        app.run()
    assert (tmp_path / "cli.png").read_bytes() == kept.content
    assert kdhub.render(run.folder, grid=True).content != kept.content
    plain = kdhub.render(tuned, prompts=["white", "black"], count=2, steps=4, task="image-generation")
    assert plain.content.startswith(b"\x89PNG")


def test_a_kill_and_resume_gives_the_same_guide(tuned, tmp_path, monkeypatch):
    given = recipe(tuned, tmp_path, {"max_steps": 6, "checkpoint_steps": 2}, evaluation={"data": [], "cost": False})
    whole = kdhub.distill(given, out=tmp_path / "whole")
    objective = Sine.objective

    def killed(self, student, teacher, batch, progress):
        if progress.step == 4:
            raise KeyboardInterrupt
        return objective(self, student, teacher, batch, progress)

    monkeypatch.setattr(Sine, "objective", killed)
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(given, out=tmp_path / "run")
    monkeypatch.setattr(Sine, "objective", objective)
    run = kdhub.distill(resume=tmp_path / "run")
    file = "guide-1/model.safetensors"
    assert (run.student_folder / file).read_bytes() == (whole.student_folder / file).read_bytes()


def test_adapters_are_saved_as_peft_has_them(tuned, tmp_path):
    peft = pytest.importorskip("peft")
    student = {"source": "guide", "lora": {"r": 2, "alpha": 4}}
    run = kdhub.distill(recipe(tuned, tmp_path, {"max_steps": 3}, student), out=tmp_path / "run")
    edit = kdhub.load(run.student_folder)
    files = {path.name for path in (run.student_folder / "guide-1").iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors"} and "model.safetensors" not in files
    assert edit.guides[0].lora.r == 2 and not np.array_equal(pictures(edit), pictures(edit, only="base"))
    opened = peft.PeftModel.from_pretrained(kdhub.load(tuned).root, run.student_folder / "guide-1")
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.5, 0.9])
    condition = edit.conditions(["* black"] * 2)["condition"]
    with torch.no_grad():
        theirs = opened(x, t, condition)
        assert torch.allclose(theirs, edit.guides[0].model.root(x, t, condition), atol=1e-5)
    trained = [name for name, p in edit.guides[0].model.module.named_parameters() if ".lora_" in name]
    assert trained and run.provenance["student"]["start"]["relation"] == "adapter"


def test_patches_and_other_sizes(tmp_path):
    from kdhub_generative.images.pipelines import Unet

    from kdhub.student import BuildContext

    facts = {"shape": [1, 8, 8], "classes": ["black", "white"]}
    unet = Unet("width=8,levels=2,layers=1", BuildContext(None, None, 0, {"conditional": True}, facts))
    (folder := tmp_path / "base").mkdir()
    unet.save(folder)
    options = {"patch_training": True, "min_crop": 0.5, "position_grid": 16, "max_steps": 2, "batch_size": 2}
    options |= {"guide_prompt": "black", "size": 12}
    given = recipe(folder, tmp_path, options, size=24, evaluation={"data": [], "cost": False})
    run = kdhub.distill(given, out=tmp_path / "run")
    edit = kdhub.load(run.student_folder)
    assert edit.guides[0].model.grid == 16 and edit.base.grid is None and edit.pixels == (1, 12, 12)
    assert pictures(edit).shape == (4, 1, 12, 12)
    with pytest.raises(UsageError, match=r"multiples of 2 \(size=9\)"):
        edit.resize(9)
    with pytest.raises(DataError, match=r"smallest crop of a picture of 24 x 24 is 2 pixels.*min_crop=0.1"):
        kdhub.distill(recipe(folder, tmp_path, {**options, "min_crop": 0.1}, size=24), out=tmp_path / "small")


def test_prompts_have_a_text_encoder_of_their_own(stable, tmp_path):
    """The classes of Stable Diffusion, tiny, with random weights."""
    (folder := tmp_path / "base").mkdir()
    stable.save(folder)
    options = {"target_prompt": "a b", "guide_prompt": "c d", "max_steps": 2, "batch_size": 1, "lr": 1e-2}
    given = recipe(folder, tmp_path, options, size=8, mode="RGB", evaluation={"data": [], "cost": False})
    run = kdhub.distill(given, out=tmp_path / "run")
    edit = kdhub.load(run.student_folder)
    mine, theirs = (one.text("c d") for one in (edit.guides[0].model, edit.base))
    assert not torch.equal(mine, theirs) and torch.equal(theirs, stable.text("c d"))
    task = kdhub.open_task("image-editing")
    seeds = [{"seed": 0, "condition": "a b"}]
    for only in (None, "guide", "guide-asked"):
        assert task.pictures(edit, seeds, only=only, steps=2).shape == (1, 3, 8, 8)


@pytest.mark.slow
def test_an_edit_is_published_pulled_and_verified_from_another_cache(tmp_path, monkeypatch):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
    from fake_hub import talked_to

    tiny = kdhub.open_task("image-editing").tiny_recipe(tmp_path)
    given = {**tiny, "student": "guide", "task": "image-editing", "method": "sine"}
    given["options"] = {"target_prompt": "4", "guide_prompt": "* 3", "sampler_steps": 10, "max_steps": 2}
    with talked_to(monkeypatch):
        run = kdhub.distill(given, out=tmp_path / "run")
        done = kdhub.publish(run.folder, "me/edit", licence="cc-by-4.0")  # the usage lines are run
        assert "Its guide was made from one image" in done.card
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
        found = kdhub.verify("me/edit", trust_recipe=True)
        assert found.status == "verified" and {f.verdict for f in found.figures} <= {"ok", "not checked"}
        assert kdhub.render("me/edit", count=1).content == kdhub.render(run.folder, count=1).content


# -- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, says",
    [
        ({"guide_until": 400}, r"guide_until.*must be diffusion time from 0 to 1.*step 400 of 1000 is 0.4"),
        ({"guide_weight": 1.2}, r"guide_weight.*1\.2"),
        ({"min_crop": 0.6, "max_crop": 0.5}, "min_crop must be at most max_crop"),
        ({"target_prompt": None}, "target_prompt: what the picture shall become is not said"),
        ({"target_prompt": "pink"}, r"target_prompt: the model does not know 'pink'"),
        ({"guide_prompt": "* pink"}, r"guide_prompt: the model does not know 'pink'"),
        ({"patch_training": True, "min_crop": 1.0}, "begins with a convolution|smallest crop"),
        ({"size": 8}, r"4 alone \(size=8\)"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(tuned, tmp_path, options, says):
    given = recipe(tuned, tmp_path, {**options, "max_steps": 1}, evaluation={"data": [], "cost": False})
    with pytest.raises(KdhubError, match=says):
        kdhub.distill(given, out=tmp_path / "run")


def test_guides_that_do_not_fit_are_refused_by_name(base):
    for model, says in (
        (network(settings={"width": 24, "blocks": 1}), "another architecture"),
        (network(prediction="v"), "predicts v, the base epsilon"),
        (network(words=[*WORDS[:-1], "+"]), "other conditions"),
        (network(shape=[1, 2, 2]), "has 1 x 2 x 2 numbers, the base 1 x 4 x 4"),
        (base.as_one_call(0.99), "one-call model"),
    ):
        with pytest.raises(CompatibilityError, match=says):
            EditModel(base, [Guide(model, "white", 0.3, 0.4)])
    with pytest.raises(UsageError, match="does not know 'pink'"):
        EditModel(base, [Guide(base.copied(), "pink", 0.3, 0.4)])
    with pytest.raises(UsageError, match=r"at most 1 \(guide_weight=0.6 \+ 0.6 = 1.2\)"):
        EditModel(base, [Guide(base.copied(), "white", 0.6, 0.4), Guide(base.copied(), "white", 0.6, 0.4)])
    with pytest.raises(UsageError, match=r"guide_until=400\): step 400 of 1000 is 0.4"):
        Guide(base, "white", 0.3, 400)
    assert share_of([0.4, 0.6]) == pytest.approx(1)


def test_pictures_of_another_kind_are_refused(base, tuned, tmp_path):
    with pytest.raises(DataError, match="bytes of 0 to 255, not float32"):
        base.encode(np.zeros((1, 1, 4, 4), np.float32))
    with pytest.raises(DataError, match="-1 to 1 here, and these reach 255"):
        within(torch.full((1, 1, 4, 4), 255.0))
    with pytest.raises(DataError, match="2 x 2, smaller than the 4 x 4"):
        kdhub.distill(recipe(tuned, tmp_path, size=2, evaluation={"data": [], "cost": False}), out=tmp_path / "run")
    with pytest.raises(DataError, match="has 3 channels, and the model draws 1"):
        kdhub.distill(recipe(tuned, tmp_path, mode="RGB", evaluation={"data": [], "cost": False}), out=tmp_path / "rgb")
    many = recipe(tuned, tmp_path, data={"train": {"source": "resized:4:digits", "options": {"colours": "grey"}}})
    many["data"]["train"]["limit"] = 3
    with pytest.raises(KdhubError, match="3 pictures|does not know"):
        kdhub.distill(many, out=tmp_path / "many")


def test_renders_are_refused_by_name(tuned):
    edit = kdhub.load(tuned, task="image-editing")
    for options, error, says in (
        ({"prompt": "pink"}, UsageError, "prompt: the model does not know 'pink'"),
        ({"guide_until": 400}, RecipeError, "step 400 of 1000 is 0.4"),
        ({"prompt": "white", "guides": [{"model": str(tuned), "until": 400}]}, RecipeError, "step 400"),
        ({"prompt": "white", "guides": [{"model": str(tuned), "weight": 0.7}] * 2}, UsageError, "at most 1"),
        ({"prompt": "white", "only": "guide"}, CompatibilityError, "without guides"),
        ({"prompt": "white", "size": 8}, UsageError, "size=8"),
    ):
        with pytest.raises(error, match=says):
            kdhub.render(edit, **options)
