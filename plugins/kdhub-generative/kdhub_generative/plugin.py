"""What kdhub-generative provides: each room declares its own in `spec.py`. No torch, no diffusers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_generative.editing import spec as editing
from kdhub_generative.few_bits import spec as few_bits
from kdhub_generative.images import spec as images
from kdhub_generative.scenes import spec as scenes

ROOMS = (images, editing, few_bits, scenes)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
