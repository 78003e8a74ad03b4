"""Files on their way into the embedded hub and out of it: commits, LFS, downloads."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any
from urllib.parse import quote

from starlette.responses import FileResponse, JSONResponse, Response

from kdhub.hub.server.access import Access
from kdhub.hub.server.call import Call
from kdhub.hub.server.rules import LFS_OVER, Refused, check_paths, is_lfs
from kdhub.hub.server.store import (
    Change,
    Repo,
    Store,
    lfs_file,
    no_entry,
    pointer,
)

LINE_LIMIT = 4 * LFS_OVER // 3 + 2**16
"""Bytes of one line of a commit: a file that is not LFS, in base64."""
LINES_LIMIT = 25_000
PREUPLOAD_LIMIT = 1000

# -- in -------------------------------------------------------------------------------------------------------


def preupload(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    head = store.commit_of(repo, revision)
    asked = call.value("files", list)
    if len(asked) > PREUPLOAD_LIMIT:
        raise Refused(400, f"at most {PREUPLOAD_LIMIT} files can be asked for at once")
    attributes = store.text(head.files, ".gitattributes", errors="replace")
    rows = []
    for each in asked:
        wanted = each if isinstance(each, dict) else {}
        path, size, sample = wanted.get("path"), wanted.get("size"), wanted.get("sample", "")
        if not (isinstance(path, str) and isinstance(size, int) and isinstance(sample, str)):
            raise Refused(400, "each file needs a path, a size and a sample")
        lfs = is_lfs(path, size, _base64(sample, path), attributes)
        now = head.files.get(path)
        # Of another mode it must be sent again, whatever its content.
        oid = now.oid if now and now.lfs == lfs else None
        rows.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
    check_paths(row["path"] for row in rows)
    return JSONResponse({"files": rows, "commitOid": head.oid})


def batch(store: Store, access: Access, call: Call, repo: Repo) -> Response:
    operation = call.value("operation")
    if operation not in ("upload", "download"):
        raise Refused(400, f"the operation is upload or download, not {operation!r}")
    if operation == "upload":
        call.write()
    place = f"{call.base}/{repo.place}"
    head = store.commit_of(repo, "main").files if operation == "download" else {}
    known = {file.sha256: path for path, file in head.items()}
    objects = []
    for oid, size in _objects(call):
        row: dict[str, Any] = {"oid": oid, "size": size}
        if operation == "upload":
            if not store.has(oid, size):
                upload = {"href": f"{call.base}/api/lfs/{oid}?{access.link(oid, size, call.caller.name)}"}
                row["actions"] = {"upload": upload, "verify": {"href": f"{place}.git/info/lfs/verify"}}
        elif oid in known:
            row["actions"] = {"download": {"href": f"{place}/resolve/main/{quote(known[oid])}"}}
        else:
            row["error"] = {"code": 404, "message": "this repository has no such content"}
        objects.append(row)
    told = {"transfer": "basic", "objects": objects, "hash_algo": "sha256"}
    return JSONResponse(told, media_type="application/vnd.git-lfs+json")


def _objects(call: Call) -> Iterator[tuple[str, int]]:
    for each in call.value("objects", list):
        oid, size = (each.get(key) for key in ("oid", "size")) if isinstance(each, dict) else (None, None)
        yield _sha256(oid), _size(size)


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise Refused(400, "an oid is a sha256 of 64 small hexadecimal digits")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**50:
        raise Refused(400, "a size is a number of bytes")
    return value


def verify(store: Store, call: Call) -> Response:
    call.write()
    oid, size = _sha256(call.value("oid")), _size(call.value("size", int))
    if not store.has(oid, size):
        raise Refused(404, f"the content {oid} of {size} bytes is not here")
    return JSONResponse({"oid": oid, "size": size})


def commit(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    change = _change(store, call.body)
    place, pull = f"{call.base}/{repo.place}", None
    if call.asked("create_pr"):
        if revision not in ("main", "HEAD"):
            raise Refused(400, "a pull request starts from main")
        num, oid = store.propose(repo, change, call.caller.name)
        pull = f"{place}/discussions/{num}"
    else:
        oid = store.take(repo, revision, change, call.caller.name)
    told = {"success": True, "commitOid": oid, "commitUrl": f"{place}/commit/{oid}", "hookOutput": ""}
    return JSONResponse(told | ({"pullRequestUrl": pull} if pull else {}))


def _change(store: Store, body: IO[bytes]) -> Change:
    """Read a commit line by line, keeping the content of each file as it comes."""
    change = None
    for n, (key, value) in enumerate(_lines(body), 1):
        if change is None:
            if key != "header":
                raise Refused(400, "line 1: a commit begins with its header")
            title, text = _told(value, "summary", n), _told(value, "description", n, "")
            change = Change(title[:1000] or "no title", text, _told(value, "parentCommit", n, "") or None)
            continue
        path = _told(value, "path", n)
        match key:
            case "file":
                if value.get("encoding", "base64") != "base64":
                    raise Refused(400, f"line {n}: the encoding of a file is base64")
                change.put[path] = store.put(_base64(_told(value, "content", n), path))
            case "lfsFile":
                oid, size = _sha256(value.get("oid")), value.get("size")
                if size is None:  # the npm client leaves it out
                    size = store.blob(oid).stat().st_size if store.blob(oid).exists() else 0
                if not store.has(oid, _size(size)):
                    raise Refused(400, f"line {n}: the content of {path!r} was not uploaded")
                change.put[path] = lfs_file(oid, size)
            case "deletedFile":
                change.remove.add(path)
            case "deletedFolder":
                change.remove_below.add(path)
            case _:
                raise Refused(400, f"line {n}: a commit has no lines of the kind {key!r}")
    if change is None:
        raise Refused(400, "a commit begins with its header")
    return change


def _lines(body: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    body.seek(0)
    n = 0
    while line := body.readline(LINE_LIMIT + 1):
        n += 1
        if len(line) > LINE_LIMIT:
            raise Refused(413, f"line {n}: a file of more than {LFS_OVER} bytes must go through LFS")
        if n > LINES_LIMIT:
            raise Refused(413, f"more than {LINES_LIMIT} changes in one commit; make several")
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            raise Refused(400, f"line {n} is not JSON") from None
        if not isinstance(found, dict) or not isinstance(found.get("value"), dict):
            raise Refused(400, f"line {n}: expected an object of a key and a value")
        yield found.get("key"), found["value"]


def _told(value: Mapping[str, Any], key: str, line: int, default: str | None = None) -> str:
    found = value.get(key, default)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise Refused(400, f"line {line}: {key!r} must be a text")
    return found


def _base64(text: str, path: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"what was sent of {path!r} is not base64") from None


# -- out ------------------------------------------------------------------------------------------------------


class _Download(FileResponse):
    # Half the default's threads and wake-ups a byte, and still little for hundreds at once.
    chunk_size = 128 * 2**10


def download(store: Store, call: Call, repo: Repo, how: str, revision: str, path: str) -> Response:
    at = store.commit_of(repo, revision)
    file = at.files.get(path)
    if file is None:
        raise no_entry(repo, at, path)
    headers = {
        "X-Repo-Commit": at.oid,
        "ETag": f'"{file.oid}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if file.lfs and how == "raw":
        return Response(pointer(file.sha256, file.size), headers=headers, media_type="text/plain")
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    kind, name = "application/octet-stream", path.rpartition("/")[2]
    # What a browser would run stays a download; a card's plots may be looked at.
    if name.endswith((".png", ".gif")):
        kind = f"image/{name[-3:]}"
    elif name.endswith((".md", ".txt", ".json", ".yaml", ".csv", ".jsonl")):
        kind = "text/plain; charset=utf-8"
    else:
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    if call.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return _Download(store.blob(file.sha256), headers=headers, media_type=kind)
