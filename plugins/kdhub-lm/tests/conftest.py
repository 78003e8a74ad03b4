"""What the tests of language models share: a home of each test's own, no switch from outside."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports huggingface_hub, which reads these once. No test uses the network or the user's own cache.
_session_home = tempfile.TemporaryDirectory(prefix="kdhub-lm-tests-")
os.environ["HF_HOME"] = _session_home.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Iterator[Path]:
    from kdhub import plugins

    folder = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("KDHUB_") and n != "KDHUB_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KDHUB_HOME", str(folder))
    monkeypatch.setenv("KDHUB_STRICT", "1")
    plugins.set_plugins(None)
    yield folder
    plugins.set_plugins(None)
