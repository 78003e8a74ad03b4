"""`kdhub doctor`: is this machine ready, and can this recipe run?"""

from __future__ import annotations

import os
import shutil
from typing import Any

from kdhub._files import home
from kdhub.errors import KdhubError


def doctor(recipe: str | None = None) -> list[dict[str, str]]:
    """Checks with status ok, note or fail, cheapest first; nothing is downloaded.

    Args:
        recipe: also resolve this recipe and open its data.
    """
    checks: list[dict[str, str]] = []

    def add(status: str, check: str, found: Any) -> None:
        checks.append({"status": status, "check": check, "found": str(found)})

    from kdhub.plugins import get_plugins

    bad = [r for r in get_plugins().records if r.status not in ("ok", "disabled")]
    add("fail" if bad else "ok", "plugins", "; ".join(f"{r.provider}: {r.cause}" for r in bad) or "all load")
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
        add("ok" if writable and free > 2e9 else "fail", "cache folder", f"{folder}, {free / 1e9:.0f} GB free")
    except OSError as error:
        add("fail", "cache folder", f"{folder}: {error.strerror or error}")
    import torch

    from kdhub.training import resolve_precision

    where = "a GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    add("ok", "training on", f"{where}, {resolve_precision('auto')}")
    data = os.environ.get("KDHUB_DATA")
    if data and not os.path.isdir(data):
        add("fail", "KDHUB_DATA", f"{data} is no folder")
    else:
        add("ok" if data else "note", "KDHUB_DATA", data or "not set: data sets come from the Hub")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    add(
        "note" if offline else "ok",
        "hub",
        "offline (HF_HUB_OFFLINE)" if offline else os.environ.get("HF_ENDPOINT", "default"),
    )
    if recipe is not None:
        _check_recipe(recipe, add)
    return checks


def _check_recipe(name: str, add: Any) -> None:
    from kdhub.resolve import Resolver
    from kdhub.verbs.distill import resolve_recipe

    resolver = Resolver()
    try:
        recipe = resolve_recipe(name, resolver=resolver)
        add("ok", f"recipe {name}", f"{recipe.method}: {recipe.teacher.source if recipe.teacher else 'no teacher'}")
    except KdhubError as error:
        add("fail", f"recipe {name}", error.message)
        return
    uses = [(use, ref) for use, refs in recipe.data.items() for ref in refs]
    for use, ref in [*uses, *(("evaluation", ref) for ref in recipe.evaluation.data)]:
        try:
            data = resolver.data(ref, recipe.on_bad_rows)
            wanted = [ref.split] if ref.split else [use, "train"] if use != "evaluation" else ["test", "validation"]
            split = data.pick(*wanted)
            add("ok", f"{use} data {ref.source}", f"{split}, {len(data.split(split))} rows")
        except KdhubError as error:
            add("note" if ref.optional else "fail", f"{use} data {ref.source}", error.message)
