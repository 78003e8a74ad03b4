"""Publishing and pulling a large student, against the client library's own calls.

`python benchmarks/bench_publish.py [--mb 500] [--rounds 3]`

The hub is one on loopback, so that what is timed is what both sides do with the bytes. kdhub checks every byte after a
pull and compares with the hub before a publish; the library checks nothing, so a sha256 pass over the files is added to
its time. What kdhub does before a publish (card, checks, the usage lines) does not depend on the size and is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import in_turns, record, spread
from huggingface_hub import HfApi, snapshot_download

from kdhub.files import sha256_file
from kdhub.hub import manifest
from kdhub.hub.client import Hub
from kdhub.hub.files import digests, walk
from kdhub.hub.publish import upload
from kdhub.hub.pull import pull

ROOT = Path(__file__).parents[1]
REPO = "bench/student"


def make(folder: Path, megabytes: int) -> None:
    """A student of two large files and some small ones, of random bytes; different each time."""
    folder.mkdir(parents=True)
    for i in range(2):
        with open(folder / f"model-{i}.safetensors", "wb") as file:
            for _ in range(megabytes // 2):
                file.write(os.urandom(10**6))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    facts = {"name": "student", "task": "none", "kind": "model"}
    (folder / "kdhub.json").write_text(manifest.make(facts, {name: digests(path) for name, path in walk(folder)}))


def digest(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sha256_file(path)


def publish_kdhub(folder: Path, endpoint: str) -> None:
    upload(Hub(endpoint), REPO, "model", folder, message="bench", replace=True)


def publish_library(folder: Path, endpoint: str) -> None:
    digest(folder)
    api = HfApi(endpoint=endpoint)
    api.create_repo(REPO, exist_ok=True)
    api.upload_folder(repo_id=REPO, folder_path=folder)


def pull_kdhub(folder: Path, endpoint: str) -> None:
    pull(REPO, to=folder, endpoint=endpoint)


def pull_library(folder: Path, endpoint: str) -> None:
    digest(Path(snapshot_download(REPO, local_dir=folder, endpoint=endpoint)))


WORK = {f.__name__.replace("_", " "): f for f in (publish_kdhub, publish_library, pull_kdhub, pull_library)}


def one(name: str, endpoint: str, megabytes: int) -> dict:
    """One timed job, in this process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "student"
        if name.startswith("publish"):
            make(folder, megabytes)
        began = time.perf_counter()
        WORK[name](folder, endpoint)
        return {"seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(one(*args.job, args.mb)))
        return
    code = "import fake_hub, time; print(fake_hub.Hub().endpoint, flush=True); time.sleep(10**6)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True
    ) as server:  # fmt: skip
        try:
            endpoint = server.stdout.readline().strip()
            jobs = {name: ["--mb", str(args.mb), "--job", name, endpoint] for name in WORK}
            switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            found = in_turns(__file__, jobs, args.rounds, **switches)
        finally:
            server.kill()
    seconds = {name: [row["seconds"] for row in rows] for name, rows in found.items()}
    print(f"{args.mb} MB, median (range) of {args.rounds}")
    for verb in ("publish", "pull"):
        ours, theirs = seconds[f"{verb} kdhub"], seconds[f"{verb} library"]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"{verb:8} kdhub {spread(ours)} s, library and sha256 {spread(theirs)} s, ratio {ratio:.3f}")
        record("publish", verb=verb, megabytes=args.mb, kdhub=ours, library=theirs, ratio=round(ratio, 4))


if __name__ == "__main__":
    main()
