"""The signal store and `kdhub cache`: real processes killed, real files damaged, real disks full."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file

import kdhub.signals.store
from kdhub.errors import StoreError, TeacherError, UnknownNameError
from kdhub.files import read_sealed, write_sealed
from kdhub.rows import Rows
from kdhub.signals.chunks import carried, carrying, freed
from kdhub.signals.store import Field, SignalStore, row_key, row_keys
from kdhub.teachers.saved import SavedTeacher
from kdhub.verbs import cache

KEY = {"teacher": "toy", "signal": "embedding"}
DIMS = 64
ROWS, GROUP = 1000, 20

# A deterministic teacher whose bits depend on which rows share a call, as real ones do: equal bits prove equal groups.
PROGRAM = f"""
import json, os, sys, time
import numpy as np
from pathlib import Path
from kdhub.errors import StoreError
from kdhub.signals.store import Field, SignalStore, row_keys

keys = row_keys(str(i).encode() for i in range({ROWS}))
lengths = np.arange({ROWS}) % 7

def teacher(pause=0.0):
    def compute(rows):
        time.sleep(pause)
        values = np.tile(keys[rows].astype(np.float32), 6)[:, :{DIMS}] / 255
        return {{"embedding": values + np.float32(values.sum() % 1) / 8}}
    return compute

def open_store(root):
    return SignalStore.open(root, {KEY}, [Field("embedding", "float32", ({DIMS},))], group_rows={GROUP})

def fill(root, pause=0.0, **ranks):
    return open_store(root).fill(keys, lengths, teacher(pause), **ranks)
