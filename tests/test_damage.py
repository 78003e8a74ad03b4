"""One changed byte in what outlives a run is noticed where it is used; what can be made again is."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdhub
from kdhub.errors import KdhubError, RunError, UntrustedError
from kdhub.files import changed, known_sha256, once, read_sealed, sealed, write_sealed
from kdhub.kept import keep, kept
from kdhub.recipes.run import Run
from kdhub.signals.store import SignalStore
from kdhub.training.engine import newest_checkpoint
from kdhub.training.execute import _damage


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("kdhub.verbs.publish._usage_problems", lambda *a: [])


def flip(path: Path, at: int = -1) -> None:
    """Change one byte, and nothing else that a careless look would see."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_seals(isolated, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("one")
    (tmp_path / "c").write_text("two")
    seals = sealed(tmp_path)
    assert set(seals) == {"a/b.txt", "c"} and changed(tmp_path, seals) == []
    flip(tmp_path / "c")
    (tmp_path / "a" / "b.txt").unlink()
    assert changed(tmp_path, seals) == ["a/b.txt", "c"] and changed(tmp_path, {"c": None}) == ["c"]


def test_a_digest_is_remembered_for_the_same_file_only(isolated, tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("one")
    first = known_sha256(path)
    with monkeypatch.context() as patched:
        patched.setattr("kdhub.files.TICK", 10**18)
        (changed_at_once := tmp_path / "y").write_text("one")
        assert known_sha256(changed_at_once) == first
        patched.setattr("kdhub.files.sha256_file", lambda path: "read again")
        assert known_sha256(changed_at_once) == "read again", "by its times it may have been changed since"
    monkeypatch.setattr("kdhub.files.TICK", 0)
    assert known_sha256(path) == first
    with monkeypatch.context() as patched:
        patched.setattr("kdhub.files.sha256_file", lambda path: pytest.fail("read again"))
        assert known_sha256(path) == first
    flip(path)
    assert known_sha256(path) != first


def test_a_folder_is_looked_at_again_when_anything_in_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("kdhub.files.TICK", 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("one")
    looked: list[tuple[str, ...]] = []

    @once
    def look(folder: Path, name: str, *how: str) -> None:
        looked.append((name, *how))
        if "bad" in how:
            raise UntrustedError("bad")

    look(tmp_path, "x"), look(tmp_path, "y"), look(tmp_path, "z", "otherwise")
    assert looked == [("x",), ("z", "otherwise")]
    for change in (
        lambda: (tmp_path / "a" / "b").write_text("three"),
        lambda: (tmp_path / "a" / "c").write_text(""),
        lambda: (tmp_path / "a" / "c").unlink(),
        lambda: (tmp_path / "d").symlink_to(tmp_path / "a" / "b"),
        lambda: (tmp_path / "a" / "b").write_text("fours"),
    ):
        change()
        look(tmp_path, "x")
    assert len(looked) == 7
    for _ in range(2):
        with pytest.raises(UntrustedError):
            look(tmp_path, "x", "bad")
    assert len(looked) == 9, "what was refused is looked at again"
    monkeypatch.setattr("kdhub.files.TICK", 10**18)
    (tmp_path / "a" / "b").write_text("fives")
    look(tmp_path, "x"), look(tmp_path, "x")
    assert len(looked) == 11, "by its times it may have been changed since"


def test_weights_that_a_run_keeps_are_those_that_it_wrote(tmp_path):
    whole = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(7, dtype=torch.int64)}
    keep(whole, path := tmp_path / "new" / "x.safetensors")
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(RunError, match="cannot be used"):
            kept(path)
    path.write_bytes(content)
    assert all(torch.equal(whole[name], value) for name, value in kept(path).items())


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_student_that_was_changed_is_not_used(toys, toy_run, tmp_path, suffix):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    damaged = next(path for path in (folder / "student").iterdir() if path.suffix == suffix)
    flip(damaged, at=damaged.stat().st_size // 2)
    for use in (kdhub.load, kdhub.evaluate, lambda place: kdhub.publish(place, "me/x", dry_run=True)):
        for place in (folder, folder / "student"):
            with pytest.raises(RunError, match=f"is not what was saved: student/{damaged.name} changed since"):
                use(place)


def test_a_pulled_student_that_was_changed_is_fetched_again(toys, toy_run, hub, tmp_path, caplog):
    kdhub.publish(toy_run, "me/toy", licence="mit")
    pulled = kdhub.pull("me/toy")
    damaged = next(pulled.folder.glob("*.safetensors"))
    before = damaged.read_bytes()
    flip(damaged)
    with pytest.raises(UntrustedError, match=f"is not what was pulled: {damaged.name} changed since"):
        kdhub.load(pulled.folder)
    with caplog.at_level(logging.WARNING, logger="kdhub"):
        assert kdhub.load("me/toy") is not None
    assert damaged.read_bytes() == before and "was changed since it was pulled" in caplog.text
    (pulled.folder / "README.md").write_text("a better card")
    assert kdhub.load(pulled.folder) is not None


def test_a_moved_tag_is_told(toys, toy_run, hub, caplog):
    kdhub.publish(toy_run, "me/toy", licence="mit", tags=["v1"])
    first = kdhub.pull("me/toy@v1")
    kdhub.pull("me/toy@v1")
    assert "named commit" not in caplog.text
    repo = hub.repos["model", "me/toy"]
    repo.commit({**repo.commits[repo.head], "more.txt": (b"more", False)}, "v1")
    with pytest.raises(UntrustedError, match=r"more.txt is not in kdhub.json"):
        kdhub.pull("me/toy@v1")
    hub.put("me/toy", {**hub.files("me/toy"), "README.md": hub.files("me/toy")["README.md"] + b"better"})
    repo.refs["v1"] = repo.head
    kdhub.pull("me/toy@v1")
    assert f"v1 of me/toy named commit {first.commit[:12]} when it was pulled before" in caplog.text


@given(st.data())
def test_a_sealed_file_is_read_as_it_was_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("sealed") / "x.json"
    value = {"a": 1.5, "b": [float("inf"), None, "ä"], "c": {"d": 2**70}}
    write_sealed(path, value)
    assert read_sealed(path) == value
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(ValueError):
        read = read_sealed(path)
        assert {key: read.get(key) for key in value} == value


def test_a_report_that_was_changed_is_not_published(toys, toy_run, tmp_path):
    folder = shutil.copytree(toy_run, tmp_path / "run")
    text = (folder / "report.json").read_text()
    value = re.search(r'"value": 0.(\d+)', text)
    (folder / "report.json").write_text(
        text.replace(value[0], value[0][:-1] + ("7" if value[0][-1] != "7" else "3"), 1)
    )
    assert kdhub.load(folder) is not None
    with pytest.raises(RunError, match="is not what was saved: report.json changed since"):
        kdhub.publish(folder, "me/x", dry_run=True)


def test_a_finished_run_stays_what_was_sealed_though_its_session_is_used_on(toys, tmp_path, monkeypatch):
    """As the conformance kit does: it builds the start again, reads rows and asks for signals."""
    import toy

    from kdhub.training.session import Session

    sessions, own = [], Session.__init__
    monkeypatch.setattr(Session, "__init__", lambda self, *a: (own(self, *a), sessions.append(self))[0])
    recipe = {"task": "toy-vectors", "method": "toy-hint", **toy.Vectors().tiny_recipe(tmp_path)}
    run = kdhub.distill({**recipe, "options": {"max_steps": 1, "precision": "float32"}}, out=tmp_path / "run")
    names = ("provenance.json", "state.json", "seals.json", "metrics.jsonl")
    before, (session,) = [(run.folder / name).read_bytes() for name in names], sessions
    session.build_student()
    session.signals(session.rows("train"), "vector")
    session.run.add_provenance(spent={"data": {"requests": 3}})
    session.run.log(step=9)
    assert before == [(run.folder / name).read_bytes() for name in names]
    Run.open(run.folder).whole_student(told=True)


def test_prepared_rows_that_were_changed_are_made_again(isolated, tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(20)))
    before = [row["text"] for row in kdhub.open_data(str(tmp_path / "rows.jsonl")).split("train")]
    for name, at in (("rows.arrow", -400), ("meta.json", 40)):
        (damaged,) = (isolated / "data" / "prepared").glob(f"*/{name}")
        content = bytearray(damaged.read_bytes())
        at = content.index(b"row 1") + 4 if name == "rows.arrow" else at
        content[at] ^= 1
        damaged.write_bytes(content)
        caplog.clear()
        data = kdhub.open_data(str(tmp_path / "rows.jsonl"))
        assert [row["text"] for row in data.split("train")] == before and "damaged, and are made again" in caplog.text


# -- any byte -------------------------------------------------------------------------------------------------

ROWS = [{"x": [0.1 * n, -0.3, 0.5, 1.0]} for n in range(4)]


def of_run(toy_run: Path, tmp_path: Path, *_: Any) -> tuple[Path, Callable[[], Any]]:
    folder = shutil.copytree(toy_run, tmp_path / "run")

    def use() -> Any:
        run = Run.open(folder)
        run.whole_student(told=True)
        assert run.finished("done")
        known = {key: value for key, value in run.provenance.items() if key != "environment"}
        return kdhub.load(folder).signals(ROWS, "vector")["vector"].tobytes(), run.report, known, [*run.metrics()]

    return folder, use


def of_store(toy_run: Path, tmp_path: Path, *_: Any) -> tuple[Path, Callable[[], Any]]:
    (folder,) = (toy_run.parent / "home" / "signals").glob("*")
    folder = shutil.copytree(folder, tmp_path / "signals" / folder.name)
    meta = read_sealed(folder / "store.json")
    whole = SignalStore.load(folder)
    keys = np.concatenate([chunk.keys() for chunk in whole._chunks])

    def use() -> Any:
        store = SignalStore.open(folder.parent, meta["key"], whole.fields)
        at = store.locate(keys)
        if (at < 0).any():
            raise KdhubError("rows are missing, and are computed again")
        return {name: np.asarray(values).tobytes() for name, values in store.read(at).items()}

    return folder, use


def of_rows(toy_run: Path, tmp_path: Path, home: Path) -> tuple[Path, Callable[[], Any]]:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(20)))

    def use() -> Any:
        return [row["text"] for row in kdhub.open_data(str(tmp_path / "rows.jsonl")).split("train")]

    use()
    return home / "data" / "prepared", use


