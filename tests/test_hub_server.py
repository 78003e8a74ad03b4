"""The embedded hub, in a process of its own: real clients do their work with it, and hostile ones do no harm."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hub import Hub, online, serve, served  # noqa: F401
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers, QueryParams
from warm import Warm

from kdhub.hub.server.access import Access, Caller
from kdhub.hub.server.api import answer
from kdhub.hub.server.call import Call
from kdhub.hub.server.rules import LFS_OVER, Refused, check_paths, derived_tags, is_lfs
from kdhub.hub.server.store import Change, Store

ROOT = Path(__file__).parents[1]
CARD = """---
license: mit
tags: [kdhub, "kdhub-method:leaf"]
library_name: sentence-transformers
language: [en, de]
datasets: [a/b]
base_model: a/start
base_model_relation: finetune
---
# A student

<script>alert(1)</script> ![plot](plots/a.png) [next](parts/one.json) [js](javascript:alert(1))
Paper: https://arxiv.org/abs/1503.02531

| a | b |
|---|---|
| 1 | 2 |
"""


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def repo(api, request):
    """A new, empty repository of this test's own."""
    name = f"me/{request.node.originalname}"
    api.create_repo(name)
    yield name
    api.delete_repo(name, missing_ok=True)


def ask(hub: Hub, method: str, path: str, body: bytes | object = None, token: str | None = "", **headers: str):
    """One request as it is given, past any client. Returns status, headers, content."""
    address = urlsplit(hub.endpoint)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        headers.setdefault("Authorization", f"Bearer {token or hub.token}")
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def commit(hub: Hub, repo: str, *lines: object, parent: str | None = None, revision: str = "main"):
    header = {"key": "header", "value": {"summary": "test", "description": "", "parentCommit": parent}}
    body = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in (header, *lines))
    return ask(hub, "POST", f"/api/models/{repo}/commit/{revision}", body)


def file(path: str, content: bytes = b"x") -> dict:
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}}


def files(api: HfApi, repo: str, **more) -> set[str]:
    return set(api.list_repo_files(repo, **more)) - {".gitattributes"}


# -- what clients do ------------------------------------------------------------------------------------------


