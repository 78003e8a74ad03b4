"""A teacher's signals of rows: who is asked for what, under which key they stand, and when they are computed anew."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors import safe_open

from kdhub.files import home
from kdhub.rows import Rows
from kdhub.signals import stored
from kdhub.signals.store import Field, SignalStore, row_key
from kdhub.signals.stored import Joined, Recomputed, Stored, fields_of, measured_signals, stored_signals
from kdhub.teacher import Teacher

pytestmark = pytest.mark.usefixtures("isolated")


class Times(Teacher):
    """Gives its factor times a row's number; counts the rows it was asked for."""

    group_rows = 4

    def __init__(self, factor, width=2, *, module=None, members=(), name="times"):
        super().__init__(str(factor))
        self.factor, self.width, self.module, self.members, self.name, self.asked = (
            factor,
            width,
            module,
            members,
            name,
            [],
        )

    @property
    def identity(self):
        return {"name": self.name, "factor": self.factor}

    def layout(self, kind):
        return {kind: (self.width,)}

    def signals(self, examples, kind):
        self.asked += [e["n"] for e in examples]
        return {kind: np.array([[self.factor * e["n"]] * self.width for e in examples], np.float32)}

    def joined(self, kind, given):
        return {kind: sum(next(iter(one.values())) for one in given)}

    def parts(self, kind):
        return [(member, f"{kind}-of-{member.factor}") for member in self.members]


@pytest.fixture
def rows():
    from datasets import Dataset

    def make(n=10, first=0):
        def prepare(rows):
            return [{**r, "content": str(r["n"]).encode(), "length": 1 + r["n"], "cut": False} for r in rows]

        return Rows.build(Dataset.from_dict({"n": list(range(first, first + n))}), prepare, row_key)

    return make


def test_what_is_missing_is_computed_and_what_is_there_is_read(rows):
    teacher = Times(3)
    first = stored_signals(teacher, rows(6), "logits")
    assert (first.report.computed, first.report.found, first.report.calls) == (6, 0, 2) and len(first) == 6
    assert first[np.array([4, 1])]["logits"].tolist() == [[12, 12], [3, 3]] and first.parts == [first]
    assert first[np.array([0])]["logits"].dtype == np.float16
    more = stored_signals(teacher, rows(4, first=4), "logits")
    assert (more.report.computed, more.report.found) == (2, 2) and sorted(teacher.asked) == list(range(8))
    assert more[np.arange(4)]["logits"][:, 0].tolist() == [12, 15, 18, 21]


@pytest.mark.parametrize("changed", ["identity", "kind", "dtype"])
def test_another_teacher_signal_or_type_is_another_store(rows, changed):
    stored_signals(Times(3), rows(), "logits")
    teacher = Times(3, name="other" if changed == "identity" else "times")
    again = stored_signals(
        teacher, rows(), "features" if changed == "kind" else "logits",
        dtype="float32" if changed == "dtype" else "float16",
    )  # fmt: skip
    assert (again.report.computed, again.report.found) == (10, 0) and len(teacher.asked) == 10
    kind = "features" if changed == "kind" else "logits"
    assert again[np.array([5])][kind].dtype == (np.float32 if changed == "dtype" else np.float16)


def test_where_they_stand_and_in_which_groups(rows):
    teacher = Times(3)
    given = stored_signals(teacher, rows(), "logits")
    (folder,) = (home() / "signals").iterdir()
    assert given.store.folder == folder and given.store.group_rows == 4
    assert SignalStore.load(folder).key == {"teacher": {"name": "times", "factor": 3}, "signal": "logits"}
    sizes = []
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "numpy") as chunk:
            sizes.append(len(chunk.get_tensor("keys")))
    assert sorted(sizes) == [2, 4, 4]
    assert teacher.asked[:4] == [9, 8, 7, 6], "the longest rows first, so that too long ones show at once"


def test_fill_is_told_of_ranks_threads_and_how_it_goes(rows, monkeypatch):
    told = {}
    whole = SignalStore.fill

    def fill(self, keys, lengths, compute, **how):
        told.update(how)
        return whole(self, keys, lengths, compute)

    monkeypatch.setattr(SignalStore, "fill", fill)
    monkeypatch.setattr(stored, "rank", lambda: 2)
    monkeypatch.setattr(stored, "world_size", lambda: 3)
    monkeypatch.setattr(stored, "_progress", lambda what: what)
    monkeypatch.setattr(Times, "concurrent_groups", 5)
    stored_signals(Times(3), rows(), "logits")
    assert told == {"rank": 2, "world_size": 3, "workers": 5, "progress": "teacher logits"}


