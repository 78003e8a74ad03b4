"""Counting: data that people have, targets, networks of any size, errors of counts, and what is wrong with rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kdhub_vision.counting import targets
from kdhub_vision.counting.data import points
from kdhub_vision.counting.generated import pasted_digits
from kdhub_vision.counting.metrics import Counts, bias, game, mae, nae, rae, ranges, rmse
from kdhub_vision.counting.model import Counter
from kdhub_vision.counting.networks import BACK, FRONT, divided
from kdhub_vision.counting.students import csrnet, divided_teacher
from kdhub_vision.counting.task import Counting, Truth
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.rows import UnreadableRows


class Context:
    """What a builder looks at."""

    def __init__(self, teacher=None, **options):
        self.seed, self.teacher, self.options = 0, teacher, options


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# -- networks ------------------------------------------------------------------------------------------------


def test_widths_and_weights_are_those_of_the_paper():
    count = lambda student: sum(p.numel() for p in student.module.parameters())  # noqa: E731
    whole = csrnet("1", Context())
    assert count(whole) == 16_263_489 and count(csrnet("4", Context())) == 1_017_681

    class Teacher:
        model = whole

    assert count(divided_teacher("4", Context(Teacher()))) == 1_017_681
    by = {2: [32, 64, 128, 256], 3: [21, 43, 85, 171], 4: [16, 32, 64, 128], 5: [13, 26, 51, 102]}
    for n, widths in by.items():
        front = [w for w in divided({"front": FRONT, "back": BACK}, n)["front"] if w != "M"]
        assert sorted(set(front)) == widths
    for wrong in ("0.25", "x", ""):
        with pytest.raises(UsageError, match=f"csrnet:{wrong} must have a number of 1 to 64"):
            csrnet(wrong, Context())
    with pytest.raises(CompatibilityError, match="needs a teacher for counting"):
        divided_teacher("4", Context())


def test_the_front_is_taken_from_a_vgg_by_the_names_of_its_layers(tmp_path):
    front = Counter(csrnet("32", Context()).config).module.front.state_dict()
    save_file({f"features.{n}": t for n, t in front.items()}, tmp_path / "vgg.safetensors")
    made = csrnet("32", Context(vgg=str(tmp_path / "vgg.safetensors")))
    assert all(torch.equal(t, front[n]) for n, t in made.module.front.state_dict().items())
    with pytest.raises(UsageError, match=r"has no features.0.weight of shape \[4, 3, 3, 3\]"):
        csrnet("16", Context(vgg=str(tmp_path / "vgg.safetensors")))
    with pytest.raises(UsageError, match="vgg=nowhere"):
        csrnet("32", Context(vgg="nowhere"))


def test_images_of_all_sizes_have_the_map_that_each_has_alone_and_whole():
    """Beside others in a batch of training, and in tiles: the same, to the rounding."""
    student = csrnet("32", Context())
    some = [noise(61, 90), noise(77, 40, seed=1), noise(3, 16, 16, seed=2)]
    alone = student.signals([{"image": x} for x in some], "density")["density"]
    assert [len(cells) for cells in alone] == [8 * 12, 10 * 5, 4]
    with torch.no_grad():
        together = student.module(student.collate(some))["density"].numpy()
    assert np.abs(together - np.concatenate(alone)).max() < 1e-5 * np.abs(together).max()
    large = noise(333, 470)
    whole = student.density(large)
    student.settle(tile=64)
    assert whole.shape == (42, 59) and student.count(large) == pytest.approx(float(whole.sum()), rel=1e-4)
    assert np.abs(student.density(large) - whole).max() < 1e-5 * np.abs(whole).max()


def test_the_scale_of_the_target_is_saved_with_the_model(tmp_path):
    student, image = csrnet("32", Context()), noise(32, 40)
    before = student.count(image)
    Counting().configure(student, Context(scale=8.0, tile=128))
    student.save(tmp_path)
    opened = Counting().load(tmp_path)
    assert opened.count(image) == pytest.approx(before / 8, rel=1e-5)
    assert (opened.config["scale"], opened.config["tile"]) == (8.0, 128)
    Image.fromarray(image).save(tmp_path / "photograph.png")
    assert opened.count(tmp_path / "photograph.png") == opened.count(image)
    with pytest.raises(DataError, match="No such file"):
        opened.count("nowhere.jpg")


# -- targets and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 4.0, 30.0, "adaptive"])
def test_maps_keep_the_count_whatever_the_size(sigma):
    rng = np.random.default_rng(0)
    for high, wide, many in ((64, 64, 7), (61, 90, 30), (17, 33, 1), (16, 16, 0)):
        where = rng.uniform(0, 1, (many, 2)) * (wide, high)
        made = targets.density_of(where, high, wide, sigma)
        assert made.shape == (-(-high // 8), -(-wide // 8)) and (made >= 0).all()
        assert made.sum(dtype=float) == pytest.approx(many, rel=1e-5)
        assert targets.density_in_regions(made, high, wide, of_cells=True).sum() == pytest.approx(many, rel=1e-5)
    given = rng.uniform(size=(50, 70))
    assert targets.resized_density(given, 61, 90).sum(dtype=float) == pytest.approx(given.sum(), rel=1e-5)
    corner = targets.density_of(np.array([[0.0, 0.0], [90.0, 61.0]]), 61, 90, 0.5)
    assert corner[0, 0] > 0.999 and corner[-1, -1] > 0.999, "what would lie outside is inside"


def test_adaptive_kernels_are_as_wide_as_the_next_points_are_far():
    where = np.array([[0.0, 0.0], [30.0, 0.0], [0.0, 40.0]])
    assert targets._adaptive(where).tolist() == pytest.approx([0.3 * 35, 0.3 * 40, 0.3 * 45])
    assert targets._adaptive(where[:1]).tolist() == [15.0]


def test_errors_by_hand():
    """Two images of 16 x 16 with 4 cells; of the second only the count is known."""
    out = Counts()
    first, second = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])
    truth = Truth.of({"points": [[2, 2], [4, 12], [12, 4], [12, 12], [13, 12]]})
    out.add(0, first, truth.count, truth.regions(16, 16), 16, 16)
    out.add(1, second, 1.0, Truth.of({"count": 1}).regions(16, 16), 16, 16)
    out.done()
    assert (mae(out), rmse(out), bias(out)) == (2.5, pytest.approx(np.sqrt(6.5)), 0.5)
    assert nae(out) == pytest.approx((2 / 5 + 3) / 2) and rae(out) == 2.5 / 2
    assert game(out, 0) == 2 and game(out, 1) == 1 + 1 + 1 + 1, "of the image whose places are known"
    assert game(out, 1) <= game(out, 2) <= game(out, 3)
    assert nae(out.some(np.array([True, False]))) == 2 / 5
    empty = Counts()
    empty.add(0, second, 0.0, None, 16, 16)
    assert (nae(empty.done()), game(empty, 1), mae(empty)) == (None, None, 4)


def test_ranges_of_counts_have_the_empty_images_apart():
    true = np.array([0, 0, 1, 2, 3, 4, 5, 60.0])
    found = {name: rows.sum() for name, rows in ranges(true)}
    assert found == {"0": 2, "1-2": 2, "3-3": 1, "4-60": 3} or sum(found.values()) == len(true)
    assert {n: r.sum() for n, r in ranges(true, [4])} == {"0": 2, "1-3": 3, "4-60": 3}
    assert [n for n, _ in ranges(np.zeros(2))] == ["0"]


# -- data ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three images of 40 x 30."""
    for n in range(3):
        Image.fromarray(noise(30, 40, seed=n)).save(tmp_path / f"a{n}.png")
    return tmp_path


