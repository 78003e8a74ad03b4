"""Items found by queries: rows with sub-pseudo labels of any data set, and a set with known truth made of digits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from kdhub import open_data, open_task, open_teacher
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import DataError, UsageError
from kdhub.rows import Rows
from kdhub.signals.store import row_key
from kdhub.signals.stored import stored_signals
from kdhub_vision.subconcepts.labels import Labelling, labelled
from kdhub_vision.videos.clips import packed

logger = logging.getLogger("kdhub")

AT_ONCE = 1000
TASKS = {"clip": "video-classification", "image": "image-classification", "text": "text-classification"}
"""Column -> the task of a teacher that reads it."""
CLEAN, TEST = 60, 697
"""Digits of the splits `clean` and `test`; `train` is made of the others."""


def sub_pseudo(
    argument: str,
    *,
    teacher: Any = None,
    task: str | None = None,
    split: str = "train",
    group: str | None = None,
    options: Mapping[str, Any] | None = None,
    **labelling: Any,
) -> Data:
    """`sub-pseudo:DATA`: one split of another data set, its weak labels replaced by sub-pseudo labels (or by those of a
    baseline), for methods that learn from labels. Rows keep their columns, and have `weak` and `predicted` as well;
    those without a label are left out. Clips, images and texts.

    Args:
        argument: the data set, as `--data` takes it; its `label` is the weak one.
        teacher: a text, or a mapping as in a recipe; of the same classes.
        task: of the teacher; by the columns of the rows if None.
        group: a column that says what belongs together (a video, a page); its rows must have one weak label.
        options: of the other data set.
        labelling: see `kdhub_vision.subconcepts.labels.Labelling`.

    Raises:
        UsageError: no teacher, no such split, or options out of their range. DataError: weak labels that are not among
            the teacher's classes, or several in one group.
    """
    from kdhub.recipes.recipe import explain

    if teacher is None:
        raise UsageError(
            f"sub-pseudo:{argument} needs a model that says what each item looks like (teacher=None)",
            hint="options: {teacher: {source: recipe:NAME}}",
        )
    try:
        how = Labelling(**labelling)
    except ValidationError as error:
        raise UsageError(f"sub-pseudo:{argument}: {'; '.join(explain(error, Labelling))}") from error
    data = open_data(argument, options=options)
    if split not in data.splits:
        raise UsageError(f"sub-pseudo:{argument}: there is no split {split!r}, only {', '.join(data.splits)}")
    columns = data.split(split).column_names
    task = task or next((of for column, of in TASKS.items() if column in columns), None)
    if task is None or "label" not in columns:
        raise DataError(
            f"sub-pseudo:{argument}: split {split} needs a column label, and one of {', '.join(TASKS)}; it has "
            f"{', '.join(columns)}",
            hint="map them: options: {columns: {OURS: THEIRS}}",
        )
    model = open_teacher(teacher, task)

    def rows(name: str) -> Iterator[dict[str, Any]]:
        table, opened = data.split(name), open_task(task)
        where = f"{data.name}, split {name!r}"
        if group is not None:
            _one_label_a_group(table, group, where)
        try:
            read = Rows.build(table, opened.preparer(None, model), row_key).readable(where)
        except DataError as error:
            raise DataError(f"{where}, read by the teacher: {error.message}", hint=error.hint) from error
        logits, classes = stored_signals(model, read, "logits"), model.classes
        parts = np.array_split(np.arange(len(read)), -(-len(read) // AT_ONCE))
        weak = np.array([example["label"] for part in parts for example in read[part]])
        given = np.concatenate([np.asarray(logits[part]["logits"], np.float32) for part in parts])
        made, labels = labelled(weak, given, classes, how)
        logger.info("sub-pseudo: %d labels for %d of %d rows", len(made.names), (labels >= 0).sum(), len(labels))
        for row, label, w, t in zip(named_rows(read.table), labels, weak, given.argmax(1)):
            if label >= 0:
                yield {**row, "label": made.names[label], "weak": classes[w], "predicted": classes[t]}

    key = {"teacher": dict(model.identity_of("logits")), "how": how.model_dump(), "group": group, "version": 1}
    return data.remade(f"sub-pseudo:{argument}", rows, [split], key=key)


def _one_label_a_group(table: Any, group: str, where: str) -> None:
    """
    Raises:
        DataError: no such column, or a group with several weak labels.
    """
    if group not in table.column_names:
        raise DataError(f"{where} has no column {group!r}, only {', '.join(table.column_names)}")
    first: dict[Any, Any] = {}
    sizes: Counter[Any] = Counter()
    for number, row in enumerate(named_rows(table.select_columns([group, "label"])), 1):
        name, label = row[group], row["label"]
        if first.setdefault(name, label) != label:
            raise DataError(
                f"{where}, row {number}: {group} {name!r} has the weak labels {first[name]!r} and {label!r}",
                hint="a weak label is of the whole group; leave out `group` if yours are not",
                rows=[number],
            )
        sizes[name] += 1
    if alone := sum(many == 1 for many in sizes.values()):
        logger.warning(
            "%s: %d of %d groups have one item: their weak label is of that item alone", where, alone, len(sizes)
        )


def query_videos(
    *,
    videos: int = 500,
    clips: int = 6,
    shown: float = 0.5,
    noise: float = 0.2,
    form: Literal["image", "clip"] = "image",
    frames: int = 4,
    views: int = 1,
    seed: int = 0,
) -> Data:
    """Videos under ten queries, made of scikit-learn's digits, with what their clips show.

    A video of query w has `clips`; each shows the digit w with the probability `shown`, else one of its context, the
    digits w + 1 and w + 3 (modulo 10), moved by up to a pixel and with noise. `train` has them with the query as
    `label`, `video`, and `digit`, which is for controls alone; `clean` has 60 other digits, six of each; `test` 697.

    Args:
        videos: of `train`; as many of each query, or one more.
        noise: standard deviation, of 0 to 1.
        form: `image`, a frame of 8 x 8 pixels a clip; or `clip`, in which the digit crosses 12 x 12 pixels.
        frames: of a clip.
        views: of each digit of `clean`; all but the first are moved and have noise, as clips.

    Raises:
        UsageError: numbers out of their range.
    """
    if videos < 10 or clips < 1 or frames < 2 or views < 1 or not (0 <= shown <= 1 and 0 <= noise <= 1):
        raise UsageError(
            f"query-videos: videos must be at least 10, clips and views 1, frames 2, and shown and noise 0 to 1 "
            f"(videos={videos}, clips={clips}, views={views}, frames={frames}, shown={shown}, noise={noise})"
        )
    if form not in ("image", "clip"):
        raise UsageError(f"query-videos: form is image or clip (form={form!r})")

    def pools() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = np.random.default_rng([seed, 0]).permutation(len(found.target))
        labels = found.target[order]
        clean = np.concatenate([np.flatnonzero(labels == c)[: CLEAN // 10] for c in range(10)])
        others = np.setdiff1d(np.arange(len(order)), clean)
        return {"clean": clean, "test": others[:TEST], "train": others[TEST:]}, labels, found.images[order] / 16

    def looks(image: np.ndarray, rng: np.random.Generator, plain: bool = False) -> dict[str, Any]:
        """Columns of a row that shows an image."""
        x = image if plain else np.roll(image, rng.integers(-1, 2, 2), (0, 1))
        x = x if form == "image" else _crossing(x, frames, rng)
        x = x if plain else np.clip(x + rng.normal(0, noise, x.shape), 0, 1)
        shown_as = np.rint(255 * x).astype(np.uint8)
        return {"image": shown_as.tolist()} if form == "image" else {"clip": packed(shown_as)}

    def labelled_rows(split: str, times: int = 1) -> Iterator[dict[str, Any]]:
        (at, labels, images), rng = pools(), np.random.default_rng([seed, 1])
        for view in range(times):
            for n in at[split]:
                yield {**looks(images[n], rng, plain=not view), "label": int(labels[n]), "video": f"{split}-{n}"}

    def web() -> Iterator[dict[str, Any]]:
        (at, labels, images), rng = pools(), np.random.default_rng([seed, 2])
        of = [at["train"][labels[at["train"]] == c] for c in range(10)]
        for video in range(videos):
            query = video % 10
            for _ in range(clips):
                digit = query if rng.random() < shown else (query + int(rng.choice([1, 3]))) % 10
                seen = looks(images[rng.choice(of[digit])], rng)
                yield {**seen, "label": query, "video": f"video-{video:04}", "digit": digit}

    key = {
        "videos": videos, "clips": clips, "shown": shown, "noise": noise, "form": form, "seed": seed, "version": 1,
        "views": views, **({"frames": frames} if form == "clip" else {}),
    }  # fmt: skip
    splits = {"train": web, "clean": lambda: labelled_rows("clean", views), "test": lambda: labelled_rows("test")}
    return Data.from_rows("query-videos", splits, key=key, licence="cc-by-4.0")


def _crossing(image: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 1, 12, 12): an image of 8 x 8 pixels moving from one place to another."""
    start, end = rng.integers(0, 5, (2, 2))
    made = np.zeros((frames, 1, 12, 12))
    for n in range(frames):
        y, x = np.rint(start + (end - start) * n / (frames - 1)).astype(int)
        made[n, 0, y : y + 8, x : x + 8] = image
    return made
