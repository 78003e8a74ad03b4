"""Usage lines, run as anybody would run them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

SECONDS = 600
_HIDDEN = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def fault(code: str) -> str | None:
    """What is wrong with lines of Python, run in a process of their own, offline and without secrets; None where they
    work."""
    environment = {k: v for k, v in os.environ.items() if not any(word in k.upper() for word in _HIDDEN)}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory() as elsewhere:
        environment["HF_DATASETS_CACHE"] = elsewhere  # rows that are only looked at are kept nowhere
        how = {"cwd": elsewhere, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            done = subprocess.run([sys.executable, "-c", code], timeout=SECONDS, **how)
        except subprocess.TimeoutExpired:
            return f"did not finish within {SECONDS} s"
    if done.returncode:
        return f"do not work: {(done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]}"
    return None
