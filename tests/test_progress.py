"""Progress: a bar where somebody looks, lines where a file or a program reads."""

from __future__ import annotations

import io
import logging
import sys
import types

import pytest

from kdhub import progress
from kdhub.evaluation.report import Report
from kdhub.metric import Measure
from kdhub.notebook import pictures, table


@pytest.fixture
def at(monkeypatch):
    def at(where):
        monkeypatch.setattr(progress, "place", lambda: where)
        return progress.Bar(every=3600)

    return at


def test_lines_come_now_and_then_and_at_the_end(at, caplog):
    bar = at("lines")
    with caplog.at_level(logging.INFO, "kdhub"):
        for done in range(1, 5):
            bar(done, 4, f"step {done}/4", last=done == 4)
        bar.said -= 3601
        bar(4, 9, "now due")
    assert [r.getMessage() for r in caplog.records] == ["step 4/4", "now due"]


def test_a_terminal_has_one_bar_that_goes_away(at, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    bar = at("terminal")
    bar(1, 4, "step 1/4 [bold]")
    print("a line above", file=sys.stderr)
    bar(4, 4, "step 4/4")
    assert sys.stderr is seen, "it is put back"
    assert "━" in seen.getvalue() and "step 4/4" in seen.getvalue() and "a line above\n" in seen.getvalue()


def test_a_notebook_has_the_bar_of_tqdm(at, monkeypatch):
    made = []

    class Tqdm:
        def __init__(self, total, leave):
            self.n, self.closed, self.line = 0, False, ""
            made.append(self)

        def set_description_str(self, line, refresh):
            self.line = line

        def update(self, by):
            self.n += by

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Tqdm))
    bar = at("notebook")
    bar(1, 3, "one")
    bar(3, 3, "all")
    (one,) = made
    assert (one.n, one.line, one.closed) == (3, "all", True)


def test_objects_show_themselves_and_nothing_in_them_is_html(tmp_path):
    assert "&lt;b&gt;" in table("<b>", ("<i>",), [("<u>", 1)]) and "<u>" not in table("", (), [("<u>",)])
    (tmp_path / 'a".png').write_bytes(b"\x89PNG")
    assert pictures(tmp_path) == ('<img alt="a&quot;" style="max-width:32em" src="data:image/png;base64,iVBORw==">')
    report = Report([Measure(metric="x", value=0.5, subject="student", dataset="<d>", split="test")], ["<n>"])
    shown = report._repr_html_()
    assert "0.500" in shown and "&lt;d&gt; test" in shown and "note: &lt;n&gt;" in shown