def rows(folder, split="train", **options):
    return list(points(str(folder), **options).split(split).to_list())


def test_annotations_in_the_forms_that_people_have(folder):
    (folder / "a0.csv").write_text("x,y\n1,2\n39.5,30\n")
    (folder / "a1.json").write_text('{"points": [{"x": 3, "y": 4}]}')
    np.save(folder / "a2.npy", np.full((15, 20), 0.01, np.float32))
    given = rows(folder)
    assert [row["points"] for row in given] == [[[1, 2], [39.5, 30]], [[3, 4]], None]
    assert np.sum(given[2]["density"]) == pytest.approx(3)
    for file in folder.glob("a?.*[!g]"):
        file.unlink()
    (folder / "points.csv").write_text("image,x,y\na0.png,5,6\na1.png,,\na0.png,7,8\na2.png,1,1\n")
    assert [row["points"] for row in rows(folder)] == [[[5, 6], [7, 8]], [], [[1, 1]]], "an image without any is empty"
    (folder / "points.csv").rename(folder / "counts.csv")
    (folder / "counts.csv").write_text("image,count\na0,5\na1.png,0\na2.png,7.5\n")
    assert [row["count"] for row in rows(folder)] == [5, 0, 7.5]
    (folder / "counts.csv").unlink()
    assert list(rows(folder)[0]) == ["image"], "photographs without any annotation"


