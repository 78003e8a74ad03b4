"""`kdhub publish`, `pull`, `verify`, `search` on the command line: exit codes, tables, one JSON document."""

from __future__ import annotations

import json

import pytest
from fake_hub import TOKEN
from test_cli import cli  # noqa: F401

from kdhub.hub import client
from kdhub.verbs import publish as verb


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])


def test_the_whole_way(toys, toy_run, hub, cli, tmp_path, isolated):  # noqa: F811
    code, out, err = cli("publish", toy_run, "me/toy", "--dry-run", "--license", "mit")
    assert code == 0 and "# toy-student" in out and "kdhub.json" in out and "would be published to me/toy" in out, err
    assert not hub.repos

    code, out, err = cli("publish", toy_run, "me/toy", "--license", "mit", "--tag", "v1", "--register")
    commit = hub.repos["model", "me/toy"].head
    assert code == 0 and f"published  me/toy on {hub.endpoint}" in out and commit in out, err
    code, out, _ = cli("publish", toy_run, "me/toy", "--license", "mit", "--json")
    assert code == 0 and json.loads(out)["changed"] is False and json.loads(out)["commit"] == commit

    code, out, err = cli("pull", "me/toy@v1", "--to", tmp_path / "there")
    assert code == 0 and f"pulled  me/toy at {commit}" in out and str(tmp_path / "there") in out, err
    code, out, _ = cli("pull", "toy", "--json")
    assert code == 0 and json.loads(out)["commit"] == commit, "a name of the catalogue"

    code, out, err = cli("verify", tmp_path / "there")
    assert code == 0 and "toy-error" in out and "allowed    1 % or 0.002" in out and "verified" in out, err
    code, out, _ = cli("search", "toy", "--method", "toy-hint", "--sort", "toy-error")
    assert code == 0 and "me/toy" in out and "TOY-ERROR" in out
    code, out, _ = cli("search", "--json")
    assert [row["repo"] for row in json.loads(out)] == ["me/toy"]
    code, out, _ = cli("list", "published", "--json")
    assert [(row["name"], row["repo"]) for row in json.loads(out)] == [("toy", "me/toy")]
    code, out, _ = cli("show", "toy")
    assert code == 0 and commit in out


def test_verify_says_by_its_exit_code(toys, toy_run, hub, cli, tmp_path):  # noqa: F811
    cli("publish", toy_run, "me/toy", "--license", "mit")
    cli("pull", "me/toy", "--to", tmp_path / "there")
    card = tmp_path / "there" / "README.md"
    card.write_text(card.read_text().replace("value: 0.47", "value: 0.48", 1))
    code, out, _ = cli("verify", tmp_path / "there")
    assert code == 1 and "differs" in out and "the report has 0.47" in out
    code, out, _ = cli("verify", tmp_path / "there", "--json")
    found = json.loads(out)
    assert code == 1 and found["status"] == "differs" and found["figures"][0]["verdict"] == "differs"


@pytest.mark.parametrize(
    "arguments, expected, said",
    [
        (("pull", "me/nothing"), 4, "no such repository"),
        (("verify", "me/nothing"), 4, "no such repository"),
        (("pull", "no name"), 2, "is not a repository name"),
        (("pull", "me/toy", "--max-size", "much"), 2, "is not a size"),
        (("search", "--endpoint", "nowhere"), 2, "is not the address of a hub"),
        (("publish", "nowhere", "me/toy"), 2, "is not a folder"),
    ],
)
def test_exit_codes(toys, hub, cli, arguments, expected, said):  # noqa: F811
    code, out, err = cli(*arguments, "--json")
    assert code == expected and said in err and said in json.loads(out)["message"]
    assert TOKEN not in out + err


def test_problems_are_one_document(toys, toy_run, hub, cli):  # noqa: F811
    code, out, err = cli("publish", toy_run, "me/toy", "--json")
    found = json.loads(out)
    assert code == 1 and found["error"] == "PublishError" and len(found["problems"]) == 1 and "--license" in err
