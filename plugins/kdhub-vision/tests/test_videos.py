"""Clips and videos: what is measured of them, how files are cut, and which files are refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
from kdhub_tasks.classification.task import Predictions
from kdhub_vision.videos import clips
from kdhub_vision.videos.task import ClipPredictions, montage

import kdhub
from kdhub.errors import DataError, UsageError

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from fake_hub import talked_to  # noqa: E402

TASK = "video-classification"


def film(path, frames, *, rate=10, spaced=1, size=16, level=None, codec="mpeg4", broken=None):
    """Write a video whose n-th frame has a level of its own; `spaced`: times of frames, in periods of the rate."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for n in range(frames):
            value = 16 * (n % 12) + 20 if level is None else level
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), value, np.uint8), format="rgb24")
            frame.pts = n * spaced
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if broken:
        path.write_bytes(path.read_bytes()[:broken])
    return path


def opened(folder, **options):
    return kdhub.open_data({"source": f"videos:{folder}", "options": {"frames": 4, "size": 8, **options}})


def cut(folder, **options):
    return [(row["video"], clips.read(row["clip"])) for row in opened(folder, **options).split("train").to_list()]


def test_videos_are_the_mean_of_up_to_ten_clips():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    made = ClipPredictions(np.log(p), np.array([0, 0, 1, 1]), ["a", "b"], videos=np.array(["x", "x", "y", "y"]))
    assert np.exp(made.of_videos.logits) == pytest.approx(np.array([[0.55, 0.45], [0.45, 0.55]]))
    assert made.of_videos.labels.tolist() == [0, 1] and made.of_videos.examples == 2
    many = np.log(np.where(np.arange(25)[:, None] % 2 == 0, [0.6, 0.4], [0.1, 0.9]))
    long = ClipPredictions(many, np.zeros(25, int), ["a", "b"], videos=np.array(["x"] * 25))
    taken = np.linspace(0, 24, 10).round().astype(int)
    assert np.exp(long.of_videos.logits[0, 0]) == pytest.approx(np.exp(many[taken, 0]).mean())
    mixed = ClipPredictions(np.log(p), np.array([0, 1, 1, 1]), ["a", "b"], videos=np.array(["x", "x", "y", "z"]))
    assert mixed.of_videos.labels.tolist() == [1, 1]  # of x nobody knows; y and z have one clip
    assert type(mixed.of_videos) is Predictions


def test_clips_in_all_forms_are_one():
    x = np.arange(2 * 3 * 5 * 4, dtype=np.uint8).reshape(2, 3, 5, 4)
    for value in (x, x.tolist(), x.transpose(0, 2, 3, 1), clips.packed(x), {"bytes": clips.packed(x)}):
        assert (clips.read(value) == x).all()
    assert clips.read(x[:, 0]).shape == (2, 1, 5, 4)
    for bad in (b"no array", x[0, 0], x / 255, x.astype(int) + 300, [[1], [1, 2]], None, clips.packed(x)[:-9]):
        with pytest.raises(DataError, match="a clip"):
            clips.read(bad)
    assert montage(np.arange(4, dtype=np.uint8)[:, None, None, None]).tolist() == [[0, 1], [2, 3]]


def test_videos_are_cut_once_and_mapped_afterwards(home, tmp_path, monkeypatch):
    film(tmp_path / "v" / "train" / "run" / "a.mp4", 11)
    film(tmp_path / "v" / "train" / "walk" / "b.mkv", 4, size=24)
    film(tmp_path / "v" / "test" / "run" / "c.avi", 8)
    data = opened(tmp_path / "v", colours="grey")
    rows = data.split("train").to_list()
    assert [(row["video"], row["label"]) for row in rows] == [("run/a.mp4", "run")] * 2 + [("walk/b.mkv", "walk")]
    first, second = (clips.read(row["clip"]) for row in rows[:2])
    assert first.shape == (4, 1, 8, 8)
    # Frames in their order, none twice: levels of 20, 36, 52, ... as far as the codec keeps them.
    levels = np.concatenate([first, second]).mean((1, 2, 3))
    assert levels == pytest.approx(20 + 16 * np.arange(8), abs=8)
    monkeypatch.setattr("kdhub_vision.videos.data.cut", None)  # nothing is decoded again
    assert len(opened(tmp_path / "v", colours="grey").split("train")) == 3


