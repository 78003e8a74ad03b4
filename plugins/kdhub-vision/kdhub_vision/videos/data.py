"""`videos:FOLDER`: videos cut into clips, once; afterwards the clips are memory-mapped.

One folder a class, or all without classes in one; below `train`, `validation` and `test` where it has such. A row is a
clip: `clip`, the name of its `video`, and `label`. Frames are decoded one by one, and never more are held than a clip
has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from kdhub_tasks.classification.pictures import files_by_class, splits_in

from kdhub.data.dataset import Data
from kdhub.data.prepare import BadRow, Source
from kdhub.errors import UsageError
from kdhub.files import canonical_json
from kdhub.rows import Fault
from kdhub_vision.videos.clips import packed

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
OFF = 0.1
"""Share by which the rate of a video may differ from what is stated."""


@dataclass(frozen=True)
class Cutting:
    """How a video is cut.

    Attributes:
        frames: of a clip.
        size: pixels of its sides; the shorter side of a frame is brought to it, the longer one is cropped evenly.
        rate: frames a second that are taken; None for all.
        clips: of a video at most, evenly spaced; None for all.
        colours: `rgb` or `grey`.
    """

    frames: int = 8
    size: int = 32
    rate: float | None = None
    clips: int | None = None
    colours: str = "rgb"


class Clips(Source):
    """The clips of the videos of a split.

    Args:
        files: path relative to `root` -> class, or None.
    """

    def __init__(self, root: Path, files: Mapping[str, str | None], label: str, how: Cutting):
        self.root, self.files, self.label, self.how = root, dict(sorted(files.items())), label, how

    def columns(self) -> list[str]:
        return ["clip", "video"] if None in self.files.values() else ["clip", "video", "label"]

    def key(self) -> Mapping[str, Any]:
        """A file is the same as long as its size and time are."""
        digest = hashlib.sha256()
        for name in self.files:
            status = os.stat(self.root / name)
            digest.update(canonical_json([name, status.st_size, status.st_mtime_ns]))
        folder = {"folder": str(self.root.resolve()), "files": digest.hexdigest()}
        return {"kind": "videos", "version": 1, **folder, **asdict(self.how)}

    def record(self) -> dict[str, Any]:
        return {"kind": "videos", "folder": self.label, "files": len(self.files), **asdict(self.how)}

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        number = 0
        for name, label in self.files.items():
            try:
                for clip in cut(self.root / name, name, self.how):
                    number += 1
                    yield number, {"clip": packed(clip), "video": name} | ({} if label is None else {"label": label})
            except _Unfit as error:
                number += 1
                yield number, BadRow(error.fault)


class _Unfit(Exception):
    """A video that no clips can be cut from."""

    def __init__(self, cause: str, name: str, detail: str = ""):
        self.fault = Fault(cause, ": ".join(filter(None, (name, detail))))


def videos(
    argument: str, *, frames: int = 8, size: int = 32, rate: float | None = None, clips: int | None = None,
    colours: Literal["rgb", "grey"] = "rgb",
) -> Data:  # fmt: skip
    """The videos of a folder as clips; see this module, and `Cutting` for the options. Clips do not overlap.

    Raises:
        UsageError: no such folder, options out of their range, or PyAV is not installed. DataError: no video in it.
    """
    root, how = Path(argument).expanduser(), Cutting(frames, size, rate, clips, colours)
    if not root.is_dir():
        raise UsageError(f"no folder {argument}", hint="videos:FOLDER reads the videos in a folder")
    least = {"frames": 1, "size": 1, "clips": 1, "rate": 1e-3}
    if wrong := [n for n, low in least.items() if (value := getattr(how, n)) is not None and not value >= low]:
        said = ", ".join(f"{name}={getattr(how, name)}" for name in wrong)
        raise UsageError(f"videos:{argument}: {' and '.join(wrong)} must be above 0 ({said})")
    if colours not in ("rgb", "grey"):
        raise UsageError(f"videos:{argument}: colours is rgb or grey (colours={colours!r})")
    _av()
    sources = {
        split: Clips(folder, files_by_class(folder, given, ENDINGS, "videos"), given, how)
        for split, (folder, given) in splits_in(root, argument).items()
    }
    return Data(root.resolve().name, sources, ref=f"videos:{argument}")


def cut(path: Path, name: str, how: Cutting) -> Iterator[np.ndarray]:
    """The clips of a video: frames x channels x height x width.

    Raises:
        _Unfit: it cannot be read, has no frames, another rate than is stated, or fewer frames than a clip.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _Unfit("a video without frames", name)
            stated = container.streams.video[0].average_rate
            base = container.streams.video[0].time_base
            times = sorted(float(p.pts * base) for p in container.demux(video=0) if p.pts is not None and p.size)
        chosen = _chosen(times, stated and float(stated), name, how)
        with av.open(str(path)) as container:
            held: list[np.ndarray] = []
            for n, frame in enumerate(container.decode(video=0)):
                if n in chosen:
                    held.append(_pixels(frame, how))
                    if len(held) == how.frames:
                        yield np.stack(held)
                        held = []
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _Unfit("a video that cannot be read", name, str(error)[:80]) from error
    if held:
        raise _Unfit("a video that ends before its last frame", name)


def _chosen(times: list[float], stated: float | None, name: str, how: Cutting) -> frozenset[int]:
    """The numbers of the frames that are in a clip.

    Args:
        times: of all frames, in seconds, in order.
        stated: frames a second, by the file.
    """
    if not times:
        raise _Unfit("a video without frames", name)
    real = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else None
    if real and stated and abs(real / stated - 1) > OFF:
        raise _Unfit(
            "a video with another rate than stated", name,
            f"{real:.3g} frames a second, and its header says {stated:.3g}",
        )  # fmt: skip
    taken = list(range(len(times)))
    if how.rate:
        if real and real < how.rate * (1 - OFF):
            raise _Unfit(
                "a video with another rate than stated", name,
                f"{real:.3g} frames a second, and the recipe takes {how.rate:.3g}",
            )  # fmt: skip
        slots = np.floor((np.asarray(times) - times[0]) * how.rate + 1e-6)
        taken = np.unique(slots, return_index=True)[1].tolist()
    many = len(taken) // how.frames
    if not many:
        raise _Unfit("a video shorter than a clip", name, f"{len(taken)} of {how.frames} frames")
    some = np.unique(np.linspace(0, many - 1, min(many, how.clips or many)).round().astype(int))
    return frozenset(taken[n] for clip in some for n in range(clip * how.frames, (clip + 1) * how.frames))


def _pixels(frame: Any, how: Cutting) -> np.ndarray:
    """(channels, size, size) of a frame."""
    shorter = min(frame.width, frame.height)
    wide, high = (max(how.size, round(side * how.size / shorter)) for side in (frame.width, frame.height))
    kind = "gray" if how.colours == "grey" else "rgb24"
    x = frame.reformat(width=wide, height=high, format=kind).to_ndarray()
    top, left = (high - how.size) // 2, (wide - how.size) // 2
    x = x[top : top + how.size, left : left + how.size]
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


def _av() -> Any:
    """The module `av`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UsageError(
            "videos are decoded by PyAV, which is not installed", hint="pip install 'kdhub-vision[av]'"
        ) from error
    return av
