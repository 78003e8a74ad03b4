"""Data: readers, checks, options, fingerprints, the catalogue's sources, the Hub, pydoc."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_catalog import WHOLE

from kdhub import open_data
from kdhub.catalogue import rows as _catalog_rows
from kdhub.catalogue.catalog import default_catalog
from kdhub.data import hub_rows as _hub_rows
from kdhub.data import pydoc as pydoc_data
from kdhub.data import sources
from kdhub.data.dataset import BadRow, Data, DataOptions, RowSource, parse_source
from kdhub.data.prepare import _canonical
from kdhub.errors import DataError, HubError, RecipeError, UsageError
from kdhub.files import TICK, known_sha256
from kdhub.rows import plain_rows

SHARED = os.environ.get("KDHUB_DATA")
with_shared = pytest.mark.skipif(not SHARED, reason="KDHUB_DATA is not set")

PACKAGES = pydoc_data.PACKAGES  # which tests have fewer of

TEXTS = [{"text": "one word", "n": 1}, {"text": "déjà vu", "n": 2}, {"text": "three", "n": 3}]


def jsonl(rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes | str) -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        content = content.encode() if isinstance(content, str) else content
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(file)

    return write


@pytest.fixture
def beir(write, tmp_path) -> str:
    corpus = [{"_id": "d1", "title": "Bees", "text": "make honey"}, {"_id": "d2", "title": "", "text": "ants march"}]
    write("beir/corpus.jsonl", jsonl(corpus))
    write("beir/queries.jsonl", jsonl([{"_id": i, "text": f"query {i}"} for i in (1, 2, 3)]))
    write("beir/qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\td1\t1\n2\td2\t2\n1\td2\t0\n")
    return str(tmp_path / "beir")


# ---- what people write


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("-", ("stdin", "")),
        ("./x.jsonl", ("path", "./x.jsonl")),
        ("/x/y", ("path", "/x/y")),
        ("path:x", ("path", "x")),
        ("jsonl:a/b.jsonl", ("jsonl", "a/b.jsonl")),
        ("org/name@v1", ("hf", "org/name@v1")),
        ("hf:org/name", ("hf", "org/name")),
        ("sentences", (None, "sentences")),
    ],
)
def test_source_texts(text, meaning):
    assert parse_source(text) == meaning


def test_options_are_checked_all_at_once():
    with pytest.raises(RecipeError) as error:
        DataOptions(limit=0, role="author", on_bad_rows="ignore")
    assert len(error.value.problems) == 3


# ---- readers


def same_rows(write) -> dict[str, Data]:
    """The same three texts in every format that has types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = write("rows.parquet", b"")
    pq.write_table(pa.Table.from_pylist(TEXTS), parquet)
    npz = write("rows.npz", b"")
    np.savez_compressed(npz, text=np.array([r["text"] for r in TEXTS]), n=np.array([1, 2, 3]))
    reordered = [dict(reversed(row.items())) for row in TEXTS]
    return {
        "jsonl": sources.jsonl(write("rows.jsonl", jsonl(TEXTS))),
        "jsonl.gz": sources.path(write("rows.jsonl.gz", jsonl(reordered))),
        "parquet": sources.parquet(parquet),
        "npz": sources.npz(npz),
        "rows": Data.from_rows("rows", {"train": lambda: TEXTS}, key={"v": 1}),
    }


def test_same_rows_same_fingerprint_whatever_the_format(write):
    found = {kind: data.fingerprint("train") for kind, data in same_rows(write).items()}
    assert len(set(found.values())) == 1, found
    assert all(data.split("train").to_list() == TEXTS for data in same_rows(write).values())