"""
space: dict = {}
exec(PROGRAM, space)
fill, toy_keys, toy_lengths, teacher = space["fill"], space["keys"], space["lengths"], space["teacher"]


def start(code: str, *prefix: str) -> subprocess.Popen:
    """Run PROGRAM and `code` in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(Path(kdhub.signals.store.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, "-c", PROGRAM + code]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen) -> dict:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def contents(root: Path) -> dict[str, str]:
    """Every file of the only store below root, by name: what must be the same bit for bit."""
    (folder,) = root.iterdir()
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("reference")
    report = fill(root)
    assert (report.computed, report.calls) == (ROWS, ROWS // GROUP)
    return contents(root)


def values_of(keys: np.ndarray, dims: int = DIMS) -> np.ndarray:
    return np.stack([np.random.default_rng(list(k)).standard_normal(dims) for k in keys]).astype(np.float32)


def make(root, dtype="float16", rows=100, shape=(DIMS,), group_rows=16):
    keys = row_keys(str(i).encode() for i in range(rows))
    values = values_of(keys)
    store = SignalStore.open(root, KEY, [Field("embedding", dtype, shape)], group_rows=group_rows)
    store.fill(keys, np.arange(rows), lambda rows: {"embedding": values[rows]})
    return store, keys, values


# Keys


def test_a_row_key_is_of_every_byte_of_its_content():
    """The published form: stores of today must be found tomorrow. Long contents that differ at any one place differ."""
    assert row_key(b"a text") == hashlib.sha256(b"a text").digest()[:12]
    content = bytes(range(256)) * 20
    others = [content[:n] + bytes([content[n] ^ 32]) + content[n + 1 :] for n in (0, 1, 63, 64, 2000, len(content) - 1)]
    others += [content[:-1], content + b"\0", content[::-1], b""]
    keys = row_keys([content, *others])
    assert keys.shape == (11, 12) and len({key.tobytes() for key in keys}) == 11
    assert keys[0].tobytes() == row_key(content)


def test_rows_have_the_keys_of_their_contents_in_their_order():
    table = datasets.Dataset.from_dict({"x": [f"row {n % 7}" for n in range(30)]})
    prepare = lambda rows: [{"content": r["x"].encode(), "length": len(r["x"]), "cut": False} for r in rows]  # noqa: E731
    rows = Rows.build(table, prepare, row_key, batch=8)
    assert rows.keys.tolist() == row_keys(f"row {n % 7}".encode() for n in range(30)).tolist()


def test_a_store_is_of_all_that_its_key_and_its_fields_say(tmp_path):
    key = {"teacher": {"kind": "toy", "files": {"a.json": "1", "b.safetensors": "2"}}, "signal": "logits"}
    one = Field("logits", "float16", (3,))
    variants = [
        (key, [one]),
        ({**key, "signal": "features"}, [one]),
        ({**key, "teacher": {**key["teacher"], "kind": "other"}}, [one]),
        ({**key, "teacher": {"kind": "toy", "files": {"a.json": "1", "b.safetensors": "3"}}}, [one]),
        ({**key, "prompt": "query: "}, [one]),
        (key, [Field("other", "float16", (3,))]),
        (key, [Field("logits", "float32", (3,))]),
        (key, [Field("logits", "float16", (4,))]),
        (key, [Field("logits", "float16", (3,), ragged=True)]),
        (key, [one, Field("more", "float16", (3,))]),
    ]
    folders = [SignalStore.open(tmp_path, key, fields).folder for key, fields in variants]
    assert len(set(folders)) == len(variants)
    assert SignalStore.open(tmp_path, dict(reversed(key.items())), [one]).folder == folders[0], "in whatever order"


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "vocab.txt", "deep/spiece.model"])
def test_a_saved_teacher_is_known_by_every_file_that_its_outputs_depend_on(tmp_path, changed):
    def identity():
        return SavedTeacher("x", task=SimpleNamespace(name="toy"), folder=tmp_path, known={}).identity

    for name in ("model.safetensors", "config.json", "vocab.txt", "deep/spiece.model", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = identity()
    (tmp_path / "README.md").write_text("other words")
    assert identity() == before
    (tmp_path / changed).write_text("other weights")
    assert identity() != before and identity()["kind"] == "toy"


# Contents


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_rows_come_back_in_any_order(tmp_path, dtype):
    store, keys, values = make(tmp_path, dtype)
    for size in (5, 100, 1000):  # few rows and many are read in two ways
        rows = np.random.default_rng(size).integers(0, 100, size)
        got = store.read(store.locate(keys[rows]))["embedding"]
        bound = {"float32": 0, "float16": 2**-11, "int8": (1 + 2**-10) / 254}[dtype]
        assert (np.abs(got - values[rows]) <= bound * np.abs(values[rows]).max(1, keepdims=True) + 3e-8).all()
    assert got.dtype == {"float32": np.float32, "float16": np.float16, "int8": np.float32}[dtype]
    assert store.locate(row_keys([b"stranger"])) == [-1]
    with pytest.raises(StoreError, match="1 of 2 rows are not in the signal store"):
        store.read(np.array([0, -1]))


def test_bits_of_a_key_stand_where_numbers_below_two_have_none():
    """By hand: 0.5 is 0x3800 in float16, and with the spare bit 0x7800."""
    values, keys = np.full((2, 96), 0.5, np.float16), np.zeros((2, 12), np.uint8)
    keys[0, 0], keys[1, 11] = 0b10000001, 1
    packed = carrying(values, keys)
    assert [hex(n) for n in packed[0, :9]] == ["0x7800", *["0x3800"] * 6, "0x7800", "0x3800"]
    assert packed[1, -1] == 0x7800 and (packed[1, :-1] == 0x3800).all()
    np.testing.assert_array_equal(carried(packed), keys)
    np.testing.assert_array_equal(freed(packed.view(np.float16), np.array([True, True])), values)
    values[1, 5] = -1.999
    assert carrying(values, keys) is not None
    values[1, 5] = 2
    assert carrying(values, keys) is None


@pytest.mark.parametrize("dims", [96, 384])
def test_vectors_below_two_carry_their_keys_and_others_have_them_beside(tmp_path, dims):
    keys, lengths = row_keys(str(i).encode() for i in range(100)), np.arange(100)[::-1]
    values = values_of(keys, dims)
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
    values[3, :4] = [-0.0, 1.999, -1.999, 6e-8]  # the least and the largest that there are
    values[60, 7] = 2.0

    def fill(store):
        return store.fill(keys, lengths, lambda rows: {"embedding": values[rows]})

    store = SignalStore.open(tmp_path, KEY, [Field("embedding", "float16", (dims,))], group_rows=20)
    assert fill(store).calls == 5
    bodies = {p.stem: load_file(p) for p in store.folder.glob("*.safetensors")}
    assert sum("keys" in body for body in bodies.values()) == 1, "the group with the 2 alone"
    for body in bodies.values():
        assert body["embedding"].dtype == (np.float16 if "keys" in body else np.uint16)
    for again in (store, SignalStore.load(store.folder), pickle.loads(pickle.dumps(store))):
        for rows in (np.arange(100)[::-1], np.arange(40, 100, 3), np.array([3])):
            got = again.read(again.locate(keys[rows]))["embedding"]
            assert got.tobytes() == values[rows].tobytes()
    assert fill(SignalStore.load(store.folder)).calls == 0

    (broken, *_) = (name for name, body in bodies.items() if "keys" not in body)
    path = store.folder / f"{broken}.safetensors"
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin + 1] ^= 0x40  # the first bit of the first key
    path.write_bytes(data)
    again = SignalStore.load(store.folder)
    assert again.locate(keys).min() == -1, "a key that is not whole finds nothing"
    assert fill(again).calls == 1
    assert again.read(again.locate(keys))["embedding"].tobytes() == values.tobytes()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the maps of this process, as Linux lists them")
