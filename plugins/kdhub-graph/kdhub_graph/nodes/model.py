"""Graph networks of torch_geometric's layers, and the students that are one.

h[0] = ReLU(Linear(x)),  h[k] = ReLU(layer_k(Dropout(h[k-1]))),  logits = Linear(ReLU(Linear(Dropout(h[L]))))
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kdhub_tasks.models import ProbedClassifier
from kdhub_tasks.wrappers import KEY, LazySignals, wrapped, wrappers_in
from safetensors.torch import load_file, save_file
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, Sequential

from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.hub.trust import check_model_folder
from kdhub.rows import Example, values_of
from kdhub_graph.nodes.graphs import Graph, open_graph

TASK = "node-classification"
LAYER = 3
"""Modules that make up one layer: dropout, convolution, ReLU."""
WHOLE = 8
"""Rows are read from the whole graph where they are more than one in so many of its nodes."""
TEMPORARY = Path(tempfile.gettempdir())
EDGES = "x, edge_index -> x"


def _layer(kind: str, width: int, heads: int) -> Any:
    if kind == "node-mlp":
        return nn.Linear(width, width)
    if kind == "gin":
        return GINConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))), EDGES
    made = {"gcn": GCNConv, "sage": SAGEConv, "gat": GATConv}[kind]
    return (made(width, width // heads, heads=heads) if kind == "gat" else made(width, width)), EDGES


def _remove_sources() -> None:
    """torch_geometric writes the code that it makes for a kind of layer into a temporary file, and leaves it there."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch_geometric.") and Path(getattr(module, "__file__", None) or "/").parent == TEMPORARY:
            Path(module.__file__).unlink(missing_ok=True)


