"""What kdhub-vision provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_vision.captioning import spec as captioning
from kdhub_vision.condensed import spec as condensed
from kdhub_vision.counting import spec as counting
from kdhub_vision.modules import spec as modules
from kdhub_vision.subconcepts import spec as subconcepts
from kdhub_vision.videos import spec as videos

ROOMS = (counting, modules, condensed, captioning, videos, subconcepts)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