def test_many_numbers_have_one_fingerprint_however_they_are_held():
    """Pixels are covered by their bytes, whole numbers as integers: text of them would be many times as long."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    for held in (pixels.tolist(), pixels.astype(float), pixels.astype(np.float32).tolist(), pixels.astype(np.int64)):
        assert _canonical({"x": held}) == _canonical({"x": pixels})
    assert b'[10,10,3,"' in _canonical({"x": pixels})
    others = (pixels.reshape(100, 3), pixels.transpose(1, 0, 2), pixels + 0.5, pixels.astype(np.int64) * 256)
    assert len({_canonical({"x": other}) for other in (pixels, *others)}) == 5
    assert _canonical({"x": np.full(300, -0.0) + [0.5, 0] * 150}) == _canonical({"x": [0.5, 0.0] * 150})
    for plain in ([[1] * 200, [2] * 199], [1] * 255, [True] * 300, [[None, 1]] * 300, [2**70] * 300, ["a"] * 300):
        assert _canonical({"x": plain}) == json.dumps({"x": plain}, separators=(",", ":")).encode() + b"\n"
    assert _canonical({"x": [1e30] * 300}) == _canonical({"x": [int(1e30)] * 300})
    assert _canonical({"x": np.full(300, 2**63, np.uint64)}) == _canonical({"x": [2**63] * 300})


def test_fingerprint_survives_wider_columns_and_views(write):
    rows = [{"x": 1, "y": [1, 2], "z": {"a": 1}}, {"x": 2.5, "y": [0.5], "z": {"b": None, "c": 1}}, {"w": 1}]
    data = sources.jsonl(write("wide.jsonl", jsonl(rows)))
    table = Data.from_dataset("again", {"train": data.split("train")})
    assert table.fingerprint("train") == data.fingerprint("train")


def test_other_rows_or_another_order_have_another_fingerprint(write):
    digests = {
        sources.jsonl(write(f"{i}.jsonl", jsonl(rows))).fingerprint("train")
        for i, rows in enumerate([TEXTS, TEXTS[::-1], TEXTS[:2], [*TEXTS[:2], {"text": "three", "n": 4}]])
    }
    assert len(digests) == 4


def test_text_csv_and_tsv(write):
    text = sources.text(write("t.txt.gz", "\ufefffirst line\r\nsecond line\n"))
    assert text.split("train").to_list() == [{"text": "first line"}, {"text": "second line"}]
    csv = sources.csv(write("t.csv", 'text,label\n"two\nlines, one ""field""",a\nplain,b\n'))
    assert csv.split("train")["text"] == ['two\nlines, one "field"', "plain"]
    tsv = sources.path(write("t.tsv", 'text\tlabel\n"not quoted\ta\n'))
    assert tsv.split("train")["text"] == ['"not quoted']
    # As pandas writes them: quoted where there is a quote, or all; and literal quotes, of which some are no such.
    for name, rows in (
        ("some", 'text\tn\n"say ""hi"""\t1\nno\t2\n'),
        ("all", '"text"\t"n"\n"say ""hi"""\t"1"\n"no"\t"2"\n'),
    ):
        quoted = sources.path(write(f"{name}.tsv", rows)).split("train")
        assert (quoted["text"], quoted["n"]) == (['say "hi"', "no"], ["1", "2"]), name
    literal = sources.path(write("l.tsv", 'text\tn\n"say ""hi"""\t1\n5" wide\t2\n')).split("train")
    assert literal["text"] == ['"say ""hi"""', '5" wide']
    assert sources.path(write("w.tsv", 'text\n"Emma"\n')).split("train")["text"] == ['"Emma"']


def test_npz_arrays_stream_in_their_shape(write):
    images = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    file = write("images.npz", b"")
    np.savez_compressed(file, image=images, label=np.arange(4), names=np.array(["a", "b"]))
    with pytest.raises(DataError, match=r"image \[4, 2, 3\].*names \[2\]"):
        sources.npz(file).split("train")
    rows = sources.npz(file, arrays=["image", "label"]).split("train")
    assert (np.array(rows["image"]) == images).all() and rows["label"] == [0, 1, 2, 3]


def test_npz_never_unpickles(write):
    file = write("evil.npz", b"")
    np.savez(file, text=np.array(["a", {}], dtype=object))
    with pytest.raises(DataError, match="pickled"):
        sources.npz(file).split("train")


def test_schema_grows_after_the_first_batch(write):
    rows = [{"a": 1, "b": None}] * 2500 + [{"a": 1.5, "b": "late", "c": [1]}]
    data = sources.jsonl(write("late.jsonl", jsonl(rows)))
    table = data.split("train")
    assert table[0] == {"a": 1.0, "b": None, "c": None}
    assert table[2500] == {"a": 1.5, "b": "late", "c": [1]}


