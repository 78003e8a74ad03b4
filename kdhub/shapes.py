"""What shapes of JSON and front matter are made of (`kdhub.plain_json.fit`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Text = str | None
Number = float | None


class Shape(BaseModel):
    """A mapping, of which keys nobody here reads may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True)
