"""Names decide classes, whatever the file format: one result for CSV, TSV, JSONL, Parquet and NumPy's archives."""

from __future__ import annotations

import json
import math

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kdhub_tasks.classes import Targets, class_name, classes_for, classes_of, label_index
from kdhub_tasks.classification import tiny
from kdhub_tasks.classification.model import TokenClassifier
from kdhub_tasks.pairs.model import PairClassifier
from kdhub_tasks.transformer import TextClassifier

import kdhub
from kdhub.data import sources
from kdhub.errors import DataError
from kdhub.rows import plain_rows
from kdhub.student import BuildContext
from kdhub.testing import checks_of

pytestmark = pytest.mark.usefixtures("home")


def write(folder, rows, how, names=None, column="label"):
    """Rows as a file; `named` is Parquet as the `datasets` library writes it, with the names apart from the numbers."""
    folder.mkdir(exist_ok=True)
    file, keys = folder / f"rows.{how.split('-')[0]}", list(rows[0])
    if how in ("csv", "tsv"):
        between = "," if how == "csv" else "\t"

        def field(value):
            text = json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)
            return '"' + text.replace('"', '""') + '"' if how == "csv" else text

        file.write_text("".join(between.join(map(field, line)) + "\n" for line in [keys, *(r.values() for r in rows)]))
    elif how == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif how == "npz":
        np.savez(file, **{key: np.array([row[key] for row in rows]) for key in keys})
    elif how == "parquet-named":
        kind = datasets.ClassLabel(names=names)
        of = {key: datasets.Value("string") for key in keys}
        of |= {"tokens": datasets.List(datasets.Value("string"))} if "tokens" in keys else {}
        of |= {column: datasets.List(kind) if "tokens" in keys else kind}
        table = datasets.Dataset.from_list(rows, features=datasets.Features(of))
        file = folder / "named.parquet"
        table.to_parquet(str(file))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file := folder / "rows.parquet")
    return file


