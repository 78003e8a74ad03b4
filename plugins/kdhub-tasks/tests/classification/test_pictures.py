"""Picture files of every kind, in folders, tables and lists of names: each is read right, or refused by name."""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kdhub_tasks.classification.images import Large, read, seen
from kdhub_tasks.classification.model import NetworkClassifier
from PIL import Image

import kdhub
from kdhub.data.prepare import ArrowFile
from kdhub.errors import DataError, UsageError
from kdhub.rows import Rows
from kdhub.signals.store import row_key

pytestmark = pytest.mark.usefixtures("home")

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 7, 3)).astype(np.uint8)
FIRST = COLOUR.transpose(2, 0, 1)


def encoded(image, kind="png", **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


def bomb(side: int) -> bytes:
    """A PNG of so many lines and columns in a hundred bytes, which says so in its head."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def test_every_kind_of_picture_is_read_right():
    image, grey = Image.fromarray(COLOUR), COLOUR[..., 0]
    palette = image.quantize(16)
    assert np.array_equal(read(encoded(palette)), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    assert np.array_equal(read(encoded(Image.fromarray(grey))), grey)
    assert np.array_equal(read(encoded(Image.fromarray(grey > 99))), np.where(grey > 99, 255, 0))
    assert read(encoded(Image.fromarray(COLOUR[:1, :1]))).tolist() == COLOUR[0, 0][:, None, None].tolist()
    cmyk = read(encoded(image.convert("CMYK"), "jpeg"))
    assert cmyk.shape == FIRST.shape
    for orientation, same in ((3, COLOUR[::-1, ::-1]), (6, np.rot90(COLOUR, -1)), (8, np.rot90(COLOUR)), (1, COLOUR)):
        assert np.array_equal(read(turned(image, orientation)), same.transpose(2, 0, 1)), orientation
    mine = Image.open(io.BytesIO(turned(image, 6)))
    assert read(mine).shape == (3, 7, 6) and mine.size == (7, 6), "a picture that is given stays as it is"


def test_what_is_transparent_is_seen_before_white():
    alpha = np.zeros((6, 7), np.uint8)
    alpha[:3], alpha[3] = 255, 51
    expected = COLOUR.copy()
    expected[3] = np.rint(255 - 0.2 * (255 - COLOUR[3].astype(float)))
    expected[4:] = 255
    found = read(encoded(Image.fromarray(np.dstack([COLOUR, alpha])))).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.array_equal(found[:3], COLOUR[:3]) and (found[4:] == 255).all()
    with_grey = Image.merge("LA", [Image.fromarray(COLOUR[..., 0]), Image.fromarray(alpha)])
    assert read(encoded(with_grey)).shape == (6, 7) and (read(encoded(with_grey))[4:] == 255).all()
    palette = Image.fromarray(COLOUR).quantize(8)
    chosen = np.asarray(palette)[0, 0]
    clear = read(encoded(palette, transparency=int(chosen)))
    assert (clear[:, np.asarray(palette) == chosen] == 255).all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (encoded(Image.fromarray(COLOUR))[:90], "cannot be opened: image file is truncated"),
        (encoded(Image.fromarray(COLOUR), "jpeg")[:-40], "cannot be opened: image file is truncated"),
        (b"GIF89a", "cannot be opened"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG, JPEG"),
        (bomb(8200), r"more than 67,108,864 pixels: 67,240,000"),
        (bomb(60_000), r"more than 67,108,864 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_is_refused(content, says):
    with pytest.raises(DataError, match=says):
        read(content)


def test_a_large_picture_is_decoded_where_it_is_used():
    value = encoded(Image.new("L", (6000, 4000), 77), compress_level=1)
    x, content = seen(value)
    assert isinstance(x, Large) and x.shape == (4000, 6000) and len(content) < 100
    assert np.asarray(x)[3999, 5999] == 77
    assert seen(COLOUR)[1] == FIRST.tobytes(), "arrays keep the content that signals are stored under"


def test_small_pictures_are_decoded_once(monkeypatch):
    from kdhub_tasks.classification import images

    (one, two), opened = (encoded(Image.fromarray(COLOUR[i:])) for i in (1, 2)), []
    monkeypatch.setattr(images, "_held", {})
    monkeypatch.setattr(images, "_free", len(one) + COLOUR[1:].nbytes)
    own = images._opened
    monkeypatch.setattr(images, "_opened", lambda value: opened.append(value) or own(value))
    for value in (one, {"bytes": one, "path": "a"}, two, two, one):
        assert np.array_equal(seen(value)[0], read(value))
    assert len(opened) == 5 + 3, "the second one found no room"


def test_the_same_pixels_in_other_lines_are_another_picture():
    grey = RNG.integers(0, 256, (2, 6)).astype(np.uint8)
    one, two = (encoded(Image.fromarray(x)) for x in (grey, grey.reshape(4, 3)))
    assert seen(one)[1] != seen(two)[1]
    square = COLOUR[:6, :6]
    assert seen(encoded(Image.fromarray(square)))[1] == seen(square)[1], "found under the key of the array"


# -- data sets ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two classes, pictures of several kinds and sizes, and what is none of them."""
    root = tmp_path / "pets"
    for label, n in (("cat", 4), ("dog", 3)):
        (root / label / "more").mkdir(parents=True)
        for i in range(n):
            x = RNG.integers(0, 256, (6 + i, 9, 3)).astype(np.uint8)
            made = [Image.fromarray(x), Image.fromarray(x[..., 0]), Image.fromarray(x).convert("RGBA")][i % 3]
            made.save(root / label / ("more" if i == 3 else "") / f"{i}.png")
    (root / "cat" / "notes.txt").write_text("none")
    (root / "cat" / ".hidden.png").write_text("none")
    (root / ".cache").mkdir()
    return root


def test_a_folder_of_pictures(folder):
    data = kdhub.open_data(f"images:{folder}")
    rows = list(data.split("train"))
    assert [(row["label"], row["image"]["path"]) for row in rows] == [
        *(("cat", f"cat/{name}") for name in ("0.png", "1.png", "2.png", "more/3.png")),
        *(("dog", f"dog/{i}.png") for i in range(3)),
    ]
    before = data.fingerprint("train")
    Image.fromarray(COLOUR).save(folder / "dog" / "0.png")
    assert kdhub.open_data(f"images:{folder}").fingerprint("train") != before
    for split in ("train", "val"):
        (folder.parent / "parts" / split).mkdir(parents=True)
        Image.fromarray(COLOUR).save(folder.parent / "parts" / split / "one.JPG")
    flat = kdhub.open_data(f"images:{folder.parent / 'parts'}")
    assert flat.splits == ("train", "validation") and flat.split("validation").column_names == ["image"]


def test_folders_that_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        kdhub.open_data(f"images:{tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        kdhub.open_data(f"images:{tmp_path / 'empty'}")
    Image.fromarray(COLOUR).save(folder / "stray.png")
    with pytest.raises(DataError, match="7 pictures in folders of classes and 1 beside them: 'stray.png'"):
        kdhub.open_data(f"images:{folder}")


def rows_of(data, on_bad_rows="stop"):
    task = kdhub.open_task("image-classification")
    table = task.training_table([(data, "train")])
    facts = task.survey([(data, "train")])
    model = NetworkClassifier(task.name, {"network": "mlp", "shape": [3, 8, 8], "classes": ["cat", "dog"]})
    rows = Rows.build(table, task.preparer(model, None), row_key)
    return facts, model, rows.readable(f"{data.name} train", on_bad_rows)


def test_bad_pictures_are_told_by_row_and_file(folder):
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "2.png").write_bytes(b"")
    source = f"images:{folder}"
    says = r"2 of 7 rows are bad: 2 an image cannot be opened \(rows 2: cat/1.png: .*truncated.*; 7: dog/2.png: .*\)"
    for text in (source, f"resized:8:{source}"):
        with pytest.raises(DataError, match=says) as caught:
            rows_of(kdhub.open_data(text))
        assert caught.value.rows == [2, 7]
    _, _, rows = rows_of(kdhub.open_data(source), "skip")
    assert len(rows) == 5
    data = kdhub.open_data(f"resized:8:{source}", on_bad_rows="skip")
    assert len(data.split("train")) == 5 and sum(data.skipped["train"].values()) == 2


def test_pictures_of_one_size_for_teacher_student_and_evaluation(folder, tmp_path):
    """From a folder of mixed pictures to a report, bad ones left out and counted."""
    (folder / "cat" / "2.png").write_bytes(b"none")
    source = {"source": f"resized:8:images:{folder}"}
    recipe = {
        "task": "image-classification", "method": "kd", "teacher": f"prototypes:resized:8:images:{tmp_path / 'good'}",
        "student": "mlp:4", "data": {"train": source}, "options": {"epochs": 1, "batch_size": 2},
        "evaluation": {"data": [source], "cost": False}, "on_bad_rows": "skip",
    }  # fmt: skip
    for label in ("cat", "dog"):
        (tmp_path / "good" / label).mkdir(parents=True)
        Image.fromarray(COLOUR).save(tmp_path / "good" / label / "0.png")
    run = kdhub.distill(recipe, out=tmp_path / "run")
    assert run.provenance["rows"]["train"]["rows"] == 6
    assert json.loads((run.student_folder / "config.json").read_text())["shape"] == [3, 8, 8]
    assert {m["examples"] for m in run.report["measures"] if m["metric"] == "accuracy"} == {6}


def test_bad_pictures_are_left_out_of_what_is_measured(folder, tmp_path):
    """Without `resized` they are found where rows are prepared: by teacher and student alike."""
    for label in ("cat", "dog"):
        for i in range(3):
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / label / f"{i}.png")
    (folder / "cat" / "more" / "3.png").write_bytes(b"none")
    model = NetworkClassifier("image-classification", {"network": "mlp", "shape": [3, 8, 8], "classes": ["cat", "dog"]})
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    how = {"data": f"images:{folder}", "teacher": f"path:{tmp_path / 'model'}"}
    with pytest.raises(DataError, match=r"1 of 7 rows is bad: 1 an image cannot be opened \(row 4: cat/more/3.png"):
        kdhub.evaluate(tmp_path / "model", **how)
    report = kdhub.evaluate(tmp_path / "model", **how, set={"on_bad_rows": "skip"})
    found = {(m.subject, m.metric): (m.value, m.examples) for m in report.measures}
    assert found["student", "accuracy"] == found["teacher", "accuracy"] and found["student", "accuracy"][1] == 6
    assert found["student", "agreement"] == (1.0, 6)


