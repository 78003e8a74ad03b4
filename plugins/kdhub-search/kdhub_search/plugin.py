"""What kdhub-search provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_search.families import spec as families
from kdhub_search.spaces import spec as spaces

ROOMS = (
    families,
    spaces,
)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
