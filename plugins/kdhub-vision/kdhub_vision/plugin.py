"""What kdhub-vision provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_vision.counting import spec as counting

ROOMS = (counting,)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
