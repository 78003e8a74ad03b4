"""A run that waits for labels that people give: what it writes, what it takes back, what it refuses, how it goes on."""

from __future__ import annotations

import csv

import pytest

import kdhub
from kdhub.cli.app import run as program
from kdhub.errors import AwaitingError, DataError, RunError
from kdhub.training import people

ASKED = {7: {"text": 'He said "no",\nand left.'}, 2: {"text": "fine"}}
LABELS = ("good", "bad")


def read(path, **how):
    return people.read(path, ASKED, LABELS, how.pop("known", ASKED), "kdhub distill --resume runs/a")


@pytest.fixture
def file(tmp_path):
    people.write(tmp_path / "rows.csv", ASKED)
    return tmp_path / "rows.csv"


def change(file, edit, **how):
    with open(file, newline="", encoding="utf-8-sig") as text:
        rows = list(csv.DictReader(text))
    rows = edit(rows) or rows
    with open(file, "w", newline="", encoding=how.pop("encoding", "utf-8")) as text:
        writer = csv.DictWriter(text, list(rows[0]), **how)
        writer.writeheader()
        writer.writerows(rows)


def fill(*labels):
    return lambda rows: [row.update(label=label) for row, label in zip(rows, labels)] and None


def test_all_rows_wait_then_some_then_none(file):
    assert file.read_text().startswith('row,text,label\n7,"He said ""no"",\nand left.",\n2,fine,\n')
    with pytest.raises(AwaitingError, match=r"2 of 2 rows wait for a label in .*rows.csv \(rows 2, 7\)") as waits:
        read(file)
    assert (
        waits.value.exit_code == 5 and "one of bad, good" in waits.value.hint and "--resume runs/a" in waits.value.hint
    )
    change(file, fill("good"))
    with pytest.raises(AwaitingError, match=r"1 of 2 rows wait .*\(row 2\)"):
        read(file)
    change(file, fill("good", " bad "))
    assert read(file) == {7: "good", 2: "bad"}


@pytest.mark.parametrize("how", [{"delimiter": ";", "encoding": "utf-8-sig"}, {"dialect": "excel-tab"}])
def test_what_spreadsheets_do_to_a_file(file, how):
    """Marks at the start, other separators, other ends of lines, another order, an empty line at the end."""
    change(file, fill("good", "bad"))
    change(file, lambda rows: rows.reverse(), **how)
    file.write_bytes(file.read_bytes() + b"\r\n")
    assert read(file) == {7: "good", 2: "bad"}


@pytest.mark.parametrize(
    ("edit", "says", "rows"),
    [
        (fill("good", "godo"), "row 2 with unknown labels 'godo'", [2]),
        (lambda rows: [*rows, {**rows[0]}], "row 7 there twice", [7]),
        (lambda rows: rows[1:], "row 7 gone", [7]),
        (lambda rows: [*rows, {**rows[0], "row": 9}], "row 9 not asked for", [9]),
        (lambda rows: rows[1].update(text="bad"), "row 2 not as they were asked", [2]),
        (lambda rows: rows[1].update(row="two"), "entry 2 has no number of a row, but 'two'", [2]),
    ],
)
def test_what_was_edited_is_refused_by_row(file, edit, says, rows):
    change(file, edit)
    with pytest.raises(DataError, match=says) as refused:
        read(file)
    assert refused.value.rows == rows


def test_a_file_without_its_columns_is_refused(file):
    file.write_text("number,label\n7,good\n")
    with pytest.raises(DataError, match="has no column 'row', only number, label"):
        read(file)
    file.write_bytes("row,label\n7,g\xfct\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        read(file)


def test_a_run_waits_and_goes_on(toys, tmp_path, monkeypatch, capsys):
    import toy_people

    toys.register(toy_people, "kdhub-toy-people")
    recipe = {"task": "toy-vectors", "method": "toy-people", "teacher": "linear:1", "student": "table",
              "data": {"train": "toy-points"}, "evaluation": {"cost": False}}  # fmt: skip
    with pytest.raises(AwaitingError, match="3 of 3 rows wait"):
        kdhub.distill(recipe, out=tmp_path / "run")
    file, before = tmp_path / "run" / "signs.csv", (tmp_path / "run" / "signs.csv").read_bytes()
    monkeypatch.setattr("sys.argv", ["kdhub", "distill", "--resume", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        program()
    said = capsys.readouterr().err
    assert ended.value.code == 5 and "(rows 2, 3, 4)" in said and "one of minus, plus" in said
    assert file.read_bytes() == before
    change(file, fill("plus", "minus", "plus"))
    monkeypatch.setattr("kdhub.training.saved.save", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        kdhub.distill(resume=tmp_path / "run")
    monkeypatch.undo()
    labelled = file.read_text()
    change(file, fill("minus"))
    with pytest.raises(RunError, match="another label in signs.csv, from row 2: row 2 was plus, now minus"):
        kdhub.distill(resume=tmp_path / "run")
    file.write_text(labelled)
    run = kdhub.distill(resume=tmp_path / "run")
    assert kdhub.load(run.student_folder).splits["train"]["y"][:] == [[1.0] * 3, [0.0] * 3, [1.0] * 3]


def test_rows_of_a_later_question_come_behind(file):
    change(file, fill("good", "bad"))
    people.write(file, {4: {"text": "new", "by": "x"}})
    assert people.read(file, ASKED, LABELS, {*ASKED, 4}, "") == {7: "good", 2: "bad"}
    assert people.holds(file, [4]) and not people.holds(file, [5])
    with pytest.raises(AwaitingError, match="row 4"):
        people.read(file, {4: {"text": "new", "by": "x"}}, LABELS, {*ASKED, 4}, "")
