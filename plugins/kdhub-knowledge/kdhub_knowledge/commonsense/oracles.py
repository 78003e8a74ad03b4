"""What is known of the closed worlds together."""

from __future__ import annotations

from kdhub_knowledge.commonsense import world, world_zh


def valid_tails(head: str, relation: str) -> frozenset[str] | None:
    """The valid tails of a head of a closed world; None where none of them knows it, or the relation."""
    known = world.valid_tails(head, relation)
    return known if known is not None else world_zh.valid_tails(head, relation)