def test_files_that_are_no_data(write, tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS * 500))[:60])
    with pytest.raises(DataError, match="cut short"):
        sources.path(str(tmp_path / "cut.jsonl.gz")).split("train")
    for name in ("e.txt", "e.jsonl", "e.csv", "e.txt.gz"):
        with pytest.raises(DataError, match="empty"):
            sources.path(write(name, "")).split("train")
    with pytest.raises(DataError, match="empty"):
        sources.path(write("header.tsv", "text\tlabel\n")).split("train")
    with pytest.raises(DataError, match="not a Parquet file"):
        sources.path(write("no.parquet", "hello")).split("train")
    for document in ('[\n {"text": "a"}\n]', '[{"text": "a"}, {"text": "b"}]'):
        with pytest.raises(DataError, match="one JSON document") as error:
            sources.path(write("array.json", document)).split("train")
        assert "jq" in error.value.hint
    with pytest.raises(UsageError) as error:
        sources.jsonl(str(tmp_path / "array.jsn"))
    assert "array.json" in error.value.hint
    with pytest.raises(UsageError, match="ending"):
        sources.path(write("data.xyz", "x"))


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_the_index_column_of_pandas_is_left_out(write, ending):
    between = "," if ending == ".csv" else "\t"
    lines = [["", "text", "label"], ["0", "a b", "x"], ["1", "c", "y"]]
    data = sources.path(write(f"t{ending}", "".join(between.join(line) + "\n" for line in lines)))
    assert data.split("train").to_list() == [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]
    with pytest.raises(DataError, match="empty or repeated names"):
        sources.path(write(f"u{ending}", between.join(["text", "", "label"]) + "\n")).split("train")


def test_a_whole_number_of_many_digits_stops_nothing(write):
    rows = [{"text": f"row {i}", "id": i, "of": {"id": i}} for i in range(1500)]
    rows[1200] |= {"id": 10**30, "of": {"id": 2**64}}
    table = sources.jsonl(write("ids.jsonl", jsonl(rows))).split("train")
    assert table["text"] == [row["text"] for row in rows]
    assert [table[i]["id"] for i in (7, 1200, 1499)] == ["7", str(10**30), "1499"]


def test_names_of_classes_stay_with_their_numbers(write):
    import datasets

    kind = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": kind, "tags": datasets.List(kind)})
    columns = {"text": ["a", "b", "c"], "label": [1, 0, None], "tags": [[0, 1], [], [1]]}
    table = datasets.Dataset.from_dict(columns, features=features)
    for named in (table, table.rename_column("text", "sentence")):  # checked as texts, and taken as it is
        file = write("named.parquet", b"")
        named.to_parquet(str(file))
        of = {"text": "text"} if "text" in named.column_names else {"text": "sentence"}
        for data in (sources.path(file), Data.from_dataset("named", {"train": named})):
            seen = data.with_options(columns=of, limit=3).split("train")
            assert seen.features["label"].names == ["no", "yes"]
            assert [row["label"] for row in plain_rows(seen, [0, 1, 2])] == ["yes", "no", None]
            assert plain_rows(seen, [0])[0]["tags"] == ["no", "yes"] and seen["label"] == [1, 0, None]
            for value in ("yes", 1):
                assert data.with_options(columns=of, where={"label": value}).split("train")["label"] == [1]


# ---- bad rows

