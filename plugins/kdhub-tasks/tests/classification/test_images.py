"""Images in any range, layout and file give the same rows to training, evaluation and a loaded student."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kdhub_logits.teachers import Prototypes
from kdhub_tasks.classification.images import read
from kdhub_tasks.classification.model import NetworkClassifier
from PIL import Image

import kdhub
from kdhub.errors import DataError
from kdhub.evaluation.cost import _dumps, _restore
from kdhub.rows import plain_rows
from kdhub.student import BuildContext

pytestmark = pytest.mark.usefixtures("home")

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 6, 7, 3)).astype(np.uint8)
COLOUR[3] = 0
COLOUR[4] = RNG.integers(0, 2, (6, 7, 3))
"""Nearly black: as fractions of 0 to 255 it could be taken for one of 0 to 1."""
LABELS = [i % 3 for i in range(12)]


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def files(folder):
    """The same rows: what they are, and a file of them."""
    whole = {"bytes": COLOUR, "first": COLOUR.transpose(0, 3, 1, 2), "fractions": COLOUR / 255}
    whole |= {"fractions first": COLOUR.transpose(0, 3, 1, 2) / 255, "float bytes": COLOUR.astype(np.float32)}
    made = {}
    for name, images in whole.items():
        made[f"{name}, jsonl"] = folder / f"{name.replace(' ', '-')}.jsonl"
        rows = [{"image": x.tolist(), "label": y} for x, y in zip(images, LABELS)]
        made[f"{name}, jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
        made[f"{name}, npz"] = folder / f"{name.replace(' ', '-')}.npz"
        np.savez(made[f"{name}, npz"], image=images, label=LABELS)
    encoded = [png(x) for x in COLOUR]
    pq.write_table(pa.table({"image": encoded, "label": LABELS}), folder / "encoded.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    hub = [{"bytes": one, "path": None} for one in encoded]
    datasets.Dataset.from_dict({"image": hub, "label": LABELS}, features=features).to_parquet(
        str(folder / "hub.parquet")
    )
    return made | {"encoded": folder / "encoded.parquet", "as the Hub has them": folder / "hub.parquet"}


def test_one_image_whatever_it_is_written_as(tmp_path, caplog):
    task, found, facts, scores = kdhub.open_task("image-classification"), {}, {}, {}
    model = NetworkClassifier(
        task.name, {"network": "mlp", "shape": [3, 6, 7], "classes": ["0", "1", "2"], "hidden": [4]}
    )
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    with caplog.at_level("INFO", "kdhub"):
        for name, file in files(tmp_path).items():
            data = kdhub.open_data(f"path:{file}")
            table = task.training_table([(data, "train")])
            examples = task.preparer(model, None)(plain_rows(table, range(12)))
            found[name] = np.stack([e["x"] for e in examples])
            facts[name] = task.survey([(data, "train")])
            scores[name] = [m.value for m in kdhub.evaluate(tmp_path / "model", data=f"path:{file}").measures]
            sample = json.loads(_dumps(task.sample(data, "train", 12)))
            assert [read(_restore(row)["image"]).tolist() for row in sample] == found[name].tolist(), name
            theirs = Prototypes(f"path:{file}", Prototypes.Options())
            assert theirs._means[1] == pytest.approx(COLOUR.transpose(0, 3, 1, 2).reshape(12, -1).mean(0))
    for name, seen in found.items():
        assert np.array_equal(seen, COLOUR.transpose(0, 3, 1, 2)), name
        assert facts[name] == facts["bytes, jsonl"] and scores[name] == scores["bytes, jsonl"], name
    for said in ("fractions of 0 to 1, channels first", "fractions of 0 to 255", "whole numbers, channels first"):
        assert said in caplog.text


def test_a_single_image_is_read_alike():
    """What a loaded student is given, without a data set around it."""
    image = COLOUR[0]
    for one in (image, image.tolist(), image / 255, image.transpose(2, 0, 1) / 255, png(image), {"bytes": png(image)}):
        assert np.array_equal(read(one), image.transpose(2, 0, 1))
    grey = image[..., 0]
    assert np.array_equal(read(png(grey)), grey) and np.array_equal(read(grey / 255), grey)
    assert np.array_equal(read(Image.fromarray(grey)), grey)
    assert read(grey > 100).max() == 255
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    file = io.BytesIO()
    wide.save(file, "png")
    assert np.array_equal(read(file.getvalue()), grey)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros((2, 3)) - 1, "not -1 to -1"),
        (np.full((2, 3), 300), "not 300 to 300"),
        (np.full((2, 3), np.nan), "not NaN or infinite"),
        (np.full((2, 3), 1.2), "not 1.2 to 1.2"),
        ([[1, 2], [3]], "lines of several lengths"),
        ([1, 2], "not an array of shape"),
        (None, "not an array of shape"),
        (b"no image", "cannot be opened"),
        ({"bytes": None, "path": "a.png"}, "named .'a.png'. and not in the row"),
    ],
)
def test_what_is_no_image_is_told(value, says):
    with pytest.raises(DataError, match=says):
        read(value)


def test_fractions_a_little_over_1_are_of_0_to_1(tmp_path):
    """As sums of float32 end; more is of neither range."""
    task = kdhub.open_task("image-classification")
    for over, low in ((1e-6, -1e-6), (0.2, 0.0)):
        images = COLOUR / 255
        images[0, 0, 0, 0], images[1, 0, 0, 0] = 1 + over, low
        np.savez(tmp_path / "over.npz", image=images, label=LABELS)
        data = kdhub.open_data(f"path:{tmp_path / 'over.npz'}")
        if over == 0.2:
            with pytest.raises(DataError, match="the highest fraction of all images is 1.2"):
                task.training_table([(data, "train")])
        else:
            seen = [read(row["image"]) for row in plain_rows(task.training_table([(data, "train")]), range(12))]
            assert np.abs(np.stack(seen)[2:] - COLOUR[2:].transpose(0, 3, 1, 2).astype(int)).max() == 0


def test_images_of_several_sizes_are_counted(tmp_path):
    rows = [{"image": np.zeros((4 + (i == 5), 4), int).tolist(), "label": i % 2} for i in range(8)]
    (file := tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, data = kdhub.open_task("image-classification"), kdhub.open_data(f"path:{file}")
    facts = task.survey([(data, "train")])
    assert facts == {"classes": ["0", "1"], "sizes": {"4 x 4": 7, "5 x 4": 1}}
    from kdhub_tasks.classification.students import mlp

    with pytest.raises(DataError, match=r"of 2 sizes, and a fresh network takes one: 4 x 4 \(7 of 8 rows\), 5 x 4"):
        mlp("4", BuildContext(task, None, 0, facts=facts))
    model = NetworkClassifier(task.name, {"network": "mlp", "shape": [4, 4], "classes": ["0", "1"]})
    examples = task.preparer(model, None)(plain_rows(data.split("train"), range(8)))
    with pytest.raises(DataError, match=r"1 of 8 inputs are not 4 x 4, as the network takes them: 5 x 4 \(1\)"):
        model.signals(examples, "logits")


def test_grey_images_fit_networks_of_equal_channels():
    grey = RNG.integers(0, 256, (5, 5)).astype(np.uint8)
    for shape in ([5, 5], [1, 5, 5], [3, 5, 5]):
        model = NetworkClassifier("image-classification", {"network": "mlp", "shape": shape, "classes": ["a", "b"]})
        x = model.collate([{"x": grey}, {"x": grey[None]}])["x"]
        assert list(x.shape) == [2, *shape] and (x[0] == x[1]).all()
