"""`kdhub.pull`: a published student, checked and brought here."""

from __future__ import annotations

import re
from pathlib import Path

from kdhub.catalogue.catalog import Catalog, default_catalog
from kdhub.errors import UsageError
from kdhub.hub import pull as hub
from kdhub.hub.fetch import parse_repo
from kdhub.hub.pull import MOST_BYTES, Pulled


def pull(
    repo: str,
    *,
    to: str | Path | None = None,
    endpoint: str | None = None,
    max_size: int | str = MOST_BYTES,
    catalog: Catalog | None = None,
) -> Pulled:
    """Bring a student here. What is here already is not fetched again, and found without a network.

    Args:
        repo: `org/name`, `org/name@revision`, `datasets/org/name`, or a name of `kdhub list published`.
        to: a folder, new or empty; kdhub's own store by default.
        max_size: refuse what declares more, in bytes or as text ("20GB").

    Returns:
        Where it is, and the commit it is pinned to.

    Raises:
        UntrustedError: it holds what no student holds, or other bytes than its hub and manifest name.
        HubError: missing, private, no network, a broken transfer.
    """
    catalog = catalog or default_catalog()
    kind = None
    if ("published", repo) in catalog:
        entry = catalog.check("published", repo)
        name, revision, kind, endpoint = entry.repo, entry.commit, entry.kind, endpoint or entry.endpoint
    else:
        text, kind = (repo.removeprefix("datasets/"), "dataset") if repo.startswith("datasets/") else (repo, None)
        name, revision = parse_repo(text)
    folder = Path(to).expanduser() if to is not None else None
    return hub.pull(name, revision, kind=kind, to=folder, endpoint=endpoint, most_bytes=size_of(max_size))


def size_of(text: int | str) -> int:
    """Bytes of a size as people write it: `800MB`, `20 GB`, `1000`.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", str(text).strip(), re.IGNORECASE)
    if not found:
        raise UsageError(f"{text!r} is not a size", hint="expected bytes, or a number with kB, MB, GB or TB")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))
