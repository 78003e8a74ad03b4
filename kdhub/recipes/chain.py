"""`recipe:NAME`: the student of another recipe, made once and reused; with `seed: 3` (`recipe:NAME@3`) or `set: {...}`
beside it the student of that recipe with other keys, which has a digest and a folder of its own.

As data it is the rows that the other recipe's student is, also as the argument of a kind (`chat:recipe:NAME`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from kdhub.errors import CompatibilityError, RecipeError
from kdhub.files import canonical_json, home
from kdhub.recipes.layers import recipe_layers
from kdhub.recipes.recipe import ALL, LINK, Link, Recipe, build, linked
from kdhub.recipes.resolve import Resolver
from kdhub.recipes.run import Run

_open: ContextVar[tuple[str, ...]] = ContextVar("open_recipes", default=())


def check(recipe: Recipe, resolver: Resolver) -> None:
    """Check every recipe that this one stands on, before anything is made.

    Raises:
        RecipeError: one leads back to itself; UnknownNameError: nobody has one.
        CompatibilityError: one is for another task. Whatever the recipes' own checks raise.
    """
    made = cache(partial(resolved, resolver=resolver))
    roles = resolver.registry.find("method", recipe.method, recipe.task).spec.teachers
    for role, ref in recipe.teachers.items():
        task = ref.task or recipe.task
        if ref.source.startswith(LINK) and (found := made(ref.source).task) != task:
            hint = f"write task: {found} beside its source" if found in roles[role].tasks else None
            raise CompatibilityError(f"{ref.source} makes a student for {found}, not for {task}", hint=hint)
    if start := link(recipe.student.source):
        starts, found = resolver.registry.find("task", recipe.task).spec.starts, made(start).task
        if found not in (recipe.task, *starts):
            also = f"; a start may also be one for {', '.join(starts)}" if starts else ""
            raise CompatibilityError(f"{start} makes a student for {found}, not for {recipe.task}{also}")
    for ref in [*chain.from_iterable(recipe.data.values()), *recipe.evaluation.data]:
        if source := link(ref.source):
            _check_rows(source, made(source), resolver)
    replaced(recipe, lambda source: made(source) and source)


def _check_rows(source: str, other: Recipe, resolver: Resolver) -> None:
    """
    Raises:
        CompatibilityError: the student is a network, so there are no rows to take.
    """
    builder = resolver.target("student", other.student.source, other.task).entry.spec
    if exposed := builder.signals_for(resolver.registry.find("task", other.task).spec):
        raise CompatibilityError(
            f"{source} as data: its student {other.student.source} is a model that gives {', '.join(sorted(exposed))}",
            hint="name a recipe whose student is rows",
        )


def link(source: str) -> str | None:
    """The `recipe:NAME` in a source: all of it, or the argument of a kind of data; None where there is none."""
    before, prefix, name = source.partition(LINK)
    return prefix + name if prefix and (not before or before.endswith(":")) else None


def digest(recipe: Recipe, resolver: Resolver) -> str:
    """12 hex digits that change with the recipe or with any recipe it stands on."""

    def named(source: str) -> str:
        return f"{source} {digest(resolved(source, resolver), resolver)}"

    changed = Recipe.model_validate(replaced(recipe, named))
    return hashlib.sha256(canonical_json(changed.to_dict())).hexdigest()[:12]


def unmade(recipe: Recipe, resolver: Resolver) -> list[str]:
    """The `recipe:NAME` in it, and in what those stand on, whose student is not there yet."""
    found: list[str] = []

    def look(source: str) -> str:
        other = resolved(source, resolver)
        folder = folder_of(other, resolver)
        if source not in found and not ((folder / "recipe.yaml").exists() and Run.open(folder).finished("done")):
            found.extend([*(name for name in unmade(other, resolver) if name not in found), source])
        return source

    replaced(recipe, look)
    return found


def folder_of(recipe: Recipe, resolver: Resolver) -> Path:
    """Where the student of such a recipe is, or will be."""
    return home() / "recipes" / f"{recipe.name or recipe.method}-{digest(recipe, resolver)}"


def resolved(source: str, resolver: Resolver) -> Recipe:
    """The recipe behind a link (`recipe:NAME`, see `kdhub.recipes.recipe.Link`), checked with those it stands on."""
    link = Link.parse(source)
    seed = link.seed.removesuffix(ALL)
    if link.seed and not seed.isdecimal():
        raise RecipeError([f"{source}: the seed is {link.seed!r}, expected a number, as in {LINK}{link.name}@3"])
    with _opened(link.name):
        made = resolve_recipe(link.name, set=link.changes, resolver=resolver, seed=int(seed) if seed else None)
    if not link.seed.endswith(ALL):
        return made

    def seeded(other: str) -> str:
        its = Link.parse(other)
        return Link(its.name, its.seed or link.seed, its.changes).text

    return Recipe.model_validate(replaced(made, seeded))


@contextmanager
def _opened(name: str) -> Iterator[None]:
    path = (*_open.get(), name)
    if name in path[:-1]:
        raise RecipeError([f"{LINK}{name} leads back to itself: {' > '.join(path)}"])
    token = _open.set(path)
    try:
        yield
    finally:
        _open.reset(token)


def lineage(chained: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The models that the students of some links were made with, through any number of links, and what was asked of
    servers for them.

    Args:
        chained: link -> the folder of its student.

    Returns:
        [{"as": "teacher" | "start" | "data", "source", "id", "revision", "licence", "terms", "via": [link, ...]}], a
        teacher whose texts were read being one of the data; and counts by link and signal, as a provenance has them in
        `spent`.
    """
    found, spent = [], {}
    for link, folder in chained.items():
        facts = Run.open(Path(folder).parent).provenance
        start = facts.get("student", {}).get("start", {})
        wrote = writers_in(facts)
        taught = models_of(facts.get("teacher") or {})
        own = [part_in("data" if one in wrote else "teacher", one) for one in taught]
        bases = start.get("base_model") or []
        own += [part_in("start", {**start, "id": base}) for base in (bases if isinstance(bases, list) else [bases])]
        own = [one for one in own if not str(one.get("source")).startswith(LINK)]  # in the lineage of that run
        found += [{**one, "via": [link, *one.get("via", [])]} for one in (*own, *facts.get("lineage", ()))]
        spent |= {f"{kind} of {link}": counts for kind, counts in facts.get("spent", {}).items()}
    return found, spent