def of_made_teacher(toy_run: Path, tmp_path: Path, *_: Any) -> tuple[Path, Callable[[], Any]]:
    folder, use = of_run(toy_run, tmp_path)

    def use_made() -> Any:
        if damage := _damage(folder):  # it is made again then
            raise KdhubError(", ".join(damage))
        return use()[0]

    return folder, use_made


def of_pulled(toy_run: Path, tmp_path: Path, home: Path) -> tuple[Path, Callable[[], Any]]:
    kdhub.publish(toy_run, "me/toy", licence="mit")
    folder = kdhub.pull("me/toy").folder
    return folder, lambda: kdhub.load(folder).signals(ROWS, "vector")["vector"].tobytes()


def of_checkpoint(toy_run: Path, tmp_path: Path, *_: Any) -> tuple[Path, Callable[[], Any]]:
    folder = tmp_path / "checkpoints"
    (folder / "checkpoint-3").mkdir(parents=True)
    shutil.copyfile(toy_run / "student" / "model.safetensors", folder / "checkpoint-3" / "model.safetensors")
    (folder / "checkpoint-3" / "optimizer.bin").write_bytes(bytes(range(256)))
    state = {"step": 3, "loss": 0.25, "files": sealed(folder / "checkpoint-3")}
    write_sealed(folder / "checkpoint-3" / "kdhub_state.json", state)

    def use() -> Any:
        if (found := newest_checkpoint(folder)) is None:
            raise KdhubError("damaged, and passed over")
        read = read_sealed(found / "kdhub_state.json")
        return {key: read[key] for key in state}, [
            p.read_bytes() for p in sorted(found.iterdir()) if p.suffix != ".json"
        ]

    return folder, use


@pytest.mark.parametrize("many", [10, pytest.param(int(os.environ.get("KDHUB_CHANGES", 1000)), marks=pytest.mark.slow)])
@pytest.mark.parametrize("made", [of_run, of_store, of_rows, of_made_teacher, of_pulled, of_checkpoint])
def test_any_changed_byte_is_found_or_changes_nothing(toys, toy_run, hub, tmp_path, isolated, made, many):
    folder, use = made(toy_run, tmp_path, isolated)
    whole, draw, told = use(), random.Random(7), Counter()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    for _ in range(many):
        path = draw.choice(files)
        content = path.read_bytes()
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ draw.randrange(1, 256)]) + content[at + 1 :])
        try:
            told["silent" if use() != whole else "without effect"] += 1
        except KdhubError:
            told["found"] += 1
        if path.exists() and path.read_bytes() != content:
            path.write_bytes(content)
    print(f"{made.__name__}: {dict(told)}")
    assert not told["silent"] and told["found"] + told["without effect"] == many
    assert told["found"] or made is of_rows  # rows are made again, and nobody stops
