"""How checks are registered, and what several of them use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdhub.specs import SPECS
from kdhub.testing._bench import Bench

_CHECKS: dict[str, list[Callable[[Bench], None]]] = {kind: [] for kind in ("plugin", *SPECS)}


def check(*kinds: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Register a function as a check of these kinds, or of a "plugin" as a whole, which is checked by its first entry.
    It raises AssertionError, or SkipTest with a reason."""

    def register(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        for kind in kinds:
            _CHECKS[kind].append(function)
        return function

    return register


def _unbounded(node: Any, defs: Mapping[str, Any]) -> bool:
    """Whether a JSON schema allows a number without a bound, alone, in a union or in a list."""
    if "$ref" in node:
        node = defs.get(node["$ref"].rpartition("/")[2], {})
    if node.get("type") in ("number", "integer"):
        bounds = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        return not any(b in node for b in bounds) and "enum" not in node and "const" not in node
    inner = [*node.get("anyOf", ()), *node.get("prefixItems", ()), *([node["items"]] if node.get("items") else ())]
    return any(_unbounded(each, defs) for each in inner)


def describe_options(model: Any) -> list[str]:
    """What is wrong with a pydantic model of options, one sentence each."""
    problems, schema = [], model.model_json_schema()
    for name, field in model.model_fields.items():
        if not (field.description or "").strip():
            problems.append(f"{name} has no description")
        if field.is_required():
            problems.append(f"{name} has no default")
        if field.annotation in (None, Any, object):
            problems.append(f"{name} has no type")
        if _unbounded(schema["properties"].get(field.alias or name, {}), schema.get("$defs", {})):
            problems.append(f"{name} is a number without a range (ge=, gt=, le=, lt=)")
    if model.model_config.get("extra") != "forbid":
        problems.append('unknown options are accepted; set extra="forbid"')
    return problems


def flat(values: Any) -> np.ndarray:
    """Signals of some rows as numbers, those of ragged rows one after the other."""
    return np.concatenate([np.asarray(row, float).ravel() for row in values])
