"""How an edit is drawn, as settings of the signal `image`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kdhub_generative.images.settings import Drawing


def not_a_time(name: str, value: float) -> str:
    """What is wrong with an end of a window; "" where nothing is."""
    if 0 <= value <= 1:
        return ""
    said = f"{name} must be diffusion time from 0 to 1 ({name}={value:g})"
    return said + (f": step {value:g} of 1000 is {value / 1000:g}" if 1 < value <= 1000 else "")


def _in_time(value: Any) -> Any:
    if isinstance(value, int | float) and (problem := not_a_time("this", value)):
        raise ValueError(problem)
    return value


Time = Annotated[float | None, BeforeValidator(_in_time)]
"""Diffusion time as an option; a step in its place is refused with what it would be."""
UNTIL = (0.0, 0.1, 0.2, 0.4, 0.6)
"""Ends of the window that an edit is measured and drawn with: from the longest window to the shortest."""
WEIGHTS = (0.7, 0.5, 0.3)
"""Likewise weights of the guide."""
Only = Literal["base", "guide", "guide-asked"]


class Editing(Drawing):
    """Unset settings are the edit's own."""

    guide_weight: float | None = Field(None, ge=0, le=1, description="of all guides together, shared out as theirs are")
    guide_until: float | None = Field(None, ge=0, le=1, description="diffusion time at which the guides end")
    only: Only | None = Field(
        None, description="the base alone; the last guide alone with its own prompt; or asked for the edit itself"
    )