class GraphNetwork(Sequential):
    """A `torch_geometric.nn.Sequential` that reads batches of `Graph.around`.

    Gives `logits` (rows, classes), `features` (rows, width), the state before the last layer, and `hop_states`
    (rows, layers + 1, width), the state of a node that has read 0, 1, ... hops.
    """

    def __init__(self, kind: str, inputs: int, classes: int, width: int, layers: int, heads: int, dropout: float):
        parts: list[Any] = [(nn.Linear(inputs, width), "x -> x"), nn.ReLU()]
        for _ in range(layers):
            parts += [nn.Dropout(dropout), _layer(kind, width, heads), nn.ReLU()]
        parts += [nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
        super().__init__("x, edge_index", parts)
        _remove_sources()
        self.layer_kind, self.layers = kind, layers
        for module in self.children():
            if isinstance(module, GCNConv):  # degrees are those of the whole graph: a batch knows its own alone
                module.normalize = module.add_self_loops = False

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> LazySignals:
        edges, at = (inputs["edge_index"],), inputs["row_at"]
        if self.layer_kind == "gcn":
            own = torch.arange(len(inputs["x"]), device=at.device)
            edges = (torch.cat([edges[0], torch.stack([own, own])], 1), inputs["norm"])
        edges = () if self.layer_kind == "node-mlp" else edges
        states = [self[1](self[0](inputs["x"]))]
        for start in range(2, 2 + LAYER * self.layers, LAYER):
            dropout, layer, act = (self[start + n] for n in range(LAYER))
            states.append(act(layer(dropout(states[-1]), *edges)))
        dropout, linear, act, last = (self[n] for n in range(len(self) - 4, len(self)))
        features = act(linear(dropout(states[-1])))
        # Every module runs over all nodes of the batch, so that `layer:NAME` is of those at `row_at` for any of them.
        found = {"logits": last(features)[at], "features": features[at]}
        return LazySignals(found, hop_states=lambda: torch.stack([state[at] for state in states], 1))


class GraphClassifier(ProbedClassifier):
    """A graph network: `config.json` and `model.safetensors`. The configuration names the graph that it learnt from by
    its digest, and what its features are; it reads any graph with the same features.

    Attributes:
        neighbours: how many neighbours of a node are drawn for each layer in training; None for all.
    """

    neighbours: Sequence[int] | None = None

    def __init__(self, config: Mapping[str, Any], start: Mapping[str, Any] | None = None):
        self.config = dict(config)
        of_network = {k: config[k] for k in ("inputs", "width", "layers", "heads", "dropout")}
        network = GraphNetwork(config["network"], classes=len(config["classes"]), **of_network)
        network = wrapped(network, len(config["classes"]), wrappers_in(config), config["width"])
        super().__init__(TASK, network, config["classes"], start)

    @property
    def network(self) -> str:
        return self.config["network"]

    @property
    def layers_read(self) -> int:
        """Hops of a neighbourhood that its output depends on."""
        return 0 if self.network == "node-mlp" else self.config["layers"]

    def blank(self) -> dict[str, torch.Tensor]:
        alone = {"x": torch.zeros(1, self.config["inputs"]), "edge_index": torch.zeros(2, 0, dtype=torch.long)}
        return {**alone, "norm": torch.ones(1), "row_at": torch.zeros(1, dtype=torch.long)}

    def note_wrapper(self, wrapper: Mapping[str, Any]) -> None:
        self.config[KEY] = [*self.config.get(KEY, ()), dict(wrapper)]

    @property
    def batch(self) -> int:
        return 4096

    # -- batches ----------------------------------------------------------------------------------------------

    def fits(self, graph: Graph) -> None:
        """Raises:
        DataError: the graph has other features than the network reads.
        """
        known, here = self.config, (graph.width, graph.columns)
        if graph.width != known["inputs"] or (known["columns"] and graph.columns and graph.columns != known["columns"]):
            raise DataError(
                f"the student reads {known['inputs']} features ({known['columns'] or 'unnamed'}) of graph "
                f"{known['graph'][:12]}; graph {graph.name[:12]} has {here[0]} ({here[1] or 'unnamed'})",
                hint="give it the same option words, or the features that it was trained with",
            )

    def collate(self, examples: Sequence[Example], drawn: bool = False) -> dict[str, torch.Tensor]:
        """Nodes with the neighbourhoods that the network reads; of several graphs one after the other.

        Args:
            drawn: whether neighbours are drawn (`neighbours`), as in training, or complete.
        """
        every, of = values_of(examples, "node"), values_of(examples, "graph", lambda e: hash(e["graph"]))
        parts, at, before = [], np.zeros(len(examples), np.int64), 0
        for first in np.sort(np.unique(of, return_index=True)[1]):
            rows, graph = np.flatnonzero(of == of[first]), open_graph(examples[first]["graph"])
            nodes = every[rows]
            self.fits(graph)
            if (fanouts := self.neighbours if drawn else None) is None and len(rows) * WHOLE >= len(graph):
                part, places = graph.whole, nodes
            else:
                different, places = np.unique(nodes, return_inverse=True)
                part = graph.around(different, (fanouts or [None] * self.layers_read)[: self.layers_read])
            at[rows] = places + before
            parts.append((part, before))
            before += len(part["x"])
        if len(parts) == 1:
            return {**parts[0][0], "row_at": torch.from_numpy(at)}
        counts = [part["edge_index"].shape[1] for part, _ in parts]  # `norm` has edges first, then nodes
        norms = [part["norm"].split([m, len(part["x"])]) for (part, _), m in zip(parts, counts)]
        return {
            "x": torch.cat([part["x"] for part, _ in parts]),
            "edge_index": torch.cat([part["edge_index"] + offset for part, offset in parts], 1),
            "norm": torch.cat([edges for edges, _ in norms] + [nodes for _, nodes in norms]),
            "row_at": torch.from_numpy(at),
        }

    # -- files ------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"kdhub": 1, "task": TASK, **self.config}, indent=2))
        save_file({n: t.contiguous() for n, t in self.module.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, *, name: str | None = None) -> GraphClassifier:
        """Raises:
        UntrustedError: no readable configuration, or not the weights of such a network.
        CompatibilityError: a student for another task.
        """
        check_model_folder(folder, name=name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("task") != TASK:
            raise CompatibilityError(f"{name or folder} is a student for {config.get('task')}, not for {TASK}")
        try:
            student = cls({k: v for k, v in config.items() if k not in ("kdhub", "task")})
            student.module.load_state_dict(load_file(folder / "model.safetensors"))
        except (KeyError, RuntimeError, TypeError) as error:
            raise UntrustedError(f"{name or folder} is not a whole graph network: {error}") from error
        student.module.eval()
        return student

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "graph": self.config["graph"], "layers_read": self.layers_read}

    def usage(self) -> str:
        if self.config.get(KEY):
            return super().usage()
        c = self.config
        width, dropout = c["width"], f"Dropout({c['dropout']})"
        layer = {
            "node-mlp": f"Linear({width}, {width})",
            "gcn": f"(GCNConv({width}, {width}), '{EDGES}')",
            "sage": f"(SAGEConv({width}, {width}), '{EDGES}')",
            "gat": f"(GATConv({width}, {width // c['heads']}, heads={c['heads']}), '{EDGES}')",
            "gin": f"(GINConv(S(Linear({width}, {width}), ReLU(), Linear({width}, {width}))), '{EDGES}')",
        }[c["network"]]
        head = f"[{dropout}, Linear({width}, {width}), ReLU(), Linear({width}, {len(c['classes'])})]"
        return (
            "import torch\n"
            "from safetensors.torch import load_file\n"
            "from torch.nn import Dropout, Linear, ReLU, Sequential as S\n"
            "from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, Sequential\n\n"
            f"layers = [m for _ in range({c['layers']}) for m in ({dropout}, {layer}, ReLU())]\n"
            f"first = [(Linear({c['inputs']}, {width}), 'x -> x'), ReLU()]\n"
            f"net = Sequential('x, edge_index', [*first, *layers, *{head}])\n"
            'net.load_state_dict(load_file("{path}/model.safetensors"))\n\n'
            f"x, edge_index = torch.zeros(3, {c['inputs']}), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])\n"
            f"print(net.eval()(x, edge_index).softmax(1))  # {', '.join(c['classes'][:6])}"
        )