ORDER = ["great", "poor", "fair"]
"""Of the model; the file's own order is another, and so is that of the alphabet."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A saved model of each kind, and what it says of its rows."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    texts = [row["text"] for row in tiny.rows(24)]
    heads = {"classification": (TextClassifier, "BertForSequenceClassification", ORDER)}
    heads["tagging"] = TokenClassifier, "BertForTokenClassification", ORDER
    heads["pairs"] = PairClassifier, "BertForSequenceClassification", ORDER
    heads["scores"] = PairClassifier, "BertForSequenceClassification", ["score"]
    heads["values"] = TextClassifier, "BertForSequenceClassification", ["score"]
    for kind, (cls, of, classes) in heads.items():
        path = tiny.text_classifier(folder / kind, classes=classes, of=of, seed=3)
        model = cls.load(path)
        task = kdhub.open_task(model.task)
        rows = [{"text": text} for text in texts]
        if kind == "tagging":
            rows = [{"tokens": text.split()} for text in texts]
        elif kind in ("pairs", "scores"):
            rows = [{"sentence1": a, "sentence2": b} for a, b in zip(texts, texts[::-1])]
        logits = model.signals(task.preparer(model, None)(rows), "logits")["logits"]
        for i, (row, z) in enumerate(zip(rows, logits)):
            wrong = i % 4 == 0
            if kind in ("scores", "values"):
                row["score"] = round(float(z[0]), 3) + wrong * 0.5
            elif kind == "tagging":
                row["tags"] = [ORDER[(c + wrong) % 3] for c in z.argmax(-1)]
            else:
                row["label"] = ORDER[(int(z.argmax()) + wrong) % 3]
        made[kind] = path, model.task, rows
    return made


METRIC = {"tagging": ("accuracy", 0.75), "scores": ("pearson", None), "values": ("pearson", None)}


@pytest.mark.parametrize("kind", ["classification", "tagging", "pairs", "scores", "values"])
def test_one_result_whatever_the_format(models, tmp_path, kind):
    path, task, rows = models[kind]
    column = {"tagging": "tags"}.get(kind, "score" if kind in ("scores", "values") else "label")
    found, hows = {}, ["csv", "tsv", "jsonl", "parquet"]
    hows += [] if kind == "tagging" else ["npz"]
    hows += [] if column == "score" else ["parquet-named"]
    for how in hows:
        given = rows
        if how == "parquet-named":
            names = ["fair", "great", "poor"]
            number = lambda v, names=names: [names.index(x) for x in v] if isinstance(v, list) else names.index(v)  # noqa: E731
            given = [{**row, column: number(row[column])} for row in rows]
            file = write(tmp_path / how, given, how, names, column)
        else:
            file = write(tmp_path / how, given, how)
        report = kdhub.evaluate(path, data=f"path:{file}", task=task)
        found[how] = {m.metric: m.value for m in report.measures}
    assert all(one == found["csv"] for one in found.values()), found
    name, value = METRIC.get(kind, ("accuracy", 0.75))
    assert found["csv"][name] == pytest.approx(value) if value and kind != "tagging" else 0.5 < found["csv"][name] < 1


def test_numbers_are_names(models, tmp_path):
    """A model of the stars 1 to 3 on rows with the stars 1 to 3, as numbers, as texts, and as pandas writes them."""
    path, task, rows = models["classification"]
    other = tiny.text_classifier(tmp_path / "stars", classes=["1", "2", "3"], seed=3)
    stars = [{**row, "label": ORDER.index(row["label"]) + 1} for row in rows]
    forms = {"jsonl": stars, "csv": stars, "parquet": [{**row, "label": float(row["label"])} for row in stars]}
    for how, given in forms.items():
        report = kdhub.evaluate(other, data=f"path:{write(tmp_path / how, given, how)}", task=task)
        assert {m.metric: m.value for m in report.measures}["accuracy"] == 0.75, how


@pytest.mark.parametrize("how", ["csv", "jsonl", "parquet"])
def test_classes_of_rows_stand_in_one_order(tmp_path, how):
    task = kdhub.open_task("text-classification")
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate([11, 2, 0, 10, 1, 2])]
    of = kdhub.open_data(f"path:{write(tmp_path / 'a', rows, how)}")
    assert task.survey([(of, "train")]) == {"classes": ["0", "1", "2", "10", "11"]}
    three = [{**row, "label": row["label"] % 3} for row in rows]
    named = kdhub.open_data(f"path:{write(tmp_path / 'b', three, 'parquet-named', ['z', 'a', 'm'])}")
    assert task.survey([(named, "train")]) == {"classes": ["z", "a", "m"]}
    both = [(of, "train"), (named, "train")]  # of other kinds: joined by their names
    assert set(task.survey(both)["classes"]) == {"0", "1", "2", "10", "11", "a", "m", "z"}


@pytest.mark.parametrize("how", ["csv", "tsv", "jsonl", "parquet"])
def test_missing_labels_are_none(tmp_path, how):
    """As pandas writes a column of whole numbers with gaps."""
    labels = [1.0, None, 0.0, float("nan") if how in ("jsonl", "parquet") else None]
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    task, data = kdhub.open_task("text-classification"), sources.path(str(write(tmp_path / how, rows, how)))
    assert task.survey([(data, "train")]) == {"classes": ["0", "1"]}
    model = TextClassifier.load(tiny.text_classifier(tmp_path / "m", classes=["0", "1"]))
    table = task.training_table([(data, "train")])
    examples = task.preparer(model, None)(plain_rows(table, range(4)))
    assert [e["label"] for e in examples] == [1, -1, 0, -1]


def test_names_of_labels():
    values = [
        1,
        "1",
        1.0,
        "1.0",
        np.int64(1),
        "01",
        1.5,
        True,
        "good",
        None,
        math.nan,
        "",
        "  ",
        -1,
        "-1",
        -1.0,
        "-1.0",
    ]
    assert [class_name(v) for v in values] == ["1"] * 5 + ["01", "1.5", "True", "good"] + [None] * 8
    assert [label_index(v, ["2", "1", "0"]) for v in (0, "1", 2.0)] == [2, 1, 0]
    for true, classes in (("1", ["1", "0"]), ("true", ["true", "false"]), ("TRUE", ["TRUE", "FALSE"])):
        assert [label_index(v, classes) for v in (True, "True", "true", False)] == [0, 0, 0, 1], true
    assert [label_index(v, ["no", "yes"]) for v in (True, "TRUE", "False")] == [1, 1, 0], "where nothing is so called"
    with pytest.raises(DataError, match="label 'False' is not one of the 2 classes 'true', 'maybe'"):
        label_index("False", ["true", "maybe"])
    assert [label_index(v, ["", "0.0", "1.0"]) for v in (0, "1", "1.0", "")] == [1, 2, 2, -1], "or a table with gaps"
    with pytest.raises(DataError, match="label 0 is not one of the 3 classes '1', '2', '3'"):
        label_index(0, ["1", "2", "3"])
    said = r"label 'x' is not one of the 2 classes 'a', 'b' \(2 of 5 labels; also 3 in 1\)"
    with pytest.raises(DataError, match=said):
        Targets(["a", "b"]).positions(["a", "x", None, "x", 3])


class Teaching:
    def __init__(self, *classes):
        self.classes = list(classes)


@pytest.mark.parametrize(
    ("rows", "teacher", "classes"),
    [
        (["a", "b"], ["b", "a"], ["b", "a"]),  # by name, in the teacher's order
        (["0", "1"], ["b", "a"], ["b", "a"]),  # numbers without names: positions
        (["1", "2", "3"], ["0", "1", "2"], ["1", "2", "3"]),  # 3 is no name of the teacher's
        (["1", "2"], ["2", "1", "0"], ["2", "1", "0"]),
        (["a", "c"], ["b", "a"], ["a", "c"]),
        (["False", "True"], ["true", "false"], ["true", "false"]),
    ],
)
def test_teacher_and_rows_are_matched_by_name(rows, teacher, classes, caplog):
    context = BuildContext(None, Teaching(*teacher), 0, facts={"classes": rows})
    with caplog.at_level("INFO", "kdhub"):
        assert classes_for(context) == classes
    assert ("1 of the rows' 2 classes are not among the teacher's 2: 'c'" in caplog.text) == (rows == ["a", "c"])


def test_another_order_is_told_with_counts():
    task = kdhub.open_task("text-classification")
    said = task.mismatch(Teaching("good", "bad"), Teaching("bad", "good"))
    assert "2 of 2 are in both, in another order" in said
    assert "1 of 3 are in both" in task.mismatch(Teaching("good", "bad"), Teaching("bad", "fair"))


def test_the_conformance_kit_notices_numbers_that_are_taken_for_positions(monkeypatch):
    (check,) = (
        c for c in checks_of("kdhub-tasks", kind="task", name="text-classification") if c.name == "names_decide_classes"
    )
    check()
    monkeypatch.setattr("kdhub.rows.named", lambda value, names: value)
    with pytest.raises(AssertionError, match="as numbers with names"):
        check()


def test_a_text_is_no_list_of_words(models, tmp_path):
    path, task, rows = models["tagging"]
    wrong = [{"tokens": " ".join(row["tokens"]), "tags": row["tags"]} for row in rows]
    with pytest.raises(DataError, match="tokens must be a list of words"):
        kdhub.evaluate(path, data=f"path:{write(tmp_path / 'x', wrong, 'jsonl')}", task=task)


@pytest.mark.parametrize("labels, classes, says", [
    ([-1, 0, 1], ["0", "1"], "label -1 have none"),
    (["-1", "0"], ["0"], "label -1 have none"),
    (["Yes", "yes ", "no"], ["Yes", "no", "yes "], "are different classes: 'Yes', 'yes '"),
    ([b"b", b"a"], ["a", "b"], ""),
    (["a", "b"], ["a", "b"], ""),
])  # fmt: skip
def test_labels_that_may_be_meant_otherwise_are_told(labels, classes, says, caplog):
    assert classes_of(labels) == classes
    assert says in caplog.text and bool(caplog.text) is bool(says)
