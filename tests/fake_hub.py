"""A hub in this process, small and honest until a test tells it otherwise.

`hub.tamper` sees each request first: it may answer by itself, cut the connection, or return None to let it pass.
`hub.put(...)` makes a commit without asking the client, with any names and any digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "FakeHubToken" * 3
"""What the tests log in with; no file and no output may ever hold it."""


# Kept, as a real hub keeps them: a measurement must not pay for them each time.
@cache
def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def oid_of(content: bytes, lfs: bool) -> str:
    return sha256(content) if lfs else git_sha1(content)


class Answer(Exception):
    """What `tamper` raises to answer by itself."""

    def __init__(self, status: int = 200, body: Any = b"", **headers: str):
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Done(Exception):
    """What is raised when everything was sent."""


class Repo:
    def __init__(self, private: bool = False):
        self.private = private
        self.commits: dict[str, dict[str, tuple[bytes, bool]]] = {}  # commit -> path -> (content, lfs)
        self.order: list[str] = []
        self.refs: dict[str, str] = {}

    @property
    def head(self) -> str | None:
        return self.refs.get("main")

    def commit(self, tree: dict[str, tuple[bytes, bool]], ref: str = "main") -> str:
        told = repr((self.head, len(self.commits), sorted((p, oid_of(*file)) for p, file in tree.items())))
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid] = tree
        if ref == "main":
            self.order.insert(0, oid)
        self.refs[ref] = oid
        return oid


class Hub:
    """Attributes:
    lfs_over: files of more bytes are LFS.
    requests: (method, path, headers) of everything that was asked.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lfs_over, self.xet, self.checks_parent = 1000, False, True
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.tamper: Callable[[Request], None] = lambda request: None
        self.lock, self.closed = threading.RLock(), False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Request,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def put(self, repo: str, files: dict[str, bytes], kind: str = "model") -> str:
        with self.lock:
            at = self.repos.setdefault((kind, repo), Repo())
            return at.commit({p: (c, len(c) > self.lfs_over) for p, c in files.items()})

    def files(self, repo: str, kind: str = "model") -> dict[str, bytes]:
        at = self.repos[kind, repo]
        return {p: c for p, (c, _) in at.commits[at.head].items()}

    def close(self) -> None:
        self.closed = True
        self.server.shutdown()
        self.server.server_close()


