"""What the embedded hub answers: the part of the Hugging Face Hub's interface that its clients use."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, urlencode

from starlette.datastructures import Headers, QueryParams
from starlette.responses import FileResponse, JSONResponse, Response

from kdhub.hub.server import pages
from kdhub.hub.server.access import Access, Caller
from kdhub.hub.server.store import (
    CARD_LIMIT,
    LFS_OVER,
    Change,
    Commit,
    File,
    Refused,
    Repo,
    Store,
    check_paths,
    comment,
    event,
    is_lfs,
    lfs_file,
    no_repo,
    pointer,
)
from kdhub.hub.trust import split_card

LINE_LIMIT = 4 * LFS_OVER // 3 + 2**16
"""Bytes of one line of a commit: a file that is not LFS, in base64."""
LINES_LIMIT = 25_000
PREUPLOAD_LIMIT = 1000
PAGE = 1000

KINDS = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True)
class Call:
    """One request, as its handler sees it.

    Attributes:
        parts: of the path, decoded one by one.
        body: parsed JSON, or a form's lists; a file for a commit.
        base: address of this hub, as the caller wrote it.
    """

    method: str
    parts: tuple[str, ...]
    query: QueryParams
    headers: Headers
    body: Any
    caller: Caller
    base: str

    def read(self) -> None:
        if self.caller.role == "none":
            raise Refused(401, "this hub answers to its users alone: a token is needed", "RepoNotFound")

    def write(self) -> None:
        if not self.caller.known:
            raise Refused(401, "a token is needed to change anything")
        if self.caller.role != "write":
            raise Refused(403, f"the token {self.caller.name!r} may only read")

    def value(self, key: str, kind: type = str, default: Any = None) -> Any:
        """One entry of a JSON body.

        Raises:
            Refused: 400, it is missing without a default, or of another type.
        """
        found = self.body.get(key) if isinstance(self.body, dict) else None
        if found is None and default is not None:
            return default
        if not isinstance(found, kind):
            raise Refused(400, f"{key!r} must be {_TYPES[kind]}")
        return found


_TYPES = {str: "a text", list: "a list", int: "a number", bool: "true or false"}


# -- what is asked --------------------------------------------------------------------------------------------


def answer(store: Store, access: Access, call: Call) -> Response:
    """What a request is answered.

    Raises:
        Refused: it is not.
    """
    try:
        return _route(store, access, call)
    except UnicodeEncodeError:  # JSON can hold half of a character
        raise Refused(400, "there is text that is not Unicode") from None
    except RecursionError:
        raise Refused(400, "nested too deeply") from None


def _route(store: Store, access: Access, call: Call) -> Response:
    match (call.method, *call.parts):
        case ("GET", "api", "whoami-v2"):
            return _whoami(call)
        case ("POST", "api", "validate-yaml"):
            return _validate(call)
        case ("POST", "api", "repos", "create"):
            return _create(store, call)
        case ("DELETE", "api", "repos", "delete"):
            repo = _repo_of(store, call, _kind_of(call), _named(call))
            call.write()
            store.delete(repo)
            return JSONResponse({})
        case ("POST", "api", "repos", "move"):
            call.write()
            store.move(_repo_of(store, call, _kind_of(call), call.value("fromRepo")), call.value("toRepo"))
            return JSONResponse({})
        case ("GET", "api", ("models" | "datasets") as kinds):
            call.read()
            return _list(store, call, KINDS[kinds])
        case (_, "api", ("models" | "datasets") as kinds, owner, name, *rest):
            return _of_repo(store, call, _repo_of(store, call, KINDS[kinds], f"{owner}/{name}"), rest)
        case ("GET", "api", *_):
            raise Refused(404, "this hub does not answer that", "RepoNotFound" if len(call.parts) == 3 else None)
        case ("POST", *place, "info", "lfs", "objects", "batch") if _git_repo(place):
            return _batch(store, access, call, _repo_of(store, call, *_git_repo(place)))
        case ("POST", *place, "info", "lfs", "verify") if _git_repo(place):
            _repo_of(store, call, *_git_repo(place))
            return _lfs_verify(store, call)
        case ("GET", "datasets", owner, name, ("resolve" | "raw") as how, revision, _, *_):
            path = "/".join(call.parts[5:])
            return _file(store, call, _repo_of(store, call, "dataset", f"{owner}/{name}"), how, revision, path)
        case ("GET", owner, name, ("resolve" | "raw") as how, revision, _, *_):
            path = "/".join(call.parts[4:])
            return _file(store, call, _repo_of(store, call, "model", f"{owner}/{name}"), how, revision, path)
        case ("GET", *parts):
            return _page(store, call, parts)
    raise Refused(405 if call.parts[:1] == ("api",) else 404, "this hub does not answer that")


def _of_repo(store: Store, call: Call, repo: Repo, rest: list[str]) -> Response:
    if call.method != "GET" and rest[:1] not in (["paths-info"],):
        call.write()
    match (call.method, *rest):
        case ("GET",):
            return _info(store, call, repo, "main")
        case ("GET", "revision", revision):
            return _info(store, call, repo, revision)
        case ("GET", "tree", revision, *folder):
            return _tree(store, call, repo, revision, "/".join(folder))
        case ("POST", "paths-info", revision):
            return _paths(store, call, repo, revision)
        case ("POST", "preupload", revision):
            return _preupload(store, call, repo, revision)
        case ("POST", "commit", revision):
            return _commit(store, call, repo, revision)
        case ("PUT", "settings"):
            visibility = call.value("visibility", str, "private" if call.value("private", bool, False) else "public")
            store.set_private(repo, visibility == "private")
            return JSONResponse({"private": visibility == "private"})
        case ("POST", "tag", revision):
            name = call.value("tag")
            store.add_ref(repo, f"refs/tags/{name}", store.resolve(repo, revision))
            return JSONResponse({})
        case ("DELETE", "tag", name):
            store.delete_ref(repo, f"refs/tags/{name}")
            return JSONResponse({})
        case ("POST", "branch", name):
            start = store.resolve(repo, call.value("startingPoint", str, "main"))
            replace = call.value("overwrite", bool, False)
            store.add_ref(repo, f"refs/heads/{name}", start, replace=replace)
            return JSONResponse({})
        case ("DELETE", "branch", name):
            store.delete_ref(repo, f"refs/heads/{name}")
            return JSONResponse({})
        case ("GET", "refs"):
            return _refs(store, call, repo)
        case ("GET", "commits", revision):
            return _history(store, call, repo, revision)
        case (_, "discussions", *rest):
            return _discussions(store, call, repo, rest)
        case ("GET", ("xet-write-token" | "xet-read-token"), *_):
            raise Refused(404, "this hub has no Xet: set HF_HUB_DISABLE_XET=1")
    raise Refused(404, "this hub does not answer that")


def _whoami(call: Call) -> Response:
    if not call.caller.known:
        raise Refused(401, "nobody is logged in")
    token = {"displayName": call.caller.name, "role": call.caller.role}
    auth = {"type": "access_token", "accessToken": token}
    name = call.caller.name
    return JSONResponse({"type": "user", "name": name, "fullname": name, "orgs": [], "auth": auth})


def _validate(call: Call) -> Response:
    content = call.value("content")
    if content.startswith("---"):
        try:
            split_card(content)
        except ValueError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})


def _create(store: Store, call: Call) -> Response:
    call.write()
    kind, name = _kind_of(call), _named(call)
    private = call.value("visibility", str, "private" if call.value("private", bool, False) else "public") == "private"
    url = f"{call.base}/{name}" if kind == "model" else f"{call.base}/datasets/{name}"
    try:
        repo = store.create(kind, name, private=private, author=call.caller.name)
    except Refused as refused:
        refused.more["url"] = url  # clients that are content with one that exists read it
        raise
    return JSONResponse({"url": url, "name": repo.name, "id": repo.name})


def _kind_of(call: Call) -> str:
    kind = call.value("type", str, "model")
    if kind not in KINDS.values():
        raise Refused(400, f"this hub keeps models and datasets, not a {kind!r}")
    return kind


def _named(call: Call) -> str:
    name, owner = call.value("name"), call.value("organization", str, "")
    return name if "/" in name else f"{owner or call.caller.name}/{name}"


def _repo_of(store: Store, call: Call, kind: str, name: str) -> Repo:
    """A repository the caller may read.

    Raises:
        Refused: there is none, or it is private: nobody learns which.
    """
    call.read()
    try:
        repo = store.repo(kind, name)
        if not repo.private or call.caller.known:
            return repo
    except Refused:
        pass
    found = no_repo(kind, name)
    if not call.caller.known:
        found.status = 401
    raise found


def _git_repo(place: list[str]) -> tuple[str, str] | None:
    """Kind and name of `owner/name.git` and `datasets/owner/name.git`."""
    kind = "dataset" if place[:1] == ["datasets"] else "model"
    parts = place[1:] if kind == "dataset" else place
    if len(parts) != 2 or not parts[1].endswith(".git"):
        return None
    return kind, "/".join(parts).removesuffix(".git")


# -- lists ----------------------------------------------------------------------------------------------------

_ORDERS = {"lastModified": "updated", "last_modified": "updated", "createdAt": "created", "created_at": "created"}
# Nothing of these is counted here: by each of them all repositories are equal.
_ORDERS |= dict.fromkeys(("downloads", "likes", "likes7d", "trendingScore", "trending_score"), "updated")


def _list(store: Store, call: Call, kind: str) -> Response:
    query = call.query
    limit = min(max(_number(query.get("limit"), PAGE), 1), PAGE)
    by = _ORDERS.get(query.get("sort") or "lastModified")
    if by is None:
        raise Refused(400, f"this hub sorts by {' or '.join(sorted(_ORDERS))}, not by {query['sort']!r}")
    newest_first = query.get("direction", "-1") != "1"
    found = store.repos(
        kind,
        private=call.caller.known,
        tags=[tag for key in ("filter", "pipeline_tag", "library") for tag in query.getlist(key)],
        search=query.get("search", ""),
        author=query.get("author", ""),
        by=by,
        newest_first=newest_first,
        after=_cursor(query.get("cursor")),
        limit=limit + 1,
    )
    wanted = _asked(query, "full") or _asked(query, "cardData")
    expand = set(query.getlist("expand"))
    rows = [_facts(store, repo, None, card=_asked(query, "cardData"), siblings=wanted, expand=expand) for repo in found]
    response = JSONResponse(rows[:limit])
    if len(found) > limit:
        last = found[limit - 1]
        more = [(key, value) for key, value in query.multi_items() if key != "cursor"]
        more.append(("cursor", f"{getattr(last, by)}~{last.id}"))
        response.headers["Link"] = f'<{call.base}/api/{kind}s?{urlencode(more)}>; rel="next"'
    return response


def _cursor(text: str | None) -> tuple[str, int] | None:
    if not text:
        return None
    date, _, last = text.rpartition("~")
    return date, _number(last, 0)


def _info(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    commit = store.commit_of(repo, revision)
    expand = set(call.query.getlist("expand"))
    facts = _facts(store, repo, commit, card=True, siblings=True, expand=expand, blobs=_asked(call.query, "blobs"))
    return JSONResponse(facts)


def _facts(
    store: Store,
    repo: Repo,
    commit: Commit | None,
    *,
    card: bool,
    siblings: bool,
    expand: set[str],
    blobs: bool = False,
) -> dict[str, Any]:
    """What clients are told of a repository, whole or in the parts they ask for.

    Args:
        commit: the one asked for; the head of main when none is.
    """

    def head() -> Commit:
        return commit or store.commit_of(repo, "main")

    known: dict[str, Callable[[], Any]] = {
        "author": lambda: repo.name.partition("/")[0],
        "sha": lambda: commit.oid if commit else store.resolve(repo, "main"),
        "private": lambda: repo.private,
        "gated": lambda: False,
        "disabled": lambda: False,
        "tags": lambda: store.tags(repo),
        "library_name": lambda: _text_of(repo.card.get("library_name")),
        "pipeline_tag": lambda: _text_of(repo.card.get("pipeline_tag")),
        "cardData": lambda: dict(repo.card),
        "createdAt": lambda: repo.created,
        "lastModified": lambda: repo.updated,
        "siblings": lambda: [_sibling(path, file, blobs) for path, file in head().files.items()],
    }
    left_out = {name for name, wanted in (("cardData", card), ("siblings", siblings)) if not wanted}
    names = expand & set(known) or set(known) - left_out
    told = {"_id": f"{repo.id:024x}", "id": repo.name}
    if repo.kind == "model":
        told["modelId"] = repo.name
    return told | {name: known[name]() for name in known if name in names}


def _text_of(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": path}
    if blobs:
        told |= {"size": file.size, "blobId": file.git}
        if file.lfs:
            told["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": _pointer_size(file)}
    return told


def _pointer_size(file: File) -> int:
    return len(pointer(file.sha256, file.size))


# -- trees ----------------------------------------------------------------------------------------------------


def _tree(store: Store, call: Call, repo: Repo, revision: str, folder: str) -> Response:
    commit = store.commit_of(repo, revision)
    recursive = _asked(call.query, "recursive")
    below = f"{folder}/" if folder else ""
    rows: dict[str, dict[str, Any]] = {}
    for path, file in commit.files.items():
        if not path.startswith(below):
            continue
        inside = path[len(below) :].split("/")
        for n in range(1, len(inside) if recursive else min(2, len(inside))):
            above = below + "/".join(inside[:n])
            rows.setdefault(above, _folder_row(commit, above))
        if recursive or len(inside) == 1:
            rows[path] = _row(path, file)
    if folder and not rows:
        raise _no_entry(repo, commit, folder)
    limit = min(max(_number(call.query.get("limit"), PAGE), 1), 10 * PAGE)
    ordered = sorted(rows.values(), key=lambda row: row["path"])
    after = call.query.get("cursor", "")
    left = [row for row in ordered if row["path"] > after]
    page = left[:limit]
    if _asked(call.query, "expand"):
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        page = [{**row, "lastCommit": last} for row in page]
    response = JSONResponse(page)
    response.headers["X-Repo-Commit"] = commit.oid
    if len(left) > limit:
        more = [(key, value) for key, value in call.query.multi_items() if key != "cursor"]
        more.append(("cursor", page[-1]["path"]))
        here = "/".join(quote(part, safe="") for part in call.parts)
        response.headers["Link"] = f'<{call.base}/{here}?{urlencode(more)}>; rel="next"'
    return response


def _paths(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    commit = store.commit_of(repo, revision)
    wanted = call.body.get("paths", []) if isinstance(call.body, dict) else []
    folders = {path.rpartition("/")[0] for path in commit.files} - {""}
    folders |= {folder[:i] for folder in folders for i, c in enumerate(folder) if c == "/"}
    rows = []
    for path in wanted:
        if not isinstance(path, str):
            continue
        if path in commit.files:
            rows.append(_row(path, commit.files[path]))
        elif path in folders:
            rows.append(_folder_row(commit, path))
    return JSONResponse(rows)


def _row(path: str, file: File) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.git}
    if file.lfs:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": _pointer_size(file)}
    return row


def _folder_row(commit: Commit, path: str) -> dict[str, Any]:
    oid = hashlib.sha1(f"{commit.oid}/{path}".encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _no_entry(repo: Repo, commit: Commit, path: str) -> Refused:
    return Refused(404, f"{repo.name} has no {path!r} at {commit.oid}", "EntryNotFound", commit=commit.oid)


# -- upload ---------------------------------------------------------------------------------------------------


def _preupload(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    commit = store.commit_of(repo, revision)
    asked = call.value("files", list)
    if len(asked) > PREUPLOAD_LIMIT:
        raise Refused(400, f"at most {PREUPLOAD_LIMIT} files can be asked for at once")
    attributes = ""
    if (found := commit.files.get(".gitattributes")) and found.size <= 2**20:
        attributes = store.blob(found.sha256).read_text(encoding="utf-8", errors="replace")
    rows = []
    for each in asked:
        path, size, sample = each.get("path"), each.get("size"), each.get("sample", "")
        if not (isinstance(path, str) and isinstance(size, int) and isinstance(sample, str)):
            raise Refused(400, "each file needs a path, a size and a sample")
        lfs = is_lfs(path, size, _base64(sample, path), attributes)
        now = commit.files.get(path)
        # Of another mode it must be sent anew, whatever its content.
        oid = now.oid if now and now.lfs == lfs else None
        rows.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
    check_paths(row["path"] for row in rows)
    return JSONResponse({"files": rows, "commitOid": commit.oid})


def _batch(store: Store, access: Access, call: Call, repo: Repo) -> Response:
    operation = call.value("operation")
    if operation not in ("upload", "download"):
        raise Refused(400, f"the operation is upload or download, not {operation!r}")
    if operation == "upload":
        call.write()
    git = f"{call.base}/{pages.place_of(repo)}.git"
    head = store.commit_of(repo, "main").files.values() if operation == "download" else ()
    known = {file.sha256 for file in head}
    objects = []
    for oid, size in _objects(call):
        row: dict[str, Any] = {"oid": oid, "size": size}
        if operation == "upload":
            if not store.has(oid, size):
                upload = {"href": f"{call.base}/api/lfs/{oid}?{access.link(oid, size)}"}
                row["actions"] = {"upload": upload, "verify": {"href": f"{git}/info/lfs/verify"}}
        elif oid in known:
            path = next(p for p, f in store.commit_of(repo, "main").files.items() if f.sha256 == oid)
            row["actions"] = {"download": {"href": f"{call.base}/{pages.place_of(repo)}/resolve/main/{quote(path)}"}}
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


def _lfs_verify(store: Store, call: Call) -> Response:
    call.write()
    oid, size = _sha256(call.value("oid")), _size(call.value("size", int))
    if not store.has(oid, size):
        raise Refused(404, f"the content {oid} of {size} bytes is not here")
    return JSONResponse({"oid": oid, "size": size})


def _commit(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    change = _change(store, call.body)
    place, pull = f"{call.base}/{pages.place_of(repo)}", None
    if _asked(call.query, "create_pr"):
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
                raise Refused(400, f"line {n}: no such thing as {key!r} in a commit")
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


# -- history and pull requests --------------------------------------------------------------------------------


def _refs(store: Store, call: Call, repo: Repo) -> Response:
    told: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    places = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
    for ref, oid in store.refs(repo).items():
        _, kind, name = ref.split("/", 2)
        told[places[kind]].append({"name": name, "ref": ref, "targetCommit": oid})
    if not _asked(call.query, "include_prs"):
        del told["pullRequests"]
    return JSONResponse(told)


def _history(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    limit = min(max(_number(call.query.get("limit"), 50), 1), PAGE)
    # A page goes on where the one before ended: `revision` is then that commit's parent.
    found = store.history(repo, call.query.get("cursor") or revision, limit + 1)
    rows = [
        {
            "id": row["oid"],
            "title": row["title"],
            "message": row["message"],
            "date": row["date"],
            "authors": [{"user": row["author"]}],
        }
        for row in found[:limit]
    ]
    response = JSONResponse(rows)
    if len(found) > limit:
        more = urlencode({"limit": limit, "cursor": found[limit]["oid"]})
        here = f"{call.base}/api/{repo.kind}s/{repo.name}/commits/{quote(revision, safe='')}"
        response.headers["Link"] = f'<{here}?{more}>; rel="next"'
    response.headers["X-Total-Count"] = str(len(rows))
    return response


def _discussions(store: Store, call: Call, repo: Repo, rest: list[str]) -> Response:
    author = call.caller.name
    match (call.method, *rest):
        case ("GET",):
            return _pulls(store, call, repo)
        case ("POST",):
            if not call.value("pullRequest", bool, False):
                raise Refused(400, "this hub has pull requests, and no other discussions")
            title, text = call.value("title"), call.value("description", str, "")
            num = store.open_pull(repo, title[:1000], text, author, status="draft")
            return JSONResponse({"num": num, "pullRequest": True})
        case ("GET", num):
            return JSONResponse(_pull(store, repo, _num(num), whole=True))
        case ("POST", num, "comment"):
            made = comment(author, call.value("comment"))
            store.discuss(repo, _num(num), made)
            return JSONResponse({"newMessage": made})
        case ("POST", num, "title"):
            pull, title = store.pull(repo, _num(num)), call.value("title")[:1000]
            made = event("title-change", author, **{"from": pull["title"], "to": title})
            store.discuss(repo, _num(num), made, title=title)
            return JSONResponse({"newTitle": made})
        case ("POST", num, "status"):
            status = call.value("status")
            if status not in ("open", "closed") or store.pull(repo, _num(num))["status"] == "merged":
                raise Refused(400, "a pull request that is not merged can be set open or closed")
            made = event("status-change", author, status=status)
            store.discuss(repo, _num(num), made, status=status)
            return JSONResponse({"newStatus": made})
        case ("POST", num, "merge"):
            return JSONResponse({"mergeCommitId": store.merge(repo, _num(num), author)})
    raise Refused(404, "this hub does not answer that")


def _pulls(store: Store, call: Call, repo: Repo) -> Response:
    query = call.query
    rows = store.pulls(repo) if query.get("type", "all") != "discussion" else []
    status = query.get("status", "all")
    if status != "all":
        rows = [row for row in rows if (row["status"] in ("open", "draft")) == (status == "open")]
    if query.get("author"):
        rows = [row for row in rows if row["author"] == query["author"]]
    start = max(_number(query.get("p"), 0), 0) * 50
    told = [_pull(store, repo, row["num"]) for row in rows[start : start + 50]]
    return JSONResponse({"discussions": told, "count": len(rows), "start": start})


def _pull(store: Store, repo: Repo, num: int, *, whole: bool = False) -> dict[str, Any]:
    row = store.pull(repo, num)
    told = {
        "num": num,
        "title": row["title"],
        "author": {"name": row["author"]},
        "createdAt": row["created"],
        "status": row["status"],
        "repo": {"name": repo.name, "type": repo.kind},
        "isPullRequest": True,
    }
    if whole:
        both, changed = store.conflicts(repo, num)
        kinds = {True: "deleted", False: "changed"}
        diff = "".join(f"{kinds[file is None]} {path}\n" for path, file in sorted(changed.items()))
        open_ = row["status"] in ("open", "draft")
        told |= {
            "events": row["events"],
            "changes": {"base": "refs/heads/main", "mergeCommitId": row["merged"]},
            "filesWithConflicts": both if open_ else [],
            "diff": diff,
        }
    return told


def _num(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise Refused(404, f"there is no pull request {text!r}")
    return int(text)


# -- download -------------------------------------------------------------------------------------------------


class _Download(FileResponse):
    # Half the default's threads and wake-ups a byte, and still little for hundreds at once.
    chunk_size = 128 * 2**10


def _file(store: Store, call: Call, repo: Repo, how: str, revision: str, path: str) -> Response:
    commit = store.commit_of(repo, revision)
    file = commit.files.get(path)
    if file is None:
        raise _no_entry(repo, commit, path)
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{file.oid}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if file.lfs and how == "raw":
        return Response(pointer(file.sha256, file.size), headers=headers, media_type="text/plain")
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    kind, name = "application/octet-stream", path.rpartition("/")[2]
    # What a browser would run stays a download; a card's plots may be looked at.
    if name.endswith(".png"):
        kind = "image/png"
    elif name.endswith((".md", ".txt", ".json", ".yaml", ".csv", ".jsonl")):
        kind = "text/plain; charset=utf-8"
    else:
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    if call.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return _Download(store.blob(file.sha256), headers=headers, media_type=kind)


# -- pages ----------------------------------------------------------------------------------------------------


def _page(store: Store, call: Call, parts: list[str]) -> Response:
    """What a browser sees."""
    user = call.caller.name
    if parts == ["login"] and not call.caller.known:
        return Response("a token is the password; any name will do", 401, {"WWW-Authenticate": 'Basic realm="kdhub"'})
    if call.caller.role == "none":
        raise Refused(401, "this hub answers to its users alone: log in at /login")
    if parts in ([""], [], ["login"], ["models"], ["datasets"]):
        kind = "dataset" if parts == ["datasets"] else "model"
        query, cursor = call.query.get("search", ""), _cursor(call.query.get("cursor"))
        found = store.repos(kind, private=call.caller.known, search=query, after=cursor, limit=pages.SHOWN + 1)
        return _html(pages.listing(kind, found, {r.id: store.tags(r) for r in found}, query, user))
    kind = "dataset" if parts[0] == "datasets" else "model"
    own = parts[1:] if kind == "dataset" else parts
    if len(own) < 2:
        raise Refused(404, "there is no such page")
    repo = _repo_of(store, call, kind, "/".join(own[:2]))
    match own[2:]:
        case []:
            revision = "main"
        case [("tree" | "commit" | "blob"), revision, *_]:
            pass
        case ["discussions", num]:
            pull = _pull(store, repo, _num(num), whole=True)
            return _html(pages.pull_request(repo, pull, user))
        case _:
            raise Refused(404, "there is no such page")
    commit, card = store.commit_of(repo, revision), ""
    if (file := commit.files.get("README.md")) and file.size <= CARD_LIMIT:
        card = store.blob(file.sha256).read_text(encoding="utf-8", errors="replace")
    return _html(pages.repository(repo, store.tags(repo), revision, commit, card, call.base, user))


def _html(text: str) -> Response:
    return Response(text, headers={"Content-Security-Policy": pages.POLICY}, media_type="text/html; charset=utf-8")


def _asked(query: QueryParams, key: str) -> bool:
    return query.get(key, "").lower() in ("1", "true", "yes")


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 18 else default
