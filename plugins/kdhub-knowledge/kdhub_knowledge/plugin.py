"""What kdhub-knowledge provides: each room declares its own in `spec.py`. No torch, no transformers here."""

from pathlib import Path

from kdhub import hookimpl
from kdhub.hookspecs import hooks_of
from kdhub_knowledge.commonsense import spec as commonsense
from kdhub_knowledge.commonsense import spec_typed as typed_commonsense
from kdhub_knowledge.guards import spec as guards
from kdhub_knowledge.items import spec as items
from kdhub_knowledge.relations import spec as relations
from kdhub_knowledge.sets import spec as sets

ROOMS = (
    commonsense,
    guards,
    items,
    relations,
    sets,
    typed_commonsense,
)

globals().update(hooks_of(ROOMS, Path(__file__).parent / "registry"))


@hookimpl
def kdhub_card(run, sections):
    """A room says in the cards of its students what their readers must know."""
    for room in ROOMS:
        if said := getattr(room, "card", None):
            said(run, sections)