def test_groups_of_a_row_or_two_take_no_map(tmp_path):
    """A teacher behind an API commits each answer; a process may have 65,530 maps."""
    for shape, mapped in (((DIMS,), 0), ((3000,), 2)):
        keys = row_keys([b"a", b"b"])
        store = SignalStore.open(tmp_path, KEY, [Field("embedding", "float32", shape)], group_rows=1)
        store.fill(keys, [1, 1], lambda rows, shape=shape: {"embedding": np.full((len(rows), *shape), rows[0])})
        np.testing.assert_array_equal(store.read(store.locate(keys))["embedding"][:, 0], [0, 1])
        assert Path("/proc/self/maps").read_text().count(str(store.folder)) == mapped


def test_keys_that_share_64_bits_are_told_apart(tmp_path):
    keys = np.zeros((5, 12), np.uint8)
    keys[:, 11] = [3, 1, 2, 1, 9]
    store = SignalStore.open(tmp_path, KEY, [Field("x", "int32")])
    report = store.fill(keys[:4], np.ones(4), lambda rows: {"x": keys[rows, 11].astype(np.int32)})
    assert report.computed == 3  # equal contents are sent once
    assert store.read(store.locate(keys[:4]))["x"].tolist() == [3, 1, 2, 1]
    assert store.locate(keys)[4] == -1


def test_int8_scales_are_rounded_up_and_zero_rows_stay_zero(tmp_path):
    values = np.zeros((5, DIMS), np.float32)
    values[1, 0], values[2, :2], values[3] = 1.0, (1e-9, -1e-9), np.linspace(-700, 700.3, DIMS)
    values[4, 0] = 1.1e-5  # 127 times 1.45 of the smallest float16: rounded down, it would clip
    store = SignalStore.open(tmp_path, KEY, [Field("x", "int8", (DIMS,))])
    keys = row_keys([b"a", b"b", b"c", b"d", b"e"])
    store.fill(keys, np.ones(5), lambda rows: {"x": values[rows]})
    got = store.read(store.locate(keys))["x"]
    assert not got[0].any()
    assert (np.abs(got - values) <= np.abs(values).max(1, keepdims=True) / 254 * (1 + 2**-10) + 3e-8).all()


def test_ragged_fields_and_the_safetensors_library_agree(tmp_path):
    texts = ["", "one", "två ord", "a much longer text"]
    keys = row_keys(t.encode() for t in texts)
    logits = [np.random.default_rng(i).standard_normal((i, 3)).astype(np.float32) for i in range(4)]
    fields = [
        Field("text", "uint8", ragged=True),
        Field("logits", "float16", (3,), ragged=True),
        Field("coded", "int8", (3,), ragged=True),
        Field("top", "int32", (2,)),
    ]
    store = SignalStore.open(tmp_path, KEY, fields, group_rows=3)

    def compute(rows):
        return {
            "text": [np.frombuffer(texts[r].encode(), np.uint8) for r in rows],
            "logits": [logits[r] for r in rows],
            "coded": [logits[r] for r in rows],
            "top": np.stack([rows, rows + 1], 1),
        }

    store.fill(keys, [len(t) for t in texts], compute)
    got = store.read(store.locate(keys))
    assert [bytes(t).decode() for t in got["text"]] == texts
    for row in range(4):
        assert np.array_equal(got["logits"][row], logits[row].astype(np.float16))
        assert np.allclose(got["coded"][row], logits[row], atol=0.02)
        assert got["coded"][row].shape == (row, 3)
    assert got["top"].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]

    files = [load_file(p) for p in sorted(store.folder.glob("*.safetensors"))]
    assert sorted(sum((f["top"][:, 0].tolist() for f in files), [])) == [0, 1, 2, 3]
    assert {row_key(t.encode()) for t in texts} == {bytes(k) for f in files for k in f["keys"]}
    assert all(f["logits.offsets"][-1] == len(f["logits"]) for f in files)


