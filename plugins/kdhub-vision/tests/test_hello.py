"""A data set that makes its own labels: the numbers of the specification, what is chosen, and what is in the folder."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from kdhub_tasks.classification.model import NetworkClassifier
from kdhub_vision.condensed import patches, projector
from kdhub_vision.condensed.student import DistilledSet
from kdhub_vision.methods.hello import Hello, HelloOptions, Projector, _png
from kdhub_vision.methods.hello_train import HelloTrain
from torch.nn import functional as F

import kdhub
from kdhub.errors import CompatibilityError, DataError
from kdhub.method import Progress
from kdhub.rows import Signals

TASK, CLASSES = "image-classification", ["zero", "one", "two"]
FACTS = {"shape": [8, 8], "classes": CLASSES, "mean": 0.3, "std": 0.4}
X = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def clip():
    """Untrained; its texts are of other words than the data set's classes, which it knows too."""
    texts = {"zero": "a round one", "one": "a straight one", "two": "a bent two zero"}
    return kdhub.open_student({"source": "tiny-clip:width=8,channels=4", "texts": texts}, TASK, seed=1, facts=FACTS)


def distilled(clip, splits=None, **settings):
    config = {"network": "label-projector", "shape": [8, 8], "classes": CLASSES, "encoder": clip.config}
    config |= {"prompts": CLASSES, "rank_encoder": 2, "rank_linear": 2, **settings}
    torch.manual_seed(0)
    return DistilledSet(TASK, config, clip.module.state_dict(), splits)


def test_zero_shot_logits_by_hand():
    z, w = torch.tensor([0.6, 0.8]), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    torch.testing.assert_close(w @ z, torch.tensor([0.6, 1.0, 0.8]))
    expected = torch.tensor([0.015876, 0.866813, 0.117310])
    torch.testing.assert_close((10 * F.normalize(z, dim=0) @ w.T).softmax(-1), expected, atol=1e-6, rtol=0)


def test_it_begins_as_zero_shot_classification_and_as_low_rank_deltas(clip):
    made = distilled(clip)
    with torch.no_grad():
        z = F.normalize(clip.module({"x": X})["features"], dim=-1)
        assert torch.equal(made.module({"x": X})["logits"], 10.0 * z @ clip.module.vectors_of(CLASSES).T), "bit for bit"
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5, -1.0]])
    changed = torch.eye(2) + projector.delta(a, b, torch.eye(2))
    assert (changed @ torch.tensor([1.0, 1.0])).tolist() == [0.5, 0.0]
    assert (torch.tensor([1.0, 1.0]) @ changed).tolist() == [2.5, -2.0]
    with torch.no_grad():
        for b in made.module.b:
            b.normal_(0, 0.1)
        moved = made.module({"x": X})["logits"]
        merged = NetworkClassifier(TASK, clip.config).module
        merged.load_state_dict(clip.module.state_dict())
        for name, a, b in zip(made.module.adapted, made.module.a, made.module.b):
            weight = merged.get_parameter(name)
            weight += projector.delta(a, b, weight)
        linear = made.module.first + made.module.a[-1] @ made.module.b[-1]
        whole = 10.0 * F.normalize(merged({"x": X})["features"], dim=-1) @ linear.T
    torch.testing.assert_close(moved, whole, atol=1e-5, rtol=0)
    sizes = [(tuple(clip.module.get_parameter(name).shape), 2) for name in made.module.adapted] + [((3, 8), 2)]
    assert {*made.module.adapted} == {"image.0.weight", "image.3.weight", "image.6.weight", "project.weight"}
    assert not made.module.train().encoder.training, "its statistics are never those of a batch"
    assert 2 * sum(p.numel() for p in made.module.parameters()) == projector.label_bytes(sizes)
    assert projector.label_bytes([((64, 3, 3, 3), 8), ((10, 512), 4)]) == 2 * (8 * (64 + 27) + 4 * (10 + 512))


def test_the_loss_of_the_projector():
    weak = torch.tensor([[1.0, 1, 0], [3, -1, -2]]).mean(0, keepdim=True)
    assert weak.tolist() == [[2.0, 0.0, -1.0]]
    method = Projector(HelloOptions())
    given, teacher = Signals({"logits": torch.tensor([[2.0, 0, -1]])}), Signals()
    teacher.add("weak", Signals({"logits": weak}))
    terms = method.objective(given, teacher, {"targets": torch.tensor([[1.0, 0, 0]])}, Progress(0, 1, 0.0))
    assert terms["labels"].item() == 0 and terms["classes"].item() == pytest.approx(0.016985, abs=1e-6)
    hard = HelloTrain(HelloTrain.Options()).objective(
        given, Signals(), {"targets": torch.tensor([[1.0, 0, 0]])}, Progress(0, 1, 0.0)
    )
    assert {name: value.item() for name, value in hard.items()} == {"classes": pytest.approx(0.169846, abs=1e-6)}