def test_the_python_client_does_all_it_can(hub, api, tmp_path):
    assert api.whoami()["name"] == "owner"
    assert str(api.create_repo("me/all")) == f"{hub.endpoint}/me/all"
    api.create_repo("me/all", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("me/all")

    # Small and LFS files, one of them past the size at which every file is LFS.
    folder, big = tmp_path / "student", random.Random(0).randbytes(LFS_OVER + 1)
    for name, content in {
        "README.md": CARD.encode(), "big": big, "model.safetensors": b"\0" * 5000, "parts/one.json": b"{}", "empty": b""
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    api.upload_folder(repo_id="me/all", folder_path=folder, commit_message="all of it")
    info = api.model_info("me/all", files_metadata=True)
    by_name = {s.rfilename: s for s in info.siblings}
    assert {name for name, s in by_name.items() if s.lfs} == {"big", "model.safetensors"}
    assert by_name["big"].lfs.sha256 == hashlib.sha256(big).hexdigest() and by_name["empty"].size == 0
    assert info.card_data.license == "mit" and info.library_name == "sentence-transformers" and not info.private

    # Again: nothing changed, no commit.
    assert api.upload_folder(repo_id="me/all", folder_path=folder).oid == info.sha
    assert [c.title for c in api.list_repo_commits("me/all")] == ["all of it", "initial commit"]

    rows = {row.path: row for row in api.list_repo_tree("me/all")}
    assert set(rows) == {"README.md", "big", "model.safetensors", "empty", "parts", ".gitattributes"}
    assert [r.path for r in api.list_repo_tree("me/all", "parts")] == ["parts/one.json"]
    assert {r.path for r in api.list_repo_tree("me/all", recursive=True)} == {*rows, "parts/one.json"}
    assert [p.path for p in api.get_paths_info("me/all", ["big", "parts", "absent"])] == ["big", "parts"]

    target = Path(snapshot_download("me/all", endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}.items() >= {
        "big": big, "README.md": CARD.encode(), "parts/one.json": b"{}", "empty": b""
    }.items()  # fmt: skip
    assert target.name == info.sha
    assert api.verify_repo_checksums("me/all", cache_dir=tmp_path / "cache").mismatches == []

    # Refs, with slashes in them.
    api.create_tag("me/all", tag="v1.0", tag_message="first")
    api.create_branch("me/all", branch="feature/x")
    for again in (
        lambda: api.create_tag("me/all", tag="v1.0"),
        lambda: api.create_branch("me/all", branch="feature/x"),
    ):
        with pytest.raises(HfHubHTTPError, match="409"):
            again()
    api.upload_file(path_or_fileobj=b"y", path_in_repo="y", repo_id="me/all", revision="feature/x")
    assert "y" in files(api, "me/all", revision="feature/x") and "y" not in files(api, "me/all", revision="v1.0")
    assert Path(api.hf_hub_download("me/all", "y", revision="feature/x", cache_dir=tmp_path / "c")).read_bytes() == b"y"
    refs = api.list_repo_refs("me/all")
    assert {b.name for b in refs.branches} == {"main", "feature/x"} and {t.name for t in refs.tags} == {"v1.0"}
    api.delete_branch("me/all", branch="feature/x")
    api.delete_tag("me/all", tag="v1.0")

    api.delete_file("y2", "me/all") if "y2" in files(api, "me/all") else None
    api.delete_folder("parts", "me/all")
    api.create_commit("me/all", [CommitOperationDelete("big")], commit_message="smaller")
    assert files(api, "me/all") == {"README.md", "model.safetensors", "empty"}
    assert "big" in files(api, "me/all", revision=info.sha)

    api.update_repo_settings("me/all", visibility="private")
    assert api.model_info("me/all").private
    assert not HfApi(endpoint=hub.endpoint, token=False).repo_exists("me/all")
    assert HfApi(endpoint=hub.endpoint, token=hub.read_token).repo_exists("me/all")
    api.move_repo("me/all", "you/all")
    assert not api.repo_exists("me/all") and api.file_exists("you/all", "README.md")
    api.delete_repo("you/all")
    assert not api.repo_exists("you/all")


def test_data_sets_are_a_kind_of_their_own(hub, api, tmp_path):
    api.create_repo("me/both", repo_type="dataset")
    api.create_repo("me/both")
    api.upload_file(path_or_fileobj=b"a,b\n1,2\n", path_in_repo="x.csv", repo_id="me/both", repo_type="dataset")
    assert files(api, "me/both", repo_type="dataset") == {"x.csv"} and files(api, "me/both") == set()
    got = api.hf_hub_download("me/both", "x.csv", repo_type="dataset", cache_dir=tmp_path)
    assert Path(got).read_bytes() == b"a,b\n1,2\n"
    assert [d.id for d in api.list_datasets(search="both")] == ["me/both"]
    api.delete_repo("me/both", repo_type="dataset")
    assert api.repo_exists("me/both") and not api.repo_exists("me/both", repo_type="dataset")


def test_lists_are_filtered_and_paged(hub, api):
    for n in range(7):
        api.create_repo(f"lists/m{n}", private=n == 6)
        card = f"---\ntags: [kdhub, 'n:{n}']\nlicense: mit\n---\n# {n}\n".encode()
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=f"lists/m{n}")
    newest = [f"lists/m{n}" for n in range(6, -1, -1)]
    assert [m.id for m in api.list_models(author="lists")] == newest
    assert [m.id for m in HfApi(endpoint=hub.endpoint, token=False).list_models(author="lists")] == newest[1:]
    assert [m.id for m in api.list_models(filter=["kdhub", "n:3"])] == ["lists/m3"]
    assert [m.id for m in api.list_models(filter=["license:mit", "n:9"])] == []
    assert [m.id for m in api.list_models(search="S/M4")] == ["lists/m4"]
    assert [m.id for m in api.list_models(search="%")] == []
    assert [m.id for m in api.list_models(author="lists", sort="created_at", limit=2)] == newest[:2]
    full = next(iter(api.list_models(filter="n:2", full=True, cardData=True)))
    assert full.card_data.license == "mit" and {s.rfilename for s in full.siblings} == {".gitattributes", "README.md"}
    # Page after page, and what comes in between changes none.
    seen, path = [], "/api/models?author=lists&limit=2"
    while path:
        status, headers, body = ask(hub, "GET", path)
        seen += [m["id"] for m in json.loads(body)]
        path = headers["Link"].partition(">")[0].removeprefix(f"<{hub.endpoint}") if headers["Link"] else None
    assert seen == newest


def test_pull_requests(hub, api, repo):
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=repo)
    done = api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=repo, create_pr=True, commit_message="Two")
    assert done.pr_num == 1 and done.pr_revision == "refs/pr/1"
    assert api.hf_hub_download(repo, "a", revision="refs/pr/1") and files(api, repo, revision="refs/pr/1") == {"a"}
    empty = api.create_pull_request(repo, title="Nothing yet", description="soon")
    assert empty.num == 2 and empty.status == "draft" and empty.events[0].content == "soon"
    api.upload_file(path_or_fileobj=b"3", path_in_repo="b", repo_id=repo, revision="refs/pr/2")
    api.comment_discussion(repo, 2, "done")
    api.rename_discussion(repo, 2, new_title="Three")
    assert [d.title for d in api.get_repo_discussions(repo)] == ["Three", "Two"]
    api.merge_pull_request(repo, 1)
    assert api.get_discussion_details(repo, 1).status == "merged"
    assert [d.num for d in api.get_repo_discussions(repo, discussion_status="open")] == [2]
    # Both it and main changed the same file: only what does not clash is merged.
    api.upload_file(path_or_fileobj=b"4", path_in_repo="b", repo_id=repo)
    assert api.get_discussion_details(repo, 2).conflicting_files == ["b"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.merge_pull_request(repo, 2)
    api.change_discussion_status(repo, 2, "closed")
    assert api.get_discussion_details(repo, 2).status == "closed"
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {r.ref for r in refs.pull_requests} == {"refs/pr/1", "refs/pr/2"}
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            repo, [CommitOperationAdd("c", b"")], commit_message="x", create_pr=True, parent_commit="0" * 40
        )
    assert len(list(api.get_repo_discussions(repo))) == 2


