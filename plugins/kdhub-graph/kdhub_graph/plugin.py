"""What kdhub-graph provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_graph.nodes import spec as nodes

ROOMS = (nodes,)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
