"""What the measurements share: jobs in processes of their own, in turns, and rows that can be read again."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.jsonl"
PEERS = Path(__file__).parents[1] / "build" / "peers" / "bin" / "python"
"""The interpreter that has other programs to compare with; `make bench-peers` makes it."""
PACKAGES = ("kdhub", "torch", "transformers", "sentence-transformers", "accelerate")


def child(script: str, *arguments: str, python: str = sys.executable, **environment: str) -> dict[str, Any]:
    """Run `script ARGUMENTS` in a process of its own; its last line of stdout is one JSON object."""
    done = subprocess.run(
        [python, script, *arguments],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            **environment,
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turns(
    script: str, jobs: Mapping[str, Sequence[str]], rounds: int, *, peers: Sequence[str] = (),
    interpreter: Path = PEERS, **environment: str,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Each job `rounds` times, in alternating order, so that a busy moment hits all of them. Those of `peers` run with
    the interpreter that has them."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name in list(jobs) if turn % 2 == 0 else list(jobs)[::-1]:
            python = str(interpreter) if name in peers else sys.executable
            found[name].append(child(script, *jobs[name], python=python, **environment))
            print(f"  {name}: {found[name][-1]}", file=sys.stderr)
    return found


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def record(name: str, **facts: Any) -> None:
    """Append one machine-readable row."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    row = {"benchmark": name, "date": str(date.today()), "machine": machine(), "versions": versions, **facts}
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor()}, {os.cpu_count()} cores"
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    arithmetic = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in flags.split()]
    return f"{model}, {os.cpu_count()} cores, {' '.join(arithmetic) or 'no avx512'}"