def test_errors_are_those_that_clients_know(hub, api, repo):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/absent")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="absent")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(repo, "absent")
    with pytest.raises(HfHubHTTPError, match="Invalid"):
        HfApi(endpoint=hub.endpoint, token="hf_none").model_info(repo)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(repo, [CommitOperationAdd("a", b"")], commit_message="x", parent_commit="0" * 40)
    with pytest.raises(BadRequestError, match="git or to a cache"):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a/.GIT/config", repo_id=repo)
    with pytest.raises(ValueError, match="front matter"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=repo)
    assert files(api, repo) == set()


def test_what_a_download_says(hub, api, repo):
    content = random.Random(1).randbytes(300_000)
    api.upload_file(path_or_fileobj=content, path_in_repo="a b/ü.bin", repo_id=repo)
    api.upload_file(path_or_fileobj=b"# hi", path_in_repo="notes.md", repo_id=repo)
    head = api.model_info(repo).sha
    path = f"/{repo}/resolve/main/{quote('a b/ü.bin')}"
    status, headers, body = ask(hub, "HEAD", path)
    sha256 = hashlib.sha256(content).hexdigest()
    assert (status, body, headers["X-Repo-Commit"]) == (200, b"", head)
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{sha256}"'
    assert headers["X-Linked-Size"] == headers["Content-Length"] == "300000"
    assert headers["Content-Disposition"].startswith("attachment") and headers["X-Content-Type-Options"] == "nosniff"
    assert ask(hub, "GET", path)[2] == content
    status, headers, body = ask(hub, "GET", path, Range="bytes=1000-1999")
    assert (status, body, headers["Content-Range"]) == (206, content[1000:2000], "bytes 1000-1999/300000")
    assert (
        ask(hub, "GET", path, Range="bytes=299990-")[2] == content[-10:] == ask(hub, "GET", path, Range="bytes=-10")[2]
    )
    assert ask(hub, "GET", path, Range="bytes=300000-")[0] == 416
    assert ask(hub, "GET", path, Range="bytes=0-9", If_Range='"other"')[2] == content
    status, headers, _ = ask(hub, "HEAD", f"/{repo}/resolve/HEAD/notes.md")
    assert (
        headers["ETag"] == f'"{hashlib.sha1(b"blob 4" + bytes(1) + b"# hi").hexdigest()}"'
        and not headers["X-Linked-Etag"]
    )
    assert headers["Content-Type"].startswith("text/plain")
    assert ask(hub, "GET", f"/{repo}/raw/main/{quote('a b/ü.bin')}")[2].startswith(b"version https://git-lfs")
    status, headers, _ = ask(hub, "GET", f"/{repo}/resolve/main/absent")
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", head)
    assert ask(hub, "GET", f"/api/models/{repo}/xet-write-token/main")[0] == 404


