"""Verifying: figures that were edited anywhere are found, and what cannot be asked is said, never passed over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, Field

import kdhub
from kdhub.errors import UntrustedError
from kdhub.hub.files import digests
from kdhub.recipes import strangers
from kdhub.verbs import publish as verb


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])


@pytest.fixture
def pulled(toys, toy_run, hub, tmp_path) -> Path:
    """A student that was published and pulled, to be changed."""
    kdhub.publish(toy_run, "me/toy", licence="mit")
    return kdhub.pull("me/toy", to=tmp_path / "there").folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def seal(folder: Path) -> None:
    """Digests of the manifest made again, as a forger would."""
    facts = json.loads((folder / "kdhub.json").read_text())
    for name, file in facts["files"].items():
        found = digests(folder / name)
        file.update(size=found.size, sha256=found.sha256)
    (folder / "kdhub.json").write_text(json.dumps(facts))


def verdicts(found) -> dict[str, str]:
    return {f.metric: f.verdict for f in found.figures}


def test_what_was_published_holds(pulled):
    found = kdhub.verify(pulled)
    assert (found.status, found.problems, found.signed) == ("verified", [], None)
    assert verdicts(found) == {"toy-error": "ok", "toy-distance": "not checked"}
    assert "--with-teacher" in found.figures[1].note
    with_teacher = kdhub.verify(pulled, with_teacher=True)
    assert verdicts(with_teacher) == {"toy-error": "ok", "toy-distance": "ok"}
    assert all(abs(f.difference) < 1e-6 for f in with_teacher.figures)


def test_an_edited_figure_in_the_card(pulled, hub):
    value = re.search(r"value: (0\.\d+)", (pulled / "README.md").read_text())[1]
    edit(pulled / "README.md", f"value: {value}", f"value: {float(value) * 0.999:.6f}")
    found = kdhub.verify(pulled)
    assert found.status == "differs" and found.figures[0].note == f"the report has {float(value):.6g}"
    # Also on the hub, by whoever may write there: pulling goes well, verifying does not.
    hub.put("me/toy", {n: (pulled / n).read_bytes() for n in hub.files("me/toy") if n != ".gitattributes"})
    assert kdhub.verify("me/toy").status == "differs"


def test_a_figure_edited_everywhere(pulled):
    """Card, report and digests agree; the student says otherwise."""
    report = json.loads((pulled / "report.json").read_text())
    (measure,) = [m for m in report["measures"] if (m["metric"], m["subject"]) == ("toy-error", "student")]
    value, better = measure["value"], round(measure["value"] * 0.9, 6)
    measure["value"] = better
    (pulled / "report.json").write_text(json.dumps(report))
    edit(pulled / "README.md", f"value: {round(value, 6)}", f"value: {better}")
    assert kdhub.verify(pulled).problems == ["report.json is not the file that was published"]
    seal(pulled)
    found = kdhub.verify(pulled)
    assert (found.status, found.problems) == ("differs", []) and found.figures[0].difference == pytest.approx(
        value - better
    )
    assert kdhub.verify(pulled, tolerance=0.2).status == "verified", "within what is allowed"


def test_changed_files_are_not_run(pulled, monkeypatch):
    import toy

    (pulled / "config.json").write_text('{"hidden": 7}')
    (pulled / "more.json").write_text("{}")
    monkeypatch.setattr(toy.Vectors, "load", lambda *a: pytest.fail("loaded"))
    found = kdhub.verify(pulled)
    assert found.status == "differs"
    assert found.problems == ["config.json is not the file that was published", "more.json is not in kdhub.json"]


def test_data_that_cannot_be_had(pulled, toys, monkeypatch):
    import toy

    from kdhub.data.dataset import Data

    monkeypatch.setattr(toy, "points", lambda: (_ for _ in ()).throw(kdhub.errors.UnavailableError("no network")))
    found = kdhub.verify(pulled)
    assert found.status == "not-checkable" and "toy-points is not available: no network" in found.figures[0].note
    others = {"train": lambda: [{"x": [0.0] * 4, "y": [0.0] * 3}], "test": lambda: [{"x": [0.0] * 4, "y": [0.0] * 3}]}
    monkeypatch.setattr(toy, "points", lambda: Data.from_rows("toy-points", others, key={"other": 1}))
    found = kdhub.verify(pulled)
    assert found.status == "not-checkable" and "other rows" in found.figures[0].note, "other rows, other scores"


@pytest.mark.parametrize(
    "source, said",
    [
        ("path:/etc/passwd", "exists only on its maker's machine"),
        ("stdin", "exists only on its maker's machine"),
        ("recipe:toy-hint", "exists only on its maker's machine"),
        ("./rows.jsonl", "exists only on its maker's machine"),
        (
            {"source": "toy-points", "options": {"base_url": "http://evil.example", "api_key_env": "HF_TOKEN"}},
            "base_url",
        ),
        ({"source": "toy-points", "options": {"trust_remote_code": True}}, "trust_remote_code"),
    ],
)
def test_a_stranger_s_recipe_opens_nothing_of_this_machine(pulled, monkeypatch, source, said):
    recipe = yaml.safe_load((pulled / "recipe.yaml").read_text())
    recipe["evaluation"]["data"] = [source]
    (pulled / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    seal(pulled)
    monkeypatch.setattr("kdhub.recipes.resolve.Resolver.data", lambda *a: pytest.fail("opened"))
    found = kdhub.verify(pulled)
    assert found.status == "not-checkable" and said in found.figures[0].note


def test_a_stranger_s_teacher_gets_no_key(pulled, monkeypatch):
    recipe = yaml.safe_load((pulled / "recipe.yaml").read_text())
    recipe["teacher"] = {"source": "linear:1", "base_url": "http://evil.example", "api_key_env": "HF_TOKEN"}
    (pulled / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    seal(pulled)
    monkeypatch.setattr("kdhub.recipes.resolve.Resolver.teacher", lambda *a: pytest.fail("opened"))
    figure = kdhub.verify(pulled, with_teacher=True).figures[1]
    assert figure.verdict == "not checked" and "unknown key 'teacher.api_key_env'" in figure.note


@pytest.mark.parametrize(
    "source", ["openai:great", "hf:../../etc", "zero-shot:path:/x", "experts:/etc/passwd", {"source": "ensemble"}]
)
def test_a_stranger_s_teacher_is_one_that_anybody_has(pulled, monkeypatch, source):
    recipe = yaml.safe_load((pulled / "recipe.yaml").read_text())
    recipe["teacher"] = source
    (pulled / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    seal(pulled)
    monkeypatch.setattr("kdhub.recipes.resolve.Resolver.teacher", lambda *a: pytest.fail("opened"))
    assert kdhub.verify(pulled, with_teacher=True).figures[1].verdict == "not checked"


class Measured(BaseModel):
    judge: str | None = None
    samples: int = Field(1, ge=1)
    generate: int = 0
    noise: list[float] | Literal["off"] = "off"
    precision: Literal["int8", "off"] = "off"
    seed: int = 0
    trust_remote_code: bool = False


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"judge": "openai:great", "generate": 5}, {"judge"}),
        ({"generate": 10**9}, {"generate"}),
        ({"samples": 10**6, "generate": 500}, {"samples", "generate"}),
        ({"trust_remote_code": True}, {"trust_remote_code"}),
        ({"samples": 8, "generate": 500, "noise": [0.1], "precision": "int8", "seed": 2**31}, set()),
    ],
)
def test_what_an_evaluation_may_ask_for(asked, told):
    options, why = strangers.bounded(Measured(**asked))
    assert options == Measured(**{name: value for name, value in asked.items() if name not in told})
    assert {name for name in asked if f"{name}=" in why} == told and bool(why) == bool(told)


@pytest.mark.parametrize(
    "name, content",
    [
        ("recipe.yaml", "a: &a [x]\nb: *a\n"),
        ("recipe.yaml", "[]"),
        ("recipe.yaml", "task: 1\nnonsense: true\n"),
        ("report.json", "[" * 100_000),
        ("report.json", "{}"),
        ("README.md", "# no front matter"),
        ("README.md", "---\nmodel-index: 7\n---\n"),
        (
            "README.md",
            "---\nmodel-index: [{results: [{dataset: {name: x}, metrics: [{type: x, value: .nan}]}]}]\n---\n",
        ),
        ("kdhub.json", "{}"),
    ],
)
def test_files_that_cannot_be_read_are_sentences(pulled, name, content):
    (pulled / name).write_text(content)
    with pytest.raises(kdhub.KdhubError) as error:
        kdhub.verify(pulled)
    assert name in error.value.message or "report.json is not a report" in error.value.message


def test_a_folder_that_was_not_published(tmp_path):
    with pytest.raises(UntrustedError, match="kdhub did not publish it"):
        kdhub.verify(tmp_path)


def test_evaluating_a_pulled_student_takes_only_the_task_from_it(pulled):
    report = kdhub.evaluate(pulled, data="toy-points")
    assert report.get("toy-error", "student").value == pytest.approx(kdhub.verify(pulled).figures[0].card, abs=1e-5)
    assert {m.subject for m in report.measures} == {"student"}, "its recipe's teacher is not asked"
    kdhub.pull("me/toy")
    assert kdhub.evaluate("me/toy", data="toy-points").measures == report.measures
    with pytest.raises(kdhub.KdhubError, match="nothing to score on"):
        kdhub.evaluate(pulled)
