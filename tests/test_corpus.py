"""Some hundred hostile folders, cards, manifests, recipes and damaged files: each is refused, in a sentence, with the
promised exit code; nothing is imported, run or asked for it, and none takes long.

A part of them runs always, the whole of them with `-m slow`. `make fuzz` goes on from here at random.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import yaml
from hostile import watched
from safetensors.numpy import save_file

import kdhub
from kdhub.errors import KdhubError
from kdhub.evaluation.card_check import check_card
from kdhub.hub.files import digests, walk
from kdhub.hub.manifest import UNLISTED
from kdhub.hub.trust import check_model_folder
from kdhub.plain_yaml import plain_yaml

LONGEST = 10.0
SHARE = 5
"""One of so many runs always."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("kdhub.verbs.publish._usage_problems", lambda *a: [])


@dataclass
class Case:
    """One thing that is refused.

    Attributes:
        make: changes the folder; use: what refuses it; code: with this exit code.
        folder: of files, put back afterwards.
    """

    name: str
    make: Callable[[], Any]
    use: Callable[[], Any]
    code: int
    folder: Path


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A package that must not be imported, though it could be."""
    (tmp_path / "site" / "evil_canary").mkdir(parents=True)
    (tmp_path / "site" / "evil_canary" / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def published(toys, toy_run, hub, tmp_path) -> Path:
    """A student as it was pulled from a hub, without the record of that."""
    kdhub.publish(toy_run, "me/toy", licence="mit")
    kdhub.pull("me/toy", to=tmp_path / "published")
    (tmp_path / "published" / ".kdhub-pull.json").unlink()
    return tmp_path / "published"


@pytest.fixture
def run(toy_run, tmp_path) -> Path:
    """A run without seals, as older versions left it."""
    shutil.copytree(toy_run, tmp_path / "run")
    (tmp_path / "run" / "seals.json").unlink()
    for name in ("provenance.json", "state.json"):
        value = json.loads((tmp_path / "run" / name).read_bytes())
        value.pop("seal", None)
        (tmp_path / "run" / name).write_text(json.dumps(value))
    return tmp_path / "run"


def agreeing(folder: Path) -> None:
    """Have the manifest name the files as they are now: a stranger who means harm does so too."""
    path = folder / "kdhub.json"
    value = json.loads(path.read_bytes())
    files = {name: digests(file) for name, file in walk(folder) if name not in UNLISTED}
    value["files"] = {name: {"size": found.size, "sha256": found.sha256} for name, found in files.items()}
    path.write_text(json.dumps(value))


def of_models(tmp_path: Path) -> Iterator[Case]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": np.zeros((4, 4), np.float32), "b": np.zeros(3, np.float32)}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    files = [*hostile.models(), *((f"weights, {name}", "model.safetensors", c) for name, c in hostile.weights(whole))]
    for name, file, content in files:
        yield Case(name, lambda f=file, c=content: put(folder / f, c), lambda: check_model_folder(folder), 4, folder)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def of_published(folder: Path) -> Iterator[Case]:
    def case(name: str, file: str, content: bytes) -> Case:
        def make():
            (folder / file).write_bytes(content)
            if file != "kdhub.json":
                agreeing(folder)

        return Case(f"{file}, {name}", make, lambda: kdhub.verify(folder), 4, folder)

    whole = {name: json.loads((folder / name).read_bytes()) for name in ("report.json", "kdhub.json", "config.json")}
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    for name, value in hostile.replaced(whole["report.json"], hostile.REPORT):
        yield case(name, "report.json", json.dumps(value).encode())
    for name, value in hostile.replaced(whole["kdhub.json"], hostile.MANIFEST):
        yield case(name, "kdhub.json", json.dumps(value).encode())
    for name, value in hostile.replaced(plain_yaml(front), hostile.FRONT):
        yield case(name, "README.md", f"---\n{yaml.safe_dump(value)}---\n{body}".encode())
    for name, value in hostile.replaced(
        recipe, {"seed": ["x"], "task": [7], "teacher": [7], "evaluation": [7, {"x": 1}]}
    ):
        yield case(name, "recipe.yaml", yaml.safe_dump(value).encode())
    for name, text in hostile.YAML.items():
        yield case(name, "recipe.yaml", text.encode())
        yield case(name, "README.md", f"---\n{text}---\n{body}".encode())
    for name, content in hostile.NO_JSON.items():
        for file in ("report.json", "kdhub.json", "config.json"):
            yield case(name, file, content)
    for value in ([], {"hidden": "6"}, {"hidden": -1}, {"hidden": 10**6}, {"hidden": None}, {}, {"sizes": 7}):
        yield case(f"{value!r}", "config.json", json.dumps(value).encode())
    for file in ("recipe.yaml", "README.md"):
        yield case("not UTF-8", file, b"\xff\xfe\xff")


def of_runs(folder: Path) -> Iterator[Case]:
    def case(name: str, file: str, content: bytes) -> Case:
        use = lambda: kdhub.publish(folder, "me/toy", licence="mit", dry_run=True)  # noqa: E731
        return Case(f"{file}, {name}", lambda: (folder / file).write_bytes(content), use, 1, folder)

    whole = {name: json.loads((folder / name).read_bytes()) for name in ("report.json", "provenance.json")}
    for file, wrong in (("report.json", hostile.REPORT), ("provenance.json", hostile.PROVENANCE)):
        for name, value in hostile.replaced(whole[file], wrong):
            yield case(name, file, json.dumps(value).encode())
        for name, content in hostile.NO_JSON.items():
            yield case(name, file, content)
    for name, content in hostile.NO_JSON.items():
        yield case(name, "state.json", content)
        yield case(name, "seals.json", content)
    for name, text in hostile.YAML.items():
        yield case(name, "recipe.yaml", text.encode())


def of_recipes(folder: Path, recipe: dict[str, Any]) -> Iterator[Case]:
    folder.mkdir()

    def case(name: str, content: bytes) -> Case:
        use = lambda: kdhub.distill(folder / "r.yaml", out=folder / f"out-{name.encode().hex()}"[:200])  # noqa: E731
        return Case(f"recipe, {name}", lambda: (folder / "r.yaml").write_bytes(content), use, 2, folder)

    for name, value in hostile.replaced(recipe, hostile.RECIPE):
        yield case(name, yaml.safe_dump(value).encode())
    for name, text in hostile.YAML.items():
        yield case(name, text.encode())
    for key in recipe:
        yield case(f"{key} with a token", yaml.safe_dump({**recipe, key: "hf_" + "a1B2" * 8}).encode())


def tried(cases: list[Case]) -> list[str]:
    """What was not as promised, one line each."""
    wrong = []
    for case in cases:
        kept = {path: path.read_bytes() for path in case.folder.rglob("*") if path.is_file()}
        case.make()
        with watched() as seen:
            try:
                case.use()
                wrong.append(f"{case.name}: not refused")
            except KdhubError as error:
                if int(error.exit_code) != case.code:
                    wrong.append(f"{case.name}: exit code {int(error.exit_code)}, not {case.code} ({error})")
                if any(word in error.message for word in ("subscriptable", "has no attribute", "is a NoneType")):
                    wrong.append(f"{case.name}: says {error.message}")
            except Exception as error:  # what would end in a traceback
                wrong.append(f"{case.name}: {type(error).__name__}: {error}")
        wrong += [f"{case.name}: {what}" for what in seen.done]
        if seen.seconds > LONGEST:
            wrong.append(f"{case.name}: took {seen.seconds:.1f} s")
        for path in [path for path in case.folder.rglob("*") if path.is_file() and path not in kept]:
            path.unlink()
        for path, content in kept.items():
            put(path, content)
    return wrong


def some(cases: Iterator[Case], share: int) -> list[Case]:
    """One of each so many, other ones for other kinds."""
    cases = list(cases)
    return random.Random(len(cases)).sample(cases, -(-len(cases) // share))


@pytest.mark.parametrize("share", [SHARE * 4, pytest.param(1, marks=pytest.mark.slow)])
def test_each_is_refused(canary, published, run, toy_run, tmp_path, share):
    recipe = plain_yaml((toy_run / "recipe.yaml").read_bytes())
    kdhub.verify(published), kdhub.publish(run, "me/toy", licence="mit", dry_run=True)  # what a whole one imports
    kdhub.distill(recipe, out=tmp_path / "whole")
    kinds = [of_models(tmp_path), of_published(published), of_runs(run), of_recipes(tmp_path / "recipes", recipe)]
    cases = [case for kind in kinds for case in some(kind, share)]
    assert len(cases) >= 300 // share and "evil_canary" not in sys.modules
    wrong = tried(cases)
    assert not wrong, "\n".join(wrong)
    print(f"{len(cases)} hostile things, each refused")


def test_a_planted_fault_is_seen(canary, tmp_path):
    """What the corpus looks for is found where it is."""
    (tmp_path / "x").mkdir()
    put(tmp_path / "x" / "a", b"1")

    def use(what: str) -> None:
        if what == "import":
            with pytest.raises(SystemExit):
                __import__("evil_canary")
        elif what == "traceback":
            {}["x"]
        elif what == "code":
            raise KdhubError("no")
        elif what == "process":
            __import__("os").system("true")

    made = [
        Case(w, lambda: None, lambda w=w: use(w), 4, tmp_path / "x") for w in ("import", "traceback", "code", "process")
    ]
    told = tried(made)
    for said in (
        "imported evil_canary",
        "import: not refused",
        "traceback: KeyError",
        "code: exit code 1",
        "os.system",
    ):
        assert any(said in line for line in told)


def test_cards_are_checked_in_sentences():
    for name, text in hostile.YAML.items():
        assert check_card(f"---\n{text}---\n# x\n\ny\n"), name
