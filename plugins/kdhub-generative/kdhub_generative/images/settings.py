"""A picture as a signal: `image:{"steps":25}`, how a model draws it. The row is a seed and a condition."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from kdhub.signals.settings import SignalSettings


class Drawing(SignalSettings):
    """How a picture is drawn. Unset settings are the model's own."""

    signal = "image"
    steps: int | None = Field(None, ge=1, le=1000, description="calls of the network from noise to the picture")
    guidance: float | None = Field(None, ge=0, le=100, description="classifier-free guidance; 1 is none")


LONGEST = 8
"""Words of a condition that consists of words."""


@dataclass(frozen=True)
class Conditions:
    """What a model can be asked for.

    Attributes:
        classes: their names; None where it has none. prompts: whether any text is a condition.
        words: those that a condition may consist of, in any order; None where it does not consist of words.
        has_null: whether it also knows nothing as a condition, after all classes.
    """

    classes: tuple[str, ...] | None = None
    prompts: bool = False
    has_null: bool = False
    words: tuple[str, ...] | None = None

    @property
    def any(self) -> bool:
        return self.prompts or self.classes is not None or self.words is not None

    def fault(self, condition: str | None) -> str:
        """Why a condition cannot be drawn; "" where it can."""
        if condition is None:
            return "has no condition, and the model does not know nothing" if self.any and not self.has_null else ""
        if self.prompts:
            return ""
        if not self.any:
            return f"the condition {condition!r} means nothing to a model without conditions"
        names = self.words if self.classes is None else self.classes
        known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        if self.classes is not None:
            return "" if condition in names else f"the model does not know the condition {condition!r} ({known})"
        if len(given := condition.split()) > LONGEST:
            return f"the condition {condition!r} has more than {LONGEST} words"
        lost = ", ".join(repr(word) for word in given if word not in names)
        return f"the model does not know {lost} of the condition {condition!r} ({known})" if lost else ""