def test_annotations_of_shanghaitech_and_ucf_qnrf(tmp_path):
    where = np.array([[1.5, 2.5], [20.0, 10.0]])
    for split, name in (("train_data", "images"), ("test_data", "images")):
        (tmp_path / "shanghai" / split / name).mkdir(parents=True)
        (tmp_path / "shanghai" / split / "ground_truth").mkdir()
        Image.fromarray(noise(30, 40)).save(tmp_path / "shanghai" / split / name / "IMG_1.jpg")
        info = np.empty((1, 1), object)
        info[0, 0] = {"location": where if split == "train_data" else np.zeros((0, 2)), "number": len(where)}
        savemat(tmp_path / "shanghai" / split / "ground_truth" / "GT_IMG_1.mat", {"image_info": info})
    data = points(str(tmp_path / "shanghai"))
    assert data.split("train")["points"][0] == where.tolist() and data.split("test")["points"][0] == []
    (tmp_path / "ucf" / "Train").mkdir(parents=True)
    Image.fromarray(noise(30, 40)).save(tmp_path / "ucf" / "Train" / "img_0001.jpg")
    savemat(tmp_path / "ucf" / "Train" / "img_0001_ann.mat", {"annPoints": where})
    assert points(str(tmp_path / "ucf")).split("train")["points"][0] == where.tolist()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a1.csv", "x,y\n1,2\n41,3\n", r"outside its image \(row 2: a1.csv, line 3: \(41, 3\), and a1.png has 40 x 30"),
        ("a1.csv", "1,2\n3,red\n", "not two numbers .row 2: a1.csv, line 2: '3, red'"),
        ("a1.json", "[[1, 2], [3]]", "not pairs of numbers .row 2: a1.json"),
        ("a1.json", "[[1, 2], ", "cannot be read .row 2: a1.json"),
        ("a1.json", '{"heads": 3}', "without points or a count .row 2: a1.json"),
        ("a1.mat", {"other": np.zeros(3)}, r"a .mat without annotation \(row 2: a1.mat has 'other', and neither"),
        ("a1.mat", b"no .mat", "cannot be read .row 2: a1.mat"),
        ("a1.npy", np.full((3, 3), -1.0), "not height x width of numbers from 0 .row 2: a1.npy"),
        ("points.csv", "image,x,y\na0.png,1,1\na1.png,50,1\na2.png,1,1\n", "row 2: points.csv, line 3: .50, 1."),
        ("points.csv", "image,x,y\na0.png,1,1\na2.png,1,1\n", "without annotation .row 2: a1.png is not in points.csv"),
        ("points.csv", "image,x\na0.png,1\n", "points.csv has no column 'y'"),
        ("points.json", "{", "cannot be read: points.json: not JSON: expecting"),
        (
            "points.json",
            '{"a0.png": 1, "a1.png": "x", "a2.png": []}',
            "without points or a count .row 2: points.json, a1.png",
        ),
        ("", "", "an image without annotation .row 2: a1.png"),
    ],
)
def test_bad_annotations_are_named_by_file_and_row(folder, name, content, said):
    for other in ("a0", "a2") if not name.startswith("points") else ():
        (folder / f"{other}.json").write_text("[[1, 1]]")
    if isinstance(content, dict):
        savemat(folder / name, content)
    elif isinstance(content, np.ndarray):
        np.save(folder / name, content)
    elif name:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        rows(folder)


