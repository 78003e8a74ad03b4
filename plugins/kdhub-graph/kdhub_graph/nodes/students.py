"""Student builders of node classification."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from kdhub_tasks.classes import classes_for
from pydantic import BaseModel, ConfigDict, Field

from kdhub.errors import UsageError
from kdhub.student import BuildContext, sizes


class GraphOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the network; training uses the method's own unless null")
    neighbours: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="neighbours of a node that are drawn for each layer in training; all if unset"
    )


def _built(kind: str, argument: str, context: BuildContext) -> Any:
    """A fresh network for the graph of the training rows: `gcn:width=64,layers=2`.

    Raises:
        UsageError: an unknown setting, heads that do not divide the width, not one number of neighbours a layer, or no
            training rows.
    """
    import torch

    from kdhub_graph.nodes.model import GraphClassifier

    settings = sizes(kind, argument, width=64, layers=2, **({"heads": 4} if kind == "gat" else {}))
    settings.setdefault("heads", 1)
    if settings["width"] % settings["heads"]:
        raise UsageError(
            f"student {kind}:{argument}: heads must divide width (heads={settings['heads']}, width={settings['width']})"
        )
    options = GraphOptions.model_validate({k: v for k, v in context.options.items() if k in GraphOptions.model_fields})
    drawn = options.neighbours
    if drawn is not None and len(drawn) != settings["layers"]:
        raise UsageError(
            f"student {kind}:{argument}: neighbours has a number for each layer "
            f"(neighbours={drawn}, layers={settings['layers']})"
        )
    if "inputs" not in context.facts:
        raise UsageError(f"student {kind}:{argument} needs training rows to know the features of nodes", hint="--data")
    of_graph = {name: context.facts[name] for name in ("inputs", "columns", "graph")}
    torch.manual_seed(context.seed)
    config = {"network": kind, **settings, "dropout": options.dropout, **of_graph, "classes": classes_for(context)}
    student = GraphClassifier(config, {"how": f"fresh {kind}:{argument}"})
    student.neighbours = drawn
    return student


def _builder(kind: str) -> Any:
    build = partial(_built, kind)
    build.Options = GraphOptions
    return build


gcn, sage, gat, gin, node_mlp = map(_builder, ("gcn", "sage", "gat", "gin", "node-mlp"))