def test_labels_that_would_be_stored():
    assert projector.stored_label_bytes(300, 1000, 1000) == 600_000_000
    assert projector.stored_label_bytes(300, 1000, 1000) / 2**20 == pytest.approx(572.2, abs=0.05)
    assert projector.stored_label_bytes(300, 200_000, 1000) / 2**30 == pytest.approx(111.76, abs=0.005)


def test_pixels_of_small_patches():
    ramp = torch.arange(16.0).reshape(1, 4, 4)
    mean = lambda p: F.avg_pool2d(p.unsqueeze(1), 2)[:, 0]  # noqa: E731
    nearest = lambda q: q.repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
    assert mean(ramp).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    _, (before, _) = patches.updated(lambda x: x.flatten(1), ramp, (2, 2), 0, down=mean, up=nearest)
    assert before == pytest.approx(4.25)
    encoder = torch.nn.Linear(64, 4)
    q, (before, after) = patches.updated(lambda x: encoder(x.flatten(1)), X, (4, 4), 30)
    assert after < before / 2 and q.shape == (6, 4, 4) and 0 <= q.min() and q.max() <= 1


def test_the_best_crop_of_each_image_and_the_best_of_these():
    seen = []

    def score(x, labels):
        assert x.shape == (6, 8, 8) and (x[:, :2] == 0).all() and (labels == 1).all(), "padded to the whole"
        seen.append(-x.sum((1, 2)))
        return seen[-1]

    chosen, boxes = patches.best_crops(X, 1, 5, 4, 2, 0.3, score, np.random.default_rng(0))
    losses = torch.stack(seen)
    assert chosen.tolist() == losses.min(0).values.argsort()[:4].tolist()
    kept = patches.padded(patches.crops(X[chosen], boxes, (4, 4)), (8, 8))
    torch.testing.assert_close(-kept.sum((1, 2)), losses.min(0).values[chosen])
    tiles = patches.tiled(patches.crops(X[chosen], boxes, (4, 4)), 2, (8, 8))
    torch.testing.assert_close(tiles[0, :4, 4:], patches.crops(X[chosen], boxes, (4, 4))[1])
    assert patches.tiled(X[:, :2, :2].repeat(3, 1, 1), 3, (8, 8)).shape == (2, 8, 8)
    with pytest.raises(
        DataError, match=r"1 of 2 classes .* the 2 that are wanted of each \(ipc=2, factor=1\): b \(1\)"
    ):
        patches.enough([5, 1], ["a", "b"], 2, "ipc=2, factor=1")


def test_crops_and_mixed_images():
    whole = torch.tensor([[0.0, 0, 1, 1]]).repeat(6, 1)
    torch.testing.assert_close(patches.crops(X, whole), X)
    torch.testing.assert_close(patches.crops(X, torch.tensor([[0.5, 0, 0.5, 0.5]]).repeat(6, 1), (4, 4)), X[:, :4, 4:])
    boxes = patches.random_boxes(500, 0.25, np.random.default_rng(0))
    area = boxes[:, 2] * boxes[:, 3]
    assert 0.2 < area.min() < 0.3 and area.max() > 0.9 and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-6
    targets = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2])]
    x, mixed = patches.cut_mix(torch.arange(6.0).reshape(6, 1, 1).expand(6, 8, 8), targets, np.random.default_rng(3))
    assert torch.allclose(mixed.sum(1), torch.ones(6))
    share = (x != torch.arange(6.0).reshape(6, 1, 1)).float().mean((1, 2)).max()
    assert 0 < share < 1 and mixed.max(1).values.min().item() == pytest.approx(max(share, 1 - share).item(), abs=1e-6)


def rows():
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    images = [_png(image) for image in (X[:3] * 255).to(torch.uint8).numpy()]
    return datasets.Dataset.from_dict({"image": images, "label": CLASSES}, features)


