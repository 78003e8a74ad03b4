"""Searching: by the tags of the card alone, on hubs that filter little or not at all."""

from __future__ import annotations

import pytest
import yaml
from fake_hub import Answer

import kdhub
from kdhub.errors import HubError, UnknownNameError


@pytest.fixture
def filled(hub, toys):
    """Three students, one of them rows, and two repositories of others."""

    def put(repo, kind="model", method="leaf", error=0.5, parameters=10):
        tags = ["kdhub", f"kdhub-method:{method}", "kdhub-task:toy-vectors", "kdhub-teacher:org/large"]
        values = {"toy-error": error, "score": 1 - error}
        metrics = [{"type": name, "value": value, "name": name} for name, value in values.items()]
        metrics.append({"type": "score", "value": 9.0, "name": "score (student queries, teacher documents)"})
        results = [{"dataset": {"name": "points", "split": "test"}, "metrics": metrics}]
        cost = {"parameters": parameters, "disk": parameters and 4 * parameters, "latency-p50": 1.5}
        front = {"tags": tags, "license": "mit", "model-index": [{"results": results}], "kdhub": {"cost": cost}}
        hub.put(repo, {"README.md": f"---\n{yaml.safe_dump(front)}---\n# x\n".encode()}, kind)

    put("me/small", parameters=5, error=0.6)
    put("me/good", method="kd", error=0.2, parameters=50)
    put("me/rows", kind="dataset", error=0.4, parameters=None)
    hub.put("me/other", {"README.md": b"---\ntags: [sentence-similarity]\n---\n"})
    hub.put("me/bare", {"config.json": b"{}"})
    return hub


def names(*arguments, **options) -> list[str]:
    return [found.repo for found in kdhub.search(*arguments, **options)]


def test_only_students_by_tag(filled):
    assert set(names()) == {"me/small", "me/good", "me/rows"}
    assert set(names(method="leaf")) == {"me/small", "me/rows"}
    assert names(teacher="org/large", method="kd", task="toy-vectors") == ["me/good"]
    assert names(task="other") == [] == names("nothing-like-this")
    assert set(names("LARGE leaf")) == {"me/small", "me/rows"} and names("good") == ["me/good"]


def test_what_is_told_of_each(filled):
    (found,) = kdhub.search(method="kd")
    assert (found.method, found.task, found.teacher, found.licence) == ("kd", "toy-vectors", "org/large", "mit")
    assert (found.parameters, found.size, found.latency) == (50, 200, 1.5)
    assert found.results == {
        "toy-error": 0.2,
        "toy-error on points test": 0.2,
        "score": 0.8,
        "score on points test": 0.8,
    }
    assert len(found.commit) == 40


def test_sorting(filled):
    assert names(sort="toy-error") == ["me/good", "me/rows", "me/small"], "lower is better: its plugin says so"
    assert names(sort="score") == ["me/good", "me/rows", "me/small"], "a metric nobody here knows is a score"
    assert names(sort="score on points test", limit=1) == ["me/good"]
    assert names(sort="parameters") == ["me/small", "me/good", "me/rows"], "without the number: last"
    assert names(sort="size")[0] == names(sort="latency")[0] == "me/small"
    with pytest.raises(UnknownNameError, match="no metric named 'scor'") as error:
        names(sort="scor")
    assert "score" in error.value.hint


def test_a_hub_that_filters_nothing_and_pages(filled):
    rows = []

    def tamper(request):
        if request.path.startswith("/api/models?"):
            request.query["filter"] = [""]
            if "page=2" in request.path:
                raise Answer(body=rows[2:])
            try:
                request._route()
            except Answer as answer:
                import json

                rows[:] = json.loads(answer.body)
                raise Answer(body=rows[:2], Link='</api/models?page=2>; rel="next"') from None

    filled.tamper = tamper
    assert set(names()) == {"me/small", "me/good", "me/rows"} and len(rows) == 4


def test_a_hub_that_is_none(hub):
    hub.tamper = lambda request: (_ for _ in ()).throw(Answer(body={"error": "what?"}))
    with pytest.raises(HubError, match="list is a dict"):
        kdhub.search()
