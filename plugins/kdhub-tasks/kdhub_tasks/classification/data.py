"""Data sets of kdhub-logits: digits, which every installation has, and any set with its labels changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kdhub import open_data
from kdhub.data.dataset import Data
from kdhub.data.prepare import named_rows
from kdhub.errors import UsageError

SPLITS = {"train": slice(0, 1200), "validation": slice(1200, 1400), "test": slice(1400, None)}
"""Of the 1797 rows, shuffled with seed 0."""


def digits(form: Literal["image", "features"] = "image", turned: int = 0) -> Data:
    """1797 handwritten digits of 8 x 8 pixels, 0 to 16 (UCI, as scikit-learn has it): train 1200, validation 200,
    test 397.

    Args:
        form: `image`, bytes of 0 to 255, or `features`, 64 numbers a row.
        turned: 0, 90, 180 or 270 degrees, against the clock: inputs that a network of upright digits does not know.
    """
    if form not in ("image", "features"):
        raise UsageError(f"digits has the forms image and features, not {form!r}")
    if turned not in (0, 90, 180, 270):
        raise UsageError(f"digits are turned by 0, 90, 180 or 270 degrees, not {turned!r}")

    def rows(part: slice) -> Iterator[dict[str, Any]]:
        from sklearn.datasets import load_digits

        loaded = load_digits()
        for i in np.random.default_rng(0).permutation(len(loaded.target))[part]:
            image = np.rot90(loaded.images[i], turned // 90)
            if form == "image":
                yield {"image": (image * 15.9375).astype(int).tolist(), "label": int(loaded.target[i])}
            else:
                yield {"features": image.ravel().tolist(), "label": int(loaded.target[i])}

    splits = {name: (lambda part=part: rows(part)) for name, part in SPLITS.items()}
    key = {"form": form, "version": 1} | ({"turned": turned} if turned else {})
    return Data.from_rows("digits", splits, key=key, licence="cc-by-4.0")


def labels(
    argument: str,
    *,
    groups: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]] | None = None,
    imbalance: float | None = None,
    per_class: int | None = None,
    noise: float = 0.0,
    noise_kind: Literal["symmetric", "random", "pair"] = "symmetric",
    labelled: int | None = None,
    unlabelled: int | None = None,
    seed: int = 0,
    split: str = "train",
    options: Mapping[str, Any] | None = None,
) -> Data:
    """Another data set with fewer rows, wrong labels or missing labels in one split; the others are as they were, but
    for `groups`.

    `groups` makes one class of several, in all splits: `{even: [0, 2, 4, 6, 8], odd: [1, 3, 5, 7, 9]}`, or a list of
    lists for classes that are numbers. Rows of no group are left out. The column `subclass` says which of its group a
    row was, by position; it is no part of what models are taught by, but for controls.

    Then in this order, each drawn again from the seed:

    1. `per_class`: at most so many rows of each class. `imbalance` r: a long tail, int(m r^(-c/(C-1))) rows of the c-th
       of C classes, where m is `per_class` or the size of the smallest class.
    2. `noise`: each label is replaced with this probability: `symmetric` by another class, `random` by any class,
       `pair` by the next one.
    3. `labelled`: only so many rows of each class keep their label, the others have none (-1 or null).
       `unlabelled`: of the rows without a label only so many stay.

    Args:
        argument: the data set, as `--data` takes it.
        split: the one that is changed.
        options: of the other data set.
    """
    if not 0 <= noise <= 1 or (imbalance is not None and imbalance < 1):
        raise UsageError(f"labels:{argument}: noise is from 0 to 1 and imbalance at least 1")
    if noise_kind not in ("symmetric", "random", "pair"):
        raise UsageError(f"labels:{argument}: noise_kind is symmetric, random or pair, not {noise_kind!r}")
    for name, value in (("per_class", per_class), ("labelled", labelled), ("unlabelled", unlabelled)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise UsageError(f"labels:{argument}: {name} is a number of rows, not {value!r}")
    data = open_data(argument, options=options)
    if split not in data.splits:
        raise UsageError(f"labels:{argument}: there is no split {split!r}, only {', '.join(data.splits)}")

    places = None if groups is None else grouped(groups, f"labels:{argument}")

    def changed(name: str) -> Iterator[dict[str, Any]]:
        table = data.split(name)
        if "label" not in table.column_names:
            raise UsageError(f"labels:{argument}: split {name!r} has no column 'label'")
        given = [row["label"] for row in named_rows(table.select_columns(["label"]))]
        rows, subclasses = range(len(table)), []
        if places is not None:
            rows = [i for i, v in enumerate(given) if v is None or v == -1 or v in places]
            found = [places.get(given[i], (given[i], -1)) for i in rows]
            given, subclasses = [label for label, _ in found], [{"subclass": at} for _, at in found]
        kept, new = np.arange(len(given)), given
        if name == split:
            kept, new = change_labels(
                given, imbalance=imbalance, per_class=per_class, noise=noise, noise_kind=noise_kind,
                labelled=labelled, unlabelled=unlabelled, seed=seed,
            )  # fmt: skip
        chosen = table.select([int(rows[i]) for i in kept])
        for i, row, label in zip(kept, named_rows(chosen), new):
            yield {**row, "label": label, **(subclasses[i] if subclasses else {})}

    def made(name: str) -> Iterator[dict[str, Any]]:
        return named_rows(data.split(name)) if name != split and places is None else changed(name)

    said = {"imbalance": imbalance, "per_class": per_class, "noise": noise, "noise_kind": noise_kind, "version": 2}
    said |= {"labelled": labelled, "unlabelled": unlabelled, "seed": seed}
    said |= {} if groups is None else {"groups": groups}
    sources = {name: (lambda name=name: made(name)) for name in data.splits}
    key = {"of": {name: data.fingerprint(name) for name in data.splits}, **said}
    return Data.from_rows(f"labels:{argument}", sources, key=key, licence=data.licence)


def grouped(groups: Any, where: str) -> dict[Any, tuple[Any, int]]:
    """Label -> the class that it is a part of, and its position there.

    Raises:
        UsageError: no lists of labels, or a label in two of them.
    """
    named = groups.items() if isinstance(groups, Mapping) else enumerate(groups)
    lists = [(name, labels) for name, labels in named if isinstance(labels, list | tuple) and labels]
    places = {label: (name, at) for name, labels in lists for at, label in enumerate(labels)}
    if len(lists) < len(groups) or len(places) < sum(len(labels) for _, labels in lists):
        raise UsageError(
            f"{where}: groups {groups!r} are not lists of labels, each in one of them",
            hint="groups: {even: [0, 2, 4, 6, 8], odd: [1, 3, 5, 7, 9]}",
        )
    return places


def change_labels(
    given: list[Any],
    *,
    imbalance: float | None = None,
    per_class: int | None = None,
    noise: float = 0.0,
    noise_kind: str = "symmetric",
    labelled: int | None = None,
    unlabelled: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, list[Any]]:
    """Which rows stay, in their order, and the label of each; see `labels`. -1 stands for no label, None for names."""
    of_tail, of_noise, of_few = (np.random.default_rng([seed, n]) for n in range(3))
    nothing = -1 if all(v is None or isinstance(v, int) for v in given) else None
    classes = sorted({v for v in given if v is not None and v != -1}, key=lambda v: (isinstance(v, str), v))
    index = {value: i for i, value in enumerate(classes)}
    y = np.array([index.get(v, -1) for v in given])
    keep = np.ones(len(y), bool)
    if imbalance is not None or per_class is not None:
        counts = np.bincount(y[y >= 0], minlength=len(classes))
        most = per_class if per_class is not None else int(counts.min())
        for c in range(len(classes)):
            share = (imbalance or 1.0) ** (-c / max(1, len(classes) - 1))
            rows = of_tail.permutation(np.flatnonzero(y == c))
            keep[rows[int(most * share + 1e-9) :]] = False
    wrong = (of_noise.random(len(y)) < noise) & (y >= 0)
    step = {"symmetric": of_noise.integers(1, max(2, len(classes)), len(y)), "pair": np.ones(len(y), int)}
    step["random"] = of_noise.integers(0, max(1, len(classes)), len(y))
    y = np.where(wrong, (y + step[noise_kind]) % max(1, len(classes)), y)
    if labelled is not None:
        lasting = np.zeros(len(y), bool)
        for c in range(len(classes)):
            lasting[of_few.permutation(np.flatnonzero(keep & (y == c)))[:labelled]] = True
        y = np.where(lasting, y, -1)
    if unlabelled is not None:
        rows = of_few.permutation(np.flatnonzero(keep & (y < 0)))
        keep[rows[unlabelled:]] = False
    kept = np.flatnonzero(keep)
    return kept, [classes[y[i]] if y[i] >= 0 else nothing for i in kept]
