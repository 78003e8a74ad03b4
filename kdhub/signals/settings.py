"""Signals that a teacher makes rather than computes: a text, a picture. What they depend on beside the row stands in
their name, `text:{"max_new_tokens":64}`, `image:{"steps":25}`: other settings are another signal, in another store.

    class Drawing(SignalSettings):
        signal = "image"
        steps: int = Field(25, ge=1, description="steps from noise to the picture")

    Drawing(steps=4).kind                         # what a method needs: image:{"steps":4}
    Drawing.parse(kind).steps                     # in the teacher's `layout` and `signals`
    own_noise([row["seed"] for row in rows], (3, 32, 32))

A row of pictures is a seed and a condition: what is drawn for it depends on no other row, so that it is found again
whatever stood beside it, on however many ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from kdhub.errors import UsageError


class SignalSettings(BaseModel):
    """Settings of a signal, as a subclass with its name as `signal`; each has a default, a range and a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    signal: ClassVar[str]

    @property
    def kind(self) -> str:
        """The signal's name; what is as by default is not in it."""
        given = self.model_dump(exclude_defaults=True)
        return f"{self.signal}:{json.dumps(given, sort_keys=True, separators=(',', ':'))}"

    @classmethod
    def names(cls, kind: str) -> bool:
        """Whether a signal is of this name, whatever its settings."""
        return kind.partition(":")[0] == cls.signal

    @classmethod
    def parse(cls, kind: str) -> Self:
        """The settings in a signal's name.

        Raises:
            UsageError: they are no JSON, or none of these.
        """
        try:
            return cls(**json.loads(kind.partition(":")[2] or "{}"))
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        except (ValueError, TypeError) as error:
            said = str(error)
        known = ", ".join(f"{name} ({field.description})" for name, field in cls.model_fields.items())
        raise UsageError(f"signal {kind!r}: {said}", hint=f"settings of {cls.signal}: {known}")


def own_noise(seeds: Iterable[int], shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of one shape for each row, float32 (rows, *shape), by the row's seed alone."""
    drawn = [np.random.default_rng(int(seed)).standard_normal(shape, np.float32) for seed in seeds]
    return np.stack(drawn) if drawn else np.zeros((0, *shape), np.float32)