def test_grey_pictures_among_ones_in_colours(tmp_path):
    for name, x in (("a", COLOUR), ("b", COLOUR[..., 0])):
        (tmp_path / "p" / name).mkdir(parents=True)
        Image.fromarray(x).save(tmp_path / "p" / name / "0.png")
    task, data = kdhub.open_task("image-classification"), kdhub.open_data(f"images:{tmp_path / 'p'}")
    facts = task.survey([(data, "train")])
    both = np.stack([FIRST, np.repeat(COLOUR[None, ..., 0], 3, 0)]) / 255
    assert facts["shape"] == [3, 6, 7] and np.ravel(facts["mean"]) == pytest.approx(both.mean((0, 2, 3)))
    assert np.ravel(facts["std"]) == pytest.approx(both.std((0, 2, 3)))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_are_brought_to_one_size(fit):
    x = np.zeros((4, 8), np.uint8)
    x[:, 2:6] = 200
    made = images_of(x, fit=fit)
    assert made.shape == (3, 4, 4) and (made[0] == made[1]).all()
    grey = images_of(x, fit=fit, colours="grey")
    assert grey.shape == (4, 4) and (grey == made[0]).all()
    assert {"crop": (grey == 200).all(), "pad": not grey[0].any(), "stretch": 0 < grey[0, 1] < 210}[fit]