def test_the_folder_is_a_data_set_and_a_classifier(clip, tmp_path):
    made = distilled(clip, {"train": rows()})
    with torch.no_grad():
        for b in made.module.b:
            b.normal_(0, 0.1)
        for weight in made.module.parameters():
            weight.copy_(weight.half())
    made.save(tmp_path)
    opened = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened[1]["image"].size == (8, 8) and opened.features["label"].names == CLASSES
    again = kdhub.open_task(TASK).load(tmp_path)
    torch.testing.assert_close(again.module({"x": X})["logits"], made.module({"x": X})["logits"])
    found = again.bytes_of(tmp_path)
    assert found["projector"] == 2 * sum(p.numel() for p in made.module.parameters())
    (picture,) = again.pictures()
    assert picture.sentence.endswith("all 3 of them.") and picture.content.startswith(b"\x89PNG")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_sha256": "0" * 64}))
    with pytest.raises(CompatibilityError, match="an encoder with the digest 000000000000, and this one has"):
        kdhub.open_task(TASK).load(tmp_path)


def test_an_encoder_that_cannot_read_the_classes_is_refused(clip):
    with pytest.raises(CompatibilityError, match="knows no word of 'unheard'"):
        distilled(clip, prompts=["one", "two", "unheard"])
    mlp = kdhub.open_student("mlp:4", TASK, facts=FACTS)
    with pytest.raises(CompatibilityError, match="no text encoder .init_linear=text."):
        distilled(mlp)
    random = distilled(mlp, init_linear="random")
    assert random.module({"x": X})["logits"].shape == (6, 3) and "first" not in random.module.state_dict()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_probe_classifies_at_once(clip, classes):
    class Rows(list):
        def some(self, most):
            return range(len(self))

        def __getitem__(self, numbers):
            return [super(Rows, self).__getitem__(n) for n in numbers]

    x = torch.rand(classes, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = Rows({"x": x[n % classes].numpy(), "label": n % classes} for n in range(30))
    made = distilled(clip, classes=CLASSES[:classes], prompts=CLASSES[:classes], init_linear="probe")
    Hello(HelloOptions())._probe(SimpleNamespace(rows=lambda use: rows), made)
    assert made.module({"x": x})["logits"].argmax(1).tolist() == [*range(classes)]
    assert "first" in made.module.state_dict()


def test_labels_made_on_the_spot_teach_more_than_classes(tmp_path):
    """Of one image of each digit, whose labels come from an untrained encoder with deltas of rank 4."""
    data = {"train": [{"source": "digits", "split": "train", "limit": 600}]}
    test = {"data": [{"source": "digits", "split": "test", "limit": 300}], "cost": False}
    shared = {"task": TASK, "seed": 0, "evaluation": test}
    options = {"precision": "float32", "lr": 0.01, "batch_size": 50}

    def made(out, method, teacher, student, data=data, **more):
        own = {"method": method, "teacher": teacher, "student": student, "data": data, "options": options | more}
        return kdhub.distill({**shared, **own}, out=tmp_path / out)

    def accuracy(run, subject="student"):
        (one,) = [m["value"] for m in run.report["measures"] if (m["metric"], m["subject"]) == ("accuracy", subject)]
        return one

    weak = made("weak", "hello-train", None, "mlp:64", max_steps=150, cutmix=0)
    facts = {**FACTS, "classes": [str(n) for n in range(10)]}
    (folder := tmp_path / "encoder").mkdir()
    kdhub.open_student("tiny-clip:width=16,channels=8", TASK, facts=facts).save(folder)
    sources = {"encoder": f"path:{folder}", "weak": f"path:{weak.student_folder}"}
    images = made(
        "set", "hello", {"source": "roles", **sources}, "distilled-set", max_steps=100, ipc=1, factor=1, candidates=20,
        crops=2, rank_encoder=4, rank_linear=4, init_linear="random",
    )  # fmt: skip
    assert accuracy(images) > accuracy(images, "student-before") + 0.3
    small, path = {"train": [{"source": f"path:{images.student_folder}"}]}, f"path:{images.student_folder}"
    taught = made("taught", "hello-train", path, "mlp:64", small, epochs=150, cutmix=0)
    alone = made("alone", "hello-train", None, "mlp:64", small, epochs=150, cutmix=0)
    assert accuracy(taught) > accuracy(alone) + 0.05
    value = {m["metric"]: m["value"] for m in images.report["measures"]}
    sizes = [p.numel() for p in kdhub.open_task(TASK).load(images.student_folder).module.parameters()]
    assert value["projector-bytes"] == 2 * sum(sizes) and value["stored-label-bytes"] == 300 * 10 * 10 * 2
    assert [one["file"] for one in images.provenance["pictures"]][0] == "plots/student-images.png"
    with pytest.raises(DataError, match=r"fewer images than the 200 that are wanted of each \(ipc=200, factor=1\)"):
        made("many", "hello", {"source": "roles", **sources}, "distilled-set", ipc=200)