def test_a_second_run_a_subset_and_another_order_call_nobody(tmp_path):
    _, keys, values = make(tmp_path)
    asked = []

    def compute(rows):
        asked.extend(rows.tolist())
        return {"embedding": values_of(more[rows])}

    def again(keys):
        store = SignalStore.open(tmp_path, KEY, [Field("embedding", "float16", (DIMS,))])
        return store.fill(keys, np.arange(len(keys)), compute)

    more = np.concatenate([row_keys([b"new", b"newer", b"new"]), keys])
    for same in (keys, keys[::-1], keys[10:30]):
        report = again(same)
        assert (report.calls, report.computed, report.found) == (0, 0, len(same))
    report = again(more)
    assert (report.calls, report.computed, report.found) == (1, 2, 100)
    assert set(asked) < {0, 1, 2}


# What the teacher must not give, and what the store cannot hold


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.full((4, 2), [1, np.nan]), TeacherError, r"NaN or infinite values as 'x' in row 4 of the data \(batch 1\)"),
        (np.full((4, 2), [1, np.inf]), TeacherError, r"NaN or infinite values as 'x' in row 4 of the data \(batch 1\)"),
        (np.ones((4, 3)), TeacherError, r"shape \(4, 3\) in batch 1, expected \(4, 2\)"),
        (np.ones((3, 2)), TeacherError, r"shape \(3, 2\) in batch 1, expected \(4, 2\)"),
        (np.full((4, 2), "a"), TeacherError, "expected numbers"),
        (np.full((4, 2), 65530.0), StoreError, "too large for float16 in row 4 of the data"),
    ],
)
def test_bad_values_are_named_and_nothing_is_written(tmp_path, given, error, message):
    store = SignalStore.open(tmp_path, KEY, [Field("x", "float16", (2,))])
    with pytest.raises(error, match=message) as caught:
        store.fill(row_keys([b"a", b"b", b"c", b"d"]), [1, 2, 3, 4], lambda rows: {"x": given})
    assert error is TeacherError or caught.value.hint == "store it as float32"
    assert [p.name for p in store.folder.iterdir()] == ["store.json"]


def test_large_values_do_not_fit_int8_and_integers_do_not_wrap(tmp_path):
    for name, dtype, value in (("a", "int8", 1e7), ("b", "uint8", 256), ("c", "int32", 2**31)):
        store = SignalStore.open(tmp_path, KEY, [Field(name, dtype, (1,))])
        with pytest.raises(StoreError, match=f"too large for {dtype} in row 1"):
            store.fill(row_keys([b"a"]), [1], lambda rows: {name: np.array([[value]])})  # noqa: B023


def test_a_teacher_that_fails_leaves_what_was_done(tmp_path, reference):
    compute, calls = teacher(), []

    def dies(rows):
        calls.append(rows)
        if len(calls) == 8:
            raise ConnectionError("endpoint gone")  # an OSError, but not the store's
        return compute(rows)

    with pytest.raises(ConnectionError):
        space["open_store"](tmp_path).fill(toy_keys, toy_lengths, dies)
    assert len(contents(tmp_path)) == 7 + 1
    assert fill(tmp_path).calls == ROWS // GROUP - 7
    assert contents(tmp_path) == reference


