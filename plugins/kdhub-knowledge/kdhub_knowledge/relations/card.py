"""What the card of a student of pairs says beyond what all cards say."""

from __future__ import annotations

from typing import Any

from kdhub_knowledge.relations.profiles import profile

SCORES = (
    "Scores are over the different pairs of each sentence, in lower case. Strict: both sides are equal. Lenient: both "
    "sides share a word. `unreachable` is the share of right pairs that no student of this kind can give: they overlap "
    "a longer one of the same head, or are not in their sentence as one run of words."
)


def say(run: Any, sections: dict[str, str]) -> None:
    """Add the notice of the profile, and how scores are meant, to the card's limits."""
    options = run.recipe.options or {}
    of_teacher = run.recipe.teacher.options if run.recipe.teacher else {}
    notice = profile(options.get("profile") or of_teacher.get("profile", "ade")).notice.strip()
    items = [f"**{notice}**"] if notice else []
    items.append(SCORES)
    if options.get("drug_source") == "gold":
        items.append("Heads were given, also in what is measured: finding them is no part of its scores.")
    sections["Limits"] = "\n".join([*(f"- {one}" for one in items), sections.get("Limits", "")])
