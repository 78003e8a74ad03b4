"""Networks of timm: through a small module of that name with the functions that are used, and without any."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from kdhub_tasks.classification.folders import load
from safetensors.torch import save_file

import kdhub
from kdhub.data.dataset import DataOptions
from kdhub.errors import UnknownNameError, UntrustedError, UsageError
from kdhub.recipes.resolve import Resolver

TIMM = """
from torch import nn

CONFIGS = {
    "small": {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)},
    "fixed": {"fixed_input_size": True},
}


class Network(nn.Module):
    def __init__(self, num_classes, in_chans, pixels=None):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(in_chans, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 if pixels is None else 4 * pixels, num_classes)
        self.pixels = pixels

    def forward_features(self, x):
        return self.norm(self.stem(x)).relu()

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3)) if self.pixels is None else x.flatten(1)
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def create_model(name, pretrained=False, num_classes=1000, in_chans=3, img_size=None):
    if name == "small":
        assert img_size is None
        return Network(num_classes, in_chans)
    return Network(num_classes, in_chans, (img_size[0] // 2) * (img_size[1] // 2))


def is_model(name):
    return name in CONFIGS


def list_models():
    return list(CONFIGS)


def get_pretrained_cfg_value(name, key):
    return CONFIGS[name].get(key)
"""


@pytest.fixture
def timm(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    yield __import__("timm")
    sys.modules.pop("timm", None)


def recipe(student, **changes):
    options = {"epochs": 3, "lr": 1e-2, "precision": "float32"}
    return {
        "task": "image-classification", "method": "supervised", "student": student, "options": options,
        "data": {"train": [{"source": "digits", "split": "train", "limit": 128}]},
        "evaluation": {"data": [{"source": "digits", "split": "test", "limit": 50}], "cost": False}, **changes,
    }  # fmt: skip


def examples(n=5):
    rows = Resolver().open_data("digits", DataOptions()).split("test")[:n]
    return [{"x": np.asarray(image, np.uint8)} for image in rows["image"]]


@pytest.mark.parametrize("name", ["small", "fixed"])
def test_a_student_of_timm_teaches_the_next(timm, tmp_path, name):
    first = kdhub.distill(recipe(f"timm:{name}"), out=tmp_path / "first")
    student = kdhub.load(first.folder)
    config = json.loads((first.student_folder / "config.json").read_text())
    # timm's own numbers, of colours for an image without any; not those of the training rows
    assert config["mean"] == pytest.approx(0.4 if name == "small" else 0.449)
    x = torch.from_numpy(np.stack([e["x"] for e in examples()])).float().unsqueeze(1) / 255
    with torch.no_grad():
        own = student.module.model((x - config["mean"]) / config["std"])
    np.testing.assert_allclose(student.signals(examples(), "logits")["logits"], own, atol=1e-5)
    assert student.width("features") == (4 if name == "small" else 64,)
    second = kdhub.distill(
        recipe("mlp:8", method="feature", teacher=f"path:{first.student_folder}"), out=tmp_path / "second"
    )
    assert second.provenance["signals"]["features"]["computed"] == 128


def of_timm(timm, folder, **changes):
    """A folder as timm saves it."""
    folder.mkdir()
    network = timm.create_model("small", num_classes=2, in_chans=3)
    save_file(network.state_dict(), folder / "model.safetensors")
    own = {"input_size": [3, 8, 8], "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.4], "label_names": ["cat", "dog"]}
    config = {"architecture": "small", "num_classes": 2, "pretrained_cfg": own}
    config |= {"model_args": {"num_classes": 2, "in_chans": 3}, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return network.eval()


def test_a_folder_of_timm_is_a_teacher_and_a_start(timm, tmp_path):
    network = of_timm(timm, tmp_path / "net")
    teacher = load(tmp_path / "net")
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    scaled = (x / 255 - np.array([[[0.5]], [[0.4]], [[0.3]]])) / np.array([[[0.1]], [[0.2]], [[0.4]]])
    given = teacher.signals([{"x": image} for image in x], "logits")["logits"]
    np.testing.assert_allclose(given, network(torch.from_numpy(scaled).float()).detach(), atol=1e-5)
    assert teacher.classes == ["cat", "dog"]
    np.savez(tmp_path / "rows.npz", image=x.transpose(0, 2, 3, 1).repeat(8, 0), label=np.arange(32) % 3)
    rows = [f"path:{tmp_path / 'rows.npz'}"]
    start = recipe(f"path:{tmp_path / 'net'}", data={"train": rows}, evaluation={"data": rows, "cost": False})
    run = kdhub.distill(start, out=tmp_path / "run", set={"options.max_steps": 1, "options.lr": 1e-9})
    student = kdhub.load(run.folder)
    assert student.classes == ["0", "1", "2"] and student.module.model.fc.out_features == 3
    assert torch.allclose(student.module.model.stem.weight, network.stem.weight, atol=1e-6)
    assert student.config["mean"] == [[[0.5]], [[0.4]], [[0.3]]]


def test_what_is_no_network_of_timm(timm, tmp_path):
    with pytest.raises(UnknownNameError, match="smal") as told:
        kdhub.distill(recipe("timm:smal"), out=tmp_path / "run")
    assert "small" in told.value.hint
    of_timm(timm, tmp_path / "net", architecture="fixed", model_args={"img_size": [8, 8]})
    with pytest.raises(UntrustedError, match="weights of another network than fixed"):
        load(tmp_path / "net")
    for wrong, words in (
        ({"architecture": "hf-hub:some/one"}, "no network 'hf-hub:some/one'"),
        ({"architecture": "small", "model_args": {"checkpoint_path": "x.pth"}}, "elsewhere: checkpoint_path"),
    ):
        config = json.loads((tmp_path / "net/config.json").read_text())
        (tmp_path / "net/config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(UntrustedError, match=words):
            load(tmp_path / "net")


@pytest.mark.parametrize(
    ("source", "words", "hint"),
    [
        (None, "not installed: timm", "kdhub-tasks[timm]"),
        ("import torchvision_of_another_build", "not installed: torchvision_of", "kdhub-tasks[timm]"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "cannot be imported: operator", "build"),
    ],
)
def test_without_timm_the_error_names_the_extra(monkeypatch, tmp_path, source, words, hint):
    monkeypatch.setitem(sys.modules, "timm", None)
    if source:
        (tmp_path / "timm.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "timm")
    with pytest.raises(UsageError, match=words) as told:
        kdhub.distill(recipe("timm:small"), out=tmp_path / "run")
    assert hint in told.value.hint