def test_rates_and_numbers_of_clips(home, tmp_path):
    film(tmp_path / "a.mp4", 24, rate=10)
    assert len(cut(tmp_path)) == 6
    found = cut(tmp_path, rate=5)
    assert len(found) == 3 and found[0][1].shape == (4, 3, 8, 8)
    levels = [clip.mean((1, 2, 3)) for _, clip in cut(tmp_path, clips=2)]
    assert levels[0][0] == pytest.approx(20, abs=8) and levels[1][0] == pytest.approx(16 * 8 + 20, abs=8)


def test_bad_videos(home, tmp_path):
    def refused(name, match, **options):
        with pytest.raises(DataError, match=match):
            opened(tmp_path / name, **options).split("train")

    film(tmp_path / "short" / "a.mp4", 8), film(tmp_path / "short" / "b.mp4", 3)
    refused("short", r"1 a video shorter than a clip \(row 3: b.mp4: 3 of 4 frames\)")
    film(tmp_path / "rate" / "a.mkv", 8, rate=25, spaced=3)
    refused("rate", r"a video with another rate than stated \(row 1: a.mkv: .* frames a second, and its header says")
    film(tmp_path / "slow" / "a.mp4", 8, rate=10)
    refused("slow", r"another rate than stated \(row 1: a.mp4: 10 frames a second, and the recipe takes 25", rate=25)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.mp4").write_text("this is no video")
    refused("text", r"a video that cannot be read \(row 1: a.mp4")
    import av

    (tmp_path / "sound").mkdir()
    with av.open(str(tmp_path / "sound" / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused("sound", r"a video without frames \(row 1: a.mp4")
    skipping = kdhub.open_data(
        {"source": f"videos:{tmp_path / 'short'}", "options": {"frames": 4, "size": 8}}
    ).with_options(on_bad_rows="skip")
    assert len(skipping.split("train")) == 2 and sum(skipping.skipped["train"].values()) == 1
    with pytest.raises(DataError, match="has no videos"):
        (tmp_path / "none").mkdir()
        opened(tmp_path / "none")
    with pytest.raises(UsageError, match=r"rate must be above 0 \(rate=0\)"):
        opened(tmp_path / "slow", rate=0)


def test_a_network_of_clips_learns_and_is_scored_by_clip_and_by_video(home, tmp_path, monkeypatch):
    """Dark and light videos: `supervised` reaches the task by its traits."""
    for n in range(3):
        film(tmp_path / "v" / "dark" / f"{n}.mp4", 8, level=30 + 10 * n)
        film(tmp_path / "v" / "light" / f"{n}.mp4", 4, level=180 + 10 * n)
    source = {"source": f"videos:{tmp_path / 'v'}", "options": {"frames": 4, "size": 8, "colours": "grey"}}
    run = kdhub.distill(
        {
            "task": TASK, "method": "supervised", "student": "resnet3d:width=4,stage1=1,stage2=1,stage3=1",
            "data": {"train": [source]},
            "options": {"epochs": 10, "batch_size": 3, "lr": 1e-2, "precision": "float32"},
            "evaluation": {"data": [source], "cost": False},
        },
        out=tmp_path / "run",
    )  # fmt: skip
    found = [m for m in run.report["measures"] if m["metric"] == "accuracy" and m["subject"] == "student"]
    by = {m.get("variant", {}).get("per", "clip"): (m["value"], m["examples"]) for m in found}
    assert by == {"clip": (1.0, 9), "video": (1.0, 6)}
    assert (run.folder / "plots" / "rows-clips.png").exists()
    with talked_to(monkeypatch):
        kdhub.publish(run.folder, "me/films", licence="mit")
        monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
        found = kdhub.verify("me/films", trust_recipe=True)  # the films are on this machine
    assert found.status == "verified" and {f.verdict for f in found.figures} == {"ok"}