def test_members_are_stored_apart_and_joined_when_they_are_read(rows):
    inner = Times(0, members=(Times(10), Times(100)), name="inner")
    outer = Times(0, members=(Times(1), inner), name="outer")
    stored_signals(outer.members[0], rows(4), "logits-of-1")
    given = stored_signals(outer, rows(), "logits", dtype="float32")
    assert isinstance(given, Joined) and [type(m) for m in given.members] == [Stored, Joined] and len(given) == 10
    assert len(given.parts) == 3 and all(isinstance(part, Stored) for part in given.parts)
    assert given[np.array([3, 2])]["logits"].tolist() == [[333, 333], [222, 222]]
    signals = sorted(p.store.key["signal"] for p in given.parts)
    assert signals == ["logits-of-0-of-10", "logits-of-0-of-100", "logits-of-1"]
    assert {part.store.fields[0].dtype for part in given.parts} == {"float32"}
    again = stored_signals(outer, rows(12), "logits", dtype="float32")
    again.parts[1].report.damaged.append("a")
    again.parts[2].report.damaged.append("b")
    for n, part in enumerate(again.parts):
        part.report.seconds = 2.0**n
    report = again.report
    assert (report.computed, report.found, report.calls, report.seconds) == (6, 30, 3, 7.0)
    assert report.damaged == ["a", "b"]


def test_large_signals_are_only_stored_where_computing_them_costs_more(rows, monkeypatch):
    at_hand, heavy = torch.nn.Linear(1, 1), stored.HEAVY // 2  # float16
    local, far = Times(3, heavy + 1, module=at_hand), Times(3, heavy + 1, name="far")
    anew = measured_signals(local, rows(), "logits")
    assert isinstance(anew, Recomputed) and len(anew) == 10 and not (home() / "signals").exists()
    assert anew[np.array([4, 2])]["logits"][:, 0].tolist() == [12, 6] and local.asked == [4, 2]
    assert anew[np.array([4])]["logits"][:, 0].tolist() == [12] and local.asked == [4, 2, 4], "each time"
    assert isinstance(measured_signals(far, rows(2), "logits"), Stored), "behind an API each call costs"
    fits = Times(3, heavy, module=at_hand, name="fits")
    assert isinstance(measured_signals(fits, rows(2), "logits"), Stored)
    assert isinstance(measured_signals(fits, rows(2), "logits", dtype="float32"), Recomputed)
    small = measured_signals(Times(3), rows(2), "logits", dtype="float32")
    assert small[np.array([1])]["logits"].dtype == np.float32
    asked = []
    own = measured_signals(fits, rows(3), "logits", stored=lambda rows, kind: asked.append((len(rows), kind)) or "own")
    assert own == "own" and asked == [(3, "logits")]


def test_fields_of_a_layout():
    class Many(Times):
        def layout(self, kind):
            own = Field("packed", "uint8", (3,))
            return {"flat": (4,), "tokens": (None, 2, 5), "texts": (None,), "one": (), "packed": own}

    assert fields_of(Many(1), "logits") == [
        Field("flat", "float16", (4,)), Field("tokens", "float16", (2, 5), True), Field("texts", "float16", (), True),
        Field("one", "float16", ()), Field("packed", "uint8", (3,)),
    ]  # fmt: skip
    assert [f.dtype for f in fields_of(Many(1), "logits", "int8")] == ["int8"] * 4 + ["uint8"]


def test_a_fill_says_how_far_it_is_every_few_seconds(monkeypatch, caplog):
    clock = [100.0]
    monkeypatch.setattr(stored.time, "monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO, "kdhub")

    def after(seconds, done):
        clock[0] += seconds
        say(done, 40)

    say = stored._progress("teacher logits")
    after(4.9, 5)
    assert not caplog.messages
    after(0.1, 10)
    after(4.9, 15)
    after(0.1, 20)
    after(9.0, 40)
    assert caplog.messages == [
        "teacher logits  10/40  2 rows/s  15 s left",
        "teacher logits  20/40  2 rows/s  10 s left",
    ]
    monkeypatch.setattr(stored, "rank", lambda: 1)
    after(9.0, 30)
    assert len(caplog.messages) == 2, "one rank speaks"
