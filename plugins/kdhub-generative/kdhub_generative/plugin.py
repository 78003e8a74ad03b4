"""What kdhub-generative provides: each room declares its own in `spec.py`. No torch, no diffusers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_generative.editing import spec as editing
from kdhub_generative.few_bits import spec as few_bits
from kdhub_generative.images import spec as images

ROOMS = (images, editing, few_bits)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
