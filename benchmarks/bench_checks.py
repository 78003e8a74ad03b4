"""What the looks at a stranger's files cost: of the time to load a student, and of the time to pull one.

`python benchmarks/bench_checks.py [--layers 6] [--hidden 384] [--rounds 7]`

Looks are what opens nothing: names, manifest, configurations, headers of weights, and whether a pulled student is what
was pulled. Their time is taken inside the very calls that they are part of, in time of the processor, so that a busy
machine changes neither; what is left is what the same calls take without them. Digests of what is fetched, by which
every pull checks the transfer, are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import record, spread

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
REPO = "bench/student"
spent: Counter[str] = Counter()
_inside: list[str] = []


def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **more: Any) -> Any:
        if _inside:
            return function(*args, **more)
        _inside.append(what)
        began = time.thread_time()
        try:
            return function(*args, **more)
        finally:
            spent[what] += time.thread_time() - began
            _inside.pop()

    return run


def watch(what: str, *names: str) -> None:
    """Time functions, `module:name`, wherever they were imported to."""
    for name in names:
        module, _, attribute = name.partition(":")
        found = getattr(sys.modules[module], attribute)
        mine = timed(what, found)
        for other in list(sys.modules.values()):
            if getattr(other, "__dict__", {}).get(attribute) is found:
                setattr(other, attribute, mine)


def share(part: float, whole: float) -> float:
    """Percent that a part adds to what is left without it."""
    return 100 * part / (whole - part)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    os.environ.update(HF_TOKEN="hf_" + "x" * 34, TQDM_DISABLE="1", HF_HUB_DISABLE_XET="1")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KDHUB_HOME"] = str(Path(temporary) / "home")
        from fake_hub import Hub
        from huggingface_hub import constants
        from kdhub_tasks.tiny import tiny_encoder

        import kdhub
        from kdhub.hub import manifest
        from kdhub.hub.files import digests, walk

        folder = tiny_encoder(Path(temporary) / "student", layers=given.layers, hidden=given.hidden)
        found = {name: digests(path) for name, path in walk(folder)}
        facts = {"name": "a", "task": "text-embedding", "kind": "model", "provided_by": {"distribution": "kdhub-tasks"}}
        (folder / "kdhub.json").write_text(manifest.make(facts, found))
        size = sum(path.stat().st_size for _, path in walk(folder))
        hub = Hub()
        constants.ENDPOINT, constants.HF_HUB_OFFLINE = hub.endpoint, False
        hub.put(REPO, {name: path.read_bytes() for name, path in walk(folder)})
        kdhub.load(kdhub.pull(REPO).folder)  # what is imported and noted once
        watch("looks", "kdhub.hub.trust:check_model_folder", "kdhub.hub.trust:check_configuration",
              "kdhub.hub.weights:check_weights", "kdhub_tasks.transformer:check_weights", "kdhub.hub.pull:check_pulled",
              "kdhub.hub.pull:_damage", "kdhub.hub.pull:_check", "kdhub.hub.files:check_entries",
              "kdhub.hub.manifest:read")  # fmt: skip
        watch("digests", "kdhub.hub.files:digests")
        loads, pulls, hashes = [], [], []
        for turn in range(given.rounds):
            spent.clear()
            began = time.process_time()
            kdhub.load(kdhub.pull(REPO).folder)
            loads.append(share(spent["looks"], time.process_time() - began))
            spent.clear()
            began = time.process_time()
            kdhub.pull(REPO, to=Path(temporary) / f"new-{turn}")
            whole = time.process_time() - began
            shutil.rmtree(Path(temporary) / "home" / "students", ignore_errors=True)
            began, before = time.process_time(), spent.copy()
            kdhub.pull(REPO)
            whole = time.process_time() - began
            looks, digest = spent["looks"] - before["looks"], spent["digests"] - before["digests"]
            pulls.append(share(looks, whole))
            hashes.append(share(digest, whole))
        hub.close()
    row = {"megabytes": round(size / 1e6, 1), "load_percent": sorted(loads), "pull_percent": sorted(pulls)}
    print(f"| | added by looking, % of the time without, median (range) of {given.rounds} |\n| --- | --- |")
    print(f"| load a student of {row['megabytes']} MB | {spread(loads)} |\n| pull it | {spread(pulls)} |")
    print(f"| digests of what is pulled, in one thread of four | {spread(hashes)} |")
    record("checks", **row)
    print(json.dumps(row))