def images_of(x, **how):
    from kdhub_tasks.classification.pictures import resized_image

    return resized_image(encoded(Image.fromarray(x)), 4, 4, **{"colours": "rgb", **how})


def test_sizes_that_are_refused():
    for text in ("resized:digits", "resized:0:digits", "resized:3x4x5:digits", "resized:8:"):
        with pytest.raises(UsageError, match="has no size"):
            kdhub.open_data(text)
    with pytest.raises(UsageError, match=r"fit must be one of crop, pad, stretch \(fit=wide\)"):
        kdhub.open_data("resized:8:digits", options={"fit": "wide"})
    assert kdhub.open_data("resized:4x6:digits").split("test")[0]["image"][2][3]


# -- names of files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_that_name_files(folder, kind):
    names = ["cat/0.png", "dog/1.png", "cat/none.png"]
    rows = [{"image": name, "label": name[:3]} for name in names]
    file = folder / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, ["image", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    task, how = kdhub.open_task("image-classification"), {"options": {"files": "image"}}
    with pytest.raises(DataError, match="has texts in 'image', such as 'cat/0.png'") as caught:
        task.training_table([(kdhub.open_data(f"path:{file}"), "train")])
    assert "files: image" in caught.value.hint
    with pytest.raises(DataError, match=r"1 naming a file in 'image' that cannot be read \(row \d: cat/none.png"):
        kdhub.open_data(f"path:{file}", **how).split("train")
    data = kdhub.open_data(f"path:{file}", on_bad_rows="skip", **how)
    found = [row["image"] for row in data.split("train")]
    assert found == [{"bytes": (folder / name).read_bytes(), "path": name} for name in names[:2]]
    before = data.fingerprint("train")
    (folder / "cat" / "0.png").write_bytes(encoded(Image.fromarray(COLOUR)))
    assert kdhub.open_data(f"path:{file}", on_bad_rows="skip", **how).fingerprint("train") != before


def test_files_in_rows_are_written_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("kdhub.data.prepare._HELD", 100)
    with ArrowFile(tmp_path / "rows.arrow") as file:
        for n in range(5):
            file.add(n, {"image": {"bytes": bytes(60), "path": "a"}})
            assert file.held < 100
