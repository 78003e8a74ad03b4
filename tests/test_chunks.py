"""One file of the signal store: its layout and head to the byte, storage types, keys inside numbers, refused values."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from kdhub.errors import StoreError, TeacherError
from kdhub.fields import Field
from kdhub.signals import chunks
from kdhub.signals.chunks import DamagedError, encode, layout_of, open_chunk, write_chunk

KEYS = np.random.default_rng(0).integers(0, 256, (3, 12), np.uint8)
WIDE = Field("v", "float16", (96,))


def written(folder, fields, arrays, carrier=None):
    path = folder / f"{chunks.group_name(arrays['keys'])}.safetensors"
    with open(path, "wb", buffering=0) as file:
        write_chunk(file, layout_of(fields), arrays, carrier)
    return path


def test_the_widest_come_first():
    fields = [Field("b", "uint8", (2,)), Field("a", "int8", (4,), True), Field("c", "float32")]
    assert [(name, str(dtype), shape) for name, (dtype, shape) in layout_of(fields).items()] == [
        ("a.offsets", "int64", ()), ("c", "float32", ()), ("a.scale", "float16", ()), ("a", "int8", (4,)),
        ("b", "uint8", (2,)), ("keys", "uint8", (12,)),
    ]  # fmt: skip
    for wrong in ([Field("a"), Field("a")], [Field("keys")]):
        with pytest.raises(StoreError, match="field names must be different"):
            layout_of(wrong)
    assert chunks.row_bytes(np.dtype("<f4"), (3, 2)) == 24 and chunks.row_bytes(np.dtype("<f2"), ()) == 2


def test_who_has_room_for_keys():
    assert chunks.carrier_of([Field("a", "float16", (95,)), WIDE, Field("w", "float16", (8, 12))]) == "v"
    assert chunks.carrier_of([Field("a", "float32", (96,)), Field("b", "float16", (96,), True)]) is None


def test_a_file_is_a_safetensors_file_to_the_byte(tmp_path):
    fields = [Field("v", "float32", (2,)), Field("n", "uint8")]
    arrays = {
        "keys": KEYS, "v": np.arange(6, dtype=np.float32).reshape(3, 2), "n": np.array([1, 2, 3], np.uint8),
    }  # fmt: skip
    path = written(tmp_path, fields, arrays)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    body = arrays["v"].tobytes() + KEYS.tobytes() + arrays["n"].tobytes()
    assert raw[8 + size :] == body and size % 8 == 0
    digest = hashlib.sha256(body).hexdigest()
    assert json.loads(raw[8 : 8 + size]) == {
        "__metadata__": {"schema": "1", "rows": "3", "sha256": digest},
        "v": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
        "keys": {"dtype": "U8", "shape": [3, 12], "data_offsets": [24, 60]},
        "n": {"dtype": "U8", "shape": [3], "data_offsets": [60, 63]},
    }
    assert b" }" not in raw[8 : 8 + size] and b", " not in raw[8 : 8 + size]
    chunk = open_chunk(path, layout_of(fields))
    start = 8 + size
    assert (chunk.rows, chunk.sha256, chunk.start, chunk.size) == (3, digest, start, len(raw))
    assert chunk.spans == {
        "v": (start, start + 24), "keys": (start + 24, start + 60), "n": (start + 60, start + 63),
    }  # fmt: skip
    assert chunk.check() and chunk.intact and np.array_equal(chunk.keys(), KEYS) and chunk.carrier is None


@pytest.mark.parametrize("length", range(1, 9))
def test_values_begin_at_a_multiple_of_eight_bytes(tmp_path, length):
    fields = [Field("v" * length, "float32")]
    path = written(tmp_path, fields, {"keys": KEYS, "v" * length: np.zeros(3, np.float32)})
    assert open_chunk(path, layout_of(fields)).start % 8 == 0


def test_damage_of_each_part_is_noticed(tmp_path):
    fields = [Field("v", "float32", (2,))]
    path = written(tmp_path, fields, {"keys": KEYS, "v": np.ones((3, 2), np.float32)})
    whole, layout = path.read_bytes(), layout_of(fields)

    def of(raw):
        path.write_bytes(raw)
        return open_chunk(path, layout)

    at = of(whole).spans
    assert not of(whole[:-1] + b"x").check(), "a value or key"
    moved = bytearray(whole)
    moved[at["keys"][0]] ^= 1
    with pytest.raises(DamagedError):
        of(bytes(moved)).keys()
    for raw in (whole[:-1], whole + b"x", whole[:40], b"", whole.replace(b'"3"', b'"4"', 1), b"\0" * len(whole)):
        with pytest.raises(DamagedError):
            of(raw)
    with pytest.raises(DamagedError):
        path.write_bytes(whole)
        open_chunk(path, layout_of([Field("w", "float32", (2,))]))
    chunk = of(whole)
    path.unlink()
    assert chunk.check() is False, "gone meanwhile"


@pytest.mark.parametrize("large", [False, True])
def test_numbers_below_two_carry_the_keys(tmp_path, large):
    values = np.random.default_rng(1).uniform(-1.99, 1.99, (3, 96)).astype(np.float16)
    values[2, 95] = 2.0 if large else -1.0
    fields = [WIDE, Field("n", "uint8")]
    path = written(tmp_path, fields, {"keys": KEYS, "v": values, "n": np.arange(3, dtype=np.uint8)}, "v")
    chunk = open_chunk(path, layout_of(fields), "v")
    assert chunk.carrier == (None if large else "v") and ("keys" in chunk.spans) is large
    head = json.loads(path.read_bytes()[8 : chunk.start])
    assert head["v"]["dtype"] == ("F16" if large else "U16") and head["n"]["dtype"] == "U8"
    assert np.array_equal(chunk.keys(), KEYS) and chunk.rows == 3 and chunk.check()
    begin, end = chunk.spans["v"]
    read = np.frombuffer(path.read_bytes()[begin:end], np.float16).reshape(3, 96).copy()
    some = read.copy()
    if not large:
        assert np.array_equal(chunks.freed(read, np.ones(3, bool)), values)
        part = chunks.freed(some, np.array([True, False, True]))
        assert np.array_equal(part[[0, 2]], values[[0, 2]]) and not np.array_equal(part[1], values[1])
        packed = np.frombuffer(path.read_bytes()[begin:end], np.uint16)
        assert np.array_equal(chunks.carried(packed), KEYS)
    assert np.array_equal(chunks.freed(values.copy(), np.zeros(3, bool)), values)


# -- values ---------------------------------------------------------------------------------------------------


def stored(values, field, rows=None, batch=0):
    n = len(values)
    return encode({field.name: values}, [field], np.arange(n) if rows is None else np.array(rows), batch)


def test_int8_codes_come_back_within_half_a_step():
    values = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-9, 0.0, 0.0], [100.0, 3.0, -100.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        arrays = stored(values, Field("v", "int8", (3,)))
    codes, scale = arrays["v"], arrays["v.scale"]
    exact = abs(values).max(1) / 127
    assert codes.dtype == np.int8 and scale.dtype == np.float16 and abs(codes).max() <= 127
    assert (scale >= exact).all() and (scale[[0, 3]] <= exact[[0, 3]] * 1.001).all() and scale[1] == 0
    back = chunks.decode(codes, scale)
    assert back.dtype == np.float32 and (abs(back - values) <= scale.astype(np.float32)[:, None] / 2 + 1e-12).all()
    assert np.array_equal(codes[3], np.rint(values[3] / np.float32(scale[3])))
    flat = stored(np.array([2.0, -4.0], np.float32), Field("v", "int8", ()))
    assert chunks.decode(flat["v"], flat["v.scale"]) == pytest.approx([2, -4], rel=0.01)
    with pytest.raises(StoreError, match="'v' has values too large for int8 in row 3 of the data .batch 6.") as caught:
        stored([[1.0], [1e8]], Field("v", "int8", (1,)), rows=[7, 2], batch=5)
    assert "float32" in caught.value.hint


def test_ragged_rows_have_offsets():
    field = Field("v", "float32", (2,), True)
    arrays = stored([np.ones((2, 2)), np.zeros((0, 2)), np.full((1, 2), 3.0)], field)
    assert arrays["v"].tolist() == [[1, 1], [1, 1], [3, 3]] and arrays["v.offsets"].tolist() == [0, 2, 2, 3]
    assert arrays["v.offsets"].dtype == np.int64 and arrays["v"].dtype == np.float32
    empty = stored([np.zeros((0, 2))], field)
    assert empty["v"].shape == (0, 2) and empty["v.offsets"].tolist() == [0, 0]
    numbers = stored([[1, 2], []], Field("v", "int32", (), True))
    assert numbers["v"].tolist() == [1, 2] and numbers["v"].dtype == np.int32


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        (Field("v", "int32", (1,)), [[1.0]], "gave 'v' as float64 in batch 6, expected integers"),
        (Field("v", "int64", (1,)), [[1.0]], "expected integers"),
        (Field("v", "float32", (2,)), [[1.0, np.nan]], "in row 8 of the data"),
        (Field("v", "float32", (1,)), [["a"]], "in batch 6, expected numbers"),
        (Field("v", "float32", (2,)), [[1.0]], r"gave 'v' of shape \(1, 1\) in batch 6, expected \(1, 2\)"),
        (Field("v", "float32", (1,)), [[np.nan]], r"NaN or infinite values as 'v' in row 8 of the data \(batch 6\)"),
        (Field("v", "float32", (1,)), [[np.inf]], "NaN or infinite"),
        (Field("v", "float32", (2,), True), [np.ones((1, 3))], r"shape \(1, 3\) .* 1 arrays of shape \(items, 2\)"),
        (Field("v", "float32", (2,), True), [np.ones(2)], r"an array of shape \(2,\)"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused_by_batch_and_row(field, values, says):
    with pytest.raises(TeacherError, match=says):
        stored(values, field, rows=[7], batch=5)


def test_refused_values_name_the_row_they_are_of():
    with pytest.raises(TeacherError, match="in row 10 of the data"):
        stored([[1.0], [2.0], [np.nan]], Field("v", "float32", (1,)), rows=[3, 4, 9])
    ragged = Field("v", "float16", (), True)
    with pytest.raises(TeacherError, match="in row 5 of the data"):
        stored([[1.0, 2.0], [np.nan], [np.nan]], ragged, rows=[3, 4, 9])
    for dtype, large, better in (("float16", 1e6, "float32"), ("uint8", 256, "int64"), ("int32", 2**40, "int64")):
        with pytest.raises(StoreError, match=f"too large for {dtype} in row 5") as caught:
            stored([[1], [large]], Field("v", dtype, (1,)), rows=[3, 4])
        assert better in caught.value.hint
    with pytest.raises(TeacherError, match=r"gave 2 arrays as 'v' in batch 1, expected 3 arrays of shape \(items\)"):
        encode({"v": [[1.0], [2.0]]}, [ragged], np.arange(3), 0)
    with pytest.raises(TeacherError, match=r"gave \['w'\] for batch 3, expected \['u', 'v'\]"):
        encode({"w": 1}, [Field("v"), Field("u")], np.arange(1), 2)
    assert stored([True, False], Field("v", "uint8"))["v"].tolist() == [1, 0]
    assert stored([True, 3], Field("v", "float32"))["v"].tolist() == [1, 3]