# -- many at once, and killed ---------------------------------------------------------------------------------


def test_of_six_writers_one_wins_each_head(hub, api, repo):
    wins = []
    for turn in range(5):
        one = partial(commit, hub, repo, parent=api.model_info(repo).sha)
        with ThreadPoolExecutor(6) as pool:
            done = pool.map(one, [file(f"{turn}", b"%d" % writer) for writer in range(6)])
            wins.append(sorted(status for status, *_ in done))
    assert wins == [[200] + [412] * 5] * 5
    assert len(api.list_repo_commits(repo)) == 6 and files(api, repo) == set("01234")


def test_writers_without_a_parent_lose_nothing(hub, api, repo):
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda n: commit(hub, repo, file(f"{n}"))[0], range(24)))
    assert done == [200] * 24 and files(api, repo) == {str(n) for n in range(24)}


def test_a_killed_server_leaves_the_old_head_or_the_new(tmp_path):
    chance = random.Random(2)
    for turn in range(6):
        with serve(tmp_path / "hub") as hub:
            api = HfApi(endpoint=hub.endpoint, token=hub.token)
            api.create_repo("me/x", exist_ok=True)
            held = files(api, "me/x")
            # Of the commit before: all of it or nothing, and every file is there to the last byte.
            below = {name for name in held if name.startswith(f"{turn - 1}/")}
            assert not below or below == {f"{turn - 1}/{n}" for n in range(20)}
            for name in held:
                assert ask(hub, "GET", f"/me/x/resolve/main/{name}")[2] == name.encode() * 100
            whole = [file(f"{turn}/{n}", f"{turn}/{n}".encode() * 100) for n in range(20)]
            sent = threading.Thread(target=_quietly, args=(commit, hub, "me/x", *whole))
            sent.start()
            time.sleep(chance.uniform(0.0, 0.06))
            hub.process.send_signal(signal.SIGKILL)
            sent.join()
    # What was received for nothing is found and removed.
    store = Store(tmp_path / "hub")
    store.collect(older=-1)
    kept = {p.name for p in store.blobs.glob("*/*")}
    repo = store.repo("model", "me/x")
    assert kept == {
        f.sha256 for c in store.history(repo, "main", 99) for f in store.commit_of(repo, c["oid"]).files.values()
    }
    assert not list(store.incoming.iterdir())


def _quietly(run, *args):
    try:
        run(*args)
    except (OSError, http.client.HTTPException):
        pass


# -- hostile and mistaken requests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    "../x|a/../../x|/etc/x|a//b|a\\b|C:/x|.git/hooks/x|a/.Cache/x|x\n|a\0b|a |.|".split("|"),
)
def test_names_that_lead_elsewhere(hub, api, repo, path):
    status, _, body = commit(hub, repo, file(path))
    assert status == 400 and json.loads(body)["error"] and files(api, repo) == set()


def test_names_that_some_systems_take_for_one(hub, api, repo):
    assert commit(hub, repo, file("Readme.md"), file("README.md"))[0] == 400
    assert commit(hub, repo, file("caf\u00e9"), file("cafe\u0301"))[0] == 400
    assert commit(hub, repo, file("a"), file("a/b"))[0] == 400
    assert commit(hub, repo, file("a"))[0] == 200 and commit(hub, repo, file("A"))[0] == 400
    assert files(api, repo) == {"a"}


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n", b"[1]\n", b'{"key":"file"}\n', b'{"key":"file","value":{"path":1}}\n', b"[" * 100_000 + b"\n",
        b'{"key":"file","value":{"path":"a","content":"*"}}\n', b'{"key":"what","value":{"path":"a"}}\n', b"\xff\n",
        b'{"key":"lfsFile","value":{"path":"a","oid":"../../key","size":1}}\n',
        b'{"key":"lfsFile","value":{"path":"a","oid":"%s","size":1}}\n' % (b"0" * 64),
        b'{"key":"file","value":{"path":"a","content":"' + b"A" * (2 * LFS_OVER) + b'"}}\n',
        b'{"key":"deletedFile","value":{"path":"absent"}}\n',
    ],
    ids=range(12),
)  # fmt: skip
def test_commits_that_make_no_sense(hub, api, repo, line):
    status, _, body = commit(hub, repo, file("good"), line)
    assert status in (400, 413) and json.loads(body)["error"]
    assert files(api, repo) == set()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/repos/create", b"{"),
        ("POST", "/api/repos/create", {"name": "../x"}),
        ("POST", "/api/repos/create", {"name": "x", "organization": "api"}),
        ("POST", "/api/repos/create", {"name": ["x"]}),
        ("POST", "/api/repos/create", {"name": "x", "type": "space"}),
        ("POST", "/api/repos/create", b" " * (9 * 2**20)),
        ("POST", "/me/x.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "..", "size": 1}]}),
        ("GET", "/api/models/me%2Fx/tree/main", None),
        ("GET", "/api/models/%ff/x", None),
        ("GET", "/../../etc/passwd", None),
        ("GET", "/me/x/resolve/main/..%2f..%2fkey", None),
        ("GET", "/me/x/resolve/main/%2e%2e/%2e%2e/hub.sqlite", None),
        ("PATCH", "/api/models", b""),
        ("PUT", "/api/lfs/" + "0" * 64, b"x"),
        ("PUT", "/api/lfs/" + "0" * 64 + "?size=1&expires=99999999999&signature=00", b"x"),
        ("GET", "/api/models?limit=-1&sort=no", None),
    ],
)
def test_requests_that_make_no_sense(hub, method, path, body):
    status, _, _ = ask(hub, method, path, body)
    assert 400 <= status < 500 and hub.process.poll() is None


