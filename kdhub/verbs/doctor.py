"""`kdhub doctor`: is this machine ready, can this recipe run, and what is likely to spoil its result?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdhub.errors import KdhubError
from kdhub.files import home
from kdhub.findings import Finding

if TYPE_CHECKING:
    from kdhub.recipes.resolve import Resolver


def doctor(
    recipe: Any = None, *, set: Sequence[str] | Mapping[str, Any] = (), resolver: Resolver | None = None
) -> list[Finding]:
    """Findings with status ok, note, warn or fail, cheapest first.

    Args:
        recipe: a name, file or mapping: also resolve it, open its data, and try it with a few rows and steps.
        set: recipe keys to change, as for `distill`.
    """
    found = _machine()
    if recipe is not None:
        found += _recipe(recipe, set, resolver)
    return found


def _machine() -> list[Finding]:
    import torch

    from kdhub.plugins.discovery import get_plugins
    from kdhub.ranks import resolve_precision

    bad = [r for r in get_plugins().records if r.status not in ("ok", "disabled")]
    causes = "; ".join(f"{r.provider}: {r.cause}" for r in bad)
    found = [Finding("fail" if bad else "ok", "plugins", causes or "all load", "kdhub plugins" if bad else "")]
    found.append(_cache())
    where = "a GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    found.append(Finding("ok", "training on", f"{where}, {resolve_precision('auto')}"))
    data = os.environ.get("KDHUB_DATA")
    if data and not os.path.isdir(data):
        found.append(Finding("fail", "KDHUB_DATA", f"{data} is not a folder", "correct it, or unset it"))
    else:
        found.append(Finding("ok" if data else "note", "KDHUB_DATA", data or "not set: data sets come from the Hub"))
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        found.append(Finding("note", "hub", "offline (HF_HUB_OFFLINE)"))
    else:
        found.append(Finding("ok", "hub", os.environ.get("HF_ENDPOINT", "default")))
    return found


def _cache() -> Finding:
    folder, do = home(), "free space, or set KDHUB_HOME to another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("fail", "cache folder", f"{folder}: {error.strerror or error}", do)
    good = os.access(folder, os.W_OK) and free > 2e9
    return Finding("ok" if good else "fail", "cache folder", f"{folder}, {free / 1e9:.0f} GB free", "" if good else do)


def _recipe(name: Any, set: Sequence[str] | Mapping[str, Any], resolver: Resolver | None) -> list[Finding]:
    from kdhub.recipes.chain import link, resolve_recipe
    from kdhub.recipes.resolve import Resolver
    from kdhub.verbs.rehearse import rehearse

    resolver = resolver or Resolver()
    try:
        recipe = resolve_recipe(name, set=set, resolver=resolver)
    except KdhubError as error:
        return [Finding("fail", "recipe", error.message, error.hint or "")]
    teacher = ", ".join(ref.source for ref in recipe.teachers.values()) or "no teacher"
    found = [Finding("ok", "recipe", f"{recipe.name or recipe.method}: {recipe.method}, {teacher}")]
    uses = [(use, ref) for use, refs in recipe.data.items() for ref in refs]
    for use, ref in [*uses, *(("evaluation", ref) for ref in recipe.evaluation.data)]:
        if link(ref.source):
            continue
        try:
            data = resolver.data(ref, recipe.on_bad_rows)
            wanted = [ref.split] if ref.split else [use, "train"] if use != "evaluation" else ["test", "validation"]
            split = data.pick(*wanted)
            rows = len(data.split(split))
            found.append(Finding("ok", f"{use} data {ref.source}", f"{split}, {rows} rows", values={"rows": rows}))
        except KdhubError as error:
            status = "note" if ref.optional else "fail"
            found.append(Finding(status, f"{use} data {ref.source}", error.message, error.hint or ""))
    return found if any(one.status == "fail" for one in found) else found + rehearse(recipe, resolver)
