"""The notebook: its cells are Python that names what there is; run in order (slow), each object shows itself."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import kdhub

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == kind]


def test_cells_are_python_and_name_what_there_is():
    used = set()
    for text in cells("code"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kdhub":
                used.add(node.attr)
    assert {"distill", "evaluate", "load", "compare", "export"} == used <= set(dir(kdhub))
    assert all(callable(getattr(kdhub, name)) for name in used)
    notebook = json.loads(TOUR.read_text())
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    links = [link for text in cells("markdown") for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links and all((TOUR.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_the_tour_runs_and_its_objects_show_themselves(isolated, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names, shown = {}, []
    for text in cells("code"):
        tree = ast.parse(text)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert len(pages) == 5 and all("<table>" in page for page in pages)
    assert "data:image/png;base64," in pages[0] and "accuracy" in pages[2]
    assert shown[-1] < 1e-3
