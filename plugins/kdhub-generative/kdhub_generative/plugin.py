"""What kdhub-generative provides: each room declares its own in `spec.py`. No torch, no diffusers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_generative.images import spec as images
from kdhub_generative.scenes import spec as scenes

ROOMS = (images, scenes)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
