"""Teachers that a data set names, and those of a chain, in provenance, card, licence, tags and what was spent."""

from __future__ import annotations

import json

import pytest
import yaml
from kdhub_tasks.language.openai import OpenAI
from kdhub_tasks.language.task import CausalLanguage

import kdhub
from kdhub.testing.server import serving


def said(path, body) -> dict:
    text = f"Input: {body['seed']} apples\nOutput: {body['seed']}"
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return {"choices": [{"finish_reason": "stop", "message": {"content": text}}], "usage": usage}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    with serving(said) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def test_who_wrote_the_data_is_known_two_links_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenAI, "provenance", property(lambda self: {
        "source": "openai:toy", "id": "toy", "licence": "cc-by-nd-4.0", **self.identity
    }))  # fmt: skip
    (tmp_path / "registry" / "recipes").mkdir(parents=True)
    monkeypatch.setenv("KDHUB_CATALOG", str(tmp_path / "registry"))
    tiny = CausalLanguage().tiny_recipe(tmp_path)
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"prompt": f"count {c}", "response": c}) + "\n" for c in "abcd"))
    written = {"source": f"expansion:path:{seeds}", "options": {"teacher": "openai:toy", "asks": 4, "examples": 2}}
    options = {"max_steps": 1, "batch_size": 2}
    first = {**tiny, "task": "causal-lm", "method": "supervised", "teacher": None, "options": options}
    first |= {"data": {"train": [written]}, "student": tiny["student"]}
    second = {**first, "data": tiny["data"], "student": "recipe:first"}
    for name, recipe in (("first", first), ("second", second)):
        (tmp_path / "registry" / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))

    run = kdhub.distill({**second, "student": "recipe:second"}, out=tmp_path / "run")
    (one,) = run.provenance["lineage"]
    assert one == {
        "as": "data", "source": "openai:toy", "id": "toy", "licence": "cc-by-nd-4.0",
        "via": ["recipe:second", "recipe:first"],
    }  # fmt: skip
    (spent,) = run.provenance["spent"].items()
    assert spent[0] == "data of recipe:first of recipe:second" and spent[1]["answers"] == len(server.bodies) > 0
    card = (run.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "kdhub-teacher:toy" in front["tags"]
    assert "model that data names `toy` through `recipe:second` and `recipe:first`: `cc-by-nd-4.0`" in card
    assert "forbids derivatives" in card and "completion tokens" in card
