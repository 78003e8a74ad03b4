"""What rows have in common is beside them: made once, named by its content, opened once in each process."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import kdhub
from kdhub.data.dataset import Data
from kdhub.data.shared import Shared, shared
from kdhub.errors import DataError
from kdhub.evaluation import cost
from kdhub.files import home

RECIPE = {
    "task": "toy-vectors", "method": "toy-hint", "teacher": "linear:1", "student": "mlp:6",
    "data": {"train": "toy-graph"}, "options": {"batch_size": 4, "epochs": 1, "precision": "float32"},
    "evaluation": {"data": [{"source": "toy-graph", "split": "test"}], "cost": False},
}  # fmt: skip


def edges(n=3):
    return {"edges": np.arange(2 * n).reshape(2, n), "weights": np.ones(n, np.float32)}


def test_arrays_are_made_once_and_named_by_their_content(isolated):
    made = []
    one, again = (Shared({"v": 1}, lambda: made.append(1) or edges()) for _ in range(2))
    assert one.name == again.name and made == [1]
    assert Shared({"v": 2}, edges).name == one.name, "the same by another key"
    other = Shared({"v": 3}, lambda: {**edges(), "weights": np.zeros(3, np.float32)})
    assert other.name != one.name
    found = shared(one.name)
    assert found is shared(one.name) and isinstance(found["edges"], np.memmap)
    assert found["edges"].tolist() == [[0, 1, 2], [3, 4, 5]] and not found["weights"].flags.writeable
    rows = [Data.from_rows("d", {"train": lambda o=o: [{"graph": o.name}]}, key={"of": o.key}) for o in (one, other)]
    assert rows[0].fingerprint("train") != rows[1].fingerprint("train"), "another graph is other rows"


def test_what_is_gone_is_made_again_where_its_data_is_opened(isolated):
    import shutil

    def opened():
        graph = Shared({"v": 1}, edges)
        return graph, Data.from_rows("d", {"train": lambda: [{"graph": graph.name}]}, key={}, shared=[graph])

    (name,) = opened()[1].split("train")["graph"]
    shutil.rmtree(home() / "data" / "shared" / name)
    with pytest.raises(DataError, match="which are not here"):
        shared(name)
    assert opened()[1].with_options(limit=1).split("train")["graph"][:] == [name], "these rows are kept ones"
    assert shared(name)["edges"].shape == (2, 3)
    with pytest.raises(DataError, match="not here"):
        shared("../../../etc")
    with pytest.raises(DataError, match="not 'a/b' of int64"):
        Shared({"v": 2}, lambda: {"a/b": np.zeros(1, int)}).name  # noqa: B018


def test_a_run_on_nodes_of_a_graph(toys, tmp_path, monkeypatch):
    """Trained, saved, measured, its cost found in processes that get the rows alone; the graph is in no row."""
    import toy

    child = tmp_path / "child.py"
    child.write_text(
        "import sys, toy\nfrom kdhub.plugins import builtin\nfrom kdhub.plugins.discovery import Plugins, set_plugins\n"
        "set_plugins(plugins := Plugins())\nplugins.register(builtin, 'kdhub')\nplugins.register(toy, 'kdhub-toy')\n"
        "toy.ring = None\nfrom kdhub.evaluation import cost\ncost.main()\n"
    )
    monkeypatch.setattr(cost, "COMMAND", [sys.executable, str(child)])
    opened, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file, **how: opened.append(file.stem) or load(file, **how))
    run = kdhub.distill(RECIPE, out=tmp_path / "run")
    assert sorted(opened) == ["features", "neighbours"], "opened once"
    found = {(m["subject"], m["metric"]): m for m in run.report["measures"]}
    rows = toy.Vectors().sample(toy.nodes(), "test", 8)
    subject = {"subject": "student", "folder": str(run.student_folder)}
    costs = {m.metric: m for m in cost.measure("toy-vectors", [subject], rows, threads=1, rounds=1, seconds=0.01)}
    assert costs["throughput"].value > 0, costs["throughput"].note
    graph = toy.ring(40)
    x = [graph["features"][graph["neighbours"][node]].mean(0) for node in range(1, 40, 2)]
    student = kdhub.load(run.student_folder)
    expected = toy.run_net(student.module, [{"x": one.tolist()} for one in x]) - [
        [float(n % 3)] for n in range(1, 40, 2)
    ]
    assert found["student", "toy-error"]["value"] == pytest.approx(float(np.square(expected).mean()), rel=1e-5)
    (name,) = run.provenance["data"]["use"][0]["from"]["shared"]
    again = kdhub.evaluate(run.folder)
    assert [m.value for m in again.measures if m.subject == "student"][0] == found["student", "toy-error"]["value"]
    sizes = [file.stat().st_size for file in (home() / "data" / "prepared").rglob("rows.arrow")]
    assert len(json.dumps({"graph": name})) < 60 and max(sizes) < 10_000