def writers_in(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models of a run's teacher whose texts it read: of a method with several by role those of that role."""
    read = {kind.partition(":")[0] for kind in provenance.get("signals") or {}}
    teacher = provenance.get("teacher") or {}
    found = models_of(teacher) if "text" in read else []
    roles = [one for one in teacher.get("members", ()) if f"{one.get('role')}/text" in read]
    return found + [model for one in roles for model in models_of(one)]


def rows_of(recipe: Recipe) -> list[str]:
    """The links whose rows a recipe takes."""
    refs = chain.from_iterable(recipe.data.values())
    return list(dict.fromkeys(found for ref in refs if (found := link(ref.source))))


def models_of(teacher: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A teacher in a provenance as those that it is made of, itself if it is one."""
    members = [one for member in teacher.get("members", ()) for one in models_of(member)]
    return members or ([teacher] if teacher else [])


def withheld_in(recipe: Recipe, kind: str, chained: Mapping[str, str]) -> list[str]:
    """Why the students that one of this recipe contains should not be published: its start, and rows in rows.

    Args:
        kind: of the student; chained: link -> the folder of its student.
    """
    inside = [found] if recipe.student is not None and (found := link(recipe.student.source)) else []
    inside += rows_of(recipe) if kind == "dataset" else []
    facts = [Run.open(Path(chained[one]).parent).provenance for one in inside if one in chained]
    return [reason for each in facts for reason in each.get("student", {}).get("withheld", ())]


def part_in(what: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """A model with what it is to a student, as a lineage lists it."""
    known = {key: model[key] for key in ("source", "id", "revision", "licence", "terms") if model.get(key)}
    return {"as": what, **known}


def replaced(recipe: Recipe, new: Callable[[str], str]) -> dict[str, Any]:
    """The values of a recipe with another text for each source that is a recipe."""

    def visit(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {k: visit(v, k) for k, v in linked(node).items()}
        if isinstance(node, list):
            return [visit(v) for v in node]
        found = link(node) if key == "source" and isinstance(node, str) else None
        return node.removesuffix(found) + new(found) if found else node

    parts = ("teacher", "student", "options", "data", "evaluation")
    values = recipe.model_dump(by_alias=True, exclude_unset=True)
    return {k: visit(v) if k in parts else v for k, v in values.items()}


def resolve_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    set: Sequence[str] | Mapping[str, Any] = (),
    resolver: Resolver | None = None,
    **overrides: Any,
) -> Recipe:
    """The recipe that `distill` would run: method's default, then `recipe`, then flags, then `set`; fully checked."""
    resolver = resolver or Resolver()
    layers = recipe_layers(recipe, set, resolver, overrides)
    resolved = resolver.with_roles(build(layers))
    resolver.check(resolved, layers)
    check(resolved, resolver)
    return resolver.completed(resolved)
