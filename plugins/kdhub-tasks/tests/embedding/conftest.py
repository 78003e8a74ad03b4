"""Tiny encoders, generated once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kdhub_tasks.tiny import WORDS, random_texts, tiny_encoder, write_jsonl


class Tiny:
    """Makers of tiny things.

    Attributes:
        words: the whole words of the default vocabulary.
    """

    words = WORDS
    texts = staticmethod(random_texts)
    jsonl = staticmethod(write_jsonl)
    write_encoder = staticmethod(tiny_encoder)

    def __init__(self, folder: Callable[[str], Path]):
        self._folder, self._made = folder, {}

    def encoder(self, **settings: Any) -> Path:
        """`tiny_encoder(**settings)`, made once for each settings; not to be changed."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._made:
            self._made[key] = tiny_encoder(self._folder("encoder"), **settings)
        return self._made[key]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp)
