"""Valid files, changed at random as an attacker or a bad disk would: each is read or refused in a sentence.

`make fuzz` tries 100,000 of them (KDHUB_FUZZ=N others, from seed KDHUB_FUZZ_FROM on); a few always run. A failure names
its seed and its content.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hostile import mutated, watched
from safetensors.numpy import save_file

from kdhub.catalogue.models import MODELS, validate
from kdhub.errors import KdhubError
from kdhub.evaluation.card import render_card
from kdhub.evaluation.card_check import check_card, read_card
from kdhub.evaluation.report import Report, render
from kdhub.files import read_sealed, write_sealed
from kdhub.hub import manifest
from kdhub.hub.files import check_entries, parse_commit, parse_tree
from kdhub.hub.trust import check_model_folder
from kdhub.plain_json import plain_json
from kdhub.plain_yaml import plain_yaml
from kdhub.recipes.recipe import Layer, build
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run
from kdhub.recipes.run_shapes import SHAPES, Logged
from kdhub.verbs.search import parse_row

LONGEST = 10.0
FIRST = int(os.environ.get("KDHUB_FUZZ_FROM", 0))
"""The first seed: of slices that are tried one after the other."""
STUDENTS = int(os.environ.get("KDHUB_FUZZ_STUDENTS", 100))
"""Changed configurations of each folder of a student."""
MODEL = {
    "architectures": ["BertForSequenceClassification"], "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 20,
    "id2label": {"0": "no"}, "text_config": {"layer_types": ["full_attention"], "attn_implementation": "sdpa"},
}  # fmt: skip
MODULES = [{"idx": 0, "name": "0", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
TREE = [{"type": "file", "path": "a.json", "size": 2, "oid": "0" * 40, "lfs": {"oid": "a" * 64, "size": 2}}]
FOUND = {
    "id": "a/b", "sha": "0" * 40, "tags": ["kdhub"], "downloads": 7, "lastModified": "2026", "cardData": {
        "license": "mit", "kdhub": {"cost": {"disk": 1}}, "model-index": [
            {"results": [{"dataset": {"name": "x", "split": "test"}, "metrics": [{"type": "f1", "value": 0.5}]}]}]},
}  # fmt: skip
ENTRY = {
    "summary": "rows", "licence": "mit",
    "splits": {"train": {"sources": [{"file": "x.jsonl", "sha256": "0" * 64}], "columns": {"text": "a"}}},
}  # fmt: skip


class Readers:
    """Each takes a content and makes of it what kdhub makes of it; what it raises besides refusals is a fault."""

    def __init__(self, run: Path, folder: Path):
        whole = Run.open(run)
        self.run = SimpleNamespace(
            folder=run, recipe=whole.recipe, provenance=dict(whole.provenance), report=whole.report
        )
        self.folder = folder / "model"
        (self.folder / "1_Pooling").mkdir(parents=True)
        (self.folder / "config.json").write_text(json.dumps(MODEL))
        save_file({"a": np.zeros((4, 4), np.float32)}, self.folder / "model.safetensors")
        (self.folder / "1_Pooling" / "config.json").write_text("{}")
        self.file = folder / "sealed.json"
        write_sealed(self.file, {"a": 1.5, "b": [None, "x"], "c": {"d": 2**40}})
        files = {"config.json": {"size": 2, "sha256": "0" * 64}}
        card = render_card(whole, licence="mit").encode()
        state = json.loads((run / "state.json").read_bytes())
        made = {
            "recipe": (run / "recipe.yaml").read_bytes(),
            "card": card,
            "manifest": json.dumps({"schema": 1, "task": "x", "kind": "model", "withheld": ["y"],
                                    "provided_by": {"distribution": "z"}, "files": files}).encode(),
            "report": json.dumps(whole.report).encode(),
            "provenance": json.dumps(self.run.provenance).encode(),
            "state": json.dumps(state).encode(),
            "seals": (run / "seals.json").read_bytes(),
            "log": (run / "metrics.jsonl").read_bytes().splitlines()[0],
            "sealed": self.file.read_bytes(),
            "config": json.dumps(MODEL).encode(),
            "modules": json.dumps(MODULES).encode(),
            "weights": (self.folder / "model.safetensors").read_bytes(),
            "tree": json.dumps(TREE).encode(),
            "commit": json.dumps({"sha": "0" * 40}).encode(),
            "row": json.dumps(FOUND).encode(),
            "entry": json.dumps(ENTRY).encode(),
        }  # fmt: skip
        self.valid: dict[str, bytes] = made

    def recipe(self, content: bytes) -> None:
        values = plain_yaml(content, stranger=True)
        if isinstance(values, dict):
            build([Layer("recipe.yaml", values)]).to_yaml()

    def card(self, content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        check_card(text)
        read_card(text)

    def manifest(self, content: bytes) -> None:
        manifest.parse(content, "x").problems({})

    def report(self, content: bytes) -> None:
        report = Report.from_dict(plain_json(content))
        render(report)
        json.dumps([report.to_dict(), len(report.retention), len(report.headline())], allow_nan=False)
        render_card(SimpleNamespace(**{**vars(self.run), "report": plain_json(content)}))

    def provenance(self, content: bytes) -> None:
        known = plain_json(content, SHAPES["provenance.json"])
        check_card(render_card(SimpleNamespace(**{**vars(self.run), "provenance": known})))

    def state(self, content: bytes) -> None:
        plain_json(content, SHAPES["state.json"])

    def seals(self, content: bytes) -> None:
        plain_json(content, SHAPES["seals.json"])

    def log(self, content: bytes) -> None:
        plain_json(content, Logged)

    def _model(self, file: str, content: bytes) -> None:
        path = self.folder / file
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            check_model_folder(self.folder)
        finally:
            path.unlink() if kept is None else path.write_bytes(kept)

    def config(self, content: bytes) -> None:
        self._model("config.json", content)

    def modules(self, content: bytes) -> None:
        self._model("modules.json", content)

    def weights(self, content: bytes) -> None:
        self._model("model.safetensors", content)

    def sealed(self, content: bytes) -> None:
        self.file.write_bytes(content)
        read_sealed(self.file)

    def tree(self, content: bytes) -> None:
        check_entries(parse_tree(plain_json(content), "x"), "x", most_bytes=10**9)

    def commit(self, content: bytes) -> None:
        parse_commit(plain_json(content), "x")

    def row(self, content: bytes) -> None:
        if found := parse_row(plain_json(content), "model", ["kdhub"]):
            json.dumps(found.to_dict(), allow_nan=False)

    def entry(self, content: bytes) -> None:
        values = plain_yaml(content)
        if isinstance(values, dict):
            validate(next(iter(MODELS)), "x", values, "x.yaml")

    def read(self, what: str, content: bytes) -> None:
        getattr(self, what)(content)


@pytest.mark.parametrize(
    "many", [400, pytest.param(int(os.environ.get("KDHUB_FUZZ", 100_000)), marks=pytest.mark.slow)]
)
def test_what_was_changed_is_read_or_refused(toys, toy_run, tmp_path, many):
    readers = Readers(toy_run, tmp_path)
    for what, content in readers.valid.items():
        readers.read(what, content)
    told: Counter[str] = Counter()
    faults: dict[Any, str] = {}
    with watched() as seen:
        for seed in range(FIRST, FIRST + many):
            what = list(readers.valid)[seed % len(readers.valid)]
            content = mutated(readers.valid[what], random.Random(seed), front=what == "card")
            began = time.process_time()
            try:
                readers.read(what, content)
                told["read"] += 1
            except (KdhubError, ValueError) as error:
                if isinstance(error, KdhubError) or type(error).__name__ in ("NotPlain", "ValueError"):
                    told["refused"] += 1
                else:
                    faults.setdefault((what, type(error).__name__), f"seed {seed}: {error!r:.200}, {content!r:.300}")
            except Exception as error:
                at = error.__traceback__
                while at.tb_next:
                    at = at.tb_next
                place = f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}"
                faults.setdefault((what, type(error).__name__, place), f"seed {seed}: {error!r:.200}, {content!r:.300}")
            if time.process_time() - began > LONGEST:
                faults[what, seed] = f"seed {seed} took more than {LONGEST} s"
    print(f"{many:,} changed files: {dict(told)}")
    assert not faults, "\n".join(f"{key}: {said}" for key, said in faults.items())
    assert not seen.done and told["read"] and told["refused"] > many // 3


def _folders(recipe: dict[str, Any]) -> set[Path]:
    """What the models of a recipe are read from."""
    sources = [(recipe.get(of) or {}).get("source", "") for of in ("teacher", "student")]
    return {Path(source.removeprefix("path:")) for source in sources if source.startswith("path:")}


@pytest.mark.slow
def test_a_student_of_any_task_is_opened_or_refused(isolated, tmp_path):
    """Each file of JSON in the folders of every task's tiny recipe, changed as above."""
    resolver, told, faults = Resolver(), Counter(), []
    for entry in resolver.registry.all("task"):
        (tmp_path / entry.name).mkdir()
        task = resolver.task(entry.name)
        for folder in _folders(task.tiny_recipe(tmp_path / entry.name) or {}):
            files = sorted(folder.rglob("*.json"))
            task.load(folder)
            with watched() as seen:
                for seed in range(FIRST, FIRST + STUDENTS):
                    file = files[seed % len(files)]
                    kept = file.read_bytes()
                    file.write_bytes(mutated(kept, random.Random(seed)))
                    began = time.process_time()
                    try:
                        task.load(folder)
                        told["opened"] += 1
                    except KdhubError:
                        told["refused"] += 1
                    except Exception as error:
                        faults.append(f"{entry.name}, {file.name}, seed {seed}: {error!r:.200}")
                    if time.process_time() - began > LONGEST:
                        faults.append(f"{entry.name}, {file.name}, seed {seed}: took more than {LONGEST} s")
                    file.write_bytes(kept)
            faults += [f"{entry.name}: {what}" for what in seen.done]
    print(f"changed configurations of students: {dict(told)}")
    assert not faults, "\n".join(faults)
    assert told["opened"] and told["refused"]