def test_a_link_to_upload_is_for_one_content_only(hub, api, repo):
    content = b"the content" * 1000
    oid, size = hashlib.sha256(content).hexdigest(), len(content)

    def link(oid=oid, size=size):
        plan = {"operation": "upload", "objects": [{"oid": oid, "size": size}]}
        answer = json.loads(ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", plan)[2])
        return answer["objects"][0].get("actions", {}).get("upload", {}).get("href", "").removeprefix(hub.endpoint)

    good = link()
    assert ask(hub, "PUT", good, b"a" * size, token=None)[0] == 400
    assert ask(hub, "PUT", good, content[:-1], token=None)[0] == 400
    assert ask(hub, "PUT", good, content + b"x", token=None)[0] == 400
    assert ask(hub, "PUT", good.replace(f"size={size}", f"size={size + 1}"), content + b"x", token=None)[0] == 403
    assert ask(hub, "PUT", good.replace(oid, "0" * 64), content, token=None)[0] == 403
    assert ask(hub, "PUT", good.replace("expires=", "expires=9"), content, token=None)[0] == 403
    blobs = hub.folder / "blobs"
    assert not (blobs / oid[:2] / oid).exists() and not list((hub.folder / "incoming").iterdir())
    assert commit(hub, repo, {"key": "lfsFile", "value": {"path": "a", "oid": oid, "size": size}})[0] == 400
    assert ask(hub, "PUT", good, content, token=None)[0] == 200
    assert link() == "" and (blobs / oid[:2] / oid).read_bytes() == content
    assert commit(hub, repo, {"key": "lfsFile", "value": {"path": "a", "oid": oid, "size": size + 1}})[0] == 400
    assert commit(hub, repo, {"key": "lfsFile", "value": {"path": "a", "oid": oid, "size": size}})[0] == 200


def test_an_upload_that_breaks_off_leaves_nothing(hub, api, repo):
    content = b"x" * 2**20
    oid = hashlib.sha256(content).hexdigest()
    plan = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
    answer = json.loads(ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", plan)[2])
    link = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    address = urlsplit(hub.endpoint)
    connection = http.client.HTTPConnection(address.hostname, address.port)
    connection.putrequest("PUT", link)
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content[: 2**19])
    assert wait(lambda: list((hub.folder / "incoming").iterdir()))
    connection.close()
    assert wait(lambda: not list((hub.folder / "incoming").iterdir()))


def wait(true, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(true())


# -- who may do what ------------------------------------------------------------------------------------------


def test_roles(hub, api, repo):
    basic = base64.b64encode(f"any:{hub.token}".encode()).decode()
    made = {"name": "x", "organization": "me"}
    assert ask(hub, "POST", "/api/repos/create", made, token=None)[0] == 401
    assert ask(hub, "POST", "/api/repos/create", made, token=hub.read_token)[0] == 403
    assert ask(hub, "POST", "/api/repos/create", made, token=None, Authorization=f"Basic {basic}")[0] == 401
    for token, status in ((None, 401), (hub.read_token, 403)):
        assert ask(hub, "POST", f"/api/models/{repo}/commit/main", b"{}", token=token)[0] == status
        assert ask(hub, "POST", f"/api/models/{repo}/tag/main", {"tag": "t"}, token=token)[0] == status
        assert ask(hub, "DELETE", "/api/repos/delete", {"name": repo}, token=token)[0] == status
        plan = {"operation": "upload", "objects": []}
        assert ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", plan, token=token)[0] == status
    api.update_repo_settings(repo, visibility="private")
    for path in (f"/api/models/{repo}", f"/{repo}", f"/{repo}/resolve/main/.gitattributes"):
        status, headers, body = ask(hub, "GET", path, token=None)
        absent = ask(hub, "GET", path.replace(repo, "me/never"), token=None)
        # Nobody learns that there is one.
        assert (status, body) == (absent[0], absent[2].replace(b"me/never", repo.encode())) and status == 401
        assert ask(hub, "GET", path, token=None, Authorization=f"Basic {basic}")[0] == 200
        assert ask(hub, "GET", path, token=hub.read_token)[0] == 200
    assert api.repo_exists(repo)


def test_a_hub_for_its_users_alone(tmp_path):
    with serve(tmp_path / "hub", "--no-anonymous") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("me/x")
        for path in ("/", "/me/x", "/api/models", "/api/models/me/x", "/me/x/resolve/main/.gitattributes"):
            assert ask(hub, "GET", path, token=None)[0] == 401 and ask(hub, "GET", path)[0] == 200
        assert ask(hub, "GET", "/login", token=None)[1]["WWW-Authenticate"].startswith("Basic")
        # A token that is revoked while the hub runs is over at once.
        args = ["--folder", str(hub.folder)]
        assert kdhub("hub", "token", "revoke", "owner", *args).returncode == 0
        assert ask(hub, "GET", "/api/models")[0] == 401
        assert kdhub("hub", "token", "revoke", "nobody", *args).returncode == 2


def kdhub(*args: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "kdhub", *args], capture_output=True, text=True, timeout=300, **more)


def test_tokens_are_told_once_and_kept_nowhere(tmp_path):
    folder = tmp_path / "hub"
    with subprocess.Popen(
        [sys.executable, "-m", "kdhub", "hub", "serve", "--folder", str(folder), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        lines = [process.stdout.readline() for _ in range(8)]
        token = next(line for line in lines if "HF_TOKEN" in line).partition("=")[2].split()[0]
        endpoint = next(line for line in lines if "HF_ENDPOINT" in line).partition("=")[2].strip()
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo("me/x")
        api.upload_file(path_or_fileobj=bytes(5000), path_in_repo="a.safetensors", repo_id="me/x")
        # In the address too, where careless clients put it.
        ask(Hub(folder, endpoint, token, "", process, None), "GET", f"/api/models?token={token}")
        process.terminate()
        _, log = process.communicate()
    assert "PUT /api/lfs/" in log and "signature" not in log and token not in log
    written = [p for p in folder.rglob("*") if p.is_file()]
    assert len(written) > 3 and not [p for p in written if token.encode() in p.read_bytes()]
    assert (folder / "key").stat().st_mode & 0o077 == 0 == folder.stat().st_mode & 0o077
    again = kdhub("hub", "token", "list", "--folder", str(folder), "--json")
    assert [t["name"] for t in json.loads(again.stdout)] == ["owner"] and token not in again.stdout


# -- the store ------------------------------------------------------------------------------------------------


def test_collecting_keeps_what_is_named_or_new(tmp_path):
    store = Store(tmp_path / "hub")
    repo = store.create("model", "me/x", private=False, author="me")
    kept, lost, new = (store.put(text) for text in (b"kept", b"lost", b"new"))
    store.take(repo, "main", Change("add", put={"a": kept}), "me")
    store.take(repo, "main", Change("remove", remove={"a"}), "me")
    for each in (kept, lost):
        os.utime(store.blob(each.sha256), (0, 0))
    assert store.collect() == (1, 4)
    assert store.has(kept.sha256, 4) and store.has(new.sha256, 3) and not store.has(lost.sha256, 4)
    store.delete(repo)
    store.collect(older=-1)
    assert not list(store.blobs.glob("*/*"))


def test_a_change_that_does_not_fit_changes_nothing(tmp_path):
    store = Store(tmp_path / "hub")
    repo = store.create("model", "me/x", private=False, author="me")
    head = store.resolve(repo, "main")
    for change in (
        Change("x", remove={"absent"}),
        Change("x", put={"a": store.put(b"x"), "../b": store.put(b"x")}),
        Change("x", parent="abc"),
        Change("x", parent="f" * 40),
    ):
        with pytest.raises(Refused):
            store.take(repo, "main", change, "me")
    with pytest.raises(Refused, match="no branch"):
        store.take(repo, "absent", Change("x"), "me")
    for name in ("a..b", "a b", "a.lock", "/a", "a//b", "a~1", "\x01"):
        with pytest.raises(Refused):
            store.add_ref(repo, f"refs/heads/{name}", head)
    with pytest.raises(Refused):
        store.delete_ref(repo, "refs/heads/main")
    assert store.refs(repo) == {"refs/heads/main": head} and len(store.history(repo, "main", 9)) == 1


def test_which_files_are_lfs():
    attributes = "*.safetensors filter=lfs diff=lfs\nsmall/*.safetensors -filter\n# *.txt filter=lfs\n"
    assert is_lfs("a/b.safetensors", 10, b"x", attributes) and not is_lfs("small/b.safetensors", 10, b"x", attributes)
    assert not is_lfs("b.safetensors", 0, b"", attributes)  # an empty file never is
    assert is_lfs("b.txt", LFS_OVER + 1, b"x", attributes) and not is_lfs("b.txt", LFS_OVER, b"x", attributes)
    assert is_lfs("b.dat", 10, b"a\0b", attributes) and not is_lfs("b.dat", 10, b"ab", attributes)


def test_derived_tags():
    from kdhub.hub.trust import split_card

    assert derived_tags(*split_card(CARD)) == [
        "kdhub", "kdhub-method:leaf", "en", "de", "sentence-transformers", "license:mit", "dataset:a/b",
        "base_model:a/start", "base_model:finetune:a/start", "arxiv:1503.02531",
    ]  # fmt: skip
    assert derived_tags({"tags": [1, None, {"a": 1}], "license": ["mit"], "base_model": 3}) == ["license:mit"]


# -- anything at all ------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
text = st.text(st.characters(), max_size=12)  # halves of characters too
paths = text | st.sampled_from(["a", "a/b", "A", "..", ".git/x", "README.md", "a" * 300])
oids = st.sampled_from(["0" * 64, hashlib.sha256(b"").hexdigest(), "x"]) | anything
fields = {
    "path": paths | anything, "content": st.sampled_from(["", "YQ==", "*"]) | anything, "oid": oids, "size": anything,
    "summary": text | anything, "description": anything, "parentCommit": anything, "encoding": anything,
}  # fmt: skip
lines = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["header", "file", "lfsFile", "deletedFile", "deletedFolder"]) | anything,
        "value": st.fixed_dictionaries({}, optional=fields) | anything,
    }
)
HEADER = {"key": "header", "value": {"summary": "x", "description": ""}}
words = st.sampled_from(
    "api models datasets repos create delete move me x x.git tree main revision HEAD refs/pr/1 commits tag branch t "
    "preupload paths-info discussions 1 status merge comment title settings info lfs objects batch verify resolve raw "
    "validate-yaml whoami-v2 .gitattributes .. xet-write-token login".split()
) | st.text(max_size=5)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "name": paths | anything, "organization": paths | anything, "type": st.just("dataset") | anything,
        "files": st.lists(st.fixed_dictionaries({}, optional=fields) | anything, max_size=3) | anything,
        "objects": st.lists(st.fixed_dictionaries({}, optional=fields) | anything, max_size=3) | anything,
        "operation": anything, "paths": anything,
        "tag": paths, "title": anything, "pullRequest": anything, "status": anything, "comment": anything,
        "fromRepo": paths, "toRepo": paths, "content": st.text(max_size=30) | anything, "visibility": anything,
    },
)  # fmt: skip


