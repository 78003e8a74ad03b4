"""How an edit is drawn, as settings of the signal `image`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdhub_generative.images.settings import Drawing

Only = Literal["base", "guide", "guide-asked"]


class Editing(Drawing):
    """Unset settings are the edit's own."""

    guide_weight: float | None = Field(None, ge=0, le=1, description="of all guides together, shared out as theirs are")
    guide_until: float | None = Field(None, ge=0, le=1, description="diffusion time at which the guides end")
    only: Only | None = Field(
        None, description="the base alone; the last guide alone with its own prompt; or asked for the edit itself"
    )