def test_other_versions_are_refused_and_other_fields_are_another_store(tmp_path):
    store, *_ = make(tmp_path)
    other, *_ = make(tmp_path, dtype="int8")
    assert other.folder != store.folder
    assert SignalStore.open(tmp_path, KEY, store.fields, group_rows=99).group_rows == 16
    meta = read_sealed(store.folder / "store.json")
    write_sealed(store.folder / "store.json", {**meta, "schema": 0})
    with pytest.raises(StoreError, match="has schema version 0, this kdhub reads 1"):
        SignalStore.open(tmp_path, KEY, store.fields)


# Kills, ranks, damage, disks


def test_a_process_killed_while_it_made_the_store_leaves_nothing(tmp_path, reference):
    fill(tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / ".store.json.abcd.tmp").write_text('{"schema"')
    fill(tmp_path)
    assert contents(tmp_path) == reference


def test_killed_at_random_moments_then_resumed_has_the_same_bits(tmp_path, reference):
    rng, kills = random.Random(0), 0
    while True:
        # The first store that a process opens takes .2 s of imports: another one, before the time counts.
        first = f"open_store({f'{tmp_path}-first'!r}).fill(keys[:1], lengths[:1], teacher(0))"
        child = start(f"{first}; print('ready', flush=True); fill({str(tmp_path)!r}, 0.003); print('done')")
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
        if "done" in out:
            break
        kills += 1
    assert kills >= 5
    assert contents(tmp_path) == reference  # names and bytes of all files; none left over


def test_killed_after_any_line_then_resumed_has_the_same_bits(tmp_path):
    """A fork for every fifth line that fill executes, killed right there."""
    code = f"""
import hashlib, shutil, signal
keys, lengths = keys[:50], lengths[:50]
root = {str(tmp_path)!r}

def contents(at):
    return {{p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in next(Path(at).iterdir()).iterdir()}}

def run(at, die_at):
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("kdhub/signals/store.py", "kdhub/signals/chunks.py")):
            return None
        if event == "line":
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    fill(at)
    sys.settrace(None)
    return seen

lines = run(root + "/whole", None)
wanted = contents(root + "/whole")
partial = 0
for die_at in range(1, lines, 5):
    at = root + "/killed"
    if (pid := os.fork()) == 0:
        run(at, die_at)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    if Path(at).exists():
        partial += any(p.suffix for p in Path(at).glob("*/*"))
        # `store.json` on its way is the one thing that may stay behind, and harms nothing
        for path in Path(at).glob("*/.store.json.*"): path.unlink()
    fill(at)
    assert contents(at) == wanted, die_at
    shutil.rmtree(at)
print(json.dumps([lines, partial]))
"""
    lines, partial = finish(start(code))
    assert lines > 300
    assert partial > 20


def test_ranks_and_rivals_share_the_work(tmp_path, reference):
    for name, options in {"ranks": "rank={}, world_size=2", "rivals": "rank=0, world_size=1 + 0 * {}"}.items():
        root = str(tmp_path / name)
        code = "print(json.dumps(fill({!r}, 0.005, {}).__dict__))"
        children = [start(code.format(root, options.format(number))) for number in (0, 1)]
        reports = [finish(child) for child in children]
        assert sum(r["computed"] for r in reports) == ROWS, name  # no row twice, none missing
        assert all(r["computed"] + r["found"] == ROWS for r in reports)
        assert min(r["calls"] for r in reports) > 0
        assert contents(tmp_path / name) == reference


def test_the_groups_of_a_killed_rank_are_made_by_the_other(tmp_path, reference):
    code = f"""
def stuck(rows):
    print("holding", flush=True)
    time.sleep(60)
open_store({str(tmp_path)!r}).fill(keys, lengths, stuck, rank=1, world_size=2)
"""
    dead = start(code)
    assert dead.stdout.readline() == "holding\n"
    alive = start(f"print(json.dumps(fill({str(tmp_path)!r}, rank=0, world_size=2).__dict__))")
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the group, and must not make it twice
        alive.wait(2)
    described = cache.list_stores(tmp_path)["stores"][0]
    assert (described["rows"], described["incomplete"]) == (ROWS - GROUP, 1)
    assert cache.prune(everything=True, root=tmp_path)["in_use"] == [described["name"]]
    dead.kill()
    assert finish(alive)["computed"] == ROWS
    dead.communicate()
    assert contents(tmp_path) == reference