@pytest.mark.parametrize("many", [150, pytest.param(25_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["commit", "request"])
def test_anything_a_client_may_say_is_answered_or_refused(tmp_path, monkeypatch, what, many):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    store = Store(tmp_path / "hub")
    store.create("model", "me/x", private=False, author="me")
    access, caller = Access(store), Caller("me", "write")
    below = st.lists(words, max_size=3).map(lambda rest: ["api", "models", "me", "x", *rest])
    parts = below | st.lists(words, max_size=3).map(lambda rest: ["me", "x.git", *rest]) | st.lists(words)
    queries = st.dictionaries(st.sampled_from(["limit", "cursor", "sort", "search", "p"]), st.text(max_size=5))
    asked = {
        "commit": st.tuples(st.just("POST"), st.just(["api", "models", "me", "x", "commit", "main"]), st.lists(lines)),
        "request": st.tuples(st.sampled_from(["GET", "POST", "PUT", "DELETE"]), parts, bodies | anything),
    }

    @settings(max_examples=many, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(asked[what], queries)
    def run(request, query):
        method, parts, body = request
        if what == "commit":
            body = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in [HEADER, *body]))
        elif parts[4:5] == ["commit"]:
            return  # its body is a file
        call = Call(method, tuple(parts), QueryParams(query), Headers(), body, caller, "http://hub")
        with suppress(Refused):
            assert answer(store, access, call).status_code < 500
        for found in store.repos("model", private=True):
            check_paths(store.commit_of(found, "main").files)

    run()


# -- pages ----------------------------------------------------------------------------------------------------


def test_pages_show_a_card_and_run_nothing(hub, api, repo):
    api.upload_file(path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id=repo)
    status, headers, body = ask(hub, "GET", f"/{repo}", token=None)
    page = body.decode()
    assert status == 200 and "script" not in headers["Content-Security-Policy"]
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page and 'href="javascript' not in page
    assert f'src="/{repo}/resolve/main/plots/a.png"' in page and "<td>1</td>" in page and "kdhub-method:leaf" in page
    assert f"{repo}</a>" in ask(hub, "GET", "/", token=None)[2].decode()
    # A file that a browser would run is never shown as one.
    api.upload_file(path_or_fileobj=b"<script>1</script>", path_in_repo="x.html", repo_id=repo)
    _, headers, _ = ask(hub, "GET", f"/{repo}/resolve/main/x.html", token=None)
    assert headers["Content-Disposition"].startswith("attachment") and "sandbox" in headers["Content-Security-Policy"]
    assert ask(hub, "GET", "/?search=%3Cscript%3E", token=None)[2].count(b"<script>") == 0


# -- other clients --------------------------------------------------------------------------------------------


def test_the_hf_command(hub, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(5000))
    (folder / "config.json").write_text("{}")
    hf = Path(sys.executable).with_name("hf")

    def run(*args: str) -> str:
        done = subprocess.run([hf, *args], env=hub.environment(HF_HUB_OFFLINE="0"), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "owner" in run("auth", "whoami")
    run("repos", "create", "hf/x")
    run("upload", "hf/x", str(folder), ".")
    run("repos", "tag", "create", "hf/x", "v1")
    run("download", "hf/x", "--revision", "v1", "--local-dir", str(tmp_path / "got"))
    assert (tmp_path / "got/model.safetensors").read_bytes() == bytes(5000)
    run("download", "hf/x")
    assert "hf/x" in run("models", "ls", "--author", "hf")
    run("cache", "verify", "hf/x")
    run("repos", "delete", "hf/x", "--yes")


@pytest.mark.slow
def test_kdhub_itself(hub, toy_run, make_distribution, tmp_path):
    """A student goes there and comes back, by the commands as they are typed."""
    make_distribution(tmp_path / "site", "kdhub-toy", plugins={"toy": "toy"})
    environment = hub.environment(HF_HUB_OFFLINE="0", KDHUB_HOME=str(tmp_path / "home"))
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (tmp_path / "site", ROOT / "tests", ROOT)))
    warm = Warm(sys.executable, environment, tmp_path)

    def run(*args: str) -> str:
        done = warm.run(["-m", "kdhub", *args], environment, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = shutil.copytree(toy_run, tmp_path / "run")
    to_publish = ("publish", str(source), "me/toy-student", "--license", "mit", "--tag", "v1")
    assert "published  me/toy-student" in run(*to_publish)
    assert json.loads(run(*to_publish, "--json"))["changed"] is False
    assert [s["repo"] for s in json.loads(run("search", "--method", "toy-hint", "--json"))] == ["me/toy-student"]
    assert "pulled  me/toy-student" in run("pull", "me/toy-student@v1", "--to", str(tmp_path / "back"))
    weights = (tmp_path / "run/student/model.safetensors").read_bytes()
    assert [p.read_bytes() for p in (tmp_path / "back").rglob("*.safetensors")] == [weights]
    assert "verified" in run("verify", "me/toy-student")
    warm.close()