BAD = {
    "not UTF-8": ("t.txt", b"good line\n\xff\xfe\nmore\n", [2]),
    "with empty text in 'text'": ("t.txt", b"good line\n\n   \nmore\n", [2, 3]),
    "not valid JSON": ("t.jsonl", b'{"text": "a"}\n\n{"text": \n{"text": "b"}\n', [3]),
    "not a JSON object": ("t.jsonl", b'{"text": "a"}\n["b"]\n', [2]),
    "with a lone surrogate (half a character)": ("t.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', [2]),
    "no column 'text'": ("t.jsonl", b'{"txt": "a"}\n{"text": "b"}\n{"txt": "c"}\n', [1, 3]),
    "with NaN in 'text'": ("t.jsonl", b'{"text": "a"}\n{"text": NaN}\n', [2]),
    "with a number in 'text' instead of text": ("t.jsonl", b'{"text": "a"}\n{"text": 5}\n', [2]),
    "with text in 'n', where others have a number": ("t.jsonl", b'{"n": 5}\n{"n": "a"}\n', [2]),
    "ragged, with 3 fields where the header has 2": ("t.tsv", b"text\tn\na\t1\nb\t2\t3\n", [3]),
    "with no number in 'score'": ("t.tsv", b"sentence1\tsentence2\tscore\na\tb\t1\na\tb\thigh\n", [3]),
    "with NaN in 'score'": ("t.csv", b"sentence1,sentence2,score\na,b,nan\na,b,2\n", [2]),
}


@pytest.mark.parametrize("cause", BAD)
def test_bad_rows_stop_or_are_counted(cause, write):
    name, content, rows = BAD[cause]
    data = sources.path(write(name, content))
    with pytest.raises(DataError) as error:
        data.split("train")
    assert error.value.exit_code == 1
    assert f"{len(rows)} {cause} (row" in str(error.value)
    assert error.value.rows == rows
    assert "on_bad_rows: skip" in error.value.hint
    left = data.with_options(on_bad_rows="skip")
    assert len(left.split("train")) > 0
    assert left.skipped == {"train": {cause: len(rows)}}


@pytest.mark.parametrize("name, header", [("a.csv", "text;label"), ("a.csv", "text\tlabel"), ("a.tsv", "text,label")])
def test_a_table_with_another_separator_is_refused(write, name, header):
    with pytest.raises(DataError, match="the header is one column, .*separated by .* and is read as separated by"):
        open_data(f"path:{write(name, header + chr(10) + 'a,b' + chr(10))}").split("train")


def test_first_five_of_many_bad_rows(write):
    data = sources.text(write("t.txt", "good\n" + "\n" * 25))
    with pytest.raises(DataError, match=r"25 of 26 rows are bad: .* \(rows 2, 3, 4, 5, 6 and 20 more\)"):
        data.split("train")
    nothing = sources.text(write("u.txt", "\n" * 3)).with_options(on_bad_rows="skip")
    with pytest.raises(DataError, match="no row is left"):
        nothing.split("train")


def test_missing_column_names_both_sides(write):
    data = sources.csv(write("t.csv", "sentence,label\na,b\n"))
    assert data.form("train") == "rows"
    with pytest.raises(DataError, match="'sentence', 'label'") as error:
        data.texts("train")
    assert "columns: {text: THEIRS}" in error.value.hint
    assert data.with_options(columns={"text": "sentence"}).texts("train")["text"] == ["a"]
    with pytest.raises(DataError, match="no column 'lable'; it has 'sentence', 'label'"):
        data.with_options(columns={"class": "lable"}).split("train")
    rows = sources.jsonl(write("t.jsonl", jsonl([{"a": 1}, {"a": 2}])))
    with pytest.raises(DataError, match="no column 'b'; it has 'a'"):
        rows.with_options(columns={"text": "b"}).split("train")
    with pytest.raises(DataError, match="no column 'text'; it has 'sentence', 'label'"):
        data.with_options(format="texts").split("train")


def test_a_failed_read_leaves_nothing_behind(write, isolated):
    with pytest.raises(DataError):
        sources.text(write("t.txt", "good\n\n")).split("train")
    assert [p.name for p in (isolated / "data" / "prepared").iterdir() if p.suffix != ".lock"] == []


SLOW = """
import sys, time
from kdhub.data.dataset import Data
def rows():
    for i in range(3000):
        yield {"text": f"text {i}"}
        if sys.argv[1] == "slow" and i == 2500:
            print("writing", flush=True); time.sleep(60)
print(len(Data.from_rows("slow", {"train": rows}, key={}).split("train")))
"""


def test_killed_while_preparing(isolated, run_python):
    env = {**os.environ, "KDHUB_HOME": str(isolated), "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", SLOW, "slow"], stdout=subprocess.PIPE, env=env)
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert run_python(SLOW, args=("fast",)).stdout.strip() == "3000"
    assert len([p for p in (isolated / "data" / "prepared").iterdir() if p.is_dir()]) == 1


def test_full_disk_is_a_clear_error(write, monkeypatch):
    import errno

    from kdhub.data import prepare as _rows

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_rows.ArrowFile, "add", full)
    with pytest.raises(DataError, match="No space left") as error:
        sources.text(write("t.txt", "good\n")).split("train")
    assert "KDHUB_HOME" in error.value.hint