def test_a_claim_that_comes_late_does_not_touch_the_next_one(tmp_path, monkeypatch):
    store, *_ = make(tmp_path)
    path = store.folder / f".{'0' * 32}.tmp"
    lock = kdhub.signals.store.fcntl.flock

    def late(file, how):  # the holder gave up, and another began, between our open and our lock
        path.unlink()
        path.write_bytes(b"another's group")
        lock(file, how)

    monkeypatch.setattr(kdhub.signals.store.fcntl, "flock", late)
    with store._claim("0" * 32) as file:
        assert file is None
    assert path.read_bytes() == b"another's group"
    monkeypatch.undo()
    keys = row_keys(str(i).encode() for i in range(100))
    store.fill(keys, np.arange(100), lambda rows: {})  # nothing is missing, but what nobody holds goes
    assert not path.exists()


def test_many_groups_at_once_have_the_same_bits_and_outlive_a_failure(tmp_path, reference):
    compute, lock, now, most, begun = teacher(0.01), threading.Lock(), 0, 0, 0

    def counted(rows):
        nonlocal now, most, begun
        with lock:
            now, begun = now + 1, begun + 1
            most, fails = max(most, now), begun == 10
        try:
            if fails:
                raise ConnectionError("endpoint gone")
            return compute(rows)
        finally:
            with lock:
                now -= 1

    store, seen = space["open_store"](tmp_path), []
    with pytest.raises(ConnectionError):
        store.fill(toy_keys, toy_lengths, counted, workers=4, progress=lambda done, of: seen.append(done))
    kept = begun - 1
    assert most == 4 and 9 <= kept <= 12  # nothing new is begun, and what was begun is kept
    assert len(contents(tmp_path)) == kept + 1
    assert seen == [GROUP * (i + 1) for i in range(len(seen))] and len(seen) >= 6
    assert store.fill(toy_keys, toy_lengths, counted, workers=4).calls == ROWS // GROUP - kept
    assert contents(tmp_path) == reference


@pytest.mark.parametrize("where", ["values", "keys", "header", "type", "digest", "cut", "empty", "longer", "foreign"])
def test_damage_is_found_and_made_anew(tmp_path, reference, where):
    fill(tmp_path)
    store = space["open_store"](tmp_path)
    paths = sorted(store.folder.glob("*.safetensors"))
    data = bytearray(paths[3].read_bytes())
    at = {"values": -GROUP * 12 - 100, "keys": -5, "header": 9}.get(where)
    if text := {"type": b'"F32"', "digest": b'"sha256":"'}.get(where):
        at = data.index(text) + len(text) - 2 if where == "type" else data.index(text) + 12
    if at is not None:
        data[at] ^= 1
    paths[3].write_bytes(
        {"cut": data[:-7], "empty": b"", "longer": data + b"x", "foreign": paths[4].read_bytes()}.get(where, data)
    )
    found = cache.verify(root=tmp_path)
    assert not found["ok"]
    assert found["stores"][0]["damaged"] == [paths[3].name]
    if where in ("header", "type", "digest"):  # opened before the damage, which is not in what it reads
        assert len(store.read(store.locate(toy_keys))["embedding"]) == ROWS
    else:
        with pytest.raises(StoreError, match="is damaged"):
            store.read(store.locate(toy_keys))
    report = fill(tmp_path)
    assert (report.damaged, report.computed, report.calls) == ([paths[3].name], GROUP, 1)
    assert contents(tmp_path) == reference


def test_full_disk_says_what_is_safe_and_resumes(tmp_path, reference):
    """A real file system of 160 kB, later made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=160k none {disk} && exec "$@"', "-"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user mount a tmpfs")
    code = f"""
import subprocess
try:
    fill({str(disk)!r})
except StoreError as error:
    names = [p.name for p in next(Path({str(disk)!r}).iterdir()).iterdir()]
    subprocess.run(["mount", "-o", "remount,size=8m", {str(disk)!r}], check=True)
    second = fill({str(disk)!r})
    after = sorted(p.name for p in next(Path({str(disk)!r}).iterdir()).iterdir())
    print(json.dumps([error.message, error.hint, names, second.found, after]))