def test_points_near_an_image_are_moved_to_its_edge_where_that_is_asked(folder):
    (folder / "points.json").write_text(json.dumps({f"a{n}.png": [[41, -0.5]] for n in range(3)}))
    with pytest.raises(DataError, match="3 a point outside its image"):
        rows(folder)
    assert rows(folder, near=1.0)[0]["points"] == [[40, 0]]
    with pytest.raises(UsageError, match="near=-1"):
        points(str(folder), near=-1)
    with pytest.raises(UsageError, match="no folder nowhere"):
        points("nowhere")


def test_rows_that_models_cannot_read_are_named(folder):
    whole = (folder / "a0.png").read_bytes()
    bad = [
        {"image": {"bytes": whole[: len(whole) // 2], "path": "cut.png"}, "points": []},
        {"image": {"bytes": whole, "path": "a0.png"}, "points": [[1, 1], [1, 31]]},
        {"image": np.zeros((8, 64), np.uint8), "points": []},
        {"image": np.zeros((16, 16), np.uint8), "count": -1},
        {"image": np.zeros((16, 16), np.uint8), "points": [[1, 2]]},
    ]
    with pytest.raises(UnreadableRows) as caught:
        Counting().preparer(None, None, sigma=2.0, least=2)(bad)
    faults = [f"{e['fault']} | {e['fault'].where}" for e in caught.value.examples if "fault" in e]
    assert "cut.png" in faults[0] and "cannot be opened" in faults[0]
    assert faults[1] == "a point outside its image | a0.png: point 2 at (1, 31), and the image has 40 x 30 pixels"
    assert faults[2] == "a map smaller than 2 x 2 cells | the image has 64 x 8 pixels"
    assert "a count is a number from 0, not -1" in faults[3] and len(faults) == 4


def test_pasted_digits_have_a_digit_at_each_point():
    data = pasted_digits(canvas=32, most=3, train=8, validation=1, test=2)
    for row in data.split("train").to_list():
        image = np.asarray(row["image"])
        assert image.shape == (32, 32) and (image.max() > 0) == bool(row["points"])
        for x, y in row["points"]:
            assert image[int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4].max() > 100
    assert data.split("train")[0]["image"] != pasted_digits(32, 3, 8, 1, 2, seed=1).split("train")[0]["image"]
    with pytest.raises(UsageError, match="canvas=8"):
        pasted_digits(canvas=8)


def test_cells_are_found_by_their_catalogue_entry(tmp_path, monkeypatch):
    (tmp_path / "cell_counting").mkdir()
    where = np.array([[0, 1, 2], [2, 5, 6], [2, 7, 7]], np.int16)
    file = tmp_path / "cell_counting" / "cells.npz"
    np.savez(file, image=noise(4, 16, 16), dots=where, count=np.array([1, 0, 2, 0]))
    data = kdhub.open_data({"source": f"dots:{file}", "options": {"train": 2, "validation": 1}})
    found = {tuple(map(tuple, row["points"])) for s in data.splits for row in data.split(s).to_list()}
    assert found == {((2.5, 1.5),), (), ((6.5, 5.5), (7.5, 7.5))}
    np.savez(file, image=noise(4, 16, 16), dots=np.array([[0, 1, 16]]))
    with pytest.raises(DataError, match=r"cells.npz, row 1 of dots: \[0, 1, 16\] lies outside"):
        kdhub.open_data({"source": f"dots:{file}", "options": {"train": 2, "validation": 1}}).split("train")


def test_rows_without_a_count_are_refused_where_they_are_scored(folder):
    student = Counter({"network": "csrnet", "front": [2, "M", 2, "M", 2, "M"], "back": [2]})
    from kdhub.evaluation.evaluator import student_encoder

    task = Counting()
    with pytest.raises(DataError, match="has none of the columns points, density, count to score against"):
        task.outputs(student_encoder(task, student), points(str(folder)), "train")
