"""The routes of the embedded hub as an OpenAPI description, for tests that try what a client may send.

`python tests/hub_openapi.py FILE FOLDER` writes it down, for programs that read such descriptions (`make hub-fuzz`),
makes a hub in the folder that has what its examples name, and prints a token that may write there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kdhub.hub.server.store import Change, Store

TEXT, FLAG, TEXTS = {"type": "string"}, {"type": "boolean"}, {"type": "array", "items": {"type": "string"}}
KINDS = {"type": "string", "enum": ["model", "dataset"]}
FILES = {
    "type": "array",
    "items": {"type": "object", "properties": {"path": TEXT, "size": {"type": "integer"}, "sample": TEXT}},
}
OBJECTS = {"type": "array", "items": {"type": "object", "properties": {"oid": TEXT, "size": {"type": "integer"}}}}
BASE = "/api/{kinds}/{owner}/{name}"

OPERATIONS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("get", "/api/whoami-v2", {}, {}),
    ("post", "/api/validate-yaml", {}, {"content": TEXT, "repoType": TEXT}),
    ("post", "/api/repos/create", {}, {"name": TEXT, "organization": TEXT, "type": KINDS, "private": FLAG,
                                       "visibility": TEXT}),
    ("delete", "/api/repos/delete", {}, {"name": TEXT, "organization": TEXT, "type": KINDS}),
    ("post", "/api/repos/move", {}, {"fromRepo": TEXT, "toRepo": TEXT, "type": KINDS}),
    ("get", "/api/{kinds}", {"search": TEXT, "author": TEXT, "filter": TEXT, "sort": TEXT, "limit": TEXT,
                             "cursor": TEXT, "full": TEXT, "cardData": TEXT, "expand": TEXT}, {}),
    ("get", BASE, {"expand": TEXT, "blobs": TEXT}, {}),
    ("get", BASE + "/revision/{revision}", {"blobs": TEXT}, {}),
    ("get", BASE + "/tree/{revision}", {"recursive": TEXT, "limit": TEXT, "cursor": TEXT, "expand": TEXT}, {}),
    ("get", BASE + "/tree/{revision}/{path}", {"recursive": TEXT}, {}),
    ("post", BASE + "/paths-info/{revision}", {}, {"paths": TEXTS, "expand": FLAG}),
    ("post", BASE + "/preupload/{revision}", {}, {"files": FILES}),
    ("post", BASE + "/commit/{revision}", {"create_pr": TEXT}, {"key": TEXT, "value": {"type": "object"}}),
    ("put", BASE + "/settings", {}, {"private": FLAG, "visibility": TEXT}),
    ("post", BASE + "/tag/{revision}", {}, {"tag": TEXT}),
    ("delete", BASE + "/tag/{revision}", {}, {}),
    ("post", BASE + "/branch/{revision}", {}, {"startingPoint": TEXT, "overwrite": FLAG}),
    ("delete", BASE + "/branch/{revision}", {}, {}),
    ("get", BASE + "/refs", {"include_prs": TEXT}, {}),
    ("get", BASE + "/commits/{revision}", {"limit": TEXT, "cursor": TEXT}, {}),
    ("get", BASE + "/discussions", {"p": TEXT, "status": TEXT, "author": TEXT, "type": TEXT}, {}),
    ("post", BASE + "/discussions", {}, {"title": TEXT, "description": TEXT, "pullRequest": FLAG}),
    ("get", BASE + "/discussions/{num}", {}, {}),
    ("post", BASE + "/discussions/{num}/comment", {}, {"comment": TEXT}),
    ("post", BASE + "/discussions/{num}/title", {}, {"title": TEXT}),
    ("post", BASE + "/discussions/{num}/status", {}, {"status": TEXT}),
    ("post", BASE + "/discussions/{num}/merge", {}, {}),
    ("get", BASE + "/xet-read-token/{revision}", {}, {}),
    ("post", "/{owner}/{name}.git/info/lfs/objects/batch", {}, {"operation": TEXT, "objects": OBJECTS,
                                                                     "hash_algo": TEXT}),
    ("post", "/{owner}/{name}.git/info/lfs/verify", {}, {"oid": TEXT, "size": {"type": "integer"}}),
    ("put", "/api/lfs/{oid}", {"size": TEXT, "expires": TEXT, "name": TEXT, "signature": TEXT}, {}),
    ("get", "/{owner}/{name}/resolve/{revision}/{path}", {}, {}),
    ("get", "/{owner}/{name}/raw/{revision}/{path}", {}, {}),
    ("get", "/datasets/{owner}/{name}/resolve/{revision}/{path}", {}, {}),
    ("get", "/", {"search": TEXT, "cursor": TEXT}, {}),
    ("get", "/datasets", {"search": TEXT, "cursor": TEXT}, {}),
    ("get", "/login", {}, {}),
    ("get", "/{owner}/{name}", {}, {}),
    ("get", "/{owner}/{name}/tree/{revision}", {}, {}),
    ("get", "/{owner}/{name}/discussions/{num}", {}, {}),
]  # fmt: skip
"""Method, path, query and body of each."""
EXAMPLES = {
    "kinds": "models",
    "owner": "me",
    "name": "open",
    "revision": "main",
    "num": "1",
    "path": "README.md",
    "oid": "0" * 64,
}


def description() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for method, path, query, body in OPERATIONS:
        inside = [part.partition("}")[0] for part in path.split("{")[1:]]
        place = {"kinds": {"type": "string", "enum": ["models", "datasets"]}}
        told: list[dict[str, Any]] = [
            {
                "name": n,
                "in": "path",
                "required": True,
                "schema": place.get(n, TEXT),
                "example": EXAMPLES.get(n, "models"),
            }
            for n in inside
        ]
        told += [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
        operation: dict[str, Any] = {"parameters": told, "responses": {"default": {"description": "an answer"}}}
        if body:
            schema = {"type": "object", "properties": body}
            operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
        for each in (method, "head") if method == "get" else (method,):
            paths.setdefault(path, {})[each] = operation
    return {"openapi": "3.0.3", "info": {"title": "kdhub hub", "version": "1"}, "paths": paths}


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(description(), file, indent=1)
    store = Store(Path(sys.argv[2]))
    for kind in ("model", "dataset"):
        repo = store.create(kind, "me/open", private=False, author="me")
        store.take(repo, "main", Change("x", put={"README.md": store.put(b"---\ntags: [x]\n---\n# x\n")}), "me")
        store.open_pull(repo, "x", "x", "me")
    print(store.add_token("me", "write"))
