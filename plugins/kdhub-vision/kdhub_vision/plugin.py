"""What kdhub-vision provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_vision.captioning import spec as captioning
from kdhub_vision.condensed import spec as condensed
from kdhub_vision.counting import spec as counting
from kdhub_vision.modules import spec as modules

ROOMS = (counting, modules, condensed, captioning)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
