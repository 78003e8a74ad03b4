"""Students that say why they should not be published: refused until it is repeated, and said in card and manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import kdhub
from kdhub.errors import PublishError, RecipeError
from kdhub.evaluation.card import front_matter, sections
from kdhub.hub.trust import split_card
from kdhub.recipes.chain import lineage, withheld_in
from kdhub.recipes.recipe import Layer, build
from kdhub.recipes.run import Run
from kdhub.verbs import publish as verb

HARM = "raw harmful text, for research"
TERMS = "terms of big-model: no models that compete with it"


@pytest.fixture
def run(toys, toy_run, tmp_path, monkeypatch):
    """A finished run; `run(withheld=[...], terms=...)` is a copy whose student or teacher says so."""
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])

    def make(withheld=(), terms="", lineage=()) -> Path:
        folder = Path(shutil.copytree(toy_run, tmp_path / f"run{len(list(tmp_path.iterdir()))}"))
        facts = json.loads((folder / "provenance.json").read_text())
        facts["student"]["withheld"] = list(withheld)
        facts["teacher"] |= {"id": "big-model", "terms": terms} if terms else {}
        facts["lineage"] = list(lineage)
        (folder / "provenance.json").write_text(json.dumps(facts))
        kdhub.Run.open(folder).seal()
        return folder

    return make


def publish(folder, despite=(), **more):
    return kdhub.publish(folder, "me/toy", licence="mit", despite=despite, **more)


def problems(folder, despite=(), **more) -> list[str]:
    with pytest.raises(PublishError) as error:
        publish(folder, despite, **more)
    return error.value.problems


def test_it_is_refused_until_the_reason_is_repeated(hub, run, tmp_path):
    folder = run([HARM], TERMS.partition(": ")[2])
    told = problems(folder)
    assert told == problems(folder, dry_run=True) and len(told) == 2
    assert told[0] == (
        f"it should not be published: {HARM}; to publish it nevertheless, repeat this: --despite '{HARM}'"
    )
    assert problems(folder, [HARM]) == told[1:] and problems(folder, ["yes"])[:2] == told
    assert hub.requests == []

    said = [f" {HARM.upper()}. ", TERMS]
    dry = publish(folder, said, dry_run=True)
    assert [w for w in dry.warnings if "despite" in w] == [
        f"it is published despite this: {HARM}", f"it is published despite this: {TERMS}"
    ]  # fmt: skip
    done = publish(folder, said)
    front, body = split_card(done.card)
    assert front["kdhub"]["withheld"] == front["kdhub"]["published_despite"] == [HARM, TERMS]
    assert f"- Why it should not be published: {HARM}. Its publisher repeated this, and published it." in body

    # From a hub it goes to another one by the same rule.
    pulled = kdhub.pull("me/toy", to=tmp_path / "pulled").folder
    with pytest.raises(PublishError) as error:
        kdhub.publish(pulled, "me/other")
    assert error.value.problems == told
    assert kdhub.publish(pulled, "me/other", despite=[TERMS, HARM]).changed


def test_nothing_is_repeated_where_nothing_stands_against_it(hub, run):
    folder = run()
    assert problems(folder, ["x y"]) == ["--despite 'x y' repeats no reason; nothing stands against publishing it"]
    assert "withheld" not in split_card(publish(folder, dry_run=True).card)[0]["kdhub"]
    kept = Run.open(run([HARM]))
    assert "published_despite" not in front_matter(kept)["kdhub"]
    assert f"Why it should not be published: {HARM}.\n" in sections(kept)["Limits"] + "\n"


def test_terms_of_models_behind_a_chain_count(hub, run):
    part = {"as": "data", "source": "openai:big-model", "id": "big-model", "terms": "none", "via": ["recipe:rows"]}
    assert problems(run(lineage=[part, part]))[0].startswith("it should not be published: terms of big-model: none;")
    folder = run(terms="none")
    (own,) = lineage({"recipe:x": str(folder / "student")})[0]
    assert own["as"] == "teacher" and own["terms"] == "none" and own["via"] == ["recipe:x"]


def test_an_api_has_terms_by_its_option():
    from kdhub.teachers.endpoint import Endpoint

    class Asked(Endpoint):
        layout = signals = None

    options = {"base_url": "http://localhost/v1", "terms": "no competing models"}
    teacher, plain = (Asked("m", Asked.Options(**o)) for o in (options, {"base_url": options["base_url"]}))
    assert teacher.terms == "no competing models" and plain.terms == ""
    assert teacher.identity == plain.identity, "stored signals are found by it"


def test_what_contains_a_withheld_student_is_withheld(tmp_path):
    """Rows in rows and a start; what merely learnt from such rows, or from such a teacher, is not."""
    base = {"task": "toy-vectors", "method": "toy-plain", "student": "mlp:4"}
    chained = {}
    for name, reason in (("rows", HARM), ("start", "made of private data"), ("free", None)):
        folder = chained[f"recipe:{name}"] = tmp_path / name / "student"
        folder.mkdir(parents=True)
        (folder.parent / "recipe.yaml").write_text(yaml.safe_dump({"schema": 1, **base}))
        known = {"student": {"withheld": [reason]} if reason else {}}
        (folder.parent / "provenance.json").write_text(json.dumps(known))

    def reasons(kind, **keys):
        return withheld_in(build([Layer("test", {**base, **keys})]), kind, chained)

    rows = {"data": {"train": ["recipe:free", {"source": "chat:recipe:rows"}]}}
    assert reasons("dataset", **rows) == [HARM] and reasons("model", **rows) == []
    assert reasons("model", student="recipe:start", **rows) == ["made of private data"]
    assert reasons("model", teacher="recipe:start") == reasons("model", student="recipe:gone") == []


def test_a_recipe_says_it_of_its_student(toys, tmp_path):
    student = {"source": "table", "withheld": HARM}
    recipe = {"task": "toy-vectors", "method": "toy-label", "teacher": "linear:1", "data": {"train": "toy-points"}}
    run = kdhub.distill({**recipe, "student": student, "evaluation": {"cost": False}}, out=tmp_path / "run")
    assert run.provenance["student"]["withheld"] == [HARM]
    with pytest.raises(RecipeError, match="withheld"):
        kdhub.distill({**recipe, "student": {**student, "withheld": "x" * 201}}, out=tmp_path / "other")
