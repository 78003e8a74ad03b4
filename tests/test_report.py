"""Reports: what was kept, what tables say, which files are read, and the pictures made from them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdhub.errors import RunError
from kdhub.evaluation.report import Report, gain, markdown, number, percent, render
from kdhub.metric import Measure


def m(metric, value, subject, dataset="pydoc", split="test", **more):
    return Measure(metric=metric, value=value, subject=subject, dataset=dataset, split=split, **more)


def cost(metric, value, subject, unit="", higher=False, **more):
    return Measure(metric=metric, value=value, subject=subject, unit=unit, higher_is_better=higher, **more)


@pytest.fixture
def report():
    measures = [
        m("ndcg@10", 0.506, "teacher", examples=612),
        m("ndcg@10", 0.316, "student-before"),
        m("ndcg@10", 0.458, "student"),
        m("ndcg@10", 0.461, "asymmetric"),
        m("ndcg@10", 0.4, "teacher", variant={"dims": 96}),
        m("ndcg@10", 0.3, "student", variant={"dims": 96}),
        m("recall@10", 0.6, "student", variant={"dims": 96}),
        m("cosine", 0.93, "student"),
        m("perplexity", 10.0, "teacher", "wiki", higher_is_better=False),
        m("perplexity", 12.5, "student", "wiki", higher_is_better=False),
        cost("parameters", 22_713_216, "teacher", "parameters"),
        cost("parameters", 11_000_000, "student", "parameters"),
        cost("throughput", 250.0, "teacher", "examples/s", higher=True),
        cost("throughput", 725.0, "student", "examples/s", higher=True),
        cost("latency-p50", None, "teacher", "ms", note="it runs behind an API"),
        cost("latency-p50", 4.1, "student", "ms"),
    ]
    return Report(measures, ["scifact was left out"], {"primary": {"retrieval": "ndcg@10", "lm": "perplexity"}})


def test_kept_is_over_the_teacher_and_turned_round_where_lower_is_better(report):
    kept = {(r.metric, r.subject, r.variant.get("dims")): r.kept for r in report.retention}
    assert kept == {
        ("ndcg@10", "student-before", None): pytest.approx(0.316 / 0.506),
        ("ndcg@10", "student", None): pytest.approx(0.458 / 0.506),
        ("ndcg@10", "asymmetric", None): pytest.approx(0.461 / 0.506),
        ("ndcg@10", "student", 96): pytest.approx(0.75),
        ("perplexity", "student", None): pytest.approx(0.8),
    }


@pytest.mark.parametrize("teacher", [0.0, -0.2])
def test_nothing_is_kept_of_a_useless_teacher(teacher):
    assert Report([m("spearman", teacher, "teacher"), m("spearman", 0.4, "student")]).retention == []


def test_get_finds_one_measure_by_all_its_parts(report):
    assert report.get("ndcg@10", "student").value == 0.458
    assert report.get("ndcg@10", "student", variant={"dims": 96}).value == 0.3
    assert report.get("ndcg@10", "student", "wiki") is None
    assert report.get("ndcg@10", "student", split="dev") is None
    assert report.get("parameters", "teacher").value == 22_713_216


@pytest.mark.parametrize("higher", [False, True])
def test_a_cost_of_a_task_s_own_is_more_or_less(higher):
    measures = [cost("calls", n, who, "items", higher) for who, n in (("teacher", 4), ("student", 8))]
    assert gain(Report(measures).costs()[0]) == "2.0x more"
    fewer = [cost("calls", n, who, "items", higher) for who, n in (("teacher", 8), ("student", 4))]
    assert gain(Report(fewer).costs()[0]) == "2.0x less"


def test_headline_is_the_primary_metric_of_each_data_set(report):
    assert [(line.dataset, line.metric) for line in report.headline()] == [("pydoc", "ndcg@10"), ("wiki", "perplexity")]


def test_a_number_measured_again_replaces_the_old_one():
    again = Report([m("ndcg@10", 0.1, "student"), m("ndcg@10", 0.2, "student")])
    assert [line.value("student") for line in again.lines()] == [0.2]


def test_terminal_table(report):
    lines = render(report).splitlines()
    assert lines[:4] == [
        "Quality",
        "data        metric      teacher  before    kept  student    kept  asymmetric    kept",
        "----------  ----------  -------  ------  ------  -------  ------  ----------  ------",
        "pydoc test  ndcg@10       0.506   0.316  62.5 %    0.458  90.5 %       0.461  91.1 %",
    ]
    text = "\n".join(lines)
    assert "dims 96" in text and text.count("recall@10") == 0, "views are shown for headline metrics only"
    assert "22.7 M" in text and "2.1x fewer" in text and "2.9x faster" in text
    assert lines[-1] == "note: scifact was left out"


def test_all_tables_to_the_letter(report):
    assert (
        "\n".join(render(report).splitlines()[4:])
        == """\
