"""A picture as a signal: `image:{"steps":25}`, how a model draws it. The row is a seed and a condition."""

from __future__ import annotations

from pydantic import Field

from kdhub.signals.settings import SignalSettings


class Drawing(SignalSettings):
    """How a picture is drawn. Unset settings are the model's own."""

    signal = "image"
    steps: int | None = Field(None, ge=1, le=1000, description="calls of the network from noise to the picture")
    guidance: float | None = Field(None, ge=0, le=100, description="classifier-free guidance; 1 is none")
