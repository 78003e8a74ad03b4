"""Node classification: one class a node of a graph. A kind of classification, so that its methods are this one's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kdhub_tasks.classification.task import Classification, Predictions
from pydantic import Field

from kdhub.data.prepare import iterate
from kdhub.errors import DataError
from kdhub.rows import Example, Fault, Prepare, all_readable
from kdhub.task import Encoder, View

if TYPE_CHECKING:
    import datasets
    import torch

    from kdhub.data.dataset import Data

DEGREES = ((0, 1), (2, 4), (5, 9), (10, None))
HOMOPHILY = (0.0, 0.25, 0.5, 0.75, 1.0)
HOPS = "hop_logits"
"""The logits of a teacher that has some for each number of hops."""


@dataclass
class NodePredictions(Predictions):
    """What metrics read, with what is known of the nodes.

    Attributes:
        degrees: (n,) neighbours of each node.
        alike: (n,) share of the labelled neighbours that have the node's class, NaN where it has none; None where the
            data set has no split `nodes`.
        by_hop: (n, hops + 1, classes) a teacher's logits after each hop; None for others.
    """

    degrees: np.ndarray | None = None
    alike: np.ndarray | None = None
    by_hop: np.ndarray | None = None

    def only(self, chosen: np.ndarray) -> NodePredictions:
        return NodePredictions(self.logits[chosen], self.labels[chosen], self.classes)


class NodeClassification(Classification):
    """Rows have `graph`, the name of a graph (`kdhub.data.shared`), `node`, a number in it, and `label`."""

    name = "node-classification"
    column = "node"
    problems = ()
    pipeline_tag = "graph-ml"
    primary = {"rows": "accuracy"}

    class EvaluationOptions(Classification.EvaluationOptions):
        by_degree: bool = Field(False, description="also the accuracy of nodes with few and with many neighbours")
        by_homophily: bool = Field(
            False, description="also the accuracy of nodes by the share of their neighbours that have their class"
        )

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = super()._columns(data, split)
        if "graph" not in (whole := data.split(split)).column_names:
            raise DataError(
                f"{data.name}, split {split!r}, has no column 'graph', only {', '.join(whole.column_names)}"
            )
        return whole.select_columns([*table.column_names, "graph"])

    def survey(self, parts: Sequence[tuple[Data, str]]) -> dict[str, Any]:
        """`classes`, and of the graph its name, how many `inputs` a node has, and which (`columns`)."""
        from kdhub_graph.nodes.graphs import open_graph

        facts = super().survey(parts)
        if not parts:
            return facts
        graph = open_graph(self.training_table(parts)[0]["graph"])
        return {**facts, "graph": graph.name, "inputs": graph.width, "columns": graph.columns}

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        from kdhub_graph.nodes.graphs import open_graph

        targets, reader = self._known(student, teacher), teacher if hasattr(teacher, "content_of") else None

        def prepare(rows: list[dict[str, Any]]) -> list[Example]:
            known = {name: len(open_graph(name)) for name in {row["graph"] for row in rows}}
            made = []
            for row, label in zip(rows, targets(rows)):
                one = {"graph": row["graph"], "node": row["node"], "label": label, "length": 1, "cut": False}
                if not 0 <= row["node"] < known[row["graph"]]:
                    why = Fault("nodes are not in their graph", f"node {row['node']} of {known[row['graph']]}")
                    one |= {"fault": why, "length": 0, "node": 0}
                at = row["graph"], one["node"]
                if reader:
                    one |= {"content": reader.content_of(*at), "cut": reader.is_cut(*at)}
                else:
                    one["content"] = "{} {}".format(*at).encode()
                made.append(one)
            if reader:
                reader.tell()
            return all_readable(made)

        prepare.by_hop = reader is not None
        return prepare

    def collate(self, examples: Sequence[Example], student: Any) -> dict[str, torch.Tensor]:
        drawn = student.collate(examples, drawn=True) if student.module.training and student.neighbours else None
        return {**super().collate(examples, _Collated(drawn) if drawn else student)}

    def load(self, folder: Path, *, name: str | None = None) -> Any:
        from kdhub_graph.nodes.model import GraphClassifier

        return GraphClassifier.load(Path(folder), name=name)

    def open(self, folder: Path, context: Any, start: Mapping[str, Any], *, name: str | None = None) -> Any:
        student = self.load(folder, name=name)
        student.start = dict(start)
        return student

    # -- evaluation -------------------------------------------------------------------------------------------

    def outputs(self, encode: Encoder, data: Data, split: str) -> NodePredictions:
        by_hop = None
        if getattr(encode.prepare, "by_hop", False):
            by_hop = np.asarray(encode(self._columns(data, split), HOPS)[HOPS], np.float32)
            given = super().outputs(_Known(encode, by_hop[:, -1]), data, split)
        else:
            given = super().outputs(encode, data, split)
        degrees, alike = self._around(data, split)
        if by_hop is not None and encode.faults:
            by_hop = np.delete(by_hop, np.asarray(list(encode.faults)) - 1, 0)
        return NodePredictions(given.logits, given.labels, given.classes, degrees=degrees, alike=alike, by_hop=by_hop)

    def _around(self, data: Data, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Degrees of a split's nodes, and how many of their neighbours are of their class."""
        from kdhub_graph.nodes.graphs import open_graph

        rows = data.split(split)
        names, nodes = rows["graph"], rows["node"]
        graphs = {name: open_graph(name) for name in set(names)}
        degrees = np.asarray([graphs[g].degrees[n] if n < len(graphs[g]) else 0 for g, n in zip(names, nodes)])
        if "nodes" not in data.splits:
            return degrees, None
        every = data.split("nodes")
        labels = {(g, n): label for g, n, label in zip(every["graph"], every["node"], every["label"])}
        alike = []
        for g, n in zip(names, nodes):
            near = [labels.get((g, m)) for m in (graphs[g].neighbours(n).tolist() if n < len(graphs[g]) else ())]
            near = [label for label in near if label is not None]
            alike.append(sum(label == labels.get((g, n)) for label in near) / len(near) if near else np.nan)
        return degrees, np.asarray(alike)

    def views(self, outputs: NodePredictions, options: Any, subject: str) -> Iterator[View]:
        """After each hop of a teacher; by degree and by homophily."""
        yield from super().views(outputs, options, subject)
        for hop in range(outputs.by_hop.shape[1] if outputs.by_hop is not None else 0):
            yield View({"hop": hop}, partial(lambda hop, out: replace(out, logits=out.by_hop[:, hop]), hop))
        if len(outputs.degrees) != len(outputs.labels):  # rows that could not be read are left out
            return
        for low, high in DEGREES if options.by_degree else ():
            chosen = (outputs.degrees >= low) & (outputs.degrees <= (np.inf if high is None else high))
            yield from _view({"degree": f"{low}-{high}" if high else f"{low} and more"}, chosen)
        for low, high in zip(HOMOPHILY, HOMOPHILY[1:]) if options.by_homophily and outputs.alike is not None else ():
            chosen = (outputs.alike >= low) & ((outputs.alike < high) | (high == 1))
            yield from _view({"homophily": f"{low:g}-{high:g}"}, chosen)

    def sample(self, data: Data, split: str, n: int) -> list[dict[str, Any]]:
        table = self._columns(data, split)
        return list(iterate(table.select_columns(["graph", "node"]).select(range(min(n, len(table))))))

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_graph.nodes import tiny

        return tiny.recipe(folder)


def _view(variant: dict[str, Any], chosen: np.ndarray) -> Iterator[View]:
    if chosen.any():
        yield View(variant, lambda out: out.only(chosen))


class _Collated:
    """In the place of a student, a batch that it made."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return self.batch


class _Known:
    """An encoder whose logits are known."""

    def __init__(self, encode: Encoder, logits: np.ndarray):
        self.logits, self.faults = logits, encode.faults

    def __call__(self, table: Any, kind: str, **how: Any) -> dict[str, Any]:
        return {"logits": self.logits}
