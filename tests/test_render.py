"""`kdhub render`: a task says how its students are looked at, the command writes the file."""

from __future__ import annotations

import json
import sys

import pytest
import toy
from pydantic import BaseModel, ConfigDict, Field

import kdhub
from kdhub.errors import CompatibilityError, RecipeError, UsageError
from kdhub.pictures import FORMATS, Picture
from kdhub.task import Task


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int = Field(0, ge=0, description="of what is shown")


@pytest.fixture
def folder(toys, tmp_path, monkeypatch):
    def rendered(task, student, options):
        return Picture("vectors.png", "The weights.", FORMATS[".png"] + bytes([options.seed]))

    monkeypatch.setattr(toy.Vectors, "RenderOptions", Options)
    monkeypatch.setattr(toy.Vectors, "render", rendered)
    few = {"batch_size": 8, "max_steps": 1}
    recipe = {**toy.Vectors().tiny_recipe(tmp_path), "evaluation": {"data": [], "cost": False}, "options": few}
    return kdhub.distill({"task": "toy-vectors", "method": "toy-hint", **recipe}, out=tmp_path / "run").folder


def test_the_task_renders_and_the_file_is_written(folder, tmp_path):
    made = kdhub.render(folder, tmp_path / "new" / "a.png", set=["seed=3"])
    assert (tmp_path / "new" / "a.png").read_bytes() == made.content and made.content[-1] == 3
    assert kdhub.render(kdhub.load(folder), seed=4, set={"seed": 3}).content[-1] == 4, "a student is one as well"


def test_what_cannot_be_rendered_is_refused_by_name(folder, tmp_path, monkeypatch):
    for options, out, error, says in (
        ({"seed": -1}, None, RecipeError, "seed"),
        ({"sead": 1}, None, RecipeError, "sead.*seed"),
        ({}, "a.ply", UsageError, "does not end with .png or .gif"),
        ({}, "a.gif", UsageError, "ends with .png, and the file with .gif"),
    ):
        with pytest.raises(error, match=says):
            kdhub.render(folder, out and tmp_path / out, **options)
    assert not list(tmp_path.glob("a.*"))
    monkeypatch.setattr(toy.Vectors, "render", Task.render)
    with pytest.raises(CompatibilityError, match="toy-vectors make nothing"):
        kdhub.render(folder)


def test_the_command_line(folder, tmp_path, capsys, monkeypatch):
    from kdhub.cli import app

    monkeypatch.setattr(sys, "argv", ["kdhub", "render", str(folder), "--out", str(tmp_path / "a.png"), "--json"])
    with pytest.raises(SystemExit) as done:
        app.run()
    assert done.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["sentence"] == "The weights."
    assert (tmp_path / "a.png").is_file()
