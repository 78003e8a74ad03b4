"""Exports: what is written is the student, or nothing is left of it; and everybody who counts or publishes knows."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
import torch
import toy
import toy_export
from toy_export import Numbers

import kdhub
from kdhub.errors import CompatibilityError, RunError, UnknownNameError, UsageError
from kdhub.evaluation import cost
from kdhub.evaluation.card import render_card
from kdhub.exporting import exporter
from kdhub.exporting.exporter import ExportError, exports, stale
from kdhub.exporting.onnx import Onnx, _cause
from kdhub.recipes.run import Run
from kdhub.verbs import export as verb


@pytest.fixture
def run(toys, toy_run, tmp_path):
    toys.register(toy_export, "kdhub-numbers")
    shutil.copytree(toy_run, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_an_export_is_the_student_and_everybody_knows_it(run):
    bytes_before = cost.weight_bytes(run.student_folder)
    made = kdhub.export(run.folder, "numbers", quantize="half", cost=False)
    assert made.name == "numbers-half" and made.path == run.student_folder / "numbers/weights.npz"
    assert 0 < made.difference < 2e-3
    scores = {m.subject: m.value for m in made.measures}
    assert scores["numbers-half"] == pytest.approx(scores["student"], rel=0.01)
    noted = exports(run.student_folder)["numbers-half"]
    assert (noted["format"], noted["quantize"], noted["rows"]) == ("numbers", "half", 16)
    assert noted["files"]["numbers/weights.npz"]["size"] == made.path.stat().st_size
    assert cost.weight_bytes(run.student_folder) == bytes_before, "the student weighs what it did"
    assert cost.weight_bytes(run.student_folder, export="numbers-half") == made.path.stat().st_size
    assert run.damage() == []
    card = render_card(run)
    assert "## Exports" in card and "numbers/weights.npz" in card and "numpy.load" in card
    student = exporter.attached(kdhub.load(run.folder), run.student_folder, "numbers-half")
    assert student.module.inner.weight.half().float().equal(student.module.inner.weight)

    made.path.write_bytes(b"other")
    assert stale(run.student_folder) == ["numbers/weights.npz"] and run.damage() == ["student/numbers/weights.npz"]


def test_what_is_not_the_student_is_not_kept(run, monkeypatch):
    monkeypatch.setattr(Numbers, "wrong", 0.5)
    with pytest.raises(ExportError, match="outputs differ .* and 0.001 is allowed"):
        kdhub.export(run.folder, "numbers", cost=False)
    monkeypatch.setattr(Numbers, "wrong", float("nan"))
    with pytest.raises(ExportError, match="differ from those of torch by inf"):
        kdhub.export(run.folder, "numbers", cost=False)
    monkeypatch.setattr(Numbers, "wrong", 0.0)
    monkeypatch.setattr(Numbers, "usage", lambda *a: "raise SystemExit('no such thing')")
    with pytest.raises(ExportError, match="usage lines do not work: no such thing"):
        kdhub.export(run.folder, "numbers", cost=False)
    assert exports(run.student_folder) == {} and not list((run.student_folder / "numbers").iterdir())


def test_wrong_wishes_say_what_there_is(run, tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="no exporter named 'onx'") as caught:
        kdhub.export(run.folder, "onx")
    assert "'onnx'" in caught.value.hint and "kdhub list exporters" in caught.value.hint
    with pytest.raises(UnknownNameError, match="no precision named 'int4'") as caught:
        kdhub.export(run.folder, "numbers", quantize="int4")
    assert "half" in caught.value.hint
    with pytest.raises(UsageError, match="needs no_such_module") as caught:
        kdhub.export(run.folder, "far")
    assert "kdhub[far]" in caught.value.hint
    with pytest.raises(UsageError, match="is not a folder"):
        kdhub.export(tmp_path / "nowhere", "numbers")
    with pytest.raises(UsageError, match="nowhere does not exist: there is no such folder"):
        kdhub.export("nowhere", "numbers")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        kdhub.export(run.folder, "numbers", out=tmp_path / "full")
    (run.student_folder / "exports.json").write_text(
        '{"schema": 1, "exports": {"a": {"file": "x", "files": {"../x": 1}}}}'
    )
    with pytest.raises(RunError, match="is not a list of exports"):
        exports(run.student_folder)


@pytest.mark.parametrize("number, hint", [(errno.ENOSPC, "free space"), (errno.EACCES, "--out")])
def test_a_full_disk_and_a_folder_that_is_closed_are_said(run, monkeypatch, number, hint):
    def write(self, student, examples, signal, folder):
        raise OSError(number, {errno.ENOSPC: "No space left on device", errno.EACCES: "Permission denied"}[number])

    monkeypatch.setattr(Numbers, "write", write)
    with pytest.raises(ExportError, match="cannot write below .*: (No space left|Permission denied)") as caught:
        kdhub.export(run.folder, "numbers", cost=False)
    assert hint in caught.value.hint and exports(run.student_folder) == {}


def test_a_copy_leaves_the_student_alone(run, tmp_path):
    made = kdhub.export(run.folder, "numbers", out=tmp_path / "copy", cost=False)
    assert made.path.is_file() and not (run.student_folder / "exports.json").exists()
    assert (made.folder / "exports.json").is_file() and kdhub.load(made.folder, task="toy-vectors")


def test_onnx_gives_what_torch_gives_at_any_number_of_rows(run):
    pytest.importorskip("onnxruntime")
    made = kdhub.export(run.folder, "onnx", cost=False)
    assert made.path == run.student_folder / "onnx/model.onnx" and made.difference < 1e-5
    import onnxruntime

    session = onnxruntime.InferenceSession(str(made.path))
    (one,), (out,) = session.get_inputs(), session.get_outputs()
    assert (one.name, one.shape[1], out.name) == ("x", toy.INPUTS, "vector")
    student = kdhub.load(run.folder)
    for rows in (1, 7):
        x = torch.randn(rows, toy.INPUTS, generator=torch.Generator().manual_seed(rows))
        expected = student.module(x)["vector"].detach().numpy()
        assert np.abs(session.run(None, {"x": x.numpy()})[0] - expected).max() < 1e-5
    smaller = kdhub.export(run.folder, "onnx", quantize="int8", cost=False)
    assert smaller.path.name == "model_qint8_avx2.onnx" and smaller.difference < Onnx.tolerance["int8"]
    assert set(exports(run.student_folder)) == {"onnx", "onnx-int8"}
    assert json.dumps(smaller.to_dict(), default=str)


def test_an_operator_that_onnx_does_not_have_is_named(run, monkeypatch):
    pytest.importorskip("onnxscript")

    def forward(self, x):
        return {"vector": torch.special.bessel_j0(self.outer(torch.tanh(self.inner(x)))), "hidden": x}

    monkeypatch.setattr(toy.Net, "forward", forward)
    with pytest.raises(CompatibilityError, match="ONNX has no operator for prims.bessel_j0"):
        kdhub.export(run.folder, "onnx", cost=False)
    assert not list((run.student_folder / "onnx").iterdir()), "nothing is left"
    assert _cause(ValueError("dim 3\nmore")) == "ValueError: dim 3"


def test_both_are_timed_in_turns(run, monkeypatch):
    asked = []

    def measure(task, subjects, rows, against):
        asked.append((task, [s.get("export") for s in subjects], len(rows), against))
        return [
            cost.cost_of("numbers", "latency-p50", 2.0, "ms", ratio=0.5),
            cost.cost_of("numbers", "memory", 1, "bytes"),
        ]

    monkeypatch.setattr(cost, "measure", measure)
    made = kdhub.export(run.folder, "numbers")
    assert asked == [("toy-vectors", [None, "numbers"], 16, "student")]
    assert [m.metric for m in made.measures if not m.dataset] == ["latency-p50"]
    assert made.table().rows[-1] == ["latency-p50", "", "2.00 ms", "0.50"]
    assert exports(run.student_folder)["numbers"]["measures"][-1]["ratio"] == 0.5
    assert "(0.50 of torch's)" in (run.folder / "README.md").read_text()
    assert verb.name_of("numbers", None) == "numbers"


def test_cost_is_measured_again_and_scores_stay(run, monkeypatch):
    before = [m for m in run.report["measures"] if m.get("dataset")]

    def measure(task, subjects, rows, **how):
        return [cost.cost_of("student", "latency-p50", 7.0, "ms", "times were measured on a busy machine")]

    monkeypatch.setattr(cost, "measure", measure)
    for quiet in (False, True):
        report = kdhub.evaluate(run.folder, cost=True, update=True)
        written = json.loads((run.folder / "report.json").read_text())["measures"]
        assert [m for m in written if m.get("dataset")] == before
        assert [(m["metric"], m["value"]) for m in written if not m.get("dataset")] == [("latency-p50", 7.0)]
        assert report.notes.count("times were measured on a busy machine") == (not quiet)
        monkeypatch.setattr(cost, "measure", lambda *a, **k: [cost.cost_of("student", "latency-p50", 7.0, "ms")])
    assert run.damage() == [] and "7.00 ms" in (run.folder / "README.md").read_text()
    with pytest.raises(UsageError, match="measures the cost of a run again, and nothing else"):
        kdhub.evaluate(run.folder, update=True)


def test_its_help_imports_nothing_heavy(run_python):
    code = (
        "import runpy, sys\nsys.argv = ['kdhub', 'export', '--help']\n"
        "try:\n    runpy.run_module('kdhub', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'onnx'} & {*sys.modules}))"
    )
    done = run_python(code)
    assert "--quantize" in done.stdout and done.stdout.splitlines()[-1] == "[]", done.stderr
