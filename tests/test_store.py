"""The signal store by itself: keys that hardly differ, what is read of nothing, sizes, copies in other processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from kdhub.errors import StoreError
from kdhub.fields import Field
from kdhub.signals.store import SignalStore, item_bytes, row_keys


def keys_of(n):
    return row_keys(str(i).encode() for i in range(n))


def filled(root, keys, fields, compute, **how):
    store = SignalStore.open(root, {"teacher": "t", "signal": "s"}, fields, **how)
    store.fill(keys, np.ones(len(keys), np.int64), compute)
    return store


def test_keys_that_differ_in_any_one_bit_are_told_apart(tmp_path):
    base = np.full(96, 0xF0, np.uint8).reshape(1, -1)[:, :12]
    keys = np.repeat(base, 97, 0)
    for bit in range(96):
        keys[bit, bit // 8] ^= 1 << bit % 8
    store = filled(tmp_path, keys, [Field("n", "int32")], lambda rows: {"n": rows}, group_rows=10)
    assert len(store) == 97
    assert store.read(store.locate(keys))["n"].tolist() == list(range(97))
    again = SignalStore.load(store.folder)
    assert again.read(again.locate(keys[::-1]))["n"].tolist() == list(range(96, -1, -1))


def test_a_store_is_made_below_folders_that_are_not_there(tmp_path):
    root = tmp_path / "a" / "b"
    store = SignalStore.open(root, {"teacher": "t", "signal": "s"}, [Field("v", "float32", (2,))])
    assert store.folder.parent == root and len(store.folder.name) == 32 and store.group_rows == 1024
    assert len(store) == 0 and store.locate(keys_of(2)).tolist() == [-1, -1]
    assert {name: values.shape for name, values in store.read(np.zeros(0, np.int64)).items()} == {"v": (0, 2)}
    same = SignalStore.open(root, {"teacher": "t", "signal": "s"}, [Field("v", "float32", (2,))], group_rows=5)
    assert same.folder == store.folder and same.group_rows == 1024, "a store that is there keeps its own"
    assert store.read([]) is not None and "group_rows" not in store.key


def test_what_a_row_takes():
    assert item_bytes([Field("v", "float16", (3,)), Field("w", "int8", (4, 2), True), Field("n", "int64")]) == 24
    assert item_bytes([Field("v", "uint8", (5,))]) == 5
    assert item_bytes([Field("v", "int8")]) == 3, "with its scale"


def test_positions_that_are_not_there_are_counted(tmp_path):
    store = filled(tmp_path, keys_of(5), [Field("n", "int32")], lambda rows: {"n": rows}, group_rows=2)
    for positions, absent in (([0, 5], 1), ([-1, 4, 7], 2)):
        with pytest.raises(StoreError, match=rf"\b{absent}\b"):
            store.read(positions)
    assert sorted(store.read([0, 1, 2, 3, 4])["n"].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("width", [1, 4, 5, 300])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_any_rows_of_many_groups_in_any_order(tmp_path, width, dtype):
    """Few rows of many groups and many of few, of vectors below and above what is copied at once."""
    values = np.random.default_rng(0).integers(-100, 100, (60, width)).astype(np.float32)
    keys = keys_of(60)
    store = filled(tmp_path, keys, [Field("v", dtype, (width,))], lambda rows: {"v": values[rows]}, group_rows=7)
    rng = np.random.default_rng(1)
    for n in (1, 2, 8, 9, 60, 72, 73, 200):
        rows = rng.integers(0, 60, n)
        given = store.read(store.locate(keys[rows]))["v"]
        assert np.allclose(given, values[rows], atol=0.51)
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.read(copy.locate(keys))["v"], store.read(store.locate(keys))["v"])


def test_damage_is_listed_and_removed_when_asked_to(tmp_path):
    store = filled(tmp_path, keys_of(6), [Field("n", "int32")], lambda rows: {"n": rows}, group_rows=2)
    assert store.verify() == [] and store.verify(remove=True) == []
    bad, other = sorted(store.folder.glob("*.safetensors"))[:2]
    bad.write_bytes(bad.read_bytes()[:-1] + b"x")
    again = SignalStore.load(store.folder)
    assert again.verify() == [bad.name] and bad.exists()
    other.write_bytes(b"")
    again = SignalStore.load(store.folder)
    assert again.verify() == sorted([bad.name, other.name]) and again.verify(remove=True) == sorted(
        [bad.name, other.name]
    )
    assert not bad.exists() and not other.exists() and len(SignalStore.load(store.folder)) == 2
