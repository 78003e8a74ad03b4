"""Tiny encoders and two towers of them, for the tests of several plugins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kdhub_tasks.pairs import tiny as of_pairs
from kdhub_tasks.tiny import WORDS, random_texts, tiny_encoder, write_jsonl

import kdhub


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


@pytest.fixture(name="folder", scope="module")
def pairs_folder(tmp_path_factory) -> Path:
    """What the tiny recipe of text-pairs names."""
    made = tmp_path_factory.mktemp("pairs")
    of_pairs.recipe(made)
    return made


def towers(folder: Path, classes=("no", "yes"), shape=None):
    """A student of two towers, from the folder's encoder."""
    facts = {"classes": list(classes)}
    student = kdhub.open_student(f"towers:path:{folder / 'encoder'}", "text-pairs", facts=facts)
    if shape:
        student.stand(shape)
    return student