"""
    message, hint, names, found, after = finish(start(code, *inside))
    groups = sum(name.endswith(".safetensors") for name in names)
    assert groups > 0
    assert f"{groups * GROUP} of {ROWS} rows are stored and safe" in message
    assert message.startswith("the disk is full")
    assert "KDHUB_HOME" in hint
    assert not [name for name in names if name.endswith(".tmp")]
    assert found == groups * GROUP
    assert after == sorted(reference)


def test_a_write_that_fails_half_way_leaves_no_file(tmp_path):
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    fill({str(tmp_path)!r})
except StoreError as error:
    print(json.dumps([error.message, [p.name for p in next(Path({str(tmp_path)!r}).iterdir()).iterdir()]]))
"""
    message, names = finish(start(code))
    assert "File too large" in message
    assert f"0 of {ROWS} rows are stored and safe" in message
    assert names == ["store.json"]


def test_no_permission(tmp_path):
    """Opening a store for others is fine where it need not be written; else one sentence."""
    fill(tmp_path)
    for path in [tmp_path, *tmp_path.parents][:4]:
        path.chmod(0o755)
    code = f"""
fill({f"{tmp_path}-first"!r})  # what is imported with the first store may not be readable for others
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
root = Path({str(tmp_path)!r})
calls = [fill(root).calls]
keys = row_keys([b"new"]); lengths = [1]
for at in (root, root / "other"):
    try:
        fill(at)
    except StoreError as error:
        calls.append(error.message)
print(json.dumps(calls))
"""
    if os.getuid() != 0:
        for path in (tmp_path, *tmp_path.iterdir()):
            path.chmod(0o555)
    calls, write, make_folder = finish(start(code))
    assert calls == 0
    assert write.startswith("no permission to write to the signal store")
    assert make_folder.startswith("no permission to make a signal store")


# kdhub cache


def test_replay_reports_a_teacher_that_changes(tmp_path):
    for dtype in ("float16", "int8", "float32"):
        store, keys, values = make(tmp_path, dtype)
        same = cache.replay(store, keys, lambda rows: {"embedding": values[rows] + 1e-6}, every=3)  # noqa: B023
        assert (same["checked"], same["different"]) == (34, [])

    def changes(rows):
        return {"embedding": values[rows] + 0.3 * (rows == 7)[:, None]}

    report = cache.verify(store.name, root=tmp_path, live=lambda store: (keys, changes), every=1)
    assert not report["ok"]
    assert [d["row"] for d in report["stores"][0]["replay"]["different"]] == [8]
    assert cache.replay(store, keys, changes, every=1, tolerance=0.5)["different"] == []
    silent = cache.verify(store.name, root=tmp_path, live=lambda store: None)
    assert silent["stores"][0]["replay"] == {"status": "not-checkable"}


def test_list_and_prune(tmp_path):
    old, *_ = make(tmp_path, "float16")
    new, *_ = make(tmp_path, "int8")
    os.utime(old.folder / "store.json", (0, 0))
    (old.folder / f".{'0' * 32}.tmp").write_bytes(b"half a group")
    listed = cache.list_stores(tmp_path)
    assert [s["name"] for s in listed["stores"]] == [new.name, old.name]
    described = listed["stores"][1]
    assert {k: described[k] for k in ("teacher", "signal", "rows", "incomplete", "dtypes")} == {
        "teacher": "toy",
        "signal": "embedding",
        "rows": 100,
        "incomplete": 1,
        "dtypes": ["float16"],
    }
    assert described["bytes"] == sum(p.stat().st_size for p in old.folder.iterdir())
    assert cache.list_stores(tmp_path) == listed  # looking is not using
    with pytest.raises(UnknownNameError):
        cache.prune("nothing-of-that-name", root=tmp_path)
    assert cache.prune(teacher="other*", root=tmp_path, dry_run=True)["leftovers"] == 1
    assert cache.prune(root=tmp_path)["leftovers"] == 1
    assert cache.prune(root=tmp_path)["leftovers"] == 0
    aged = cache.prune(older_than_days=30, teacher="to*", root=tmp_path, dry_run=True)
    assert [s["name"] for s in aged["removed"]] == [old.name]
    assert old.folder.exists()
    cache.prune(older_than_days=30, teacher="to*", root=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [new.name]
    cache.prune(everything=True, root=tmp_path)
    assert not list(tmp_path.iterdir())