pydoc test  cosine                                 0.930
wiki test   perplexity   10.000                   12.500  80.0 %

Quality, looked at otherwise
data        metric   view     teacher  student    kept
----------  -------  -------  -------  -------  ------
pydoc test  ndcg@10  dims 96    0.400    0.300  75.0 %

Cost
cost                  the student is         teacher         student
--------------------  --------------  --------------  --------------
parameters                2.1x fewer          22.7 M          11.0 M
latency p50, batch 1                               –         4.10 ms
throughput, batch 32     2.9x faster  250 examples/s  725 examples/s

note: scifact was left out"""
    )
    other = Report([
        m("a", 0.5, "teacher", std=0.01), m("a", 0.25, "baseline:x"), m("a", 0.4, "student", std=0.02),
        m("b", 0.3, "student-before"), m("a", 0.45, "teacher", variant={"dims": 96, "precision": "int8"}),
        cost("odd", 3, "baseline:x", "items", True), cost("latency-p50", 10, "teacher", "ms"),
        cost("latency-p50", 10.01, "student", "ms"), cost("latency-p50", 5, "student-before", "ms"),
    ])  # fmt: skip
    assert (
        render(other)
        == """\
Quality
data        metric        teacher  before  kept        student    kept  baseline:x    kept
----------  ------  -------------  ------  ----  -------------  ------  ----------  ------
pydoc test  a       0.500 ± 0.010                0.400 ± 0.020  80.0 %       0.250  50.0 %
pydoc test  b                       0.300

Quality, looked at otherwise
data        metric  view                     teacher
----------  ------  -----------------------  -------
pydoc test  a       dims 96, precision int8    0.450

Cost
cost                  the student is  teacher   before  student  baseline:x
--------------------  --------------  -------  -------  -------  ----------
latency p50, batch 1        the same  10.0 ms  5.00 ms  10.0 ms
odd                                                                       3
"""
    )
    assert render(Report()) == "nothing was measured\n" and render(Report(notes=["a\nb"])) == "note: a b\n"


def test_tables_without_a_teacher_have_no_column_for_one():
    alone = Report([m("a", 0.5, "student", "e\u0301te\u0301"), m("a", 0.25, "student-before", "x")], ["one", "two"])
    alone.measures += [cost("latency-p50", 4.1, "student", "ms", std=0.1)]
    assert (
        render(alone)
        == """\
Quality
data      metric  before  student
--------  ------  ------  -------
e\u0301te\u0301 test  a                 0.500
x test    a        0.250

Cost
cost                             student
--------------------  ------------------
latency p50, batch 1  4.10 ms ± 0.100 ms

