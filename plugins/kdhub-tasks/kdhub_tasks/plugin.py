"""What kdhub-tasks provides: each task declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub.hookspecs import hooks_of
from kdhub_tasks import spec
from kdhub_tasks.classification import spec as classification
from kdhub_tasks.embedding import spec as embedding
from kdhub_tasks.language import spec as language
from kdhub_tasks.masked import spec as masked
from kdhub_tasks.pairs import spec as pairs
from kdhub_tasks.questions import spec as questions
from kdhub_tasks.rows import spec as rows
from kdhub_tasks.vision_language import spec as vision_language

ROOMS = (spec, classification, language, vision_language, pairs, masked, questions, embedding, rows)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))
