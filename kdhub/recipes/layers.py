"""What a recipe is made of: the method's own recipe, a file or catalogue entry, flags, and `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdhub.errors import UnknownNameError, UsageError
from kdhub.recipes.recipe import Layer, Recipe, combine, parse_sets, read_yaml
from kdhub.recipes.resolve import Resolver

FLAGS = ("method", "teacher", "student", "data", "seed", "tracking")


def recipe_layers(
    recipe: Any, set: Sequence[str] | Mapping[str, Any], resolver: Resolver, overrides: Mapping[str, Any]
) -> list[Layer]:
    unknown = [k for k in overrides if k not in FLAGS]
    if unknown:
        raise UnknownNameError("override", unknown[0], FLAGS)
    flags = [
        Layer(
            "--track" if key == "tracking" else f"--{key}",
            {"data": {"train": value}} if key == "data" else {key: value},
        )
        for key, value in overrides.items()
        if value is not None
    ]
    given = [] if recipe is None else [recipe_layer(recipe, resolver)]
    sets = parse_sets(set)
    method = combine([*given, *flags, *sets]).get("method")
    if method is None:
        raise UsageError(
            "neither a method nor a recipe is given",
            hint="kdhub distill --method NAME, or kdhub distill --recipe FILE; kdhub list methods shows all",
        )
    base = []
    if isinstance(method, str):
        spec = resolver.registry.find("method", method).spec
        name = spec.recipe
        if name and not isinstance(recipe, Recipe):
            base = [_catalogue_layer(name, resolver)]
        elif not given:
            raise UsageError(f"method {method} has no recipe of its own", hint="give one with --recipe")
    return [*base, *given, *flags, *[_shorthand(layer, resolver, method) for layer in sets]]


def _shorthand(layer: Layer, resolver: Resolver, method: Any) -> Layer:
    """`--set lr=1e-4` means `--set options.lr=1e-4`: a bare key that no recipe has is an option of the method."""
    (key, value), *_ = layer.values.items()
    keys = {f.alias or n for n, f in Recipe.model_fields.items()}
    if key in keys or isinstance(value, Mapping) or not isinstance(method, str):
        return layer
    return Layer(layer.label, {"options": layer.values})


def recipe_layer(recipe: Any, resolver: Resolver) -> Layer:
    """The keys of a recipe: a `Recipe`, a mapping, a file, or a name of the catalogue."""
    if isinstance(recipe, Recipe):
        return Layer("recipe", recipe.model_dump(by_alias=True, exclude_unset=True))
    if isinstance(recipe, Mapping):
        return Layer("recipe", dict(recipe))
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or "/" in str(recipe):
        return Layer(str(path), read_yaml(path))
    return _catalogue_layer(str(recipe), resolver)


def _catalogue_layer(name: str, resolver: Resolver) -> Layer:
    names = resolver.catalog.names("recipes")
    if name not in names:
        raise UnknownNameError("recipe", name, names, how_to_list="kdhub list recipes")
    path = resolver.catalog.path("recipes", name)
    return Layer(f"recipe {name}", {"name": name, **read_yaml(path)})
