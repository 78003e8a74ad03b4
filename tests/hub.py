"""The embedded hub in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from kdhub.hub.server.store import Store


@dataclass
class Hub:
    """Attributes:
    token, read_token: of the users `owner` (may write) and `reader`.
    log: what the server wrote to stderr.
    """

    folder: Path
    endpoint: str
    token: str
    read_token: str
    process: subprocess.Popen
    log: Path

    def environment(self, token: str | None = None, **more: str) -> dict[str, str]:
        """Of a process that is to use this hub and no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(self.folder.parent / "hf-home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return {**kept, **own, **more}


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[Hub]:
    """A hub on a free port, until the block ends. What is in the folder from before is served again."""
    store, tokens = Store(folder), {}
    for name, role in (("owner", "write"), ("reader", "read")):
        store.remove_token(name)
        tokens[name] = store.add_token(name, role)
    log = folder.with_name(f"{folder.name}.log")
    with open(log, "ab") as errors:
        args = [sys.executable, "-m", "kdhub", "hub", "serve", "--folder", str(folder), "--port", "0", *options]
        process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        told = ""
        while "Ctrl-C" not in told:
            line = process.stdout.readline()
            assert line, f"the hub did not start: {log.read_text()}"
            told += line
        endpoint = re.search(r"HF_ENDPOINT=(\S+)", told)[1]
        yield Hub(folder, endpoint, tokens["owner"], tokens["reader"], process, log)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(name="hub", scope="module")
def served(tmp_path_factory):
    """One hub for the tests of a module."""
    with serve(tmp_path_factory.mktemp("server") / "hub") as hub:
        yield hub


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The client may ask a hub; the tests' own environment forbids it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