def test_a_damaged_prepared_file_is_made_again(write, isolated):
    data = sources.text(write("t.txt", "good\nline\n"))
    data.split("train")
    (arrow,) = (isolated / "data" / "prepared").glob("*/rows.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    again = sources.text(data.ref.partition(":")[2])
    assert again.split("train")["text"] == ["good", "line"]


# ---- options


def test_where_exclude_limit_sample(write):
    rows = [{"text": f"text {i}", "source": "abc"[i % 3]} for i in range(30)]
    data = sources.jsonl(write("t.jsonl", jsonl(rows)))
    assert set(data.with_options(where={"source": ["a", "b"]}).split("train")["source"]) == {"a", "b"}
    assert set(data.with_options(exclude={"source": "a"}).split("train")["source"]) == {"b", "c"}
    assert data.with_options(limit=2).split("train")["text"] == ["text 0", "text 1"]
    sample = data.with_options(exclude={"source": "a"}, sample=5)
    assert len(sample.split("train")) == 5
    assert sample.split("train")["text"] == data.with_options(exclude={"source": "a"}, sample=5).split("train")["text"]
    assert sample.fingerprint("train") != sample.with_options(sample_seed=1).fingerprint("train")
    assert len(data.with_options(sample=1000).split("train")) == 30
    # A misspelt value would silently exclude nothing.
    with pytest.raises(DataError, match="no row has 'd' as 'source'"):
        data.with_options(exclude={"source": "d"}).split("train")
    with pytest.raises(DataError, match="no column 'sauce'"):
        data.with_options(where={"sauce": "a"}).split("train")


def test_fingerprint_of_a_view_is_that_of_its_rows(write):
    whole = sources.jsonl(write("t.jsonl", jsonl(TEXTS)))
    part = sources.jsonl(write("u.jsonl", jsonl(TEXTS[:2])))
    assert whole.with_options(limit=2).fingerprint("train") == part.fingerprint("train")
    assert whole.with_options(where={"n": [1, 2]}).fingerprint("train") == part.fingerprint("train")


def test_role_and_limit_on_a_huge_file_read_only_the_start(write):
    read = []

    def rows():
        for i in range(10**9):
            read.append(i)
            yield {"text": f"text {i}"}

    data = Data.from_rows("huge", {"train": rows}, key={}).with_options(limit=10, role="query")
    assert data.split("train")[0] == {"text": "text 0", "role": "query"}
    assert len(read) < 200


def test_pick(beir, write):
    data = sources.path(beir)
    assert data.pick("test", "train") == "test"
    assert data.with_options(split="queries").pick("test") == "queries"
    with pytest.raises(UsageError, match="no split 'validation'; it has 'corpus', 'queries', 'test'"):
        data.pick("validation")
    assert sources.text(write("one.txt", "a\n")).pick("test") == "train"


# ---- forms


def test_retrieval_folder(beir):
    data = sources.path(beir)
    assert (data.format, data.splits) == ("retrieval", ("corpus", "queries", "test"))
    assert data.split("corpus").to_list() == [
        {"id": "d1", "text": "Bees make honey"},
        {"id": "d2", "text": "ants march"},
    ]
    part = data.retrieval("test")
    assert part.queries["id"] == ["1", "2"]  # the third has no judgement
    assert part.judgements == {"1": {"d1": 1.0, "d2": 0.0}, "2": {"d2": 2.0}}
    assert data.with_options(limit=1).retrieval("test").judgements == {"1": {"d1": 1.0, "d2": 0.0}}
    with pytest.raises(UsageError, match="separate its parts"):
        data.with_options(where={"id": "1"}).retrieval("test")
    assert data.texts("corpus")["role"] == ["document", "document"]
    assert data.texts("queries")[0]["text"] == "query 1"
    with pytest.raises(DataError, match="judgements, not texts"):
        data.texts("test")


def test_retrieval_ids(beir):
    corpus, qrels = Path(beir, "corpus.jsonl"), Path(beir, "qrels/test.tsv")
    good, judged = corpus.read_bytes(), qrels.read_bytes()
    corpus.write_bytes(good + good)
    with pytest.raises(DataError, match=r"2 with a repeated id \(rows 3, 4\)"):
        sources.path(beir).split("corpus")
    corpus.write_bytes(good)
    qrels.write_bytes(judged + b"9\td1\t1\n1\td9\t1\n1\td1\t0\n")
    with pytest.raises(DataError) as error:
        sources.path(beir).retrieval("test")
    for part in (
        "1 with a query_id that the queries do not have (row 5)",
        "1 with a corpus_id that the corpus does not have (row 6)",
        "1 judging a pair twice (row 7)",
    ):
        assert part in str(error.value)
    assert len(sources.path(beir).with_options(on_bad_rows="skip").split("test")) == 3


def test_sts_texts_and_expect(write):
    data = sources.path(write("t.tsv", "score\tsentence1\tsentence2\n4\ta cat\tthe cat\n"))
    assert data.form("train") == "sts"
    assert data.split("train")[0] == {"score": 4.0, "sentence1": "a cat", "sentence2": "the cat"}
    assert data.texts("train")["text"] == ["a cat", "the cat"]
    with pytest.raises(DataError, match="is sts, not texts"):
        data.expect("train", "texts")


def test_join(write):
    texts = sources.jsonl(write("t.jsonl", jsonl(TEXTS))).with_options(limit=2, role="query")
    pairs = sources.path(write("p.tsv", "score\tsentence1\tsentence2\n4\ta cat\tthe cat\n"))
    joined = Data.join([(texts, "train"), (pairs, "train")])
    assert joined.split("train").to_list() == [
        {"text": "one word", "role": "query", "source": "t.jsonl"},
        {"text": "déjà vu", "role": "query", "source": "t.jsonl"},
        {"text": "a cat", "role": None, "source": "p.tsv"},
        {"text": "the cat", "role": None, "source": "p.tsv"},
    ]
    assert [p["name"] for p in joined.source("train")["parts"]] == ["t.jsonl", "p.tsv"]


def test_rows_of_a_dataset_are_not_copied(write, isolated):
    import datasets

    table = datasets.Dataset.from_list([{"image": b"\x00\x01", "label": 3}])
    data = Data.from_dataset("images", {"train": table}).with_options(columns={"y": "label"})
    assert data.split("train").column_names == ["image", "y"]
    assert len(data.fingerprint("train")) == 64
    assert not (isolated / "data" / "prepared").exists()


def test_bad_rows_of_a_plugin():
    source = RowSource(lambda: [{"text": "a"}, BadRow("refused by the teacher")], {"kind": "mine"}, "mine")
    with pytest.raises(DataError, match=r"mine: 1 of 2 rows is bad: 1 refused by the teacher \(row 2\)"):
        Data("mine", {"train": source}).split("train")


# ---- not twice, not all at once


def test_rows_are_read_once_and_the_file_hashed_once(write, monkeypatch):
    name = write("t.jsonl", jsonl(TEXTS))
    time.sleep(2 * TICK / 1e9)  # a file that was written just now may be written again with the same times
    first = sources.jsonl(name)
    first.split("train")

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(sources.JsonLines, "rows", never)
    monkeypatch.setattr("kdhub.files.sha256_file", never)
    again = sources.jsonl(name)
    assert again.fingerprint("train") == first.fingerprint("train")
    Path(name).write_bytes(jsonl(TEXTS[:1]))
    with pytest.raises(AssertionError):
        sources.jsonl(name).split("train")


MEMORY = """
import resource, sys
from kdhub.data import sources
data = sources.jsonl(sys.argv[1])
import datasets, pyarrow
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = len(data.split("train"))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_split_larger_than_what_is_held(write, run_python):
    """120 MB of texts grow the process by a fraction of that."""
    line = json.dumps({"text": "word " * 600}).encode() + b"\n"
    name = write("big.jsonl", line * 40_000)
    done = run_python(MEMORY, args=(name,))
    assert done.returncode == 0, done.stderr
    rows, grown = map(int, done.stdout.split())
    assert rows == 40_000
    assert grown < 60, f"grew by {grown} MB"


# ---- standard input

STDIN = """
from kdhub.data import sources
data = sources.stdin()
again = sources.stdin(data.ref.partition(":")[2])
assert again.fingerprint("train") == data.fingerprint("train")
print(data.ref, data.source("train")["sha256"], list(data.split("train")["text"]))
"""


@pytest.mark.parametrize("content", [b"one\ntwo\n", b'{"text": "one"}\n{"text": "two"}\n'], ids=["text", "jsonl"])
def test_stdin_is_kept_once(content, isolated):
    done = subprocess.run(
        [sys.executable, "-c", STDIN],
        input=content,
        capture_output=True,
        env={**os.environ, "KDHUB_HOME": str(isolated), "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr.decode()
    digest = hashlib.sha256(content).hexdigest()
    assert done.stdout.decode().strip() == f"stdin:{digest} {digest} ['one', 'two']"


def test_empty_stdin(monkeypatch):
    import io

    class Closed(io.StringIO):
        buffer = io.BytesIO()

    monkeypatch.setattr(sys, "stdin", Closed())
    with pytest.raises(DataError, match="standard input is empty"):
        sources.stdin()
    with pytest.raises(DataError, match="no standard input with sha256"):
        sources.stdin("../../etc/passwd")


# ---- the Hub, played by a server of this process


class _Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    commit = "a" * 40
    content = jsonl([{"text": "one two"}, {"text": "three four"}])
    status = 200

    def log_message(self, *args):
        pass

    def _answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        oid = hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()
        file = {"type": "file", "path": "train.jsonl", "size": len(self.content), "oid": oid}
        if self.status != 200:
            return self._send(self.status, {"error": "no"})
        if path.endswith("/resolve/" + self.commit + "/train.jsonl"):
            return self._send(200, self.content, ETag=f'"{oid}"')
        if "/tree/" in path:
            return self._send(200, [file] if not path.endswith("/data") else [])
        if path.startswith("/api/datasets/org/name"):
            return self._send(200, {"id": "org/name", "sha": self.commit, "siblings": [{"rfilename": "train.jsonl"}]})
        return self._send(404, {"error": "no"}, **{"X-Error-Code": "EntryNotFound"})

    do_GET = do_POST = do_HEAD = _answer

    def _send(self, status, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.commit, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    handler = type("Hub", (_Hub,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


HUB = """
import sys
from kdhub.data import hub_rows as hub
from kdhub.errors import KdhubError
hub.time.sleep = lambda seconds: None
try:
    data = hub.hf("org/name@main")
    print(data.source("train")["revision"], list(data.texts("train")["text"]))
except KdhubError as error:
    print(int(error.exit_code), error, "|", error.hint)
"""


def test_hub_at_a_pinned_commit_then_offline(hub, run_python, tmp_path):
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.address}
    expected = f"{'a' * 40} ['one two', 'three four']"
    online = run_python(HUB, HF_HUB_OFFLINE="0", **offline)
    assert online.stdout.strip() == expected, online.stderr
    assert run_python(HUB, HF_HUB_OFFLINE="1", **offline).stdout.strip() == expected


@pytest.mark.parametrize(
    ("status", "says"), [(401, "no access (401)"), (404, "not found there"), (503, "a fault of its own (503)")]
)
def test_hub_errors(hub, run_python, tmp_path, status, says):
    hub.status = status
    done = run_python(HUB, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf"))
    assert done.stdout.startswith("4 loading data set org/name at main: "), done.stderr
    assert says in done.stdout


def test_no_network_and_offline(run_python, tmp_path):
    home = str(tmp_path / "hf")
    done = run_python(HUB, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=home)
    assert "no connection to http://127.0.0.1:9" in done.stdout and "try again" in done.stdout
    done = run_python(HUB, HF_HUB_OFFLINE="1", HF_HOME=home)
    assert done.stdout.startswith("4 ") and "HF_HUB_OFFLINE" in done.stdout


# ---- sources of the catalogue


def entry(write, tmp_path, **changes) -> dict:
    write("texts/a.jsonl", jsonl(TEXTS))
    fingerprint = sources.jsonl(write("plain.jsonl", jsonl([{"text": r["text"]} for r in TEXTS]))).fingerprint("train")
    source = {"file": "texts/a.jsonl", "sha256": known_sha256(tmp_path / "texts/a.jsonl")}
    split = {"columns": {"text": "text"}, "fingerprint": fingerprint, "sources": [source]}
    return {"format": "texts", "splits": {"train": {**split, **changes}}}


def test_catalogue_file(write, tmp_path):
    data = _catalog_rows.catalog_data("mine", entry(write, tmp_path), data_dir=tmp_path)
    assert data.split("train").column_names == ["text"]
    assert data.source("train")["file"] == "texts/a.jsonl"
    part = data.with_options(columns={"words": "text"}, format="rows", limit=1)
    assert part.split("train").to_list() == [{"words": "one word"}]


def test_catalogue_refuses_another_file_and_other_rows(write, tmp_path):
    value = entry(write, tmp_path)
    sha256, fingerprint = "0" * 64, value["splits"]["train"]["fingerprint"]
    value["splits"]["train"]["sources"][0]["sha256"] = sha256
    with pytest.raises(DataError, match=rf"has sha256 (?!{sha256}).*, the catalogue says {sha256}"):
        _catalog_rows.catalog_data("mine", value, data_dir=tmp_path).split("train")
    value = entry(write, tmp_path, fingerprint="1" * 64)
    with pytest.raises(DataError, match=rf"have fingerprint {fingerprint}, the catalogue says {'1' * 64}"):
        _catalog_rows.catalog_data("mine", value, data_dir=tmp_path).split("train")


def test_catalogue_unchecked_rows_are_used_and_reported(write, tmp_path, caplog):
    value = entry(write, tmp_path, fingerprint="1" * 64)
    value["splits"]["train"]["sources"][0]["checked"] = False
    data = _catalog_rows.catalog_data("mine", value, data_dir=tmp_path)
    assert len(data.split("train")) == 3
    assert data.source("train")["matches_entry"] is False
    assert "differ from those the catalogue entry was made with" in caplog.text


def test_catalogue_sources_in_order(write, tmp_path, monkeypatch):
    value = entry(write, tmp_path)
    value["splits"]["train"]["sources"] += [{"hub": "org/name"}, {"generator": "made", "argument": "x"}]
    monkeypatch.delenv("KDHUB_DATA", raising=False)

    def unreachable(*_):
        raise HubError("no network")

    def build(kind, argument, options):
        assert (kind, argument) == ("made", "x")
        return Data.from_rows("made", {"train": lambda: TEXTS}, key={})

    monkeypatch.setattr(_hub_rows, "load_hub", unreachable)
    with pytest.raises(DataError) as error:
        _catalog_rows.catalog_data("mine", value).split("train")
    assert "file texts/a.jsonl: KDHUB_DATA is not set" in str(error.value)
    assert "Hub org/name: no network" in str(error.value)
    made = _catalog_rows.catalog_data("mine", value, build=build)
    assert made.split("train")["text"] == [r["text"] for r in TEXTS]
    assert made.source("train")["name"] == "made"


@with_shared
@pytest.mark.parametrize("name", sorted(WHOLE))
def test_shared_data(name):
    """Every file has its sha256, every row is good, every fingerprint is as stated."""
    data = default_catalog().dataset(name)
    for split in data.splits:
        assert len(data.split(split)) > 0
        assert data.source(split)["kind"] != "hub"


@with_shared
def test_shared_scifact_and_sentences():
    catalog = default_catalog()
    part = catalog.dataset("scifact").retrieval("test")
    assert (len(part.corpus), len(part.queries), sum(map(len, part.judgements.values()))) == (5183, 300, 339)
    some = catalog.dataset("sentences", DataOptions(exclude={"source": ["beir_fiqa", "beir_scidocs"]}, sample=100))
    assert len(some.split("train")) == 100
    with pytest.raises(DataError, match="Did you mean 'beir_fiqa'|beir_fiqu"):
        catalog.dataset("sentences", DataOptions(exclude={"source": ["beir_fiqu"]})).split("train")


# ---- pydoc

MODULE = b'''"""Module summary line of a made file.

A body that is long enough to be a document, with well over fifteen words in it, so that it becomes
one of the held-out pairs.
"""
class A:
    def f(self):
        """First line of a method

        >>> code()
        1

        Second paragraph here, with words.
        ----------------------------------
        """
    if True:
        async def g(self): "Inside a condition it stands."
'''


def test_docstrings_and_paragraphs():
    found = pydoc_data.docstrings(MODULE)
    assert sorted(text.splitlines()[0] for text in found) == [
        "First line of a method",
        "Inside a condition it stands.",
        "Module summary line of a made file.",
    ]
    method = next(text for text in found if text.startswith("First"))
    assert pydoc_data.paragraphs(method) == ("First line of a method", ["Second paragraph here, with words."])


@pytest.mark.parametrize("source", [b"print 'old'", b"\xff\xfe", b"# coding: nonsense\n", b"x = '\x00'", b"(" * 2000])
def test_files_that_do_not_parse(source):
    assert pydoc_data.docstrings(source) == []


def test_packages_are_requirements_of_kdhub():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    required = {line.partition(">")[0].partition("[")[0].strip() for line in project["dependencies"]}
    assert set(PACKAGES) == required - {"rich", "tqdm"}  # which came later: the rows of `pydoc` stay what they are


@pytest.fixture
def small_pydoc(monkeypatch, tmp_path, write):
    """The real rules over one small package and a made standard library."""
    body = "Long body number {} with enough different words to count as a document, fifteen or more of them in all."
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"):
        write(f"lib/{name}.py", f'"""Summary of {name} in words.\n\n{body.format(name)}\n"""\n'.encode())
    write("lib/test/hidden.py", b'"""Never read this test file."""')
    write("pkg/mod.py", MODULE + b'def f():\n    """Summary of alpha in words."""\n')
    monkeypatch.setattr(pydoc_data.sysconfig, "get_path", lambda _: str(tmp_path / "lib"))
    monkeypatch.setattr(pydoc_data, "PACKAGES", ("pluggy",))
    monkeypatch.setattr(pydoc_data, "_package_files", lambda name: [("mod.py", tmp_path / "pkg/mod.py")])
    pydoc_data._held_out.cache_clear()
    yield pydoc_data.pydoc()
    pydoc_data._held_out.cache_clear()


def test_pydoc_never_mixes(small_pydoc):
    train = small_pydoc.split("train").to_list()
    assert {row["role"] for row in train} == {"query", "document"}
    # "Summary of alpha" stands in the package too: it is held out.
    assert not [row for row in train if "alpha" in row["text"]]
    validation, test = (set(small_pydoc.split(s)["query_id"]) for s in ("validation", "test"))
    assert validation and test and not validation & test
    assert validation | test == {f"{n}:0" for n in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")}
    part = small_pydoc.retrieval("test")
    assert set(part.queries["id"]) == set(part.judgements) == test
    assert len(part.corpus) == 6


def test_pydoc_key_says_what_the_rows_depend_on(small_pydoc):
    record = small_pydoc.source("train")
    assert record["python"] == ".".join(map(str, sys.version_info[:3])) and set(record["packages"]) == {"pluggy"}


def test_pydoc_imports_nothing_it_reads(run_python):
    code = "import sys; from kdhub.data import pydoc as p; n = len(p._held_out()[0]); print(n, 'turtle' in sys.modules)"
    done = run_python(code)
    pairs, imported = done.stdout.split()
    assert int(pairs) > 1000 and imported == "False", done.stderr
