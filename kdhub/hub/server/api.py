"""What the embedded hub answers: the part of the Hugging Face Hub's interface that its clients use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from kdhub.hub.server import pages, transfer
from kdhub.hub.server.access import Access
from kdhub.hub.server.call import Call, number
from kdhub.hub.server.rules import Refused
from kdhub.hub.server.store import (
    MAIN,
    Commit,
    File,
    Repo,
    Store,
    comment,
    event,
    no_entry,
    no_repo,
    place_of,
    pointer,
)
from kdhub.hub.trust import split_card

KINDS = {"models": "model", "datasets": "dataset"}
PAGE = 1000
"""Rows in one answer."""


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
            raise Refused(
                404, "this hub does not support this request", "RepoNotFound" if len(call.parts) == 3 else None
            )
        case ("POST", *place, "info", "lfs", "objects", "batch") if _git_repo(place):
            return transfer.batch(store, access, call, _repo_of(store, call, *_git_repo(place)))
        case ("POST", *place, "info", "lfs", "verify") if _git_repo(place):
            _repo_of(store, call, *_git_repo(place))
            return transfer.verify(store, call)
        case ("GET", "datasets", owner, name, ("resolve" | "raw") as how, revision, _, *_):
            path = "/".join(call.parts[5:])
            return transfer.download(
                store, call, _repo_of(store, call, "dataset", f"{owner}/{name}"), how, revision, path
            )
        case ("GET", owner, name, ("resolve" | "raw") as how, revision, _, *_):
            path = "/".join(call.parts[4:])
            return transfer.download(
                store, call, _repo_of(store, call, "model", f"{owner}/{name}"), how, revision, path
            )
        case ("GET", *parts):
            return _page(store, call, parts)
    raise Refused(405 if call.parts[:1] == ("api",) else 404, "this hub does not support this request")


def _of_repo(store: Store, call: Call, repo: Repo, rest: list[str]) -> Response:
    if call.method != "GET" and rest[:1] != ["paths-info"]:  # which only asks, with a long question
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
            return transfer.preupload(store, call, repo, revision)
        case ("POST", "commit", revision):
            return transfer.commit(store, call, repo, revision)
        case ("PUT", "settings"):
            store.set_private(repo, private := _private(call))
            return JSONResponse({"private": private})
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
    raise Refused(404, "this hub does not support this request")


def _whoami(call: Call) -> Response:
    if not call.caller.known:
        raise Refused(401, "nobody is logged in")
    token = {"displayName": call.caller.name, "role": call.caller.role}
    auth = {"type": "access_token", "accessToken": token}
    name = call.caller.name
    return JSONResponse({"type": "user", "name": name, "fullname": name, "orgs": [], "auth": auth})


def _validate(call: Call) -> Response:
    call.write()  # reading YAML takes time
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
    url = f"{call.base}/{place_of(kind, name)}"
    try:
        repo = store.create(kind, name, private=_private(call), author=call.caller.name)
    except Refused as refused:
        refused.more["url"] = url  # clients that are content with one that exists read it
        raise
    return JSONResponse({"url": url, "name": repo.name, "id": repo.name})


def _private(call: Call) -> bool:
    """What a repository is to be, by either of the two ways to say it."""
    return call.value("visibility", str, "private" if call.value("private", bool, False) else "public") == "private"


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
    limit = call.limit(PAGE, PAGE)
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
    card = call.asked("cardData")
    wanted = {"card": card, "siblings": card or call.asked("full"), "expand": set(query.getlist("expand"))}
    shown = found[:limit]
    more = f"{getattr(shown[-1], by)}~{shown[-1].id}" if len(found) > limit else None
    return call.page([_facts(store, repo, None, **wanted) for repo in shown], more)


def _cursor(text: str | None) -> tuple[str, int] | None:
    if not text:
        return None
    date, _, last = text.rpartition("~")
    return date, number(last, 0)


def _info(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    commit = store.commit_of(repo, revision)
    expand = set(call.query.getlist("expand"))
    facts = _facts(store, repo, commit, card=True, siblings=True, expand=expand, blobs=call.asked("blobs"))
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
    recursive = call.asked("recursive")
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
        raise no_entry(repo, commit, folder)
    limit = call.limit(PAGE, 10 * PAGE)
    ordered = sorted(rows.values(), key=lambda row: row["path"])
    after = call.query.get("cursor", "")
    left = [row for row in ordered if row["path"] > after]
    page = left[:limit]
    if call.asked("expand"):
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        page = [{**row, "lastCommit": last} for row in page]
    response = call.page(page, page[-1]["path"] if len(left) > limit else None)
    response.headers["X-Repo-Commit"] = commit.oid
    return response


def _paths(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    commit = store.commit_of(repo, revision)
    wanted = dict.fromkeys(path for path in call.value("paths", list, []) if isinstance(path, str))
    folders = {path.rpartition("/")[0] for path in commit.files} - {""}
    folders |= {folder[:i] for folder in folders for i, c in enumerate(folder) if c == "/"}
    rows = []
    for path in wanted:
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


# -- history and pull requests --------------------------------------------------------------------------------


def _refs(store: Store, call: Call, repo: Repo) -> Response:
    told: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    places = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
    for ref, oid in store.refs(repo).items():
        _, kind, name = ref.split("/", 2)
        told[places[kind]].append({"name": name, "ref": ref, "targetCommit": oid})
    if not call.asked("include_prs"):
        del told["pullRequests"]
    return JSONResponse(told)


def _history(store: Store, call: Call, repo: Repo, revision: str) -> Response:
    limit = call.limit(50, PAGE)
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
    return call.page(rows, found[limit]["oid"] if len(found) > limit else None)


def _discussions(store: Store, call: Call, repo: Repo, rest: list[str]) -> Response:
    author = call.caller.name
    match (call.method, *rest):
        case ("GET",):
            return _pulls(store, call, repo)
        case ("POST",):
            if not call.value("pullRequest", bool, False):
                raise Refused(400, "this hub supports pull requests, but no other discussions")
            title, text = call.value("title"), call.value("description", str, "")
            num = store.open_pull(repo, title[:1000], text, author, status="draft")
            return JSONResponse({"num": num, "pullRequest": True})
        case ("GET", num):
            return JSONResponse(_whole_pull(store, repo, _num(num)))
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
    raise Refused(404, "this hub does not support this request")


def _pulls(store: Store, call: Call, repo: Repo) -> Response:
    query = call.query
    rows = store.pulls(repo) if query.get("type", "all") != "discussion" else []
    status = query.get("status", "all")
    if status != "all":
        rows = [row for row in rows if (row["status"] in ("open", "draft")) == (status == "open")]
    if query.get("author"):
        rows = [row for row in rows if row["author"] == query["author"]]
    start = number(query.get("p"), 0) * 50
    told = [_pull(repo, row) for row in rows[start : start + 50]]
    return JSONResponse({"discussions": told, "count": len(rows), "start": start})


def _pull(repo: Repo, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num": row["num"],
        "title": row["title"],
        "author": {"name": row["author"]},
        "createdAt": row["created"],
        "status": row["status"],
        "repo": {"name": repo.name, "type": repo.kind},
        "isPullRequest": True,
    }


def _whole_pull(store: Store, repo: Repo, num: int) -> dict[str, Any]:
    row = store.pull(repo, num)
    both, changed = store.conflicts(repo, num)
    diff = "".join(f"{'changed' if file else 'deleted'} {path}\n" for path, file in sorted(changed.items()))
    return _pull(repo, row) | {
        "events": row["events"],
        "changes": {"base": MAIN, "mergeCommitId": row["merged"]},
        "filesWithConflicts": both if row["status"] in ("open", "draft") else [],
        "diff": diff,
    }


def _num(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise Refused(404, f"there is no pull request {text!r}")
    return int(text)


# -- pages ----------------------------------------------------------------------------------------------------


def _page(store: Store, call: Call, parts: list[str]) -> Response:
    """What a browser sees."""
    user = call.caller.name
    if parts == ["login"] and not call.caller.known:
        return Response("a token is the password; any name will do", 401, {"WWW-Authenticate": 'Basic realm="kdhub"'})
    if call.caller.role == "none":
        raise Refused(401, "this hub is open to its users only: log in at /login")
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
            return _html(pages.pull_request(repo, _whole_pull(store, repo, _num(num)), user))
        case _:
            raise Refused(404, "there is no such page")
    commit = store.commit_of(repo, revision)
    card = store.text(commit.files, "README.md", errors="replace")
    return _html(pages.repository(repo, store.tags(repo), revision, commit, card, call.base, user))


def _html(text: str) -> Response:
    return Response(text, headers={"Content-Security-Policy": pages.POLICY}, media_type="text/html; charset=utf-8")