note: one
note: two
"""
    )
    taught = Report([cost("parameters", 3, "teacher", "items"), cost("parameters", 2, "student-before", "items")])
    assert (
        render(taught)
        == "Cost\ncost        teacher  before\n----------  -------  ------\nparameters        3       2\n"
    )
    assert percent(None) == "–" and percent(0.5) == "50.0 %" and number(0.5) == "0.500"


def test_variants_are_one_whatever_the_order_of_their_keys():
    pairs = [{"x": 1, "y": Path("a")}, {"y": Path("a"), "x": 1}]
    lines = Report([m("a", 0.5, s, variant=v) for s, v in zip(("teacher", "student"), pairs)]).lines()
    assert len(lines) == 1 and lines[0].kept("student") == 1


def test_views_follow_their_data_and_fidelity_is_seen_otherwise_too():
    """A metric that the teacher lacks, where it has others; the order is that of the data sets."""
    view = {"dims": 8}
    mixed = Report([
        m("p", 0.5, "teacher", "one"), m("p", 0.4, "student", "one"), m("f", 0.9, "student", "one"),
        m("p", 0.5, "teacher", "two"), m("p", 0.4, "student", "two"), m("q", 0.5, "teacher", "two"),
        m("p", 0.3, "student", "two", variant=view), m("f", 0.8, "student", "one", variant=view),
        m("q", 0.2, "teacher", "two", variant=view), m("p", 0.1, "student", "one", variant=view),
        m("p", 0.0, "student", "two", variant={"dims": 4}),
    ])  # fmt: skip
    seen = [(row[0], row[1], row[2]) for row in mixed.tables()[1].rows]
    assert seen == [
        ("two test", "p", "dims 8"),
        ("two test", "p", "dims 4"),
        ("one test", "f", "dims 8"),
        ("one test", "p", "dims 8"),
    ]
    alone = Report([m("f", 0.9, "student"), m("g", 0.9, "student"), m("g", 0.8, "student", variant=view)])
    assert [t.title for t in alone.tables()] == ["Quality"], "nobody's teacher was measured: f leads, g is not seen"


def test_headline_prefers_the_primary_metric_then_what_the_teacher_has():
    first = [m("a", 0.1, "student"), m("b", 0.5, "teacher"), m("b", 0.2, "student"), m("c", 0.3, "student")]
    assert [line.metric for line in Report(first).headline()] == ["b"]
    assert [line.metric for line in Report(first, facts={"primary": "c"}).headline()] == ["c"]
    assert [line.metric for line in Report(first, facts={"primary": {"x": "c"}}).headline()] == ["c"]
    assert [line.metric for line in Report(first, facts={"primary": {"x": "z"}}).headline()] == ["b"]
    assert Report([m("a", 0.1, "student", variant={"v": 1})]).headline() == []


@pytest.mark.parametrize(
    "teacher, own, higher, words",
    [
        (100.0, 104.0, True, "1.04x faster"),
        (100.0, 105.0, True, "1.1x faster"),
        (100.0, 50.0, True, "2.0x slower"),
        (100.0, 100.4, True, "the same"),
        (100.0, 99.6, True, "the same"),
        (100.0, 101.0, True, "1.01x faster"),
        (0, 5, True, ""),
        (5, 0, True, ""),
        (-1, 5, True, ""),
        (5, -1, True, ""),
        (None, 5, True, ""),
        (0.5, 1.0, True, "2.0x faster"),
    ],
)
def test_gains_in_words(teacher, own, higher, words):
    found = Report([cost("throughput", teacher, "teacher", "", higher), cost("throughput", own, "student", "", higher)])
    assert gain(found.costs()[0]) == words
    unknown = Report([cost("odd", 1.0, "teacher"), cost("odd", 3.0, "student"), cost("odd", 0.5, "student-before")])
    assert gain(unknown.costs()[0]) == "3.0x more" and gain(unknown.costs()[0], "student-before") == "2.0x less"


def test_wide_characters_stay_aligned_and_control_characters_do_not_reach_the_terminal():
    hostile = "中文\x1b[31m\nx\u202e"
    text = render(Report([m("a", 0.5, "teacher", hostile), m("a", 0.4, "student", hostile), m("b", 0.5, "teacher")]))
    assert not any(ord(c) < 32 and c != "\n" for c in text) and "\u202e" not in text
    wide, narrow = (next(line for line in text.splitlines() if key in line) for key in ("中文", "pydoc"))
    assert narrow.index("b") - wide.index("  a") - 2 == 2, "two characters that take four columns"


def test_a_worse_student_is_called_worse():
    slower = Report([cost("latency-p50", 4.0, "teacher", "ms"), cost("latency-p50", 6.0, "student", "ms")])
    assert gain(slower.costs()[0]) == "1.5x slower"


@pytest.mark.parametrize(
    "value, unit, shown",
    [
        (0.50649, "", "0.506"),
        (None, "ms", "–"),
        (math.nan, "", "–"),
        (90_868_376, "bytes", "90.9 MB"),
        (999, "bytes", "999 B"),
        (22_713_216, "parameters", "22.7 M"),
        (4.123, "ms", "4.12 ms"),
        (0.0, "ms", "0 ms"),
        (1234.5, "examples/s", "1,234 examples/s"),
        (12.34, "%", "12.3 %"),
        (1.234, "%", "1.2 %"),
        (1e12, "FLOPs", "1.00 T"),
        (1e9, "FLOPs", "1.00 G"),
        (99.9996, "", "100.000"),
        (100.0, "", "100.0"),
        (-1234.56, "", "-1,234.6"),
        (999.4, "ms", "999 ms"),
        (0.00012345, "ms", "0.0001 ms"),
        (0.0123456, "ms", "0.0123 ms"),
        (1000, "bytes", "1.00 kB"),
        (1e15, "FLOPs", "1.00 P"),
        (2e12, "FLOPs", "2.00 T"),
        (10.04e9, "items", "10.0 G"),
        (100e6, "items", "100 M"),
        (-5e3, "items", "-5.00 k"),
        (3, "items", "3"),
    ],
)
def test_numbers(value, unit, shown):
    assert number(value, unit) == shown


def test_markdown_escapes_every_cell(report):
    text = markdown(report.tables()[0], lambda cell: cell.upper())
    assert text.splitlines()[0].startswith("| DATA | METRIC |") and "PYDOC TEST" in text
    assert text.splitlines()[1] == "| :-- | :-- |" + " --: |" * 7
    assert len(text.splitlines()) == 2 + 3 and "| PYDOC TEST | NDCG@10 | 0.506 |" in text


def test_it_is_the_same_after_a_file(report):
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert Report.from_dict(written) == report


def test_what_a_file_leaves_out_or_does_not_know():
    one = {"metric": "a", "subject": "student"}
    found = Report.from_dict({"schema": 1, "measures": [{**one, "new": 1}, {**one, "value": 2}], "notes": None})
    assert [x.value for x in found.measures] == [None, 2] and found.notes == [] and found.facts == {}
    assert Report.from_dict({"schema": 1, "measures": [], "notes": [3], "facts": {"k": 1}}) == Report(
        [], ["3"], {"k": 1}
    )
    with pytest.raises(RunError, match="report.json is not a report"):
        Report.from_dict({"schema": 1, "measures": None})
    noted = Report([m("a", math.nan, "student", note="why", std=math.inf), m("a", 1.0, "teacher", std=math.nan)])
    assert [(x.get("value"), x.get("note"), x.get("std")) for x in noted.to_dict()["measures"]] == [
        (None, "why", None), (1.0, None, None),
    ]  # fmt: skip


def test_a_value_that_is_no_number_becomes_none_with_a_note():
    written = json.dumps(Report([m("loss", math.inf, "student")]).to_dict(), allow_nan=False)
    (back,) = Report.from_dict(json.loads(written)).measures
    assert back.value is None and "inf" in back.note


@pytest.mark.parametrize(
    "value, said",
    [
        ({"schema": 99, "measures": []}, "r.json has schema 99, this kdhub reads 1"),
        ({"measures": []}, "r.json has schema None, this kdhub reads 1"),
        ([], "r.json is not a report"),
        ({"schema": 1, "measures": [{"metric": "a"}]}, "r.json is damaged: measures.0.subject is missing"),
        (
            {"schema": 1, "measures": [{"metric": "a", "subject": "s", "value": "0.9"}]},
            "must be a number (found '0.9')",
        ),
        (
            {"schema": 1, "measures": [{"metric": "a", "subject": "s", "variant": 3}]},
            "measures.0.variant must be a mapping (found 3)",
        ),
        ({"schema": 1, "measures": [{"metric": "a", "subject": 3}]}, "measures.0.subject must be a text (found 3)"),
        ({"schema": 1, "measures": [3]}, "measures.0 must be a mapping"),
        (
            {"schema": 1, "measures": [{"metric": "a", "subject": "s", "value": True}]},
            "must be a number (found True)",
        ),
        ({"schema": 1, "measures": [], "notes": "n"}, "r.json is damaged: notes must be a list"),
        ({"schema": 1, "measures": [], "facts": [1]}, "r.json is damaged: facts must be a mapping"),
    ],
)
def test_another_schema_or_a_damaged_report_is_refused_in_one_sentence(value, said):
    with pytest.raises(RunError) as caught:
        Report.from_dict(value, "r.json")
    assert said in caught.value.message and "\n" not in caught.value.message


# -- pictures -------------------------------------------------------------------------------------------------


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def test_pictures_are_drawn_for_what_there_is(report, tmp_path, drawn):
    from kdhub.evaluation.plots import plot_run

    report.facts["width"] = {"teacher": 384, "student": 384}
    steps = [{"step": i, "loss": 2.0 / i, "terms": {"a$_{": 1.0 / i, "b": 1.0 / i}, "lr": 1e-3} for i in range(1, 500)]
    run = SimpleNamespace(folder=tmp_path, report=report.to_dict(), metrics=lambda: iter(steps))
    files = plot_run(run)
    assert [f.name for f in files] == ["loss.png", "retention.png", "truncation.png"]
    assert all(width > 700 and height > 400 for width, height in map(png_size, files))
    before = [f.read_bytes() for f in files]
    assert before == [f.read_bytes() for f in plot_run(run)], "the same numbers give the same bytes"


def test_a_loss_over_decades_has_numbers_at_its_axis():
    """Formulas are off, so that a term may be called `a$_{`: the library's own labels would show their source."""
    import matplotlib

    from kdhub.evaluation import plots

    steps = [{"step": i, "loss": 2.0 / i, "terms": {"a": 2.0 / i}, "lr": 1e-3} for i in range(1, 500)]
    with matplotlib.rc_context(plots.STYLE):
        upper, *_ = plots.loss_curve(steps).axes
        labels = [tick.get_text() for tick in upper.get_yticklabels(which="both")]
    assert {"0.01", "0.1", "1"} <= set(labels)
    assert not [label for label in labels if "$" in label]


def test_trainings_of_a_run_follow_one_another_with_their_names(drawn):
    from kdhub.evaluation import plots

    steps = [{"step": i, "loss": 1.0, "terms": {"a": 1.0}, "training": "narrow"} for i in (1, 2, 3)]
    steps += [{"step": i, "loss": 1.0, "terms": {"a": 1.0}, "training": "wide", "fit": 2} for i in (1, 2)]
    upper, *_ = plots.loss_curve(steps).axes
    assert [list(line.get_xdata()) for line in upper.lines[:2]] == [[1, 2, 3], [4, 5]]
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["a"]
    assert [(t.get_text(), t.xy[0]) for t in upper.texts] == [("narrow", 0), ("wide", 3)]


def test_no_picture_without_its_numbers(tmp_path):
    from kdhub.evaluation.plots import plot_run

    measures = [m("ndcg@10", 0.4, "student"), m("ndcg@10", None, "teacher")]
    steps = [{"step": 1, "loss": 1.0, "terms": {"a": 1.0}}, {"event": "resumed"}]
    for report in (Report(measures).to_dict(), None):
        run = SimpleNamespace(folder=tmp_path, report=report, metrics=lambda: iter(steps))
        assert plot_run(run) == [] and not (tmp_path / "plots").exists()