class Request(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.body = self._chunks() if chunked else self.rfile.read(length)
        if self.hub.closed:  # on a connection that was kept open
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self.hub.requests.append((self.command, self.path, dict(self.headers)))
        url = urlsplit(self.path)
        self.parts, self.query = url.path.strip("/").split("/"), parse_qs(url.query, keep_blank_values=True)
        try:
            self.hub.tamper(self)
            with self.hub.lock:
                self._route()
        except Answer as answer:
            self.answer(answer.status, answer.body, answer.headers)
        except Done:
            pass

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self, after: bytes = b"") -> None:
        """End the connection in the middle of what was sent."""
        self.wfile.write(after)
        self.wfile.flush()
        self.connection.shutdown(2)
        self.close_connection = True
        raise Done

    # -- the protocol -----------------------------------------------------------------------------------------

    def _route(self) -> None:
        parts, hub = [unquote(p) for p in self.parts], self.hub
        if parts[:2] == ["api", "whoami-v2"]:
            raise Answer(body={"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if parts[:2] == ["api", "validate-yaml"]:
            raise Answer(body={"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(self.body)
            key = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
            if key in hub.repos:
                raise Answer(409, {"error": "exists", "url": self._url(key)})
            repo = hub.repos[key] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
            repo.commit({".gitattributes": (b"*.safetensors filter=lfs\n", False)})
            raise Answer(body={"url": self._url(key)})
        if parts[0] == "lfs":
            if sha256(self.body) != parts[1]:
                raise Answer(400)
            hub.objects[parts[1]] = self.body
            raise Answer()
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            kind = parts[1].removesuffix("s")
            if len(parts) == 2:
                raise Answer(body=[self._info(k, r) for k, r in hub.repos.items() if k[0] == kind and self._listed(r)])
            self._api(kind, "/".join(parts[2:4]), parts[4:])
        kind, parts = ("dataset", parts[1:]) if parts[0] == "datasets" else ("model", parts)
        self._files(kind, parts)

    def _repo(self, kind: str, name: str) -> Repo:
        if (kind, name) not in self.hub.repos:
            raise Answer(404, {"error": "no repo"}, X_Error_Code="RepoNotFound")
        return self.hub.repos[kind, name]

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.refs.get(revision, revision)
        if oid not in repo.commits:
            raise Answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        return oid

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        hub, repo = self.hub, self._repo(kind, name)
        what, revision = (rest + ["", "main"])[0], (rest[1] if len(rest) > 1 else "main")
        if what in ("", "revision"):
            commit = self._commit_of(repo, revision) if repo.head or what else None
            raise Answer(body={**self._info((kind, name), repo), "sha": commit})
        if what == "tree":
            raise Answer(body=self._tree(repo.commits[self._commit_of(repo, revision)]))
        if what == "commits":
            raise Answer(body=[{"id": oid, "title": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
                               for oid in repo.order])  # fmt: skip
        if what == "tag":
            tag = json.loads(self.body)["tag"]
            if tag in repo.refs:
                raise Answer(409, {"error": "exists"})
            repo.refs[tag] = self._commit_of(repo, revision)
            raise Answer(body={})
        if what == "xet-write-token":
            raise Answer(200 if hub.xet else 404, {})
        if what == "preupload":
            held = repo.commits.get(repo.head, {})
            rows = []
            for file in json.loads(self.body)["files"]:
                lfs = file["size"] > hub.lfs_over
                row = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                if file["path"] in held:
                    row["oid"] = oid_of(*held[file["path"]])
                rows.append(row)
            raise Answer(body={"files": rows})
        if what == "commit":
            self._take(repo, "create_pr" in self.query)
        raise Answer(404)

    def _take(self, repo: Repo, create_pr: bool) -> None:
        header, *rows = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        parent = header["value"].get("parentCommit")
        if self.hub.checks_parent and parent and parent != repo.head:
            raise Answer(412, {"error": "the head moved"})
        tree = dict(repo.commits.get(repo.head, {}))
        for row in rows:
            value = row["value"]
            if row["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"]), False
            elif row["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]], True
            elif row["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repo.commit(tree, "refs/pr/1" if create_pr else "main")
        url = f"{self.hub.endpoint}/me/x/commit/{oid}"
        pull = {"pullRequestUrl": f"{self.hub.endpoint}/me/x/discussions/1"} if create_pr else {}
        raise Answer(body={"commitOid": oid, "commitUrl": url, **pull})

    def _files(self, kind: str, parts: list[str]) -> None:
        name = "/".join(parts[:2])
        if parts[1].endswith(".git"):
            objects = []
            for asked in json.loads(self.body)["objects"]:
                row = dict(asked)
                if asked["oid"] not in self.hub.objects:
                    row["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}}
                objects.append(row)
            raise Answer(body={"transfer": "basic", "objects": objects})
        repo = self._repo(kind, name)
        commit = self._commit_of(repo, parts[3])
        path = "/".join(parts[4:])
        if path not in repo.commits[commit]:
            raise Answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound")
        content, lfs = repo.commits[commit][path]
        self.send_file(content, {"X-Repo-Commit": commit, "ETag": f'"{oid_of(content, lfs)}"'})

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        asked, status = self.headers.get("Range"), 200
        if asked:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content, status = content[start:], 206
        self.answer(status, content, {**headers, "Accept-Ranges": "bytes"})
        raise Done

    def _tree(self, tree: dict[str, tuple[bytes, bool]]) -> list[dict[str, Any]]:
        rows = []
        for path, (content, lfs) in sorted(tree.items()):
            row = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(b"" if lfs else content)}
            if lfs:
                row["lfs"] = {"oid": oid_of(content, True), "size": len(content), "pointerSize": 134}
            rows.append(row)
        return rows

    def _card(self, repo: Repo) -> dict[str, Any]:
        from kdhub.hub.trust import split_card

        try:
            return split_card(repo.commits[repo.head]["README.md"][0].decode())[0]
        except (KeyError, ValueError):
            return {}

    def _info(self, key: tuple[str, str], repo: Repo) -> dict[str, Any]:
        card = self._card(repo)
        tags = card.get("tags") if isinstance(card.get("tags"), list) else []
        days = f"2026-01-{len(repo.commits):02}T00:00:00.000Z"
        told = {"sha": repo.head, "private": repo.private, "tags": tags, "cardData": card, "lastModified": days}
        return {"id": key[1], "downloads": 0, "siblings": [], **told}

    def _listed(self, repo: Repo) -> bool:
        """One that knows the first filter alone, as hubs do that derive few tags."""
        return self.query.get("filter", [""])[0] in {"", *self._info(("", ""), repo)["tags"]}

    def _url(self, key: tuple[str, str]) -> str:
        return f"{self.hub.endpoint}/{'' if key[0] == 'model' else key[0] + 's/'}{key[1]}"


@contextmanager
def talked_to(monkeypatch: Any) -> Iterator[Hub]:
    """A hub which the client library and kdhub talk to, logged in."""
    from huggingface_hub import constants

    hub = Hub()
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": False, "ENDPOINT": hub.endpoint}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        hub.close()
