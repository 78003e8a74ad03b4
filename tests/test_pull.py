"""Pulling: what ends up here, what is found again without a hub, and what a broken transfer leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_hub import TOKEN, Answer

import kdhub
from kdhub.errors import CompatibilityError, HubError, KdhubError, UnreachableError, UntrustedError, UsageError
from kdhub.hub import client, manifest
from kdhub.hub.files import digests
from kdhub.hub.pull import RECORD
from kdhub.verbs import publish as verb
from kdhub.verbs.pull import size_of


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])


def student(**files: bytes) -> dict[str, bytes]:
    """The files of a published student of no task, with its manifest."""
    held = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 8, **files}
    facts = {"name": "a", "task": "toy-vectors", "kind": "model", "provided_by": {"distribution": "kdhub-toy"}}
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        found = {}
        for name, content in held.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
            found[name] = digests(Path(folder) / name)
    return {**held, "README.md": b"# A student\n", "kdhub.json": manifest.make(facts, found).encode()}


def contents(folder: Path) -> dict[str, bytes]:
    names = (p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in names}


def asked(hub, part: str) -> list[str]:
    return [path for _, path, _ in hub.requests if part in path]


def test_round_trip(toys, toy_run, hub, tmp_path, monkeypatch):
    """Published, pulled on another cache, loaded: the same vectors; verified."""
    kdhub.publish(toy_run, "me/toy", licence="mit")
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "another"))
    rows = [{"x": [0.1 * i, -0.3, 0.5, 1.0]} for i in range(8)]
    here = kdhub.load(toy_run).signals(rows, "vector")["vector"]
    there = kdhub.load("me/toy").signals(rows, "vector")["vector"]
    np.testing.assert_allclose(there, here, atol=1e-6)
    assert kdhub.verify("me/toy").status == "verified"


def test_a_pull_is_pinned_and_recorded(hub, tmp_path):
    first = hub.put("me/toy", student())
    hub.put("me/toy", student(**{"vocab.txt": b"newer"}))
    pulled = kdhub.pull(f"me/toy@{first}")
    assert contents(pulled.folder) == student() and pulled.commit == first == pulled.folder.name
    record = json.loads((pulled.folder / RECORD).read_text())
    assert (record["repo"], record["commit"], record["endpoint"]) == ("me/toy", first, hub.endpoint)
    assert record["files"]["config.json"]["size"] == 2 and set(record["files"]) == set(student())
    assert "vocab.txt" in contents(kdhub.pull("me/toy", to=tmp_path / "new").folder)
    assert asked(hub, "/resolve/") and not asked(hub, "/resolve/main"), "files are fetched by commit"


def test_what_is_here_is_not_fetched_again_and_found_offline(hub, tmp_path):
    commit = hub.put("me/toy", student())
    first = kdhub.pull("me/toy")
    before = len(asked(hub, "/resolve/"))
    again = kdhub.pull("me/toy")
    assert first.fetched and not again.fetched and again.folder == first.folder
    assert len(asked(hub, "/resolve/")) == before
    hub.close()
    assert kdhub.pull("me/toy").commit == commit, "the head cannot be asked for: the copy that is here"
    count = len(hub.requests)
    assert kdhub.pull(f"me/toy@{commit}").commit == commit and len(hub.requests) == count
    assert contents(kdhub.pull("me/toy", to=tmp_path / "copy").folder) == student()
    with pytest.raises(UnreachableError, match="no connection to"):
        kdhub.pull("me/other")
    (first.folder / "config.json").write_text("[]")
    with pytest.raises(KdhubError, match="was changed since it was pulled"):
        kdhub.pull("me/toy", to=tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_switched_off(hub, monkeypatch):
    from huggingface_hub import constants

    hub.put("me/toy", student())
    pulled = kdhub.pull("me/toy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert kdhub.pull("me/toy").folder == pulled.folder
    with pytest.raises(UnreachableError, match="switched off") as error:
        kdhub.pull("me/other")
    assert error.value.exit_code == 4 and "HF_HUB_OFFLINE" in error.value.hint


def test_the_target_is_new_or_empty(hub, tmp_path):
    hub.put("me/toy", student())
    (tmp_path / "empty").mkdir()
    assert contents(kdhub.pull("me/toy", to=tmp_path / "empty").folder) == student()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in ("empty", "link"):
        with pytest.raises(UsageError, match="is not empty"):
            kdhub.pull("me/toy", to=tmp_path / taken)
    for name in ("/etc/passwd", "me/toy/x", "me/../x", "", "me/toy@..", "me/toy@a b", "me/toy@" + "x" * 201, "me/tôy"):
        with pytest.raises(UsageError):
            kdhub.pull(name)


def test_a_large_file_goes_on_where_it_broke_off(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "PROGRESS", 100_000)
    weights = np.random.default_rng(0).bytes(400_000)
    files = student(**{"model.safetensors": weights})
    hub.put("me/toy", files)
    cuts = []

    def cut(request):
        if request.path.endswith("model.safetensors") and len(cuts) < 99:
            start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=")[:-1])
            cuts.append(start)
            part = weights[start : start + 30_000]
            request.send_response(206 if start else 200)
            request.send_header("Content-Length", str(len(weights) - start))
            request.send_header("Content-Range", f"bytes {start}-{len(weights) - 1}/{len(weights)}")
            request.end_headers()
            request.cut(part)

    hub.tamper = cut
    with monkeypatch.context() as patch:
        patch.setattr(client, "PROGRESS", 10**9)
        with pytest.raises(HubError, match="broke off|no connection") as error:
            kdhub.pull("me/toy", to=tmp_path / "there")
    assert len(cuts) == client.TRIES and "try again" in error.value.hint or "same command" in error.value.hint
    assert not (tmp_path / "there").exists()
    kdhub.pull("me/toy", to=tmp_path / "there")
    assert cuts == [30_000 * i for i in range(len(cuts))], "no byte is fetched twice, also by another call"
    assert contents(tmp_path / "there") == files and [p.name for p in tmp_path.iterdir()] == ["there"]


def test_two_processes_pull_one_student_once(hub, isolated):
    hub.put("me/toy", student())
    found = []
    threads = [threading.Thread(target=lambda: found.append(kdhub.pull("me/toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({p.folder for p in found}) == 1 and len(found) == 4
    assert len(asked(hub, "config.json")) == 1


def test_a_student_that_kdhub_did_not_publish(hub, caplog):
    hub.put("me/toy", {"config.json": b"{}", "README.md": b"# Hello"})
    pulled = kdhub.pull("me/toy")
    with pytest.raises(UntrustedError, match="there is nothing to verify"):
        kdhub.verify(pulled.folder)


def test_loading_needs_the_task_alone(toys, toy_run, hub, run_python, tmp_path):
    kdhub.publish(toy_run, "me/toy", licence="mit")
    there = kdhub.pull("me/toy", to=tmp_path / "there").folder
    facts = json.loads((there / "kdhub.json").read_text())
    (there / ".kdhub-pull.json").unlink()  # a copy that may be changed
    facts["method"] = {"name": "unheard-of", "distribution": "kdhub-nobody"}
    (there / "kdhub.json").write_text(json.dumps(facts))
    assert kdhub.load(there).task == "toy-vectors", "the method that made it may be missing"
    facts["task"] = "unheard-of"
    (there / "kdhub.json").write_text(json.dumps(facts))
    with pytest.raises(CompatibilityError, match="no plugin here knows that task") as error:
        kdhub.load(there)
    assert "it comes with kdhub-toy" in error.value.hint


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, tmp_path):
    from fake_hub import Hub

    other = Hub()
    files = student()
    hub.put("me/toy", files)
    other.put("me/toy", files)

    def send_away(request):
        if "/resolve/" in request.path:
            raise Answer(302, Location=other.endpoint + request.path)

    hub.tamper = send_away
    other.repos["model", "me/toy"].commits[hub.repos["model", "me/toy"].head] = other.repos["model", "me/toy"].commits[
        other.repos["model", "me/toy"].head
    ]
    assert contents(kdhub.pull("me/toy", to=tmp_path / "there").folder) == files
    assert all(TOKEN in headers["authorization"] for _, _, headers in hub.requests)
    assert other.requests and not any("authorization" in headers for _, _, headers in other.requests)
    other.close()


def test_where_there_is_no_room(hub, tmp_path, monkeypatch):
    hub.put("me/toy", student())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(KdhubError, match="has room for 100"):
        kdhub.pull("me/toy", to=tmp_path / "there")
    assert not asked(hub, "/resolve/")


def test_killed_while_pulling(hub, tmp_path):
    """The target is not there, then it is whole."""
    files = student()
    hub.put("me/toy", files)
    code = f"import kdhub; kdhub.pull('me/toy', to={str(tmp_path / 'there')!r})"
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    import os

    for at in range(2):
        job = subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env={**os.environ, **environment}
        )
        seen = []

        def kill(request, job=job, seen=seen, at=at):
            if "/resolve/" in request.path:
                seen.append(request.path)
                if len(seen) > at:
                    job.kill()

        hub.tamper = kill
        job.wait(60)
        assert job.returncode == -9 and not (tmp_path / "there").exists()
    hub.tamper = lambda request: None
    assert contents(kdhub.pull("me/toy", to=tmp_path / "there").folder) == files


def test_sizes():
    assert [size_of(t) for t in ("20GB", "1.5 MB", "800k", 7, "0")] == [20 * 10**9, 1_500_000, 800_000, 7, 0]
    with pytest.raises(UsageError):
        size_of("much")
