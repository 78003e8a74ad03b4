"""Pytest fixtures for kdhub and its plugins: `from kdhub.testing.fixtures import home` in a `conftest.py`.

Importing this gives the whole session a Hub cache of its own and no network, so import it before anything imports
huggingface_hub, which reads these switches once.
"""

from __future__ import annotations

import base64
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_session = tempfile.TemporaryDirectory(prefix="kdhub-tests-")
SESSION_HOME = Path(_session.name)
os.environ["HF_HOME"] = _session.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")


LARGE = ("matplotlib", "numpy", "torch", "transformers")
"""Packages whose sources `pydoc` does not read in a test: nine tenths of all, 20 seconds."""
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg==")
"""A picture of one point."""


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """A kdhub home of the test's own, no switch from outside, strict plugins, and nothing left for the next test.

    And quick: figures are made and not drawn, which takes longer than a few steps of a toy; files are not forced to
    the disk, as processes are killed here and not machines; `pydoc` leaves the large packages out.
    """
    from kdhub.data import pydoc
    from kdhub.evaluation import plots
    from kdhub.plugins import discovery as plugins

    _freeze_imports()
    folder = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("KDHUB_") and n != "KDHUB_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KDHUB_HOME", str(folder))
    monkeypatch.setenv("KDHUB_STRICT", "1")
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(plots, "png", lambda figure: PIXEL)
    monkeypatch.setattr(pydoc, "PACKAGES", tuple(name for name in pydoc.PACKAGES if name not in LARGE))
    plugins.set_plugins(None)
    logger = logging.getLogger("kdhub")  # a command line that a test runs in this process sets it up for a terminal
    before = logger.handlers[:], logger.propagate, logger.level
    yield folder
    logger.handlers[:], logger.propagate, logger.level = before
    plugins.set_plugins(None)


_frozen_modules = 0


def _freeze_imports() -> None:
    """Take what imports have left out of the garbage collector's sight, where much was imported since the last time.

    torch, transformers and their kin leave half a million objects; to walk through them takes the collector a third of
    a second, several times in each run of a few steps: two thirds of its time.
    """
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 100:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()
